"""One WebSocket as the event loop sees it: what is read at a time, what may wait unread, and whether it is alive."""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog
from websockets.asyncio.server import Server, ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, State
from websockets.server import ServerProtocol

from signaling.server.admission import Admission
from signaling.server.allowance import Allowance
from signaling.server.backlog import Backlog
from signaling.server.departures import Departures

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT_S: Final = 5
"""How long a client has to answer a close."""
MAX_REQUEST_BYTES: Final = 32 * 1024
BURST_BYTES: Final = 2 * 1024 * 1024
"""What may be read at once of a connection that was quiet: two of the largest frames."""
FRAME_COST_BYTES: Final = 64
"""What a frame costs besides its own bytes, since the smallest ones cost most to take apart."""
SLICE_BYTES: Final = 2 * 1024
"""What is read of one connection before others have a turn: some hundreds of the smallest frames."""

_OWN: Final = (
    "_admission",
    "_allowance",
    "_backlog",
    "_departures",
    "_has_heard",
    "_hear",
    "_heard_at",
    "_is_heard_out",
    "_is_refused",
    "_parsing",
    "_peer",
    "_pinged_at",
    "_request_bytes",
    "_timer",
    "_timing",
    "_unparsed",
)
"""Attributes of a channel beside the library's: with more than 30 in its dictionary, that takes a kibibyte more."""


@dataclass(frozen=True, slots=True)
class Timing:
    """
    How long a client may do nothing.

    Attributes:
        join_s: Until it has joined.
        ping_interval_s: Between two pings.
        ping_timeout_s: Until it has answered one.
        request_s: Until it has sent the whole request that opens a connection.
        unread_s: Without reading anything, while more than a mebibyte waits for it.
    """

    join_s: float = 10
    ping_interval_s: float = 15
    ping_timeout_s: float = 5
    request_s: float = 5
    unread_s: float = 10


