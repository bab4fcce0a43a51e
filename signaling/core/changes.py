"""What may happen to a meeting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from signaling.core.participants import Role, Source
from signaling.core.state import CameInto, Member, Popout, Setting, UnmuteRequest
from signaling.identifiers import BreakoutId, LiveKitRoom, ParticipantId, TrackSid
from signaling.messages.control import LeaveReason

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
