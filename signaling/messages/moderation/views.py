"""The meeting, and what was done in it, as moderators see it."""

from typing import Literal

from signaling.messages.base import Everybody, Message, Participant, Somebody, Timestamp
from signaling.messages.moderation.vocabulary import KindName, LiveKitKindName, Moderator, RoleName, SourceName, Sources

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
    "stopped",
    "removed",
    "banned",
    "asked",
    "not_connected",
    "unknown",
    "failed",
]


class Outcome(Message):
    """
    What a command came to for one person.

    Who `cannot_publish_again` may, and will not: telephones, gateways and WHIP clients publish once, when they come.
    """

    participant: Somebody
    outcome: OutcomeName
    error: Literal["livekit_unavailable", "livekit_rejected", "rate_limit_exceeded"] | None = None
    detail: Literal["cannot_publish_again"] | None = None


class MayPublish(Message):
    """What one person may publish now, for that person."""

    may_publish: Sources


class RestrictionView(Message):
    """A source that only moderators and those listed may publish."""

    source: SourceName
    allowed: Everybody
    expires_at: Timestamp | None = None


class BlockView(Message):
    """
    A source that somebody may not publish, by name.

    A moderator did it; or they did something under a false name, `count` times so far; or a mute holds until `until`.
    """

    participant: Somebody
    source: SourceName
    cause: Literal["moderator", "bypass", "hold"]
    count: int | None = None
    until: Timestamp | None = None


class TrackView(Message):
    """A medium that somebody publishes; `unknown` is LiveKit's word for what says of itself nothing."""

    source: SourceName | Literal["unknown"]
    track_sid: str
    muted: bool


class ParticipantView(Message):
    """
    Somebody as a moderator sees them.

    `publishing` and `in_livekit` are as of the last look at LiveKit; without `hand_updated_at`, the hand never went up.
    """

    participant: Participant
    role: RoleName
    kind: KindName
    connected: bool
    in_livekit: bool
    may_publish: Sources
    publishing: tuple[TrackView, ...]
    hand_is_up: bool
    hand_updated_at: Timestamp | None = None
    settling: bool


class StrangerView(Message):
    """Somebody who is in LiveKit and never joined here, as of the last look; `kind` is what LiveKit calls them."""

    identity: Somebody
    role: Literal["guest"] = "guest"
    kind: LiveKitKindName
    connected: Literal[False] = False
    in_livekit: Literal[True] = True
    may_publish: Sources
    publishing: tuple[TrackView, ...]
    hand_is_up: Literal[False] = False
    settling: bool


class StateView(Message):
    """The whole meeting as a moderator sees it."""

    version: int
    restrictions: tuple[RestrictionView, ...]
    blocks: tuple[BlockView, ...]
    bans: Everybody
    presenter: Participant | None = None
    participants: tuple[ParticipantView, ...]
    strangers: tuple[StrangerView, ...] = ()


JoinView = StateView | MayPublish


class ParticipantGone(Message):
    """Somebody is not in the meeting any more."""

    participant: Participant
    gone: Literal[True] = True


class Changed(Message):
    """The members of `state` that differ, whole; of `participants` only those who do."""

    restrictions: tuple[RestrictionView, ...] | None = None
    blocks: tuple[BlockView, ...] | None = None
    bans: Everybody | None = None
    presenter: Participant | None = None
    participants: tuple[ParticipantView | ParticipantGone, ...] | None = None
    strangers: tuple[StrangerView, ...] | None = None
    gone: tuple[Literal["presenter"], ...] | None = None


class AuditView(Message):
    """What a moderator did, and what it came to."""

    command_id: str
    at: Timestamp
    moderator: Moderator
    action: str
    targets: Everybody
    outcomes: tuple[Outcome, ...]
    reason: str | None = None
