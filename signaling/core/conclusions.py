"""From what LiveKit did to the state that holds, what everybody is told, and what it came to."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from signaling.core.applying import apply
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
    MutesNoted,
    PresenterSet,
    PutBack,
    RequestClosed,
    Restricted,
    Revoked,
    RoleGiven,
    TimedOut,
    Unrestricted,
)
from signaling.core.decisions import Decision
from signaling.core.effects import Agree, Effect, Expel, Finding, Mute, Presence, Stop
from signaling.core.enforcement import allowable, is_unknown
from signaling.core.participants import SCREEN_SOURCES, SERVICES, Role, Source
from signaling.core.policy import is_blocked, is_service, obeys_room, publishable
from signaling.core.state import ASK_AGAIN_S, MeetingState, PresenterWas
from signaling.identifiers import CONTROLLER, CommandId, ParticipantId
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
    """An event, and who is told; the sender of the command that caused it knows its own copy by that command."""

    audience: Audience
    event: Event
    cause: CommandId | None = None


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


def conclude(
    state: MeetingState,
    decision: Decision,
    findings: Mapping[ParticipantId, Finding] | None = None,
    *,
    silenced: Mapping[ParticipantId, frozenset[Source]] | None = None,
    present: Mapping[ParticipantId, Presence] = MappingProxyType({}),
) -> Conclusion:
    """
    The state, the events and the outcomes of a decision that was carried out.

    Concluding the same decision again, on the state that came of it, changes nothing more.

    Args:
        state: As it is now; others may have changed it since the decision was made.
        findings: What was seen of each member; whoever is missing was not looked at, because they are not in LiveKit.
        silenced: Of those who were muted, which of the sources they were heard or seen by; if not given, all of them.
        present: Who is in LiveKit, members or not, as far as is known.
    """
    seen = {} if findings is None else findings
    effect = decision.effect
    muted: dict[ParticipantId, frozenset[Source]] = {}
    if isinstance(effect, Mute):
        muted = {
            who: effect.sources if silenced is None else silenced.get(who, frozenset())
            for who in sorted(seen)
            if seen[who] is Finding.MUTED
        }
    noted = (MutesNoted(muted, decision.at),) if muted else ()
    after = apply(state, (*decision.changes, *noted), command_id=decision.command_id if decision.is_action else None)
    outcomes = tuple(_outcomes(_Comparison(state, after, present), decision, seen))
    failed = [participant for participant, finding in seen.items() if finding.is_failure]
    announcements = [
        *_announcements(state, after, decision, seen),
        *(told for who, sources in muted.items() for told in mute_announcements(who, decision.moderator, sources)),
        *_rights_announcements(state, after, decision),
    ]
    if decision.is_action:
        announcements.append(to_moderators(after, _action_taken(decision, outcomes)))
    return Conclusion(
        state=after,
        announcements=tuple(replace(announcement, cause=decision.command_id) for announcement in announcements),
        outcomes=outcomes,
        # A mute or stop that failed is not promised: it is tried again for a few seconds only.
        repaired_later=in_order(failed) if isinstance(effect, Agree | Expel) or _is_held(effect) else (),
        error="livekit_unavailable" if failed else None,
    )


def presenters_of(decision: Decision) -> frozenset[ParticipantId]:
    """Whom a decision makes the presenter, if they are here when it is concluded."""
    made = set[ParticipantId | None]()
    for change in decision.changes:
        match change:
            case PresenterSet(participant):
                made.add(participant)
            case PutBack(settings):
                made |= {setting.participant for setting in settings if isinstance(setting, PresenterWas)}
            case _:
                pass
    return frozenset(who for who in made if who is not None)


def _is_held(effect: Effect | None) -> bool:
    return isinstance(effect, Mute) and effect.is_held


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


def _action_taken(decision: Decision, outcomes: tuple[moderation.Outcome, ...]) -> moderation.ActionTaken:
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


def _rights_announcements(before: MeetingState, after: MeetingState, decision: Decision) -> Iterator[Announcement]:
    if _rules(before) == _rules(after):
        return
    changed: dict[tuple[Source, ...], set[ParticipantId]] = {}
    for participant in after.members.keys() & before.members.keys():
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


def _announcements(
    before: MeetingState, after: MeetingState, decision: Decision, seen: Mapping[ParticipantId, Finding]
) -> Iterator[Announcement]:
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


# --- What it came to ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The meeting before and after, and who is in LiveKit: what somebody who never joined may do depends on that."""

    before: MeetingState
    after: MeetingState
    present: Mapping[ParticipantId, Presence]

    def strangers(self) -> Iterator[ParticipantId]:
        return (who for who, presence in self.present.items() if is_unknown(self.after, presence))

    def is_service(self, participant: ParticipantId) -> bool:
        presence = self.present.get(participant)
        seen_as_one = presence is not None and is_service(presence)
        return not obeys_room(participant, self.after, is_service=seen_as_one)

    def rights(self, participant: ParticipantId, state: MeetingState) -> frozenset[Source]:
        presence = self.present.get(participant)
        if presence is None or participant in state.members:
            return frozenset(publishable(participant, state))
        return frozenset(allowable(state, presence))

    def gained(self, participant: ParticipantId) -> frozenset[Source]:
        return self.rights(participant, self.after) - self.rights(participant, self.before)


