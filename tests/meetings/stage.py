"""A whole meeting: the module, a real media server, and people with real sound whom a hidden listener hears."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from aiohttp import web

from signaling import Kind, ModerationModule, Participant, Role, Settings
from signaling.core.effects import Presence
from signaling.identifiers import BreakoutId, LiveKitRoom, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.testing.child import ParticipantError, ParticipantProcessDied
from signaling.testing.participants import MediaParticipant, ParticipantProcess, WaitedInVain
from tests.meeting_on_fake import Person

ROOM = RoomId("standup")
LISTEN_S: Final = 1.5
"""How long somebody is listened for who may not be heard."""


class Actor(Person):
    """Somebody in the meeting, and their participant in LiveKit."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._media: MediaParticipant | None = None

    @property
    def media(self) -> MediaParticipant:
        assert self._media is not None
        return self._media

    @media.setter
    def media(self, media: MediaParticipant) -> None:
        self._media = media


class Stage:
    """The meeting, and what can be heard and seen in it."""

    def __init__(
        self, server: EmbeddedServer, module: ModerationModule, process: ParticipantProcess, room: RoomId = ROOM
    ) -> None:
        self.server = server
        self.module = module
        self.process = process
        self.room = room
        self._listeners: dict[str, MediaParticipant] = {}

    async def join(
        self,
        name: str,
        role: Role = Role.USER,
        *,
        kind: Kind = Kind.USER,
        tone_hz: int | None = None,
        breakout: str | None = None,
        enters_livekit: bool = True,
    ) -> Actor:
        """Join the signaling and LiveKit, and speak."""
        actor = Actor(name)
        participant = Participant(
            actor.id,
            role=role,
            kind=kind,
            display_name=name.title(),
            breakout=None if breakout is None else BreakoutId(breakout),
        )
        actor.session = await self.module.join(
            self.room, participant, deliver=actor.deliver, extensions=frozenset({"livekit_moderation", "control"})
        )
        if enters_livekit:
            actor.media = await self.process.connect(self.server.url, actor.token, publish_tone_hz=tone_hz)
        return actor

    async def enter(self, token: str) -> MediaParticipant:
        """A further participant of LiveKit, such as a popout, who listens."""
        return await self.process.connect(self.server.url, token, listens=True)

    async def listener(self, breakout: str | None = None) -> MediaParticipant:
        """The hidden listener of a room: a recorder, which nobody sees and no room-wide rule touches."""
        name = f"recorder-{breakout or 'main'}"
        if name not in self._listeners:
            recorder = await self.join(name, kind=Kind.RECORDER, breakout=breakout, enters_livekit=False)
            self._listeners[name] = await self.enter(recorder.token)
        return self._listeners[name]

    async def all_heard(self, *actors: Person, since: float | None = None) -> None:
        """Wait until the listener hears everybody."""
        listener = await self.listener()
        await asyncio.gather(*(listener.heard(actor.id, since=since) for actor in actors))

    async def heard_for(
        self,
        identity: str,
        cheat: Callable[[], Awaitable[object]],
        source: str = "microphone",
        *,
        listener: MediaParticipant | None = None,
    ) -> float | None:
        """How many seconds somebody is heard from the moment of the cheat, which may be refused; `None` for never."""
        listener = listener or await self.listener()
        since = time.monotonic()
        try:
            await cheat()
        except ParticipantProcessDied:
            raise
        except ParticipantError:
            pass  # what was heard before it was refused counts too
        try:
            began_at = await listener.heard(identity, source, since=since, timeout_s=LISTEN_S)
        except WaitedInVain:
            return None
        return await listener.silent(identity, source) - began_at

    async def presences(self, room: str | None = None) -> Mapping[str, Presence]:
        """Who is in LiveKit, by identity, as LiveKit says it now."""
        media = self.module._entered.media
        assert media is not None
        return {
            str(presence.identity): presence for presence in await media.list_presences(LiveKitRoom(room or self.room))
        }

    async def may_publish(self, room: str | None = None) -> dict[str, list[str]]:
        """What LiveKit lets everybody publish now."""
        return {
            identity: [str(source) for source in presence.permission.sources] if presence.permission.can_publish else []
            for identity, presence in (await self.presences(room)).items()
        }


@asynccontextmanager
async def webhooks_to(take: Callable[[bytes, str], Awaitable[None]]) -> AsyncIterator[str]:
    """Where LiveKit may report to: `take` gets the body and the authorization."""

    async def answer(request: web.Request) -> web.Response:
        await take(await request.read(), request.headers["Authorization"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def stage(*, reports: bool = False, **settings: object) -> AsyncIterator[Stage]:
    """An empty meeting with a media server of its own, which `reports` by webhooks or not."""
    async with AsyncExitStack() as stack:

        async def take(body: bytes, authorization: str) -> None:
            await module.receive_webhook(body, authorization)

        urls = [await stack.enter_async_context(webhooks_to(take))] if reports else []
        server = await stack.enter_async_context(EmbeddedServer(path=require(None), webhook_urls=urls))
        process = await stack.enter_async_context(ParticipantProcess())
        chosen: dict[str, Any] = {
            "livekit_url": server.url,
            "livekit_api_key": server.api_key,
            "livekit_api_secret": server.api_secret,
            **settings,
        }
        module = await stack.enter_async_context(ModerationModule(Settings(**chosen)))
        yield Stage(server, module, process)
