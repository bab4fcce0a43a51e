"""Several nodes on one real Redis: what they hear of each other, and what becomes of faults."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

import signaling.stores.redis.appending
import signaling.stores.redis.store
import signaling.stores.redis.turns
from signaling.core.changes import Ended
from signaling.errors import StoreError, TurnLost
from signaling.identifiers import CommandId, NodeId, RoomId
from signaling.stores.contract import AuditEntry, Commit, Fault, FellBack, FellBehind
from signaling.stores.redis import RedisStore, scripts
from signaling.stores.redis.scripts import Keys
from signaling.stores.serialization import dump_entry
from signaling.testing.redis_server import RedisServer
from tests.core.meetings import ALICE, BOARD
from tests.fault_proxy import FaultProxy
from tests.stores.logs import append, begun, commit, following, hand, large, record


class Node:
    """A store of one node, and what it tells."""

    def __init__(self, url: str) -> None:
        self.store = RedisStore(url)
        self.told: list[Commit] = []
        self.faults: list[Fault] = []
        self.store.listen(self.told.append)
        self.store.listen_to_faults(self.faults.append)

    @property
    def revisions(self) -> list[int]:
        return [each.entry.revision for each in self.told]

    async def follow(self) -> None:
        self.store.follow(BOARD)
        await self.store.read(BOARD)


@asynccontextmanager
async def nodes(*urls: str) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        made = [Node(url) for url in urls]
        for each in made:
            stack.push_async_callback(each.store.close)
            await each.store.open()
        yield made


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def proxy(redis: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis.port) as between:
        yield between


def url_of(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not fact():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.002)


class Calls:
    """How often Redis executes each command meanwhile; by the time it ends."""

    def __init__(self, redis: RedisServer) -> None:
        self._client = Redis.from_url(redis.url)
        self._before: dict[str, int] = {}
        self._after: dict[str, int] = {}

    async def _counted(self) -> dict[str, int]:
        found = await self._client.info("commandstats")
        return {name.removeprefix("cmdstat_"): each["calls"] for name, each in found.items()}

    async def __aenter__(self) -> Self:
        self._before = await self._counted()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._after = await self._counted()
        await self._client.aclose()

    def __getitem__(self, name: str) -> int:
        return self._after.get(name, 0) - self._before.get(name, 0)


def cut(proxy: FaultProxy) -> None:
    """Nothing gets through until it accepts again."""
    proxy.refuse()
    proxy.drop()


# --- Following ---------------------------------------------------------------------------------------------------


async def test_what_one_commits_the_others_are_told_once_and_in_order(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url, redis.url) as [one, other, bystander]:
        await one.follow()
        await other.follow()
        for revision in range(1, 31):
            assert await append((one, other)[revision % 2].store, revision)
        await until(lambda: len(one.told) == len(other.told) == 30)
        assert one.revisions == other.revisions == list(range(1, 31))
        assert one.told == other.told == [commit(revision) for revision in range(1, 31)]
        assert bystander.told == []
        assert await bystander.store.read(BOARD) == record(30)


async def test_who_follows_need_not_ask_and_who_commits_asks_once(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [one, other]:
        for node in (one, other):
            await node.follow()
        await append(one.store, 1)
        await append(one.store, 2)  # by now the script is known
        await until(lambda: other.revisions == [1, 2])
        async with Calls(redis) as calls:
            for revision in range(3, 13):
                await append(one.store, revision)
            await until(lambda: len(other.told) == 12)
        assert other.told == one.told == [commit(revision) for revision in range(1, 13)]
        assert calls["evalsha"] == calls["publish"] == 10, "one call for each commit, and nothing else"
        assert calls["hmget"] == 10, "by the commits themselves"


async def test_what_is_known_without_asking_is_what_was_heard_of(redis: RedisServer, proxy: FaultProxy) -> None:
    async with nodes(redis.url, url_of(proxy.port)) as [one, other]:
        await append(one.store, 1)
        assert await other.store.read(BOARD) == record(1)
        assert other.store.known(BOARD) is None, "it does not follow"
        await other.follow()
        await append(one.store, 2)
        await until(lambda: other.store.known(BOARD) == record(2))
        cut(proxy)
        await until(lambda: not other.store._link.answers)
        assert other.store.known(BOARD) is None, "it is away"


async def test_what_is_too_long_to_be_published_is_asked_for(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [one, other]:
        await append(one.store, 1)
        await other.follow()
        made = large(record(1))
        assert await one.store.append(made)
        after = following(made.record, hand(3))
        assert await one.store.append(after)
        await until(lambda: len(other.told) == 2)
        assert other.told == [made, after]
        assert other.faults == []


async def test_both_write_at_once_and_each_is_told_of_each_once_and_in_order(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url, redis.url) as made:
        for node in made:
            await node.follow()

        async def write(node: Node, most: int) -> None:
            while (newest := await node.store.read(BOARD) or begun()).revision < most:
                await node.store.append(following(newest, hand(newest.revision + 1)))

        await asyncio.gather(*(write(node, 60) for node in made))
        newest = await made[0].store.read(BOARD)
        assert newest is not None
        await until(lambda: all(node.revisions[-1:] == [newest.revision] for node in made))
        for node in made:
            assert node.revisions == list(range(1, newest.revision + 1))
            assert node.told == made[0].told
            assert node.faults == []


async def test_a_notice_that_does_not_follow_what_is_known_is_asked_about(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [one, other]:
        await append(one.store, 1)
        await other.follow()
        told_of = dump_entry(commit(2).entry)
        for claim in (b"2 apart 22", b"4 - 44", b"1 - 11"):
            await one.store._link.call("PUBLISH", scripts.NEWS, b"commit board " + claim + b" 0\n" + told_of)
        await append(one.store, 2)
        await append(one.store, 3)
        await until(lambda: other.revisions == [2, 3])
        assert other.told == [commit(2), commit(3)]
        assert other.faults == []


async def test_a_notice_that_cannot_be_read_is_asked_about(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [one, other]:
        await append(one.store, 1)
        await other.follow()
        newest = (await one.store._link.call("HGET", Keys.of(BOARD).head, "entry")).decode()
        for damaged in (b"{", dump_entry(commit(3).entry), b""):
            await one.store._link.call("PUBLISH", scripts.NEWS, f"commit board 2 {newest} 22 0\n".encode() + damaged)
        await append(one.store, 2)
        await until(lambda: other.revisions == [2])
        assert other.faults == []


async def test_a_meeting_that_is_over_and_begins_again_is_followed_from_its_beginning(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [one, other]:
        await other.follow()
        await append(one.store, 1)
        await until(lambda: other.revisions == [1])
        over = following(record(1), Ended())
        assert await one.store.append(over)
        assert await one.store.forget(BOARD, 2)
        await append(one.store, 1)
        await append(one.store, 2)
        await until(lambda: other.revisions == [1, 2, 1, 2])
        assert other.faults == []


async def test_a_node_that_was_away_makes_up_for_what_it_missed(redis: RedisServer, proxy: FaultProxy) -> None:
    async with nodes(redis.url, url_of(proxy.port)) as [one, other]:
        await append(one.store, 1)
        await other.follow()
        cut(proxy)
        await until(lambda: not other.store._link.answers)
        with pytest.raises(StoreError, match="does not answer"):
            await other.store.read(BOARD)
        for revision in range(2, 6):
            await append(one.store, revision)
        await proxy.accept()
        await until(lambda: other.revisions == [2, 3, 4, 5])
        assert other.faults == []
        await append(other.store, 6)
        assert other.revisions == [2, 3, 4, 5, 6]


async def test_after_it_was_away_each_meeting_is_looked_at_once_and_nobody_is_warned_again(
    redis: RedisServer, proxy: FaultProxy
) -> None:
    rooms = [RoomId(f"room-{number}") for number in range(250)]
    async with nodes(url_of(proxy.port)) as [node]:
        for room in rooms:
            await append(node.store, 1, room)
            node.store.follow(room)
            await node.store.read(room)
        async with Calls(redis) as calls:
            with capture_logs() as logs:
                cut(proxy)
                await until(lambda: not node.store._link.answers)
                await proxy.accept()
                await until(lambda: node.store._news.is_subscribed and node.store._link.answers)
                await asyncio.gather(*node.store._tasks)
        assert calls["hmget"] == len(rooms)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == []


async def test_a_beat_looks_at_a_part_of_many_meetings_and_six_beats_at_all(redis: RedisServer) -> None:
    rooms = [RoomId(f"room-{number}") for number in range(301)]
    async with nodes(redis.url) as [node]:
        for room in rooms:
            await append(node.store, 1, room)
            node.store.follow(room)
            await node.store.read(room)
        async with Calls(redis) as calls:
            await node.store.beat(NodeId("here"), until=5, now=0)
        assert calls["hmget"] == 51
        async with Calls(redis) as calls:
            for _ in range(5):
                await node.store.beat(NodeId("here"), until=5, now=0)
        assert calls["hmget"] == 250


async def test_who_is_away_for_long_says_so(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaling.stores.redis.store, "FOLLOWS_S", 0.2)
    async with nodes(url_of(proxy.port)) as [node]:
        await node.follow()
        cut(proxy)
        await until(lambda: bool(node.faults))
        [fault] = node.faults
        assert isinstance(fault, FellBehind)
        assert fault.room is None
        await proxy.accept()
        await until(lambda: node.store._link.answers)
        assert await append(node.store, 1), "it goes on when Redis is back"


async def test_who_cannot_make_up_for_what_is_kept_no_longer_says_so(
    redis: RedisServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling.stores.redis.appending, "KEEPS_S", 0.0)
    async with nodes(redis.url, url_of(proxy.port)) as [one, other]:
        await append(one.store, 1)
        await other.follow()
        cut(proxy)
        before = record(1)
        for _ in range(5):
            made = large(before)
            assert await one.store.append(made)
            before = made.record
        await proxy.accept()
        await until(lambda: bool(other.faults))
        [fault] = other.faults
        assert isinstance(fault, FellBehind)
        assert fault.room == BOARD
        assert await other.store.read(BOARD) == before


# --- Answers that are lost ---------------------------------------------------------------------------------------


async def test_a_commit_whose_answer_is_lost_is_made_once(redis: RedisServer, proxy: FaultProxy) -> None:
    async with nodes(url_of(proxy.port), redis.url) as [node, other]:
        await node.follow()
        await append(node.store, 1)
        proxy.lose_answer(lambda asked: b"EVALSHA" in asked and b'"revision":2' in asked)
        with capture_logs() as logs:
            assert await append(node.store, 2)
        assert [line["was"] for line in logs if line["event"] == "commit_repeated"] == ["repeated"]
        assert node.revisions == [1, 2]
        assert await other.store.read(BOARD) == record(2)
        assert await append(node.store, 3)


async def test_what_was_written_though_no_answer_ever_came_is_followed(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling.stores.redis.appending, "REPEATS_S", 0.0)
    async with nodes(url_of(proxy.port)) as [node]:
        await node.follow()
        await append(node.store, 1)
        proxy.lose_answer(lambda asked: b"EVALSHA" in asked and b'"revision":2' in asked)
        with pytest.raises(StoreError, match="does not answer"):
            await append(node.store, 2)
        await until(lambda: node.revisions == [1, 2])


# --- Turns -------------------------------------------------------------------------------------------------------


async def test_a_turn_goes_from_node_to_node(redis: RedisServer) -> None:
    steps: list[int] = []
    async with nodes(redis.url, redis.url, redis.url) as made:

        async def take(number: int) -> None:
            async with made[number % 3].store.turn(BOARD) as turn:
                steps.append(number)
                assert turn.lasts(2)
                assert not turn.is_taken_over
                await asyncio.sleep(0)
                assert steps[-1] == number, "nobody else has it meanwhile"

        async with asyncio.timeout(8):  # less than a lease: everybody was woken
            await asyncio.gather(*map(take, range(30)))
    assert sorted(steps) == list(range(30))


async def test_a_turn_whose_holder_is_not_heard_of_is_taken_over_and_its_commits_are_refused(
    redis: RedisServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling.stores.redis.turns, "LEASE_S", 0.5)
    async with nodes(url_of(proxy.port), redis.url) as [stalled, other]:
        async with asyncio.timeout(10):
            async with stalled.store.turn(BOARD) as first:
                assert await stalled.store.append(commit(1), fence=first.fence)
                cut(proxy)
                async with other.store.turn(BOARD) as second:
                    assert second.is_taken_over
                    assert second.fence > first.fence
                    assert not first.lasts(0)
                    await proxy.accept()
                    await until(lambda: stalled.store._link.answers)
                    with capture_logs() as logs, pytest.raises(TurnLost):
                        await stalled.store.append(commit(2), fence=first.fence)
                    assert [line["event"] for line in logs] == ["commit_refused_by_fence"]
                    assert await other.store.append(commit(2), fence=second.fence)
            async with other.store.turn(BOARD) as third:
                assert not third.is_taken_over


async def test_a_turn_is_kept_for_as_long_as_its_holder_is_heard_of(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling.stores.redis.turns, "LEASE_S", 0.3)
    async with nodes(redis.url, redis.url) as [one, other]:
        taken = asyncio.Event()

        async def take() -> None:
            async with other.store.turn(BOARD):
                taken.set()

        async with one.store.turn(BOARD) as turn:
            waiting = asyncio.create_task(take())
            first_end = turn.ends_at  # type: ignore[attr-defined] # what was promised at first
            loop = asyncio.get_running_loop()
            await until(lambda: loop.time() > first_end + 0.3)
            assert turn.lasts(0)
            assert not taken.is_set()
        await asyncio.wait_for(waiting, 5)


# --- A store that lost something ---------------------------------------------------------------------------------


def action(number: int) -> AuditEntry:
    return AuditEntry(CommandId(f"c-{number}"), float(number), ALICE, "force_mute")


def commanded(number: int) -> Commit:
    """A commit of a command."""
    made = following(record(number - 1), hand(number), audit=action(number))
    object.__setattr__(made.entry, "command_id", CommandId(f"c-{number}"))
    return made


async def test_what_a_store_that_fell_back_has_lost_is_named(redis: RedisServer) -> None:
    async with nodes(redis.url) as [node]:
        await node.follow()
        for number in (1, 2):
            assert await node.store.append(commanded(number))
        keys = Keys.of(BOARD)
        kept = {
            key: await node.store._link.call("DUMP", key)
            for key in (keys.head, keys.log, keys.ids, keys.audit, keys.commands)
        }
        for number in (3, 4):
            assert await node.store.append(commanded(number))
        for key, value in kept.items():
            await node.store._link.call("RESTORE", key, 0, value, "REPLACE")
        assert await node.store.read(BOARD) == record(2)
        assert node.faults == [FellBack(BOARD, record(2), (CommandId("c-3"), CommandId("c-4")))]
        assert await node.store.append(commanded(3)), "it goes on from there"


async def test_a_redis_that_lost_everything_is_noticed_by_itself(redis: RedisServer, proxy: FaultProxy) -> None:
    async with nodes(url_of(proxy.port)) as [node]:
        await node.follow()
        for number in (1, 2):
            assert await node.store.append(commanded(number))
        async with nodes(redis.url) as [operator]:
            await operator.store._link.call("FLUSHALL")
        with capture_logs() as logs:
            proxy.drop()
            await until(lambda: bool(node.faults))
        assert node.faults == [FellBack(BOARD, None, (CommandId("c-1"), CommandId("c-2")))]
        assert "store_began_anew" in [line["event"] for line in logs]
        assert await append(node.store, 1)


async def test_two_logs_that_went_apart_are_told_from_each_other(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [node, other]:
        await node.follow()
        for number in (1, 2):
            assert await node.store.append(commanded(number))
        await node.store._link.call("DEL", *(getattr(Keys.of(BOARD), name) for name in Keys.__slots__))
        for number in (1, 2, 3):
            assert await append(other.store, number)
        await until(lambda: bool(node.faults))
        [fault] = node.faults
        assert isinstance(fault, FellBack)
        assert fault.command_ids == (CommandId("c-1"), CommandId("c-2"))
        assert await node.store.read(BOARD) == record(3)


async def test_the_end_of_a_meeting_is_no_loss(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [one, other]:
        await one.follow()
        await other.follow()
        for revision in (1, 2):
            await append(one.store, revision)
        await until(lambda: other.revisions == [1, 2])
        assert await one.store.forget(BOARD, 2)
        assert await other.store.read(BOARD) is None
        assert await append(one.store, 1)
        await until(lambda: other.revisions == [1, 2, 1])
        assert not [fault for fault in one.faults + other.faults if isinstance(fault, FellBack)]


async def test_a_meeting_that_cannot_be_read_is_put_aside_and_the_others_go_on(redis: RedisServer) -> None:
    async with nodes(redis.url) as [node]:
        await append(node.store, 1)
        await node.store._link.call("XADD", Keys.of(BOARD).log, "2-1", "i", "x", "d", "no entry")
        await node.store._link.call("HSET", Keys.of(BOARD).head, "revision", 2, "entry", "x")
        with capture_logs() as logs:
            assert await node.store.read(BOARD) is None
        [line] = [line for line in logs if line["event"] == "meeting_put_aside"]
        assert await node.store._link.call("EXISTS", line["keys"]) == 1
        assert await append(node.store, 1), "it can begin anew"


async def test_a_node_that_meets_a_newer_format_does_nothing_more(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [node, writer]:
        await append(writer.store, 1)
        await node.follow()
        newer = dump_entry(commit(2).entry).replace(b'"format":1', b'"format":2')
        await writer.store._link.call("XADD", Keys.of(BOARD).log, "2-1", "i", "x", "d", newer)
        await writer.store._link.call("HSET", Keys.of(BOARD).head, "revision", 2, "entry", "x")
        await writer.store._link.call("PUBLISH", signaling.stores.redis.scripts.NEWS, f"commit {BOARD}")
        await until(lambda: bool(node.faults))
        [fault] = node.faults
        assert isinstance(fault, FellBehind)
        assert fault.room is None
        for doing in (node.store.check(), node.store.read(BOARD), node.store.beat(NodeId("n"), until=1, now=0)):
            with pytest.raises(StoreError, match="format 2"):
                await doing
        assert await writer.store._link.call("EXISTS", Keys.of(BOARD).log) == 1, "nothing is put aside"


async def test_time_is_that_of_redis(redis: RedisServer) -> None:
    async with nodes(redis.url, redis.url) as [one, other]:
        assert abs(await one.store.time() - await other.store.time()) < 5
