import pytest

from signaling.core.announcements import Only, control_data, mute_announcements
from signaling.core.changes import Restricted
from signaling.core.commands import AnyCommand, ChangeRole, Depart, End, Enter, LoseConnections, Move, NoteRoomDeleted
from signaling.core.conclusions import concluded_before
from signaling.core.effects import Agree, Effect, Expel, Finding, Mute, Stop
from signaling.core.participants import Kind, Participant, Role, Source
from signaling.core.policy import publishable
from signaling.identifiers import CONTROLLER, ParticipantId
from signaling.messages import control, livekit
from signaling.messages.moderation import Outcome
from tests.core.meetings import (
    ALICE,
    AT,
    BOB,
    CAMERA,
    CAROL,
    DAVE,
    DISABLE,
    LEFT,
    LOWER,
    MAIN,
    MEETING,
    MICROPHONE,
    POPOUT,
    RAISE,
    RECORDER,
    SCREEN,
    after,
    conclude,
    concluded,
    decided,
    demote,
    enable,
    grant,
    joined,
    left,
    lower,
    mute,
    outcomes,
    promote,
    revoke,
    somebody,
    told,
)

EVERYBODY = (ALICE, BOB, CAROL)
WITH_RECORDER = joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER))


def data(
    who: ParticipantId,
    role: str = "user",
    *,
    hand_is_up: bool = False,
    kind: str = "user",
    hand_updated_at: float = AT,
) -> control.ControlData:
    return control.ControlData.model_validate(
        {
            "display_name": who.title(),
            "role": role,
            "participation_kind": kind,
            "hand_is_up": hand_is_up,
            "hand_updated_at": hand_updated_at,
            "joined_at": AT,
        }
    )


# --- Mutes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "outcome"),
    [
        (Finding.MUTED, Outcome(participant=BOB, outcome="muted")),
        (Finding.ALREADY_MUTED, Outcome(participant=BOB, outcome="already_muted")),
        (Finding.NO_TRACK, Outcome(participant=BOB, outcome="no_track")),
        (Finding.ABSENT, Outcome(participant=BOB, outcome="not_connected")),
        (None, Outcome(participant=BOB, outcome="not_connected")),
        (Finding.UNANSWERED, Outcome(participant=BOB, outcome="failed", error="livekit_unavailable")),
        (Finding.REJECTED, Outcome(participant=BOB, outcome="failed", error="livekit_rejected")),
    ],
)
def test_what_a_mute_came_to(finding: Finding | None, outcome: Outcome) -> None:
    conclusion = concluded(MEETING, ALICE, mute(BOB), {} if finding is None else {BOB: finding})
    assert conclusion.outcomes == (outcome,)
    assert publishable(BOB, conclusion.state) == publishable(BOB, MEETING)
    assert conclusion.state.mutes.keys() == ({BOB} if finding is Finding.MUTED else set())
    muted = [livekit.ForceMuted(moderator=ALICE)] if finding is Finding.MUTED else []
    assert (told(conclusion, ALICE), told(conclusion, BOB), told(conclusion, CAROL)) == ([], muted, [])


def test_force_muted_reaches_each_person_confirmed_muted_and_nobody_else() -> None:
    conclusion = concluded(MEETING, ALICE, mute(ALICE, BOB, CAROL), {BOB: Finding.MUTED, CAROL: Finding.ALREADY_MUTED})
    assert told(conclusion, BOB) == [livekit.ForceMuted(moderator=ALICE)]
    assert told(conclusion, ALICE) == told(conclusion, CAROL) == []


def test_a_moderator_who_mutes_themselves_is_told_too() -> None:
    assert told(concluded(MEETING, ALICE, mute(ALICE), {ALICE: Finding.MUTED}), ALICE)


def test_a_mute_by_the_controller_says_so() -> None:
    conclusion = concluded(MEETING, CONTROLLER, mute(BOB), {BOB: Finding.MUTED})
    assert told(conclusion, BOB) == [livekit.ForceMuted(moderator="controller")]


def test_a_late_success_tells_the_person_alone() -> None:
    late = [*mute_announcements(BOB, ALICE, frozenset({MICROPHONE}))]
    at_once = concluded(MEETING, ALICE, mute(BOB), {BOB: Finding.MUTED}).announcements[: len(late)]
    assert late == [*at_once]
    assert {announcement.audience for announcement in late} == {Only(frozenset({BOB}))}


def test_people_who_are_not_here_are_unknown() -> None:
    conclusion = concluded(MEETING, ALICE, mute(BOB, DAVE), {BOB: Finding.MUTED})
    assert outcomes(conclusion) == {BOB: "muted", DAVE: "unknown"}


