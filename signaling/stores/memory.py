"""A store for one process that may be lost with it: the default of the embedded module, the demo and many tests."""

import heapq
from array import array
from collections import defaultdict, deque
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import islice
from sys import intern
from typing import TYPE_CHECKING, Final

from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import AuditEntry, Commit, Entry, Kept, Listener, Record, Store, Turn
from signaling.stores.nodes import OneProcess, Turns

if TYPE_CHECKING:
    from signaling.messages.moderation import Outcome

_MOST_IN_LOG: Final = 256
"""Entries of a meeting's log that are kept; each outcome in them counts as one more."""


class KeptKeys:
    """Keys of each kind, for as long as they are kept."""

    def __init__(self) -> None:
        self._until: defaultdict[Kept, dict[str, float]] = defaultdict(dict)
        self._ends: defaultdict[Kept, list[tuple[float, str]]] = defaultdict(list)

    def add(self, kind: Kept, key: str, until: float) -> None:
        """Keep a key until then, or until it was kept anyway if that is later."""
        known = self._until[kind]
        if until > known.get(key, float("-inf")):
            known[key] = until
            heapq.heappush(self._ends[kind], (until, key))

    def drop(self, kind: Kept, key: str) -> None:
        """Keep a key no longer."""
        self._until[kind].pop(key, None)

    def at(self, kind: Kept, now: float) -> dict[str, float]:
        """What is kept of a kind; the rest is dropped. Not to be changed by the caller."""
        known, ends = self._until[kind], self._ends[kind]
        while ends and ends[0][0] < now:
            until, key = heapq.heappop(ends)
            if known.get(key) == until:  # else it was kept for longer
                del known[key]
        return known


class _KeptEntry:
    """An audit entry, where outcomes that are alike are kept as one: a room-wide command has one for each person."""

    __slots__ = ("_alike", "_entry")

    def __init__(self, entry: AuditEntry) -> None:
        alike: dict[tuple[object, ...], tuple[Outcome, array[int], list[str]]] = {}
        for place, outcome in enumerate(entry.outcomes):
            said = tuple(value for name, value in outcome if name != "participant")
            _, places, people = alike.setdefault(said, (outcome, array("I"), []))
            places.append(place)
            people.append(intern(str(outcome.participant)))
        self._alike = tuple(alike.values())
        self._entry = replace(entry, outcomes=())

    @property
    def command_id(self) -> CommandId:
        return self._entry.command_id

    def entry(self) -> AuditEntry:
        """As it was."""
        outcomes = {
            place: outcome.model_copy(update={"participant": participant})
            for outcome, places, people in self._alike
            for place, participant in zip(places, people, strict=True)
        }
        return replace(self._entry, outcomes=tuple(outcomes[place] for place in sorted(outcomes)))


class _Log:
    """What a meeting's log comes to, and the end of it."""

    __slots__ = ("_entries", "_weight", "record")

    def __init__(self) -> None:
        self.record: Record | None = None
        self._entries: deque[Entry] = deque()
        self._weight = 0

    def append(self, commit: Commit) -> None:
        self.record = commit.record
        self._entries.append(commit.entry)
        self._weight += _weight(commit.entry)
        while self._weight > _MOST_IN_LOG:
            self._weight -= _weight(self._entries.popleft())

    def after(self, revision: int) -> tuple[Entry, ...] | None:
        """What followed this revision; `None` if not all of that is kept."""
        newest = 0 if self.record is None else self.record.revision
        first = newest - len(self._entries)
        return tuple(islice(self._entries, revision - first, None)) if first <= revision <= newest else None


def _weight(entry: Entry) -> int:
    return 1 + (0 if entry.audit is None else len(entry.audit.outcomes))


class MemoryStore(OneProcess, Store):
    """Meetings in this process' memory."""

    def __init__(self, *, audit_entries: int = 10_000) -> None:
        super().__init__()
        self._logs: dict[RoomId, _Log] = {}
        self._audit: defaultdict[RoomId, deque[_KeptEntry]] = defaultdict(lambda: deque(maxlen=audit_entries))
        self._kept = KeptKeys()
        self._listeners: list[Listener] = []
        self._turns = Turns()

    async def open(self) -> None:
        """Nothing is to be got ready."""

    async def close(self) -> None:
        """Nothing is to be let go of."""

    async def check(self) -> None:
        """Nothing can be in the way."""

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept, sorted."""
        return tuple(sorted(self._logs))

    async def read(self, room: RoomId) -> Record | None:
        """The newest record of a meeting, `None` if there is none."""
        log = self._logs.get(room)
        return None if log is None else log.record

    def known(self, room: RoomId) -> Record | None:
        """The newest record of a meeting."""
        log = self._logs.get(room)
        return None if log is None else log.record

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        """Append an entry, if it is the next."""
        room = commit.entry.room
        self._turns.check(room, fence)
        kept = await self.read(room)
        if commit.entry.revision != (0 if kept is None else kept.revision) + 1:
            return False
        if kept is None:
            self.nodes.begin(room, commit.entry.node)
        self._logs.setdefault(room, _Log()).append(commit)
        if commit.entry.audit is not None:
            self._audit[room].append(_KeptEntry(commit.entry.audit))
        for listener in self._listeners:
            listener(commit)
        return True

    async def entries(self, room: RoomId, after: int) -> tuple[Entry, ...] | None:
        """What followed this revision, oldest first; `None` when not all of that is kept."""
        log = self._logs.get(room)
        return None if log is None else log.after(after)

    async def forget(self, room: RoomId, revision: int) -> bool:
        """Drop a meeting and its audit, if `revision` is still the kept one."""
        kept = await self.read(room)
        if kept is None or kept.revision != revision:
            return False
        del self._logs[room]
        self._audit.pop(room, None)
        self.nodes.forget(room)
        return True

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """The newest entries of a meeting, newest first."""
        entries = list(reversed(self._audit.get(room, ())))
        ids = [entry.command_id for entry in entries]
        if before is None:
            start = 0
        elif before in ids:
            start = ids.index(before) + 1
        else:
            start = len(entries)  # it was dropped, and so were those before it
        return tuple(kept.entry() for kept in entries[start : start + limit])

    async def audited(self, room: RoomId, command_id: CommandId) -> AuditEntry | None:
        """The entry of this command, `None` if it is not kept (any more)."""
        kept = (entry for entry in reversed(self._audit.get(room, ())) if entry.command_id == command_id)
        entry = next(kept, None)
        return None if entry is None else entry.entry()

    async def keep_once(self, kind: Kept, key: str, *, until: float, now: float) -> bool:
        """Keep a key; whether it was not kept before."""
        is_first = key not in self._kept.at(kind, now)
        self._kept.add(kind, key, until)
        return is_first

    async def keep_no_longer(self, kind: Kept, key: str) -> None:
        """What was kept by this key need not be kept any more."""
        self._kept.drop(kind, key)

    async def kept(self, kind: Kept, *, now: float) -> dict[str, float]:
        """All keys of a kind, and until when each is kept."""
        return dict(self._kept.at(kind, now))

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every commit from now on."""
        self._listeners.append(listener)

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[Turn]:
        """A meeting's exclusive step; waiting ones go in order."""
        return self._turns.of(room)

    async def left_alone(self) -> tuple[RoomId, ...]:
        """Every meeting after which no node looks that lived at the last beat, sorted."""
        return self.nodes.left_alone(self._logs)
