"""People in LiveKit who never joined here, by whatever name: taken away from, never given, and never overlooked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from livekit.api import LiveKitAPI, UpdateParticipantRequest
from livekit.protocol import models

from signaling import Kind, ParticipantBanned, Role, StoreError
from signaling.identifiers import BreakoutId, parse_participant_id
from signaling.messages import moderation
from signaling.stores.contract import Commit
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, until
from tests.test_webhooks_on_fake import Post

ODD = ["wumpus#1234", "studio #1", "sip_+4930 22", "0B1F9F6E-6A3C-4B8E-9C53-8D5F1F7F2A10", "a\tb", "ä"]
RESTRICTABLE = ("camera", "microphone", "screen_share")
EVERYTHING = models.ParticipantPermission(can_subscribe=True, can_publish=True)
VIEWER = models.ParticipantPermission(can_subscribe=True)
SCREEN_ONLY = models.ParticipantPermission(
    can_subscribe=True, can_publish=True, can_publish_sources=["SCREEN_SHARE", "SCREEN_SHARE_AUDIO"]
)
CAMERA_ONLY = models.ParticipantPermission(can_subscribe=True, can_publish=True, can_publish_sources=["CAMERA"])


@pytest.fixture
def post(meeting: MeetingOnFake) -> Post:
    return Post(meeting)


@pytest.fixture
async def sweeping(fake: FakeRoomService) -> AsyncIterator[MeetingOnFake]:
    """A meeting that is compared with LiveKit again and again."""
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as on_fake:
        yield on_fake


async def swept(meeting: MeetingOnFake) -> None:
    """Wait for two whole sweeps: everything was compared at least once since this was called."""
    for _ in range(2):
        before = len(meeting.calls("ListParticipants"))
        await until(lambda before=before: len(meeting.calls("ListParticipants")) > before)  # type: ignore[misc]
    await asyncio.sleep(0)


def shown(alice: Person) -> dict[str, dict[str, Any]]:
    """The strangers whom the newest `state` shows, by identity."""
    return {stranger["identity"]: stranger for stranger in alice.noticed("state")[-1]["strangers"]}


async def state(alice: Person) -> dict[str, dict[str, Any]]:
    await alice.moderate("get_state")
    return shown(alice)


# --- Taken away from, never given --------------------------------------------------------------------------------


@pytest.mark.parametrize("permission", [VIEWER, CAMERA_ONLY, EVERYTHING])
async def test_whoever_did_not_join_keeps_what_they_came_with(
    sweeping: MeetingOnFake, permission: models.ParticipantPermission
) -> None:
    await sweeping.join("alice", Role.MODERATOR)
    sweeping.fake.join(ROOM, "viewer", permission=permission)
    await swept(sweeping)
    assert sweeping.fake.permissions(ROOM)["viewer"] == permission
    assert sweeping.calls("UpdateParticipant") == []


@pytest.mark.parametrize("permission", [VIEWER, CAMERA_ONLY, EVERYTHING])
async def test_lifting_gives_back_no_more(meeting: MeetingOnFake, permission: models.ParticipantPermission) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    meeting.fake.join(ROOM, "eve", permission=permission)
    came = [source for source in RESTRICTABLE if meeting.fake.may_publish(ROOM, "eve", source)]
    for source in RESTRICTABLE:
        await alice.comes_to("restrict", source=source)
        assert not meeting.fake.may_publish(ROOM, "eve", source)
    for action in ("unrestrict", "allow"):
        for source in RESTRICTABLE:
            await alice.moderated(action, source=source, **({"participants": ["eve"]} if action == "allow" else {}))
    assert [source for source in RESTRICTABLE if meeting.fake.may_publish(ROOM, "eve", source)] == came


async def test_a_stop_gives_back_what_was_there(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    meeting.fake.join(ROOM, "eve", permission=CAMERA_ONLY)
    meeting.fake.publish(ROOM, "eve", "camera")
    assert await alice.comes_to("stop", source="camera", participants=["eve"]) == {"eve": "stopped"}
    assert meeting.fake.may_publish(ROOM, "eve", "camera")
    assert not meeting.fake.may_publish(ROOM, "eve", "microphone")


async def test_allowing_somebody_who_cannot_be_given_it_is_not_told_as_granted(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    meeting.fake.join(ROOM, "viewer", permission=VIEWER)
    await alice.comes_to("restrict", source="microphone")
    assert await alice.comes_to("allow", source="microphone", participants=["viewer"]) == {"viewer": "unchanged"}
    assert not meeting.fake.may_publish(ROOM, "viewer", "microphone")


async def test_what_they_came_with_outlasts_the_process(fake: FakeRoomService) -> None:
    store = MemoryStore()
    async with meeting_on_fake(fake, store=store) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        fake.join(ROOM, "eve", permission=CAMERA_ONLY)
        await alice.comes_to("restrict", source="camera")
    async with meeting_on_fake(fake, store=store) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR, in_livekit=False)
        assert await alice.comes_to("unrestrict", source="camera") == {"alice": "unchanged", "eve": "unrestricted"}
        assert fake.permissions(ROOM)["eve"] == CAMERA_ONLY


async def test_it_counts_though_the_store_does_not_answer(fake: FakeRoomService) -> None:
    store = FailingAt(moderation.StateChanged)
    async with meeting_on_fake(fake, store=store, moderation_sweep_s=0.05) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        fake.join(ROOM, "eve", permission=EVERYTHING)
        await swept(meeting)
        await alice.comes_to("restrict", source="microphone")
        fake.join(ROOM, "zoe", permission=CAMERA_ONLY)
        store.fails_always = True
        fake.join(ROOM, "dan", permission=EVERYTHING)
        await until(lambda: not fake.may_publish(ROOM, "dan", "microphone"))
        store.fails_always = False
        await alice.comes_to("unrestrict", source="microphone")
        await until(lambda: fake.may_publish(ROOM, "dan", "microphone"))
        assert not fake.may_publish(ROOM, "zoe", "microphone")


@pytest.mark.parametrize("is_lifted", [False, True])
async def test_what_others_take_from_somebody_is_not_given_back(sweeping: MeetingOnFake, *, is_lifted: bool) -> None:
    alice, fake = await sweeping.join("alice", Role.MODERATOR), sweeping.fake
    fake.join(ROOM, "eve", permission=EVERYTHING)
    await alice.comes_to("restrict", source="microphone")
    if is_lifted:
        await alice.comes_to("unrestrict", source="microphone")
        assert fake.may_publish(ROOM, "eve", "microphone")
    await swept(sweeping)
    async with LiveKitAPI(fake.url, fake.api_key, fake.api_secret) as others:
        await others.room.update_participant(
            UpdateParticipantRequest(room=ROOM, identity="eve", permission=SCREEN_ONLY)
        )
    await swept(sweeping)
    assert fake.permissions(ROOM)["eve"] == SCREEN_ONLY
    await alice.comes_to("unrestrict", source="microphone")
    await swept(sweeping)
    assert not fake.may_publish(ROOM, "eve", "camera")


async def test_what_somebody_came_with_counts_in_that_room_alone(sweeping: MeetingOnFake) -> None:
    alice, fake = await sweeping.join("alice", Role.MODERATOR), sweeping.fake
    await sweeping.join("bob", breakout="lobby")
    lobby = f"{ROOM}:lobby"
    fake.join(ROOM, "eve", permission=VIEWER)
    fake.join(lobby, "eve", permission=EVERYTHING)
    await swept(sweeping)
    await alice.comes_to("restrict", source="microphone")
    await until(lambda: not fake.may_publish(lobby, "eve", "microphone"))
    await swept(sweeping)
    revision = (await sweeping.module._entered.meetings[ROOM].journal.record()).revision
    await swept(sweeping)
    assert (await sweeping.module._entered.meetings[ROOM].journal.record()).revision == revision
    await alice.comes_to("unrestrict", source="microphone")
    await until(lambda: fake.may_publish(lobby, "eve", "microphone"))
    assert fake.permissions(ROOM)["eve"] == VIEWER


async def test_a_meeting_that_ends_gives_nobody_anything(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    meeting.fake.join(ROOM, "eve", permission=EVERYTHING)
    await alice.comes_to("restrict", source="microphone")
    with meeting.fake.refuse("internal", method="DeleteRoom") as refusing:
        deleting = asyncio.ensure_future(meeting.module.close_room(meeting.room))
        await refusing.hit(3)
        assert not meeting.may(bob)
        assert not meeting.fake.may_publish(ROOM, "eve", "microphone")
    await deleting
    await until(lambda: ROOM not in meeting.fake.rooms)


# --- Rooms -------------------------------------------------------------------------------------------------------


async def test_a_room_that_only_looks_like_a_breakout_is_not_ours(sweeping: MeetingOnFake) -> None:
    post = Post(sweeping)
    alice = await sweeping.join("alice", Role.MODERATOR)
    lobby = f"{ROOM}:lobby"
    sweeping.fake.create_room(lobby)
    sweeping.fake.join(lobby, "alice")
    sweeping.fake.join(lobby, "eve", permission=VIEWER)
    sweeping.fake.publish(lobby, "alice", "microphone")
    await alice.comes_to("restrict", source="microphone")
    await post.deliver_all()
    await swept(sweeping)
    assert sweeping.fake.permissions(lobby)["eve"] == VIEWER
    assert [call for call in sweeping.fake.calls if call.room == lobby] == []
    assert alice.noticed("unknown_participant") == []


# --- Names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD)
async def test_whoever_is_told_of_can_be_named(sweeping: MeetingOnFake, name: str) -> None:
    alice = await sweeping.join("alice", Role.MODERATOR)
    fake = sweeping.fake
    fake.join(ROOM, name, permission=EVERYTHING)
    assert await alice.until_told("unknown_participant", "livekit_moderation") == {
        "message": "unknown_participant",
        "identity": name,
    }
    fake.publish(ROOM, name, "microphone")
    assert await alice.outcomes("force_mute", participants=[name]) == {name: "muted"}
    assert await alice.comes_to("mute", participants=[name], hold_s=60) == {name: "already_muted"}
    assert await alice.comes_to("disallow", source="camera", participants=[name]) == {name: "revoked"}
    assert not fake.may_publish(ROOM, name, "camera")
    assert not fake.may_publish(ROOM, name, "microphone")
    assert await alice.comes_to("allow", source="camera", participants=[name]) == {name: "granted"}
    assert await alice.comes_to("allow", source="microphone", participants=[name]) == {name: "granted"}
    assert await alice.comes_to("restrict", source="microphone", allowed=[name]) == {
        "alice": "exempt",
        name: "unchanged",
    }
    assert fake.may_publish(ROOM, name, "microphone")
    assert await alice.comes_to("mute", everyone_except=[name]) == {"alice": "exempt", name: "exempt"}
    assert await alice.comes_to("ask_to_unmute", participants=[name]) == {name: "not_connected"}
    assert await alice.comes_to("kick", participants=[name]) == {name: "removed"}
    assert name not in fake.permissions(ROOM)
    fake.join(ROOM, name)
    await until(lambda: name not in fake.permissions(ROOM))


async def test_a_second_session_of_a_member_is_still_removed(sweeping: MeetingOnFake) -> None:
    await sweeping.join("bob")
    sweeping.fake.join(ROOM, "bob#x")
    sweeping.fake.join(ROOM, "bobby#x")
    await until(lambda: "bob#x" not in sweeping.fake.permissions(ROOM))
    assert "bobby#x" in sweeping.fake.permissions(ROOM)


async def test_nobody_is_the_controller_by_being_called_so(sweeping: MeetingOnFake) -> None:
    await sweeping.join("alice", Role.MODERATOR)
    sweeping.fake.join(ROOM, "controller")
    sweeping.fake.publish(ROOM, "controller", "microphone")

    async def comes_to(action: str, **fields: object) -> dict[str, str]:
        result = await sweeping.module.command(ROOM, "livekit_moderation", {"action": action, **fields})
        return {outcome.participant: outcome.outcome for outcome in result.outcomes}

    assert await comes_to("mute", everyone_except=[]) == {"alice": "exempt", "controller": "muted"}
    assert await comes_to("kick", participants=["controller"]) == {"controller": "removed"}
    assert "controller" not in sweeping.fake.permissions(ROOM)


async def test_a_ban_refuses_joining_by_any_form_of_an_id(sweeping: MeetingOnFake) -> None:
    alice = await sweeping.join("alice", Role.MODERATOR)
    upper = "0B1F9F6E-6A3C-4B8E-9C53-8D5F1F7F2A10"
    sweeping.fake.join(ROOM, upper)
    assert await alice.comes_to("kick", participants=[upper], ban=True) == {upper: "banned"}
    with pytest.raises(ParticipantBanned):
        await sweeping.join(upper.lower())
    assert await sweeping.module.is_banned(ROOM, parse_participant_id(upper))
    assert await alice.comes_to("unban", participants=[upper]) == {upper: "unrestricted"}
    await sweeping.join(upper.lower())


async def test_nobody_publishes_by_the_name_of_a_popout(sweeping: MeetingOnFake) -> None:
    bob = await sweeping.join("bob")
    await bob.send("request_popout_stream_access_token")
    sweeping.fake.join(ROOM, "bob-popout1", permission=EVERYTHING)
    await until(lambda: not sweeping.fake.may_publish(ROOM, "bob-popout1", "camera"))


# --- People of the meeting ---------------------------------------------------------------------------------------


async def test_a_stranger_is_in_the_state_from_the_first_look(meeting: MeetingOnFake, post: Post) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await alice.moderate("watch", enabled=True)
    meeting.fake.join(ROOM, "eve", permission=CAMERA_ONLY)
    meeting.fake.join(ROOM, "IN_1", kind=models.ParticipantInfo.INGRESS)
    sid = meeting.fake.publish(ROOM, "eve", "camera")
    await post.deliver_all()
    await alice.until_told("unknown_participant", "livekit_moderation")
    later = await meeting.join("mia", Role.MODERATOR)
    eve = {
        "identity": "eve",
        "role": "guest",
        "kind": "standard",
        "connected": False,
        "in_livekit": True,
        "may_publish": ["camera"],
        "publishing": [{"source": "camera", "track_sid": sid, "muted": False}],
        "hand_is_up": False,
        "settling": False,
    }
    for moderator in (alice, later):
        known = await state(moderator)
        assert known["eve"] == eve
        assert known["IN_1"]["kind"] == "ingress"
    over_http = await meeting.module.state(meeting.room)
    assert {stranger.identity for stranger in over_http.strangers} == {"eve", "IN_1"}
    await until(lambda: any("eve" in str(each["changed"].get("strangers")) for each in alice.noticed("state_changed")))
    meeting.fake.leave(ROOM, "eve")
    await post.deliver_all()
    await until(lambda: "eve" not in {stranger.identity for stranger in meeting_strangers(meeting)})


def meeting_strangers(meeting: MeetingOnFake) -> tuple[moderation.StrangerView, ...]:
    held = meeting.module._entered.meetings[meeting.room]
    assert held.journal.newest is not None
    return held.view.show(held.journal.newest).strangers


async def test_results_and_previews_count_them(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await meeting.join("bob")
    meeting.fake.join(ROOM, "eve", permission=EVERYTHING)
    meeting.fake.join(ROOM, "viewer", permission=VIEWER)
    meeting.fake.join(ROOM, "EG_1", kind=models.ParticipantInfo.EGRESS, hidden=True)
    meeting.fake.publish(ROOM, "eve", "microphone")
    commands: list[tuple[dict[str, Any], dict[str, str]]] = [
        (
            {"action": "mute", "everyone_except": ["bob"]},
            {"alice": "exempt", "bob": "exempt", "eve": "muted", "viewer": "no_track", "EG_1": "exempt"},
        ),
        (
            {"action": "restrict", "source": "microphone"},
            {"alice": "exempt", "bob": "restricted", "eve": "restricted", "viewer": "unchanged", "EG_1": "exempt"},
        ),
        (
            {"action": "unrestrict", "source": "microphone"},
            {
                "alice": "unchanged",
                "bob": "unrestricted",
                "eve": "unrestricted",
                "viewer": "unchanged",
                "EG_1": "unchanged",
            },
        ),
        (
            {"action": "set_presenter", "participant": "bob"},
            {"alice": "restricted", "bob": "granted", "eve": "restricted", "viewer": "unchanged", "EG_1": "exempt"},
        ),
    ]
    for command, outcomes in commands:
        assert await alice.comes_to("preview", command=command) == outcomes
        assert await alice.comes_to(**command) == outcomes


class FailingAt(MemoryStore):
    """A store that does not take the first write that announces this."""

    def __init__(self, event: type[object]) -> None:
        super().__init__()
        self._event: type[object] | None = event
        self.fails_always = False

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        if self.fails_always:
            raise StoreError("away")
        if self._event is not None and any(isinstance(told.event, self._event) for told in commit.entry.announcements):
            self._event = None
            raise StoreError("away")
        return await super().append(commit, fence=fence)


async def test_moderators_are_told_though_the_store_failed_first(fake: FakeRoomService) -> None:
    async with meeting_on_fake(
        fake, store=FailingAt(moderation.UnknownParticipant), moderation_sweep_s=0.05
    ) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        fake.join(ROOM, "eve")
        await alice.until_told("unknown_participant", "livekit_moderation")
        await swept(meeting)
        assert len(alice.noticed("unknown_participant")) == 1, "once is enough"


async def test_drift_is_told_though_the_store_failed_first(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, store=FailingAt(moderation.DriftRepaired), moderation_sweep_s=0.05) as meeting:
        alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        await alice.comes_to("restrict", source="microphone")
        meeting.enter(bob)
        assert (await alice.until_told("drift_repaired", "livekit_moderation"))["participant"] == "bob"


@pytest.mark.parametrize("is_swept", [True, False])
async def test_moderators_are_told_of_who_is_removed_at_once(fake: FakeRoomService, *, is_swept: bool) -> None:
    async with meeting_on_fake(
        fake, moderation_unknown_participants="remove", moderation_sweep_s=0.05 if is_swept else 60
    ) as meeting:
        post = Post(meeting)
        alice = await meeting.join("alice", Role.MODERATOR)
        for times in (1, 2):
            fake.join(ROOM, "eve")
            if not is_swept:
                await post.deliver_all()
            await alice.until_told("unknown_participant", "livekit_moderation", times=times)
            await until(lambda: "eve" not in fake.permissions(ROOM))
        assert len(alice.noticed("unknown_participant")) == 2


async def test_a_stranger_who_comes_again_is_told_of_again(meeting: MeetingOnFake, post: Post) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    for times in (1, 2):
        meeting.fake.join(ROOM, "eve")
        await post.deliver_all()
        await alice.until_told("unknown_participant", "livekit_moderation", times=times)
        meeting.fake.leave(ROOM, "eve")
        await post.deliver_all()
        await until(lambda: not meeting_strangers(meeting))
    assert len(alice.noticed("unknown_participant")) == 2


# --- The truth ---------------------------------------------------------------------------------------------------


async def test_a_late_report_of_an_earlier_session_is_no_drift(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    old = bob.token
    late = post.waiting[-1]
    await alice.comes_to("restrict", source="microphone")
    bob = await meeting.join("bob")
    post.waiting.clear()
    meeting.enter(bob)
    await post.deliver_all()
    meeting.fake.calls.clear()
    await post.deliver(late)
    await meeting.join("zoe")
    assert meeting.calls("UpdateParticipant") == []
    assert alice.noticed("drift_repaired") == []
    meeting.enter(bob, old)
    await post.deliver_all()
    await alice.until_told("drift_repaired", "livekit_moderation")


async def test_sound_that_says_nothing_of_itself_is_a_microphone(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    meeting.fake.join(ROOM, "helper", kind=models.ParticipantInfo.AGENT)
    sid = meeting.fake.publish(ROOM, "helper", "unknown", mime_type="audio/opus")
    assert await alice.comes_to("mute", participants=["helper"]) == {"helper": "muted"}
    assert next(track for track in meeting.fake.participant(ROOM, "helper").tracks if track.sid == sid).muted
    assert (await state(alice))["helper"]["publishing"] == [{"source": "unknown", "track_sid": sid, "muted": True}]


async def test_what_is_published_right_after_a_mute_is_muted_too(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await post.deliver_all()
    assert await alice.outcomes("force_mute", participants=["bob"]) == {"bob": "no_track"}
    sid = meeting.fake.publish(ROOM, "bob", "microphone")
    await post.deliver_all()
    await until(lambda: meeting.is_muted(bob, sid))
    await bob.until_told("force_muted")
    assert len(bob.told("force_muted")) == 1


async def test_whoever_is_allowed_again_right_after_a_mute_is_heard(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    meeting.fake.publish(ROOM, "bob", "microphone")
    await post.deliver_all()
    assert await alice.comes_to("mute", participants=["bob"]) == {"bob": "muted"}
    assert await alice.comes_to("disallow", source="microphone", participants=["bob"]) == {"bob": "revoked"}
    await post.deliver_all()
    assert await alice.comes_to("allow", source="microphone", participants=["bob"]) == {"bob": "granted"}
    sid = meeting.fake.publish(ROOM, "bob", "microphone")
    await post.deliver_all()
    await post.until_over()
    assert not meeting.is_muted(bob, sid)


async def test_a_mute_that_had_no_effect_since_no_media_had_come_is_repeated(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    sid = meeting.fake.publish(ROOM, "bob", "microphone")
    published = post.waiting.pop()
    assert await alice.outcomes("force_mute", participants=["bob"]) == {"bob": "muted"}
    meeting.fake.unmute(ROOM, "bob", sid)  # LiveKit said yes, and the first media came unmuted
    await post.deliver(published)
    await until(lambda: meeting.is_muted(bob, sid))


async def test_what_is_published_while_others_are_still_being_muted_is_muted_too(
    meeting: MeetingOnFake, post: Post
) -> None:
    alice, bob, carol = (
        await meeting.join("alice", Role.MODERATOR),
        await meeting.join("bob"),
        await meeting.join("carol"),
    )
    heard = meeting.fake.publish(ROOM, "carol", "microphone")
    await post.deliver_all()
    with meeting.fake.hang(method="MutePublishedTrack", identity="carol") as hanging:
        muting = asyncio.create_task(alice.outcomes("force_mute", participants=["bob", "carol"]))
        await hanging.hit()
        sid = meeting.fake.publish(ROOM, "bob", "microphone")
        await post.deliver_all()
        roster = meeting.module._entered.meetings[meeting.room].roster
        await until(lambda: any(track.sid == sid for each in roster.presences for track in each.tracks))
    assert await muting == {"bob": "no_track", "carol": "muted"}
    await until(lambda: meeting.is_muted(bob, sid))
    await bob.until_told("force_muted")
    assert meeting.is_muted(carol, heard)


async def test_who_unmutes_after_such_a_mute_is_told_of(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice, bob, post = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob"), Post(meeting)
        assert await alice.outcomes("force_mute", participants=["bob"]) == {"bob": "no_track"}
        sid = fake.publish(ROOM, "bob", "microphone")
        await post.deliver_all()
        await bob.until_told("force_muted")
        fake.unmute(ROOM, "bob", sid)
        told = await alice.until_told("unmuted_again", "livekit_moderation")
        assert told == {"message": "unmuted_again", "participant": "bob"}


async def test_what_comes_later_is_theirs_to_publish(meeting: MeetingOnFake, post: Post) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await post.deliver_all()
    await alice.outcomes("force_mute", participants=["bob"])
    here = meeting.module._entered.meetings[meeting.room]
    (muting,) = here.just_muted.mutings.values()
    await until(lambda: asyncio.get_running_loop().time() > muting.until)
    sid = meeting.fake.publish(ROOM, "bob", "microphone")
    await post.deliver_all()
    await meeting.join("zoe")
    assert not meeting.is_muted(bob, sid)


@pytest.mark.parametrize("kind", [models.ParticipantInfo.SIP, models.ParticipantInfo.INGRESS])
async def test_who_publishes_only_once_is_told_of_as_silent(
    meeting: MeetingOnFake, kind: models.ParticipantInfo.Kind
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await meeting.join("pam", Role.GUEST, kind=Kind.SIP)
    meeting.fake.join(ROOM, "phone", kind=kind, permission=EVERYTHING)
    meeting.fake.publish(ROOM, "phone", "microphone")
    await alice.comes_to("disallow", source="microphone", participants=["phone"])
    result = await alice.moderated("allow", source="microphone", participants=["phone"])
    assert result["outcomes"] == [{"participant": "phone", "outcome": "granted", "detail": "cannot_publish_again"}]


async def test_who_streams_in_by_whip_is_told_of_as_silent(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    for name in ("encoder", "caller"):
        meeting.fake.join(ROOM, name, permission=EVERYTHING)
    meeting.fake.publish(ROOM, "encoder", "microphone", name="synthesized-microphone")
    meeting.fake.publish(ROOM, "caller", "microphone", name="microphone")
    await alice.comes_to("restrict", source="microphone")
    command = {"action": "unrestrict", "source": "microphone"}
    silent = {"participant": "encoder", "outcome": "unrestricted", "detail": "cannot_publish_again"}
    for result in (await alice.moderated("preview", command=command), await alice.moderated(**command)):
        told = {outcome["participant"]: outcome for outcome in result["outcomes"]}
        assert told["encoder"] == silent
        assert told["caller"] == {"participant": "caller", "outcome": "unrestricted"}


@pytest.mark.parametrize("reported", ["track_published", "track_unpublished"])
async def test_a_stream_that_no_list_has_shown_is_known_by_what_was_reported_of_it(
    meeting: MeetingOnFake, post: Post, reported: str
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await alice.comes_to("restrict", source="microphone")
    meeting.fake.join(ROOM, "encoder", permission=EVERYTHING)
    joined = post.waiting.pop()
    sid = meeting.fake.publish(ROOM, "encoder", "microphone", name="synthesized-microphone")
    meeting.fake.unpublish(ROOM, "encoder", sid)  # as by a rule, before anybody looked
    by_name = dict(zip(("track_published", "track_unpublished"), post.waiting[-2:], strict=True))
    await post.deliver(joined)
    await post.deliver(by_name[reported])
    await until(lambda: not meeting.fake.may_publish(ROOM, "encoder", "microphone"))
    result = await alice.moderated("unrestrict", source="microphone")
    assert {"participant": "encoder", "outcome": "unrestricted", "detail": "cannot_publish_again"} in result["outcomes"]


# --- Whom nobody waits for ---------------------------------------------------------------------------------------


async def test_a_kick_waits_for_the_rooms_in_use_alone(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    for number in range(5):
        await meeting.module.move(meeting.room, bob.id, BreakoutId(f"b{number}"))
    await meeting.module.move(meeting.room, bob.id, None)
    for number in range(5):
        meeting.fake.close_room(f"{ROOM}:b{number}")
    meeting.enter(bob)
    meeting.fake.calls.clear()
    assert await alice.comes_to("kick", participants=["bob"]) == {"bob": "removed"}
    listed = {call.room for call in meeting.fake.calls if call.method == "ListParticipants"}
    assert listed == {ROOM}
    await until(lambda: len({call.room for call in meeting.fake.calls if call.method == "ListParticipants"}) == 6)
    assert set(meeting.fake.rooms) == {ROOM}, "none is made anew by being looked at"


async def test_whom_livekit_keeps_refusing_keeps_nobody_else_waiting(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    carol = await meeting.join("carol")
    due = meeting.module._entered.meetings[meeting.room].due
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob") as refusing:
        await alice.moderated("disallow", source="microphone", participants=["bob"])
        await refusing.hit(4)  # by now the pause has grown
        assert due._looks[bob.id].pause_s > 0.5
        with meeting.fake.refuse("internal", method="UpdateParticipant", identity="carol", times=1):
            await alice.moderated("disallow", source="microphone", participants=["carol"])
        assert due._looks[carol.id].pause_s <= 0.2
        await until(lambda: not meeting.may(carol))
        assert meeting.may(bob)
