"""Several nodes on one Redis: what a commit costs, and what one and three of them take, beside one on SQLite."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Final

import aiohttp
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection

from signaling import Role
from signaling.core.changes import HandSet
from signaling.core.state import Member
from signaling.identifiers import CommandId, ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.messages.moderation import Outcome
from signaling.stores import open_store
from signaling.stores.contract import AuditEntry, Commit, Entry, Record, Store, fold
from signaling.stores.serialization import dump_entry
from signaling.testing.redis_server import RedisServer
from tests.benchmarks.crowd_rows import p99_of_echoes
from tests.benchmarks.hosts import (
    AT_ONCE,
    LIMIT_S,
    Host,
    Listener,
    ModerationHost,
    cpu_s,
    fresh_room,
    in_flight,
    ms_since,
)
from tests.benchmarks.measure import Goal, Options, Row, Sample, Variant, in_turns
from tests.benchmarks.memory_rows import steady_kib
from tests.benchmarks.signaling_rows import HANDS, telling
from tests.core.meetings import MEETING
from tests.meetings.serving import serving

_APPENDS: Final = 50
_ONE, _THREE, _SQLITE = "one node", "three nodes", "one node, SQLite"
_MANY: Final = 3
_MOST_MS: Final = 50
"""What 99 of 100 commands may take."""
_LOADED_ROOM: Final = 10
_RESTRICT: Final = (
    '{"namespace":"livekit","payload":{"action":"enable_microphone_restrictions","unrestricted_participants":[]}}'
)
_RESTRICTED: Final = b"microphone_restrictions_enabled"
_ALIKE_SQLITE: Final = "the same on one node with SQLite"
_ALIKE_ONE: Final = "the same on one node"


async def nodes(options: Options) -> AsyncIterator[Row]:
    """A commit alone; then commands, events, joins and idle people, on one node and on three."""
    async for row in _commits(options):
        yield row
    async with _livekit() as livekit:
        async with (
            _spread(livekit, 1, sqlite=True) as kept,
            _spread(livekit, 1) as one,
            _spread(livekit, _MANY) as three,
        ):
            hosts = {_SQLITE: kept, _ONE: one, _THREE: three}
            for measure in (_commands, _events, _operations, _storms):
                async for row in measure(hosts, options):
                    yield row
        async for row in _crowds(livekit, options):
            yield row


# --- A commit -----------------------------------------------------------------------------------------------------


async def _commits(options: Options) -> AsyncIterator[Row]:
    fewest, most = min(options.connections), max(options.connections)
    with TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(RedisServer())
            bare = Redis.from_url(redis.url)
            stack.push_async_callback(bare.aclose)
            stores = {
                "Redis": open_store(redis.url, audit_entries=10_000),
                "SQLite": open_store(f"sqlite:///{Path(directory) / 'meetings.sqlite'}", audit_entries=10_000),
            }
            for store in stores.values():
                stack.push_async_callback(store.close)
                await store.open()
            variants = {f"{name} {n}": _appending(store, n) for name, store in stores.items() for n in {fewest, most}}
            taken = await in_turns({**variants, "bare": _adding(bare)}, options.repeat * 2)
    redis_, sqlite = taken[f"Redis {fewest}"], taken[f"SQLite {fewest}"]
    xadd = "XADD of the same bytes by redis-py"
    yield _row("a commit", "Redis", fewest, "ms", redis_["took"], taken["bare"]["took"], xadd, Goal(1.5, "measured"))
    yield _row("CPU of a commit", "Redis", fewest, "ms", redis_["cpu"], taken["bare"]["cpu"], xadd)
    yield _row("a commit", "Redis, beside SQLite", fewest, "ms", redis_["took"], sqlite["took"], "the same with SQLite")
    yield _row(
        "CPU of a commit", "Redis, beside SQLite", fewest, "ms", redis_["cpu"], sqlite["cpu"], "the same with SQLite"
    )
    if most > fewest:
        large = taken[f"Redis {most}"]["took"]
        alike = f"the same in a meeting of {fewest}"
        yield _row("a commit in a large meeting", "Redis", most, "ms", large, redis_["took"], alike, Goal(1.3))


def _appending(store: Store, n: int) -> Variant:
    """A hand goes up and down in a meeting of so many, with an entry in the audit each time."""
    room = RoomId(fresh_room())
    people = [ParticipantId(f"p{number}") for number in range(n)]
    members = {who: Member(Role.USER, MEETING.members[next(iter(MEETING.members))].kind, 1_000.0) for who in people}
    newest = Record(0, replace(MEETING, room=room, version=0, members=members))

    async def append() -> Sample:
        nonlocal newest
        took, began_cpu = [], time.process_time()
        for _ in range(_APPENDS):
            commit = _following(newest, people[0])
            began_at = time.perf_counter()
            assert await store.append(commit)
            took.append(ms_since(began_at))
            newest = commit.record
        return {"took": took, "cpu": (time.process_time() - began_cpu) * 1e3 / _APPENDS}

    return append


def _following(before: Record, who: ParticipantId) -> Commit:
    revision = before.revision + 1
    command = CommandId(f"{before.state.room}-{revision}")
    outcome = Outcome(participant=who, outcome="unchanged")
    entry = Entry(
        before.state.room,
        revision,
        1_000.0 + revision,
        (HandSet(who, up=revision % 2 == 1, at=float(revision)),),
        begins_as=None if before.revision else before.state,
        command_id=command,
        audit=AuditEntry(command, 1_000.0 + revision, who, "force_mute", (who,), (outcome,)),
    )
    return Commit(entry, fold(before, entry))


def _adding(redis: Redis) -> Variant:
    room = RoomId(fresh_room())
    data = dump_entry(_following(Record(1, replace(MEETING, room=room)), ParticipantId("p0")).entry)

    async def add() -> Sample:
        took, began_cpu = [], time.process_time()
        for _ in range(_APPENDS):
            began_at = time.perf_counter()
            await redis.xadd("bare", {"d": data})
            took.append(ms_since(began_at))
        return {"took": took, "cpu": (time.process_time() - began_cpu) * 1e3 / _APPENDS}

    return add


# --- Nodes --------------------------------------------------------------------------------------------------------


class SpreadHost(Host):
    """Nodes on one store; the people of each meeting are spread evenly over them."""

    def __init__(self, hosts: Sequence[ModerationHost], redis: RedisServer | None) -> None:
        super().__init__(hosts[0].pid)
        self.hosts = hosts
        self.redis = redis

    def of(self, name: str) -> ModerationHost:
        """Where somebody with a number in their name connects to."""
        return self.hosts[int(name[1:]) % len(self.hosts)]

    async def connect(self, room: str, name: str) -> ClientConnection:
        return await self.of(name).connect(room, name)

    async def moderator(self, room: str, number: int) -> Listener:
        """Connect as a moderator."""
        name = f"m{number}"
        return Listener(await self.of(name).connect(room, name, role=Role.MODERATOR))

    async def until_left(self) -> None:
        for host in self.hosts:
            await host.until_left()

    def resident_kib(self) -> int:
        return sum(host.resident_kib() for host in self.hosts)

    def cpu_s(self) -> float:
        """Of all nodes, without Redis."""
        return sum(cpu_s(host.pid) for host in self.hosts)

    def redis_cpu_s(self) -> float:
        """Of Redis."""
        return 0 if self.redis is None else cpu_s(self.redis.pid)


@asynccontextmanager
async def _livekit() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(path=require(None), prometheus=True) as livekit:
        yield livekit


@asynccontextmanager
async def _spread(livekit: EmbeddedServer, count: int, *, sqlite: bool = False) -> AsyncIterator[SpreadHost]:
    """So many nodes on a Redis of their own, or one on SQLite."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        redis = None if sqlite else await stack.enter_async_context(RedisServer())
        hosts = []
        for _ in range(count):
            directory = Path(stack.enter_context(TemporaryDirectory()))
            chosen = {
                "MODERATION_RATE_PER_S": "10000",
                "MODERATION_RATE_BURST": "100000",
                "MODERATION_CONNECTIONS_PER_ADDRESS": "100000",
                **({} if redis is None else {"MODERATION_STORE_URL": redis.url}),
            }
            node = await stack.enter_async_context(serving(livekit, directory, **chosen))
            assert node._process is not None
            hosts.append(ModerationHost(node._process.pid, node.signaling_url, node.internal_url, http, livekit))
        yield SpreadHost(hosts, redis)


