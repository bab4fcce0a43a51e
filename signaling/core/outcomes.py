"""What a decision that was carried out came to for each person concerned."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from signaling.core.changes import Asked, Granted, PresenterSet, Restricted, Revoked, RoleGiven, Unrestricted
from signaling.core.decisions import Decision
from signaling.core.effects import Agree, Expel, Finding, Mute, Presence, Stop
from signaling.core.enforcement import allowable, is_unknown
from signaling.core.participants import SCREEN_SOURCES, Source
from signaling.core.policy import is_blocked, is_service, obeys_room, publishable
from signaling.core.state import ASK_AGAIN_S, MeetingState
from signaling.identifiers import ParticipantId
from signaling.messages import moderation


@dataclass(frozen=True, slots=True)
class Comparison:
    """The meeting before and after, and who is in LiveKit: what somebody who never joined may do depends on that."""

    before: MeetingState
    after: MeetingState
    present: Mapping[ParticipantId, Presence]

    def strangers(self) -> Iterator[ParticipantId]:
        """Who is in LiveKit and has never joined."""
        return (who for who, presence in self.present.items() if is_unknown(self.after, presence))

    def is_service(self, participant: ParticipantId) -> bool:
        """Whether this is no person, as a member or as LiveKit has it."""
        presence = self.present.get(participant)
        seen_as_one = presence is not None and is_service(presence)
        return not obeys_room(participant, self.after, is_service=seen_as_one)

    def rights(self, participant: ParticipantId, state: MeetingState) -> frozenset[Source]:
        """What somebody may publish in this state."""
        presence = self.present.get(participant)
        if presence is None or participant in state.members:
            return frozenset(publishable(participant, state))
        return frozenset(allowable(state, presence))

    def gained(self, participant: ParticipantId) -> frozenset[Source]:
        """What somebody may publish now, and might not before."""
        return self.rights(participant, self.after) - self.rights(participant, self.before)


def outcomes_of(
    meeting: Comparison, decision: Decision, seen: Mapping[ParticipantId, Finding]
) -> Iterator[moderation.Outcome]:
    """What a decision came to for each person concerned, in order."""
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


def _concerned(meeting: Comparison, decision: Decision) -> frozenset[ParticipantId]:
    named = decision.targets | decision.unknown | decision.exempt
    match decision.effect:
        case Agree(participants=None):
            return named.union(meeting.after.members, meeting.strangers())
        case Mute(strangers_but=frozenset()):
            return named.union(meeting.strangers())
        case _:
            return named


def _is_spared(meeting: Comparison, decision: Decision, participant: ParticipantId) -> bool:
    """Whether this is somebody whom a mute of everyone leaves alone, who came after it was decided."""
    effect = decision.effect
    if not isinstance(effect, Mute) or effect.strangers_but is None or participant in decision.targets:
        return False
    return participant in effect.strangers_but or meeting.is_service(participant)


def _stays_silent(meeting: Comparison, participant: ParticipantId) -> bool:
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
    meeting: Comparison, decision: Decision, participant: ParticipantId, finding: Finding
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
                if has and participant == after.presenter != before.presenter:  # nobody's who left meanwhile
                    return "granted"
                return _compare(meeting, participant, SCREEN_SOURCES)
            case _:
                pass
    return _compare(meeting, participant, frozenset(Source))


def _compare(meeting: Comparison, participant: ParticipantId, sources: frozenset[Source]) -> moderation.OutcomeName:
    """What became of the right to publish these sources, or to be here."""
    before, after = meeting.before, meeting.after
    if (participant in before.bans) != (participant in after.bans):
        return "banned" if participant in after.bans else "unrestricted"
    had, has = (sources & meeting.rights(participant, state) for state in (before, after))
    return "unchanged" if had == has else "unrestricted" if had < has else "restricted"


def _named(state: MeetingState, participant: ParticipantId, source: Source) -> tuple[bool, bool]:
    """Whether somebody is listed for a source, and whether something keeps it from them by name."""
    return participant in state.listed.get(source, frozenset()), is_blocked(participant, source, state)
