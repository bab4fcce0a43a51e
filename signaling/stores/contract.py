"""What every store does: of each meeting it keeps a log, and the record that folding it comes to."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, assert_never

from signaling.core.announcements import Announcement
from signaling.core.applying import apply
from signaling.core.changes import Change
from signaling.core.decisions import Decision
from signaling.core.state import MeetingState
from signaling.identifiers import CommandId, NodeId, ParticipantId, RoomId, SessionId
from signaling.messages.envelope import TransactionId
from signaling.messages.moderation import Outcome


@dataclass(frozen=True, slots=True)
class Record:
    """
    A meeting as it is after a commit.

    Attributes:
        revision: Goes up by one with each commit; the first has 1.
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
class Origin:
    """Whose message caused a commit, so that whoever delivers knows the sender's own copy, on any node."""

    session: SessionId
    transaction_id: TransactionId | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """A decision is being carried out now."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Unstaged:
    """Nothing is being carried out any more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One commit of a meeting.

    Attributes:
        revision: The first of a meeting has 1.
        at: Seconds since the epoch.
        begins_as: What the first entry changes; no other has it.
        staging: What became of what is staged; `None` if that is as it was.
        command_id: Of the command that was committed.
        is_undoable: Whether that command can be undone by its id.
        node: The process that made it.
    """

    room: RoomId
    revision: int
    at: float
    changes: tuple[Change, ...] = ()
    begins_as: MeetingState | None = None
    staging: Staged | Unstaged | None = None
    command_id: CommandId | None = None
    is_undoable: bool = False
    announcements: tuple[Announcement, ...] = ()
    audit: AuditEntry | None = None
    origin: Origin | None = None
    node: NodeId | None = None


def fold(record: Record, entry: Entry) -> Record:
    """The record after an entry that follows it; a meeting that is over has nothing staged."""
    state = apply(
        record.state if entry.begins_as is None else entry.begins_as,
        entry.changes,
        command_id=entry.command_id if entry.is_undoable else None,
    )
    match entry.staging:
        case None:
            staged = record.staged
        case Staged(decision):
            staged = decision
        case Unstaged():
            staged = None
        case _:
            assert_never(entry.staging)
    return Record(entry.revision, state, staged if state.goes_on else None)


@dataclass(frozen=True, slots=True)
class Commit:
    """An entry that was appended, and the record that it made: `fold` of the record before and this entry."""

    entry: Entry
    record: Record


class Kept(StrEnum):
    """
    What is kept beside the meetings, by a key, for as long as what it protects can be used.

    Attributes:
        TICKET: One that was used.
        WEBHOOK: The id of one that was received.
        CLOSED_ROOM: A LiveKit room of a meeting that has ended.
    """

    TICKET = "ticket"
    WEBHOOK = "webhook"
    CLOSED_ROOM = "closed_room"


Listener = Callable[[Commit], None]


@dataclass(frozen=True, slots=True)
class FellBack:
    """
    The store has lost commits of a meeting that it had acknowledged: it was restored, or another one took its place.

    Attributes:
        record: The meeting as it is kept now, `None` if it is not kept any more.
        command_ids: Of the commands that are lost, oldest first, as far as this process has seen their commits.
    """

    room: RoomId
    record: Record | None
    command_ids: tuple[CommandId, ...]


@dataclass(frozen=True, slots=True)
class FellBehind:
    """
    What was committed elsewhere can be followed no longer without leaving something out.

    Attributes:
        room: The meeting; `None` for all.
        reason: In one sentence, for the log.
    """

    room: RoomId | None
    reason: str


Fault = FellBack | FellBehind
FaultListener = Callable[[Fault], None]


class Turn(Protocol):
    """A meeting's exclusive step, as it is held."""

    @property
    def fence(self) -> int:
        """A later turn of the meeting has a higher one, and a commit with one of before fails."""

    @property
    def is_taken_over(self) -> bool:
        """Whether its holder before was not heard of for too long: what they still do must be made up for."""

    @property
    def lease_s(self) -> float:
        """How long a holder who is not heard of keeps it; `inf` where that cannot happen."""

    def lasts(self, for_s: float) -> bool:
        """Whether nobody else can have the turn within that time, by a clock that cannot be set."""


