"""The state of a meeting. LiveKit is made to agree with it, never the other way round."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal, TypeVar, assert_never

from signaling.core.participants import ALL_SOURCES, NEVER_MODERATORS, SERVICES, Kind, Role, Source
from signaling.identifiers import (
    BreakoutId,
    CommandId,
    Identity,
    LiveKitRoom,
    ParticipantId,
    RoomId,
    TrackSid,
    livekit_room,
    normalised,
)
from signaling.messages.control import LeaveReason

POPOUTS_PER_PERSON: Final = 16
REMEMBERED_S: Final = 60.0
"""How long a mute is remembered, for moderators to be told of whoever unmutes themselves again."""
ASK_AGAIN_S: Final = 10.0
"""How long after somebody was asked to unmute nobody may ask them again."""
UNDOABLE_COMMANDS: Final = 50
UNDOABLE_SETTINGS: Final = 2_000
"""How much of what the newest commands changed is kept, besides what the very newest one did."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Member:
    """
    Somebody who joined and has not left.

    Attributes:
        role: What the host let them in with; `MeetingState.role_of` says what holds.
        joined_at: Seconds since the epoch.
        hand_updated_at: When the hand last went up or down, in seconds since the epoch; `None` if it never did.
        returns_until: When their place is given up, in seconds since the epoch; `None` while connected.
        knows_moderation: Whether their client takes events of the namespace `livekit_moderation`.
    """

    role: Role
    kind: Kind
    joined_at: float
    display_name: str = ""
    breakout: BreakoutId | None = None
    hand_is_up: bool = False
    returns_until: float | None = None
    knows_moderation: bool = True
    hand_updated_at: float | None = None


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


class BlockCause(StrEnum):
    """Why somebody may not publish a source, by name: a moderator said so, or they got round a restriction."""

    MODERATOR = "moderator"
    BYPASS = "bypass"


@dataclass(frozen=True, slots=True)
class Block:
    """A source that somebody may not publish, by name, until that is lifted."""

    participant: ParticipantId
    source: Source
    cause: BlockCause = BlockCause.MODERATOR


@dataclass(frozen=True, slots=True)
class UnmuteRequest:
    """A moderator asks somebody to unmute; it lapses at `expires_at`, in seconds since the epoch."""

    participant: ParticipantId
    moderator: ParticipantId
    expires_at: float


@dataclass(frozen=True, slots=True)
class MuteNote:
    """That LiveKit confirmed somebody's mute, and when, in seconds since the epoch."""

    at: float
    sources: frozenset[Source]


@dataclass(frozen=True, slots=True)
class Came:
    """
    What somebody who never joined could publish when they came into LiveKit, less what others have taken since.

    Attributes:
        session: LiveKit's id of the session that they came with.
    """

    session: str
    sources: frozenset[Source]


CameInto = Mapping[LiveKitRoom, Mapping[ParticipantId, Came]]
"""With what people came into each LiveKit room: one may be in several, by tokens that allow them different things."""


def came_into_both(before: CameInto, newer: CameInto) -> CameInto:
    """All of what was seen, the newer of what was seen twice."""
    return {**before, **{room: {**before.get(room, {}), **came} for room, came in newer.items()}}


# What can be put back by itself: as it was, before something else was decided.


@dataclass(frozen=True, slots=True)
class RestrictionWas:
    """Whether a source was restricted, and until when."""

    source: Source
    was_set: bool
    until: float | None = None


@dataclass(frozen=True, slots=True)
class ListingWas:
    """Whether somebody was listed for a source."""

    source: Source
    participant: ParticipantId
    was_set: bool


@dataclass(frozen=True, slots=True)
class BlockWas:
    """Whether there was this block."""

    block: Block
    was_set: bool


@dataclass(frozen=True, slots=True)
class HoldWas:
    """Until when a source was kept from somebody who was muted; `None` if it was not."""

    source: Source
    participant: ParticipantId
    until: float | None


@dataclass(frozen=True, slots=True)
class PresenterWas:
    """Who was the presenter; `None` if nobody was."""

    participant: ParticipantId | None


@dataclass(frozen=True, slots=True)
class BanWas:
    """Whether somebody was banned."""

    participant: ParticipantId
    was_set: bool


Setting = RestrictionWas | ListingWas | BlockWas | HoldWas | PresenterWas | BanWas


