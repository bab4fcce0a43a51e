"""What LiveKit must still be told."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from signaling.core.effects import Allow, Call, Finding, Presence, Priority, Remove
from signaling.core.participants import SCREEN_SOURCES, Source
from signaling.core.policy import is_blocked, is_named, is_service, obeys_room, publishable
from signaling.core.state import REMEMBERED_S, Came, CameInto, MeetingState
from signaling.identifiers import Identity, LiveKitRoom, ParticipantId

_POPOUT: Final = re.compile(r"(?P<owner>.+)-popout(?P<number>[1-9][0-9]*)", re.DOTALL)
_SECOND_SESSION: Final = "#"
_POPOUT_MARK: Final = "-popout"


def owner_of(identity: Identity, state: MeetingState) -> ParticipantId:
    """
    Whose identity it is.

    Popouts count as their owner's, as they were issued and not by the look of a name; so does a second session.
    """
    if not _is_marked(identity):
        return ParticipantId(identity)
    base = _first_session(identity, state)
    popout = _issued_popout(base, state)
    return ParticipantId(base) if popout is None else popout


def _is_marked(identity: Identity) -> bool:
    """Whether an identity may be somebody else's by its look; hardly any is."""
    return _SECOND_SESSION in identity or _POPOUT_MARK in identity


def of_people(state: MeetingState, roster: Iterable[Presence], people: frozenset[ParticipantId]) -> Iterator[Presence]:
    """Of who is in LiveKit, whatever is one of these people's."""
    return (
        presence
        for presence in roster
        if (owner_of(presence.identity, state) if _is_marked(presence.identity) else presence.identity) in people
    )


def _first_session(identity: Identity, state: MeetingState) -> Identity:
    """
    The identity itself, or the one of which it is a second session.

    LiveKit marks those by what it appends. Anybody else's name may hold that mark: what counts is whether somebody of
    this meeting stands before it.
    """
    if _SECOND_SESSION not in identity or _was_here(identity, state):
        return identity
    return next((base for base in _before_marks(identity) if _was_here(base, state)), identity)


def _before_marks(identity: Identity) -> Iterator[Identity]:
    for mark in re.finditer(_SECOND_SESSION, identity):
        yield Identity(identity[: mark.start()])


def _was_here(identity: Identity, state: MeetingState) -> bool:
    participant = ParticipantId(identity)
    if participant in state.members or participant in state.departed or participant in state.bans:
        return True
    return _issued_popout(identity, state) is not None


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
    everybody = list(roster)
    for presence in everybody if about is None else of_people(state, everybody, about):
        call = call_for(state, presence, remove_unknown=remove_unknown, sources=sources, roster=everybody)
        if call is not None:
            calls.append(call)
    return sorted(calls, key=lambda call: call.priority)


def call_for(
    state: MeetingState,
    presence: Presence,
    *,
    remove_unknown: bool = False,
    sources: frozenset[Source] = frozenset(),
    roster: Collection[Presence] = (),
) -> Call | None:
    """
    The call that makes LiveKit agree about one identity in one room, `None` if it does.

    Args:
        roster: Everybody whom LiveKit lists: the presenter waits until nobody else can share the screen.
    """
    if not is_ours(state, presence):
        return None
    if _must_go(state, presence, remove_unknown=remove_unknown):
        return Remove(presence.room, presence.identity)
    if _issued_popout(presence.identity, state) is not None:
        # Ours only watch; by the same name, a token of somebody else's may say more.
        return Allow(presence.room, presence.identity, ()) if presence.permission.can_publish else None
    allowed, has = allowable(state, presence, roster), presence.permission
    if has.allows_exactly(allowed) if _is_ruled(state, presence) else has.allowed() == allowed:
        return None
    return Allow(presence.room, presence.identity, allowed, _priority(presence, sources))


def is_ours(state: MeetingState, presence: Presence) -> bool:
    """Whether they are in a LiveKit room of this meeting; not so of one that only looks like a breakout of it."""
    return presence.room in state.rooms