def test_a_mute_that_failed_is_not_promised() -> None:
    conclusion = concluded(MEETING, ALICE, mute(BOB, CAROL), {BOB: Finding.UNANSWERED, CAROL: Finding.MUTED})
    assert (conclusion.error, conclusion.repaired_later) == ("livekit_unavailable", ())
    assert told(conclusion, CAROL)
    assert not told(conclusion, BOB)


# --- Screen shares -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granting", [True, False])
def test_the_sender_alone_is_told_of_a_grant_or_revocation(granting: bool) -> None:  # noqa: FBT001 - a parameter of the test
    command = grant(CAROL, BOB) if granting else revoke(CAROL, BOB)
    conclusion = concluded(MEETING, ALICE, command, {BOB: Finding.CHANGED})
    event = livekit.ScreenSharePermissionsUpdated(grant=granting, participants=(BOB, CAROL))
    assert [told(conclusion, who) for who in EVERYBODY] == [[event], [], []]
    assert outcomes(conclusion) == dict.fromkeys((BOB, CAROL), "granted" if granting else "revoked")
    assert conclusion.error is None


def test_people_who_have_not_joined_are_left_out_and_not_remembered() -> None:
    conclusion = concluded(MEETING, ALICE, grant(BOB, DAVE))
    assert told(conclusion, ALICE) == [livekit.ScreenSharePermissionsUpdated(grant=True, participants=(BOB,))]
    assert outcomes(conclusion) == {BOB: "granted", DAVE: "unknown"}
    assert conclusion.state.listed == {SCREEN: {BOB}}


def test_nobody_left_is_told_as_nobody() -> None:
    conclusion = concluded(MEETING, ALICE, revoke(DAVE))
    assert told(conclusion, ALICE) == [livekit.ScreenSharePermissionsUpdated(grant=False, participants=())]
    assert conclusion.state.blocks == frozenset()


@pytest.mark.parametrize("failure", [Finding.UNANSWERED, Finding.REJECTED])
@pytest.mark.parametrize("granting", [True, False])
def test_people_whose_update_failed_are_left_out_and_the_change_stands(granting: bool, failure: Finding) -> None:  # noqa: FBT001 - a parameter of the test
    command = grant(CAROL, BOB) if granting else revoke(CAROL, BOB)
    conclusion = concluded(MEETING, ALICE, command, {BOB: failure, CAROL: Finding.CHANGED})
    event = livekit.ScreenSharePermissionsUpdated(grant=granting, participants=(CAROL,))
    assert told(conclusion, ALICE) == [event]
    assert conclusion.error == "livekit_unavailable"
    assert conclusion.repaired_later == (BOB,)
    assert outcomes(conclusion) == {BOB: "failed", CAROL: "granted" if granting else "revoked"}
    assert conclusion.state == concluded(MEETING, ALICE, command).state


@pytest.mark.parametrize("command", [grant(BOB), revoke(BOB)], ids=["grant", "revoke"])
def test_what_was_so_before_is_unchanged_and_told_all_the_same(command: AnyCommand) -> None:
    state = after(MEETING, (ALICE, command))
    conclusion = concluded(state, ALICE, command, {BOB: Finding.AGREED})
    assert outcomes(conclusion) == {BOB: "unchanged"}
    assert len(told(conclusion, ALICE)) == 1
    assert conclusion.state is state


def test_a_moderators_screen_is_revoked_too() -> None:
    assert outcomes(concluded(MEETING, ALICE, revoke(ALICE))) == {ALICE: "revoked"}


# --- Restrictions ------------------------------------------------------------------------------------------------


def test_everyone_is_told_of_a_restriction_the_sender_included() -> None:
    conclusion = concluded(MEETING, ALICE, enable(DAVE, CAROL))
    event = livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=(CAROL, DAVE))
    assert [told(conclusion, who) for who in EVERYBODY] == [[event]] * 3


def test_an_empty_allow_list_is_enabled_with_nobody() -> None:
    event = livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=())
    assert told(concluded(MEETING, ALICE, enable()), BOB) == [event]


@pytest.mark.parametrize("was_on", [True, False])
def test_everyone_is_told_that_it_is_off_also_when_it_was(was_on: bool) -> None:  # noqa: FBT001 - a parameter of the test
    state = after(MEETING, (ALICE, enable())) if was_on else MEETING
    conclusion = concluded(state, ALICE, DISABLE)
    assert [told(conclusion, who) for who in EVERYBODY] == [[livekit.MicrophoneRestrictionsDisabled()]] * 3


