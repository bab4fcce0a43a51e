"""Participants for tests, against a real server: what one publishes another hears, and what is lost is noticed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import aiohttp
import pytest
from livekit.api import AccessToken, LiveKitAPI, VideoGrants
from livekit.api.room_service import RoomService
from livekit.protocol import room as protocol
from livekit.protocol.models import CAMERA, MICROPHONE, ParticipantInfo, ParticipantPermission, TrackSource

from signaling.livekit.embedded import EmbeddedServer, find
from signaling.testing.child import ParticipantError, ParticipantProcessDied
from signaling.testing.participants import (
    JoinRefused,
    MediaParticipant,
    ParticipantProcess,
    PublishRefused,
    SignalOnlyParticipant,
    WaitedInVain,
    participant_token,
    room_service_answers,
)

ROOM = "meeting"
LIMIT_S = 10
PARENT = """
import asyncio, os, signal
from signaling.testing.participants import ParticipantProcess

async def main():
    async with ParticipantProcess() as process:
        print(process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
SOON_S = 0.6
"""What is heard on a loaded machine after LiveKit has cut it off: a jitter buffer, and some frames on the way."""


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    path = find(None)
    assert path is not None, "there is no livekit-server: run `livekit-moderation server install`"
    async with EmbeddedServer(path=path) as started:
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
async def process(service: RoomService) -> AsyncIterator[ParticipantProcess]:  # noqa: ARG001  the room must be there
    async with ParticipantProcess() as started:
        yield started


def token(server: EmbeddedServer, identity: str, *sources: str) -> str:
    return participant_token(server.api_key, server.api_secret, ROOM, identity, can_publish_sources=sources or None)


@pytest.fixture
async def listener(server: EmbeddedServer, process: ParticipantProcess) -> MediaParticipant:
    hidden = participant_token(server.api_key, server.api_secret, ROOM, "listener", hidden=True, can_publish=False)
    return await process.connect(server.url, hidden, listens=True)


@pytest.fixture
async def bob(server: EmbeddedServer, process: ParticipantProcess, listener: MediaParticipant) -> MediaParticipant:  # noqa: ARG001  who is there first
    return await process.connect(server.url, token(server, "bob"))


async def listed(
    service: RoomService, identity: str, condition: Callable[[ParticipantInfo], bool] = bool
) -> ParticipantInfo:
    async with asyncio.timeout(LIMIT_S):
        while True:
            for participant in (
                await service.list_participants(protocol.ListParticipantsRequest(room=ROOM))
            ).participants:
                if participant.identity == identity and condition(participant):
                    return participant


def permit(service: RoomService, identity: str, *sources: TrackSource) -> Awaitable[ParticipantInfo]:
    permission = ParticipantPermission(can_subscribe=True, can_publish=bool(sources))
    permission.can_publish_sources.extend(sources)
    return service.update_participant(
        protocol.UpdateParticipantRequest(room=ROOM, identity=identity, permission=permission)
    )


def mute(service: RoomService, identity: str, sid: str) -> Awaitable[protocol.MuteRoomTrackResponse]:
    return service.mute_published_track(
        protocol.MuteRoomTrackRequest(room=ROOM, identity=identity, track_sid=sid, muted=True)
    )


# --- Sound --------------------------------------------------------------------------------------------------------


async def test_a_tone_is_heard_and_a_mute_ends_it_within_the_jitter_buffer(
    service: RoomService, listener: MediaParticipant, bob: MediaParticipant
) -> None:
    began_at = time.monotonic()
    sid = await bob.publish_microphone(440)
    assert began_at < await listener.heard("bob") <= time.monotonic()
    assert await listener.level("bob") > 400

    await listed(service, "bob", lambda info: [track.sid for track in info.tracks] == [sid])
    muted_at = time.monotonic()
    await mute(service, "bob", sid)
    assert -0.1 < await listener.silent("bob") - muted_at < SOON_S
    assert await listener.level("bob") < 10
    assert (await listener.wait_for("track_muted", identity="bob")).track_sid == sid
    told = await bob.wait_for("track_muted", identity="bob", source="microphone")

    await bob.unmute("microphone")
    assert await listener.heard("bob", since=told.at) > told.at
    await listener.wait_for("track_unmuted", identity="bob", since=told.at)

    own_at = time.monotonic()
    await bob.mute("microphone")
    assert await listener.silent("bob") - own_at < SOON_S


async def test_sound_ends_when_the_permission_is_taken_away_and_comes_back_only_when_published_anew(
    service: RoomService, listener: MediaParticipant, bob: MediaParticipant
) -> None:
    first = await bob.publish_microphone()
    await listener.heard("bob")
    withdrawn_at = time.monotonic()
    await permit(service, "bob", CAMERA)
    assert await listener.silent("bob") - withdrawn_at < SOON_S
    assert (await listener.wait_for("track_unpublished", identity="bob")).track_sid == first
    told = await bob.wait_for("permission_changed", since=withdrawn_at)
    assert told.permission is not None
    assert list(told.permission.can_publish_sources) == list(bob.permission.can_publish_sources) == [CAMERA]
    with pytest.raises(PublishRefused, match="bob was told not to publish microphone"):
        await bob.publish_microphone()

    given_back_at = time.monotonic()
    await permit(service, "bob", CAMERA, MICROPHONE)
    await bob.wait_for("permission_changed", since=given_back_at)
    second = await bob.publish_microphone()
    assert second != first
    assert await listener.heard("bob", since=given_back_at) > given_back_at


async def test_who_tries_anyway_is_refused_by_livekit(
    service: RoomService, server: EmbeddedServer, process: ParticipantProcess, listener: MediaParticipant
) -> None:
    bob = await process.connect(server.url, token(server, "bob", "camera"))
    with pytest.raises(PublishRefused, match="bob may not publish microphone"):
        await bob.publish("microphone", anyway=True)
    assert await listener.silent("bob") == float("-inf")
    assert not (await listed(service, "bob")).tracks


async def test_who_tries_anyway_may_give_up_before_the_sdk_does(
    service: RoomService, server: EmbeddedServer, process: ParticipantProcess, listener: MediaParticipant
) -> None:
    bob = await process.connect(server.url, token(server, "bob", "camera"))
    began_at = time.monotonic()
    with pytest.raises(PublishRefused, match=r"LiveKit did not take bob's microphone within 0\.3 s"):
        await bob.publish("microphone", anyway=True, within_s=0.3)
    await permit(service, "bob", CAMERA, MICROPHONE)
    await bob.wait_for("permission_changed", since=began_at)
    await bob.publish_microphone()
    assert await listener.heard("bob", since=began_at) > began_at


async def test_what_is_heard_of_somebody_is_counted_whatever_they_call_it(
    listener: MediaParticipant, bob: MediaParticipant
) -> None:
    began_at = time.monotonic()
    await bob.publish_screen_share()
    await listener.seen("bob", "screen_share")
    assert await listener.heard_for("bob", since=began_at, until=time.monotonic()) == 0  # a picture is not heard
    await bob.publish("camera", is_sound=True)
    heard_at = await listener.heard("bob", "camera")
    heard_s = await listener.heard_for("bob", since=began_at, until=heard_at + 0.5)
    assert 0.2 < heard_s < 1
    assert time.monotonic() >= heard_at + 0.5
    assert await listener.heard_for("nobody", since=began_at, until=time.monotonic()) == 0
    with pytest.raises(ParticipantError, match="listens=True"):
        await bob.heard_for("listener", since=began_at, until=time.monotonic())


async def test_sound_that_is_declared_as_a_camera_is_heard_as_one(
    listener: MediaParticipant, bob: MediaParticipant
) -> None:
    await bob.publish("camera", is_sound=True)
    event = await listener.wait_for("track_published", identity="bob")
    assert event.source == "camera"
    await listener.heard("bob", "camera")
    assert await listener.silent("bob", "microphone") == float("-inf")


async def test_the_sound_of_a_screen_is_a_source_of_its_own(listener: MediaParticipant, bob: MediaParticipant) -> None:
    await bob.publish_screen_share(with_audio=True)
    await listener.heard("bob", "screen_share_audio")
    await listener.seen("bob", "screen_share")
    assert await listener.silent("bob", "microphone") == float("-inf")


async def test_several_participants_are_told_apart(
    server: EmbeddedServer, process: ParticipantProcess, listener: MediaParticipant
) -> None:
    identities = [f"guest-{number}" for number in range(4)]
    guests = [
        await process.connect(server.url, token(server, identity), publish_tone_hz=300 + 100 * number)
        for number, identity in enumerate(identities)
    ]
    await asyncio.gather(*(listener.heard(identity) for identity in identities))
    await guests[0].unpublish("microphone")
    await guests[1].disconnect()
    await asyncio.gather(*(listener.silent(identity) for identity in identities[:2]))
    await listener.wait_for("participant_disconnected", identity=identities[1])
    now = time.monotonic()
    await asyncio.gather(*(listener.heard(identity, since=now) for identity in identities[2:]))


async def test_a_wait_in_vain_says_what_there_was(listener: MediaParticipant, bob: MediaParticipant) -> None:
    await bob.publish_microphone()
    await listener.heard("bob")
    with pytest.raises(
        WaitedInVain, match=r"nobody was not perceived by microphone within 0.1 s .*bob's microphone: level \d{3}"
    ):
        await listener.heard("nobody", timeout_s=0.1)
    with pytest.raises(WaitedInVain, match=r"bob was still perceived by microphone within 0\.5 s"):
        await listener.silent("bob", timeout_s=0.5)
    with pytest.raises(WaitedInVain, match=r"bob was not told disconnected within 0\.1 s, but: connected bob"):
        await bob.wait_for("disconnected", timeout_s=0.1)


# --- Pictures -----------------------------------------------------------------------------------------------------


async def test_a_camera_is_seen_until_it_is_muted_or_gone(listener: MediaParticipant, bob: MediaParticipant) -> None:
    began_at = time.monotonic()
    await bob.publish_camera()
    assert await listener.seen("bob") > began_at
    muted_at = time.monotonic()
    await bob.mute("camera")
    assert await listener.unseen("bob") - muted_at < SOON_S
    unmuted_at = time.monotonic()
    await bob.unmute("camera")
    assert await listener.seen("bob", since=unmuted_at) > unmuted_at
    await bob.unpublish("camera")
    gone_at = time.monotonic()
    assert await listener.unseen("bob") - gone_at < SOON_S
    again_at = time.monotonic()
    await bob.publish_camera()
    assert await listener.seen("bob") > again_at


# --- Coming and going ---------------------------------------------------------------------------------------------


async def test_a_removed_participant_knows_why_and_may_come_back(
    service: RoomService, server: EmbeddedServer, listener: MediaParticipant, bob: MediaParticipant
) -> None:
    await bob.publish_microphone()
    await listener.heard("bob")
    await service.remove_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="bob"))
    assert (await bob.wait_for("disconnected")).reason == "PARTICIPANT_REMOVED"
    await listener.silent("bob")
    back_at = time.monotonic()
    await bob.reconnect(server.url, token(server, "bob"))
    await bob.wait_for("connected", since=back_at)
    await bob.publish_microphone()
    assert await listener.heard("bob", since=back_at) > back_at


