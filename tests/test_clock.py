"""Durations are counted evenly, whatever is done to the system's clock."""

import time
from types import SimpleNamespace

import pytest

import signaling.module
from signaling import WebhookRefused
from signaling.clock import SteadyClock
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import meeting_on_fake
from tests.test_webhooks_on_fake import Post


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


async def test_what_is_used_once_stays_used_when_a_clock_that_was_fast_is_set_right(
    fake: FakeRoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_by_s = 3_600.0

    def wall() -> float:
        return time.time() + fast_by_s

    monkeypatch.setattr(signaling.module, "time", SimpleNamespace(time=wall, perf_counter=time.perf_counter))
    monkeypatch.setattr(signaling.module, "SteadyClock", lambda: SteadyClock(wall))
    async with meeting_on_fake(fake) as meeting:
        post = Post(meeting)
        await meeting.join("bob")
        fast_by_s = 0
        until = wall() + 90
        assert [await meeting.module.use_ticket("a", until=until) for _ in range(3)] == [True, False, False]
        body = post.waiting[-1]
        await post.deliver(body)
        with pytest.raises(WebhookRefused, match="replayed"):
            await post.deliver(body)


async def test_or_when_it_is_fast_for_a_while(fake: FakeRoomService, monkeypatch: pytest.MonkeyPatch) -> None:
    fast_by_s = 0.0

    def wall() -> float:
        return time.time() + fast_by_s

    monkeypatch.setattr(signaling.module, "time", SimpleNamespace(time=wall, perf_counter=time.perf_counter))
    monkeypatch.setattr(signaling.module, "SteadyClock", lambda: SteadyClock(wall))
    async with meeting_on_fake(fake) as meeting:
        until = wall() + 90
        assert await meeting.module.use_ticket("a", until=until)
        fast_by_s = 3_600
        assert await meeting.module.use_ticket("b", until=wall() + 90)
        fast_by_s = 0
        assert not await meeting.module.use_ticket("a", until=until)