def test_what_a_restriction_came_to() -> None:
    conclusion = concluded(WITH_RECORDER, ALICE, enable(CAROL), {BOB: Finding.CHANGED, CAROL: Finding.AGREED})
    assert outcomes(conclusion) == {ALICE: "exempt", BOB: "restricted", CAROL: "unchanged", RECORDER: "exempt"}


def test_what_another_list_came_to() -> None:
    state = after(MEETING, (ALICE, enable(CAROL)))
    conclusion = concluded(state, ALICE, enable(BOB))
    assert outcomes(conclusion) == {ALICE: "exempt", BOB: "unrestricted", CAROL: "restricted"}


def test_what_lifting_it_came_to() -> None:
    state = after(WITH_RECORDER, (ALICE, enable(CAROL)))
    conclusion = concluded(state, ALICE, DISABLE)
    assert outcomes(conclusion) == {ALICE: "unchanged", BOB: "unrestricted", CAROL: "unchanged", RECORDER: "unchanged"}


def test_who_is_left_over_settles() -> None:
    conclusion = concluded(MEETING, ALICE, enable(), {BOB: Finding.SETTLING, CAROL: Finding.CHANGED})
    assert outcomes(conclusion) == {ALICE: "exempt", BOB: "settling", CAROL: "restricted"}
    assert conclusion.error is None


@pytest.mark.parametrize(
    ("failure", "error"), [(Finding.UNANSWERED, "livekit_unavailable"), (Finding.REJECTED, "livekit_rejected")]
)
def test_when_some_people_fail_the_change_stands_and_its_events_go_out(failure: Finding, error: str) -> None:
    conclusion = concluded(MEETING, ALICE, enable(), {CAROL: failure, BOB: failure})
    assert conclusion.error == "livekit_unavailable"
    assert conclusion.repaired_later == (BOB, CAROL)
    assert [(outcome.participant, outcome.outcome, outcome.error) for outcome in conclusion.outcomes] == [
        (ALICE, "exempt", None),
        (BOB, "failed", error),
        (CAROL, "failed", error),
    ]
    assert [len(told(conclusion, who)) for who in EVERYBODY] == [1, 1, 1]
    assert MICROPHONE in conclusion.state.restricted


def test_who_came_while_it_was_carried_out_is_restricted_as_well() -> None:
    decision = decided(MEETING, ALICE, enable())
    conclusion = conclude(joined(MEETING, somebody(DAVE)), decision)
    assert outcomes(conclusion)[DAVE] == "restricted"


def test_who_left_while_it_was_carried_out_has_no_outcome() -> None:
    decision = decided(MEETING, ALICE, enable())
    assert outcomes(conclude(left(MEETING, BOB), decision)) == {ALICE: "exempt", CAROL: "restricted"}


def test_a_restriction_of_another_source_has_no_event_in_livekit() -> None:
    decision = decided(MEETING, ALICE, enable())
    about_cameras = type(decision)(
        command_id=decision.command_id,
        action="restrict",
        sender=ALICE,
        at=AT,
        changes=(Restricted(CAMERA, frozenset()),),
        effect=Agree(None, frozenset({CAMERA})),
    )
    conclusion = conclude(MEETING, about_cameras)
    assert [told(conclusion, who) for who in EVERYBODY] == [[]] * 3
    assert outcomes(conclusion) == {ALICE: "exempt", BOB: "restricted", CAROL: "restricted"}


# --- Roles -------------------------------------------------------------------------------------------------------


def test_the_target_who_gave_it_and_the_others_are_told_of_a_role() -> None:
    conclusion = concluded(MEETING, ALICE, promote(BOB))
    update = control.Update(id=BOB, control=data(BOB, "moderator"))
    assert [told(conclusion, who) for who in EVERYBODY] == [
        [control.ModeratorRoleGranted(target=BOB), update],
        [control.RoleUpdated(new_role="moderator")],
        [update],
    ]


def test_and_of_one_that_another_moderator_took() -> None:
    conclusion = concluded(after(MEETING, (ALICE, promote(BOB))), BOB, demote(ALICE))
    update = control.Update(id=ALICE, control=data(ALICE))
    assert [told(conclusion, who) for who in EVERYBODY] == [
        [control.RoleUpdated(new_role="user")],
        [control.ModeratorRoleRevoked(target=ALICE), update],
        [update],
    ]


def test_who_takes_their_own_role_is_told_both() -> None:
    conclusion = concluded(after(MEETING, (ALICE, promote(BOB))), ALICE, demote(ALICE))
    assert told(conclusion, ALICE) == [
        control.RoleUpdated(new_role="user"),
        control.ModeratorRoleRevoked(target=ALICE),
    ]


