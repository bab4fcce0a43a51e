import pytest

from signaling.core.changes import (
    CameSeen,
    ConnectionLost,
    Departed,
    Ended,
    Entered,
    Granted,
    HandSet,
    Moved,
    PopoutIssued,
    Restricted,
    Revoked,
    RoleGiven,
    RoomDeleted,
    TimedOut,
    Unrestricted,
)
from signaling.core.commands import (
    AnyCommand,
    ChangeRole,
    Depart,
    DepartUnlessBack,
    End,
    EndIfEmpty,
    Enter,
    LoseConnections,
    Move,
    NoteCame,
    NoteRoomDeleted,
    Reconnect,
)
from signaling.core.decisions import Decision, Refusal, refusal_of
from signaling.core.effects import Agree, Mute
from signaling.core.participants import ALL_SOURCES, SCREEN_SOURCES, Kind, Participant, Role
from signaling.core.policy import publishable
from signaling.core.state import Came, Member, Popout, new_meeting
from signaling.identifiers import CONTROLLER, BreakoutId, Identity, ParticipantId, SessionId
from signaling.messages import control, moderation
from tests.core.meetings import (
    ALICE,
    ALL,
    AT,
    BOB,
    CAROL,
    COMMAND,
    DAVE,
    DISABLE,
    GUEST,
    LEFT,
    LEFT_ROOM,
    LOWER,
    MAIN,
    MEETING,
    MICROPHONE,
    PHONE,
    POPOUT,
    RAISE,
    RECORDER,
    WITHOUT_MICROPHONE,
    WITHOUT_SCREEN,
    after,
    changed,
    conclude,
    decided,
    demote,
    enable,
    grant,
    joined,
    left,
    lower,
    mute,
    promote,
    refused,
    revoke,
    somebody,
)

FORBIDDEN = ("insufficient_permissions", None)
NOTHING = ("nothing_to_do", None)
UNKNOWN = ("invalid_command", "target: is not in this meeting")

FOR_MODERATORS: list[AnyCommand] = [
    mute(BOB),
    grant(BOB),
    revoke(BOB),
    enable(),
    DISABLE,
    promote(BOB),
    demote(ALICE),
]
FOR_MEMBERS: list[AnyCommand] = [POPOUT, RAISE, LOWER]

WITH_TWO_MODERATORS = after(MEETING, (ALICE, promote(BOB)))
WITH_GUESTS = joined(MEETING, somebody(GUEST, kind=Kind.GUEST), somebody(PHONE, kind=Kind.SIP))


# --- Who may -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", FOR_MODERATORS, ids=lambda command: command.action)
def test_a_moderators_command_is_refused_from_anybody_else(command: AnyCommand) -> None:
    for sender in (BOB, CAROL, DAVE):
        assert refused(MEETING, sender, command) == FORBIDDEN


@pytest.mark.parametrize("command", FOR_MODERATORS, ids=lambda command: command.action)
def test_a_moderator_who_left_commands_no_longer(command: AnyCommand) -> None:
    assert refused(left(MEETING, ALICE), ALICE, command) == FORBIDDEN


@pytest.mark.parametrize("command", FOR_MODERATORS, ids=lambda command: command.action)
def test_a_moderator_whose_role_was_taken_commands_no_longer(command: AnyCommand) -> None:
    state = after(WITH_TWO_MODERATORS, (BOB, demote(ALICE)))
    assert refused(state, ALICE, command) == FORBIDDEN


@pytest.mark.parametrize(
    "command",
    [mute(BOB), grant(BOB), revoke(BOB), enable(), DISABLE, promote(CAROL), demote(ALICE)],
    ids=lambda c: c.action,
)
@pytest.mark.parametrize("sender", [ALICE, BOB, CONTROLLER])
def test_moderators_and_the_controller_may(sender: ParticipantId, command: AnyCommand) -> None:
    assert decided(WITH_TWO_MODERATORS, sender, command).sender == sender


