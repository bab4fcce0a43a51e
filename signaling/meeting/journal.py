"""The record of a meeting, and the only one that writes it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from signaling.core.announcements import Announcement
from signaling.core.applying import apply
from signaling.core.changes import Change
from signaling.core.commands import AnyCommand
from signaling.core.conclusions import Conclusion, conclude, concluded_before
from signaling.core.decisions import Decision, Refusal, decide
from signaling.core.state import MeetingState, new_meeting
from signaling.identifiers import CommandId, NodeId, ParticipantId, RoomId, new_command_id
from signaling.stores.contract import AuditEntry, Commit, Entry, Origin, Record, Staged, Store, Unstaged, fold

NOTHING_TO_DO: Final = Refusal("nothing_to_do")
Listener = Callable[[Record | None, Record, Entry | None], None]
"""Called with the record before a commit, the one that it made, and its entry."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be committed, but for what the journal itself knows of an entry; see `Entry`."""

    changes: tuple[Change, ...] = ()
    staging: Staged | Unstaged | None = None
    command_id: CommandId | None = None
    is_undoable: bool = False
    announcements: tuple[Announcement, ...] = ()
    audit: AuditEntry | None = None
    origin: Origin | None = None
    conclusion: Conclusion | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit that was made: the record that it changed, the one that it made, and what it concluded, if anything."""

    before: Record
    record: Record
    conclusion: Conclusion | None = None


def draft_of(
    decision: Decision, conclusion: Conclusion, staging: Unstaged | None = None, origin: Origin | None = None
) -> Draft:
    """What is to be committed of a decision that was concluded; the audit keeps it if it is an action."""
    audit = AuditEntry(
        decision.command_id,
        decision.at,
        decision.moderator,
        decision.action,
        tuple(sorted(decision.targets | decision.unknown)),
        conclusion.outcomes,
        decision.reason,
    )
    return Draft(
        conclusion.changes,
        staging,
        decision.command_id,
        decision.is_action,
        conclusion.announcements,
        audit if decision.is_action else None,
        origin,
        conclusion,
    )


class Journal:
    """
    What is kept of one meeting, and what is committed to it.

    Args:
        clock: Seconds since the epoch.
        screen_share_requires_permission: How a meeting begins.
        node: This process.

    Attributes:
        newest: The newest commit's record, `None` before the first that this process hears of.
    """

    def __init__(
        self,
        room: RoomId,
        store: Store,
        *,
        clock: Callable[[], float],
        screen_share_requires_permission: bool = False,
        node: NodeId | None = None,
    ) -> None:
        self.room = room
        self.node = node
        self.newest: Record | None = None
        self._store = store
        self._clock = clock
        self._screen_share_requires_permission = screen_share_requires_permission
        self._writing = asyncio.Lock()
        self._line = asyncio.Lock()
        """Of what a turn need not wait for: one of these at a time waits to be written."""
        self._effective: tuple[Record, MeetingState] | None = None
        self._anticipated: dict[object, Change] = {}
        self._listeners: list[Listener] = []

    # --- Reading -------------------------------------------------------------------------------------------------

    async def record(self) -> Record:
        """What is kept of the meeting; of one that is not kept yet, how it would begin."""
        return await self._store.read(self.room) or self.beginning()

    def beginning(self) -> Record:
        """How the meeting would begin."""
        needs_permission = self._screen_share_requires_permission
        return Record(0, new_meeting(self.room, screen_share_requires_permission=needs_permission))

    async def state(self) -> MeetingState:
        """The state that was committed, without a decision that is being carried out."""
        return (await self.record()).state

    async def effective_state(self) -> MeetingState:
        """The newest state, a staged decision and what is about to be committed included."""
        state = self.effective_of(await self.record())
        return apply(state, self._anticipated.values()) if self._anticipated else state

    def effective_of(self, record: Record) -> MeetingState:
        """The state of a record, its staged decision included."""
        if self._effective is None or self._effective[0] is not record:
            # Read before and after each call: for everybody in a room, while one decision is carried out.
            self._effective = record, record.effective
        return self._effective[1]

    async def first_outcome(
        self, command_id: CommandId, decision: Decision | None = None, *, after: int | None = None
    ) -> Conclusion | None:
        """
        What a command came to that was committed, though its answer was lost or another process has finished it.

        Args:
            decision: What it was decided to be, if that is known.
            after: A revision from before it was committed; the audit has actions only.

        Returns:
            `None` if it is not known to have been committed.
        """
        audit = await self._store.audited(self.room, command_id)
        if audit is not None:
            return concluded_before(audit.outcomes, None if decision is None else decision.effect)
        entries = None if after is None else await self._store.entries(self.room, after)
        is_committed = any(entry.command_id == command_id for entry in entries or ())
        return concluded_before(()) if is_committed else None

    def anticipate(self, key: object, change: Change | None) -> None:
        """Have a change count already that is about to be committed; `None`: no longer. A newer one of a key wins."""
        if change is None:
            self._anticipated.pop(key, None)
        else:
            self._anticipated[key] = change

    # --- Writing -------------------------------------------------------------------------------------------------

    async def commit(
        self, draft: Callable[[Record], Draft | Refusal], *, is_urgent: bool = True, fence: int | None = None
    ) -> Committed | Refusal:
        """
        Commit what is drafted by the newest record; drafted again if somebody else was quicker.

        Args:
            is_urgent: Whether it goes before what waits; the writes of turns do.
            fence: That of the turn to which it belongs, if it belongs to one.

        Raises:
            StoreError: Nothing was committed; or it was, and the answer was lost (see `Store`).
        """
        async with AsyncExitStack() as stack:
            if not is_urgent:
                await stack.enter_async_context(self._line)
            await stack.enter_async_context(self._writing)
            known = self._store.known(self.room)  # outdated perhaps: then nothing comes of it but a second try
            while True:
                before = known or await self.record()
                drafted = draft(before)
                if isinstance(drafted, Refusal):
                    if known is None:
                        return drafted
                    known = None
                    continue
                entry = self._entry(before, drafted)
                commit = Commit(entry, fold(before, entry))
                if await self._store.append(commit, fence=fence):
                    self.note(commit.record, entry)
                    return Committed(before, commit.record, drafted.conclusion)
                known = None

    def _entry(self, before: Record, draft: Draft) -> Entry:
        return Entry(
            self.room,
            before.revision + 1,
            self._clock(),
            draft.changes,
            begins_as=None if before.revision else before.state,
            staging=draft.staging,
            command_id=draft.command_id,
            is_undoable=draft.is_undoable,
            announcements=draft.announcements,
            audit=draft.audit,
            origin=draft.origin,
            node=self.node,
        )

    async def decide(
        self,
        sender: ParticipantId,
        choose: Callable[[MeetingState], AnyCommand | None],
        command_id: CommandId | None = None,
        *,
        is_urgent: bool = False,
        origin: Origin | None = None,
    ) -> Committed | Refusal:
        """
        Decide and commit what needs no turn: who is here, and what always stands whatever LiveKit says.

        Args:
            choose: The command, by the state in which it is decided; `None` is nothing to do.
            is_urgent: Whether it goes before what waits.
            origin: Whose message asks for it.

        Raises:
            StoreError: Nothing was committed.
        """
        identifier = command_id or new_command_id()

        def draft(record: Record) -> Draft | Refusal:
            command = choose(record.state)
            if command is None:
                return NOTHING_TO_DO
            decision = decide(record.state, sender, command, now=self._clock(), command_id=identifier)
            if isinstance(decision, Refusal):
                return decision
            return draft_of(decision, conclude(record.state, decision), origin=origin)

        return await self.commit(draft, is_urgent=is_urgent)

    async def announce(self, announcements: Sequence[Announcement], *changes: Change) -> None:
        """
        Tell something of a meeting that goes on, and commit what changes with it.

        Raises:
            StoreError: Nobody was told.
        """

        def draft(record: Record) -> Draft | Refusal:
            if not record.state.goes_on:
                return NOTHING_TO_DO
            return Draft(changes, announcements=tuple(announcements))

        await self.commit(draft)

    # --- Following -----------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Call `listener` with each commit from now on, in order, wherever it was made. It must not raise."""
        self._listeners.append(listener)

    def note(self, record: Record, entry: Entry | None = None) -> None:
        """A commit of this meeting was made, here or elsewhere; or (`None`) it was like this when it was taken up."""
        before, self.newest = self.newest, record
        if before is not record:
            for listener in self._listeners:
                listener(before, record, entry)
