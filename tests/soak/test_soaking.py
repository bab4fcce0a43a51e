"""A short soak: three nodes on a real Redis, each fault that is needed once, and nothing may be wrong."""

import asyncio
import os
from pathlib import Path
from typing import Final

import pytest

from tests.soak.soaking import Soak
from tests.soak.sound import FakeSound

_WITHIN_S: Final = 240


async def test_nothing_is_lost_and_all_that_must_be_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("LIVEKIT_", "MODERATION_"))]:
        monkeypatch.delenv(name)
    soak = Soak(tmp_path, FakeSound(), seed=12, seconds=0, rooms=4, room_size=9, pause_s=5, say=print)
    async with asyncio.timeout(_WITHIN_S):
        report = await soak.run()
    assert report.failures == []
    assert all(report.seen.values())
    assert report.acknowledged > 50
