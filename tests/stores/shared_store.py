"""
A store of several nodes within one process: what each node sees of it does as the one on Redis does, and goes wrong.

The tests of the contract hold for it too. What a schedule asks to go wrong does so at the operation of that number.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any, TypeVar

from signaling.errors import StoreError, TurnLost
from signaling.identifiers import CommandId, NodeId, RoomId
from signaling.stores.contract import (
    AuditEntry,
    Commit,
    Entry,
    FaultListener,
    Kept,
    Listener,
    Record,
    Store,
    fold,
)
from signaling.stores.memory import MemoryStore
from tests.processes import Process

Result = TypeVar("Result")
LEASE_S = 6.0
"""How long a turn is kept by who is not heard of."""
RETRY_S = 0.2
"""After how long something is asked for again of which the answer was lost."""


class Trouble(Enum):
    """What goes wrong with an operation, or at it."""

    FAILS = "it fails before it has happened"
    IS_REPEATED = "it happens, its answer is lost, and it is asked for again by the same id"
    IS_UNANSWERED = "it happens, and its answer is lost for good"
    STOPS = "the node stands still before it is asked for"
    STOPS_AFTER = "the node stands still before it has the answer"
    DIES = "the node is gone before it is asked for"
    DIES_AFTER = "the node is gone before it has the answer"
    LOSES_LINK = "the node does not get through to the store from then on"


@dataclass(frozen=True, slots=True)
class Planned:
    """Something that goes wrong, and for how long where that matters."""

    trouble: Trouble
    lasts_s: float = 0.0


class Link:
    """
    What is between a node and the others: operations take a while, and go wrong as it is planned, by their number.

    Args:
        process: The node, `None` where it cannot stand still.
        takes_s: How long an operation takes.
    """

    def __init__(self, process: Process | None = None, *, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.steps = 0
        self.planned: dict[int, Planned] = {}
        self.happened: list[tuple[int, str, Planned]] = []
        self.is_cut = False
        self.on_loss: list[Callable[[], None]] = []
        self.on_return: list[Callable[[], None]] = []
        self._process = process
        self._losses = 0

    @property
    def is_away(self) -> bool:
        """Whether nothing gets through."""
        return self.is_cut or self._losses > 0

    async def carry(self, name: str, work: Callable[[], Awaitable[Result]], *, to_store: bool = True) -> Result:
        """Have an operation done; what goes wrong with the store alone is left to the next that is one of its."""
        planned = self._next(name, to_store=to_store)
        trouble = None if planned is None else planned.trouble
        if planned is not None and trouble is Trouble.STOPS:
            await self._stand_still(planned.lasts_s)
        elif trouble is Trouble.DIES:
            await self._stand_still(None)
        elif planned is not None and trouble is Trouble.LOSES_LINK:
            self.lose(planned.lasts_s)
        await asyncio.sleep(self.takes_s)
        self._check(to_store)
        if trouble is Trouble.FAILS:
            raise StoreError(f"{name} has failed")
        result = await work()
        if planned is not None and trouble is Trouble.STOPS_AFTER:
            await self._stand_still(planned.lasts_s)
        elif trouble is Trouble.DIES_AFTER:
            await self._stand_still(None)
        elif trouble is Trouble.IS_UNANSWERED:
            await asyncio.sleep(RETRY_S)
            raise StoreError(f"{name} was not answered")
        elif trouble is Trouble.IS_REPEATED:
            await asyncio.sleep(RETRY_S)
            self._check(to_store)
        await asyncio.sleep(self.takes_s)
        self._check(to_store)
        return result

    def _next(self, name: str, *, to_store: bool) -> Planned | None:
        self.steps += 1
        planned = self.planned.pop(self.steps, None)
        if planned is None:
            return None
        is_any = planned.trouble.name.startswith(("STOPS", "DIES"))
        if (not to_store and not is_any) or (is_any and self._process is None):
            self.planned[self.steps + 1] = planned
            return None
        self.happened.append((self.steps, name, planned))
        return planned

    def _check(self, to_store: bool) -> None:  # noqa: FBT001
        if to_store and self.is_away:
            raise StoreError("the store is out of reach")
        if self.is_cut:
            raise ConnectionResetError("whoever asks is gone")

    async def _stand_still(self, for_s: float | None) -> None:
        assert self._process is not None
        self._process.stand_still(for_s)
        self.is_cut = for_s is None
        await asyncio.sleep(0)

    def lose(self, for_s: float) -> None:
        """Nothing gets through to the store for so long."""
        self._losses += 1
        for listener in self.on_loss:
            listener()
        asyncio.get_running_loop().call_later(for_s, self._return, context=Context())

    def _return(self) -> None:
        self._losses -= 1
        if not self.is_away:
            for listener in self.on_return:
                listener()


# --- What all nodes share ----------------------------------------------------------------------------------------


@dataclass
class _Granted:
    """A turn, as the store knows it."""

    fence: int
    asked_by: object
    at: float
    is_taken_over: bool
    until: float = 0.0


@dataclass
class _Line:
    """The turn of a meeting, and who waits for it."""

    held: _Granted | None = None
    waiting: deque[tuple[object, "asyncio.Future[_Granted]"]] = field(default_factory=deque)
    was_abandoned: bool = False


class Leases:
    """The turns of all meetings: each is over when its holder says so, or is not heard of."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self.checks_fences = True
        self._lines: defaultdict[RoomId, _Line] = defaultdict(_Line)
        self._fences = count(1)

    def ask(self, room: RoomId, asked_by: object) -> "asyncio.Future[_Granted]":
        """Get into the line."""
        line = self._lines[room]
        future: asyncio.Future[_Granted] = asyncio.get_running_loop().create_future()
        line.waiting.append((asked_by, future))
        self._grant(room)
        return future

    def renew(self, room: RoomId, fence: int) -> bool:
        """Keep a turn; whether it was still held."""
        held = self._lines[room].held
        if held is None or held.fence != fence:
            return False
        self._extend(room, held)
        return True

    def give_up(self, room: RoomId, asked_by: object) -> None:
        """Leave the line, or let go of the turn."""
        line = self._lines[room]
        line.waiting = deque(each for each in line.waiting if each[0] is not asked_by)
        if line.held is not None and line.held.asked_by is asked_by:
            line.held = None
            self._grant(room)

    def check(self, room: RoomId, fence: int | None) -> None:
        """Raises `TurnLost` if that turn is over."""
        held = self._lines[room].held
        if self.checks_fences and fence is not None and (held is None or held.fence != fence):
            raise TurnLost(f"the turn of {room} is over")

    def _extend(self, room: RoomId, held: _Granted) -> None:
        loop = asyncio.get_running_loop()
        held.until = loop.time() + self.lease_s
        loop.call_at(held.until, self._expire, room, held, context=Context())

    def _expire(self, room: RoomId, held: _Granted) -> None:
        line = self._lines[room]
        if line.held is held and held.until <= asyncio.get_running_loop().time():
            line.held = None
            line.was_abandoned = True
            self._grant(room)

    def _grant(self, room: RoomId) -> None:
        line = self._lines[room]
        if line.held is None and line.waiting:
            asked_by, future = line.waiting.popleft()
            line.held = held = _Granted(
                next(self._fences), asked_by, asyncio.get_running_loop().time(), line.was_abandoned
            )
            line.was_abandoned = False
            self._extend(room, held)
            if not future.done():
                future.set_result(held)


