"""The log of one meeting, as this node knows it and as Redis has it."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, Final

import structlog

from signaling.core.state import MeetingState
from signaling.errors import StoreError, TurnLost, UnknownFormat
from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import Commit, Entry, Fault, FellBack, FellBehind, Record, fold
from signaling.stores.redis import scripts
from signaling.stores.redis.link import AnswerLost, Link
from signaling.stores.redis.scripts import Keys
from signaling.stores.serialization import dump_audit_entry, dump_entry, dump_record, load_entry, load_record

log = structlog.get_logger(__name__)

REPEATS_S: Final = 3.0
"""For how long a commit whose answer was lost is tried again, so that it is known what came of it."""
KEEPS_S: Final = 90.0
"""For how long entries are kept at least, so that a node which was without Redis for a minute leaves nothing out."""
ENDED_S: Final = 3_600.0
"""For how long it is known that a meeting has ended, and was not lost."""
LEAST_BYTES: Final = 64 * 1024
"""A log that weighs less than this needs no snapshot."""
_REMEMBERED: Final = 512
"""Commits of a meeting that can be named as lost."""


class MeetingLog:
    """
    One meeting's log.

    Args:
        tell: Called with each commit, in order.
        tell_fault: Called with what is wrong with it.
        audit_entries: How many are kept.

    Attributes:
        record: What the log came to when it was read last.
        is_followed: Whether others' commits are told too.
    """

    def __init__(
        self,
        room: RoomId,
        link: Link,
        tell: Callable[[Commit], None],
        tell_fault: Callable[[Fault], None],
        *,
        audit_entries: int,
    ) -> None:
        self.room = room
        self.record: Record | None = None
        self.is_followed = False
        self._keys = Keys.of(room)
        self._link = link
        self._tell = tell
        self._tell_fault = tell_fault
        self._audit_entries = audit_entries
        self._lock = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self._is_known = False
        self._entry = b""
        """Id of the newest entry; so two logs that went apart are told from each other, whatever their revisions."""
        self._life = b""
        self._head: tuple[Any, ...] = ()
        self._weight = 0
        self._snapshot_bytes = 0
        self._recent: deque[tuple[bytes, CommandId]] = deque(maxlen=_REMEMBERED)

    @property
    def _revision(self) -> int:
        return 0 if self.record is None else self.record.revision

    # --- Reading -------------------------------------------------------------------------------------------------

    async def refresh(self) -> Record | None:
        """
        The newest record; whoever asks while Redis is being asked shares the next answer.

        Raises:
            StoreError: Redis does not answer.
        """
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._answered < mine:
                began = self._asked
                try:
                    await self._catch_up()
                except AnswerLost:
                    if not await self._link.back(REPEATS_S):
                        raise
                    await self._catch_up()
                self._answered = began
            return self.record

    async def _catch_up(self) -> None:
        head = tuple(await self._link.call("HMGET", self._keys.head, "revision", "entry", "forgotten"))
        if self._is_known and head == self._head:
            return
        keys = (self._keys.head, self._keys.log, self._keys.snapshot, self._keys.ended)
        kind, about, *found = await self._link.run(scripts.READ, keys, self._revision, self._entry)
        revision, entry, forgotten, life, weight, snapshot_bytes, ended = about
        try:
            match kind:
                case b"none":
                    await self._note_gone(ended)
                case b"after":
                    self._follow(found[0], is_forgotten=bool(forgotten))
                case _:
                    await self._start_anew(found, entry, life, ended)
        except UnknownFormat as error:
            self._tell_fault(FellBehind(None, f"meeting {self.room}: {error}"))
            raise
        except StoreError as error:
            await self._put_aside(entry, error)
            return
        self._weight, self._snapshot_bytes = int(weight or 0), int(snapshot_bytes or 0)
        self._life = b"" if self.record is None else life
        self._is_known = True
        self._head = (revision or None, entry or None, forgotten or None)

    def _follow(self, found: Sequence[Any], *, is_forgotten: bool) -> None:
        """Go on with what others have appended."""
        tells = self.is_followed and self._is_known
        for _, fields in found:
            self._note(self._next(self.record or self._nothing(), fields), fields[1], tells=tells)
        if is_forgotten:
            self._let_go()

    def _nothing(self) -> Record:
        return Record(0, MeetingState(self.room))

    def _next(self, before: Record, fields: Sequence[bytes]) -> Commit:
        """
        What was appended to a record.

        Raises:
            StoreError: It cannot be read, or does not follow that.
        """
        entry = load_entry(fields[3])
        if (entry.room, entry.revision) != (self.room, before.revision + 1):
            raise StoreError(f"entry {entry.revision} of {entry.room} follows revision {before.revision}")
        return Commit(entry, fold(before, entry))

    async def _start_anew(self, found: Sequence[Any], newest: bytes, life: bytes, ended: bytes) -> None:
        """What is known is not in the log, or not any more."""
        entries, snapshot, since, oldest = found
        before, record = self.record, self._nothing()
        if int(since):
            record = load_record(snapshot)
            if (record.state.room, record.revision) != (self.room, int(since)):
                raise StoreError(f"the snapshot of revision {int(since)} is of revision {record.revision}")
        for _, fields in entries:
            record = self._next(record, fields).record
        lost = await self._lost() if before is not None and self.is_followed else None
        was_known, is_same = self._is_known, life == self._life
        self.record, self._entry = record, newest
        if lost is None or before is None:
            if was_known and self.is_followed:
                self._fall_behind("it began while nothing was heard of it")
        elif not is_same and (ended == self._life or not before.state.goes_on):
            if before.state.goes_on:
                self._fall_behind("it has ended, and another has begun")
        elif is_same and before.revision < int(oldest):
            self._fall_behind(f"entries before revision {int(oldest)} are kept no longer")
        else:
            self._fall_back(lost)

    async def _note_gone(self, ended: bytes) -> None:
        """It is not kept: never was, has ended, or was lost."""
        before = self.record
        lost = await self._lost() if before is not None and self.is_followed else None
        was = self._life
        self._let_go()
        if before is None or lost is None:
            return
        if before.state.goes_on:
            if ended == was:
                self._fall_behind("it has ended")
            else:
                self._fall_back(lost)

    async def _lost(self) -> tuple[CommandId, ...]:
        """Of the commands whose commits were seen here, those whose commits are not there."""
        recent = tuple(self._recent)
        if not recent:
            return ()
        found = await self._link.call("ZMSCORE", self._keys.ids, *(entry for entry, _ in recent))
        ids = [command for (_, command), score in zip(recent, found, strict=True) if score is None]
        return tuple(dict.fromkeys(ids))

    def _fall_back(self, lost: tuple[CommandId, ...]) -> None:
        self._recent.clear()
        log.error("store_fell_back", room=self.room, commands_lost=len(lost))
        self._tell_fault(FellBack(self.room, self.record, lost))

    def _fall_behind(self, reason: str) -> None:
        log.warning("store_fell_behind", room=self.room, reason=reason)
        self._tell_fault(FellBehind(self.room, f"meeting {self.room}: {reason}"))

    async def _put_aside(self, entry: bytes, error: StoreError) -> None:
        """What cannot be read is kept as it was found, under other keys, and the meeting begins anew."""
        lost = await self._lost() if self.record is not None else ()
        was_known = self.record is not None and self.is_followed
        name = f":aside:{token_hex(4)}"
        keys = [getattr(self._keys, each) for each in ("head", "log", "snapshot", "ids", "audit", "commands")]
        if not await self._link.run(scripts.PUT_ASIDE, keys, entry, name):
            raise StoreError(f"meeting {self.room}: {error}") from error
        log.error("meeting_put_aside", room=self.room, keys=f"{self._keys.head}{name}", error=str(error))
        self._let_go()
        if was_known:
            self._fall_back(lost)

    def _let_go(self) -> None:
        self.record, self._entry, self._life = None, b"", b""
        self._weight = self._snapshot_bytes = 0

    # --- Writing -------------------------------------------------------------------------------------------------

    async def append(self, commit: Commit, fence: int | None) -> bool:
        """
        Append an entry, if it is the next; see `Store.append`. Not to be cancelled.

        Raises:
            TurnLost: The turn is over.
            StoreError: Redis does not answer.
        """
        async with self._lock:
            if not self._is_known or self._revision != commit.entry.revision - 1:
                await self._catch_up()
                if self._revision != commit.entry.revision - 1:
                    return False
            is_first, asked = commit.entry.revision == 1, self._asked
            if is_first:  # what lists the meetings is elsewhere in a cluster, so that is no part of the commit
                await self._link.call("SADD", scripts.ROOMS, self.room)
            entry, data = token_hex(8).encode(), dump_entry(commit.entry)
            is_heavy = self._weight + len(data) > max(self._snapshot_bytes, LEAST_BYTES)
            snapshot = dump_record(commit.record) if is_heavy else b""
            match await self._write(commit.entry, entry, data, snapshot, fence):
                case b"lost":
                    log.warning("commit_refused_by_fence", room=self.room, revision=commit.entry.revision)
                    raise TurnLost(f"the turn of {self.room} is over")
                case b"stale":
                    await self._catch_up()
                    return False
                case _:
                    pass
            self._life = entry if is_first else self._life
            self._weight = 0 if is_heavy else self._weight + len(data)
            self._snapshot_bytes = len(snapshot) or self._snapshot_bytes
            self._head = (str(commit.record.revision).encode(), entry, None)
            self._answered = max(self._answered, asked)
            self._note(commit, entry, tells=True)
            if is_first:  # whoever found nothing there may have taken it off the list
                await self._link.call("SADD", scripts.ROOMS, self.room)
            return True

    async def _write(self, entry: Entry, key: bytes, data: bytes, snapshot: bytes, fence: int | None) -> bytes:
        keys = self._keys
        audit = entry.audit
        names = (keys.head, keys.log, keys.snapshot, keys.ids, keys.audit, keys.commands, keys.turn)
        arguments = (
            entry.revision,
            self._entry,
            key,
            data,
            "" if fence is None else fence,
            "" if audit is None else audit.command_id,
            b"" if audit is None else dump_audit_entry(audit),
            self._audit_entries,
            snapshot,
            round(KEEPS_S * 1_000),
            scripts.NEWS,
            self.room,
        )
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + REPEATS_S
        is_repeated = False
        while True:
            try:
                answer: bytes = await self._link.run(scripts.APPEND, names, *arguments)
            except AnswerLost:
                if not await self._link.back(ends_at - loop.time()):
                    raise
                is_repeated = True
                continue
            if is_repeated:
                log.info("commit_repeated", room=self.room, revision=entry.revision, was=answer.decode())
            return answer

    def _note(self, commit: Commit, entry: bytes, *, tells: bool) -> None:
        self.record, self._entry = commit.record, entry
        self._is_known = True
        if self.is_followed and commit.entry.command_id is not None:
            self._recent.append((entry, commit.entry.command_id))
        if tells:
            self._tell(commit)

    async def forget(self, revision: int) -> bool:
        """Drop the meeting, if this is its newest revision; whether it was. Not to be cancelled."""
        async with self._lock:
            await self._catch_up()
            if self._revision != revision or not revision:
                return False
            keys = self._keys
            names = (keys.head, keys.ended, keys.log, keys.snapshot, keys.ids, keys.audit, keys.commands, keys.looks)
            kept_ms, ended_ms = round(KEEPS_S * 1_000), round(ENDED_S * 1_000)
            arguments = (revision, self._entry, kept_ms, ended_ms, scripts.NEWS, self.room)
            forgotten = bool(await self._link.run(scripts.FORGET, names, *arguments))
            if forgotten:
                self._let_go()
                await self._link.call("SREM", scripts.ROOMS, self.room)
            self._head = ()
            return forgotten

    async def entries(self, after: int) -> tuple[Entry, ...] | None:
        """What followed this revision; `None` when that is not known (any more)."""
        async with self._lock:
            await self._catch_up()
            if self.record is None or not 0 <= after <= self._revision:
                return None
            found = await self._link.call("XRANGE", self._keys.log, f"{after + 1}-1", f"{self._revision}-1")
        entries = tuple(load_entry(fields[b"d"]) for _, fields in found)
        is_whole = len(entries) == self._revision - after
        return entries if is_whole else None