def _key(setting: Setting) -> tuple[object, ...]:
    """What it is a setting of: two with the same key cannot both hold."""
    match setting:
        case RestrictionWas(source):
            return RestrictionWas, source
        case ListingWas(source, participant) | HoldWas(source, participant):
            return type(setting), source, participant
        case BlockWas(block):
            return BlockWas, block
        case PresenterWas():
            return (PresenterWas,)
        case BanWas(participant):
            return BanWas, participant
        case _:
            assert_never(setting)


@dataclass(frozen=True, slots=True)
class MeetingState:
    """
    All that was decided in a meeting, and who is in it.

    Attributes:
        version: Goes up with each change of the state.
        roles: Roles given or taken during the meeting; they outlast what the host lets people in with.
        restricted: Sources that only moderators and those listed may publish.
        restricted_by_default: Of these, what a meeting begins with, and goes back to.
        restricted_until: When restrictions lift themselves, in seconds since the epoch.
        listed: Who is listed, by source. Kept for the screen while sharing is free, since grants are remembered.
        holds: Sources that mutes keep from people, and until when, in seconds since the epoch.
        came: With what those came into each LiveKit room who never joined, and services, if something was taken from
            them since: they are given back no more than that.
        bypasses: Tracks by which people got round a restriction; they count for the whole meeting.
        bans: Who may not come in.
        presenter: Who alone may share the screen.
        unmute_requests: Those that were not answered yet, by their ids.
        asked_at: When people were asked to unmute, in seconds since the epoch; kept for `ASK_AGAIN_S`.
        mutes: The newest of each person, for `REMEMBERED_S`.
        undoable: What the newest commands changed, as it was before, where nothing has changed it since.
        departed: People who were here and left or were moved out; whoever of them is in LiveKit is removed.
        rooms: LiveKit rooms that the meeting uses or has used.
        doomed: LiveKit rooms of an ended meeting that are still to be deleted.
        empty_since: Since when nobody but services is in it, in seconds since the epoch.
    """

    room: RoomId
    version: int = 0
    members: Mapping[ParticipantId, Member] = field(default_factory=dict)
    roles: Mapping[ParticipantId, Role] = field(default_factory=dict)
    restricted: frozenset[Source] = frozenset()
    restricted_by_default: frozenset[Source] = frozenset()
    restricted_until: Mapping[Source, float] = field(default_factory=dict)
    listed: Mapping[Source, frozenset[ParticipantId]] = field(default_factory=dict)
    blocks: frozenset[Block] = frozenset()
    holds: Mapping[ParticipantId, Mapping[Source, float]] = field(default_factory=dict)
    came: CameInto = field(default_factory=dict)
    bypasses: Mapping[ParticipantId, frozenset[TrackSid]] = field(default_factory=dict)
    bans: frozenset[ParticipantId] = frozenset()
    presenter: ParticipantId | None = None
    unmute_requests: Mapping[str, UnmuteRequest] = field(default_factory=dict)
    asked_at: Mapping[ParticipantId, float] = field(default_factory=dict)
    mutes: Mapping[ParticipantId, MuteNote] = field(default_factory=dict)
    undoable: Mapping[CommandId, tuple[Setting, ...]] = field(default_factory=dict)
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

    def is_banned(self, participant: ParticipantId) -> bool:
        """Whether they may not come in; who was in LiveKit alone may have been banned by another form of their id."""
        return participant in self.bans or any(normalised(banned) == participant for banned in self.bans)

    @property
    def goes_on(self) -> bool:
        """Whether the meeting has begun and is not over, though nobody may be in it."""
        return bool(self.members) or self.empty_since is not None

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
class TimedOut:
    """These people are members no longer, since they have not come back in time."""

    participants: frozenset[ParticipantId]
    at: float


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
    """A hand went up or down, if it was not so already."""

    participant: ParticipantId
    up: bool
    at: float


@dataclass(frozen=True, slots=True)
class Extended:
    """Somebody's client takes events of the namespace `livekit_moderation` from now on."""

    participant: ParticipantId


@dataclass(frozen=True, slots=True)
class RoleGiven:
    """A role was given or taken; what was decided by name about this person's screen is forgotten with it."""

    participant: ParticipantId
    role: Role