@pytest.mark.parametrize("command", FOR_MEMBERS, ids=lambda command: command.action)
def test_a_members_command_is_refused_from_whoever_has_not_joined(command: AnyCommand) -> None:
    for sender in (DAVE, CONTROLLER):
        assert refused(MEETING, sender, command) == FORBIDDEN


@pytest.mark.parametrize("sender", [ALICE, BOB])
def test_anyone_joined_gets_a_popout(sender: ParticipantId) -> None:
    assert isinstance(decided(MEETING, sender, POPOUT), Decision)


def test_the_controller_lowers_the_hands_of_others() -> None:
    raised = after(MEETING, (BOB, RAISE))
    assert not after(raised, (CONTROLLER, control.LowerHand(target=BOB))).members[BOB].hand_is_up


@pytest.mark.parametrize("command", FOR_MODERATORS, ids=lambda command: command.action)
def test_a_meeting_that_is_over_obeys_nobody(command: AnyCommand) -> None:
    for sender in (ALICE, CONTROLLER):
        assert refused(after(MEETING, (CONTROLLER, End())), sender, command) == FORBIDDEN


def test_a_meeting_that_everybody_has_left_goes_on_and_obeys_the_controller() -> None:
    assert decided(left(MEETING, ALICE, BOB, CAROL), CONTROLLER, enable()).action == "enable_microphone_restrictions"


def test_a_moderator_in_a_breakout_is_one() -> None:
    state = after(MEETING, (CONTROLLER, Move(ALICE, LEFT)))
    assert decided(state, ALICE, mute(BOB)).targets == {BOB}


# --- Refused in order: the sender may not, the target is unknown, already so ------------------------------------


@pytest.mark.parametrize("command", [promote(DAVE), demote(DAVE), lower(DAVE)], ids=lambda command: command.action)
def test_whoever_may_not_does_not_learn_whether_the_target_is_here(command: AnyCommand) -> None:
    assert refused(MEETING, BOB, command) == FORBIDDEN


@pytest.mark.parametrize("command", [promote(DAVE), demote(DAVE), lower(DAVE)], ids=lambda command: command.action)
def test_a_target_who_is_not_here_is_refused(command: AnyCommand) -> None:
    assert refused(MEETING, ALICE, command) == UNKNOWN


@pytest.mark.parametrize("command", [promote(BOB), demote(BOB), lower(BOB)], ids=lambda command: command.action)
def test_a_target_who_has_left_is_refused_though_it_is_already_so(command: AnyCommand) -> None:
    state = after(MEETING, (ALICE, promote(BOB)))
    assert refused(left(state, BOB), ALICE, command) == UNKNOWN


@pytest.mark.parametrize("command", [promote(ALICE), demote(BOB)], ids=lambda command: command.action)
def test_a_role_that_is_already_so_is_refused(command: AnyCommand) -> None:
    assert refused(MEETING, ALICE, command) == NOTHING


@pytest.mark.parametrize("command", [promote(ALICE), demote(CAROL), lower(CAROL)], ids=lambda command: command.action)
def test_whoever_may_not_does_not_learn_whether_it_is_already_so(command: AnyCommand) -> None:
    assert refused(MEETING, BOB, command) == FORBIDDEN


def test_raising_a_hand_that_is_up_and_lowering_one_that_is_down_is_no_error() -> None:
    assert decided(MEETING, BOB, LOWER).changes == (HandSet(BOB, up=False, at=AT),)
    assert decided(after(MEETING, (BOB, RAISE)), BOB, RAISE).changes == (HandSet(BOB, up=True, at=AT),)
    assert decided(MEETING, ALICE, lower(BOB)).changes == (HandSet(BOB, up=False, at=AT),)


# --- Mutes -------------------------------------------------------------------------------------------------------


def test_force_mute() -> None:
    decision = decided(MEETING, ALICE, mute(DAVE, CAROL, BOB))
    assert decision == Decision(
        command_id=COMMAND,
        action="force_mute",
        sender=ALICE,
        at=AT,
        changes=(),
        effect=Mute(frozenset({BOB, CAROL}), frozenset({MICROPHONE})),
        holds=False,
        targets=frozenset({BOB, CAROL}),
        unknown=frozenset({DAVE}),
        is_action=True,
    )


