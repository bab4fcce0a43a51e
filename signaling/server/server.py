"""The stand-alone server: the module, with a WebSocket and an internal HTTP server around it."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from signaling.module import ModerationModule
from signaling.server.internal import WEBHOOK_PATH, InternalServer
from signaling.server.websocket import Timing, WebSocketServer
from signaling.settings import ServerSettings

DEFAULT_TIMING: Final = Timing()


class ModerationServer:
    """
    Moderation as a server of its own; an asynchronous context manager that accepts connections inside.

    Leaving it answers what was begun, closes all connections with 1012, which tells clients to come back, and keeps
    their places for them to come back here or on another node.

    Args:
        module: Used instead of one that the server makes from the settings; whoever gives it enters and leaves it, and
            lets nobody in by it any more when the server has been left.
        timing: How long a client may do nothing.

    Raises:
        ConfigurationError: A setting is wrong; a port that is taken is found when entering.
    """

    def __init__(
        self, settings: ServerSettings, *, module: ModerationModule | None = None, timing: Timing = DEFAULT_TIMING
    ) -> None:
        self._owns_module = module is None
        self.module = module or ModerationModule(settings)
        self._websocket = WebSocketServer(settings, self.module, timing=timing)
        self._internal = InternalServer(
            settings.moderation_internal_listen,
            self.module,
            lambda: self._websocket.is_listening,
            token=settings.moderation_internal_token,
            hosts=(settings.moderation_internal_hosts or frozenset()) | _host_of(settings.moderation_webhook_url),
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._internal)
            if self._owns_module:
                self.module.take_webhooks_at(f"{self._internal.url}{WEBHOOK_PATH}")
                await stack.enter_async_context(self.module)
            await stack.enter_async_context(self._websocket)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def connections(self) -> int:
        """How many connections clients have, those that are being opened included."""
        return self._websocket.connections

    @property
    def signaling_url(self) -> str:
        """What clients connect to."""
        return self._websocket.url

    @property
    def internal_url(self) -> str:
        """Where health, metrics and the controller API are."""
        return self._internal.url

    @property
    def livekit_url(self) -> str:
        """What clients are told to use as LiveKit."""
        return self.module.public_url


def _host_of(url: str | None) -> frozenset[str]:
    host = None if url is None else urlsplit(url).hostname
    return frozenset() if host is None else frozenset({host})
