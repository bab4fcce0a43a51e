"""What is asked for: by moderators, by members, and by the host itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from signaling.core.participants import Participant, Role, Source
from signaling.core.state import CameInto
from signaling.identifiers import BreakoutId, LiveKitRoom, NodeId, ParticipantId, SessionId, TrackSid
from signaling.messages import control, livekit, moderation


@dataclass(frozen=True, slots=True)
class Enter:
    """
    Somebody joins, or takes over from their own older connection.

    Attributes:
        knows_moderation: Whether their client takes events of the namespace `livekit_moderation`.
        session: By which they come.
        node: Where that session is.
    """

    participant: Participant
    knows_moderation: bool = True
    session: SessionId | None = None
    node: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Extend:
    """Somebody's client has used the namespace `livekit_moderation` for the first time."""

    participant: ParticipantId


@dataclass(frozen=True, slots=True)
class Depart:
    """Somebody leaves."""

    participant: ParticipantId
    reason: control.LeaveReason = "quit"


@dataclass(frozen=True, slots=True)
class DepartUnlessBack:
    """Their time to come back is over, if it was to end by `now`, in seconds since the epoch, and they are not back."""

    participants: frozenset[ParticipantId]
    now: float


@dataclass(frozen=True, slots=True)
class LoseConnections:
    """Their connections broke; their places are kept until then, in seconds since the epoch."""

    participants: frozenset[ParticipantId]
    until: float


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Their connections are not gone after all: those who are still here by these sessions keep their places."""

    sessions: Mapping[ParticipantId, SessionId]


@dataclass(frozen=True, slots=True)
class Move:
    """
    Somebody goes to a breakout, or back (`None`).

    Attributes:
        is_action: Whether the controller sends them, which moderators are told and the audit keeps.
    """

    participant: ParticipantId
    breakout: BreakoutId | None
    is_action: bool = False


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """The host gives or takes a role."""

    participant: ParticipantId
    role: Role


@dataclass(frozen=True, slots=True)
class End:
    """The meeting is over."""


@dataclass(frozen=True, slots=True)
class EndIfEmpty:
    """The meeting is over if nobody has been in it since then, in seconds since the epoch."""

    since: float


@dataclass(frozen=True, slots=True)
class NoteRoomDeleted:
    """LiveKit deleted a room of the meeting that is over."""

    room: LiveKitRoom


@dataclass(frozen=True, slots=True)
class Expire:
    """Whatever was to end by `now`, in seconds since the epoch, ends: restrictions, holds and requests."""

    now: float


@dataclass(frozen=True, slots=True)
class Bypass:
    """Somebody was found to publish, as `source`, a medium that it is not; the second time they have to go."""

    participant: ParticipantId
    source: Source
    track: TrackSid
    media: Literal["audio", "video"]


@dataclass(frozen=True, slots=True)
class NoteUnmutedAgain:
    """People were found to have unmuted themselves."""

    participants: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class NoteCame:
    """With what these people came into LiveKit, who have never joined, is to be remembered."""

    came: CameInto


HostCommand = (
    Enter
    | Extend
    | Depart
    | DepartUnlessBack
    | LoseConnections
    | Reconnect
    | Move
    | ChangeRole
    | End
    | EndIfEmpty
    | NoteRoomDeleted
    | Expire
    | Bypass
    | NoteUnmutedAgain
    | NoteCame
)

ModeratorCommand = (
    livekit.ForceMute
    | livekit.GrantScreenSharePermission
    | livekit.RevokeScreenSharePermission
    | livekit.EnableMicrophoneRestrictions
    | livekit.DisableMicrophoneRestrictions
    | control.GrantModeratorRole
    | control.RevokeModeratorRole
    | moderation.Mute
    | moderation.Restrict
    | moderation.Unrestrict
    | moderation.Disallow
    | moderation.Allow
    | moderation.Stop
    | moderation.SetPresenter
    | moderation.AskToUnmute
    | moderation.Kick
    | moderation.Unban
    | moderation.Undo
)
MemberCommand = (
    livekit.RequestPopoutStreamAccessToken | control.RaiseHand | control.LowerHand | moderation.AnswerUnmuteRequest
)
AnyCommand = ModeratorCommand | MemberCommand | HostCommand
