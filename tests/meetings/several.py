"""A meeting on several nodes that share a real Redis, and one real media server or two that share one too."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis

from signaling import ModerationModule, Role, Settings
from signaling.errors import StoreError
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.module import NotEntered
from signaling.testing.participants import MediaParticipant, ParticipantProcess
from signaling.testing.redis_server import RedisServer
from tests.crowd.crowd import Crowd, Member
from tests.fault_proxy import FaultProxy
from tests.meetings.stage import ROOM, Actor, Stage, webhooks_to

DEADLINE_S = 1.0
LIVEKIT_DATABASE = 1


@dataclass
class Several:
    """
    Two nodes, on each a moderator; Bob is heard, and has his session on the second.

    Attributes:
        servers: LiveKit's own; the nodes ask the first.
        proxy: Between the nodes and it; people come to the last of them directly.
        old_token: The one that Bob came with, when nothing was restricted.
    """

    redis: RedisServer
    nodes: tuple[Stage, ...]
    servers: tuple[EmbeddedServer, ...]
    proxy: FaultProxy
    crowd: Crowd
    moderators: tuple[Actor, ...]
    bob: Member
    listener: MediaParticipant
    old_token: str

    @property
    def url(self) -> str:
        """Where people come in."""
        return self.servers[-1].url

    async def server_without_the_room(self) -> EmbeddedServer:
        """The one of LiveKit's on which the meeting is not."""
        async with Redis(port=self.redis.port, db=LIVEKIT_DATABASE, decode_responses=True) as client:
            node = await client.hget("room_node_map", ROOM)
        assert isinstance(node, str)
        own = f'"nodeID":"{node}"'  # others name it too: "selectedNodeID"
        [one] = [server for server in self.servers if not any(own in line for line in server.log_tail)]
        return one

    def ask(self, server: EmbeddedServer) -> None:
        """Have the nodes ask that one from now on."""
        self.proxy.target = urlsplit(server.url).port or 0
        self.proxy.drop()

    async def come_back(self, token: str) -> None:
        """As Bob, to speak, and never to give up."""
        await self.bob.rejoin(token, publish=["microphone"], republish_always=True)

    async def may_speak(self) -> bool:
        """Whether LiveKit lets Bob."""
        return "microphone" in (await self.nodes[-1].may_publish()).get("bob", [])


@asynccontextmanager
async def several(*, servers: int, nodes: int = 2, **settings: object) -> AsyncIterator[Several]:
    """So many nodes and media servers; LiveKit reports to the last node."""
    async with AsyncExitStack() as stack:
        modules: list[ModerationModule] = []

        async def take(body: bytes, authorization: str) -> None:
            with suppress(StoreError, NotEntered):  # all of it ends: LiveKit need not try again
                await modules[-1].receive_webhook(body, authorization)

        enter = stack.enter_async_context
        redis = await enter(RedisServer())
        reports_at = await enter(webhooks_to(take))
        media: list[EmbeddedServer] = []
        for _ in range(servers):
            media.append(
                await enter(
                    EmbeddedServer(
                        path=require(None), webhook_urls=(reports_at,), extra_config=_config(redis, media, servers)
                    )
                )
            )
        first = media[0]
        proxy = await enter(FaultProxy(urlsplit(first.url).port or 0))
        process = await enter(ParticipantProcess())
        crowd = await enter(Crowd())
        chosen: dict[str, Any] = {
            "livekit_url": f"ws://127.0.0.1:{proxy.port}",
            "livekit_api_key": first.api_key,
            "livekit_api_secret": first.api_secret,
            "moderation_store_url": redis.url,
            "moderation_livekit_timeout_s": DEADLINE_S,
            "moderation_sweep_s": 60,
            **settings,
        }
        modules.extend([await enter(ModerationModule(Settings(**chosen))) for _ in range(nodes)])
        stages = tuple(Stage(media[-1], module, process) for module in modules)
        moderators = [
            await stage.join(f"moderator-{number}", Role.MODERATOR, enters_livekit=False)
            for number, stage in enumerate(stages)
        ]
        listener = await stages[0].listener()
        bob = await stages[-1].join("bob", enters_livekit=False)
        member = await crowd.join(media[-1].url, bob.token, publish=["microphone"])
        await listener.heard("bob")
        yield Several(redis, stages, tuple(media), proxy, crowd, tuple(moderators), member, listener, bob.token)


def _config(redis: RedisServer, before: list[EmbeddedServer], servers: int) -> Mapping[str, object]:
    """Of the next media server: several know each other by Redis, and know the same key."""
    if servers == 1:
        return {}
    shared: dict[str, object] = {"redis": {"address": f"127.0.0.1:{redis.port}", "db": LIVEKIT_DATABASE}}
    if before:
        first = before[0]
        shared |= {"keys": {first.api_key: first.api_secret}, "webhook": {"api_key": first.api_key}}
    return shared
