"""Several modules on one store in a loop whose time jumps: clients ask, the store fails, nodes go, all is recorded."""

import asyncio
import random
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import aiohttp
import structlog
import tenacity

from signaling import (
    Delivery,
    ModerationModule,
    Participant,
    ParticipantBanned,
    Role,
    Session,
    SessionEnded,
    Settings,
    StoreError,
)
from signaling.identifiers import CommandId, NodeId, ParticipantId, RoomId
from signaling.stores.contract import (
    AuditEntry,
    Commit,
    Entry,
    FaultListener,
    Kept,
    Listener,
    Record,
    Store,
    Turn,
)
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.participants import JoinRefused, PublishRefused
from tests.histories.recording import History
from tests.timeless import Direct, TimelessLoop

ROOM: Final = RoomId("standup")
BEGAN_AT: Final = 1_000_000.0
"""Small enough for a clock that also counts."""
_TICK_S: Final = 1e-7
WATCHER: Final = "olga"
"""Who stays until the end, so that the meeting does."""
PEOPLE: Final = {
    "alice": Role.MODERATOR,
    "mia": Role.MODERATOR,
    "bob": Role.USER,
    "carol": Role.USER,
    "dave": Role.USER,
}


class LinkedStore(Store):
    """
    What one node has of a store that others have too: it answers late, fails, and is cut off, as told.

    Attributes:
        loses_before: How likely it is that an append fails, and nothing was written.
        loses_after: How likely it is that an append was written, and its answer is lost.
        takes_s: How long it takes at most until something is done, and again until that is known.
        lags_s: How long after a commit of somebody else it is heard of here at most, unless one of ours follows it.
    """

    def __init__(self, shared: Store, chance: random.Random) -> None:
        self._shared = shared
        self._chance = chance
        self._listeners: list[Listener] = []
        self._unheard: deque[Commit] = deque()
        self._is_ours = False
        self.loses_before = 0.0
        self.loses_after = 0.0
        self.takes_s = 0.0
        self.lags_s = 0.0
        self.is_cut_off = False
        shared.listen(self._on_commit)

    def _on_commit(self, commit: Commit) -> None:
        self._unheard.append(commit)
        if self._is_ours or not self.lags_s:
            self._hear(commit)
        else:
            lags_s = self._chance.random() * self.lags_s
            asyncio.get_running_loop().call_later(lags_s, self._hear, commit)

    def _hear(self, commit: Commit) -> None:
        """Hear of a commit, and of all before it."""
        while commit in self._unheard:
            heard = self._unheard.popleft()
            for listener in [] if self.is_cut_off else self._listeners:
                listener(heard)

    @property
    def lease_s(self) -> float:
        return self._shared.lease_s

    async def _reach(self) -> None:
        if self.takes_s:
            await asyncio.sleep(self._chance.random() * self.takes_s)
        if self.is_cut_off:
            raise StoreError("nobody answers")

    async def open(self) -> None:
        await self._reach()
        await self._shared.open()

    async def close(self) -> None:
        await self._shared.close()

    async def check(self) -> None:
        await self._reach()

    async def rooms(self) -> tuple[RoomId, ...]:
        await self._reach()
        return await self._shared.rooms()

    async def read(self, room: RoomId) -> Record | None:
        await self._reach()
        return await self._shared.read(room)

    def known(self, room: RoomId) -> Record | None:  # noqa: ARG002 - whichever it is
        return None  # it hears late, and nothing here tells two meetings of one name apart

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        await self._reach()
        if self._chance.random() < self.loses_before:
            raise StoreError("it did not get there")
        self._is_ours = True
        try:
            is_written = await self._shared.append(commit, fence=fence)
        finally:
            self._is_ours = False
        if self._chance.random() < self.loses_after:
            raise StoreError("the answer was lost")
        await self._reach()
        return is_written

    async def entries(self, room: RoomId, after: int) -> tuple[Entry, ...] | None:
        await self._reach()
        return await self._shared.entries(room, after)

    async def forget(self, room: RoomId, revision: int) -> bool:
        await self._reach()
        return await self._shared.forget(room, revision)

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        await self._reach()
        return await self._shared.audit(room, limit=limit, before=before)

    async def audited(self, room: RoomId, command_id: CommandId) -> AuditEntry | None:
        await self._reach()
        return await self._shared.audited(room, command_id)

    async def keep_once(self, kind: Kept, key: str, *, until: float, now: float) -> bool:
        await self._reach()
        return await self._shared.keep_once(kind, key, until=until, now=now)

    async def keep_no_longer(self, kind: Kept, key: str) -> None:
        await self._reach()
        await self._shared.keep_no_longer(kind, key)

    async def kept(self, kind: Kept, *, now: float) -> dict[str, float]:
        await self._reach()
        return await self._shared.kept(kind, now=now)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def listen_to_faults(self, listener: FaultListener) -> None:
        self._shared.listen_to_faults(listener)

    def follow(self, room: RoomId) -> None:
        self._shared.follow(room)

    def unfollow(self, room: RoomId) -> None:
        self._shared.unfollow(room)

    async def time(self) -> float | None:
        return await self._shared.time()

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[Turn]:
        return self._shared.turn(room)

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        await self._reach()
        return await self._shared.beat(node, until=until, now=now)

    async def left_alone(self) -> tuple[RoomId, ...]:
        await self._reach()
        return await self._shared.left_alone()

    async def look_after(self, room: RoomId, node: NodeId, *, now: float) -> bool:
        await self._reach()
        return await self._shared.look_after(room, node, now=now)