@dataclass(frozen=True, slots=True)
class Restricted:
    """Only moderators and these people may publish the source, until then if it ends by itself."""

    source: Source
    listed: frozenset[ParticipantId]
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Unrestricted:
    """Everybody may publish the source."""

    source: Source


@dataclass(frozen=True, slots=True)
class Granted:
    """These people may publish the source by name: nothing blocks them, and if it is restricted, they are listed."""

    participants: frozenset[ParticipantId]
    source: Source = Source.SCREEN_SHARE


@dataclass(frozen=True, slots=True)
class Revoked:
    """These people may not publish the source, by name; they are listed no longer."""

    participants: frozenset[ParticipantId]
    source: Source = Source.SCREEN_SHARE


@dataclass(frozen=True, slots=True)
class Held:
    """These people, who are muted, may not publish the sources until then."""

    participants: frozenset[ParticipantId]
    sources: frozenset[Source]
    until: float


@dataclass(frozen=True, slots=True)
class CameSeen:
    """What these people came with was seen, right before LiveKit is told to allow them something else."""

    came: CameInto


@dataclass(frozen=True, slots=True)
class HoldsEnded:
    """What was held until then at the latest is held no longer."""

    at: float


@dataclass(frozen=True, slots=True)
class BypassNoted:
    """Somebody got round a restriction with this track; the source that they named is kept from them."""

    participant: ParticipantId
    source: Source
    track: TrackSid
    media: Literal["audio", "video"]


@dataclass(frozen=True, slots=True)
class PresenterSet:
    """Nobody else may share the screen; `None`: everybody may again."""

    participant: ParticipantId | None


