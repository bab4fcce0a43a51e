import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from signaling import Participant, Role
from signaling.identifiers import ParticipantId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.server import make_ticket
from signaling.testing.participants import ParticipantProcess
from tests.meetings.serving import KEY, ROOM, Serving, serving

CLIENT = Path(__file__).parents[2] / "examples" / "client.py"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with EmbeddedServer(path=require(None)) as livekit, serving(livekit, tmp_path) as running:
        yield running


def ticket(role: Role = Role.MODERATOR) -> str:
    return make_ticket(KEY, "HS256", Participant(ParticipantId("alice"), role), ROOM)


async def client(*arguments: str, stdin: str = "", **environment: str) -> tuple[int | None, list[str], str]:
    """Run the example: its status, the lines that it printed, and what it wrote to standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CLIENT), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    async with asyncio.timeout(20):
        output, errors = await process.communicate(stdin.encode())
    return process.returncode, output.decode().splitlines(), errors.decode().strip()


async def test_it_mutes_and_says_what_it_came_to_for_each(server: Serving) -> None:
    async with server.client("bob") as bob, ParticipantProcess() as process:
        welcome = (await bob.join())["livekit"]
        media = await process.connect(welcome["public_url"], welcome["token"], publish_tone_hz=440)
        status, lines, errors = await client(
            server.signaling_url, "force_mute", "bob", "carol", MODERATION_TICKET=ticket()
        )
        taken, *outcomes = lines
        assert (status, outcomes, errors) == (0, ["bob muted ", "carol unknown "], "")
        assert taken.startswith('livekit_moderation {"message": "action_taken"')
        assert (await bob.wait_for("force_muted")).payload["moderator"] == "alice"
        await media.wait_for("track_muted", identity="bob")


async def test_it_prints_events_and_takes_its_ticket_from_standard_input(server: Serving) -> None:
    status, lines, errors = await client(
        server.signaling_url, "enable_microphone_restrictions", "bob", stdin=f"{ticket()}\n"
    )
    event = '{"message": "microphone_restrictions_enabled", "unrestricted_participants": ["bob"]}'
    told, _, outcome = lines
    assert (status, told, outcome, errors) == (0, f"livekit {event}", "alice exempt ", "")


async def test_a_refusal_is_its_exit_status(server: Serving) -> None:
    status, lines, errors = await client(
        server.signaling_url, "force_mute", "bob", MODERATION_TICKET=ticket(role=Role.USER)
    )
    assert (status, lines, errors) == (1, [], "insufficient_permissions")
    status, _, errors = await client(server.signaling_url, "silence", "bob", MODERATION_TICKET=ticket())
    assert (status, errors) == (1, "invalid_command: action: not a command of this namespace")
    status, _, errors = await client(server.signaling_url, "force_mute", "bob", stdin="forged\n")
    assert status == 1
    assert "HTTP 401" in errors


async def test_what_was_not_reached_is_its_exit_status(server: Serving) -> None:
    status, _, errors = await client("ws://127.0.0.1:9/signaling", "force_mute", MODERATION_TICKET="any")
    assert status == 1
    assert "Connect call failed" in errors
    status, _, errors = await client(server.signaling_url)
    assert status == 1
    assert "force_mute bob carol" in errors