class Shared:
    """
    What the nodes share.

    Args:
        notice_s: After how long a node hears of what another one has committed.
    """

    def __init__(self, *, audit_entries: int = 10_000, lease_s: float = LEASE_S, notice_s: float = 0.0) -> None:
        self.kept = MemoryStore(audit_entries=audit_entries)
        self.leases = Leases(lease_s)
        self.history: defaultdict[RoomId, list[Commit]] = defaultdict(list)
        """Every commit that was ever made, also of meetings that are forgotten."""
        self.beats: defaultdict[NodeId, list[tuple[float, frozenset[NodeId]]]] = defaultdict(list)
        """When each node said that it lives, and who else did by then, as the store counts."""
        self.views: list[SharedStore] = []
        self._notice_s = notice_s

    async def append(self, commit: Commit, fence: int | None) -> bool:
        """Append an entry, if it is the next and its turn goes on."""
        room = commit.entry.room
        self.leases.check(room, fence)
        if not await self.kept.append(commit):
            return False
        self.history[room].append(commit)
        for view in self.views:
            asyncio.get_running_loop().call_later(self._notice_s, view.hear, room, context=view.context)
        return True

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        """A node lives."""
        alive = await self.kept.beat(node, until=until, now=now)
        self.beats[node].append((asyncio.get_running_loop().time(), alive))
        return alive


# --- What a node sees --------------------------------------------------------------------------------------------


class _Held:
    """A turn, as its holder knows it."""

    def __init__(self, granted: _Granted, lease_s: float) -> None:
        self.fence = granted.fence
        self.is_taken_over = granted.is_taken_over
        self.lease_s = lease_s
        self.is_lost = False
        self.renewed_at = granted.at

    def lasts(self, for_s: float) -> bool:
        """Whether nobody else can have the turn within that time."""
        now = asyncio.get_running_loop().time()
        return not self.is_lost and now + for_s < self.renewed_at + self.lease_s


