"""What moderators, and the people concerned, are told."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from signaling.messages.base import Event, Everybody, Namespace, Participant, Somebody
from signaling.messages.moderation.views import AuditView, Changed, Outcome, StateView
from signaling.messages.moderation.vocabulary import Moderator, SourceName, Sources

MAX_ROLLED_BACK: Final = 100
"""How many commands one `state_rolled_back` names: the newest."""


class ModerationEvent(Event):
    """Any event of this namespace."""

    namespace: ClassVar = Namespace.MODERATION


# --- Answers -----------------------------------------------------------------------------------------------------

ResultErrorCode = Literal[
    "insufficient_permissions",
    "invalid_command",
    "livekit_unavailable",
    "unavailable",
    "unknown_command_id",
    "unknown_request_id",
    "not_undoable",
    "rate_limit_exceeded",
    "internal",
]


class Result(ModerationEvent):
    """The one answer to a command that carries a `transaction_id`, and to every `preview`."""

    message: Literal["result"] = "result"
    command_id: str
    action: str | None = None
    error: ResultErrorCode | None = None
    detail: str | None = None
    retry_after_s: float | None = None
    outcomes: tuple[Outcome, ...] = ()
    repaired_later: Everybody = ()


class ModerationError(ModerationEvent):
    """Your command was refused, and had no `transaction_id` to be answered by."""

    message: Literal["error"] = "error"
    error: ResultErrorCode
    detail: str | None = None
    retry_after_s: float | None = None


# --- The meeting as moderators see it ----------------------------------------------------------------------------


class State(StateView, ModerationEvent):
    """The whole meeting, for the moderator who asked."""

    message: Literal["state"] = "state"


class StateChanged(ModerationEvent):
    """The meeting changed; when `version` is not the next after yours, ask for the whole of it."""

    message: Literal["state_changed"] = "state_changed"
    version: int
    changed: Changed


class Audit(ModerationEvent):
    """What moderators did, newest first."""

    message: Literal["audit"] = "audit"
    entries: tuple[AuditView, ...]


class ActionTaken(AuditView, ModerationEvent):
    """A moderator did something."""

    message: Literal["action_taken"] = "action_taken"


# --- What the person concerned is told ---------------------------------------------------------------------------


class Muted(ModerationEvent):
    """You were muted."""

    message: Literal["muted"] = "muted"
    moderator: Moderator
    sources: Sources


RightsCause = Literal["restriction", "permission", "hold", "presenter", "role", "bypass", "expiry", "undo"]


class PermissionsChanged(ModerationEvent):
    """From now on you may publish this; without `moderator`, nobody in particular did it."""

    message: Literal["permissions_changed"] = "permissions_changed"
    moderator: Moderator | None = None
    may_publish: Sources
    cause: RightsCause


class Kicked(ModerationEvent):
    """You were removed from the meeting."""

    message: Literal["kicked"] = "kicked"
    moderator: Moderator
    reason: str | None = None


class UnmuteRequested(ModerationEvent):
    """A moderator asks you to unmute your microphone; answer by `request_id`."""

    message: Literal["unmute_requested"] = "unmute_requested"
    request_id: str
    moderator: Moderator


# --- What moderators are told ------------------------------------------------------------------------------------


class UnmuteRequestAnswered(ModerationEvent):
    """Somebody answered your request to unmute."""

    message: Literal["unmute_request_answered"] = "unmute_request_answered"
    request_id: str
    participant: Participant
    accepted: bool


class DriftRepaired(ModerationEvent):
    """LiveKit allowed somebody something else than what holds, and was set right."""

    message: Literal["drift_repaired"] = "drift_repaired"
    participant: str
    found: Sources
    expected: Sources


class BypassStopped(ModerationEvent):
    """Somebody published a medium under the name of a source that it is not; it was stopped."""

    message: Literal["bypass_stopped"] = "bypass_stopped"
    participant: Somebody
    track_sid: str
    declared: SourceName
    media: Literal["audio", "video"]


class UnmutedAgain(ModerationEvent):
    """Somebody who was muted has unmuted themselves."""

    message: Literal["unmuted_again"] = "unmuted_again"
    participant: Somebody


class UnknownParticipant(ModerationEvent):
    """Somebody is in LiveKit who has never joined here."""

    message: Literal["unknown_participant"] = "unknown_participant"
    identity: str


class StateRolledBack(ModerationEvent):
    """The store has lost these commands, the newest last: they do not hold any more, and may be given again."""

    message: Literal["state_rolled_back"] = "state_rolled_back"
    command_ids: Annotated[tuple[str, ...], Field(max_length=MAX_ROLLED_BACK)]
