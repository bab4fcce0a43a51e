"""What follows from LiveKit's webhooks, on the fake RoomService: no sweep helps here."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit.protocol import models
from structlog.testing import capture_logs

from signaling import Role, StoreError, WebhookRefused, metrics
from signaling.meeting.incidents import PICTURE_S
from signaling.stores.memory import MemoryStore
from signaling.stores.sqlite import SQLiteStore
from signaling.testing.fake_room_service import Change, FakeRoomService
from signaling.testing.webhooks import sign_webhook, webhook_of
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, until


class Post:
    """Webhooks on their way to the module."""

    def __init__(self, meeting: MeetingOnFake) -> None:
        self._meeting = meeting
        self.waiting: list[bytes] = []
        self._reactions: set[asyncio.Task[object]] = set()
        self._others: set[asyncio.Task[object]] = set()
        meeting.fake.observe(self._collect)

    def _collect(self, change: Change) -> None:
        body = webhook_of(change)
        if body is not None:
            self.waiting.append(body)

    async def deliver(self, body: bytes) -> None:
        fake = self._meeting.fake
        before = self._running() - self._reactions
        await self._meeting.module.receive_webhook(body, sign_webhook(body, fake.api_key, fake.api_secret))
        self._others |= before
        self._reactions |= self._running() - before

    async def until_over(self) -> None:
        """Wait until all that follows from what was delivered has happened."""
        async with asyncio.timeout(5):
            while reactions := self._running() - (self._others - self._reactions):
                await asyncio.wait(reactions)

    def _running(self) -> set[asyncio.Task[object]]:
        return {
            task for room in self._meeting.module._entered.meetings._meetings.values() for task in room.tasks._running
        }

    async def deliver_all(self, in_order: Callable[[list[bytes]], list[bytes]] = lambda bodies: bodies) -> None:
        bodies, self.waiting = self.waiting, []
        for body in in_order(bodies):
            await self.deliver(body)


@pytest.fixture
def post(meeting: MeetingOnFake) -> Post:
    return Post(meeting)


async def publishing(moderator: Person, who: str) -> list[str]:
    """The sources that somebody publishes, as far as is known without asking LiveKit."""
    await moderator.moderate("get_state")
    (shown,) = [one for one in moderator.noticed("state")[-1]["participants"] if one["participant"] == who]
    return [track["source"] for track in shown["publishing"]]


async def restricted(meeting: MeetingOnFake) -> tuple[Person, Person, str]:
    """Alice has restricted Bob, who has the token of before."""
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert not meeting.may(bob)
    meeting.fake.calls.clear()
    return alice, bob, bob.token


async def test_an_old_token_that_returns_costs_one_call(meeting: MeetingOnFake, post: Post) -> None:
    _, bob, old_token = await restricted(meeting)
    meeting.enter(bob, old_token)
    assert meeting.may(bob)
    await post.deliver_all()
    await until(lambda: not meeting.may(bob))
    assert [call.method for call in meeting.fake.calls] == ["UpdateParticipant"]


async def test_who_joins_as_they_should_costs_none(meeting: MeetingOnFake, post: Post) -> None:
    alice, _, _ = await restricted(meeting)
    carol = await meeting.join("carol")
    meeting.fake.publish(ROOM, "carol", "camera")
    meeting.fake.calls.clear()
    assert await publishing(alice, "carol") == []
    await post.deliver_all()
    await post.until_over()
    assert await publishing(alice, "carol") == ["camera"]
    assert meeting.fake.calls == []
    assert not meeting.may(carol)


async def test_who_never_becomes_active_is_found_by_their_track(meeting: MeetingOnFake, post: Post) -> None:
    _, bob, old_token = await restricted(meeting)
    meeting.fake.join(ROOM, "bob", token=old_token, state=models.ParticipantInfo.JOINED)
    meeting.fake.publish(ROOM, "bob", "microphone")
    await post.deliver_all()
    await until(lambda: not meeting.may(bob))
    assert meeting.fake.participant(ROOM, "bob").tracks == []


async def test_a_second_session_is_removed(meeting: MeetingOnFake, post: Post) -> None:
    await restricted(meeting)
    meeting.fake.join(ROOM, "bob#x")
    await post.deliver_all()
    await until(lambda: "bob#x" not in meeting.fake.permissions(ROOM))


async def test_somebody_who_never_joined_is_restricted_like_anyone(meeting: MeetingOnFake, post: Post) -> None:
    await restricted(meeting)
    meeting.fake.join(ROOM, "stranger")
    await post.deliver_all()
    await until(lambda: not meeting.fake.may_publish(ROOM, "stranger", "microphone"))


async def test_the_end_of_an_earlier_session_is_not_the_end_of_the_newer_one(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob, old_token = await restricted(meeting)
    await alice.send("disable_microphone_restrictions")
    meeting.enter(bob, old_token)
    await post.deliver_all(lambda bodies: sorted(bodies, key=lambda body: b"participant_left" in body))
    await post.until_over()
    meeting.fake.calls.clear()
    meeting.fake.publish(ROOM, "bob", "microphone")
    await post.deliver_all()
    await post.until_over()
    assert await publishing(alice, "bob") == ["microphone"]
    assert meeting.calls("ListParticipants") == []  # nobody need be looked up: the newer session is known


async def test_a_room_that_livekit_has_finished_is_made_again(meeting: MeetingOnFake, post: Post) -> None:
    await restricted(meeting)
    meeting.fake.close_room(ROOM)
    assert ROOM not in meeting.fake.rooms
    await post.deliver_all()
    await until(lambda: ROOM in meeting.fake.rooms)


async def test_a_look_that_fails_is_made_up_for(meeting: MeetingOnFake, post: Post) -> None:
    _, bob, old_token = await restricted(meeting)
    meeting.fake.join(ROOM, "bob", token=old_token, state=models.ParticipantInfo.JOINED)
    meeting.fake.publish(ROOM, "bob", "microphone")
    with meeting.fake.refuse("internal", method="ListParticipants", times=1):
        await post.deliver_all()
        await until(lambda: not meeting.may(bob))


@pytest.mark.parametrize("seed", range(5))
async def test_lost_doubled_and_reordered_ones_leave_nothing_wrong_after_a_sweep(
    fake: FakeRoomService, seed: int
) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret

    def mangle(bodies: list[bytes]) -> list[bytes]:
        kept = [body for body in bodies if rng.random() < 0.7]
        rng.shuffle(kept)
        return kept

    async with meeting_on_fake(fake, moderation_sweep_s=0.2) as meeting:
        post = Post(meeting)
        _, bob, old_token = await restricted(meeting)
        for _ in range(10):
            meeting.enter(bob, rng.choice([old_token, bob.token]))
            if meeting.may(bob):
                meeting.fake.publish(ROOM, "bob", "microphone")
            twice = post.waiting[:1]
            await post.deliver_all(mangle)
            for body in twice:
                try:
                    await post.deliver(body)
                except WebhookRefused as refused:
                    assert refused.reason == "replayed"  # noqa: PT017 - it may have been lost instead
        await until(lambda: not meeting.may(bob))
        assert meeting.fake.participant(ROOM, "bob").tracks == []


async def test_webhooks_of_meetings_that_are_not_here_are_of_no_consequence(meeting: MeetingOnFake, post: Post) -> None:
    await restricted(meeting)
    meeting.fake.create_room("elsewhere:blue")
    meeting.fake.join("elsewhere:blue", "bob")
    meeting.fake.join(ROOM, "stranger")
    await post.deliver_all()
    await post.until_over()
    assert meeting.calls() == ["stranger"]
    assert meeting.fake.may_publish("elsewhere:blue", "bob", "microphone")


async def test_none_at_all_is_warned_of_once(fake: FakeRoomService) -> None:
    with capture_logs() as logs:
        async with meeting_on_fake(fake, moderation_sweep_s=0.02) as meeting:
            await meeting.join("bob")
            await until(lambda: len(meeting.calls("ListParticipants")) >= 6)
    warned = [line for line in logs if line["event"] == "webhooks_missing"]
    assert len(warned) == 1


async def test_after_the_first_nothing_is_warned_of(fake: FakeRoomService) -> None:
    with capture_logs() as logs:
        async with meeting_on_fake(fake, moderation_sweep_s=0.02) as meeting:
            post = Post(meeting)
            await meeting.join("bob")
            await post.deliver_all()
            await until(lambda: len(meeting.calls("ListParticipants")) >= 6)
    assert not [line for line in logs if line["event"] == "webhooks_missing"]


# --- What moderators are told ------------------------------------------------------------------------------------


async def test_moderators_are_told_of_drift_that_was_repaired(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob, old_token = await restricted(meeting)
    meeting.enter(bob, old_token)
    await post.deliver_all()
    told = await alice.until_told("drift_repaired", "livekit_moderation")
    assert told["participant"] == "bob"
    assert set(told["found"]) - set(told["expected"]) == {"microphone"}
    assert bob.told("drift_repaired", "livekit_moderation") == []


async def test_moderators_are_told_once_of_somebody_who_never_joined(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        meeting.fake.join(ROOM, "stranger")
        meeting.fake.join(ROOM, "egress", kind=models.ParticipantInfo.EGRESS)
        assert (await alice.until_told("unknown_participant", "livekit_moderation"))["identity"] == "stranger"
        looks = len(meeting.calls("ListParticipants"))
        await until(lambda: len(meeting.calls("ListParticipants")) > looks + 3)
        assert len(alice.told("unknown_participant", "livekit_moderation")) == 1


async def test_who_comes_back_after_a_kick_is_not_unknown(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        post = Post(meeting)
        alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        await alice.comes_to("kick", participants=["bob"])
        meeting.enter(bob, bob.token)
        await post.deliver_all()
        assert (await alice.until_told("drift_repaired", "livekit_moderation"))["participant"] == "bob"
        looks = len(meeting.calls("ListParticipants"))
        await until(lambda: len(meeting.calls("ListParticipants")) > looks + 1)
        assert alice.told("unknown_participant", "livekit_moderation") == []


async def test_moderators_are_told_of_somebody_who_unmutes_again(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        sid = meeting.fake.publish(ROOM, "bob", "microphone")
        await alice.send("force_mute", participants=["bob"])
        meeting.fake.unmute(ROOM, "bob", sid)
        assert (await alice.until_told("unmuted_again", "livekit_moderation"))["participant"] == "bob"
        assert not meeting.is_muted(bob, sid)


async def test_a_mute_in_the_middle_of_a_sweep_is_no_unmuting(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        for name in ("bob", "carol"):
            await meeting.join(name)
            meeting.fake.publish(ROOM, name, "microphone")
        with meeting.fake.hang(method="UpdateParticipant", identity="carol") as hanging:
            meeting.fake.join(ROOM, "carol")  # with other rights
            await hanging.hit()  # the sweep has its list
            await alice.send("force_mute", participants=["bob"])
        looks = len(meeting.calls("ListParticipants"))
        await until(lambda: len(meeting.calls("ListParticipants")) > looks + 3)
        assert alice.noticed("unmuted_again") == []


# --- Bypasses ----------------------------------------------------------------------------------------------------


async def test_sound_declared_as_camera_loses_the_camera_and_the_second_time_the_meeting(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob, _ = await restricted(meeting)
    sid = meeting.fake.publish(ROOM, "bob", "camera", mime_type="audio/opus")
    await post.deliver_all()
    stopped = await alice.until_told("bypass_stopped", "livekit_moderation")
    assert stopped == {
        "message": "bypass_stopped",
        "participant": "bob",
        "track_sid": sid,
        "declared": "camera",
        "media": "audio",
    }
    assert not meeting.may(bob, "camera")
    assert meeting.fake.participant(ROOM, "bob").tracks == []
    meeting.fake.publish(ROOM, "bob", "screen_share", mime_type="audio/opus")
    await post.deliver_all()
    assert await bob.session.ended == "kicked"
    await until(lambda: "bob" not in meeting.fake.permissions(ROOM))


async def test_a_bypass_counts_as_stopped_when_livekit_has_stopped_it(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob, _ = await restricted(meeting)
    stopped = metrics.BYPASSES._value.get()
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob") as refused:
        meeting.fake.publish(ROOM, "bob", "camera", mime_type="audio/opus")
        await post.deliver_all()
        await refused.hit(4)
        assert alice.told("bypass_stopped", "livekit_moderation") == []
    repaired = await alice.until_told("drift_repaired", "livekit_moderation")
    assert ("camera" in repaired["found"], "camera" in repaired["expected"]) == (True, False)
    assert not meeting.may(bob, "camera")
    assert metrics.BYPASSES._value.get() == stopped


async def test_drift_that_livekit_would_not_mend_at_first_is_told_when_it_is(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob, token = await restricted(meeting)
    found, repaired = (metric.labels("participant_joined")._value.get() for metric in (metrics.DRIFT, metrics.REPAIRS))
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob") as refused:
        meeting.enter(bob, token)
        await post.deliver_all()
        await refused.hit(3)
        assert alice.told("drift_repaired", "livekit_moderation") == []
    assert (await alice.until_told("drift_repaired", "livekit_moderation"))["participant"] == "bob"
    assert metrics.DRIFT.labels("participant_joined")._value.get() == found + 1
    assert metrics.REPAIRS.labels("participant_joined")._value.get() == repaired + 1


async def test_drift_counts_as_repaired_too_when_only_livekits_answer_was_lost(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob, token = await restricted(meeting)
    lost = meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob", times=1, takes_effect=True)
    with lost:
        meeting.enter(bob, token)
        await post.deliver_all()
        assert (await alice.until_told("drift_repaired", "livekit_moderation"))["participant"] == "bob"
    assert not meeting.may(bob)


async def test_what_is_right_again_by_another_decision_was_not_repaired(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob, token = await restricted(meeting)
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob") as refused:
        meeting.enter(bob, token)
        await post.deliver_all()
        await refused.hit()
        await alice.send("disable_microphone_restrictions")
    here = meeting.module._entered.meetings[ROOM]
    await until(lambda: not here.due.is_settling(bob.id))
    assert (here.incidents._unrepaired, alice.told("drift_repaired", "livekit_moderation")) == ({}, [])


async def test_a_retry_about_others_says_nothing_of_who_is_still_wrong(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob, token = await restricted(meeting)
    eve = await meeting.join("eve")
    here = meeting.module._entered.meetings[ROOM]
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob") as refused:
        meeting.enter(bob, token)
        await post.deliver_all()
        await refused.hit()
        await here.reconciler.go_over(frozenset({eve.id}))
        assert here.incidents._unrepaired != {}
        assert alice.told("drift_repaired", "livekit_moderation") == []
    await alice.until_told("drift_repaired", "livekit_moderation")


async def test_who_comes_with_less_than_they_may_is_set_right_and_called_no_drift(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob, _ = await restricted(meeting)
    with meeting.fake.hang(method="ListParticipants") as hanging:
        lifting = asyncio.create_task(alice.send("disable_microphone_restrictions"))
        await hanging.hit()
        await bob.send("create_new_access_token")
    await lifting
    meeting.enter(bob, bob.told("credentials")[-1]["token"])
    await post.deliver_all()
    await until(lambda: meeting.may(bob))
    await post.until_over()
    assert alice.told("drift_repaired", "livekit_moderation") == []


async def test_a_bypass_that_is_found_twice_at_once_is_stopped_once(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob, _ = await restricted(meeting)
    with capture_logs() as logs:
        meeting.fake.publish(ROOM, "bob", "camera", mime_type="audio/opus")
        meeting.fake.publish(ROOM, "bob", "screen_share")
        await post.deliver_all()
        await until(lambda: not meeting.may(bob, "camera"))
        await alice.until_told("bypass_stopped", "livekit_moderation")
        await post.until_over()
    assert [line["event"] for line in logs if line["event"] in {"bypass_stopped", "background_work_failed"}] == [
        "bypass_stopped"
    ]


async def test_the_call_that_stops_a_bypass_waits_for_no_turn(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob, _ = await restricted(meeting)
    await meeting.join("carol")
    with meeting.fake.hang(method="UpdateParticipant", identity="carol") as hanging:
        running = asyncio.create_task(alice.send("revoke_screen_share_permission", participants=["carol"]))
        await hanging.hit()
        meeting.fake.publish(ROOM, "bob", "camera", mime_type="audio/opus")
        await post.deliver_all()
        await until(lambda: not meeting.may(bob, "camera"))
    await running
    await alice.until_told("bypass_stopped", "livekit_moderation")


async def test_a_sweep_finds_what_no_webhook_told_of(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice, bob, _ = await restricted(meeting)
        meeting.fake.publish(ROOM, "bob", "camera", type=models.VIDEO, mime_type="audio/opus")
        await alice.until_told("bypass_stopped", "livekit_moderation")
        assert not meeting.may(bob, "camera")


async def test_the_sound_of_a_screen_may_come_before_its_picture_but_not_without(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob, _ = await restricted(meeting)
    await meeting.join("carol")
    for name in ("bob", "carol"):
        meeting.fake.publish(ROOM, name, "screen_share_audio")
    await post.deliver_all()
    meeting.fake.publish(ROOM, "carol", "screen_share")
    await post.deliver_all()
    stopped = await alice.until_told("bypass_stopped", "livekit_moderation")
    assert (stopped["participant"], stopped["declared"]) == ("bob", "screen_share_audio")
    assert not meeting.may(bob, "screen_share_audio")
    assert len(meeting.fake.participant(ROOM, "carol").tracks) == 2
    assert len(alice.told("bypass_stopped", "livekit_moderation")) == 1


async def test_the_sound_of_a_screen_has_the_same_time_when_its_picture_ends(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, _, _ = await restricted(meeting)
    await meeting.join("carol")
    meeting.fake.publish(ROOM, "bob", "screen_share_audio")
    picture = meeting.fake.publish(ROOM, "bob", "screen_share")
    meeting.fake.publish(ROOM, "carol", "screen_share_audio")
    await post.deliver_all()
    assert (await alice.until_told("bypass_stopped", "livekit_moderation"))["participant"] == "carol"
    meeting.fake.unpublish(ROOM, "bob", picture)
    ended_at = time.monotonic()
    await post.deliver_all()
    assert (await alice.until_told("bypass_stopped", "livekit_moderation", times=2))["participant"] == "bob"
    assert time.monotonic() - ended_at >= PICTURE_S


# --- Each counts once --------------------------------------------------------------------------------------------


@pytest.fixture
def refused() -> Callable[[str], float]:
    """How many webhooks were refused for a reason."""
    return lambda reason: float(metrics.WEBHOOKS.labels(reason)._value.get())


async def test_a_webhook_of_before_a_restart_is_refused_after_it(
    fake: FakeRoomService, tmp_path: Path, refused: Callable[[str], float]
) -> None:
    path = tmp_path / "meetings.sqlite"
    async with meeting_on_fake(fake, store=SQLiteStore(path)) as meeting:
        post = Post(meeting)
        bob = await meeting.join("bob")
        fake.leave(ROOM, "bob")
        meeting.enter(bob)
        bodies = [body for body in post.waiting if b"room_started" not in body]  # from which nothing follows
        await post.deliver_all()
    before = refused("replayed")
    async with meeting_on_fake(fake, store=SQLiteStore(path)) as meeting:
        post = Post(meeting)
        for body in bodies:
            with pytest.raises(WebhookRefused, match="replayed"):
                await post.deliver(body)
    assert refused("replayed") == before + len(bodies) > before + 2


async def test_of_one_webhook_shown_many_times_at_once_one_counts(
    fake: FakeRoomService, tmp_path: Path, refused: Callable[[str], float]
) -> None:
    before = refused("replayed")
    async with meeting_on_fake(fake, store=SQLiteStore(tmp_path / "meetings.sqlite")) as meeting:
        post = Post(meeting)
        await meeting.join("bob")
        body = post.waiting[-1]
        shown = await asyncio.gather(*(post.deliver(body) for _ in range(5)), return_exceptions=True)
    assert shown.count(None) == 1
    assert refused("replayed") == before + 4


async def test_what_livekit_reports_is_looked_at_although_the_store_cannot_keep_it(
    meeting: MeetingOnFake, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> bool:
        raise StoreError("the disk is full")

    _, bob, old_token = await restricted(meeting)
    monkeypatch.setattr(MemoryStore, "keep_once", fail)
    with capture_logs() as logs:
        meeting.enter(bob, old_token)
        await post.deliver_all()
        await until(lambda: not meeting.may(bob))
    assert ("webhook_not_kept", "warning") in [(line["event"], line["log_level"]) for line in logs]