# --- Commands -----------------------------------------------------------------------------------------------------


async def _commands(hosts: Mapping[str, SpreadHost], options: Options) -> AsyncIterator[Row]:
    rooms = {name: [fresh_room() for _ in range(max(_at_once(options)))] for name in hosts}
    people = {name: await host.fill(dict.fromkeys(rooms[name], _LOADED_ROOM)) for name, host in hosts.items()}
    variants = {name: _loading(host, people[name], options) for name, host in hosts.items()}
    taken = await in_turns(variants, options.repeat)
    for name, host in hosts.items():
        await host.empty(people[name])
    what, cpu, redis = (
        "hands a second at p99 ≤ 50 ms",
        "CPU of a hand told to nine",
        "Redis' CPU of a hand told to nine",
    )
    for quantity, title, unit in (("rate", what, "/s"), ("cpu", cpu, "ms")):
        of = {name: each[quantity] for name, each in taken.items()}
        goal = Goal(2.2, at_least=True) if quantity == "rate" else None
        one = _row(title, _ONE, _LOADED_ROOM, unit, of[_ONE], of[_SQLITE], _ALIKE_SQLITE)
        three = _row(title, _THREE, _LOADED_ROOM, unit, of[_THREE], of[_ONE], _ALIKE_ONE, goal)
        yield replace(one, is_paired=True)
        yield replace(three, is_paired=True)
    yield _row(redis, _ONE, _LOADED_ROOM, "ms", taken[_ONE]["redis"])
    yield _row(redis, _THREE, _LOADED_ROOM, "ms", taken[_THREE]["redis"], taken[_ONE]["redis"], _ALIKE_ONE)


