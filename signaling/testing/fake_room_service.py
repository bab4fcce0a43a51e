"""
A stateful double of LiveKit's RoomService, for what the real one cannot be made to do at will.

It answers as livekit-server v1.13.5 does, with its codes and its words; one test suite holds for both.
"""

import asyncio
import itertools
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import jwt
from aiohttp import web
from google.protobuf.message import DecodeError, Message
from livekit.api import AccessToken, VideoGrants
from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling.testing.participants import JoinRefused, PublishRefused

_LOOPBACK: Final = "127.0.0.1"
_PREFIX: Final = "/twirp/livekit.RoomService/"
_PROTOBUF: Final = "application/protobuf"
_TIMEOUT_HEADER: Final = "X-Twirp-Timeout-Ms"
_LEEWAY_S: Final = 60
_MAX_ROOM_NAME: Final = 256
_EMPTY_TIMEOUT_S: Final = 300
_DEPARTURE_TIMEOUT_S: Final = 20
_CODECS: Final = ("audio/PCMU", "audio/PCMA", "audio/opus", "audio/red")
_CODECS_VIDEO: Final = ("video/VP8", "video/H264", "video/VP9", "video/AV1", "video/H265", "video/rtx")
_NONCE_BYTES: Final = 16

_STATUSES: Final[Mapping[str, int]] = {
    "canceled": 408,
    "unknown": 500,
    "invalid_argument": 400,
    "malformed": 400,
    "deadline_exceeded": 408,
    "not_found": 404,
    "bad_route": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "unauthenticated": 401,
    "resource_exhausted": 429,
    "failed_precondition": 412,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "dataloss": 500,
}
"""Twirp's codes and the HTTP status of each."""

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


@dataclass(frozen=True, slots=True)
class Change:
    """
    Something that changed in the fake, in the words of LiveKit's webhooks as far as those have one for it.

    The messages are copies of how things are after the change.
    """

    happening: Happening
    room: models.Room
    participant: models.ParticipantInfo | None = None
    track: models.TrackInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """
    A call that came in; the log has them in the order in which they were answered.

    Attributes:
        method: As in LiveKit's protocol, such as `UpdateParticipant`.
        room: The LiveKit room; empty for `ListRooms`.
        identity: Whom it was about, empty for whole rooms.
        permission: What `UpdateParticipant` asked for; `None` when it left the permission alone.
        track_sid: What `MutePublishedTrack` named, else empty.
        muted: What `MutePublishedTrack` asked for.
        arrived_at: By `time.monotonic`.
        answered_at: By the same clock; between the two the call was in flight.
        status: The HTTP status of the answer; `None` when there was none.
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
        The names of the sources that `UpdateParticipant` left, none when it forbade publishing.

        `None` when the call left the permission alone, and an empty list beside `can_publish` (it allows everything)
        is not told from one that forbids: look at `permission`.
        """
        if self.permission is None:
            return None
        if not self.permission.can_publish:
            return ()
        return tuple(_source_name(source) for source in self.permission.can_publish_sources)


class Fault:
    """
    Something wrong with some of the calls, until it is lifted or has happened as often as it should.

    Leaving it as a context manager lifts it.
    """

    def __init__(
        self,
        owner: "list[Fault]",
        *,
        method: str | None,
        room: str | None,
        identity: str | None,
        times: int | None,
        takes_effect: bool,
        delay_s: float = 0,
        hangs: bool = False,
        answer: "_Answer | None" = None,
    ) -> None:
        """Begin; use the methods of `FakeRoomService` instead."""
        self._owner = owner
        self._method = method
        self._room = room
        self._identity = identity
        self._left = times
        self._takes_effect = takes_effect
        self._delay_s = delay_s
        self._lifted = asyncio.Event()
        self._hangs = hangs
        self._answer = answer
        self._hits = 0
        self._hit: set[asyncio.Event] = set()
        owner.append(self)

    def __enter__(self) -> Self:
        """Keep it until the end of the block."""
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
        """Wait until it has happened to so many calls in all."""
        while self._hits < times:
            changed = asyncio.Event()
            self._hit.add(changed)
            try:
                await changed.wait()
            finally:
                self._hit.discard(changed)

    def lift(self) -> None:
        """Let it happen no more; calls that hang in it go on."""
        if self in self._owner:
            self._owner.remove(self)
        self._lifted.set()

    def matches(self, call: "_Request") -> bool:
        """Whether it is about this call."""
        return (
            (self._method is None or self._method == call.method)
            and (self._room is None or self._room == call.room)
            and (self._identity is None or self._identity == call.identity)
        )

    async def happen(self, carry_out: "Callable[[], _Answer | float]", answer: "Callable[[float], _Answer]") -> None:
        """Unused."""
        raise NotImplementedError
