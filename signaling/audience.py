"""Who is connected, and what each is told of a commit."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from signaling import metrics
from signaling.core.announcements import Announcement, Everyone
from signaling.core.decisions import may_moderate
from signaling.core.state import MeetingState
from signaling.identifiers import BreakoutId, CommandId, ParticipantId, RoomId
from signaling.meeting.meeting import Meeting
from signaling.messages import moderation
from signaling.messages.base import Event
from signaling.messages.envelope import Delivery, TransactionId
from signaling.stores.contract import Commit

EndReason = Literal["kicked", "banned", "taken_over", "meeting_ended"]


class Connected(Protocol):
    """Somebody's way into a meeting, as far as others deal with it."""

    id: ParticipantId
    room: RoomId
    joined: asyncio.Event
    has_control: bool
    has_moderation: bool

    @property
    def meeting(self) -> Meeting:
        """The meeting as this process looks after it."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is delivered any more, whoever ended it."""

    def may_see(self, event: Event) -> bool:
        """Whether events of this namespace go there."""

    def tell(self, event: Event, transaction_id: TransactionId | None = None) -> None:
        """Deliver an event there alone."""

    def push(self, delivery: Delivery, revision: int | None) -> None:
        """Deliver; what belongs to a commit that the joiner already knows of is left out."""

    async def be_moved(self, breakout: BreakoutId | None) -> None:
        """Go to a breakout, or back, since the controller says so."""

    def end(self, reason: EndReason, revision: int | None = None) -> None:
        """It is over; not for a commit from before the participant joined."""


class Audience:
    """
    All who are connected to this process.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_timestamp = 0.0
        self._sessions: defaultdict[RoomId, dict[ParticipantId, list[Connected]]] = defaultdict(dict)
        self._senders: dict[CommandId, tuple[Connected, TransactionId | None]] = {}

    # --- Who is connected ----------------------------------------------------------------------------------------

    def add(self, session: Connected) -> None:
        """Somebody begins to join: an older session of theirs is about to be taken over."""
        self._sessions[session.room].setdefault(session.id, []).append(session)
        metrics.SESSIONS.inc()

    def drop(self, session: Connected) -> None:
        """Deliver nothing to this session any more."""
        sessions = self._sessions.get(session.room, {})
        listed = sessions.get(session.id, [])
        session.meeting.view.watchers.discard(session)
        session.joined.set()
        if session in listed:
            listed.remove(session)
            metrics.SESSIONS.dec()
        if not listed:
            sessions.pop(session.id, None)
        if not sessions:
            self._sessions.pop(session.room, None)

    def __contains__(self, room: RoomId) -> bool:
        return room in self._sessions

    def of(self, room: RoomId, participant: ParticipantId) -> Sequence[Connected]:
        """The sessions of somebody, the newest last."""
        return tuple(self._sessions.get(room, {}).get(participant, ()))

    def everybody(self) -> Iterator[Connected]:
        """All sessions; they may be dropped meanwhile."""
        for sessions in tuple(self._sessions.values()):
            yield from [session for listed in sessions.values() for session in listed]

    def is_being_taken_over(self, session: Connected) -> bool:
        """Whether a newer session of the same participant has begun to join."""
        listed = self._sessions.get(session.room, {}).get(session.id, [])
        return session in listed and listed[-1] is not session

    # --- What they are told --------------------------------------------------------------------------------------

    def timestamp(self) -> float:
        """Now, in seconds since the epoch; never before what it was the last time."""
        self._last_timestamp = max(self._last_timestamp, self._clock())
        return self._last_timestamp

    @contextmanager
    def sending(
        self, session: Connected, command_id: CommandId, transaction_id: TransactionId | None
    ) -> Iterator[None]:
        """What is announced by this command carries the transaction id in the sender's own copy."""
        self._senders[command_id] = session, transaction_id
        try:
            yield
        finally:
            del self._senders[command_id]

    def tell(self, commit: Commit) -> None:
        """Tell everybody concerned of a commit, and end the sessions that end by it."""
        state = commit.record.state
        sessions = self._sessions.get(state.room, {})
        for announcement in commit.entry.announcements:
            sender, transaction_id = self._sender_of(announcement)
            delivery = Delivery(announcement.event, self.timestamp())
            match announcement.audience:
                case Everyone(but):
                    people = [person for person in sessions if person not in but]
                case only:
                    people = [person for person in only.participants if person in sessions]
            for person in people:
                for session in tuple(sessions[person]):
                    if not session.may_see(announcement.event):
                        continue
                    if session is sender and transaction_id is not None:
                        own = Delivery(announcement.event, delivery.timestamp, transaction_id)
                        session.push(own, commit.record.revision)
                    else:
                        session.push(delivery, commit.record.revision)
            if isinstance(announcement.event, moderation.Kicked):
                for person in people:
                    for session in tuple(sessions[person]):
                        session.end("banned" if person in state.bans else "kicked", commit.record.revision)
        if not state.goes_on:
            for session in [session for listed in sessions.values() for session in listed]:
                session.end("meeting_ended", commit.record.revision)

    def _sender_of(self, announcement: Announcement) -> tuple[Connected | None, TransactionId | None]:
        return (None, None) if announcement.cause is None else self._senders.get(announcement.cause, (None, None))

    def tell_watchers(
        self, room: RoomId, watchers: set[object], state: MeetingState | None, changed: moderation.StateChanged
    ) -> None:
        """Tell whoever watches what has changed; who may not moderate any more watches no longer."""
        delivery = Delivery(changed, self.timestamp())
        for sessions in tuple(self._sessions.get(room, {}).values()):
            for session in tuple(sessions):
                if session not in watchers:
                    continue
                if state is not None and may_moderate(state, session.id):
                    session.push(delivery, None)
                else:
                    watchers.discard(session)
