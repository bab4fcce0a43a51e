"""One participant: its connections, and what it is told over them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from livekit import rtc

from signaling.testing.participant_process.perception import Perception
from signaling.testing.participant_process.publishing import Publishing
from signaling.testing.participant_process.replies import Refused, Reply
from signaling.testing.participant_process.sources import source_name


class Participant:
    """One participant, over as many connections as it makes."""

    def __init__(self, number: int, tell: Callable[[Mapping[str, Any]], None], *, listens: bool) -> None:
        """
        Connect to nothing yet.

        Args:
            number: By which the parent knows it.
            tell: Takes what the parent is told unasked.
            listens: Whether it hears the others.

        """
        self.publishing = Publishing(self._connected)
        self.perception = Perception(self._connected, listens=listens)
        self._number = number
        self._tell = tell
        self._room: rtc.Room | None = None

    # --- Coming and going ----------------------------------------------------------------------------------------

    async def connect(self, url: str, token: str) -> Reply:
        """Join, after leaving where it is."""
        await self.disconnect()
        room = rtc.Room()
        self._register(room)
        try:
            await room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
        except rtc.ConnectError as error:
            raise Refused("JoinRefused", str(error)) from error
        self._room = room
        me = room.local_participant
        self._event("connected", me.identity, permission=_plain(me.permissions))
        for other in room.remote_participants.values():
            for publication in other.track_publications.values():
                self.perception.consider(publication, other.identity)
        return {"identity": me.identity, "sid": me.sid, "permission": _plain(me.permissions)}

    async def disconnect(self) -> Reply:
        """Leave, if it is anywhere."""
        room, self._room = self._room, None
        if room is not None:
            await room.disconnect()
        await self.publishing.end()
        await self.perception.end()
        return {}

    def _register(self, room: rtc.Room) -> None:
        """What happens is told as it happens; what LiveKit says of others is what moderation is about."""

        def others(name: str) -> Callable[[rtc.Participant], None]:
            return lambda other: self._event(name, other.identity)

        def published(publication: rtc.RemoteTrackPublication, other: rtc.RemoteParticipant) -> None:
            self._event("track_published", other.identity, publication)
            self.perception.consider(publication, other.identity)

        def unpublished(publication: rtc.RemoteTrackPublication, other: rtc.RemoteParticipant) -> None:
            self.perception.gone(publication)
            self._event("track_unpublished", other.identity, publication)

        def subscribed(
            track: rtc.RemoteAudioTrack | rtc.RemoteVideoTrack,
            publication: rtc.RemoteTrackPublication,
            other: rtc.RemoteParticipant,
        ) -> None:
            self.perception.read(track, publication, other.identity)

        def unsubscribed(
            _track: rtc.RemoteTrack | None, publication: rtc.RemoteTrackPublication, _other: rtc.RemoteParticipant
        ) -> None:
            self.perception.gone(publication)

        def told_muted(name: str) -> Callable[[rtc.Participant, rtc.TrackPublication], None]:
            def tell(whose: rtc.Participant, publication: rtc.TrackPublication) -> None:
                if whose.identity == room.local_participant.identity:
                    self.publishing.note_toggled()
                self._event(name, whose.identity, publication)

            return tell

        def permitted(whose: rtc.Participant | None, permission: Any) -> None:  # noqa: ANN401  the SDK's own message
            if whose is not None and whose.identity == room.local_participant.identity:
                self._event("permission_changed", whose.identity, permission=_plain(permission))

        def disconnected(reason: Any) -> None:  # noqa: ANN401  the SDK's own enum
            self._event("disconnected", "", reason=rtc.DisconnectReason.Name(reason))

        room.on("participant_connected", others("participant_connected"))
        room.on("participant_disconnected", others("participant_disconnected"))
        room.on("reconnecting", lambda: self._event("reconnecting", ""))
        room.on("reconnected", lambda: self._event("reconnected", ""))
        room.on("track_muted", told_muted("track_muted"))
        room.on("track_unmuted", told_muted("track_unmuted"))
        room.on("track_published", published)
        room.on("track_unpublished", unpublished)
        room.on("track_subscribed", subscribed)
        room.on("track_unsubscribed", unsubscribed)
        room.on("participant_permissions_changed", permitted)
        room.on("disconnected", disconnected)

    def _event(
        self,
        name: str,
        identity: str,
        publication: rtc.TrackPublication | None = None,
        *,
        reason: str = "",
        permission: Mapping[str, Any] | None = None,
    ) -> None:
        self._tell(
            {
                "participant": self._number,
                "event": name,
                "at": time.monotonic(),
                "identity": identity,
                "source": "" if publication is None else source_name(publication.source),
                "track_sid": "" if publication is None else publication.sid,
                "reason": reason,
                "permission": permission,
            }
        )

    def _connected(self) -> rtc.Room:
        if self._room is None:
            raise Refused("ParticipantError", "the participant is not connected")
        return self._room


def _plain(permission: Any) -> Reply:  # noqa: ANN401  the SDK's own message
    values = {each.name: getattr(permission, each.name) for each in permission.DESCRIPTOR.fields}
    return values | {"can_publish_sources": list(permission.can_publish_sources)}
