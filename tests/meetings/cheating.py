"""A meeting with a real client that cheats, and a hidden listener who measures what comes of it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Unpack

import pytest
from aiohttp import web
from livekit.api import AccessToken

from signaling import ModerationModule, Role, Settings
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.testing.child import ParticipantError
from signaling.testing.participants import MediaParticipant, ParticipantProcess, WaitedInVain, participant_token
from tests.crowd.crowd import Behaviour, Crowd, Member
from tests.meetings.stage import ROOM, Actor, Stage

HEARD_S = 0.5
"""How long a cheat may be heard on a loaded machine; figures are the benchmarks'."""
LISTEN_S = 1.0
SILENT = ["camera", "screen_share", "screen_share_audio"]
"""What everybody may publish who may not speak."""


@dataclass
class Scene:
    """
    A meeting that Alice moderates, where Bob is heard.

    Attributes:
        bob: In LiveKit, with his own client.
        signaling: Bob in the signaling.
        old_token: The one that Bob came with, when nothing was restricted.
    """

    stage: Stage
    crowd: Crowd
    listener: MediaParticipant
    alice: Actor
    bob: Member
    signaling: Actor
    old_token: str

    @property
    def url(self) -> str:
        return self.stage.server.url

    async def restrict(self) -> None:
        """Nobody may speak but moderators, from now on."""
        await self.alice.outcomes("enable_microphone_restrictions", unrestricted_participants=[])
        await self.listener.silent("bob")

    async def come_back(self, token: str = "", **behaviour: Unpack[Behaviour]) -> None:
        """As Bob, with this token or the old one, to speak, and never to give up."""
        stubborn: Behaviour = {"publish": ["microphone"], "republish_always": True, **behaviour}
        await self.bob.rejoin(token or self.old_token, **stubborn)

    async def open_second_session(self) -> None:
        """As `bob#x`, with the old token, to speak."""
        await self.enter(self.old_token, path_query="publish=x")

    async def intrude(self, source: str = "microphone") -> None:
        """As somebody who never joined, to be heard by this source."""
        await self.enter(self.forge("stranger"), publish=[{"source": source, "sound": True}])

    async def enter(self, token: str, **behaviour: Unpack[Behaviour]) -> Member:
        """Somebody else comes with this token, to speak, and never to give up."""
        stubborn: Behaviour = {"publish": ["microphone"], "republish_always": True, **behaviour}
        return await self.crowd.join(self.url, token, **stubborn)

    def forge(self, identity: str, kind: AccessToken.ParticipantKind = "standard", *, hidden: bool = False) -> str:
        """A token that is not the module's, and allows everything."""
        server = self.stage.server
        return participant_token(server.api_key, server.api_secret, ROOM, identity, kind=kind, hidden=hidden)

    async def heard_for(
        self,
        identity: str,
        cheat: Callable[[], Awaitable[object]],
        source: str = "microphone",
        *,
        listener: MediaParticipant | None = None,
    ) -> float:
        """How long somebody is heard from the moment of the cheat; those it is refused are not heard."""
        hearer = listener or self.listener
        since = time.monotonic()
        with suppress(ParticipantError):
            await cheat()
        self.crowd.raise_if_dead()
        try:
            began_at = await hearer.heard(identity, source, since=since, timeout_s=LISTEN_S)
        except WaitedInVain:
            return 0.0
        return await hearer.silent(identity, source) - began_at

    async def stays_silent(self, identity: str) -> None:
        """Listen for a while, in which nothing may be heard of them."""
        with pytest.raises(WaitedInVain):
            await self.listener.heard(identity, since=time.monotonic(), timeout_s=LISTEN_S)

    async def repaired(self, identity: str) -> set[str]:
        """What somebody was found to be able to do beyond what holds, as moderators were told."""
        told = await self.alice.until_told("drift_repaired", "livekit_moderation")
        assert told["participant"] == identity
        return set(told["found"]) - set(told["expected"])

    async def may_publish(self, identity: str) -> list[str]:
        return (await self.stage.may_publish()).get(identity, [])


@asynccontextmanager
async def scene(*, reports: bool = True, **settings: object) -> AsyncIterator[Scene]:
    """
    A scene where nothing is restricted yet.

    Args:
        reports: Whether LiveKit reports by webhooks.
        settings: Of the module; without `moderation_sweep_s` no sweep helps.
    """

    async def take(request: web.Request) -> web.Response:
        await module.receive_webhook(await request.read(), request.headers["Authorization"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/livekit/webhook", take)
    runner = web.AppRunner(app)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        hooks = [f"http://127.0.0.1:{runner.addresses[0][1]}/livekit/webhook"] if reports else []
        server = await stack.enter_async_context(EmbeddedServer(path=require(None), webhook_urls=hooks))
        process = await stack.enter_async_context(ParticipantProcess())
        crowd = await stack.enter_async_context(Crowd())
        chosen: dict[str, Any] = {
            "livekit_url": server.url,
            "livekit_api_key": server.api_key,
            "livekit_api_secret": server.api_secret,
            "moderation_sweep_s": 60,
            **settings,
        }
        module = await stack.enter_async_context(ModerationModule(Settings(**chosen)))
        stage = Stage(server, module, process)
        alice = await stage.join("alice", Role.MODERATOR, enters_livekit=False)
        signaling = await stage.join("bob", enters_livekit=False)
        listener = await stage.listener()
        bob = await crowd.join(server.url, signaling.token, publish=["microphone"])
        await listener.heard("bob")
        yield Scene(stage, crowd, listener, alice, bob, signaling, signaling.token)