def _at_once(options: Options) -> tuple[int, ...]:
    """How many commands are on their way, each in a meeting of its own."""
    return (4, 8) if options.is_quick else (4, 8, 16, 32, 64)


def _loading(host: SpreadHost, people: Sequence[Listener], options: Options) -> Variant:
    """
    The most hands a second, of several loads, with which 99 of 100 are told in time to somebody on the same node.

    Which load that is is sought once; what is measured then are runs of their own, and a load that does not hold in one
    of them gives way to the next lower one. 0 if none does.
    """
    count, rooms = len(host.hosts), max(_at_once(options))
    # `fill` takes turns between the rooms: the people of one are so far apart.
    meetings = [people[number::rooms] for number in range(rooms)]
    words = [itertools.cycle(HANDS.items()) for _ in meetings]

    async def one(number: int, until: float, took: list[float]) -> None:
        sender, hearer = meetings[number][number % count], meetings[number][number % count + count]
        while time.perf_counter() < until:
            word, frame = next(words[number])
            heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            hearer.listen(word, lambda heard=heard: heard.set_result(None))  # type: ignore[misc]
            began_at = time.perf_counter()
            sender.send(frame)
            async with asyncio.timeout(LIMIT_S):
                await heard
            took.append(ms_since(began_at))

    async def run(at_once: int) -> tuple[float, Sample]:
        took: list[float] = []
        began_at, cpu, redis = time.perf_counter(), host.cpu_s(), host.redis_cpu_s()
        until = began_at + options.seconds / 3
        await asyncio.gather(*(one(number, until, took) for number in range(at_once)))
        rate, each = len(took) / (time.perf_counter() - began_at), 1e3 / len(took)
        cost = {"cpu": (host.cpu_s() - cpu) * each, "redis": (host.redis_cpu_s() - redis) * each}
        return quantiles(took, n=100)[-1], {"rate": rate, **cost}

    loads = list(_at_once(options))
    is_sought = True

    async def load() -> Sample:
        nonlocal is_sought
        if is_sought:  # in the round that does not count
            held = [at_once for at_once in loads if (await run(at_once))[0] <= _MOST_MS]
            loads[:] = held or loads[:1]
            is_sought = False
        while True:
            p99, found = await run(loads[-1])
            if p99 <= _MOST_MS:
                return found
            if len(loads) == 1:
                return {**found, "rate": 0.0}
            loads.pop()

    return load


