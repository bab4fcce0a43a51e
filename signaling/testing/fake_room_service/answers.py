"""What a call is answered with: LiveKit's own words, Twirp's errors, or nothing at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

PROTOBUF: Final = "application/protobuf"
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over HTTP."""

    status: int
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Reset:
    """In an answer's place: the connection is cut."""

    status: None = None


def error(code: str, message: str, **meta: str) -> Answer:
    """One of Twirp's errors."""
    body = {"code": code, "msg": message} | ({"meta": meta} if meta else {})
    return Answer(_STATUSES[code], json.dumps(body, separators=(",", ":")).encode(), "application/json")


def text(status: int, words: str) -> Answer:
    """Words without a form, as LiveKit has them where no call was understood."""
    return Answer(status, words.encode(), "text/plain; charset=utf-8")