def test_moderators_may_be_muted_themselves_included() -> None:
    assert decided(WITH_TWO_MODERATORS, ALICE, mute(ALICE, BOB)).targets == {ALICE, BOB}


def test_force_mute_of_nobody_is_fine() -> None:
    assert decided(MEETING, ALICE, mute()).targets == frozenset()


# --- Screen shares -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "change"),
    [(grant(BOB, DAVE), Granted(frozenset({BOB}))), (revoke(BOB, DAVE), Revoked(frozenset({BOB})))],
    ids=["grant", "revoke"],
)
def test_people_named_in_a_grant_must_have_joined(command: AnyCommand, change: Granted | Revoked) -> None:
    decision = decided(MEETING, ALICE, command)
    assert decision.changes == (change,)
    assert decision.effect == Agree(frozenset({BOB}), SCREEN_SOURCES)
    assert decision.targets == {BOB}
    assert decision.unknown == {DAVE}
    assert not decision.holds


def test_a_grant_to_somebody_who_is_to_come_back_counts() -> None:
    state = after(MEETING, (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)))
    assert decided(state, ALICE, grant(BOB)).targets == {BOB}


def test_grants_belong_to_the_meeting_and_breakouts_inherit_them() -> None:
    state = after(MEETING, (ALICE, revoke(BOB)), (CONTROLLER, Move(BOB, LEFT)))
    assert publishable(BOB, state) == WITHOUT_SCREEN
    assert publishable(BOB, after(state, (CONTROLLER, Move(BOB, None)))) == WITHOUT_SCREEN


def test_grants_hold_at_renewal_and_reconnect() -> None:
    state = after(MEETING, (ALICE, revoke(BOB)), (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)))
    assert publishable(BOB, joined(state, somebody(BOB))) == WITHOUT_SCREEN
    assert publishable(BOB, joined(left(state, BOB), somebody(BOB))) == WITHOUT_SCREEN


# --- Restrictions ------------------------------------------------------------------------------------------------


def test_enable_microphone_restrictions_keeps_absent_people_listed() -> None:
    decision = decided(MEETING, ALICE, enable(BOB, DAVE))
    assert decision.changes == (Restricted(MICROPHONE, frozenset({BOB, DAVE})),)
    assert decision.effect == Agree(None, frozenset({MICROPHONE}))
    assert (decision.targets, decision.unknown, decision.holds) == (frozenset(), frozenset(), False)


def test_enabling_again_gives_it_to_those_now_listed() -> None:
    state = after(MEETING, (ALICE, enable(BOB)), (ALICE, enable(CAROL)))
    assert publishable(BOB, state) == WITHOUT_MICROPHONE
    assert publishable(CAROL, state) == ALL


def test_enabling_again_with_the_same_list_is_not_refused() -> None:
    state = after(MEETING, (ALICE, enable(BOB)))
    assert isinstance(decided(state, ALICE, enable(BOB)), Decision)


def test_disable_microphone_restrictions_also_when_it_was_off() -> None:
    decision = decided(MEETING, ALICE, DISABLE)
    assert decision.changes == (Unrestricted(MICROPHONE),)
    assert decision.effect == Agree(None, frozenset({MICROPHONE}))
    assert not decision.holds


def test_restrictions_belong_to_the_meeting_and_breakouts_inherit_them() -> None:
    state = after(MEETING, (ALICE, enable()), (CONTROLLER, Move(BOB, LEFT)))
    assert publishable(BOB, state) == WITHOUT_MICROPHONE
    state = joined(state, somebody(DAVE, breakout=LEFT))
    assert publishable(DAVE, state) == WITHOUT_MICROPHONE


