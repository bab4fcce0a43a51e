"""LiveKit's RoomService: calls, deadlines, pace, and one table of errors."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import MappingProxyType, TracebackType
from typing import Final, Literal, Self, TypeVar
from weakref import WeakValueDictionary

import aiohttp
import structlog
from google.protobuf.message import DecodeError
from livekit.api import AccessToken, LiveKitAPI, ServerError, VideoGrants
from livekit.api.room_service import RoomService as Client
from livekit.protocol import models
from livekit.protocol import room as protocol
from tenacity import AsyncRetrying, retry_if_exception, wait_exponential

from signaling import metrics
from signaling.core.effects import Presence, Priority
from signaling.core.participants import Source
from signaling.errors import (
    MediaServerError,
    MediaServerRejected,
    MediaServerUnavailable,
    ParticipantGone,
    RoomGone,
    TrackGone,
)
from signaling.identifiers import Identity, LiveKitRoom, TrackSid
from signaling.livekit.contract import MediaServer
from signaling.livekit.pace import Pace
from signaling.livekit.roster import SOURCE_NUMBERS, presence_of

log = structlog.get_logger(__name__)
Request = TypeVar("Request")
Response = TypeVar("Response")

ROOM_TIMEOUT_S: Final = 86_400
"""How long LiveKit keeps a room in which nobody is: meetings end by our word, not by its."""
_TOKEN_LIFETIME_S: Final = 3_600
_LIVEKIT_SHARE: Final = 0.75
"""Of our deadline; LiveKit's own waits for a node that answers for a participant end before ours does."""
_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
"""Between probes, and before the first if LiveKit was away just before."""
_LONGEST_CHECK_PAUSE_S: Final = 5.0
"""Between checks while LiveKit refuses everything; and how long ago it must have been heard of to be checked at all."""
_CLOCK_STEP_S: Final = 5.0
"""By how much the wall clock may differ from the monotonic one before what it has dated counts for nothing."""

Trouble = Literal["unreachable", "unauthorized", "unexpected_answer"]
"""Why LiveKit does nothing of what it is asked."""
_SETTINGS: Final[MappingProxyType[Trouble, str]] = MappingProxyType(
    {
        "unreachable": "LIVEKIT_URL",
        "unauthorized": "LIVEKIT_API_KEY, LIVEKIT_API_SECRET",
        "unexpected_answer": "LIVEKIT_URL",
    }
)
"""What is perhaps wrong then."""

NOBODY_ANSWERED: Final = frozenset({"unavailable", "canceled", "deadline_exceeded"})
"""Twirp's codes for: LiveKit is there, but found nobody in it who would answer for that room or participant."""
ERRORS: Final = MappingProxyType(
    {
        "not_found": ParticipantGone,
        "unavailable": ParticipantGone,
        "canceled": ParticipantGone,
        "deadline_exceeded": ParticipantGone,
        "aborted": MediaServerRejected,
        "already_exists": MediaServerRejected,
        "bad_route": MediaServerRejected,
        "dataloss": MediaServerRejected,
        "failed_precondition": MediaServerRejected,
        "internal": MediaServerRejected,
        "invalid_argument": MediaServerRejected,
        "malformed": MediaServerRejected,
        "out_of_range": MediaServerRejected,
        "permission_denied": MediaServerRejected,
        "resource_exhausted": MediaServerRejected,
        "unauthenticated": MediaServerRejected,
        "unimplemented": MediaServerRejected,
        "unknown": MediaServerRejected,
    }
)
"""What each of Twirp's codes means, for a call about a participant; for a room `ParticipantGone` becomes `RoomGone`."""
_GATEWAY_STATUSES: Final = frozenset({502, 503, 504})
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403


