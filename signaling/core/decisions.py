"""From a command to a decision, and from what LiveKit did to what everybody is told."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, assert_never

from signaling.core.effects import Agree, Effect, Finding, Mute
from signaling.core.participants import (
    NEVER_MODERATORS,
    SCREEN_SOURCES,
    SERVICES,
    Participant,
    Role,
    Source,
)
from signaling.core.policy import publishable
from signaling.core.state import (
    Block,
    Change,
    ConnectionLost,
    Departed,
    Ended,
    Entered,
    Granted,
    HandSet,
    MeetingState,
    Member,
    Moved,
    Popout,
    PopoutIssued,
    Popouts,
    Restricted,
    Revoked,
    RoleGiven,
    RoomDeleted,
    Unrestricted,
    apply,
)
from signaling.identifiers import (
    CONTROLLER,
    BreakoutId,
    CommandId,
    LiveKitRoom,
    ParticipantId,
    popout_identity,
)
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event, in_order, rfc3339

FRESH_S: Final = 15.0
"""A mute is carried out, or tried again, only this long after its command: later it would hit what it did not mean."""


# --- What the host does ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enter:
    """Somebody joins, or takes over from their own older connection."""

    participant: Participant


@dataclass(frozen=True, slots=True)
class Depart:
    """Somebody leaves."""

    participant: ParticipantId
    reason: control.LeaveReason = "quit"


@dataclass(frozen=True, slots=True)
class DepartUnlessBack:
    """Somebody's time to come back is over, if they have not come back by `now`, in seconds since the epoch."""

    participant: ParticipantId
    now: float


@dataclass(frozen=True, slots=True)
class LoseConnections:
    """Their connections broke; their places are kept until then, in seconds since the epoch."""

    participants: frozenset[ParticipantId]
    until: float


@dataclass(frozen=True, slots=True)
class Move:
    """Somebody goes to a breakout, or back (`None`)."""

    participant: ParticipantId
    breakout: BreakoutId | None


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """The host gives or takes a role."""

    participant: ParticipantId
    role: Role


@dataclass(frozen=True, slots=True)
class End:
    """The meeting is over."""


@dataclass(frozen=True, slots=True)
class NoteRoomDeleted:
    """LiveKit deleted a room of the meeting that is over."""

    room: LiveKitRoom


HostCommand = Enter | Depart | DepartUnlessBack | LoseConnections | Move | ChangeRole | End | NoteRoomDeleted

ModeratorCommand = (
    livekit.ForceMute
    | livekit.GrantScreenSharePermission
    | livekit.RevokeScreenSharePermission
    | livekit.EnableMicrophoneRestrictions
    | livekit.DisableMicrophoneRestrictions
    | control.GrantModeratorRole
    | control.RevokeModeratorRole
)
MemberCommand = livekit.RequestPopoutStreamAccessToken | control.RaiseHand | control.LowerHand
AnyCommand = ModeratorCommand | MemberCommand | HostCommand


# --- What comes of it --------------------------------------------------------------------------------------------


