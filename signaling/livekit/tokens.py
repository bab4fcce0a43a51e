"""Tokens for LiveKit: what a client may do, in LiveKit's words, and never anything administrative."""

import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import jwt

from signaling.core.participants import SERVICES, Kind, Source
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


@dataclass(frozen=True, slots=True)
class TokenMint:
    """Makes tokens with one key of LiveKit's."""

    api_key: str
    api_secret: str

    def for_participant(self, room: LiveKitRoom, identity: Identity, *, sources: tuple[Source, ...], kind: Kind) -> str:
        """A token for one identity that may publish these sources; services enter hidden."""
        return self._mint(room, identity, sources, hidden=kind in SERVICES)

    def for_popout(self, room: LiveKitRoom, identity: Identity) -> str:
        """A token for a hidden viewer that can only subscribe."""
        return self._mint(room, identity, (), hidden=True)

    def _mint(self, room: LiveKitRoom, identity: Identity, sources: tuple[Source, ...], *, hidden: bool) -> str:
        now = int(time.time())
        # Signed here: livekit-api's AccessToken takes three times as long, and joiners and renewals wait for it.
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
        return jwt.encode(claims, self.api_secret, algorithm="HS256")
