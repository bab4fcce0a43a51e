"""What every whole meeting needs."""

from collections.abc import AsyncIterator

import pytest

from tests.meetings.stage import Stage, stage


@pytest.fixture
async def meeting() -> AsyncIterator[Stage]:
    """An empty meeting on a real media server."""
    async with stage() as built:
        yield built
