"""The stand-alone server: the module, with a WebSocket and an internal HTTP server around it."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from signaling.module import ModerationModule
from signaling.server.connection import Limits
from signaling.server.handshake import Origins
from signaling.server.internal import InternalServer
from signaling.server.tickets import Tickets
from signaling.server.websocket import WebSocketServer
from signaling.settings import ServerSettings


class ModerationServer:
    """
    Moderation as a server of its own; an asynchronous context manager that accepts connections inside.

    Leaving it closes all connections with 1012, which tells clients to come back, and keeps their places.

    Args:
        module: Used instead of one that the server makes from the settings; whoever gives it enters and leaves it.
        join_timeout_s: How long a connection may take to join.

    Raises:
        ConfigurationError: A setting is wrong; a port that is taken is found when entering.
    """

    def __init__(
        self, settings: ServerSettings, *, module: ModerationModule | None = None, join_timeout_s: float = 10
    ) -> None:
        self._owned = ModerationModule(settings) if module is None else None
        self.module = module or self._owned or ModerationModule(settings)
        limits = Limits(settings.moderation_rate_per_s, settings.moderation_rate_burst, join_timeout_s)
        self._websocket = WebSocketServer(
            settings.moderation_listen,
            self.module,
            Tickets(settings.moderation_ticket_key, settings.moderation_ticket_algorithm),
            Origins(settings.moderation_allowed_origins, settings.moderation_listen.host),
            limits,
        )
        self._internal = InternalServer(
            settings.moderation_internal_listen, self.module, lambda: self._websocket.is_listening
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._internal)
            if self._owned is not None:
                await stack.enter_async_context(self._owned)
            await stack.enter_async_context(self._websocket)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def signaling_url(self) -> str:
        """What clients connect to."""
        return self._websocket.url

    @property
    def internal_url(self) -> str:
        """Where health and metrics are."""
        return self._internal.url

    @property
    def livekit_url(self) -> str:
        """What clients are told to use as LiveKit."""
        return self.module.public_url