async def _events(hosts: Mapping[str, SpreadHost], options: Options) -> AsyncIterator[Row]:
    n = max(options.rooms)
    people = {name: await host.fill({fresh_room(): n}) for name, host in hosts.items()}
    taken = await in_turns({name: telling(people[name], HANDS) for name in hosts}, options.repeat * 5)
    for name, host in hosts.items():
        await host.empty(people[name])
    last = {name: each["last"] for name, each in taken.items()}
    yield _row("event to the last", _ONE, n, "ms", last[_ONE], last[_SQLITE], _ALIKE_SQLITE)
    yield _row("event to the last", _THREE, n, "ms", last[_THREE], last[_ONE], _ALIKE_ONE, Goal(1.5))


async def _operations(hosts: Mapping[str, SpreadHost], options: Options) -> AsyncIterator[Row]:
    """What Redis is asked, and what it executes then, for each command."""
    for name, host in hosts.items():
        if host.redis is None:
            continue
        room = fresh_room()
        moderator, people = await host.moderator(room, 0), await host.fill({room: _LOADED_ROOM})
        for what, frames in (("hand", list(HANDS.items())), ("restriction", [(_RESTRICTED, _RESTRICT)])):
            sender = moderator if what == "restriction" else people[0]
            before = await _calls(host.redis)
            for word, frame in itertools.islice(itertools.cycle(frames), options.repeat * 4):
                await _tell([sender], [people[-1]], frame, word)
            after = await _calls(host.redis)
            for quantity, title in (("asked", "scripts and calls"), ("executed", "commands executed")):
                each = (after[quantity] - before[quantity]) / (options.repeat * 4)
                yield _row(f"Redis' {title} of a {what}", name, _LOADED_ROOM, "calls", [each])
        await host.empty([moderator, *people])


async def _calls(redis: RedisServer) -> dict[str, int]:
    async with Redis.from_url(redis.url) as client:
        stats = {
            name.removeprefix("cmdstat_"): each["calls"] for name, each in (await client.info("commandstats")).items()
        }
    return {"executed": sum(stats.values()), "asked": stats.get("evalsha", 0) + stats.get("eval", 0)}


# --- Many ---------------------------------------------------------------------------------------------------------


async def _storms(hosts: Mapping[str, SpreadHost], options: Options) -> AsyncIterator[Row]:
    joins, seconds = (80, 1.0) if options.is_quick else (800, 10.0)
    alone: dict[str, list[float]] = {name: [] for name in hosts}
    besides: dict[str, list[float]] = {name: [] for name in hosts}
    for _ in range(1 if options.is_quick else 2):
        for name, host in hosts.items():
            alone[name].append(await p99_of_echoes(host, 1))
            echoes = asyncio.create_task(p99_of_echoes(host, seconds))
            people = await _join_evenly(host, joins, seconds)
            besides[name].append(await echoes)
            await host.empty(people)
    for name in hosts:
        where = f"{joins} joins in {seconds:g} s, {name}"
        yield _row(
            "echo, p99", where, joins, "ms", besides[name], alone[name], "nobody else there", Goal(100, "measured")
        )


