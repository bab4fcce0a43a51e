"""Who is connected, and what each is told of a commit."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from signaling import metrics
from signaling.core.announcements import Announcement, Everyone
from signaling.core.changes import Entered, Moved, TimedOut
from signaling.core.decisions import may_moderate
from signaling.core.state import MeetingState
from signaling.identifiers import BreakoutId, ParticipantId, RoomId, SessionId
from signaling.meeting.meeting import Meeting
from signaling.messages import moderation
from signaling.messages.base import Event, Namespace
from signaling.messages.envelope import Delivery, TransactionId
from signaling.stores.contract import Commit, Entry

EndReason = Literal["kicked", "banned", "taken_over", "meeting_ended", "interrupted"]


class Connected(Protocol):
    """Somebody's way into a meeting, as far as others deal with it."""

    key: SessionId
    id: ParticipantId
    room: RoomId
    joined: asyncio.Future[None]
    has_entered: bool
    has_control: bool
    has_moderation: bool

    @property
    def meeting(self) -> Meeting:
        """The meeting as this process looks after it."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is delivered any more, whoever ended it."""

    def tell(self, event: Event, transaction_id: TransactionId | None = None) -> None:
        """Deliver an event there alone."""

    def push(self, delivery: Delivery, revision: int | None) -> None:
        """Deliver; what belongs to a commit that the joiner already knows of is left out."""

    async def be_moved(self, breakout: BreakoutId | None) -> None:
        """Go to a breakout, or back, since the controller says so."""

    def note_entered(self) -> None:
        """The participant is in the meeting by this session."""

    def note_moved(self, revision: int) -> None:
        """The participant belongs into another room, by a commit that may have been made elsewhere."""

    def has_place(self, state: MeetingState) -> bool:
        """Whether the participant's place is this session's."""

    def keeps_place(self, state: MeetingState) -> bool:
        """Whether it is, and nobody is about to let go of it."""

    def fall_back(self, revision: int) -> None:
        """The meeting is again as it was at `revision`: what is committed from there is new."""

    def end(self, reason: EndReason, revision: int | None = None) -> None:
        """It is over; not for a commit from before the participant joined."""

    def finish(self) -> None:
        """Deliver nothing any more."""


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
        if not session.joined.done():
            session.joined.set_result(None)
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

    def in_room(self, room: RoomId) -> Sequence[Connected]:
        """All sessions of a meeting; they may be dropped meanwhile."""
        return [session for listed in self._sessions.get(room, {}).values() for session in listed]

    def is_being_taken_over(self, session: Connected) -> bool:
        """Whether a newer session of the same participant has begun to join."""
        listed = self._sessions.get(session.room, {}).get(session.id, [])
        return session in listed and listed[-1] is not session

    # --- What they are told --------------------------------------------------------------------------------------

    def timestamp(self) -> float:
        """Now, in seconds since the epoch; never before what it was the last time."""
        self._last_timestamp = max(self._last_timestamp, self._clock())
        return self._last_timestamp

    def tell(self, commit: Commit) -> None:
        """Tell everybody concerned of a commit, wherever it was made, and end the sessions that end by it."""
        entry, state = commit.entry, commit.record.state
        sessions = self._sessions.get(entry.room)
        if sessions is None:
            return
        for announcement in entry.announcements:
            self._announce(announcement, entry, state, sessions)
        for change in entry.changes:
            match change:
                case Entered(participant, member) if participant in sessions:
                    for session in tuple(sessions[participant]):
                        if session.key == member.session:
                            session.note_entered()
                        elif session.has_entered:  # else it is about to take over itself
                            session.end("taken_over")
                case TimedOut(participants):  # whose process was not heard of, though they are connected to it
                    for who in participants & sessions.keys():
                        for session in tuple(sessions[who]):
                            if session.has_entered:
                                session.end("interrupted", entry.revision)
                case Moved(participant) if participant in sessions:
                    for session in tuple(sessions[participant]):
                        session.note_moved(entry.revision)
                case _:
                    pass
        if not state.goes_on:
            for session in self.in_room(entry.room):
                session.end("meeting_ended", entry.revision)

    def _announce(
        self,
        announcement: Announcement,
        entry: Entry,
        state: MeetingState,
        sessions: dict[ParticipantId, list[Connected]],
    ) -> None:
        event, origin = announcement.event, entry.origin
        delivery = Delivery(event, self.timestamp())
        match announcement.audience:
            case Everyone(but):
                people = [person for person in sessions if person not in but]
            case only:
                people = [person for person in only.participants if person in sessions]
        own, own_session = delivery, None
        if origin is not None and origin.transaction_id is not None:
            own, own_session = Delivery(event, delivery.timestamp, origin.transaction_id), origin.session
        needs_control = event.namespace is Namespace.CONTROL
        needs_moderation = event.namespace is Namespace.MODERATION
        revision = entry.revision
        for person in people:
            for session in tuple(sessions[person]):
                if (needs_control and not session.has_control) or (needs_moderation and not session.has_moderation):
                    continue
                session.push(own if session.key == own_session else delivery, revision)
        if isinstance(event, moderation.Kicked):
            for person in people:
                for session in tuple(sessions[person]):
                    session.end("banned" if person in state.bans else "kicked", entry.revision)

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
