import asyncio
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import pytest
import structlog
from websockets.asyncio.client import ClientConnection

from signaling import Role, StoreError, handover
from signaling.core.changes import ConnectionLost
from signaling.identifiers import NodeId, ParticipantId
from signaling.livekit.embedded import EmbeddedServer
from signaling.messages.livekit import MicrophoneRestrictionsDisabled
from signaling.server import channel, websocket
from signaling.server.websocket import STOP_S
from signaling.session import Session
from signaling.stores.contract import Commit, FellBehind
from signaling.stores.memory import MemoryStore
from signaling.testing.client import SignalingClient
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import until
from tests.server.hosting import PING, ROOM, Hosted, ask, command, hosted

JOIN = command("join")
BOB = ParticipantId("bob")


class SlowStore(MemoryStore):
    """A store that writes while its gate is open, and when it is not broken."""

    def __init__(self) -> None:
        super().__init__(audit_entries=10)
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_broken = False

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        await self.gate.wait()
        if self.is_broken:
            raise StoreError("the disk is full")
        return await super().append(commit, fence=fence)


async def bobs_who_join(host: Hosted, bobs: int) -> None:
    """Wait until the module knows so many of Bob's connections."""
    await until(lambda: len(host.module._audience._sessions[ROOM].get(BOB, [])) == bobs)


# --- Closed by the client --------------------------------------------------------------------------------------------


