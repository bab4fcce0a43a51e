"""What everybody who is here may decide."""

from typing import assert_never

from signaling.core.changes import Change, HandSet, PopoutIssued
from signaling.core.commands import MemberCommand
from signaling.core.decisions.authority import may_moderate
from signaling.core.decisions.decision import UNKNOWN_TARGET, Decision, Refusal
from signaling.core.decisions.questions import answer
from signaling.core.state import MeetingState, Popout, Popouts
from signaling.identifiers import CommandId, ParticipantId, popout_identity
from signaling.messages import control, livekit, moderation


def decide_for_member(
    state: MeetingState, sender: ParticipantId, command: MemberCommand, now: float, command_id: CommandId
) -> Decision | Refusal:
    """What a command comes to that everybody may give who is here."""
    if isinstance(command, control.LowerHand):
        return _lower_hand(state, sender, command, now, command_id)
    room = state.room_of(sender)
    if room is None:
        return Refusal("insufficient_permissions")
    match command:
        case moderation.AnswerUnmuteRequest():
            return answer(state, sender, command, now, command_id)
        case livekit.RequestPopoutStreamAccessToken():
            number = state.popouts.get(sender, Popouts()).issued + 1
            change: Change = PopoutIssued(sender, number, Popout(popout_identity(sender, number), room))
        case control.RaiseHand():
            change = HandSet(sender, up=True, at=now)
        case _:
            assert_never(command)
    return Decision(command_id, command.action, sender, now, (change,), holds=True)


def _lower_hand(
    state: MeetingState, sender: ParticipantId, command: control.LowerHand, now: float, command_id: CommandId
) -> Decision | Refusal:
    target = sender if command.target is None else command.target
    if not (sender in state.members if target == sender else may_moderate(state, sender)):
        return Refusal("insufficient_permissions")
    if target not in state.members:
        return UNKNOWN_TARGET
    return Decision(command_id, command.action, sender, now, (HandSet(target, up=False, at=now),), holds=True)
