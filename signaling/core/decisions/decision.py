"""What a command comes to, before LiveKit is asked."""

from dataclasses import dataclass
from typing import Final, Literal

from signaling.core.changes import Change
from signaling.core.effects import Effect
from signaling.identifiers import CommandId, ParticipantId

RefusalCode = Literal[
    "already_joined",
    "banned",
    "insufficient_permissions",
    "internal",
    "invalid_command",
    "livekit_unavailable",
    "not_undoable",
    "nothing_to_do",
    "rate_limit_exceeded",
    "unavailable",
    "unknown_command_id",
    "unknown_request_id",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, and nothing changed."""

    error: RefusalCode
    detail: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What a command comes to, before LiveKit is asked.

    Attributes:
        sender: `CONTROLLER` for the host.
        at: When it was decided, in seconds since the epoch.
        holds: Whether it stands even if LiveKit answers nothing.
        targets: The people it names, as far as they are here.
        unknown: The people it names who are not.
        exempt: The people whom it leaves alone although they might be meant.
        is_action: Whether a moderator or the host did it, so that it is kept, told to moderators, and may be undone.
        wished_by: The moderator whose wish somebody else fulfils by it.
        reason: What the moderator says about it.
    """

    command_id: CommandId
    action: str
    sender: ParticipantId
    at: float
    changes: tuple[Change, ...] = ()
    effect: Effect | None = None
    holds: bool = False
    targets: frozenset[ParticipantId] = frozenset()
    unknown: frozenset[ParticipantId] = frozenset()
    exempt: frozenset[ParticipantId] = frozenset()
    is_action: bool = False
    wished_by: ParticipantId | None = None
    reason: str | None = None

    @property
    def moderator(self) -> ParticipantId:
        """Who counts as having done it."""
        return self.sender if self.wished_by is None else self.wished_by


UNKNOWN_TARGET: Final = Refusal("invalid_command", "target: is not in this meeting")
