"""Several modules on one real Redis, in real time: their ways to it break, one is killed and one stands still."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final
from unittest.mock import patch

import aiohttp
import structlog
from aiohttp.tracing import Trace

import signaling.stores.redis.turns
from signaling.stores.contract import Commit, Store
from signaling.stores.redis import RedisStore, scripts
from signaling.testing.redis_server import RedisServer
from tests.fault_proxy import FaultProxy
from tests.histories.checking import nothing_left_staged, told_in_order
from tests.histories.nodes import PEOPLE, ROOM, WATCHER, Node, Nodes, act
from tests.histories.recording import History
from tests.processes import Process, RealProcessesLoop
from tests.timeless import Direct

LEASE_S: Final = 1.2
"""So short that turns are taken over in a test."""
STALLS_S: Final = LEASE_S + 0.3
"""How long a node stands still, or is not reached: somebody else has its turn by then."""
STAGED: Final = b'"staging":{"staging":"staged"'
SETTLES_S: Final = 20.0
LASTS_S: Final = 60.0


def commits(request: bytes) -> bool:
    """Whether something is to be committed."""
    return scripts.APPEND.sha.encode() in request or scripts.APPEND.text.encode() in request


def stages(request: bytes) -> bool:
    """Whether it is to be written down what LiveKit is about to be asked."""
    return commits(request) and STAGED in request


class _Line(Direct):
    """A node's way to LiveKit, which a node that is gone does not have."""

    is_cut = False

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - as aiohttp has it
    ) -> aiohttp.connector.Connection:
        if self.is_cut:
            raise aiohttp.ClientConnectionError("nobody is there who could")
        return await super().connect(req, traces, timeout)


class _Place:
    """Where a node runs: its process, and its ways to Redis and LiveKit."""

    def __init__(self, process: Process, proxy: FaultProxy) -> None:
        self.process = process
        self.proxy = proxy
        self.lines: list[_Line] = []
        self.gone = asyncio.Event()


