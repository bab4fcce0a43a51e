"""People whose connections break, one or all of them at once, and how long their places are kept."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from signaling.core.decisions import decide
from signaling.entrance import LATE_S, Entrance
from signaling.meeting.meeting import Meeting
from signaling.meeting.places import MOST_EXTENDED_S
from signaling.stores import open_store
from signaling.stores.contract import Commit, Store
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, until
from tests.test_giving_up import FailingStore

GRACE_S = 10


class Clock:
    """A clock that is advanced."""

    def __init__(self) -> None:
        self.now = 1_780_000_000.0

    def __call__(self) -> float:
        return self.now


def store_of(kind: str, path: Path) -> Store:
    return open_store("memory:" if kind == "memory" else f"sqlite:///{path / 'm.sqlite'}", audit_entries=10)


async def members(meeting: MeetingOnFake) -> set[str]:
    record = await meeting.module._store.read(ROOM)
    return set() if record is None else set(record.state.members)


def looked_after(meeting: MeetingOnFake) -> Meeting:
    return meeting.module._entered.meetings[ROOM]


# --- All at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_all_who_lose_their_connections_at_once_are_one_commit_and_so_are_all_who_do_not_come_back(
    fake: FakeRoomService, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided: Counter[str] = Counter()

    def counted(state: Any, sender: Any, command: Any, **given: Any) -> Any:  # noqa: ANN401 - as `decide` has them
        decided[type(command).__name__] += 1
        return decide(state, sender, command, **given)

    clock = Clock()
    store = store_of(kind, tmp_path)
    commits: list[Commit] = []
    store.listen(commits.append)
    async with meeting_on_fake(fake, store=store, clock=clock, moderation_disconnect_grace_s=GRACE_S) as meeting:
        alice = await meeting.join("alice", in_livekit=False)
        people = [await meeting.join(f"p{number}", in_livekit=number % 10 == 0) for number in range(100)]
        commits.clear()
        monkeypatch.setattr("signaling.meeting.journal.decide", counted)
        await asyncio.gather(*(person.session.disconnect() for person in people))
        assert (len(commits), decided) == (1, {"LoseConnections": 1})
        assert await members(meeting) == {"alice", *(person.id for person in people)}
        clock.now += GRACE_S
        async with asyncio.timeout(10):
            await alice.until_told("left", "control", times=100)
        assert (len(commits), decided) == (2, {"LoseConnections": 1, "DepartUnlessBack": 1})
        assert {told["reason"] for told in alice.told("left", "control")} == {"timeout"}
        await until(lambda: not fake.permissions(ROOM))
        assert Counter(meeting.calls("RemoveParticipant")) == {person.id: 1 for person in people[::10]}


async def test_who_is_not_due_yet_keeps_their_place(fake: FakeRoomService) -> None:
    clock = Clock()
    async with meeting_on_fake(fake, clock=clock, moderation_disconnect_grace_s=GRACE_S) as meeting:
        alice, bob, carol = [await meeting.join(name, in_livekit=False) for name in ("alice", "bob", "carol")]
        await bob.session.disconnect()
        clock.now += 6
        await carol.session.disconnect()
        clock.now += 4
        assert (await alice.until_told("left", "control"))["id"] == "bob"
        assert await members(meeting) == {"alice", "carol"}
        clock.now += 6
        assert (await alice.until_told("left", "control", times=2))["id"] == "carol"


# --- When nobody can be let in at once ---------------------------------------------------------------------------


def test_whoever_waits_for_long_shows_that_nobody_is_let_in_at_once() -> None:
    clock = Clock()
    entrance = Entrance(clock)
    began_at = clock.now
    with entrance.waiting():
        clock.now += LATE_S
        assert entrance.held_up_at() < began_at
        with entrance.waiting():
            clock.now += 0.5
            assert entrance.held_up_at() == clock.now
        clock.now += 1
    assert entrance.held_up_at() == began_at + LATE_S + 1.5
    clock.now += 60
    assert entrance.held_up_at() == began_at + LATE_S + 1.5
    with entrance.waiting():
        clock.now += 0.1
    assert entrance.held_up_at() == began_at + LATE_S + 1.5


def test_a_late_loop_is_late_for_everybody() -> None:
    clock = Clock()
    entrance = Entrance(clock)
    entrance.note_late(LATE_S)
    assert entrance.held_up_at() < clock.now
    entrance.note_late(LATE_S + 0.1)
    assert entrance.held_up_at() == clock.now


async def test_the_time_to_come_back_begins_anew_while_joins_wait(fake: FakeRoomService) -> None:
    clock = Clock()
    async with meeting_on_fake(fake, clock=clock, moderation_disconnect_grace_s=GRACE_S) as meeting:
        alice, bob = await meeting.join("alice", in_livekit=False), await meeting.join("bob", in_livekit=False)
        carol = await meeting.join("carol", in_livekit=False)
        await asyncio.gather(bob.session.disconnect(), carol.session.disconnect())
        meeting_here = looked_after(meeting)
        async with meeting_here.journal._writing:  # whoever joins waits
            joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
            await until(lambda: bool(meeting.module._entrance._waiting_since))
            clock.now += GRACE_S + 5
            await meeting_here.timer._expire()
        back = await joining
        clock.now += GRACE_S - 1
        await meeting_here.timer._expire()
        assert await members(meeting) == {"alice", "bob", "carol"}, "she may have waited to be let in, too"
        clock.now += 1
        await meeting_here.timer._expire()
        assert await members(meeting) == {"alice", "bob"}
        assert not back.session.is_over
        assert [told["id"] for told in alice.told("left", "control")] == ["carol"]


@asynccontextmanager
async def coming_back_later(meeting: MeetingOnFake, person: Person) -> AsyncIterator[asyncio.Task[Person]]:
    """Somebody's connection is broken, and in this block they wait to be let in again."""
    await person.session.disconnect()
    async with looked_after(meeting).journal._line:
        joining = asyncio.create_task(meeting.join(person.id, in_livekit=False))
        await until(lambda: bool(meeting.module._entrance._waiting_since))
        yield joining


