"""The methods of RoomService: what each does to the rooms, or how LiveKit refuses it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from google.protobuf.message import Message
from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling.testing.fake_room_service.answers import PROTOBUF, Answer, error
from signaling.testing.fake_room_service.rooms import Person, Room, Rooms

_NONCE_BYTES: Final = 16
_MAX_ROOM_NAME: Final = 256

Asked: TypeAlias = Any  # one of the requests, whose common fields are looked at by name
_Participantful: TypeAlias = (
    protocol.RoomParticipantIdentity
    | protocol.UpdateParticipantRequest
    | protocol.MuteRoomTrackRequest
    | protocol.UpdateSubscriptionsRequest
)


@dataclass(frozen=True, slots=True)
class Method:
    """
    A method of RoomService.

    Attributes:
        handler: Carries it out at once, or raises `_RefusedError` or `_NobodyError`.
        room_field: Where the request has the room's name; empty when it is not about one.
        grant: What a token must have.
    """

    request: type[Message]
    handler: Callable[[Any], Message]
    room_field: str = "room"
    grant: str = "roomAdmin"


class Methods:
    """All of them, by name."""

    def __init__(self, rooms: Rooms, psrpc_timeout_s: float) -> None:
        """See `FakeRoomService`."""
        self._rooms = rooms
        self._psrpc_timeout_s = psrpc_timeout_s
        self._methods: Final[Mapping[str, Method]] = MappingProxyType(
            {
                "CreateRoom": Method(protocol.CreateRoomRequest, self.create_room, "name", "roomCreate"),
                "DeleteRoom": Method(protocol.DeleteRoomRequest, self._delete_room, grant="roomCreate"),
                "GetParticipant": Method(protocol.RoomParticipantIdentity, self._get_participant),
                "ListParticipants": Method(protocol.ListParticipantsRequest, self._list_participants),
                "ListRooms": Method(protocol.ListRoomsRequest, self._list_rooms, "", "roomList"),
                "MutePublishedTrack": Method(protocol.MuteRoomTrackRequest, self._mute_track),
                "RemoveParticipant": Method(protocol.RoomParticipantIdentity, self._remove_participant),
                "SendData": Method(protocol.SendDataRequest, self._send_data),
                "UpdateParticipant": Method(protocol.UpdateParticipantRequest, self._update_participant),
                "UpdateSubscriptions": Method(protocol.UpdateSubscriptionsRequest, self._update_subscriptions),
            }
        )

    def get(self, name: str) -> Method | None:
        """A method, if there is one of that name."""
        return self._methods.get(name)

    async def carry_out(self, method: Method, asked: Asked, cut_s: float | None) -> Answer:
        """Do what is asked, or wait for `cut_s` at most where nobody is there to answer it."""
        try:
            return Answer(HTTPStatus.OK, method.handler(asked).SerializeToString(), PROTOBUF)
        except _RefusedError as refused:
            return refused.answer
        except _NobodyError:
            # LiveKit asks around who serves the room or the participant, and somebody might still turn up.
            if cut_s is not None and cut_s < self._psrpc_timeout_s:
                await asyncio.sleep(cut_s)
                return error("canceled", "twirp error unknown: request canceled")
            await asyncio.sleep(self._psrpc_timeout_s)
            return error("unavailable", "twirp error unknown: no response from servers")

    def create_room(self, asked: protocol.CreateRoomRequest) -> models.Room:
        """Make sure that a room is there."""
        if len(asked.name) > _MAX_ROOM_NAME:
            raise _RefusedError("invalid_argument", f"room name length exceeds limits: max length {_MAX_ROOM_NAME}")
        return (self._rooms.get(asked.name) or self._rooms.make(asked)).described()

    def _list_rooms(self, asked: protocol.ListRoomsRequest) -> protocol.ListRoomsResponse:
        return protocol.ListRoomsResponse(
            rooms=[room.described() for room in self._rooms if not asked.names or room.info.name in asked.names]
        )

    def _delete_room(self, asked: protocol.DeleteRoomRequest) -> protocol.DeleteRoomResponse:
        room = self._rooms.get(asked.room)
        if room is None:
            raise _RefusedError("not_found", "requested room does not exist")
        self._rooms.finish(room)
        return protocol.DeleteRoomResponse()

    def _list_participants(self, asked: protocol.ListParticipantsRequest) -> protocol.ListParticipantsResponse:
        room = self._rooms.get(asked.room)
        if room is None:
            raise _NobodyError
        return protocol.ListParticipantsResponse(participants=[person.info for person in room.people.values()])

    def _get_participant(self, asked: protocol.RoomParticipantIdentity) -> models.ParticipantInfo:
        if self._rooms.get(asked.room) is None:
            raise _NobodyError
        return self._known(asked)[1].info

    def _remove_participant(self, asked: protocol.RoomParticipantIdentity) -> protocol.RemoveParticipantResponse:
        self._rooms.drop(*self._known(asked))
        return protocol.RemoveParticipantResponse()

    def _mute_track(self, asked: protocol.MuteRoomTrackRequest) -> protocol.MuteRoomTrackResponse:
        room, person = self._answering(asked)
        if not asked.muted:
            raise _RefusedError("failed_precondition", "remote unmute not enabled")
        for track in person.info.tracks:
            if track.sid == asked.track_sid:
                self._rooms.set_muted(room, person, track, muted=True)
                return protocol.MuteRoomTrackResponse(track=track)
        return protocol.MuteRoomTrackResponse()

    def _update_participant(self, asked: protocol.UpdateParticipantRequest) -> models.ParticipantInfo:
        room, person = self._known(asked)
        info = person.info
        if asked.name:
            info.name = asked.name
            info.version += 1
        if asked.metadata:
            info.metadata = asked.metadata
            info.version += 1
        if asked.attributes:
            info.version += 1
            for key, value in asked.attributes.items():
                if value:
                    info.attributes[key] = value
                else:
                    info.attributes.pop(key, None)
        if asked.HasField("permission") and asked.permission != info.permission:
            self._rooms.permit(room, person, asked.permission)
        return info

    def _update_subscriptions(self, asked: protocol.UpdateSubscriptionsRequest) -> protocol.UpdateSubscriptionsResponse:
        self._answering(asked)
        return protocol.UpdateSubscriptionsResponse()

    def _send_data(self, asked: protocol.SendDataRequest) -> protocol.SendDataResponse:
        if len(asked.nonce) not in {0, _NONCE_BYTES}:
            raise _RefusedError(
                "invalid_argument",
                f"nonce should be 16-bytes or not present, got: {len(asked.nonce)} bytes",
                prefix="",
            )
        if self._rooms.get(asked.room) is None:
            raise _NobodyError
        return protocol.SendDataResponse()

    def _known(self, asked: _Participantful) -> tuple[Room, Person]:
        """The participant asked for, where LiveKit looks first whether there is one."""
        try:
            return self._rooms.find(asked.room, asked.identity)
        except KeyError:
            raise _RefusedError("not_found", "participant does not exist") from None

    def _answering(self, asked: _Participantful) -> tuple[Room, Person]:
        """The participant asked for, where LiveKit just waits for them to answer."""
        try:
            return self._rooms.find(asked.room, asked.identity)
        except KeyError:
            raise _NobodyError from None


class _RefusedError(Exception):
    def __init__(self, code: str, message: str, *, prefix: str = "twirp error unknown: ") -> None:
        super().__init__(code)
        self.answer: Final = error(code, prefix + message)


class _NobodyError(Exception):
    """There is nobody to answer the call."""
