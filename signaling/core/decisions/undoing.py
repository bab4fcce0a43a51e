"""Undoing an earlier command."""

from dataclasses import replace
from typing import assert_never

from signaling.core.changes import PutBack
from signaling.core.decisions.decision import Decision, Refusal
from signaling.core.decisions.reach import with_sound
from signaling.core.effects import Agree
from signaling.core.participants import Source
from signaling.core.state import (
    BanWas,
    BlockWas,
    HoldWas,
    ListingWas,
    MeetingState,
    PresenterWas,
    RestrictionWas,
    Setting,
)
from signaling.identifiers import CommandId, ParticipantId


def undo(state: MeetingState, action: Decision, command_id: CommandId) -> Decision | Refusal:
    """What a command changed is as it was, where nothing has changed it since."""
    changed = state.undoable.get(command_id)
    if changed is None:
        return Refusal("unknown_command_id")
    settings = tuple(setting for setting in changed if _may_be_put_back(state, setting, action.at))
    if not settings:
        return Refusal("not_undoable")
    sources: set[Source] = set()
    people: set[ParticipantId] = set()
    concerns_everybody = False
    for setting in settings:
        match setting:
            case RestrictionWas(source):
                concerns_everybody = True
                sources.add(source)
            case PresenterWas():
                concerns_everybody = True
                sources.add(Source.SCREEN_SHARE)
            case ListingWas(source, who) | HoldWas(source, who):
                people.add(who)
                sources.add(source)
            case BlockWas(block):
                people.add(block.participant)
                sources.add(block.source)
            case BanWas(who):
                people.add(who)
            case _:
                assert_never(setting)
    targets = frozenset(people)
    effect = Agree(None if concerns_everybody else targets, with_sound(sources))
    return replace(
        action,
        changes=(PutBack(settings),),
        effect=effect if sources else None,
        targets=targets,
        reason=f"undoes {command_id}",
    )


def _may_be_put_back(state: MeetingState, setting: Setting, now: float) -> bool:
    """Not what would have ended by itself since, nor a presenter who is gone, nor a ban on who has come in again."""
    match setting:
        case RestrictionWas(until=float(until)) | HoldWas(until=float(until)):
            return until > now
        case PresenterWas(participant):
            return participant is None or participant in state.members
        case BanWas(participant, was_set):
            return not was_set or participant not in state.members
        case _:
            return True