def allowable(state: MeetingState, presence: Presence, roster: Collection[Presence] = ()) -> tuple[Source, ...]:
    """
    What LiveKit is to allow an identity now: what it may publish, less the screen that somebody else still has.

    Who joined here gets what the state says, both ways. Who did not, and services, are only ever taken away from:
    nobody but those who issued their tokens knows what they are for.
    """
    participant = ParticipantId(presence.identity)
    allowed = publishable(participant, state, is_service=is_service(presence))
    if not _is_ruled(state, presence):
        came = came_with(state, presence).sources
        blocked_as = [ParticipantId(base) for base in _before_marks(presence.identity)]
        allowed = tuple(
            source
            for source in allowed
            if source in came and not any(is_blocked(base, source, state) for base in blocked_as)
        )
    if must_wait(state, presence, roster):
        return tuple(source for source in allowed if source not in SCREEN_SOURCES)
    return allowed


def came_with(state: MeetingState, presence: Presence) -> Came:
    """
    What somebody who is only taken away from could publish when they came: the most that they are given back.

    A client that lost its connection comes back in a new session, by a token of LiveKit's that holds what it was
    allowed last. Whoever comes with just that has come with what they had before.
    """
    has = frozenset(presence.permission.allowed())
    known = _known_to_have_come(state, presence)
    if known is None:
        return Came(presence.sid, has)
    if known.session != presence.sid and not _is_member(state, presence):
        allowed = publishable(ParticipantId(presence.identity), state, is_service=is_service(presence))
        return Came(presence.sid, known.sources if has == known.sources.intersection(allowed) else has)
    return known


def left_by_others(state: MeetingState, before: Presence, now: Presence) -> Came | None:
    """
    What somebody may be given back at most, if less than before since somebody else has taken something from them.

    Args:
        before: As they were known to be, and were to stay.

    Returns:
        `None` if nothing has to be noted.
    """
    known = _known_to_have_come(state, now)
    if known is None or known.session != now.sid or before.sid != now.sid or not is_stranger(state, now):
        return None
    taken = set(before.permission.allowed()).difference(now.permission.allowed()).intersection(allowable(state, before))
    return Came(now.sid, known.sources - taken) if taken else None


def unnoted(state: MeetingState, presences: Iterable[Presence], *, about_to_change: bool = False) -> CameInto:
    """
    Of these people, those of whom it has to be noted with what they came.

    Args:
        about_to_change: Whether LiveKit is about to be told of them; else only whose session is another one now.
    """
    found: dict[LiveKitRoom, dict[ParticipantId, Came]] = {}
    for presence in presences:
        participant, known = ParticipantId(presence.identity), _known_to_have_come(state, presence)
        came = known
        if _is_member(state, presence):
            if not _is_ruled(state, presence) and known is None and is_named(participant, state):
                came = Came(presence.sid, frozenset(Source))  # our tokens are for everything but that
        elif (about_to_change or known is not None) and is_stranger(state, presence):
            came = came_with(state, presence)
        if came is not None and came != known:
            found.setdefault(presence.room, {})[participant] = came
    return found


def _known_to_have_come(state: MeetingState, presence: Presence) -> Came | None:
    return state.came.get(presence.room, {}).get(ParticipantId(presence.identity))


def _is_member(state: MeetingState, presence: Presence) -> bool:
    return ParticipantId(presence.identity) in state.members


def _is_ruled(state: MeetingState, presence: Presence) -> bool:
    """Whether LiveKit is to allow them just what the state says: whoever joined here, and is no service."""
    return _is_member(state, presence) and obeys_room(ParticipantId(presence.identity), state)


def is_plain(state: MeetingState, presence: Presence) -> bool:
    """Whether it follows from the state alone what LiveKit is to allow an identity, and not from who else is there."""
    return _is_ruled(state, presence) and state.presenter != ParticipantId(presence.identity)


