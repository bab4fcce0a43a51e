"""LiveKit's RoomService in our terms: its rooms, who is in them, and at what pace it is told of them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Self
from weakref import WeakValueDictionary

from google.protobuf.message import DecodeError
from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling.core.effects import Presence, Priority
from signaling.core.participants import Source
from signaling.errors import MediaServerRejected, MediaServerUnavailable, ParticipantGone, RoomGone, TrackGone
from signaling.identifiers import Identity, LiveKitRoom, TrackSid
from signaling.livekit.availability import Trouble, not_answering
from signaling.livekit.connection import NOWHERE, Connection
from signaling.livekit.contract import MediaServer
from signaling.livekit.error_table import map_error, nobody_answered
from signaling.livekit.pace import Pace
from signaling.livekit.roster import SOURCE_NUMBERS, LastList, Listed, presence_of

__all__ = ["ROOM_TIMEOUT_S", "RoomService", "Trouble"]

ROOM_TIMEOUT_S: Final = 86_400
"""How long LiveKit keeps a room in which nobody is: meetings end by our word, not by its."""
_KNOWN_ROOMS: Final = 1_000
"""In so many of the rooms that were listed last, nobody is read anew of whom LiveKit says the same again."""


class RoomService(MediaServer):
    """
    RoomService of one LiveKit deployment, over one pooled HTTP session.

    Args:
        url: Of LiveKit, in http or ws form.
        timeout_s: The deadline of one call, above 0.
        calls_per_room: Calls in flight for one LiveKit room.
    """

    def __init__(
        self, url: str, api_key: str, api_secret: str, *, timeout_s: float = 2, calls_per_room: int = 8
    ) -> None:
        self._connection = Connection(url, api_key, api_secret, timeout_s=timeout_s)
        self._availability = self._connection.availability
        self._availability.on_silence(self._refuse_waiting)
        self._availability.on_return(self.forget_rooms)
        self._calls_per_room = calls_per_room
        # A pace lives for as long as anybody has or waits for one of its places.
        self._paces: WeakValueDictionary[LiveKitRoom, Pace] = WeakValueDictionary()
        self._rooms: dict[LiveKitRoom, asyncio.Task[None]] = {}
        self._creating: set[asyncio.Task[None]] = set()
        self._last_lists: dict[LiveKitRoom, LastList] = {}
        """In the order in which they were listed last."""

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        creating = tuple(self._creating)
        for task in creating:
            task.cancel()
        await asyncio.gather(*creating, return_exceptions=True)
        await self._connection.__aexit__(kind, error, traceback)

    @property
    def answering(self) -> bool:
        """False from the moment when calls get no answer until a probe gets one."""
        return self._availability.answering

    @property
    def trouble(self) -> Trouble | None:
        """Why LiveKit does nothing of what it is asked, as far as is known; `None` if it does."""
        return self._availability.trouble

    async def check(self) -> None:
        """Ask what is refused to nobody whose settings are right; `trouble` then says what came of it."""
        await self._availability.check()

    def check_if_long_unheard(self) -> None:
        """Begin to `check`, unless LiveKit has been heard of lately or is being asked anyway."""
        self._availability.check_if_long_unheard()

    @property
    def timeout_s(self) -> float:
        """The deadline of one call."""
        return self._connection.timeout_s

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever LiveKit answers again after it had not."""
        self._availability.on_return(callback)

    def slot(self, room: LiveKitRoom, priority: Priority) -> AbstractAsyncContextManager[None]:
        """Wait for one of the places that calls for a room have, and keep it inside the block."""
        self._availability.check_answering()
        pace = self._paces.get(room)
        if pace is None:
            pace = self._paces[room] = Pace(self._calls_per_room)
        return pace.slot(priority)

    async def ensure_room(self, room: LiveKitRoom) -> None:
        """Make sure that the room is there; many who ask at once share one call."""
        self._availability.check_answering()
        known = self._rooms.get(room)
        if known is None:
            known = asyncio.create_task(self._create_room(room), name="create-room")
            self._rooms[room] = known
            self._creating.add(known)
            known.add_done_callback(lambda done: self._keep_room(room, done))
        if not known.done():
            # One who gives up must not take the room away from those who wait with them.
            await asyncio.wait({known})
        if known.cancelled():
            raise MediaServerUnavailable("the connection to LiveKit was closed")
        known.result()

    def forget_rooms(self, *rooms: LiveKitRoom) -> None:
        """What was known of these rooms is known no longer; of all of them, if none is named."""
        self._rooms = {
            room: task for room, task in self._rooms.items() if not task.done() or (rooms and room not in rooms)
        }

    async def delete_room(self, room: LiveKitRoom) -> None:
        """End a room for everybody in it."""
        known = self._rooms.pop(room, None)
        if known is not None and not known.done():
            await asyncio.wait({known})  # else it would be made right after it was deleted
        try:
            request = protocol.DeleteRoomRequest(room=room)
            await self._connection.call("DeleteRoom", room, request, protocol.DeleteRoomResponse)
        except ParticipantGone as error:
            if nobody_answered(error):
                raise MediaServerRejected(str(error)) from error  # it is perhaps still there, and people in it
        self._last_lists.pop(room, None)
        self._connection.forget(room)

    async def rooms_there(self, rooms: Sequence[LiveKitRoom]) -> frozenset[LiveKitRoom]:
        """Which of these rooms there are."""
        request = protocol.ListRoomsRequest(names=list(rooms))
        answer = await self._connection.call("ListRooms", NOWHERE, request, protocol.ListRoomsResponse)
        return frozenset(LiveKitRoom(room.name) for room in answer.rooms)

    async def list_presences(self, room: LiveKitRoom, *, make: bool = True) -> tuple[Presence, ...]:
        """Everybody in the room, whatever they are."""
        known = self._rooms.get(room)
        try:
            return await self._list(room)
        except ParticipantGone as error:
            if not make:
                return ()
            if known is not None and room not in self._rooms:
                raise RoomGone(str(error)) from error  # it was deleted meanwhile
            # Nobody answers for the room: it is gone with a crash of LiveKit, say. Made anew, it is empty.
            known = self._rooms.get(room)
            if known is not None and known.done():
                del self._rooms[room]
            await self.ensure_room(room)
            try:
                return await self._list(room)
            except ParticipantGone as error:
                raise RoomGone(str(error)) from error

    async def allow(self, presence: Presence, sources: tuple[Source, ...]) -> Presence:
        """Let somebody publish these sources and no others."""
        permission = models.ParticipantPermission.FromString(presence.permission.whole)
        permission.can_publish = bool(sources)
        permission.ClearField("can_publish_sources")
        permission.can_publish_sources.extend(SOURCE_NUMBERS[source] for source in sources)
        request = protocol.UpdateParticipantRequest(
            room=presence.room, identity=presence.identity, permission=permission
        )
        info = await self._connection.call("UpdateParticipant", presence.room, request, models.ParticipantInfo)
        return presence_of(presence.room, info)

    async def mute(self, room: LiveKitRoom, identity: Identity, track: TrackSid) -> None:
        """Mute a track."""
        request = protocol.MuteRoomTrackRequest(room=room, identity=identity, track_sid=track, muted=True)
        answer = await self._connection.call("MutePublishedTrack", room, request, protocol.MuteRoomTrackResponse)
        if not answer.HasField("track"):
            raise TrackGone(f"{track} is not a track of {identity}")

    async def remove(self, room: LiveKitRoom, identity: Identity) -> None:
        """Disconnect an identity."""
        request = protocol.RoomParticipantIdentity(room=room, identity=identity)
        try:
            await self._connection.call("RemoveParticipant", room, request, protocol.RemoveParticipantResponse)
        except ParticipantGone as error:
            if nobody_answered(error):
                raise

    async def _list(self, room: LiveKitRoom) -> tuple[Presence, ...]:
        request = protocol.ListParticipantsRequest(room=room)
        answer = await self._connection.call("ListParticipants", room, request, Listed)
        last = self._last_lists.pop(room, None) or LastList(room)
        try:
            presences = last.read(answer)
        except DecodeError as error:
            raise map_error(error) from error
        self._last_lists[room] = last
        if len(self._last_lists) > _KNOWN_ROOMS:
            del self._last_lists[next(iter(self._last_lists))]
        return presences

    def _refuse_waiting(self) -> None:
        for pace in self._paces.values():
            pace.refuse_waiting(not_answering())

    async def _create_room(self, room: LiveKitRoom) -> None:
        request = protocol.CreateRoomRequest(name=room, empty_timeout=ROOM_TIMEOUT_S, departure_timeout=ROOM_TIMEOUT_S)
        # The answer holds a password for TURN, which must never be logged.
        await self._connection.call("CreateRoom", room, request, models.Room)

    def _keep_room(self, room: LiveKitRoom, created: asyncio.Task[None]) -> None:
        self._creating.discard(created)
        failed = created.cancelled() or created.exception() is not None
        if failed and self._rooms.get(room) is created:
            del self._rooms[room]
