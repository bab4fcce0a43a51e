"""Tokens for LiveKit: what a client may do, in LiveKit's words, and never anything administrative."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from livekit.api import AccessToken, VideoGrants

from signaling.core.participants import SERVICES, Kind, Source
from signaling.identifiers import Identity, LiveKitRoom

LIFETIME: Final = timedelta(seconds=32)


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
        grants = VideoGrants(
            room_join=True,
            room=room,
            can_subscribe=True,
            can_publish=bool(sources),
            # An empty list beside `can_publish` would allow everything, and a missing one too.
            can_publish_sources=[source.value for source in sources],
            hidden=hidden,
            can_publish_data=False,
            can_update_own_metadata=False,
            room_create=False,
            room_list=False,
            room_admin=False,
            room_record=False,
            recorder=False,
            ingress_admin=False,
        )
        token = AccessToken(self.api_key, self.api_secret).with_identity(identity).with_name(identity)
        return token.with_ttl(LIFETIME).with_grants(grants).to_jwt()
