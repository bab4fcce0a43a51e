"""The server under attack, who is in its meeting, and what must hold whatever is sent."""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from signaling import Kind, Participant, Role
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.server.tickets import make_ticket
from signaling.testing.client import SUBPROTOCOL

ROOM: Final = RoomId("standup")
OTHER_ROOM: Final = RoomId("retro")
ROOMS: Final = (ROOM, OTHER_ROOM)
_JWT: Final = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_RAISED: Final = re.compile(r"^[\w.]+(?=: |$)", re.MULTILINE)
_PROMPT_S: Final = 20
"""Nothing that is answered at all takes longer."""
_QUIET_ROUNDS: Final = 80
_QUIET_POLL_S: Final = 0.5
_POLL_S: Final = 0.02


class Finding(Exception):
    """
    Something that must not be.

    Attributes:
        more: What may be different when the same is found again.
    """

    def __init__(self, what: str, more: str = "") -> None:
        super().__init__(what)
        self.more = more


@dataclass(frozen=True, slots=True)
class Found:
    """
    How something was seen that must not be.

    Attributes:
        after: How many cases of each target there had been.
    """

    more: str
    after: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server's process holds."""

    memory_mib: float
    descriptors: int
    tasks: int


@dataclass(slots=True)
class Answer:
    """What came back for a request; without a status nothing did."""

    status: int | None
    raw: bytes


@dataclass(slots=True)
class Echo:
    """How long pings took that somebody sent who does nothing else."""

    count: int = 0
    late: int = 0
    worst_ms: float = 0.0


@dataclass(slots=True)
class Who:
    """Somebody of the meeting."""

    name: str
    role: Role = Role.USER
    kind: Kind = Kind.USER
    extensions: tuple[str, ...] = ("livekit_moderation",)


PEOPLE: Final = (
    Who("alice", Role.MODERATOR),
    Who("mona", Role.MODERATOR),
    Who("bob", extensions=()),
    Who("gina", Role.GUEST, Kind.GUEST),
)


