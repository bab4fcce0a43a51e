import asyncio
import contextlib
import gc
import json
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import structlog
from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode

from signaling.identifiers import ParticipantId
from signaling.messages.envelope import Delivery
from signaling.messages.livekit import MicrophoneRestrictionsEnabled
from signaling.server.backlog import MAX_UNREAD_BYTES, MAX_WAITING_BYTES
from signaling.server.channel import FRAME_COST_BYTES, SLICE_BYTES, Channel
from signaling.server.websocket import Timing
from signaling.testing.client import Received
from signaling.testing.fake_room_service import FakeRoomService
from tests.server.hosting import PING, Hosted, ask, command, hosted, take

JOIN = command("join")
PATIENT = Timing(unread_s=3_600)
LIMIT_S = 20


def only(door: Hosted) -> Channel:
    """The one connection that the server has."""
    (channel,) = door.server._websocket._open
    return channel


def carries(transaction_id: str, frame: Received) -> bool:
    """Whether it answers what was sent with this."""
    return frame.transaction_id == transaction_id


def large(number: int) -> Delivery:
    """An event of some 600 KiB."""
    many = tuple(ParticipantId(f"{'p' * 110}{number}-{each}") for each in range(5_000))
    return Delivery(MicrophoneRestrictionsEnabled(unrestricted_participants=many), number, number)


@asynccontextmanager
async def joined(door: Hosted, name: str = "bob") -> AsyncIterator[ClientConnection]:
    """Somebody who has joined without LiveKit, and has read so."""
    async with door.dial(bearer=door.ticket(name)) as connection:
        await ask(connection, JOIN)
        await take(connection)
        yield connection


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    while not is_so():  # noqa: ASYNC110 - of a transport, which tells nobody
        await asyncio.sleep(0)


def has_come(at: float) -> bool:
    """Whether it is as late as that, by the loop's clock."""
    return asyncio.get_running_loop().time() >= at


# --- What is read ----------------------------------------------------------------------------------------------------


async def test_much_at_once_is_taken_apart_in_slices(door: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    parse = Channel._parse

    def spy(self: Channel, data: bytes | bytearray) -> None:
        sizes.append(len(data))
        parse(self, data)

    async with joined(door) as bob, asyncio.timeout(LIMIT_S):
        monkeypatch.setattr(Channel, "_parse", spy)
        frame = Frame(Opcode.PING, b"").serialize(mask=True)
        bob.transport.write(frame * 20_000)
        assert (await ask(bob, PING))["payload"] == {"message": "pong"}
    assert sum(sizes) >= 20_000 * len(frame)
    assert max(sizes) <= SLICE_BYTES


async def test_what_follows_a_request_waits_for_its_answer(door: Hosted) -> None:
    ticket = door.ticket()
    host, port = door.url.removeprefix("ws://").partition("/")[0].split(":")
    request = (
        f"GET /signaling HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {ticket}\r\n\r\n"
    )
    ping = Frame(Opcode.TEXT, json.dumps(PING).encode()).serialize(mask=True)
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request.encode() + ping)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await reader.readuntil(b'"pong"')
        writer.close()
        await writer.wait_closed()


async def test_a_request_that_does_not_end_is_cut_off(door: Hosted) -> None:
    host, port = door.url.removeprefix("ws://").partition("/")[0].split(":")
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /signaling HTTP/1.1\r\n" + (b"X: " + b"y" * 8_000 + b"\r\n") * 5)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_who_says_nothing_is_cut_off() -> None:
    async with hosted(timing=Timing(request_s=0.05)) as door, asyncio.timeout(LIMIT_S):
        host, port = door.url.removeprefix("ws://").partition("/")[0].split(":")
        async with door.dial(bearer=door.ticket()) as bob:
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            assert (await ask(bob, PING))["payload"] == {"message": "pong"}


