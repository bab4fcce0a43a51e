"""Somebody who follows all meetings beside the nodes: what was committed, and how each meeting stands."""

from signaling.core.changes import Ended
from signaling.core.state import MeetingState
from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import Commit, Staged, Store, Unstaged
from signaling.stores.contract import Fault as StoreFault
from tests.histories.recording import History
from tests.soak.bell import Bell


class Witness:
    """
    What becomes of all meetings.

    Attributes:
        states: As of the newest commit that was heard of.
        commits: How many there were.
        broken: What nobody should have been told who only follows.
    """

    def __init__(self, store: Store, history: History, bell: Bell) -> None:
        self.states = dict[RoomId, MeetingState]()
        self.commits = 0
        self.broken: list[str] = []
        self._history = history
        self._bell = bell
        self._staged: dict[RoomId, CommandId] = {}
        self._ended: set[RoomId] = set()
        store.listen(self._on_commit)
        store.listen_to_faults(self._on_fault)

    def staged(self, room: RoomId) -> CommandId | None:
        """What is being carried out."""
        return self._staged.get(room)

    def end(self, room: RoomId) -> None:
        """What comes now is not recorded any more."""
        self._ended.add(room)

    def _on_commit(self, commit: Commit) -> None:
        entry = commit.entry
        self.commits += 1
        if entry.room not in self._ended:
            self._history.committed(entry)
        self.states[entry.room] = commit.record.state
        match entry.staging:
            case Staged(decision):
                self._staged[entry.room] = decision.command_id
            case Unstaged():
                self._staged.pop(entry.room, None)
            case _ if any(isinstance(change, Ended) for change in entry.changes):
                self._staged.pop(entry.room, None)
        self._bell.ring()

    def _on_fault(self, fault: StoreFault) -> None:
        self.broken.append(f"who only follows was told {fault}")