class Channel(ServerConnection):
    """
    A connection of the library that takes no more of the event loop than others, and keeps no more than it may.

    - What is read is spent from an allowance of bytes. When it is used up, reading stops until it has come back, and
      the client is slowed down by its own full buffers. Much at once is taken apart in slices, in turns with others.
    - Nothing more is read of whoever has not read what they were sent, so no client makes the server keep more by
      asking, nor by pings, which the library answers by itself.
    - It pings by itself: the library would wait for a full buffer, and counts only a pong as a sign of life.
    """

    __slots__ = _OWN

    def __init__(
        self,
        protocol: ServerProtocol,
        server: Server,
        *,
        timing: Timing,
        allowance: Allowance,
        admission: Admission,
        departures: Departures,
        **options: Any,  # noqa: ANN401 - whatever the library has
    ) -> None:
        super().__init__(protocol, server, **options)
        self._timing = timing
        self._allowance = allowance
        self._admission = admission
        self._departures = departures
        self._peer = ""
        self._is_refused = False
        self._is_heard_out = False
        self._request_bytes = 0
        self._unparsed = bytearray()
        self._hear: Callable[[str], None] | None = None
        self._has_heard = False
        self._parsing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._pinged_at = 0.0
        self._backlog: Backlog | None = None

    # --- Beginning -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, and begin; without one it ends at once."""
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        if not self._admission.enter(self, self._peer):
            self._is_refused = True
            cast("asyncio.Transport", transport).abort()
            return
        super().connection_made(transport)
        # The library would pause and resume the transport without asking whether anything else holds it.
        self.recv_messages.pause = self._stop_reading
        self.recv_messages.resume = self._go_on
        self._timer = self.loop.call_later(self._timing.request_s, self._check_request)

    def count(self, forwarded: list[str]) -> bool:
        """Count it for the address that it comes from; false if too many came from there."""
        return self._admission.count(self, self._peer, forwarded)

    def give_way(self) -> None:
        """Keep nobody out from now on: it has been told no, and has a moment to go."""
        self._admission.wait(self, self._peer)
        self.hear_out()

    def abort(self) -> None:
        """End it now."""
        self.transport.abort()

    def start_keepalive(self) -> None:
        """Begin with frames; the library calls this when the connection is open."""
        self._heard_at = self.loop.time()
        self._set_timer(self._timing.ping_interval_s, self._ping)
        self._go_on()

    def _check_request(self) -> None:
        if self.request is None:
            self._admission.expire(self)

    # --- Reading -------------------------------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Whether it has sent what nobody has looked at yet."""
        return bool(self._unparsed) or len(self.recv_messages.frames) > 0

    def accept_frames_of(self, max_bytes: int) -> None:
        """Accept larger frames, or smaller ones, from the next one on."""
        self.protocol.max_message_size = max_bytes

    def data_received(self, data: bytes) -> None:
        """Take apart what came, now or when it is this connection's turn."""
        self._heard_at = self.loop.time()
        if not self._unparsed and len(data) <= SLICE_BYTES and not self._is_held and self._allowance.left >= 0:
            self._parse(data)
        else:
            self._unparsed += data
            self._go_on()

    def eof_received(self) -> None:
        """Leave it to the end of the connection, which follows, but for somebody who reads no more."""
        if self.transport.get_write_buffer_size() > 0:
            self._set_timer(CLOSE_TIMEOUT_S, self.abort)

    def process_event(self, event: Event) -> None:
        """Take what has been taken apart."""
        if self.request is None:
            self._admission.hear(self)
        else:
            self._allowance.owe(FRAME_COST_BYTES)
            if self._hear is not None and not self._has_heard and self._hear_now(event, self._hear):
                return
        super().process_event(event)

    def hear_by(self, hear: Callable[[str], None] | None) -> None:
        """
        Hand a message over when it is here, if it is the first of a slice and whoever awaits `recv` has had all others.

        Waking somebody up, who then waits for the next one, would cost as much again as the message. What `hear`
        raises is raised by `recv`.
        """
        self._hear = hear

    def _hear_now(self, event: Event, hear: Callable[[str], None]) -> bool:
        """Hand it over; false if it is to go to `recv`."""
        waiter = self.recv_messages.frames.get_waiter
        if waiter is None or waiter.done() or not isinstance(event, Frame):
            return False
        if event.opcode is not Opcode.TEXT or not event.fin:
            return False
        try:
            text = str(event.data, "utf-8")
        except UnicodeDecodeError:
            return False
        self._has_heard = True
        try:
            hear(text)
        except Exception as error:  # noqa: BLE001 - for whoever reads
            waiter.set_exception(error)
        return True

    def hear_out(self) -> None:
        """Read on to the end, since nobody looks at it any more."""
        self._is_heard_out = True
        self._go_on()

    @property
    def _is_held(self) -> bool:
        if self._is_heard_out or self.state is State.CLOSING:
            return False
        is_opening = self.request is not None and self.state is State.CONNECTING
        return is_opening or self.recv_messages.paused or self._backlog is not None

    def _parse(self, data: bytes | bytearray) -> None:
        self._has_heard = False
        if self.request is None:
            self._request_bytes += len(data)
            if self._request_bytes > MAX_REQUEST_BYTES:
                self.abort()
                return
        else:
            self._allowance.owe(len(data))
        super().data_received(bytes(data))
        if self.state is State.CONNECTING and self.protocol.parser_exc is not None:
            # Nonsense came before our answer. The library has ended its half already, and would fail to answer.
            self.abort()

    def _stop_reading(self) -> None:
        self.transport.pause_reading()

    def _go_on(self) -> None:
        """Take the next slice when it is time for it; read on when all has been taken apart."""
        if self._parsing is not None or self.transport.is_closing():
            return
        if self._is_held:
            self.transport.pause_reading()
        elif (owed_for_s := self._allowance.owed_for_s) > 0:
            self.transport.pause_reading()
            self._parsing = self.loop.call_later(owed_for_s, self._next_slice)
        elif self._unparsed:
            self.transport.pause_reading()
            self._parsing = self.loop.call_soon(self._next_slice)
        else:
            self.transport.resume_reading()

    def _next_slice(self) -> None:
        self._parsing = None
        if not self._is_held and not self.transport.is_closing() and self._unparsed:
            piece = self._unparsed[:SLICE_BYTES]
            del self._unparsed[:SLICE_BYTES]
            self._parse(piece)
        self._go_on()

    # --- Writing -------------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Write, and wait for nothing; who never reads is cut off."""
        if not self.transport.is_closing():
            before = None if self._backlog is None else self._backlog.size
            self.transport.write(data)
            if self._backlog is not None:
                self._backlog.note_written(before)

    def send_data(self) -> None:
        """Write what the library has to say: closes, pings, and pongs, which it makes by itself."""
        before = None if self._backlog is None else self._backlog.size
        super().send_data()
        if self._backlog is not None:
            self._backlog.note_written(before)

    async def drain(self) -> None:
        """Nobody waits for a full buffer."""

    async def drained(self) -> None:
        """Wait until less than a mebibyte waits to be read, or the connection has ended."""
        while self._backlog is not None and not self.transport.is_closing():
            await self._backlog.drained()

    def pause_writing(self) -> None:
        """Stop listening: more than a mebibyte waits to be read."""
        self.paused = True
        self._backlog = Backlog(self.transport, self.loop, unread_s=self._timing.unread_s, cut_off=self._cut_off)
        self._stop_reading()

    def resume_writing(self) -> None:
        """Listen again."""
        self.paused = False
        self._end_backlog()
        self._go_on()

    def _end_backlog(self) -> None:
        if self._backlog is not None:
            self._backlog.stop()
            self._backlog = None

    def _cut_off(self) -> None:
        log.warning("slow_reader_cut_off", connection=str(self.id))
        self._end_backlog()
        self.abort()

    # --- Being alive ---------------------------------------------------------------------------------------------

    def _set_timer(self, after_s: float, what: Any) -> None:  # noqa: ANN401
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(after_s, what)

    def _ping(self) -> None:
        if self.state is State.OPEN:
            self._pinged_at = self.loop.time()
            self.protocol.send_ping(struct.pack("!I", int(self._pinged_at * 1e3) & 0xFFFFFFFF))
            self.send_data()
            self._set_timer(self._timing.ping_timeout_s, self._check_alive)

    def _check_alive(self) -> None:
        """Whatever was read since the ping, by us or by the client, is a sign of life."""
        if self.state is not State.OPEN:
            return
        if self._backlog is not None or self._parsing is not None or self._heard_at >= self._pinged_at:
            after_s = max(0, self._timing.ping_interval_s - self._timing.ping_timeout_s)
            self._set_timer(after_s, self._ping)
        else:
            self.protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
            self.send_data()
            self._set_timer(CLOSE_TIMEOUT_S, self.abort)

    # --- Ending --------------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back now; what follows comes when it is this connection's turn."""
        self._admission.leave(self)
        for handle in (self._timer, self._parsing):
            if handle is not None:
                handle.cancel()
        self._timer = self._parsing = None
        self._end_backlog()
        if self._is_refused:
            return
        if self.state is State.CONNECTING:
            self._end(exc)  # before anybody answers it
        else:
            self._departures.add(lambda: self._end(exc))

    def _end(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._untangle()

    def _untangle(self) -> None:
        """Leave no circles of references: with thousands of connections the collector would stop everybody for them."""
        self.recv_messages.pause = self.recv_messages.resume = _nothing
        vars(self.protocol).pop("select_subprotocol", None)
        self.protocol.parser.close()
        if self.protocol.parser_exc is not None:
            self.protocol.parser_exc.__traceback__ = None


def _nothing() -> None:
    """Nothing is left to pause."""
