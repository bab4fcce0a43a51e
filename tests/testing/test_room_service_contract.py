"""One contract for LiveKit's RoomService and our fake of it: all that moderation relies on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import aiohttp
import pytest
from livekit.api import AccessToken, LiveKitAPI, ServerError, VideoGrants
from livekit.api.room_service import RoomService
from livekit.protocol import models
from livekit.protocol import room as protocol
from livekit.protocol.models import (
    CAMERA,
    MICROPHONE,
    SCREEN_SHARE,
    SCREEN_SHARE_AUDIO,
    ParticipantInfo,
    ParticipantPermission,
)

from signaling.livekit.embedded import find
from signaling.testing.participants import JoinRefused, participant_token
from tests.testing.room_drivers import RoomDriver, fake_driver, real_driver, token_for

ROOM = "meeting"
LIMIT_S = 10
PATIENCE_MS = 500
ALL = ["camera", "microphone", "screen_share", "screen_share_audio"]
NOBODY_ANSWERS = (408, "canceled", "twirp error unknown: request canceled")
NO_PARTICIPANT = (404, "not_found", "twirp error unknown: participant does not exist")
NO_ROOM = (404, "not_found", "twirp error unknown: requested room does not exist")
ADMIN = VideoGrants(room_admin=True, room=ROOM)
DENIED = (401, "unauthenticated", "permissions denied")


@pytest.fixture(params=["fake", "livekit"])
async def driver(request: pytest.FixtureRequest) -> AsyncIterator[RoomDriver]:
    if request.param == "fake":
        async with fake_driver() as fake:
            yield fake
    else:
        path = find(None)
        assert path is not None, "there is no livekit-server: run `livekit-moderation server install`"
        async with real_driver(path) as real:
            yield real


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"X-Twirp-Timeout-Ms": str(PATIENCE_MS)}) as session:
        yield session


@pytest.fixture
def service(driver: RoomDriver, http: aiohttp.ClientSession) -> RoomService:
    return RoomService(http, driver.url, driver.api_key, driver.api_secret, failover=False)


@pytest.fixture
async def room(service: RoomService) -> str:
    await service.create_room(protocol.CreateRoomRequest(name=ROOM))
    return ROOM


async def refusal(call: Awaitable[object]) -> tuple[int, str, str]:
    with pytest.raises(ServerError) as raised:
        await call
    return raised.value.status, raised.value.code, raised.value.message


def listing(service: RoomService, room: str = ROOM) -> Awaitable[protocol.ListParticipantsResponse]:
    return service.list_participants(protocol.ListParticipantsRequest(room=room))


def who(identity: str, room: str = ROOM) -> protocol.RoomParticipantIdentity:
    return protocol.RoomParticipantIdentity(room=room, identity=identity)


def muting(identity: str, sid: str, *, room: str = ROOM, muted: bool = True) -> protocol.MuteRoomTrackRequest:
    return protocol.MuteRoomTrackRequest(room=room, identity=identity, track_sid=sid, muted=muted)


def permitting(identity: str, permission: ParticipantPermission) -> protocol.UpdateParticipantRequest:
    return protocol.UpdateParticipantRequest(room=ROOM, identity=identity, permission=permission)


def subscribing(identity: str, room: str = ROOM) -> protocol.UpdateSubscriptionsRequest:
    return protocol.UpdateSubscriptionsRequest(room=room, identity=identity, track_sids=["TR_x"], subscribe=False)


def camera_only() -> ParticipantPermission:
    return ParticipantPermission(can_subscribe=True, can_publish=True, can_publish_sources=[CAMERA])


async def listed(
    service: RoomService, identity: str, condition: Callable[[ParticipantInfo], bool] = bool
) -> ParticipantInfo:
    """Somebody as soon as the list shows them so."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            for participant in (await listing(service)).participants:
                if participant.identity == identity and condition(participant):
                    return participant


# --- Rooms -------------------------------------------------------------------------------------------------------