async def test_who_is_being_let_in_has_come_back(fake: FakeRoomService) -> None:
    clock = Clock()
    async with meeting_on_fake(fake, clock=clock, moderation_disconnect_grace_s=GRACE_S) as meeting:
        alice, bob = await meeting.join("alice", in_livekit=False), await meeting.join("bob", in_livekit=False)
        async with coming_back_later(meeting, bob) as joining:
            clock.now += GRACE_S + MOST_EXTENDED_S + 1
            meeting_here = looked_after(meeting)
            assert meeting_here.places.end((await meeting_here.journal.record()).state) == {bob.id: math.inf}
        await joining
        assert alice.told("left", "control") == []


async def test_who_gives_up_coming_back_is_away_as_before(fake: FakeRoomService) -> None:
    clock = Clock()
    async with meeting_on_fake(fake, clock=clock, moderation_disconnect_grace_s=GRACE_S) as meeting:
        alice, bob = await meeting.join("alice", in_livekit=False), await meeting.join("bob", in_livekit=False)
        async with coming_back_later(meeting, bob) as joining:
            meeting_here = looked_after(meeting)
            meeting_here.timer._arm((await meeting_here.journal.record()).state)
            joining.cancel()
            await asyncio.wait({joining})
        await until(lambda: not meeting.module._entered.meetings._engaged)
        clock.now += GRACE_S
        assert (await alice.until_told("left", "control"))["id"] == "bob"


async def test_places_are_not_kept_for_ever_because_others_wait(fake: FakeRoomService) -> None:
    clock = Clock()
    async with meeting_on_fake(fake, clock=clock, moderation_disconnect_grace_s=GRACE_S) as meeting:
        alice, bob = await meeting.join("alice", in_livekit=False), await meeting.join("bob", in_livekit=False)
        await bob.session.disconnect()
        for _ in range(int(MOST_EXTENDED_S) + GRACE_S):
            meeting.module._entrance.note_late(2)
            await looked_after(meeting).timer._expire()
            assert await members(meeting) == {"alice", "bob"}
            clock.now += 1
        meeting.module._entrance.note_late(2)
        await looked_after(meeting).timer._expire()
        assert [told["id"] for told in alice.told("left", "control")] == ["bob"]


async def test_a_loop_that_was_late_is_noticed_while_anybody_is_away(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_disconnect_grace_s=GRACE_S) as meeting:
        await meeting.join("alice", in_livekit=False)
        bob = await meeting.join("bob", in_livekit=False)
        await bob.session.disconnect()
        meeting_here = looked_after(meeting)
        assert meeting_here.timer._timer is not None
        loop = asyncio.get_running_loop()
        assert meeting_here.timer._timer.when() - loop.time() <= LATE_S
        meeting_here.timer._timer.cancel()
        meeting_here.timer._look_at_the_time(loop.time() - 3)
        assert meeting.module._entrance.held_up_at() > 0
        await until(lambda: meeting_here.timer._timer is not None)


async def test_nobody_goes_because_the_store_failed_for_longer_than_the_grace(fake: FakeRoomService) -> None:
    store, clock = FailingStore(), Clock()
    async with meeting_on_fake(fake, store=store, clock=clock, moderation_disconnect_grace_s=GRACE_S) as meeting:
        alice, bob = [await meeting.join(name, in_livekit=False) for name in ("alice", "bob")]
        await bob.session.disconnect()
        store.failures = 1
        clock.now += GRACE_S + 2
        await until(lambda: store.failures == 0)  # nobody could have come back then
        clock.now += GRACE_S - 1
        await looked_at_again(meeting)
        assert await members(meeting) == {"alice", "bob"}
        clock.now += 1
        assert (await alice.until_told("left", "control"))["id"] == "bob"


async def looked_at_again(meeting: MeetingOnFake) -> None:
    """Whatever is due by now has been dealt with."""
    of = looked_after(meeting)
    await until(lambda: not of.timer._is_expiring)
    await of.timer._expire()
