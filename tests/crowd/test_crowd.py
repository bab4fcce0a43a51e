"""The crowd against a real server: honest members are real publishers, and the cheats work as cheats."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from livekit.api import AccessToken, LiveKitAPI, VideoGrants
from livekit.api.room_service import RoomService
from livekit.protocol import room as protocol
from livekit.protocol.models import CAMERA, MICROPHONE, ParticipantInfo, ParticipantPermission, TrackSource, TrackType

from signaling.errors import MediaServerFailed
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.testing.child import ParticipantError, ParticipantProcessDied
from signaling.testing.participants import (
    JoinRefused,
    MediaParticipant,
    ParticipantProcess,
    PublishRefused,
    WaitedInVain,
    participant_token,
)
from tests.crowd.crowd import Crowd, Publication, build

ROOM = "meeting"
LIMIT_S = 10
SOON_S = 0.6
"""What is heard on a loaded machine after LiveKit has cut it off: a jitter buffer, and some frames on the way."""
MANY = 50
MANY_WITHIN_S = 60


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(path=require(None)) as started:
        yield started


@pytest.fixture
async def service(server: EmbeddedServer) -> AsyncIterator[RoomService]:
    grants = VideoGrants(room_create=True, room_admin=True, room=ROOM)
    token = AccessToken(server.api_key, server.api_secret).with_grants(grants).with_ttl(timedelta(hours=1))
    async with aiohttp.ClientSession() as http:
        service = LiveKitAPI.with_token(token.to_jwt(), server.http_url, session=http, failover=False).room
        await service.create_room(protocol.CreateRoomRequest(name=ROOM))
        yield service


@pytest.fixture
async def crowd(service: RoomService) -> AsyncIterator[Crowd]:  # noqa: ARG001  the room must be there
    async with Crowd() as started:
        yield started


@asynccontextmanager
async def listening(server: EmbeddedServer) -> AsyncIterator[MediaParticipant]:
    hidden = participant_token(server.api_key, server.api_secret, ROOM, "listener", hidden=True, can_publish=False)
    async with ParticipantProcess() as process:
        yield await process.connect(server.url, hidden, listens=True)


@pytest.fixture
async def listener(server: EmbeddedServer, service: RoomService) -> AsyncIterator[MediaParticipant]:  # noqa: ARG001
    async with listening(server) as participant:
        yield participant


def token(server: EmbeddedServer, identity: str, *sources: str) -> str:
    return participant_token(server.api_key, server.api_secret, ROOM, identity, can_publish_sources=sources or None)


async def everybody(service: RoomService) -> dict[str, ParticipantInfo]:
    answer = await service.list_participants(protocol.ListParticipantsRequest(room=ROOM))
    return {participant.identity: participant for participant in answer.participants}


async def listed(
    service: RoomService, identity: str, condition: Callable[[ParticipantInfo], object] = bool
) -> ParticipantInfo:
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = (await everybody(service)).get(identity)
            if found is not None and condition(found):
                return found


async def gone(service: RoomService, identity: str) -> None:
    """LiveKit, told so, takes a moment; of who is lost without a word it knows after 20 s only."""
    async with asyncio.timeout(LIMIT_S):
        while identity in await everybody(service):
            pass


async def permit(service: RoomService, identity: str, *sources: TrackSource) -> None:
    permission = ParticipantPermission(can_subscribe=True, can_publish=bool(sources), can_publish_sources=sources)
    await service.update_participant(
        protocol.UpdateParticipantRequest(room=ROOM, identity=identity, permission=permission)
    )


async def mute(service: RoomService, identity: str, sid: str) -> None:
    await listed(service, identity, lambda info: any(track.sid == sid for track in info.tracks))
    await service.mute_published_track(
        protocol.MuteRoomTrackRequest(room=ROOM, identity=identity, track_sid=sid, muted=True)
    )


# --- Honest members -----------------------------------------------------------------------------------------------


async def test_a_tone_is_heard_and_a_picture_is_seen(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    began_at = time.monotonic()
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone", "camera"])
    assert bob.identity == "bob"
    assert bob.events[0].at > began_at
    assert await listener.heard("bob") > began_at
    assert await listener.level("bob") > 1000
    assert await listener.seen("bob") > began_at
    info = await listed(service, "bob", lambda info: len(info.tracks) == 2)
    assert bob.sid == info.sid
    sources = {track.sid: track.source for track in info.tracks}
    assert [sources[sid] for sid in bob.tracks] == [MICROPHONE, CAMERA]
    assert info.state == ParticipantInfo.ACTIVE


async def test_who_listens_is_told_whose_tone_comes_in(
    server: EmbeddedServer, service: RoomService, crowd: Crowd
) -> None:
    async def heard(identity: str, since: float = 0) -> None:
        async with asyncio.timeout(LIMIT_S):
            while ear.heard.get(identity, -1) < since:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.02)

    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"])
    ear = await crowd.join(server.url, token(server, "ear"), auto_subscribe=True, listens=True)
    await crowd.join(server.url, token(server, "carol"), publish=[{"source": "microphone", "muted": True}])
    await heard("bob")
    await mute(service, "bob", bob.tracks[0])
    muted_by = time.monotonic()
    await crowd.join(server.url, token(server, "dave"), publish=["microphone"])
    await heard("dave", since=muted_by + 2 * SOON_S)
    assert ear.heard["bob"] < muted_by + SOON_S
    assert set(ear.heard) == {"bob", "dave"}
    await bob.unmute(bob.tracks[0])
    await heard("bob", since=muted_by + 2 * SOON_S)


async def test_a_permission_taken_away_ends_the_track_and_the_member_is_told(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"], compression=True)
    (first,) = bob.tracks
    await listener.heard("bob")
    withdrawn_at = time.monotonic()
    await permit(service, "bob", CAMERA)
    assert (await bob.wait_for("unpublished", since=withdrawn_at)).track_sid == first
    told = await bob.wait_for("permission", since=withdrawn_at)
    assert (told.can_publish, told.sources) == (True, ("camera",))
    assert not bob.tracks
    await listener.silent("bob")
    with pytest.raises(PublishRefused, match="may not publish microphone: NOT_ALLOWED"):
        await bob.publish("microphone")

    await permit(service, "bob")
    await bob.wait_for("permission", lambda event: not event.can_publish)
    await permit(service, "bob", CAMERA, MICROPHONE)
    given_back_at = (await bob.wait_for("permission", lambda event: "microphone" in event.sources)).at
    second = await bob.publish("microphone")
    assert second != first
    assert bob.tracks == (second,)
    assert await listener.heard("bob", since=given_back_at) > given_back_at


async def test_a_mute_reaches_the_member_who_may_undo_it(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"])
    (sid,) = bob.tracks
    await listener.heard("bob")
    await mute(service, "bob", sid)
    told = await bob.wait_for("mute")
    assert (told.track_sid, told.muted) == (sid, True)
    await listener.silent("bob")
    await bob.unmute(sid)
    assert await listener.heard("bob", since=told.at) > told.at

    await bob.mute(sid)
    await listed(service, "bob", lambda info: info.tracks[0].muted)
    await listener.silent("bob")
    assert [event.muted for event in bob.events if event.name == "mute"] == [True]


async def test_a_track_may_be_muted_from_the_beginning(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=[{"source": "microphone", "muted": True}])
    await listed(service, "bob", lambda info: [track.muted for track in info.tracks] == [True])
    assert await listener.silent("bob") == float("-inf")
    await bob.unmute(bob.tracks[0])
    await listener.heard("bob")


async def test_a_member_ends_its_own_track_and_leaves(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone", "camera"])
    await listener.heard("bob")
    microphone, camera = bob.tracks
    await bob.unpublish(microphone)
    assert bob.tracks == (camera,)
    await listed(service, "bob", lambda info: [track.sid for track in info.tracks] == [camera])
    await listener.silent("bob")
    with pytest.raises(ParticipantError, match=f"does not publish {microphone}"):
        await bob.unpublish(microphone)
    await bob.leave()
    await gone(service, "bob")
    with pytest.raises(ParticipantError, match="signaling has ended"):
        await bob.publish("microphone")


async def test_a_removed_member_knows_why_and_comes_back_with_what_livekit_gave_it(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"])
    before = (await bob.wait_for("refresh_token"), bob.refresh_token)[1]
    await permit(service, "bob", CAMERA)
    await listener.silent("bob")
    await bob.wait_for("refresh_token", lambda _: bob.refresh_token != before)
    await service.remove_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="bob"))
    told = await bob.wait_for("leave")
    assert told.reason == "PARTICIPANT_REMOVED"
    first = bob.sid
    await bob.rejoin(before, publish=["microphone"])
    assert bob.sid != first
    assert await listener.heard("bob", since=told.at) > told.at
    assert not [event for event in bob.events if event.name == "closed"]


async def test_who_watches_is_told_about_others(server: EmbeddedServer, crowd: Crowd) -> None:
    carol = await crowd.join(server.url, token(server, "carol"), watch=True)
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"])
    told = await carol.wait_for("participant", lambda event: event.identity == "bob" and bool(event.tracks))
    assert [(track.sid, track.source, track.type, track.muted) for track in told.tracks] == [
        (bob.tracks[0], "microphone", "AUDIO", False)
    ]
    assert not [event for event in bob.events if event.name == "participant"]


async def test_many_publishers_are_there_soon_and_none_is_lost(
    server: EmbeddedServer, service: RoomService, crowd: Crowd
) -> None:
    identities = [f"guest-{number}" for number in range(MANY)]
    async with asyncio.timeout(MANY_WITHIN_S):
        guests = await crowd.join_many(
            {"url": server.url, "token": token(server, identity), "publish": ["microphone"]} for identity in identities
        )
        assert [guest.identity for guest in guests] == identities
        live: dict[str, list[str]] = {}
        while live != {guest.identity: list(guest.tracks) for guest in guests}:
            live = {
                identity: [track.sid for track in info.tracks]
                for identity, info in (await everybody(service)).items()
                if info.state == ParticipantInfo.ACTIVE and identity in identities
            }
    assert not [event for guest in guests for event in guest.events if event.name in {"closed", "leave", "unpublished"}]
    # A listener of the SDK cannot decode all of them at once on a small machine.
    heard = guests[:: MANY // 5]
    await asyncio.gather(*(guest.leave() for guest in guests if guest not in heard))
    async with listening(server) as listener:
        await asyncio.gather(*(listener.heard(guest.identity) for guest in heard))


async def test_who_streams_in_is_heard_and_seen_until_they_leave(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.stream(server.url, token(server, "bob"), ["microphone", "camera"])
    await listener.heard("bob")
    assert await listener.level("bob") > 1000
    await listener.seen("bob")
    info = await listed(service, "bob", lambda info: len(info.tracks) == 2)
    assert (bob.identity, bob.sid) == (info.identity, info.sid)
    assert {track.source: track.name for track in info.tracks} == {
        MICROPHONE: "synthesized-microphone",
        CAMERA: "synthesized-camera",
    }
    await bob.leave()
    await gone(service, "bob")
    await bob.wait_for("ended")
    await bob.leave()


async def test_what_was_streamed_in_and_taken_away_does_not_come_again(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.stream(server.url, token(server, "bob"), ["microphone"])
    await listener.heard("bob")
    await permit(service, "bob", CAMERA)
    await listener.silent("bob")
    await permit(service, "bob", CAMERA, MICROPHONE)
    with pytest.raises(WaitedInVain):
        await listener.heard("bob", since=time.monotonic(), timeout_s=1)
    await service.remove_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="bob"))
    removed = await bob.wait_for("ended")
    await crowd.stream(server.url, token(server, "bob"), ["microphone"])
    await listener.heard("bob", since=removed.at)


async def test_nobody_streams_in_without_a_token_to_join(server: EmbeddedServer, crowd: Crowd) -> None:
    with pytest.raises(JoinRefused, match="401: invalid token"):
        await crowd.stream(server.url, participant_token(server.api_key, "x" * 40, ROOM, "bob"), ["microphone"])


# --- Cheats -------------------------------------------------------------------------------------------------------


async def test_sound_declared_as_a_camera_is_heard_where_only_cameras_are_allowed(
    server: EmbeddedServer, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob", "camera"), publish=[{"source": "camera", "sound": True}])
    assert bob.events[0].sources == ("camera",)
    await listener.heard("bob", "camera")
    assert await listener.level("bob", "camera") > 1000


async def test_sound_declared_as_video_shows_only_by_its_mime_type(
    server: EmbeddedServer, service: RoomService, crowd: Crowd
) -> None:
    disguised: Publication = {"source": "camera", "sound": True, "type": "VIDEO"}
    await crowd.join(server.url, token(server, "bob", "camera"), publish=[disguised])
    info = await listed(service, "bob", lambda info: info.tracks and info.tracks[0].mime_type)
    (track,) = info.tracks
    assert (track.type, track.source, track.mime_type) == (TrackType.VIDEO, CAMERA, "audio/opus")


async def test_who_answers_no_offer_is_heard_and_stays_joined(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    await crowd.join(server.url, token(server, "bob"), publish=["microphone"], answers_offers=False)
    await listener.heard("bob")
    assert (await listed(service, "bob")).state == ParticipantInfo.JOINED


async def test_a_second_session_is_listed_beside_the_first_and_heard(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    first = await crowd.join(server.url, token(server, "bob"))
    second = await crowd.join(server.url, token(server, "bob"), publish=["microphone"], path_query="publish=x")
    assert (first.identity, second.identity) == ("bob", "bob#x")
    await listener.heard("bob#x")
    assert {"bob": first.sid, "bob#x": second.sid}.items() <= {
        identity: info.sid for identity, info in (await everybody(service)).items()
    }.items()


async def test_who_always_unmutes_is_heard_again_at_once(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"], unmute_always=True)
    await listener.heard("bob")
    await mute(service, "bob", bob.tracks[0])
    told = await bob.wait_for("mute")
    assert told.muted
    await listener.heard("bob", since=told.at + SOON_S)
    await listed(service, "bob", lambda info: not info.tracks[0].muted)


async def test_who_always_republishes_does_so_when_livekit_lets_it(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"], republish_always=True)
    (first,) = bob.tracks
    await listener.heard("bob")
    await permit(service, "bob", CAMERA)
    told = await bob.wait_for("unpublished")
    await permit(service, "bob", CAMERA, MICROPHONE)
    again = await bob.wait_for("published", since=told.at)
    assert again.track_sid != first
    await listener.heard("bob", since=again.at + SOON_S)
    assert bob.tracks == (again.track_sid,)


async def test_who_always_republishes_stays_when_refused_and_publishes_when_livekit_lets_it(
    server: EmbeddedServer, service: RoomService, crowd: Crowd, listener: MediaParticipant
) -> None:
    bob = await crowd.join(server.url, token(server, "bob", "camera"), publish=["microphone"], republish_always=True)
    assert not bob.tracks
    await permit(service, "bob", CAMERA, MICROPHONE)
    published = await bob.wait_for("published")
    await listener.heard("bob", since=published.at)


# --- The program --------------------------------------------------------------------------------------------------


async def test_nobody_joins_without_a_room_or_a_token(server: EmbeddedServer, crowd: Crowd) -> None:
    nowhere = participant_token(server.api_key, server.api_secret, "no-room", "bob")
    with pytest.raises(JoinRefused, match="404: requested room does not exist"):
        await crowd.join(server.url, nowhere)
    with pytest.raises(JoinRefused, match="401: invalid authorization token"):
        await crowd.join(server.url, "nonsense")


async def test_who_may_not_publish_everything_is_out_again(
    server: EmbeddedServer, service: RoomService, crowd: Crowd
) -> None:
    with pytest.raises(PublishRefused, match="may not publish microphone: NOT_ALLOWED"):
        await crowd.join(server.url, token(server, "bob", "camera"), publish=["camera", "microphone"])
    await gone(service, "bob")


async def test_what_makes_no_sense_is_refused(server: EmbeddedServer, crowd: Crowd) -> None:
    with pytest.raises(ParticipantError, match='no source "heart"'):
        await crowd.join(server.url, token(server, "bob"), publish=["heart"])
    bob = await crowd.join(server.url, token(server, "bob"))
    with pytest.raises(WaitedInVain, match=r"bob was not told mute within 0.1 s, but: joined"):
        await bob.wait_for("mute", timeout_s=0.1)


async def test_members_know_when_livekit_is_gone(server: EmbeddedServer, crowd: Crowd) -> None:
    bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"])
    server.kill()
    assert (await bob.wait_for("closed")).reason
    with pytest.raises(ParticipantError, match="signaling has ended"):
        await bob.publish("camera")


async def test_a_crash_is_an_exception_for_everybody_who_waits(server: EmbeddedServer, crowd: Crowd) -> None:
    bob = await crowd.join(server.url, token(server, "bob"))
    waiting = asyncio.ensure_future(bob.wait_for("mute"))
    stdin = crowd._child.stdin
    assert stdin is not None
    stdin.write(b"nonsense\n")
    with pytest.raises(ParticipantProcessDied, match="status 2") as caught:
        await waiting
    assert "panic: invalid character 'o'" in caught.value.stderr[1]
    with pytest.raises(ParticipantProcessDied):
        await bob.publish("microphone")


async def test_a_crash_that_nobody_noticed_shows_at_the_end() -> None:
    with pytest.raises(ParticipantProcessDied, match=f"status -{signal.SIGKILL.value}"):  # noqa: PT012  leaving the block is what raises
        async with Crowd() as crowd:
            os.kill(crowd.pid, signal.SIGKILL)
            await asyncio.wait(crowd._reading)


async def test_everybody_is_gone_after_the_block(server: EmbeddedServer, service: RoomService) -> None:
    async with Crowd() as crowd:
        bob = await crowd.join(server.url, token(server, "bob"), publish=["microphone"])
        await listed(service, "bob")
    await gone(service, "bob")
    with pytest.raises(ProcessLookupError):
        os.kill(crowd.pid, 0)
    with pytest.raises(ParticipantError, match="the crowd has left"):
        await bob.leave()


async def test_a_program_that_cannot_be_built_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.go").write_text("package main\n\nfunc main() { undeclared() }\n")
    (tmp_path / "go.mod").write_text("module crowd\n")
    (tmp_path / "go.sum").touch()
    monkeypatch.setattr("tests.crowd.crowd._DIRECTORY", tmp_path)
    with pytest.raises(MediaServerFailed, match="undefined: undeclared"):
        await build()
