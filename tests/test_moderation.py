"""The namespace `livekit_moderation`, through the embedding API, on the fake RoomService."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from livekit.protocol import models

import signaling.answers
from signaling import Kind, ParticipantBanned, Role, StoreError, metrics
from signaling.core.conclusions import conclude
from signaling.core.decisions import Decision, decide
from signaling.identifiers import CONTROLLER, BreakoutId, CommandId, ParticipantId
from signaling.messages import moderation
from signaling.stores.contract import AuditEntry, Commit, Entry, Record, fold
from signaling.stores.memory import MemoryStore
from signaling.stores.sqlite import SQLiteStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, outcomes, until
from tests.test_view import merged

ALL = ["camera", "microphone", "screen_share", "screen_share_audio"]
LESS_MICROPHONE = ["camera", "screen_share", "screen_share_audio"]
LESS_SCREEN = ["camera", "microphone"]
KICK = CommandId("c-kick")


def sources(person: Person) -> list[str]:
    """What the token of the join data allows."""
    claims = jwt.decode(person.token, options={"verify_signature": False})
    return list(claims["video"]["canPublishSources"])


async def three(meeting: MeetingOnFake) -> tuple[Person, Person, Person]:
    """Alice moderates, Bob and Carol do not."""
    alice = await meeting.join("alice", Role.MODERATOR)
    return alice, await meeting.join("bob"), await meeting.join("carol")


# --- Who may -----------------------------------------------------------------------------------------------------

COMMANDS: list[dict[str, Any]] = [
    {"action": "mute", "participants": ["bob"]},
    {"action": "restrict", "source": "camera"},
    {"action": "unrestrict", "source": "camera"},
    {"action": "disallow", "source": "camera", "participants": ["bob"]},
    {"action": "allow", "source": "camera", "participants": ["bob"]},
    {"action": "stop", "source": "camera", "participants": ["bob"]},
    {"action": "set_presenter", "participant": "bob"},
    {"action": "ask_to_unmute", "participants": ["bob"]},
    {"action": "kick", "participants": ["carol"]},
    {"action": "unban", "participants": ["bob"]},
    {"action": "preview", "command": {"action": "restrict", "source": "camera"}},
    {"action": "undo", "command_id": "c-1"},
    {"action": "get_state"},
    {"action": "watch", "enabled": True},
    {"action": "get_audit", "limit": 1},
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command["action"])
async def test_who_is_no_moderator_is_refused_and_nothing_changes(
    meeting: MeetingOnFake, command: dict[str, Any]
) -> None:
    alice, bob, _ = await three(meeting)
    alice.forget()
    calls = len(meeting.fake.calls)
    assert (await bob.moderated(**command))["error"] == "insufficient_permissions"
    assert alice.inbox == []
    assert len(meeting.fake.calls) == calls
    await bob.moderate(**command)
    answer = "result" if command["action"] == "preview" else "error"
    assert bob.noticed(answer)[-1]["error"] == "insufficient_permissions"


async def test_every_command_with_a_transaction_id_has_exactly_one_result(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    for command in COMMANDS:
        alice.forget()
        await alice.moderate(**command, transaction_id=7)
        mine = [delivery for delivery in alice.inbox if delivery.transaction_id == 7]
        assert len([delivery for delivery in mine if delivery.payload["message"] == "result"]) == 1, command
        assert {delivery.transaction_id for delivery in bob.inbox} <= {None}


async def test_unknown_keys_are_refused_without_repeating_them(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    result = await alice.moderated("mute", participants=["bob"], hunter2=1)
    assert (result["error"], result["detail"]) == ("invalid_command", "unknown field")


@pytest.mark.parametrize(
    ("action", "fields", "named"),
    [
        ("mute", {}, "participants"),
        ("mute", {"participants": ["bob"], "everyone_except": []}, "participants"),
        ("mute", {"participants": [f"p{number}" for number in range(5_001)]}, "participants"),
        ("mute", {"participants": ["bob"], "hold_s": 3_601}, "hold_s"),
        ("restrict", {"source": "camera", "expires_in_s": 0}, "expires_in_s"),
        ("restrict", {"source": "camera", "expires_in_s": 86_401}, "expires_in_s"),
        ("restrict", {"source": "screen_share_audio"}, "source"),
        ("kick", {"participants": ["bob"], "reason": "x" * 501}, "reason"),
        ("get_audit", {"limit": 0}, "limit"),
        ("get_audit", {"limit": 101}, "limit"),
        ("preview", {"command": {"action": "kick", "participants": ["bob"]}}, "command"),
    ],
)
async def test_what_is_out_of_bounds_is_named_and_changes_nothing(
    meeting: MeetingOnFake, action: str, fields: dict[str, object], named: str
) -> None:
    alice, _, _ = await three(meeting)
    before = await meeting.module._entered.meetings[ROOM].journal.record()
    result = await alice.moderated(action, **fields)
    assert result["error"] == "invalid_command"
    assert named in result["detail"]
    assert result["action"] == ("kick" if action == "preview" else action)
    assert await meeting.module._entered.meetings[ROOM].journal.record() == before


async def test_nobody_is_done_nothing_to(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    before = meeting.fake.permissions(ROOM)
    for action in ("mute", "kick", "unban", "ask_to_unmute"):
        assert await alice.comes_to(action, participants=[]) == {}
    for action in ("allow", "disallow", "stop"):
        assert await alice.comes_to(action, source="camera", participants=[]) == {}
    assert meeting.fake.permissions(ROOM) == before


async def test_a_preview_is_counted_as_a_preview(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    restricted, previewed = (metrics.COMMANDS.labels(action, "ok") for action in ("restrict", "preview"))
    before = restricted._value.get(), previewed._value.get()
    result = await alice.moderated("preview", command={"action": "restrict", "source": "camera"})
    assert result["action"] == "restrict"
    await asyncio.sleep(0)  # it is logged and counted after the answer
    assert (restricted._value.get(), previewed._value.get()) == (before[0], before[1] + 1)


class Failing(MemoryStore):
    """A store that does not take every write."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[Record, AuditEntry | None], bool] = lambda _record, _audit: False

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        if self.fails(commit.record, commit.entry.audit):
            raise StoreError("no space left")
        return await super().append(commit, fence=fence)


