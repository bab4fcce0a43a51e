"""The state of a meeting. LiveKit is made to agree with it, never the other way round."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar, assert_never

from signaling.core.participants import NEVER_MODERATORS, Kind, Role, Source
from signaling.identifiers import BreakoutId, Identity, LiveKitRoom, ParticipantId, RoomId, livekit_room
from signaling.messages.control import LeaveReason

POPOUTS_PER_PERSON: Final = 16

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Member:
    """
    Somebody who joined and has not left.

    Attributes:
        role: What the host let them in with; `MeetingState.role_of` says what holds.
        joined_at: Seconds since the epoch.
        returns_until: When their place is given up, in seconds since the epoch; `None` while connected.
    """

    role: Role
    kind: Kind
    joined_at: float
    display_name: str = ""
    breakout: BreakoutId | None = None
    hand_is_up: bool = False
    returns_until: float | None = None


@dataclass(frozen=True, slots=True)
class Popout:
    """A hidden viewer that somebody opened."""

    identity: Identity
    room: LiveKitRoom


@dataclass(frozen=True, slots=True)
class Popouts:
    """The popouts of one person: how many were ever issued, and which are open, oldest first."""

    issued: int = 0
    open: tuple[Popout, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A source that somebody may not publish, by name."""

    participant: ParticipantId
    source: Source


@dataclass(frozen=True, slots=True)
class MeetingState:
    """
    All that was decided in a meeting, and who is in it.

    Attributes:
        version: Goes up with each change of the state.
        roles: Roles given or taken during the meeting; they outlast what the host lets people in with.
        restricted: Sources that only moderators and those listed may publish.
        restricted_by_default: Of these, what a meeting begins with, and goes back to.
        listed: Who is listed, by source. Kept for the screen while sharing is free, since grants are remembered.
        departed: People who were here and left or were moved out; whoever of them is in LiveKit is removed.
        rooms: LiveKit rooms that the meeting uses or has used.
        doomed: LiveKit rooms of an ended meeting that are still to be deleted.
        empty_since: Since when nobody is in it, in seconds since the epoch.
    """

    room: RoomId
    version: int = 0
    members: Mapping[ParticipantId, Member] = field(default_factory=dict)
    roles: Mapping[ParticipantId, Role] = field(default_factory=dict)
    restricted: frozenset[Source] = frozenset()
    restricted_by_default: frozenset[Source] = frozenset()
    listed: Mapping[Source, frozenset[ParticipantId]] = field(default_factory=dict)
    blocks: frozenset[Block] = frozenset()
    popouts: Mapping[ParticipantId, Popouts] = field(default_factory=dict)
    departed: frozenset[ParticipantId] = frozenset()
    rooms: frozenset[LiveKitRoom] = frozenset()
    doomed: frozenset[LiveKitRoom] = frozenset()
    empty_since: float | None = None

    def role_of(self, participant: ParticipantId) -> Role:
        """The role that holds now; `GUEST` for somebody who is not here."""
        member = self.members.get(participant)
        if member is None:
            return Role.GUEST
        given = self.roles.get(participant, member.role)
        # Whoever was made a moderator and comes back by telephone is none.
        return member.role if given is Role.MODERATOR and member.kind in NEVER_MODERATORS else given

    def is_moderator(self, participant: ParticipantId) -> bool:
        """Whether they may command now."""
        return participant in self.members and self.role_of(participant) is Role.MODERATOR

    def moderators(self) -> Iterator[ParticipantId]:
        """Everybody who may command now."""
        return (participant for participant in self.members if self.role_of(participant) is Role.MODERATOR)

    def room_of(self, participant: ParticipantId) -> LiveKitRoom | None:
        """The LiveKit room where they belong; `None` for somebody who is not here."""
        member = self.members.get(participant)
        return None if member is None else livekit_room(self.room, member.breakout)

    def rooms_in_use(self) -> frozenset[LiveKitRoom]:
        """The LiveKit rooms where somebody belongs."""
        breakouts = {member.breakout for member in self.members.values()}
        return frozenset(livekit_room(self.room, breakout) for breakout in breakouts)


def new_meeting(room: RoomId, *, screen_share_requires_permission: bool) -> MeetingState:
    """A meeting that nobody has entered yet."""
    restricted = frozenset({Source.SCREEN_SHARE}) if screen_share_requires_permission else frozenset[Source]()
    return MeetingState(room=room, restricted=restricted, restricted_by_default=restricted)


# --- Changes -----------------------------------------------------------------------------------------------------
# A decision holds changes, not a new state: people join and leave while a command is being carried out, and each
# change applies to whatever the state is by then. Applying one twice is the same as applying it once.


@dataclass(frozen=True, slots=True)
class Entered:
    """Somebody is a member now, perhaps again."""

    participant: ParticipantId
    member: Member


@dataclass(frozen=True, slots=True)
class Departed:
    """Somebody is a member no longer; `reason` is what the others are told."""

    participant: ParticipantId
    at: float
    reason: LeaveReason


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """Their connections are gone; their places are kept until then."""

    participants: frozenset[ParticipantId]
    until: float


@dataclass(frozen=True, slots=True)
class Moved:
    """Somebody belongs into another room of the meeting now."""

    participant: ParticipantId
    breakout: BreakoutId | None


@dataclass(frozen=True, slots=True)
class HandSet:
    """A hand went up or down."""

    participant: ParticipantId
    up: bool


@dataclass(frozen=True, slots=True)
class RoleGiven:
    """A role was given or taken; what was decided by name about this person's screen is forgotten with it."""

    participant: ParticipantId
    role: Role


