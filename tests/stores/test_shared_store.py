"""A store that several nodes share within one process: leases, following, and what goes wrong as it is asked to."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from signaling.errors import StoreError, TurnLost
from tests.core.meetings import BOARD
from tests.processes import Process, ProcessesLoop
from tests.stores.logs import append, commit, record
from tests.stores.shared_store import LEASE_S, Link, Planned, Shared, SharedStore, Trouble

if TYPE_CHECKING:
    from signaling.stores.contract import Commit


class Pair:
    """Two nodes on one store, each a process of its own."""

    def __init__(self, loop: ProcessesLoop) -> None:
        self.loop = loop
        self.shared = Shared()
        self.processes = Process(loop), Process(loop)
        self.one, self.other = (self._store(process) for process in self.processes)

    def _store(self, process: Process) -> SharedStore:
        store: SharedStore = process.context.run(SharedStore, self.shared, Link(process))
        return store

    def begin(self, which: int, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin something as one of them."""
        return self.loop.create_task(work, context=self.processes[which].context)

    def run(self, which: int, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401
        """Do something as one of them."""
        return self.loop.run_until_complete(self.begin(which, work))

    def pass_time(self, for_s: float) -> None:
        """Let that time pass."""
        self.loop.run_until_complete(asyncio.sleep(for_s))


@pytest.fixture
def pair() -> Iterator[Pair]:
    loop = ProcessesLoop()
    made = Pair(loop)
    for which, store in enumerate((made.one, made.other)):
        made.run(which, store.open())
    yield made
    for which, store in enumerate((made.one, made.other)):
        made.run(which, store.close())
    loop.close()


async def hold(store: SharedStore, for_s: float, fences: list[int]) -> None:
    async with store.turn(BOARD) as turn:
        fences.append(turn.fence)
        await asyncio.sleep(for_s)


# --- Following ---------------------------------------------------------------------------------------------------


def test_others_are_told_of_what_follows_once_they_have_read(pair: Pair) -> None:
    told: list[Commit] = []
    pair.other.listen(told.append)
    pair.run(0, append(pair.one, 1))
    pair.other.follow(BOARD)
    pair.run(0, append(pair.one, 2))
    assert pair.run(1, pair.other.read(BOARD)) == record(2)
    pair.run(0, append(pair.one, 3))
    pair.run(1, append(pair.other, 4))
    pair.pass_time(1)
    assert told == [commit(3), commit(4)]
    pair.other.unfollow(BOARD)
    pair.run(0, append(pair.one, 5))
    pair.pass_time(1)
    assert len(told) == 2


def test_what_was_missed_is_told_when_the_link_is_back(pair: Pair) -> None:
    told: list[Commit] = []
    pair.other.listen(told.append)
    pair.other.follow(BOARD)
    pair.run(1, pair.other.read(BOARD))
    pair.run(1, lose(pair.other, 5))
    for revision in (1, 2):
        pair.run(0, append(pair.one, revision))
    pair.pass_time(4)
    assert told == []
    pair.pass_time(2)
    assert told == [commit(1), commit(2)]


async def lose(store: SharedStore, for_s: float) -> None:
    store.link.lose(for_s)


def test_what_was_never_answered_is_followed_like_others_commits(pair: Pair) -> None:
    told: list[Commit] = []
    pair.one.listen(told.append)
    pair.one.follow(BOARD)
    pair.run(0, pair.one.read(BOARD))
    pair.one.link.planned[2] = Planned(Trouble.IS_UNANSWERED)
    with pytest.raises(StoreError):
        pair.run(0, append(pair.one, 1))
    assert told == [commit(1)]
    assert pair.run(0, pair.one.read(BOARD)) == record(1)


# --- What goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "is_made"),
    [(Trouble.FAILS, False), (Trouble.LOSES_LINK, False), (Trouble.IS_UNANSWERED, True)],
)
def test_an_operation_fails_before_or_after_it_has_happened(pair: Pair, trouble: Trouble, *, is_made: bool) -> None:
    pair.one.link.planned[1] = Planned(trouble, 3)
    with pytest.raises(StoreError):
        pair.run(0, append(pair.one, 1))
    assert pair.run(1, pair.other.read(BOARD)) == (record(1) if is_made else None)


