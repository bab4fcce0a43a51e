"""The file of a SQLite store: opened, watched, and made anew when somebody else has laid hands on it."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from signaling.errors import StoreError, StoreLocked
from signaling.identifiers import RoomId
from signaling.stores.contract import Kept, Record
from signaling.stores.memory import KeptKeys
from signaling.stores.serialization import load_audit_entry
from signaling.stores.sqlite_log import TABLES, PutAside, read_meetings, write_rows, write_snapshot

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
    (
        "ALTER TABLE meetings RENAME TO records",
        *TABLES,
        "INSERT INTO snapshots SELECT room, revision, record FROM records",
        "INSERT INTO meetings SELECT room, revision, length(record), 0 FROM records",
        "DROP TABLE records",
    ),
)
"""What makes of each schema the next; an empty file has schema 0."""
_SCHEMA_VERSION: Final = len(_STEPS)
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_SHORT_READ: Final = 522
"""`SQLITE_IOERR_SHORT_READ`, for which Python has no name before 3.12: the file ends before it should."""
_BESIDE: Final = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside the file, and takes for a part of any file of that name."""
_FIRST_LOCK_BYTE: Final = 0x40000000
_LOCK_BYTES: Final = 512
"""What SQLite locks of a file, where no content is ever. Source: sqlite.org/fileformat.html, "The Lock-Byte Page"."""

