"""HTTP on a port that stays ours: connections taken, cut off, refused, or left waiting."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from signaling.testing.fake_room_service.answers import Answer, Reset

_LOOPBACK: Final = "127.0.0.1"
_BACKLOG: Final = 1024
_SHUTDOWN_S: Final = 1


class Listener:
    """Takes requests as long as it is told to, on the same port all the time."""

    def __init__(self, answer: Callable[[web.BaseRequest, bytes], Awaitable[Answer | Reset]]) -> None:
        """Listen to nothing yet."""
        self.web: web.Server | None = None
        """What makes a protocol for each connection, while it is online."""
        self._answer = answer
        self._in_flight: dict[asyncio.Task[Any], asyncio.BaseTransport] = {}
        self._running = asyncio.Event()
        self._running.set()
        self._port: int | None = None
        self._held_port: socket.socket | None = None
        self._listener: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        self._held_port = _bind(0)
        self._port = self._held_port.getsockname()[1]
        await self.online()

    async def close(self) -> None:
        """Cut every connection and let go of the port."""
        await self._cut()
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None

    @property
    def url(self) -> str:
        """Where it is, in http form; the same for as long as it lives."""
        return f"http://{_LOOPBACK}:{self._known_port}"

    def abort(self) -> None:
        """Cut off the calls in flight."""
        for task, connection in self._in_flight.items():
            _abort(connection)
            task.cancel()

    async def offline(self) -> None:
        """Cut every connection and refuse new ones, until `online`."""
        if self._held_port is None:
            await self._cut()
            # Bound and not listening, so connections are refused and the port stays ours.
            self._held_port = _bind(self._known_port)

    async def online(self) -> None:
        """Listen again, on the same port."""
        held, self._held_port = self._held_port, None
        if held is None:
            return
        self.web = web.Server(self._respond, access_log=None)
        self._listener = await asyncio.get_running_loop().create_server(self.web, sock=held, backlog=_BACKLOG)

    def stall(self) -> None:
        """Accept connections and read calls, but do nothing, until `unstall`."""
        self._running.clear()

    def unstall(self) -> None:
        """Go on, with the calls that came in meanwhile, also of those who no longer wait for the answer."""
        self._running.set()

    @property
    def _known_port(self) -> int:
        if self._port is None:
            raise RuntimeError("FakeRoomService is used outside its `async with`")
        return self._port

    async def _cut(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        server, self.web = self.web, None
        if server is None:
            return
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        # Those who were cut off before belong to no connection any more; and aiohttp waits for whoever hangs.
        tasks = tuple(self._in_flight)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.shutdown(_SHUTDOWN_S)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.transport
        task = asyncio.current_task()
        if connection is None or task is None:  # cut off meanwhile
            return web.Response()
        self._in_flight[task] = connection
        try:
            body = await request.read()
            if not self._running.is_set():
                await self._running.wait()
            answer = await self._answer(request, body)
        finally:
            del self._in_flight[task]
        if isinstance(answer, Reset):
            _abort(connection)
            return web.Response()
        return web.Response(status=answer.status, body=answer.body, headers={"Content-Type": answer.content_type})


def _abort(connection: asyncio.BaseTransport) -> None:
    if isinstance(connection, asyncio.Transport):
        connection.abort()


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((_LOOPBACK, port))
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)  # noqa: FBT003  the socket's own signature
    return bound