@pytest.mark.parametrize("command", [demote(ALICE), ChangeRole(ALICE, Role.USER)])
def test_and_of_one_taken(command: AnyCommand) -> None:
    conclusion = concluded(MEETING, CONTROLLER, command)
    assert told(conclusion, ALICE) == [control.RoleUpdated(new_role="user")]
    assert told(conclusion, BOB) == [control.Update(id=ALICE, control=data(ALICE, "user"))]


@pytest.mark.parametrize(
    ("steps", "command", "outcome"),
    [
        ([], promote(BOB), "granted"),
        ([(ALICE, promote(BOB))], demote(BOB), "revoked"),
        ([(CONTROLLER, ChangeRole(BOB, Role.GUEST))], ChangeRole(BOB, Role.USER), "unchanged"),
    ],
)
def test_what_giving_or_taking_a_role_came_to(
    steps: list[tuple[ParticipantId, AnyCommand]], command: AnyCommand, outcome: str
) -> None:
    assert outcomes(concluded(after(MEETING, *steps), ALICE, command)) == {BOB: outcome}


def test_a_role_stands_when_livekit_fails() -> None:
    conclusion = concluded(MEETING, ALICE, promote(BOB), {BOB: Finding.UNANSWERED})
    assert conclusion.state.is_moderator(BOB)
    assert (conclusion.error, conclusion.repaired_later) == ("livekit_unavailable", (BOB,))
    assert told(conclusion, BOB)


def test_nobody_is_told_of_the_role_of_somebody_who_left_meanwhile() -> None:
    conclusion = conclude(left(MEETING, BOB), decided(MEETING, ALICE, promote(BOB)))
    assert [told(conclusion, who) for who in EVERYBODY] == [[]] * 3
    assert conclusion.state.roles == {BOB: Role.MODERATOR}


# --- Hands, coming and going -------------------------------------------------------------------------------------


def test_everybody_sees_a_hand() -> None:
    conclusion = concluded(MEETING, BOB, RAISE, at=AT + 5)
    update = control.Update(id=BOB, control=data(BOB, hand_is_up=True, hand_updated_at=AT + 5))
    assert [told(conclusion, who) for who in (ALICE, CAROL)] == [[update]] * 2
    assert told(conclusion, BOB) == [control.HandRaised()]
    lowered = concluded(conclusion.state, BOB, LOWER, at=AT + 7)
    assert told(lowered, CAROL) == [control.Update(id=BOB, control=data(BOB, hand_updated_at=AT + 7))]
    assert told(lowered, BOB) == [control.HandLowered()]


def test_a_hand_that_a_moderator_lowers_is_told_to_whose_it_is() -> None:
    conclusion = concluded(after(MEETING, (BOB, RAISE)), ALICE, lower(BOB), at=AT + 5)
    update = control.Update(id=BOB, control=data(BOB, hand_updated_at=AT + 5))
    assert [told(conclusion, who) for who in EVERYBODY] == [[update], [control.HandLowered()], [update]]


def test_what_a_hand_does_already_is_told_to_whose_it_is_and_who_asks_alone() -> None:
    raised = after(MEETING, (BOB, RAISE))
    again = concluded(raised, BOB, RAISE, at=AT + 5)
    assert again.state is raised
    assert [told(again, who) for who in EVERYBODY] == [[], [control.HandRaised()], []]
    lowered = concluded(MEETING, ALICE, lower(BOB), at=AT + 5)
    assert lowered.state is MEETING
    update = control.Update(id=BOB, control=data(BOB))
    assert [told(lowered, who) for who in EVERYBODY] == [[update], [control.HandLowered()], []]


def test_the_hand_of_somebody_who_left_meanwhile_is_not_seen() -> None:
    assert conclude(left(MEETING, BOB), decided(MEETING, BOB, RAISE)).announcements == ()


def test_the_others_are_told_of_somebody_who_comes() -> None:
    conclusion = concluded(MEETING, CONTROLLER, Enter(somebody(DAVE, Role.GUEST, Kind.GUEST)))
    joiner = control.Joined(id=DAVE, control=data(DAVE, "guest", kind="guest"))
    assert [told(conclusion, who) for who in (*EVERYBODY, DAVE)] == [[joiner]] * 3 + [[]]


def test_nobody_is_told_of_who_takes_over() -> None:
    assert concluded(MEETING, CONTROLLER, Enter(somebody(BOB)), at=AT + 5).announcements == ()