async def test_a_participant_that_comes_later_is_heard_and_hears_who_was_there(
    server: EmbeddedServer, process: ParticipantProcess, bob: MediaParticipant
) -> None:
    await bob.publish_microphone()
    await bob.publish_camera()
    carol = await process.connect(server.url, token(server, "carol"), listens=True)
    await carol.heard("bob")
    await carol.seen("bob")


async def test_nobody_joins_without_a_room_or_a_token(server: EmbeddedServer, process: ParticipantProcess) -> None:
    nowhere = participant_token(server.api_key, server.api_secret, "no-room", "bob")
    with pytest.raises(JoinRefused, match="404"):
        await process.connect(server.url, nowhere)
    with pytest.raises(JoinRefused, match="401"):
        await process.connect(server.url, "nonsense")


async def test_what_makes_no_sense_is_refused(bob: MediaParticipant) -> None:
    with pytest.raises(ParticipantError, match="does not publish camera"):
        await bob.mute("camera")
    with pytest.raises(ParticipantError, match="listens=True"):
        await bob.heard("carol")
    with pytest.raises(ParticipantError, match="SOURCE_HEART"):
        await bob.publish("heart")
    await bob.disconnect()
    with pytest.raises(ParticipantError, match="not connected"):
        await bob.publish_microphone()


