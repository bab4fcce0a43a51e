"""How long a ping takes while others are many, or mean no good."""

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import Final

from websockets.asyncio.client import ClientConnection

from tests.benchmarks.hosts import LIMIT_S, Host, ModerationHost, fresh_room, moderation_host, ms_since
from tests.benchmarks.measure import Goal, Options, Row

_PING: Final = '{"namespace":"echo","payload":{"action":"ping"}}'
_ENTER_S: Final = 600
"""How long a crowd may take to get in."""
_CLIENTS: Final = 20
_EVERY_S: Final = 0.1
"""Ten times as often as clients do."""
_ATTACKS: Final = {
    "silent": "connections that say nothing",
    "handshakes": "handshakes without a ticket, so many in flight",
    "frames": "guests with frames of 1 MiB, 90,000 keys in each",
}


async def crowd(options: Options) -> AsyncIterator[Row]:
    """The p99 of echoes: nobody else there, so many idle, all of them gone at once, and under attack."""
    for kind, where in _ATTACKS.items():
        size = 0
        alone, besides = [], []
        async with moderation_host() as host:
            for _ in range(options.repeat):
                alone.append(await p99_of_echoes(host, options.seconds))
                async with _process(kind, options.attackers[kind], host) as (size, _):
                    besides.append(await p99_of_echoes(host, options.seconds))
        yield _row(where, size, besides, alone, 100)
    grace_s = 2 if options.is_quick else 8
    async with moderation_host(MODERATION_DISCONNECT_GRACE_S=str(grace_s)) as host:  # once: all take a minute to get in
        alone = [await p99_of_echoes(host, options.seconds)]
        async with _process("idle", options.many, host) as (size, process):
            idle = [await p99_of_echoes(host, 3 * options.seconds)]
            measuring = asyncio.create_task(p99_of_echoes(host, grace_s))
            await asyncio.sleep(0.5)
            process.kill()
            breaking = [await measuring]
            expiring = [await p99_of_echoes(host, grace_s)]
    yield _row("idle connections", size, idle, alone, 50)
    yield _row("all of them break at once", size, breaking, alone, 100)
    yield _row("their grace is over", size, expiring, alone, 100)


def _row(where: str, n: int, measured: list[float], baseline: list[float], limit_ms: float) -> Row:
    return Row(
        benchmark="crowd",
        what="echo, p99",
        where=where,
        n=n,
        unit="ms",
        measured=measured,
        baseline=baseline,
        baseline_is="nobody else there",
        goal=Goal(limit_ms, "measured"),
    )


async def p99_of_echoes(host: Host, seconds: float) -> float:
    """Of pings that are sent when it is time for them, whether the last was answered or not."""
    room = fresh_room()
    clients = [await host.connect(room, f"e{number}") for number in range(_CLIENTS)]
    try:
        trips = await asyncio.gather(*(_ping(client, seconds) for client in clients))
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    return quantiles([trip for each in trips for trip in each], n=100, method="inclusive")[-1]


async def _ping(client: ClientConnection, seconds: float) -> list[float]:
    sent: deque[float] = deque()
    trips: list[float] = []
    count = int(seconds / _EVERY_S)

    async def hear() -> None:
        while len(trips) < count:
            if '"pong"' in str(await client.recv()):
                trips.append(ms_since(sent.popleft()))

    async with asyncio.timeout(seconds + LIMIT_S):
        hearing = asyncio.create_task(hear())
        began_at = time.perf_counter()
        for number in range(count):
            due_at = began_at + number * _EVERY_S
            await asyncio.sleep(max(0, due_at - time.perf_counter()))
            sent.append(due_at)
            await client.send(_PING)
        await hearing
    return trips


@asynccontextmanager
async def _process(kind: str, size: int, host: ModerationHost) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """So many of them in a process of their own; how many they really are."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.crowd_process", kind, str(size), host.url, fresh_room()),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_ENTER_S):
            there = int(await process.stdout.readline())
        yield there, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
