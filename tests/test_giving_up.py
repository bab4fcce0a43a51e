"""Whoever gives up joining, at whatever moment, is in the meeting or is not, and leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from signaling import Role, Session, StoreError
from signaling.core.state import Member
from signaling.identifiers import ParticipantId, RoomId
from signaling.stores import open_store
from signaling.stores.contract import Commit, Record, Store
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import MeetingOnFake, Person, meeting_on_fake, until

BOB = ParticipantId("bob")


class SlowStore(MemoryStore):
    """A store whose reads and writes take a while, before and after they have their effect."""

    async def read(self, room: RoomId) -> Record | None:
        await steps(2)
        record = await super().read(room)
        await steps(1)
        return record

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        await steps(3)
        is_written = await super().append(commit, fence=fence)
        await steps(3)
        return is_written

    async def forget(self, room: RoomId, revision: int) -> bool:
        await steps(2)
        is_forgotten = await super().forget(room, revision)
        await steps(2)
        return is_forgotten


class FailingStore(MemoryStore):
    """A store that does not take so many writes."""

    failures = 0

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        if self.failures:
            self.failures -= 1
            raise StoreError("the store does not answer")
        return await super().append(commit, fence=fence)


async def steps(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture(params=["memory", "sqlite", "slow"])
async def meeting(
    request: pytest.FixtureRequest, fake: FakeRoomService, tmp_path: Path
) -> AsyncIterator[MeetingOnFake]:
    match request.param:
        case "sqlite":
            store: Store = open_store(f"sqlite:///{tmp_path / 'meetings.sqlite'}", audit_entries=10)
        case "slow":
            store = SlowStore()
        case _:
            store = MemoryStore()
    async with meeting_on_fake(fake, store=store) as opened:
        yield opened


def moments(meeting: MeetingOnFake) -> Iterator[int]:
    """Numbers of steps, each with a meeting of its own, until the loop that asks is left."""
    at = 0
    while at < 100_000:
        meeting.room = RoomId(f"meeting-{at}")
        yield at
        at += 1 + at // 12
    pytest.fail("it never comes to its end")


async def give_up(meeting: MeetingOnFake, at: int, breakout: str | None = None) -> bool:
    """Join as Bob, and give up after so many steps; whether that was too late."""
    joining = asyncio.create_task(meeting.join("bob", breakout=breakout, in_livekit=False))
    await steps(at)
    is_too_late = not joining.cancel()
    await asyncio.wait({joining})
    return is_too_late


async def member(meeting: MeetingOnFake) -> Member | None:
    record = await meeting.module._store.read(meeting.room)
    return None if record is None else record.state.members.get(BOB)


async def become_quiet(meeting: MeetingOnFake) -> None:
    """Everything that was begun has come to its end."""
    module = meeting.module

    def is_quiet() -> bool:
        looked_after = module._entered.meetings.get(meeting.room)
        is_idle = looked_after is None or len(looked_after.tasks) == 1  # it keeps LiveKit in agreement
        return is_idle and not module._entered.meetings._engaged and len(module._entered.meetings._background) == 2

    await until(is_quiet)


async def test_a_first_join_that_is_given_up_leaves_no_meeting_and_no_room(meeting: MeetingOnFake) -> None:
    for at in moments(meeting):
        if await give_up(meeting, at):
            break
        await until(lambda: not meeting.module._entered.meetings._meetings)
        assert meeting.fake.rooms == ()
        assert await meeting.module._store.rooms() == ()
        assert not meeting.module._audience._sessions
        assert not meeting.module._entered.joining._arriving


async def test_who_gives_up_joining_a_meeting_that_goes_on_is_not_in_it(meeting: MeetingOnFake) -> None:
    for at in moments(meeting):
        alice = await meeting.join("alice", Role.MODERATOR, in_livekit=False)
        is_too_late = await give_up(meeting, at, "red")
        await become_quiet(meeting)
        joined, left = len(alice.told("joined", "control")), len(alice.told("left", "control"))
        if is_too_late:
            assert await member(meeting) is not None
            assert (joined, left) == (1, 0)
            break
        assert await member(meeting) is None
        assert joined == left
        assert set(meeting.module._audience._sessions[meeting.room]) == {"alice"}
        assert not alice.session.is_over


async def test_who_gives_up_taking_over_keeps_their_place_by_the_older_connection_or_for_the_grace(
    meeting: MeetingOnFake,
) -> None:
    for at in moments(meeting):
        await meeting.join("alice", in_livekit=False)
        older = await meeting.join("bob", in_livekit=False)
        is_too_late = await give_up(meeting, at)
        await become_quiet(meeting)
        kept = await member(meeting)
        assert kept is not None
        if is_too_late:
            assert older.session.is_over
            assert kept.returns_until is None
            break
        assert older.session.is_over == (kept.returns_until is not None), "else nobody would ever give it up"


async def test_a_join_that_is_given_up_is_nothing_to_a_newer_connection_of_the_same_person(
    meeting: MeetingOnFake,
) -> None:
    for at in moments(meeting):
        await meeting.join("alice", in_livekit=False)
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await steps(at)
        newer = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await steps(at % 5)
        is_too_late = not joining.cancel()
        bob = await newer
        await asyncio.wait({joining})
        await become_quiet(meeting)
        kept = await member(meeting)
        assert kept is not None
        assert kept.returns_until is None
        assert not bob.session.is_over
        if is_too_late:
            break


async def test_who_leaves_while_their_newer_join_is_given_up_does_not_stay_for_ever(meeting: MeetingOnFake) -> None:
    for at in moments(meeting):
        await meeting.join("alice", in_livekit=False)
        older = await meeting.join("bob", in_livekit=False)
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await steps(at)
        leaving = asyncio.create_task(older.session.leave())
        await steps(at % 3)
        is_too_late = not joining.cancel()
        await asyncio.wait({joining, leaving})
        await become_quiet(meeting)
        kept = await member(meeting)
        if is_too_late:
            break
        assert kept is None or kept.returns_until is not None


@pytest.mark.parametrize("how", ["leave", "disconnect"])
async def test_who_stops_waiting_for_the_end_of_a_session_has_ended_it(meeting: MeetingOnFake, how: str) -> None:
    for at in moments(meeting):
        await meeting.join("alice", in_livekit=False)
        bob = await meeting.join("bob", in_livekit=False)
        ending = asyncio.create_task(getattr(bob.session, how)())
        await steps(at + 1)
        is_too_late = not ending.cancel()
        await asyncio.wait({ending})
        await become_quiet(meeting)
        kept = await member(meeting)
        assert bob.session.is_over
        assert set(meeting.module._audience._sessions[meeting.room]) == {"alice"}
        assert kept is None if how == "leave" else kept is not None and kept.returns_until is not None
        if is_too_late:
            break


async def test_who_leaves_has_left_although_the_meeting_ends_before_livekit_has_answered(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake) as meeting:
        bob = await meeting.join("bob")
        with fake.hang(method="RemoveParticipant") as hanging:
            leaving = asyncio.create_task(bob.session.leave())
            await hanging.hit()
            await meeting.module.close_room(meeting.room)
            await until(lambda: not meeting.module._entered.meetings._meetings)
        await leaving


async def test_a_first_join_that_fails_leaves_nothing(fake: FakeRoomService) -> None:
    store = FailingStore()
    async with meeting_on_fake(fake, store=store) as meeting:
        store.failures = 1
        with pytest.raises(StoreError):
            await meeting.join("bob")
        await until(lambda: not meeting.module._entered.meetings._meetings)
        assert fake.rooms == ()
        bob = await meeting.join("bob")
        assert meeting.may(bob)


# --- While a meeting ends ----------------------------------------------------------------------------------------


def check_let_in_or_told(meeting: MeetingOnFake, bob: Person) -> None:
    session: Session = bob.session
    if session.is_over:
        assert session.ended.result() == "meeting_ended"
    else:
        assert session.join_data is not None
        assert session.join_data["room"] in meeting.fake.rooms


async def test_nobody_gets_a_token_for_a_room_that_is_deleted_because_the_meeting_ends(meeting: MeetingOnFake) -> None:
    let_in = 0
    for at in moments(meeting):
        await meeting.join("alice", in_livekit=False)
        ending = asyncio.create_task(meeting.module.close_room(meeting.room))
        await steps(at)
        is_over = ending.done()
        bob = await meeting.join("bob", in_livekit=False)
        await ending
        await become_quiet(meeting)
        check_let_in_or_told(meeting, bob)
        let_in += not bob.session.is_over
        if is_over:
            break
    assert let_in


async def test_a_meeting_that_is_ended_while_somebody_joins_tells_them_or_goes_on_with_them(
    meeting: MeetingOnFake,
) -> None:
    for at in moments(meeting):
        await meeting.join("alice", in_livekit=False)
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await steps(at)
        is_in = joining.done()
        await meeting.module.close_room(meeting.room)
        bob = await joining
        await become_quiet(meeting)
        check_let_in_or_told(meeting, bob)
        if is_in:
            assert bob.session.is_over
            break


async def test_nobody_is_thrown_out_because_an_empty_meetings_time_is_over_as_they_join(meeting: MeetingOnFake) -> None:
    for at in moments(meeting):
        alice = await meeting.join("alice", in_livekit=False)
        await alice.session.leave()
        record = await meeting.module._store.read(meeting.room)
        assert record is not None
        assert record.state.empty_since is not None
        looked_after = meeting.module._entered.meetings[meeting.room]
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await steps(at)
        is_in = joining.done()
        await looked_after.tasks.see_through(looked_after.timer.end_if_empty(record.state.empty_since))
        bob = await joining
        await become_quiet(meeting)
        assert not bob.session.is_over
        check_let_in_or_told(meeting, bob)
        if is_in:
            break