async def test_a_close_with_1000_is_leaving(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice:
        await alice.join()
        async with host.client("bob") as bob:
            await bob.join()
        left = await alice.wait_for("left", namespace="control")
    assert left.payload == {"message": "left", "id": "bob", "reason": "quit"}


async def test_so_is_one_without_a_code_as_browsers_have_it(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join()
        await bob.join()
        async with bob.connection.send_context():
            bob.connection.protocol.send_close()
        left = await alice.wait_for("left", namespace="control")
    assert left.payload == {"message": "left", "id": "bob", "reason": "quit"}


@pytest.mark.parametrize("code", [1001, 3000, 4000, "abort", "eof"])
async def test_anything_else_keeps_the_place_for_the_grace(livekit: EmbeddedServer, code: int | str) -> None:
    async with hosted(livekit, moderation_disconnect_grace_s=0.3) as host, AsyncExitStack() as stack:
        alice = await stack.enter_async_context(host.client("alice", Role.MODERATOR))
        await alice.join()
        bob = await stack.enter_async_context(host.client("bob"))
        await bob.join()
        gone_at = time.monotonic()
        match code:
            case int():
                await bob.close(code)
            case "abort":
                bob.connection.transport.abort()
            case _:
                bob.connection.transport.write_eof()
        left = await alice.wait_for("left", namespace="control")
        assert left.payload == {"message": "left", "id": "bob", "reason": "timeout"}
        assert time.monotonic() - gone_at >= 0.3


async def test_who_comes_back_within_the_grace_has_never_been_away(livekit: EmbeddedServer) -> None:
    async with (
        hosted(livekit, moderation_disconnect_grace_s=60) as host,
        host.client("alice", Role.MODERATOR) as alice,
    ):
        await alice.join()
        async with host.client("bob") as bob:
            await bob.join()
            await bob.send("raise_hand", namespace="control")
            await alice.wait_for("update", namespace="control")
            bob.connection.transport.abort()
            await bob.connection.wait_closed()
        async with host.client("bob") as bob:
            await bob.join()
            assert (await host_view(host))["bob"]["control"]["hand_is_up"]
            assert alice.told("left", "control") == []


async def host_view(host: Hosted) -> dict[str, dict[str, dict[str, object]]]:
    """Everybody as a newcomer is told of them."""
    async with host.client("newcomer") as newcomer:
        return {entry["id"]: entry for entry in (await newcomer.join())["participants"]}


async def test_a_client_that_closes_while_joining_has_left(host: Hosted, livekit: EmbeddedServer) -> None:
    async with host.client("alice", Role.MODERATOR) as alice:
        await alice.join()
        livekit.pause()
        async with host.dial(bearer=host.ticket("bob")) as bob:
            await bob.send('{"namespace": "control", "payload": {"action": "join"}}')
            await ask(bob, PING)
        livekit.resume()
        left = await alice.wait_for("left", namespace="control")
        assert left.payload == {"message": "left", "id": "bob", "reason": "quit"}


@pytest.mark.parametrize(("code", "reason"), [(1000, "quit"), (1001, "timeout")])
async def test_a_store_that_fails_when_somebody_goes_is_asked_again(
    livekit: EmbeddedServer, code: int, reason: str
) -> None:
    store = SlowStore()
    async with hosted(livekit, store=store, moderation_disconnect_grace_s=0.01) as host, AsyncExitStack() as stack:
        alice = await stack.enter_async_context(host.client("alice", Role.MODERATOR))
        bob = await stack.enter_async_context(host.client("bob"))
        await alice.join()
        await bob.join()
        with structlog.testing.capture_logs() as logged:
            store.is_broken = True
            await bob.close(code)
            await until(lambda: len(logged) >= 2)
            store.is_broken = False
            left = await alice.wait_for("left", namespace="control")
    assert left.payload == {"message": "left", "id": "bob", "reason": reason}
    assert {"event": "store_failed", "log_level": "error", "error": "the disk is full", "room": ROOM} in logged


# --- Taken over ------------------------------------------------------------------------------------------------------


async def test_connecting_again_takes_over_and_closes_the_older_with_1000(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as older:
        await alice.join()
        await older.join()
        async with host.client("bob") as newer:
            await newer.join()
            assert await older.closed() == 1000
            await newer.command("create_new_access_token")
            assert alice.told("left", "control") == []
        await alice.wait_for("left", namespace="control")


async def test_of_many_who_join_at_once_the_last_one_stays(livekit: EmbeddedServer) -> None:
    store = SlowStore()
    async with hosted(livekit, store=store) as host, AsyncExitStack() as stack:
        alice = await stack.enter_async_context(host.client("alice", Role.MODERATOR))
        await alice.join()
        store.gate.clear()
        bobs = [await stack.enter_async_context(host.client("bob")) for _ in range(4)]
        for number, bob in enumerate(bobs):
            await bob.send("join", namespace="control")
            await bobs_who_join(host, number + 1)
        store.gate.set()
        for bob in bobs[:-1]:
            assert await bob.closed() == 1000
        await bobs[-1].wait_for("join_success", namespace="control")
        await bobs[-1].send("create_new_access_token")
        await bobs[-1].wait_for("credentials")


@pytest.mark.parametrize("how", ["leave", "disconnect"])
async def test_what_the_older_one_does_when_the_newer_one_joins_is_not_done_to_it(
    livekit: EmbeddedServer, how: Literal["leave", "disconnect"]
) -> None:
    store = SlowStore()
    async with hosted(livekit, store=store) as host, AsyncExitStack() as stack:
        older = await stack.enter_async_context(host.client("bob"))
        newer = await stack.enter_async_context(host.client("bob"))
        await older.join()
        (session,) = host.module._audience._sessions[ROOM][BOB]
        assert isinstance(session, Session)
        store.gate.clear()
        await newer.send("join", namespace="control")
        await bobs_who_join(host, 2)
        ending = asyncio.create_task(session.leave() if how == "leave" else session.disconnect())
        await newer.send("ping", namespace="echo")
        await newer.wait_for("pong", namespace="echo")
        store.gate.set()
        await ending
        await newer.wait_for("join_success", namespace="control")
        assert await older.closed() == 1000
        record = await session.meeting.journal.record()
        assert record.state.members[BOB].returns_until is None


# --- Closed by the server --------------------------------------------------------------------------------------------


async def test_the_end_of_a_meeting_closes_with_1000(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join()
        await bob.join()
        await host.module.close_room(ROOM)
        assert (await alice.closed(), await bob.closed()) == (1000, 1000)


async def test_the_last_delivery_goes_out_before_the_close(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join()
        await bob.join()
        restricting = asyncio.create_task(alice.send("enable_microphone_restrictions", unrestricted_participants=[]))
        await bob.wait_for("microphone_restrictions_enabled")
        await restricting
        (session,) = host.module._audience._sessions[ROOM][BOB]
        for number in range(100):
            session.tell(MicrophoneRestrictionsDisabled(), number)
        session.end("kicked")
        assert await bob.closed() == 1000
        assert bob.inbox[-2].transaction_id == 99
        assert bob.inbox[-1].payload == {"message": "kicked"}


async def test_whoever_cannot_be_told_everything_is_closed_with_1012_and_comes_back(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join()
        await bob.join()
        host.module._entered.faults.note(FellBehind(ROOM, "what followed is not kept"))
        assert [await client.closed() for client in (alice, bob)] == [1012] * 2
        assert bob.inbox[-1].payload["message"] != "room_deleted"
    async with host.client("alice", Role.MODERATOR) as alice:
        success = await alice.join()
        assert [person["id"] for person in success["participants"]] == ["bob"], "their place is kept"


async def test_stopping_closes_everybody_with_1012_and_keeps_their_places(
    livekit: EmbeddedServer, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'meetings.sqlite'}"
    async with AsyncExitStack() as stack:
        async with hosted(livekit, moderation_store_url=store) as host:
            clients = [await stack.enter_async_context(host.client(f"p{number}")) for number in range(5)]
            for client in clients:
                await client.join()
            waiting = await stack.enter_async_context(host.client("has not joined"[:3]))
            url = host.url
        assert [await client.closed() for client in (*clients, waiting)] == [1012] * 6
        with pytest.raises(OSError, match="Connect call failed"):
            async with host.dial(url=url, bearer="x"):
                pass
    async with hosted(livekit, moderation_store_url=store) as host:
        assert (await host_view(host)).keys() == {f"p{number}" for number in range(5)}


async def test_a_client_that_answers_a_close_with_1000_has_not_left(livekit: EmbeddedServer, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'meetings.sqlite'}"
    async with hosted(livekit, moderation_store_url=store) as host:
        bob = await host.dial(bearer=host.ticket("bob"))
        await ask(bob, JOIN)
        answer_with_1000(bob)
    await bob.wait_closed()
    async with hosted(livekit, moderation_store_url=store) as host:
        assert (await host_view(host)).keys() == {"bob"}


def answer_with_1000(client: ClientConnection) -> None:
    """Let a client answer whatever close with a close of its own."""
    send_frame = client.protocol.send_frame

    def send(frame: object) -> None:
        if type(frame).__name__ == "Frame" and getattr(frame, "opcode", None) == 8:
            frame.data = b"\x03\xe8"  # type: ignore[attr-defined]
        send_frame(frame)  # type: ignore[arg-type]

    client.protocol.send_frame = send  # type: ignore[method-assign]


async def test_stopping_waits_for_nobody_for_ever(livekit: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 * STOP_S <= 2
    monkeypatch.setattr(websocket, "STOP_S", 0.1)
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 3_600)
    monkeypatch.setattr(channel, "CLOSE_TIMEOUT_S", 3_600)
    async with asyncio.timeout(60), AsyncExitStack() as stack, hosted(livekit) as host:
        deaf = await host.dial(bearer=host.ticket("deaf"))
        await ask(deaf, JOIN)
        deaf.transport.pause_reading()
        stack.callback(deaf.transport.abort)
        address = urlsplit(host.url)
        half_open = stack.enter_context(socket.create_connection((address.hostname, address.port or 0)))
        half_open.sendall(b"GET /signaling HTTP/1.1\r\n")


async def test_what_runs_when_it_stops_is_given_up_after_a_while(
    livekit: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "FINISH_S", 0.1)
    monkeypatch.setattr(websocket, "STOP_S", 0.1)
    async with AsyncExitStack() as stack:
        with structlog.testing.capture_logs() as logged:
            async with hosted(livekit, moderation_livekit_timeout_s=30) as host:
                alice = await stack.enter_async_context(host.client("alice", Role.MODERATOR))
                await alice.join()
                livekit.pause()
                await alice.send("force_mute", participants=["alice"])
                await alice.send("ping", namespace="echo")
                await alice.wait_for("pong", namespace="echo")
                stack.callback(livekit.resume)
                await host.server._websocket.close()
        assert await alice.closed() == 1012
        assert [entry["meetings"] for entry in logged if entry["event"] == "turns_left_unfinished"] == [1]
        assert [entry["tasks"] for entry in logged if entry["event"] == "given_up_at_stop"] == [1]


async def test_what_runs_when_it_stops_is_answered_first_and_nothing_is_begun() -> None:
    async with FakeRoomService() as fake, hosted(fake) as host, AsyncExitStack() as stack:
        alice = await stack.enter_async_context(host.client("alice", Role.MODERATOR))
        waiting = await stack.enter_async_context(host.client("waiting"))
        token = (await alice.join())["livekit"]["token"]
        fake.join(ROOM, "alice", token=token)
        sid = fake.publish(ROOM, "alice", "microphone")
        stopping: asyncio.Task[None] | None = None
        with fake.hang(method="MutePublishedTrack") as hanging:
            await alice.send("force_mute", participants=["alice"], transaction_id=1)
            await hanging.hit()
            stopping = asyncio.create_task(host.server._websocket.close())
            await until(lambda: not host.server._websocket.is_listening)
            async with aiohttp.ClientSession() as http, http.get(f"{host.server.internal_url}/readyz") as answer:
                assert answer.status == 503
                assert (await answer.json())["listening"] is False
            await alice.send("force_mute", participants=["alice"], transaction_id=2)
            refused = await result_of(alice, 2)
            assert refused["error"] == "unavailable"
            await waiting.send("join", namespace="control")
            told = await waiting.wait_for("error", namespace="control")
            assert told.payload["error"] == "internal"
            assert not stopping.done()
        answered = await result_of(alice, 1)
        assert [outcome["outcome"] for outcome in answered["outcomes"]] == ["muted"]
        assert fake.participant(ROOM, "alice").tracks[0].sid == sid
        assert await alice.closed() == 1012
        assert await waiting.closed() == 1012
        await stopping
        assert [entry.action for entry in await host.module.audit(ROOM)] == ["force_mute"]


async def result_of(client: SignalingClient, transaction_id: int) -> dict[str, Any]:
    """The `result` of the command with that transaction id."""
    frame = await client.wait_for(
        "result", namespace="livekit_moderation", where=lambda frame: frame.transaction_id == transaction_id
    )
    return frame.payload


async def test_whoever_was_on_a_server_that_stopped_goes_on_elsewhere_as_if_nothing_had_been() -> None:
    store = MemoryStore(audit_entries=10)
    async with (
        FakeRoomService() as fake,
        AsyncExitStack() as stack,
        hosted(fake, store=store, moderation_disconnect_grace_s=3_600) as other,
        other.client("alice", Role.MODERATOR) as alice,
    ):
        await alice.join()
        async with hosted(fake, store=store, moderation_disconnect_grace_s=3_600) as one:
            crowd = [await stack.enter_async_context(one.client(f"p{number}")) for number in range(20)]
            bob = await stack.enter_async_context(SignalingClient(one.url, one.ticket("bob", breakout="red")))
            for client in (*crowd, bob):
                await client.join()
            await bob.send("raise_hand", namespace="control")
            await bob.wait_for("hand_raised", namespace="control")
            await alice.send("grant_moderator_role", namespace="control", target="bob")
            await bob.wait_for("role_updated", namespace="control")
            before = await store.read(ROOM)
            assert before is not None
            await one.server._websocket.close()
            assert [await client.closed() for client in (*crowd, bob)] == [1012] * 21
            (entry,) = await store.entries(ROOM, before.revision) or ()
            assert isinstance(entry.changes[0], ConnectionLost)
            assert len(entry.changes[0].participants) == 21, "in one commit"
        node = NodeId("one that looks")
        now = time.time()
        assert len(await store.beat(node, until=now + 1, now=now) - {node}) == 1, "it says itself that it is gone"
        async with SignalingClient(other.url, other.ticket("bob")) as back:
            welcome = await back.join()
            assert welcome["role"] == "moderator"
            assert welcome["livekit"]["room"] == f"{ROOM}:red"
            seen = await host_view(other)
            assert seen["bob"]["control"]["hand_is_up"]
            assert len(seen) == 22
        assert [told for told in alice.told("left", "control") if told["id"] != "newcomer"] == []


@pytest.mark.parametrize("how", ["broken", "hung"])
async def test_a_store_that_is_away_holds_up_no_stop(
    livekit: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, how: Literal["broken", "hung"]
) -> None:
    monkeypatch.setattr(handover, "HAND_OVER_S", 0.1)
    monkeypatch.setattr(websocket, "STOP_S", 0.1)
    store = SlowStore()
    async with hosted(livekit, store=store) as host, host.client("bob") as bob:
        await bob.join()
        if how == "hung":
            store.gate.clear()
        store.is_broken = how == "broken"
        with structlog.testing.capture_logs() as logged:
            await host.server._websocket.close()
        assert await bob.closed() == 1012
        error = "the disk is full" if how == "broken" else "no answer in time"
        [told] = [entry for entry in logged if entry["event"] == "hand_over_failed"]
        assert told["error"] == error


async def test_closing_again_does_nothing(door: Hosted) -> None:
    await door.server._websocket.close()
    await door.server._websocket.close()
    assert not door.server._websocket.is_listening


async def test_a_bug_in_reading_closes_with_1011_and_keeps_the_place(
    livekit: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_text: str) -> None:
        raise ZeroDivisionError

    async with hosted(livekit) as host, host.client("bob") as bob:
        await bob.join()
        monkeypatch.setattr("signaling.server.connection.parse_frame", fail)
        await bob.send("ping", namespace="echo")
        assert await bob.closed() == 1011
        monkeypatch.undo()
        assert (await host_view(host)).keys() == {"bob"}


async def test_a_bug_in_a_command_is_logged_and_the_connection_lives(
    host: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    async with host.client("bob") as bob:
        await bob.join()
        monkeypatch.setattr(Session, "receive", fail)
        with structlog.testing.capture_logs() as logged:
            await bob.send("raise_hand", namespace="control")
            await bob.send("ping", namespace="echo")
            await bob.wait_for("pong", namespace="echo")
        assert [entry["event"] for entry in logged] == ["task_failed"]