@dataclass
class _Followed:
    """How far a node has been told of a meeting; nowhere before it has read it."""

    position: int | None = None
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What a node has found: commits from a position on, and whether the meeting is kept."""

    position: int
    commits: tuple[Commit, ...]
    kept: Record | None


class SharedStore(Store):
    """
    The store as one node sees it.

    Args:
        shared: What is the same for all of them.
        link: To there.
        clock: Seconds since the epoch, for all nodes alike; the event loop's if left out.
    """

    def __init__(self, shared: Shared, link: Link | None = None, *, clock: Callable[[], float] | None = None) -> None:
        self.link = Link() if link is None else link
        self.link.on_loss.append(self._on_loss)
        self.link.on_return.append(self._on_return)
        self.context = copy_context()
        self._shared = shared
        self._clock = clock
        self._listeners: list[Listener] = []
        self._followed: dict[RoomId, _Followed] = {}
        self._own: dict[int, Commit] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Future[_Granted]] = set()
        self._renewing: set[asyncio.Task[None]] = set()

    @property
    def lease_s(self) -> float:
        """How long a turn is kept for a node that is not heard of."""
        return self._shared.leases.lease_s

    async def open(self) -> None:
        """From now on it hears of what others do."""
        self.context = copy_context()
        if self not in self._shared.views:
            self._shared.views.append(self)

    async def close(self) -> None:
        """Finish what was begun."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for renewing in self._renewing:
            renewing.cancel()
        await asyncio.gather(*self._renewing, return_exceptions=True)
        if self in self._shared.views:
            self._shared.views.remove(self)

    async def check(self) -> None:
        """Whether anything gets through."""
        await self.link.carry("check", self._nothing)

    async def _nothing(self) -> None:
        """What is asked only to see if it is answered."""

    # --- Reading ---------------------------------------------------------------------------------------------------

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept."""
        return await self.link.carry("rooms", self._shared.kept.rooms)

    async def read(self, room: RoomId) -> Record | None:
        """The newest record; of a meeting that is followed, listeners know it by then."""
        return self._apply(room, await self.link.carry("read", lambda: self._fetch(room)))

    def known(self, room: RoomId) -> Record | None:
        """The record of a meeting that is followed, as it was told last."""
        followed = self._followed.get(room)
        if followed is None or followed.position is None or self.link.is_away:
            return None
        # After its end another of that name may begin, and nothing here tells the two apart.
        return followed.record if followed.record is not None and followed.record.state.goes_on else None

    async def entries(self, room: RoomId, after: int) -> tuple[Entry, ...] | None:
        """What followed this revision."""
        return await self.link.carry("entries", lambda: self._shared.kept.entries(room, after))

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """The newest entries."""
        return await self.link.carry("audit", lambda: self._shared.kept.audit(room, limit=limit, before=before))

    async def audited(self, room: RoomId, command_id: CommandId) -> AuditEntry | None:
        """The entry of this command."""
        return await self.link.carry("audited", lambda: self._shared.kept.audited(room, command_id))

    async def kept(self, kind: Kept, *, now: float) -> dict[str, float]:
        """All keys of a kind."""
        return await self.link.carry("kept", lambda: self._shared.kept.kept(kind, now=now))

    async def time(self) -> float:
        """The same for all."""
        await self.link.carry("time", self._nothing)
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    # --- Writing ---------------------------------------------------------------------------------------------------

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        """Append an entry; a write that was begun is made, though nobody waits for it."""
        return await self._write(self._append(commit, fence))

    async def _append(self, commit: Commit, fence: int | None) -> bool:
        room = commit.entry.room
        self._own[id(commit)] = commit
        is_written = await self.link.carry("append", lambda: self._shared.append(commit, fence))
        if is_written and not self._is_told_of(room):
            self._tell(commit)
        elif is_written:
            self._apply(room, await self._fetch(room))
        return is_written

    async def forget(self, room: RoomId, revision: int) -> bool:
        """Drop a meeting."""
        return await self._write(self.link.carry("forget", lambda: self._shared.kept.forget(room, revision)))

    async def keep_once(self, kind: Kept, key: str, *, until: float, now: float) -> bool:
        """Keep a key."""
        keep = self._shared.kept.keep_once
        return await self._write(self.link.carry("keep_once", lambda: keep(kind, key, until=until, now=now)))

    async def keep_no_longer(self, kind: Kept, key: str) -> None:
        """What was kept by this key need not be kept any more."""
        await self._write(self.link.carry("keep_no_longer", lambda: self._shared.kept.keep_no_longer(kind, key)))

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        """A node lives."""
        return await self.link.carry("beat", lambda: self._shared.beat(node, until=until, now=now))

    async def left_alone(self) -> tuple[RoomId, ...]:
        """The meetings after which no node looks."""
        return await self.link.carry("left_alone", self._shared.kept.left_alone)

    async def look_after(self, room: RoomId, node: NodeId, *, now: float) -> bool:
        """Have a node look after a meeting."""
        return await self.link.carry("look_after", lambda: self._shared.kept.look_after(room, node, now=now))

    async def _write(self, work: Coroutine[Any, Any, Result]) -> Result:
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; perhaps nobody does

    # --- Following -------------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Call `listener` with what is committed here, and elsewhere to meetings that are followed."""
        self._listeners.append(listener)

    def listen_to_faults(self, listener: FaultListener) -> None:
        """Nothing is ever lost here, and everything is kept for who comes back."""

    def follow(self, room: RoomId) -> None:
        """From what is read next on."""
        self._followed.setdefault(room, _Followed())

    def unfollow(self, room: RoomId) -> None:
        """No longer."""
        self._followed.pop(room, None)

    def hear(self, room: RoomId) -> None:
        """Somebody has committed something, perhaps this node itself."""
        followed = self._followed.get(room)
        if followed is not None and followed.position is not None and not self.link.is_away:
            commits = tuple(self._shared.history[room][followed.position :])
            self._apply_commits(followed, followed.position, commits)

    def _is_told_of(self, room: RoomId) -> bool:
        followed = self._followed.get(room)
        return followed is not None and followed.position is not None

    async def _fetch(self, room: RoomId) -> _Fetched:
        history, followed = self._shared.history[room], self._followed.get(room)
        position = len(history) if followed is None or followed.position is None else followed.position
        return _Fetched(position, tuple(history[position:]), await self._shared.kept.read(room))

    def _apply(self, room: RoomId, fetched: _Fetched) -> Record | None:
        followed = self._followed.get(room)
        if followed is None:
            return fetched.kept
        if followed.position is None:
            followed.position, followed.record = fetched.position, fetched.kept
            if fetched.commits:  # it was followed anew meanwhile
                followed.position += len(fetched.commits)
            return fetched.kept
        self._apply_commits(followed, fetched.position, fetched.commits)
        is_newest = followed.position == fetched.position + len(fetched.commits)
        return None if is_newest and fetched.kept is None else followed.record

    def _apply_commits(self, followed: _Followed, position: int, commits: tuple[Commit, ...]) -> None:
        for number, commit in enumerate(commits, position):
            if number != followed.position:
                continue  # it was told of meanwhile
            made = commit
            if self._own.get(id(commit)) is not commit:
                before = followed.record
                assert before is not None or commit.entry.begins_as is not None
                entry = commit.entry
                made = Commit(entry, fold(before or Record(0, commit.record.state), entry))
            followed.position, followed.record = number + 1, made.record
            self._tell(made)

    def _tell(self, commit: Commit) -> None:
        for listener in self._listeners:
            listener(commit)

    # --- Turns -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, room: RoomId) -> AsyncIterator[_Held]:
        """A meeting's exclusive step, for as long as it is renewed."""
        asked_by = object()
        try:
            granted = await self._take(room, asked_by)
        except asyncio.CancelledError:
            if not self.link.is_away:
                self._shared.leases.give_up(room, asked_by)
            raise
        held = _Held(granted, self._shared.leases.lease_s)
        renewing = asyncio.create_task(self._renew(room, held))
        self._renewing.add(renewing)
        renewing.add_done_callback(self._renewing.discard)
        try:
            yield held
        finally:
            renewing.cancel()
            self._spawn(self._release(room, asked_by))

    async def _take(self, room: RoomId, asked_by: object) -> _Granted:
        async def ask() -> "asyncio.Future[_Granted]":
            return self._shared.leases.ask(room, asked_by)

        future = await self.link.carry("turn", ask)
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)

    async def _release(self, room: RoomId, asked_by: object) -> None:
        async def give_up() -> None:
            self._shared.leases.give_up(room, asked_by)

        await self.link.carry("release", give_up)

    async def _renew(self, room: RoomId, held: _Held) -> None:
        while not held.is_lost:
            await asyncio.sleep(held.lease_s / 3)
            sent_at = asyncio.get_running_loop().time()
            await asyncio.sleep(self.link.takes_s)
            if self.link.is_away:
                continue
            if self._shared.leases.renew(room, held.fence):
                held.renewed_at = sent_at
            else:
                held.is_lost = True

    # --- The link ----------------------------------------------------------------------------------------------------

    def _on_loss(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(StoreError("the store is out of reach"))

    def _on_return(self) -> None:
        for room in tuple(self._followed):
            asyncio.get_running_loop().call_soon(self.hear, room, context=self.context)