def test_what_is_asked_for_again_happens_once(pair: Pair) -> None:
    pair.one.link.planned[1] = Planned(Trouble.IS_REPEATED)
    assert pair.run(0, append(pair.one, 1))
    assert pair.run(1, pair.other.read(BOARD)) == record(1)


@pytest.mark.parametrize(("trouble", "is_made"), [(Trouble.STOPS, False), (Trouble.STOPS_AFTER, True)])
def test_a_node_that_stands_still_goes_on_where_it_was(pair: Pair, trouble: Trouble, *, is_made: bool) -> None:
    pair.one.link.planned[1] = Planned(trouble, 30)
    appending = pair.begin(0, append(pair.one, 1))
    sleeping = pair.begin(0, asyncio.sleep(1))
    pair.pass_time(29)
    assert not appending.done()
    assert not sleeping.done()
    assert (pair.run(1, pair.other.read(BOARD)) is not None) == is_made
    pair.pass_time(2)
    assert appending.result()
    assert sleeping.done()


def test_a_node_that_is_gone_does_nothing_more(pair: Pair) -> None:
    pair.one.link.planned[1] = Planned(Trouble.DIES_AFTER)
    appending = pair.begin(0, append(pair.one, 1))
    pair.pass_time(1_000)
    assert not appending.done()
    assert pair.run(1, pair.other.read(BOARD)) == record(1)
    pair.processes[0].bury()
    with pytest.raises(StoreError):
        pair.loop.run_until_complete(appending)


# --- Turns -------------------------------------------------------------------------------------------------------


def test_a_turn_is_kept_for_as_long_as_its_holder_is_heard_of(pair: Pair) -> None:
    fences: list[int] = []
    first = pair.begin(0, hold(pair.one, 10 * LEASE_S, fences))
    second = pair.begin(1, hold(pair.other, 0, fences))
    pair.pass_time(9 * LEASE_S)
    assert not second.done()
    pair.pass_time(2 * LEASE_S)
    assert first.done()
    assert second.done()
    assert fences == sorted(fences)


def test_a_turn_of_a_node_that_stands_still_is_taken_over_and_lost(pair: Pair) -> None:
    async def take_part() -> None:
        async with pair.one.turn(BOARD) as turn:
            assert turn.lasts(LEASE_S / 2)
            assert not turn.lasts(LEASE_S)
            pair.processes[0].stand_still(3 * LEASE_S)
            await asyncio.sleep(0)
            assert not turn.lasts(0)
            await pair.one.append(commit(1), fence=turn.fence)

    async def take_over() -> None:
        async with pair.other.turn(BOARD) as turn:
            assert turn.is_taken_over
            await asyncio.sleep(4 * LEASE_S)

    lost = pair.begin(0, take_part())
    taken = pair.begin(1, take_over())
    pair.pass_time(6 * LEASE_S)
    assert isinstance(lost.exception(), TurnLost)
    assert taken.done()
    taken.result()
    assert pair.run(1, pair.other.read(BOARD)) is None
    fences: list[int] = []
    pair.run(0, hold(pair.one, 0, fences))
    assert fences == [3], "nobody holds it up any more"


def test_whoever_waits_without_a_link_is_told_so(pair: Pair) -> None:
    fences: list[int] = []
    first = pair.begin(0, hold(pair.one, 5, fences))
    second = pair.begin(1, hold(pair.other, 0, fences))
    pair.pass_time(1)
    pair.run(1, lose(pair.other, 1))
    pair.pass_time(10)
    assert isinstance(second.exception(), StoreError)
    assert first.done()
    third = pair.begin(0, hold(pair.one, 0, fences))
    pair.pass_time(LEASE_S)
    assert third.done(), "what nobody holds is over after a lease"
