"""A command's own cost, and the stand-alone server against a bare WebSocket server."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
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
from signaling.testing.fake_room_service import FakeRoomService
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

_ROOM: Final = RoomId("meeting")
_PAIRS: Final = 10
_TRIPS: Final = 100
_OFTEN: Final = 5
"""Times the rounds of others: what takes a moment only is taken often, so that all sides see the same machine."""
_AT_ONCE: Final = (1, 10, 50)
_PING: Final = '{"namespace":"echo","payload":{"action":"ping"}}'
_TOKEN: Final = '{"namespace":"livekit","payload":{"action":"create_new_access_token"}}'
_HANDS: Final = {
    b'"hand_is_up":true': '{"namespace":"control","payload":{"action":"raise_hand"}}',
    b'"hand_is_up":false': '{"namespace":"control","payload":{"action":"lower_hand"}}',
}
_TO_ALL: Final = {
    word: 'all {"namespace":"control","timestamp":"2026-03-01T09:30:00.123Z","payload":{"message":"update","id":"p0",'
    '"control":{"display_name":"P0","role":"user","participation_kind":"user",'
    f'{word.decode()},"hand_updated_at":"2026-03-01T09:31:00.123Z","joined_at":"2026-03-01T09:30:00.123Z",'
    '"left_at":null}}}'
    for word in _HANDS
}
_TELLS: Final = 5
_MANY: Final = 100
_LARGE: Final = 300
_ROOMS: Final = 20


# --- A command's own cost -----------------------------------------------------------------------------------------


async def command(options: Options) -> AsyncIterator[Row]:
    """From a frame's text to the last event's text, less what the same calls cost without us."""
    with tempfile.TemporaryDirectory() as directory:
        stores = {"memory": "memory:", "SQLite": f"sqlite:///{Path(directory) / 'meetings.sqlite'}"}
        for name, url in stores.items():
            for n in options.connections:
                async with _one_live(url, n) as variant:
                    taken = await in_turns({"pairs": variant}, options.repeat * _OFTEN)
                yield Row(
                    benchmark="command",
                    what="force_mute of one, own cost",
                    where=f"{name} store",
                    n=n,
                    unit="ms",
                    measured=taken["pairs"]["own"],
                    baseline=taken["pairs"]["bare"],
                    baseline_is="the library's list and mute alone",
                    goal=Goal(0.5, "measured") if name == "memory" and n == min(options.connections) else None,
                )


@asynccontextmanager
async def _one_live(store_url: str, n: int) -> AsyncIterator[Variant]:
    """So many in a meeting on the fake, one of them with a live microphone, who is muted in both ways in turn."""
    async with FakeRoomService() as fake, aiohttp.ClientSession() as http:
        settings = Settings(
            livekit_url=fake.url,
            livekit_api_key=fake.api_key,
            livekit_api_secret=fake.api_secret,
            moderation_store_url=store_url,
            moderation_sweep_s=3_600,
        )
        token = AccessToken(fake.api_key, fake.api_secret).with_grants(VideoGrants(room_admin=True, room=_ROOM))
        bare = LiveKitAPI.with_token(token.to_jwt(), fake.url, session=http, failover=False).room
        told: list[str] = []

        def deliver(delivery: Delivery) -> None:
            told.append(delivery.text)

        async with ModerationModule(settings) as module:
            moderator = await module.join(_ROOM, Participant(ParticipantId("m"), role=Role.MODERATOR), deliver=deliver)
            for number in range(n):
                who = ParticipantId(f"p{number}")
                session = await module.join(_ROOM, Participant(who, role=Role.USER), deliver=deliver)
                assert session.join_data is not None
                fake.join(_ROOM, who, token=str(session.join_data["token"]))
            track = fake.publish(_ROOM, "p0", "microphone")
            frame = '{"namespace":"livekit","payload":{"action":"force_mute","participants":["p0"]},"transaction_id":1}'

            async def ours() -> float:
                told.clear()
                began_at = time.perf_counter()
                parsed = parse_frame(frame)
                await moderator.receive(parsed.namespace.value, parsed.payload, parsed.transaction_id)
                took_ms = ms_since(began_at)
                assert "force_muted" in told[0], told
                fake.unmute(_ROOM, "p0", track)
                return took_ms

            async def theirs() -> float:
                began_at = time.perf_counter()
                listed = await bare.list_participants(protocol.ListParticipantsRequest(room=_ROOM))
                (sid,) = [track.sid for info in listed.participants for track in info.tracks if not track.muted]
                await bare.mute_published_track(
                    protocol.MuteRoomTrackRequest(room=_ROOM, identity="p0", track_sid=sid, muted=True)
                )
                took_ms = ms_since(began_at)
                fake.unmute(_ROOM, "p0", track)
                return took_ms

            async def pairs() -> Sample:
                own, alone = [], []
                for turn in range(_PAIRS):
                    if turn % 2:
                        took, bare_took = await ours(), await theirs()
                    else:
                        bare_took, took = await theirs(), await ours()
                    own.append(took - bare_took)
                    alone.append(bare_took)
                fake.calls.clear()
                return {"own": own, "bare": alone}

            yield pairs
            await module.close_room(_ROOM)


# --- Round trips --------------------------------------------------------------------------------------------------


async def echo(options: Options) -> AsyncIterator[Row]:
    """A ping and its pong."""
    async for row in _round_trips(options, "echo", _PING, _PING, "an echo of `websockets`"):
        yield row


async def token(options: Options) -> AsyncIterator[Row]:
    """A new access token."""
    async for row in _round_trips(options, "token", _TOKEN, "token", "an echo of `websockets` that signs a token"):
        yield row


async def _round_trips(
    options: Options, name: str, frame: str, bare_frame: str, baseline_is: str
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
                goal=Goal(1.5),
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
            variants = {"server": _telling(mine, _HANDS), "bare": _telling(bare, _TO_ALL)}
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


def _telling(listeners: Sequence[Listener], frames: Mapping[bytes, str]) -> Variant:
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
    async with moderation_host() as ours, bare_host() as theirs:
        for where, rooms, goal in (("one room", 1, 500), (f"{_ROOMS} rooms", _ROOMS, 900)):
            for n in [n for n in options.connections if n >= _MANY] or [max(options.connections)]:
                variants = {"server": _joining(ours, rooms, n), "bare": _joining(theirs, rooms, n)}
                taken = await in_turns(variants, options.repeat)
                yield Row(
                    benchmark="joins",
                    what="joins a second",
                    where=where,
                    n=n,
                    unit="/s",
                    measured=taken["server"]["rate"],
                    baseline=taken["bare"]["rate"],
                    baseline_is="connections to `websockets` and one echo",
                    goal=Goal(goal, "measured", at_least=True),
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
