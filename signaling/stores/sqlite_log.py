"""The logs of meetings in the tables of a SQLite file: entries, and snapshots that took the place of older ones."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from signaling.core.state import MeetingState
from signaling.errors import StoreError
from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import Commit, Entry, Record, fold
from signaling.stores.serialization import dump_record, load_entry, load_record

TABLES: Final = (
    """CREATE TABLE meetings (room TEXT PRIMARY KEY,
        revision INTEGER NOT NULL, snapshot_bytes INTEGER NOT NULL, entry_bytes INTEGER NOT NULL)""",
    "CREATE TABLE snapshots (room TEXT PRIMARY KEY, revision INTEGER NOT NULL, record BLOB NOT NULL)",
    "CREATE TABLE entries (room TEXT NOT NULL, revision INTEGER NOT NULL, entry BLOB NOT NULL)",
    "CREATE UNIQUE INDEX entries_by_revision ON entries (room, revision)",
)
"""Of each meeting its newest revision and how much is kept of it, the newest snapshot if any, and what followed."""
_TABLES_OF_LOGS: Final = ("meetings", "snapshots", "entries")
LEAST_BYTES: Final = 64 * 1024
"""What the entries of a meeting may weigh, however small its snapshot is."""

_Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class PutAside:
    """A meeting that cannot be read: what is wrong with it, and its rows by their table, as they were found."""

    reason: str
    rows: tuple[tuple[str, _Row], ...]


def append_entry(
    commit: Commit,
    entry: bytes,
    audit: tuple[CommandId, bytes] | None,
    audit_entries: int,
    database: sqlite3.Connection,
) -> bool:
    """Append an entry, if it is the next; or a snapshot in the place of all entries, if they outweigh the last one."""
    room, revision = commit.entry.room, commit.entry.revision
    head = database.execute(
        "SELECT revision, snapshot_bytes, entry_bytes FROM meetings WHERE room = ?", (room,)
    ).fetchone()
    newest, snapshot_bytes, entry_bytes = head or (0, 0, 0)
    if revision != newest + 1:
        return False
    entry_bytes += len(entry)
    if entry_bytes > max(snapshot_bytes, LEAST_BYTES):
        write_snapshot(commit.record, database)
    else:
        database.execute("INSERT INTO entries VALUES (?, ?, ?)", (room, revision, entry))
        if head is None:
            database.execute("INSERT INTO meetings VALUES (?, ?, ?, ?)", (room, revision, snapshot_bytes, entry_bytes))
        else:
            database.execute(
                "UPDATE meetings SET revision = ?, entry_bytes = ? WHERE room = ?", (revision, entry_bytes, room)
            )
    if audit is not None:
        (last,) = database.execute("SELECT max(number) FROM audit WHERE room = ?", (room,)).fetchone()
        number = (last or 0) + 1
        database.execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (room, number, *audit))
        database.execute("DELETE FROM audit WHERE room = ? AND number <= ?", (room, number - audit_entries))
    return True


def write_snapshot(record: Record, database: sqlite3.Connection) -> None:
    """Put a record in the place of all that is kept of its meeting."""
    room, data = record.state.room, dump_record(record)
    database.execute("REPLACE INTO snapshots VALUES (?, ?, ?)", (room, record.revision, data))
    database.execute("DELETE FROM entries WHERE room = ?", (room,))
    database.execute("REPLACE INTO meetings VALUES (?, ?, ?, 0)", (room, record.revision, len(data)))


def forget_meeting(room: RoomId, revision: int, database: sqlite3.Connection) -> bool:
    """Drop a meeting and its audit, if `revision` is still the kept one."""
    if not database.execute("DELETE FROM meetings WHERE room = ? AND revision = ?", (room, revision)).rowcount:
        return False
    for table in ("snapshots", "entries", "audit"):
        database.execute(f"DELETE FROM {table} WHERE room = ?", (room,))  # noqa: S608 - of three
    return True


def entries_after(room: RoomId, after: int, database: sqlite3.Connection) -> tuple[Entry, ...] | None:
    """
    What followed this revision; `None` if not all of that is kept.

    Raises:
        StoreError: An entry cannot be read; the message names the meeting.
    """
    head = database.execute("SELECT revision FROM meetings WHERE room = ?", (room,)).fetchone()
    if head is None:
        return None
    rows = database.execute(
        "SELECT revision, entry FROM entries WHERE room = ? AND revision > ? ORDER BY revision", (room, after)
    ).fetchall()
    if len(rows) != head[0] - after:  # also when it is none that there has been
        return None
    try:
        return tuple(_entry(room, revision, data) for revision, data in rows)
    except StoreError as error:
        raise StoreError(f"meeting {room}: {error}") from error


def read_meetings(database: sqlite3.Connection) -> tuple[dict[RoomId, Record], dict[RoomId, PutAside]]:
    """Every meeting as its log says, and those of which it says nothing."""
    records, aside = {}, {}
    anywhere = " UNION ".join(f"SELECT room FROM {table}" for table in _TABLES_OF_LOGS)  # noqa: S608 - of three
    for (room,) in database.execute(anywhere).fetchall():
        heads, snapshots, entries = (
            database.execute(f"SELECT * FROM {table} WHERE room = ? ORDER BY revision", (room,)).fetchall()  # noqa: S608
            for table in _TABLES_OF_LOGS
        )
        try:
            records[RoomId(room)] = _replay(room, heads, snapshots, entries)
        except StoreError as error:
            found = zip(_TABLES_OF_LOGS, (heads, snapshots, entries), strict=True)
            rows = tuple((table, row) for table, rows in found for row in rows)
            aside[RoomId(room)] = PutAside(f"meeting {room}: {error}", rows)
    return records, aside


def write_rows(found: PutAside, database: sqlite3.Connection) -> None:
    """Write what is kept of a meeting that cannot be read into another file, as it was found."""
    for table, row in found.rows:
        places = ", ".join("?" * len(row))
        database.execute(f"INSERT INTO {table} VALUES ({places})", row)  # noqa: S608 - as it was read


def _replay(room: RoomId, heads: Sequence[_Row], snapshots: Sequence[_Row], entries: Sequence[_Row]) -> Record:
    """
    The record of a meeting, by its log.

    Raises:
        StoreError: What is wrong with it.
    """
    if not heads:
        raise StoreError("has a log, and is not among the meetings")
    record = Record(0, MeetingState(room))
    for _, revision, data in snapshots:
        record = _snapshot(room, revision, data)
    for _, revision, data in entries:
        if revision <= record.revision:
            raise StoreError(f"the snapshot of revision {record.revision} does not match: entry {revision} is kept too")
        if revision != record.revision + 1:
            raise StoreError(f"entry {revision} follows revision {record.revision}: what is between them is missing")
        entry = _entry(room, revision, data)
        if (revision == 1) != (entry.begins_as is not None):
            raise StoreError(f"entry {revision} does not begin the meeting as the first one does, and only that")
        record = fold(record, entry)
    if record.revision != heads[0][1]:
        raise StoreError(f"ends with revision {record.revision} instead of {heads[0][1]}")
    return record


def _snapshot(room: RoomId, revision: int, data: bytes) -> Record:
    try:
        record = load_record(data)
    except StoreError as error:
        raise StoreError(f"snapshot of revision {revision}: {error}") from error
    if (record.state.room, record.revision) != (room, revision):
        found = f"revision {record.revision} of {record.state.room}"
        raise StoreError(f"the snapshot of revision {revision} does not match: it is of {found}")
    return record


def _entry(room: RoomId, revision: int, data: bytes) -> Entry:
    try:
        entry = load_entry(data)
    except StoreError as error:
        raise StoreError(f"entry {revision}: {error}") from error
    if (entry.room, entry.revision) != (room, revision):
        raise StoreError(f"entry {revision} does not match: it is entry {entry.revision} of {entry.room}")
    return entry
