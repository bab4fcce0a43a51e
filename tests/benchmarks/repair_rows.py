"""How soon LiveKit is right again, and what it costs to see that it is."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import aiohttp
from livekit.api import AccessToken, LiveKitAPI, TokenVerifier, VideoGrants, WebhookReceiver
from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling import Delivery, ModerationModule, Participant, Role, Settings
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.testing.fake_room_service import Change, FakeRoomService
from signaling.testing.participants import participant_token
from signaling.testing.webhooks import sign_webhook, webhook_of
from tests.benchmarks.full_room import full_room
from tests.benchmarks.hosts import AT_ONCE, ModerationHost, cpu_s, fresh_room, in_flight, moderation_host
from tests.benchmarks.measure import Goal, Options, Row, Sample, Variant, in_turns
from tests.crowd.crowd import Crowd, Join, Member
from tests.meetings.stage import webhooks_to

_OFTEN: Final = 10
_ROUNDS_OF_JOINS: Final = 5
_RIGHT_MS: Final = 50
_LIVE: Final = 0.1
_LARGE: Final = 300
_ROOM_SIZE: Final = 50
_JOIN_CPU: Final = "CPU of a join, LiveKit and the server"
_JOIN_CPU_OF_SERVER: Final = "CPU of a join, the server alone"
_RESTRICTED: Final = ("camera", "screen_share", "screen_share_audio")
_FREE: Final = ("camera", "microphone", "screen_share", "screen_share_audio")


async def repair(options: Options) -> AsyncIterator[Row]:
    """From what LiveKit reports until it is right, and what reports and sweeps cost when nothing is wrong."""
    async with _old_token() as variants:
        taken = await in_turns(variants, options.repeat * _OFTEN)
    for since in ("webhook", "join"):
        yield Row(
            benchmark="repair",
            what=f"from the {since} until LiveKit is right",
            where="an old token",
            n=1,
            unit="ms",
            measured=taken["module"][since],
            baseline=taken["bare"].get(since, ()),
            baseline_is="the library's call, until who it is about is told",
            goal=Goal(_RIGHT_MS, "p95"),
        )
    for n in options.rooms:
        async with full_room(n, live=round(n * _LIVE)) as room:
            taken = await in_turns({"module": room.sweep, "bare": room.list_bare}, options.repeat * _OFTEN)
        cheap = Goal(2) if n >= _LARGE else None
        for what, unit, goal in (("calls", "calls", Goal(1, "measured")), ("time", "ms", None), ("CPU", "ms", cheap)):
            yield Row(
                benchmark="repair",
                what=f"{what} of a sweep",
                where="nothing to repair, a tenth live",
                n=n,
                unit=unit,
                measured=taken["module"][what],
                baseline=taken["bare"][what],
                baseline_is="the library's list alone",
                goal=goal,
            )
    n = max(options.connections)
    async with _joins_reported(n) as variants:
        taken = await in_turns(variants, options.repeat * _OFTEN)
    for what, unit in (("reports of joins a second", "/s"), ("CPU of a report", "ms")):
        yield Row(
            benchmark="repair",
            what=what,
            where=f"nothing to repair, rooms of {_ROOM_SIZE}",
            n=n,
            unit=unit,
            measured=taken["module"][what],
            baseline=taken["bare"][what],
            baseline_is="the library's verifying and reading alone",
        )
    n = min(n, _ROOM_SIZE)
    async with _joining(n) as variants:
        taken = await in_turns(variants, options.repeat * _ROUNDS_OF_JOINS)
    for what, unit in (("joins a second", "/s"), (_JOIN_CPU, "ms"), (_JOIN_CPU_OF_SERVER, "ms")):
        yield Row(
            benchmark="repair",
            what=what,
            where="LiveKit, with webhooks",
            n=n,
            unit=unit,
            measured=taken["told"][what],
            baseline=taken["untold"].get(what, ()),
            baseline_is="the same without webhooks",
        )


def _module_on(server: EmbeddedServer | FakeRoomService) -> ModerationModule:
    settings = Settings(
        livekit_url=server.url,
        livekit_api_key=server.api_key,
        livekit_api_secret=server.api_secret,
        moderation_sweep_s=3_600,
    )
    return ModerationModule(settings)


def _to_nobody(_: Delivery) -> None:
    """Nobody reads it."""


# --- Until LiveKit is right ---------------------------------------------------------------------------------------


@asynccontextmanager
async def _old_token() -> AsyncIterator[dict[str, Variant]]:
    """Somebody restricted who returns with a token of before, and somebody whom the library alone restricts."""
    arrived_at: dict[str, float] = {}

    async def take(body: bytes, authorization: str) -> None:
        now = time.monotonic()
        await module.receive_webhook(body, authorization)
        report = json.loads(body)
        if report["event"] == "participant_joined":
            arrived_at[report["participant"]["sid"]] = now

    room, elsewhere = RoomId(fresh_room()), fresh_room()
    async with (
        webhooks_to(take) as url,
        EmbeddedServer(path=require(None), webhook_urls=[url]) as server,
        _module_on(server) as module,
        aiohttp.ClientSession() as http,
        Crowd() as crowd,
    ):
        await module.join(room, Participant(ParticipantId("bob"), role=Role.USER), deliver=_to_nobody)
        alice = Participant(ParticipantId("alice"), role=Role.MODERATOR)
        moderator = await module.join(room, alice, deliver=_to_nobody)
        restrict = {"action": "enable_microphone_restrictions", "unrestricted_participants": []}
        await moderator.receive("livekit", restrict)
        grants = VideoGrants(room_admin=True, room_create=True, room=elsewhere)
        admin = AccessToken(server.api_key, server.api_secret).with_grants(grants).to_jwt()
        bare = LiveKitAPI.with_token(admin, server.http_url, session=http, failover=False).room
        await bare.create_room(protocol.CreateRoomRequest(name=elsewhere))
        old_token, token_elsewhere = (
            participant_token(server.api_key, server.api_secret, place, "bob", can_publish_sources=_FREE)
            for place in (room, elsewhere)
        )
        bob, other = await crowd.join(server.url, old_token), await crowd.join(server.url, token_elsewhere)

        async def module_repairs() -> Sample:
            began_at = time.monotonic()
            await bob.rejoin(old_token)
            right_at = await _told_at(bob, _RESTRICTED, began_at)
            joined_at = (await bob.wait_for("joined", since=began_at)).at
            return {"webhook": (right_at - arrived_at[bob.sid]) * 1e3, "join": (right_at - joined_at) * 1e3}

        async def library_calls() -> Sample:
            async def allow(sources: Sequence[str]) -> float:
                began_at = time.monotonic()
                permission = models.ParticipantPermission(
                    can_publish=True, can_subscribe=True, can_publish_sources=[source.upper() for source in sources]
                )
                request = protocol.UpdateParticipantRequest(room=elsewhere, identity="bob", permission=permission)
                await bare.update_participant(request)
                return (await _told_at(other, sources, began_at) - began_at) * 1e3

            took_ms = await allow(_RESTRICTED)
            await allow(_FREE)
            return {"webhook": took_ms}

        yield {"module": module_repairs, "bare": library_calls}


async def _told_at(member: Member, sources: Sequence[str], since: float) -> float:
    """When they were told that they may publish these."""
    return (await member.wait_for("permission", lambda event: event.sources == sources, since=since)).at


# --- Reports from which nothing follows ---------------------------------------------------------------------------


@asynccontextmanager
async def _joins_reported(n: int) -> AsyncIterator[dict[str, Variant]]:
    """Reports that so many who agree have joined once more, made before they are measured."""
    async with FakeRoomService() as fake, _module_on(fake) as module:
        size = min(n, _ROOM_SIZE)
        rooms = [RoomId(fresh_room()) for _ in range(n // size)]
        people = [(room, ParticipantId(f"p{number}")) for room in rooms for number in range(size)]
        for room, who in people:
            session = await module.join(room, Participant(who, role=Role.USER), deliver=_to_nobody)
            assert session.join_data is not None
            fake.join(room, who, token=str(session.join_data["token"]))
        permissions = {place: fake.permissions(place[0])[place[1]] for place in people}
        receiver = WebhookReceiver(TokenVerifier(fake.api_key, fake.api_secret))
        fake.calls.clear()

        def reports() -> list[tuple[bytes, str]]:
            made = []
            for room, who in people:
                info = fake.join(room, who, permission=permissions[room, who])
                body = webhook_of(Change("participant_joined", models.Room(sid=f"RM_{room}", name=room), info))
                assert body is not None
                made.append((body, sign_webhook(body, fake.api_key, fake.api_secret)))
            return made

        async def module_takes() -> Sample:
            posted = reports()
            running = _tasks(module)
            began_at, ran_s = time.perf_counter(), time.process_time()
            for body, authorization in posted:
                await module.receive_webhook(body, authorization)
                await asyncio.sleep(0)  # each comes in a request of its own
            if following := _tasks(module) - running:
                await asyncio.wait(following)
            sample = _cost(began_at, ran_s)
            assert not fake.calls
            return sample

        async def library_takes() -> Sample:
            posted = reports()
            began_at, ran_s = time.perf_counter(), time.process_time()
            for body, authorization in posted:
                receiver.receive(body.decode(), authorization)
            return _cost(began_at, ran_s)

        def _cost(began_at: float, ran_s: float) -> Sample:
            return {
                "CPU of a report": (time.process_time() - ran_s) * 1e3 / len(people),
                "reports of joins a second": len(people) / (time.perf_counter() - began_at),
            }

        yield {"module": module_takes, "bare": library_takes}


def _tasks(module: ModerationModule) -> set[asyncio.Task[object]]:
    return {task for meeting in module._entered.meetings._meetings.values() for task in meeting.tasks._running}


# --- Joining LiveKit ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def _joining(n: int) -> AsyncIterator[dict[str, Variant]]:
    """So many who are in the signaling, and agree, join LiveKit too, and leave it again."""
    async with (
        moderation_host(reports=True, MODERATION_SWEEP_S="3600") as told,
        moderation_host(MODERATION_SWEEP_S="3600") as untold,
    ):
        room = fresh_room()
        listeners = {host: await host.fill({room: n}) for host in (told, untold)}

        async def join(host: ModerationHost) -> Sample:
            url, key, secret = host.livekit.url, host.livekit.api_key, host.livekit.api_secret
            tokens = [participant_token(key, secret, room, f"p{i}", can_publish_sources=_FREE) for i in range(n)]
            async with Crowd() as crowd:
                began_at, server_s, livekit_s = time.monotonic(), cpu_s(host.pid), cpu_s(host.livekit.pid)
                members = await crowd.join_many([Join(url=url, token=token) for token in tokens])
                took_s = time.monotonic() - began_at
                server_ms, livekit_ms = (cpu_s(host.pid) - server_s) * 1e3, (cpu_s(host.livekit.pid) - livekit_s) * 1e3
                await in_flight(AT_ONCE, [member.leave for member in members])
            sample = {"joins a second": n / took_s, _JOIN_CPU: (server_ms + livekit_ms) / n}
            # Who is told nothing has nothing to do.
            return sample | ({_JOIN_CPU_OF_SERVER: server_ms / n} if host is told else {})

        yield {"told": partial(join, told), "untold": partial(join, untold)}
        for host, joined in listeners.items():
            await host.empty(joined)
