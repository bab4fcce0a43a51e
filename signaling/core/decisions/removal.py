"""Removing and banning people, and letting them in again."""

from collections.abc import Collection
from dataclasses import replace

from signaling.core.changes import Banned, Departed, Unbanned
from signaling.core.decisions.decision import Decision
from signaling.core.decisions.reach import themselves
from signaling.core.effects import Expel
from signaling.core.references import people
from signaling.core.state import MeetingState
from signaling.identifiers import ParticipantId
from signaling.messages import moderation


def kick(
    state: MeetingState, action: Decision, command: moderation.Kick, strangers: Collection[ParticipantId]
) -> Decision:
    """Those named have to go, and may not come in again if they are banned."""
    named = people(command.participants, state, strangers)
    exempt = named & themselves(action.sender)
    targets = (named & {*strangers, *state.departed, *state.members}) - exempt
    departed = [Departed(who, action.at, "banned" if command.ban else "kicked") for who in sorted(targets)]
    return replace(
        action,
        changes=(*departed, Banned(targets)) if command.ban else tuple(departed),
        effect=Expel(targets),
        holds=True,
        targets=targets,
        unknown=named - targets - exempt,
        exempt=exempt,
        reason=command.reason,
    )


def unban(
    state: MeetingState, action: Decision, command: moderation.Unban, strangers: Collection[ParticipantId]
) -> Decision:
    """Those named may come in again."""
    named = people(command.participants, state, strangers)
    known = named & (state.bans | state.departed | state.members.keys())
    return replace(action, changes=(Unbanned(known),), holds=True, targets=known, unknown=named - known)