@dataclass(frozen=True, slots=True)
class Restricted:
    """Only moderators and these people may publish the source."""

    source: Source
    listed: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class Unrestricted:
    """Everybody may publish the source."""

    source: Source


@dataclass(frozen=True, slots=True)
class Granted:
    """These people may share their screen, by name."""

    participants: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class Revoked:
    """These people may not share their screen, by name."""

    participants: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class PopoutIssued:
    """Somebody opened a popout; the seventeenth closes the oldest."""

    participant: ParticipantId
    number: int
    popout: Popout


@dataclass(frozen=True, slots=True)
class Ended:
    """The meeting is over; its rooms are to be deleted."""


@dataclass(frozen=True, slots=True)
class RoomDeleted:
    """LiveKit deleted a room of an ended meeting."""

    room: LiveKitRoom


Change = (
    Entered
    | Departed
    | ConnectionLost
    | Moved
    | HandSet
    | RoleGiven
    | Restricted
    | Unrestricted
    | Granted
    | Revoked
    | PopoutIssued
    | Ended
    | RoomDeleted
)


def apply(state: MeetingState, changes: Iterable[Change]) -> MeetingState:
    """The state after these changes; `version` goes up by one if that differs."""
    after = state
    for change in changes:
        after = _apply(after, change)
    return state if after == state else replace(after, version=state.version + 1)


def _apply(state: MeetingState, change: Change) -> MeetingState:
    match change:
        case Entered(participant, member):
            return replace(
                state,
                members={**state.members, participant: member},
                departed=state.departed - {participant},
                rooms=state.rooms | {livekit_room(state.room, member.breakout)},
                empty_since=None,
            )
        case Departed(participant, at, _):
            return _depart(state, participant, at)
        case ConnectionLost(participants, until):
            lost = {who: replace(state.members[who], returns_until=until) for who in participants & set(state.members)}
            return replace(state, members={**state.members, **lost})
        case Moved(participant, breakout):
            return _move(state, participant, breakout)
        case HandSet(participant, up):
            return _change_member(state, participant, hand_is_up=up)
        case RoleGiven(participant, role):
            return replace(_forget_screen(state, frozenset({participant})), roles={**state.roles, participant: role})
        case Restricted(source, listed):
            return replace(state, restricted=state.restricted | {source}, listed={**state.listed, source: listed})
        case Unrestricted(source):
            kept = state.listed if source is Source.SCREEN_SHARE else _without(state.listed, source)
            restricted = (state.restricted - {source}) | (state.restricted_by_default & {source})
            return replace(state, restricted=restricted, listed=kept)
        case Granted(participants):
            cleared = _forget_screen(state, participants)
            grants = cleared.listed.get(Source.SCREEN_SHARE, frozenset()) | participants
            return replace(cleared, listed={**cleared.listed, Source.SCREEN_SHARE: grants})
        case Revoked(participants):
            cleared = _forget_screen(state, participants)
            return replace(cleared, blocks=cleared.blocks | {Block(who, Source.SCREEN_SHARE) for who in participants})
        case PopoutIssued(participant, number, popout):
            issued = state.popouts.get(participant, Popouts())
            if number <= issued.issued:
                return state
            opened = (*issued.open, popout)[-POPOUTS_PER_PERSON:]
            return replace(state, popouts={**state.popouts, participant: Popouts(issued=number, open=opened)})
        case Ended():
            return MeetingState(
                room=state.room,
                version=state.version,
                restricted=state.restricted_by_default,
                restricted_by_default=state.restricted_by_default,
                doomed=state.doomed | state.rooms,
            )
        case RoomDeleted(room):
            return replace(state, doomed=state.doomed - {room})
        case _:
            assert_never(change)


def _change_member(state: MeetingState, participant: ParticipantId, *, hand_is_up: bool) -> MeetingState:
    member = state.members.get(participant)
    if member is None:
        return state
    return replace(state, members={**state.members, participant: replace(member, hand_is_up=hand_is_up)})


def _depart(state: MeetingState, participant: ParticipantId, at: float) -> MeetingState:
    if participant not in state.members:
        return state
    members = _without(state.members, participant)
    return replace(
        _close_popouts(state, participant),
        members=members,
        departed=state.departed | {participant},
        empty_since=None if members else at,
    )


def _move(state: MeetingState, participant: ParticipantId, breakout: BreakoutId | None) -> MeetingState:
    member = state.members.get(participant)
    if member is None or member.breakout == breakout:
        return state
    return replace(
        # A popout shows the room that its owner is in; one left behind would go on watching the other.
        _close_popouts(state, participant),
        members={**state.members, participant: replace(member, breakout=breakout)},
        rooms=state.rooms | {livekit_room(state.room, breakout)},
    )


def _close_popouts(state: MeetingState, participant: ParticipantId) -> MeetingState:
    popouts = state.popouts.get(participant)
    if popouts is None or not popouts.open:
        return state
    return replace(state, popouts={**state.popouts, participant: replace(popouts, open=())})


def _forget_screen(state: MeetingState, participants: frozenset[ParticipantId]) -> MeetingState:
    grants = state.listed.get(Source.SCREEN_SHARE)
    listed = state.listed
    if grants is not None and grants & participants:
        listed = {**listed, Source.SCREEN_SHARE: grants - participants}
    forgotten = {Block(participant, Source.SCREEN_SHARE) for participant in participants}
    return replace(state, listed=listed, blocks=state.blocks - forgotten)


def _without(mapping: Mapping[_Key, _Value], key: _Key) -> dict[_Key, _Value]:
    return {other: value for other, value in mapping.items() if other != key}