def test_unless_something_about_them_changed() -> None:
    conclusion = concluded(MEETING, CONTROLLER, Enter(Participant(BOB, display_name="Robert")))
    [event] = told(conclusion, CAROL)
    assert isinstance(event, control.Update)
    assert event.control.display_name == "Robert"
    assert told(conclusion, BOB) == []


@pytest.mark.parametrize("reason", ["quit", "timeout", "kicked", "banned"])
def test_the_others_are_told_of_somebody_who_goes(reason: control.LeaveReason) -> None:
    conclusion = concluded(MEETING, CONTROLLER, Depart(BOB, reason))
    assert told(conclusion, ALICE) == [control.Left(id=BOB, reason=reason)]
    assert told(conclusion, BOB) == []


def test_nobody_is_told_twice_of_somebody_who_went() -> None:
    decision = decided(MEETING, CONTROLLER, Depart(BOB))
    assert conclude(left(MEETING, BOB), decision).announcements == ()


@pytest.mark.parametrize(
    "command",
    [Enter(somebody(RECORDER, Role.GUEST, Kind.RECORDER)), Depart(RECORDER), ChangeRole(RECORDER, Role.MODERATOR)],
)
def test_nobody_else_is_told_of_a_recorder(command: AnyCommand) -> None:
    conclusion = concluded(WITH_RECORDER, CONTROLLER, command)
    assert [told(conclusion, who) for who in EVERYBODY] == [[]] * 3


def test_nor_of_one_that_comes_or_raises_a_hand() -> None:
    assert concluded(MEETING, CONTROLLER, Enter(somebody(RECORDER, kind=Kind.RECORDER))).announcements == ()
    raised = concluded(WITH_RECORDER, RECORDER, RAISE)
    assert [told(raised, who) for who in (*EVERYBODY, RECORDER)] == [[]] * 3 + [[control.HandRaised()]]


def test_a_recorder_is_told_of_its_own_role() -> None:
    conclusion = concluded(WITH_RECORDER, CONTROLLER, ChangeRole(RECORDER, Role.MODERATOR))
    assert told(conclusion, RECORDER) == [control.RoleUpdated(new_role="moderator")]


@pytest.mark.parametrize(
    ("sender", "command"),
    [
        (BOB, POPOUT),
        (CONTROLLER, Move(BOB, LEFT)),
        (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)),
        (CONTROLLER, End()),
        (CONTROLLER, NoteRoomDeleted(MAIN)),
    ],
)
def test_of_the_rest_nobody_is_told_by_an_event(sender: ParticipantId, command: AnyCommand) -> None:
    conclusion = concluded(MEETING, sender, command)
    assert (conclusion.announcements, conclusion.outcomes, conclusion.error) == ((), (), None)


# --- What may be known of people ---------------------------------------------------------------------------------


def test_people_are_shown_with_the_role_that_holds() -> None:
    state = after(MEETING, (ALICE, promote(BOB)))
    assert control_data(state, BOB) == data(BOB, "moderator")


def test_of_somebody_who_is_not_here_nothing_is_known() -> None:
    assert control_data(MEETING, DAVE) is None


def test_a_decision_concluded_after_its_target_came_back_as_guest_makes_no_moderator() -> None:
    decision = decided(MEETING, ALICE, promote(BOB))
    conclusion = conclude(joined(MEETING, somebody(BOB, Role.GUEST, Kind.GUEST)), decision)
    assert not conclusion.state.is_moderator(BOB)
    assert told(conclusion, BOB) == [control.RoleUpdated(new_role="guest")]


BOTH = frozenset({BOB, CAROL})
SPOKEN = frozenset({Source.MICROPHONE})


@pytest.mark.parametrize(
    ("effect", "is_repaired_later"),
    [
        (None, False),
        (Agree(BOTH), True),
        (Expel(BOTH), True),
        (Mute(BOTH, SPOKEN), False),
        (Mute(BOTH, SPOKEN, is_held=True), True),
        (Stop(BOTH, SPOKEN), False),
    ],
)
def test_the_sender_of_what_was_concluded_before_is_told_what_they_would_have_been_told(
    effect: Effect | None,
    is_repaired_later: bool,  # noqa: FBT001
) -> None:
    outcomes = (
        Outcome(participant=BOB, outcome="failed", error="livekit_rejected"),
        Outcome(participant=CAROL, outcome="muted"),
    )
    conclusion = concluded_before(outcomes, effect)
    assert conclusion.outcomes == outcomes
    assert conclusion.error == "livekit_unavailable"
    assert conclusion.repaired_later == ((BOB,) if is_repaired_later else ())
    assert concluded_before(outcomes[1:], effect).error is None
