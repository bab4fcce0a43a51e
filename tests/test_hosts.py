"""Hosts that stop waiting, cancel, and enter twice: nobody else is the worse for it."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path

import pytest
import structlog

from signaling import Delivery, Kind, ModerationModule, Participant, Role, Settings, StoreError
from signaling.identifiers import BreakoutId, ParticipantId, RoomId
from signaling.module import NotEntered
from signaling.stores import open_store
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, until

# --- Who stops waiting -------------------------------------------------------------------------------------------


async def test_whoever_stops_waiting_for_the_end_of_a_session_keeps_nobody_from_their_events(
    meeting: MeetingOnFake,
) -> None:
    alice, bob, carol = [await meeting.join(name, Role.MODERATOR) for name in ("alice", "bob", "carol")]
    waiting = asyncio.create_task(asyncio.wait_for(bob.session.ended, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bob.session.ended.cancel()
    result = await alice.moderated("kick", participants=["bob"])
    assert [outcome["outcome"] for outcome in result["outcomes"]] == ["removed"]
    assert await bob.session.ended == "kicked"
    for person in (alice, carol):
        assert person.told("left", "control") == [{"message": "left", "id": "bob", "reason": "kicked"}]
        assert len(person.noticed("action_taken")) == 1


@pytest.mark.parametrize("raised", [LookupError, asyncio.CancelledError])
async def test_a_delivery_that_raises_keeps_nobody_else_from_theirs(
    fake: FakeRoomService, raised: type[BaseException]
) -> None:
    async with meeting_on_fake(fake) as meeting:
        alice, carol = await meeting.join("alice", Role.MODERATOR), await meeting.join("carol")

        def deliver(_: Delivery) -> None:
            raise raised

        bob = Participant(ParticipantId("bob"), role=Role.USER, kind=Kind.USER)
        await meeting.module.join(ROOM, bob, deliver=deliver)
        await meeting.join("dora")
        assert "error" not in await alice.result("enable_microphone_restrictions", unrestricted_participants=[])
        for person in (alice, carol):
            assert len(person.told("microphone_restrictions_enabled")) == 1


def running() -> list[str]:
    """What the module has running."""
    names = [repr(task.get_coro()) for task in asyncio.all_tasks()]
    ours = ("Meeting.", "ModerationModule.", "ClosedRooms.", "Reconciler.")
    return [name for name in names if any(part in name for part in ours)]


# --- Entering the module -----------------------------------------------------------------------------------------


async def test_entering_a_module_a_second_time_names_the_mistake(meeting: MeetingOnFake) -> None:
    with pytest.raises(RuntimeError, match="entered already"):
        await meeting.module.__aenter__()
    alice = await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert len(bob.told("microphone_restrictions_enabled")) == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_module_that_was_left_may_be_entered_again_and_tells_everything_once(
    fake: FakeRoomService, tmp_path: Path, kind: str
) -> None:
    store = open_store("memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'm.sqlite'}", audit_entries=10)
    async with meeting_on_fake(fake, store=store) as meeting:
        await meeting.join("alice", Role.MODERATOR)
    for _ in range(2):
        async with meeting.module:
            alice = await meeting.join("alice", Role.MODERATOR, in_livekit=False)
            await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
            assert Counter(delivery.payload["message"] for delivery in alice.inbox) == {
                "action_taken": 1,
                "microphone_restrictions_enabled": 1,
            }


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_leaving_a_module_leaves_nothing_behind_whenever_it_is_cancelled(
    fake: FakeRoomService, tmp_path: Path, kind: str
) -> None:
    is_too_late, at = False, 1  # cancelled before its first step, it never begins
    while not is_too_late:
        store = open_store("memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'm.sqlite'}", audit_entries=10)
        opened = meeting_on_fake(fake, store=store)
        meeting = await opened.__aenter__()
        for room in ("one", "two", "three"):
            meeting.room = RoomId(room)
            await meeting.join("alice", Role.MODERATOR)
        leaving = asyncio.create_task(opened.__aexit__(None, None, None))
        for _ in range(at):
            await asyncio.sleep(0)
        is_too_late = not leaving.cancel()
        await asyncio.wait({leaving})
        await until(lambda: not running(), 1)
        async with meeting.module:  # and it may be entered again
            pass
        at += 1 + at // 4


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_nobody_begins_anything_while_a_module_is_left(fake: FakeRoomService, tmp_path: Path, kind: str) -> None:
    is_left, at = False, 0
    while not is_left:
        store = open_store("memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'm.sqlite'}", audit_entries=10)
        opened = meeting_on_fake(fake, store=store)
        meeting = await opened.__aenter__()
        await meeting.join("alice", Role.MODERATOR)
        leaving = asyncio.create_task(opened.__aexit__(None, None, None))
        for _ in range(at):
            await asyncio.sleep(0)
        is_left = leaving.done()
        meeting.room = RoomId("another")
        joined = await asyncio.gather(meeting.join("bob", in_livekit=False), return_exceptions=True)
        closed = await asyncio.gather(meeting.module.close_room(meeting.room), return_exceptions=True)
        await leaving
        assert {type(came) for came in (*joined, *closed)} <= {Person, StoreError, NotEntered, type(None)}
        if is_left:
            assert "outside" in str(joined[0])
        await until(lambda: not running(), 1)
        at += 1 + at // 4


async def test_a_module_whose_entering_failed_may_be_entered_again(fake: FakeRoomService, tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    path.mkdir()
    module = ModerationModule(
        Settings(
            livekit_url=fake.url,
            livekit_api_key=fake.api_key,
            livekit_api_secret=fake.api_secret,
            moderation_store_url=f"sqlite:///{path}",
        )
    )
    with pytest.raises(Exception, match="is a directory"):
        await module.__aenter__()
    path.rmdir()
    async with module:
        assert await module.audit("standup") == ()  # type: ignore[arg-type]


# --- Commands whose sender is gone -------------------------------------------------------------------------------


async def test_a_command_that_takes_effect_though_its_sender_is_gone_is_logged_as_applied(
    meeting: MeetingOnFake,
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    with structlog.testing.capture_logs() as logs:
        with meeting.fake.delay(0.2, method="ListParticipants", times=1) as delayed:
            asking = asyncio.create_task(alice.moderate("restrict", source="camera", transaction_id=1))
            await delayed.hit()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await until(lambda: any(line["event"] == "command_applied" for line in logs))
    assert [line["action"] for line in logs if line["event"] == "command_applied"] == ["restrict"]
    assert len(alice.noticed("result")) == 1, "the session goes on, and is answered"


async def bugs_logged(
    meeting: MeetingOnFake, monkeypatch: pytest.MonkeyPatch, asked: Coroutine[object, object, object]
) -> list[str]:
    """What is logged of a bug in the turn that was asked for, when nobody waits for it any more."""
    began, may_go_on = asyncio.Event(), asyncio.Event()

    async def fail(*_: object, **_more: object) -> None:
        began.set()
        await may_go_on.wait()
        raise LookupError("a bug")

    assert meeting.module._entered.media is not None
    monkeypatch.setattr(meeting.module._entered.media, "list_presences", fail)
    with structlog.testing.capture_logs(processors=[structlog.processors.format_exc_info]) as logs:
        asking = asyncio.create_task(asked)
        await began.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        may_go_on.set()
        await until(lambda: any("LookupError" in line.get("exception", "") for line in logs))
        await until(lambda: len(meeting.module._entered.meetings[meeting.room].tasks) == 1)
    return [line["event"] for line in logs if "LookupError" in line.get("exception", "")]


async def test_a_bug_in_a_turn_whose_sender_is_gone_is_logged_once_with_its_traceback(
    meeting: MeetingOnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    asked = alice.moderate("restrict", source="camera")
    assert await bugs_logged(meeting, monkeypatch, asked) == ["command_failed"]


async def test_a_bug_in_what_the_host_asked_for_and_waits_for_no_longer_is_logged(
    meeting: MeetingOnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    asked = alice.session.change_role(Role.USER)
    assert await bugs_logged(meeting, monkeypatch, asked) == ["work_failed_unheard"]


# --- What the controller does ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_connected", [True, False])
async def test_a_move_by_the_controller_is_in_the_audit_and_moderators_are_told(
    meeting: MeetingOnFake,
    is_connected: bool,  # noqa: FBT001
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    if not is_connected:
        await bob.session.disconnect()
    await meeting.module.move(meeting.room, bob.id, BreakoutId("red"))
    (told,) = alice.noticed("action_taken")
    assert (told["moderator"], told["action"], told["targets"]) == ("controller", "move", ["bob"])
    assert told["reason"] == "to red"
    (entry,) = await meeting.module.audit(meeting.room)
    assert (entry.command_id, entry.moderator, entry.action) == (told["command_id"], "controller", "move")
    assert bob.told("action_taken", "livekit_moderation") == []


async def test_a_move_by_the_persons_own_session_is_no_action(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await bob.session.move(BreakoutId("red"))
    assert alice.noticed("action_taken") == []
    assert await meeting.module.audit(meeting.room) == ()
