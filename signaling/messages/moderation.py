"""Namespace `livekit_moderation`: what moderators may do beyond `livekit`, and what they are told."""

from typing import Annotated, ClassVar, Final, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    model_validator,
)

from signaling.errors import MessageError
from signaling.messages.base import (
    Command,
    Event,
    Everybody,
    Message,
    Names,
    Namespace,
    Participant,
    Somebody,
    Timestamp,
    by_action,
    parse_payload,
)

MAX_HOLD_S: Final = 3_600
MAX_EXPIRY_S: Final = 86_400
MAX_REASON: Final = 500
MAX_AUDIT: Final = 100
"""Audit entries that one command may ask for: each may name everybody in a large meeting."""

RoleName = Literal["guest", "user", "moderator"]
KindName = Literal["user", "guest", "sip", "recorder"]
LiveKitKindName = Literal["standard", "ingress", "egress", "agent", "sip"]
SourceName = Literal["camera", "microphone", "screen_share", "screen_share_audio"]
RestrictableName = Literal["camera", "microphone", "screen_share"]
Sources = Annotated[tuple[SourceName, ...], Strict(strict=False)]
Moderator = Participant | Literal["controller"]
"""Who did it: somebody, or the host."""


# --- Commands ----------------------------------------------------------------------------------------------------


def _in_livekits_order(sources: tuple[SourceName, ...]) -> tuple[SourceName, ...]:
    return tuple(source for source in get_args(SourceName) if source in sources)


NamedSources = Annotated[
    tuple[SourceName, ...],
    Strict(strict=False),
    Field(fail_fast=True, min_length=1, max_length=16),
    AfterValidator(_in_livekits_order),
]
ShortId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""An id that we made, as a client repeats it."""


class StrictCommand(Command):
    """A command of this namespace: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Mute(StrictCommand):
    """Mute these participants, or everyone but moderators, you and those listed; with `hold_s`, for that long."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["participants"]}, {"required": ["everyone_except"]}]}
    )

    action: Literal["mute"] = "mute"
    participants: Names | None = None
    everyone_except: Names | None = None
    sources: NamedSources = ("microphone",)
    hold_s: Annotated[int, Field(ge=1, le=MAX_HOLD_S)] | None = None

    @model_validator(mode="after")
    def _check_whom(self) -> Self:
        if (self.participants is None) == (self.everyone_except is None):
            raise ValueError("participants, everyone_except: exactly one of them is required")
        return self


class Restrict(StrictCommand):
    """Let only moderators and those listed publish the source, for good or for a while."""

    action: Literal["restrict"] = "restrict"
    source: RestrictableName
    allowed: Names = ()
    expires_in_s: Annotated[int, Field(ge=1, le=MAX_EXPIRY_S)] | None = None


class Unrestrict(StrictCommand):
    """Let everybody publish the source again; `screen_share` goes back to the server's default."""

    action: Literal["unrestrict"] = "unrestrict"
    source: RestrictableName


class Disallow(StrictCommand):
    """Forbid these participants by name to publish the source, moderators too."""

    action: Literal["disallow"] = "disallow"
    source: RestrictableName
    participants: Names


class Allow(StrictCommand):
    """Let these participants by name publish the source, whatever blocked or restricted them."""

    action: Literal["allow"] = "allow"
    source: RestrictableName
    participants: Names


class Stop(StrictCommand):
    """End what these participants publish of the source; they may begin again."""

    action: Literal["stop"] = "stop"
    source: RestrictableName
    participants: Names


class SetPresenter(StrictCommand):
    """Let nobody else share the screen; without `participant`, everybody may again."""

    action: Literal["set_presenter"] = "set_presenter"
    participant: Participant | None = None


class AskToUnmute(StrictCommand):
    """Ask these participants to unmute their microphones; nobody is unmuted by force."""

    action: Literal["ask_to_unmute"] = "ask_to_unmute"
    participants: Names


