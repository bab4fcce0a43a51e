"""The WebSocket that clients connect to."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import structlog
from aiolimiter import AsyncLimiter
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import CloseCode
from websockets.protocol import State

from signaling import metrics
from signaling.messages.envelope import MAX_FRAME_BYTES
from signaling.module import ModerationModule
from signaling.server.addresses import cannot_listen, url_of
from signaling.server.connection import Connection
from signaling.server.handshake import PATH, Handshake, Origins
from signaling.server.outbox import MAX_UNREAD_BYTES, Outbox
from signaling.server.tickets import Tickets
from signaling.settings import ServerSettings

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT_S: Final = 5
"""How long a client has to answer a close."""
STOP_S: Final = 1.0
"""How long all of them have when the server stops, and how long what is running then has after that."""
_BACKLOG: Final = 1_024


@dataclass(frozen=True, slots=True)
class Timing:
    """
    How long a client may do nothing.

    Attributes:
        join_s: Until it has joined.
        ping_interval_s: Between two pings.
        ping_timeout_s: Until it has answered one.
    """

    join_s: float = 10
    ping_interval_s: float = 15
    ping_timeout_s: float = 5


class WebSocketServer:
    """
    Listens for clients, from entering to leaving its `async with`; closes all connections with 1012 when it stops.

    Raises:
        ConfigurationError: A setting is wrong; that it cannot listen is raised when entered.
    """

    def __init__(self, settings: ServerSettings, module: ModerationModule, *, timing: Timing) -> None:
        self._address = settings.moderation_listen
        self._module = module
        self._tickets = Tickets(settings.moderation_ticket_key, settings.moderation_ticket_algorithm)
        self._handshake = Handshake(
            self._tickets,
            Origins(settings.moderation_allowed_origins, self._address.host),
            module.is_banned,
            module.use_ticket,
        )
        self._rate_per_s = settings.moderation_rate_per_s
        self._burst = settings.moderation_rate_burst
        self._timing = timing
        self._outbox = Outbox()
        self._server: Server | None = None
        self._open: set[ServerConnection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            self._server = await serve(
                self._serve,
                self._address.host,
                self._address.port,
                process_request=self._handshake.process_request,
                process_response=self._handshake.process_response,
                select_subprotocol=self._handshake.select_subprotocol,
                create_connection=self._tracked(),
                compression=None,
                max_size=MAX_FRAME_BYTES,
                # Nobody waits for a full buffer, not even the library's own pings: who does not read is cut off.
                write_limit=2 * MAX_UNREAD_BYTES,
                ping_interval=self._timing.ping_interval_s,
                ping_timeout=self._timing.ping_timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                server_header=None,
                backlog=_BACKLOG,
                logger=_quiet_logger(),
            )
        except OSError as error:
            raise cannot_listen("MODERATION_LISTEN", self._address, error) from error
        self._tickets.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_listening(self) -> bool:
        """Whether clients may connect."""
        return self._server is not None and self._server.is_serving()

    @property
    def url(self) -> str:
        """What clients connect to, with the real port."""
        if self._server is None:
            raise RuntimeError("WebSocketServer is used outside its `async with`")
        return f"{url_of('ws', self._address, self._server.sockets[0].getsockname())}{PATH}"

    async def close(self) -> None:
        """Close all connections with 1012, which keeps their places; takes two seconds at most, whatever clients do."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close(close_connections=False)
        await self._tickets.close()
        self._outbox.flush()
        for connection in server.connections:
            self._spawn(connection.close(CloseCode.SERVICE_RESTART))
        closed = asyncio.create_task(server.wait_closed())
        await asyncio.wait({closed}, timeout=STOP_S)
        for connection in tuple(self._open):
            connection.transport.abort()
        await asyncio.wait({closed, *self._tasks}, timeout=STOP_S)
        while unfinished := self._tasks | self._serving:
            log.warning("given_up_at_stop", tasks=len(unfinished))
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished)
        await closed

    def _tracked(self) -> type[ServerConnection]:
        """Connections that are known from the first byte, so that stopping need not wait for a handshake."""
        known, handshake = self._open, self._handshake

        class Tracked(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                known.add(self)
                super().connection_made(transport)

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if self.state is State.CONNECTING and self.protocol.parser_exc is not None:
                    # Nonsense came before our answer. The library has ended its half already, and would fail to answer.
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                known.discard(self)
                handshake.forget(self)
                super().connection_lost(exc)

        return Tracked

    async def _serve(self, socket: ServerConnection) -> None:
        ticket = self._handshake.take_ticket(socket)
        for head in (socket.request, socket.response):
            if head is not None:
                head.headers.clear()  # the ticket is in there, and they are kept for as long as the connection is
        connection = Connection(
            socket,
            ticket,
            module=self._module,
            outbox=self._outbox,
            limiter=AsyncLimiter(self._burst, self._burst / self._rate_per_s),
            join_timeout_s=self._timing.join_s,
            spawn=self._spawn,
        )
        metrics.CONNECTIONS.inc()
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            await connection.run()
        finally:
            metrics.CONNECTIONS.dec()

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed", exc_info=error)


def _quiet_logger() -> logging.Logger:
    """For the library: what it logs below a warning holds headers and frames, and these hold tickets and tokens."""
    logger = logging.getLogger("signaling.server.websockets")
    logger.setLevel(logging.WARNING)
    return logger
