"""The memory of people who have joined and do nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

from tests.benchmarks.hosts import LIMIT_S, Host, ModerationHost, bare_host, fresh_room, moderation_host
from tests.benchmarks.measure import Goal, Options, Row

_JOINED: Final = "a joined connection"
_KEPT: Final = "kept of it after the meeting"
_MORE: Final = "more after one meeting more"
_MEETINGS: Final = 3
_ROOM_SIZE: Final = 50
_WARM_UP: Final = 40
_POLL_S: Final = 0.1
_STEADY_S: Final = 1.5
_STEADY_KIB: Final = 256


async def memory(options: Options) -> AsyncIterator[Row]:
    """Of each connection, while everybody is there, and what is kept of it when they have gone."""
    n = options.idle_connections
    bare = await _per_connection(bare_host, n, n)
    ours = partial(moderation_host, MODERATION_EMPTY_ROOM_S="1")
    for where, size in ((f"rooms of {_ROOM_SIZE}", _ROOM_SIZE), ("one room", n)):
        found = await _per_connection(ours, n, size)
        for what, goal in ((_JOINED, 26), (_KEPT, None), (_MORE, 1)):
            yield Row(
                benchmark="memory",
                what=what,
                where=where,
                n=n,
                unit="KiB",
                measured=[found[what]],
                baseline=[bare[what]],
                baseline_is="a connection to `websockets` without compression",
                goal=None if goal is None else Goal(goal, "measured"),
            )


async def _per_connection(
    started: Callable[[], AbstractAsyncContextManager[Host]], n: int, size: int
) -> dict[str, float]:
    """KiB of resident memory a connection, in full rooms and after them, in a fresh process."""
    full, after = [], []
    async with started() as host:
        await _meet(host, _WARM_UP, _WARM_UP)
        before = await steady_kib(host)
        for _ in range(_MEETINGS):
            full.append(await _meet(host, n, size))
            after.append(await steady_kib(host))
    return {_JOINED: (full[0] - before) / n, _KEPT: (after[0] - before) / n, _MORE: (after[-1] - after[-2]) / n}


async def _meet(host: Host, n: int, size: int) -> int:
    """Let so many in and out again, until their meetings are over; the memory while they were there."""
    listeners = await host.fill({fresh_room(): size for _ in range(n // size)})
    full = await steady_kib(host)
    await host.empty(listeners)
    if isinstance(host, ModerationHost):
        await host.until("moderation_meetings", 0)
    return full


async def steady_kib(host: Host) -> int:
    """The process's memory when it has not changed for a while."""
    known, since = host.resident_kib(), time.monotonic()
    async with asyncio.timeout(LIMIT_S):
        while time.monotonic() - since < _STEADY_S:
            await asyncio.sleep(_POLL_S)
            now = host.resident_kib()
            if abs(now - known) > _STEADY_KIB:
                known, since = now, time.monotonic()
    return host.resident_kib()
