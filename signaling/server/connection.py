"""One WebSocket connection, from its ticket to its end."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, Protocol, assert_never

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from signaling import metrics
from signaling.answers import RETRY_AFTER_S, answers, asks_for_result, named_action
from signaling.audience import EndReason
from signaling.core.decisions import Refusal
from signaling.core.participants import Kind
from signaling.errors import MessageError, ParticipantBanned, StoreError
from signaling.identifiers import new_command_id
from signaling.messages import control, echo, livekit, moderation, removal
from signaling.messages.base import Event, Namespace, parse_payload
from signaling.messages.envelope import MAX_FRAME_BYTES, Delivery, EnvelopeError, Frame, TransactionId, parse_frame
from signaling.module import ModerationModule
from signaling.server.allowance import Allowance
from signaling.server.channel import Channel
from signaling.server.outbox import Outbox
from signaling.server.tickets import Ticket
from signaling.session import CONTROL, MODERATION, Session

log = structlog.get_logger(__name__)

_PING: Final = {"action": "ping"}
"""As clients send it; whatever else a ping may hold is looked at."""
_PONG: Final = echo.Pong()
_LEAVES_BY: Final = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.NO_STATUS_RCVD})
"""The codes of a client's close by which it leaves; the second is `close()` of a browser, which sends none."""
MAX_RUNNING: Final = 128
"""Commands of one connection without an answer yet; twice what a meeting lets wait."""
MAX_FRAME_BYTES_BEFORE_JOINING: Final = 16 * 1024
COMMAND_LENGTH: Final = 64 * 1024
"""A longer command counts once more for each so many characters."""
_SHOWING: Final = frozenset({"get_state", "watch", "get_audit"})


