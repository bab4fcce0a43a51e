"""Muting people, and ending what they publish."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from signaling.core.changes import Held
from signaling.core.decisions.decision import Decision
from signaling.core.decisions.reach import known_and_unknown, themselves, with_sound
from signaling.core.effects import Mute, Presence, Stop
from signaling.core.participants import Source
from signaling.core.policy import is_service, obeys_room
from signaling.core.references import people
from signaling.core.state import MeetingState
from signaling.identifiers import ParticipantId
from signaling.messages import livekit, moderation

FRESH_S: Final = 15.0
"""A mute is carried out, or tried again, only this long after its command: later it would hit what it did not mean."""


def force_mute(
    state: MeetingState, action: Decision, command: livekit.ForceMute, strangers: Collection[ParticipantId]
) -> Decision:
    """The microphones of those named, once."""
    targets, unknown = known_and_unknown(state, command.participants, strangers)
    return replace(action, effect=Mute(targets, frozenset({Source.MICROPHONE})), targets=targets, unknown=unknown)


def mute(
    state: MeetingState, action: Decision, command: moderation.Mute, strangers: Mapping[ParticipantId, Presence]
) -> Decision:
    """Sources of those named or of everyone, once or held for a while."""
    sources = frozenset(map(Source, command.sources))
    unknown: frozenset[ParticipantId] = frozenset()
    exempt: frozenset[ParticipantId] = frozenset()
    spared: frozenset[ParticipantId] | None = None
    if command.participants is not None:
        targets, unknown = known_and_unknown(state, command.participants, strangers)
    else:
        spared = people(command.everyone_except or (), state, strangers) | themselves(action.sender)
        exempt = frozenset(
            who for who in state.members if who in spared or state.is_moderator(who) or not obeys_room(who, state)
        )
        exempt |= frozenset(who for who, found in strangers.items() if who in spared or is_service(found))
        targets = frozenset({*strangers, *state.members}) - exempt
    is_held = command.hold_s is not None
    return replace(
        action,
        changes=() if command.hold_s is None else (Held(targets, sources, action.at + command.hold_s),),
        effect=Mute(targets, sources, is_held=is_held, strangers_but=spared),
        targets=targets,
        unknown=unknown,
        exempt=exempt,
    )


def stop(
    state: MeetingState, action: Decision, command: moderation.Stop, strangers: Collection[ParticipantId]
) -> Decision:
    """End what those named publish from this source."""
    targets, unknown = known_and_unknown(state, command.participants, strangers)
    sources = with_sound({Source(command.source)})
    return replace(action, effect=Stop(targets, sources), targets=targets, unknown=unknown)
