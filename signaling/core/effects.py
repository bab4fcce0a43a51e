"""What core wants LiveKit to do, and what is known of who is there."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from signaling.core.participants import Source
from signaling.identifiers import Identity, LiveKitRoom, ParticipantId, TrackSid


@dataclass(frozen=True, slots=True)
class Track:
    """
    A published medium, as LiveKit lists it.

    Attributes:
        source: What the client says it is; `None` for LiveKit's "unknown".
        is_sound: By its MIME type, which is what is heard, whatever type the client declares.
    """

    sid: TrackSid
    source: Source | None
    muted: bool
    is_sound: bool


@dataclass(frozen=True, slots=True)
class Permission:
    """
    What LiveKit enforces for somebody now.

    Attributes:
        sources: As LiveKit lists them; empty with `can_publish` means all.
        whole: LiveKit's own record, from which every change is copied.
    """

    can_publish: bool
    sources: tuple[Source | None, ...]
    whole: bytes = b""

    def allows_exactly(self, sources: tuple[Source, ...]) -> bool:
        """Whether LiveKit would take a change to these sources for no change."""
        if not sources:
            return not self.can_publish
        return self.can_publish and self.sources == sources


@dataclass(frozen=True, slots=True)
class Presence:
    """
    An identity in a LiveKit room.

    Attributes:
        is_service: Hidden, a recorder, an egress, an ingress or an agent.
    """

    room: LiveKitRoom
    identity: Identity
    permission: Permission
    tracks: tuple[Track, ...] = ()
    is_service: bool = False


# --- Effects -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agree:
    """
    LiveKit is to agree with the state.

    Attributes:
        participants: About whom; `None` for everybody in the meeting.
        sources: What the decision is about; who publishes one of them is dealt with first, and waited for.
    """

    participants: frozenset[ParticipantId] | None
    sources: frozenset[Source] = frozenset()


@dataclass(frozen=True, slots=True)
class Mute:
    """These people's live tracks of these sources are to be muted, once."""

    participants: frozenset[ParticipantId]
    sources: frozenset[Source]


Effect = Agree | Mute


class Priority(IntEnum):
    """Which of the waiting calls for a room goes first."""

    REPAIR = 0
    LIVE = 1
    MUTED = 2
    IDLE = 3
    SETTLING = 4
    SWEEP = 5


# --- What came of it ---------------------------------------------------------------------------------------------


class Finding(StrEnum):
    """What was seen of one person when an effect was carried out."""

    CHANGED = "changed"
    AGREED = "agreed"
    SETTLING = "settling"
    ABSENT = "absent"
    MUTED = "muted"
    ALREADY_MUTED = "already_muted"
    NO_TRACK = "no_track"
    UNANSWERED = "unanswered"
    REJECTED = "rejected"

    @property
    def is_failure(self) -> bool:
        """Whether LiveKit did not do its part, or did not say so."""
        return self in {Finding.UNANSWERED, Finding.REJECTED}


# --- Calls -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allow:
    """Let this identity publish these sources and no others."""

    room: LiveKitRoom
    identity: Identity
    sources: tuple[Source, ...]
    priority: Priority = Priority.SWEEP


@dataclass(frozen=True, slots=True)
class Remove:
    """This identity has no business in this room."""

    room: LiveKitRoom
    identity: Identity
    priority: Priority = Priority.REPAIR


Call = Allow | Remove