# --- The process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
async def test_a_crash_of_the_child_is_an_exception_for_everybody_who_waits(
    service: RoomService, server: EmbeddedServer, number: signal.Signals
) -> None:
    del service  # the room is there
    async with ParticipantProcess() as process:
        bob = await process.connect(server.url, token(server, "bob"), publish_tone_hz=440, listens=True)
        waiting = [
            asyncio.ensure_future(bob.wait_for("disconnected")),
            asyncio.ensure_future(bob.heard("nobody")),
        ]
        await bob.level("bob")  # answered after those began to wait
        os.kill(process.pid, number)
        death = await process.died()
        assert death.exit_status == -number
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, ParticipantProcessDied) for result in results)
        with pytest.raises(ParticipantProcessDied, match=f"status -{number.value}"):
            await bob.publish_camera()
    if number == signal.SIGABRT:
        assert "Fatal Python error: Aborted" in death.stderr


async def test_a_crash_that_nobody_noticed_shows_at_the_end() -> None:
    with pytest.raises(ParticipantProcessDied):  # noqa: PT012  leaving the block is what raises
        async with ParticipantProcess() as process:
            process.kill()
            await asyncio.wait(process._reading)


async def test_the_end_of_the_block_ends_the_child_and_takes_everybody_out(
    service: RoomService, server: EmbeddedServer
) -> None:
    async with ParticipantProcess() as process:
        bob = await process.connect(server.url, token(server, "bob"), publish_tone_hz=440)
        await listed(service, "bob")
    assert not (await service.list_participants(protocol.ListParticipantsRequest(room=ROOM))).participants
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    with pytest.raises(ParticipantError, match="was ended"):
        await bob.disconnect()


