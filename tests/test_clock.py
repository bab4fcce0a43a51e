"""Durations are counted evenly, whatever is done to the system's clock."""

import time

import pytest

import signaling.module
from signaling.clock import SteadyClock
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import meeting_on_fake


class Clocks:
    """The system's clock, and one that cannot be set."""

    def __init__(self) -> None:
        self.wall = 1_780_000_000.0
        self.monotonic = 50.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_it_begins_with_the_systems_clock_and_advances_evenly() -> None:
    clocks = Clocks()
    clock = SteadyClock(lambda: clocks.wall, lambda: clocks.monotonic)
    assert clock() == 1_780_000_000
    clocks.pass_time(7)
    clocks.wall -= 3_600
    assert clock() == 1_780_000_007
    clocks.wall += 7_200
    assert clock() == 1_780_000_007


async def test_a_step_of_the_systems_clock_makes_no_time_to_come_back_longer_or_shorter(
    fake: FakeRoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(signaling.module, "SteadyClock", lambda: SteadyClock(lambda: clocks.wall, time.monotonic))
    async with meeting_on_fake(fake, moderation_disconnect_grace_s=0.2) as meeting:
        alice, bob = await meeting.join("alice"), await meeting.join("bob")
        clocks.wall -= 3_600
        await bob.session.disconnect()
        assert (await alice.until_told("left", "control"))["reason"] == "timeout"
        assert 0 <= meeting.module.timestamp() - 1_780_000_000 < 60
