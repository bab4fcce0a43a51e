"""Who may command at all."""

from signaling.core.commands import AnyCommand, HostCommand, MemberCommand
from signaling.core.decisions.decision import Refusal
from signaling.core.state import MeetingState
from signaling.identifiers import CONTROLLER, ParticipantId
from signaling.messages import moderation


def may_moderate(state: MeetingState, sender: ParticipantId) -> bool:
    """Whether somebody may command now, and see what moderators see."""
    return state.goes_on if sender == CONTROLLER else state.is_moderator(sender)


def refusal_of(state: MeetingState, sender: ParticipantId, command: AnyCommand, now: float) -> Refusal | None:
    """Why somebody may not give such a command at all, whatever it would come to; `None` if they may."""
    match command:
        case moderation.AnswerUnmuteRequest(request_id=request_id):
            if sender not in state.members:
                return Refusal("insufficient_permissions")
            request = state.unmute_requests.get(request_id)
            is_theirs = request is not None and request.participant == sender and request.expires_at > now
            return None if is_theirs else Refusal("unknown_request_id")
        case _ if isinstance(command, HostCommand | MemberCommand) or may_moderate(state, sender):
            return None
        case _:
            return Refusal("insufficient_permissions")