async def test_the_server_says_ok_when_it_is_there(driver: RoomDriver, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{driver.url}/") as response:
        assert (response.status, await response.text()) == (200, "OK")


async def test_creating_a_room_again_leaves_it_as_it_was(service: RoomService) -> None:
    first = await service.create_room(
        protocol.CreateRoomRequest(name=ROOM, empty_timeout=600, departure_timeout=700, metadata="first")
    )
    second = await service.create_room(protocol.CreateRoomRequest(name=ROOM, empty_timeout=1, metadata="second"))
    assert first == second
    assert (first.name, first.empty_timeout, first.departure_timeout, first.metadata) == (ROOM, 600, 700, "first")
    assert first.sid.startswith("RM_")
    assert first.turn_password


async def test_a_room_has_livekits_own_timeouts_where_nothing_is_said(service: RoomService) -> None:
    room = await service.create_room(protocol.CreateRoomRequest(name=ROOM))
    assert (room.empty_timeout, room.departure_timeout) == (300, 20)


async def test_a_rooms_name_has_its_limit(service: RoomService) -> None:
    words = "twirp error unknown: room name length exceeds limits: max length 256"
    await service.create_room(protocol.CreateRoomRequest(name="r" * 256))
    too_long = protocol.CreateRoomRequest(name="r" * 257)
    assert await refusal(service.create_room(too_long)) == (400, "invalid_argument", words)


async def test_rooms_are_listed_by_name_or_all(service: RoomService) -> None:
    for name in ("one", "two"):
        await service.create_room(protocol.CreateRoomRequest(name=name))

    async def names(*asked: str) -> set[str]:
        return {room.name for room in (await service.list_rooms(protocol.ListRoomsRequest(names=asked))).rooms}

    assert await names() == {"one", "two"}
    assert await names("two", "none") == {"two"}
    assert await names("none") == set()


async def test_the_list_of_an_empty_room_is_empty(service: RoomService, room: str) -> None:
    assert not (await listing(service, room)).participants


async def test_deleting_a_room_disconnects_everybody(driver: RoomDriver, service: RoomService, room: str) -> None:
    token = token_for(driver, room, "bob")
    bob = await driver.join(room, token)
    await service.delete_room(protocol.DeleteRoomRequest(room=room))
    await bob.ended()
    assert await refusal(listing(service)) == NOBODY_ANSWERS
    assert await refusal(service.update_participant(permitting("bob", camera_only()))) == NO_PARTICIPANT
    assert await refusal(service.delete_room(protocol.DeleteRoomRequest(room=room))) == NO_ROOM
    with pytest.raises(JoinRefused, match="404: requested room does not exist"):
        await driver.join(room, token)


async def test_a_crash_takes_the_rooms_and_a_room_made_anew_is_empty(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    token = token_for(driver, room, "bob")
    await driver.join(room, token)
    await driver.crash()
    assert await refusal(listing(service)) == NOBODY_ANSWERS
    with pytest.raises(JoinRefused, match="404: requested room does not exist"):
        await driver.join(room, token)
    await service.create_room(protocol.CreateRoomRequest(name=room))
    assert not (await listing(service)).participants
    await driver.join(room, token)
    await listed(service, "bob")


# --- Where nobody is there ---------------------------------------------------------------------------------------


async def test_updating_or_removing_somebody_unknown_is_refused_at_once(service: RoomService, room: str) -> None:
    for where in (room, "no-room"):
        update = protocol.UpdateParticipantRequest(room=where, identity="nobody", permission=camera_only())
        assert await refusal(service.update_participant(update)) == NO_PARTICIPANT
        assert await refusal(service.remove_participant(who("nobody", where))) == NO_PARTICIPANT
    assert await refusal(service.get_participant(who("nobody"))) == NO_PARTICIPANT


async def test_where_livekit_asks_around_the_callers_patience_counts(service: RoomService, room: str) -> None:
    calls: list[Awaitable[object]] = [
        listing(service, "no-room"),
        service.get_participant(who("nobody", "no-room")),
        service.send_data(protocol.SendDataRequest(room="no-room", data=b"x")),
        *(service.mute_published_track(muting("nobody", "TR_x", room=where)) for where in (room, "no-room")),
        *(service.update_subscriptions(subscribing("nobody", where)) for where in (room, "no-room")),
    ]
    began_at = asyncio.get_running_loop().time()
    assert await asyncio.gather(*map(refusal, calls)) == [NOBODY_ANSWERS] * len(calls)
    assert asyncio.get_running_loop().time() - began_at >= PATIENCE_MS / 1000


async def test_after_three_seconds_livekit_itself_gives_up(driver: RoomDriver, room: str) -> None:
    async def calls(patience: dict[str, str]) -> list[tuple[int, str, str]]:
        async with aiohttp.ClientSession(headers=patience) as http:
            service = RoomService(http, driver.url, driver.api_key, driver.api_secret, failover=False)
            mute = service.mute_published_track(muting("nobody", "TR_x", room=room))
            return list(await asyncio.gather(refusal(listing(service, "no-room")), refusal(mute)))

    gave_up = (503, "unavailable", "twirp error unknown: no response from servers")
    patient: list[dict[str, str]] = [{}, {"X-Twirp-Timeout-Ms": "5000"}, {"X-Twirp-Timeout-Ms": "for a while"}]
    began_at = asyncio.get_running_loop().time()
    assert await asyncio.gather(*map(calls, patient)) == [[gave_up, gave_up]] * 3
    assert asyncio.get_running_loop().time() - began_at >= 2.9


async def test_no_patience_at_all_is_an_answer_at_once(driver: RoomDriver) -> None:
    async with aiohttp.ClientSession(headers={"X-Twirp-Timeout-Ms": "0"}) as http:
        service = RoomService(http, driver.url, driver.api_key, driver.api_secret, failover=False)
        # Were it LiveKit itself that gives up, it would be another error.
        assert await refusal(listing(service, "no-room")) == NOBODY_ANSWERS


async def test_data_for_an_empty_room_is_fine(service: RoomService, room: str) -> None:
    await service.send_data(protocol.SendDataRequest(room=room, data=b"x"))
    words = "nonce should be 16-bytes or not present, got: 3 bytes"
    # `send_data` would put a nonce of its own in its place.
    with_nonce = service._client.request(
        *("RoomService", "SendData", protocol.SendDataRequest(room=room, data=b"x", nonce=b"abc")),
        service._auth_header(ADMIN),
        protocol.SendDataResponse,
    )
    assert await refusal(with_nonce) == (400, "invalid_argument", words)


# --- Permissions -------------------------------------------------------------------------------------------------


async def test_a_permission_replaces_all_fields(driver: RoomDriver, service: RoomService, room: str) -> None:
    await driver.join(room, token_for(driver, room, "bob", ALL))
    before = await service.get_participant(who("bob"))
    assert before.permission == ParticipantPermission(
        can_subscribe=True, can_publish=True, can_publish_sources=[CAMERA, MICROPHONE, SCREEN_SHARE, SCREEN_SHARE_AUDIO]
    )
    permission = ParticipantPermission(can_publish=True, can_publish_sources=[CAMERA])
    updated = await service.update_participant(permitting("bob", permission))
    assert updated.permission == permission
    assert (await service.get_participant(who("bob"))).permission == permission
    assert updated.version > before.version


async def test_a_hidden_participant_is_listed_and_stays_hidden_only_if_said_so(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    token = participant_token(driver.api_key, driver.api_secret, room, "recorder", hidden=True, can_publish=False)
    await driver.join(room, token)
    assert (await listed(service, "recorder")).permission.hidden
    still = ParticipantPermission(can_subscribe=True, hidden=True)
    assert (await service.update_participant(permitting("recorder", still))).permission.hidden
    shown = ParticipantPermission(can_subscribe=True)
    assert not (await service.update_participant(permitting("recorder", shown))).permission.hidden


async def test_an_update_without_a_permission_leaves_it(driver: RoomDriver, service: RoomService, room: str) -> None:
    await driver.join(room, token_for(driver, room, "bob", ["microphone"]))
    before = await service.get_participant(who("bob"))
    attributes = protocol.UpdateParticipantRequest(
        room=room, identity="bob", name="Bob", metadata="m", attributes={"a": "1", "b": "2"}
    )
    after = await service.update_participant(attributes)
    assert after.permission == before.permission
    assert (after.name, after.metadata, dict(after.attributes)) == ("Bob", "m", {"a": "1", "b": "2"})
    without = protocol.UpdateParticipantRequest(room=room, identity="bob", attributes={"a": ""})
    assert dict((await service.update_participant(without)).attributes) == {"b": "2"}


async def test_an_equal_permission_changes_nothing(driver: RoomDriver, service: RoomService, room: str) -> None:
    await driver.join(room, token_for(driver, room, "bob", ALL))
    before = await listed(service, "bob")
    await service.update_participant(permitting("bob", before.permission))
    assert (await listed(service, "bob")).permission == before.permission


async def test_sources_are_kept_in_the_order_and_number_in_which_they_came(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    await driver.join(room, token_for(driver, room, "bob", ["microphone", "camera", "camera"]))
    assert list((await listed(service, "bob")).permission.can_publish_sources) == [MICROPHONE, CAMERA, CAMERA]
    sources = [SCREEN_SHARE_AUDIO, MICROPHONE, MICROPHONE]
    permission = ParticipantPermission(can_publish=True, can_publish_sources=sources)
    updated = await service.update_participant(permitting("bob", permission))
    assert list(updated.permission.can_publish_sources) == sources


async def test_no_sources_beside_can_publish_allow_all_of_them(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    bob = await driver.join(room, token_for(driver, room, "bob", ["camera"]))
    assert not await bob.may_publish("microphone")
    await service.update_participant(permitting("bob", ParticipantPermission(can_subscribe=True, can_publish=True)))
    assert [await bob.may_publish(source) for source in ALL] == [True] * 4
    await service.update_participant(permitting("bob", ParticipantPermission(can_subscribe=True)))
    assert [await bob.may_publish(source) for source in ALL] == [False] * 4


async def test_a_list_without_can_publish_allows_nothing(driver: RoomDriver, room: str) -> None:
    token = participant_token(
        driver.api_key, driver.api_secret, room, "bob", can_publish=False, can_publish_sources=ALL
    )
    bob = await driver.join(room, token)
    assert [await bob.may_publish(source) for source in ALL] == [False] * 4


async def test_a_source_that_a_token_spells_in_capitals_is_listed_and_denied(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    bob = await driver.join(room, token_for(driver, room, "bob", ["CAMERA", "microphone"]))
    permission = (await listed(service, "bob")).permission
    assert list(permission.can_publish_sources) == [CAMERA, MICROPHONE]
    assert (await bob.may_publish("camera"), await bob.may_publish("microphone")) == (False, True)
    await service.update_participant(permitting("bob", permission))  # equal, so nothing is done
    assert not await bob.may_publish("camera")
    await service.update_participant(permitting("bob", camera_only()))
    assert await bob.may_publish("camera")


async def test_taking_a_source_away_unpublishes_its_tracks_and_giving_it_back_restores_nothing(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    bob = await driver.join_with_media(room, token_for(driver, room, "bob", ALL))
    microphone = await bob.publish("microphone")
    camera = await bob.publish("camera")
    before = await listed(service, "bob", lambda info: len(info.tracks) == 2)
    assert {track.sid for track in before.tracks} == {microphone, camera}
    await service.update_participant(permitting("bob", camera_only()))
    await listed(service, "bob", lambda info: [track.sid for track in info.tracks] == [camera])
    restored = await service.update_participant(permitting("bob", before.permission))
    assert [track.sid for track in restored.tracks] == [camera]
    again = await bob.publish("microphone")
    assert again != microphone
    await listed(service, "bob", lambda info: {track.sid for track in info.tracks} == {camera, again})


# --- Tracks ------------------------------------------------------------------------------------------------------


async def test_tracks_are_listed_as_what_they_are(driver: RoomDriver, service: RoomService, room: str) -> None:
    bob = await driver.join_with_media(room, token_for(driver, room, "bob"))
    for source in ALL:
        await bob.publish(source)
    info = await listed(service, "bob", lambda info: len(info.tracks) == 4)
    assert {(track.source, track.type, track.mime_type) for track in info.tracks} == {
        (models.CAMERA, models.VIDEO, "video/VP8"),
        (models.MICROPHONE, models.AUDIO, "audio/red"),
        (models.SCREEN_SHARE, models.VIDEO, "video/VP8"),
        (models.SCREEN_SHARE_AUDIO, models.AUDIO, "audio/red"),
    }
    letters = {models.CAMERA: "VC", models.MICROPHONE: "AM", models.SCREEN_SHARE: "VS", models.SCREEN_SHARE_AUDIO: "As"}
    assert all(track.sid.startswith(f"TR_{letters[track.source]}") for track in info.tracks)
    assert info.state == ParticipantInfo.ACTIVE
    assert info.is_publisher


async def test_what_was_streamed_in_tells_so_by_its_name_and_is_published_once(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    await driver.stream_in(room, token_for(driver, room, "bob", ALL))
    info = await listed(service, "bob", lambda info: bool(info.tracks))
    assert [(track.name, track.source, track.type, track.mime_type) for track in info.tracks] == [
        ("synthesized-microphone", models.MICROPHONE, models.AUDIO, "audio/opus")
    ]
    assert (info.kind, info.state) == (ParticipantInfo.STANDARD, ParticipantInfo.ACTIVE)
    assert info.sid.startswith("PA_")
    assert info.joined_at_ms // 1000 == info.joined_at > 0
    await service.update_participant(permitting("bob", camera_only()))
    await listed(service, "bob", lambda info: not info.tracks)
    restored = await service.update_participant(permitting("bob", info.permission))
    assert restored.permission == info.permission
    assert not restored.tracks


async def test_a_mute_is_confirmed_and_lasts_until_the_client_unmutes(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    bob = await driver.join_with_media(room, token_for(driver, room, "bob"))
    sid = await bob.publish("microphone")
    await listed(service, "bob", lambda info: [track.muted for track in info.tracks] == [False])
    answer = await service.mute_published_track(muting("bob", sid))
    assert (answer.track.sid, answer.track.muted) == (sid, True)
    await listed(service, "bob", lambda info: [track.muted for track in info.tracks] == [True])
    refused = (412, "failed_precondition", "twirp error unknown: remote unmute not enabled")
    assert await refusal(service.mute_published_track(muting("bob", sid, muted=False))) == refused
    await bob.unmute("microphone")
    await listed(service, "bob", lambda info: [track.muted for track in info.tracks] == [False])


async def test_muting_what_is_muted_is_confirmed_too(driver: RoomDriver, service: RoomService, room: str) -> None:
    bob = await driver.join_with_media(room, token_for(driver, room, "bob"))
    sid = await bob.publish("microphone")
    await listed(service, "bob", lambda info: bool(info.tracks))
    for _ in ("once", "and once more"):
        answer = await service.mute_published_track(muting("bob", sid))
        assert (answer.track.sid, answer.track.muted) == (sid, True)


async def test_muting_an_unknown_track_or_somebody_elses_is_answered_without_a_track(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    bob = await driver.join_with_media(room, token_for(driver, room, "bob"))
    sid = await bob.publish("microphone")
    await listed(service, "bob", lambda info: bool(info.tracks))
    await driver.join(room, token_for(driver, room, "carol"))
    for theirs in ("TR_x", sid):
        assert not (await service.mute_published_track(muting("carol", theirs))).HasField("track")
    assert [track.muted for track in (await listed(service, "bob")).tracks] == [False]


async def test_unmuting_is_refused_before_the_track_is_looked_for(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    await driver.join(room, token_for(driver, room, "bob"))
    refused = (412, "failed_precondition", "twirp error unknown: remote unmute not enabled")
    assert await refusal(service.mute_published_track(muting("bob", "TR_x", muted=False))) == refused
    assert await refusal(service.mute_published_track(muting("nobody", "TR_x", muted=False))) == NOBODY_ANSWERS


async def test_subscriptions_to_an_unknown_track_are_fine(driver: RoomDriver, service: RoomService, room: str) -> None:
    await driver.join(room, token_for(driver, room, "bob"))
    await service.update_subscriptions(subscribing("bob"))


# --- Coming and going --------------------------------------------------------------------------------------------


async def test_a_client_that_never_answers_is_listed_as_joined_and_obeys(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    bob = await driver.join(room, token_for(driver, room, "bob", ALL))
    assert (await listed(service, "bob")).state == ParticipantInfo.JOINED
    assert await bob.may_publish("microphone")
    await service.update_participant(permitting("bob", camera_only()))
    assert not await bob.may_publish("microphone")


async def test_who_comes_back_with_the_old_token_has_its_rights_again(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    token = token_for(driver, room, "bob", ALL)
    first = await driver.join(room, token)
    sid = (await listed(service, "bob")).sid
    await service.update_participant(permitting("bob", ParticipantPermission(can_subscribe=True)))
    assert not await first.may_publish("microphone")
    second = await driver.join(room, token)
    await first.ended()
    info = await listed(service, "bob")
    assert list(info.permission.can_publish_sources) == [1, 2, 3, 4]
    assert info.sid != sid
    assert await second.may_publish("microphone")
    assert len((await listing(service)).participants) == 1


async def test_who_was_removed_is_gone_at_once_and_may_come_back(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    token = token_for(driver, room, "bob")
    bob = await driver.join(room, token)
    await service.remove_participant(who("bob"))
    assert not (await listing(service)).participants
    assert await refusal(service.remove_participant(who("bob"))) == NO_PARTICIPANT
    await bob.ended()
    await driver.join(room, token)
    await listed(service, "bob")


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("standard", ParticipantInfo.STANDARD),
        ("sip", ParticipantInfo.SIP),
        ("egress", ParticipantInfo.EGRESS),
        ("agent", ParticipantInfo.AGENT),
    ],
    ids=["standard", "sip", "egress", "agent"],
)
async def test_everybody_is_listed_whatever_they_are(
    driver: RoomDriver, service: RoomService, room: str, kind: AccessToken.ParticipantKind, number: int
) -> None:
    await driver.join(room, participant_token(driver.api_key, driver.api_secret, room, "it", kind=kind))
    info = await listed(service, "it")
    assert (info.kind, info.name) == (number, "it")
    assert info.permission == ParticipantPermission(can_subscribe=True, can_publish=True)


async def test_a_token_that_says_nothing_allows_almost_everything(
    driver: RoomDriver, service: RoomService, room: str
) -> None:
    grants = VideoGrants(room_join=True, room=room)
    token = AccessToken(driver.api_key, driver.api_secret).with_identity("bob").with_grants(grants).to_jwt()
    bob = await driver.join(room, token)
    expected = ParticipantPermission(can_subscribe=True, can_publish=True, can_publish_data=True)
    assert (await listed(service, "bob")).permission == expected
    assert [await bob.may_publish(source) for source in ALL] == [True] * 4


# --- Tokens ------------------------------------------------------------------------------------------------------

NO_GRANTS: list[VideoGrants] = [
    VideoGrants(),
    VideoGrants(room_admin=True, room="other"),
    VideoGrants(room_join=True, room=ROOM),
    VideoGrants(room_create=True, room_list=True, room=ROOM),
]


@pytest.mark.parametrize("grants", NO_GRANTS, ids=["none", "of another room", "to join", "to create and list"])
async def test_what_is_about_a_room_needs_its_admin(
    driver: RoomDriver, http: aiohttp.ClientSession, room: str, grants: VideoGrants
) -> None:
    service = _with(driver, http, _token(driver, grants).with_identity("somebody"))
    calls: list[Awaitable[object]] = [
        listing(service, room),
        service.get_participant(who("bob")),
        service.remove_participant(who("bob")),
        service.mute_published_track(muting("bob", "TR_x")),
        service.update_participant(permitting("bob", camera_only())),
        service.update_subscriptions(subscribing("bob")),
        service.send_data(protocol.SendDataRequest(room=room, data=b"x")),
    ]
    assert [await refusal(call) for call in calls] == [DENIED] * len(calls)


async def test_making_ending_and_listing_rooms_need_grants_of_their_own(
    driver: RoomDriver, http: aiohttp.ClientSession, room: str
) -> None:
    listing_only = _with(driver, http, _token(driver, VideoGrants(room_list=True, room_admin=True, room=room)))
    assert await refusal(listing_only.create_room(protocol.CreateRoomRequest(name=room))) == DENIED
    assert await refusal(listing_only.delete_room(protocol.DeleteRoomRequest(room=room))) == DENIED
    creating_only = _with(driver, http, _token(driver, VideoGrants(room_create=True, room_admin=True, room=room)))
    assert await refusal(creating_only.list_rooms(protocol.ListRoomsRequest())) == DENIED


async def test_a_call_without_a_token_is_denied(driver: RoomDriver, http: aiohttp.ClientSession) -> None:
    async with http.post(_path(driver, "ListRooms"), headers={"Content-Type": "application/protobuf"}) as response:
        assert response.status == 401
        assert await response.json() == {"code": "unauthenticated", "msg": "permissions denied"}


async def test_tokens_that_are_not_ours_are_refused_in_plain_words(
    driver: RoomDriver, http: aiohttp.ClientSession
) -> None:
    lists = VideoGrants(room_list=True)
    other_secret = AccessToken(driver.api_key, "x" * 40).with_grants(lists).to_jwt()
    other_key = AccessToken("other", driver.api_secret).with_grants(lists).to_jwt()
    expired = _token(driver, lists).with_ttl(timedelta(seconds=-90)).to_jwt()
    words = {
        "Basic x": "invalid authorization header. Must start with Bearer ",
        "Bearer nonsense": "invalid authorization token",
        f"Bearer {other_key}": "invalid API key: other",
        f"Bearer {other_secret}": f"invalid token: {other_secret}, "
        "error: token signature is invalid: signature is invalid",
        f"Bearer {expired}": f"invalid token: {expired}, error: token has invalid claims: token is expired",
    }
    for authorization, expected in words.items():
        headers = {"Content-Type": "application/protobuf", "Authorization": authorization}
        async with http.post(_path(driver, "ListRooms"), headers=headers) as response:
            assert (response.status, response.content_type) == (401, "text/plain")
            assert await response.text() == expected


async def test_an_expired_token_has_a_minute_more(driver: RoomDriver, http: aiohttp.ClientSession) -> None:
    service = _with(driver, http, _token(driver, VideoGrants(room_list=True)).with_ttl(timedelta(seconds=-50)))
    assert not (await service.list_rooms(protocol.ListRoomsRequest())).rooms


@pytest.mark.parametrize(
    ("grants", "ttl_s", "words"),
    [
        (VideoGrants(room=ROOM), 60, "401: permissions denied"),
        (VideoGrants(room_join=True, room=ROOM), -90, "401: invalid token: .*, error: .*token is expired"),
    ],
    ids=["no grant", "expired"],
)
async def test_joining_needs_a_valid_token_for_it(
    driver: RoomDriver, room: str, grants: VideoGrants, ttl_s: int, words: str
) -> None:
    token = _token(driver, grants).with_identity("bob").with_ttl(timedelta(seconds=ttl_s)).to_jwt()
    with pytest.raises(JoinRefused, match=words):
        await driver.join(room, token)


def _token(driver: RoomDriver, grants: VideoGrants) -> AccessToken:
    return AccessToken(driver.api_key, driver.api_secret).with_grants(grants)


def _with(driver: RoomDriver, http: aiohttp.ClientSession, token: AccessToken) -> RoomService:
    return LiveKitAPI.with_token(token.to_jwt(), driver.url, session=http, failover=False).room


# --- What is no call ---------------------------------------------------------------------------------------------


def _path(driver: RoomDriver, method: str) -> str:
    return f"{driver.url}/twirp/livekit.RoomService/{method}"


@pytest.mark.parametrize(
    ("verb", "method", "content_type", "body", "status", "code", "words"),
    [
        ("POST", "Nope", "application/protobuf", b"", 404, "bad_route", 'no handler for path "{path}"'),
        ("GET", "ListRooms", "", b"", 404, "bad_route", 'unsupported method "GET" (only POST is allowed)'),
        ("POST", "ListRooms", "text/plain", b"", 404, "bad_route", 'unexpected Content-Type: "text/plain"'),
        (
            *("POST", "ListRooms", "application/protobuf", b"\xff\xff"),
            *(400, "malformed", "the protobuf request could not be decoded"),
        ),
    ],
    ids=["unknown method", "not posted", "not protobuf", "garbage"],
)
async def test_what_is_no_call_is_refused(
    driver: RoomDriver,
    http: aiohttp.ClientSession,
    verb: str,
    method: str,
    content_type: str,
    body: bytes,
    status: int,
    code: str,
    words: str,
) -> None:
    token = _token(driver, VideoGrants(room_list=True)).to_jwt()
    headers = {"Authorization": f"Bearer {token}"} | ({"Content-Type": content_type} if content_type else {})
    async with http.request(verb, _path(driver, method), data=body, headers=headers) as response:
        answer = await response.json()
        assert (response.status, answer["code"]) == (status, code)
        assert answer["msg"] == words.format(path=f"/twirp/livekit.RoomService/{method}")


async def test_other_paths_are_not_found(driver: RoomDriver, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{driver.url}/nope") as response:
        assert (response.status, await response.text()) == (404, "404 page not found\n")