@pytest.mark.parametrize("joins", [False, True])
async def test_reading_stops_when_the_bytes_are_used_up(*, joins: bool) -> None:
    async with hosted(moderation_rate_bytes_per_s=1_024) as door, asyncio.timeout(LIMIT_S):
        connecting = joined(door) if joins else door.dial(bearer=door.ticket())
        async with connecting as bob:
            channel = only(door)
            ping = json.dumps(PING | {"x": "x" * 10_000})
            sending = asyncio.create_task(send_without_end(bob, ping))
            while channel._allowance.left >= 0:
                await take(bob)
            await until(lambda: not channel.transport.is_reading())
            assert channel._allowance.owed_for_s > 0
            assert len(channel._unparsed) <= 512 * 1024
            async with door.dial(bearer=door.ticket("carol")) as carol:
                assert (await ask(carol, PING))["payload"] == {"message": "pong"}
            sending.cancel()
            bob.transport.abort()
            await asyncio.wait({sending})


async def send_without_end(connection: ClientConnection, frame: str) -> None:
    """Send for as long as it goes."""
    while True:
        await connection.send(frame)


async def test_a_frame_costs_more_than_its_bytes(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        channel = only(door)
        channel._allowance._per_s = 1e-9
        before = channel._allowance.left
        bob.transport.write(Frame(Opcode.PONG, b"").serialize(mask=True))
        await ask(bob, PING)
        frames = 6 + len(json.dumps(PING)) + 6
        assert before - channel._allowance.left == pytest.approx(frames + 2 * FRAME_COST_BYTES)


# --- What waits unread -----------------------------------------------------------------------------------------------


async def test_websocket_pings_of_who_reads_nothing_make_nothing_grow() -> None:
    async with (
        hosted(timing=Timing(unread_s=0.5), moderation_rate_bytes_per_s=1_000_000_000) as door,
        joined(door) as bob,
        asyncio.timeout(LIMIT_S),
    ):
        channel = only(door)
        bob.transport.pause_reading()
        frame = Frame(Opcode.PING, b"p" * 125).serialize(mask=True) * 500
        most = 0
        with structlog.testing.capture_logs() as logged:
            while not channel.transport.is_closing():
                bob.transport.write(frame)
                while bob.transport.get_write_buffer_size() > 0 and not channel.transport.is_closing():
                    most = max(most, channel.transport.get_write_buffer_size())
                    await asyncio.sleep(0)
        assert "slow_reader_cut_off" in [entry["event"] for entry in logged]
        assert MAX_UNREAD_BYTES < most < MAX_UNREAD_BYTES + 2 * SLICE_BYTES * 125
        bob.transport.abort()


async def test_nothing_more_is_read_of_who_does_not_read() -> None:
    async with hosted(timing=PATIENT) as door, joined(door) as bob, asyncio.timeout(LIMIT_S):
        channel = only(door)
        bob.transport.pause_reading()
        number = 0
        while channel.transport.get_write_buffer_size() <= MAX_UNREAD_BYTES:
            number += 1
            door.server._websocket._outbox.put(channel, large(number))
            await asyncio.sleep(0)
        assert not channel.transport.is_reading()
        waits = asyncio.create_task(channel.drained())
        await asyncio.sleep(0)
        assert not waits.done()
        await bob.send(json.dumps(PING | {"transaction_id": "later"}))
        bob.transport.resume_reading()
        told = [(await take(bob)).get("transaction_id") for _ in range(number + 1)]
        assert told == [*range(1, number + 1), "later"]
        await waits
        assert channel.transport.is_reading()


async def test_who_reads_steadily_is_not_cut_off_and_counts_as_alive() -> None:
    timing = Timing(ping_interval_s=0.1, ping_timeout_s=0.05, unread_s=0.2)
    async with hosted(timing=timing) as door, asyncio.timeout(LIMIT_S):
        host, port = door.url.removeprefix("ws://").partition("/")[0].split(":")
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        narrow.settimeout(0)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(narrow, (host, int(port)))
        ticket = door.ticket()
        request = (
            f"GET /signaling HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {ticket}\r\n\r\n"
        )
        await loop.sock_sendall(narrow, request.encode())
        assert (await loop.sock_recv(narrow, 4_096)).startswith(b"HTTP/1.1 101 ")
        channel = only(door)
        channel.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
        sent = sum(len(large(number).text) for number in range(5))
        for number in range(5):
            door.server._websocket._outbox.put(channel, large(number))
        began_at, got = loop.time(), 0
        while got < sent:  # some forty times the times of `timing`
            data = await loop.sock_recv(narrow, 4_096)
            assert data, "it was cut off"
            got += len(data)
            due_at = began_at + 2 * got / sent
            await until(partial(has_come, due_at))
        narrow.close()


async def test_more_than_may_wait_at_all_is_cut_off_at_once() -> None:
    async with hosted(timing=PATIENT) as door, joined(door) as bob, asyncio.timeout(LIMIT_S):
        channel = only(door)
        bob.transport.pause_reading()
        with structlog.testing.capture_logs() as logged:
            for number in range(2 * MAX_WAITING_BYTES // (600 * 1024)):
                door.server._websocket._outbox.put(channel, large(number))
                await asyncio.sleep(0)
        assert "slow_reader_cut_off" in [entry["event"] for entry in logged]
        assert channel.transport.is_closing()
        bob.transport.abort()


async def test_one_long_answer_at_a_time_waits_for_who_asks_for_many() -> None:
    async with hosted(timing=PATIENT) as door, asyncio.timeout(LIMIT_S):
        asking = door.client("alice")
        async with asking as alice:
            await alice.join()
            channel = only(door)
            alice.connection.transport.pause_reading()
            number = 0
            while channel.transport.get_write_buffer_size() <= MAX_UNREAD_BYTES:
                number += 1
                door.server._websocket._outbox.put(channel, large(number))
                await asyncio.sleep(0)
            alice.connection.transport.resume_reading()
            for each in range(5):
                await alice.send("get_state", namespace="livekit_moderation", transaction_id=f"t{each}")
            for each in range(5):
                await alice.wait_for(
                    "result",
                    namespace="livekit_moderation",
                    where=partial(carries, f"t{each}"),
                )


# --- Being alive, and ending -----------------------------------------------------------------------------------------


async def test_whatever_comes_is_a_sign_of_life() -> None:
    timing = Timing(ping_interval_s=0.05, ping_timeout_s=0.05)
    async with hosted(timing=timing) as door, door.dial(bearer=door.ticket()) as bob, asyncio.timeout(LIMIT_S):
        channel = only(door)
        pinged = set[float]()
        while len(pinged) < 5:
            assert (await ask(bob, PING))["payload"] == {"message": "pong"}
            pinged.add(channel._pinged_at)


@contextmanager
def no_collector() -> Iterator[None]:
    """What goes, goes by itself."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["leaves", "breaks", "is refused", "says nothing"])
async def test_a_connection_that_is_gone_leaves_nothing_for_the_collector(how: str) -> None:
    seen = weakref.WeakSet[Channel]()
    async with FakeRoomService() as fake, hosted(fake) as door, asyncio.timeout(LIMIT_S):
        host, port = door.url.removeprefix("ws://").partition("/")[0].split(":")
        with no_collector():
            match how:
                case "leaves" | "breaks":
                    async with door.dial(bearer=door.ticket()) as bob:
                        await ask(bob, JOIN)
                        seen.update(door.server._websocket._open)
                        if how == "breaks":
                            bob.transport.abort()
                case "is refused":
                    refusal = await door.refusal(door.dial("opentalk-signaling-json-v1.0", "ticket#none"))
                    assert refusal == (401, "invalid_ticket")
                case _:
                    _, writer = await asyncio.open_connection(host, int(port))
                    await until(lambda: len(door.server._websocket._open) == 1)
                    seen.update(door.server._websocket._open)
                    writer.close()
                    await writer.wait_closed()
            await until(lambda: not seen and not door.server._websocket._open)