def _outcomes(
    meeting: _Comparison, decision: Decision, seen: Mapping[ParticipantId, Finding]
) -> Iterator[moderation.Outcome]:
    effect = decision.effect
    if effect is None and (not decision.is_action or decision.action == "move"):
        return  # nothing comes of it but that it is so
    for participant in sorted(_concerned(meeting, decision)):
        finding = seen.get(participant, Finding.ABSENT)
        if participant in decision.unknown:
            yield moderation.Outcome(participant=participant, outcome="unknown")
        elif participant in decision.exempt or _is_spared(meeting, decision, participant):
            yield moderation.Outcome(participant=participant, outcome="exempt")
        elif finding is Finding.UNANSWERED:
            yield moderation.Outcome(participant=participant, outcome="failed", error="livekit_unavailable")
        elif finding is Finding.REJECTED:
            yield moderation.Outcome(participant=participant, outcome="failed", error="livekit_rejected")
        elif decision.action == "ask_to_unmute":
            yield _asked(meeting.before, decision, participant)
        elif isinstance(decision.effect, Mute | Stop):
            yield moderation.Outcome(participant=participant, outcome=_TRACK_OUTCOMES[finding])
        elif finding is Finding.SETTLING:
            yield moderation.Outcome(participant=participant, outcome="settling")
        else:
            outcome = _came_to(meeting, decision, participant, finding)
            stays_silent = _stays_silent(meeting, participant)
            yield moderation.Outcome(
                participant=participant, outcome=outcome, detail="cannot_publish_again" if stays_silent else None
            )


def _concerned(meeting: _Comparison, decision: Decision) -> frozenset[ParticipantId]:
    named = decision.targets | decision.unknown | decision.exempt
    match decision.effect:
        case Agree(participants=None):
            return named.union(meeting.after.members, meeting.strangers())
        case Mute(strangers_but=frozenset()):
            return named.union(meeting.strangers())
        case _:
            return named


def _is_spared(meeting: _Comparison, decision: Decision, participant: ParticipantId) -> bool:
    """Whether this is somebody whom a mute of everyone leaves alone, who came after it was decided."""
    effect = decision.effect
    if not isinstance(effect, Mute) or effect.strangers_but is None or participant in decision.targets:
        return False
    return participant in effect.strangers_but or meeting.is_service(participant)


def _stays_silent(meeting: _Comparison, participant: ParticipantId) -> bool:
    """Whether somebody may publish again what nothing makes them publish again."""
    presence = meeting.present.get(participant)
    if presence is None or not presence.publishes_once:
        return False
    return any(not presence.tracks_of(frozenset({source})) for source in meeting.gained(participant))


_TRACK_OUTCOMES: Final[dict[Finding, moderation.OutcomeName]] = {
    Finding.MUTED: "muted",
    Finding.ALREADY_MUTED: "already_muted",
    Finding.NO_TRACK: "no_track",
    Finding.STOPPED: "stopped",
    Finding.ABSENT: "not_connected",
}


def _asked(before: MeetingState, decision: Decision, participant: ParticipantId) -> moderation.Outcome:
    if any(isinstance(change, Asked) and change.request.participant == participant for change in decision.changes):
        return moderation.Outcome(participant=participant, outcome="asked")
    if before.asked_at.get(participant, -math.inf) + ASK_AGAIN_S > decision.at:
        return moderation.Outcome(participant=participant, outcome="failed", error="rate_limit_exceeded")
    return moderation.Outcome(participant=participant, outcome="not_connected")


def _came_to(
    meeting: _Comparison, decision: Decision, participant: ParticipantId, finding: Finding
) -> moderation.OutcomeName:
    """What a change of rights came to for somebody about whom LiveKit agrees."""
    before, after = meeting.before, meeting.after
    if isinstance(decision.effect, Expel):
        if participant in after.bans - before.bans:
            return "banned"
        if participant in before.members or finding is Finding.CHANGED:
            return "removed"
        return "unchanged" if participant in after.bans else "not_connected"
    for change in decision.changes:
        match change:
            case Granted(_, source) | Revoked(_, source):
                if _named(before, participant, source) == _named(after, participant, source):
                    return "unchanged"
                if isinstance(change, Revoked):
                    return "revoked"
                # Who never joined is given no more than they came with.
                cannot = participant in meeting.present and source not in meeting.rights(participant, after)
                return "unchanged" if cannot else "granted"
            case Restricted() if after.is_moderator(participant) or meeting.is_service(participant):
                return "exempt"
            case Restricted(source) | Unrestricted(source):
                return _compare(meeting, participant, frozenset({source}))
            case RoleGiven() if before.is_moderator(participant) != after.is_moderator(participant):
                return "granted" if after.is_moderator(participant) else "revoked"
            case PresenterSet():
                if participant not in after.members and participant not in meeting.present:
                    return "not_connected"
                if meeting.is_service(participant):
                    return "exempt"
                has = Source.SCREEN_SHARE in publishable(participant, after)
                if has and participant == change.participant != before.presenter:
                    return "granted"
                return _compare(meeting, participant, SCREEN_SOURCES)
            case _:
                pass
    return _compare(meeting, participant, frozenset(Source))


def _compare(meeting: _Comparison, participant: ParticipantId, sources: frozenset[Source]) -> moderation.OutcomeName:
    """What became of the right to publish these sources, or to be here."""
    before, after = meeting.before, meeting.after
    if (participant in before.bans) != (participant in after.bans):
        return "banned" if participant in after.bans else "unrestricted"
    had, has = (sources & meeting.rights(participant, state) for state in (before, after))
    return "unchanged" if had == has else "unrestricted" if had < has else "restricted"


def _named(state: MeetingState, participant: ParticipantId, source: Source) -> tuple[bool, bool]:
    """Whether somebody is listed for a source, and whether something keeps it from them by name."""
    return participant in state.listed.get(source, frozenset()), is_blocked(participant, source, state)