def must_wait(state: MeetingState, presence: Presence, roster: Collection[Presence]) -> bool:
    """Whether this is the presenter, who gets the screen only when LiveKit allows it to nobody else any more."""
    return (
        state.presenter == ParticipantId(presence.identity)
        and Source.SCREEN_SHARE not in presence.permission.allowed()
        and screen_is_taken(state, roster, ParticipantId(presence.identity))
    )


def screen_is_taken(state: MeetingState, roster: Iterable[Presence], presenter: ParticipantId) -> bool:
    """Whether LiveKit still lets anybody share who may not, beside the presenter."""
    return any(
        Source.SCREEN_SHARE in other.permission.allowed()
        and not is_exempt(state, other)
        and Source.SCREEN_SHARE not in publishable(ParticipantId(other.identity), state, is_service=is_service(other))
        for other in roster
        if ParticipantId(other.identity) != presenter
    )


def _must_go(state: MeetingState, presence: Presence, *, remove_unknown: bool) -> bool:
    identity = presence.identity
    if _first_session(identity, state) != identity:
        return True  # it has the token's rights, not ours
    owner = _issued_popout(identity, state)
    if owner is not None:
        return all(popout.identity != identity or popout.room != presence.room for popout in state.popouts[owner].open)
    participant = ParticipantId(identity)
    if participant in state.members:
        return state.room_of(participant) != presence.room
    return participant in state.departed or participant in state.bans or (remove_unknown and not is_service(presence))


def is_exempt(state: MeetingState, presence: Presence) -> bool:
    """Whether nothing that was decided concerns an identity: a popout, or a service that nothing names."""
    if _issued_popout(presence.identity, state) is not None:
        return True
    participant = ParticipantId(presence.identity)
    if obeys_room(participant, state, is_service=is_service(presence)):
        return False
    return not is_named(participant, state)


def strangers(state: MeetingState, roster: Iterable[Presence]) -> dict[ParticipantId, Presence]:
    """Who is in the meeting's LiveKit rooms and has never joined, nor is anybody's popout or second session."""
    return {ParticipantId(presence.identity): presence for presence in roster if is_stranger(state, presence)}


def is_stranger(state: MeetingState, presence: Presence) -> bool:
    """Whether an identity is somebody's who has never joined, or who has left and is back in LiveKit alone."""
    participant = ParticipantId(presence.identity)
    return (
        participant not in state.members
        and is_ours(state, presence)
        and owner_of(presence.identity, state) == participant
    )


def is_unknown(state: MeetingState, presence: Presence) -> bool:
    """Whether they are a stranger whom moderators see: not one who was here, and is about to be removed again."""
    participant = ParticipantId(presence.identity)
    if participant in state.members:  # as hardly anybody is not, whom every sweep asks about
        return False
    return is_stranger(state, presence) and participant not in state.departed and participant not in state.bans


def silencing(presence: Presence, sources: frozenset[Source]) -> Finding:
    """What muting these sources of somebody comes to if LiveKit does its part."""
    tracks = presence.tracks_of(sources)
    if not tracks:
        return Finding.NO_TRACK
    return Finding.ALREADY_MUTED if all(track.muted for track in tracks) else Finding.MUTED


def unmuted_again(state: MeetingState, roster: Iterable[Presence], now: float) -> frozenset[ParticipantId]:
    """Who has a live track of a source that was muted not long before `now`, in seconds since the epoch."""
    found = set()
    for presence in roster:
        note = state.mutes.get(ParticipantId(presence.identity))
        if note is None or now > note.at + REMEMBERED_S:
            continue
        if any(not track.muted for track in presence.tracks_of(note.sources)):
            found.add(ParticipantId(presence.identity))
    return frozenset(found)


def _issued_popout(identity: Identity, state: MeetingState) -> ParticipantId | None:
    look = _POPOUT.fullmatch(identity) if state.popouts else None
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