async def test_the_child_ends_with_its_parent_however_that_ends() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE)
    output, _ = await parent.communicate()
    assert parent.returncode == -signal.SIGKILL
    descriptor = None
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int(output))
    if descriptor is not None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        async with asyncio.timeout(LIMIT_S):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


async def test_a_process_that_was_not_started_has_no_pid() -> None:
    with pytest.raises(RuntimeError, match="outside its `async with`"):
        _ = ParticipantProcess().pid


def test_nothing_native_is_loaded_here() -> None:
    code = "import sys, signaling.testing.participants; print([name for name in sys.modules if 'livekit.rtc' in name])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert output.stdout.strip() == "[]"


# --- Tokens -------------------------------------------------------------------------------------------------------


async def test_what_the_room_service_answers_to_a_token_is_told_for_each_call(
    server: EmbeddedServer, process: ParticipantProcess
) -> None:
    bob = await process.connect(server.url, token(server, "bob", "camera"))
    answers = await room_service_answers(server.url, token(server, "bob", "camera"), ROOM, "bob")
    assert set(answers.values()) == {401}
    assert answers.keys() >= {name for name in vars(RoomService) if not name.startswith("_")}
    grants = VideoGrants(room_join=True, room_admin=True, room=ROOM)
    admin = AccessToken(server.api_key, server.api_secret).with_identity("bob").with_grants(grants).to_jwt()
    answers = await room_service_answers(server.http_url, admin, ROOM, "bob")
    allowed = {call for call, status in answers.items() if status == 200}
    assert allowed >= {"list_participants", "get_participant", "update_participant", "remove_participant"}
    assert allowed.isdisjoint({"create_room", "list_rooms", "delete_room"})
    assert (await bob.wait_for("disconnected")).reason == "PARTICIPANT_REMOVED"  # what is allowed takes effect