async def _join_evenly(host: SpreadHost, joins: int, seconds: float) -> list[Listener]:
    """People who come one after the other to meetings of 50, whether or not those before are in yet."""
    rooms = [fresh_room() for _ in range(max(joins // 50, 1))]
    began_at = time.perf_counter()

    async def join(number: int) -> Listener:
        await asyncio.sleep(max(0, began_at + number * seconds / joins - time.perf_counter()))
        return await host.enter(rooms[number % len(rooms)], f"p{number}")

    return list(await asyncio.gather(*map(join, range(joins))))


@dataclass(frozen=True, slots=True)
class _Crowd:
    """
    What so many people cost.

    Attributes:
        idle_ms: CPU of a thousand idle connections in a second.
        told_ms: Until everybody was told of the restriction of their meeting.
        delivery_ms: CPU of each of those events, what it takes to restrict included.
    """

    joins_per_s: float
    join_ms: float
    redis_join_ms: float
    kib: float
    idle_ms: float
    told_ms: list[float]
    delivery_ms: float


async def _crowds(livekit: EmbeddedServer, options: Options) -> AsyncIterator[Row]:
    n = min(options.many, max(options.rooms) * 40)
    found: dict[str, _Crowd] = {}
    for name, count in ((_SQLITE, 1), (_ONE, 1), (_THREE, _MANY)):
        async with _spread(livekit, count, sqlite=name == _SQLITE) as host:
            found[name] = await _crowd(host, n, options)
    size = _room_size(n)
    where = f"{n // size} rooms of {size}"
    for what, unit, of, goal in (
        ("joins a second", "/s", {name: [each.joins_per_s] for name, each in found.items()}, None),
        ("CPU of a join", "ms", {name: [each.join_ms] for name, each in found.items()}, None),
        ("a joined connection", "KiB", {name: [each.kib] for name, each in found.items()}, Goal(20, "measured")),
        ("CPU of 1,000 idle for 1 s", "ms", {name: [each.idle_ms] for name, each in found.items()}, None),
        ("one restriction in each, all told", "ms", {name: each.told_ms for name, each in found.items()}, None),
        ("CPU of telling one of them", "ms", {name: [each.delivery_ms] for name, each in found.items()}, None),
    ):
        yield _row(what, f"{where}, {_ONE}", n, unit, of[_ONE], of[_SQLITE], _ALIKE_SQLITE, goal)
        yield _row(what, f"{where}, {_THREE}", n, unit, of[_THREE], of[_ONE], _ALIKE_ONE)
    for name in (_ONE, _THREE):
        yield _row("Redis' CPU of a join", f"{where}, {name}", n, "ms", [found[name].redis_join_ms])


async def _crowd(host: SpreadHost, n: int, options: Options) -> _Crowd:
    size = _room_size(n)
    warm = await host.fill({fresh_room(): 40})
    await host.empty(warm)
    before_kib, cpu, redis = await steady_kib(host), host.cpu_s(), host.redis_cpu_s()
    rooms = {fresh_room(): size - 1 for _ in range(n // size)}
    began_at = time.perf_counter()
    moderators = await in_flight(AT_ONCE, [_moderating(host, room, number) for number, room in enumerate(rooms)])
    people = await host.fill(rooms)
    took_s = time.perf_counter() - began_at
    join_ms, redis_ms = (host.cpu_s() - cpu) * 1e3 / n, (host.redis_cpu_s() - redis) * 1e3 / n
    kib = (await steady_kib(host) - before_kib) / n
    idle_s, cpu = options.seconds, host.cpu_s()
    await asyncio.sleep(idle_s)
    idle_ms = (host.cpu_s() - cpu) * 1e6 / idle_s / n
    cpu = host.cpu_s()
    told = [await _tell(moderators, people, _RESTRICT, _RESTRICTED) for _ in range(options.repeat)]
    delivery_ms = (host.cpu_s() - cpu) * 1e3 / options.repeat / n
    for listener in (*moderators, *people):
        listener.abort()
    return _Crowd(n / took_s, join_ms, redis_ms, kib, idle_ms, told, delivery_ms)


def _moderating(host: SpreadHost, room: str, number: int) -> Callable[[], Awaitable[Listener]]:
    return lambda: host.moderator(room, number)


async def _tell(senders: Sequence[Listener], listeners: Sequence[Listener], frame: str, word: bytes) -> float:
    """Send all of these at once; how long until the last was told."""
    last: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = len(listeners)

    def hear() -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            last.set_result(None)

    for listener in listeners:
        listener.listen(word, hear)
    began_at = time.perf_counter()
    for sender in senders:
        sender.send(frame)
    async with asyncio.timeout(LIMIT_S):
        await last
    return ms_since(began_at)


def _room_size(n: int) -> int:
    return max(n // 100, 10)


def _row(
    what: str,
    where: str,
    n: int,
    unit: str,
    measured: Sequence[float],
    baseline: Sequence[float] = (),
    baseline_is: str = "-",
    goal: Goal | None = None,
) -> Row:
    return Row(
        benchmark="nodes",
        what=what,
        where=where,
        n=n,
        unit=unit,
        measured=measured,
        baseline=baseline,
        baseline_is=baseline_is,
        goal=goal,
    )
