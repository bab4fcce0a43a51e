"""RoomService against its double: every call, every error, every way in which LiveKit can be away."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from google.protobuf.message import DecodeError
from livekit.api import AccessToken, ServerError
from livekit.api.twirp_client import ServerErrorCode, TwirpClient
from livekit.protocol import models
from livekit.protocol.room import ListParticipantsResponse
from structlog.testing import capture_logs

from signaling.core.effects import Permission, Presence, Priority
from signaling.core.participants import ALL_SOURCES, LiveKitKind, Source
from signaling.errors import (
    MediaServerError,
    MediaServerRejected,
    MediaServerUnavailable,
    ParticipantGone,
    RoomGone,
    TrackGone,
)
from signaling.identifiers import Identity, LiveKitRoom, TrackSid
from signaling.livekit import availability, connection
from signaling.livekit import room_service as room_service_module
from signaling.livekit.error_table import ERRORS, NOBODY_ANSWERED, map_error
from signaling.livekit.room_service import RoomService
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import until

ROOM = LiveKitRoom("standup")
BOB = Identity("bob")
TIMEOUT_S = 0.3


@asynccontextmanager
async def room_service(
    fake: FakeRoomService, *, timeout_s: float = TIMEOUT_S, calls_per_room: int = 8
) -> AsyncIterator[RoomService]:
    async with RoomService(
        fake.url, fake.api_key, fake.api_secret, timeout_s=timeout_s, calls_per_room=calls_per_room
    ) as service:
        yield service


@pytest.fixture
async def service(fake: FakeRoomService) -> AsyncIterator[RoomService]:
    async with room_service(fake) as opened:
        yield opened


@pytest.fixture
def bob(fake: FakeRoomService) -> Identity:
    """Bob, in a room."""
    fake.create_room(ROOM)
    fake.join(ROOM, BOB)
    return BOB


def methods(fake: FakeRoomService) -> list[str]:
    return [call.method for call in fake.calls]


async def presence_of(service: RoomService, identity: Identity) -> Presence:
    (presence,) = [listed for listed in await service.list_presences(ROOM) if listed.identity == identity]
    return presence


def now() -> float:
    return asyncio.get_running_loop().time()


# --- The table of errors -----------------------------------------------------------------------------------------


def test_every_code_of_twirp_is_in_the_table_and_nothing_else() -> None:
    codes = {value for name, value in vars(ServerErrorCode).items() if name.isupper()}
    assert set(ERRORS) == codes
    assert codes >= NOBODY_ANSWERED


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (code, ParticipantGone if code in {"not_found", *NOBODY_ANSWERED} else MediaServerRejected)
        for code in sorted(ERRORS)
    ],
)
async def test_every_code_of_twirp_means_something(
    fake: FakeRoomService, service: RoomService, bob: Identity, code: str, meaning: type[MediaServerError]
) -> None:
    presence = await presence_of(service, bob)
    with fake.refuse(code, "because"), pytest.raises(MediaServerError, match=f"{code}: because") as raised:
        await service.allow(presence, ())
    assert type(raised.value) is meaning
    assert service.answering


def of(meaning: type[MediaServerError], *names: str) -> dict[str, type[MediaServerError]]:
    return dict.fromkeys(names, meaning)


CLIENT_ERRORS = {
    # The call may have been carried out.
    **of(
        MediaServerUnavailable,
        "ClientError",
        "ClientConnectionError",
        "ClientConnectionResetError",
        "ClientConnectorCertificateError",
        "ClientConnectorDNSError",
        "ClientConnectorError",
        "ClientConnectorSSLError",
        "ClientOSError",
        "ClientPayloadError",
        "ClientProxyConnectionError",
        "ClientSSLError",
        "ConnectionTimeoutError",
        "ServerConnectionError",
        "ServerDisconnectedError",
        "ServerFingerprintMismatch",
        "ServerTimeoutError",
        "SocketTimeoutError",
        "UnixClientConnectorError",
        "UploadAbortedError",
    ),
    # Somebody answered, but not as LiveKit does; or nothing can ever be sent to such an address.
    **of(
        MediaServerRejected,
        "ClientHttpProxyError",
        "ClientResponseError",
        "ContentTypeError",
        "InvalidURL",
        "InvalidUrlClientError",
        "InvalidUrlRedirectClientError",
        "NonHttpUrlClientError",
        "NonHttpUrlRedirectClientError",
        "RedirectClientError",
        "TooManyRedirects",
        "WSServerHandshakeError",
    ),
}
"""By name, since aiohttp exports not all of them. Newer versions have classes that older ones lack."""


def subclasses(kind: type[aiohttp.ClientError]) -> Iterator[type[aiohttp.ClientError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from subclasses(subclass)


FOUND = sorted({kind for kind in subclasses(aiohttp.ClientError) if kind.__module__.startswith("aiohttp")}, key=str)


@pytest.mark.parametrize("kind", FOUND, ids=[kind.__name__ for kind in FOUND])
def test_every_error_of_aiohttp_means_something(kind: type[aiohttp.ClientError]) -> None:
    # Their constructors differ, and without arguments some cannot print themselves.
    printable = type(kind.__name__, (kind,), {"__init__": lambda _: None, "__str__": lambda _: "something"})
    assert type(map_error(printable())) is CLIENT_ERRORS[kind.__name__]


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (TimeoutError(), MediaServerUnavailable),
        (DecodeError(), MediaServerRejected),
        (AttributeError(), MediaServerRejected),
        (ServerError("unknown", "", status=502), MediaServerUnavailable),
        (ServerError("unknown", "", status=503), MediaServerUnavailable),
        (ServerError("unknown", "", status=504), MediaServerUnavailable),
        (ServerError("unknown", "", status=500), MediaServerRejected),
        (ServerError("unknown", "", status=404), MediaServerRejected),
        (ServerError("of a new version", "", status=400), MediaServerRejected),
        (ServerError(["no", "text"], "", status=400), MediaServerRejected),  # type: ignore[arg-type]  # JSON's choice
    ],
)
def test_whatever_else_the_client_raises_means_something_too(error: Exception, meaning: type[MediaServerError]) -> None:
    assert type(map_error(error)) is meaning


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\xff\xff\xff", "application/protobuf"),
        (b"<html>", "text/html"),
        (b"null", "application/json"),
        (b'["not", "an", "object"]', "application/json"),
        (b'{"code": {"not": "a text"}, "msg": 7}', "application/json"),
        (b"\xff", "application/json"),
    ],
)
async def test_a_garbage_answer_is_a_rejection_and_livekit_counts_as_answering(
    fake: FakeRoomService, service: RoomService, bob: Identity, body: bytes, content_type: str, status: int
) -> None:
    presence = await presence_of(service, bob)
    with fake.garble(body, status=status, content_type=content_type), pytest.raises(MediaServerRejected):
        await service.allow(presence, ())
    assert service.answering
    await service.allow(presence, ())


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_in_front_of_nothing_is_no_answer(
    fake: FakeRoomService, service: RoomService, bob: Identity, status: int
) -> None:
    page = b"<html><h1>Bad Gateway</h1></html>"
    with fake.garble(page, status=status, content_type="text/html"):
        with pytest.raises(MediaServerUnavailable, match=f"gateway answered {status}"):
            await service.list_presences(ROOM)
        assert not service.answering
    await until(lambda: service.answering)
    assert [presence.identity for presence in await service.list_presences(ROOM)] == [bob]


async def test_a_wrong_key_is_a_rejection(fake: FakeRoomService) -> None:
    async with RoomService(fake.url, fake.api_key, "another secret, also of thirty-two characters") as service:
        with pytest.raises(MediaServerRejected):
            await service.list_presences(ROOM)
        assert service.answering


async def test_a_connection_that_is_cut_is_no_answer_and_the_call_may_have_taken_effect(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    presence = await presence_of(service, bob)
    with (
        fake.reset(method="UpdateParticipant", takes_effect=True),
        pytest.raises(MediaServerUnavailable),
    ):
        await service.allow(presence, ())
    assert not fake.may_publish(ROOM, bob, "camera")
    await until(lambda: service.answering)


# --- One call ----------------------------------------------------------------------------------------------------


async def test_the_deadline_is_kept_when_livekit_hangs(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    presence = await presence_of(service, bob)
    fake.stall()
    calls = [
        service.allow(presence, ()),
        service.mute(ROOM, bob, TrackSid("TR_1")),
        service.remove(ROOM, bob),
        service.list_presences(ROOM),
        service.delete_room(ROOM),
        service.ensure_room(LiveKitRoom("another")),
    ]
    began_at = now()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert TIMEOUT_S * 0.9 < now() - began_at < TIMEOUT_S * 3
    assert [type(answer) for answer in answers] == [MediaServerUnavailable] * len(calls)


async def test_one_call_that_hangs_while_others_are_answered_is_not_livekit_being_away(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    presence = await presence_of(service, bob)
    with fake.hang(method="UpdateParticipant") as hanging:
        allowing = asyncio.create_task(service.allow(presence, ()))
        await hanging.hit()
        await service.list_presences(ROOM)
        with pytest.raises(MediaServerUnavailable):
            await allowing
    assert service.answering
    assert methods(fake).count("ListRooms") == 0


async def test_livekit_is_told_to_cut_its_own_waits_before_our_deadline() -> None:
    slow = FakeRoomService(psrpc_timeout_s=60)
    async with slow, room_service(slow, timeout_s=0.8) as service:
        with pytest.raises(ParticipantGone, match="canceled"):
            await service.mute(ROOM, BOB, TrackSid("TR_1"))
        (call,) = slow.calls
        assert 0.59 < call.answered_at - call.arrived_at < 0.8
        assert service.answering


async def test_a_list_with_somebody_who_cannot_be_read_is_a_rejection(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    listed = ListParticipantsResponse(participants=[models.ParticipantInfo(identity="x")]).SerializeToString()
    garbled = fake.garble(listed.replace(b"x", b"\xff"), status=200, content_type="application/protobuf")
    with garbled, pytest.raises(MediaServerRejected, match="unreadable answer: DecodeError"):
        await service.list_presences(ROOM)
    assert service.answering
    assert [presence.identity for presence in await service.list_presences(ROOM)] == [bob]


async def test_who_is_listed_again_is_not_read_again_in_the_rooms_that_were_listed_last(
    service: RoomService, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_service_module, "_KNOWN_ROOMS", 2)
    first = await presence_of(service, bob)
    another, third = LiveKitRoom("another"), LiveKitRoom("third")
    await service.list_presences(another)
    assert await presence_of(service, bob) is first
    await service.list_presences(third)
    assert list(service._last_lists) == [ROOM, third]
    assert await presence_of(service, bob) is first


async def test_all_rooms_share_one_pooled_session(service: RoomService, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = aiohttp.TCPConnector.connect
    connections: list[object] = []

    async def counted(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - aiohttp's
        connection = await connect(*args, **options)
        connections.append(connection.protocol)
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", counted)
    monkeypatch.delattr(aiohttp, "ClientSession")  # whoever makes another one fails
    for number in range(20):
        await service.ensure_room(LiveKitRoom(f"room{number}"))
    assert len(connections) == 20
    assert len(set(map(id, connections))) == 1


@pytest.fixture
def signings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    signed: list[str] = []
    to_jwt = AccessToken.to_jwt

    def counted(token: AccessToken) -> str:
        signed.append(to_jwt(token))
        return signed[-1]

    monkeypatch.setattr(AccessToken, "to_jwt", counted)
    return signed


async def test_a_token_is_signed_once_a_room(service: RoomService, bob: Identity, signings: list[str]) -> None:
    for _ in range(5):
        presence = await presence_of(service, bob)
        await service.allow(presence, ())
        await service.allow(presence, ALL_SOURCES)
    assert len(signings) == 1
    await service.ensure_room(LiveKitRoom("another"))
    assert len(signings) == 2


async def test_a_token_is_renewed_long_before_it_expires_and_old_ones_are_let_go_of(
    service: RoomService, bob: Identity, signings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await presence_of(service, bob)
    await service.ensure_room(LiveKitRoom("another"))
    loop = asyncio.get_running_loop()
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + 1_801)
    await presence_of(service, bob)
    assert len(signings) == 3
    assert list(service._connection._headers) == [ROOM]
    await presence_of(service, bob)
    assert len(signings) == 3


async def test_a_deleted_room_leaves_nothing_behind(fake: FakeRoomService, service: RoomService) -> None:
    for number in range(3):
        room = LiveKitRoom(f"room{number}")
        await service.ensure_room(room)
        async with service.slot(room, Priority.LIVE):
            await service.list_presences(room)
        await service.delete_room(room)
    assert fake.rooms == ()
    kept = (service._connection._headers, service._last_lists, service._rooms, service._paces, service._creating)
    assert [len(each) for each in kept] == [0] * len(kept)


async def test_it_cannot_be_used_before_it_is_entered(fake: FakeRoomService) -> None:
    service = RoomService(fake.url, fake.api_key, fake.api_secret)
    with pytest.raises(RuntimeError, match="async with"):
        await service.list_presences(ROOM)


async def test_websocket_urls_do(fake: FakeRoomService) -> None:
    async with RoomService(fake.url.replace("http", "ws"), fake.api_key, fake.api_secret) as service:
        await service.ensure_room(ROOM)
    assert fake.rooms == (ROOM,)


# --- Rooms -------------------------------------------------------------------------------------------------------


async def test_many_who_ask_for_a_room_at_once_share_one_call(fake: FakeRoomService, service: RoomService) -> None:
    await asyncio.gather(*(service.ensure_room(ROOM) for _ in range(20)))
    await service.ensure_room(ROOM)
    assert methods(fake) == ["CreateRoom"]


async def test_a_room_outlives_everybody_in_it_by_a_day(fake: FakeRoomService, service: RoomService) -> None:
    created: list[models.Room] = []
    fake.observe(lambda change: created.append(change.room))
    await service.ensure_room(ROOM)
    assert [(room.empty_timeout, room.departure_timeout) for room in created] == [(86_400, 86_400)]


async def test_one_who_gives_up_does_not_take_the_room_from_those_who_wait_too(
    fake: FakeRoomService, service: RoomService
) -> None:
    with fake.hang(method="CreateRoom") as hanging:
        first, second = (asyncio.create_task(service.ensure_room(ROOM)) for _ in range(2))
        await hanging.hit()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    await second
    assert methods(fake) == ["CreateRoom"]


async def test_the_room_is_made_though_all_who_asked_gave_up(fake: FakeRoomService, service: RoomService) -> None:
    with fake.hang(method="CreateRoom") as hanging:
        asking = asyncio.create_task(service.ensure_room(ROOM))
        await hanging.hit()
        asking.cancel()
        await asyncio.wait({asking})
    await service.ensure_room(ROOM)
    assert methods(fake) == ["CreateRoom"]


async def test_a_room_that_could_not_be_made_is_asked_for_again(fake: FakeRoomService, service: RoomService) -> None:
    with fake.refuse("internal", times=1):
        answers = await asyncio.gather(*(service.ensure_room(ROOM) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [MediaServerRejected] * 3
    await service.ensure_room(ROOM)
    assert fake.rooms == (ROOM,)


async def test_a_failure_that_nobody_waits_for_any_more_is_no_warning(
    fake: FakeRoomService, service: RoomService
) -> None:
    with fake.hang(method="CreateRoom") as hanging:
        asking = asyncio.create_task(service.ensure_room(ROOM))
        await hanging.hit()
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: not service._creating)
    await until(lambda: service.answering)
    await service.ensure_room(ROOM)


async def test_forgotten_rooms_are_made_sure_of_again_but_not_twice_at_once(
    fake: FakeRoomService, service: RoomService
) -> None:
    await service.ensure_room(ROOM)
    service.forget_rooms()
    with fake.hang(method="CreateRoom") as hanging:
        first = asyncio.create_task(service.ensure_room(ROOM))
        await hanging.hit()
        service.forget_rooms()
        second = asyncio.create_task(service.ensure_room(ROOM))
        await asyncio.sleep(0)
    await asyncio.gather(first, second)
    assert methods(fake) == ["CreateRoom"] * 2


async def test_rooms_are_known_no_longer_after_an_outage(fake: FakeRoomService, service: RoomService) -> None:
    await service.ensure_room(ROOM)
    await fake.offline()
    with pytest.raises(MediaServerUnavailable):
        await service.list_presences(ROOM)
    fake.crash()
    await fake.online()
    await until(lambda: service.answering)
    await service.ensure_room(ROOM)
    assert fake.rooms == (ROOM,)


async def test_a_room_that_is_known_costs_no_call_but_not_while_livekit_is_away(
    fake: FakeRoomService, service: RoomService
) -> None:
    await service.ensure_room(ROOM)
    await fake.offline()
    with pytest.raises(MediaServerUnavailable):
        await service.list_presences(ROOM)
    with pytest.raises(MediaServerUnavailable):
        await service.ensure_room(ROOM)


async def test_deleting_a_room_that_is_gone_is_fine(fake: FakeRoomService, service: RoomService) -> None:
    await service.ensure_room(ROOM)
    await service.delete_room(ROOM)
    await service.delete_room(ROOM)
    assert ROOM not in fake.rooms
    await service.ensure_room(ROOM)
    assert ROOM in fake.rooms


async def test_a_room_that_is_just_being_made_is_deleted_after_that(
    fake: FakeRoomService, service: RoomService
) -> None:
    with fake.hang(method="CreateRoom") as hanging:
        making = asyncio.create_task(service.ensure_room(ROOM))
        await hanging.hit()
        deleting = asyncio.create_task(service.delete_room(ROOM))
        for number in range(5):
            await service.delete_room(LiveKitRoom(f"other{number}"))  # by then a call about this one would be answered
    await asyncio.gather(making, deleting)
    assert methods(fake)[-2:] == ["CreateRoom", "DeleteRoom"]
    assert fake.rooms == ()


@pytest.mark.parametrize("code", sorted(NOBODY_ANSWERED))
async def test_a_room_for_which_nobody_answers_does_not_count_as_deleted(
    fake: FakeRoomService, service: RoomService, bob: Identity, code: str
) -> None:
    with fake.refuse(code, method="DeleteRoom"), pytest.raises(MediaServerRejected):
        await service.delete_room(ROOM)
    assert [participant.identity for participant in fake.participants(ROOM)] == [bob]
    await service.delete_room(ROOM)
    assert fake.rooms == ()


# --- Who is there ------------------------------------------------------------------------------------------------


async def test_a_list_tells_of_permissions_tracks_and_services(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    permission = models.ParticipantPermission(can_publish=True, can_publish_sources=["MICROPHONE", "UNKNOWN"])
    fake.join(ROOM, "carol", permission=permission)
    fake.join(ROOM, "viewer", hidden=True)
    fake.join(ROOM, "egress", kind=models.ParticipantInfo.EGRESS)
    fake.join(ROOM, "phone", kind=models.ParticipantInfo.SIP)
    fake.join(ROOM, "starting", state=models.ParticipantInfo.JOINED)
    microphone = fake.publish(ROOM, bob, "microphone")
    disguised = fake.publish(ROOM, bob, "camera", mime_type="audio/opus", type=models.VIDEO, muted=True)
    unknown = fake.publish(ROOM, bob, "unknown", mime_type="video/VP8")
    listed = {presence.identity: presence for presence in await service.list_presences(ROOM)}
    assert set(listed) == {"bob", "carol", "viewer", "egress", "phone", "starting"}
    assert [(track.sid, track.source, track.muted, track.is_sound) for track in listed[bob].tracks] == [
        (microphone, Source.MICROPHONE, False, True),
        (disguised, Source.CAMERA, True, True),
        (unknown, None, False, False),
    ]
    carol = listed[Identity("carol")].permission
    assert (carol.can_publish, carol.sources) == (True, (Source.MICROPHONE, None))
    assert {identity for identity, presence in listed.items() if presence.is_hidden} == {"viewer"}
    special = {who: presence.kind for who, presence in listed.items() if presence.kind is not LiveKitKind.STANDARD}
    assert special == {"egress": LiveKitKind.EGRESS, "phone": LiveKitKind.SIP}


async def test_the_list_of_a_room_that_is_gone_makes_it_and_lists_again(
    fake: FakeRoomService, service: RoomService
) -> None:
    await service.ensure_room(ROOM)
    fake.crash()
    assert await service.list_presences(ROOM) == ()
    assert fake.rooms == (ROOM,)
    assert methods(fake) == ["CreateRoom", "ListParticipants", "CreateRoom", "ListParticipants"]
    fake.calls.clear()
    await service.ensure_room(ROOM)
    assert fake.calls == []


async def test_lists_of_a_room_that_is_gone_share_the_call_that_makes_it(
    fake: FakeRoomService, service: RoomService
) -> None:
    lists = await asyncio.gather(*(service.list_presences(ROOM) for _ in range(5)))
    assert lists == [()] * 5
    assert methods(fake).count("CreateRoom") < 5


async def test_a_room_that_is_gone_however_often_it_is_made_is_an_error(
    fake: FakeRoomService, service: RoomService
) -> None:
    with fake.refuse("unavailable", method="ListParticipants"), pytest.raises(RoomGone):
        await service.list_presences(ROOM)
    assert methods(fake) == ["ListParticipants", "CreateRoom", "ListParticipants"]


async def test_a_room_that_is_deleted_while_it_is_listed_is_not_made_anew(
    fake: FakeRoomService, service: RoomService
) -> None:
    await service.ensure_room(ROOM)
    with fake.hang(method="ListParticipants") as hanging:
        listing = asyncio.create_task(service.list_presences(ROOM))
        await hanging.hit()
        await service.delete_room(ROOM)
    with pytest.raises(RoomGone):
        await listing
    assert fake.rooms == ()


# --- What may be published ---------------------------------------------------------------------------------------


async def test_allowing_sources_replaces_these_and_nothing_else(fake: FakeRoomService, service: RoomService) -> None:
    whole = models.ParticipantPermission(
        can_subscribe=True,
        can_publish=True,
        can_publish_data=True,
        can_publish_sources=["CAMERA", "MICROPHONE"],
        hidden=True,
        can_update_metadata=True,
        can_subscribe_metrics=True,
    )
    fake.create_room(ROOM)
    fake.join(ROOM, BOB, permission=whole)
    presence = await service.allow(await presence_of(service, BOB), (Source.CAMERA, Source.SCREEN_SHARE))
    whole.ClearField("can_publish_sources")
    whole.can_publish_sources.extend([models.CAMERA, models.SCREEN_SHARE])
    assert fake.permissions(ROOM)[BOB] == whole
    assert presence == await presence_of(service, BOB)
    await service.allow(presence, ())
    whole.ClearField("can_publish_sources")
    whole.can_publish = False
    assert fake.permissions(ROOM)[BOB] == whole


async def test_fields_of_a_permission_that_a_newer_livekit_has_survive(
    fake: FakeRoomService, service: RoomService
) -> None:
    newer = models.ParticipantPermission.FromString(
        models.ParticipantPermission(can_publish=True, can_subscribe=True).SerializeToString() + b"\xf8\x3f\x01"
    )
    fake.create_room(ROOM)
    fake.join(ROOM, BOB, permission=newer)
    presence = await service.allow(await presence_of(service, BOB), (Source.CAMERA,))
    assert fake.permissions(ROOM)[BOB].SerializeToString().endswith(b"\xf8\x3f\x01")
    await service.allow(presence, ALL_SOURCES)
    assert fake.permissions(ROOM)[BOB].SerializeToString().endswith(b"\xf8\x3f\x01")


async def test_sources_are_sent_in_the_order_of_livekit(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    presence = await service.allow(await presence_of(service, bob), ALL_SOURCES)
    assert list(fake.permissions(ROOM)[bob].can_publish_sources) == [1, 2, 3, 4]
    assert presence.permission.allows_exactly(ALL_SOURCES)


async def test_allowing_somebody_who_is_gone_says_so(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    presence = await presence_of(service, bob)
    fake.leave(ROOM, bob)
    with pytest.raises(ParticipantGone):
        await service.allow(presence, ())


async def test_a_mute_is_confirmed_by_the_track(fake: FakeRoomService, service: RoomService, bob: Identity) -> None:
    track = fake.publish(ROOM, bob, "microphone")
    await service.mute(ROOM, bob, TrackSid(track))
    assert fake.participant(ROOM, bob).tracks[0].muted
    await service.mute(ROOM, bob, TrackSid(track))


async def test_a_mute_that_livekit_answers_without_a_track_has_muted_nothing(
    service: RoomService, bob: Identity
) -> None:
    with pytest.raises(TrackGone, match="TR_1"):
        await service.mute(ROOM, bob, TrackSid("TR_1"))


async def test_a_mute_of_somebody_who_is_gone_says_so(service: RoomService, bob: Identity) -> None:
    del bob
    with pytest.raises(ParticipantGone):
        await service.mute(ROOM, Identity("carol"), TrackSid("TR_1"))


async def test_removing_somebody_who_is_gone_is_fine(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    await service.remove(ROOM, bob)
    assert fake.participants(ROOM) == ()
    await service.remove(ROOM, bob)


@pytest.mark.parametrize("code", sorted(NOBODY_ANSWERED))
async def test_somebody_for_whom_nobody_answers_does_not_count_as_removed(
    fake: FakeRoomService, service: RoomService, bob: Identity, code: str
) -> None:
    with fake.refuse(code), pytest.raises(ParticipantGone):
        await service.remove(ROOM, bob)
    assert [participant.identity for participant in fake.participants(ROOM)] == [bob]


# --- LiveKit away ------------------------------------------------------------------------------------------------


async def test_while_livekit_is_away_calls_fail_at_once(fake: FakeRoomService, service: RoomService) -> None:
    fake.stall()
    with pytest.raises(MediaServerUnavailable):
        await service.list_presences(ROOM)
    assert not service.answering
    presence = Presence(ROOM, BOB, Permission(can_publish=True, sources=()))
    began_at = now()
    for call in (
        service.list_presences(ROOM),
        service.allow(presence, ()),
        service.mute(ROOM, BOB, TrackSid("TR_1")),
        service.remove(ROOM, BOB),
        service.delete_room(ROOM),
        service.ensure_room(ROOM),
    ):
        with pytest.raises(MediaServerUnavailable):
            await call
    with pytest.raises(MediaServerUnavailable):
        async with service.slot(ROOM, Priority.REPAIR):
            pytest.fail("there is nothing to wait for")
    assert now() - began_at < TIMEOUT_S / 2
    fake.unstall()


async def test_whoever_waits_for_a_place_is_refused_when_livekit_goes_away(fake: FakeRoomService) -> None:
    async with room_service(fake, calls_per_room=1) as service:
        await service.ensure_room(ROOM)

        async def listing() -> None:
            async with service.slot(ROOM, Priority.LIVE):
                await service.list_presences(ROOM)

        fake.stall()
        began_at = now()
        answers = await asyncio.gather(*(listing() for _ in range(10)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [MediaServerUnavailable] * 10
        assert now() - began_at < TIMEOUT_S * 2
        fake.unstall()
        await until(lambda: service.answering)
        await listing()


async def test_a_room_has_so_many_calls_in_flight_and_no_more(fake: FakeRoomService) -> None:
    async with room_service(fake, calls_per_room=3, timeout_s=5) as service:
        await service.ensure_room(ROOM)
        inside = most = 0

        async def listing(room: LiveKitRoom) -> None:
            nonlocal inside, most
            async with service.slot(room, Priority.LIVE):
                inside += 1
                most = max(most, inside)
                await service.list_presences(room)
                inside -= 1

        await asyncio.gather(*(listing(ROOM) for _ in range(20)))
        assert most == 3
        most = 0
        await asyncio.gather(*(listing(LiveKitRoom(name)) for name in "ab" for _ in range(20)))
        assert most == 6


@pytest.mark.parametrize("how", ["stalled", "offline", "reset"])
async def test_the_probe_brings_livekit_back_and_says_so_twice_in_a_row_too(
    fake: FakeRoomService, service: RoomService, how: str
) -> None:
    returned: list[bool] = []
    service.on_return(lambda: returned.append(service.answering))
    await service.ensure_room(ROOM)
    for times in (1, 2):
        fault = None
        if how == "stalled":
            fake.stall()
        elif how == "offline":
            await fake.offline()
        else:
            fault = fake.reset()
        with pytest.raises(MediaServerUnavailable):
            await service.list_presences(ROOM)
        assert not service.answering
        assert len(returned) == times - 1
        if fault is not None:
            await fault.hit(2)
            fault.lift()
        elif how == "stalled":
            fake.unstall()
        else:
            await fake.online()
        await until(lambda: service.answering)
        assert returned == [True] * times
        assert await service.list_presences(ROOM) == ()


async def test_the_probe_waits_longer_and_longer_but_not_long(fake: FakeRoomService, service: RoomService) -> None:
    with fake.reset() as fault:
        with pytest.raises(MediaServerUnavailable):
            await service.list_presences(ROOM)
        await fault.hit(5)
    began_at = now()
    await until(lambda: service.answering)
    assert now() - began_at < 1.5


async def test_one_who_answers_nothing_but_probes_is_probed_more_and_more_seldom(
    fake: FakeRoomService, service: RoomService
) -> None:
    with fake.reset(method="ListParticipants"):
        began_at = now()
        for _ in range(5):
            with pytest.raises(MediaServerUnavailable):
                await service.list_presences(ROOM)
            await until(lambda: service.answering)
        assert now() - began_at > 0.05 + 0.1 + 0.2 + 0.4


async def test_a_no_to_the_probe_is_an_answer(fake: FakeRoomService, service: RoomService) -> None:
    with fake.refuse("permission_denied", method="ListRooms"):
        with fake.reset(method="ListParticipants"), pytest.raises(MediaServerUnavailable):
            await service.list_presences(ROOM)
        await until(lambda: service.answering)


async def test_a_bug_does_not_end_the_probing(
    fake: FakeRoomService, service: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = TwirpClient.request
    answers: list[object] = [LookupError("a bug of somebody's")]

    async def failing_once(client: TwirpClient, service: str, method: str, *args: Any) -> Any:  # noqa: ANN401 - livekit-api's
        if method == "ListRooms" and answers:
            raise answers.pop()  # type: ignore[misc]
        return await request(client, service, method, *args)

    monkeypatch.setattr(TwirpClient, "request", failing_once)
    with fake.reset(times=1), pytest.raises(MediaServerUnavailable):
        await service.list_presences(ROOM)
    await until(lambda: service.answering)
    assert answers == []


async def test_a_late_answer_to_another_call_brings_livekit_back_and_there_is_never_more_than_one_probe(
    fake: FakeRoomService, service: RoomService, bob: Identity
) -> None:
    """The probe hangs, while another call that was sent before is answered, and then LiveKit goes away again."""
    returned: list[bool] = []
    service.on_return(lambda: returned.append(True))
    presence = await presence_of(service, bob)
    with fake.hang(method="ListRooms") as probing, fake.hang(method="UpdateParticipant") as late:
        allowing = asyncio.create_task(service.allow(presence, ()))
        await late.hit()
        with fake.reset(method="ListParticipants"), pytest.raises(MediaServerUnavailable):
            await service.list_presences(ROOM)
        await probing.hit()
        late.lift()
        await allowing
        assert service.answering
        with fake.reset(method="ListParticipants"), pytest.raises(MediaServerUnavailable):
            await service.list_presences(ROOM)
        assert not service.answering
        probes = [task for task in asyncio.all_tasks() if task.get_name() == "media-server-probe"]
        assert len(probes) == 1
    await until(lambda: service.answering)
    assert returned == [True, True]


# --- Closing -----------------------------------------------------------------------------------------------------


def own_tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()} & {"media-server-probe", "create-room"}


@pytest.mark.parametrize("how", ["in a probe", "between two probes"])
async def test_closing_ends_the_probing(fake: FakeRoomService, how: str) -> None:
    async with room_service(fake) as service:
        session = service._connection._session
        with fake.reset(times=1 if how == "in a probe" else 4) as fault, fake.hang(method="ListRooms") as hanging:
            with pytest.raises(MediaServerUnavailable):
                await service.list_presences(ROOM)
            await (hanging.hit() if how == "in a probe" else fault.hit(4))
            assert own_tasks() == {"media-server-probe"}
            await service.__aexit__(None, None, None)
        assert own_tasks() == set()
        assert session is not None
        assert session.closed


async def test_closing_ends_what_was_under_way_and_begins_no_probe(fake: FakeRoomService) -> None:
    async with room_service(fake) as service:
        with fake.hang() as hanging:
            creating = asyncio.create_task(service.ensure_room(ROOM))
            listing = asyncio.create_task(service.list_presences(ROOM))
            await hanging.hit(2)
            await service.__aexit__(None, None, None)
            assert own_tasks() == set()
            with pytest.raises(MediaServerUnavailable, match="closed"):
                await creating
            with pytest.raises(MediaServerUnavailable):
                await listing
            assert own_tasks() == set()


async def test_closing_what_was_never_used_or_closed_before_is_fine(fake: FakeRoomService) -> None:
    async with room_service(fake) as service:
        await service.__aexit__(None, None, None)
    assert fake.calls == []


# --- Whether LiveKit takes our calls at all ----------------------------------------------------------------------


class Misdated(AccessToken):
    """A token as it is made while the clock is two hours behind."""

    def to_jwt(self) -> str:
        return AccessToken.to_jwt(self.with_ttl(timedelta(hours=-1)))


async def test_a_token_that_was_made_while_a_clock_was_wrong_is_made_anew(
    service: RoomService, bob: Identity, signings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(connection, "AccessToken", Misdated)
        with pytest.raises(MediaServerRejected, match="401"):
            await service.list_presences(ROOM)
        assert len(signings) == 1, "one that was just made need not be made anew"
    for _ in range(2):
        assert [presence.identity for presence in await service.list_presences(ROOM)] == [bob]
    assert len(signings) == 2
    assert service.trouble is None


async def test_a_no_that_a_new_token_does_not_change_is_a_no(fake: FakeRoomService, service: RoomService) -> None:
    await service.ensure_room(ROOM)
    with fake.refuse("unauthenticated", method="ListParticipants"), pytest.raises(MediaServerRejected):
        await service.list_presences(ROOM)
    assert methods(fake).count("ListParticipants") == 2


async def test_tokens_of_before_the_wall_clock_was_set_count_for_nothing(
    service: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorization, wall_clock = service._connection._authorization, time.time
    headers = authorization(ROOM)
    assert authorization(ROOM) is headers
    for step_s in (3_600, -3_600):
        monkeypatch.setattr(time, "time", lambda step_s=step_s: wall_clock() + step_s)
        renewed = authorization(ROOM)
        assert renewed is not headers
        assert authorization(ROOM) is renewed
        headers = renewed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that follow one another quickly."""
    monkeypatch.setattr(availability, "_LONGEST_PAUSE_S", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("code", "trouble", "setting"),
    [
        ("unauthenticated", "unauthorized", "LIVEKIT_API_KEY, LIVEKIT_API_SECRET"),
        ("permission_denied", "unauthorized", "LIVEKIT_API_KEY, LIVEKIT_API_SECRET"),
        ("bad_route", "unexpected_answer", "LIVEKIT_URL"),
    ],
)
async def test_what_refuses_everything_is_told_once_and_asked_until_it_takes_calls(
    fake: FakeRoomService, service: RoomService, code: str, trouble: str, setting: str
) -> None:
    returned: list[None] = []
    service.on_return(lambda: returned.append(None))
    with capture_logs() as logs:
        with fake.refuse(code):
            await service.check()
            assert (service.trouble, service.answering) == (trouble, True)
            await until(lambda: len(fake.calls) > 3)
        assert returned == []
        await until(lambda: service.trouble is None)
    told = [line for line in logs if line["event"] != "livekit_call_failed"]
    assert [(line["event"], line["log_level"]) for line in told] == [
        ("media_server_refuses", "error"),
        ("media_server_accepts_again", "info"),
    ]
    assert (told[0]["reason"], told[0]["setting"]) == (trouble, setting)
    assert returned == [None]


