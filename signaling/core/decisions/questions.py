"""Asking people to unmute, and what they answer."""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from signaling.core.changes import Asked, Granted, RequestClosed
from signaling.core.decisions.decision import Decision, Refusal
from signaling.core.decisions.reach import known_and_unknown
from signaling.core.effects import Agree
from signaling.core.participants import SERVICES, Source
from signaling.core.state import ASK_AGAIN_S, MeetingState, Member, UnmuteRequest
from signaling.identifiers import CommandId, ParticipantId
from signaling.messages import moderation

REQUEST_S: Final = 60.0
"""How long somebody has to answer a request to unmute."""


def ask(
    state: MeetingState, action: Decision, command: moderation.AskToUnmute, strangers: Collection[ParticipantId]
) -> Decision | Refusal:
    """Those named are asked to unmute, unless somebody has asked them a moment ago."""
    now = action.at
    targets, unknown = known_and_unknown(state, command.participants, strangers)
    reached = {who for who in targets & state.members.keys() if _may_be_asked(state.members[who])}
    wait_s = {who: state.asked_at[who] + ASK_AGAIN_S - now for who in reached & state.asked_at.keys()}
    too_soon = {who for who, left_s in wait_s.items() if left_s > 0}
    if reached and reached == too_soon:
        return Refusal("rate_limit_exceeded", retry_after_s=min(wait_s.values()))
    changes = tuple(
        Asked(f"{action.command_id}-{number}", UnmuteRequest(who, action.sender, now + REQUEST_S), now)
        for number, who in enumerate(sorted(reached - too_soon), 1)
    )
    return replace(action, changes=changes, holds=True, targets=targets, unknown=unknown)


def _may_be_asked(member: Member) -> bool:
    return member.returns_until is None and member.knows_moderation and member.kind not in SERVICES


def answer(
    state: MeetingState,
    sender: ParticipantId,
    command: moderation.AnswerUnmuteRequest,
    now: float,
    command_id: CommandId,
) -> Decision | Refusal:
    """A yes lifts what keeps somebody's microphone; a no lifts nothing."""
    request = state.unmute_requests.get(command.request_id)
    if request is None or request.participant != sender or request.expires_at <= now:
        return Refusal("unknown_request_id")
    closed = RequestClosed(command.request_id, command.accept)
    decision = Decision(command_id, command.action, sender, now, (closed,), wished_by=request.moderator)
    if not command.accept:
        return replace(decision, holds=True)
    targets = frozenset({sender})
    return replace(
        decision,
        changes=(*decision.changes, Granted(targets, Source.MICROPHONE)),
        effect=Agree(targets, frozenset({Source.MICROPHONE})),
        targets=targets,
        is_action=True,
    )
