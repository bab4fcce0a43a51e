"""
A stateful double of LiveKit's RoomService, for what the real one cannot be made to do at will.

It answers as livekit-server v1.13.5 does, with its codes and its words; one test suite holds for both.
"""

import asyncio
import itertools
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypedDict, TypeVar, Unpack

import jwt
from aiohttp import web
from google.protobuf.message import DecodeError, Message
from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling.testing.participants import JoinRefused, PublishRefused

_LOOPBACK: Final = "127.0.0.1"
_BACKLOG: Final = 1024
_SHUTDOWN_S: Final = 1
_PREFIX: Final = "/twirp/livekit.RoomService/"
_PROTOBUF: Final = "application/protobuf"
_BEARER: Final = "Bearer "
_LEEWAY_S: Final = 60
_NONCE_BYTES: Final = 16
_MAX_ROOM_NAME: Final = 256
_EMPTY_TIMEOUT_S: Final = 300
_DEPARTURE_TIMEOUT_S: Final = 20
_CODECS: Final = tuple(
    models.Codec(mime=mime)
    for mime in (
        *("audio/PCMU", "audio/PCMA", "audio/opus", "audio/red"),
        *("video/VP8", "video/H264", "video/VP9", "video/AV1", "video/H265", "video/rtx"),
    )
)
_SOURCES: Final = frozenset(models.TrackSource.keys())
_KINDS: Final = frozenset(models.ParticipantInfo.Kind.keys())
_MIME_TYPES: Final = MappingProxyType(
    {
        "camera": "video/VP8",
        "microphone": "audio/red",
        "screen_share": "video/VP8",
        "screen_share_audio": "audio/red",
    }
)
_SID_LETTERS: Final = MappingProxyType(
    {"camera": "C", "microphone": "M", "screen_share": "S", "screen_share_audio": "s", "unknown": ""}
)
_STATUSES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "aborted": 409,
        "already_exists": 409,
        "bad_route": 404,
        "canceled": 408,
        "dataloss": 500,
        "deadline_exceeded": 408,
        "failed_precondition": 412,
        "internal": 500,
        "invalid_argument": 400,
        "malformed": 400,
        "not_found": 404,
        "out_of_range": 400,
        "permission_denied": 403,
        "resource_exhausted": 429,
        "unauthenticated": 401,
        "unavailable": 503,
        "unimplemented": 501,
        "unknown": 500,
    }
)
"""Twirp's codes, and the HTTP status of each."""

