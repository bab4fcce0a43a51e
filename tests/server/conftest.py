"""What the server's tests share."""

from collections.abc import AsyncIterator

import pytest

from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from tests.server.hosting import Hosted, hosted


@pytest.fixture
async def livekit() -> AsyncIterator[EmbeddedServer]:
    """A media server."""
    async with EmbeddedServer(path=require(None)) as server:
        yield server


@pytest.fixture
async def host(livekit: EmbeddedServer) -> AsyncIterator[Hosted]:
    """A server on a media server."""
    async with hosted(livekit) as running:
        yield running


@pytest.fixture
async def door() -> AsyncIterator[Hosted]:
    """A server without a media server, for what comes before joining."""
    async with hosted() as running:
        yield running
