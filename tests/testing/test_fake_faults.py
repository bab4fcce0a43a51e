"""What the fake RoomService does wrong when asked to, and what it lets a test see."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import aiohttp
import pytest
from google.protobuf.message import DecodeError
from livekit.api import ServerError
from livekit.api.room_service import RoomService
from livekit.protocol import models
from livekit.protocol import room as protocol
from livekit.protocol.models import CAMERA, MICROPHONE, ParticipantInfo, ParticipantPermission

from signaling.testing.fake_room_service import Change, FakeRoomService
from signaling.testing.participants import JoinRefused, PublishRefused, participant_token

ROOM = "meeting"
MUTED = ParticipantPermission(can_subscribe=True)


@pytest.fixture
async def fake() -> AsyncIterator[FakeRoomService]:
    async with FakeRoomService(psrpc_timeout_s=0.05) as service:
        service.create_room(ROOM)
        for identity in ("bob", "carol"):
            service.join(ROOM, identity)
        yield service


@pytest.fixture
async def service(fake: FakeRoomService) -> AsyncIterator[RoomService]:
    async with aiohttp.ClientSession() as http:
        yield RoomService(http, fake.url, fake.api_key, fake.api_secret, failover=False)


def listing(service: RoomService, room: str = ROOM) -> Awaitable[protocol.ListParticipantsResponse]:
    return service.list_participants(protocol.ListParticipantsRequest(room=room))


def muting(service: RoomService, identity: str) -> Awaitable[ParticipantInfo]:
    """Take away from somebody all that they may publish."""
    return service.update_participant(protocol.UpdateParticipantRequest(room=ROOM, identity=identity, permission=MUTED))


def may_publish(fake: FakeRoomService, identity: str) -> bool:
    return fake.participant(ROOM, identity).permission.can_publish


# --- One call or some ---------------------------------------------------------------------------------------------


async def test_an_error_comes_as_often_as_asked_and_does_nothing(fake: FakeRoomService, service: RoomService) -> None:
    fault = fake.refuse("internal", "no", method="UpdateParticipant", times=2)
    for _ in range(2):
        with pytest.raises(ServerError) as raised:
            await muting(service, "bob")
        assert (raised.value.status, raised.value.code, raised.value.message) == (500, "internal", "no")
        assert may_publish(fake, "bob")
    await muting(service, "bob")
    assert not may_publish(fake, "bob")
    assert fault.hits == 2


async def test_an_error_may_have_another_status(fake: FakeRoomService, service: RoomService) -> None:
    with fake.refuse("unavailable", status=418), pytest.raises(ServerError) as raised:
        await listing(service)
    assert (raised.value.status, raised.value.code) == (418, "unavailable")


async def test_a_fault_is_only_for_the_calls_that_it_is_about(fake: FakeRoomService, service: RoomService) -> None:
    fake.create_room("other")
    with fake.refuse("internal", identity="bob"), fake.refuse("aborted", room="other"):
        await muting(service, "carol")
        assert (await listing(service)).participants
        with pytest.raises(ServerError, match="internal"):
            await muting(service, "bob")
        with pytest.raises(ServerError, match="aborted"):
            await listing(service, "other")


async def test_of_several_faults_the_first_one_happens(fake: FakeRoomService, service: RoomService) -> None:
    fake.refuse("internal", times=1)
    fake.refuse("aborted", times=1)
    for code in ("internal", "aborted"):
        with pytest.raises(ServerError, match=code):
            await listing(service)
    assert (await listing(service)).participants


async def test_a_fault_ends_with_its_block_or_when_lifted(fake: FakeRoomService, service: RoomService) -> None:
    with fake.refuse("internal"):
        pass
    fake.refuse("internal").lift()
    assert (await listing(service)).participants


async def test_a_call_that_hangs_takes_effect_when_the_fault_is_lifted(
    fake: FakeRoomService, service: RoomService
) -> None:
    with fake.hang(identity="bob") as hanging:
        call = asyncio.ensure_future(muting(service, "bob"))
        await hanging.hit()
        await muting(service, "carol")  # others go on
        assert (call.done(), may_publish(fake, "bob"), may_publish(fake, "carol")) == (False, True, False)
    await call
    assert not may_publish(fake, "bob")


async def test_a_call_may_take_effect_although_its_answer_hangs(fake: FakeRoomService, service: RoomService) -> None:
    with fake.hang(takes_effect=True) as hanging:
        call = asyncio.ensure_future(muting(service, "bob"))
        await hanging.hit()
        assert (call.done(), may_publish(fake, "bob")) == (False, False)
    assert not (await call).permission.can_publish


async def test_a_call_whose_caller_gave_up_still_takes_effect(fake: FakeRoomService, service: RoomService) -> None:
    changed = asyncio.Event()
    fake.observe(lambda _: changed.set())
    with fake.hang() as hanging:
        call = asyncio.ensure_future(muting(service, "bob"))
        await hanging.hit()
        call.cancel()
        await asyncio.wait([call])
    async with asyncio.timeout(5):
        await changed.wait()
    assert not may_publish(fake, "bob")


async def test_calls_that_hang_for_ever_end_with_the_fake() -> None:
    async with FakeRoomService() as fake, aiohttp.ClientSession() as http:
        service = RoomService(http, fake.url, fake.api_key, fake.api_secret, failover=False)
        hanging = fake.hang()
        calls = [asyncio.ensure_future(listing(service)) for _ in range(3)]
        await hanging.hit(3)
        await fake.__aexit__(None, None, None)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, aiohttp.ClientError) for result in results)
        assert [call.status for call in fake.calls] == [None] * 3


async def test_a_delay_takes_its_time(fake: FakeRoomService, service: RoomService) -> None:
    fake.delay(0.05, times=1)
    await listing(service)
    fake.delay(0.05, times=1, takes_effect=True)
    await muting(service, "bob")
    assert all(call.answered_at - call.arrived_at >= 0.05 for call in fake.calls)
    assert not may_publish(fake, "bob")


async def test_every_call_has_the_latency_that_is_set(fake: FakeRoomService, service: RoomService) -> None:
    fake.latency_s = 0.05
    await listing(service)
    assert fake.calls[0].answered_at - fake.calls[0].arrived_at >= 0.05


async def test_a_cut_connection_is_one_for_the_client(fake: FakeRoomService, service: RoomService) -> None:
    with fake.reset(), pytest.raises(aiohttp.ClientError):
        await muting(service, "bob")
    assert may_publish(fake, "bob")
    with fake.reset(takes_effect=True), pytest.raises(aiohttp.ClientError):
        await muting(service, "bob")
    assert not may_publish(fake, "bob")


async def test_garbage_is_no_answer(fake: FakeRoomService, service: RoomService) -> None:
    with fake.garble(), pytest.raises(DecodeError):
        await listing(service)
    proxy = fake.garble(b"<h1>Bad gateway</h1>", status=HTTPStatus.BAD_GATEWAY, content_type="text/html", times=1)
    with pytest.raises(ServerError) as raised:
        await listing(service)
    assert (raised.value.status, raised.value.code, proxy.hits) == (502, "unknown", 1)


# --- All of them --------------------------------------------------------------------------------------------------


async def test_offline_refuses_connections_and_online_is_the_same_address(
    fake: FakeRoomService, service: RoomService
) -> None:
    url = fake.url
    await listing(service)
    await fake.offline()
    with pytest.raises(aiohttp.ClientConnectorError):
        await listing(service)
    await fake.online()
    assert fake.url == url
    assert {each.identity for each in (await listing(service)).participants} == {"bob", "carol"}


async def test_going_offline_cuts_off_who_waits(fake: FakeRoomService, service: RoomService) -> None:
    with fake.hang() as hanging:
        call = asyncio.ensure_future(listing(service))
        await hanging.hit()
        await fake.offline()
        with pytest.raises(aiohttp.ClientError):
            await call
    await fake.online()
    await listing(service)


async def test_offline_and_online_may_be_said_twice(fake: FakeRoomService, service: RoomService) -> None:
    await fake.online()
    await fake.offline()
    await fake.offline()
    await fake.online()
    await listing(service)


async def test_a_stalled_server_accepts_and_answers_when_it_goes_on(
    fake: FakeRoomService, service: RoomService
) -> None:
    fake.stall()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await muting(service, "bob")
    assert may_publish(fake, "bob")
    call = asyncio.ensure_future(muting(service, "carol"))
    changed = asyncio.Event()
    fake.observe(lambda _: changed.set())
    fake.unstall()
    await call
    async with asyncio.timeout(5):
        while may_publish(fake, "bob"):  # the call whose caller gave up was read, and is carried out
            changed.clear()
            await changed.wait()


async def test_a_crash_forgets_the_rooms_and_cuts_off_who_waits(fake: FakeRoomService, service: RoomService) -> None:
    with fake.hang() as hanging:
        call = asyncio.ensure_future(muting(service, "bob"))
        await hanging.hit()
        fake.crash()
        with pytest.raises(aiohttp.ClientError):
            await call
    assert fake.rooms == ()
    with pytest.raises(ServerError, match="no response from servers"):
        await listing(service)


# --- What it lets a test see --------------------------------------------------------------------------------------


async def test_calls_are_logged_with_what_they_asked_for(fake: FakeRoomService, service: RoomService) -> None:
    sid = fake.publish(ROOM, "bob", "microphone")
    permission = ParticipantPermission(can_publish=True, can_publish_sources=[CAMERA, MICROPHONE])
    await service.update_participant(
        protocol.UpdateParticipantRequest(room=ROOM, identity="bob", permission=permission)
    )
    await muting(service, "carol")
    await service.mute_published_track(
        protocol.MuteRoomTrackRequest(room=ROOM, identity="bob", track_sid=sid, muted=True)
    )
    await service.create_room(protocol.CreateRoomRequest(name="new"))
    await service.list_rooms(protocol.ListRoomsRequest())
    with pytest.raises(ServerError):
        await service.remove_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="nobody"))
    assert [(call.method, call.room, call.identity, call.status) for call in fake.calls] == [
        ("UpdateParticipant", ROOM, "bob", 200),
        ("UpdateParticipant", ROOM, "carol", 200),
        ("MutePublishedTrack", ROOM, "bob", 200),
        ("CreateRoom", "new", "", 200),
        ("ListRooms", "", "", 200),
        ("RemoveParticipant", ROOM, "nobody", 404),
    ]
    assert [call.sources for call in fake.calls[:3]] == [("camera", "microphone"), (), None]
    assert (fake.calls[0].permission, fake.calls[2].track_sid, fake.calls[2].muted) == (permission, sid, True)
    assert all(call.answered_at >= call.arrived_at for call in fake.calls)


async def test_every_change_is_told_whoever_brought_it_about(fake: FakeRoomService, service: RoomService) -> None:
    changes: list[Change] = []
    fake.observe(changes.append)

    def told() -> list[tuple[str, str, str]]:
        told: list[tuple[str, str, str]] = []
        for each in changes:
            identity = "" if each.participant is None else each.participant.identity
            told.append((each.happening, identity, "" if each.track is None else each.track.sid))
        changes.clear()
        return told

    fake.join(ROOM, "dave", state=ParticipantInfo.JOINED)
    assert told() == []  # LiveKit is silent about who never answers
    sid = fake.publish(ROOM, "dave", "microphone")
    fake.mute_self(ROOM, "dave", sid)
    fake.mute_self(ROOM, "dave", sid)
    fake.unmute(ROOM, "dave", sid)
    assert told() == [(name, "dave", sid) for name in ("track_published", "track_muted", "track_unmuted")]
    await muting(service, "dave")
    assert told() == [("track_unpublished", "dave", sid), ("permission_changed", "dave", "")]
    await muting(service, "dave")
    assert told() == []
    fake.join(ROOM, "bob")
    assert told() == [("participant_left", "bob", ""), ("participant_joined", "bob", "")]
    camera = fake.publish(ROOM, "bob", "camera")
    fake.unpublish(ROOM, "bob", camera)
    assert told() == [("track_published", "bob", camera), ("track_unpublished", "bob", camera)]
    fake.leave(ROOM, "carol")
    assert told() == [("participant_left", "carol", "")]
    fake.create_room("new")
    fake.create_room("new")
    fake.close_room("new")
    assert told() == [("room_started", "", ""), ("room_finished", "", "")]
    await service.delete_room(protocol.DeleteRoomRequest(room=ROOM))
    assert [name for name, _, _ in told()] == ["participant_left"] * 2 + ["room_finished"]


async def test_a_change_has_copies_of_what_was_there_then(fake: FakeRoomService) -> None:
    changes: list[Change] = []
    fake.observe(changes.append)
    sid = fake.publish(ROOM, "bob", "microphone")
    fake.leave(ROOM, "bob")
    published, unpublished, left = changes
    assert published.participant is not None
    assert [track.sid for track in published.participant.tracks] == [sid]
    assert unpublished.participant is not None
    assert not unpublished.participant.tracks
    assert left.participant is not None
    assert left.participant.state == ParticipantInfo.DISCONNECTED
    assert (published.room.num_participants, left.room.num_participants) == (2, 1)


async def test_who_joins_without_a_token_may_do_what_the_test_says(fake: FakeRoomService) -> None:
    fake.join(ROOM, "recorder", permission=MUTED, kind=ParticipantInfo.EGRESS, hidden=True)
    info = fake.participant(ROOM, "recorder")
    assert (info.kind, info.state, info.permission.hidden) == (ParticipantInfo.EGRESS, ParticipantInfo.ACTIVE, True)
    assert not MUTED.hidden
    assert fake.permissions(ROOM)["recorder"] == info.permission
    assert not fake.may_publish(ROOM, "recorder", "camera")
    with pytest.raises(PublishRefused, match="recorder may not publish camera"):
        fake.publish(ROOM, "recorder", "camera")


@pytest.mark.parametrize(("room", "identity"), [("other", "bob"), (ROOM, "carol")])
async def test_a_token_is_for_one_room_and_one_identity(fake: FakeRoomService, room: str, identity: str) -> None:
    fake.create_room("other")
    token = participant_token(fake.api_key, fake.api_secret, ROOM, "bob")
    with pytest.raises(JoinRefused, match="not one for"):
        fake.join(room, identity, token=token)


async def test_a_token_and_a_permission_exclude_each_other(fake: FakeRoomService) -> None:
    with pytest.raises(ValueError, match="of its own"):
        fake.join(ROOM, "bob", token="…", permission=MUTED)


async def test_nobody_joins_a_room_that_is_not_there(fake: FakeRoomService) -> None:
    with pytest.raises(JoinRefused, match="404"):
        fake.join("no-room", "bob")


async def test_a_client_may_say_what_is_not_true_of_its_track(fake: FakeRoomService) -> None:
    fake.publish(ROOM, "bob", "camera", mime_type="audio/red", type=models.VIDEO, muted=True)
    track = fake.participant(ROOM, "bob").tracks[0]
    assert (track.source, track.type, track.mime_type, track.muted) == (CAMERA, models.VIDEO, "audio/red", True)


@pytest.mark.parametrize(
    "use",
    [
        lambda fake: fake.unpublish(ROOM, "bob", "TR_x"),
        lambda fake: fake.leave(ROOM, "nobody"),
        lambda fake: fake.participants("no-room"),
    ],
    ids=["track", "participant", "room"],
)
async def test_a_test_that_names_what_is_not_there_is_told(
    fake: FakeRoomService, use: Callable[[FakeRoomService], object]
) -> None:
    with pytest.raises(KeyError):
        use(fake)


async def test_it_is_used_inside_its_block() -> None:
    with pytest.raises(RuntimeError, match="outside its `async with`"):
        _ = FakeRoomService().url
