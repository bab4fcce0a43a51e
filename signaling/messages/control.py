"""Namespace `control`: joining, leaving, roles and raised hands, as the stand-alone server offers them."""

from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, Strict

from signaling.messages.base import (
    NULL,
    Command,
    Event,
    Message,
    Namespace,
    Null,
    Participant,
    Timestamp,
    by_action,
)
from signaling.messages.livekit import JoinData
from signaling.messages.moderation import JoinView, KindName, RoleName

LeaveReason = Literal["quit", "timeout", "kicked", "banned"]


class Join(Command):
    """Enter the meeting of the ticket; the first command of every connection. Guests alone choose their names."""

    action: Literal["join"] = "join"
    display_name: str | None = None
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
    """
    What everybody in the meeting may know of a participant.

    `hand_updated_at` is when the hand last went up or down, or when they joined. Whoever is told of has not left; known
    clients look at `left_at` for that.
    """

    display_name: str
    role: RoleName
    participation_kind: KindName
    hand_is_up: bool
    hand_updated_at: Timestamp
    joined_at: Timestamp
    left_at: Null = NULL


class ParticipantEntry(Message):
    """A participant, by id."""

    id: Participant
    control: ControlData

    @cached_property
    def text(self) -> str:
        """It as JSON: made once, for all who are told of them."""
        return self.model_dump_json(exclude_none=True)


class Creator(Message):
    """Who made a room, whom nobody knows here."""

    title: Literal[""] = ""
    firstname: Literal[""] = ""
    lastname: Literal[""] = ""
    display_name: Literal[""] = ""
    avatar_url: Literal[""] = ""


class RoomInfo(Message):
    """The meeting."""

    id: str
    created_by: Creator = Creator()


class Empty(Message):
    """An object without members."""


class Tariff(Message):
    """Known clients read it unguarded; nothing is limited here by what somebody pays."""

    id: Literal["00000000-0000-0000-0000-000000000000"] = "00000000-0000-0000-0000-000000000000"
    name: Literal["unlimited"] = "unlimited"
    quotas: Empty = Empty()
    modules: Empty = Empty()


class RoomHistory(Message):
    """What was said to everybody."""

    messages: tuple[()] = ()
    next_index: Null = NULL


class Chat(Message):
    """Known clients read it unguarded; there is no chat here."""

    enabled: Literal[False] = False
    groups_history: tuple[()] = ()
    room_history: RoomHistory = RoomHistory()
    private_history: tuple[()] = ()
    last_seen_timestamp_global: Null = NULL
    last_seen_timestamps_private: Empty = Empty()
    last_seen_timestamps_group: Empty = Empty()


class JoinSuccess(ControlEvent):
    """You are in. `livekit` is left out when LiveKit does not answer, `livekit_moderation` without the extension."""

    message: Literal["join_success"] = "join_success"
    id: Participant
    display_name: str
    role: RoleName
    hand_is_up: bool
    hand_updated_at: Timestamp | None = None
    participants: tuple[ParticipantEntry, ...]
    livekit: JoinData | None = None
    livekit_moderation: JoinView | None = None
    room_info: RoomInfo
    tariff: Tariff = Tariff()
    chat: Chat = Chat()

    def to_json(self) -> str:
        """The payload as it is sent; whoever joins is told of everybody, who are encoded once for all who join."""
        alone = self.model_copy(update={"participants": ()}).model_dump_json(exclude_none=True)
        before, _, after = alone.partition('"participants":[]')  # in a text, there would be backslashes
        return f'{before}"participants":[{",".join(entry.text for entry in self.participants)}]{after}'


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


class HandRaised(ControlEvent):
    """Your hand is up."""

    message: Literal["hand_raised"] = "hand_raised"


class HandLowered(ControlEvent):
    """Your hand is down; a moderator may have done it."""

    message: Literal["hand_lowered"] = "hand_lowered"


class RoleUpdated(ControlEvent):
    """Your role changed."""

    message: Literal["role_updated"] = "role_updated"
    new_role: RoleName


class ModeratorRoleGranted(ControlEvent):
    """You made `target` a moderator."""

    message: Literal["moderator_role_granted"] = "moderator_role_granted"
    target: Participant


class ModeratorRoleRevoked(ControlEvent):
    """You made `target` a moderator no longer."""

    message: Literal["moderator_role_revoked"] = "moderator_role_revoked"
    target: Participant


class RoomDeleted(ControlEvent):
    """The meeting is over; the connection is about to be closed with 1000."""

    message: Literal["room_deleted"] = "room_deleted"


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
