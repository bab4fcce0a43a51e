"""Namespace `control`: joining, leaving, roles and raised hands, as the stand-alone server offers them."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, Strict, StringConstraints

from signaling.messages.base import Command, Event, Message, Namespace, Participant, Timestamp, by_action
from signaling.messages.livekit import JoinData
from signaling.messages.moderation import JoinView, KindName, RoleName

MAX_DISPLAY_NAME: Final = 100

LeaveReason = Literal["quit", "timeout", "kicked", "banned"]
DisplayName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_DISPLAY_NAME)]


class Join(Command):
    """Enter the meeting of the ticket; the first command of every connection."""

    action: Literal["join"] = "join"
    display_name: DisplayName | None = None
    extensions: Annotated[tuple[str, ...], Strict(strict=False), Field(fail_fast=True, max_length=32)] = ()


class RaiseHand(Command):
    """Ask for the floor."""

    action: Literal["raise_hand"] = "raise_hand"


class LowerHand(Command):
    """Take a hand down: one's own, or as a moderator that of `target`."""

    action: Literal["lower_hand"] = "lower_hand"
    target: Participant | None = None


class GrantModeratorRole(Command):
    """Make `target` a moderator."""

    action: Literal["grant_moderator_role"] = "grant_moderator_role"
    target: Participant


class RevokeModeratorRole(Command):
    """Make `target` a moderator no longer."""

    action: Literal["revoke_moderator_role"] = "revoke_moderator_role"
    target: Participant


ControlCommand = Join | RaiseHand | LowerHand | GrantModeratorRole | RevokeModeratorRole

COMMANDS: Final[dict[str, type[ControlCommand]]] = by_action(
    Join, RaiseHand, LowerHand, GrantModeratorRole, RevokeModeratorRole
)


class ControlEvent(Event):
    """Any event of this namespace."""

    namespace: ClassVar = Namespace.CONTROL


class ControlData(Message):
    """What everybody in the meeting may know of a participant."""

    display_name: str
    role: RoleName
    participation_kind: KindName
    hand_is_up: bool
    joined_at: Timestamp


class ParticipantEntry(Message):
    """A participant, by id."""

    id: Participant
    control: ControlData


class Tariff(Message):
    """Known clients read it unguarded; there are no quotas here."""

    quotas: dict[str, int] = Field(default_factory=dict)


class Chat(Message):
    """Known clients read it unguarded; there is no chat here."""

    enabled: Literal[False] = False
    groups_history: tuple[()] = ()


class JoinSuccess(ControlEvent):
    """You are in. `livekit` is left out when LiveKit does not answer, `livekit_moderation` without the extension."""

    message: Literal["join_success"] = "join_success"
    id: Participant
    display_name: str
    role: RoleName
    participants: tuple[ParticipantEntry, ...]
    livekit: JoinData | None = None
    livekit_moderation: JoinView | None = None
    tariff: Tariff = Tariff()
    chat: Chat = Chat()


class Joined(ParticipantEntry, ControlEvent):
    """Somebody came."""

    message: Literal["joined"] = "joined"


class Update(ParticipantEntry, ControlEvent):
    """Something about somebody changed."""

    message: Literal["update"] = "update"


class Left(ControlEvent):
    """Somebody went, or did not come back."""

    message: Literal["left"] = "left"
    id: Participant
    reason: LeaveReason


class RoleUpdated(ControlEvent):
    """Your role changed."""

    message: Literal["role_updated"] = "role_updated"
    new_role: RoleName


ControlErrorCode = Literal[
    "invalid_json",
    "invalid_namespace",
    "invalid_command",
    "already_joined",
    "not_yet_joined",
    "insufficient_permissions",
    "nothing_to_do",
    "rate_limit_exceeded",
    "internal",
]


class ControlError(ControlEvent):
    """What you sent was refused; `detail` names the field of what cannot be parsed."""

    message: Literal["error"] = "error"
    error: ControlErrorCode
    detail: str | None = None
