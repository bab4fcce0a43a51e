"""The state of a meeting. LiveKit is made to agree with it, never the other way round."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from signaling.core.participants import NEVER_MODERATORS, Kind, Role, Source
from signaling.identifiers import (
    BreakoutId,
    CommandId,
    Identity,
    LiveKitRoom,
    NodeId,
    ParticipantId,
    RoomId,
    SessionId,
    TrackSid,
    livekit_room,
    normalised,
)

POPOUTS_PER_PERSON: Final = 16
REMEMBERED_S: Final = 60.0
"""How long a mute is remembered, for moderators to be told of whoever unmutes themselves again."""
ASK_AGAIN_S: Final = 10.0
"""How long after somebody was asked to unmute nobody may ask them again."""


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
        session: By which they are here, or were until their connection was gone: the newest that was let in.
        node: Where that session is.
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
    session: SessionId | None = None
    node: NodeId | None = None


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
        return self.role_of(participant) is Role.MODERATOR

    def is_banned(self, participant: ParticipantId) -> bool:
        """Whether they may not come in; who was in LiveKit alone may have been banned by another form of their id."""
        return participant in self.bans or any(normalised(banned) == participant for banned in self.bans)

    @property
    def goes_on(self) -> bool:
        """Whether the meeting has begun and is not over, though nobody may be in it."""
        return bool(self.members) or self.empty_since is not None

    def moderators(self) -> Iterator[ParticipantId]:
        """Everybody who may command now."""
        # Of many, most are let in as somebody else, and were given no role: that is seen without asking for it.
        return (
            who
            for who, member in self.members.items()
            if (member.role is Role.MODERATOR or who in self.roles) and self.role_of(who) is Role.MODERATOR
        )

    def room_of(self, participant: ParticipantId) -> LiveKitRoom | None:
        """The LiveKit room where they belong; `None` for somebody who is not here."""
        member = self.members.get(participant)
        return None if member is None else livekit_room(self.room, member.breakout)

    def rooms_in_use(self) -> frozenset[LiveKitRoom]:
        """The LiveKit rooms where somebody belongs."""
        breakouts = {member.breakout for member in self.members.values()}
        return frozenset(livekit_room(self.room, breakout) for breakout in breakouts)

    def is_in_use(self, room: LiveKitRoom) -> bool:
        """Whether somebody belongs in this LiveKit room."""
        return any(livekit_room(self.room, member.breakout) == room for member in self.members.values())


def new_meeting(room: RoomId, *, screen_share_requires_permission: bool) -> MeetingState:
    """A meeting that nobody has entered yet."""
    restricted = frozenset({Source.SCREEN_SHARE}) if screen_share_requires_permission else frozenset[Source]()
    return MeetingState(room=room, restricted=restricted, restricted_by_default=restricted)
