"""What LiveKit reports by itself: verified, not too old, and each report once."""

import base64
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Final, cast, get_args

import jwt
from google.protobuf.json_format import Parse, ParseError
from livekit.api import TokenVerifier
from livekit.protocol.webhook import WebhookEvent

from signaling.errors import WebhookRefused
from signaling.identifiers import Identity, LiveKitRoom
from signaling.livekit.contract import Notice, NoticeKind
from signaling.livekit.roster import presence_of, track_of

MAX_AGE_S: Final = 300
"""Older ones are refused; LiveKit signs each for as long, and gives up repeating it long before."""
LEEWAY_S: Final = 60
"""By how much LiveKit's clock may differ from ours."""
_KINDS: Final = frozenset(get_args(NoticeKind))


class Webhooks:
    """
    Opens what LiveKit has sent.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, api_key: str, api_secret: str, *, clock: Callable[[], float] = time.time) -> None:
        # How old a webhook is says what it holds, which is signed too: the clock that counts is then ours.
        self._verifier = TokenVerifier(api_key, api_secret, leeway=timedelta(days=36_525))
        self._clock = clock
        self._seen: OrderedDict[str, float] = OrderedDict()
        """When each id may be forgotten, since its webhook is too old by then."""

    def open(self, body: bytes, authorization: str) -> Notice | None:
        """
        Verify a webhook and read it.

        Args:
            body: As received, byte for byte.
            authorization: The header of that name.

        Returns:
            What happened; `None` if nothing follows from it.

        Raises:
            WebhookRefused: It is forged, too old, was here before, or cannot be read.
        """
        self._check_signature(body, authorization.removeprefix("Bearer "))
        try:
            event = Parse(body, WebhookEvent(), ignore_unknown_fields=True)
        except (ParseError, UnicodeDecodeError, RecursionError) as error:
            raise WebhookRefused("unparsable") from error
        if not (event.event and event.id and event.created_at):
            raise WebhookRefused("unparsable")
        self._check_is_new(event)
        if event.event not in _KINDS or not event.room.name:
            return None
        return _read(cast("NoticeKind", event.event), event)

    def _check_signature(self, body: bytes, token: str) -> None:
        try:
            claimed = base64.b64decode(self._verifier.verify(token).sha256 or "", validate=True)
        except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError) as error:  # of claims of any shape
            raise WebhookRefused("forged") from error
        if claimed != hashlib.sha256(body).digest():
            raise WebhookRefused("forged")

    def _check_is_new(self, event: WebhookEvent) -> None:
        now = self._clock()
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        if not now - MAX_AGE_S <= event.created_at <= now + LEEWAY_S:
            raise WebhookRefused("stale")
        if event.id in self._seen:
            raise WebhookRefused("replayed")
        self._seen[event.id] = now + MAX_AGE_S + LEEWAY_S


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
