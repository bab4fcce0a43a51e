"""A server that is killed, and the next one on the same store and the same LiveKit."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from signaling import Role
from signaling.identifiers import LiveKitRoom
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.livekit.room_service import RoomService
from signaling.testing.participants import ParticipantProcess, SignalOnlyParticipant
from tests.meetings.serving import ROOM, Serving, serving

RESTRICTED = ["camera", "screen_share", "screen_share_audio"]


@pytest.fixture
async def livekit() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(path=require(None)) as server:
        yield server


async def may_publish(livekit: EmbeddedServer) -> Mapping[str, list[str]]:
    """What LiveKit lets everybody publish now."""
    async with RoomService(livekit.url, livekit.api_key, livekit.api_secret) as service:
        presences = await service.list_presences(LiveKitRoom(ROOM))
    return {str(p.identity): [str(s) for s in p.permission.sources] for p in presences}


async def test_what_was_decided_is_there_after_kill_9_and_holds(livekit: EmbeddedServer, tmp_path: Path) -> None:
    async with serving(livekit, tmp_path) as server, ParticipantProcess() as process:
        alice, bob = server.client("alice", Role.MODERATOR), server.client("bob")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(alice)
            await stack.enter_async_context(bob)
            await alice.join()
            welcome = (await bob.join())["livekit"]
            speaker = await process.connect(welcome["public_url"], welcome["token"], publish_tone_hz=440)
            await alice.command("enable_microphone_restrictions", unrestricted_participants=["carol"])
            await alice.command("revoke_screen_share_permission", participants=["bob"])
            await alice.send("grant_moderator_role", namespace="control", target="bob")
            await bob.wait_for("role_updated", namespace="control")
            await server.end(signal.SIGKILL)
        await server.start()

        async with server.client("alice", Role.MODERATOR) as alice, server.client("bob") as bob:
            welcome = await alice.join()
            assert welcome["livekit"]["microphone_restriction_state"] == {
                "type": "enabled",
                "unrestricted_participants": ["carol"],
            }
            assert (await bob.join())["role"] == "moderator"
            assert "microphone" in (await may_publish(livekit))["bob"]
            await alice.send("revoke_moderator_role", namespace="control", target="bob")
            await bob.wait_for("role_updated", namespace="control")
            assert (await may_publish(livekit))["bob"] == RESTRICTED
        await speaker.disconnect()


async def test_kill_9_in_the_middle_of_a_bulk_command_leaves_no_half_meeting(
    livekit: EmbeddedServer, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            serving(livekit, tmp_path, MODERATION_LIVEKIT_CALLS_PER_ROOM="1", MODERATION_SWEEP_S="1")
        )
        names = [f"p{n:02}" for n in range(40)]
        watched = await _enter_all(server, stack, names)
        alice = server.client("alice", Role.MODERATOR)
        async with alice:
            await alice.join()
            await alice.send("enable_microphone_restrictions", unrestricted_participants=["p00"])
            await watched["p01"].until(lambda participant: 2 not in participant.permission.can_publish_sources)
            await server.end(signal.SIGKILL)
        # In the middle: mostly before the event, on a busy machine just after it, while the others settle.
        was_told = bool(alice.told("microphone_restrictions_enabled"))
        assert [name for name, sources in (await may_publish(livekit)).items() if sources == RESTRICTED]

        await server.start()
        async with server.client("alice", Role.MODERATOR) as alice:
            welcome = await alice.join()
            is_enabled = welcome["livekit"]["microphone_restriction_state"]["type"] == "enabled"
            assert is_enabled or not was_told
            if not is_enabled:  # then it is being finished, and everybody is told
                await alice.wait_for("microphone_restrictions_enabled")
            expected = {name: name != "p00" for name in names}
            async with asyncio.timeout(15):
                while True:
                    may = await may_publish(livekit)
                    if {name: may[name] == RESTRICTED for name in names} == expected:
                        break
                    await asyncio.sleep(0.05)


async def _enter_all(server: Serving, stack: AsyncExitStack, names: list[str]) -> dict[str, SignalOnlyParticipant]:
    """Join the signaling and LiveKit, without media."""
    entered = {}
    for name in names:
        client = await stack.enter_async_context(server.client(name))
        welcome = (await client.join())["livekit"]
        participant = await SignalOnlyParticipant.connect(welcome["public_url"], welcome["token"])
        entered[name] = await stack.enter_async_context(participant)
    return entered


async def test_after_a_restart_who_does_not_come_back_is_gone_after_the_grace(
    livekit: EmbeddedServer, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(livekit, tmp_path, MODERATION_DISCONNECT_GRACE_S="1"))
        alice = await stack.enter_async_context(server.client("alice", Role.MODERATOR))
        await alice.join()
        bob = (await _enter_all(server, stack, ["bob"]))["bob"]
        await server.end(signal.SIGKILL)
        await server.start()
        alice = await stack.enter_async_context(server.client("alice", Role.MODERATOR))
        assert [entry["id"] for entry in (await alice.join())["participants"]] == ["bob"]
        left = await alice.wait_for("left", namespace="control")
        assert left.payload == {"message": "left", "id": "bob", "reason": "timeout"}
        async with asyncio.timeout(10):
            await bob.closed


async def test_sigterm_tells_clients_to_come_back_and_exits_0(livekit: EmbeddedServer, tmp_path: Path) -> None:
    async with serving(livekit, tmp_path) as server, server.client("alice", Role.MODERATOR) as alice:
        await alice.join()
        ending = asyncio.create_task(server.end(signal.SIGTERM))
        assert await alice.closed() == 1012
        assert await ending == 0


async def test_health_is_told_while_livekit_hangs(livekit: EmbeddedServer, tmp_path: Path) -> None:
    async with (
        serving(livekit, tmp_path, MODERATION_LIVEKIT_TIMEOUT_S="0.5") as server,
        server.client("alice", Role.MODERATOR) as alice,
        aiohttp.ClientSession() as http,
    ):
        await alice.join()
        livekit.pause()
        result = await alice.command("force_mute", participants=["alice"])
        assert result["error"] == "livekit_unavailable"
        pinged_at = time.monotonic()
        await alice.send("ping", namespace="echo")
        pong = await alice.wait_for("pong", namespace="echo")
        assert pong.at >= pinged_at
        async with http.get(f"{server.internal_url}/readyz") as response:
            assert response.status == 200
            assert (await response.json())["livekit"] is False
        livekit.resume()


async def test_a_second_server_on_the_same_store_is_refused(livekit: EmbeddedServer, tmp_path: Path) -> None:
    async with serving(livekit, tmp_path):
        second = Serving(livekit, tmp_path)
        with pytest.raises(AssertionError, match=r"meetings\.sqlite"):
            await second.start()
        assert await second.end(None) == 1


async def test_the_log_of_a_whole_meeting_holds_no_secret(livekit: EmbeddedServer, tmp_path: Path) -> None:
    async with serving(livekit, tmp_path, MODERATION_LOG_LEVEL="debug") as server:
        async with server.client("alice", Role.MODERATOR) as alice, server.client("bob") as bob:
            tokens = [(await alice.join())["livekit"]["token"], (await bob.join())["livekit"]["token"]]
            await alice.command("enable_microphone_restrictions", unrestricted_participants=[])
            await alice.command("force_mute", participants=["bob", "no-such-body"])
            await bob.command("create_new_access_token")
            await bob.command("request_popout_stream_access_token")
            tokens += [frame["token"] for frame in bob.told("credentials") + bob.told("popout_stream_access_token")]
            await alice.send("canary-in-the-action")
            await alice.wait_for("error")
        await server.end(signal.SIGTERM)
        log = server.log
        assert "command_applied" in log
        assert "no-such-body" not in log
        for secret in (*tokens, livekit.api_secret, "Alice", "Bob", "canary", "turn_password"):
            assert secret not in log
