"""What moderators may do beyond `livekit`, and what they may ask."""

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, StringConstraints, model_validator

from signaling.errors import MessageError
from signaling.messages.base import Command, Names, Participant, by_action, parse_payload
from signaling.messages.moderation.vocabulary import RestrictableName, SourceName

MAX_HOLD_S: Final = 3_600
MAX_EXPIRY_S: Final = 86_400
MAX_REASON: Final = 500
MAX_AUDIT: Final = 100
"""Audit entries that one command may ask for: each may name everybody in a large meeting."""


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
