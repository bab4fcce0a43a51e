"""Who takes part, and with what."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from signaling.core.names import display_name
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
        display_name: What others see; never a key. Control and invisible characters are taken out, it is cut at 100
            characters, and it is the id when nothing is left.
        breakout: The breakout that they enter, `None` for the main room.
        keeps_room: Whether somebody who is still in the meeting comes back to the room where they were; who is not
            enters the main room.

    Raises:
        InvalidParticipant: A moderator of kind `guest` or `sip`; or somebody who keeps their room and has a breakout.
    """

    id: ParticipantId
    role: Role = Role.USER
    kind: Kind = Kind.USER
    display_name: str = ""
    breakout: BreakoutId | None = None
    keeps_room: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "display_name", display_name(self.display_name, otherwise=self.id))
        if self.keeps_room and self.breakout is not None:
            raise InvalidParticipant(f"{self.id}: whoever keeps their room enters no other")
        if self.role is Role.MODERATOR and self.kind in NEVER_MODERATORS:
            raise InvalidParticipant(f"{self.id}: nobody of kind {self.kind} is a moderator")
