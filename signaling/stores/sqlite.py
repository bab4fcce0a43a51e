"""A store for one node, in one file: what was committed survives the process, and the file's damage."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, TypeVar

import structlog

from signaling.errors import StoreError
from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import AuditEntry, Commit, Entry, Kept, Listener, Record, Store, Turn
from signaling.stores.memory import KeptKeys
from signaling.stores.nodes import Nodes, OneProcess, Turns
from signaling.stores.serialization import dump_audit_entry, dump_entry, load_audit_entry
from signaling.stores.sqlite_file import Contents, SQLiteFile
from signaling.stores.sqlite_log import PutAside, append_entry, entries_after, forget_meeting

log = structlog.get_logger(__name__)

_MOST_AT_ONCE: Final = 64
"""Writes that are committed together when that many wait."""
_LOOK_S: Final = 1.0
"""How often the file is looked at when nothing is written, and how often a damaged one is tried to be made anew."""

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Operation(Generic[_Result]):
    """
    Something to be done with the database, and what follows from it in the event loop.

    Attributes:
        work: Called in the writer thread, within a transaction; again if others in the same transaction failed.
        remember: Called in the writer thread when it is committed: with what the file has then, to note it there.
        follow_up: Called in the event loop when it is committed, before anybody who waits goes on.
        size: Bytes that it writes, roughly.
    """

    work: Callable[[sqlite3.Connection], _Result]
    answer: asyncio.Future[_Result]
    remember: Callable[[Contents, _Result], None] | None = None
    follow_up: Callable[[_Result], None] | None = None
    size: int = 0

    def settle(self, result: _Result) -> None:
        try:
            if self.follow_up is not None:
                self.follow_up(result)
        finally:
            if not self.answer.done():
                self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class SQLiteStore(OneProcess, Store):
    """
    Meetings in a file, which one process holds at a time.

    One thread has the database to itself and works through a queue; what waits there is committed together. Records
    are read from memory: nobody else can have changed them. A crash of the process loses nothing, a power failure
    perhaps the last commits. A file that is deleted, replaced or damaged while it is in use is made anew. A meeting
    that cannot be read when the file is opened is put aside: it stays in the file as it is, and the others go on.

    Args:
        path: Made when missing, with its directories, for this user only.
        audit_entries: How many are kept of each meeting.
    """

    def __init__(self, path: Path, *, audit_entries: int = 10_000) -> None:
        super().__init__()
        self._path = path.absolute()
        self._audit_entries = audit_entries
        self._records: dict[RoomId, Record] = {}
        self._aside: dict[RoomId, PutAside] = {}
        self._kept = KeptKeys()
        self._unwritten = 0
        """Bytes of the largest write that failed since one as large succeeded; this and what follows: the thread's."""
        self._broken: StoreError | None = None
        """Why a damaged file could not be made anew the last time."""
        self._tried_at = 0.0
        self._listeners: list[Listener] = []
        self._turns = Turns()
        self._queue: SimpleQueue[_Operation[Any] | None] | None = None
        self._thread: Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    # --- The contract --------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """
        Read what is kept. A store that was closed can be opened again.

        Raises:
            StoreLocked: Another process holds the file.
            StoreError: The file cannot be made, read or written, or is something else; the message names it.
        """
        if self._queue is not None:
            raise StoreError(f"{self._path}: is open already")
        loop = asyncio.get_running_loop()
        queue: SimpleQueue[_Operation[Any] | None] = SimpleQueue()
        opened: asyncio.Future[Contents] = loop.create_future()
        self._ended = loop.create_future()
        self._unwritten, self._broken = 0, None
        self.nodes = Nodes()
        # A daemon: whoever forgets to close must not keep the interpreter, and what was answered is in the file.
        self._thread = Thread(
            target=self._serve, args=(loop, queue, opened, self._ended), name="signaling-sqlite", daemon=True
        )
        self._thread.start()
        try:
            contents = await opened
        except asyncio.CancelledError:
            queue.put(None)  # the thread lets go of everything by itself
            raise
        except Exception:
            await self.close()
            raise
        self._records, self._kept, self._aside = contents.records, contents.kept, contents.aside
        for room, found in self._aside.items():
            log.error("meeting_put_aside", room=room, path=str(self._path), error=found.reason)
        self._queue = queue

    async def close(self) -> None:
        """Carry out what waits, and let go of the file. Closing twice is fine."""
        if self._thread is None or self._ended is None:
            return
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None
        await asyncio.shield(self._ended)
        self._thread.join()  # it said that it ends

    async def check(self) -> None:
        """Write as much as could not be written before; raises `StoreError` if it still cannot be."""
        await self._do(self._probe, remember=self._note_probed)

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept and can be read, sorted."""
        rooms = await self._do(_rooms)
        return tuple(room for room in rooms if room not in self._aside)

    async def read(self, room: RoomId) -> Record | None:
        """The newest record of a meeting, `None` if there is none."""
        self._check_readable(room)
        return self._records.get(room)

    def known(self, room: RoomId) -> Record | None:
        """The newest record of a meeting, unless it cannot be read or nothing can be."""
        return None if self._queue is None or room in self._aside else self._records.get(room)

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        """Append an entry, if it is the next. Cancelling stops the waiting only."""
        entry, record = commit.entry, commit.record
        self._turns.check(entry.room, fence)
        self._check_readable(entry.room)
        audit = None if entry.audit is None else (entry.audit.command_id, dump_audit_entry(entry.audit))
        data = dump_entry(entry)
        return await self._do(
            partial(append_entry, commit, data, audit, self._audit_entries),
            remember=lambda contents, appended: contents.note_write(record) if appended else None,
            follow_up=partial(self._note_append, commit),
            size=len(data) + (0 if audit is None else len(audit[1])),
        )

    async def entries(self, room: RoomId, after: int) -> tuple[Entry, ...] | None:
        """What followed this revision, oldest first; `None` when not all of that is kept."""
        self._check_readable(room)
        return await self._do(partial(entries_after, room, after))

    async def forget(self, room: RoomId, revision: int) -> bool:
        """Drop a meeting and its audit, if `revision` is still the kept one. Cancelling stops the waiting only."""
        self._check_readable(room)
        return await self._do(
            partial(forget_meeting, room, revision),
            remember=lambda contents, forgotten: contents.note_forgotten(room) if forgotten else None,
            follow_up=partial(self._note_forgotten, room),
        )

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """The newest entries of a meeting, newest first."""
        return await self._do(partial(_audit, room, limit, before))

    async def audited(self, room: RoomId, command_id: CommandId) -> AuditEntry | None:
        """The entry of this command, `None` if it is not kept (any more)."""
        return await self._do(partial(_audited, room, command_id))

    async def keep_once(self, kind: Kept, key: str, *, until: float, now: float) -> bool:
        """Keep a key; whether it was not kept before. Cancelling stops the waiting only."""
        self._open_queue()
        if self._kept.at(kind, now).get(key, float("-inf")) >= until:
            return False
        return await self._do(
            partial(_keep_once, kind, key, until, now),
            remember=lambda contents, _: contents.note_kept(kind, key, until, now),
            follow_up=partial(self._note_kept, kind, key, until),
            size=len(key),
        )

    async def keep_no_longer(self, kind: Kept, key: str) -> None:
        """What was kept by this key need not be kept any more. Cancelling stops the waiting only."""
        await self._do(
            partial(_keep_no_longer, kind, key),
            remember=lambda contents, _: contents.kept.drop(kind, key),
            follow_up=lambda _: self._kept.drop(kind, key),
        )

    async def kept(self, kind: Kept, *, now: float) -> dict[str, float]:
        """All keys of a kind, and until when each is kept."""
        self._open_queue()
        return dict(self._kept.at(kind, now))

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every commit from now on."""
        self._listeners.append(listener)

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[Turn]:
        """A meeting's exclusive step; waiting ones go in order."""
        return self._turns.of(room)

    async def left_alone(self) -> tuple[RoomId, ...]:
        """Every meeting after which no node looks that lived at the last beat, sorted."""
        self._open_queue()
        return self.nodes.left_alone(self._records)

    # --- In the event loop ---------------------------------------------------------------------------------------

    def _open_queue(self) -> SimpleQueue[_Operation[Any] | None]:
        if self._queue is None:
            raise StoreError(f"{self._path}: is not open")
        return self._queue

    def _check_readable(self, room: RoomId) -> None:
        self._open_queue()
        if (found := self._aside.get(room)) is not None:
            raise StoreError(f"{self._path}: {found.reason}")

    async def _do(
        self,
        work: Callable[[sqlite3.Connection], _Result],
        *,
        remember: Callable[[Contents, _Result], None] | None = None,
        follow_up: Callable[[_Result], None] | None = None,
        size: int = 0,
    ) -> _Result:
        queue = self._open_queue()
        answer: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        queue.put(_Operation(work, answer, remember, follow_up, size))
        return await answer

    def _note_append(self, commit: Commit, appended: bool) -> None:  # noqa: FBT001 - the result, whatever it is
        if not appended:
            return
        room = commit.entry.room
        if room not in self._records:
            self.nodes.begin(room, commit.entry.node)
        self._records[room] = commit.record
        for listener in self._listeners:
            listener(commit)

    def _note_forgotten(self, room: RoomId, forgotten: bool) -> None:  # noqa: FBT001 - the result, whatever it is
        if forgotten:
            del self._records[room]
            self.nodes.forget(room)

    def _note_kept(self, kind: Kept, key: str, until: float, _is_first: bool) -> None:  # noqa: FBT001 - as above
        self._kept.add(kind, key, until)

    # --- In the writer thread ------------------------------------------------------------------------------------

    def _serve(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: SimpleQueue[_Operation[Any] | None],
        opened: asyncio.Future[Contents],
        ended: asyncio.Future[None],
    ) -> None:
        def tell(callback: Callable[..., None], *arguments: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(callback, *arguments)

        try:
            with closing(SQLiteFile(self._path)) as file:
                file.open()
                tell(_resolve, opened, file.contents.copy(), None)
                while (batch := _next_batch(queue)) is not None:
                    for settle in self._carry_out(file, batch):
                        tell(settle)
        except Exception as error:  # noqa: BLE001 - passed on to whoever opens
            tell(_resolve, opened, None, error)
        finally:
            tell(_resolve, ended, None, None)

    def _carry_out(self, file: SQLiteFile, batch: Sequence[_Operation[Any]]) -> list[Callable[[], None]]:
        """Do all of it in one transaction, or each by itself when that fails; what then is to be done in the loop."""
        try:
            self._make_sound(file)
            if not batch:
                return []
            results = self._commit(file, batch)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreError):  # which is about the file, and so about all
                return [settle for each in batch for settle in self._carry_out(file, [each])]
            failure = file.failure(error) if isinstance(error, sqlite3.Error) else error
            if isinstance(failure, StoreError):
                self._unwritten = max([self._unwritten, *(each.size for each in batch)])
            elif not batch:
                log.exception("task_failed")  # a bug, and nobody waits to be told
            return [partial(each.fail, failure) for each in batch]
        for each, result in zip(batch, results, strict=True):
            if each.remember is not None:
                each.remember(file.contents, result)
        if max(each.size for each in batch) >= self._unwritten:
            self._unwritten = 0
        return [partial(each.settle, result) for each, result in zip(batch, results, strict=True)]

    def _commit(self, file: SQLiteFile, batch: Sequence[_Operation[Any]]) -> list[Any]:
        try:
            return file.transact(lambda database: [each.work(database) for each in batch])
        except sqlite3.Error as error:
            if not file.is_damage(error):
                raise
        self._make_sound(file)
        return file.transact(lambda database: [each.work(database) for each in batch])

    def _make_sound(self, file: SQLiteFile) -> None:
        """
        Make the file anew if it is not as it was left.

        Raises:
            StoreError: It cannot be, or could not be a moment ago.
        """
        if (damage := file.damage()) is None:
            return
        if self._broken is None:
            log.error("store_damaged", path=str(self._path), reason=damage)
        elif time.monotonic() < self._tried_at + _LOOK_S:
            raise self._broken
        self._tried_at = time.monotonic()
        try:
            entries = file.renew()
        except (sqlite3.Error, OSError, StoreError) as error:
            failure = file.failure(error)
            if self._broken is None or str(failure) != str(self._broken):
                log.error("store_not_renewed", error=str(failure))  # noqa: TRY400 - no bug, no traceback
            self._broken = failure
            raise failure from error
        self._broken = None
        log.warning("store_renewed", path=str(self._path), meetings=len(file.contents.records), audit=entries)

    def _probe(self, database: sqlite3.Connection) -> None:
        database.execute("REPLACE INTO probe VALUES (1, zeroblob(?))", (self._unwritten,))

    def _note_probed(self, _contents: Contents, _: None) -> None:
        self._unwritten = 0


