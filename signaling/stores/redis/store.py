"""A store for several nodes: what one commits, the others follow; what is lost is said to be."""

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

import structlog

from signaling.errors import SignalingError, StoreError
from signaling.identifiers import CommandId, NodeId, RoomId
from signaling.stores.contract import (
    AuditEntry,
    Commit,
    Entry,
    Fault,
    FaultListener,
    FellBehind,
    Kept,
    Listener,
    Record,
    Store,
    Turn,
)
from signaling.stores.redis import scripts
from signaling.stores.redis.address import Address
from signaling.stores.redis.directory import Directory
from signaling.stores.redis.following import Following
from signaling.stores.redis.inspection import inspect
from signaling.stores.redis.link import Link
from signaling.stores.redis.log import MeetingLog
from signaling.stores.redis.news import News, Notice
from signaling.stores.redis.scripts import Keys, kept_key
from signaling.stores.redis.turns import LEASE_S, Turns
from signaling.stores.serialization import load_audit_entry

log = structlog.get_logger(__name__)

FOLLOWS_S: Final = 60.0
"""For how long a node may be without Redis: after that it cannot say that nobody has missed anything."""
_MOST_UNFOLLOWED: Final = 256
"""Meetings that are remembered though nobody is in them here."""
_Result = TypeVar("_Result")