RefusalCode = Literal[
    "already_joined",
    "insufficient_permissions",
    "internal",
    "invalid_command",
    "livekit_unavailable",
    "nothing_to_do",
    "rate_limit_exceeded",
    "unavailable",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, and nothing changed."""

    error: RefusalCode
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Everyone:
    """All who are in the meeting, less `but`."""

    but: frozenset[ParticipantId] = frozenset()


@dataclass(frozen=True, slots=True)
class Only:
    """These people."""

    participants: frozenset[ParticipantId]


Audience = Everyone | Only


@dataclass(frozen=True, slots=True)
class Announcement:
    """An event, and who is told; the sender of the command that caused it knows its own copy by that command."""

    audience: Audience
    event: Event
    cause: CommandId | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What a command comes to, before LiveKit is asked.

    Attributes:
        sender: `CONTROLLER` for the host.
        at: When it was decided, in seconds since the epoch.
        holds: Whether it stands even if LiveKit answers nothing.
        targets: The people it names, as far as they are here.
        unknown: The people it names who are not.
    """

    command_id: CommandId
    action: str
    sender: ParticipantId
    at: float
    changes: tuple[Change, ...] = ()
    effect: Effect | None = None
    holds: bool = False
    targets: frozenset[ParticipantId] = frozenset()
    unknown: frozenset[ParticipantId] = frozenset()


@dataclass(frozen=True, slots=True)
class Conclusion:
    """
    What a command came to.

    Attributes:
        repaired_later: People about whom LiveKit does not agree yet, and will be told again.
        error: What the sender is told when not everybody was reached.
    """

    state: MeetingState
    announcements: tuple[Announcement, ...]
    outcomes: tuple[moderation.Outcome, ...]
    repaired_later: tuple[ParticipantId, ...] = ()
    error: Literal["livekit_unavailable"] | None = None


def decide(
    state: MeetingState, sender: ParticipantId, command: AnyCommand, *, now: float, command_id: CommandId
) -> Decision | Refusal:
    """
    What `command` comes to in `state`. Refused in this order: the sender may not, the target is unknown, already so.

    Args:
        sender: Who asks; `CONTROLLER` for the host.
        now: Seconds since the epoch.
    """
    if isinstance(command, HostCommand):
        return _decide_for_host(state, command, now, command_id)
    if isinstance(command, MemberCommand):
        return _decide_for_member(state, sender, command, now, command_id)
    if sender != CONTROLLER and not state.is_moderator(sender):
        return Refusal("insufficient_permissions")
    return _decide_for_moderator(state, sender, command, now, command_id)


def _decide_for_host(
    state: MeetingState, command: HostCommand, now: float, command_id: CommandId
) -> Decision | Refusal:
    match command:
        case Enter(participant):
            changes = tuple(_enter(state, participant, now))
            return Decision(command_id, "join", participant.id, now, changes, holds=True)
        case Depart(participant, reason):
            if participant not in state.members:
                return Refusal("nothing_to_do")
            changes = (Departed(participant, now, reason),)
            return Decision(command_id, "leave", participant, now, changes, holds=True)
        case DepartUnlessBack(participant, overdue_at):
            member = state.members.get(participant)
            if member is None or member.returns_until is None or member.returns_until > overdue_at:
                return Refusal("nothing_to_do")
            changes = (Departed(participant, now, "timeout"),)
            return Decision(command_id, "time_out", participant, now, changes, holds=True)
        case LoseConnections(participants, until):
            present = participants & frozenset(state.members)
            if not present:
                return Refusal("nothing_to_do")
            lost = (ConnectionLost(present, until),)
            return Decision(command_id, "lose_connections", CONTROLLER, now, lost, holds=True)
        case Move(participant, breakout):
            if participant not in state.members:
                return Refusal("nothing_to_do")
            return Decision(command_id, "move", participant, now, (Moved(participant, breakout),), holds=True)
        case ChangeRole(participant, role):
            return _give_role(state, CONTROLLER, participant, role, "change_role", now, command_id)
        case End():
            return Decision(command_id, "end", CONTROLLER, now, (Ended(),), holds=True)
        case NoteRoomDeleted(room):
            return Decision(command_id, "room_deleted", CONTROLLER, now, (RoomDeleted(room),), holds=True)
        case _:
            assert_never(command)


def _enter(state: MeetingState, participant: Participant, now: float) -> Iterator[Change]:
    before = state.members.get(participant.id)
    if before is not None and before.breakout != participant.breakout:
        yield Moved(participant.id, participant.breakout)
    yield Entered(
        participant.id,
        Member(
            role=participant.role,
            kind=participant.kind,
            joined_at=now if before is None else before.joined_at,
            display_name=participant.display_name,
            breakout=participant.breakout,
            hand_is_up=before is not None and before.hand_is_up,
        ),
    )


def _decide_for_member(
    state: MeetingState, sender: ParticipantId, command: MemberCommand, now: float, command_id: CommandId
) -> Decision | Refusal:
    room = state.room_of(sender)
    if room is None:
        return Refusal("insufficient_permissions")
    match command:
        case livekit.RequestPopoutStreamAccessToken():
            number = state.popouts.get(sender, Popouts()).issued + 1
            change: Change = PopoutIssued(sender, number, Popout(popout_identity(sender, number), room))
        case control.RaiseHand():
            if state.members[sender].hand_is_up:
                return Refusal("nothing_to_do")
            change = HandSet(sender, up=True)
        case control.LowerHand():
            target = sender if command.target is None else command.target
            if target != sender and not state.is_moderator(sender):
                return Refusal("insufficient_permissions")
            if target not in state.members:
                return _UNKNOWN_TARGET
            if not state.members[target].hand_is_up:
                return Refusal("nothing_to_do")
            change = HandSet(target, up=False)
        case _:
            assert_never(command)
    return Decision(command_id, command.action, sender, now, (change,), holds=True)


def _decide_for_moderator(
    state: MeetingState, sender: ParticipantId, command: ModeratorCommand, now: float, command_id: CommandId
) -> Decision | Refusal:
    match command:
        case livekit.ForceMute():
            targets, unknown = _known(state, command.participants)
            mute = Mute(targets, frozenset({Source.MICROPHONE}))
            return Decision(command_id, command.action, sender, now, (), mute, targets=targets, unknown=unknown)
        case livekit.GrantScreenSharePermission() | livekit.RevokeScreenSharePermission():
            targets, unknown = _known(state, command.participants)
            granting = isinstance(command, livekit.GrantScreenSharePermission)
            changes = (Granted(targets) if granting else Revoked(targets),)
            agree = Agree(targets, SCREEN_SOURCES)
            return Decision(command_id, command.action, sender, now, changes, agree, targets=targets, unknown=unknown)
        case livekit.EnableMicrophoneRestrictions():
            restricted = Restricted(Source.MICROPHONE, frozenset(command.unrestricted_participants))
            return Decision(command_id, command.action, sender, now, (restricted,), _ABOUT_MICROPHONES)
        case livekit.DisableMicrophoneRestrictions():
            unrestricted = Unrestricted(Source.MICROPHONE)
            return Decision(command_id, command.action, sender, now, (unrestricted,), _ABOUT_MICROPHONES)
        case control.GrantModeratorRole():
            return _give_role(state, sender, command.target, Role.MODERATOR, command.action, now, command_id)
        case control.RevokeModeratorRole():
            return _take_role(state, sender, command, now, command_id)
        case _:
            assert_never(command)


def _take_role(
    state: MeetingState, sender: ParticipantId, command: control.RevokeModeratorRole, now: float, command_id: CommandId
) -> Decision | Refusal:
    target = command.target
    if target not in state.members:
        return _UNKNOWN_TARGET
    if not state.is_moderator(target):
        return Refusal("nothing_to_do")
    if sender != CONTROLLER and all(moderator == target for moderator in state.moderators()):
        return Refusal("insufficient_permissions")
    role = state.members[target].role
    return _give_role(
        state, sender, target, Role.USER if role is Role.MODERATOR else role, command.action, now, command_id
    )


def _give_role(
    state: MeetingState,
    sender: ParticipantId,
    target: ParticipantId,
    role: Role,
    action: str,
    now: float,
    command_id: CommandId,
) -> Decision | Refusal:
    member = state.members.get(target)
    if member is None:
        return _UNKNOWN_TARGET
    if role is Role.MODERATOR and member.kind in NEVER_MODERATORS:
        return Refusal("insufficient_permissions")
    if state.role_of(target) is role:
        return Refusal("nothing_to_do")
    targets = frozenset({target})
    return Decision(
        command_id,
        action,
        sender,
        now,
        (RoleGiven(target, role),),
        Agree(targets, frozenset(Source)),
        holds=True,
        targets=targets,
    )


def _known(
    state: MeetingState, named: tuple[ParticipantId, ...]
) -> tuple[frozenset[ParticipantId], frozenset[ParticipantId]]:
    known = frozenset(participant for participant in named if participant in state.members)
    return known, frozenset(named) - known


_UNKNOWN_TARGET: Final = Refusal("invalid_command", "target: is not in this meeting")
_ABOUT_MICROPHONES: Final = Agree(None, frozenset({Source.MICROPHONE}))


# --- Concluding --------------------------------------------------------------------------------------------------


def conclude(
    state: MeetingState, decision: Decision, findings: Mapping[ParticipantId, Finding] | None = None
) -> Conclusion:
    """
    The state, the events and the outcomes of a decision that was carried out.

    Concluding the same decision again, on the state that came of it, changes nothing more.

    Args:
        state: As it is now; others may have changed it since the decision was made.
        findings: What was seen of each member; whoever is missing was not looked at, because they are not in LiveKit.
    """
    seen = {} if findings is None else findings
    after = apply(state, decision.changes)
    outcomes = tuple(_outcomes(state, after, decision, seen))
    failed = [participant for participant, finding in seen.items() if finding.is_failure]
    return Conclusion(
        state=after,
        announcements=tuple(
            replace(announcement, cause=decision.command_id)
            for announcement in _announcements(state, after, decision, seen)
        ),
        outcomes=outcomes,
        # A mute that failed is not promised: it is tried again for a few seconds only.
        repaired_later=in_order(failed) if isinstance(decision.effect, Agree) else (),
        error="livekit_unavailable" if failed else None,
    )


def force_muted(participant: ParticipantId, moderator: ParticipantId) -> Announcement:
    """What somebody is told when LiveKit has confirmed that their microphone is muted."""
    return Announcement(Only(frozenset({participant})), livekit.ForceMuted(moderator=moderator))


def _announcements(
    before: MeetingState, after: MeetingState, decision: Decision, seen: Mapping[ParticipantId, Finding]
) -> Iterator[Announcement]:
    for change in decision.changes:
        yield from _announce(before, after, decision, change, seen)
    if isinstance(decision.effect, Mute):
        for participant in sorted(seen):
            if seen[participant] is Finding.MUTED:
                yield force_muted(participant, decision.sender)


def _announce(
    before: MeetingState,
    after: MeetingState,
    decision: Decision,
    change: Change,
    seen: Mapping[ParticipantId, Finding],
) -> Iterator[Announcement]:
    match change:
        case Entered(participant):
            yield from _announce_entering(before, after, participant)
        case Departed(participant, _, reason):
            if _is_seen(before, participant):
                yield Announcement(Everyone(frozenset({participant})), control.Left(id=participant, reason=reason))
        case HandSet(participant, _):
            if _is_seen(after, participant):
                yield Announcement(Everyone(), _update(after, participant))
        case RoleGiven(participant):
            if participant in after.members:
                target = frozenset({participant})
                # The role that holds: they may have come back meanwhile as somebody who cannot be a moderator.
                role_updated = control.RoleUpdated(new_role=after.role_of(participant).value)
                yield Announcement(Only(target), role_updated)
                if _is_seen(after, participant):
                    yield Announcement(Everyone(target), _update(after, participant))
        case Restricted(Source.MICROPHONE, listed):
            enabled = livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=in_order(listed))
            yield Announcement(Everyone(), enabled)
        case Unrestricted(Source.MICROPHONE):
            yield Announcement(Everyone(), livekit.MicrophoneRestrictionsDisabled())
        case Granted(participants) | Revoked(participants):
            reached = (who for who in participants if who not in seen or not seen[who].is_failure)
            event = livekit.ScreenSharePermissionsUpdated(
                grant=isinstance(change, Granted), participants=in_order(reached)
            )
            yield Announcement(Only(frozenset({decision.sender})), event)
        case _:
            pass  # nobody is told of it by an event of its own


