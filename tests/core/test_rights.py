"""Who is told that they may publish something else: all whose rights differ, and only they."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from signaling.core.announcements import Only, rights_announcements
from signaling.core.participants import ALL_SOURCES, Kind, Role
from signaling.core.policy import publishable
from signaling.core.state import Block, BlockCause, MeetingState, Member
from signaling.identifiers import CONTROLLER, ParticipantId
from signaling.messages import moderation
from tests.core.meetings import ALICE, BOARD, BOB, CAROL, DAVE, MEETING, decided

_PEOPLE = st.sampled_from([ALICE, BOB, CAROL, DAVE])
_SOURCES = st.sampled_from(ALL_SOURCES)
_SETTINGS: Mapping[str, st.SearchStrategy[object]] = {
    "members": st.dictionaries(
        _PEOPLE,
        st.builds(Member, st.sampled_from(Role), st.sampled_from(Kind), st.just(0.0), hand_is_up=st.booleans()),
        min_size=2,
    ),
    "roles": st.dictionaries(_PEOPLE, st.sampled_from(Role)),
    "restricted": st.frozensets(_SOURCES),
    "listed": st.dictionaries(_SOURCES, st.frozensets(_PEOPLE)),
    "blocks": st.frozensets(st.builds(Block, _PEOPLE, _SOURCES, st.sampled_from(BlockCause)), max_size=3),
    "holds": st.dictionaries(_PEOPLE, st.dictionaries(_SOURCES, st.just(1.0), min_size=1)),
    "bans": st.frozensets(_PEOPLE, max_size=2),
    "presenter": st.none() | _PEOPLE,
}


@st.composite
def _two_states(draw: st.DrawFn) -> tuple[MeetingState, MeetingState]:
    """One, and one in which some of what it is made of is another."""
    before: dict[str, object] = {name: draw(setting) for name, setting in _SETTINGS.items()}
    changed = draw(st.sets(st.sampled_from(sorted(_SETTINGS)), min_size=1, max_size=2))
    after = before | {name: draw(_SETTINGS[name]) for name in changed}
    return MeetingState(BOARD, **before), MeetingState(BOARD, **after)  # type: ignore[arg-type] # as named above


@settings(deadline=None, max_examples=600)
@given(_two_states())
def test_whose_rights_differ_is_told_and_nobody_else(states: tuple[MeetingState, MeetingState]) -> None:
    before, after = states
    decision = decided(MEETING, CONTROLLER, moderation.Restrict(source="camera"))
    told: dict[ParticipantId, tuple[str, ...]] = {}
    for announcement in rights_announcements(before, after, decision):
        assert isinstance(announcement.audience, Only)
        assert isinstance(announcement.event, moderation.PermissionsChanged)
        told |= dict.fromkeys(announcement.audience.participants, announcement.event.may_publish)
    rules = ("roles", "restricted", "listed", "blocks", "holds", "presenter", "bans")
    differing = {
        who: tuple(source.value for source in publishable(who, after))
        for who in before.members.keys() & after.members.keys()
        if publishable(who, before) != publishable(who, after)
        and any(getattr(before, rule) != getattr(after, rule) for rule in rules)
    }
    assert told == differing
