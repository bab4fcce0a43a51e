"""
Those who are many, or mean no good, in a process of their own, which gives way to the server's: theirs are elsewhere.

`python -m tests.benchmarks.crowd_process KIND N URL ROOM` prints how many they are once they are all there, and ends,
with all its connections, when it is killed.
"""

import asyncio
import os
import resource
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode

from signaling import Participant, Role
from signaling.identifiers import ParticipantId, RoomId
from signaling.server.tickets import make_ticket
from tests.meetings.serving import KEY

ROOM_SIZE: Final = 50
_AT_ONCE: Final = 40
_OWN_DESCRIPTORS: Final = 600
_PING: Final = b"\x89\x04"
_MASKED_PONG: Final = b"\x8a\x84\0\0\0\0"
_JOIN: Final = Frame(Opcode.TEXT, b'{"namespace":"control","payload":{"action":"join"}}').serialize(mask=True)
_KEYS: Final = ",".join(f'"k{number}":1' for number in range(90_000))
_LARGE: Final = Frame(
    Opcode.TEXT, f'{{"namespace":"livekit","payload":{{"action":"force_mute",{_KEYS}}}}}'.encode()
).serialize(mask=True)


class Client(asyncio.Protocol):
    """A connection that knows just enough of WebSockets to join, and to answer pings."""

    def __init__(self, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[bytes] = loop.create_future()
        self.joined: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._first = first
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._first)

    def data_received(self, data: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result(data)
        if not self.joined.done():
            if b"join_success" in self._end + data:
                self.joined.set_result(None)
            self._end = data[-16:]
        at = data.find(_PING)
        if at >= 0:
            self.transport.write(_MASKED_PONG + data[at + 2 : at + 6])

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it ended
        self.may_write.set()
        self.lost.set_result(None)
        for waited_for in (self.answered, self.joined):
            waited_for.cancel()


class Crowd:
    """So many of one kind."""

    def __init__(self, url: str, room: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port, self._room = parts.hostname, parts.port, room

    def request(self, ticket: str) -> bytes:
        """What opens a connection."""
        return (
            f"GET /signaling HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: opentalk-signaling-json-v1.0, ticket#{ticket}\r\n\r\n"
        ).encode()

    async def connect(self, first: bytes = b"") -> Client:
        """Connect, and send this."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(first), self._host, self._port)
        return client

    async def enter(self, number: int) -> Client:
        """Connect, and be in."""
        who = Participant(ParticipantId(f"p{number}"), role=Role.USER)
        room = RoomId(f"{self._room}-{number // ROOM_SIZE}")
        client = await self.connect(self.request(make_ticket(KEY, "HS256", who, room)))
        assert (await client.answered).startswith(b"HTTP/1.1 101"), client.answered
        client.transport.write(_JOIN)
        await client.joined
        return client


async def idle(crowd: Crowd, size: int) -> None:
    """People who joined, and say nothing."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def enter(number: int) -> Client:
        async with places:
            return await crowd.enter(number)

    people = await asyncio.gather(*map(enter, range(size)))
    _say(sum(not each.lost.done() for each in people))
    await asyncio.Event().wait()


async def silent(crowd: Crowd, size: int) -> None:
    """Connections that never say anything, and are there again when they are ended."""
    there = 0

    async def stay() -> None:
        nonlocal there
        client = await crowd.connect()
        there += 1
        if there == size:
            _say(there)
        while True:
            await client.lost
            client = await crowd.connect()

    await asyncio.gather(*(stay() for _ in range(size)))


async def handshakes(crowd: Crowd, size: int) -> None:
    """Tickets that are none, as fast as they are refused."""

    async def try_again() -> None:
        while True:
            client = await crowd.connect(crowd.request(secrets.token_urlsafe(60)))
            await asyncio.wait({client.answered})
            client.transport.abort()
            await client.lost

    _say(size)
    await asyncio.gather(*(try_again() for _ in range(size)))


async def frames(crowd: Crowd, size: int) -> None:
    """Guests who send the largest frames that there are, with as many keys as they hold, as fast as they are read."""

    async def send(number: int) -> None:
        while True:
            client = await crowd.enter(number)
            while not client.lost.done():
                client.transport.write(_LARGE)
                await client.may_write.wait()
                await asyncio.sleep(0)

    _say(size)
    await asyncio.gather(*(send(number) for number in range(size)))


def _say(count: int) -> None:
    sys.stdout.write(f"{count}\n")
    sys.stdout.flush()


KINDS: Final[dict[str, Callable[[Crowd, int], Awaitable[None]]]] = {
    "idle": idle,
    "silent": silent,
    "handshakes": handshakes,
    "frames": frames,
}


async def main(kind: str, size: str, url: str, room: str) -> None:
    """Be so many, until the process is killed."""
    os.nice(5)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = int(size) if hard == resource.RLIM_INFINITY else min(int(size), hard - _OWN_DESCRIPTORS)
    await KINDS[kind](Crowd(url, room), most)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
