import asyncio
from functools import partial

from signaling.server.departures import AT_ONCE, Departures


async def test_so_many_are_told_between_two_turns_of_others_in_order() -> None:
    departures = Departures()
    told: list[int] = []
    seen: list[int] = []
    for number in range(3 * AT_ONCE + 1):
        departures.add(partial(told.append, number))
    async with asyncio.timeout(5):
        while len(told) < 3 * AT_ONCE + 1:
            await asyncio.sleep(0)
            seen.append(len(told))
    assert told == sorted(told)
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) <= AT_ONCE


async def test_one_that_fails_keeps_the_others_from_nothing() -> None:
    departures = Departures()
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context["exception"]))
    told = asyncio.Event()

    def fail() -> None:
        raise ZeroDivisionError

    departures.add(fail)
    departures.add(told.set)
    async with asyncio.timeout(5):
        await told.wait()
    departures.add(told.clear)
    async with asyncio.timeout(5):
        while told.is_set():  # noqa: ASYNC110 - it is cleared, which nobody can wait for
            await asyncio.sleep(0)
    assert [type(error) for error in failed] == [ZeroDivisionError]
    assert len(departures) == 0
