import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
import structlog
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from signaling import Role
from signaling.livekit.embedded import EmbeddedServer
from signaling.messages.envelope import MAX_FRAME_BYTES, Delivery
from signaling.messages.livekit import MicrophoneRestrictionsDisabled
from signaling.server import outbox
from signaling.server.backlog import MAX_UNREAD_BYTES
from signaling.server.websocket import Timing
from tests.server.hosting import PING, Hosted, ask, command, hosted, take

JOIN = command("join")
PEOPLE = 8


class Frames:
    """What was encoded and framed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[dict[str, Any]] = []
        monkeypatch.setattr(outbox, "Frame", self)

    def __call__(self, opcode: Opcode, data: bytes) -> Frame:
        self.made.append(json.loads(data))
        return Frame(opcode, data)

    def of(self, message: str) -> list[object]:
        """The transaction ids of all frames with this event."""
        return [frame.get("transaction_id") for frame in self.made if frame["payload"]["message"] == message]


async def joined(stack: AsyncExitStack, host: Hosted, *names: str) -> list[ClientConnection]:
    """People who have joined, and have read their welcome."""
    people = []
    for name in names:
        role = Role.MODERATOR if name == "alice" else Role.USER
        connection = await stack.enter_async_context(host.dial(bearer=host.ticket(name, role)))
        assert (await ask(connection, JOIN))["payload"]["message"] == "join_success"
        people.append(connection)
    return people


async def send_without_end(connection: ClientConnection, frame: str) -> None:
    """Send for as long as it goes."""
    async with asyncio.timeout(60):
        while True:
            await connection.send(frame)


async def until(connection: ClientConnection, message: str) -> dict[str, object]:
    """Read on until this event."""
    async with asyncio.timeout(10):
        while (frame := await take(connection))["payload"]["message"] != message:
            pass
    return frame


async def test_an_event_for_everybody_is_encoded_once(host: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        alice, *others = await joined(stack, host, "alice", *(f"p{number}" for number in range(PEOPLE)))
        frames = Frames(monkeypatch)
        await alice.send(json.dumps(command("enable_microphone_restrictions", "livekit", unrestricted_participants=[])))
        for connection in (alice, *others):
            await until(connection, "microphone_restrictions_enabled")
    assert frames.of("microphone_restrictions_enabled") == [None]


async def test_the_senders_own_copy_is_the_only_other_one(host: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        *others, alice = await joined(stack, host, *(f"p{number}" for number in range(PEOPLE)), "alice")
        frames = Frames(monkeypatch)
        await alice.send(json.dumps(command("disable_microphone_restrictions", "livekit", transaction_id=1)))
        for connection in (alice, *others):
            await until(connection, "microphone_restrictions_disabled")
    assert frames.of("microphone_restrictions_disabled") == [None, 1]


async def test_what_is_put_in_goes_out_in_order(door: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(door.dial(bearer=door.ticket(f"p{n}"))) for n in range(2)]
        for client in clients:
            await ask(client, PING)
        sockets = {each.remote_address: each for each in door.server._websocket._open}
        both, one = (sockets[client.local_address] for client in clients)
        frames = Frames(monkeypatch)
        box = door.server._websocket._outbox
        first, second, own = (Delivery(MicrophoneRestrictionsDisabled(), number, number) for number in (1, 2, 3))
        box.put(both, first)
        box.put(one, first)
        box.put(both, own)
        box.put(both, second)
        box.put(one, second)
        got = [
            [(await take(client))["transaction_id"] for _ in range(size)]
            for client, size in zip(clients, (3, 2), strict=True)
        ]
    assert got == [[1, 3, 2], [1, 2]]
    assert frames.of("microphone_restrictions_disabled") == [1, 3, 2]


async def test_an_answer_is_not_to_wait_while_the_event_loop_takes_long(
    door: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        await ask(bob, PING)
        (socket,) = door.server._websocket._open
        box = door.server._websocket._outbox
        frames = Frames(monkeypatch)
        monkeypatch.setattr(outbox, "_LONG_S", -1)  # any takes longer
        first, second, third, fourth = (Delivery(MicrophoneRestrictionsDisabled(), at, at) for at in range(4))
        box.put_first(socket, first)
        assert frames.made == []
        assert (await take(bob))["transaction_id"] == 0
        box.put(socket, second)
        box.put_first(socket, third)
        assert frames.of("microphone_restrictions_disabled") == [0, 1, 2]
        box.put(socket, fourth)
        assert [(await take(bob))["transaction_id"] for _ in range(3)] == [1, 2, 3]


async def test_after_a_long_flush_events_wait_and_answers_do_not(door: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        await ask(bob, PING)
        (socket,) = door.server._websocket._open
        box = door.server._websocket._outbox
        frames = Frames(monkeypatch)
        monkeypatch.setattr(box, "_rests_until", asyncio.get_running_loop().time() + 3_600)
        event = MicrophoneRestrictionsDisabled()
        box.put(socket, Delivery(event, 1))
        assert (await ask(bob, PING))["payload"]["message"] == "microphone_restrictions_disabled"
        assert (await take(bob))["payload"]["message"] == "pong"
        box.put(socket, Delivery(event, 2))
        box.put(socket, Delivery(event, 3))
        assert frames.of("microphone_restrictions_disabled") == [None]
        box.put(socket, Delivery(event, 4, 4))
        assert frames.of("microphone_restrictions_disabled") == [None, None, None, 4]
        assert [(await take(bob)).get("transaction_id") for _ in range(3)] == [None, None, 4]


async def test_what_waits_for_a_rest_goes_out_after_it(door: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_PACED_S", -1)  # any flush takes longer
    async with door.dial(bearer=door.ticket()) as bob:
        await ask(bob, PING)
        (socket,) = door.server._websocket._open
        box = door.server._websocket._outbox
        for number in range(3):
            box.put(socket, Delivery(MicrophoneRestrictionsDisabled(), number))
            assert (await take(bob))["payload"]["message"] == "microphone_restrictions_disabled"
            assert box._rests_until > 0


async def test_what_cannot_be_encoded_keeps_nothing_from_others(door: Hosted) -> None:
    class Unspeakable(MicrophoneRestrictionsDisabled):
        def model_dump_json(self, **_options: object) -> str:
            raise ZeroDivisionError

    async with door.dial(bearer=door.ticket()) as bob:
        await ask(bob, PING)
        (socket,) = door.server._websocket._open
        with structlog.testing.capture_logs() as logged:
            door.server._websocket._outbox.put(socket, Delivery(Unspeakable(), 1))
            door.server._websocket._outbox.put(socket, Delivery(MicrophoneRestrictionsDisabled(), 2))
            assert (await take(bob))["payload"]["message"] == "microphone_restrictions_disabled"
        assert [entry["event"] for entry in logged] == ["delivery_failed"]


async def test_who_does_not_read_is_cut_off_and_delays_nobody(livekit: EmbeddedServer) -> None:
    async with (
        hosted(
            livekit,
            timing=Timing(unread_s=0.5),
            moderation_rate_per_s=10_000,
            moderation_rate_burst=1_000,
            moderation_rate_bytes_per_s=1_000_000_000,
        ) as host,
        AsyncExitStack() as stack,
    ):
        alice, bob, carol = await joined(stack, host, "alice", "bob", "carol")
        bob.transport.pause_reading()
        many = [f"{'p' * 120}{number}" for number in range(5_000)]
        size = len(json.dumps(many))
        assert MAX_FRAME_BYTES / 2 < size < MAX_FRAME_BYTES
        with structlog.testing.capture_logs() as logged:
            async with asyncio.timeout(20):
                while not any(entry["event"] == "slow_reader_cut_off" for entry in logged):
                    for frame in (
                        command("enable_microphone_restrictions", "livekit", unrestricted_participants=many),
                        command("disable_microphone_restrictions", "livekit"),
                    ):
                        await alice.send(json.dumps(frame))
                    await until(alice, "microphone_restrictions_disabled")
                    await until(carol, "microphone_restrictions_disabled")
                for each in (alice, carol):
                    await ask(each, PING)
        bob.transport.resume_reading()
        async with asyncio.timeout(5):
            await bob.wait_closed()
        assert bob.close_code == 1006


async def test_who_sends_pings_and_reads_no_answer_is_cut_off_too(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        bob.transport.pause_reading()
        ping = json.dumps(PING | {"transaction_id": "t" * 64})
        with pytest.raises(ConnectionClosed):
            await send_without_end(bob, ping)


def test_nobody_may_leave_more_than_a_mebibyte_unread() -> None:
    assert MAX_UNREAD_BYTES == 1024 * 1024


async def test_who_answers_no_ping_is_dropped() -> None:
    async with (
        hosted(timing=Timing(ping_interval_s=0.05, ping_timeout_s=0.5)) as door,
        door.dial(bearer=door.ticket("good")) as good,
        door.dial(bearer=door.ticket()) as bob,
    ):
        bob.transport.pause_reading()
        assert door.server._websocket._server is not None
        async with asyncio.timeout(5):
            while len(door.server._websocket._server.connections) > 1:
                await ask(good, PING)
        bob.transport.abort()
