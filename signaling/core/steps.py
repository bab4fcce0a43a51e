"""Steps from state to state that what is decided and what is put back have in common."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TypeVar

from signaling.core.participants import Source
from signaling.core.state import MeetingState, UnmuteRequest
from signaling.identifiers import ParticipantId

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def without(mapping: Mapping[_Key, _Value], key: _Key) -> dict[_Key, _Value]:
    """The mapping, but for this key."""
    return {other: value for other, value in mapping.items() if other != key}


def restrict(state: MeetingState, source: Source, until: float | None) -> MeetingState:
    """Only moderators and those listed may publish the source, until then if it ends by itself."""
    ends = without(state.restricted_until, source) | ({} if until is None else {source: until})
    return replace(state, restricted=state.restricted | {source}, restricted_until=ends)


def drop_requests(state: MeetingState, is_dropped: Callable[[UnmuteRequest], bool]) -> MeetingState:
    """Nobody can answer these requests any more."""
    kept = {id_: request for id_, request in state.unmute_requests.items() if not is_dropped(request)}
    return replace(state, unmute_requests=kept)


def forget_questions(
    state: MeetingState, participants: AbstractSet[ParticipantId], sources: AbstractSet[Source]
) -> MeetingState:
    """Nobody lifts by a yes what was decided after the question."""
    if Source.MICROPHONE not in sources:
        return state
    return drop_requests(state, lambda request: request.participant in participants)
