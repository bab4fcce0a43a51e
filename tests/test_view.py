"""The meeting as it is shown."""

from signaling.core.participants import Kind, Role
from signaling.core.state import Departed, Entered, HandSet, RoleGiven, apply
from signaling.view import Attendance
from tests.core.meetings import ALICE, AT, BOB, CAROL, MEETING, RECORDER, joined, somebody


def test_joiners_are_told_of_everybody_but_services() -> None:
    entries = Attendance().entries(joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER)))
    assert [(entry.id, entry.control.display_name, entry.control.role) for entry in entries] == [
        (ALICE, "Alice", "moderator"),
        (BOB, "Bob", "user"),
        (CAROL, "Carol", "user"),
    ]
    assert entries[0].control.joined_at == "1970-01-01T00:16:40.000Z"


def test_what_is_said_of_somebody_is_made_anew_only_when_it_changes() -> None:
    attendance = Attendance()
    before = {entry.id: entry for entry in attendance.entries(MEETING)}
    state = apply(MEETING, [HandSet(BOB, up=True), RoleGiven(CAROL, Role.MODERATOR)])
    after = {entry.id: entry for entry in attendance.entries(state)}
    assert after[ALICE] is before[ALICE]
    assert after[BOB].control.hand_is_up
    assert after[CAROL].control.role == "moderator"
    gone = apply(state, [Departed(ALICE, AT, "quit")])
    assert [entry.id for entry in attendance.entries(gone)] == [BOB, CAROL]
    back = apply(gone, [Entered(ALICE, MEETING.members[ALICE])])
    assert attendance.entries(back)[0] == before[ALICE]
