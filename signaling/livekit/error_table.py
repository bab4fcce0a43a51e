"""What each error of a call to LiveKit means: one table."""

from types import MappingProxyType
from typing import Final

import aiohttp
from google.protobuf.message import DecodeError
from livekit.api import ServerError

from signaling.errors import MediaServerError, MediaServerRejected, MediaServerUnavailable, ParticipantGone

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


def nobody_answered(error: MediaServerError) -> bool:
    """Whether this is LiveKit's not having found, in time, whom it asked; unlike a plain "there is none"."""
    return isinstance(error.__cause__, ServerError) and error.__cause__.code in NOBODY_ANSWERED