def test_the_end_of_the_meeting_clears_grants_restrictions_and_roles() -> None:
    state = after(MEETING, (ALICE, enable()), (ALICE, revoke(BOB)), (ALICE, promote(CAROL)), (CONTROLLER, End()))
    state = joined(state, somebody(BOB), somebody(CAROL))
    assert publishable(BOB, state) == publishable(CAROL, state) == ALL
    assert not state.is_moderator(CAROL)


# --- Roles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "command", "action"),
    [
        (ALICE, promote(BOB), "grant_moderator_role"),
        (CONTROLLER, promote(BOB), "grant_moderator_role"),
        (CONTROLLER, ChangeRole(BOB, Role.MODERATOR), "change_role"),
    ],
)
def test_a_role_is_given(sender: ParticipantId, command: AnyCommand, action: str) -> None:
    decision = decided(MEETING, sender, command)
    assert decision.action == action
    assert decision.changes == (RoleGiven(BOB, Role.MODERATOR),)
    assert decision.effect == Agree(frozenset({BOB}), frozenset(ALL_SOURCES))
    assert decision.holds
    assert decision.targets == {BOB}


def test_a_role_given_outlasts_tickets_until_the_meeting_ends() -> None:
    state = after(MEETING, (ALICE, promote(BOB)))
    state = joined(left(state, BOB), somebody(BOB, Role.USER))
    assert state.is_moderator(BOB)
    state = joined(after(state, (CONTROLLER, End())), somebody(BOB, Role.USER))
    assert not state.is_moderator(BOB)


def test_a_role_taken_outlasts_tickets_too() -> None:
    state = after(WITH_TWO_MODERATORS, (BOB, demote(ALICE)))
    state = joined(left(state, ALICE), somebody(ALICE, Role.MODERATOR))
    assert not state.is_moderator(ALICE)


@pytest.mark.parametrize("target", [GUEST, PHONE])
def test_nobody_of_kind_guest_or_sip_becomes_a_moderator(target: ParticipantId) -> None:
    assert refused(WITH_GUESTS, ALICE, promote(target)) == FORBIDDEN
    assert refused(WITH_GUESTS, CONTROLLER, promote(target)) == FORBIDDEN
    assert refused(WITH_GUESTS, CONTROLLER, ChangeRole(target, Role.MODERATOR)) == FORBIDDEN


@pytest.mark.parametrize("kind", [Kind.GUEST, Kind.SIP])
def test_nor_by_coming_back_as_one(kind: Kind) -> None:
    state = after(MEETING, (ALICE, promote(BOB)))
    state = joined(state, somebody(BOB, kind=kind))
    assert refused(state, BOB, enable()) == FORBIDDEN
    assert refused(state, ALICE, demote(BOB)) == NOTHING


def test_a_moderator_cannot_revoke_the_role_of_the_last_one() -> None:
    assert refused(MEETING, ALICE, demote(ALICE)) == FORBIDDEN
    assert refused(left(WITH_TWO_MODERATORS, BOB), ALICE, demote(ALICE)) == FORBIDDEN


def test_of_two_moderators_either_may_revoke_either() -> None:
    for sender in (ALICE, BOB):
        for target in (ALICE, BOB):
            state = after(WITH_TWO_MODERATORS, (sender, demote(target)))
            assert [*state.moderators()] == [({ALICE, BOB} - {target}).pop()]


def test_a_moderator_who_is_to_come_back_is_not_missing() -> None:
    state = after(WITH_TWO_MODERATORS, (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)))
    assert decided(state, ALICE, demote(ALICE)).targets == {ALICE}


@pytest.mark.parametrize("command", [demote(ALICE), ChangeRole(ALICE, Role.USER), ChangeRole(ALICE, Role.GUEST)])
def test_the_host_and_the_controller_may_take_the_role_from_anyone(command: AnyCommand) -> None:
    assert not [*after(MEETING, (CONTROLLER, command)).moderators()]


def test_who_was_a_moderator_by_ticket_becomes_a_user() -> None:
    assert after(WITH_TWO_MODERATORS, (BOB, demote(ALICE))).role_of(ALICE) is Role.USER