Happening: TypeAlias = Literal[
    "room_started",
    "room_finished",
    "participant_joined",
    "participant_left",
    "track_published",
    "track_unpublished",
    "track_muted",
    "track_unmuted",
    "permission_changed",
]
_Asked: TypeAlias = Any  # one of the requests, whose common fields are looked at by name
_AnyMessage = TypeVar("_AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Change:
    """
    Something that changed, in the words of LiveKit's webhooks as far as those have one for it.

    The messages are copies of how things were right after it.
    """

    happening: Happening
    room: models.Room
    participant: models.ParticipantInfo | None = None
    track: models.TrackInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """
    A call that came in, with a token of ours and in words that were understood.

    Attributes:
        method: As LiveKit names it, such as `UpdateParticipant`.
        room: The LiveKit room; empty for `ListRooms`.
        identity: Whom it was about; empty when it was about a room.
        permission: What `UpdateParticipant` asked for; `None` when it left the permission alone.
        track_sid: What `MutePublishedTrack` named, else empty.
        muted: What `MutePublishedTrack` asked for, else `None`.
        arrived_at: By `time.monotonic`.
        answered_at: By the same clock; between the two the call was in flight.
        status: The HTTP status of the answer; `None` when the connection was cut instead.
    """

    method: str
    room: str
    identity: str
    permission: models.ParticipantPermission | None
    track_sid: str
    muted: bool | None
    arrived_at: float
    answered_at: float
    status: int | None

    @property
    def sources(self) -> tuple[str, ...] | None:
        """
        The sources that `UpdateParticipant` listed, none when it forbade to publish; `None` for any other call.

        None listed beside `can_publish` allows every source: look at `permission` to tell.
        """
        if self.permission is None:
            return None
        if not self.permission.can_publish:
            return ()
        return tuple(_source_name(source) for source in self.permission.can_publish_sources)


class Which(TypedDict, total=False):
    """
    Which calls something happens to; all where nothing is said.

    Attributes:
        method: As LiveKit names it.
        room: The LiveKit room.
        identity: Whom they are about.
        times: How many of them, from now on.
        takes_effect: True when LiveKit does what was asked, and only the answer suffers.
    """

    method: str
    room: str
    identity: str
    times: int
    takes_effect: bool


class Fault:
    """Something that happens to some calls, until it was often enough, is lifted, or its `with` block ends."""

    def __init__(
        self,
        among: "list[Fault]",
        which: Which,
        *,
        delay_s: float | None = 0,
        instead: "_Answer | _Reset | None" = None,
    ) -> None:
        """Made by the methods of `FakeRoomService`."""
        self._among = among
        self._which = which
        self._delay_s = delay_s
        self._instead = instead
        self._lifted = asyncio.Event()
        self._hits = 0
        self._changed = asyncio.Condition()
        among.append(self)

    def __enter__(self) -> Self:
        """Keep it for the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """`lift` it."""
        self.lift()

    @property
    def hits(self) -> int:
        """How many calls it has happened to."""
        return self._hits

    async def hit(self, times: int = 1) -> None:
        """Wait until it has happened to so many calls in all; cancelling is fine."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._hits >= times)

    def lift(self) -> None:
        """Let it happen no more; calls that hang in it go on."""
        if self in self._among:
            self._among.remove(self)
        self._lifted.set()

    def _matches(self, method: str, room: str, identity: str) -> bool:
        which = self._which
        return (
            which.get("method", method) == method
            and which.get("room", room) == room
            and which.get("identity", identity) == identity
        )

    async def _happen(self, carry_out: "Callable[[], Awaitable[_Answer]]") -> "_Answer | _Reset":
        self._hits += 1
        if self._hits == self._which.get("times"):
            self._among.remove(self)
        async with self._changed:
            self._changed.notify_all()
        answer = await carry_out() if self._which.get("takes_effect") else None
        if self._delay_s is None:
            await self._lifted.wait()
        elif self._delay_s:
            await asyncio.sleep(self._delay_s)
        return self._instead or answer or await carry_out()


class FakeRoomService:
    """
    LiveKit's RoomService without LiveKit, on a free port of this machine, with its state in plain sight.

    Participants come and go, and publish, by plain methods: `join`, `publish` and the like, which allow what LiveKit
    would allow. Calls over HTTP see and change the same state. Rooms do not end by themselves when they are empty.
    Use it as an async context manager.
    """

    def __init__(self, *, psrpc_timeout_s: float = 3, latency_s: float = 0, auto_create: bool = False) -> None:
        """
        Decide how it answers.

        Args:
            psrpc_timeout_s: How long a call waits where nobody is there to answer it, before it is `unavailable`.
            latency_s: How long each call takes at least; may be changed at any time, as the attribute.
            auto_create: Whether whoever joins makes the room, which is LiveKit's default; may be changed at any time.

        """
        self.api_key: Final = "fake"
        self.api_secret: Final = "a secret of the fake RoomService's own"  # noqa: S105  guards nothing
        self.calls: Final[list[Call]] = []
        """Every call so far, in the order of their answers. Yours to clear."""
        self.latency_s = latency_s
        self.auto_create = auto_create
        self._psrpc_timeout_s = psrpc_timeout_s
        self._rooms: dict[str, _Room] = {}
        self._faults: list[Fault] = []
        self._observers: list[Callable[[Change], None]] = []
        self._numbers = itertools.count(1)
        self._joined_at_ms = 0
        self._credentials: dict[str, _Credentials | _Answer] = {}
        self._in_flight: dict[asyncio.Task[Any], asyncio.BaseTransport] = {}
        self._running = asyncio.Event()
        self._running.set()
        self._port: int | None = None
        self._held_port: socket.socket | None = None
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._methods: Final[Mapping[str, _Method]] = MappingProxyType(
            {
                "CreateRoom": _Method(protocol.CreateRoomRequest, self._create_room, "name", "roomCreate"),
                "DeleteRoom": _Method(protocol.DeleteRoomRequest, self._delete_room, grant="roomCreate"),
                "GetParticipant": _Method(protocol.RoomParticipantIdentity, self._get_participant),
                "ListParticipants": _Method(protocol.ListParticipantsRequest, self._list_participants),
                "ListRooms": _Method(protocol.ListRoomsRequest, self._list_rooms, "", "roomList"),
                "MutePublishedTrack": _Method(protocol.MuteRoomTrackRequest, self._mute_track),
                "RemoveParticipant": _Method(protocol.RoomParticipantIdentity, self._remove_participant),
                "SendData": _Method(protocol.SendDataRequest, self._send_data),
                "UpdateParticipant": _Method(protocol.UpdateParticipantRequest, self._update_participant),
                "UpdateSubscriptions": _Method(protocol.UpdateSubscriptionsRequest, self._update_subscriptions),
            }
        )

    async def __aenter__(self) -> Self:
        """Listen."""
        self._held_port = _bind(0)
        self._port = self._held_port.getsockname()[1]
        await self.online()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cut every connection and let go of the port."""
        await self._cut()
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None

    @property
    def url(self) -> str:
        """Where it is, in http form; the same for as long as it lives."""
        return f"http://{_LOOPBACK}:{self._known_port}"

    # --- What participants do ------------------------------------------------------------------------------------

    @property
    def rooms(self) -> tuple[str, ...]:
        """The names of the rooms that there are."""
        return tuple(self._rooms)

    def create_room(self, room: str) -> None:
        """Make sure that the room is there, as `CreateRoom` does."""
        self._create_room(protocol.CreateRoomRequest(name=room))

    def close_room(self, room: str) -> None:
        """End a room, as LiveKit does with one that was empty for long."""
        self._finish(self._rooms[room])

    def join(
        self,
        room: str,
        identity: str,
        *,
        token: str | None = None,
        permission: models.ParticipantPermission | None = None,
        kind: models.ParticipantInfo.Kind = models.ParticipantInfo.STANDARD,
        hidden: bool = False,
        state: models.ParticipantInfo.State = models.ParticipantInfo.ACTIVE,
    ) -> models.ParticipantInfo:
        """
        Let somebody in; whoever is there by the same identity has to go.

        Args:
            token: Decides what they are and may do; else `permission`, `kind` and `hidden` do.
            permission: Without it and without a token they may publish and subscribe to everything.
            state: `JOINED` for a client that never answers LiveKit's offer; LiveKit reports no `participant_joined`.

        Raises:
            JoinRefused: There is no such room, or the token is not one for it.

        """
        if token is None:
            if permission is None:
                permission = models.ParticipantPermission(can_subscribe=True, can_publish=True, can_publish_data=True)
            person = _Person(models.ParticipantInfo(kind=kind, permission=permission))
            person.info.permission.hidden |= hidden
        elif permission is not None:
            raise ValueError("a token has a permission of its own")
        else:
            person = self._admitted(token, room, identity)
        if self.auto_create:
            self.create_room(room)
        entered = self._rooms.get(room)
        if entered is None:
            raise JoinRefused("404: requested room does not exist")
        if identity in entered.people:
            self.leave(room, identity)
        # Nobody joins twice in a millisecond, though a test's people may.
        self._joined_at_ms = max(int(time.time() * 1000), self._joined_at_ms + 1)
        person.info.sid = self._sid("PA_")
        person.info.identity = identity
        person.info.state = state
        person.info.version = 1
        person.info.joined_at = self._joined_at_ms // 1000
        person.info.joined_at_ms = self._joined_at_ms
        entered.people[identity] = person
        if state == models.ParticipantInfo.ACTIVE:
            self._tell("participant_joined", entered, person)
        return self.participant(room, identity)

    def leave(self, room: str, identity: str) -> None:
        """Let somebody go, with their tracks."""
        left, person = self._find(room, identity)
        self._drop(left, person)

    def participant(self, room: str, identity: str) -> models.ParticipantInfo:
        """Somebody, as LiveKit would describe them; `KeyError` when they are not there."""
        return _copy(self._find(room, identity)[1].info)

    def participants(self, room: str) -> tuple[models.ParticipantInfo, ...]:
        """Everybody in a room; `KeyError` when it is not there."""
        return tuple(_copy(person.info) for person in self._rooms[room].people.values())

    def permissions(self, room: str) -> Mapping[str, models.ParticipantPermission]:
        """What everybody in a room may do now; `KeyError` when it is not there."""
        return {identity: _copy(person.info.permission) for identity, person in self._rooms[room].people.items()}

    def may_publish(self, room: str, identity: str, source: str) -> bool:
        """Whether LiveKit would let them publish it; a token's sources count as they are spelt there."""
        return self._find(room, identity)[1].may_publish(source)

    def publish(
        self,
        room: str,
        identity: str,
        source: str,
        *,
        mime_type: str | None = None,
        type: "models.TrackType | None" = None,  # noqa: A002  as in TrackInfo
        muted: bool = False,
        name: str = "",
    ) -> str:
        """
        Publish a track.

        Args:
            source: What the client *says* that it is: `microphone`, `camera`, `screen_share` or `screen_share_audio`.
            mime_type: What it really is; what fits the source by default.
            type: What the client says of that; what fits the mime type by default.
            name: What the client calls it; `synthesized-microphone` and `synthesized-camera` are what came by WHIP.

        Returns:
            The track's sid.

        Raises:
            PublishRefused: They may not.

        """
        where, person = self._find(room, identity)
        if not person.may_publish(source):
            raise PublishRefused(f"{identity} may not publish {source}")
        mime_type = _MIME_TYPES[source] if mime_type is None else mime_type
        if type is None:
            type = models.AUDIO if mime_type.startswith("audio/") else models.VIDEO  # noqa: A001
        letters = ("A" if type == models.AUDIO else "V") + _SID_LETTERS[source]
        track = models.TrackInfo(
            sid=self._sid(f"TR_{letters}"),
            type=type,
            name=name,
            source=source.upper(),
            mime_type=mime_type,
            muted=muted,
        )
        person.info.tracks.append(track)
        person.info.is_publisher = True
        person.info.version += 1
        self._tell("track_published", where, person, track)
        return track.sid

    def unpublish(self, room: str, identity: str, track_sid: str) -> None:
        """Take a track of theirs away."""
        where, person = self._find(room, identity)
        self._take_away(where, person, person.track(track_sid))

    def mute_self(self, room: str, identity: str, track_sid: str) -> None:
        """Mute a track of their own."""
        self._set_muted(room, identity, track_sid, muted=True)

    def unmute(self, room: str, identity: str, track_sid: str) -> None:
        """Unmute a track of their own: no mute from LiveKit hinders them."""
        self._set_muted(room, identity, track_sid, muted=False)

    def observe(self, observer: Callable[[Change], None]) -> None:
        """Call `observer` at every change, whoever brought it about."""
        self._observers.append(observer)

    # --- What goes wrong -----------------------------------------------------------------------------------------

    def delay(self, delay_s: float, **which: Unpack[Which]) -> Fault:
        """Let calls take longer: the wait is before they take effect, or (`takes_effect`) before the answer."""
        return Fault(self._faults, which, delay_s=delay_s)

    def hang(self, **which: Unpack[Which]) -> Fault:
        """Answer calls only when the fault is lifted; then they take effect, or (`takes_effect`) they had at once."""
        return Fault(self._faults, which, delay_s=None)

    def refuse(self, code: str, message: str = "", *, status: int | None = None, **which: Unpack[Which]) -> Fault:
        """Answer calls with one of Twirp's errors; `status` if not the code's own. They do nothing by default."""
        refusal = _error(code, message)
        if status is not None:
            refusal = replace(refusal, status=status)
        return Fault(self._faults, which, instead=refusal)

    def reset(self, **which: Unpack[Which]) -> Fault:
        """Cut the connection instead of carrying calls out, or (`takes_effect`) instead of answering them."""
        return Fault(self._faults, which, instead=_Reset())

    def garble(
        self,
        body: bytes = b"\xff\xff\xff",
        *,
        status: int = HTTPStatus.OK,
        content_type: str = _PROTOBUF,
        **which: Unpack[Which],
    ) -> Fault:
        """Answer calls with this body, by default one that is no protobuf. They do nothing by default."""
        return Fault(self._faults, which, instead=_Answer(status, body, content_type))

    def crash(self) -> None:
        """Forget every room, without a word to anybody, and cut off the calls in flight: a restart within no time."""
        self._rooms.clear()
        for task, connection in self._in_flight.items():
            _abort(connection)
            task.cancel()

    async def offline(self) -> None:
        """Cut every connection and refuse new ones, until `online`."""
        if self._held_port is None:
            await self._cut()
            # Bound and not listening, so connections are refused and the port stays ours.
            self._held_port = _bind(self._known_port)

    async def online(self) -> None:
        """Listen again, on the same port."""
        held, self._held_port = self._held_port, None
        if held is None:
            return
        self._web = web.Server(self._respond, access_log=None)
        self._listener = await asyncio.get_running_loop().create_server(self._web, sock=held, backlog=_BACKLOG)

    def stall(self) -> None:
        """Accept connections and read calls, but do nothing, until `unstall`."""
        self._running.clear()

    def unstall(self) -> None:
        """Go on, with the calls that came in meanwhile, also of those who no longer wait for the answer."""
        self._running.set()

    # --- HTTP ----------------------------------------------------------------------------------------------------

    @property
    def _known_port(self) -> int:
        if self._port is None:
            raise RuntimeError("FakeRoomService is used outside its `async with`")
        return self._port

    async def _cut(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        server, self._web = self._web, None
        if server is None:
            return
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        # Those who were cut off before belong to no connection any more; and aiohttp waits for whoever hangs.
        tasks = tuple(self._in_flight)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.shutdown(_SHUTDOWN_S)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.transport
        task = asyncio.current_task()
        if connection is None or task is None:  # cut off meanwhile
            return web.Response()
        self._in_flight[task] = connection
        try:
            body = await request.read()
            if not self._running.is_set():
                await self._running.wait()
            answer = await self._answer(request, body)
        finally:
            del self._in_flight[task]
        if isinstance(answer, _Reset):
            _abort(connection)
            return web.Response()
        return web.Response(status=answer.status, body=answer.body, headers={"Content-Type": answer.content_type})

    async def _answer(self, request: web.BaseRequest, body: bytes) -> "_Answer | _Reset":
        credentials = self._credentials_of(request.headers.get("Authorization"))
        if isinstance(credentials, _Answer):
            return credentials
        path = request.path
        if path == "/":
            return _text(HTTPStatus.OK, "OK")
        if not path.startswith(_PREFIX):
            return _text(HTTPStatus.NOT_FOUND, "404 page not found\n")
        if request.method != "POST":
            return _bad_route(request, f'unsupported method "{request.method}" (only POST is allowed)')
        name = path.removeprefix(_PREFIX)
        method = self._methods.get(name)
        if method is None:
            return _bad_route(request, f'no handler for path "{path}"')
        if request.content_type != _PROTOBUF:
            return _bad_route(request, f'unexpected Content-Type: "{request.headers.get("Content-Type", "")}"')
        try:
            asked = method.request.FromString(body)
        except DecodeError:
            return _error("malformed", "the protobuf request could not be decoded")
        return await self._logged(name, method, asked, credentials, _cut_s(request))

    async def _logged(
        self, name: str, method: "_Method", asked: _Asked, credentials: "_Credentials", cut_s: float | None
    ) -> "_Answer | _Reset":
        arrived_at = time.monotonic()
        room: str = getattr(asked, method.room_field) if method.room_field else ""
        identity: str = getattr(asked, "identity", "")
        answer: _Answer | _Reset = _Reset()
        try:
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            if not credentials.allow(method, room):
                answer = _DENIED
                return answer
            for fault in self._faults:
                if fault._matches(name, room, identity):  # noqa: SLF001  a fault keeps its inside to this module
                    answer = await fault._happen(lambda: self._carry_out(method, asked, cut_s))  # noqa: SLF001
                    return answer
            answer = await self._carry_out(method, asked, cut_s)
            return answer
        finally:
            updates = name == "UpdateParticipant" and asked.HasField("permission")
            mutes = name == "MutePublishedTrack"
            self.calls.append(
                Call(
                    method=name,
                    room=room,
                    identity=identity,
                    permission=asked.permission if updates else None,
                    track_sid=asked.track_sid if mutes else "",
                    muted=asked.muted if mutes else None,
                    arrived_at=arrived_at,
                    answered_at=time.monotonic(),
                    status=None if answer.status is None else int(answer.status),
                )
            )

    async def _carry_out(self, method: "_Method", asked: _Asked, cut_s: float | None) -> "_Answer":
        try:
            return _Answer(HTTPStatus.OK, method.handler(asked).SerializeToString(), _PROTOBUF)
        except _RefusedError as refused:
            return refused.answer
        except _NobodyError:
            # LiveKit asks around who serves the room or the participant, and somebody might still turn up.
            if cut_s is not None and cut_s < self._psrpc_timeout_s:
                await asyncio.sleep(cut_s)
                return _error("canceled", "twirp error unknown: request canceled")
            await asyncio.sleep(self._psrpc_timeout_s)
            return _error("unavailable", "twirp error unknown: no response from servers")

    def _credentials_of(self, authorization: str | None) -> "_Credentials | _Answer":
        if not authorization:
            return _NO_CREDENTIALS
        known = self._credentials.get(authorization)
        if known is None:
            if not authorization.startswith(_BEARER):
                known = _text(HTTPStatus.UNAUTHORIZED, f"invalid authorization header. Must start with {_BEARER}")
            else:
                known = self._verify(authorization.removeprefix(_BEARER))
            self._credentials[authorization] = known
        if isinstance(known, _Answer):
            return known
        wrong = known.wrong_at(time.time())
        if wrong is None:
            return known
        return _invalid(authorization.removeprefix(_BEARER), f"token has invalid claims: {wrong}")

    def _verify(self, token: str) -> "_Credentials | _Answer":
        """What is in the token, or the refusal of one that will never be right."""
        try:
            unverified: Mapping[str, Any] = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return _text(HTTPStatus.UNAUTHORIZED, "invalid authorization token")
        key = unverified.get("iss", "")
        if key != self.api_key:
            return _text(HTTPStatus.UNAUTHORIZED, f"invalid API key: {key}")
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self.api_secret,
                ["HS256"],
                options={  # the times are looked at with every call, the signature once
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except jwt.InvalidTokenError:
            return _invalid(token, "token signature is invalid: signature is invalid")
        return _Credentials(
            claims=claims,
            video=claims.get("video") or {},
            expires_at=float(claims.get("exp", "inf")),
            begins_at=float(claims.get("nbf", 0)),
        )

    # --- RPCs ----------------------------------------------------------------------------------------------------

    def _create_room(self, asked: protocol.CreateRoomRequest) -> models.Room:
        if len(asked.name) > _MAX_ROOM_NAME:
            raise _RefusedError("invalid_argument", f"room name length exceeds limits: max length {_MAX_ROOM_NAME}")
        room = self._rooms.get(asked.name)
        if room is None:
            now = time.time()
            room = _Room(
                models.Room(
                    sid=self._sid("RM_"),
                    name=asked.name,
                    empty_timeout=asked.empty_timeout or _EMPTY_TIMEOUT_S,
                    departure_timeout=asked.departure_timeout or _DEPARTURE_TIMEOUT_S,
                    max_participants=asked.max_participants,
                    creation_time=int(now),
                    creation_time_ms=int(now * 1000),
                    turn_password="the fake's turn password",  # noqa: S106  there is no TURN
                    enabled_codecs=_CODECS,
                    metadata=asked.metadata,
                )
            )
            self._rooms[asked.name] = room
            self._tell("room_started", room)
        return room.described()

    def _list_rooms(self, asked: protocol.ListRoomsRequest) -> protocol.ListRoomsResponse:
        return protocol.ListRoomsResponse(
            rooms=[room.described() for name, room in self._rooms.items() if not asked.names or name in asked.names]
        )

    def _delete_room(self, asked: protocol.DeleteRoomRequest) -> protocol.DeleteRoomResponse:
        room = self._rooms.get(asked.room)
        if room is None:
            raise _RefusedError("not_found", "requested room does not exist")
        self._finish(room)
        return protocol.DeleteRoomResponse()

    def _list_participants(self, asked: protocol.ListParticipantsRequest) -> protocol.ListParticipantsResponse:
        room = self._rooms.get(asked.room)
        if room is None:
            raise _NobodyError
        return protocol.ListParticipantsResponse(participants=[person.info for person in room.people.values()])

    def _get_participant(self, asked: protocol.RoomParticipantIdentity) -> models.ParticipantInfo:
        if asked.room not in self._rooms:
            raise _NobodyError
        return self._known(asked)[1].info

    def _remove_participant(self, asked: protocol.RoomParticipantIdentity) -> protocol.RemoveParticipantResponse:
        self._drop(*self._known(asked))
        return protocol.RemoveParticipantResponse()

    def _mute_track(self, asked: protocol.MuteRoomTrackRequest) -> protocol.MuteRoomTrackResponse:
        room, person = self._answering(asked)
        if not asked.muted:
            raise _RefusedError("failed_precondition", "remote unmute not enabled")
        for track in person.info.tracks:
            if track.sid == asked.track_sid:
                self._change_muted(room, person, track, muted=True)
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
            info.permission.CopyFrom(asked.permission)
            info.version += 1
            person.spelt_sources = None
            for track in tuple(info.tracks):
                if not person.may_publish(_source_name(track.source)):
                    self._take_away(room, person, track)
            self._tell("permission_changed", room, person)
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
        if asked.room not in self._rooms:
            raise _NobodyError
        return protocol.SendDataResponse()

    # --- State: everything that changes it tells of it -----------------------------------------------------------

    def _find(self, room: str, identity: str) -> "tuple[_Room, _Person]":
        found = self._rooms[room]
        return found, found.people[identity]

    def _known(self, asked: "_Participantful") -> "tuple[_Room, _Person]":
        """The participant asked for, where LiveKit looks first whether there is one."""
        try:
            return self._find(asked.room, asked.identity)
        except KeyError:
            raise _RefusedError("not_found", "participant does not exist") from None

    def _answering(self, asked: "_Participantful") -> "tuple[_Room, _Person]":
        """The participant asked for, where LiveKit just waits for them to answer."""
        try:
            return self._find(asked.room, asked.identity)
        except KeyError:
            raise _NobodyError from None

    def _admitted(self, token: str, room: str, identity: str) -> "_Person":
        credentials = self._credentials_of(_BEARER + token)
        if isinstance(credentials, _Answer):
            raise JoinRefused(f"{credentials.status}: {credentials.body.decode()}")
        video = credentials.video
        if not video.get("roomJoin"):
            raise JoinRefused("401: permissions denied")
        if video.get("room") != room or credentials.claims.get("sub") != identity:
            raise JoinRefused(f"the token is not one for {identity} in {room}")
        return _person(credentials.claims, video)

    def _drop(self, room: "_Room", person: "_Person") -> None:
        for track in tuple(person.info.tracks):
            self._take_away(room, person, track)
        person.info.state = models.ParticipantInfo.DISCONNECTED
        del room.people[person.info.identity]
        self._tell("participant_left", room, person)

    def _finish(self, room: "_Room") -> None:
        for person in tuple(room.people.values()):
            self._drop(room, person)
        del self._rooms[room.info.name]
        self._tell("room_finished", room)

    def _take_away(self, room: "_Room", person: "_Person", track: models.TrackInfo) -> None:
        gone = _copy(track)
        person.info.tracks.remove(track)
        person.info.version += 1
        self._tell("track_unpublished", room, person, gone)

    def _set_muted(self, room: str, identity: str, track_sid: str, *, muted: bool) -> None:
        where, person = self._find(room, identity)
        self._change_muted(where, person, person.track(track_sid), muted=muted)

    def _change_muted(self, room: "_Room", person: "_Person", track: models.TrackInfo, *, muted: bool) -> None:
        if track.muted != muted:
            track.muted = muted
            person.info.version += 1
            self._tell("track_muted" if muted else "track_unmuted", room, person, track)

    def _tell(
        self,
        happening: Happening,
        room: "_Room",
        person: "_Person | None" = None,
        track: models.TrackInfo | None = None,
    ) -> None:
        if self._observers:
            change = Change(
                happening,
                _copy(room.described()),
                None if person is None else _copy(person.info),
                None if track is None else _copy(track),
            )
            for observer in self._observers:
                observer(change)

    def _sid(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers):012d}"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class _Reset:
    """In an answer's place: the connection is cut."""

    status: None = None


class _RefusedError(Exception):
    def __init__(self, code: str, message: str, *, prefix: str = "twirp error unknown: ") -> None:
        super().__init__(code)
        self.answer: Final = _error(code, prefix + message)


class _NobodyError(Exception):
    """There is nobody to answer the call."""


_Participantful: TypeAlias = (
    protocol.RoomParticipantIdentity
    | protocol.UpdateParticipantRequest
    | protocol.MuteRoomTrackRequest
    | protocol.UpdateSubscriptionsRequest
)


@dataclass(slots=True)
class _Person:
    info: models.ParticipantInfo
    spelt_sources: tuple[str, ...] | None = None
    """The sources as the token spells them, until a permission replaces them: LiveKit compares the spelling."""

    def may_publish(self, source: str) -> bool:
        if not self.info.permission.can_publish:
            return False
        names = self.spelt_sources
        if names is None:
            names = tuple(_source_name(number) for number in self.info.permission.can_publish_sources)
        return not names or source in names

    def track(self, sid: str) -> models.TrackInfo:
        for track in self.info.tracks:
            if track.sid == sid:
                return track
        raise KeyError(sid)


@dataclass(slots=True)
class _Room:
    info: models.Room
    people: dict[str, _Person] = field(default_factory=dict)

    def described(self) -> models.Room:
        self.info.num_participants = len(self.people)
        self.info.num_publishers = sum(1 for person in self.people.values() if person.info.tracks)
        return self.info


@dataclass(frozen=True, slots=True)
class _Method:
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


@dataclass(frozen=True, slots=True)
class _Credentials:
    """A token that is ours."""

    claims: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    begins_at: float = 0
    expires_at: float = float("inf")

    def wrong_at(self, now: float) -> str | None:
        if now > self.expires_at + _LEEWAY_S:
            return "token is expired"
        if now < self.begins_at - _LEEWAY_S:
            return "token is not valid yet"
        return None

    def allow(self, method: _Method, room: str) -> bool:
        return bool(self.video.get(method.grant)) and (method.grant != "roomAdmin" or self.video.get("room") == room)


def _person(claims: Mapping[str, Any], video: Mapping[str, Any]) -> _Person:
    """Whoever comes with such a token, as LiveKit reads it: what it leaves out is allowed, mostly."""
    can_publish = video.get("canPublish", True)
    spelt = tuple(video.get("canPublishSources") or ())
    permission = models.ParticipantPermission(
        can_subscribe=video.get("canSubscribe", True),
        can_publish=can_publish,
        can_publish_data=video.get("canPublishData", can_publish),
        can_publish_sources=[_value(name, _SOURCES, "UNKNOWN") for name in spelt],
        can_update_metadata=video.get("canUpdateOwnMetadata", False),
        hidden=video.get("hidden", False),
        recorder=video.get("recorder", False),
        agent=video.get("agent", False),
        can_subscribe_metrics=video.get("canSubscribeMetrics", False),
        can_manage_agent_session=video.get("canManageAgentSession", False),
    )
    info = models.ParticipantInfo(
        name=claims.get("name", ""),
        metadata=claims.get("metadata", ""),
        attributes=claims.get("attributes", {}),
        kind=_value(claims.get("kind", ""), _KINDS, "STANDARD"),
        permission=permission,
    )
    return _Person(info, spelt)


def _value(name: str, names: frozenset[str], otherwise: str) -> str:
    """The name of an enum's value, as LiveKit reads it out of a token."""
    return name.upper() if name.upper() in names else otherwise


def _source_name(source: int) -> str:
    return models.TrackSource.Name(source).lower()


def _copy(message: _AnyMessage) -> _AnyMessage:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _error(code: str, message: str, **meta: str) -> _Answer:
    body = {"code": code, "msg": message} | ({"meta": meta} if meta else {})
    return _Answer(_STATUSES[code], json.dumps(body, separators=(",", ":")).encode(), "application/json")


def _text(status: int, text: str) -> _Answer:
    return _Answer(status, text.encode(), "text/plain; charset=utf-8")


def _invalid(token: str, reason: str) -> _Answer:
    return _text(HTTPStatus.UNAUTHORIZED, f"invalid token: {token}, error: {reason}")


def _bad_route(request: web.BaseRequest, message: str) -> _Answer:
    return _error("bad_route", message, twirp_invalid_route=f"{request.method} {request.path}")


def _cut_s(request: web.BaseRequest) -> float | None:
    """After how long the caller wants any waiting to be cut; what is no number says nothing."""
    header = request.headers.get("X-Twirp-Timeout-Ms")
    if header is None:
        return None
    try:
        return max(int(header), 0) / 1000
    except ValueError:
        return None


def _abort(connection: asyncio.BaseTransport) -> None:
    if isinstance(connection, asyncio.Transport):
        connection.abort()


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((_LOOPBACK, port))
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)  # noqa: FBT003  the socket's own signature
    return bound


_NO_CREDENTIALS: Final = _Credentials()
_DENIED: Final = _error("unauthenticated", "permissions denied")
