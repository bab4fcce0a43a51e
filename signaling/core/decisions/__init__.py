"""From a command to a decision: one module for each family of commands."""

from collections.abc import Mapping
from types import MappingProxyType

from signaling.core.commands import AnyCommand, HostCommand, MemberCommand
from signaling.core.decisions.authority import may_moderate, refusal_of
from signaling.core.decisions.decision import Decision, Refusal, RefusalCode
from signaling.core.decisions.host import decide_for_host
from signaling.core.decisions.members import decide_for_member
from signaling.core.decisions.moderators import decide_for_moderator
from signaling.core.decisions.muting import FRESH_S
from signaling.core.effects import Presence
from signaling.core.state import MeetingState
from signaling.identifiers import CommandId, ParticipantId

__all__ = ["FRESH_S", "Decision", "Refusal", "RefusalCode", "decide", "may_moderate", "refusal_of"]


def decide(
    state: MeetingState,
    sender: ParticipantId,
    command: AnyCommand,
    *,
    now: float,
    command_id: CommandId,
    strangers: Mapping[ParticipantId, Presence] = MappingProxyType({}),
) -> Decision | Refusal:
    """
    What `command` comes to in `state`. Refused in this order: the sender may not, the target is unknown, already so.

    Args:
        sender: Who asks; `CONTROLLER` for the host.
        now: Seconds since the epoch.
        strangers: Who is in LiveKit and has never joined; moderators may name them too, or mean them by everyone.
    """
    if isinstance(command, HostCommand):
        return decide_for_host(state, command, now, command_id)
    if isinstance(command, MemberCommand):
        return decide_for_member(state, sender, command, now, command_id)
    if (refusal := refusal_of(state, sender, command, now)) is not None:
        return refusal
    return decide_for_moderator(state, sender, command, now, command_id, strangers)
