"""The log of one meeting, as this node knows it and as Redis has it."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, Final

import structlog

from signaling.core.state import MeetingState
from signaling.errors import StoreError, TurnLost, UnknownFormat
from signaling.identifiers import RoomId
from signaling.stores.contract import Commit, Entry, Fault, FellBehind, Record, fold
from signaling.stores.redis import appending, scripts
from signaling.stores.redis.appending import Appending
from signaling.stores.redis.directory import Directory
from signaling.stores.redis.link import AnswerLost, Link
from signaling.stores.redis.losses import Losses
from signaling.stores.redis.news import Notice
from signaling.stores.redis.scripts import Keys
from signaling.stores.serialization import dump_entry, dump_record, load_entry, load_record

log = structlog.get_logger(__name__)

ENDED_S: Final = 3_600.0
"""For how long it is known that a meeting has ended, and was not lost."""
LEAST_BYTES: Final = 64 * 1024
"""A log that weighs less than this needs no snapshot."""
HEAD: Final = ("revision", "entry", "forgotten")
"""How far a log goes, and which way."""
_PASSED: Final = 32
"""Commits of a meeting of which a notice that comes late is known to say nothing new."""


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
        directory: Directory,
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
        self._directory = directory
        self._tell = tell
        self._tell_fault = tell_fault
        self._appending = Appending(link, self._keys, room, audit_entries=audit_entries)
        self._losses = Losses(link, self._keys, room, tell_fault)
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
        self._passed: deque[bytes] = deque(maxlen=_PASSED)
        self._writing = b""
        """Id of the entry that is being appended: whoever does that goes on with it, or looks what came of it."""
        self._heard: deque[Notice | None] = deque()
        """Notices that wait for what is under way here, or must be asked about."""

    @property
    def revision(self) -> int:
        """The newest that is known."""
        return self.record.revision if self.record else 0

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
                await self._ask()
            return self.record

    def hear(self, notice: Notice | None) -> bool:
        """
        Go on with what was published, `None` if it is to be asked what that was.

        Returns:
            Whether that is done: else `catch_up` does it.
        """
        if notice is not None and self._writing and notice.entry == self._writing:
            return True
        self._heard.append(notice)
        return not self._lock.locked() and self._go_on()

    async def catch_up(self) -> None:
        """
        Go on with what was published meanwhile; Redis is asked for what does not follow what is known.

        Raises:
            StoreError: Redis does not answer.
        """
        async with self._lock:
            if not self._go_on():
                await self._ask()

    def _go_on(self) -> bool:
        """Whether nothing that was heard is left that must be asked about."""
        while self._heard:
            notice = self._heard[0]
            if notice is None or (notice.entry not in self._passed and not self._goes_on_with(notice)):
                return False
            self._heard.popleft()
        return True

    def _goes_on_with(self, notice: Notice) -> bool:
        """Go on with a commit, if it follows the newest that is known: whether it did."""
        follows = self._is_known and (notice.revision, notice.before) == (self.revision + 1, self._entry)
        if not follows or not notice.data:
            return False
        try:
            commit = _following(self.room, self.record, notice.data)
        except StoreError:  # whoever asks finds that out too, and sees to it
            return False
        if not notice.before:
            self._life = notice.entry
        self._weigh(len(notice.data), notice.snapshot_bytes)
        self._head = (str(notice.revision).encode(), notice.entry, None)
        self._note(commit, notice.entry, tells=True)
        return True

    async def _ask(self) -> None:
        began = self._asked
        try:
            await self._catch_up()
        except AnswerLost:
            if not await self._link.back(appending.REPEATS_S):
                raise
            await self._catch_up()
        self._answered = began

    async def _catch_up(self) -> None:
        self._go_on()
        self._heard.clear()  # what is asked for now is newer
        known = self.revision
        head = await self._link.call("HMGET", self._keys.head, *HEAD)
        self._go_on()  # with what was published meanwhile
        if not self.agrees_with(head, known):
            await self._read()
            self._go_on()

    def agrees_with(self, head: Sequence[bytes | None], known: int) -> bool:
        """Whether Redis' answer, asked for `HEAD` when that revision was known, says nothing that is not known."""
        revision, entry, forgotten = head  # perhaps of before something that was published meanwhile
        is_passed = revision is not None and int(revision) >= known and entry in self._passed and not forgotten
        return self._is_known and (is_passed or tuple(head) == self._head)

    async def _read(self) -> None:
        keys = (self._keys.head, self._keys.log, self._keys.snapshot, self._keys.ended)
        kind, about, *found = await self._link.run(scripts.READ, keys, self.revision, self._entry)
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
            self._note(_following(self.room, self.record, fields[3]), fields[1], tells=tells)
        if is_forgotten:
            self._let_go()

    async def _start_anew(self, found: Sequence[Any], newest: bytes, life: bytes, ended: bytes) -> None:
        """What is known is not in the log, or not any more."""
        entries, snapshot, since, oldest = found
        before = self.record
        lost = await self._losses.commands() if before is not None and self.is_followed else None
        was_known, is_same, has_ended = self._is_known, life == self._life, ended == self._life
        self.record, self._entry = _whole(self.room, int(since), snapshot, entries), newest
        if before is not None and lost is not None:
            oldest = int(oldest) if is_same else None
            self._losses.judge(before, self.record, lost, oldest=oldest, has_ended=has_ended)
        elif was_known and self.is_followed:
            self._losses.fall_behind("it began while nothing was heard of it")

    async def _note_gone(self, ended: bytes) -> None:
        """It is not kept: never was, has ended, or was lost."""
        before = self.record
        lost = await self._losses.commands() if before is not None and self.is_followed else None
        was = self._life
        self._let_go()
        if before is None or lost is None or not before.state.goes_on:
            return
        if ended == was:
            self._losses.fall_behind("it has ended")
        else:
            self._losses.fall_back(self.record, lost)

    async def _put_aside(self, entry: bytes, error: StoreError) -> None:
        """What cannot be read is put aside, and the meeting begins anew."""
        lost = await self._losses.commands() if self.record is not None else ()
        was_known = self.record is not None and self.is_followed
        await self._losses.put_aside(entry, error)
        self._let_go()
        if was_known:
            self._losses.fall_back(self.record, lost)

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
            if not self._is_known or self.revision != commit.entry.revision - 1:
                await self._catch_up()
                if self.revision != commit.entry.revision - 1:
                    return False
            is_first, asked = commit.entry.revision == 1, self._asked
            if is_first:
                await self._directory.list(self.room, commit.entry.node)
            entry, data = token_hex(8).encode(), dump_entry(commit.entry)
            is_heavy = self._weight + len(data) > max(self._snapshot_bytes, LEAST_BYTES)
            snapshot = dump_record(commit.record) if is_heavy else b""
            self._writing = entry
            try:
                answer = await self._appending.send(
                    commit.entry, before=self._entry, entry_id=entry, data=data, snapshot=snapshot, fence=fence
                )
            finally:
                self._writing = b""
            match answer:
                case b"lost":
                    log.warning("commit_refused_by_fence", room=self.room, revision=commit.entry.revision)
                    raise TurnLost(f"the turn of {self.room} is over")
                case b"stale":
                    await self._catch_up()
                    return False
                case _:
                    pass
            self._life = entry if is_first else self._life
            self._weigh(len(data), len(snapshot))
            self._head = (str(commit.record.revision).encode(), entry, None)
            self._answered = max(self._answered, asked)
            self._note(commit, entry, tells=True)
            if is_first:  # whoever found nothing there may have taken it off the list
                await self._directory.list(self.room, commit.entry.node)
            return True

    def _weigh(self, data_bytes: int, snapshot_bytes: int) -> None:
        self._weight = 0 if snapshot_bytes else self._weight + data_bytes
        self._snapshot_bytes = snapshot_bytes or self._snapshot_bytes

    def _note(self, commit: Commit, entry: bytes, *, tells: bool) -> None:
        self.record, self._entry = commit.record, entry
        self._passed.append(entry)
        self._is_known = True
        if self.is_followed and commit.entry.command_id is not None:
            self._losses.remember(entry, commit.entry.command_id)
        if tells:
            self._tell(commit)

    async def forget(self, revision: int) -> bool:
        """Drop the meeting, if this is its newest revision; whether it was. Not to be cancelled."""
        async with self._lock:
            await self._catch_up()
            if self.revision != revision or not revision:
                return False
            keys = self._keys
            names = (keys.head, keys.ended, keys.log, keys.snapshot, keys.ids, keys.audit, keys.commands)
            kept_ms, ended_ms = round(appending.KEEPS_S * 1_000), round(ENDED_S * 1_000)
            arguments = (revision, self._entry, kept_ms, ended_ms, scripts.NEWS, self.room)
            forgotten = bool(await self._link.run(scripts.FORGET, names, *arguments))
            if forgotten:
                self._let_go()
            self._head = ()
            return forgotten

    async def entries(self, after: int) -> tuple[Entry, ...] | None:
        """What followed this revision; `None` when that is not known (any more)."""
        async with self._lock:
            await self._catch_up()
            if self.record is None or not 0 <= after <= self.revision:
                return None
            found = await self._link.call("XRANGE", self._keys.log, f"{after + 1}-1", f"{self.revision}-1")
        entries = tuple(load_entry(fields[b"d"]) for _, fields in found)
        is_whole = len(entries) == self.revision - after
        return entries if is_whole else None


def _following(room: RoomId, before: Record | None, data: bytes) -> Commit:
    """
    What was appended to a record.

    Raises:
        StoreError: It cannot be read, or does not follow that.
    """
    entry, before = load_entry(data), before or Record(0, MeetingState(room))
    if (entry.room, entry.revision) != (room, before.revision + 1):
        raise StoreError(f"entry {entry.revision} of {entry.room} follows revision {before.revision}")
    return Commit(entry, fold(before, entry))


def _whole(room: RoomId, since: int, snapshot: bytes, entries: Sequence[Any]) -> Record:
    """What entries come to that follow a snapshot, if there is one."""
    record = load_record(snapshot) if since else Record(0, MeetingState(room))
    if since and (record.state.room, record.revision) != (room, since):
        raise StoreError(f"the snapshot of revision {since} is of revision {record.revision}")
    for _, fields in entries:
        record = _following(room, record, fields[3]).record
    return record