def _announce_entering(before: MeetingState, after: MeetingState, participant: ParticipantId) -> Iterator[Announcement]:
    others = Everyone(frozenset({participant}))
    data = control_data(after, participant)
    if data is None or after.members[participant].kind in SERVICES:
        return
    known = control_data(before, participant)
    if known is None:
        yield Announcement(others, control.Joined(id=participant, control=data))
    elif known != data:
        yield Announcement(others, control.Update(id=participant, control=data))


def _is_seen(state: MeetingState, participant: ParticipantId) -> bool:
    """Whether others are told of somebody: of members, but not of services."""
    member = state.members.get(participant)
    return member is not None and member.kind not in SERVICES


def _update(state: MeetingState, participant: ParticipantId) -> control.Update:
    data = control_data(state, participant)
    assert data is not None  # noqa: S101 - asked only for members
    return control.Update(id=participant, control=data)


def control_data(state: MeetingState, participant: ParticipantId) -> control.ControlData | None:
    """What everybody may know of a member; `None` for somebody who is none."""
    member = state.members.get(participant)
    if member is None:
        return None
    return control.ControlData(
        display_name=member.display_name,
        role=state.role_of(participant).value,
        participation_kind=member.kind.value,
        hand_is_up=member.hand_is_up,
        joined_at=rfc3339(member.joined_at),
    )