def map_error(error: BaseException) -> MediaServerError:
    """What an error of LiveKit's client means."""
    match error:
        case ServerError(code="unknown", status=status) if status in _GATEWAY_STATUSES:
            # Not LiveKit's words: a proxy in front of it says that nothing is behind.
            return MediaServerUnavailable(f"a gateway answered {status}")
        case ServerError():
            kind = ERRORS.get(str(error.code), MediaServerRejected)
            return kind(f"{error.code}: {error.message} (status {error.status})")
        case TimeoutError():
            return MediaServerUnavailable("no answer in time")
        case (
            aiohttp.ClientResponseError()
            | aiohttp.RedirectClientError()
            | aiohttp.InvalidURL()
            | aiohttp.NonHttpUrlClientError()
            | DecodeError()
            | AttributeError()
        ):
            # The last is livekit-api's own for an error whose JSON is no object.
            return MediaServerRejected(f"unreadable answer: {type(error).__name__}")
        case _:
            return MediaServerUnavailable(f"{type(error).__name__}: {error}")


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
        self._url = url
        self._api_key = api_key
        self._api_secret = api_secret
        self._timeout_s = timeout_s
        self._calls_per_room = calls_per_room
        self._session: aiohttp.ClientSession | None = None
        self._clients: dict[LiveKitRoom, tuple[float, float, Client]] = {}
        """With the time at which each token was made, and the difference of the clocks by then."""
        # A pace lives for as long as anybody has or waits for one of its places.
        self._paces: WeakValueDictionary[LiveKitRoom, Pace] = WeakValueDictionary()
        self._rooms: dict[LiveKitRoom, asyncio.Task[None]] = {}
        self._creating: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._answering = True
        self._last_answer_at = float("-inf")
        self._returned_at = float("-inf")
        self._pause_s = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._refusing: Trouble | None = None
        self._checking: asyncio.Task[None] | None = None
        self._on_return: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        timeout_ms = round(self._timeout_s * _LIVEKIT_SHARE * 1_000)
        self._session = aiohttp.ClientSession(
            headers={"X-Twirp-Timeout-Ms": str(timeout_ms)}, connector=aiohttp.TCPConnector(limit=0)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True  # else a call that the closing cuts off would begin to probe
        tasks = self._creating | {task for task in (self._probe, self._checking) if task is not None}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    @property
    def answering(self) -> bool:
        """False from the moment when calls get no answer until a probe gets one."""
        return self._answering

    @property
    def trouble(self) -> Trouble | None:
        """Why LiveKit does nothing of what it is asked, as far as is known; `None` if it does."""
        return self._refusing if self._answering else "unreachable"

    async def check(self) -> None:
        """Ask what is refused to nobody whose settings are right; `trouble` then says what came of it."""
        nowhere = LiveKitRoom("")
        with contextlib.suppress(MediaServerError):
            await self._call(
                "ListRooms", nowhere, Client.list_rooms, protocol.ListRoomsRequest(names=["none"]), probing=True
            )

    def check_if_long_unheard(self) -> None:
        """Begin to `check`, unless LiveKit has been heard of lately or is being asked anyway."""
        is_long_ago = asyncio.get_running_loop().time() > self._last_answer_at + _LONGEST_CHECK_PAUSE_S
        if self._answering and is_long_ago:
            self._begin_checking(at_once=True)

    @property
    def timeout_s(self) -> float:
        """The deadline of one call."""
        return self._timeout_s

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever LiveKit answers again after it had not."""
        self._on_return.append(callback)

    @asynccontextmanager
    async def slot(self, room: LiveKitRoom, priority: Priority) -> AsyncIterator[None]:
        """Wait for one of the places that calls for a room have, and keep it inside the block."""
        self._check_answering()
        pace = self._paces.setdefault(room, Pace(self._calls_per_room))
        async with pace.slot(priority):
            yield

    async def ensure_room(self, room: LiveKitRoom) -> None:
        """Make sure that the room is there; many who ask at once share one call."""
        self._check_answering()
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
            await self._call("DeleteRoom", room, Client.delete_room, protocol.DeleteRoomRequest(room=room))
        except ParticipantGone as error:
            if _nobody_answered(error):
                raise MediaServerRejected(str(error)) from error  # it is perhaps still there, and people in it
        self._clients.pop(room, None)

    async def rooms_there(self, rooms: Sequence[LiveKitRoom]) -> frozenset[LiveKitRoom]:
        """Which of these rooms there are."""
        nowhere = LiveKitRoom("")
        request = protocol.ListRoomsRequest(names=list(rooms))
        answer = await self._call("ListRooms", nowhere, Client.list_rooms, request)
        return frozenset(LiveKitRoom(room.name) for room in answer.rooms)

    async def list_presences(self, room: LiveKitRoom, *, make: bool = True) -> tuple[Presence, ...]:
        """Everybody in the room, whatever they are."""
        request = protocol.ListParticipantsRequest(room=room)
        list_participants = Client.list_participants
        known = self._rooms.get(room)
        try:
            answer = await self._call("ListParticipants", room, list_participants, request)
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
                answer = await self._call("ListParticipants", room, list_participants, request)
            except ParticipantGone as error:
                raise RoomGone(str(error)) from error
        gone = models.ParticipantInfo.State.DISCONNECTED
        return tuple(presence_of(room, info) for info in answer.participants if info.state != gone)

    async def allow(self, presence: Presence, sources: tuple[Source, ...]) -> Presence:
        """Let somebody publish these sources and no others."""
        permission = models.ParticipantPermission.FromString(presence.permission.whole)
        permission.can_publish = bool(sources)
        permission.ClearField("can_publish_sources")
        permission.can_publish_sources.extend(SOURCE_NUMBERS[source] for source in sources)
        request = protocol.UpdateParticipantRequest(
            room=presence.room, identity=presence.identity, permission=permission
        )
        info = await self._call("UpdateParticipant", presence.room, Client.update_participant, request)
        return presence_of(presence.room, info)

    async def mute(self, room: LiveKitRoom, identity: Identity, track: TrackSid) -> None:
        """Mute a track."""
        request = protocol.MuteRoomTrackRequest(room=room, identity=identity, track_sid=track, muted=True)
        answer = await self._call("MutePublishedTrack", room, Client.mute_published_track, request)
        if not answer.HasField("track"):
            raise TrackGone(f"{track} is not a track of {identity}")

    async def remove(self, room: LiveKitRoom, identity: Identity) -> None:
        """Disconnect an identity."""
        request = protocol.RoomParticipantIdentity(room=room, identity=identity)
        try:
            await self._call("RemoveParticipant", room, Client.remove_participant, request)
        except ParticipantGone as error:
            if _nobody_answered(error):
                raise

    # --- One call ------------------------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        room: LiveKitRoom,
        call: Callable[[Client, Request], Awaitable[Response]],
        request: Request,
        *,
        probing: bool = False,
    ) -> Response:
        if not probing:
            self._check_answering()
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        result = None
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._authorized(room, call, request)
            result = "ok"
        except (ServerError, aiohttp.ClientError, TimeoutError, DecodeError, AttributeError) as error:
            mapped = map_error(error)
            result = "unavailable" if isinstance(mapped, MediaServerUnavailable) else "rejected"
            if isinstance(mapped, MediaServerUnavailable):
                self._note_silence(began_at, mapped)
            else:
                self._note_answer()
                self._note_refusal(method, error)
            log.debug("livekit_call_failed", method=method, room=room, error=str(mapped))
            raise mapped from error
        finally:
            if result is not None:  # else it was cancelled
                metrics.LIVEKIT_CALLS.labels(method, result).inc()
                metrics.LIVEKIT_CALL_DURATION.labels(method).observe(loop.time() - began_at)
        self._note_answer()
        self._note_acceptance()
        return answer

    async def _authorized(
        self, room: LiveKitRoom, call: Callable[[Client, Request], Awaitable[Response]], request: Request
    ) -> Response:
        cached = self._clients.get(room)
        try:
            return await call(self._client(room), request)
        except ServerError as error:
            if error.status != _UNAUTHORIZED or cached is None or self._clients.get(room) is not cached:
                raise
        # Its token was made while a clock was wrong, perhaps: ours, or LiveKit's.
        del self._clients[room]
        return await call(self._client(room), request)

    def _note_refusal(self, method: str, error: Exception) -> None:
        """Whether it is this call, or all of them: listing rooms is right whatever LiveKit holds."""
        status = error.status if isinstance(error, ServerError) else None
        if status == _UNAUTHORIZED or (method == "ListRooms" and status == _FORBIDDEN):
            refusing: Trouble = "unauthorized"
        elif method == "ListRooms":
            refusing = "unexpected_answer"
        else:
            return
        if self._refusing != refusing:
            self._refusing = refusing
            # What it says is left out: that may repeat the token.
            log.error("media_server_refuses", reason=refusing, setting=_SETTINGS[refusing], status=status)
        self._begin_checking(at_once=False)

    def _note_acceptance(self) -> None:
        if self._refusing is not None:
            self._refusing = None
            log.info("media_server_accepts_again")
            self._begin_anew()

    def _begin_checking(self, *, at_once: bool) -> None:
        if not self._is_closed and (self._checking is None or self._checking.done()):
            self._checking = asyncio.create_task(self._check_until_accepted(at_once=at_once), name="media-server-check")

    async def _check_until_accepted(self, *, at_once: bool) -> None:
        if at_once:
            await self.check()
        pause_s = _LONGEST_PAUSE_S
        while self._refusing is not None:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_CHECK_PAUSE_S)
            await self.check()

    def _check_answering(self) -> None:
        if not self._answering:
            raise MediaServerUnavailable("LiveKit does not answer")

    def _note_answer(self) -> None:
        self._last_answer_at = asyncio.get_running_loop().time()
        if not self._answering:
            self._answering = True
            self._returned_at = self._last_answer_at
            log.info("media_server_answers_again")
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.forget_rooms()
        for callback in self._on_return:
            callback()

    def _note_silence(self, began_at: float, error: MediaServerError) -> None:
        if not self._answering or self._last_answer_at > began_at or self._is_closed:
            return  # something else was answered meanwhile: it is this call, not LiveKit
        self._answering = False
        # One that answers a probe and nothing else would be asked for everything again without a pause.
        is_soon = asyncio.get_running_loop().time() < self._returned_at + _LONGEST_PAUSE_S
        self._pause_s = min(max(self._pause_s * 2, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S) if is_soon else 0
        log.warning("media_server_unavailable", setting=_SETTINGS["unreachable"], error=str(error))
        for pace in self._paces.values():
            pace.refuse_waiting(MediaServerUnavailable("LiveKit does not answer"))
        if self._probe is None or self._probe.done():  # a late answer to another call may have come before the probe's
            self._probe = asyncio.create_task(self._probe_until_answered(), name="media-server-probe")

    async def _probe_until_answered(self) -> None:
        await asyncio.sleep(self._pause_s)
        nowhere = LiveKitRoom("")
        retrying = AsyncRetrying(
            # A bug too must not end the probing, or LiveKit would stay away for good.
            retry=retry_if_exception(
                lambda error: isinstance(error, Exception) and not isinstance(error, MediaServerRejected)
            ),
            wait=wait_exponential(multiplier=_SHORTEST_PAUSE_S, max=_LONGEST_PAUSE_S),
        )
        # Any answer will do, also a no; `_call` notes it.
        with contextlib.suppress(MediaServerRejected):
            await retrying(
                self._call,
                "ListRooms",
                nowhere,
                Client.list_rooms,
                protocol.ListRoomsRequest(names=["none"]),
                probing=True,
            )

    async def _create_room(self, room: LiveKitRoom) -> None:
        request = protocol.CreateRoomRequest(name=room, empty_timeout=ROOM_TIMEOUT_S, departure_timeout=ROOM_TIMEOUT_S)
        # The answer holds a password for TURN, which must never be logged.
        await self._call("CreateRoom", room, Client.create_room, request)

    def _keep_room(self, room: LiveKitRoom, created: asyncio.Task[None]) -> None:
        self._creating.discard(created)
        failed = created.cancelled() or created.exception() is not None
        if failed and self._rooms.get(room) is created:
            del self._rooms[room]

    def _client(self, room: LiveKitRoom) -> Client:
        """The client for a room, with a token that is made once an hour: signing one a call costs 40 % more CPU."""
        if self._session is None:
            raise RuntimeError("RoomService is used outside its `async with`")
        now = asyncio.get_running_loop().time()
        difference = time.time() - time.monotonic()
        made_at, difference_then, client = self._clients.get(room, (float("-inf"), difference, None))
        is_misdated = abs(difference - difference_then) > _CLOCK_STEP_S  # the wall clock was set meanwhile
        if client is None or now - made_at > _TOKEN_LIFETIME_S / 2 or is_misdated:
            grants = VideoGrants(room_create=True, room_list=True, room_admin=True, room=room)
            token = AccessToken(self._api_key, self._api_secret).with_grants(grants)
            jwt = token.with_ttl(timedelta(seconds=_TOKEN_LIFETIME_S)).to_jwt()
            client = LiveKitAPI.with_token(jwt, self._url, session=self._session, failover=False).room
            self._clients.pop(room, None)
            self._clients[room] = (now, difference, client)
            self._drop_old_clients(now)
        return client

    def _drop_old_clients(self, now: float) -> None:
        while True:
            room, (made_at, _, _) = next(iter(self._clients.items()))  # the oldest; the newest was made just now
            if now - made_at <= _TOKEN_LIFETIME_S / 2:
                return
            del self._clients[room]


def _nobody_answered(error: MediaServerError) -> bool:
    """Whether this is LiveKit's not having found, in time, whom it asked; unlike a plain "there is none"."""
    return isinstance(error.__cause__, ServerError) and error.__cause__.code in NOBODY_ANSWERED
