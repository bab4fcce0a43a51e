"""What every test may use."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.redis_server import RedisServer
from tests.meeting_on_fake import MeetingOnFake, meeting_on_fake

for name in [name for name in os.environ if name.startswith(("LIVEKIT_", "MODERATION_"))]:
    del os.environ[name]  # what is set here is for the product, not for its tests


@pytest.fixture(autouse=True)
async def no_task_is_left_behind() -> AsyncIterator[None]:
    """Fail a test that leaves a task running."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if not task.done()} - {asyncio.current_task()}
    if left:
        # One that was just cancelled needs a moment to end.
        await asyncio.wait(left, timeout=1)
    assert not [task for task in left if not task.done()]


@pytest.fixture(autouse=True)
def logging_is_as_before() -> Iterator[None]:
    """Logging is the process's: whoever configures it leaves it as it was."""
    root, ours = logging.getLogger(), logging.getLogger("signaling")
    before = root.handlers[:], root.level, ours.level
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, ours.level = before
    structlog.reset_defaults()


@pytest.fixture
async def redis_url() -> AsyncIterator[str]:
    """Where a real Redis is, with nothing in it."""
    async with RedisServer() as redis:
        yield redis.url


@pytest.fixture
async def fake() -> AsyncIterator[FakeRoomService]:
    """A fake RoomService that gives up quickly where nobody is there to answer."""
    async with FakeRoomService(psrpc_timeout_s=0.05) as service:
        yield service


@pytest.fixture
async def meeting(fake: FakeRoomService) -> AsyncIterator[MeetingOnFake]:
    """A module on the fake."""
    async with meeting_on_fake(fake) as on_fake:
        yield on_fake
