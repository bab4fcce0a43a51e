"""What the contract of RoomService is tested through: the fake and the real server behind one small interface."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import jwt
from livekit.protocol import models

from signaling.livekit.embedded import EmbeddedServer
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.participants import (
    MediaParticipant,
    ParticipantProcess,
    PublishRefused,
    SignalOnlyParticipant,
    participant_token,
)
from tests.crowd.crowd import Crowd


class Guest(Protocol):
    """Somebody in a room."""

    async def may_publish(self, source: str) -> bool:
        """What the server says to an attempt."""

    async def ended(self) -> None:
        """Wait until the server has thrown them out."""


class Publisher(Protocol):
    """Somebody in a room, with media."""

    async def publish(self, source: str) -> str:
        """Publish a track, and say its sid."""

    async def unmute(self, source: str) -> None:
        """Unmute what somebody else has muted."""


class RoomDriver(Protocol):
    """A server with a RoomService, and the means to be in its rooms."""

    url: str
    api_key: str
    api_secret: str

    async def join(self, room: str, token: str) -> Guest:
        """Somebody without media, so listed as JOINED."""

    async def join_with_media(self, room: str, token: str) -> Publisher:
        """Somebody who can publish, once listed as ACTIVE."""

    async def stream_in(self, room: str, token: str) -> None:
        """Somebody who speaks by WHIP."""

    async def crash(self) -> None:
        """Kill the server and wait until it is back."""


def token_for(driver: RoomDriver, room: str, identity: str, sources: Sequence[str] | None = None) -> str:
    return participant_token(driver.api_key, driver.api_secret, room, identity, can_publish_sources=sources)


class _FakeGuest:
    def __init__(self, fake: FakeRoomService, room: str, token: str, state: models.ParticipantInfo.State) -> None:
        self._fake = fake
        self._room = room
        self._identity = _subject(token)
        self._sid = fake.join(room, self._identity, token=token, state=state).sid
        self._tracks: dict[str, str] = {}

    async def may_publish(self, source: str) -> bool:
        return self._fake.may_publish(self._room, self._identity, source)

    async def publish(self, source: str) -> str:
        self._tracks[source] = self._fake.publish(self._room, self._identity, source)
        return self._tracks[source]

    async def unmute(self, source: str) -> None:
        self._fake.unmute(self._room, self._identity, self._tracks[source])

    async def ended(self) -> None:
        there = self._fake.participants(self._room) if self._room in self._fake.rooms else ()
        assert self._sid not in {each.sid for each in there}


class FakeDriver:
    def __init__(self, fake: FakeRoomService) -> None:
        self._fake = fake
        self.url = fake.url
        self.api_key = fake.api_key
        self.api_secret = fake.api_secret

    async def join(self, room: str, token: str) -> Guest:
        return _FakeGuest(self._fake, room, token, models.ParticipantInfo.JOINED)

    async def join_with_media(self, room: str, token: str) -> Publisher:
        return _FakeGuest(self._fake, room, token, models.ParticipantInfo.ACTIVE)

    async def stream_in(self, room: str, token: str) -> None:
        identity = _subject(token)
        self._fake.join(room, identity, token=token)
        self._fake.publish(room, identity, "microphone", mime_type="audio/opus", name="synthesized-microphone")

    async def crash(self) -> None:
        self._fake.crash()


class _RealGuest:
    def __init__(self, participant: SignalOnlyParticipant) -> None:
        self._participant = participant

    async def may_publish(self, source: str) -> bool:
        try:
            await self._participant.announce(source)
        except PublishRefused:
            return False
        return True

    async def ended(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.shield(self._participant.closed)


class _RealPublisher:
    def __init__(self, participant: MediaParticipant) -> None:
        self._participant = participant

    async def publish(self, source: str) -> str:
        return await self._participant.publish(source)

    async def unmute(self, source: str) -> None:
        # Its client would have nothing to do before it knows.
        await self._participant.wait_for("track_muted", identity=self._participant.identity, source=source)
        await self._participant.unmute(source)


class RealDriver:
    def __init__(self, server: EmbeddedServer, cleanup: AsyncExitStack) -> None:
        self._server = server
        self._cleanup = cleanup
        self._process: ParticipantProcess | None = None
        self._crowd: Crowd | None = None
        self.url = server.http_url
        self.api_key = server.api_key
        self.api_secret = server.api_secret
        self.restarted = asyncio.Event()

    async def join(self, room: str, token: str) -> Guest:  # noqa: ARG002  the token says which
        participant = await SignalOnlyParticipant.connect(self._server.url, token)
        await self._cleanup.enter_async_context(participant)
        # LiveKit lists somebody a moment before calls about them arrive; this comes right after that.
        await participant.until(lambda me: bool(me.refresh_token))
        return _RealGuest(participant)

    async def join_with_media(self, room: str, token: str) -> Publisher:  # noqa: ARG002  the token says which
        if self._process is None:
            self._process = await self._cleanup.enter_async_context(ParticipantProcess())
        return _RealPublisher(await self._process.connect(self._server.url, token))

    async def stream_in(self, room: str, token: str) -> None:  # noqa: ARG002  the token says which
        if self._crowd is None:
            self._crowd = await self._cleanup.enter_async_context(Crowd())
        await self._crowd.stream(self._server.url, token, ["microphone"])

    async def crash(self) -> None:
        self._server.kill()
        async with asyncio.timeout(10):
            await self.restarted.wait()


@asynccontextmanager
async def fake_driver() -> AsyncIterator[RoomDriver]:
    async with FakeRoomService() as fake:
        yield FakeDriver(fake)


@asynccontextmanager
async def real_driver(path: Path) -> AsyncIterator[RoomDriver]:
    restarted = asyncio.Event()
    async with EmbeddedServer(path=path, on_restart=restarted.set) as server, AsyncExitStack() as cleanup:
        driver = RealDriver(server, cleanup)
        driver.restarted = restarted
        yield driver


def _subject(token: str) -> str:
    subject: str = jwt.decode(token, options={"verify_signature": False})["sub"]
    return subject
