"""The servers of the demo: one in this process, or several in their own, on one Redis and one LiveKit."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.server.internal import WEBHOOK_PATH
from signaling.server.server import ModerationServer
from signaling.settings import ServerSettings
from signaling.testing.node_process import NodeProcess
from signaling.testing.redis_server import RedisServer, free_port

_ELSEWHERE: Final = ("bob", "carol", "mallory")
"""Who connects to other nodes than the first."""


@dataclass(slots=True)
class Node:
    """
    A server.

    Attributes:
        name: As it is shown.
        process: Its own; `None` if it is in this one.
    """

    name: str
    signaling_url: str
    internal_url: str
    process: NodeProcess | None = None
    lives: bool = True

    async def kill(self) -> None:
        """Let it die at once."""
        if self.process is None:
            raise RuntimeError(f"{self.name} is in this process")
        self.lives = False
        await self.process.kill()


@dataclass(frozen=True, slots=True)
class Nodes:
    """
    All of them, and their LiveKit.

    Attributes:
        livekit_keys: With which anything can be signed: key and secret.
        is_reported_to: Whether LiveKit is ours, and tells what happens.
    """

    all: tuple[Node, ...]
    livekit_url: str
    livekit_keys: tuple[str, str]
    is_reported_to: bool

    @property
    def living(self) -> list[Node]:
        """Those that were not killed."""
        return [node for node in self.all if node.lives]

    def of(self, participant: str) -> Node:
        """Where somebody connects to: Alice to the first, the others elsewhere; to the next one when theirs is gone."""
        first = 0
        if participant in _ELSEWHERE and len(self.all) > 1:
            first = 1 + _ELSEWHERE.index(participant) % (len(self.all) - 1)
        return next(node for node in (*self.all[first:], *self.all) if node.lives)


@asynccontextmanager
async def running_nodes(settings: ServerSettings, count: int) -> AsyncIterator[Nodes]:
    """
    Run so many servers.

    Raises:
        RedisMissing: There is none, and several nodes need one.
        RedisFailed, NodeFailed, MediaServerFailed: One of them could not be started.
    """
    if count > 1:
        async with _several(settings, count) as nodes:
            yield nodes
        return
    async with ModerationServer(settings) as server:
        embedded = server.module.embedded
        yield Nodes(
            (Node("the server", server.signaling_url, server.internal_url),),
            server.livekit_url,
            _keys(settings, embedded),
            is_reported_to=embedded is not None,
        )


@asynccontextmanager
async def _several(settings: ServerSettings, count: int) -> AsyncIterator[Nodes]:
    internal = _free_addresses(count)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        embedded = None
        if settings.livekit_url is None:
            # Any node takes a report, and whichever of them is first does what follows; so one may be killed.
            embedded = EmbeddedServer(
                path=require(settings.livekit_server_path),
                webhook_urls=[f"http://{address}{WEBHOOK_PATH}" for address in internal],
            )
            await stack.enter_async_context(embedded)
        key, secret = _keys(settings, embedded)
        shared = {
            "LIVEKIT_URL": settings.livekit_url or ("" if embedded is None else embedded.url),
            "LIVEKIT_API_KEY": key,
            "LIVEKIT_API_SECRET": secret,
            "MODERATION_TICKET_KEY": settings.moderation_ticket_key.get_secret_value(),
            "MODERATION_STORE_URL": redis.url,
            "MODERATION_LISTEN": "127.0.0.1:0",
            "MODERATION_LOG_FORMAT": "console",
            "MODERATION_LOG_LEVEL": "error",
        }
        processes = [
            await stack.enter_async_context(NodeProcess({**shared, "MODERATION_INTERNAL_LISTEN": address}))
            for address in internal
        ]
        nodes = tuple(
            Node(f"node {number}", process.signaling_url, process.internal_url, process)
            for number, process in enumerate(processes, 1)
        )
        try:
            yield Nodes(nodes, processes[0].livekit_url, (key, secret), is_reported_to=embedded is not None)
        finally:
            for node in nodes:  # at once: nothing is kept, and LiveKit reports until it ends itself
                if node.lives:
                    await node.kill()


def _keys(settings: ServerSettings, embedded: EmbeddedServer | None) -> tuple[str, str]:
    if embedded is not None:
        return embedded.api_key, embedded.api_secret
    secret = settings.livekit_api_secret
    return str(settings.livekit_api_key), "" if secret is None else secret.get_secret_value()


def _free_addresses(count: int) -> list[str]:
    """So many, on which nobody listened a moment ago."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return [f"127.0.0.1:{port}" for port in ports]
