"""The meeting as it is shown, and what a copy of it needs to be kept up to date."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from signaling.core.participants import Kind, Role
from signaling.core.state import MeetingState, Member
from signaling.meeting.view import Attendance, difference
from signaling.messages import moderation
from tests.core.meetings import ALICE, BOARD, BOB, CAROL

PEOPLE = st.sampled_from([ALICE, BOB, CAROL])
SOURCES = st.sampled_from(get_args(moderation.SourceName))
TIMES = st.none() | st.sampled_from(["2026-03-01T09:30:00.123Z", "2026-03-01T09:31:00.123Z"])
VIEWS = st.builds(
    moderation.StateView,
    version=st.integers(0, 1_000),
    restrictions=st.lists(
        st.builds(moderation.RestrictionView, source=SOURCES, allowed=st.lists(PEOPLE).map(tuple), expires_at=TIMES),
        max_size=2,
    ).map(tuple),
    blocks=st.lists(
        st.builds(
            moderation.BlockView,
            participant=PEOPLE,
            source=SOURCES,
            cause=st.sampled_from(["moderator", "bypass", "hold"]),
            count=st.none() | st.integers(1, 2),
            until=TIMES,
        ),
        max_size=2,
    ).map(tuple),
    bans=st.lists(PEOPLE).map(tuple),
    presenter=st.none() | PEOPLE,
    participants=st.lists(
        st.builds(
            moderation.ParticipantView,
            participant=PEOPLE,
            role=st.just("user"),
            kind=st.just("user"),
            connected=st.booleans(),
            in_livekit=st.booleans(),
            may_publish=st.lists(SOURCES, max_size=2).map(tuple),
            publishing=st.just(()),
            hand_is_up=st.booleans(),
            hand_updated_at=TIMES,
            settling=st.booleans(),
        ),
        unique_by=lambda person: person.participant,
    ).map(lambda people: tuple(sorted(people, key=lambda person: person.participant))),
)


def kept(message: moderation.StateView | moderation.Changed) -> dict[str, Any]:
    """The message as a client keeps it."""
    return message.model_dump(mode="json", exclude_none=True)


def merged(copy: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """A client's copy with what changed, as the protocol says."""
    changed = dict(changed)
    people = {person["participant"]: person for person in copy["participants"]}
    people |= {person["participant"]: person for person in changed.pop("participants", ())}
    gone = changed.pop("gone", ())
    whole = {**copy, **changed, "participants": [people[who] for who in sorted(people) if "gone" not in people[who]]}
    return {member: value for member, value in whole.items() if member not in gone}


@settings(deadline=None, max_examples=300)
@given(views=st.lists(VIEWS, min_size=2, max_size=5))
def test_a_copy_that_is_kept_up_to_date_never_diverges(views: list[moderation.StateView]) -> None:
    copy = kept(views[0])
    for before, after in pairwise(views):
        changed = difference(before, after)
        copy = {**merged(copy, {} if changed is None else kept(changed)), "version": after.version}
        assert copy == kept(after)


@settings(deadline=None, max_examples=100)
@given(view=VIEWS, version=st.integers(0, 1_000))
def test_nothing_differs_by_the_version_alone(view: moderation.StateView, version: int) -> None:
    assert difference(view, view.model_copy(update={"version": version})) is None


@settings(deadline=None, max_examples=200)
@given(before=VIEWS, after=VIEWS)
def test_only_what_differs_is_told(before: moderation.StateView, after: moderation.StateView) -> None:
    changed = difference(before, after)
    told = {} if changed is None else kept(changed)
    for member in ("restrictions", "blocks", "bans"):
        assert (member in told) is (getattr(before, member) != getattr(after, member))
    known = {person.participant: person for person in before.participants}
    present = {person.participant: person for person in after.participants}
    people = {person["participant"] for person in told.get("participants", ())}
    assert people == {who for who in known.keys() | present.keys() if known.get(who) != present.get(who)}


MEMBERS = st.builds(
    Member,
    role=st.sampled_from(Role),
    kind=st.sampled_from(Kind),
    joined_at=st.just(0.0),
    hand_is_up=st.booleans(),
)
STATES = st.builds(
    MeetingState,
    st.just(BOARD),
    members=st.dictionaries(PEOPLE, MEMBERS),
    roles=st.dictionaries(PEOPLE, st.sampled_from(Role)),
)
STEPS = st.one_of(
    st.builds(lambda who, member: {"members": {who: member}}, PEOPLE, MEMBERS),
    st.builds(lambda who, role: {"roles": {who: role}}, PEOPLE, st.sampled_from(Role)),
    st.builds(lambda who: {"gone": who}, PEOPLE),
)


def stepped(state: MeetingState, step: dict[str, Any]) -> MeetingState:
    """The state with somebody or a role more, or somebody less; whoever did not change is the same object."""
    return replace(
        state,
        members={
            who: it for who, it in {**state.members, **step.get("members", {})}.items() if who != step.get("gone")
        },
        roles={**state.roles, **step.get("roles", {})},
    )


@settings(deadline=None, max_examples=200)
@given(state=STATES, steps=st.lists(STEPS, max_size=6), other=STATES)
def test_attendance_that_is_kept_up_is_what_it_would_be_anew(
    state: MeetingState, steps: list[dict[str, Any]], other: MeetingState
) -> None:
    kept_up = Attendance()
    states = [state]
    for step in steps:
        states.append(stepped(states[-1], step))
    for each in [*states, other, *reversed(states)]:
        assert kept_up.entries(each) == Attendance().entries(each)


def test_what_is_said_of_somebody_is_made_anew_only_when_it_changes() -> None:
    member = Member(Role.USER, Kind.USER, 0.0)
    people = {CAROL: member, ALICE: member, BOB: replace(member, kind=Kind.RECORDER)}
    state = MeetingState(BOARD, members=people)
    attendance = Attendance()
    alice, carol = attendance.entries(state)
    assert (alice.id, carol.id) == (ALICE, CAROL)
    assert (alice.control.role, carol.control.role) == ("user", "user")
    again = attendance.entries(replace(state, roles={CAROL: Role.MODERATOR}))
    assert again[0] is alice
    assert again[1].control.role == "moderator"