class AnswerUnmuteRequest(StrictCommand):
    """Answer a moderator's request to you; accepting it lets you use your microphone."""

    action: Literal["answer_unmute_request"] = "answer_unmute_request"
    request_id: ShortId
    accept: bool


class Kick(StrictCommand):
    """Remove these participants from LiveKit and the signaling; with `ban`, until the meeting ends."""

    action: Literal["kick"] = "kick"
    participants: Names
    ban: bool = False
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_REASON)] | None = None


class Unban(StrictCommand):
    """Let these participants join again."""

    action: Literal["unban"] = "unban"
    participants: Names


class Undo(StrictCommand):
    """Put back what a command changed, where nothing has changed it since."""

    action: Literal["undo"] = "undo"
    command_id: ShortId


class GetState(StrictCommand):
    """Show me the whole meeting."""

    action: Literal["get_state"] = "get_state"


class Watch(StrictCommand):
    """Show me the whole meeting, and tell me what changes from now on; or no longer."""

    action: Literal["watch"] = "watch"
    enabled: bool


class GetAudit(StrictCommand):
    """Show me what moderators did, newest first, 512 KiB at most; `before` continues after the entry of a command."""

    action: Literal["get_audit"] = "get_audit"
    limit: Annotated[int, Field(ge=1, le=MAX_AUDIT)]
    before: ShortId | None = None


def _parse_previewed(command: object) -> object:
    if isinstance(command, Command):
        return command
    try:
        return parse_payload(command, _PREVIEWED)
    except MessageError as error:
        raise ValueError(str(error)) from None  # the cause would hold the input


RoomWideCommand = Mute | Restrict | Unrestrict | SetPresenter
_PREVIEWED: Final[dict[str, type[RoomWideCommand]]] = by_action(Mute, Restrict, Unrestrict, SetPresenter)


class Preview(StrictCommand):
    """Tell me what this command would come to now, without doing it."""

    action: Literal["preview"] = "preview"
    command: Annotated[RoomWideCommand, BeforeValidator(_parse_previewed)]


ModerationCommand = (
    Mute
    | Restrict
    | Unrestrict
    | Disallow
    | Allow
    | Stop
    | SetPresenter
    | AskToUnmute
    | AnswerUnmuteRequest
    | Kick
    | Unban
    | Undo
    | GetState
    | Watch
    | GetAudit
    | Preview
)

COMMANDS: Final[dict[str, type[ModerationCommand]]] = by_action(
    Mute,
    Restrict,
    Unrestrict,
    Disallow,
    Allow,
    Stop,
    SetPresenter,
    AskToUnmute,
    AnswerUnmuteRequest,
    Kick,
    Unban,
    Undo,
    GetState,
    Watch,
    GetAudit,
    Preview,
)


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


class ModerationEvent(Event):
    """Any event of this namespace."""

    namespace: ClassVar = Namespace.MODERATION


class Outcome(Message):
    """
    What a command came to for one person.

    Who `cannot_publish_again` may, and will not: telephones, gateways and WHIP clients publish once, when they come.
    """

    participant: Somebody
    outcome: OutcomeName
    error: Literal["livekit_unavailable", "livekit_rejected", "rate_limit_exceeded"] | None = None
    detail: Literal["cannot_publish_again"] | None = None


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


class State(StateView, ModerationEvent):
    """The whole meeting, for the moderator who asked."""

    message: Literal["state"] = "state"


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


class StateChanged(ModerationEvent):
    """The meeting changed; when `version` is not the next after yours, ask for the whole of it."""

    message: Literal["state_changed"] = "state_changed"
    version: int
    changed: Changed


class AuditView(Message):
    """What a moderator did, and what it came to."""

    command_id: str
    at: Timestamp
    moderator: Moderator
    action: str
    targets: Everybody
    outcomes: tuple[Outcome, ...]
    reason: str | None = None


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
