"""The stand-alone server as a process of its own, on a LiveKit that outlives it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from signaling import Kind, Participant, Role
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.server.tickets import make_ticket
from signaling.testing.client import SignalingClient
from signaling.testing.fake_room_service import FakeRoomService

KEY = "a key of at least thirty-two bytes, for tests"
ROOM = RoomId("standup")


class Serving:
    """`livekit-moderation serve`, with a store that survives it."""

    def __init__(self, livekit: EmbeddedServer | FakeRoomService, directory: Path, **settings: str) -> None:
        self._environment = {
            **os.environ,
            "LIVEKIT_URL": livekit.url,
            "LIVEKIT_API_KEY": livekit.api_key,
            "LIVEKIT_API_SECRET": livekit.api_secret,
            "MODERATION_TICKET_KEY": KEY,
            "MODERATION_LISTEN": "127.0.0.1:0",
            "MODERATION_INTERNAL_LISTEN": "127.0.0.1:0",
            "MODERATION_STORE_URL": f"sqlite:///{directory / 'meetings.sqlite'}",
            **settings,
        }
        self._log = directory / "serve.log"
        self._process: asyncio.subprocess.Process | None = None
        self.signaling_url = ""
        self.internal_url = ""

    @property
    def log(self) -> str:
        """All that it logged, over all its lives."""
        return self._log.read_text()

    async def start(self) -> None:
        """Start it, and wait for its ready line."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "signaling", "serve"),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environment,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            line = await self._process.stdout.readline()
        assert line, self.log
        ready = json.loads(line)
        self.signaling_url, self.internal_url = ready["signaling"], ready["internal"]

    async def end(self, number: signal.Signals | None) -> int:
        """Send it a signal, unless it ends by itself, and wait for its end; its exit status."""
        assert self._process is not None
        if number is not None and self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(20):
            return await self._process.wait()

    def client(self, name: str, role: Role = Role.USER, kind: Kind = Kind.USER) -> SignalingClient:
        """A client with a fresh ticket."""
        participant = Participant(ParticipantId(name), role, kind, display_name=name.title())
        return SignalingClient(self.signaling_url, make_ticket(KEY, "HS256", participant, ROOM))


@asynccontextmanager
async def serving(
    livekit: EmbeddedServer | FakeRoomService, directory: Path, **settings: str
) -> AsyncIterator[Serving]:
    """A running server, which ends with the block."""
    server = Serving(livekit, directory, **settings)
    await server.start()
    try:
        yield server
    finally:
        await server.end(signal.SIGKILL)
