"""Tokens for LiveKit: what a client may do, in LiveKit's words, and never anything administrative."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from jwt import InvalidKeyError
from jwt.algorithms import HMACAlgorithm

from signaling.core.participants import SERVICES, Kind, Source
from signaling.errors import ConfigurationError
from signaling.identifiers import Identity, LiveKitRoom

LIFETIME_S: Final = 32
_NEVER: Final = MappingProxyType(
    dict.fromkeys(
        (
            "canPublishData",
            "canUpdateOwnMetadata",
            "roomCreate",
            "roomList",
            "roomAdmin",
            "roomRecord",
            "recorder",
            "ingressAdmin",
        ),
        False,
    )
)


_JSON: Final = json.JSONEncoder(separators=(",", ":"))


def _encoded(part: bytes) -> bytes:
    return urlsafe_b64encode(part).rstrip(b"=")


_HEADER: Final = _encoded(_JSON.encode({"alg": "HS256", "typ": "JWT"}).encode()) + b"."


@dataclass(frozen=True, slots=True)
class TokenMint:
    """
    Makes tokens with one key of LiveKit's.

    Raises:
        ConfigurationError: The secret is none.
    """

    api_key: str
    api_secret: str
    _signature: hmac.HMAC = field(init=False, repr=False, compare=False)
    """Of the header alone, by this key; each token goes on from a copy."""

    def __post_init__(self) -> None:
        try:
            key = HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(self.api_secret)
        except InvalidKeyError:  # it is empty, or half of a key pair
            raise ConfigurationError("LIVEKIT_API_SECRET: is not a secret to sign with") from None
        object.__setattr__(self, "_signature", hmac.new(key, _HEADER, "sha256"))

    def for_participant(self, room: LiveKitRoom, identity: Identity, *, sources: tuple[Source, ...], kind: Kind) -> str:
        """A token for one identity that may publish these sources; services enter hidden."""
        return self._mint(room, identity, sources, hidden=kind in SERVICES)

    def for_popout(self, room: LiveKitRoom, identity: Identity) -> str:
        """A token for a hidden viewer that can only subscribe."""
        return self._mint(room, identity, (), hidden=True)

    def _mint(self, room: LiveKitRoom, identity: Identity, sources: tuple[Source, ...], *, hidden: bool) -> str:
        now = int(time.time())
        claims = {
            "iss": self.api_key,
            "sub": identity,
            "name": identity,
            "nbf": now,
            "exp": now + LIFETIME_S,
            "video": {
                **_NEVER,
                "roomJoin": True,
                "room": room,
                "canSubscribe": True,
                "canPublish": bool(sources),
                # An empty list beside `canPublish` would allow everything, and a missing one too.
                "canPublishSources": [source.value for source in sources],
                "hidden": hidden,
            },
        }
        return self._sign(claims)

    def _sign(self, claims: Mapping[str, object]) -> str:
        """
        A token of these claims.

        Joiners and renewals wait for it; PyJWT, which looks at key and header each time, takes four times as long.
        """
        body = _encoded(_JSON.encode(claims).encode())
        signature = self._signature.copy()
        signature.update(body)
        return b".".join((_HEADER + body, _encoded(signature.digest()))).decode()