@pytest.mark.usefixtures("impatient")
async def test_any_call_that_is_unauthorized_shows_it(fake: FakeRoomService, service: RoomService) -> None:
    with fake.refuse("unauthenticated", method="CreateRoom"), pytest.raises(MediaServerRejected):
        await service.ensure_room(ROOM)
    assert service.trouble == "unauthorized"
    await until(lambda: service.trouble is None)


async def test_a_no_about_somebody_is_no_trouble(fake: FakeRoomService, service: RoomService, bob: Identity) -> None:
    presence = await presence_of(service, bob)
    with fake.refuse("permission_denied"), pytest.raises(MediaServerRejected):
        await service.allow(presence, ())
    assert service.trouble is None


async def test_what_was_not_heard_of_for_long_is_asked(
    fake: FakeRoomService, service: RoomService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.check()
    service.check_if_long_unheard()
    assert methods(fake) == ["ListRooms"]
    monkeypatch.setattr(availability, "_LONGEST_CHECK_PAUSE_S", -1)
    with capture_logs() as logs, fake.reset(method="ListRooms", times=1):
        for _ in range(3):
            service.check_if_long_unheard()
        events = ["media_server_unavailable", "livekit_call_failed", "media_server_answers_again"]
        await until(lambda: [line["event"] for line in logs] == events)
    assert service.trouble is None


async def test_closing_ends_the_checking(fake: FakeRoomService) -> None:
    async with room_service(fake) as service:
        with fake.refuse("unauthenticated"):
            await service.check()
    checking = service._connection.availability._checking
    assert checking is not None
    assert checking.cancelled()
