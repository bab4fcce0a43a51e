"""What a host embeds: `ModerationModule` for the process, `Session` for each participant."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager
from itertools import takewhile
from types import TracebackType
from typing import Any, Final, Self

import structlog

from signaling import metrics
from signaling.answers import answers, asks_for_result, is_preview, named_action, result
from signaling.clock import SteadyClock
from signaling.closed_rooms import ClosedRooms
from signaling.core.announcements import Announcement, Everyone
from signaling.core.commands import AnyCommand, ChangeRole, Depart, Enter, Extend, ModeratorCommand, Move
from signaling.core.conclusions import Conclusion
from signaling.core.decisions import Refusal, may_moderate
from signaling.core.participants import Kind, Participant, Role
from signaling.core.policy import publishable
from signaling.entrance import Entrance
from signaling.errors import (
    InvalidParticipant,
    MediaServerError,
    MessageError,
    NoSuchMeeting,
    NotInMeeting,
    ParticipantBanned,
    SessionEnded,
    StoreError,
    WebhookRefused,
)
from signaling.identifiers import (
    CONTROLLER,
    BreakoutId,
    CommandId,
    Identity,
    LiveKitRoom,
    ParticipantId,
    RoomId,
    livekit_room,
    new_command_id,
    room_of,
)
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.livekit.room_service import RoomService, Trouble
from signaling.livekit.tokens import TokenMint
from signaling.livekit.webhooks import Webhook, Webhooks
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Namespace, parse_payload
from signaling.messages.envelope import Delivery, TransactionId, is_transaction_id
from signaling.rooms import OVER, Meeting, Rules, TooManyWaiting, until_done
from signaling.session import Deliver, Found, Session
from signaling.settings import Settings, websocket_form
from signaling.stores import open_store
from signaling.stores.contract import AuditEntry, Commit, Kept, Record, Store
from signaling.view import audit_view, join_data, join_success, may_publish

log = structlog.get_logger(__name__)


MAX_AUDIT_BYTES: Final = 512 * 1024
"""What `get_audit` answers at most, unless it is a single entry."""
_AUDIT_PAGE: Final = 10

NeedsSession = (
    moderation.GetState
    | moderation.Watch
    | moderation.GetAudit
    | livekit.CreateNewAccessToken
    | livekit.RequestPopoutStreamAccessToken
    | control.Join
)
"""Commands that are answered by what is delivered to a session."""
SessionlessCommand = (
    ModeratorCommand | moderation.Preview | moderation.AnswerUnmuteRequest | control.RaiseHand | control.LowerHand
)


class ModerationModule:
    """
    Moderation of all meetings of one process; an asynchronous context manager.

    Without `LIVEKIT_URL` it runs a `livekit-server` of its own.

    Args:
        settings: From the environment if left out.
        store: Used instead of the one that the settings name; opened and closed by the module.
        clock: Seconds since the epoch; if left out, as the system's clock says now, and from then on evenly, so that
            nothing lasts longer or shorter when that is set.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self, settings: Settings | None = None, *, store: Store | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self.settings = Settings() if settings is None else settings
        self._store = store or open_store(
            self.settings.moderation_store_url, audit_entries=self.settings.moderation_audit_entries
        )
        self._clock = clock or SteadyClock()
        self._wall_clock = clock or time.time
        """For what others have signed by theirs."""
        self._last_timestamp = 0.0
        self._rules = Rules(
            screen_share_requires_permission=self.settings.moderation_screen_share_requires_permission,
            remove_unknown=self.settings.moderation_unknown_participants == "remove",
            sweep_s=self.settings.moderation_sweep_s,
            empty_s=self.settings.moderation_empty_room_s,
            grace_s=self.settings.moderation_disconnect_grace_s,
        )
        self._entrance = Entrance(self._clock)
        self._meetings: dict[RoomId, Meeting] = {}
        self._joining: defaultdict[RoomId, int] = defaultdict(int)
        self._arriving: defaultdict[tuple[RoomId, ParticipantId], list[Session]] = defaultdict(list)
        self._sessions: defaultdict[RoomId, dict[ParticipantId, list[Session]]] = defaultdict(dict)
        self._senders: dict[CommandId, tuple[Session, TransactionId | None]] = {}
        self._stack = AsyncExitStack()
        self._is_entered = False
        self._is_open = False
        self._listens = False
        self._background: set[asyncio.Task[None]] = set()
        self._media: RoomService | None = None
        self._closed: ClosedRooms | None = None
        self._mint: TokenMint | None = None
        self._webhooks: Webhooks | None = None
        self._embedded: EmbeddedServer | None = None
        self._webhook_url = self.settings.moderation_webhook_url
        self._warns_of_missing_webhooks = True
        self._public_url = ""
        self._service_url = ""

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise RuntimeError("ModerationModule is entered already: one `async with` at a time")
        async with AsyncExitStack() as stack:
            self._is_entered = True
            stack.callback(self._note_left)
            stack.push_async_callback(self._store.close)
            await self._store.open()
            url, key, secret = await self._find_livekit(stack)
            self._public_url = self.settings.public_url or websocket_form(url)
            self._service_url = websocket_form(url)
            self._mint = TokenMint(key, secret)
            self._webhooks = Webhooks(key, secret, clock=self._wall_clock)
            self._media = await stack.enter_async_context(
                RoomService(
                    url,
                    key,
                    secret,
                    timeout_s=self.settings.moderation_livekit_timeout_s,
                    calls_per_room=self.settings.moderation_livekit_calls_per_room,
                )
            )
            await self._media.check()  # whatever comes of it: what is wrong is in the log then, and tried again
            self._media.on_return(self._restore_rooms)
            self._closed = ClosedRooms(
                self._store, self._media, self._is_in_use, clock=self._clock, look_s=self._rules.sweep_s
            )
            await self._closed.load()
            if not self._listens:  # or it was entered and left before
                self._store.listen(self._on_commit)
                self._listens = True
            stack.push_async_callback(self._close_meetings)
            self._is_open = True
            await self._take_up_meetings()
            self._run_in_background(self._closed.run())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        closing = asyncio.create_task(self._stack.aclose())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait({closing})  # half of it would leave tasks behind that nobody ends any more
            raise

    def _note_left(self) -> None:
        self._is_entered = False

    async def join(
        self,
        room: RoomId,
        participant: Participant,
        *,
        deliver: Deliver,
        extensions: frozenset[str] = frozenset(),
    ) -> Session:
        """
        Let somebody into a meeting; an older session of theirs ends as `taken_over`.

        Args:
            deliver: Called in the event loop with each event, in order, never awaited. The host sends its own welcome
                with `session.join_data` first, then what was delivered.
            extensions: `livekit_moderation` for that namespace, `control` for hosts that speak it too.

        Raises:
            ParticipantBanned: A moderator has banned them from the meeting.
            StoreError: They have not joined.
        """
        meeting = self._meeting(room)
        session = Session(self, meeting, participant.id, deliver, extensions)
        arriving = meeting.spawn(self._let_in(session, participant))
        self._keep_until_done(arriving, self._engaged(room), self._arrives(session))
        try:
            return await meeting.completion(arriving)
        except asyncio.CancelledError:
            session.give_up()
            taking_back = meeting.run_in_background(self._take_back(session, arriving))
            self._keep_until_done(taking_back, self._engaged(room))
            raise

    def _keep_until_done(self, task: asyncio.Task[Any], *kept: AbstractContextManager[None]) -> None:
        """Enter these at once, and leave them when the task is done, also if it is cancelled before its first step."""
        stack = ExitStack()
        for each in kept:
            stack.enter_context(each)
        task.add_done_callback(lambda _: stack.close())

    @contextmanager
    def _engaged(self, room: RoomId) -> Iterator[None]:
        """Somebody comes or is taken back meanwhile, so the meeting is looked after, though it may not be kept yet."""
        self._joining[room] += 1
        try:
            yield
        finally:
            self._joining[room] -= 1
            if not self._joining[room]:
                del self._joining[room]
                self._let_go_if_unused(room)

    @contextmanager
    def _arrives(self, session: Session) -> Iterator[None]:
        """Listed as somebody who is being let in, so that their place is kept for them."""
        key = session.room, session.id
        self._arriving[key].append(session)
        try:
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
            self.drop(session)
            keeping = session.meeting.run_in_background(until_done(lambda: self._keep_place(session)))
            self._keep_until_done(keeping, self._engaged(session.room))
            raise
        except asyncio.CancelledError:  # this process ends
            self.drop(session)
            raise

    async def _keep_place(self, session: Session) -> None:
        """An older session may have given way to one that came to nothing: then the place is kept for the grace."""
        member = (await session.meeting.record()).state.members.get(session.id)
        if member is not None and member.returns_until is None:
            await session.meeting.lose_connections({session.id: lambda: not self._has_session(session)})

    def _has_session(self, session: Session) -> bool:
        return session.id in self._sessions.get(session.room, {})

    async def _take_back(self, session: Session, arriving: asyncio.Task[Session]) -> None:
        """Whoever let somebody in has gone: what came of it is undone."""
        await asyncio.wait({arriving})
        if not arriving.cancelled() and arriving.exception() is None:
            await until_done(lambda: self._undo_entering(session))

    async def _undo_entering(self, session: Session) -> None:
        meeting, found = session.meeting, session.found
        if found is not None and session.is_newest:
            if found.member is None:
                depart = Depart(session.id)
                await meeting.journal.decide(session.id, lambda _: depart if session.is_newest else None)
            else:
                await meeting.lose_connections({session.id: lambda: session.is_newest})
        session.finish()
        if found is not None and not found.goes_on:
            await meeting.end_if_empty(self._clock())

    async def _join(self, session: Session, participant: Participant) -> Session:
        meeting = session.meeting
        sessions = self._sessions[session.room].setdefault(session.id, [])
        sessions.append(session)
        metrics.SESSIONS.inc()
        entering = Enter(participant, knows_moderation=session.has_moderation)
        with self._entrance.waiting():
            # Before their room is made: the meeting then knows of every room that is there.
            committed = await meeting.journal.decide(
                participant.id, lambda _: None if session.is_given_up else entering
            )
        if isinstance(committed, Refusal):
            raise _banned(participant.id) if committed.error == "banned" else SessionEnded("nobody waits for it")
        before, entered = committed.before.state, committed.record
        session.found = Found(before.members.get(session.id), before.goes_on)
        if not session.is_over:
            for older in tuple(takewhile(lambda listed: listed is not session, sessions)):  # newer ones end this one
                older.end("taken_over")
        credentials = await self.mint_credentials(session)
        data = None if credentials is None else join_data(entered, credentials)
        welcome = None
        if session.has_control:
            view: moderation.JoinView | None = None
            if session.has_moderation:
                moderates = entered.state.is_moderator(session.id)
                view = meeting.show(entered) if moderates else may_publish(entered, session.id)
            welcome = join_success(entered, session.id, attendance=meeting.attendance, data=data, view=view)
        session.begin(entered.revision, data, welcome)
        if data is None:
            session.tell(livekit.LiveKitError(error="livekit_unavailable"))
        for request_id, request in entered.state.unmute_requests.items():  # asked before their connection broke
            is_open = request.participant == session.id and request.expires_at > self._clock()
            if is_open and session.has_moderation:
                session.tell(moderation.UnmuteRequested(request_id=request_id, moderator=request.moderator))
        if before.room_of(session.id) not in {None, entered.state.room_of(session.id)}:
            await meeting.remove_identities(session.id, before)
        elif publishable(session.id, before) != publishable(session.id, entered.state):
            meeting.reconciler.repair({session.id})  # they may still be in LiveKit with what held before
        log.info("participant_joined", room=session.room, participant=session.id, kind=participant.kind.value)
        return session

    async def close_room(self, room: RoomId) -> None:
        """
        End a meeting: every session ends, the state is cleared, LiveKit's rooms are deleted, now or when it answers.

        Raises:
            StoreError: The meeting goes on.
        """
        meeting = self._meeting(room)
        with self._engaged(room):
            deleting = await meeting.see_through(meeting.end())
        log.info("meeting_ended", room=room)
        await asyncio.wait({deleting}, timeout=self.settings.moderation_livekit_timeout_s)

    async def has_meeting(self, room: RoomId) -> bool:
        """
        Whether there is such a meeting, and it goes on.

        Raises:
            StoreError: The store does not answer.
        """
        record = await self._store.read(room)
        return record is not None and record.state.goes_on

    async def state(self, room: RoomId) -> moderation.State:
        """
        The whole meeting as its moderators see it.

        Raises:
            NoSuchMeeting: There is none.
            StoreError: The store does not answer.
        """
        meeting = await self._meeting_that_goes_on(room)
        return moderation.State(**dict(meeting.show(await meeting.record())))

    async def command(
        self, room: RoomId, namespace: str, payload: object, *, as_: ParticipantId | None = None
    ) -> moderation.Result:
        """
        Carry out a command of moderators; what is refused is told by the result.

        Args:
            namespace: `livekit`, `livekit_moderation` or `control`.
            payload: The command as parsed JSON. What answers with events alone (tokens, queries, joining) is
                `invalid_command`; `preview` is not among it.
            as_: Who asks, with their rights; the host if left out, who may do what moderators may.

        Raises:
            ValueError: A namespace that is not the module's.
            NoSuchMeeting: There is none.
            StoreError: The store does not answer.
        """
        spoken = Namespace(namespace)
        if spoken is Namespace.ECHO:
            raise ValueError(f"{namespace} is not the module's")
        meeting = await self._meeting_that_goes_on(room)
        with self._engaged(room):
            return await meeting.see_through(self._command(meeting, spoken, payload, as_))

    async def _command(
        self, meeting: Meeting, spoken: Namespace, payload: object, as_: ParticipantId | None
    ) -> moderation.Result:
        room = meeting.room
        sender = CONTROLLER if as_ is None else as_
        command_id = new_command_id()
        began_at = time.perf_counter()
        action = named_action(spoken, payload)
        answer: Conclusion | Refusal | None
        try:
            command = _parse(spoken, payload)
            if isinstance(command, NeedsSession):
                answer = Refusal("invalid_command", f"action: {action} is for sessions only")
            else:
                answer = await self._carry_through(meeting, sender, command, command_id)
        except MessageError as error:
            answer = Refusal("invalid_command", str(error))
        except TooManyWaiting:
            answer = Refusal("rate_limit_exceeded", retry_after_s=RETRY_AFTER_S)
        if as_ is None and isinstance(answer, Refusal) and not await self.has_meeting(room):
            raise NoSuchMeeting(f"the meeting {room} has ended")
        known_as = "preview" if is_preview(spoken, payload) else action
        _log_answer(room, sender, command_id, known_as, answer, time.perf_counter() - began_at)
        is_so_already = isinstance(answer, Refusal) and answer.error == "nothing_to_do"
        return result(action, command_id, None if is_so_already else answer)

    async def change_role(self, room: RoomId, participant: ParticipantId, role: Role) -> None:
        """
        Give or take a role until the meeting ends, whoever's connection it is; see `Session.change_role`.

        Raises:
            InvalidParticipant: Nobody of kind `guest` or `sip` becomes a moderator.
            NoSuchMeeting: There is none.
            NotInMeeting: Nobody of that id is in it.
            StoreError: Nothing changed.
        """
        meeting = await self._meeting_that_goes_on(room)
        changing = meeting.take_turn(CONTROLLER, ChangeRole(participant, role), new_command_id())
        with self._engaged(room):
            answer = await meeting.see_through(changing)
        if answer is OVER:
            raise NoSuchMeeting(f"the meeting {room} has ended")
        if isinstance(answer, Refusal) and answer.error == "insufficient_permissions":
            raise InvalidParticipant(f"{participant}: nobody of their kind is a {role}")
        if isinstance(answer, Refusal) and answer.error != "nothing_to_do":
            raise NotInMeeting(f"{participant} is not in the meeting")

    async def move(self, room: RoomId, participant: ParticipantId, breakout: BreakoutId | None) -> None:
        """
        Move somebody to a breakout, or back to the main room (`None`), by their session; see `Session.move`.

        Raises:
            NoSuchMeeting: There is none.
            NotInMeeting: Nobody of that id is in it.
            StoreError: Nothing changed.
        """
        meeting = await self._meeting_that_goes_on(room)
        while True:
            joining = [each for each in self._arriving.get((room, participant), ()) if not each.joined.is_set()]
            if joining:  # which would put them back to where they were let in
                await joining[-1].joined.wait()
                continue
            listed = [each for each in self._sessions.get(room, {}).get(participant, ()) if not each.is_over]
            if not listed:
                break
            newest = listed[-1]
            try:
                await newest.be_moved(breakout)
            except SessionEnded as error:
                raise NotInMeeting(f"{participant} is not in the meeting") from error
            return
        # Nobody to deliver to: their connection is broken, and whoever comes back gets credentials then.
        with self._engaged(room):
            await meeting.see_through(self._move_absent(meeting, participant, breakout))

    async def _move_absent(self, meeting: Meeting, participant: ParticipantId, breakout: BreakoutId | None) -> None:
        committed = await meeting.commit_now(participant, Move(participant, breakout, is_action=True))
        if isinstance(committed, Refusal):
            raise NotInMeeting(f"{participant} is not in the meeting")
        await meeting.remove_identities(participant, committed.before.state)

    async def audit(self, room: RoomId, *, limit: int = 100, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """
        What moderators did in a meeting that goes on, newest first.

        Args:
            before: Continue after the entry of this command.

        Raises:
            StoreError: The store does not answer.
        """
        return await self._store.audit(room, limit=limit, before=before)

    async def is_banned(self, room: RoomId, participant: ParticipantId) -> bool:
        """Whether a moderator has banned somebody; while the store does not answer, joining finds out."""
        try:
            record = await self._store.read(room)
        except StoreError:
            return False
        return record is not None and record.state.is_banned(participant)

    async def use_ticket(self, ticket: str, *, until: float) -> bool:
        """
        Use up what lets somebody in once, on whichever node and whether or not this one was restarted since.

        Args:
            ticket: What tells it from any other, such as the `jti` of a JWT.
            until: When it lets nobody in any more anyway; seconds since the epoch.

        Returns:
            Whether it was not used before.

        Raises:
            StoreError: The store does not answer, and nobody may be let in.
        """
        return await self._store.keep_once(Kept.TICKET, ticket, until=until, now=self._earliest_now())

    async def check_store(self) -> None:
        """Return if the store can be written; raises `StoreError` if not."""
        await self._store.check()

    @property
    def livekit_answers(self) -> bool:
        """Whether LiveKit did what it was asked the last time that anything was."""
        return self._media is not None and self._media.trouble is None

    def look_at_livekit(self) -> Trouble | None:
        """
        Why LiveKit does nothing of what it is asked, as far as is known; `None` if it does.

        If nothing was heard of it for some seconds, it is asked; whoever looks again knows more.
        """
        if self._media is None:
            return "unreachable"
        self._media.check_if_long_unheard()
        return self._media.trouble

    @property
    def public_url(self) -> str:
        """What clients are told to connect to."""
        return self._public_url

    @property
    def embedded(self) -> EmbeddedServer | None:
        """The `livekit-server` that the module runs; `None` with `LIVEKIT_URL`, and before it was started."""
        return self._embedded

    # --- Commands ------------------------------------------------------------------------------------------------

    async def receive(
        self, session: Session, namespace: str, payload: object, transaction_id: TransactionId | None
    ) -> None:
        """Carry out what a client of `session` sent; see `Session.receive`."""
        spoken = Namespace(namespace)
        if spoken is Namespace.ECHO or (spoken is Namespace.CONTROL and not session.has_control):
            raise ValueError(f"{namespace} is not the module's")
        if transaction_id is not None and not is_transaction_id(transaction_id):
            raise ValueError("a transaction id is an unsigned 64-bit number or a string of 1 to 64 characters")
        if spoken is Namespace.MODERATION and not session.has_moderation:
            session.has_moderation = True
            session.meeting.run_in_background(self._extend(session))
        command_id = new_command_id()
        began_at = time.perf_counter()
        action = named_action(spoken, payload)
        answer: Conclusion | Refusal | None
        try:
            command = _parse(spoken, payload)
            self._senders[command_id] = session, transaction_id
            answer = await self._carry_out(session, command, command_id, transaction_id)
        except MessageError as error:
            answer = Refusal("invalid_command", str(error))
        except TooManyWaiting:
            answer = Refusal("rate_limit_exceeded", retry_after_s=RETRY_AFTER_S)
        except StoreError as error:
            log.error("store_failed", room=session.room, error=str(error))  # noqa: TRY400 - no bug, no traceback
            answer = Refusal("unavailable")
        except Exception:
            log.exception("command_failed", room=session.room, participant=session.id, action=action)
            answer = Refusal("internal")
        except asyncio.CancelledError:  # this process ends
            answer = Refusal("unavailable")
            with_result = session.has_moderation and asks_for_result(spoken, payload, transaction_id)
            for event in answers(spoken, action, command_id, answer, with_result=with_result):
                session.tell(event, transaction_id)
            raise
        finally:
            self._senders.pop(command_id, None)
        duration_s = time.perf_counter() - began_at
        with_result = session.has_moderation and asks_for_result(spoken, payload, transaction_id)
        for event in answers(spoken, action, command_id, answer, with_result=with_result):
            session.tell(event, transaction_id)
        # When what was told has gone out, since nobody waits for the log.
        known_as = "preview" if is_preview(spoken, payload) else action
        asyncio.get_running_loop().call_soon(
            _log_answer, session.room, session.id, command_id, known_as, answer, duration_s
        )

    async def _extend(self, session: Session) -> None:
        async def extend() -> None:
            if not session.is_over and not self.is_being_taken_over(session):
                await session.meeting.commit_now(session.id, Extend(session.id))

        await until_done(extend)

    async def _carry_out(
        self,
        session: Session,
        command: livekit.LiveKitCommand | control.ControlCommand | moderation.ModerationCommand,
        command_id: CommandId,
        transaction_id: TransactionId | None,
    ) -> Conclusion | Refusal | None:
        match command:
            case moderation.GetState() | moderation.Watch() | moderation.GetAudit():
                return await self._show(session, command, transaction_id)
            case livekit.CreateNewAccessToken():
                return await self._renew(session, transaction_id)
            case livekit.RequestPopoutStreamAccessToken():
                return await self._open_popout(session, command, command_id, transaction_id)
            case control.Join():
                return Refusal("already_joined")
            case _:
                return await self._carry_through(session.meeting, session.id, command, command_id)

    async def _carry_through(
        self, meeting: Meeting, sender: ParticipantId, command: SessionlessCommand, command_id: CommandId
    ) -> Conclusion | Refusal | None:
        match command:
            case moderation.Preview(command=previewed):
                return await meeting.preview(sender, previewed, command_id)
            case moderation.Undo(command_id=undone):
                answer = await meeting.take_turn(sender, command, command_id)
                if isinstance(answer, Refusal) and answer.error == "unknown_command_id":
                    return await self._why_unknown(meeting.room, CommandId(undone))
                return answer
            case control.RaiseHand() | control.LowerHand():
                committed = await meeting.commit_now(sender, command, command_id)
                return committed if isinstance(committed, Refusal) else None
            case _:
                return await meeting.take_turn(sender, command, command_id)

    async def _show(
        self,
        session: Session,
        command: moderation.GetState | moderation.Watch | moderation.GetAudit,
        transaction_id: TransactionId | None,
    ) -> Refusal | None:
        record = await session.meeting.record()
        if not may_moderate(record.state, session.id):
            return Refusal("insufficient_permissions")
        match command:
            case moderation.GetAudit(limit=limit, before=before):
                shown = await self._audited(session.room, limit, None if before is None else CommandId(before))
                session.tell(moderation.Audit(entries=shown), transaction_id)
                return None
            case moderation.Watch(enabled=False):
                session.meeting.watchers.discard(session)
                return None
            case moderation.Watch() | moderation.GetState():
                # Shown before they watch: what they are told of then begins right after it.
                session.tell(moderation.State(**dict(session.meeting.show(record))), transaction_id)
        if isinstance(command, moderation.Watch):
            session.meeting.watchers.add(session)
        return None

    async def _audited(self, room: RoomId, limit: int, before: CommandId | None) -> tuple[moderation.AuditView, ...]:
        """So many entries, or the newest of them that fit into an answer; the first does in any case."""
        shown: list[moderation.AuditView] = []
        size = 0
        while len(shown) < limit:
            asked = min(_AUDIT_PAGE, limit - len(shown))
            page = await self._store.audit(room, limit=asked, before=before)
            for view in map(audit_view, page):
                size += len(view.model_dump_json(exclude_none=True))
                if shown and size > MAX_AUDIT_BYTES:
                    return tuple(shown)
                shown.append(view)
            if len(page) < asked:
                break
            before = page[-1].command_id
        return tuple(shown)

    async def _why_unknown(self, room: RoomId, command_id: CommandId) -> Refusal:
        """What a command that the state does not remember is: known from the audit alone, or not at all."""
        is_known = await self._store.has_audited(room, command_id)
        return Refusal("not_undoable" if is_known else "unknown_command_id")

    async def _renew(self, session: Session, transaction_id: TransactionId | None) -> Refusal | None:
        credentials = await self.mint_credentials(session)
        if credentials is None:
            return Refusal("livekit_unavailable")
        session.tell(credentials, transaction_id)
        return None

    async def _open_popout(
        self, session: Session, command: AnyCommand, command_id: CommandId, transaction_id: TransactionId | None
    ) -> Refusal | None:
        member = (await session.meeting.record()).state.members.get(session.id)
        if member is None or not await self._open_room(session, member.breakout):
            return Refusal("livekit_unavailable")
        committed = await session.meeting.commit_now(session.id, command, command_id)
        if isinstance(committed, Refusal):
            return committed
        popouts = committed.record.state.popouts[session.id]
        popout = popouts.open[-1]
        session.tell(
            livekit.PopoutStreamAccessToken(token=self._token_mint.for_popout(popout.room, popout.identity)),
            transaction_id,
        )
        if popouts.issued > len(popouts.open):
            session.meeting.reconciler.repair({session.id})  # an older one may have had to make room
        return None

    # --- What LiveKit reports ------------------------------------------------------------------------------------

    def take_webhooks_at(self, url: str) -> None:
        """Have an embedded LiveKit report to `url`, unless a setting names another; before entering the module."""
        self._webhook_url = self._webhook_url or url

    async def receive_webhook(self, body: bytes, authorization: str) -> None:
        """
        Take note of what LiveKit reports. To be answered with 200 when this returns; what follows from it goes on.

        Args:
            body: Of the HTTP request, byte for byte.
            authorization: Its header of that name.

        Raises:
            WebhookRefused: It is forged, too old, was here before, or cannot be read; to be answered with 401, or 400.
        """
        if self._webhooks is None:
            raise RuntimeError("ModerationModule is used outside its `async with`")
        try:
            webhook = self._webhooks.open(body, authorization)
            await self._check_is_first(webhook)
        except WebhookRefused as error:
            metrics.WEBHOOKS.labels(error.reason).inc()
            log.warning("webhook_refused", reason=error.reason)
            raise
        metrics.WEBHOOKS.labels("accepted").inc()
        self._warns_of_missing_webhooks = False
        if webhook.notice is not None:
            meeting = self._meetings.get(room_of(webhook.notice.room))
            if meeting is not None:
                meeting.run_in_background(meeting.react(webhook.notice))
            if self._closed is not None and webhook.notice.kind in {"participant_joined", "track_published"}:
                self._run_in_background(self._closed.react(webhook.notice.room))

    async def _check_is_first(self, webhook: Webhook) -> None:
        if webhook.notice is None:
            return  # once or twice, nothing follows from it
        try:
            now = self._earliest_now()
            is_first = await self._store.keep_once(Kept.WEBHOOK, webhook.id, until=webhook.until, now=now)
        except StoreError as error:  # what LiveKit reports is looked at all the same: that protects more
            log.warning("webhook_not_kept", error=str(error))
            return
        if not is_first:
            raise WebhookRefused("replayed")

    def _note_people_in_livekit(self) -> None:
        if self._warns_of_missing_webhooks:
            self._warns_of_missing_webhooks = False
            log.warning("webhooks_missing", consequence=f"drift is repaired within {self._rules.sweep_s:g} s only")

    # --- Tokens --------------------------------------------------------------------------------------------------

    async def mint_credentials(self, session: Session) -> livekit.Credentials | None:
        """A token from the newest state, for the room where the participant belongs; `None` without LiveKit."""
        member = (await session.meeting.record()).state.members.get(session.id)
        if member is None or not await self._open_room(session, member.breakout):
            return None
        record = await session.meeting.record()
        # Whoever is just being removed gets nothing to come back with.
        is_here = session.id in record.state.members and session.id in record.effective.members
        return self._credentials(session, record) if is_here else None

    def _credentials(self, session: Session, record: Record) -> livekit.Credentials:
        member = record.state.members[session.id]
        room = livekit_room(session.room, member.breakout)
        sources = session.meeting.sources_for_token(record, session.id)
        token = self._token_mint.for_participant(room, Identity(session.id), sources=sources, kind=member.kind)
        return livekit.Credentials(
            room=room,
            token=token,
            public_url=self._public_url,
            service_url=self._service_url if member.kind in BESIDE_THE_SERVER else None,
        )

    @property
    def _token_mint(self) -> TokenMint:
        if self._mint is None:
            raise RuntimeError("ModerationModule is used outside its `async with`")
        return self._mint

    async def _open_room(self, session: Session, breakout: BreakoutId | None) -> bool:
        try:
            await session.meeting.open_room(livekit_room(session.room, breakout))
        except MediaServerError as error:
            log.warning("room_not_opened", room=session.room, error=str(error))
            return False
        return True

    # --- Delivering ----------------------------------------------------------------------------------------------

    def timestamp(self) -> float:
        """Now, in seconds since the epoch; never before what it was the last time."""
        self._last_timestamp = max(self._last_timestamp, self._clock())
        return self._last_timestamp

    def _earliest_now(self) -> float:
        """
        The time at which nothing that others have signed is over before it is.

        That is checked by the system's clock, which may be stepped: what was used must stay known for as long as it
        might be valid again.
        """
        return min(self._clock(), self._wall_clock())

    def _on_commit(self, commit: Commit) -> None:
        state = commit.record.state
        meeting = self._meetings.get(state.room)
        if meeting is None:
            return
        meeting.note(commit.record)
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

    def _on_state_changed(self, meeting: Meeting, changed: moderation.StateChanged) -> None:
        state = None if meeting.newest is None else meeting.newest.state
        delivery = Delivery(changed, self.timestamp())
        for sessions in tuple(self._sessions.get(meeting.room, {}).values()):
            for session in tuple(sessions):
                if session not in meeting.watchers:
                    continue
                if state is not None and may_moderate(state, session.id):
                    session.push(delivery, None)
                else:
                    meeting.watchers.discard(session)

    def _sender_of(self, announcement: Announcement) -> tuple[Session | None, TransactionId | None]:
        return (None, None) if announcement.cause is None else self._senders.get(announcement.cause, (None, None))

    def drop(self, session: Session) -> None:
        """Deliver nothing to this session any more."""
        sessions = self._sessions.get(session.room, {})
        listed = sessions.get(session.id, [])
        session.meeting.watchers.discard(session)
        session.joined.set()
        if session in listed:
            listed.remove(session)
            metrics.SESSIONS.dec()
        if not listed:
            sessions.pop(session.id, None)
        if not sessions:
            self._sessions.pop(session.room, None)

    def is_being_taken_over(self, session: Session) -> bool:
        """Whether a newer session of the same participant has begun to join."""
        listed = self._sessions.get(session.room, {}).get(session.id, [])
        return session in listed and listed[-1] is not session

    # --- Meetings ------------------------------------------------------------------------------------------------

    async def _meeting_that_goes_on(self, room: RoomId) -> Meeting:
        if not await self.has_meeting(room):
            raise NoSuchMeeting(f"there is no meeting {room}")
        return self._meeting(room)

    def _meeting(self, room: RoomId) -> Meeting:
        meeting = self._meetings.get(room)
        if meeting is None:
            if self._media is None or not self._is_entered:
                raise RuntimeError("ModerationModule is used outside its `async with`")
            if not self._is_open:
                raise StoreError("this process ends: no meeting is begun any more")
            meeting = Meeting(
                room,
                self._store,
                self._media,
                self._rules,
                clock=self._clock,
                entrance=self._entrance,
                closed=self._closed,
                is_arriving=lambda participant: (room, participant) in self._arriving,
                on_forgotten=lambda: self._let_go_if_unused(room),
                on_people_in_livekit=self._note_people_in_livekit,
                on_state_changed=lambda changed: self._on_state_changed(self._meeting(room), changed),
            )
            self._meetings[room] = meeting
            metrics.MEETINGS.inc()
            meeting.start()
        return meeting

    async def _is_in_use(self, room: LiveKitRoom) -> bool:
        record = await self._store.read(room_of(room))
        return record is not None and record.state.goes_on and room in record.state.rooms

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._is_open:  # nobody would end it
            work.close()
            return
        self._background.add(task := asyncio.create_task(work))
        task.add_done_callback(self._background.discard)

    def _let_go_if_unused(self, room: RoomId) -> None:
        """Nothing need run for a meeting of which nothing is kept, unless somebody begins it."""
        if room in self._meetings and room not in self._joining and room not in self._sessions:
            self._run_in_background(self._let_go_of(room))

    async def _let_go_of(self, room: RoomId) -> None:
        meeting = self._meetings.get(room)
        if meeting is None:
            return
        async with self._store.turn(room):
            pass  # whoever still waited for a turn has had it
        is_over = (await until_done(meeting.record)).revision == 0
        is_unused = room not in self._joining and room not in self._sessions
        if is_over and is_unused and self._meetings.get(room) is meeting:
            del self._meetings[room]
            metrics.MEETINGS.dec()
            await meeting.close()

    async def _close_meetings(self) -> None:
        self._is_open = False
        meetings, self._meetings = self._meetings, {}
        for meeting in meetings.values():
            metrics.MEETINGS.dec()
            await meeting.close()
        background = tuple(self._background)
        for task in background:
            task.cancel()  # it may wait for the store
        await asyncio.gather(*background, return_exceptions=True)
        for sessions in tuple(self._sessions.values()):
            for session in [session for listed in sessions.values() for session in listed]:
                self.drop(session)

    async def _take_up_meetings(self) -> None:
        """Go on with what the store has kept of an earlier process: everybody in it has the grace period to return."""
        for room in await self._store.rooms():
            meeting = self._meeting(room)
            record = await meeting.record()
            meeting.note(record)
            await meeting.lose_connections(dict.fromkeys(record.state.members, lambda: True))
            meeting.run_in_background(meeting.finish_staged())
            meeting.run_in_background(meeting.restore_rooms())
            if record.state.doomed:
                meeting.run_in_background(meeting.delete_doomed_rooms())

    def _restore_rooms(self) -> None:
        for meeting in self._meetings.values():
            meeting.run_in_background(meeting.restore_rooms())

    # --- LiveKit -------------------------------------------------------------------------------------------------

    async def _find_livekit(self, stack: AsyncExitStack) -> tuple[str, str, str]:
        settings = self.settings
        if settings.livekit_url and settings.livekit_api_key and settings.livekit_api_secret:
            return settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret.get_secret_value()
        server = EmbeddedServer(
            path=require(settings.livekit_server_path),
            webhook_urls=() if self._webhook_url is None else (self._webhook_url,),
            on_restart=self._on_restart,
        )
        await stack.enter_async_context(server)
        self._embedded = server
        return server.url, server.api_key, server.api_secret

    def _on_restart(self) -> None:
        if self._media is not None:
            self._media.forget_rooms()
        self._restore_rooms()


def _banned(participant: ParticipantId) -> ParticipantBanned:
    return ParticipantBanned(f"{participant} is banned from the meeting")


BESIDE_THE_SERVER: Final = frozenset({Kind.SIP, Kind.RECORDER})
"""Kinds that reach LiveKit by its internal address."""


RETRY_AFTER_S: Final = 1.0
"""When somebody whose meeting has too many commands waiting may try again."""


def _parse(
    namespace: Namespace, payload: object
) -> livekit.LiveKitCommand | control.ControlCommand | moderation.ModerationCommand:
    if namespace is Namespace.LIVEKIT:
        return parse_payload(payload, livekit.COMMANDS)
    if namespace is Namespace.CONTROL:
        return parse_payload(payload, control.COMMANDS)
    return parse_payload(payload, moderation.COMMANDS)


def _log_answer(
    room: RoomId,
    sender: ParticipantId,
    command_id: CommandId,
    action: str | None,
    answer: Conclusion | Refusal | None,
    duration_s: float,
) -> None:
    error = None if answer is None else answer.error
    metrics.COMMANDS.labels(action or "unknown", error or "ok").inc()
    metrics.COMMAND_DURATION.labels(action or "unknown").observe(duration_s)
    facts = {
        "room": room,
        "participant": sender,
        "command_id": command_id,
        "action": action,
        "duration_ms": round(duration_s * 1_000, 1),
    }
    if isinstance(answer, Refusal):
        log.info("command_refused", **facts, error=error)
    elif isinstance(answer, Conclusion) and error is not None:
        log.warning("command_applied", **facts, outcomes=_counted(answer), error=error)
    elif isinstance(answer, Conclusion):
        log.info("command_applied", **facts, outcomes=_counted(answer))
    else:
        log.info("command_applied", **facts)


def _counted(conclusion: Conclusion) -> dict[str, int]:
    return dict(Counter(outcome.outcome for outcome in conclusion.outcomes))