class Node:
    """One process, as far as the module can tell."""

    def __init__(self, name: str, module: ModerationModule, store: LinkedStore) -> None:
        self.name = name
        self.module = module
        self.store = store
        self.connections: dict[int, Session] = {}


class Nodes:
    """
    Modules on one store, and what their clients see.

    Args:
        seed: What chance makes of it; though a set is gone through in another order in each process.
    """

    livekit_timeout_s = 2.0

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - the same again, which no secret may be
        self.history = History()
        self.nodes: list[Node] = []
        self._ticks = 0
        self._names = 0
        self._transactions = 0
        self.command_ids: list[str] = []
        self.requests: dict[str, str] = {}
        self.wrong: list[str] = []
        self.stack = ExitStack()
        self.logs = self.stack.enter_context(structlog.testing.capture_logs())
        self.loop = self._loop()
        self.loop.set_exception_handler(lambda _, context: self.wrong.append(f"{context}"))

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = TimelessLoop()
        self.store = MemoryStore()
        self.store.listen(self._on_commit)
        self.stack.enter_context(patch.object(tenacity, "time", SimpleNamespace(monotonic=loop.time)))
        return loop

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401
        return self.loop.run_until_complete(work)

    def clock(self) -> float:
        return BEGAN_AT + self.loop.time()

    def now(self) -> float:
        """By the same clock, and never the same twice: what was first is known though no time passes."""
        self._ticks += 1
        return self.clock() + self._ticks * _TICK_S

    def _on_commit(self, commit: Commit) -> None:
        self.history.committed(commit.entry, at=self.now())

    def _shared(self) -> Store:
        """What a node has of the store."""
        return self.store

    def _connector(self) -> aiohttp.BaseConnector:
        """A node's way to LiveKit."""
        return Direct(self.fake)

    # --- Processes -----------------------------------------------------------------------------------------------

    async def open(self, count: int = 3) -> None:
        """So many nodes begin."""
        self.fake = await FakeRoomService().__aenter__()
        for _ in range(count):
            await self.start()

    async def start(self) -> Node:
        """One node more."""
        self._names += 1
        store = LinkedStore(self._shared(), self.chance)
        settings = Settings(
            livekit_url=self.fake.url,
            livekit_api_key=self.fake.api_key,
            livekit_api_secret=self.fake.api_secret,
            moderation_livekit_timeout_s=self.livekit_timeout_s,
        )
        module = ModerationModule(settings, store=store, clock=self.clock)
        with patch.object(aiohttp, "TCPConnector", lambda **_: self._connector()):
            await module.__aenter__()
        node = Node(f"node-{self._names}", module, store)
        self.nodes.append(node)
        return node

    async def cut_off(self, node: Node) -> None:
        """A node is gone, in the middle of whatever it did: none of its calls reaches the store any more."""
        self.nodes.remove(node)
        for number in node.connections:
            self._has_ended(number, None)
        node.store.is_cut_off = True
        await node.module.__aexit__(None, None, None)

    def close(self) -> None:
        """End everything; what was left running, or raised, is wrong."""
        self.run(self.end())
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        self.stack.close()
        assert not left
        assert not self.wrong

    async def end(self) -> None:
        """The nodes end, as they should."""
        for node in list(self.nodes):
            await node.module.__aexit__(None, None, None)
        await self.fake.__aexit__(None, None, None)
        await asyncio.sleep(1)

    async def become_quiet(self) -> None:
        """Nothing fails any more, and what was begun comes to its end."""
        for node in self.nodes:
            node.store.loses_before = node.store.loses_after = 0.0
        await self.settle()
        await self.join(WATCHER, self.nodes[0])
        await self.settle()
        entries = await self.nodes[0].store.audit(ROOM, limit=10_000)
        self.history.audited(ROOM, reversed(entries))

    async def settle(self) -> None:
        """Wait for what goes on by itself."""
        await asyncio.sleep(100)

    # --- Clients -------------------------------------------------------------------------------------------------

    async def join(self, who: str, node: Node) -> int | None:
        """Somebody joins on a node; the number of the session, `None` if it came to nothing."""
        number = self.history.joining(ROOM, who, at=self.now(), node=node.name)

        def deliver(delivery: Delivery) -> None:
            if node.store.is_cut_off:
                return
            self._note(who, delivery)
            self.history.delivered(number, delivery.namespace, delivery.payload, delivery.transaction_id, at=self.now())

        role = PEOPLE.get(who, Role.MODERATOR)
        participant = Participant(ParticipantId(who), role=role, display_name=who.title())
        extensions = frozenset({"livekit_moderation", "control"})
        try:
            session = await node.module.join(ROOM, participant, deliver=deliver, extensions=extensions)
        except ParticipantBanned:
            if not node.store.is_cut_off:
                self.history.kept_out(number, "banned", at=self.now())
            return None
        except (StoreError, SessionEnded):
            return None
        if node.store.is_cut_off:
            return None
        self.history.joined(number, at=self.now(), key=session.key, revision=session._since)
        node.connections[number] = session
        session.ended.add_done_callback(
            lambda ended: None if ended.cancelled() else self._has_ended(number, ended.result())
        )
        self._enter_livekit(who, session)
        return number

    def _has_ended(self, number: int, why: str | None) -> None:
        if self.history.sittings[number].ended_at is None:
            self.history.ended(number, why, at=self.now())

    def _note(self, who: str, delivery: Delivery) -> None:
        if (command_id := delivery.payload.get("command_id")) is not None:
            self.command_ids.append(command_id)
        if delivery.payload["message"] == "unmute_requested":
            self.requests[who] = delivery.payload["request_id"]

    def _enter_livekit(self, who: str, session: Session) -> None:
        data = session.join_data
        if data is None or self.chance.random() < 0.3:
            return
        with suppress(JoinRefused, PublishRefused):
            self.fake.join(str(data["room"]), who, token=str(data["token"]))
            self.fake.publish(str(data["room"]), who, "microphone", muted=self.chance.random() < 0.3)

    async def ask(self, number: int, node: Node, namespace: str, payload: dict[str, Any]) -> None:
        """Somebody sends a command."""
        session = node.connections[number]
        self._transactions += 1
        self.history.asked(number, namespace, payload, transaction_id=self._transactions, at=self.now())
        await session.receive(namespace, payload, self._transactions)

    async def leave(self, number: int, node: Node, how: str) -> None:
        """Somebody goes, or loses their connection."""
        session = node.connections[number]
        self._has_ended(number, None)
        with suppress(StoreError):
            await (session.leave() if how == "leave" else session.disconnect())