_Result = TypeVar("_Result")
_Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of the last change; the first two say which file it is."""


@dataclass(slots=True)
class Contents:
    """What the file has but for the audit, and has again when it is made anew."""

    records: dict[RoomId, Record] = field(default_factory=dict)
    kept: KeptKeys = field(default_factory=KeptKeys)
    aside: dict[RoomId, PutAside] = field(default_factory=dict)

    def copy(self) -> "Contents":
        """The same, for another thread."""
        copied = Contents(dict(self.records), aside=dict(self.aside))
        for kind in Kept:
            for key, until in self.kept.at(kind, float("-inf")).items():
                copied.kept.add(kind, key, until)
        return copied

    def note_write(self, record: Record) -> None:
        """A meeting was written."""
        self.records[record.state.room] = record

    def note_forgotten(self, room: RoomId) -> None:
        """A meeting was dropped."""
        del self.records[room]

    def note_kept(self, kind: Kept, key: str, until: float, now: float) -> None:
        """A key is kept, and those of before `now` no longer."""
        self.kept.add(kind, key, until)
        self.kept.at(kind, now)


class SQLiteFile:
    """
    A database in a file that one process holds; everything here is for one thread.

    SQLite goes on with a file that was deleted or replaced, and with one of which it has the pages in memory, and
    nobody finds what it wrote since. So before each transaction the file and its log are compared with what was left.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._left: dict[str, tuple[int, _Stamp]] = {}
        """By path, the file and its log as SQLite has them open: a descriptor, and how they were left."""
        self._reason: str | None = None
        self.contents = Contents()

    def open(self) -> None:
        """
        Lock the file, bring it to the newest schema, and read what is in it.

        Raises:
            StoreLocked: Another process holds it.
            StoreError: It cannot be made, read or written, or is something else.
        """
        try:
            self._database = _connect(self._path)
            self.contents = _prepare(self._database, self._path)
            self._note_how_it_is_left()
        except (sqlite3.Error, OSError) as error:
            raise self.failure(error) from error

    def close(self) -> None:
        """Let go of it."""
        if self._database is not None:
            self._database.close()
            self._database = None
        for descriptor, _ in self._left.values():  # not before: closing one lets go of SQLite's locks
            os.close(descriptor)
        self._left = {}

    def transact(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Do this in one transaction. Raises what it raises, and `sqlite3.Error`; then nothing was written."""
        if self._database is None:
            raise StoreError(f"{self._path}: is not open")
        try:
            self._database.execute("BEGIN IMMEDIATE")
            result = work(self._database)
            self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        finally:
            self._note_how_it_is_left()
        return result

    def failure(self, error: Exception) -> StoreError:
        """The same error in our words, which name the file."""
        match error:
            case StoreError():
                return error
            case OSError():
                failure = StoreError(f"{self._path}: {error.strerror} ({error.filename})")
            # The low byte is the kind of error; errors of Python's own have no code.
            case _ if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                failure = StoreLocked(f"{self._path}: another process holds it")
            case _:
                failure = StoreError(f"{self._path}: {error}")
        failure.__cause__ = error
        return failure

    # --- Damage --------------------------------------------------------------------------------------------------

    def damage(self) -> str | None:
        """What somebody else has done to the file since it was left, if anything."""
        if self._reason is None:
            for path, (_, left) in self._left.items():
                if (found := _stamp_of(path)) != left:
                    self._reason = f"{Path(path).name} was {_happened(left, found)}"
                    break
        return self._reason

    def is_damage(self, error: sqlite3.Error) -> bool:
        """Whether an error means that the file is not what was written, or that it is another by now."""
        if _means_damage(error):
            self._reason = self._reason or str(error)
        return self.damage() is not None

    def renew(self) -> int:
        """
        Make the file anew, with all that is known of it; how many entries of the audit could be saved.

        What somebody has put into its place is kept as `….replaced`.

        Raises:
            StoreLocked: Another process has put a file there, and uses it.
            sqlite3.Error, OSError: It cannot be done; another attempt may succeed.
        """
        _make_directory(self._path.parent)
        theirs = [suffix for suffix in ("", *_BESIDE) if self._is_theirs(self._beside(suffix))]
        if "" in theirs:
            _check_unused(self._path)
        new = self._beside(".new")
        _remove(new, *(self._beside(f".new{suffix}") for suffix in _BESIDE))
        with closing(_connect(new)) as database:
            saved = self._fill(database)
        self.close()  # SQLite finishes its log, unless the file is no longer there
        if "" in theirs:
            _remove(*(self._beside(f".replaced{suffix}") for suffix in _BESIDE))
            for suffix in theirs:
                self._beside(suffix).replace(self._beside(f".replaced{suffix}"))
        _remove(*(self._beside(suffix) for suffix in _BESIDE))
        new.replace(self._path)
        self._database = _connect(self._path)
        _prepare(self._database, self._path)
        self._reason = None
        self._note_how_it_is_left()
        return saved

    def _is_theirs(self, path: Path) -> bool:
        found = _stamp_of(str(path))
        if found is None:
            return False
        _, left = self._left.get(str(path), (None, None))
        return left is None or found[:2] != left[:2]

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def _fill(self, new: sqlite3.Connection) -> int:
        new.execute("BEGIN IMMEDIATE")
        _make_tables(new, 0)
        for record in self.contents.records.values():
            write_snapshot(record, new)
        for found in self.contents.aside.values():
            write_rows(found, new)
        for kind in Kept:
            kept = self.contents.kept.at(kind, float("-inf"))
            new.executemany("INSERT INTO kept VALUES (?, ?, ?)", ((kind, *each) for each in kept.items()))
        saved = 0
        with suppress(sqlite3.Error):  # the rest of the audit cannot be read any more
            for room, number, command_id, entry in self._audit():
                with suppress(StoreError, sqlite3.IntegrityError):  # this is no entry any more
                    load_audit_entry(entry)
                    new.execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (room, number, command_id, entry))
                    saved += 1
        new.execute("COMMIT")
        return saved

    def _audit(self) -> sqlite3.Cursor:
        """From the old file, which is still open, and may be there no longer for anybody else."""
        if self._database is None:
            raise sqlite3.OperationalError("there is no old file")
        return self._database.execute("SELECT room, number, command_id, entry FROM audit ORDER BY room, number")

    def _note_how_it_is_left(self) -> None:
        """And mark what has changed: a file system's own times may stay the same for some milliseconds."""
        for path in (str(self._path), str(self._beside("-wal"))):
            descriptor, left = self._left.get(path, (None, None))
            if descriptor is None:
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except FileNotFoundError:  # SQLite has not made its log yet
                    continue
            found = _stamp(os.fstat(descriptor))
            if found != left:
                with suppress(PermissionError):  # it belongs to another user
                    os.utime(descriptor, ns=(time.time_ns(), time.time_ns()))
                found = _stamp(os.fstat(descriptor))
            self._left[path] = descriptor, found


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _stamp_of(path: str) -> _Stamp | None:
    try:
        return _stamp(os.stat(path))  # noqa: PTH116 - a `Path` would take twice as long, before each transaction
    except (FileNotFoundError, NotADirectoryError):
        return None


def _happened(left: _Stamp, found: _Stamp | None) -> str:
    if found is None:
        return "deleted"
    return "changed" if left[:2] == found[:2] else "replaced"


def _means_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)  # errors of Python's own have none
    return code == _SHORT_READ or code & 0xFF in _DAMAGE  # the low byte is the kind of error


def _check_unused(path: Path) -> None:
    """
    Raises `StoreLocked` if another process holds the file that is there.

    SQLite itself cannot be asked: it would take our log, which is still there, for a part of that file.
    """
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCK_BYTES, _FIRST_LOCK_BYTE)
        except BlockingIOError as error:
            raise StoreLocked(f"{path}: another process holds it") from error


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


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


def _prepare(database: sqlite3.Connection, path: Path) -> Contents:
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
    _make_tables(database, version)
    database.execute("COMMIT")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    records, aside = read_meetings(database)
    kept = KeptKeys()
    for kind, key, until in database.execute("SELECT kind, key, until FROM kept"):
        kept.add(Kept(kind), key, until)
    return Contents(records, kept, aside)


def _make_tables(database: sqlite3.Connection, version: int) -> None:
    """Bring an empty database, or one of an earlier schema, to the newest."""
    for step in _STEPS[version:]:
        for statement in step:
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
