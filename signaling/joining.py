"""How somebody gets into a meeting: wholly, or not at all."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import structlog

from signaling.answers import Answers
from signaling.audience import Audience
from signaling.core.commands import Depart, Enter
from signaling.core.decisions import Refusal
from signaling.core.participants import Participant
from signaling.core.policy import publishable
from signaling.core.state import MeetingState
from signaling.credentials import Credentials
from signaling.entrance import Entrance
from signaling.errors import ParticipantBanned, SessionEnded
from signaling.identifiers import NodeId, ParticipantId, RoomId
from signaling.meeting.tasks import until_done
from signaling.meeting.view import join_data, join_success, may_publish
from signaling.meetings import Meetings
from signaling.messages import livekit, moderation
from signaling.session import Deliver, Found, Session

log = structlog.get_logger(__name__)


class Joining:
    """
    Lets people into the meetings of one process.

    Args:
        clock: Seconds since the epoch.
        node: This process.
    """

    def __init__(
        self,
        meetings: Meetings,
        audience: Audience,
        credentials: Credentials,
        answers: Answers,
        entrance: Entrance,
        *,
        clock: Callable[[], float],
        node: NodeId,
    ) -> None:
        self._meetings = meetings
        self._audience = audience
        self._credentials = credentials
        self._answers = answers
        self._entrance = entrance
        self._clock = clock
        self._node = node
        self._arriving: defaultdict[tuple[RoomId, ParticipantId], list[Session]] = defaultdict(list)

    async def join(
        self, room: RoomId, participant: Participant, deliver: Deliver, extensions: frozenset[str]
    ) -> Session:
        """Let somebody into a meeting; see `ModerationModule.join`."""
        meeting = self._meetings[room]
        session = Session(
            meeting, participant.id, deliver, extensions, self._audience, self._credentials, self._answers
        )
        arriving = meeting.tasks.spawn(self._let_in(session, participant))
        _keep_until_done(arriving, self._meetings.engaged(room), self._arrives(session))
        try:
            return await meeting.tasks.completion(arriving)
        except asyncio.CancelledError:
            session.give_up()
            taking_back = meeting.tasks.run_in_background(self._take_back(session, arriving))
            _keep_until_done(taking_back, self._meetings.engaged(room))
            raise

    def arriving(self, room: RoomId, participant: ParticipantId) -> Sequence[Session]:
        """The sessions of somebody who is being let in, the newest last."""
        return tuple(self._arriving.get((room, participant), ()))

    @contextmanager
    def _arrives(self, session: Session) -> Iterator[None]:
        """Listed as somebody who is being let in, so that their place is kept for them."""
        key = session.room, session.id
        self._arriving[key].append(session)
        try:
            with self._entrance.arriving(*key):
                yield
        finally:
            self._arriving[key].remove(session)
            if not self._arriving[key]:
                del self._arriving[key]

    async def _let_in(self, session: Session, participant: Participant) -> Session:
        """Let somebody in, or leave everything as it was."""
        try:
            return await self._join(session, participant)
        except Exception:
            self._audience.drop(session)
            keeping = session.meeting.tasks.run_in_background(until_done(lambda: self._keep_place(session)))
            _keep_until_done(keeping, self._meetings.engaged(session.room))
            raise
        except asyncio.CancelledError:  # this process ends
            self._audience.drop(session)
            raise

    async def _keep_place(self, session: Session) -> None:
        """An older session may have given way to one that came to nothing: then the place is kept for the grace."""

        def is_left_alone(state: MeetingState) -> bool:
            member = state.members.get(session.id)
            is_connected_here = member is not None and member.returns_until is None and member.node == self._node
            return is_connected_here and not self._audience.of(session.room, session.id)

        await session.meeting.places.lose_connections({session.id: is_left_alone})

    async def _take_back(self, session: Session, arriving: asyncio.Task[Session]) -> None:
        """Whoever let somebody in has gone: what came of it is undone."""
        await asyncio.wait({arriving})
        if not arriving.cancelled() and arriving.exception() is None:
            await until_done(lambda: self._undo_entering(session))

    async def _undo_entering(self, session: Session) -> None:
        meeting, found = session.meeting, session.found
        if found is not None:
            if found.member is None:
                depart = Depart(session.id)
                await meeting.journal.decide(session.id, lambda state: depart if session.has_place(state) else None)
            else:
                await meeting.places.lose_connections({session.id: session.has_place})
        session.finish()
        if found is not None and not found.goes_on:
            await meeting.timer.end_if_empty(self._clock())

    async def _join(self, session: Session, participant: Participant) -> Session:
        meeting = session.meeting
        self._audience.add(session)
        entering = Enter(participant, session.has_moderation, session.key, self._node)
        with self._entrance.waiting():
            # Before their room is made: the meeting then knows of every room that is there.
            committed = await meeting.journal.decide(
                participant.id, lambda _: None if session.is_given_up else entering
            )
        if isinstance(committed, Refusal):
            raise _banned(participant.id) if committed.error == "banned" else SessionEnded("nobody waits for it")
        before, entered = committed.before.state, committed.record
        session.found = Found(before.members.get(session.id), before.goes_on)
        credentials = await self._credentials.mint(meeting, session.id)
        data = None if credentials is None else join_data(entered, credentials)
        welcome = None
        if session.has_control:
            view: moderation.JoinView | None = None
            if session.has_moderation:
                moderates = entered.state.is_moderator(session.id)
                view = meeting.view.show(entered) if moderates else may_publish(entered, session.id)
            welcome = join_success(entered, session.id, attendance=meeting.attendance, data=data, view=view)
        session.begin(entered.revision, data, welcome)
        if data is None:
            session.tell(livekit.LiveKitError(error="livekit_unavailable"))
        for request_id, request in entered.state.unmute_requests.items():  # asked before their connection broke
            is_open = request.participant == session.id and request.expires_at > self._clock()
            if is_open and session.has_moderation:
                session.tell(moderation.UnmuteRequested(request_id=request_id, moderator=request.moderator))
        if before.room_of(session.id) not in {None, entered.state.room_of(session.id)}:
            await meeting.agreement.remove_identities(session.id, before)
        elif publishable(session.id, before) != publishable(session.id, entered.state):
            meeting.due.repair({session.id})  # they may still be in LiveKit with what held before
        log.info("participant_joined", room=session.room, participant=session.id, kind=participant.kind.value)
        return session


def _keep_until_done(task: asyncio.Task[Any], *kept: AbstractContextManager[None]) -> None:
    """Enter these at once, and leave them when the task is done, also if it is cancelled before its first step."""
    stack = ExitStack()
    for each in kept:
        stack.enter_context(each)
    task.add_done_callback(lambda _: stack.close())


def _banned(participant: ParticipantId) -> ParticipantBanned:
    return ParticipantBanned(f"{participant} is banned from the meeting")