def test_who_became_one_is_again_what_they_were() -> None:
    state = joined(MEETING, somebody(DAVE, Role.GUEST))
    state = after(state, (ALICE, promote(DAVE)), (ALICE, demote(DAVE)))
    assert state.role_of(DAVE) is Role.GUEST


def test_a_role_clears_the_persons_own_grant_or_revocation() -> None:
    state = after(MEETING, (ALICE, revoke(BOB)), (ALICE, promote(BOB)))
    assert publishable(BOB, state) == ALL


def test_the_host_is_told_of_unknown_people_and_of_what_is_already_so() -> None:
    assert refused(MEETING, CONTROLLER, ChangeRole(DAVE, Role.USER)) == UNKNOWN
    assert refused(MEETING, CONTROLLER, ChangeRole(BOB, Role.USER)) == NOTHING


# --- Hands -------------------------------------------------------------------------------------------------------


def test_everybody_raises_and_lowers_their_own_hand() -> None:
    decision = decided(MEETING, BOB, RAISE)
    assert decision.changes == (HandSet(BOB, up=True, at=AT),)
    assert decision.effect is None
    assert decision.holds
    state = after(MEETING, (BOB, RAISE))
    assert decided(state, BOB, LOWER).changes == (HandSet(BOB, up=False, at=AT),)
    assert decided(state, BOB, lower(BOB)).changes == (HandSet(BOB, up=False, at=AT),)


def test_a_moderator_lowers_anybodys_hand() -> None:
    assert decided(after(MEETING, (BOB, RAISE)), ALICE, lower(BOB)).changes == (HandSet(BOB, up=False, at=AT),)


def test_nobody_else_does() -> None:
    assert refused(after(MEETING, (BOB, RAISE)), CAROL, lower(BOB)) == FORBIDDEN


# --- Popouts -----------------------------------------------------------------------------------------------------


def test_a_popout_is_numbered_upwards_and_belongs_to_its_owners_room() -> None:
    state = after(MEETING, (BOB, POPOUT), (CONTROLLER, Move(BOB, LEFT)))
    assert decided(state, BOB, POPOUT).changes == (PopoutIssued(BOB, 2, Popout(Identity("bob-popout2"), LEFT_ROOM)),)
    assert decided(state, CAROL, POPOUT).changes == (PopoutIssued(CAROL, 1, Popout(Identity("carol-popout1"), MAIN)),)


def test_a_popouts_number_is_not_reused_when_its_owner_returns() -> None:
    state = joined(left(after(MEETING, (BOB, POPOUT)), BOB), somebody(BOB))
    assert decided(state, BOB, POPOUT).changes == (PopoutIssued(BOB, 2, Popout(Identity("bob-popout2"), MAIN)),)


def test_sixteen_popouts_a_person_the_oldest_is_removed() -> None:
    state = after(MEETING, *([(BOB, POPOUT)] * 17), (CAROL, POPOUT))
    assert [popout.identity for popout in state.popouts[BOB].open] == [f"bob-popout{n}" for n in range(2, 18)]
    assert len(state.popouts[CAROL].open) == 1


# --- The host ----------------------------------------------------------------------------------------------------


def test_somebody_enters() -> None:
    person = somebody(DAVE, Role.GUEST, Kind.SIP, LEFT)
    decision = decided(MEETING, CONTROLLER, Enter(person))
    member = Member(Role.GUEST, Kind.SIP, joined_at=AT, display_name="Dave", breakout=LEFT)
    assert decision.changes == (Entered(DAVE, member),)
    assert (decision.action, decision.sender, decision.holds, decision.effect) == ("join", DAVE, True, None)


def test_who_takes_over_keeps_their_place() -> None:
    state = after(MEETING, (BOB, RAISE), (BOB, POPOUT), (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)))
    taken_over = joined(state, somebody(BOB), at=AT + 5)
    member = taken_over.members[BOB]
    assert (member.joined_at, member.hand_is_up, member.returns_until) == (AT, True, None)
    assert member.hand_updated_at == AT
    assert taken_over.popouts == state.popouts


