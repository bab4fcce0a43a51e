"""What LiveKit must still be told."""

import re
from collections.abc import Iterable
from typing import Final

from signaling.core.effects import Allow, Call, Presence, Priority, Remove
from signaling.core.participants import SERVICES, Source
from signaling.core.policy import publishable
from signaling.core.state import MeetingState
from signaling.identifiers import Identity, ParticipantId

_POPOUT: Final = re.compile(r"(?P<owner>.+)-popout(?P<number>[1-9][0-9]*)", re.DOTALL)
_SECOND_SESSION: Final = "#"


def owner_of(identity: Identity, state: MeetingState) -> ParticipantId:
    """
    Whose identity it is.

    Popouts count as their owner's, as they were issued and not by the look of a name; so does a second session.
    """
    base = Identity(identity.partition(_SECOND_SESSION)[0])
    popout = _issued_popout(base, state)
    return ParticipantId(base) if popout is None else popout


def plan(
    state: MeetingState,
    roster: Iterable[Presence],
    *,
    remove_unknown: bool = False,
    about: frozenset[ParticipantId] | None = None,
    sources: frozenset[Source] = frozenset(),
) -> list[Call]:
    """
    The calls that make LiveKit agree with `state`: none for whoever already does.

    Args:
        roster: Everybody whom LiveKit lists in the meeting's rooms.
        remove_unknown: Whether people who never joined are removed, instead of being restricted like anyone.
        about: Only these people; `None` for everybody.
        sources: What a decision is about: who publishes one of them comes first.
    """
    calls = []
    for presence in roster:
        if about is not None and owner_of(presence.identity, state) not in about:
            continue
        call = call_for(state, presence, remove_unknown=remove_unknown, sources=sources)
        if call is not None:
            calls.append(call)
    return sorted(calls, key=lambda call: call.priority)


def call_for(
    state: MeetingState,
    presence: Presence,
    *,
    remove_unknown: bool = False,
    sources: frozenset[Source] = frozenset(),
) -> Call | None:
    """The call that makes LiveKit agree about one identity in one room, `None` if it does."""
    if _must_go(state, presence, remove_unknown=remove_unknown):
        return Remove(presence.room, presence.identity)
    if _is_exempt(state, presence):
        return None
    allowed = publishable(ParticipantId(presence.identity), state)
    if presence.permission.allows_exactly(allowed):
        return None
    return Allow(presence.room, presence.identity, allowed, _priority(presence, sources))


def _must_go(state: MeetingState, presence: Presence, *, remove_unknown: bool) -> bool:
    identity = presence.identity
    if _SECOND_SESSION in identity:
        # No identity of ours holds the mark of a second session; it would have the token's rights, not ours.
        return True
    owner = _issued_popout(identity, state)
    if owner is not None:
        return all(popout.identity != identity or popout.room != presence.room for popout in state.popouts[owner].open)
    participant = ParticipantId(identity)
    if participant in state.members:
        return state.room_of(participant) != presence.room
    return participant in state.departed or (remove_unknown and not presence.is_service)


def _is_exempt(state: MeetingState, presence: Presence) -> bool:
    if _issued_popout(presence.identity, state) is not None:
        return True
    participant = ParticipantId(presence.identity)
    member = state.members.get(participant)
    if member is None:
        return presence.is_service
    # No room-wide rule touches a service; a block by name does.
    return member.kind in SERVICES and all(block.participant != participant for block in state.blocks)


def _issued_popout(identity: Identity, state: MeetingState) -> ParticipantId | None:
    look = _POPOUT.fullmatch(identity)
    if look is None:
        return None
    owner = ParticipantId(look["owner"])
    popouts = state.popouts.get(owner)
    return owner if popouts is not None and int(look["number"]) <= popouts.issued else None


def _priority(presence: Presence, sources: frozenset[Source]) -> Priority:
    concerned = [track for track in presence.tracks if track.source is None or track.source in sources]
    if not concerned:
        return Priority.IDLE
    return Priority.MUTED if all(track.muted for track in concerned) else Priority.LIVE
