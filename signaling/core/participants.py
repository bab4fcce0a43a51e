"""Who takes part, and with what."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from signaling.errors import InvalidParticipant
from signaling.identifiers import BreakoutId, ParticipantId


class Role(StrEnum):
    """What somebody may command. Never LiveKit's `roomAdmin`."""

    GUEST = "guest"
    USER = "user"
    MODERATOR = "moderator"


class Kind(StrEnum):
    """How somebody takes part."""

    USER = "user"
    GUEST = "guest"
    SIP = "sip"
    RECORDER = "recorder"


class LiveKitKind(StrEnum):
    """What LiveKit calls a participant; whatever is not listed here is an ordinary one."""

    STANDARD = "standard"
    INGRESS = "ingress"
    EGRESS = "egress"
    AGENT = "agent"
    SIP = "sip"


class Source(StrEnum):
    """What a published track shows or sounds of, in LiveKit's order."""

    CAMERA = "camera"
    MICROPHONE = "microphone"
    SCREEN_SHARE = "screen_share"
    SCREEN_SHARE_AUDIO = "screen_share_audio"


ALL_SOURCES: Final = tuple(Source)
SCREEN_SOURCES: Final = frozenset({Source.SCREEN_SHARE, Source.SCREEN_SHARE_AUDIO})
NEVER_MODERATORS: Final = frozenset({Kind.GUEST, Kind.SIP})
SERVICES: Final = frozenset({Kind.RECORDER})
"""Kinds that no room-wide rule touches, and that nobody sees."""


@dataclass(frozen=True, slots=True)
class Participant:
    """
    Somebody whom the host lets into a meeting.

    Attributes:
        display_name: What others see; never a key.
        breakout: The breakout that they enter, `None` for the main room.

    Raises:
        InvalidParticipant: A moderator of kind `guest` or `sip`.
    """

    id: ParticipantId
    role: Role = Role.USER
    kind: Kind = Kind.USER
    display_name: str = ""
    breakout: BreakoutId | None = None

    def __post_init__(self) -> None:
        if self.role is Role.MODERATOR and self.kind in NEVER_MODERATORS:
            raise InvalidParticipant(f"{self.id}: nobody of kind {self.kind} is a moderator")