def test_who_left_begins_anew() -> None:
    state = left(after(MEETING, (BOB, RAISE)), BOB)
    member = joined(state, somebody(BOB), at=AT + 5).members[BOB]
    assert (member.joined_at, member.hand_is_up) == (AT + 5, False)


def test_who_takes_over_in_another_room_is_moved_and_their_popouts_end() -> None:
    state = after(MEETING, (BOB, POPOUT))
    decision = decided(state, CONTROLLER, Enter(somebody(BOB, breakout=LEFT)))
    assert decision.changes[0] == Moved(BOB, LEFT)
    after_it = changed(state, *decision.changes)
    assert after_it.room_of(BOB) == LEFT_ROOM
    assert after_it.popouts[BOB].open == ()


def test_who_keeps_their_room_comes_back_to_where_they_were() -> None:
    state = after(MEETING, (CONTROLLER, Move(BOB, LEFT)), (BOB, POPOUT))
    decision = decided(state, CONTROLLER, Enter(Participant(BOB, keeps_room=True)))
    [change] = decision.changes
    assert isinstance(change, Entered)
    assert change.member.breakout == LEFT
    assert changed(state, change).popouts == state.popouts


def test_who_was_not_here_and_keeps_their_room_enters_the_main_room() -> None:
    state = left(after(MEETING, (CONTROLLER, Move(BOB, LEFT))), BOB)
    assert joined(state, Participant(BOB, keeps_room=True)).room_of(BOB) == MAIN


def test_who_does_not_say_that_they_keep_it_enters_the_main_room() -> None:
    state = after(MEETING, (CONTROLLER, Move(BOB, LEFT)))
    assert joined(state, Participant(BOB)).room_of(BOB) == MAIN


def test_who_enters_as_somebody_else_is_it() -> None:
    state = joined(MEETING, somebody(BOB, Role.MODERATOR))
    assert state.is_moderator(BOB)


def test_somebody_leaves() -> None:
    decision = decided(MEETING, CONTROLLER, Depart(BOB, "kicked"))
    assert decision.changes == (Departed(BOB, AT, "kicked"),)
    assert (decision.action, decision.sender, decision.holds) == ("leave", BOB, True)
    assert decided(MEETING, CONTROLLER, Depart(BOB)).changes == (Departed(BOB, AT, "quit"),)


def test_somebodys_time_to_come_back_is_over() -> None:
    state = after(MEETING, (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)))
    decision = decided(state, CONTROLLER, DepartUnlessBack(frozenset({BOB}), AT + 10), at=AT + 11)
    assert decision.changes == (TimedOut(frozenset({BOB}), AT + 11),)
    assert (decision.sender, decision.holds) == (CONTROLLER, True)


def test_who_was_taken_for_gone_is_here_again_as_before_by_the_session_that_they_have() -> None:
    state = after(
        MEETING, (BOB, RAISE), *((CONTROLLER, Enter(somebody(who), session=SessionId(who))) for who in (BOB, CAROL))
    )
    lost = after(state, (CONTROLLER, LoseConnections(frozenset({BOB, CAROL}), AT + 10)))
    sessions = {BOB: SessionId(BOB), CAROL: SessionId("older"), ParticipantId("eve"): SessionId("eve")}
    decision = decided(lost, CONTROLLER, Reconnect(sessions))
    assert decision.changes == (Entered(BOB, state.members[BOB]),)
    again = after(lost, (CONTROLLER, Reconnect(sessions)))
    assert again.members == {**lost.members, BOB: state.members[BOB]}
    assert refused(again, CONTROLLER, Reconnect(sessions)) == ("nothing_to_do", None)


def test_nobody_is_here_again_whose_session_is_not_known() -> None:
    state = after(MEETING, (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)))
    assert state.members[BOB].session is None
    assert refused(state, CONTROLLER, Reconnect({})) == ("nothing_to_do", None)