@dataclass(frozen=True, slots=True)
class Banned:
    """These people may not come in."""

    participants: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class Unbanned:
    """These people may come in again."""

    participants: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody was asked to unmute; an older request of the same moderator to them is forgotten."""

    request_id: str
    request: UnmuteRequest
    at: float


@dataclass(frozen=True, slots=True)
class RequestClosed:
    """A request was answered."""

    request_id: str
    was_accepted: bool


@dataclass(frozen=True, slots=True)
class RequestsLapsed:
    """Requests that were to be answered until then at the latest were not."""

    at: float


@dataclass(frozen=True, slots=True)
class MutesNoted:
    """LiveKit confirmed these mutes."""

    mutes: Mapping[ParticipantId, frozenset[Source]]
    at: float


@dataclass(frozen=True, slots=True)
class MutesForgotten:
    """These people have unmuted themselves, and moderators were told."""

    participants: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class PutBack:
    """These settings are as they were."""

    settings: tuple[Setting, ...]


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
    | TimedOut
    | ConnectionLost
    | Moved
    | HandSet
    | Extended
    | RoleGiven
    | Restricted
    | Unrestricted
    | Granted
    | Revoked
    | Held
    | CameSeen
    | HoldsEnded
    | BypassNoted
    | PresenterSet
    | Banned
    | Unbanned
    | Asked
    | RequestClosed
    | RequestsLapsed
    | MutesNoted
    | MutesForgotten
    | PutBack
    | PopoutIssued
    | Ended
    | RoomDeleted
)


def apply(state: MeetingState, changes: Iterable[Change], *, command_id: CommandId | None = None) -> MeetingState:
    """
    The state after these changes; `version` goes up by one if that differs.

    Args:
        command_id: By which the changes can be undone.
    """
    after = state
    for change in changes:
        after = _apply(after, change)
    if after == state:
        return state
    return replace(_with_undoable(state, after, command_id), version=state.version + 1)


def _apply(state: MeetingState, change: Change) -> MeetingState:
    match change:
        case Entered(participant, member):
            return _enter(state, participant, member)
        case Departed(participant, at, reason):
            return _depart(state, frozenset({participant}), at, is_removed=reason in {"kicked", "banned"})
        case TimedOut(participants, at):
            return _depart(state, participants, at)
        case ConnectionLost(participants, until):
            lost = {who: replace(state.members[who], returns_until=until) for who in participants & set(state.members)}
            return replace(state, members={**state.members, **lost})
        case Moved(participant, breakout):
            return _move(state, participant, breakout)
        case HandSet(participant, up, at):
            return _change_member(state, participant, lambda member: _set_hand(member, at, up=up))
        case Extended(participant):
            return _change_member(state, participant, lambda member: replace(member, knows_moderation=True))
        case RoleGiven(participant, role):
            forgotten = _name_nobody(state, Source.SCREEN_SHARE, frozenset({participant}))
            if role is not Role.MODERATOR:
                forgotten = _drop_requests(forgotten, lambda request: request.moderator == participant)
            return replace(forgotten, roles={**state.roles, participant: role})
        case Restricted(source, listed, until):
            return replace(_restrict(state, source, until), listed={**state.listed, source: listed})
        case Unrestricted(source):
            kept = state.listed if source is Source.SCREEN_SHARE else _without(state.listed, source)
            restricted = (state.restricted - {source}) | (state.restricted_by_default & {source})
            ends = _without(state.restricted_until, source)
            return replace(state, restricted=restricted, restricted_until=ends, listed=kept)
        case Granted(participants, source):
            return _grant(state, participants, source)
        case Revoked(participants, source):
            return _revoke(state, participants, source)
        case Held(participants, sources, until):
            return _hold(state, participants, sources, until)
        case CameSeen(came):
            return replace(state, came=came_into_both(state.came, came))
        case HoldsEnded(at):
            return replace(state, holds=_holds_that(state, lambda _, __, until: until > at))
        case BypassNoted(participant, source, track, _):
            tracks = state.bypasses.get(participant, frozenset())
            if track in tracks:
                return state
            block = Block(participant, source, BlockCause.BYPASS)
            return replace(
                _forget_questions(state, {participant}, {source}),
                bypasses={**state.bypasses, participant: tracks | {track}},
                blocks=state.blocks | {block},
            )
        case PresenterSet(participant):
            is_here = participant is None or participant in state.members
            return replace(state, presenter=participant) if is_here else state
        case Banned(participants):
            return replace(state, bans=state.bans | participants)
        case Unbanned(participants):
            return replace(state, bans=state.bans - participants)
        case Asked(request_id, request, at):
            asked = (request.moderator, request.participant)
            others = _drop_requests(state, lambda older: (older.moderator, older.participant) == asked)
            recently = {who: asked_at for who, asked_at in state.asked_at.items() if asked_at + ASK_AGAIN_S > at}
            return replace(
                others,
                unmute_requests={**others.unmute_requests, request_id: request},
                asked_at={**recently, request.participant: at},
            )
        case RequestClosed(request_id, _):
            return replace(state, unmute_requests=_without(state.unmute_requests, request_id))
        case RequestsLapsed(at):
            return _drop_requests(state, lambda request: request.expires_at <= at)
        case MutesNoted(mutes, at):
            fresh = {who: note for who, note in state.mutes.items() if note.at + REMEMBERED_S > at}
            noted = {who: MuteNote(at, sources) for who, sources in mutes.items()}
            return replace(state, mutes={**fresh, **noted})
        case MutesForgotten(participants):
            return replace(state, mutes={who: note for who, note in state.mutes.items() if who not in participants})
        case PutBack(settings):
            return _put_all_back(state, settings)
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


def _empty_since(state: MeetingState, members: Mapping[ParticipantId, Member], at: float) -> float | None:
    """Since when, `at` the latest, nobody but services is in the meeting with these members; `None` if somebody is."""
    if any(member.kind not in SERVICES for member in members.values()):
        return None
    return at if state.empty_since is None else state.empty_since


def _enter(state: MeetingState, participant: ParticipantId, member: Member) -> MeetingState:
    members = {**state.members, participant: member}
    entered = replace(
        state,
        members=members,
        came=state.came if member.kind in SERVICES else _forget_coming(state.came, participant),
        departed=state.departed - {participant},
        rooms=state.rooms | {livekit_room(state.room, member.breakout)},
        empty_since=_empty_since(state, members, member.joined_at),
    )
    if entered.is_moderator(participant):
        return entered
    return _drop_requests(entered, lambda request: request.moderator == participant)


def _forget_coming(came: CameInto, participant: ParticipantId) -> CameInto:
    return {room: others for room, known in came.items() if (others := _without(known, participant))}


def _restrict(state: MeetingState, source: Source, until: float | None) -> MeetingState:
    ends = _without(state.restricted_until, source) | ({} if until is None else {source: until})
    return replace(state, restricted=state.restricted | {source}, restricted_until=ends)


def _change_member(state: MeetingState, participant: ParticipantId, change: Callable[[Member], Member]) -> MeetingState:
    member = state.members.get(participant)
    if member is None:
        return state
    return replace(state, members={**state.members, participant: change(member)})


def _set_hand(member: Member, at: float, *, up: bool) -> Member:
    return member if member.hand_is_up is up else replace(member, hand_is_up=up, hand_updated_at=at)


def _depart(
    state: MeetingState, participants: frozenset[ParticipantId], at: float, *, is_removed: bool = False
) -> MeetingState:
    if participants.isdisjoint(state.members):
        # Whoever is in LiveKit without having joined is removed by this alone.
        return replace(state, departed=state.departed | participants) if is_removed else state
    members = {who: member for who, member in state.members.items() if who not in participants}
    asked = _drop_requests(state, lambda request: not participants.isdisjoint({request.participant, request.moderator}))
    return replace(
        _close_popouts(asked, participants),
        members=members,
        mutes={who: note for who, note in state.mutes.items() if who not in participants},
        presenter=None if state.presenter in participants else state.presenter,
        departed=state.departed | (participants & state.members.keys()),
        empty_since=_empty_since(state, members, at),
    )


def _move(state: MeetingState, participant: ParticipantId, breakout: BreakoutId | None) -> MeetingState:
    member = state.members.get(participant)
    if member is None or member.breakout == breakout:
        return state
    return replace(
        # A popout shows the room that its owner is in; one left behind would go on watching the other.
        _close_popouts(state, {participant}),
        members={**state.members, participant: replace(member, breakout=breakout)},
        rooms=state.rooms | {livekit_room(state.room, breakout)},
    )


def _close_popouts(state: MeetingState, participants: AbstractSet[ParticipantId]) -> MeetingState:
    open_ones = {who: issued for who, issued in state.popouts.items() if issued.open and who in participants}
    if not open_ones:
        return state
    closed = {who: replace(issued, open=()) for who, issued in open_ones.items()}
    return replace(state, popouts={**state.popouts, **closed})


def _name_nobody(state: MeetingState, source: Source, participants: frozenset[ParticipantId]) -> MeetingState:
    """Forget what moderators decided about these people and this source by name."""
    listed = state.listed
    if (named := listed.get(source)) is not None and named & participants:
        listed = {**listed, source: named - participants}
    return replace(state, listed=listed, blocks=state.blocks - {Block(who, source) for who in participants})


def _forget_questions(
    state: MeetingState, participants: AbstractSet[ParticipantId], sources: AbstractSet[Source]
) -> MeetingState:
    """Nobody lifts by a yes what was decided after the question."""
    if Source.MICROPHONE not in sources:
        return state
    return _drop_requests(state, lambda request: request.participant in participants)


def _hold(
    state: MeetingState, participants: frozenset[ParticipantId], sources: frozenset[Source], until: float
) -> MeetingState:
    held = {who: {**state.holds.get(who, {}), **dict.fromkeys(sources, until)} for who in participants}
    holds = {**state.holds, **held} if sources else state.holds
    return replace(_forget_questions(state, participants, sources), holds=holds)


def _revoke(state: MeetingState, participants: frozenset[ParticipantId], source: Source) -> MeetingState:
    kept = _forget_questions(_name_nobody(state, source, participants), participants, {source})
    return replace(kept, blocks=kept.blocks | {Block(who, source) for who in participants})


def _grant(state: MeetingState, participants: frozenset[ParticipantId], source: Source) -> MeetingState:
    sources = {source, Source.SCREEN_SHARE_AUDIO} if source is Source.SCREEN_SHARE else {source}
    lifted = {Block(who, each, cause) for who in participants for each in sources for cause in BlockCause}
    listed = state.listed
    if source is Source.SCREEN_SHARE or source in state.restricted:
        listed = {**listed, source: listed.get(source, frozenset()) | participants}
    return replace(
        state,
        blocks=state.blocks - lifted,
        holds=_holds_that(state, lambda who, each, _: who not in participants or each not in sources),
        listed=listed,
    )


def _holds_that(
    state: MeetingState, remain: Callable[[ParticipantId, Source, float], bool]
) -> Mapping[ParticipantId, Mapping[Source, float]]:
    kept = {
        who: {source: until for source, until in held.items() if remain(who, source, until)}
        for who, held in state.holds.items()
    }
    return {who: held for who, held in kept.items() if held}


def _drop_requests(state: MeetingState, is_dropped: Callable[[UnmuteRequest], bool]) -> MeetingState:
    kept = {id_: request for id_, request in state.unmute_requests.items() if not is_dropped(request)}
    return replace(state, unmute_requests=kept)


def _without(mapping: Mapping[_Key, _Value], key: _Key) -> dict[_Key, _Value]:
    return {other: value for other, value in mapping.items() if other != key}


# --- Undoing -----------------------------------------------------------------------------------------------------


def _with_undoable(before: MeetingState, after: MeetingState, command_id: CommandId | None) -> MeetingState:
    """
    The state, which remembers what this command changed.

    No older command can undo what differs now: it was changed since, whatever it was changed to.
    """
    differing = tuple(_differing(before, after))
    if not differing:
        return after
    changed = {_key(setting) for setting in differing}
    undoable = {
        other: tuple(setting for setting in settings if _key(setting) not in changed)
        for other, settings in after.undoable.items()
        if other != command_id
    }
    if command_id is not None:
        undoable[command_id] = differing
    while len(undoable) > UNDOABLE_COMMANDS or (
        len(undoable) > 1 and sum(map(len, undoable.values())) > UNDOABLE_SETTINGS
    ):
        del undoable[next(iter(undoable))]
    return replace(after, undoable=undoable)


def _differing(before: MeetingState, after: MeetingState) -> Iterator[Setting]:
    """What differs, as it was before."""
    for source in ALL_SOURCES:
        was, ended = source in before.restricted, before.restricted_until.get(source)
        if (was, ended) != (source in after.restricted, after.restricted_until.get(source)):
            yield RestrictionWas(source, was, ended)
        named = before.listed.get(source, frozenset())
        for who in sorted(named ^ after.listed.get(source, frozenset())):
            yield ListingWas(source, who, who in named)
    if before.blocks is not after.blocks:
        in_order = sorted(
            before.blocks ^ after.blocks, key=lambda block: (block.participant, block.source, block.cause)
        )
        for block in in_order:
            yield BlockWas(block, block in before.blocks)
    if before.holds is not after.holds:
        yield from _differing_holds(before, after)
    if before.presenter != after.presenter:
        yield PresenterWas(before.presenter)
    for who in sorted(before.bans ^ after.bans):
        yield BanWas(who, who in before.bans)


def _differing_holds(before: MeetingState, after: MeetingState) -> Iterator[Setting]:
    for who in sorted(before.holds.keys() | after.holds.keys()):
        held, holds = before.holds.get(who, {}), after.holds.get(who, {})
        for source in ALL_SOURCES:
            if held.get(source) != holds.get(source):
                yield HoldWas(source, who, held.get(source))


def _put_all_back(state: MeetingState, settings: Iterable[Setting]) -> MeetingState:
    for setting in settings:
        state = _put_back(state, setting)
    lists = {source: named for source, named in state.listed.items() if named or source in state.restricted}
    return replace(state, listed=lists)


def _put_back(state: MeetingState, setting: Setting) -> MeetingState:
    match setting:
        case RestrictionWas(source, was_set, until):
            if not was_set:
                ends = _without(state.restricted_until, source)
                return replace(state, restricted=state.restricted - {source}, restricted_until=ends)
            return _restrict(state, source, until)
        case ListingWas(source, who, was_set):
            named = state.listed.get(source, frozenset())
            return replace(state, listed={**state.listed, source: named | {who} if was_set else named - {who}})
        case BlockWas(block, was_set):
            if not was_set:
                return replace(state, blocks=state.blocks - {block})
            return replace(_forget_questions(state, {block.participant}, {block.source}), blocks=state.blocks | {block})
        case HoldWas(source, who, until):
            held = _without(state.holds.get(who, {}), source) | ({} if until is None else {source: until})
            others = _without(state.holds, who)
            kept = state if until is None else _forget_questions(state, {who}, {source})
            return replace(kept, holds=others | {who: held} if held else others)
        case PresenterWas(who):
            return replace(state, presenter=who if who in state.members else None)
        case BanWas(who, was_set):
            # Whoever has come in since is not to be here and banned at once.
            is_banned = was_set and who not in state.members
            return replace(state, bans=state.bans | {who} if is_banned else state.bans - {who})
        case _:
            assert_never(setting)
