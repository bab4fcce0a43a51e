"""A command's own cost, and the stand-alone server against a bare WebSocket server."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
from livekit.api import AccessToken, LiveKitAPI, VideoGrants
from livekit.protocol import room as protocol
from websockets.asyncio.client import ClientConnection

from signaling import ModerationModule, Participant, Role, Settings
from signaling.identifiers import ParticipantId, RoomId
from signaling.messages.envelope import Delivery, parse_frame
from tests.benchmarks.fake_process import FakeProcess, fake_process
from tests.benchmarks.hosts import (
    LIMIT_S,
    Host,
    Listener,
    bare_host,
    fresh_room,
    moderation_host,
    ms_since,
)
from tests.benchmarks.measure import Goal, Options, Row, Sample, Variant, in_turns

_PAIRS: Final = 10
_TRIPS: Final = 100
_OFTEN: Final = 5
"""Times the rounds of others: what takes a moment only is taken often, so that all sides see the same machine."""
_AT_ONCE: Final = (1, 10, 50)
_PING: Final = '{"namespace":"echo","payload":{"action":"ping"}}'
_TOKEN: Final = '{"namespace":"livekit","payload":{"action":"create_new_access_token"}}'
HANDS: Final = {
    b'"hand_is_up":true': '{"namespace":"control","payload":{"action":"raise_hand"}}',
    b'"hand_is_up":false': '{"namespace":"control","payload":{"action":"lower_hand"}}',
}
_TO_ALL: Final = {
    word: 'all {"namespace":"control","timestamp":"2026-03-01T09:30:00.123Z","payload":{"message":"update","id":"p0",'
    '"control":{"display_name":"P0","role":"user","participation_kind":"user",'
    f'{word.decode()},"hand_updated_at":"2026-03-01T09:31:00.123Z","joined_at":"2026-03-01T09:30:00.123Z",'
    '"left_at":null}}}'
    for word in HANDS
}
_TELLS: Final = 5
_FEW: Final = 50
_MANY: Final = 100
_LARGE: Final = 300
_ROOMS: Final = 20


# --- A command's own cost -----------------------------------------------------------------------------------------


async def command(options: Options) -> AsyncIterator[Row]:
    """A process's CPU from a frame's text until all is done, less what the same calls cost without us."""
    with tempfile.TemporaryDirectory() as directory:
        stores = {"memory": "memory:", "SQLite": f"sqlite:///{Path(directory) / 'meetings.sqlite'}"}
        for name, url in stores.items():
            async with _one_live(url, options.connections) as variants:
                taken = await in_turns(variants, options.repeat * _OFTEN)
            fewest, most = min(options.connections), max(options.connections)
            for n in options.connections:
                yield Row(
                    benchmark="command",
                    what="own CPU of a force_mute of one",
                    where=f"{name} store",
                    n=n,
                    unit="ms",
                    measured=taken[str(n)]["own"],
                    baseline=taken[str(n)]["bare"],
                    baseline_is="CPU of the library's list and mute alone",
                    goal=Goal(0.35, "measured") if n == fewest else None,
                )
            if most > fewest:
                yield Row(
                    benchmark="command",
                    what="own CPU of the same in a large meeting",
                    where=f"{name} store",
                    n=most,
                    unit="ms",
                    measured=taken[str(most)]["own"],
                    baseline=taken[str(fewest)]["own"],
                    baseline_is=f"the same in a meeting of {fewest}",
                    goal=Goal(1.5),
                )


@asynccontextmanager
async def _one_live(store_url: str, sizes: Sequence[int]) -> AsyncIterator[dict[str, Variant]]:
    """Meetings of these sizes on the fake; one in each has a live microphone, and is muted in both ways in turn."""
    async with fake_process() as fake, aiohttp.ClientSession() as http:
        settings = Settings(
            livekit_url=fake.url,
            livekit_api_key=fake.api_key,
            livekit_api_secret=fake.api_secret,
            moderation_store_url=store_url,
            moderation_sweep_s=3_600,
        )
        async with ModerationModule(settings) as module:
            rooms = {n: RoomId(f"meeting-of-{n}") for n in sizes}
            yield {str(n): await _muting(module, fake, http, room, n) for n, room in rooms.items()}
            for room in rooms.values():
                await module.close_room(room)


async def _muting(
    module: ModerationModule, fake: FakeProcess, http: aiohttp.ClientSession, room: RoomId, n: int
) -> Variant:
    token = AccessToken(fake.api_key, fake.api_secret).with_grants(VideoGrants(room_admin=True, room=room))
    bare = LiveKitAPI.with_token(token.to_jwt(), fake.url, session=http, failover=False).room
    told: list[str] = []

    def deliver(delivery: Delivery) -> None:
        told.append(delivery.text)

    moderator = await module.join(room, Participant(ParticipantId("m"), role=Role.MODERATOR), deliver=deliver)
    for number in range(n):
        who = ParticipantId(f"p{number}")
        session = await module.join(room, Participant(who, role=Role.USER), deliver=deliver)
        assert session.join_data is not None
        await fake.join(room, who, str(session.join_data["token"]))
    track = await fake.publish(room, "p0", "microphone")
    frame = '{"namespace":"livekit","payload":{"action":"force_mute","participants":["p0"]},"transaction_id":1}'

    async def ours() -> None:
        told.clear()
        parsed = parse_frame(frame)
        await moderator.receive(parsed.namespace.value, parsed.payload, parsed.transaction_id)
        assert "force_muted" in told[0], told

    async def theirs() -> None:
        listed = await bare.list_participants(protocol.ListParticipantsRequest(room=room))
        (sid,) = [track.sid for info in listed.participants for track in info.tracks if not track.muted]
        await bare.mute_published_track(
            protocol.MuteRoomTrackRequest(room=room, identity="p0", track_sid=sid, muted=True)
        )

    async def cost_of(muting: Callable[[], Awaitable[None]]) -> float:
        """With the unmuting, which is the same for both, and during which what is left to do is done."""
        began_at = time.process_time()
        await muting()
        await fake.unmute(room, "p0", track)
        return (time.process_time() - began_at) * 1e3

    async def pairs() -> Sample:
        own, alone = [], []
        for turn in range(_PAIRS):
            if turn % 2:
                took, bare_took = await cost_of(ours), await cost_of(theirs)
            else:
                bare_took, took = await cost_of(theirs), await cost_of(ours)
            own.append(took - bare_took)
            alone.append(bare_took)
        return {"own": own, "bare": alone}

    return pairs


# --- Round trips --------------------------------------------------------------------------------------------------


async def echo(options: Options) -> AsyncIterator[Row]:
    """A ping and its pong."""
    async for row in _round_trips(options, "echo", _PING, _PING, "an echo of `websockets`", Goal(1.2)):
        yield row


async def token(options: Options) -> AsyncIterator[Row]:
    """A new access token."""
    against = "an echo of `websockets` that signs a token"
    async for row in _round_trips(options, "token", _TOKEN, "token", against, Goal(1.5)):
        yield row


async def _round_trips(
    options: Options, name: str, frame: str, bare_frame: str, baseline_is: str, goal: Goal
) -> AsyncIterator[Row]:
    async with moderation_host() as ours, bare_host() as theirs:
        for at_once in _AT_ONCE:
            rooms = [fresh_room() for _ in range(at_once)]
            mine = [await ours.connect(room, "p0") for room in rooms]
            bare = [await theirs.connect(room, "p0") for room in rooms]
            variants = {"server": partial(_trips, mine, frame), "bare": partial(_trips, bare, bare_frame)}
            taken = await in_turns(variants, options.repeat * _OFTEN)
            await asyncio.gather(*(connection.close() for connection in (*mine, *bare)))
            yield Row(
                benchmark=name,
                what="round trip",
                where="connections at once",
                n=at_once,
                unit="ms",
                measured=taken["server"]["trip"],
                baseline=taken["bare"]["trip"],
                baseline_is=baseline_is,
                goal=goal,
            )


async def _trips(connections: list[ClientConnection], frame: str) -> Sample:
    trips: list[float] = []

    async def trip(connection: ClientConnection) -> None:
        for _ in range(max(_TRIPS // len(connections), 10)):
            began_at = time.perf_counter()
            await connection.send(frame)
            await connection.recv()
            trips.append(ms_since(began_at))

    await asyncio.gather(*map(trip, connections))
    return {"trip": trips}


# --- Everybody ----------------------------------------------------------------------------------------------------


async def broadcast(options: Options) -> AsyncIterator[Row]:
    """An event to everybody in a meeting: somebody raises a hand, or lowers it."""
    async with moderation_host() as ours, bare_host() as theirs:
        for n in options.connections:
            room = {fresh_room(): n}
            mine, bare = await ours.fill(room), await theirs.fill(room)
            variants = {"server": telling(mine, HANDS), "bare": telling(bare, _TO_ALL)}
            taken = await in_turns(variants, options.repeat * _OFTEN)
            await ours.empty(mine)
            await theirs.empty(bare)
            yield Row(
                benchmark="broadcast",
                what="event to the last",
                where="one room",
                n=n,
                unit="ms",
                measured=taken["server"]["last"],
                baseline=taken["bare"]["last"],
                baseline_is="`websockets.broadcast` of as much",
                goal=Goal(1.3) if n >= _LARGE else None,
            )


def telling(listeners: Sequence[Listener], frames: Mapping[bytes, str]) -> Variant:
    """The first sends these in turn; how long until the last of the others has heard the word of each."""
    turns = itertools.cycle(frames.items())
    sender, *others = listeners

    async def tell() -> float:
        last: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        waiting = len(others)

        def hear() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                last.set_result(ms_since(began_at))

        word, frame = next(turns)
        for other in others:
            other.listen(word, hear)
        began_at = time.perf_counter()
        sender.send(frame)
        async with asyncio.timeout(LIMIT_S):
            return await last

    async def tell_often() -> Sample:
        return {"last": [await tell() for _ in range(_TELLS)]}

    return tell_often


# --- Joining ------------------------------------------------------------------------------------------------------


async def joins(options: Options) -> AsyncIterator[Row]:
    """Joins a second, 20 in flight."""
    with tempfile.TemporaryDirectory() as directory:
        sqlite = f"sqlite:///{Path(directory) / 'meetings.sqlite'}"
        async with (
            moderation_host() as ours,
            moderation_host(MODERATION_STORE_URL=sqlite) as keeping,
            bare_host() as theirs,
        ):
            for where, rooms in (("one room", 1), (f"{_ROOMS} rooms", _ROOMS)):
                for n in [n for n in options.connections if n >= _MANY] or [max(options.connections)]:
                    variants = {
                        "server": _joining(ours, rooms, n),
                        "SQLite": _joining(keeping, rooms, n),
                        "bare": _joining(theirs, rooms, n),
                    }
                    rates = {name: each["rate"] for name, each in (await in_turns(variants, options.repeat)).items()}
                    connecting = "connections to `websockets` and one echo"
                    yield _joins_row("joins a second", where, n, rates["server"], rates["bare"], connecting, 0.6)
                    memory = "the same with a store in memory"
                    yield _joins_row("joins a second, SQLite", where, n, rates["SQLite"], rates["server"], memory, 0.9)
            if (n := max(options.connections)) > _FEW:
                variants = {"large": _joining(ours, 1, n), "small": _joining(ours, 1, _FEW)}
                taken = await in_turns(variants, options.repeat * _OFTEN)
                large, small = taken["large"]["rate"], taken["small"]["rate"]
                yield _joins_row("joins a second, compared", "one room", n, large, small, f"a room of {_FEW}", 0.5)


def _joins_row(
    what: str, where: str, n: int, measured: Sequence[float], baseline: Sequence[float], baseline_is: str, goal: float
) -> Row:
    return Row(
        benchmark="joins",
        what=what,
        where=where,
        n=n,
        unit="/s",
        measured=measured,
        baseline=baseline,
        baseline_is=baseline_is,
        goal=Goal(goal, at_least=True),
    )


def _joining(host: Host, rooms: int, n: int) -> Variant:
    async def join() -> Sample:
        places = {fresh_room(): max(n // rooms, 1) for _ in range(rooms)}
        began_at = time.perf_counter()
        listeners = await host.fill(places)
        rate = len(listeners) / (time.perf_counter() - began_at)
        await host.empty(listeners)
        return {"rate": rate}

    return join