# --- What is done, by chance -------------------------------------------------------------------------------------


def some_command(
    chance: random.Random, command_ids: Sequence[str], request_id: str = "none"
) -> tuple[str, dict[str, Any]]:
    """A command, and its namespace; perhaps about a command or a question that is known."""
    people = chance.sample([*PEOPLE, "zoe"], chance.choice([1, 1, 2]))
    source = chance.choice(["camera", "microphone", "screen_share"])
    target = chance.choice(list(PEOPLE))
    known = chance.choice(command_ids[-4:] or ["none"])
    livekit: list[dict[str, Any]] = [
        {"action": "force_mute", "participants": people},
        {"action": "grant_screen_share_permission", "participants": people},
        {"action": "revoke_screen_share_permission", "participants": people},
        {"action": "enable_microphone_restrictions", "unrestricted_participants": people},
        {"action": "disable_microphone_restrictions"},
        {"action": "request_popout_stream_access_token"},
    ]
    moderation: list[dict[str, Any]] = [
        {"action": "restrict", "source": source, "allowed": people},
        {"action": "restrict", "source": source, "expires_in_s": 1},
        {"action": "unrestrict", "source": source},
        {"action": "allow", "source": source, "participants": people},
        {"action": "disallow", "source": source, "participants": people},
        {"action": "mute", "participants": people, "sources": ["microphone"], "hold_s": 2},
        {"action": "mute", "everyone_except": people, "sources": ["microphone"]},
        {"action": "stop", "source": source, "participants": people},
        {"action": "set_presenter", "participant": target},
        {"action": "set_presenter"},
        {"action": "ask_to_unmute", "participants": people},
        {"action": "answer_unmute_request", "request_id": request_id, "accept": chance.random() < 0.7},
        {"action": "kick", "participants": [target], "ban": chance.random() < 0.3},
        {"action": "unban", "participants": list(PEOPLE)},
        {"action": "undo", "command_id": known},
        {"action": "undo", "command_id": known},
    ]
    control: list[dict[str, Any]] = [
        {"action": "raise_hand"},
        {"action": "lower_hand"},
        {"action": "lower_hand", "target": target},
        {"action": "grant_moderator_role", "target": target},
        {"action": "revoke_moderator_role", "target": target},
    ]
    chosen = chance.choices([("livekit", livekit), ("livekit_moderation", moderation), ("control", control)], [4, 9, 4])
    namespace, commands = chosen[0]
    return namespace, chance.choice(commands)


