"""Two nodes on one Redis, real processes: stopped and started one after the other under load, and an older version."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.exceptions import ConnectionClosed

from signaling import Participant, Role
from signaling.identifiers import ParticipantId, RoomId
from signaling.server import make_ticket
from signaling.stores.redis import scripts
from signaling.stores.redis.scripts import Keys
from signaling.testing.client import NotTold, SignalingClient, SignalingRefused
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import until
from tests.meetings.serving import KEY, ROOM, Serving
from tests.redis_server import RedisServer

LIMIT_S = 60
TOKEN = "what the controller shows"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
PEOPLE = 6


@asynccontextmanager
async def two_nodes(
    directory: Path, **settings: str
) -> AsyncIterator[tuple[RedisServer, FakeRoomService, tuple[Serving, Serving]]]:
    async with RedisServer(directory / "redis") as redis, FakeRoomService() as fake, AsyncExitStack() as stack:
        nodes = []
        for name in ("one", "other"):
            (directory / name).mkdir()
            node = Serving(
                fake,
                directory / name,
                MODERATION_STORE_URL=redis.url,
                MODERATION_INTERNAL_TOKEN=TOKEN,
                MODERATION_DISCONNECT_GRACE_S="60",
                MODERATION_RATE_PER_S="10000",
                MODERATION_RATE_BURST="10000",
                **settings,
            )
            await node.start()
            stack.push_async_callback(node.end, signal.SIGKILL)
            nodes.append(node)
        yield redis, fake, (nodes[0], nodes[1])


def ticket(name: str, role: Role, room: RoomId = ROOM) -> str:
    return make_ticket(KEY, "HS256", Participant(ParticipantId(name), role), room)


def number_of(people: Sequence[str]) -> int:
    """The number of a restriction, which is the name of the one whom it leaves out."""
    (name,) = people
    return int(name.removeprefix("n"))


class Somebody:
    """A client that comes back whenever it is told to, on whichever node lets it in."""

    def __init__(self, name: str, role: Role, nodes: Sequence[Serving]) -> None:
        self.name = name
        self.role = role
        self.runs: list[list[int]] = []
        """Of each connection: the restriction that it found, and those that it was told of."""
        self.codes: list[int | None] = []
        self.left: list[dict[str, Any]] = []
        self.client: SignalingClient | None = None
        self._nodes = nodes
        self._turn = count(len(name))
        self._is_done = False

    async def stay(self) -> None:
        """Be in the meeting until it is over."""
        while not self._is_done:
            node = self._nodes[next(self._turn) % len(self._nodes)]
            client = SignalingClient(node.signaling_url, ticket(self.name, self.role))
            try:
                async with client:
                    found = (await client.join())["livekit"]["microphone_restriction_state"]
                    begun = len(client.inbox)
                    self.client = client
                    await client.connection.wait_closed()
                    self.codes.append(client.connection.close_code)
            except (OSError, SignalingRefused, ConnectionClosed, NotTold):
                await asyncio.sleep(0.02)
                continue
            finally:
                self.client = None
            told = [
                number_of(each["unrestricted_participants"]) for each in client.told("microphone_restrictions_enabled")
            ]
            first = [number_of(found["unrestricted_participants"])] if found["type"] == "enabled" else [0]
            assert begun > 0
            self.runs.append(first + told)
            self.left += client.told("left", "control")

    async def go(self) -> None:
        self._is_done = True
        if self.client is not None:
            await self.client.close(3_000)


async def moderate(alice: Somebody, acknowledged: list[str], enough: asyncio.Event) -> None:
    """Restrict again and again, each time one number higher; what is answered is acknowledged."""
    numbers: Iterator[int] = count(1)
    while not enough.is_set():
        client = alice.client
        if client is None:
            await asyncio.sleep(0.005)
            continue
        command = asyncio.create_task(
            client.command("enable_microphone_restrictions", unrestricted_participants=[f"n{next(numbers)}"])
        )
        gone = asyncio.create_task(client.connection.wait_closed())
        await asyncio.wait({command, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not command.done():
            command.cancel()
        result = (await asyncio.gather(command, return_exceptions=True))[0]
        if isinstance(result, dict) and "error" not in result:
            acknowledged.append(result["command_id"])
        else:
            assert isinstance(result, dict | ConnectionClosed | asyncio.CancelledError), result
            assert not isinstance(result, dict) or result["error"] == "unavailable"


async def audit(node: Serving) -> list[dict[str, Any]]:
    """All that the meeting's audit keeps, oldest first."""
    entries: list[dict[str, Any]] = []
    async with aiohttp.ClientSession(headers=AUTHORIZATION) as http:
        while True:
            before = {"before": entries[-1]["command_id"]} if entries else {}
            async with http.get(
                f"{node.internal_url}/v1/rooms/{ROOM}/audit", params={"limit": "100", **before}
            ) as answer:
                assert answer.status == 200, await answer.text()
                page = (await answer.json())["entries"]
            entries += page
            if not page:
                return entries[::-1]


