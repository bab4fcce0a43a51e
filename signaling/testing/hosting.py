"""A media server and a stand-alone server, run for tests."""

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from signaling.core.participants import Kind, Participant, Role
from signaling.identifiers import parse_breakout_id, parse_participant_id, parse_room_id
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import find, install, require
from signaling.server.server import ModerationServer
from signaling.server.tickets import make_ticket
from signaling.settings import ServerSettings
from signaling.testing.client import SignalingClient

_FREE_PORT: Final = "127.0.0.1:0"


class RunningServer:
    """
    A stand-alone server that accepts connections.

    Attributes:
        signaling_url: What clients connect to.
        internal_url: Where health and metrics are.
    """

    def __init__(self, server: ModerationServer, settings: ServerSettings) -> None:
        """Made by the fixture `moderation_server`."""
        self.signaling_url: Final = server.signaling_url
        self.internal_url: Final = server.internal_url
        self._settings = settings

    def ticket(
        self,
        room: str,
        participant: str,
        *,
        role: str = "user",
        kind: str = "user",
        name: str | None = None,
        breakout: str | None = None,
    ) -> str:
        """
        Sign a ticket, as a controller would; it works once, within a minute.

        Args:
            role: `guest`, `user` or `moderator`.
            kind: `user`, `guest`, `sip` or `recorder`.
            name: What others see; the id with a capital when nothing is said.

        Raises:
            ValueError: One of these cannot be in a ticket; it says which.
            ConfigurationError: The server's ticket key is a public one, which cannot sign.
        """
        somebody = Participant(
            parse_participant_id(participant),
            role=Role(role),
            kind=Kind(kind),
            display_name=participant.title() if name is None else name,
            breakout=None if breakout is None else parse_breakout_id(breakout),
        )
        key, algorithm = self._settings.moderation_ticket_key, self._settings.moderation_ticket_algorithm
        return make_ticket(key, algorithm, somebody, parse_room_id(room))

    def client(self, room: str, participant: str, **claims: Any) -> SignalingClient:  # noqa: ANN401 - as for `ticket`
        """A client with such a ticket, to be entered by `async with`; it has yet to `join`."""
        return SignalingClient(self.signaling_url, self.ticket(room, participant, **claims))


@asynccontextmanager
async def running_livekit(*, may_install: bool = False) -> AsyncIterator[EmbeddedServer]:
    """
    Run a `livekit-server` of our own, with metrics.

    Args:
        may_install: Build one if there is none.

    Raises:
        MediaServerMissing: There is none; the message names the ways out.
        MediaServerFailed: It could not be built, or it does not answer.
        ConfigurationError: `LIVEKIT_SERVER_PATH` is not a program.
    """
    path = os.environ.get("LIVEKIT_SERVER_PATH")
    configured = Path(path) if path else None
    found = await install(print) if may_install and find(configured) is None else require(configured)
    async with EmbeddedServer(path=found, prometheus=True) as server:
        yield server


@asynccontextmanager
async def running_server(livekit: EmbeddedServer, chosen: Mapping[str, Any]) -> AsyncIterator[RunningServer]:
    """
    Run a stand-alone server on free ports, with a store in memory.

    Args:
        chosen: Settings that are to be different, by their names in lower case.

    Raises:
        ConfigurationError: One of them is wrong; the message names it.
    """
    settings = ServerSettings(
        **{
            "livekit_url": livekit.url,
            "livekit_api_key": livekit.api_key,
            "livekit_api_secret": livekit.api_secret,
            "moderation_ticket_key": secrets.token_urlsafe(32),
            "moderation_listen": _FREE_PORT,
            "moderation_internal_listen": _FREE_PORT,
            "moderation_store_url": "memory:",
            **chosen,
        }
    )
    async with ModerationServer(settings) as server:
        yield RunningServer(server, settings)