def test_all_whose_time_is_over_are_one_decision_and_nobody_else_is() -> None:
    state = joined(MEETING, somebody(DAVE))
    state = after(state, (DAVE, RAISE), (BOB, POPOUT), (ALICE, moderation.SetPresenter(participant=BOB)))
    state = after(
        state,
        (CONTROLLER, LoseConnections(frozenset({BOB, DAVE}), AT + 10)),
        (CONTROLLER, LoseConnections(frozenset({CAROL}), AT + 20)),
    )
    command = DepartUnlessBack(frozenset({ALICE, BOB, CAROL, DAVE}), AT + 10)
    gone = after(state, (CONTROLLER, command))
    assert set(gone.members) == {ALICE, CAROL}
    assert gone.departed == {BOB, DAVE}
    assert (gone.popouts[BOB].open, gone.presenter, gone.empty_since) == ((), None, None)
    announced = conclude(state, decided(state, CONTROLLER, command)).announcements
    left = [told.event for told in announced if isinstance(told.event, control.Left)]
    assert left == [control.Left(id=who, reason="timeout") for who in (BOB, DAVE)]


def test_others_are_not_told_of_a_recorder_that_does_not_come_back() -> None:
    state = joined(MEETING, somebody(DAVE, kind=Kind.RECORDER))
    state = after(state, (CONTROLLER, LoseConnections(frozenset({DAVE}), AT + 10)))
    decision = decided(state, CONTROLLER, DepartUnlessBack(frozenset({DAVE}), AT + 10))
    assert conclude(state, decision).announcements == ()


def test_it_is_not_over_before() -> None:
    state = after(MEETING, (CONTROLLER, LoseConnections(frozenset({BOB}), AT + 10)))
    assert refused(state, CONTROLLER, DepartUnlessBack(frozenset({BOB}), AT + 9)) == NOTHING


@pytest.mark.parametrize("who", [BOB, DAVE])
def test_nor_for_who_is_back_or_gone(who: ParticipantId) -> None:
    assert refused(MEETING, CONTROLLER, DepartUnlessBack(frozenset({who}), AT + 99)) == NOTHING


def test_somebody_moves() -> None:
    decision = decided(MEETING, CONTROLLER, Move(BOB, LEFT))
    assert decision.changes == (Moved(BOB, LEFT),)
    assert (decision.action, decision.sender, decision.holds) == ("move", BOB, True)


@pytest.mark.parametrize(("breakout", "where"), [(LEFT, "to left"), (None, "to the main room")])
def test_a_move_by_the_controller_is_an_action(breakout: BreakoutId | None, where: str) -> None:
    decision = decided(MEETING, CONTROLLER, Move(BOB, breakout, is_action=True))
    assert decision.changes == (Moved(BOB, breakout),)
    assert (decision.moderator, decision.targets, decision.reason) == (CONTROLLER, frozenset({BOB}), where)
    assert decision.is_action
    told = conclude(MEETING, decision).announcements[-1].event
    assert isinstance(told, moderation.ActionTaken)
    assert (told.moderator, told.action, told.targets, told.outcomes) == (CONTROLLER, "move", (BOB,), ())


def test_a_meeting_in_which_nobody_has_been_since_then_ends() -> None:
    empty = left(left(left(MEETING, ALICE), BOB), CAROL)
    assert decided(empty, CONTROLLER, EndIfEmpty(AT)).changes == (Ended(),)
    assert refused(empty, CONTROLLER, EndIfEmpty(AT - 1)) == NOTHING
    assert refused(MEETING, CONTROLLER, EndIfEmpty(AT)) == NOTHING
    not_begun = new_meeting(MEETING.room, screen_share_requires_permission=False)
    assert refused(not_begun, CONTROLLER, EndIfEmpty(AT)) == NOTHING


