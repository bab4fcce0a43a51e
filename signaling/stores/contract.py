"""What every store does."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from signaling.core.conclusions import Announcement
from signaling.core.decisions import Decision
from signaling.core.state import MeetingState, apply
from signaling.identifiers import CommandId, ParticipantId, RoomId
from signaling.messages.moderation import Outcome


@dataclass(frozen=True, slots=True)
class Record:
    """
    What is kept of a meeting.

    Attributes:
        revision: Goes up by one with each write; the first has 1.
        staged: A decision that is being carried out; new tokens already see it, and a crash does not lose it.
    """

    revision: int
    state: MeetingState
    staged: Decision | None = None

    @property
    def effective(self) -> MeetingState:
        """The state as it will be if the staged decision comes true."""
        return self.state if self.staged is None else apply(self.state, self.staged.changes)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One command that was carried out; `moderator` is `controller` for what the host did."""

    command_id: CommandId
    at: float
    moderator: ParticipantId
    action: str
    targets: tuple[ParticipantId, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """A write that was made, and what is to be announced because of it."""

    record: Record
    announcements: tuple[Announcement, ...] = ()


Listener = Callable[[Commit], None]


class Store(Protocol):
    """
    Keeps meetings. Every method raises `StoreError` when the store does not answer; then nothing was written.

    A write that is cancelled may still be made. All calls come from one event loop.
    """

    async def open(self) -> None:
        """Get ready. Raises `StoreLocked` when another process holds what only one may hold."""

    async def close(self) -> None:
        """Finish what was begun and let go of everything. Closing twice is fine; using it after that is not."""

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept, sorted."""

    async def read(self, room: RoomId) -> Record | None:
        """The newest record of a meeting, `None` if there is none."""

    async def write(
        self, record: Record, *, announcements: Sequence[Announcement] = (), audit: AuditEntry | None = None
    ) -> bool:
        """
        Put `record` in the place of the one before it, with its audit entry, in one step.

        Listeners are called, in the order of the writes of a meeting, before this returns.

        Returns:
            Whether it was written: not so when the kept revision is no longer `record.revision - 1` (0: none is kept).
        """

    async def forget(self, room: RoomId, revision: int) -> bool:
        """Drop a meeting and its audit, if `revision` is still the kept one; whether it was."""

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """
        The newest entries of a meeting, newest first; `before` continues after the entry of that command.

        Nothing follows an entry that is not kept (any more).
        """

    async def has_audited(self, room: RoomId, command_id: CommandId) -> bool:
        """Whether an entry of this command is kept."""

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every commit from now on, in the event loop. It must not raise or wait."""

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[None]:
        """A meeting's exclusive step: one holder at a time, the others wait in order."""
