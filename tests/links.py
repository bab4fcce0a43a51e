"""What several nodes share, as each sees it: a store that may lose commits, tell its own time, or be heard late."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import Commit, Fault, FaultListener, FellBack, Listener, Record, Store
from signaling.stores.memory import MemoryStore, _Log


class SharedStore(MemoryStore):
    """A store that nodes reach by links, and that can be as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[Link] = []
        self._history: defaultdict[RoomId, list[Commit]] = defaultdict(list)

    def link(self, tells: Callable[[], float] | None = None) -> Store:
        """One node's way here, and perhaps what time it is for all."""
        self.links.append(link := Link(self))
        link.tells = tells
        return cast("Store", link)

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        is_next = await super().append(commit, fence=fence)
        if is_next:
            self._history[commit.entry.room].append(commit)
        return is_next

    def fall_back(self, room: RoomId, revision: int) -> FellBack:
        """Lose all that followed a revision, and tell every node."""
        history = self._history[room]
        kept, lost = history[:revision], history[revision:]
        self._history[room] = kept
        record: Record | None = None
        del self._logs[room]
        if kept:
            self._logs[room] = log = _Log()
            for commit in kept:
                log.append(commit)
            record = log.record
        ids: list[CommandId] = [commit.entry.audit.command_id for commit in lost if commit.entry.audit is not None]
        fault = FellBack(room, record, tuple(ids))
        for link in self.links:
            link.fail(fault)
        return fault


class Link:
    """One node's way to a store: what others commit may be held back, as when the node is paused."""

    def __init__(self, store: SharedStore) -> None:
        self.is_paused = False
        self.tells: Callable[[], float] | None = None
        self._store = store
        self._own: Commit | None = None
        self._unheard: list[Commit] = []
        self._listeners: list[Listener] = []
        self._fault_listeners: list[FaultListener] = []
        store.listen(self._hear)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a store has
        return getattr(self._store, name)

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        """Append; what came before is heard first."""
        self._own = commit
        return await self._store.append(commit, fence=fence)

    async def time(self) -> float | None:
        """What time it is, if a test says so."""
        return None if self.tells is None else self.tells()

    def listen(self, listener: Listener) -> None:
        """Call `listener` with what is heard here."""
        self._listeners.append(listener)

    def listen_to_faults(self, listener: FaultListener) -> None:
        """Call `listener` with what `fail` is given."""
        self._fault_listeners.append(listener)

    def fail(self, fault: Fault) -> None:
        """Something went wrong with the store."""
        for listener in self._fault_listeners:
            listener(fault)

    def resume(self) -> None:
        """Hear what others have committed meanwhile."""
        self.is_paused = False
        self._tell()

    def _hear(self, commit: Commit) -> None:
        self._unheard.append(commit)
        if commit is self._own or not self.is_paused:
            self._tell()

    def _tell(self) -> None:
        unheard, self._unheard = self._unheard, []
        for commit in unheard:
            for listener in self._listeners:
                listener(commit)
