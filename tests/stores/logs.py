"""Logs for the tests of stores: of meetings in which Bob's hand goes up and down."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from signaling.core.announcements import Announcement
from signaling.core.changes import Banned, Change, HandSet
from signaling.core.decisions import Decision
from signaling.identifiers import ParticipantId, RoomId
from signaling.stores.contract import AuditEntry, Commit, Entry, Record, Staged, Store, fold
from tests.core.meetings import BOARD, BOB, MEETING


def begun(room: RoomId = BOARD) -> Record:
    """The meeting before its first entry."""
    return Record(0, replace(MEETING, room=room, version=0))


def following(
    before: Record,
    *changes: Change,
    announcements: Sequence[Announcement] = (),
    audit: AuditEntry | None = None,
    staged: Decision | None = None,
) -> Commit:
    """What makes these changes of a record."""
    entry = Entry(
        before.state.room,
        before.revision + 1,
        1_000.0 + before.revision,
        changes,
        begins_as=None if before.revision else before.state,
        staging=None if staged is None else Staged(staged),
        announcements=tuple(announcements),
        audit=audit,
    )
    return Commit(entry, fold(before, entry))


def hand(revision: int) -> HandSet:
    """What the entry of this revision changes."""
    return HandSet(BOB, up=revision % 2 == 1, at=float(revision))


@cache
def record(revision: int, room: RoomId = BOARD) -> Record:
    """A meeting after so many entries."""
    return following(record(revision - 1, room), hand(revision)).record if revision else begun(room)


def commit(
    revision: int,
    room: RoomId = BOARD,
    *,
    announcements: Sequence[Announcement] = (),
    audit: AuditEntry | None = None,
) -> Commit:
    """The commit that makes `record(revision)` of the one before."""
    before = replace(record(max(revision - 1, 0), room), revision=revision - 1)
    return following(before, hand(revision), announcements=announcements, audit=audit)


def large(before: Record) -> Commit:
    """A commit that takes much space."""
    people = frozenset(ParticipantId(f"{before.revision}-{number:0100}") for number in range(1_000))
    return following(before, Banned(people))


async def append(store: Store, revision: int, room: RoomId = BOARD, *, audit: AuditEntry | None = None) -> bool:
    """Append the entry of this revision; whether it was."""
    return await store.append(commit(revision, room, audit=audit))