def once(fails: Callable[[Record, AuditEntry | None], bool]) -> Callable[[Record, AuditEntry | None], bool]:
    """Whether it fails now, and has not before."""
    left = [1]
    return lambda record, audit: fails(record, audit) and bool(left) and bool(left.pop())


async def test_what_the_store_does_not_take_is_put_back(fake: FakeRoomService) -> None:
    store = Failing()
    async with meeting_on_fake(fake, store=store) as meeting:
        alice, bob, _ = await three(meeting)
        store.fails = lambda _, audit: audit is not None
        assert (await alice.moderated("restrict", source="microphone"))["error"] == "unavailable"
        await until(lambda: meeting.may(bob))
        record = await meeting.module._entered.meetings[ROOM].journal.record()
        assert (record.staged, record.state.restricted) == (None, frozenset())
        assert bob.told("microphone_restrictions_enabled") == []


async def test_a_mute_that_was_put_back_is_not_tried_again(fake: FakeRoomService) -> None:
    store = Failing()
    async with meeting_on_fake(fake, store=store) as meeting:
        alice, bob, _ = await three(meeting)
        microphone = fake.publish(ROOM, "bob", "microphone")
        store.fails = once(lambda _, audit: audit is not None)
        with fake.refuse("internal", method="MutePublishedTrack", identity="bob", times=2):
            assert (await alice.moderated("mute", participants=["bob"]))["error"] == "unavailable"
        assert len(meeting.module._entered.meetings[ROOM].tasks) == 1, "nothing goes on but the sweeps"
        assert not meeting.is_muted(bob, microphone)


async def test_a_ban_stands_though_the_store_fails_twice(fake: FakeRoomService) -> None:
    store = Failing()
    async with meeting_on_fake(fake, store=store, moderation_sweep_s=0.05) as meeting:
        alice, bob, _ = await three(meeting)
        left = [1, 1]
        store.fails = lambda _, audit: audit is not None and bool(left) and bool(left.pop())
        result = await alice.moderated("kick", participants=["bob"], ban=True)
        assert result["error"] == "unavailable"
        assert await asyncio.wait_for(asyncio.shield(bob.session.ended), 5) == "banned"
        assert left == []
        with pytest.raises(ParticipantBanned):
            await meeting.join("bob")


async def test_a_bypass_is_noted_though_the_store_fails_at_first(fake: FakeRoomService) -> None:
    store = Failing()
    async with meeting_on_fake(fake, store=store, moderation_sweep_s=0.05) as meeting:
        alice, bob, _ = await three(meeting)
        await alice.comes_to("restrict", source="microphone")
        store.fails = once(lambda record, _: record.staged is not None and record.staged.action == "bypass")
        fake.publish(ROOM, "bob", "camera", mime_type="audio/opus")
        assert (await alice.until_told("bypass_stopped", "livekit_moderation"))["participant"] == "bob"
        assert not meeting.may(bob, "camera")
        assert [told["cause"] for told in bob.noticed("permissions_changed")] == ["restriction", "bypass"]


# --- Mutes -------------------------------------------------------------------------------------------------------


