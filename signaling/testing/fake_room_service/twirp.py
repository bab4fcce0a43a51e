"""From a request to its answer, as Twirp has it: who asks, for what, what goes wrong with it, and what comes of it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from aiohttp import web
from google.protobuf.message import DecodeError
from livekit.protocol import models

from signaling.testing.fake_room_service.answers import PROTOBUF, Answer, Reset, error, text
from signaling.testing.fake_room_service.faults import Fault, answer_of
from signaling.testing.fake_room_service.methods import Asked, Method, Methods
from signaling.testing.fake_room_service.rooms import source_name
from signaling.testing.fake_room_service.tokens import Credentials, Tokens

_PREFIX: Final = "/twirp/livekit.RoomService/"


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
        return tuple(source_name(source) for source in self.permission.can_publish_sources)


class Twirp:
    """Answers requests, and keeps a log of the calls."""

    def __init__(
        self,
        methods: Methods,
        tokens: Tokens,
        faults: Sequence[Fault],
        calls: list[Call],
        latency_s: Callable[[], float],
    ) -> None:
        """
        Take what it answers with.

        Args:
            faults: Those that there are now; they come and go.
            calls: The log to add to.
            latency_s: How long each call takes at least, by now.

        """
        self._methods = methods
        self._tokens = tokens
        self._faults = faults
        self._calls = calls
        self._latency_s = latency_s

    async def answer(self, request: web.BaseRequest, body: bytes) -> Answer | Reset:
        """What a request is answered with."""
        credentials = self._tokens.credentials_of(request.headers.get("Authorization"))
        if isinstance(credentials, Answer):
            return credentials
        path = request.path
        if path == "/":
            return text(HTTPStatus.OK, "OK")
        if not path.startswith(_PREFIX):
            return text(HTTPStatus.NOT_FOUND, "404 page not found\n")
        if request.method != "POST":
            return _bad_route(request, f'unsupported method "{request.method}" (only POST is allowed)')
        name = path.removeprefix(_PREFIX)
        method = self._methods.get(name)
        if method is None:
            return _bad_route(request, f'no handler for path "{path}"')
        if request.content_type != PROTOBUF:
            return _bad_route(request, f'unexpected Content-Type: "{request.headers.get("Content-Type", "")}"')
        try:
            asked = method.request.FromString(body)
        except DecodeError:
            return error("malformed", "the protobuf request could not be decoded")
        return await self._logged(name, method, asked, credentials, _cut_s(request))

    async def _logged(
        self, name: str, method: Method, asked: Asked, credentials: Credentials, cut_s: float | None
    ) -> Answer | Reset:
        arrived_at = time.monotonic()
        room: str = getattr(asked, method.room_field) if method.room_field else ""
        identity: str = getattr(asked, "identity", "")
        answer: Answer | Reset = Reset()
        try:
            if latency_s := self._latency_s():
                await asyncio.sleep(latency_s)
            if not credentials.allow(method.grant, room):
                answer = _DENIED
                return answer
            carry_out = partial(self._methods.carry_out, method, asked, cut_s)
            answer = await answer_of(self._faults, name, room, identity, carry_out)
            return answer
        finally:
            updates = name == "UpdateParticipant" and asked.HasField("permission")
            mutes = name == "MutePublishedTrack"
            self._calls.append(
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


def _bad_route(request: web.BaseRequest, message: str) -> Answer:
    return error("bad_route", message, twirp_invalid_route=f"{request.method} {request.path}")


def _cut_s(request: web.BaseRequest) -> float | None:
    """After how long the caller wants any waiting to be cut; what is no number says nothing."""
    header = request.headers.get("X-Twirp-Timeout-Ms")
    if header is None:
        return None
    try:
        return max(int(header), 0) / 1000
    except ValueError:
        return None


_DENIED: Final = error("unauthenticated", "permissions denied")
