"""Giving and taking roles."""

from signaling.core.changes import RoleGiven
from signaling.core.decisions.decision import UNKNOWN_TARGET, Decision, Refusal
from signaling.core.effects import Agree
from signaling.core.participants import NEVER_MODERATORS, Role, Source
from signaling.core.state import MeetingState
from signaling.identifiers import CONTROLLER, CommandId, ParticipantId
from signaling.messages import control


def take_role(
    state: MeetingState, sender: ParticipantId, command: control.RevokeModeratorRole, now: float, command_id: CommandId
) -> Decision | Refusal:
    """Somebody is a moderator no longer; of the last one only the host takes it."""
    target = command.target
    if target not in state.members:
        return UNKNOWN_TARGET
    if not state.is_moderator(target):
        return Refusal("nothing_to_do")
    if sender != CONTROLLER and all(moderator == target for moderator in state.moderators()):
        return Refusal("insufficient_permissions")
    role = state.members[target].role
    return give_role(
        state, sender, target, Role.USER if role is Role.MODERATOR else role, command.action, now, command_id
    )


def give_role(
    state: MeetingState,
    sender: ParticipantId,
    target: ParticipantId,
    role: Role,
    action: str,
    now: float,
    command_id: CommandId,
) -> Decision | Refusal:
    """Somebody has this role from now on."""
    member = state.members.get(target)
    if member is None:
        return UNKNOWN_TARGET
    if role is Role.MODERATOR and member.kind in NEVER_MODERATORS:
        return Refusal("insufficient_permissions")
    if state.role_of(target) is role:
        return Refusal("nothing_to_do")
    targets = frozenset({target})
    return Decision(
        command_id,
        action,
        sender,
        now,
        (RoleGiven(target, role),),
        Agree(targets, frozenset(Source)),
        holds=True,
        targets=targets,
        is_action=True,
    )