async def test_a_room_service_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(ParticipantError, match="does not answer"):
        await room_service_answers("ws://127.0.0.1:9", "token", ROOM, "bob")


# --- Signaling only -----------------------------------------------------------------------------------------------


async def test_a_participant_without_media_knows_its_permission(service: RoomService, server: EmbeddedServer) -> None:
    async with await SignalOnlyParticipant.connect(server.url, token(server, "bob", "camera")) as bob:
        assert (bob.identity, list(bob.permission.can_publish_sources)) == ("bob", [CAMERA])
        assert (await listed(service, "bob")).sid == bob.sid
        await bob.until(lambda me: bool(me.refresh_token))  # from then on calls about it arrive
        await permit(service, "bob", MICROPHONE)
        await bob.until(lambda me: list(me.permission.can_publish_sources) == [MICROPHONE])
        assert (await bob.announce("microphone")).startswith("TR_AM")
        with pytest.raises(PublishRefused, match="bob may not publish camera: NOT_ALLOWED"):
            await bob.announce("camera")
        with pytest.raises(WaitedInVain, match="can_publish_sources: MICROPHONE"):
            await bob.until(lambda me: me.permission.hidden, timeout_s=0.05)
    assert bob.closed.result() == "CLIENT_INITIATED"


async def test_a_refresh_token_from_before_a_restriction_brings_the_old_rights_back(
    service: RoomService, server: EmbeddedServer
) -> None:
    async with await SignalOnlyParticipant.connect(server.url, token(server, "bob", "camera", "microphone")) as first:
        await first.until(lambda me: bool(me.refresh_token))
        old = first.refresh_token
        await permit(service, "bob", CAMERA)
        await first.until(lambda me: me.refresh_token != old)
        async with await SignalOnlyParticipant.connect(server.url, old) as second:
            assert list(second.permission.can_publish_sources) == [CAMERA, MICROPHONE]
            assert await asyncio.wait_for(first.closed, LIMIT_S) == "DUPLICATE_IDENTITY"


async def test_many_participants_without_media_fit_into_one_process(
    service: RoomService, server: EmbeddedServer
) -> None:
    async with AsyncExitStack() as stack:
        guests = await asyncio.gather(
            *(SignalOnlyParticipant.connect(server.url, token(server, f"guest-{number}")) for number in range(100))
        )
        for guest in guests:
            await stack.enter_async_context(guest)
        answer = await service.list_participants(protocol.ListParticipantsRequest(room=ROOM))
        assert len(answer.participants) == 100
        await service.delete_room(protocol.DeleteRoomRequest(room=ROOM))
        async with asyncio.timeout(LIMIT_S):
            assert set(await asyncio.gather(*(guest.closed for guest in guests))) == {"ROOM_DELETED"}


async def test_who_is_not_let_in_learns_why(service: RoomService, server: EmbeddedServer) -> None:
    del service
    nowhere = participant_token(server.api_key, server.api_secret, "no-room", "bob")
    with pytest.raises(JoinRefused, match="404: requested room does not exist"):
        await SignalOnlyParticipant.connect(server.url, nowhere)
    with pytest.raises(JoinRefused, match="401: invalid authorization token"):
        await SignalOnlyParticipant.connect(server.url, "nonsense")
