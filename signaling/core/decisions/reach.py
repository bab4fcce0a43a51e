"""Whom and what a command reaches."""

from collections.abc import Collection
from collections.abc import Set as AbstractSet

from signaling.core.effects import Agree
from signaling.core.participants import SCREEN_SOURCES, Source
from signaling.core.references import people
from signaling.core.state import MeetingState
from signaling.identifiers import CONTROLLER, ParticipantId


def known_and_unknown(
    state: MeetingState,
    named: tuple[ParticipantId, ...],
    strangers: Collection[ParticipantId] = (),
) -> tuple[frozenset[ParticipantId], frozenset[ParticipantId]]:
    """Who of those named is in the meeting, and who is not."""
    meant = people(named, state, strangers)
    known = frozenset(who for who in meant if who in strangers or who in state.members)
    return known, meant - known


def themselves(sender: ParticipantId) -> frozenset[ParticipantId]:
    """Who gives a command, as somebody whom it might concern; the host is nobody, whoever bears its name in LiveKit."""
    return frozenset() if sender == CONTROLLER else frozenset({sender})


def about(sources: set[Source]) -> Agree:
    """Everybody's permissions as far as they concern these sources."""
    return Agree(None, with_sound(sources))


def with_sound(sources: AbstractSet[Source]) -> frozenset[Source]:
    """The same sources, and with a screen its sound."""
    return frozenset(sources) | SCREEN_SOURCES if Source.SCREEN_SHARE in sources else frozenset(sources)