class Store(Protocol):
    """
    Keeps meetings. Every method raises `StoreError` when the store does not answer; then nothing was written, or (where
    the answer was lost for good) what was written is followed like others' commits.

    So does what is asked about a meeting that cannot be read: it is put aside, and left as it is found. A write that is
    cancelled may still be made. All calls come from one event loop.
    """

    @property
    def lease_s(self) -> float:
        """How long a turn is kept for a holder who is not heard of; `inf` where that cannot happen."""

    async def open(self) -> None:
        """Get ready. Raises `StoreLocked` when another process holds what only one may hold."""

    async def close(self) -> None:
        """Finish what was begun and let go of everything. Closing twice is fine; using it after that is not."""

    async def check(self) -> None:
        """Return if the store can be written now, as far as trying it shows; raises `StoreError` if not."""

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept and can be read, sorted."""

    async def read(self, room: RoomId) -> Record | None:
        """The newest record of a meeting, `None` if there is none."""

    def known(self, room: RoomId) -> Record | None:
        """
        The newest record of a meeting as far as this process knows, without asking.

        Others may have committed since, so it is good for what `append` checks, and for what does no harm if it is not
        so. `None`: it is to be read.
        """

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        """
        Append an entry to a meeting's log, with its audit entry, in one step.

        Listeners are called, in the order of a meeting's log, before this returns.

        Args:
            fence: That of the turn to which it belongs; `None` if it belongs to none.

        Raises:
            TurnLost: That turn is over, or somebody else's by now.

        Returns:
            Whether it was: not so when the kept revision is no longer `entry.revision - 1` (0: none is kept).
        """

    async def entries(self, room: RoomId, after: int) -> tuple[Entry, ...] | None:
        """
        What followed this revision, oldest first.

        Returns:
            `None` when that is not known (any more): the record is to be read instead, which took its place.
        """

    async def forget(self, room: RoomId, revision: int) -> bool:
        """Drop a meeting and its audit, if `revision` is still the kept one; whether it was."""

    async def audit(self, room: RoomId, *, limit: int, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """
        The newest entries of a meeting, newest first; `before` continues after the entry of that command.

        Nothing follows an entry that is not kept (any more).
        """

    async def audited(self, room: RoomId, command_id: CommandId) -> AuditEntry | None:
        """The entry of this command, `None` if it is not kept (any more)."""

    async def keep_once(self, kind: Kept, key: str, *, until: float, now: float) -> bool:
        """
        Keep a key; of all who do that with the same one, at once or after a restart, one is told that it is the first.

        Args:
            until: Seconds since the epoch; a later one replaces an earlier one, whoever is first.
            now: Seconds since the epoch; what was kept until before that counts for nothing.

        Returns:
            Whether it was not kept before.
        """

    async def keep_no_longer(self, kind: Kept, key: str) -> None:
        """What was kept by this key need not be kept any more."""

    async def kept(self, kind: Kept, *, now: float) -> dict[str, float]:
        """All keys of a kind, and until when each is kept."""

    def listen(self, listener: Listener) -> None:
        """
        Call `listener` with every commit that is made here from now on, and with others' of meetings that are followed.

        In the event loop, in the order of each meeting's log, each commit once. It must not raise or wait.
        """

    def listen_to_faults(self, listener: FaultListener) -> None:
        """Call `listener` with what went wrong with the store itself, as `listen` does with commits."""

    def follow(self, room: RoomId) -> None:
        """Have listeners called with what others commit to a meeting too, from what this process reads next on."""

    def unfollow(self, room: RoomId) -> None:
        """A meeting need not be followed any more."""

    async def time(self) -> float | None:
        """What time it is for all nodes alike, in seconds since the epoch; `None` if there is one node."""

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[Turn]:
        """
        A meeting's exclusive step: one holder at a time, on whichever node; the others wait in order, woken in turn.

        Raises:
            StoreError: It could not be taken.
        """

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        """
        A node says that it lives, until then at least: people who are connected to it keep their places.

        Args:
            until: Seconds since the epoch; not after `now` when it ends.
            now: Seconds since the epoch.

        Returns:
            All nodes that live now.
        """

    async def left_alone(self) -> tuple[RoomId, ...]:
        """
        Every meeting that is kept and after which no node looks that lived at the last beat of any, sorted.

        Whoever begins a meeting looks after it from then on, if it lives.
        """

    async def look_after(self, room: RoomId, node: NodeId, *, now: float) -> bool:
        """
        Have a node look after a meeting, unless another one that lives does: whether it does.

        One node at a time sweeps a meeting, and tells what that has shown.
        """
