"""What core wants LiveKit to do, and what is known of who is there."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from signaling.core.participants import ALL_SOURCES, LiveKitKind, Source
from signaling.identifiers import Identity, LiveKitRoom, ParticipantId, TrackSid


@dataclass(frozen=True, slots=True)
class Track:
    """
    A published medium, as LiveKit lists it.

    Attributes:
        source: What the client says it is; `None` for LiveKit's "unknown".
        is_sound: By its MIME type, which is what is heard, whatever type the client declares.
        is_streamed_in: Whether it came by WHIP, whose clients publish once.
    """

    sid: TrackSid
    source: Source | None
    muted: bool
    is_sound: bool
    is_streamed_in: bool = False

    @property
    def counts_as(self) -> Source:
        """The source that somebody means by naming it: what says nothing of itself is taken for what it brings."""
        return self.source or (Source.MICROPHONE if self.is_sound else Source.CAMERA)


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

    def allowed(self) -> tuple[Source, ...]:
        """The sources that LiveKit lets through."""
        if not self.can_publish:
            return ()
        return tuple(source for source in ALL_SOURCES if source in self.sources) if self.sources else ALL_SOURCES

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
        sid: LiveKit's id of this session of theirs.
        is_hidden: Nobody sees them, or they are a recorder, by their permission.
        joined_at_ms: When this session began, in milliseconds since LiveKit's epoch; 0 if it does not say.
        publishes_once: Whether nothing makes them publish again what was taken away: telephones, and gateways that
            stream something in.
    """

    room: LiveKitRoom
    identity: Identity
    permission: Permission
    tracks: tuple[Track, ...] = ()
    kind: LiveKitKind = LiveKitKind.STANDARD
    is_hidden: bool = False
    sid: str = ""
    joined_at_ms: int = 0
    publishes_once: bool = False

    def tracks_of(self, sources: frozenset[Source]) -> tuple[Track, ...]:
        """The tracks that count as one of these sources."""
        return tuple(track for track in self.tracks if track.counts_as in sources)


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
    """
    These people's live tracks of these sources are to be muted, once.

    Attributes:
        is_held: Whether the sources are also kept from them for a while, which ends the tracks.
        strangers_but: Ordinary people in LiveKit who have never joined are to be muted too, less these; `None` if not.
    """

    participants: frozenset[ParticipantId]
    sources: frozenset[Source]
    is_held: bool = False
    strangers_but: frozenset[ParticipantId] | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """What these people publish of these sources is to end: the right is taken away and given back."""

    participants: frozenset[ParticipantId]
    sources: frozenset[Source]


@dataclass(frozen=True, slots=True)
class Expel:
    """Every identity of these people is to be removed."""

    participants: frozenset[ParticipantId]


Effect = Agree | Mute | Stop | Expel


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
    STOPPED = "stopped"
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
