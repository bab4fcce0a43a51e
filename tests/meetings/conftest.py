"""What every whole meeting needs."""

from collections.abc import AsyncIterator

import pytest

from tests.meetings import cheating
from tests.meetings.cheating import Scene
from tests.meetings.stage import Stage, stage


@pytest.fixture
async def meeting() -> AsyncIterator[Stage]:
    """An empty meeting on a real media server."""
    async with stage() as built:
        yield built


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """A meeting with somebody who is about to cheat; LiveKit reports what happens."""
    async with cheating.scene() as built:
        yield built
