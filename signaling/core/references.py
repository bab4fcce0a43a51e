"""Whom a command names: the only place where a name becomes a person."""

from collections.abc import Collection, Iterable

from signaling.core.state import MeetingState
from signaling.identifiers import ParticipantId, normalised


def person(name: str, state: MeetingState, strangers: Collection[ParticipantId] = ()) -> ParticipantId:
    """
    Who is meant by a name: whoever is called just that, else who is called so when it is read as a UUID.

    Args:
        strangers: Who is in LiveKit and has never joined; they may be called anything.
    """
    verbatim = ParticipantId(name)
    normal = ParticipantId(normalised(name))
    return verbatim if verbatim == normal or verbatim in strangers or _is_named(verbatim, state) else normal


def people(
    names: Iterable[str], state: MeetingState, strangers: Collection[ParticipantId] = ()
) -> frozenset[ParticipantId]:
    """Who is meant by these names; see `person`."""
    return frozenset(person(name, state, strangers) for name in names)


def _is_named(participant: ParticipantId, state: MeetingState) -> bool:
    """Whether somebody of just that name has been in the meeting, or was decided about."""
    return (
        participant in state.members
        or participant in state.departed
        or participant in state.bans
        or any(participant in came for came in state.came.values())
        or participant in state.holds
        or any(participant in listed for listed in state.listed.values())
        or any(participant == block.participant for block in state.blocks)
    )
