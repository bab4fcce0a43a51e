"""A store for one node, in one file: what was committed survives the process."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, TypeVar

from signaling.core.conclusions import Announcement
from signaling.errors import StoreError, StoreLocked
from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import AuditEntry, Commit, Kept, Listener, Record, Store
from signaling.stores.memory import KeptKeys, Turns
from signaling.stores.serialization import dump_audit_entry, dump_record, load_audit_entry, load_record

_APPLICATION_ID: Final = 0x4C4B4D4F
_STEPS: Final = (
    (
        f"PRAGMA application_id = {_APPLICATION_ID}",
        "CREATE TABLE meetings (room TEXT PRIMARY KEY, revision INTEGER NOT NULL, record BLOB NOT NULL)",
        """CREATE TABLE audit
            (room TEXT NOT NULL, number INTEGER NOT NULL, command_id TEXT NOT NULL, entry BLOB NOT NULL)""",
        "CREATE UNIQUE INDEX audit_by_number ON audit (room, number)",
        "CREATE INDEX audit_by_command ON audit (room, command_id)",
    ),
    (
        """CREATE TABLE kept
            (kind TEXT NOT NULL, key TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID""",
        "CREATE INDEX kept_by_end ON kept (kind, until)",
        "CREATE TABLE probe (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    ),
)
"""What makes of each schema the next; an empty file has schema 0."""
_SCHEMA_VERSION: Final = len(_STEPS)
_MOST_AT_ONCE: Final = 64
"""Writes that are committed together when that many wait."""

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Operation(Generic[_Result]):
    """
    Something to be done with the database, and what follows from it in the event loop.

    Attributes:
        work: Called in the writer thread, within a transaction; again if others in the same transaction failed.
        follow_up: Called in the event loop when it is committed, before anybody who waits goes on.
    """

    work: Callable[[sqlite3.Connection], _Result]
    follow_up: Callable[[_Result], None] | None
    answer: asyncio.Future[_Result]

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


class SQLiteStore(Store):
    """
    Meetings in a file, which one process holds at a time.

    One thread has the database to itself and works through a queue; what waits there is committed together. Records
    are read from memory: nobody else can have changed them. A crash of the process loses nothing, a power failure
    perhaps the last commits.

    Args:
        path: Made when missing, with its directories, for this user only.
        audit_entries: How many are kept of each meeting.
    """

    def __init__(self, path: Path, *, audit_entries: int = 10_000) -> None:
        self._path = path.absolute()
        self._audit_entries = audit_entries
        self._records: dict[RoomId, Record] = {}
        self._kept = KeptKeys()
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
        opened: asyncio.Future[tuple[dict[RoomId, Record], KeptKeys]] = loop.create_future()
        self._ended = loop.create_future()
        # A daemon: whoever forgets to close must not keep the interpreter, and what was answered is in the file.
        self._thread = Thread(
            target=self._serve, args=(loop, queue, opened, self._ended), name="signaling-sqlite", daemon=True
        )
        self._thread.start()
        try:
            self._records, self._kept = await opened
        except asyncio.CancelledError:
            queue.put(None)  # the thread lets go of everything by itself
            raise
        except Exception:
            await self.close()
            raise
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

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept, sorted. Asks the database, and so tells whether that answers."""
        return await self._do(_rooms)

    async def read(self, room: RoomId) -> Record | None:
        """The newest record of a meeting, `None` if there is none."""
        self._open_queue()
        return self._records.get(room)

    async def write(
        self, record: Record, *, announcements: Sequence[Announcement] = (), audit: AuditEntry | None = None
    ) -> bool:
        """Put `record` in the place of the one before it, if it is the next. Cancelling stops the waiting only."""
        commit = Commit(record, tuple(announcements))
        entry = None if audit is None else (audit.command_id, dump_audit_entry(audit))
        work = partial(_write, record.state.room, record.revision, dump_record(record), entry, self._audit_entries)
        return await self._do(work, partial(self._note_write, commit))

    async def forget(self, room: RoomId, revision: int) -> bool:
        """Drop a meeting and its audit, if `revision` is still the kept one. Cancelling stops the waiting only."""
        return await self._do(partial(_forget, room, revision), partial(self._note_forgotten, room))

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """The newest entries of a meeting, newest first."""
        return await self._do(partial(_audit, room, limit, before))

    async def has_audited(self, room: RoomId, command_id: CommandId) -> bool:
        """Whether an entry of this command is kept."""
        return await self._do(partial(_has_audited, room, command_id))

    async def keep_once(self, kind: Kept, key: str, *, until: float, now: float) -> bool:
        """Keep a key; whether it was not kept before. Cancelling stops the waiting only."""
        self._open_queue()
        if self._kept.at(kind, now).get(key, float("-inf")) >= until:
            return False
        follow_up = partial(self._note_kept, kind, key, until)
        return await self._do(partial(_keep_once, kind, key, until, now), follow_up)

    async def kept(self, kind: Kept, *, now: float) -> dict[str, float]:
        """All keys of a kind, and until when each is kept."""
        self._open_queue()
        return dict(self._kept.at(kind, now))

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every commit from now on."""
        self._listeners.append(listener)

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[None]:
        """A meeting's exclusive step; waiting ones go in order."""
        return self._turns.of(room)

    # --- In the event loop ---------------------------------------------------------------------------------------

    def _open_queue(self) -> SimpleQueue[_Operation[Any] | None]:
        if self._queue is None:
            raise StoreError(f"{self._path}: is not open")
        return self._queue

    async def _do(
        self, work: Callable[[sqlite3.Connection], _Result], follow_up: Callable[[_Result], None] | None = None
    ) -> _Result:
        queue = self._open_queue()
        answer: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        queue.put(_Operation(work, follow_up, answer))
        return await answer

    def _note_write(self, commit: Commit, written: bool) -> None:  # noqa: FBT001 - the result, whatever it is
        if not written:
            return
        self._records[commit.record.state.room] = commit.record
        for listener in self._listeners:
            listener(commit)

    def _note_forgotten(self, room: RoomId, forgotten: bool) -> None:  # noqa: FBT001 - the result, whatever it is
        if forgotten:
            del self._records[room]

    def _note_kept(self, kind: Kept, key: str, until: float, _is_first: bool) -> None:  # noqa: FBT001 - as above
        self._kept.add(kind, key, until)

    # --- In the writer thread ------------------------------------------------------------------------------------

    def _serve(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: SimpleQueue[_Operation[Any] | None],
        opened: asyncio.Future[tuple[dict[RoomId, Record], KeptKeys]],
        ended: asyncio.Future[None],
    ) -> None:
        def tell(callback: Callable[..., None], *arguments: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(callback, *arguments)

        try:
            with closing(_connect(self._path)) as database:
                tell(_resolve, opened, _prepare(database, self._path), None)
                while batch := _next_batch(queue):
                    for settle in self._carry_out(database, batch):
                        tell(settle)
        except sqlite3.Error as error:
            tell(_resolve, opened, None, _failure(self._path, error))
        except OSError as error:
            failure = StoreError(f"{self._path}: {error.strerror} ({error.filename})")
            failure.__cause__ = error
            tell(_resolve, opened, None, failure)
        except Exception as error:  # noqa: BLE001 - passed on to whoever opens
            tell(_resolve, opened, None, error)
        finally:
            tell(_resolve, ended, None, None)

    def _carry_out(self, database: sqlite3.Connection, batch: Sequence[_Operation[Any]]) -> list[Callable[[], None]]:
        """Do all of it in one transaction, or each by itself when that fails; what then is to be done in the loop."""
        try:
            database.execute("BEGIN IMMEDIATE")
            done: list[Callable[[], None]] = [partial(each.settle, each.work(database)) for each in batch]
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - passed on to whoever waits
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            if len(batch) > 1:
                return [settle for each in batch for settle in self._carry_out(database, [each])]
            failure = _failure(self._path, error) if isinstance(error, sqlite3.Error) else error
            return [partial(batch[0].fail, failure)]
        return done


def _next_batch(queue: SimpleQueue[_Operation[Any] | None]) -> list[_Operation[Any]]:
    """What waits, or what comes next; nothing when it is over."""
    batch: list[_Operation[Any]] = []
    operation = queue.get()
    while operation is not None:
        batch.append(operation)
        if len(batch) == _MOST_AT_ONCE:
            break
        try:
            operation = queue.get_nowait()
        except Empty:
            break
    else:
        if batch:
            queue.put(None)  # nothing comes after the end, so it is still the last
    return batch


def _resolve(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _failure(path: Path, error: sqlite3.Error) -> StoreError:
    # The low byte is the kind of error; errors of Python's own have no code.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        failure: StoreError = StoreLocked(f"{path}: another process holds it")
    else:
        failure = StoreError(f"{path}: {error}")
    failure.__cause__ = error
    return failure


# --- The database ------------------------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    _make_directory(path.parent)
    if path.is_dir():
        raise StoreError(f"{path}: is a directory")
    with suppress(FileExistsError):
        # Never opened when it exists: closing it would let go of a lock that this process holds.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return sqlite3.connect(path, timeout=0, isolation_level=None)


def _make_directory(directory: Path) -> None:
    if not directory.is_dir():
        _make_directory(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def _prepare(database: sqlite3.Connection, path: Path) -> tuple[dict[RoomId, Record], KeptKeys]:
    """Lock the file, make the tables that it does not have yet, and read all that is read from memory later."""
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")  # kept until the end
    application_id, version, tables = (
        database.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if application_id != _APPLICATION_ID and (application_id or version or tables):
        raise StoreError(f"{path}: is a database of something else")
    if application_id and version > _SCHEMA_VERSION:
        raise StoreError(f"{path}: has schema {version}, and this version knows {_SCHEMA_VERSION} at most")
    for step in _STEPS[version:]:
        for statement in step:
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    database.execute("COMMIT")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    records = {}
    for room, data in database.execute("SELECT room, record FROM meetings"):
        try:
            records[RoomId(room)] = load_record(data)
        except StoreError as error:
            raise StoreError(f"{path}: meeting {room}: {error}") from error
    kept = KeptKeys()
    for kind, key, until in database.execute("SELECT kind, key, until FROM kept"):
        kept.add(Kept(kind), key, until)
    return records, kept


def _rooms(database: sqlite3.Connection) -> tuple[RoomId, ...]:
    return tuple(RoomId(room) for (room,) in database.execute("SELECT room FROM meetings ORDER BY room"))


def _write(
    room: RoomId,
    revision: int,
    record: bytes,
    entry: tuple[CommandId, bytes] | None,
    audit_entries: int,
    database: sqlite3.Connection,
) -> bool:
    if revision == 1:
        written = database.execute("INSERT OR IGNORE INTO meetings VALUES (?, 1, ?)", (room, record))
    else:
        written = database.execute(
            "UPDATE meetings SET revision = ?, record = ? WHERE room = ? AND revision = ?",
            (revision, record, room, revision - 1),
        )
    if written.rowcount == 0:
        return False
    if entry is not None:
        (newest,) = database.execute("SELECT max(number) FROM audit WHERE room = ?", (room,)).fetchone()
        number = (newest or 0) + 1
        database.execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (room, number, *entry))
        database.execute("DELETE FROM audit WHERE room = ? AND number <= ?", (room, number - audit_entries))
    return True


def _forget(room: RoomId, revision: int, database: sqlite3.Connection) -> bool:
    if not database.execute("DELETE FROM meetings WHERE room = ? AND revision = ?", (room, revision)).rowcount:
        return False
    database.execute("DELETE FROM audit WHERE room = ?", (room,))
    return True


def _keep_once(kind: Kept, key: str, until: float, now: float, database: sqlite3.Connection) -> bool:
    database.execute("DELETE FROM kept WHERE kind = ? AND until < ?", (kind, now))
    known = database.execute("SELECT 1 FROM kept WHERE kind = ? AND key = ?", (kind, key)).fetchone()
    database.execute(
        "INSERT INTO kept VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET until = max(until, excluded.until)",
        (kind, key, until),
    )
    return known is None


def _has_audited(room: RoomId, command_id: CommandId, database: sqlite3.Connection) -> bool:
    found = database.execute("SELECT 1 FROM audit WHERE room = ? AND command_id = ?", (room, command_id))
    return found.fetchone() is not None


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