def _outcomes(
    before: MeetingState, after: MeetingState, decision: Decision, seen: Mapping[ParticipantId, Finding]
) -> Iterator[moderation.Outcome]:
    effect = decision.effect
    if effect is None:
        return
    everyone = isinstance(effect, Agree) and effect.participants is None
    concerned = frozenset(after.members) if everyone else decision.targets
    for participant in sorted(concerned | decision.unknown):
        finding = seen.get(participant, Finding.ABSENT)
        if participant in decision.unknown:
            yield moderation.Outcome(participant=participant, outcome="unknown")
        elif finding is Finding.UNANSWERED:
            yield moderation.Outcome(participant=participant, outcome="failed", error="livekit_unavailable")
        elif finding is Finding.REJECTED:
            yield moderation.Outcome(participant=participant, outcome="failed", error="livekit_rejected")
        elif isinstance(effect, Mute):
            yield moderation.Outcome(participant=participant, outcome=_MUTE_OUTCOMES[finding])
        elif finding is Finding.SETTLING:
            yield moderation.Outcome(participant=participant, outcome="settling")
        else:
            yield moderation.Outcome(participant=participant, outcome=_came_to(before, after, decision, participant))


_MUTE_OUTCOMES: Final[dict[Finding, moderation.OutcomeName]] = {
    Finding.MUTED: "muted",
    Finding.ALREADY_MUTED: "already_muted",
    Finding.NO_TRACK: "no_track",
    Finding.ABSENT: "not_connected",
}