class NodesOnRedis(Nodes):
    """
    Modules on one Redis, each a process of its own as far as it can tell, with a proxy before Redis.

    Attributes:
        places: Where each node runs, also those that are gone.
    """

    livekit_timeout_s = LEASE_S / 2

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.places: dict[Node, _Place] = {}
        self._place: _Place | None = None
        self._gone: list[Node] = []
        self.stack.enter_context(patch.object(signaling.stores.redis.turns, "LEASE_S", LEASE_S))
        self.stack.enter_context(patch.object(RedisStore, "lease_s", LEASE_S))

    def _loop(self) -> asyncio.AbstractEventLoop:
        return RealProcessesLoop()

    def clock(self) -> float:
        return time.time()

    def _on_commit(self, commit: Commit) -> None:
        self.history.committed(commit.entry)  # it is heard of when it was written, and not before

    def _shared(self) -> Store:
        assert self._place is not None
        return RedisStore(f"redis://127.0.0.1:{self._place.proxy.port}/0")

    def _connector(self) -> aiohttp.BaseConnector:
        assert self._place is not None
        self._place.lines.append(line := _Line(self.fake))
        return line

    # --- Processes -----------------------------------------------------------------------------------------------

    async def open(self, count: int = 3) -> None:
        self.redis = await RedisServer().__aenter__()
        self.observer = RedisStore(self.redis.url)
        await self.observer.open()
        self.observer.listen(self._on_commit)
        self.observer.follow(ROOM)
        await self.observer.read(ROOM)
        await super().open(count)

    async def start(self) -> Node:
        proxy = await FaultProxy(self.redis.port, seed=len(self.places)).__aenter__()
        self._place = place = _Place(Process(self.loop), proxy)
        node = await self.loop.create_task(super().start(), context=place.process.context)
        self.places[node] = place
        return node

    async def cut_off(self, node: Node) -> None:
        """A node is killed: nothing of it runs any more, and its connections are gone."""
        place = self.places[node]
        self.nodes.remove(node)
        self._gone.append(node)
        node.store.is_cut_off = True
        place.process.stand_still()
        place.proxy.refuse()
        place.proxy.drop()
        for line in place.lines:
            line.is_cut = True
        for number in node.connections:
            self._has_ended(number, None)
        place.gone.set()

    async def end(self) -> None:
        for node in self._gone:
            self.places[node].process.bury()
        for node, place in self.places.items():
            await self.loop.create_task(node.module.__aexit__(None, None, None), context=place.process.context)
        for place in self.places.values():
            await place.proxy.__aexit__(None, None, None)
        await self.observer.close()
        await self.redis.__aexit__(None, None, None)
        self.nodes.clear()
        await super().end()

    # --- Clients -------------------------------------------------------------------------------------------------

    async def join(self, who: str, node: Node) -> int | None:
        return await self._within(node, super().join(who, node))

    async def ask(self, number: int, node: Node, namespace: str, payload: dict[str, Any]) -> None:
        await self._within(node, super().ask(number, node, namespace, payload))

    async def leave(self, number: int, node: Node, how: str) -> None:
        await self._within(node, super().leave(number, node, how))

    async def _within(self, node: Node, work: Coroutine[Any, Any, int | None]) -> int | None:
        """What is done by a node, for as long as that is there."""
        place = self.places[node]
        doing = self.loop.create_task(work, context=place.process.context)
        going = asyncio.ensure_future(place.gone.wait())
        try:
            await asyncio.wait({doing, going}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            going.cancel()
        return doing.result() if doing.done() else None

    # --- Until all is over ---------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Wait until nothing goes on any more; if something is wrong for good, the checks are to find it."""
        try:
            async with asyncio.timeout(SETTLES_S):
                while not self._is_quiet():  # noqa: ASYNC110 - nobody announces it
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return

    def _is_quiet(self) -> bool:
        meetings = [node.module._entered.meetings.get(ROOM) for node in self.nodes]
        is_working = any(meeting is not None and len(meeting.tasks) > 1 for meeting in meetings)
        return not is_working and not [*nothing_left_staged(self.history), *told_in_order(self.history)]


# --- What goes wrong -------------------------------------------------------------------------------------------------


async def _break(nodes: NodesOnRedis, node: Node) -> None:
    """A node's way to Redis breaks, again and again."""
    proxy, chance = nodes.places[node].proxy, nodes.chance
    while True:
        await asyncio.sleep(chance.random() * 2)
        match chance.choice(["drop", "delay", "halve", "halve an answer", "lose an answer", "lose an answer"]):
            case "drop":
                proxy.drop()
            case "delay":
                proxy.delay(chance.random() * 0.02, chance.random() * 0.02)
            case "halve":
                proxy.halve()
            case "halve an answer":
                proxy.halve(answers=True)
            case _:
                proxy.lose_answer(commits)


async def _in_a_turn(nodes: NodesOnRedis) -> Node:
    """Wait until a node is in the middle of a turn, in which LiveKit may have been asked: which one."""
    asking = {asyncio.ensure_future(nodes.places[node].proxy.until_asked(stages)): node for node in nodes.nodes}
    try:
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        return asking[done.pop()]
    finally:
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def _trouble(nodes: NodesOnRedis) -> None:
    async def freeze(node: Node) -> None:
        nodes.places[node].process.stand_still(STALLS_S)
        await asyncio.sleep(STALLS_S)

    async def stall(node: Node) -> None:
        nodes.places[node].proxy.stall()
        await asyncio.sleep(STALLS_S)
        await nodes.places[node].proxy.heal()

    async def kill(node: Node) -> None:
        await nodes.cut_off(node)
        await nodes.start()

    troubles = [freeze, stall, kill]
    nodes.chance.shuffle(troubles)
    for each in troubles:
        await asyncio.sleep(nodes.chance.random() * 0.5)
        await each(await _in_a_turn(nodes))


async def _happen(nodes: NodesOnRedis, *, times: int) -> None:
    await nodes.open()
    await nodes.join(WATCHER, nodes.nodes[0])
    breaking = [asyncio.ensure_future(_break(nodes, node)) for node in nodes.nodes]
    troubling = asyncio.ensure_future(_trouble(nodes))

    async def act_on(who: str) -> None:
        await act(nodes, who, times)
        while not troubling.done():
            await act(nodes, who, 5)

    async with asyncio.timeout(LASTS_S):
        await asyncio.gather(troubling, *map(act_on, PEOPLE))
    for each in breaking:
        each.cancel()
    await asyncio.gather(*breaking, return_exceptions=True)
    for node in nodes.nodes:
        await nodes.places[node].proxy.heal()
    await nodes.become_quiet()


def history_on_redis(seed: int, *, times: int = 20) -> tuple[History, list[structlog.typing.EventDict]]:
    """What comes of some people on some nodes, and what was logged meanwhile."""
    nodes = NodesOnRedis(seed)
    try:
        nodes.run(_happen(nodes, times=times))
    finally:
        nodes.close()
    return nodes.history, list(nodes.logs)
