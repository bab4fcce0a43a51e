"""From what LiveKit did to the state that holds, what everybody is told, and what it came to."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from signaling.core.announcements import (
    Announcement,
    action_taken,
    announcements,
    mute_announcements,
    rights_announcements,
    to_moderators,
)
from signaling.core.applying import apply
from signaling.core.changes import Change, MutesNoted, PresenterSet, PutBack
from signaling.core.decisions import Decision
from signaling.core.effects import Agree, Effect, Expel, Finding, Mute, Presence
from signaling.core.outcomes import Comparison, outcomes_of
from signaling.core.participants import Source
from signaling.core.state import MeetingState, PresenterWas
from signaling.identifiers import ParticipantId
from signaling.messages import moderation
from signaling.messages.base import in_order

_FAILURES: Final = frozenset({"livekit_unavailable", "livekit_rejected"})
"""How outcomes name what LiveKit did not do."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """
    What a command came to.

    Attributes:
        changes: What was decided, and what was seen when it was carried out.
        repaired_later: People about whom LiveKit does not agree yet, and will be told again.
        error: What the sender is told when not everybody was reached.
    """

    changes: tuple[Change, ...]
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
    The changes, the events and the outcomes of a decision that was carried out.

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
    changes = (*decision.changes, *noted)
    after = apply(state, changes)
    outcomes = tuple(outcomes_of(Comparison(state, after, present), decision, seen))
    failed = [participant for participant, finding in seen.items() if finding.is_failure]
    told = [
        *announcements(state, after, decision, seen),
        *(each for who, sources in muted.items() for each in mute_announcements(who, decision.moderator, sources)),
        *rights_announcements(state, after, decision),
    ]
    if decision.is_action:
        told.append(to_moderators(after, action_taken(decision, outcomes)))
    return Conclusion(
        changes=changes,
        announcements=tuple(told),
        outcomes=outcomes,
        repaired_later=in_order(failed) if _is_repaired_later(effect) else (),
        error="livekit_unavailable" if failed else None,
    )


def concluded_before(outcomes: tuple[moderation.Outcome, ...], effect: Effect | None = None) -> Conclusion:
    """
    What a decision came to that was committed before: its sender is told just what they would have been told then.

    Args:
        effect: The decision's, if it is known.
    """
    failed = [ParticipantId(each.participant) for each in outcomes if each.error in _FAILURES]
    return Conclusion(
        changes=(),
        announcements=(),
        outcomes=outcomes,
        repaired_later=in_order(failed) if _is_repaired_later(effect) else (),
        error=None if not failed else "livekit_unavailable",
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


def _is_repaired_later(effect: Effect | None) -> bool:
    """Whether LiveKit is told again. A mute or stop that failed is not promised: it is tried for a few seconds only."""
    return isinstance(effect, Agree | Expel) or (isinstance(effect, Mute) and effect.is_held)