def _came_to(
    before: MeetingState, after: MeetingState, decision: Decision, participant: ParticipantId
) -> moderation.OutcomeName:
    """What a change of rights came to for somebody about whom LiveKit agrees."""
    for change in decision.changes:
        match change:
            case Granted():
                return "granted" if _named(before, participant) != _named(after, participant) else "unchanged"
            case Revoked():
                return "revoked" if _named(before, participant) != _named(after, participant) else "unchanged"
            case Restricted(source) if after.is_moderator(participant) or after.members[participant].kind in SERVICES:
                return "exempt"
            case Restricted(source) | Unrestricted(source):
                had, has = source in publishable(participant, before), source in publishable(participant, after)
                return "unchanged" if had == has else "unrestricted" if has else "restricted"
            case _:
                pass  # a role shows in `control`; here it is what it does to the rights
    had_all, has_all = set(publishable(participant, before)), set(publishable(participant, after))
    return "unchanged" if had_all == has_all else "unrestricted" if had_all < has_all else "restricted"


def _named(state: MeetingState, participant: ParticipantId) -> tuple[bool, bool]:
    """Whether somebody is granted and revoked the screen by name."""
    granted = participant in state.listed.get(Source.SCREEN_SHARE, frozenset())
    return granted, Block(participant, Source.SCREEN_SHARE) in state.blocks
