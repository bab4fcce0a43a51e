"""The two servers that are compared, each in a process of its own, and clients that cost as little as can be."""

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.frames import CloseCode, Frame, Opcode
from websockets.typing import Subprotocol

from signaling import Participant, Role
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.server.tickets import make_ticket
from signaling.testing.client import SUBPROTOCOL
from tests.meetings.serving import KEY, serving

AT_ONCE: Final = 20
LIMIT_S: Final = 120
_POLL_S: Final = 0.02
_HELLO: Final = '{"namespace":"control","payload":{"action":"join"}}'
_PING: Final = b"\x89\x04"  # with the four bytes that `websockets` puts in; JSON in ASCII never looks like it
_MASKED_PONG: Final = b"\x8a\x84\0\0\0\0"
_room_numbers: Final = count()
Result = TypeVar("Result")


class Listener(asyncio.Protocol):
    """
    Takes the place of a client that is in: it hears a word in what comes, answers pings, and takes nothing apart.

    With hundreds of clients in one process, taking apart what they all are told would be most of what is measured.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._transport = connection.transport
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._word = b""
        self._on_heard: Callable[[], None] = lambda: None
        self._transport.set_protocol(self)
        self._transport.resume_reading()  # a client that was told much at once has paused it

    def data_received(self, data: bytes) -> None:
        if self._word and self._word in data:
            self._word = b""
            self._on_heard()
        at = data.find(_PING)
        if at >= 0:
            self._transport.write(_MASKED_PONG + data[at + 2 : at + 6])

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(exc)

    def listen(self, word: bytes, on_heard: Callable[[], None]) -> None:
        """Call `on_heard` when something with `word` in it comes, once."""
        self._word, self._on_heard = word, on_heard

    def send(self, text: str) -> None:
        """Send a text frame."""
        self._transport.write(Frame(Opcode.TEXT, text.encode()).serialize(mask=True))

    def abort(self) -> None:
        """Be gone, as when a network fails."""
        self._transport.abort()

    async def leave(self) -> None:
        """Close with 1000, which means leaving, and wait for the end."""
        self._transport.write(Frame(Opcode.CLOSE, CloseCode.NORMAL_CLOSURE.to_bytes(2)).serialize(mask=True))
        async with asyncio.timeout(LIMIT_S):
            await self.closed


class Host:
    """A server to connect to."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def resident_kib(self) -> int:
        """What of the process is in memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    async def connect(self, room: str, name: str) -> ClientConnection:
        """Connect, and be in."""
        raise NotImplementedError

    async def until_left(self) -> None:
        """Wait until nobody is there any more."""
        raise NotImplementedError

    async def enter(self, room: str, name: str) -> Listener:
        """Connect, be in, and from then on only listen."""
        return Listener(await self.connect(room, name))

    async def fill(self, rooms: dict[str, int]) -> list[Listener]:
        """Let so many into each of these, 20 at a time, taking turns between rooms."""
        places = [(number, room) for room, size in rooms.items() for number in range(size)]
        return await in_flight(AT_ONCE, [self._entering(room, f"p{number}") for number, room in sorted(places)])

    def _entering(self, room: str, name: str) -> Callable[[], Awaitable[Listener]]:
        return lambda: self.enter(room, name)

    async def empty(self, listeners: Iterable[Listener]) -> None:
        """Let them leave."""
        await asyncio.gather(*(listener.leave() for listener in listeners))
        await self.until_left()


class BareHost(Host):
    """`websockets` and nothing else."""

    def __init__(self, pid: int, url: str) -> None:
        super().__init__(pid)
        self._url = url
        self._open = 0

    async def connect(self, room: str, name: str) -> ClientConnection:  # noqa: ARG002 - it knows neither
        connection = await connect_websocket(self._url, compression=None, max_size=None, ping_interval=None)
        await connection.send(_HELLO)
        await connection.recv()
        return connection

    async def until_left(self) -> None:
        """The last byte that a client gets is the answer to its close."""


class ModerationHost(Host):
    """The stand-alone server."""

    def __init__(
        self, pid: int, url: str, internal_url: str, http: aiohttp.ClientSession, livekit: EmbeddedServer
    ) -> None:
        super().__init__(pid)
        self.livekit = livekit
        self.url = url
        self._metrics_url = f"{internal_url}/metrics"
        self._http = http

    async def connect(self, room: str, name: str, *, role: Role = Role.USER) -> ClientConnection:
        participant = Participant(ParticipantId(name), role=role, display_name=name.title())
        ticket = make_ticket(KEY, "HS256", participant, RoomId(room))
        connection = await connect_websocket(
            self.url,
            subprotocols=[SUBPROTOCOL, Subprotocol(f"ticket#{ticket}")],
            compression=None,
            max_size=None,
            ping_interval=None,
        )
        await connection.send(_HELLO)
        welcome: dict[str, Any] = json.loads(await connection.recv())["payload"]
        assert welcome["message"] == "join_success", welcome
        assert "livekit" in welcome, welcome
        return connection

    async def gauge(self, name: str) -> float:
        """One of its metrics."""
        async with self._http.get(self._metrics_url) as answer:
            families = list(text_string_to_metric_families(await answer.text()))
        return next(sample.value for family in families for sample in family.samples if sample.name == name)

    async def until(self, name: str, value: float) -> None:
        """Wait until one of its metrics is this."""
        async with asyncio.timeout(LIMIT_S):
            while await self.gauge(name) != value:  # noqa: ASYNC110 - it is another process's
                await asyncio.sleep(_POLL_S)

    async def until_left(self) -> None:
        await self.until("moderation_connections", 0)


@asynccontextmanager
async def bare_host() -> AsyncIterator[BareHost]:
    """The bare server, in a process that ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.bare_server"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            url = (await process.stdout.readline()).decode().strip()
        yield BareHost(process.pid, url)
    finally:
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def moderation_host(*, reports: bool = False, **settings: str) -> AsyncIterator[ModerationHost]:
    """`livekit-moderation serve` with a store in memory, on a real LiveKit, which `reports` to it or not."""
    internal = _free_address()
    async with AsyncExitStack() as stack:
        hooks = [f"http://{internal}/livekit/webhook"] if reports else []
        livekit = EmbeddedServer(path=require(None), webhook_urls=hooks, prometheus=True)
        await stack.enter_async_context(livekit)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        directory = Path(stack.enter_context(TemporaryDirectory()))
        chosen = {
            "MODERATION_INTERNAL_LISTEN": internal,
            "MODERATION_STORE_URL": "memory:",
            "MODERATION_RATE_PER_S": "10000",  # nobody is to be refused for being measured
            "MODERATION_RATE_BURST": "100000",
            **settings,
        }
        server = await stack.enter_async_context(serving(livekit, directory, **chosen))
        assert server._process is not None
        yield ModerationHost(server._process.pid, server.signaling_url, server.internal_url, http, livekit)


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def fresh_room() -> str:
    """A room that nobody has used."""
    return f"room{next(_room_numbers)}"


async def in_flight(limit: int, work: Iterable[Callable[[], Awaitable[Result]]]) -> list[Result]:
    """Do all of it, so many at a time; the results in the same order."""
    places = asyncio.Semaphore(limit)

    async def one(each: Callable[[], Awaitable[Result]]) -> Result:
        async with places:
            return await each()

    return list(await asyncio.gather(*map(one, work)))


def cpu_s(pid: int) -> float:
    """For how many seconds a process has run on a core: Linux makes a clock of its id, finer than what /proc tells."""
    return time.clock_gettime(~pid << 3 | 2)


def ms_since(began_at: float) -> float:
    """Milliseconds since then, by `time.perf_counter`."""
    return (time.perf_counter() - began_at) * 1e3