async def test_muting_any_source_tells_the_person_what_was_muted(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    camera = meeting.fake.publish(ROOM, "bob", "camera")
    microphone = meeting.fake.publish(ROOM, "carol", "microphone")
    came_to = await alice.comes_to("mute", participants=["bob", "carol"], sources=["camera", "microphone"])
    assert came_to == {"bob": "muted", "carol": "muted"}
    assert meeting.is_muted(bob, camera)
    assert meeting.is_muted(carol, microphone)
    assert bob.noticed("muted") == [{"message": "muted", "moderator": "alice", "sources": ["camera"]}]
    assert not bob.told("force_muted")
    assert carol.noticed("muted") == [{"message": "muted", "moderator": "alice", "sources": ["microphone"]}]
    assert carol.told("force_muted") == [{"message": "force_muted", "moderator": "alice"}]


async def test_muting_everyone_leaves_moderators_the_listed_and_services_alone(meeting: MeetingOnFake) -> None:
    alice, _, carol = await three(meeting)
    await meeting.join("mia", Role.MODERATOR)
    await meeting.join("recorder", kind=Kind.RECORDER)
    fake = meeting.fake
    for stranger in ("stranger", "caller"):
        fake.join(ROOM, stranger)
    fake.join(ROOM, "ingress", kind=models.ParticipantInfo.INGRESS)
    await alice.comes_to("disallow", source="camera", participants=["ingress"])
    tracks = {
        name: fake.publish(ROOM, name, "microphone")
        for name in ("alice", "bob", "carol", "mia", "recorder", "stranger", "caller", "ingress")
    }
    came_to = await alice.comes_to("mute", everyone_except=["carol", "caller"])
    assert came_to == {
        "alice": "exempt",
        "bob": "muted",
        "carol": "exempt",
        "mia": "exempt",
        "recorder": "exempt",
        "stranger": "muted",
        "caller": "exempt",
        "ingress": "exempt",
    }
    muted = {name for name, sid in tracks.items() if {t.sid: t for t in fake.participant(ROOM, name).tracks}[sid].muted}
    assert muted == {"bob", "stranger"}
    assert not carol.noticed("muted")


async def test_a_mute_that_holds_takes_the_source_away_until_it_ends(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    meeting.fake.publish(ROOM, "bob", "microphone")
    came_to = await alice.comes_to("mute", participants=["bob", "carol"], hold_s=1)
    assert came_to == {"bob": "muted", "carol": "no_track"}
    assert not meeting.may(bob)
    assert not meeting.may(carol)
    assert list(meeting.fake.participant(ROOM, "bob").tracks) == []
    assert bob.told("force_muted") == [{"message": "force_muted", "moderator": "alice"}]
    assert bob.noticed("permissions_changed") == [
        {"message": "permissions_changed", "moderator": "alice", "may_publish": LESS_MICROPHONE, "cause": "hold"}
    ]
    assert sources(await meeting.join("bob")) == LESS_MICROPHONE
    told = await carol.until_told("permissions_changed", "livekit_moderation", times=2)
    assert told == {"message": "permissions_changed", "may_publish": ALL, "cause": "expiry"}
    await until(lambda: meeting.may(bob) and meeting.may(carol))
    assert [entry["action"] for entry in alice.noticed("action_taken")] == ["mute"], "nobody did the rest"


async def test_a_mute_of_everyone_holds_for_who_never_joined_too(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    strangers = ("stranger", "sip_+49 170", "eve-popout1")  # LiveKit takes any identity
    for stranger in (*strangers, "caller"):
        meeting.fake.join(ROOM, stranger)
    meeting.fake.join(ROOM, "ingress", kind=models.ParticipantInfo.INGRESS)
    for name in (*strangers, "caller", "ingress"):
        meeting.fake.publish(ROOM, name, "microphone")
    came_to = await alice.comes_to("mute", everyone_except=["bob", "caller"], hold_s=1)
    muted, spared = dict.fromkeys(strangers, "muted"), dict.fromkeys(("caller", "ingress"), "exempt")
    assert came_to == {"alice": "exempt", "bob": "exempt", "carol": "no_track", **muted, **spared}
    for stranger in strangers:
        assert not meeting.fake.may_publish(ROOM, stranger, "microphone")
    await alice.moderate("get_state")
    assert {block["participant"] for block in alice.noticed("state")[-1]["blocks"]} == {"carol", *strangers}
    for name in ("bob", *spared):
        assert meeting.fake.may_publish(ROOM, name, "microphone")
    await until(lambda: meeting.fake.may_publish(ROOM, "stranger", "microphone"))


async def test_nobody_is_told_of_a_held_mute_that_was_lifted_before_it_came_true(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    microphone = meeting.fake.publish(ROOM, "bob", "microphone")
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob"):
        muted = await alice.moderated("mute", participants=["bob"], hold_s=60)
        await alice.moderated("undo", command_id=muted["command_id"])
    on_fake = meeting.module._entered.meetings[ROOM]
    await until(lambda: len(on_fake.tasks) == 1, 20)
    assert not meeting.is_muted(bob, microphone)
    assert (bob.told("force_muted"), bob.noticed("muted")) == ([], [])


async def test_a_held_mute_that_livekit_did_not_answer_is_made_up_for(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    meeting.fake.publish(ROOM, "bob", "microphone")
    with meeting.fake.hang(method="UpdateParticipant", identity="bob", times=1):
        result = await alice.moderated("mute", participants=["bob", "carol"], hold_s=60)
    assert outcomes(result) == {"bob": "failed", "carol": "no_track"}
    assert (result["error"], result["repaired_later"]) == ("livekit_unavailable", ["bob"])
    assert await bob.until_told("force_muted") == {"message": "force_muted", "moderator": "alice"}
    assert not meeting.may(bob)


# --- Restrictions ------------------------------------------------------------------------------------------------


async def test_a_restricted_microphone_is_the_one_that_livekit_shows(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    came_to = await alice.comes_to("restrict", source="microphone", allowed=["carol"])
    assert came_to == {"alice": "exempt", "bob": "restricted", "carol": "unchanged"}
    assert [meeting.may(person) for person in (alice, bob, carol)] == [True, False, True]
    assert bob.told("microphone_restrictions_enabled") == [
        {"message": "microphone_restrictions_enabled", "unrestricted_participants": ["carol"]}
    ]
    assert await alice.comes_to("allow", source="microphone", participants=["bob"]) == {"bob": "granted"}
    assert bob.told("microphone_restrictions_enabled")[-1]["unrestricted_participants"] == ["bob", "carol"]
    assert meeting.may(bob)
    assert await alice.comes_to("disallow", source="microphone", participants=["carol"]) == {"carol": "revoked"}
    assert bob.told("microphone_restrictions_enabled")[-1]["unrestricted_participants"] == ["bob"]
    assert await alice.comes_to("unrestrict", source="microphone") == {
        "alice": "unchanged",
        "bob": "unchanged",
        "carol": "unchanged",
    }
    assert bob.told("microphone_restrictions_disabled")
    assert not meeting.may(carol), "who is blocked by name stays so"


async def test_restricted_cameras_and_screens_have_no_events_in_livekit(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    meeting.fake.publish(ROOM, "bob", "camera")
    meeting.fake.publish(ROOM, "bob", "screen_share")
    bob.forget()
    for source in ("camera", "screen_share"):
        await alice.comes_to("restrict", source=source)
    assert list(meeting.fake.participant(ROOM, "bob").tracks) == []
    assert {delivery.namespace for delivery in bob.inbox} == {"livekit_moderation"}
    assert [told["may_publish"] for told in bob.noticed("permissions_changed")] == [ALL[1:], ["microphone"]]
    assert not meeting.may(bob, "screen_share_audio")


async def test_a_restriction_lifts_itself_also_after_a_restart(fake: FakeRoomService, tmp_path: Path) -> None:
    def store() -> SQLiteStore:
        return SQLiteStore(tmp_path / "meetings.sqlite", audit_entries=10)

    async with meeting_on_fake(fake, store=store()) as meeting:
        alice, bob, _ = await three(meeting)
        await alice.comes_to("restrict", source="microphone", expires_in_s=1)
        await alice.comes_to("mute", participants=["carol"], sources=["camera"], hold_s=1)
        assert not meeting.may(bob)
    async with meeting_on_fake(fake, store=store()) as meeting:
        await until(lambda: fake.may_publish(ROOM, "bob", "microphone"))
        await until(lambda: fake.may_publish(ROOM, "carol", "camera"))
        on_fake = meeting.module._entered.meetings[ROOM]
        await until(lambda: on_fake.journal.newest is not None and not on_fake.journal.newest.state.holds)
        state = (await on_fake.journal.record()).state
        assert (state.restricted, state.restricted_until) == (frozenset(), {})


async def test_screen_sharing_goes_back_to_the_servers_default(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_screen_share_requires_permission=True) as meeting:
        alice, bob, carol = await three(meeting)
        await alice.send("grant_screen_share_permission", participants=["bob"])
        assert await alice.comes_to("restrict", source="screen_share", allowed=["carol"]) == {
            "alice": "exempt",
            "bob": "restricted",
            "carol": "unrestricted",
        }
        await alice.comes_to("unrestrict", source="screen_share")
        assert [meeting.may(person, "screen_share") for person in (bob, carol)] == [False, True]


# --- By name -----------------------------------------------------------------------------------------------------


async def test_a_service_gets_back_what_a_stop_could_not_give_back_and_nothing_else(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    only_pictures = models.ParticipantPermission(can_publish=True, can_publish_sources=[models.TrackSource.CAMERA])
    meeting.fake.join(ROOM, "feed", kind=models.ParticipantInfo.INGRESS, permission=only_pictures)
    meeting.fake.publish(ROOM, "feed", "camera")
    with meeting.fake.delay(2, method="UpdateParticipant", identity="feed", times=1, takes_effect=True):
        came_to = await alice.moderated("stop", source="camera", participants=["feed"])
        assert outcomes(came_to) == {"feed": "failed"}
    await until(lambda: meeting.fake.may_publish(ROOM, "feed", "camera"))
    await alice.comes_to("mute", participants=["feed"], hold_s=1)
    await until(lambda: not meeting.module._entered.meetings[ROOM].journal.newest.state.holds)  # type: ignore[union-attr]
    await meeting.module._entered.meetings[ROOM].reconciler.go_over(None)
    assert not meeting.fake.may_publish(ROOM, "feed", "microphone"), "it never could"


async def test_a_service_gets_back_what_was_kept_from_it_by_name(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    recorder = await meeting.join("recorder", kind=Kind.RECORDER)
    await alice.comes_to("disallow", source="camera", participants=["recorder"])
    assert not meeting.may(recorder, "camera")
    assert await alice.comes_to("allow", source="camera", participants=["recorder"]) == {"recorder": "granted"}
    assert meeting.may(recorder, "camera")
    await alice.comes_to("mute", participants=["recorder"], sources=["screen_share"], hold_s=60)
    assert not meeting.may(recorder, "screen_share_audio")
    await alice.moderated("undo", command_id=alice.noticed("result")[-1]["command_id"])
    assert meeting.may(recorder, "screen_share_audio")


async def test_who_is_disallowed_by_name_stays_so_until_allowed(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    mia = await meeting.join("mia", Role.MODERATOR)
    came_to = await alice.comes_to("disallow", source="camera", participants=["bob", "mia", "zoe"])
    assert came_to == {"bob": "revoked", "mia": "revoked", "zoe": "unknown"}
    assert not meeting.may(mia, "camera")
    assert sources(await meeting.join("bob")) == ALL[1:]
    assert await alice.comes_to("allow", source="camera", participants=["mia"]) == {"mia": "granted"}
    assert await alice.comes_to("allow", source="camera", participants=["mia"]) == {"mia": "unchanged"}
    assert meeting.may(mia, "camera")


async def test_for_the_screen_it_is_revoking_and_granting(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    meeting.fake.publish(ROOM, "bob", "screen_share_audio")
    await alice.comes_to("disallow", source="screen_share", participants=["bob"])
    await alice.comes_to("allow", source="screen_share", participants=["bob"])
    assert alice.told("screen_share_permissions_updated") == [
        {"message": "screen_share_permissions_updated", "grant": granted, "participants": ["bob"]}
        for granted in (False, True)
    ]
    assert list(meeting.fake.participant(ROOM, "bob").tracks) == []
    assert meeting.may(bob, "screen_share")


async def test_whoever_is_in_livekit_without_having_joined_may_be_named(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    fake = meeting.fake
    fake.join(ROOM, "feed", kind=models.ParticipantInfo.INGRESS)
    track = fake.publish(ROOM, "feed", "camera")
    await alice.comes_to("restrict", source="camera")
    assert [listed.sid for listed in fake.participant(ROOM, "feed").tracks] == [track]
    before = fake.permissions(ROOM)["feed"]
    assert await alice.comes_to("stop", source="camera", participants=["feed"]) == {"feed": "stopped"}
    assert list(fake.participant(ROOM, "feed").tracks) == []
    assert all(fake.may_publish(ROOM, "feed", source) for source in ALL)
    assert fake.permissions(ROOM)["feed"].can_publish == before.can_publish
    assert await alice.comes_to("disallow", source="camera", participants=["feed"]) == {"feed": "revoked"}
    assert [source for source in ALL if fake.may_publish(ROOM, "feed", source)] == ALL[1:]
    assert await alice.comes_to("allow", source="camera", participants=["feed"]) == {"feed": "granted"}
    assert all(fake.may_publish(ROOM, "feed", source) for source in ALL)
    assert await alice.comes_to("kick", participants=["feed"]) == {"feed": "removed"}
    assert "feed" not in fake.permissions(ROOM)


# --- Stopping ----------------------------------------------------------------------------------------------------


async def test_what_is_stopped_ends_and_may_begin_again(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    for source in ("screen_share", "screen_share_audio", "microphone"):
        meeting.fake.publish(ROOM, "bob", source)
    dave = await meeting.join("dave", in_livekit=False)
    bob.forget()
    came_to = await alice.comes_to("stop", source="screen_share", participants=["bob", "carol", "dave", "zoe"])
    assert came_to == {"bob": "stopped", "carol": "no_track", "dave": "not_connected", "zoe": "unknown"}
    assert [track.source for track in meeting.fake.participant(ROOM, "bob").tracks] == [models.MICROPHONE]
    assert meeting.may(bob, "screen_share")
    assert not bob.inbox + dave.inbox


async def test_a_stop_that_failed_is_tried_again(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    meeting.fake.publish(ROOM, "bob", "camera")
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob", times=1):
        result = await alice.moderated("stop", source="camera", participants=["bob"])
    assert outcomes(result) == {"bob": "failed"}
    assert result["repaired_later"] == []
    await until(lambda: not meeting.fake.participant(ROOM, "bob").tracks and meeting.may(bob, "camera"))


async def test_the_right_comes_back_although_giving_it_back_failed(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    meeting.fake.publish(ROOM, "bob", "camera")
    given_back = 0

    def fail_the_second(change: Any) -> None:  # noqa: ANN401 - whatever the fake tells
        nonlocal given_back
        if change.happening == "permission_changed" and not given_back:
            given_back += 1
            meeting.fake.hang(method="UpdateParticipant", identity="bob", times=1).__enter__()

    meeting.fake.observe(fail_the_second)
    assert outcomes(await alice.moderated("stop", source="camera", participants=["bob"])) == {"bob": "failed"}
    await until(lambda: meeting.may(bob, "camera"))


# --- The presenter -----------------------------------------------------------------------------------------------


async def test_nobody_but_the_presenter_shares_the_screen(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    meeting.fake.publish(ROOM, "alice", "screen_share")
    came_to = await alice.comes_to("set_presenter", participant="bob")
    assert came_to == {"alice": "restricted", "bob": "granted", "carol": "restricted"}
    assert [meeting.may(person, "screen_share") for person in (alice, bob, carol)] == [False, True, False]
    assert list(meeting.fake.participant(ROOM, "alice").tracks) == []
    assert sources(await meeting.join("dave")) == LESS_SCREEN
    assert carol.noticed("permissions_changed") == [
        {"message": "permissions_changed", "moderator": "alice", "may_publish": LESS_SCREEN, "cause": "presenter"}
    ]
    assert (await alice.moderated("set_presenter", participant="zoe"))["error"] == "invalid_command"
    assert await alice.comes_to("set_presenter", participant="bob") == dict.fromkeys(
        ("alice", "bob", "carol", "dave"), "unchanged"
    )


async def test_handing_over_is_one_step_and_never_two_may_share_at_once(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await alice.comes_to("set_presenter", participant="bob")
    at_once = []
    meeting.fake.observe(
        lambda _: at_once.append(
            [who for who in ("alice", "bob", "carol") if meeting.fake.may_publish(ROOM, who, "screen_share")]
        )
    )
    meeting.fake.calls.clear()
    assert await alice.comes_to("set_presenter", participant="carol") == {
        "alice": "unchanged",
        "bob": "restricted",
        "carol": "granted",
    }
    assert meeting.calls("UpdateParticipant") == ["bob", "carol"]
    assert at_once == [[], ["carol"]]
    assert [meeting.may(person, "screen_share") for person in (bob, carol)] == [False, True]


async def test_a_new_presenter_waits_until_the_old_one_has_lost_the_screen(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await alice.comes_to("set_presenter", participant="bob")
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob") as refusing:
        result = await alice.moderated("set_presenter", participant="carol")
        assert outcomes(result) == {"alice": "unchanged", "bob": "failed", "carol": "settling"}
        await refusing.hit(times=3)
        assert not meeting.may(carol, "screen_share")
    await until(lambda: meeting.may(carol, "screen_share"))
    assert not meeting.may(bob, "screen_share")


@pytest.mark.parametrize("leaving", ["leave", "kick", "time_out"])
async def test_a_presenter_who_leaves_ends_it(fake: FakeRoomService, leaving: str) -> None:
    async with meeting_on_fake(fake, moderation_disconnect_grace_s=0.1) as meeting:
        alice, bob, carol = await three(meeting)
        await alice.comes_to("set_presenter", participant="bob")
        match leaving:
            case "leave":
                await bob.session.leave()
            case "kick":
                await alice.comes_to("kick", participants=["bob"])
            case _:
                await bob.session.disconnect()
        await until(lambda: meeting.may(alice, "screen_share") and meeting.may(carol, "screen_share"))
        assert carol.noticed("permissions_changed")[-1]["cause"] == "presenter"
        assert ("moderator" in carol.noticed("permissions_changed")[-1]) is (leaving == "kick")


async def test_whoever_waits_for_the_screen_can_be_kept_from_their_microphone(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await alice.comes_to("set_presenter", participant="carol")
    microphone = meeting.fake.publish(ROOM, "bob", "microphone")
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="carol"):
        came_to = await alice.moderated("set_presenter", participant="bob")
        assert outcomes(came_to)["bob"] == "settling"
        assert await alice.comes_to("mute", participants=["bob"], hold_s=60) == {"bob": "muted"}
        assert microphone not in [track.sid for track in meeting.fake.participant(ROOM, "bob").tracks]
        assert (await alice.moderated("restrict", source="camera"))["action"] == "restrict"
        await bob.send("create_new_access_token")
        meeting.enter(bob, bob.told("credentials")[-1]["token"])
        assert not meeting.may(bob, "screen_share"), "while another has the screen, no token gives it"
    await until(lambda: meeting.may(bob, "screen_share"))
    assert not meeting.may(carol, "screen_share")


async def test_no_service_keeps_a_presenter_waiting_for_the_screen(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    await meeting.join("recorder", kind=Kind.RECORDER)
    await alice.comes_to("disallow", source="microphone", participants=["recorder"])
    await alice.comes_to("set_presenter", participant="alice")
    assert (await alice.comes_to("set_presenter", participant="bob"))["bob"] == "granted"
    assert meeting.may(bob, "screen_share")


@pytest.mark.parametrize("command", ["set_presenter", "undo"])
async def test_a_presenter_who_leaves_while_they_are_appointed_leaves_the_screen_to_everybody(
    meeting: MeetingOnFake, command: str
) -> None:
    alice, bob, carol = await three(meeting)
    fields: dict[str, object] = {"participant": "bob"}
    if command == "undo":
        await alice.comes_to("set_presenter", participant="bob")
        ended = await alice.moderated("set_presenter")
        fields = {"command_id": ended["command_id"]}
    with meeting.fake.hang(method="UpdateParticipant", identity="carol") as hanging:
        appointing = asyncio.create_task(alice.moderated(command, **fields))
        await hanging.hit()
        await bob.session.leave()
    result = await appointing
    assert (outcomes(result).get("bob", "not_connected"), outcomes(result)["carol"]) == ("not_connected", "unchanged")
    await until(lambda: meeting.may(alice, "screen_share") and meeting.may(carol, "screen_share"))


async def test_a_presenter_stays_so_in_a_breakout_and_while_their_connection_is_broken(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await alice.comes_to("set_presenter", participant="bob")
    await meeting.module.move(ROOM, ParticipantId("bob"), BreakoutId("red"))
    await bob.session.disconnect()
    await alice.moderate("get_state")
    assert alice.noticed("state")[-1]["presenter"] == "bob"
    assert not meeting.may(carol, "screen_share")


# --- Asking to unmute --------------------------------------------------------------------------------------------


async def test_whoever_comes_back_is_told_again_what_they_were_asked(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    await alice.comes_to("ask_to_unmute", participants=["bob"])
    (asked,) = bob.noticed("unmute_requested")
    await bob.session.disconnect()
    back = await meeting.join("bob")
    assert back.noticed("unmute_requested") == [asked]
    result = await back.moderated("answer_unmute_request", request_id=asked["request_id"], accept=False)
    assert "error" not in result


async def test_nobody_is_said_to_be_asked_whose_client_takes_no_questions(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    dave = await meeting.join("dave", extensions=())
    assert await alice.comes_to("ask_to_unmute", participants=["dave"]) == {"dave": "not_connected"}
    await dave.moderate("no_such_command")
    async with asyncio.timeout(5):
        while await alice.comes_to("ask_to_unmute", participants=["dave"]) != {"dave": "asked"}:
            pass
    assert dave.noticed("unmute_requested")


async def test_nobody_is_unmuted_by_force_but_asked(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await alice.comes_to("restrict", source="microphone")
    await carol.session.disconnect()
    came_to = await alice.comes_to("ask_to_unmute", participants=["bob", "carol", "zoe"])
    assert came_to == {"bob": "asked", "carol": "not_connected", "zoe": "unknown"}
    (request,) = bob.noticed("unmute_requested")
    assert request["moderator"] == "alice"
    assert not meeting.may(bob)
    result = await bob.moderated("answer_unmute_request", request_id=request["request_id"], accept=True)
    assert outcomes(result) == {"bob": "granted"}
    assert meeting.may(bob)
    answered = {"participant": "bob", "request_id": request["request_id"], "accepted": True}
    assert alice.noticed("unmute_request_answered") == [{"message": "unmute_request_answered", **answered}]
    assert alice.told("microphone_restrictions_enabled")[-1]["unrestricted_participants"] == ["bob"]
    again = await bob.moderated("answer_unmute_request", request_id=request["request_id"], accept=True)
    assert again["error"] == "unknown_request_id"


async def test_nobody_is_asked_again_at_once(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await alice.comes_to("ask_to_unmute", participants=["bob"])
    refused = await alice.moderated("ask_to_unmute", participants=["bob"])
    assert refused["error"] == "rate_limit_exceeded"
    assert 9 < refused["retry_after_s"] <= 10
    result = await alice.moderated("ask_to_unmute", participants=["bob", "carol"])
    assert result["outcomes"] == [
        {"participant": "bob", "outcome": "failed", "error": "rate_limit_exceeded"},
        {"participant": "carol", "outcome": "asked"},
    ]
    assert (len(bob.noticed("unmute_requested")), len(carol.noticed("unmute_requested"))) == (1, 1)


async def test_saying_no_changes_nothing_and_works_without_livekit(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await alice.comes_to("restrict", source="microphone")
    await alice.comes_to("ask_to_unmute", participants=["bob"])
    request_id = bob.noticed("unmute_requested")[0]["request_id"]
    assert (await carol.moderated("answer_unmute_request", request_id=request_id, accept=True))[
        "error"
    ] == "unknown_request_id"
    await meeting.fake.offline()
    assert "error" not in await bob.moderated("answer_unmute_request", request_id=request_id, accept=False)
    assert alice.noticed("unmute_request_answered")[0]["accepted"] is False


async def test_a_request_lapses_when_the_moderator_leaves(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    await alice.comes_to("ask_to_unmute", participants=["bob"])
    request_id = bob.noticed("unmute_requested")[0]["request_id"]
    await alice.session.leave()
    assert (await bob.moderated("answer_unmute_request", request_id=request_id, accept=True))[
        "error"
    ] == "unknown_request_id"


# --- Kicks and bans ----------------------------------------------------------------------------------------------


async def test_a_kick_ends_the_session_and_every_identity(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await bob.send("request_popout_stream_access_token")
    meeting.fake.join(ROOM, "bob-popout1", token=bob.told("popout_stream_access_token")[0]["token"])
    came_to = await alice.comes_to("kick", participants=["alice", "bob", "zoe"], reason="shouting")
    assert came_to == {"alice": "exempt", "bob": "removed", "zoe": "unknown"}
    assert set(meeting.fake.permissions(ROOM)) == {"alice", "carol"}
    assert bob.session.ended.result() == "kicked"
    assert bob.inbox[-1].payload == {"message": "kicked", "moderator": "alice", "reason": "shouting"}
    assert carol.told("left", "control") == [{"message": "left", "id": "bob", "reason": "kicked"}]
    (entry,) = alice.noticed("action_taken")
    assert (entry["action"], entry["targets"], entry["reason"]) == ("kick", ["bob", "zoe"], "shouting")
    await bob.session.leave()
    await bob.moderate("get_state")
    assert bob.inbox[-1].payload["message"] == "kicked"


async def test_an_old_token_of_somebody_kicked_is_of_no_use_until_they_join_anew(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice, bob, _ = await three(meeting)
        await alice.comes_to("kick", participants=["bob"])
        for _ in range(2):
            meeting.enter(bob)
            await until(lambda: "bob" not in fake.permissions(ROOM))
        bob = await meeting.join("bob")
        await meeting.module._entered.meetings[ROOM].reconciler.go_over(None)
        assert "bob" in fake.permissions(ROOM)


async def test_who_is_being_kicked_gets_no_new_token(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    with meeting.fake.hang(method="RemoveParticipant", times=1) as hanging:
        kicking = asyncio.create_task(alice.comes_to("kick", participants=["bob"]))
        await hanging.hit()
        await bob.send("create_new_access_token")
        assert not bob.told("credentials")
        hanging.lift()
    await kicking
    await until(lambda: "bob" not in meeting.fake.permissions(ROOM))


async def test_a_ban_refuses_joining_until_it_is_lifted(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    await carol.session.leave()
    assert await alice.comes_to("kick", participants=["bob", "carol"], ban=True) == {"bob": "banned", "carol": "banned"}
    assert bob.session.ended.result() == "banned"
    for name in ("bob", "carol"):
        with pytest.raises(ParticipantBanned):
            await meeting.join(name, breakout="left")
    assert meeting.fake.rooms == (ROOM,)
    assert await alice.comes_to("unban", participants=["alice", "bob", "zoe"]) == {
        "alice": "unchanged",
        "bob": "unrestricted",
        "zoe": "unknown",
    }
    assert sources(await meeting.join("bob")) == ALL
    await meeting.module.close_room(ROOM)
    await meeting.join("carol")


async def test_a_kick_stands_when_livekit_does_not_answer(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    await meeting.fake.offline()
    result = await alice.moderated("kick", participants=["bob"], ban=True)
    assert outcomes(result) == {"bob": "failed"}
    assert (result["error"], result["repaired_later"]) == ("livekit_unavailable", ["bob"])
    assert bob.session.ended.result() == "banned"
    await meeting.fake.online()
    await until(lambda: "bob" not in meeting.fake.permissions(ROOM))


class Pausing(MemoryStore):
    """A store that can be made to wait right before it writes, and right after."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.is_waiting = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.go_on()

    def go_on(self) -> None:
        for event in (self.before, self.after):
            event.set()

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        await self._pass(self.before)
        is_written = await super().append(commit, fence=fence)
        await self._pass(self.after)
        return is_written

    async def _pass(self, gate: asyncio.Event) -> None:
        if not gate.is_set():
            self.is_waiting.set()
            await gate.wait()


async def test_who_joins_anew_in_the_moment_of_a_kick_is_in(fake: FakeRoomService) -> None:
    store = Pausing()
    async with meeting_on_fake(fake, store=store) as meeting:
        alice, bob, _ = await three(meeting)
        with fake.hang(method="RemoveParticipant", times=1) as hanging:
            kicking = asyncio.create_task(alice.comes_to("kick", participants=["bob"]))
            await hanging.hit()
            store.before.clear()
            hanging.lift()
        await store.is_waiting.wait()
        joining = asyncio.create_task(meeting.join("bob"))
        await until(lambda: len(meeting.module._audience._sessions[ROOM][bob.id]) == 2)
        store.go_on()
        again = await joining
        await kicking
        assert bob.session.ended.result() == "kicked"
        assert not again.session.ended.done()
        await again.send("create_new_access_token")
        assert again.told("credentials")


async def test_who_is_kicked_before_joining_is_complete_is_told_so(fake: FakeRoomService) -> None:
    store = Pausing()
    async with meeting_on_fake(fake, store=store) as meeting:
        await three(meeting)
        store.after.clear()
        joining = asyncio.create_task(meeting.join("dave", in_livekit=False))
        await store.is_waiting.wait()
        # Another process kicks; this one hears of it before the join is complete here.
        record = await store.read(ROOM)
        assert record is not None
        dave = ParticipantId("dave")
        decision = decide(record.state, CONTROLLER, moderation.Kick(participants=(dave,)), now=0, command_id=KICK)
        assert isinstance(decision, Decision)
        kicked = conclude(record.state, decision)
        entry = Entry(ROOM, record.revision + 1, 0, kicked.changes, command_id=KICK, announcements=kicked.announcements)
        await MemoryStore.append(store, Commit(entry, fold(record, entry)))
        store.go_on()
        person = await joining
        assert person.session.ended.result() == "kicked"
        assert person.inbox[-1].payload == {"message": "kicked", "moderator": "controller"}


# --- Preview and undo --------------------------------------------------------------------------------------------

PREVIEWED: list[dict[str, Any]] = [
    {"action": "mute", "everyone_except": ["carol"]},
    {"action": "mute", "everyone_except": [], "sources": ["camera", "microphone"], "hold_s": 5},
    {"action": "restrict", "source": "microphone", "allowed": ["carol"]},
    {"action": "restrict", "source": "screen_share"},
    {"action": "unrestrict", "source": "camera"},
    {"action": "set_presenter", "participant": "bob"},
    {"action": "set_presenter", "participant": "zoe"},
    {"action": "set_presenter"},
]


@pytest.mark.parametrize("command", PREVIEWED, ids=str)
async def test_a_preview_is_what_the_command_comes_to(meeting: MeetingOnFake, command: dict[str, Any]) -> None:
    alice, bob, _ = await three(meeting)
    await meeting.join("recorder", kind=Kind.RECORDER)
    await meeting.join("dave", in_livekit=False)
    await alice.comes_to("restrict", source="camera", allowed=["carol"])
    await alice.comes_to("set_presenter", participant="carol")
    meeting.fake.publish(ROOM, "bob", "microphone")
    meeting.fake.publish(ROOM, "carol", "microphone", muted=True)
    bob.forget()
    before = await meeting.module._store.read(ROOM)
    meeting.fake.calls.clear()
    await alice.moderate("preview", command=command)
    previewed = alice.noticed("result")[-1]
    assert {call.method for call in meeting.fake.calls} <= {"ListParticipants"}
    assert await meeting.module._store.read(ROOM) == before
    assert bob.inbox == []
    done = await alice.moderated(**command)
    assert {**previewed, "command_id": ""} == {**done, "command_id": ""}


async def test_what_cannot_be_previewed_is_answered_by_a_result_too(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    await alice.moderate("preview", command={"action": "kick", "participants": []})
    assert alice.noticed("result")[-1]["error"] == "invalid_command"
    await meeting.fake.offline()
    await alice.moderate("preview", command={"action": "restrict", "source": "camera"})
    assert alice.noticed("result")[-1]["error"] == "livekit_unavailable"
    assert not alice.noticed("error")


async def test_undoing_puts_back_what_nothing_has_changed_since(meeting: MeetingOnFake) -> None:
    alice, bob, carol = await three(meeting)
    restricted = await alice.moderated("restrict", source="microphone", allowed=["carol"])
    undone = await alice.moderated("undo", command_id=restricted["command_id"])
    assert outcomes(undone) == {"alice": "unchanged", "bob": "unrestricted", "carol": "unchanged"}
    assert bob.told("microphone_restrictions_disabled")
    assert bob.noticed("permissions_changed")[-1] == {
        "message": "permissions_changed",
        "moderator": "alice",
        "may_publish": ALL,
        "cause": "undo",
    }
    assert (await alice.moderated("undo", command_id=restricted["command_id"]))["error"] == "not_undoable"
    redone = await alice.moderated("undo", command_id=undone["command_id"])
    assert outcomes(redone) == {"alice": "unchanged", "bob": "restricted", "carol": "unchanged"}
    assert [meeting.may(person) for person in (bob, carol)] == [False, True]


async def test_what_cannot_be_undone_and_what_was_never_done(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    muted = await alice.moderated("mute", participants=["bob"])
    assert (await alice.moderated("undo", command_id=muted["command_id"]))["error"] == "not_undoable"
    assert (await alice.moderated("undo", command_id="c-1"))["error"] == "unknown_command_id"
    banned = await alice.moderated("kick", participants=["bob"], ban=True)
    assert outcomes(await alice.moderated("undo", command_id=banned["command_id"])) == {"bob": "unrestricted"}
    await meeting.join("bob")


# --- State -------------------------------------------------------------------------------------------------------


async def state_of(person: Person) -> dict[str, Any]:
    await person.moderate("get_state")
    return person.noticed("state")[-1]


async def test_the_state_shows_everything_that_was_decided(meeting: MeetingOnFake) -> None:
    alice, _, carol = await three(meeting)
    await alice.comes_to("restrict", source="microphone", allowed=["bob"], expires_in_s=600)
    await alice.comes_to("disallow", source="camera", participants=["bob"])
    await alice.comes_to("mute", participants=["bob"], hold_s=60)
    await alice.comes_to("set_presenter", participant="bob")
    await alice.comes_to("kick", participants=["carol"], ban=True)
    meeting.fake.publish(ROOM, "alice", "microphone")
    await meeting.module._entered.meetings[ROOM].reconciler.go_over(None)
    state = await state_of(alice)
    (restriction,) = state["restrictions"]
    assert (restriction["source"], restriction["allowed"]) == ("microphone", ["bob"])
    assert restriction["expires_at"].endswith("Z")
    held = state["blocks"][1].pop("until")
    assert held.endswith("Z")
    assert state["blocks"] == [
        {"participant": "bob", "source": "camera", "cause": "moderator"},
        {"participant": "bob", "source": "microphone", "cause": "hold"},
    ]
    assert (state["bans"], state["presenter"]) == (["carol"], "bob")
    in_view = {person["participant"]: person for person in state["participants"]}
    assert in_view["bob"]["may_publish"] == ["screen_share", "screen_share_audio"]
    assert [track["source"] for track in in_view["alice"]["publishing"]] == ["microphone"]
    assert carol.id not in in_view


async def test_a_copy_that_is_kept_up_to_date_is_the_state(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    await alice.comes_to("watch", enabled=True)
    copy = alice.noticed("state")[-1]
    assert copy["version"] > 0
    await alice.comes_to("restrict", source="microphone")
    await alice.comes_to("set_presenter", participant="bob")
    await bob.session.receive("control", {"action": "raise_hand"})
    await meeting.join("dave")
    await until(lambda: "dave" in str(alice.noticed("state_changed")))
    await alice.comes_to("kick", participants=["bob"])
    await alice.comes_to("unrestrict", source="microphone")
    whole = await state_of(alice)
    for event in alice.noticed("state_changed"):
        assert event["version"] == copy["version"] + 1, "a gap calls for get_state"
        copy = {**merged(copy, event["changed"]), "version": event["version"]}
    assert copy == whole
    assert "presenter" not in copy


async def test_nobody_is_told_who_does_not_watch_or_moderates_no_longer(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    mia = await meeting.join("mia", Role.MODERATOR)
    for moderator in (alice, mia):
        await moderator.moderate("watch", enabled=True)
    await mia.session.change_role(Role.USER)
    mia.forget()
    await alice.comes_to("restrict", source="camera")
    await until(lambda: "camera" in str(alice.noticed("state_changed")))
    assert not mia.noticed("state_changed")
    await alice.comes_to("watch", enabled=False)
    assert not meeting.module._entered.meetings[ROOM].view.watchers
    assert not bob.noticed("state_changed")


async def test_a_moderator_who_joins_is_shown_the_state_with_its_version(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    await alice.comes_to("set_presenter", participant="bob")
    mia = await meeting.join("mia", Role.MODERATOR)
    shown = mia.session.take_join_success().livekit_moderation
    whole = await state_of(mia)
    assert shown is not None
    assert shown.model_dump(mode="json", exclude_none=True) == {
        member: value for member, value in whole.items() if member != "message"
    }


# --- The audit ---------------------------------------------------------------------------------------------------


async def test_every_moderator_is_told_what_one_did_and_may_read_it_again(meeting: MeetingOnFake) -> None:
    alice, bob, _ = await three(meeting)
    mia = await meeting.join("mia", Role.MODERATOR)
    first = await alice.moderated("mute", participants=["bob"])
    second = await alice.moderated("kick", participants=["carol"], reason="shouting")
    taken = mia.noticed("action_taken")
    assert taken == alice.noticed("action_taken")
    assert [entry["command_id"] for entry in taken] == [first["command_id"], second["command_id"]]
    assert taken[1]["outcomes"] == [{"participant": "carol", "outcome": "removed"}]
    assert not bob.noticed("action_taken")
    await mia.moderate("get_audit", limit=2)
    entries = mia.noticed("audit")[-1]["entries"]
    assert [{**entry, "message": "action_taken"} for entry in entries] == taken[::-1]
    await mia.moderate("get_audit", limit=5, before=second["command_id"])
    assert [entry["command_id"] for entry in mia.noticed("audit")[-1]["entries"]] == [first["command_id"]]


async def test_the_audit_is_read_in_answers_that_are_not_too_large(
    meeting: MeetingOnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _, _ = await three(meeting)
    done = [(await alice.moderated("restrict", source="camera", allowed=[f"p{n}"]))["command_id"] for n in range(9)]
    await alice.moderate("get_audit", limit=9)
    (whole,) = [audit["entries"] for audit in alice.noticed("audit")]
    assert [entry["command_id"] for entry in whole] == done[::-1]
    monkeypatch.setattr(signaling.answers, "_AUDIT_PAGE", 2)
    monkeypatch.setattr(signaling.answers, "MAX_AUDIT_BYTES", 3 * len(json.dumps(whole[0], separators=(",", ":"))) + 2)
    sizes = []
    before = None
    shown: list[object] = []
    while len(shown) < len(whole):
        await alice.moderate("get_audit", limit=4, **({} if before is None else {"before": before}))
        entries = alice.noticed("audit")[-1]["entries"]
        sizes.append(len(entries))
        shown.extend(entries)
        before = entries[-1]["command_id"]
    assert (shown, sizes) == (whole, [3, 3, 3])
    monkeypatch.setattr(signaling.answers, "MAX_AUDIT_BYTES", 1)
    await alice.moderate("get_audit", limit=4)
    assert alice.noticed("audit")[-1]["entries"] == whole[:1]


async def test_too_many_commands_are_told_when_to_try_again(meeting: MeetingOnFake) -> None:
    alice, _, _ = await three(meeting)
    with meeting.fake.delay(0.1, method="ListParticipants", times=1):
        await asyncio.gather(*(alice.moderate("unrestrict", source="camera") for _ in range(66)))
    assert {(error["error"], error["retry_after_s"]) for error in alice.noticed("error")} == {
        ("rate_limit_exceeded", 1.0)
    }