def test_what_may_not_be_asked_at_all_is_told_without_deciding() -> None:
    answer = moderation.AnswerUnmuteRequest(request_id=f"{COMMAND}-1", accept=True)
    asked = after(MEETING, (ALICE, moderation.AskToUnmute(participants=(BOB,))))
    assert refusal_of(asked, BOB, answer, AT) is None
    assert refusal_of(asked, BOB, answer, AT + 61) == Refusal("unknown_request_id")
    assert refusal_of(asked, CAROL, answer, AT) == Refusal("unknown_request_id")
    assert refusal_of(MEETING, BOB, answer, AT) == Refusal("unknown_request_id")
    assert refusal_of(asked, DAVE, answer, AT) == Refusal("insufficient_permissions")
    assert refusal_of(MEETING, BOB, mute(BOB), AT) == Refusal("insufficient_permissions")
    assert refusal_of(MEETING, ALICE, mute(BOB), AT) is None
    assert refusal_of(MEETING, BOB, RAISE, AT) is None
    assert refusal_of(MEETING, BOB, Depart(BOB), AT) is None


@pytest.mark.parametrize("command", [Depart(DAVE), Move(DAVE, LEFT)])
def test_nobody_leaves_or_moves_who_is_not_here(command: AnyCommand) -> None:
    assert refused(MEETING, CONTROLLER, command) == NOTHING


def test_connections_break() -> None:
    decision = decided(MEETING, CONTROLLER, LoseConnections(frozenset({BOB, DAVE}), AT + 10))
    assert decision.changes == (ConnectionLost(frozenset({BOB}), AT + 10),)
    assert (decision.sender, decision.holds) == (CONTROLLER, True)


def test_connections_of_people_who_are_not_here_do_not_break() -> None:
    assert refused(MEETING, CONTROLLER, LoseConnections(frozenset({DAVE}), AT + 10)) == ("nothing_to_do", None)


def test_the_meeting_ends() -> None:
    decision = decided(MEETING, CONTROLLER, End())
    assert decision.changes == (Ended(),)
    assert (decision.action, decision.sender, decision.holds) == ("end", CONTROLLER, True)


def test_a_room_is_deleted() -> None:
    decision = decided(MEETING, CONTROLLER, NoteRoomDeleted(MAIN))
    assert decision.changes == (RoomDeleted(MAIN),)
    assert decision.holds


# --- What stands when LiveKit answers nothing --------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [mute(BOB), grant(BOB), revoke(BOB), enable(), DISABLE], ids=lambda command: command.action
)
def test_mutes_grants_and_restrictions_do_not_stand_when_livekit_answers_nothing(command: AnyCommand) -> None:
    assert not decided(MEETING, ALICE, command).holds


@pytest.mark.parametrize(
    "command",
    [promote(BOB), demote(BOB), ChangeRole(BOB, Role.USER), Depart(BOB), Move(BOB, LEFT), End(), Enter(somebody(DAVE))],
)
def test_roles_leaving_moving_and_the_end_always_stand(command: AnyCommand) -> None:
    state = MEETING if command == promote(BOB) else WITH_TWO_MODERATORS
    assert decided(state, CONTROLLER, command).holds


def test_a_recorder_may_be_named() -> None:
    state = joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER))
    assert decided(state, ALICE, mute(RECORDER)).targets == {RECORDER}


# --- With what strangers came ------------------------------------------------------------------------------------


def test_with_what_somebody_came_is_nothing_to_note_when_they_have_joined_or_the_meeting_is_over() -> None:
    came = Came("PA_1", frozenset({MICROPHONE}))
    eve = ParticipantId("eve")
    assert refused(MEETING, CONTROLLER, NoteCame({MAIN: {BOB: came}})) == ("nothing_to_do", None)
    both = decided(MEETING, CONTROLLER, NoteCame({MAIN: {BOB: came, eve: came}, LEFT_ROOM: {BOB: came}}))
    assert both.changes == (CameSeen({MAIN: {eve: came}}),)
    over = changed(MEETING, Ended())
    assert refused(over, CONTROLLER, NoteCame({MAIN: {eve: came}})) == ("nothing_to_do", None)