class Seat:
    """A connection of somebody, who reads all that comes and finds fault with it."""

    def __init__(self, world: "World", who: Who, connection: ClientConnection) -> None:
        self._world = world
        self.who = who
        self.connection = connection
        self._pongs: dict[object, asyncio.Future[None]] = {}
        self._marks = 0
        self.welcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.told: list[str] = []
        self._arrived = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name=f"seat of {who.name}")

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it."""
        return not self._reading.done()

    async def ping(self) -> bool:
        """Wait for a pong; whether one came before the server closed."""
        self._marks += 1
        mark = f"mark {self._marks}"
        pong = self._pongs[mark] = asyncio.get_running_loop().create_future()
        try:
            await self.connection.send(
                json.dumps({"namespace": "echo", "payload": {"action": "ping"}, "transaction_id": mark})
            )
            await asyncio.wait({pong, self._reading}, timeout=_PROMPT_S, return_when=asyncio.FIRST_COMPLETED)
        except ConnectionClosed:
            return False
        finally:
            del self._pongs[mark]
        if not pong.done() and not self._reading.done():
            raise Finding(f"no pong within {_PROMPT_S} s")
        return pong.done()

    async def until_welcome(self) -> None:
        """Wait for the answer to `join`, or for the end."""
        both: set[asyncio.Future[Any]] = {self.welcome, self._reading}
        await asyncio.wait(both, timeout=_PROMPT_S, return_when=asyncio.FIRST_COMPLETED)

    async def until_told(self, message: str) -> None:
        """Wait for an event, past or future."""
        async with asyncio.timeout(_PROMPT_S):
            while message not in self.told:
                self._arrived.clear()
                await self._arrived.wait()

    async def close(self, code: int = 1000) -> None:
        """Close it, and wait for the end of reading."""
        with contextlib.suppress(ConnectionClosed):
            await self.connection.close(code)
        await self._reading

    async def _read(self) -> None:
        try:
            while True:
                self._hear(await self.connection.recv())
                self._arrived.set()
        except ConnectionClosed as closed:
            self.welcome.cancel()
            code = closed.rcvd.code if closed.rcvd else None
            if code == 1011:
                self._world.found(f"a connection of {self.who.name} was closed with 1011")

    def _hear(self, text: str | bytes) -> None:
        if not isinstance(text, str):
            self._world.found("a binary frame was sent to a client")
            return
        self._world.check_no_secret(text, "a frame")
        frame = json.loads(text)
        payload = frame["payload"]
        self.told.append(payload["message"])
        del self.told[:-200]
        if payload.get("error") == "internal":
            self._world.found(f"{frame['namespace']}/{payload['message']}: internal")
        if payload["message"] == "pong" and (pong := self._pongs.get(frame.get("transaction_id"))) and not pong.done():
            pong.set_result(None)
        if payload["message"] == "join_success" and not self.welcome.done():
            self.welcome.set_result(payload)
        for token in _JWT.findall(text):
            self._world.secrets_of_tokens.add(token)
            subject = str(jwt.decode(token, options={"verify_signature": False})["sub"])
            if subject != self.who.name and not subject.startswith(f"{self.who.name}-popout"):
                self._world.found(f"{self.who.name} was sent a token of {subject}")


class World:
    """
    A server of its own in a child process, beside a real media server.

    Attributes:
        findings: What must not be.
        counts: How many cases of each target there were.
    """

    def __init__(self, livekit: EmbeddedServer, directory: Path) -> None:
        self.livekit = livekit
        self.ticket_key: Final = secrets.token_urlsafe(32)
        self.token: Final = secrets.token_urlsafe(24)
        self.secrets_of_tokens: set[str] = set()
        self.findings: dict[str, Found] = {}
        self.counts: dict[str, int] = {}
        self.answers: dict[str, dict[str, int]] = {}
        self.echo = Echo()
        self._log = directory / "serve.log"
        self._read_of_log = 0
        self._tasks_file = directory / "tasks"
        self._process: asyncio.subprocess.Process | None = None
        self._seats: dict[str, Seat] = {}
        self._in_livekit: set[asyncio.Task[None]] = set()
        self._seating: dict[str, asyncio.Lock] = {who.name: asyncio.Lock() for who in PEOPLE}
        self.signaling = ("", 0)
        self.internal = ("", 0)
        self.signaling_url = ""

    async def start(self) -> None:
        """Start the server, and wait until it is ready."""
        environment = {
            **os.environ,
            "LIVEKIT_URL": self.livekit.url,
            "LIVEKIT_API_KEY": self.livekit.api_key,
            "LIVEKIT_API_SECRET": self.livekit.api_secret,
            "MODERATION_TICKET_KEY": self.ticket_key,
            "MODERATION_INTERNAL_TOKEN": self.token,
            "MODERATION_LISTEN": "127.0.0.1:0",
            "MODERATION_INTERNAL_LISTEN": "127.0.0.1:0",
            "MODERATION_STORE_URL": f"sqlite:///{self._log.with_name('meetings.sqlite')}",
            "MODERATION_RATE_PER_S": "10000",
            "MODERATION_RATE_BURST": "100000",
            "MODERATION_AUDIT_ENTRIES": "100",
            "MODERATION_SWEEP_S": "1",
            "MODERATION_LOG_FORMAT": "json",
            "MODERATION_LOG_LEVEL": "debug",
            "TASKS_FILE": str(self._tasks_file),
        }
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.fuzz.observed"),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=Path(__file__).parents[2],
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(_PROMPT_S):
            ready = json.loads(await self._process.stdout.readline())
        self.signaling_url = ready["signaling"]
        self.signaling, self.internal = (_address(ready[name]) for name in ("signaling", "internal"))

    async def stop(self) -> None:
        """End it as an operator does."""
        for task in tuple(self._in_livekit):
            task.cancel()
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_PROMPT_S):
                status = await self._process.wait()
        except TimeoutError:
            self.found("it did not end when told to")
            self._process.kill()
            await self._process.wait()
        else:
            if status != 0:
                self.found(f"it ended with status {status}")
        self.check_log()

    # --- Finding fault -------------------------------------------------------------------------------------------

    def found(self, what: str, more: str = "") -> None:
        """
        Remember what must not be, the first time.

        Args:
            more: What may be different when the same is found again.
        """
        if what not in self.findings:
            self.findings[what] = Found(more, dict(self.counts))

    def check_no_secret(self, text: str, where: str, *, with_tokens: bool = False) -> None:
        """Find a secret in what was sent or logged."""
        for name, secret in (
            ("the ticket key", self.ticket_key),
            ("the API secret", self.livekit.api_secret),
            ("the controller's token", self.token),
        ):
            if secret in text:
                self.found(f"{name} is in {where}")
        if with_tokens:
            for token in _JWT.findall(text):
                if token in self.secrets_of_tokens:
                    self.found(f"a ticket or a token is in {where}")

    def check_log(self) -> None:
        """Read what was logged since, for what a server with nothing wrong does not log."""
        with self._log.open("rb") as log:
            log.seek(self._read_of_log)
            lines = log.read()
        complete, _, _ = lines.rpartition(b"\n")
        self._read_of_log += len(complete) + bool(complete)
        for raw in complete.splitlines():
            line = raw.decode(errors="backslashreplace")
            self.check_no_secret(line, f"the log: {line[:60]}", with_tokens=True)
            try:
                logged = json.loads(line)
            except ValueError:
                self.found(f"a line of the log is no JSON: {line[:200]}")
                continue
            if "exception" in logged or logged.get("level") in {"error", "critical"}:
                traceback = logged.get("exception") or ""
                kind = _RAISED.findall(traceback)[-1:]
                self.found(f"logged as {logged.get('level')}: {logged.get('event')} {kind}", traceback[-600:] or line)

    def check_alive(self) -> None:
        """Find that it has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise Finding(f"the server ended with status {self._process.returncode}")

    async def usage(self, fits: Callable[[Usage], bool] | None = None) -> Usage:
        """What it holds once it `fits`; what it comes to hold in the end if it never does, or nobody asks for that."""
        assert self._process is not None
        pid, seen = self._process.pid, list[Usage]()
        while len(seen) < (_QUIET_ROUNDS if fits else 4):
            seen.append(Usage(_memory_mib(pid), self._descriptors(pid), await self._tasks(pid)))
            if fits is not None and fits(seen[-1]):
                break
            await asyncio.sleep(_QUIET_POLL_S)
        return seen[-1]

    def _descriptors(self, pid: int) -> int:
        """How many are open, less idle connections to LiveKit: of these it keeps as many as it needed at once."""
        inodes = set()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                inodes.add(str(descriptor.readlink()))
        port = urlsplit(self.livekit.url).port
        connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return len(inodes - {f"socket:[{line[9]}]" for line in connections if int(line[2][-4:], 16) == port})

    async def _tasks(self, pid: int) -> int:
        self._tasks_file.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR1)
        async with asyncio.timeout(_PROMPT_S):
            while not self._tasks_file.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(_POLL_S)
        return int(self._tasks_file.read_text())

    # --- Who is there --------------------------------------------------------------------------------------------

    def ticket(self, who: Who, room: RoomId = ROOM) -> str:
        """A fresh ticket."""
        participant = Participant(ParticipantId(who.name), who.role, who.kind, display_name=who.name.title())
        made = make_ticket(self.ticket_key, "HS256", participant, room)
        self.secrets_of_tokens.add(made)
        return made

    async def open(self, who: Who, room: RoomId = ROOM) -> Seat:
        """A connection that has not joined."""
        connection = await connect(
            self.signaling_url,
            subprotocols=[SUBPROTOCOL, Subprotocol(f"ticket#{self.ticket(who, room)}")],
            compression=None,
            max_size=None,
            ping_interval=None,
            proxy=None,
        )
        return Seat(self, who, connection)

    async def join(self, who: Who, room: RoomId = ROOM) -> Seat | None:
        """A connection that has joined; nothing if the meeting was ended in this moment."""
        try:
            seat = await self.open(who, room)
        except InvalidStatus as refused:
            if refused.response.status_code != 403:
                raise
            await self.command(room, "unban", participants=[who.name])
            seat = await self.open(who, room)
        hello = {"action": "join", "extensions": list(who.extensions)}
        with contextlib.suppress(ConnectionClosed):
            await seat.connection.send(json.dumps({"namespace": "control", "payload": hello}))
        await seat.until_welcome()
        if seat.welcome.done() and not seat.welcome.cancelled():
            if "livekit" in seat.welcome.result():
                self._enter(seat.welcome.result()["livekit"]["token"])
            return seat
        if seat.is_open:
            raise Finding(f"{who.name} sent `join`, and was not answered")
        return None

    def _enter(self, token: str) -> None:
        """Be in LiveKit too, without media, for as long as it lets one."""
        task = asyncio.create_task(self._stay(token), name="in LiveKit")
        self._in_livekit.add(task)
        task.add_done_callback(self._in_livekit.discard)

    async def _stay(self, token: str) -> None:
        url = f"{self.livekit.url}/rtc?access_token={token}&protocol=15&auto_subscribe=0"
        with contextlib.suppress(OSError, WebSocketException):
            async with connect(url, proxy=None, max_size=None) as connection:
                async for _ in connection:
                    pass

    async def seat(self, who: Who) -> Seat:
        """The connection of somebody in the meeting, a new one if the server has closed it."""
        async with self._seating[who.name]:
            seat = self._seats.get(who.name)
            for _ in range(20):
                if seat is not None and seat.is_open:
                    self._seats[who.name] = seat
                    return seat
                seat = await self.join(who)
        raise Finding(f"{who.name} joined 20 times, and was thrown out each time")

    async def restore(self) -> None:
        """Give the moderators their role again, whatever was done to them."""
        for who in PEOPLE[:2]:
            await self.seat(who)
            await self.request("PUT", f"/v1/rooms/{ROOM}/participants/{who.name}/role", {"role": "moderator"})

    async def command(self, room: str, action: str, **fields: object) -> Answer:
        """A command of the controller."""
        body = {"namespace": "livekit_moderation", "payload": {"action": action, **fields}}
        return await self.request("POST", f"/v1/rooms/{room}/commands", body)

    async def request(self, method: str, path: str, body: object = None) -> Answer:
        """A right request to the controller API."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.internal[0]}:{self.internal[1]}\r\nConnection: close\r\n"
        head += (
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        )
        return await exchange(self.internal, head.encode() + b"\r\n\r\n" + content, within_s=_PROMPT_S)

    async def quiet(self, fits: Callable[[Usage], bool] | None = None) -> Usage:
        """Let everybody leave, end the meetings, and see what is left; see `usage`."""
        for seat in self._seats.values():
            await seat.close()
        self._seats.clear()
        for task in tuple(self._in_livekit):
            task.cancel()
        for room in ROOMS:
            await self.request("DELETE", f"/v1/rooms/{room}")
        return await self.usage(fits)

    async def check_that_a_meeting_works(self) -> None:
        """A meeting from its beginning to its end."""
        await self.request("DELETE", f"/v1/rooms/{ROOM}")
        alice, bob = await self.join(PEOPLE[0]), await self.join(PEOPLE[2])
        if alice is None or bob is None:
            raise Finding("a new meeting was ended at once")
        if "livekit" not in await bob.welcome:
            raise Finding("there is no token for LiveKit")
        restriction = {"action": "enable_microphone_restrictions", "unrestricted_participants": []}
        await alice.connection.send(json.dumps({"namespace": "livekit", "payload": restriction}))
        try:
            await bob.until_told("microphone_restrictions_enabled")
        except TimeoutError:
            raise Finding("a command of the new meeting was not carried out") from None
        await alice.close()
        await bob.close()

    async def listen_to_echo(self, is_late: Callable[[float], bool]) -> None:
        """Ping all the time, in a meeting where nothing else happens; each time that is late is counted."""
        while True:
            seat = await self.join(Who("echo"), RoomId("echo"))
            while seat is not None and seat.is_open:
                began_at = time.monotonic()
                if await seat.ping():
                    took_s = time.monotonic() - began_at
                    self.echo.count += 1
                    self.echo.late += is_late(took_s)
                    self.echo.worst_ms = max(self.echo.worst_ms, took_s * 1000)
                await asyncio.sleep(_POLL_S)


async def exchange(address: tuple[str, int], request: bytes, *, within_s: float) -> Answer:
    """Send bytes, and read what comes until it is a whole answer, the connection ends, or it takes too long."""
    raw = b""
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(request)
                while not _is_whole(raw) and (piece := await reader.read(65_536)):
                    raw += piece
            finally:
                writer.transport.abort()
    except (TimeoutError, ConnectionError):
        pass  # nothing more comes
    match = re.match(rb"HTTP/1\.[01] (\d{3})", raw)
    return Answer(None if match is None else int(match[1]), raw)


def _is_whole(raw: bytes) -> bool:
    head, end, body = raw.partition(b"\r\n\r\n")
    if not end:
        return False
    if head.startswith(b"HTTP/1.1 101"):
        return True
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """A running server, which ends with the block."""
    with TemporaryDirectory() as directory:
        async with EmbeddedServer(path=require(None)) as livekit:
            made = World(livekit, Path(directory))
            await made.start()
            try:
                yield made
            finally:
                await made.stop()
