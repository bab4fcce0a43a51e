"""Who is told what of a decision that was carried out."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from signaling.core.changes import (
    Asked,
    BypassNoted,
    Change,
    Departed,
    Entered,
    Granted,
    HandSet,
    Held,
    MutesForgotten,
    PutBack,
    RequestClosed,
    Restricted,
    Revoked,
    RoleGiven,
    TimedOut,
    Unrestricted,
)
from signaling.core.decisions import Decision
from signaling.core.effects import Expel, Finding
from signaling.core.participants import SERVICES, Role, Source
from signaling.core.policy import publishable
from signaling.core.state import MeetingState
from signaling.identifiers import CONTROLLER, ParticipantId
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event, in_order, rfc3339


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
    """An event, and who is told."""

    audience: Audience
    event: Event


def mute_announcements(
    participant: ParticipantId, moderator: ParticipantId, sources: frozenset[Source]
) -> Iterator[Announcement]:
    """What somebody is told when LiveKit has confirmed that these of their sources are muted."""
    person = Only(frozenset({participant}))
    if Source.MICROPHONE in sources:
        yield Announcement(person, livekit.ForceMuted(moderator=moderator))
    muted = moderation.Muted(moderator=moderator, sources=tuple(source.value for source in Source if source in sources))
    yield Announcement(person, muted)


def to_moderators(state: MeetingState, event: Event) -> Announcement:
    """For everybody who may command now."""
    return Announcement(Only(frozenset(state.moderators())), event)


def action_taken(decision: Decision, outcomes: tuple[moderation.Outcome, ...]) -> moderation.ActionTaken:
    """What moderators are told of every action."""
    return moderation.ActionTaken(
        command_id=decision.command_id,
        at=rfc3339(decision.at),
        moderator=decision.moderator,
        action=decision.action,
        targets=in_order(decision.targets | decision.unknown),
        outcomes=outcomes,
        reason=decision.reason,
    )


# --- Whose rights changed ----------------------------------------------------------------------------------------


def rights_announcements(before: MeetingState, after: MeetingState, decision: Decision) -> Iterator[Announcement]:
    """What those are told who may publish something else than before."""
    if _rules(before) == _rules(after):
        return
    changed: dict[tuple[Source, ...], set[ParticipantId]] = {}
    for participant in _perhaps_changed(before, after):
        if participant not in before.members or participant not in after.members:
            continue
        allowed = publishable(participant, after)
        if allowed != publishable(participant, before):
            changed.setdefault(allowed, set()).add(participant)
    cause = _cause_of(decision)
    for allowed in sorted(changed):
        event = moderation.PermissionsChanged(
            moderator=decision.moderator if decision.is_action else None,
            may_publish=tuple(source.value for source in allowed),
            cause=cause,
        )
        yield Announcement(Only(frozenset(changed[allowed])), event)


def _rules(state: MeetingState) -> tuple[object, ...]:
    """All that decides on the rights of people who stay."""
    return state.roles, state.restricted, state.listed, state.blocks, state.holds, state.presenter, state.bans


def _perhaps_changed(before: MeetingState, after: MeetingState) -> AbstractSet[ParticipantId]:
    """Whom a difference names, or everybody if there is one that names nobody: to ask about each person is slow."""
    if before.restricted != after.restricted or before.presenter != after.presenter:
        return after.members.keys()
    named = set(before.bans ^ after.bans)
    named |= _differing(before.roles, after.roles)
    named |= _differing(before.holds, after.holds)
    named |= _differing(before.members, after.members)
    named.update(block.participant for block in before.blocks ^ after.blocks)
    for source in after.restricted:
        named |= before.listed.get(source, frozenset()) ^ after.listed.get(source, frozenset())
    return named


def _differing(
    before: Mapping[ParticipantId, object], after: Mapping[ParticipantId, object]
) -> AbstractSet[ParticipantId]:
    if before is after:
        return frozenset()
    return {who for who in before.keys() | after.keys() if before.get(who) != after.get(who)}


def _cause_of(decision: Decision) -> moderation.RightsCause:
    for change in decision.changes:
        match change:
            case _ if decision.action == "expire":
                return "expiry"
            case PutBack():
                return "undo"
            case BypassNoted():
                return "bypass"
            case Held():
                return "hold"
            case RoleGiven():
                return "role"
            case Restricted() | Unrestricted():
                return "restriction"
            case Granted() | Revoked():
                return "permission"
            case _:
                pass
    return "presenter"  # was set, or has left


# --- What is announced -------------------------------------------------------------------------------------------


def announcements(
    before: MeetingState, after: MeetingState, decision: Decision, seen: Mapping[ParticipantId, Finding]
) -> Iterator[Announcement]:
    """What is told of the changes of a decision."""
    for change in decision.changes:
        yield from _announce(before, after, decision, change, seen)
    is_told = any(
        isinstance(change, Restricted | Unrestricted) and change.source is Source.MICROPHONE
        for change in decision.changes
    )
    if is_told or _microphones(before) != _microphones(after):
        yield Announcement(Everyone(), microphone_restrictions(after))


def _microphones(state: MeetingState) -> frozenset[ParticipantId] | None:
    if Source.MICROPHONE not in state.restricted:
        return None
    return state.listed.get(Source.MICROPHONE, frozenset())


def microphone_restrictions(
    state: MeetingState,
) -> livekit.MicrophoneRestrictionsEnabled | livekit.MicrophoneRestrictionsDisabled:
    """What everybody is told of the microphones."""
    listed = _microphones(state)
    if listed is None:
        return livekit.MicrophoneRestrictionsDisabled()
    return livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=in_order(listed))


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
            if isinstance(decision.effect, Expel) and participant in before.members:
                said = decision.reason if decision.is_action else decision.action
                kicked = moderation.Kicked(moderator=decision.moderator, reason=said)
                yield Announcement(Only(frozenset({participant})), kicked)
            if _is_seen(before, participant):
                yield Announcement(Everyone(frozenset({participant})), control.Left(id=participant, reason=reason))
        case TimedOut(participants):
            for gone in sorted(who for who in participants if _is_seen(before, who)):
                yield Announcement(Everyone(frozenset({gone})), control.Left(id=gone, reason="timeout"))
        case HandSet(participant, up):
            if participant in after.members:
                target = frozenset({participant})
                yield Announcement(Only(target), control.HandRaised() if up else control.HandLowered())
                if _is_seen(after, participant):
                    was_so = before.members.get(participant) == after.members[participant]
                    # Whoever lowers a hand that is down is answered all the same.
                    others = Only(frozenset({decision.sender}) - target) if was_so else Everyone(target)
                    yield Announcement(others, _update(after, participant))
        case RoleGiven(participant, role):
            if participant in after.members:
                target = frozenset({participant})
                # The role that holds: they may have come back meanwhile as somebody who cannot be a moderator.
                role_updated = control.RoleUpdated(new_role=after.role_of(participant).value)
                yield Announcement(Only(target), role_updated)
                if decision.sender != CONTROLLER:
                    gives = role is Role.MODERATOR
                    told = control.ModeratorRoleGranted if gives else control.ModeratorRoleRevoked
                    yield Announcement(Only(frozenset({decision.sender})), told(target=participant))
                if _is_seen(after, participant):
                    yield Announcement(Everyone(target), _update(after, participant))
        case Granted(participants, Source.SCREEN_SHARE) | Revoked(participants, Source.SCREEN_SHARE):
            reached = (who for who in participants if not _failed(seen, who))
            event = livekit.ScreenSharePermissionsUpdated(
                grant=isinstance(change, Granted), participants=in_order(reached)
            )
            yield Announcement(Only(frozenset({decision.sender})), event)
        case Asked(request_id, request):
            requested = moderation.UnmuteRequested(request_id=request_id, moderator=request.moderator)
            yield Announcement(Only(frozenset({request.participant})), requested)
        case RequestClosed(request_id, was_accepted):
            if (closed := before.unmute_requests.get(request_id)) is not None:
                answered = moderation.UnmuteRequestAnswered(
                    request_id=request_id, participant=closed.participant, accepted=was_accepted
                )
                yield Announcement(Only(frozenset({closed.moderator})), answered)
        case BypassNoted(participant, source, track, media) if not _failed(seen, participant):
            stopped = moderation.BypassStopped(
                participant=participant, track_sid=track, declared=source.value, media=media
            )
            yield to_moderators(after, stopped)
        case MutesForgotten(participants):
            for participant in sorted(participants & before.mutes.keys()):
                yield to_moderators(after, moderation.UnmutedAgain(participant=participant))
        case _:
            pass  # nobody is told of it by an event of its own


def _failed(seen: Mapping[ParticipantId, Finding], participant: ParticipantId) -> bool:
    return participant in seen and seen[participant].is_failure


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
        hand_updated_at=rfc3339(member.joined_at if member.hand_updated_at is None else member.hand_updated_at),
        joined_at=rfc3339(member.joined_at),
    )
