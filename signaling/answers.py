"""From what was sent to what is answered."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final, assert_never

import prometheus_client
import structlog

from signaling import metrics
from signaling.audience import Audience, Connected
from signaling.core.commands import Extend, ModeratorCommand
from signaling.core.conclusions import Conclusion
from signaling.core.decisions import Refusal, RefusalCode, may_moderate
from signaling.credentials import Credentials
from signaling.errors import MessageError, NoSuchMeeting, StoreError
from signaling.identifiers import CONTROLLER, CommandId, ParticipantId, RoomId, new_command_id
from signaling.meeting.meeting import Meeting
from signaling.meeting.tasks import until_done
from signaling.meeting.turn import TooManyWaiting
from signaling.meeting.view import audit_view
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event, Namespace, parse_payload
from signaling.messages.envelope import TransactionId, is_transaction_id
from signaling.stores.contract import Origin, Store

log = structlog.get_logger(__name__)

RETRY_AFTER_S: Final = 1.0
"""When somebody whose meeting has too many commands waiting may try again."""
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


class Answers:
    """Answers what the clients of all sessions send, and what the host commands."""

    def __init__(self, store: Store, audience: Audience, credentials: Credentials) -> None:
        self._store = store
        self._audience = audience
        self._credentials = credentials

    async def receive(
        self, session: Connected, namespace: str, payload: object, transaction_id: TransactionId | None
    ) -> None:
        """Carry out what a client of `session` sent; see `Session.receive`."""
        spoken = Namespace(namespace)
        if spoken is Namespace.ECHO or (spoken is Namespace.CONTROL and not session.has_control):
            raise ValueError(f"{namespace} is not the module's")
        if transaction_id is not None and not is_transaction_id(transaction_id):
            raise ValueError("a transaction id is an unsigned 64-bit number or a string of 1 to 64 characters")
        if spoken is Namespace.MODERATION and not session.has_moderation:
            session.has_moderation = True
            session.meeting.tasks.run_in_background(self._extend(session))
        command_id = new_command_id()
        began_at = time.perf_counter()
        action = named_action(spoken, payload)
        answer: Conclusion | Refusal | None
        try:
            command = _parse(spoken, payload)
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
        duration_s = time.perf_counter() - began_at
        with_result = session.has_moderation and asks_for_result(spoken, payload, transaction_id)
        for event in answers(spoken, action, command_id, answer, with_result=with_result):
            session.tell(event, transaction_id)
        # When what was told has gone out, since nobody waits for the log.
        known_as = "preview" if is_preview(spoken, payload) else action
        asyncio.get_running_loop().call_soon(
            _log_answer, session.room, session.id, command_id, known_as, answer, duration_s
        )

    async def _extend(self, session: Connected) -> None:
        async def extend() -> None:
            if not session.is_over and not self._audience.is_being_taken_over(session):
                await session.meeting.turns.commit_now(session.id, Extend(session.id))

        await until_done(extend)

    async def _carry_out(
        self,
        session: Connected,
        command: livekit.LiveKitCommand | control.ControlCommand | moderation.ModerationCommand,
        command_id: CommandId,
        transaction_id: TransactionId | None,
    ) -> Conclusion | Refusal | None:
        origin = Origin(session.key, transaction_id)
        match command:
            case moderation.GetState() | moderation.Watch() | moderation.GetAudit():
                return await self._show(session, command, transaction_id)
            case livekit.CreateNewAccessToken():
                return await self._renew(session, transaction_id)
            case livekit.RequestPopoutStreamAccessToken():
                popout = await self._credentials.open_popout(session.meeting, session.id, command, command_id, origin)
                if isinstance(popout, Refusal):
                    return popout
                session.tell(popout, transaction_id)
                return None
            case control.Join():
                return Refusal("already_joined")
            case _:
                return await self._carry_through(session.meeting, session.id, command, command_id, origin)

    async def _carry_through(
        self,
        meeting: Meeting,
        sender: ParticipantId,
        command: SessionlessCommand,
        command_id: CommandId,
        origin: Origin | None = None,
    ) -> Conclusion | Refusal | None:
        match command:
            case moderation.Preview(command=previewed):
                return await meeting.turns.preview(sender, previewed, command_id)
            case moderation.Undo(command_id=undone):
                answer = await meeting.turns.take(sender, command, command_id, origin)
                if isinstance(answer, Refusal) and answer.error == "unknown_command_id":
                    return await self._why_unknown(meeting.room, CommandId(undone))
                return answer
            case control.RaiseHand() | control.LowerHand():
                committed = await meeting.turns.commit_now(sender, command, command_id, origin)
                return committed if isinstance(committed, Refusal) else None
            case _:
                return await meeting.turns.take(sender, command, command_id, origin)

    async def _show(
        self,
        session: Connected,
        command: moderation.GetState | moderation.Watch | moderation.GetAudit,
        transaction_id: TransactionId | None,
    ) -> Refusal | None:
        record = await session.meeting.journal.record()
        if not may_moderate(record.state, session.id):
            return Refusal("insufficient_permissions")
        match command:
            case moderation.GetAudit(limit=limit, before=before):
                shown = await self._audited(session.room, limit, None if before is None else CommandId(before))
                session.tell(moderation.Audit(entries=shown), transaction_id)
                return None
            case moderation.Watch(enabled=False):
                session.meeting.view.watchers.discard(session)
                return None
            case moderation.Watch() | moderation.GetState():
                # Shown before they watch: what they are told of then begins right after it.
                session.tell(moderation.State(**dict(session.meeting.view.show(record))), transaction_id)
        if isinstance(command, moderation.Watch):
            session.meeting.view.watchers.add(session)
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
        entry = await self._store.audited(room, command_id)
        return Refusal("unknown_command_id" if entry is None else "not_undoable")

    async def _renew(self, session: Connected, transaction_id: TransactionId | None) -> Refusal | None:
        credentials = await self._credentials.mint(session.meeting, session.id)
        if credentials is None:
            return Refusal("livekit_unavailable")
        session.tell(credentials, transaction_id)
        return None

    async def command(
        self, meeting: Meeting, spoken: Namespace, payload: object, as_: ParticipantId | None
    ) -> moderation.Result:
        """
        Carry out a command of moderators that has no session, as whom or as the host (`None`).

        Raises:
            NoSuchMeeting: It has ended.
            StoreError: The store does not answer.
        """
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
        if as_ is None and isinstance(answer, Refusal) and not (await meeting.journal.state()).goes_on:
            raise NoSuchMeeting(f"the meeting {room} has ended")
        known_as = "preview" if is_preview(spoken, payload) else action
        _log_answer(room, sender, command_id, known_as, answer, time.perf_counter() - began_at)
        is_so_already = isinstance(answer, Refusal) and answer.error == "nothing_to_do"
        return result(action, command_id, None if is_so_already else answer)


_IN_LIVEKIT: Final[Mapping[RefusalCode, livekit.LiveKitErrorCode]] = MappingProxyType(
    {
        "insufficient_permissions": "insufficient_permissions",
        "internal": "internal",
        "invalid_command": "invalid_command",
        "livekit_unavailable": "livekit_unavailable",
        "rate_limit_exceeded": "rate_limit_exceeded",
        "unavailable": "internal",  # the namespace has no word for the store
    }
)
_IN_CONTROL: Final[Mapping[RefusalCode, control.ControlErrorCode]] = MappingProxyType(
    {
        "already_joined": "already_joined",
        "insufficient_permissions": "insufficient_permissions",
        "internal": "internal",
        "invalid_command": "invalid_command",
        "nothing_to_do": "nothing_to_do",
        "rate_limit_exceeded": "rate_limit_exceeded",
        "unavailable": "internal",
    }
)
_IN_MODERATION: Final[Mapping[RefusalCode, moderation.ResultErrorCode]] = MappingProxyType(
    {
        "insufficient_permissions": "insufficient_permissions",
        "internal": "internal",
        "invalid_command": "invalid_command",
        "livekit_unavailable": "livekit_unavailable",
        "not_undoable": "not_undoable",
        "rate_limit_exceeded": "rate_limit_exceeded",
        "unavailable": "unavailable",
        "unknown_command_id": "unknown_command_id",
        "unknown_request_id": "unknown_request_id",
    }
)


_COMMANDS: Final[Mapping[Namespace, Mapping[str, object]]] = MappingProxyType(
    {
        Namespace.LIVEKIT: livekit.COMMANDS,
        Namespace.MODERATION: moderation.COMMANDS,
        Namespace.CONTROL: control.COMMANDS,
    }
)


def is_preview(namespace: Namespace, payload: object) -> bool:
    """Whether a command, readable or not, only asks what another would do."""
    return namespace is Namespace.MODERATION and isinstance(payload, dict) and payload.get("action") == "preview"


def named_action(namespace: Namespace, payload: object) -> str | None:
    """What a command, readable or not, asks for, or asks about; `None` if that is no action of the namespace."""
    named = payload
    if isinstance(payload, dict) and is_preview(namespace, payload):
        named = payload.get("command")
    action = named.get("action") if isinstance(named, dict) else None
    return action if isinstance(action, str) and action in _COMMANDS[namespace] else None


def asks_for_result(namespace: Namespace, payload: object, transaction_id: TransactionId | None) -> bool:
    """Whether a command, readable or not, is to be answered by a `result` where its sender knows of those."""
    return is_preview(namespace, payload) or (transaction_id is not None and namespace is not Namespace.CONTROL)


def answers(
    namespace: Namespace,
    action: str | None,
    command_id: CommandId,
    answer: Conclusion | Refusal | None,
    *,
    with_result: bool,
) -> Iterator[Event]:
    """
    The events for the sender alone.

    Args:
        action: What was asked, `None` if that cannot be told.
        answer: `None` for a command that was carried out and has no outcomes.
        with_result: Whether the sender asked for a `result`.
    """
    if with_result:
        yield result(action, command_id, answer)
    error = None if answer is None else answer.error
    if error is None:
        return
    detail = retry_after_s = None
    if isinstance(answer, Refusal):
        detail, retry_after_s = answer.detail, answer.retry_after_s
    if isinstance(answer, Conclusion) or namespace is Namespace.LIVEKIT:
        # That LiveKit did not do its part of a command is told in this namespace, whatever the command's own.
        yield livekit.LiveKitError(error=_IN_LIVEKIT[error], detail=detail)
    elif namespace is Namespace.CONTROL:
        yield control.ControlError(error=_IN_CONTROL[error], detail=detail)
    elif not with_result:
        yield moderation.ModerationError(error=_IN_MODERATION[error], detail=detail, retry_after_s=retry_after_s)


def result(action: str | None, command_id: CommandId, answer: Conclusion | Refusal | None) -> moderation.Result:
    """The whole answer to a command in one; see `answers`."""
    match answer:
        case None:
            return moderation.Result(command_id=command_id, action=action)
        case Refusal(error, detail, retry_after_s):
            return moderation.Result(
                command_id=command_id,
                action=action,
                error=_IN_MODERATION[error],
                detail=detail,
                retry_after_s=retry_after_s,
            )
        case Conclusion():
            return moderation.Result(
                command_id=command_id,
                action=action,
                error=answer.error,
                outcomes=answer.outcomes,
                repaired_later=answer.repaired_later,
            )
        case _:
            assert_never(answer)


def _parse(
    namespace: Namespace, payload: object
) -> livekit.LiveKitCommand | control.ControlCommand | moderation.ModerationCommand:
    if namespace is Namespace.LIVEKIT:
        return parse_payload(payload, livekit.COMMANDS)
    if namespace is Namespace.CONTROL:
        return parse_payload(payload, control.COMMANDS)
    return parse_payload(payload, moderation.COMMANDS)


@cache
def _counted_by(action: str, error: str) -> tuple[prometheus_client.Counter, prometheus_client.Histogram]:
    """Looked up once for each action and each of the codes: to ask by labels costs as much as the rest of the line."""
    return metrics.COMMANDS.labels(action, error), metrics.COMMAND_DURATION.labels(action)


def _log_answer(
    room: RoomId,
    sender: ParticipantId,
    command_id: CommandId,
    action: str | None,
    answer: Conclusion | Refusal | None,
    duration_s: float,
) -> None:
    error = None if answer is None else answer.error
    counter, histogram = _counted_by(action or "unknown", error or "ok")
    counter.inc()
    histogram.observe(duration_s)
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
