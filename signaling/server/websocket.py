"""The WebSocket that clients connect to."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self, cast

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from signaling import metrics
from signaling.module import ModerationModule
from signaling.server.addresses import cannot_listen, url_of
from signaling.server.admission import Admission
from signaling.server.allowance import Allowance
from signaling.server.backlog import MAX_UNREAD_BYTES
from signaling.server.channel import BURST_BYTES, CLOSE_TIMEOUT_S, Channel, Timing
from signaling.server.connection import MAX_FRAME_BYTES_BEFORE_JOINING, Connection
from signaling.server.departures import Departures
from signaling.server.handshake import PATH, Handshake, Origins, refusal
from signaling.server.outbox import Outbox
from signaling.server.tickets import Tickets
from signaling.settings import ServerSettings

log = structlog.get_logger(__name__)

__all__ = ["STOP_S", "Timing", "WebSocketServer"]

FINISH_S: Final = 3.0
"""How long commands and joins that have been begun may take when the server stops: a call to LiveKit, and a commit."""
STOP_S: Final = 1.0
"""How long all of them have when the server stops, and how long what is running then has after that."""
_BACKLOG: Final = 1_024
_ACCEPTED_AT_ONCE: Final = 2
"""New connections that are taken before everybody else has a turn: each costs a millisecond until it is refused."""
_OPEN_TIMEOUT_S: Final = 30
"""How long opening may take once the request is there, which is up to us: a storm is no reason to be refused."""
_PATIENCE: Final = 10
"""As many commands too many are refused as there may be at once, times this; then the connection is closed."""


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
        self._bytes_per_s = settings.moderation_rate_bytes_per_s
        self._per_address = settings.moderation_connections_per_address
        self._per_address_per_s = settings.moderation_handshakes_per_s
        self._proxies = settings.moderation_trusted_proxies
        self._timing = timing
        self._outbox = Outbox()
        self._server: Server | None = None
        self._open: set[Channel] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            self._server = await serve(
                self._serve,
                self._address.host,
                self._address.port,
                process_request=self._process_request,
                process_response=self._process_response,
                select_subprotocol=self._handshake.select_subprotocol,
                create_connection=self._channels(),
                compression=None,
                max_size=MAX_FRAME_BYTES_BEFORE_JOINING,
                write_limit=MAX_UNREAD_BYTES,
                ping_interval=None,  # a channel pings by itself
                open_timeout=_OPEN_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                server_header=None,
                backlog=_ACCEPTED_AT_ONCE,
                logger=_quiet_logger(),
            )
        except OSError as error:
            raise cannot_listen("MODERATION_LISTEN", self._address, error) from error
        for listening in self._server.sockets:
            with listening.dup() as own:  # asyncio has one number for what may queue up and for what it takes at once
                own.listen(_BACKLOG)
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
    def connections(self) -> int:
        """How many there are, from the first byte on."""
        return len(self._open)

    @property
    def url(self) -> str:
        """What clients connect to, with the real port."""
        if self._server is None:
            raise RuntimeError("WebSocketServer is used outside its `async with`")
        return f"{url_of('ws', self._address, self._server.sockets[0].getsockname())}{PATH}"

    async def close(self) -> None:
        """
        Take nothing more, answer what was begun, and close all connections with 1012, which keeps their places.

        Takes six seconds at most, whatever clients, LiveKit and the store do.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.close(close_connections=False)
        await self._tickets.close()
        await self._finish()
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

    def _takes_commands(self) -> bool:
        return self._server is not None

    async def _finish(self) -> None:
        """Answer what runs, and leave everybody's place to the node where they come back."""
        began_at = time.monotonic()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=FINISH_S)
        await self._module.hand_over(within_s=max(0.0, began_at + FINISH_S - time.monotonic()))

    def _channels(self) -> type[ServerConnection]:
        """Makes connections that are known from the first byte, so that stopping need not wait for a handshake."""
        now = asyncio.get_running_loop().time
        known, forget, departures = self._open, self._handshake.forget, Departures()
        allowance = partial(Allowance, self._bytes_per_s, BURST_BYTES, now)
        admission = Admission(
            per_address=self._per_address,
            per_address_per_s=self._per_address_per_s,
            proxies=self._proxies,
            now=now,
        )
        timing = self._timing

        class Tracked(Channel):
            def __init__(self, protocol: ServerProtocol, server: Server, **options: object) -> None:
                super().__init__(
                    protocol,
                    server,
                    timing=timing,
                    allowance=allowance(),
                    admission=admission,
                    departures=departures,
                    **options,
                )

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                known.add(self)
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                known.discard(self)
                forget(self)
                super().connection_lost(exc)

        return Tracked

    async def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Ask whether there is room for whoever comes from there before looking at what they show."""
        if not cast("Channel", connection).count(request.headers.get_all("X-Forwarded-For")):
            return refusal("too_many_connections")
        return await self._handshake.process_request(connection, request)

    async def _process_response(
        self, connection: ServerConnection, request: Request, response: Response
    ) -> Response | None:
        answer = await self._handshake.process_response(connection, request, response)
        if (answer or response).status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            cast("Channel", connection).give_way()
        return answer

    async def _serve(self, socket: ServerConnection) -> None:
        ticket = self._handshake.take_ticket(socket)
        for head in (socket.request, socket.response):
            if head is not None:
                head.headers.clear()  # the ticket is in there, and they are kept for as long as the connection is
        now = asyncio.get_running_loop().time
        connection = Connection(
            cast("Channel", socket),
            ticket,
            module=self._module,
            outbox=self._outbox,
            allowance=Allowance(self._rate_per_s, self._burst, now),
            patience=Allowance(self._rate_per_s, self._burst * _PATIENCE, now),
            join_timeout_s=self._timing.join_s,
            spawn=self._spawn,
            takes_commands=self._takes_commands,
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
