"""Who waits for a place among the calls, and who is next."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.core.effects import Priority
from signaling.livekit.pace import Pace


class Refused(Exception):
    """Whoever waited need wait no longer."""


class Callers:
    """Tasks that each want a place, keep it until told to leave, and say in which order they got it."""

    def __init__(self, places: int) -> None:
        self.pace = Pace(places)
        self.served: list[str] = []
        self.inside: set[str] = set()
        self.most_inside = 0
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._may_leave: dict[str, asyncio.Event] = {}

    async def come(self, name: str, priority: Priority = Priority.IDLE) -> None:
        self._may_leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._call(name, priority))
        await settled()

    async def leave(self, name: str) -> None:
        self._may_leave[name].set()
        await settled()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await settled()

    async def finish(self) -> None:
        for event in self._may_leave.values():
            event.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _call(self, name: str, priority: Priority) -> None:
        async with self.pace.slot(priority):
            self.served.append(name)
            self.inside.add(name)
            self.most_inside = max(self.most_inside, len(self.inside))
            try:
                await self._may_leave[name].wait()
            finally:
                self.inside.remove(name)


async def settled() -> None:
    """Give every task that can go on the turns of the event loop that it needs."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_are_inside_than_there_are_places() -> None:
    callers = Callers(places=2)
    for name in "abcd":
        await callers.come(name)
    assert callers.inside == {"a", "b"}
    await callers.leave("a")
    assert callers.inside == {"b", "c"}
    await callers.finish()
    assert callers.most_inside == 2


async def test_who_waits_is_served_by_priority_then_in_order() -> None:
    callers = Callers(places=1)
    await callers.come("holder")
    for number in range(2):
        for priority in reversed(Priority):
            await callers.come(f"{priority.name}{number}", priority)
    await callers.finish()
    assert callers.served == ["holder", *(f"{priority.name}{number}" for priority in Priority for number in range(2))]


async def test_a_late_urgent_one_overtakes_all_who_wait() -> None:
    callers = Callers(places=1)
    await callers.come("holder")
    await callers.come("sweep", Priority.SWEEP)
    await callers.come("live", Priority.LIVE)
    await callers.come("repair", Priority.REPAIR)
    await callers.leave("holder")
    assert callers.inside == {"repair"}
    await callers.finish()
    assert callers.served == ["holder", "repair", "live", "sweep"]


async def test_one_who_gives_up_waiting_is_passed_over() -> None:
    callers = Callers(places=1)
    for name in "abc":
        await callers.come(name)
    await callers.cancel("b")
    await callers.finish()
    assert callers.served == ["a", "c"]
    assert callers.tasks["b"].cancelled()


async def test_a_place_given_in_the_moment_of_giving_up_goes_to_the_next() -> None:
    callers = Callers(places=1)
    for name in "abc":
        await callers.come(name)
    callers._may_leave["a"].set()
    await asyncio.sleep(0)  # `a` has left and given its place to `b`, which has not run since
    assert callers.inside == set()
    callers.tasks["b"].cancel()
    await settled()
    assert callers.inside == {"c"}
    await callers.finish()
    assert callers.served == ["a", "c"]


async def test_a_place_given_to_one_who_gives_up_is_free_when_nobody_waits() -> None:
    callers = Callers(places=1)
    await callers.come("a")
    await callers.come("b")
    callers._may_leave["a"].set()
    await asyncio.sleep(0)
    callers.tasks["b"].cancel()
    await settled()
    await callers.come("c")
    assert callers.inside == {"c"}
    await callers.finish()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_one_who_fails_inside_passes_the_place_on(*, cancelled: bool) -> None:
    pace = Pace(1)
    with pytest.raises((LookupError, asyncio.CancelledError)):
        async with pace.slot(Priority.LIVE):
            raise asyncio.CancelledError if cancelled else LookupError
    async with asyncio.timeout(1), pace.slot(Priority.LIVE):
        pass


async def test_whoever_waits_can_be_refused_and_those_inside_go_on() -> None:
    callers = Callers(places=1)
    for name in "abc":
        await callers.come(name)
    callers.pace.refuse_waiting(Refused())
    await settled()
    assert callers.inside == {"a"}
    assert all(isinstance(callers.tasks[name].exception(), Refused) for name in "bc")
    await callers.come("d")
    assert callers.inside == {"a"}
    await callers.leave("a")
    assert callers.inside == {"d"}
    await callers.finish()
    assert callers.most_inside == 1


async def test_one_who_is_refused_and_gives_up_at_once_takes_nothing_along() -> None:
    callers = Callers(places=1)
    await callers.come("a")
    await callers.come("b")
    callers.pace.refuse_waiting(Refused())
    callers.tasks["b"].cancel()
    await settled()
    assert callers.tasks["b"].cancelled()
    await callers.leave("a")
    await callers.come("c")
    await callers.come("d")
    assert callers.inside == {"c"}
    await callers.finish()
    assert callers.most_inside == 1


async def test_one_who_gave_up_before_all_are_refused_stays_cancelled() -> None:
    callers = Callers(places=1)
    await callers.come("a")
    await callers.come("b")
    callers.tasks["b"].cancel()
    callers.pace.refuse_waiting(Refused())
    await settled()
    assert callers.tasks["b"].cancelled()
    await callers.finish()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from(Priority)),
        st.tuples(st.sampled_from(["leave", "cancel"]), st.integers(0, 30)),
        st.tuples(st.sampled_from(["refuse", "turn"]), st.none()),
    ),
    max_size=60,
)


@given(places=st.integers(1, 4), steps=STEPS)
def test_whatever_happens_places_are_neither_lost_nor_made(
    places: int, steps: list[tuple[str, Priority | int | None]]
) -> None:
    asyncio.run(_play(places, steps))


async def _play(places: int, steps: list[tuple[str, Priority | int | None]]) -> None:
    callers = Callers(places)
    for number, (step, value) in enumerate(steps):
        match step, value:
            case "come", Priority() as priority:
                name = f"{number}"
                callers._may_leave[name] = asyncio.Event()
                callers.tasks[name] = asyncio.create_task(callers._call(name, priority))
            case "leave", int(which):
                _one_of(callers, which, lambda name: callers._may_leave[name].set())
            case "cancel", int(which):
                _one_of(callers, which, lambda name: callers.tasks[name].cancel())
            case "refuse", _:
                callers.pace.refuse_waiting(Refused())
            case _:
                await asyncio.sleep(0)  # only now do those of the steps before run, all at once
        assert len(callers.inside) <= places
    await settled()
    waiting = [task for task in callers.tasks.values() if not task.done()]
    assert len(callers.inside) == min(places, len(waiting))  # nobody waits while a place is free
    await callers.finish()
    assert callers.most_inside <= places
    for name in "abcdefgh"[: places + 1]:
        await callers.come(name)
    assert len(callers.inside) == places  # every place was given back, once
    await callers.finish()


def _one_of(callers: Callers, which: int, act: Callable[[str], object]) -> None:
    names = [name for name, task in callers.tasks.items() if not task.done()]
    if names:
        act(names[which % len(names)])