def _next_batch(queue: SimpleQueue[_Operation[Any] | None]) -> list[_Operation[Any]] | None:
    """What waits, or what comes next; nothing when nothing comes for a while, and `None` when it is over."""
    batch: list[_Operation[Any]] = []
    try:
        operation = queue.get(timeout=_LOOK_S)
        while operation is not None:
            batch.append(operation)
            if len(batch) == _MOST_AT_ONCE:
                break
            operation = queue.get_nowait()
        else:
            if not batch:
                return None
            queue.put(None)  # nothing comes after the end, so it is still the last
    except Empty:
        pass
    return batch


def _resolve(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


# --- The database ------------------------------------------------------------------------------------------------


def _rooms(database: sqlite3.Connection) -> tuple[RoomId, ...]:
    return tuple(RoomId(room) for (room,) in database.execute("SELECT room FROM meetings ORDER BY room"))


def _keep_once(kind: Kept, key: str, until: float, now: float, database: sqlite3.Connection) -> bool:
    database.execute("DELETE FROM kept WHERE kind = ? AND until < ?", (kind, now))
    known = database.execute("SELECT 1 FROM kept WHERE kind = ? AND key = ?", (kind, key)).fetchone()
    database.execute(
        "INSERT INTO kept VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET until = max(until, excluded.until)",
        (kind, key, until),
    )
    return known is None


def _keep_no_longer(kind: Kept, key: str, database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM kept WHERE kind = ? AND key = ?", (kind, key))


def _audited(room: RoomId, command_id: CommandId, database: sqlite3.Connection) -> AuditEntry | None:
    found = database.execute("SELECT entry FROM audit WHERE room = ? AND command_id = ?", (room, command_id)).fetchone()
    return None if found is None else load_audit_entry(found[0])


def _audit(room: RoomId, limit: int, before: CommandId | None, database: sqlite3.Connection) -> tuple[AuditEntry, ...]:
    if before is None:
        below = "SELECT max(number) + 1 FROM audit WHERE room = ?"
        arguments: tuple[str, ...] = (room,)
    else:
        below = "SELECT max(number) FROM audit WHERE room = ? AND command_id = ?"
        arguments = (room, before)
    (number,) = database.execute(below, arguments).fetchone()
    rows = database.execute(
        "SELECT entry FROM audit WHERE room = ? AND number < ? ORDER BY number DESC LIMIT ?", (room, number, limit)
    )
    return tuple(load_audit_entry(entry) for (entry,) in rows)
