import asyncio
import contextlib
import gc
import resource
import selectors
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from signaling.cli import process
from signaling.cli.process import (
    MANY,
    READY_AT_ONCE,
    YOUNG,
    FairSelector,
    collect_in_passing,
    fair_event_loop,
    raise_descriptor_limit,
)


class Circle:
    """What only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes when somebody sets it; the seconds between two looks take none."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(process, "_EVERY_S", 0)
    return now


@pytest.fixture
def whole() -> Iterator[list[int]]:
    """How many objects each whole collection had to look at."""
    sizes: list[int] = []

    def look(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            sizes.append(sum(len(gc.get_objects(generation=each)) for each in range(3)))

    gc.callbacks.append(look)
    yield sizes
    gc.callbacks.remove(look)


def test_of_many_who_are_ready_some_are_told_of_at_once_and_the_others_in_turn() -> None:
    pairs = [socket.socketpair() for _ in range(3 * READY_AT_ONCE)]
    with ExitStack() as stack:
        selector = stack.enter_context(contextlib.closing(FairSelector()))
        for near, far in pairs:
            stack.enter_context(near)
            stack.enter_context(far)
            selector.register(near, selectors.EVENT_READ)
        assert selector.select(0) == []
        far.send(b"x")
        assert [key.fileobj for key, _ in selector.select()] == [near]
        for _, other in pairs:
            other.send(b"x")
        rounds = [selector.select(0) for _ in range(3)]
        assert [len(told) for told in rounds] == [READY_AT_ONCE] * 3
        assert len({key.fd for told in rounds for key, _ in told}) == len(pairs), "nobody is passed over"


async def test_the_loop_of_the_server_is_such_a_one() -> None:
    with contextlib.closing(fair_event_loop()) as loop:
        assert isinstance(loop, asyncio.SelectorEventLoop)


@asynccontextmanager
async def collecting(there: list[int]) -> AsyncIterator[None]:
    """Garbage is collected while so many are there."""
    task = asyncio.create_task(collect_in_passing(lambda: there[0]))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def turns(count: int = 5) -> None:
    """Let it look a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("clock")
async def test_what_lives_is_looked_at_once(whole: list[int]) -> None:
    thresholds = gc.get_threshold()
    async with collecting([0]):
        first = whole[-1]
        assert gc.get_threshold()[:2] == YOUNG
        kept: list[list[object]] = []
        for _ in range(4):
            kept.append([[] for _ in range(3 * YOUNG[0] * (YOUNG[1] + 1))])
            await turns()
        assert len(whole) > 1
        assert max(whole[1:]) < sum(len(each) for each in kept) < first + sum(len(each) for each in kept)
    assert gc.get_threshold() == thresholds
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    ("most", "there", "later_s", "is_whole"),
    [
        (MANY, MANY // 8, 0, True),
        (MANY, MANY // 2, 0, False),
        (10, 0, 0, False),
        (10, 10, 3_601, True),
        (MANY, MANY, 3_601, False),
        (MANY, MANY, 86_401, True),
    ],
)
async def test_all_is_looked_at_again_when_nobody_feels_it(
    clock: list[float], most: int, there: int, later_s: float, *, is_whole: bool
) -> None:
    people = [most]
    async with collecting(people):
        await turns()
        frozen = gc.get_freeze_count()
        circle = Circle()
        gc.freeze()
        del circle
        assert gc.get_freeze_count() > frozen
        clock[0] += later_s
        people[0] = there
        await turns()
        assert (not any(isinstance(each, Circle) for each in _all_objects())) is is_whole


def _all_objects() -> list[object]:
    gc.unfreeze()
    return gc.get_objects()


def test_descriptors_are_raised_to_what_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def refuse(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_descriptor_limit()
