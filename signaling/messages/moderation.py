"""Namespace `livekit_moderation`: what the moderator is told beyond `livekit`."""

from typing import Annotated, ClassVar, Final, Literal, Never

from pydantic import Strict

from signaling.messages.base import Event, Message, Namespace, Participant, ParticipantIds

RoleName = Literal["guest", "user", "moderator"]
KindName = Literal["user", "guest", "sip", "recorder"]
SourceName = Literal["camera", "microphone", "screen_share", "screen_share_audio"]
Sources = Annotated[tuple[SourceName, ...], Strict(strict=False)]

ResultErrorCode = Literal[
    "insufficient_permissions",
    "invalid_command",
    "livekit_unavailable",
    "unavailable",
    "rate_limit_exceeded",
    "internal",
]
OutcomeName = Literal[
    "muted",
    "already_muted",
    "no_track",
    "granted",
    "revoked",
    "restricted",
    "settling",
    "unrestricted",
    "unchanged",
    "exempt",
    "not_connected",
    "unknown",
    "failed",
]

COMMANDS: Final[dict[str, type[Never]]] = {}


class ModerationEvent(Event):
    """Any event of this namespace."""

    namespace: ClassVar = Namespace.MODERATION


class Outcome(Message):
    """What a command came to for one person."""

    participant: Participant
    outcome: OutcomeName
    error: Literal["livekit_unavailable", "livekit_rejected"] | None = None


class Result(ModerationEvent):
    """The one answer to a command that carries a `transaction_id`."""

    message: Literal["result"] = "result"
    command_id: str
    action: str | None = None
    error: ResultErrorCode | None = None
    detail: str | None = None
    outcomes: tuple[Outcome, ...] = ()
    repaired_later: ParticipantIds = ()


class MayPublish(Message):
    """What one person may publish now, for that person."""

    may_publish: Sources


class RestrictionView(Message):
    """A source that only moderators and those listed may publish."""

    source: SourceName
    allowed: ParticipantIds


class BlockView(Message):
    """A source that somebody may not publish, by name."""

    participant: Participant
    source: SourceName


class TrackView(Message):
    """A medium that somebody publishes."""

    source: SourceName
    track_sid: str
    muted: bool


class ParticipantView(Message):
    """Somebody as a moderator sees them. `publishing` and `in_livekit` are as of the last look at LiveKit."""

    participant: Participant
    role: RoleName
    kind: KindName
    connected: bool
    in_livekit: bool
    may_publish: Sources
    publishing: tuple[TrackView, ...]
    hand_is_up: bool
    settling: bool


class StateView(Message):
    """The whole meeting as a moderator sees it."""

    version: int
    restrictions: tuple[RestrictionView, ...]
    blocks: tuple[BlockView, ...]
    participants: tuple[ParticipantView, ...]


JoinView = StateView | MayPublish


class ModerationError(ModerationEvent):
    """Your command was refused, and had no `transaction_id` to be answered by."""

    message: Literal["error"] = "error"
    error: ResultErrorCode
    detail: str | None = None
