"""The tokens that callers and participants come with, read as LiveKit reads them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import jwt
from livekit.protocol import models

from signaling.testing.fake_room_service.answers import Answer, text
from signaling.testing.fake_room_service.rooms import Person
from signaling.testing.participants import JoinRefused

_BEARER: Final = "Bearer "
_LEEWAY_S: Final = 60
_SOURCES: Final = frozenset(models.TrackSource.keys())
_KINDS: Final = frozenset(models.ParticipantInfo.Kind.keys())


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token that is ours."""

    claims: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    begins_at: float = 0
    expires_at: float = float("inf")

    def wrong_at(self, now: float) -> str | None:
        """What is wrong with its times, if anything."""
        if now > self.expires_at + _LEEWAY_S:
            return "token is expired"
        if now < self.begins_at - _LEEWAY_S:
            return "token is not valid yet"
        return None

    def allow(self, grant: str, room: str) -> bool:
        """Whether it has this grant, in this room if that is what it is about."""
        return bool(self.video.get(grant)) and (grant != "roomAdmin" or self.video.get("room") == room)


class Tokens:
    """The tokens that have come in: those of one key pair are good."""

    def __init__(self, api_key: str, api_secret: str) -> None:
        """Know none yet."""
        self._api_key = api_key
        self._api_secret = api_secret
        self._known: dict[str, Credentials | Answer] = {}

    def admit(self, token: str, room: str, identity: str) -> Person:
        """Whoever joins with this token; `JoinRefused` when it is not for them."""
        credentials = self.credentials_of(_BEARER + token)
        if isinstance(credentials, Answer):
            raise JoinRefused(f"{credentials.status}: {credentials.body.decode()}")
        video = credentials.video
        if not video.get("roomJoin"):
            raise JoinRefused("401: permissions denied")
        if video.get("room") != room or credentials.claims.get("sub") != identity:
            raise JoinRefused(f"the token is not one for {identity} in {room}")
        return _person(credentials.claims, video)

    def credentials_of(self, authorization: str | None) -> Credentials | Answer:
        """What the header `Authorization` lets do, or the refusal of it."""
        if not authorization:
            return _NO_CREDENTIALS
        known = self._known.get(authorization)
        if known is None:
            if not authorization.startswith(_BEARER):
                known = text(HTTPStatus.UNAUTHORIZED, f"invalid authorization header. Must start with {_BEARER}")
            else:
                known = self._verify(authorization.removeprefix(_BEARER))
            self._known[authorization] = known
        if isinstance(known, Answer):
            return known
        wrong = known.wrong_at(time.time())
        if wrong is None:
            return known
        return _invalid(authorization.removeprefix(_BEARER), f"token has invalid claims: {wrong}")

    def _verify(self, token: str) -> Credentials | Answer:
        """What is in the token, or the refusal of one that will never be right."""
        try:
            unverified: Mapping[str, Any] = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return text(HTTPStatus.UNAUTHORIZED, "invalid authorization token")
        key = unverified.get("iss", "")
        if key != self._api_key:
            return text(HTTPStatus.UNAUTHORIZED, f"invalid API key: {key}")
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self._api_secret,
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
        return Credentials(
            claims=claims,
            video=claims.get("video") or {},
            expires_at=float(claims.get("exp", "inf")),
            begins_at=float(claims.get("nbf", 0)),
        )


def _person(claims: Mapping[str, Any], video: Mapping[str, Any]) -> Person:
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
    return Person(info, spelt)


def _value(name: str, names: frozenset[str], otherwise: str) -> str:
    """The name of an enum's value, as LiveKit reads it out of a token."""
    return name.upper() if name.upper() in names else otherwise


def _invalid(token: str, reason: str) -> Answer:
    return text(HTTPStatus.UNAUTHORIZED, f"invalid token: {token}, error: {reason}")


_NO_CREDENTIALS: Final = Credentials()