async def test_nodes_that_are_rolled_over_one_after_the_other_lose_no_command_and_no_event(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    enough = asyncio.Event()
    async with two_nodes(tmp_path) as (_, _, nodes), asyncio.timeout(LIMIT_S):
        alice = Somebody("alice", Role.MODERATOR, nodes)
        people = [alice, *(Somebody("p" * number, Role.USER, nodes) for number in range(1, PEOPLE))]
        staying = [asyncio.create_task(somebody.stay()) for somebody in people]
        await until(lambda: all(somebody.client for somebody in people), LIMIT_S)
        moderating = asyncio.create_task(moderate(alice, acknowledged, enough))
        for node in nodes:
            before = len(acknowledged)
            await until(lambda before=before: len(acknowledged) > before + 10, LIMIT_S)  # type: ignore[misc]
            assert await node.end(signal.SIGTERM) == 0
            await until(lambda: all(somebody.client for somebody in people), LIMIT_S)
            before = len(acknowledged)
            await until(lambda before=before: len(acknowledged) > before + 10, LIMIT_S)  # type: ignore[misc]
            await node.start()
        enough.set()
        await moderating
        kept = [entry["command_id"] for entry in await audit(nodes[0])]
        for somebody in people:
            await somebody.go()
        await asyncio.gather(*staying)

    assert len(acknowledged) > 40
    assert len(kept) == len(set(kept)), "each once"
    assert [each for each in acknowledged if each not in set(kept)] == []
    codes = [code for somebody in people for code in somebody.codes]
    assert 1012 in codes
    assert set(codes) <= {1012, 3_000}
    committed = sorted({number for somebody in people for run in somebody.runs for number in run})
    for somebody in people:
        assert len(somebody.runs) > 1
        for run in somebody.runs:
            begin, end = committed.index(run[0]), committed.index(run[-1])
            assert run == committed[begin : end + 1], "what it found, and then each event once, in order"
        assert somebody.left == []
    for node in nodes:
        events = [json.loads(line)["event"] for line in node.log.splitlines()]
        assert not {"stopped_unfinished", "given_up_at_stop", "turns_left_unfinished", "hand_over_failed"} & set(events)


async def test_an_older_version_that_meets_a_newer_format_goes_out_of_service(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (redis, _, (one, _)), asyncio.timeout(LIMIT_S), AsyncExitStack() as stack:
        elsewhere = RoomId("elsewhere")
        bob = await stack.enter_async_context(SignalingClient(one.signaling_url, ticket("bob", Role.USER)))
        eve = await stack.enter_async_context(SignalingClient(one.signaling_url, ticket("eve", Role.USER, elsewhere)))
        await bob.join()
        await eve.join()
        keys = Keys.of(ROOM)
        revision = int(str(await redis.ask("HGET", keys.head, "revision")))
        newer = json.dumps({"format": 1_000, "revision": revision + 1, "kind of entry": "that nobody knows yet"})
        await redis.ask("XADD", keys.log, f"{revision + 1}-1", "i", "x", "d", newer)
        await redis.ask("HSET", keys.head, "revision", revision + 1, "entry", "x")
        await redis.ask("PUBLISH", scripts.NEWS, f"commit {ROOM}")
        assert await bob.closed(LIMIT_S) == 1012
        assert await eve.closed(LIMIT_S) == 1012, "all of the node, not one meeting"
        async with aiohttp.ClientSession() as http, http.get(f"{one.internal_url}/readyz") as answer:
            assert answer.status == 503
            assert (await answer.json())["store"] is False
        with pytest.raises(SignalingRefused, match="503"):
            async with SignalingClient(one.signaling_url, ticket("carol", Role.USER, elsewhere)):
                pass
        assert await redis.ask("HGET", keys.head, "revision") == str(revision + 1), "left as it was found"


@pytest.mark.parametrize("hung", ["LiveKit", "the store"])
async def test_a_node_ends_by_itself_though_what_it_needs_hangs(tmp_path: Path, hung: str) -> None:
    async with (
        two_nodes(tmp_path, MODERATION_LIVEKIT_TIMEOUT_S="5") as (redis, fake, (one, _)),
        asyncio.timeout(LIMIT_S),
        SignalingClient(one.signaling_url, ticket("alice", Role.MODERATOR)) as alice,
        AsyncExitStack() as stack,
    ):
        fake.join(ROOM, "alice", token=(await alice.join())["livekit"]["token"])
        fake.publish(ROOM, "alice", "microphone")
        if hung == "the store":
            redis.pause()
            stack.callback(redis.resume)
            await alice.send("force_mute", participants=["alice"])
        else:
            hanging = stack.enter_context(fake.hang(method="MutePublishedTrack"))
            await alice.send("force_mute", participants=["alice"])
            await hanging.hit()
        await alice.send("ping", namespace="echo")
        await alice.wait_for("pong", namespace="echo")
        assert await one.end(signal.SIGTERM) == 0
        assert await alice.closed() == 1012
    assert "stopped_unfinished" not in one.log
