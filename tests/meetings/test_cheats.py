"""Clients that cheat, on a real media server that reports by webhooks; a hidden listener says what was heard."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
import pytest
from aiohttp import web
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol import room as protocol
from livekit.protocol.models import ParticipantPermission

from signaling import Kind, ModerationModule, Role, Settings
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.testing.child import ParticipantError
from signaling.testing.participants import (
    JoinRefused,
    MediaParticipant,
    ParticipantProcess,
    PublishRefused,
    WaitedInVain,
    participant_token,
)
from tests.crowd.crowd import Crowd, Member
from tests.meetings.stage import ROOM, Actor, Stage

HEARD_S = 0.5
"""How long a cheat may be heard on a loaded machine; figures are the benchmarks'."""
LISTEN_S = 1.5


@dataclass
class Scene:
    """A restricted meeting, with Bob, who was heard before and has his token of then."""

    stage: Stage
    crowd: Crowd
    listener: MediaParticipant
    alice: Actor
    bob: Member
    signaling: Actor
    old_token: str

    @property
    def url(self) -> str:
        return self.stage.server.url

    async def heard_for(self, identity: str, cheat: Callable[[], Awaitable[object]], *sources: str) -> float:
        """How long somebody is heard from the moment of the cheat; those it is refused are not heard."""
        since = time.monotonic()
        with suppress(PublishRefused, JoinRefused, ParticipantError):
            await cheat()
        heard = 0.0
        for source in sources or ("microphone",):
            try:
                began_at = await self.listener.heard(identity, source, since=since, timeout_s=LISTEN_S)
            except WaitedInVain:
                continue
            ended_at = await self.listener.silent(identity, source, timeout_s=10)
            heard = max(heard, ended_at - began_at)
        return heard

    async def may_publish(self, identity: str) -> list[str]:
        return (await self.stage.may_publish()).get(identity, [])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async def take(request: web.Request) -> web.Response:
        await module.receive_webhook(await request.read(), request.headers["Authorization"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/livekit/webhook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook = f"http://127.0.0.1:{runner.addresses[0][1]}/livekit/webhook"
    async with (
        EmbeddedServer(path=require(None), webhook_urls=[hook]) as server,
        ParticipantProcess() as process,
        Crowd() as crowd,
    ):
        settings = Settings(
            livekit_url=server.url,
            livekit_api_key=server.api_key,
            livekit_api_secret=server.api_secret,
            moderation_sweep_s=60,  # no sweep helps here
        )
        async with ModerationModule(settings) as module:
            stage = Stage(server, module, process)
            alice = await stage.join("alice", Role.MODERATOR, enters_livekit=False)
            signaling = await stage.join("bob", enters_livekit=False)
            listener = await stage.listener()
            bob = await crowd.join(server.url, signaling.token, publish=["microphone"])
            await listener.heard("bob")
            await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=[])
            await listener.silent("bob")
            yield Scene(stage, crowd, listener, alice, bob, signaling, signaling.token)
    await runner.cleanup()


async def test_the_original_token_brings_no_sound_back(scene: Scene) -> None:
    heard_s = await scene.heard_for("bob", lambda: scene.bob.rejoin(scene.old_token, publish=["microphone"]))
    assert heard_s < HEARD_S
    assert "microphone" not in await scene.may_publish("bob")
    assert (await scene.alice.until_told("drift_repaired", "livekit_moderation"))["participant"] == "bob"


async def test_a_refresh_token_of_before_brings_no_sound_back(scene: Scene) -> None:
    await scene.alice.outcomes("disable_microphone_restrictions")
    await scene.bob.rejoin(scene.signaling.token, publish=["microphone"])
    await scene.bob.wait_for("refresh_token")
    before = scene.bob.refresh_token
    await scene.alice.outcomes("enable_microphone_restrictions", unrestricted_participants=[])
    await scene.listener.silent("bob")
    heard_s = await scene.heard_for("bob", lambda: scene.bob.rejoin(before, publish=["microphone"]))
    assert heard_s < HEARD_S
    assert "microphone" not in await scene.may_publish("bob")


async def test_who_never_answers_livekits_offer_is_found_by_their_track(scene: Scene) -> None:
    heard_s = await scene.heard_for(
        "bob", lambda: scene.bob.rejoin(scene.old_token, publish=["microphone"], answers_offers=False)
    )
    assert heard_s < HEARD_S
    assert "microphone" not in await scene.may_publish("bob")


async def test_sound_declared_as_a_camera_is_stopped_and_the_second_time_ends_it(scene: Scene) -> None:
    disguised = {"source": "camera", "sound": True}
    heard_s = await scene.heard_for("bob", lambda: scene.bob.publish(disguised), "camera")  # type: ignore[arg-type]
    assert heard_s < HEARD_S
    assert (await scene.alice.until_told("bypass_stopped", "livekit_moderation"))["declared"] == "camera"
    assert "camera" not in await scene.may_publish("bob")
    again = {"source": "screen_share", "sound": True}
    heard_s = await scene.heard_for("bob", lambda: scene.bob.publish(again), "screen_share")  # type: ignore[arg-type]
    assert heard_s < HEARD_S
    assert await asyncio.wait_for(asyncio.shield(scene.signaling.session.ended), 5) == "kicked"
    await scene.bob.wait_for("leave")
    assert "bob" not in await scene.stage.presences()


async def test_a_second_session_is_never_heard_and_removed(scene: Scene) -> None:
    async def open_one() -> None:
        await scene.crowd.join(scene.url, scene.old_token, publish=["microphone"], path_query="publish=x")

    assert await scene.heard_for("bob#x", open_one) < HEARD_S
    assert [identity for identity in await scene.stage.presences() if "#" in identity] == []


async def test_who_was_kicked_is_removed_again_whenever_the_old_token_returns(scene: Scene) -> None:
    await scene.alice.session.receive("livekit_moderation", {"action": "kick", "participants": ["bob"]}, 1)
    assert await scene.signaling.session.ended == "kicked"
    await scene.bob.wait_for("leave")
    for _ in range(2):
        heard_s = await scene.heard_for("bob", lambda: scene.bob.rejoin(scene.old_token, publish=["microphone"]))
        assert heard_s < HEARD_S
        assert "bob" not in await scene.stage.presences()


async def test_a_token_of_somebody_who_never_joined_gives_what_anyone_has(scene: Scene) -> None:
    server = scene.stage.server
    forged = participant_token(server.api_key, server.api_secret, ROOM, "stranger")

    async def enter() -> None:
        await scene.crowd.join(scene.url, forged, publish=["microphone"])

    assert await scene.heard_for("stranger", enter) < HEARD_S
    assert "microphone" not in await scene.may_publish("stranger")
    told = await scene.alice.until_told("unknown_participant", "livekit_moderation")
    assert told["identity"] == "stranger"


async def test_no_token_of_ours_is_accepted_by_the_room_service(scene: Scene) -> None:
    recorder = await scene.stage.join("recorder-two", kind=Kind.RECORDER, enters_livekit=False)
    async with aiohttp.ClientSession() as http:
        for token in (scene.old_token, recorder.token, scene.alice.token):
            service = LiveKitAPI.with_token(token, scene.stage.server.http_url, session=http, failover=False).room
            permission = ParticipantPermission(can_publish=True, can_subscribe=True)
            calls = (
                service.list_participants(protocol.ListParticipantsRequest(room=ROOM)),
                service.get_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="bob")),
                service.remove_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="bob")),
                service.mute_published_track(protocol.MuteRoomTrackRequest(room=ROOM, identity="bob", track_sid="TR")),
                service.update_participant(
                    protocol.UpdateParticipantRequest(room=ROOM, identity="bob", permission=permission)
                ),
                service.update_room_metadata(protocol.UpdateRoomMetadataRequest(room=ROOM, metadata="x")),
                service.delete_room(protocol.DeleteRoomRequest(room=ROOM)),
                service.create_room(protocol.CreateRoomRequest(name="another")),
                service.list_rooms(protocol.ListRoomsRequest()),
                service.send_data(protocol.SendDataRequest(room=ROOM, data=b"x")),
                service.update_subscriptions(protocol.UpdateSubscriptionsRequest(room=ROOM, identity="bob")),
            )
            for call in calls:
                with pytest.raises(ServerError) as refused:
                    await call
                assert refused.value.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
