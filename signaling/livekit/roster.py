"""What LiveKit says of participants and tracks, in our terms."""

from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from livekit.protocol import models
from livekit.protocol.room import ListParticipantsResponse

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


if TYPE_CHECKING:
    from collections.abc import Sequence

    class Listed(Message):
        """A list of participants, each as the bytes that LiveKit wrote."""

        participants: Sequence[bytes]

else:

    def _listed() -> type[Message]:
        """
        The answer to ListParticipants, declared so that nobody in it is read.

        On the wire a message within a message looks like bytes, and protobuf takes these apart as fast as it can.
        """
        number = ListParticipantsResponse.DESCRIPTOR.fields_by_name["participants"].number
        file = FileDescriptorProto(name="listed.proto", package="signaling", syntax="proto3")
        kind, label = FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.LABEL_REPEATED
        file.message_type.add(name="Listed").field.add(name="participants", number=number, type=kind, label=label)
        pool = DescriptorPool()
        pool.Add(file)
        return GetMessageClass(pool.FindMessageTypeByName("signaling.Listed"))

    Listed = _listed()


class LastList:
    """
    Who was in a room when it was listed last.

    Who is listed again in the same bytes is the very same `Presence`, and costs a fiftieth of reading them.
    """

    def __init__(self, room: LiveKitRoom) -> None:
        self._room = room
        self._known: dict[bytes, Presence | None] = {}

    def read(self, answer: Listed) -> tuple[Presence, ...]:
        """
        Everybody in the room by this newer answer.

        Raises:
            DecodeError: Somebody in it cannot be read; what was known stays known.
        """
        known = {
            written: self._known[written] if written in self._known else self._read(written)
            for written in answer.participants
        }
        self._known = known
        return tuple(presence for presence in known.values() if presence is not None)

    def _read(self, written: bytes) -> Presence | None:
        info = models.ParticipantInfo.FromString(written)
        return None if info.state == models.ParticipantInfo.State.DISCONNECTED else presence_of(self._room, info)


def presence_of(room: LiveKitRoom, info: models.ParticipantInfo) -> Presence:
    """A participant in this room."""
    tracks = tuple(map(track_of, info.tracks))
    permission, is_hidden = _permission_of(info.permission.SerializeToString())
    return Presence(
        room=room,
        identity=Identity(info.identity),
        sid=info.sid,
        permission=permission,
        tracks=tracks,
        kind=_KINDS.get(info.kind, LiveKitKind.STANDARD),
        is_hidden=is_hidden,
        joined_at_ms=info.joined_at_ms or info.joined_at * 1_000,
        publishes_once=info.kind in _PUBLISH_ONCE or any(track.is_streamed_in for track in tracks),
    )


@lru_cache(maxsize=1_000)
def _permission_of(whole: bytes) -> tuple[Permission, bool]:
    """What a permission comes to, and whether it hides: most people in a meeting have the same."""
    permission = models.ParticipantPermission.FromString(whole)
    sources = tuple(_SOURCES.get(source) for source in permission.can_publish_sources)
    return Permission(permission.can_publish, sources, whole), permission.hidden or permission.recorder


def track_of(info: models.TrackInfo) -> Track:
    """A published track."""
    return Track(
        sid=TrackSid(info.sid),
        source=_SOURCES.get(info.source),
        muted=info.muted,
        is_sound=info.mime_type.startswith("audio/") or info.type == models.TrackType.AUDIO,
        is_streamed_in=info.name.startswith(_STREAMED_IN),
    )