async def act(nodes: Nodes, who: str, times: int) -> None:
    """What one person does: joins somewhere, asks for this and that, goes, and comes back elsewhere."""
    chance = nodes.chance
    number, node = None, chance.choice(nodes.nodes)
    for _ in range(times):
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01, 0.05]))
        if (
            number is None
            or number not in node.connections
            or node.connections[number].is_over
            or node not in nodes.nodes
        ):
            node = chance.choice(nodes.nodes)
            number = await nodes.join(who, node)
            continue
        if chance.random() < 0.06:
            await nodes.leave(number, node, chance.choice(["leave", "disconnect"]))
            number = None
            continue
        if chance.random() < 0.06:
            older, older_node = number, node
            node = chance.choice(nodes.nodes)
            joining = asyncio.ensure_future(nodes.join(who, node))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.choice([0, 0.001, 0.01]))
                await nodes.leave(older, older_node, chance.choice(["leave", "disconnect"]))
            number = await joining
            continue
        asking = asyncio.ensure_future(
            nodes.ask(number, node, *some_command(chance, nodes.command_ids, nodes.requests.get(who, "none")))
        )
        patience_s = chance.choice([None, None, None, None, 0, 0.005])
        await asyncio.wait({asking}, timeout=patience_s)
        if not asking.done() and chance.random() < 0.5:
            asking.cancel()  # the client is gone, and what it asked for goes on


async def misbehave(nodes: Nodes, *, cuts: int) -> None:
    """Nodes are cut off, and others take their place."""
    for _ in range(cuts):
        await asyncio.sleep(nodes.chance.random() * 0.3)
        await nodes.cut_off(nodes.chance.choice(nodes.nodes))
        await nodes.start()


def some_history(seed: int, *, times: int = 30, faults: bool = True) -> History:
    """What comes of some people on some nodes."""
    nodes = Nodes(seed)
    try:
        nodes.run(happen(nodes, times=times, faults=faults))
    finally:
        nodes.close()
    return nodes.history


async def happen(nodes: Nodes, *, times: int, faults: bool) -> None:
    """People come, ask and go, perhaps while nodes are lost and answers are."""
    await nodes.open()
    await nodes.join(WATCHER, nodes.nodes[0])
    for node in nodes.nodes:
        node.store.takes_s = nodes.chance.choice([0, 0.001, 0.01])
        node.store.lags_s = nodes.chance.choice([0, 0, 0.03])
        if faults:
            node.store.loses_before = node.store.loses_after = nodes.chance.choice([0, 0.02, 0.1])
    doing: list[Coroutine[Any, Any, None]] = [act(nodes, who, times) for who in PEOPLE]
    if faults:
        doing.append(misbehave(nodes, cuts=nodes.chance.choice([0, 1, 2])))
    await asyncio.gather(*doing)
    await nodes.become_quiet()