class Spawn(Protocol):
    """Starts a task that outlives the connection; whoever gives it waits for it in the end."""

    def __call__(self, coroutine: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        """Start it."""


class Connection:
    """
    One WebSocket connection, from its ticket to its end.

    Reading never waits for a command: each runs in a task of its own, so that pings and tokens are answered meanwhile.
    Commands take effect in the order in which they came, and all that is sent goes through one outbox, in order.

    Args:
        allowance: Has one for each command that may be sent now; pings are free.
        patience: Has one for each that may be sent besides, and is refused; then the connection is closed.
        join_timeout_s: How long the client may take to join.
        takes_commands: Whether commands are begun; not when the server stops.
    """

    def __init__(
        self,
        socket: Channel,
        ticket: Ticket,
        *,
        module: ModerationModule,
        outbox: Outbox,
        allowance: Allowance,
        patience: Allowance,
        join_timeout_s: float,
        spawn: Spawn,
        takes_commands: Callable[[], bool],
    ) -> None:
        self._socket = socket
        self._ticket = ticket
        self._module = module
        self._outbox = outbox
        self._allowance = allowance
        self._patience = patience
        self._join_timeout_s = join_timeout_s
        self._spawn = spawn
        self._takes_commands = takes_commands
        self._session: Session | None = None
        self._joining: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[EndReason] | None = None
        self._held_back: list[Delivery] | None = []
        self._running = 0
        self._showing = asyncio.Lock()
        self._last_timestamp = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self._is_late = False
        self._is_out_of_patience = False

    async def run(self) -> None:
        """Serve the client until the connection is closed, whoever closes it."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._join_timeout_s, self._check_joined)
        is_leaving = False
        self._socket.hear_by(self._receive)
        try:
            is_leaving = await self._read()
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            self._socket.hear_by(None)  # it would know us, and we know it
            self._socket.hear_out()
            await self._end(is_leaving=is_leaving)

    # --- Reading -------------------------------------------------------------------------------------------------

    async def _read(self) -> bool:
        """Read until the end; whether the client closed in a way that means leaving."""
        while True:
            try:
                data = await self._socket.recv()
            except ConnectionClosed as closed:
                begun_by_client = closed.rcvd is not None and closed.rcvd_then_sent is not False
                return begun_by_client and closed.rcvd is not None and closed.rcvd.code in _LEAVES_BY
            if isinstance(data, str):
                self._receive(data)
            else:
                self._receive_nonsense(EnvelopeError("invalid_json", "must be text"))
            await asyncio.sleep(0)  # whoever sends without a pause takes turns with everybody else

    def _receive(self, text: str) -> None:
        """Take a message, of the reader or of the socket itself; see `Channel.hear_by`."""
        try:
            frame = parse_frame(text)
        except EnvelopeError as error:
            self._receive_nonsense(error)
            return
        if frame.namespace is Namespace.ECHO:
            self._answer(_pong(frame.payload), frame.transaction_id)
        elif self._allowance.left < 1:
            self._refuse(frame, _too_many(self._allowance.one_after_s))
            self._lose_patience()
        else:
            self._allowance.spend(1 + len(text) // COMMAND_LENGTH)
            if not self._takes_commands():
                self._refuse(frame, Refusal("unavailable"))
            elif self._session is None:
                self._receive_before_joining(frame)
            elif self._running >= MAX_RUNNING:
                self._refuse(frame, _too_many(RETRY_AFTER_S))
            else:
                self._run(self._session, frame)

    def _receive_nonsense(self, error: EnvelopeError) -> None:
        """Answer what cannot be parsed; it counts as a command, whatever it was meant to be."""
        if self._allowance.take():
            self._answer(_envelope_error(error), error.transaction_id)
        else:
            self._answer(control.ControlError(error="rate_limit_exceeded"), error.transaction_id)
            self._lose_patience()

    def _run(self, session: Session, frame: Frame) -> None:
        shows = frame.namespace is Namespace.MODERATION and named_action(frame.namespace, frame.payload) in _SHOWING
        task = self._spawn(self._show(session, frame) if shows else _pass_on(session, frame))
        self._running += 1
        task.add_done_callback(self._on_answered)

    def _on_answered(self, _: asyncio.Task[None]) -> None:
        self._running -= 1

    async def _show(self, session: Session, frame: Frame) -> None:
        """Carry out what has a long answer: the next when the one before has been read."""
        async with self._showing:
            await self._socket.drained()
            await _pass_on(session, frame)

    def _lose_patience(self) -> None:
        """Close on somebody who goes on and on, however often they are refused."""
        if not self._patience.take() and not self._is_out_of_patience:
            self._is_out_of_patience = True
            log.warning("flood_cut_off", room=self._ticket.room, participant=self._ticket.participant.id)
            self._spawn(self._close(CloseCode.POLICY_VIOLATION))

    def _refuse(self, frame: Frame, refusal: Refusal) -> None:
        """Refuse a command that is not begun, in its own namespace, and with a `result` where one was asked for."""
        payload = frame.payload
        action = named_action(frame.namespace, payload)
        may_have_result = self._session is not None and (
            self._session.has_moderation or frame.namespace is Namespace.MODERATION
        )
        with_result = may_have_result and asks_for_result(frame.namespace, payload, frame.transaction_id)
        metrics.COMMANDS.labels(action or "unknown", refusal.error).inc()
        for event in answers(frame.namespace, action, new_command_id(), refusal, with_result=with_result):
            self._answer(event, frame.transaction_id)

    # --- Joining -------------------------------------------------------------------------------------------------

    def _receive_before_joining(self, frame: Frame) -> None:
        if frame.namespace is not Namespace.CONTROL:
            self._answer(control.ControlError(error="not_yet_joined"), frame.transaction_id)
            return
        try:
            command = parse_payload(frame.payload, control.COMMANDS)
        except MessageError as error:
            self._answer(control.ControlError(error="invalid_command", detail=str(error)), frame.transaction_id)
            return
        if not isinstance(command, control.Join):
            self._answer(control.ControlError(error="not_yet_joined"), frame.transaction_id)
        elif self._joining is not None:
            self._answer(control.ControlError(error="already_joined"), frame.transaction_id)
        else:
            self._joining = self._spawn(self._join(command, frame.transaction_id))

    async def _join(self, command: control.Join, transaction_id: TransactionId | None) -> None:
        participant = self._ticket.participant
        if participant.kind is Kind.GUEST and command.display_name is not None:
            participant = dataclasses.replace(participant, display_name=command.display_name)
        extensions = {CONTROL} | ({MODERATION} & set(command.extensions))
        try:
            session = await self._module.join(
                self._ticket.room, participant, deliver=self._deliver, extensions=frozenset(extensions)
            )
        except ParticipantBanned:  # since the handshake
            self._answer(control.ControlError(error="insufficient_permissions"), transaction_id)
            self._answer(removal.Banned())
            await self._close(CloseCode.NORMAL_CLOSURE)
            return
        except StoreError as error:
            log.error("store_failed", room=self._ticket.room, error=str(error))  # noqa: TRY400 - no bug, no traceback
            await self._give_up(CloseCode.TRY_AGAIN_LATER, transaction_id)
            return
        except Exception:
            log.exception("join_failed", room=self._ticket.room, participant=participant.id)
            await self._give_up(CloseCode.INTERNAL_ERROR, transaction_id)
            return
        self._session = session
        self._joining = None  # a task that is done takes a kibibyte
        self._socket.accept_frames_of(MAX_FRAME_BYTES)
        held_back, self._held_back = self._held_back or [], None
        self._answer(session.take_join_success(), transaction_id)
        for delivery in held_back:
            self._deliver(delivery)
        self._ended = session.ended
        self._ended.add_done_callback(self._on_ended)

    async def _give_up(self, code: CloseCode, transaction_id: TransactionId | None) -> None:
        self._answer(control.ControlError(error="internal"), transaction_id)
        await self._close(code)

    def _check_joined(self) -> None:
        """Close on somebody who has not sent `join`; what they sent may wait for its turn for as long again."""
        if self._joining is not None or self._session is not None:
            return
        if self._socket.is_behind and not self._is_late:
            self._is_late = True
            self._deadline = asyncio.get_running_loop().call_later(self._join_timeout_s, self._check_joined)
        else:
            log.info("connection_not_joined", room=self._ticket.room, participant=self._ticket.participant.id)
            self._spawn(self._close(CloseCode.POLICY_VIOLATION))

    # --- Sending -------------------------------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        """Send what the module delivers; what comes before `join_success` waits for it."""
        if self._held_back is None:
            self._outbox.put(self._socket, self._stamped(delivery))
        else:
            self._held_back.append(delivery)

    def _answer(self, event: Event, transaction_id: TransactionId | None = None) -> None:
        delivery = Delivery(event, self._module.timestamp(), transaction_id)
        self._outbox.put_first(self._socket, self._stamped(delivery))

    def _stamped(self, delivery: Delivery) -> Delivery:
        """As it goes out next: no time is before the last one."""
        if delivery.timestamp < self._last_timestamp:  # it was held back while something else went out
            return Delivery(delivery.event, self._last_timestamp, delivery.transaction_id)
        self._last_timestamp = delivery.timestamp
        return delivery

    # --- Ending --------------------------------------------------------------------------------------------------

    def _on_ended(self, ended: "asyncio.Future[EndReason]") -> None:
        last_words = _last_words(ended.result())
        if last_words is not None:
            self._answer(last_words)
        comes_back = ended.result() == "interrupted"
        self._spawn(self._close(CloseCode.SERVICE_RESTART if comes_back else CloseCode.NORMAL_CLOSURE))

    async def _close(self, code: CloseCode) -> None:
        self._outbox.flush()
        await self._socket.close(code)

    async def _end(self, *, is_leaving: bool) -> None:
        """The connection is gone. Commands that run go on; the place goes with who leaves, else it is kept."""
        if self._joining is not None:
            await asyncio.wait({self._joining})
        session, self._session = self._session, None  # it knows us too, and would have to be collected with us
        if session is not None:
            if self._ended is not None:
                self._ended.remove_done_callback(self._on_ended)
                self._ended.cancel()  # it is ours alone
            end = session.leave if is_leaving else session.disconnect
            try:
                await end()
            except StoreError as error:
                self._log_failure(error)
                await self._end_at_last(end)

    async def _end_at_last(self, end: Callable[[], Awaitable[None]]) -> None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreError),
            wait=wait_exponential(multiplier=0.1, max=5),
            before_sleep=lambda attempt: self._log_failure(None if (it := attempt.outcome) is None else it.exception()),
        )
        await retrying(end)

    def _log_failure(self, error: BaseException | None) -> None:
        log.error("store_failed", room=self._ticket.room, error=str(error))


def _last_words(reason: EndReason) -> Event | None:
    """Why the server closes, if that is for good; known clients hang up on these and come back after anything else."""
    match reason:
        case "kicked":
            return removal.Kicked()
        case "banned":
            return removal.Banned()
        case "meeting_ended":
            return control.RoomDeleted()
        case "taken_over" | "interrupted":
            return None
        case _:
            assert_never(reason)


async def _pass_on(session: Session, frame: Frame) -> None:
    await session.receive(frame.namespace.value, frame.payload, frame.transaction_id)


def _too_many(retry_after_s: float) -> Refusal:
    return Refusal("rate_limit_exceeded", retry_after_s=retry_after_s)


def _pong(payload: object) -> Event:
    if payload == _PING:
        return _PONG
    try:
        parse_payload(payload, echo.COMMANDS)
    except MessageError as error:
        return echo.EchoError(error="invalid_command", detail=str(error))
    return _PONG


def _envelope_error(error: EnvelopeError) -> Event:
    if error.code != "invalid_command":
        return control.ControlError(error=error.code, detail=error.detail)
    match error.namespace:
        case Namespace.LIVEKIT:
            return livekit.LiveKitError(error=error.code, detail=error.detail)
        case Namespace.MODERATION:
            return moderation.ModerationError(error=error.code, detail=error.detail)
        case Namespace.CONTROL:
            return control.ControlError(error=error.code, detail=error.detail)
        case Namespace.ECHO:
            return echo.EchoError(error=error.code, detail=error.detail)
        case _:
            assert_never(error.namespace)
