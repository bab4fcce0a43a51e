"""Durations are counted evenly, whatever is done to the system's clock."""

import asyncio
import time
from types import SimpleNamespace

import pytest
import structlog

import signaling.module
from signaling import Role, WebhookRefused
from signaling.clock import NodeClock, SteadyClock
from signaling.stores.contract import Store
from signaling.stores.redis import RedisStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.links import SharedStore
from tests.meeting_on_fake import ROOM, meeting_on_fake
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


# --- Several nodes -----------------------------------------------------------------------------------------------

T = 1_780_000_000.0


async def test_a_node_goes_by_the_time_of_the_store() -> None:
    clocks = Clocks()
    clock = NodeClock(SteadyClock(lambda: clocks.wall, lambda: clocks.monotonic), lambda: clocks.wall)
    assert clock() == T

    async def tell() -> float:
        return clocks.wall - 3_600

    await clock.compare(tell)
    assert clock() == pytest.approx(T - 3_600, abs=0.2)
    assert clock.earliest() == clock()
    clocks.pass_time(5)
    assert clock() == pytest.approx(T - 3_595, abs=0.2)
    clocks.wall -= 7_200
    assert clock.earliest() == clocks.wall, "what others have signed is checked by the system's clock"


async def test_what_is_nearly_the_same_makes_the_time_jump_no_more() -> None:
    there = T - 60
    clock = NodeClock(lambda: T, lambda: T)

    async def tell() -> float:
        return there

    await clock.compare(tell)
    exact = clock()
    there += 0.05
    await clock.compare(tell)
    assert clock() == exact
    there += 1
    await clock.compare(tell)
    assert clock() == pytest.approx(there, abs=0.2)


async def test_a_slow_answer_says_nothing_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, loop = NodeClock(lambda: T, lambda: T), asyncio.get_running_loop()

    async def tell() -> float:
        return T

    async def tell_late() -> float:
        began_at = loop.time()
        monkeypatch.setattr(loop, "time", lambda: began_at + 20)
        return T + 600

    await clock.compare(tell)
    await clock.compare(tell_late)
    monkeypatch.undo()
    assert clock() == pytest.approx(T, abs=0.2)


async def test_a_store_of_one_node_tells_no_time() -> None:
    clock = NodeClock(lambda: T, lambda: T)

    async def tell() -> None:
        """There is one node."""

    await clock.compare(tell)
    assert (clock(), clock.differs_s) == (T, None)


async def test_a_clock_that_differs_by_too_much_is_told_once_for_each_change() -> None:
    there = T
    clock = NodeClock(lambda: T, lambda: T)

    async def tell() -> float:
        return there

    with structlog.testing.capture_logs() as logs:
        for ahead_s in (0, 29, 31, 33, -31, -31, 3_600, 5, 0):
            there = T - ahead_s
            await clock.compare(tell)
    assert [(line["event"], line.get("seconds")) for line in logs] == [
        ("clock_differs", 31),
        ("clock_differs", -31),
        ("clock_differs", 3_600),
        ("clock_agrees", None),
    ]
    assert clock.differs_s is None


async def members(store: Store) -> dict[str, float | None]:
    record = await store.read(ROOM)
    assert record is not None
    return {who: member.returns_until for who, member in record.state.members.items()}


@pytest.mark.parametrize("off_s", [60, -60, 3_600, -3_600])
@pytest.mark.parametrize("is_redis", [False, True])
async def test_a_node_whose_clock_is_off_counts_like_the_others(
    fake: FakeRoomService, redis_url: str, off_s: float, *, is_redis: bool
) -> None:
    shared = SharedStore()

    def link() -> Store:
        return RedisStore(redis_url) if is_redis else shared.link(time.time)

    settings = {"moderation_disconnect_grace_s": 20}
    async with (
        meeting_on_fake(fake, store=link(), **settings) as one,
        meeting_on_fake(fake, store=link(), clock=lambda: time.time() + off_s, **settings) as other,
    ):
        await one.join("alice", Role.MODERATOR)
        bob, carol = await other.join("bob"), await other.join("carol")
        for node in (other, one, other, one):
            await node.module._entered.meetings.beat()
        assert await members(one.module._store) == {"alice": None, "bob": None, "carol": None}
        await bob.session.disconnect()
        until = (await members(one.module._store))["bob"]
        assert until == pytest.approx(time.time() + 20, abs=5)
        assert {"bob", "alice"} <= (await members(other.module._store)).keys()
        assert not carol.session.is_over
        assert (one.module.troubles, other.module.troubles) == ({}, {"clock_differs_s": off_s})
        assert await other.module.use_ticket("t-1", until=time.time() + 60)
        assert not await one.module.use_ticket("t-1", until=time.time() + 60)
