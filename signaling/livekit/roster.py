"""What LiveKit says of participants and tracks, in our terms."""

from types import MappingProxyType
from typing import Final

from livekit.protocol import models

from signaling.core.effects import Permission, Presence, Track
from signaling.core.participants import LiveKitKind, Source
from signaling.identifiers import Identity, LiveKitRoom, TrackSid

_SOURCES: Final = MappingProxyType(
    {
        models.TrackSource.CAMERA: Source.CAMERA,
        models.TrackSource.MICROPHONE: Source.MICROPHONE,
        models.TrackSource.SCREEN_SHARE: Source.SCREEN_SHARE,
        models.TrackSource.SCREEN_SHARE_AUDIO: Source.SCREEN_SHARE_AUDIO,
    }
)
SOURCE_NUMBERS: Final = MappingProxyType({source: number for number, source in _SOURCES.items()})
_KINDS: Final = MappingProxyType(
    {
        models.ParticipantInfo.Kind.INGRESS: LiveKitKind.INGRESS,
        models.ParticipantInfo.Kind.EGRESS: LiveKitKind.EGRESS,
        models.ParticipantInfo.Kind.AGENT: LiveKitKind.AGENT,
        models.ParticipantInfo.Kind.SIP: LiveKitKind.SIP,
    }
)


_PUBLISH_ONCE: Final = frozenset({models.ParticipantInfo.Kind.INGRESS, models.ParticipantInfo.Kind.SIP})
_STREAMED_IN: Final = "synthesized-"
"""
How LiveKit begins the names of tracks that came by WHIP; nothing else tells of them.

Source: livekit-server, `pkg/rtc/participant.go`, `synthesizeAddTrackRequests`.
"""


def presence_of(room: LiveKitRoom, info: models.ParticipantInfo) -> Presence:
    """A participant in this room."""
    permission = info.permission
    tracks = tuple(track_of(track) for track in info.tracks)
    return Presence(
        room=room,
        identity=Identity(info.identity),
        sid=info.sid,
        permission=Permission(
            can_publish=permission.can_publish,
            sources=tuple(_SOURCES.get(source) for source in permission.can_publish_sources),
            whole=permission.SerializeToString(),
        ),
        tracks=tracks,
        kind=_KINDS.get(info.kind, LiveKitKind.STANDARD),
        is_hidden=permission.hidden or permission.recorder,
        joined_at_ms=info.joined_at_ms or info.joined_at * 1_000,
        publishes_once=info.kind in _PUBLISH_ONCE or any(track.is_streamed_in for track in tracks),
    )


def track_of(info: models.TrackInfo) -> Track:
    """A published track."""
    return Track(
        sid=TrackSid(info.sid),
        source=_SOURCES.get(info.source),
        muted=info.muted,
        is_sound=info.mime_type.startswith("audio/") or info.type == models.TrackType.AUDIO,
        is_streamed_in=info.name.startswith(_STREAMED_IN),
    )