class RedisStore(Store):
    """
    Meetings in Redis 6.2 or newer, Valkey, a cluster of either, or whichever Sentinels name.

    Args:
        audit_entries: How many are kept of each meeting.

    Attributes:
        lease_s: After which another node may take over a turn whose holder is not heard of.

    Raises:
        ConfigurationError: The URL names nothing of the kind.
    """

    lease_s: float = LEASE_S

    def __init__(self, url: str, *, audit_entries: int = 10_000) -> None:
        self._address = Address.of(url)
        self._audit_entries = audit_entries
        self._listeners: list[Listener] = []
        self._fault_listeners: list[FaultListener] = []
        self._logs: dict[RoomId, MeetingLog] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeping = asyncio.Lock()
        """Who comes first here is first in Redis, on whichever connection that goes."""
        self._epoch = ""
        self._out_of_service: str | None = None
        self._is_open = False
        self._make()

    def _make(self) -> None:
        self._link = Link(self._address, on_back=self._on_back, on_long_away=self._on_long_away, long_s=FOLLOWS_S)
        self._directory = Directory(self._link)
        self._following = Following(self._link, lambda: (each for each in self._logs.values() if each.is_followed))
        self._turns = Turns(self._link)
        self._news = News(
            self._link, on_commit=self._on_news, on_turn=self._turns.wake, on_subscribed=self._on_subscribed
        )

    # --- The contract --------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """
        Look whether Redis is fit for it, and begin to follow.

        Raises:
            ConfigurationError: It is not.
            StoreError: It does not answer.
        """
        if self._is_open:
            raise StoreError(f"{self._address}: is open already")
        self._make()
        self._logs.clear()
        self._out_of_service = None
        self._link.open()
        try:
            self._epoch = await inspect(self._link, is_new=True)
            await self._news.start()
        except BaseException:
            await self._close()
            raise
        self._is_open = True

    async def close(self) -> None:
        """Finish what was begun, and let go of all connections. Closing twice is fine."""
        if self._is_open:
            self._is_open = False
            await self._close()

    async def _close(self) -> None:
        await self._news.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._turns.close()
        await self._link.close()

    async def check(self) -> None:
        """Return if Redis can be written; raises `StoreError` if not, or if a newer version has written to it."""
        self._check_service()
        await self._link.call("SET", scripts.PROBE, "here", "EX", 60)

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept, sorted."""
        self._check_service()
        return await self._directory.rooms()

    async def left_alone(self) -> tuple[RoomId, ...]:
        """Every meeting after which no node looks that was there at the last beat, sorted."""
        self._check_service()
        return await self._directory.left_alone()

    async def read(self, room: RoomId) -> Record | None:
        """The newest record of a meeting, `None` if there is none."""
        meeting = self._log(room)
        record = await meeting.refresh()
        return await self._delist(meeting) if record is None and self._directory.is_listed(room) else record

    def known(self, room: RoomId) -> Record | None:
        """The newest record of a meeting that is followed, as far as was heard; while Redis answers."""
        meeting = self._logs.get(room)
        is_fit = self._is_open and self._out_of_service is None and self._link.answers
        return meeting.record if is_fit and meeting is not None and meeting.is_followed else None

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        """Append an entry, if it is the next. Cancelling stops the waiting only."""
        return await self._whole(self._log(commit.entry.room).append(commit, fence))

    async def entries(self, room: RoomId, after: int) -> tuple[Entry, ...] | None:
        """What followed this revision, oldest first; `None` when not all of that is kept."""
        return await self._log(room).entries(after)

    async def forget(self, room: RoomId, revision: int) -> bool:
        """Drop a meeting and its audit, if `revision` is still the kept one. Cancelling stops the waiting only."""
        return await self._whole(self._forget(self._log(room), revision))

    async def _forget(self, meeting: MeetingLog, revision: int) -> bool:
        forgotten = await meeting.forget(revision)
        if forgotten:
            await self._delist(meeting)
        return forgotten

    async def _delist(self, meeting: MeetingLog) -> Record | None:
        await self._directory.delist(meeting.room)
        record = await meeting.refresh()
        if record is not None:  # begun meanwhile, and listed before it was taken off
            await self._directory.list(meeting.room, None)
        return record

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """The newest entries of a meeting, newest first."""
        self._check_service()
        if limit < 1:
            return ()
        keys = Keys.of(room)
        found = await self._link.run(scripts.AUDIT, (keys.audit, keys.commands), limit, before or "")
        return tuple(load_audit_entry(fields[1]) for _, fields in found)

    async def audited(self, room: RoomId, command_id: CommandId) -> AuditEntry | None:
        """The entry of this command, `None` if it is not kept (any more)."""
        self._check_service()
        keys = Keys.of(room)
        found = await self._link.run(scripts.AUDITED, (keys.audit, keys.commands), command_id)
        return load_audit_entry(found[0][1][1]) if found else None

    async def keep_once(self, kind: Kept, key: str, *, until: float, now: float) -> bool:
        """Keep a key; whether it was not kept before. Cancelling stops the waiting only."""
        self._check_service()

        async def keep() -> bool:
            async with self._keeping:
                return bool(await self._link.run(scripts.KEEP_ONCE, (kept_key(kind),), key, repr(until), repr(now)))

        return await self._whole(keep())

    async def keep_no_longer(self, kind: Kept, key: str) -> None:
        """What was kept by this key need not be kept any more."""
        self._check_service()
        await self._whole(self._link.call("ZREM", kept_key(kind), key))

    async def kept(self, kind: Kept, *, now: float) -> dict[str, float]:
        """All keys of a kind, and until when each is kept."""
        self._check_service()
        found = await self._link.call("ZRANGEBYSCORE", kept_key(kind), repr(now), "+inf", "WITHSCORES")
        return {key.decode(): float(until) for key, until in zip(found[::2], found[1::2], strict=True)}

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every commit from now on."""
        self._listeners.append(listener)

    def listen_to_faults(self, listener: FaultListener) -> None:
        """Call `listener` with what was lost, or cannot be followed."""
        self._fault_listeners.append(listener)

    def follow(self, room: RoomId) -> None:
        """Have listeners called with what others commit to a meeting too."""
        self._logs.setdefault(room, self._new_log(room)).is_followed = True

    def unfollow(self, room: RoomId) -> None:
        """A meeting need not be followed any more."""
        self._logs.pop(room, None)

    async def time(self) -> float:
        """What time it is for Redis."""
        seconds, microseconds = await self._link.call("TIME")
        return float(seconds) + float(microseconds) / 1_000_000

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[Turn]:
        """A meeting's exclusive step: a lease."""
        self._check_service()
        return self._turns.of(room)

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        """A node lives until then at least; all that live now. What was missed of some meetings is made up for."""
        self._check_service()
        alive = await self._directory.beat(node, until=until, now=now)
        await self._following.look_at_some()
        return alive

    async def look_after(self, room: RoomId, node: NodeId, *, now: float) -> bool:
        """Have a node look after a meeting, unless another one that lives does: whether it does."""
        self._check_service()
        return await self._directory.look_after(room, node, now=now)

    # --- Following -----------------------------------------------------------------------------------------------

    def _log(self, room: RoomId) -> MeetingLog:
        self._check_service()
        found = self._logs.get(room)
        if found is None:
            unfollowed = [each for each, known in self._logs.items() if not known.is_followed]
            for each in unfollowed[: max(len(unfollowed) - _MOST_UNFOLLOWED + 1, 0)]:
                del self._logs[each]
            found = self._logs[room] = self._new_log(room)
        return found

    def _new_log(self, room: RoomId) -> MeetingLog:
        told = self._tell, self._tell_fault
        return MeetingLog(room, self._link, self._directory, *told, audit_entries=self._audit_entries)

    def _tell(self, commit: Commit) -> None:
        for listener in self._listeners:
            listener(commit)

    def _tell_fault(self, fault: Fault) -> None:
        if isinstance(fault, FellBehind) and fault.room is None:
            if self._out_of_service is None:
                log.error("store_out_of_service", reason=fault.reason)
            self._out_of_service = fault.reason
        for listener in self._fault_listeners:
            listener(fault)

    def _on_news(self, room: RoomId, notice: Notice | None) -> None:
        known = self._logs.get(room)
        if known is not None and known.is_followed and not known.hear(notice):
            self._in_background(self._following.go_on(known, known.catch_up()))

    def _on_subscribed(self) -> None:
        self._turns.wake_all()
        self._in_background(self._following.look_at_all())

    def _on_back(self) -> None:
        self._turns.wake_all()
        # What begins to listen anew looks at the meetings then.
        self._in_background(self._go_on(looks=self._news.is_subscribed))

    async def _go_on(self, *, looks: bool) -> None:
        """Redis answers again, perhaps another one than before, or with less."""
        try:
            epoch = await inspect(self._link)
        except SignalingError as error:  # what is asked of it says so too; the next beats look at the meetings
            log.warning("store_unfit", error=str(error))
            return
        if epoch != self._epoch:
            log.error("store_began_anew", store=str(self._address))
            self._epoch = epoch
        if looks:
            await self._following.look_at_all()

    def _on_long_away(self) -> None:
        reason = f"{self._address} has not answered for {FOLLOWS_S:g} s"
        log.warning("store_fell_behind", reason=reason)
        for listener in self._fault_listeners:
            listener(FellBehind(None, reason))

    # --- Carefully -----------------------------------------------------------------------------------------------

    def _check_service(self) -> None:
        if not self._is_open:
            raise StoreError(f"{self._address}: is not open")
        if self._out_of_service is not None:
            raise StoreError(self._out_of_service)

    async def _whole(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do something to its end, though whoever waits for it stops."""
        return await asyncio.shield(self._in_background(work))

    def _in_background(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        self._tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(self._forget_task)
        return task

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; nobody may be left
