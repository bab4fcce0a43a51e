"""What LiveKit reports by itself: verified, and not too old; that each counts once is up to whoever opens it."""

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast, get_args

import jwt
from google.protobuf.json_format import Parse, ParseError
from livekit.protocol.webhook import WebhookEvent
from pydantic import BaseModel, ConfigDict, ValidationError

from signaling.errors import WebhookRefused
from signaling.identifiers import Identity, LiveKitRoom
from signaling.livekit.contract import Notice, NoticeKind
from signaling.livekit.roster import presence_of, track_of

MAX_AGE_S: Final = 300
"""Older ones are refused; LiveKit signs each for as long, and gives up repeating it long before."""
LEEWAY_S: Final = 60
"""By how much LiveKit's clock may differ from ours."""
_KINDS: Final = frozenset(get_args(NoticeKind))


@dataclass(frozen=True, slots=True)
class Webhook:
    """
    A report of LiveKit's.

    Attributes:
        id: It has no other with the same.
        until: When it is too old to be shown again, whosever clock is wrong; seconds since the epoch.
        notice: What happened; `None` if nothing follows from it.
    """

    id: str
    until: float
    notice: Notice | None


class _Claims(BaseModel):
    """What counts of a token that signs a webhook; whatever else it says, and in whatever shape, is not looked at."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    iss: str
    sha256: str


class Webhooks:
    """
    Opens what LiveKit has sent.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, api_key: str, api_secret: str, *, clock: Callable[[], float] = time.time) -> None:
        self._api_key = api_key
        self._api_secret = api_secret
        self._signatures = jwt.PyJWS()
        self._clock = clock

    def open(self, body: bytes, authorization: str) -> Webhook:
        """
        Verify a webhook and read it.

        Args:
            body: As received, byte for byte.
            authorization: The header of that name.

        Raises:
            WebhookRefused: It is forged, too old, or cannot be read.
        """
        self._check_signature(body, authorization.removeprefix("Bearer "))
        try:
            event = Parse(body, WebhookEvent(), ignore_unknown_fields=True)
        except (ParseError, UnicodeDecodeError, RecursionError) as error:
            raise WebhookRefused("unparsable") from error
        if not (event.event and event.id and event.created_at):
            raise WebhookRefused("unparsable")
        # How old it is says what it holds, which is signed too, and not its token: the clock that counts is then ours.
        if not self._clock() - MAX_AGE_S <= event.created_at <= self._clock() + LEEWAY_S:
            raise WebhookRefused("stale")
        notice = None
        if event.event in _KINDS and event.room.name:
            notice = _read(cast("NoticeKind", event.event), event)
        return Webhook(event.id, event.created_at + MAX_AGE_S + LEEWAY_S, notice)

    def _check_signature(self, body: bytes, token: str) -> None:
        try:
            claims = _Claims.model_validate_json(self._signatures.decode(token, self._api_secret, algorithms=["HS256"]))
            claimed = base64.b64decode(claims.sha256, validate=True)
        except (jwt.PyJWTError, ValidationError, ValueError, RecursionError):  # the last two: what is no JSON text
            raise WebhookRefused("forged") from None  # what caused it may hold what was sent
        if claims.iss != self._api_key or claimed != hashlib.sha256(body).digest():
            raise WebhookRefused("forged")


def _read(kind: NoticeKind, event: WebhookEvent) -> Notice | None:
    room, info = LiveKitRoom(event.room.name), event.participant
    if kind == "room_finished":
        return Notice(kind, room)
    if not info.identity:
        return None
    return Notice(
        kind,
        room,
        Identity(info.identity),
        info.sid,
        presence_of(room, info) if kind == "participant_joined" else None,
        track_of(event.track) if kind in {"track_published", "track_unpublished"} else None,
    )
