from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signaling.core.applying import apply
from signaling.core.changes import (
    Asked,
    Banned,
    BypassNoted,
    Change,
    ConnectionLost,
    Departed,
    Ended,
    Entered,
    Granted,
    HandSet,
    Held,
    HoldsEnded,
    Moved,
    MutesForgotten,
    MutesNoted,
    PopoutIssued,
    PresenterSet,
    PutBack,
    RequestClosed,
    RequestsLapsed,
    Restricted,
    Revoked,
    RoleGiven,
    RoomDeleted,
    Unbanned,
    Unrestricted,
)
from signaling.core.participants import ALL_SOURCES, Kind, Role
from signaling.core.state import (
    POPOUTS_PER_PERSON,
    BanWas,
    Block,
    BlockCause,
    BlockWas,
    ListingWas,
    MeetingState,
    Member,
    MuteNote,
    Popout,
    Popouts,
    PresenterWas,
    RestrictionWas,
    Setting,
    UnmuteRequest,
    new_meeting,
)
from signaling.core.undo import UNDOABLE_COMMANDS, UNDOABLE_SETTINGS
from signaling.identifiers import CommandId, Identity, LiveKitRoom, ParticipantId, TrackSid, popout_identity
from signaling.messages.control import LeaveReason
from tests.core.meetings import (
    ALICE,
    BOARD,
    BOB,
    CAMERA,
    CAROL,
    DAVE,
    GUEST,
    LEFT,
    LEFT_ROOM,
    MAIN,
    MEETING,
    MICROPHONE,
    PHONE,
    RECORDER,
    RIGHT,
    SCREEN,
    SCREEN_AUDIO,
    changed,
)

EMPTY = MeetingState(BOARD)
SOMEBODY = Member(Role.USER, Kind.USER, joined_at=5.0)
ONLY_BOB = frozenset({BOB})


def popout(number: int, room: LiveKitRoom = MAIN) -> PopoutIssued:
    return PopoutIssued(BOB, number, Popout(popout_identity(BOB, number), room))


# --- What is known of people -------------------------------------------------------------------------------------


def test_somebody_who_is_not_here_is_nothing() -> None:
    assert MEETING.role_of(DAVE) is Role.GUEST
    assert not MEETING.is_moderator(DAVE)
    assert MEETING.room_of(DAVE) is None


def test_a_member_is_what_the_host_let_them_in_as() -> None:
    assert MEETING.role_of(ALICE) is Role.MODERATOR
    assert MEETING.is_moderator(ALICE)
    assert not MEETING.is_moderator(BOB)
    assert [*MEETING.moderators()] == [ALICE]


def test_a_role_given_counts_more() -> None:
    state = changed(MEETING, RoleGiven(BOB, Role.MODERATOR), RoleGiven(ALICE, Role.USER))
    assert state.role_of(ALICE) is Role.USER
    assert [*state.moderators()] == [BOB]


def test_a_role_given_makes_nobody_a_moderator_who_is_not_here() -> None:
    state = changed(MEETING, RoleGiven(DAVE, Role.MODERATOR))
    assert not state.is_moderator(DAVE)
    assert state.role_of(DAVE) is Role.GUEST
    assert [*state.moderators()] == [ALICE]


@pytest.mark.parametrize("kind", [Kind.GUEST, Kind.SIP])
def test_whoever_comes_back_as_guest_or_by_telephone_is_no_moderator(kind: Kind) -> None:
    state = changed(MEETING, RoleGiven(BOB, Role.MODERATOR), Entered(BOB, Member(Role.GUEST, kind, joined_at=5.0)))
    assert state.role_of(BOB) is Role.GUEST
    assert not state.is_moderator(BOB)
    assert [*state.moderators()] == [ALICE]
    back = changed(state, Entered(BOB, SOMEBODY))
    assert back.is_moderator(BOB)


def test_a_lesser_role_taken_from_a_guest_holds() -> None:
    state = changed(MEETING, Entered(GUEST, Member(Role.USER, Kind.GUEST, joined_at=5.0)), RoleGiven(GUEST, Role.GUEST))
    assert state.role_of(GUEST) is Role.GUEST


def test_people_belong_where_they_were_put() -> None:
    state = changed(MEETING, Moved(BOB, LEFT))
    assert (state.room_of(ALICE), state.room_of(BOB)) == (MAIN, LEFT_ROOM)
    assert state.rooms_in_use() == {MAIN, LEFT_ROOM}
    assert changed(state, Departed(BOB, 5.0, "quit")).rooms_in_use() == {MAIN}
    assert all(state.is_in_use(room) for room in (MAIN, LEFT_ROOM))
    assert not changed(state, Departed(BOB, 5.0, "quit")).is_in_use(LEFT_ROOM)


# --- Each change -------------------------------------------------------------------------------------------------


def test_entered() -> None:
    before = MeetingState(BOARD, departed=frozenset({BOB, CAROL}), empty_since=4.0)
    state = changed(before, Entered(BOB, SOMEBODY))
    assert state == MeetingState(
        BOARD, version=1, members={BOB: SOMEBODY}, departed=frozenset({CAROL}), rooms=frozenset({MAIN})
    )


def test_entered_a_breakout() -> None:
    state = changed(EMPTY, Entered(BOB, Member(Role.USER, Kind.USER, joined_at=5.0, breakout=LEFT)))
    assert state.rooms == {LEFT_ROOM}
    assert state.room_of(BOB) == LEFT_ROOM


def test_departed() -> None:
    state = changed(MEETING, Departed(BOB, 5.0, "quit"))
    assert state.members.keys() == {ALICE, CAROL}
    assert state.departed == ONLY_BOB
    assert state.empty_since is None
    assert state.rooms == {MAIN}


def test_departed_as_the_last() -> None:
    state = changed(MEETING, *(Departed(who, at, "quit") for at, who in enumerate((ALICE, BOB, CAROL))))
    assert state.members == {}
    assert state.empty_since == 2.0


def test_a_recorder_alone_leaves_a_meeting_empty() -> None:
    recorder = Member(Role.USER, Kind.RECORDER, joined_at=5.0)
    alone = changed(MeetingState(BOARD), Entered(RECORDER, recorder))
    assert (alone.empty_since, alone.goes_on) == (5.0, True)
    assert changed(alone, Entered(BOB, SOMEBODY)).empty_since is None
    assert changed(alone, Departed(RECORDER, 7.0, "quit")).empty_since == 5.0
    beside = changed(MEETING, Entered(RECORDER, recorder))
    assert beside.empty_since is None
    left_behind = changed(beside, *(Departed(who, 6.0, "quit") for who in (ALICE, BOB, CAROL)))
    assert left_behind.empty_since == 6.0
    assert changed(left_behind, Entered(RECORDER, recorder)).empty_since == 6.0


def test_departed_keeps_what_was_decided_about_them() -> None:
    state = changed(
        MEETING,
        RoleGiven(BOB, Role.MODERATOR),
        Revoked(ONLY_BOB),
        Restricted(MICROPHONE, ONLY_BOB),
        Departed(BOB, 5.0, "timeout"),
    )
    assert state.roles == {BOB: Role.MODERATOR}
    assert state.blocks == {Block(BOB, SCREEN)}
    assert state.listed == {MICROPHONE: ONLY_BOB}


def test_departed_closes_their_popouts_and_keeps_the_count() -> None:
    state = changed(MEETING, popout(1), popout(2), Departed(BOB, 5.0, "quit"))
    assert state.popouts == {BOB: Popouts(issued=2, open=())}


def test_departed_who_was_not_here() -> None:
    assert changed(MEETING, Departed(DAVE, 5.0, "quit")) is MEETING


def test_connection_lost() -> None:
    state = changed(MEETING, ConnectionLost(frozenset({BOB, DAVE}), 15.0))
    assert state.members.keys() == {ALICE, BOB, CAROL}
    assert {who: member.returns_until for who, member in state.members.items()} == {ALICE: None, BOB: 15.0, CAROL: None}
    assert state.members[BOB].joined_at == MEETING.members[BOB].joined_at


def test_moved() -> None:
    state = changed(MEETING, Moved(BOB, LEFT))
    assert state.members[BOB].breakout == LEFT
    assert state.rooms == {MAIN, LEFT_ROOM}
    assert state.departed == frozenset()
    assert changed(state, Moved(BOB, None)).room_of(BOB) == MAIN


def test_moved_closes_their_popouts() -> None:
    assert changed(MEETING, popout(1), Moved(BOB, LEFT)).popouts == {BOB: Popouts(issued=1, open=())}


@pytest.mark.parametrize("change", [Moved(BOB, None), Moved(DAVE, LEFT)])
def test_moved_to_where_they_are_or_not_here(change: Moved) -> None:
    before = changed(MEETING, popout(1))
    assert changed(before, change) is before


def test_hand_set() -> None:
    state = changed(MEETING, HandSet(BOB, up=True, at=5.0))
    assert [who for who, member in state.members.items() if member.hand_is_up] == [BOB]
    assert not changed(state, HandSet(BOB, up=False, at=6.0)).members[BOB].hand_is_up
    assert changed(MEETING, HandSet(DAVE, up=True, at=5.0)) is MEETING


def test_a_hand_keeps_when_it_went_up_or_down() -> None:
    assert MEETING.members[BOB].hand_updated_at is None
    raised = changed(MEETING, HandSet(BOB, up=True, at=5.0))
    assert raised.members[BOB].hand_updated_at == 5.0
    assert changed(raised, HandSet(BOB, up=True, at=6.0)) is raised
    lowered = changed(raised, HandSet(BOB, up=False, at=7.0))
    assert lowered.members[BOB].hand_updated_at == 7.0
    assert changed(MEETING, HandSet(BOB, up=False, at=5.0)) is MEETING


def test_role_given_clears_their_own_screen_share_grant_or_revocation() -> None:
    for who, other in ((BOB, CAROL), (CAROL, BOB)):
        state = changed(MEETING, Granted(frozenset({BOB, ALICE})), Revoked(frozenset({CAROL})))
        after = changed(state, RoleGiven(who, Role.MODERATOR))
        assert Block(who, SCREEN) not in after.blocks
        assert who not in after.listed[SCREEN]
        assert ALICE in after.listed[SCREEN]
        assert (Block(other, SCREEN) in after.blocks) is (other == CAROL)
        assert (other in after.listed[SCREEN]) is (other == BOB)


def test_role_given_leaves_the_microphones_list_alone() -> None:
    state = changed(
        MEETING, Restricted(MICROPHONE, ONLY_BOB), RoleGiven(BOB, Role.MODERATOR), RoleGiven(BOB, Role.USER)
    )
    assert state.listed == {MICROPHONE: ONLY_BOB}


def test_role_given_leaves_other_blocks_alone() -> None:
    before = MeetingState(BOARD, blocks=frozenset({Block(BOB, CAMERA), Block(BOB, SCREEN)}))
    assert changed(before, RoleGiven(BOB, Role.USER)).blocks == {Block(BOB, CAMERA)}


def test_restricted() -> None:
    state = changed(MEETING, Restricted(MICROPHONE, frozenset({BOB, DAVE})))
    assert state.restricted == {MICROPHONE}
    assert state.listed == {MICROPHONE: {BOB, DAVE}}


def test_restricted_again_replaces_the_list() -> None:
    state = changed(MEETING, Restricted(MICROPHONE, ONLY_BOB), Restricted(MICROPHONE, frozenset({CAROL})))
    assert state.listed == {MICROPHONE: {CAROL}}


def test_restricted_screens_replace_the_grants() -> None:
    state = changed(MEETING, Granted(ONLY_BOB), Restricted(SCREEN, frozenset({DAVE})))
    assert state.listed == {SCREEN: {DAVE}}


def test_granted_and_revoked_change_the_list_of_restricted_screens() -> None:
    state = changed(
        MEETING, Restricted(SCREEN, frozenset({DAVE, CAROL})), Granted(ONLY_BOB), Revoked(frozenset({CAROL}))
    )
    assert state.listed == {SCREEN: {BOB, DAVE}}
    assert state.blocks == {Block(CAROL, SCREEN)}


def test_unrestricted() -> None:
    state = changed(MEETING, Restricted(MICROPHONE, ONLY_BOB), Restricted(CAMERA, ONLY_BOB), Unrestricted(MICROPHONE))
    assert state.restricted == {CAMERA}
    assert state.listed == {CAMERA: ONLY_BOB}


def test_unrestricted_screens_keep_their_list() -> None:
    state = changed(MEETING, Restricted(SCREEN, ONLY_BOB), Unrestricted(SCREEN))
    assert state.restricted == frozenset()
    assert state.listed == {SCREEN: ONLY_BOB}


def test_unrestricted_screens_go_back_to_the_servers_default_where_the_list_counts_again() -> None:
    state = new_meeting(BOARD, screen_share_requires_permission=True)
    state = changed(state, Granted(ONLY_BOB), Unrestricted(SCREEN))
    assert state.restricted == {SCREEN}
    assert state.listed == {SCREEN: ONLY_BOB}


def test_unrestricted_what_was_not() -> None:
    assert changed(MEETING, Unrestricted(MICROPHONE)) is MEETING


def test_grants_made_while_sharing_is_free_are_remembered() -> None:
    state = changed(MEETING, Granted(ONLY_BOB))
    assert SCREEN not in state.restricted
    assert state.listed == {SCREEN: ONLY_BOB}


def test_granted_lifts_a_revocation() -> None:
    state = changed(MEETING, Revoked(frozenset({BOB, CAROL})), Granted(ONLY_BOB))
    assert state.blocks == {Block(CAROL, SCREEN)}
    assert state.listed == {SCREEN: ONLY_BOB}


def test_revoked_takes_a_grant_away() -> None:
    state = changed(MEETING, Granted(frozenset({BOB, CAROL})), Revoked(ONLY_BOB))
    assert state.blocks == {Block(BOB, SCREEN)}
    assert state.listed == {SCREEN: {CAROL}}


def test_popout_issued() -> None:
    state = changed(MEETING, popout(1), popout(2, LEFT_ROOM))
    assert state.popouts == {
        BOB: Popouts(issued=2, open=(Popout(Identity("bob-popout1"), MAIN), Popout(Identity("bob-popout2"), LEFT_ROOM)))
    }


def test_the_seventeenth_popout_closes_the_oldest() -> None:
    state = changed(MEETING, *(popout(number) for number in range(1, 18)))
    assert state.popouts[BOB].issued == 17
    assert [opened.identity for opened in state.popouts[BOB].open] == [f"bob-popout{n}" for n in range(2, 18)]
    assert POPOUTS_PER_PERSON == 16


def test_a_popouts_number_is_not_used_again() -> None:
    state = changed(MEETING, popout(1), popout(2), Moved(BOB, LEFT))
    assert changed(state, popout(2, LEFT_ROOM)) is state


def test_ended_clears_everything_and_dooms_every_room_ever_used() -> None:
    state = changed(
        MEETING,
        Moved(BOB, LEFT),
        Moved(BOB, RIGHT),
        Restricted(MICROPHONE, ONLY_BOB),
        Granted(ONLY_BOB),
        Revoked(frozenset({CAROL})),
        RoleGiven(BOB, Role.MODERATOR),
        popout(1),
        Departed(CAROL, 5.0, "quit"),
    )
    after = changed(state, Ended())
    doomed = frozenset({MAIN, LEFT_ROOM, LiveKitRoom("board:right")})
    assert after == MeetingState(BOARD, version=state.version + 1, doomed=doomed)


def test_ended_keeps_what_is_doomed_already() -> None:
    after = changed(MeetingState(BOARD, doomed=frozenset({LEFT_ROOM}), rooms=frozenset({MAIN})), Ended())
    assert after.doomed == {MAIN, LEFT_ROOM}


@pytest.mark.parametrize("by_permission", [True, False])
def test_ended_goes_back_to_the_servers_default(by_permission: bool) -> None:  # noqa: FBT001 - a parameter of the test
    begun = new_meeting(BOARD, screen_share_requires_permission=by_permission)
    ended = changed(
        begun, Entered(BOB, SOMEBODY), Restricted(SCREEN, ONLY_BOB), Restricted(MICROPHONE, ONLY_BOB), Ended()
    )
    assert ended.restricted == begun.restricted == ended.restricted_by_default
    assert ended.listed == {}


def test_room_deleted() -> None:
    before = MeetingState(BOARD, doomed=frozenset({MAIN, LEFT_ROOM}))
    assert changed(before, RoomDeleted(MAIN)) == MeetingState(BOARD, version=1, doomed=frozenset({LEFT_ROOM}))
    assert changed(before, RoomDeleted(LiveKitRoom("board:right"))) is before


# --- Blocks, holds and bypasses ----------------------------------------------------------------------------------


def test_restricted_for_a_while() -> None:
    state = changed(MEETING, Restricted(MICROPHONE, ONLY_BOB, 50.0))
    assert state.restricted_until == {MICROPHONE: 50.0}
    assert changed(state, Restricted(MICROPHONE, ONLY_BOB)).restricted_until == {}
    assert changed(state, Unrestricted(MICROPHONE)).restricted_until == {}
    assert changed(state, Restricted(CAMERA, ONLY_BOB, 60.0)).restricted_until == {MICROPHONE: 50.0, CAMERA: 60.0}


def test_granted_lists_for_a_microphone_only_while_it_is_restricted() -> None:
    assert changed(MEETING, Granted(ONLY_BOB, MICROPHONE)) is MEETING
    state = changed(MEETING, Restricted(MICROPHONE, frozenset({CAROL})), Granted(ONLY_BOB, MICROPHONE))
    assert state.listed == {MICROPHONE: {BOB, CAROL}}


def test_revoked_of_any_source_takes_off_the_list_and_blocks() -> None:
    state = changed(MEETING, Restricted(MICROPHONE, frozenset({BOB, CAROL})), Revoked(ONLY_BOB, MICROPHONE))
    assert state.listed == {MICROPHONE: {CAROL}}
    assert state.blocks == {Block(BOB, MICROPHONE)}


def test_held_until_and_longer() -> None:
    state = changed(MEETING, Held(frozenset({BOB, CAROL}), frozenset({MICROPHONE, CAMERA}), 50.0))
    state = changed(state, Held(ONLY_BOB, frozenset({CAMERA}), 60.0))
    assert state.holds == {BOB: {MICROPHONE: 50.0, CAMERA: 60.0}, CAROL: {MICROPHONE: 50.0, CAMERA: 50.0}}
    assert changed(state, HoldsEnded(49.9)) is state
    assert changed(state, HoldsEnded(50.0)).holds == {BOB: {CAMERA: 60.0}}
    assert changed(state, HoldsEnded(60.0)).holds == {}
    assert changed(MEETING, Held(ONLY_BOB, frozenset(), 50.0)) is MEETING


def test_granted_lifts_holds_on_both_sources_of_a_screen() -> None:
    state = changed(MEETING, Held(ONLY_BOB, frozenset({SCREEN, SCREEN_AUDIO, CAMERA}), 50.0), Granted(ONLY_BOB))
    assert state.holds == {BOB: {CAMERA: 50.0}}


def test_a_bypass_is_counted_once_a_track_and_for_the_whole_meeting() -> None:
    first = changed(MEETING, BypassNoted(BOB, CAMERA, TrackSid("TR_1"), "audio"))
    assert first.blocks == {Block(BOB, CAMERA, BlockCause.BYPASS)}
    assert changed(first, BypassNoted(BOB, CAMERA, TrackSid("TR_1"), "audio")) is first
    state = changed(first, Granted(ONLY_BOB, CAMERA), BypassNoted(BOB, MICROPHONE, TrackSid("TR_2"), "video"))
    assert state.bypasses == {BOB: {"TR_1", "TR_2"}}
    assert state.blocks == {Block(BOB, MICROPHONE, BlockCause.BYPASS)}


# --- Bans and the presenter --------------------------------------------------------------------------------------


def test_banned_and_unbanned() -> None:
    state = changed(MEETING, Banned(frozenset({BOB, DAVE})), Unbanned(frozenset({DAVE, CAROL})))
    assert state.bans == ONLY_BOB


def test_presenter_set_to_somebody_who_is_here() -> None:
    state = changed(MEETING, PresenterSet(BOB))
    assert state.presenter == BOB
    assert changed(state, PresenterSet(DAVE)) is state
    assert changed(state, PresenterSet(None)).presenter is None


def test_a_presenter_who_leaves_ends_it_and_one_whose_connection_broke_does_not() -> None:
    state = changed(MEETING, PresenterSet(BOB))
    assert changed(state, Departed(BOB, 5.0, "timeout")).presenter is None
    assert changed(state, Departed(CAROL, 5.0, "quit")).presenter == BOB
    assert changed(state, ConnectionLost(ONLY_BOB, 15.0)).presenter == BOB


@pytest.mark.parametrize(("reason", "is_kept_out"), [("kicked", True), ("banned", True), ("quit", False)])
def test_departed_who_never_joined_is_kept_out_if_somebody_wanted_it(reason: LeaveReason, *, is_kept_out: bool) -> None:
    assert (DAVE in changed(MEETING, Departed(DAVE, 5.0, reason)).departed) is is_kept_out


# --- Requests and mutes ------------------------------------------------------------------------------------------

ASKED = changed(
    MEETING, Asked("r-1", UnmuteRequest(BOB, ALICE, 65.0), 5), Asked("r-2", UnmuteRequest(CAROL, ALICE, 70.0), 10)
)


def test_asked_again_by_the_same_moderator_forgets_the_older_request() -> None:
    state = changed(
        ASKED, Asked("r-3", UnmuteRequest(BOB, ALICE, 80.0), 20), Asked("r-4", UnmuteRequest(BOB, DAVE, 80.0), 20)
    )
    assert state.unmute_requests.keys() == {"r-2", "r-3", "r-4"}


@pytest.mark.parametrize(
    ("change", "remaining"),
    [
        (RequestClosed("r-1", was_accepted=True), {"r-2"}),
        (RequestsLapsed(65.0), {"r-2"}),
        (RequestsLapsed(64.9), {"r-1", "r-2"}),
        (Departed(ALICE, 5.0, "quit"), set()),
        (Departed(BOB, 5.0, "quit"), {"r-2"}),
        (RoleGiven(ALICE, Role.USER), set()),
        (RoleGiven(ALICE, Role.MODERATOR), {"r-1", "r-2"}),
        (RoleGiven(BOB, Role.USER), {"r-1", "r-2"}),
    ],
)
def test_a_request_ends(change: Change, remaining: set[str]) -> None:
    assert changed(ASKED, change).unmute_requests.keys() == remaining


def test_mutes_are_remembered_for_a_minute() -> None:
    state = changed(MEETING, MutesNoted({BOB: frozenset({MICROPHONE}), CAROL: frozenset({CAMERA})}, 10.0))
    assert state.mutes == {BOB: MuteNote(10.0, frozenset({MICROPHONE})), CAROL: MuteNote(10.0, frozenset({CAMERA}))}
    assert changed(state, MutesForgotten(ONLY_BOB)).mutes.keys() == {CAROL}
    assert changed(state, Departed(BOB, 5.0, "quit")).mutes.keys() == {CAROL}
    assert changed(state, MutesNoted({BOB: frozenset({CAMERA})}, 70.0)).mutes == {
        BOB: MuteNote(70.0, frozenset({CAMERA}))
    }


# --- Undoing -----------------------------------------------------------------------------------------------------

EACH_SETTING: list[tuple[tuple[Change, ...], Change]] = [
    ((), Restricted(MICROPHONE, frozenset({BOB, DAVE}), 50.0)),
    ((Restricted(MICROPHONE, ONLY_BOB, 50.0),), Restricted(MICROPHONE, frozenset({CAROL}))),
    ((Restricted(MICROPHONE, ONLY_BOB, 50.0),), Unrestricted(MICROPHONE)),
    ((Restricted(SCREEN, ONLY_BOB),), Granted(frozenset({CAROL}))),
    ((Granted(ONLY_BOB),), Revoked(ONLY_BOB)),
    ((), Revoked(ONLY_BOB, CAMERA)),
    ((), Held(ONLY_BOB, frozenset({MICROPHONE, CAMERA}), 50.0)),
    ((Held(ONLY_BOB, frozenset({MICROPHONE}), 50.0),), Held(ONLY_BOB, frozenset({MICROPHONE}), 60.0)),
    ((BypassNoted(BOB, CAMERA, TrackSid("TR_1"), "audio"),), Granted(ONLY_BOB, CAMERA)),
    ((), PresenterSet(BOB)),
    ((PresenterSet(BOB),), PresenterSet(CAROL)),
    ((PresenterSet(BOB),), PresenterSet(None)),
    ((), Banned(frozenset({DAVE}))),
    ((Banned(frozenset({DAVE})),), Unbanned(frozenset({DAVE}))),
]
FIRST, SECOND = CommandId("c-first"), CommandId("c-second")


def settings_of(state: MeetingState) -> MeetingState:
    """What can be undone, and nothing else of a state."""
    return replace(state, version=0, undoable={}, bypasses={}, came={}, unmute_requests={})


@pytest.mark.parametrize(("before", "change"), EACH_SETTING)
def test_what_a_command_changed_can_be_put_back(before: tuple[Change, ...], change: Change) -> None:
    state = changed(MEETING, *before)
    after = apply(state, [change], command_id=FIRST)
    assert settings_of(after) != settings_of(state)
    assert settings_of(changed(after, PutBack(after.undoable[FIRST]))) == settings_of(state)


@pytest.mark.parametrize(("before", "change"), EACH_SETTING)
def test_what_was_changed_again_since_cannot_even_if_it_is_as_it_was(
    before: tuple[Change, ...], change: Change
) -> None:
    state = changed(MEETING, *before)
    after = apply(state, [change], command_id=FIRST)
    back = changed(after, PutBack(after.undoable[FIRST]))
    again = apply(back, [change], command_id=SECOND)
    assert again.undoable[FIRST] == ()
    assert again.undoable[SECOND] == after.undoable[FIRST]


def test_only_what_was_not_changed_since_can_be_put_back() -> None:
    state = apply(MEETING, [Restricted(MICROPHONE, frozenset({BOB, CAROL}))], command_id=FIRST)
    state = apply(state, [Revoked(ONLY_BOB, MICROPHONE)], command_id=SECOND)
    assert state.undoable[FIRST] == (
        RestrictionWas(MICROPHONE, was_set=False),
        ListingWas(MICROPHONE, CAROL, was_set=False),
    )
    assert state.undoable[SECOND] == (
        ListingWas(MICROPHONE, BOB, was_set=True),
        BlockWas(Block(BOB, MICROPHONE), was_set=False),
    )


def test_what_ends_by_itself_or_leaves_was_changed_too() -> None:
    state = apply(MEETING, [PresenterSet(BOB)], command_id=FIRST)
    assert changed(state, Departed(BOB, 5.0, "quit")).undoable == {FIRST: ()}


def test_a_command_that_changed_nothing_of_this_kind_is_not_remembered() -> None:
    assert apply(MEETING, [HandSet(BOB, up=True, at=5.0)], command_id=FIRST).undoable == {}


def test_a_ban_is_not_put_back_on_who_has_come_in_again() -> None:
    state = changed(MEETING, PutBack((BanWas(BOB, was_set=True), BanWas(DAVE, was_set=True))))
    assert state.bans == {DAVE}
    assert changed(MEETING, PutBack((PresenterWas(DAVE),))) is MEETING


def test_only_the_newest_commands_are_remembered() -> None:
    state = MEETING
    for number in range(UNDOABLE_COMMANDS + 1):
        change = Restricted(CAMERA, ONLY_BOB) if number % 2 else Unrestricted(CAMERA)
        state = apply(
            state,
            [change, Restricted(MICROPHONE, frozenset({ParticipantId(f"p{number}")}))],
            command_id=CommandId(f"c-{number}"),
        )
    assert [*state.undoable] == [f"c-{number}" for number in range(1, UNDOABLE_COMMANDS + 1)]


def test_the_very_newest_is_remembered_however_much_it_changed() -> None:
    crowd = frozenset(ParticipantId(f"p{number}") for number in range(UNDOABLE_SETTINGS + 1))
    state = apply(MEETING, [PresenterSet(BOB)], command_id=FIRST)
    state = apply(state, [Restricted(MICROPHONE, crowd)], command_id=SECOND)
    assert [*state.undoable] == [SECOND]
    assert len(state.undoable[SECOND]) == UNDOABLE_SETTINGS + 2


# --- All changes -------------------------------------------------------------------------------------------------


def test_the_version_goes_up_by_one_however_many_changes_there_are() -> None:
    state = changed(MEETING, HandSet(BOB, up=True, at=5.0), HandSet(CAROL, up=True, at=5.0))
    assert state.version == MEETING.version + 1


def test_the_version_stays_when_nothing_differs() -> None:
    assert changed(MEETING) is MEETING
    assert changed(MEETING, HandSet(BOB, up=False, at=5.0), HandSet(CAROL, up=False, at=5.0)) is MEETING


PEOPLE = st.sampled_from([ALICE, BOB, CAROL, DAVE, PHONE])
SOME = st.frozensets(PEOPLE, max_size=3)
BREAKOUTS = st.sampled_from([None, LEFT, RIGHT])
SOURCES = st.sampled_from([CAMERA, MICROPHONE, SCREEN])
MEMBERS = st.builds(
    Member,
    role=st.sampled_from(Role),
    kind=st.sampled_from(Kind),
    joined_at=st.sampled_from([1.0, 2.0]),
    breakout=BREAKOUTS,
    hand_is_up=st.booleans(),
    hand_updated_at=st.sampled_from([None, 1.0, 2.0]),
)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(Entered, PEOPLE, MEMBERS),
    st.builds(Departed, PEOPLE, st.sampled_from([3.0, 4.0]), st.just("quit")),
    st.builds(ConnectionLost, SOME, st.sampled_from([13.0, 14.0])),
    st.builds(Moved, PEOPLE, BREAKOUTS),
    st.builds(HandSet, PEOPLE, st.booleans()),
    st.builds(RoleGiven, PEOPLE, st.sampled_from(Role)),
    st.builds(Restricted, SOURCES, SOME),
    st.builds(Unrestricted, SOURCES),
    st.builds(Restricted, SOURCES, SOME, st.sampled_from([20.0, 30.0])),
    st.builds(Granted, SOME, SOURCES),
    st.builds(Revoked, SOME, SOURCES),
    st.builds(Held, SOME, st.frozensets(st.sampled_from([*ALL_SOURCES])), st.sampled_from([20.0, 30.0])),
    st.builds(HoldsEnded, st.sampled_from([20.0, 30.0])),
    st.builds(BypassNoted, PEOPLE, SOURCES, st.sampled_from(["TR_1", "TR_2"]).map(TrackSid), st.just("audio")),
    st.builds(PresenterSet, st.none() | PEOPLE),
    st.builds(Banned, SOME),
    st.builds(Unbanned, SOME),
    st.builds(
        Asked,
        st.sampled_from(["r-1", "r-2", "r-3"]),
        st.builds(UnmuteRequest, PEOPLE, PEOPLE, st.sampled_from([20.0, 30.0])),
    ),
    st.builds(RequestClosed, st.sampled_from(["r-1", "r-2", "r-3"]), st.booleans()),
    st.builds(RequestsLapsed, st.sampled_from([20.0, 30.0])),
    st.builds(
        MutesNoted,
        st.dictionaries(PEOPLE, st.frozensets(SOURCES, min_size=1), max_size=3),
        st.sampled_from([20.0, 100.0]),
    ),
    st.builds(MutesForgotten, SOME),
    st.lists(st.one_of(*(st.from_type(setting) for setting in get_args(Setting))), max_size=3).map(
        lambda settings: PutBack(tuple(settings))
    ),
    st.integers(1, 20).map(popout),
    st.just(Ended()),
    st.builds(RoomDeleted, st.sampled_from([MAIN, LEFT_ROOM])),
)


@settings(deadline=None, max_examples=200)
@given(before=st.lists(CHANGES, max_size=20), change=CHANGES)
def test_applying_a_change_twice_is_applying_it_once(before: list[Change], change: Change) -> None:
    once = apply(apply(MEETING, before), [change])
    assert apply(once, [change]) is once


@settings(deadline=None, max_examples=100)
@given(history=st.lists(CHANGES, max_size=30))
def test_the_version_goes_up_exactly_when_something_differs(history: list[Change]) -> None:
    state = MEETING
    for change in history:
        after = apply(state, [change])
        assert (after.version == state.version) is (after is state)
        assert after.version - state.version in {0, 1}
        assert MeetingState.__eq__(after, state) is (after is state)
        state = after


@settings(deadline=None, max_examples=100)
@given(history=st.lists(CHANGES, max_size=20), people=SOME)
def test_what_was_last_decided_by_name_holds(history: list[Change], people: frozenset[ParticipantId]) -> None:
    state = apply(MEETING, history)
    blocks = {Block(who, SCREEN) for who in people}
    granted = apply(state, [Granted(people)])
    assert granted.listed[SCREEN] >= people
    assert not granted.blocks & blocks
    revoked = apply(granted, [Revoked(people)])
    assert not revoked.listed[SCREEN] & people
    assert revoked.blocks >= blocks


UNDOABLE = st.one_of(
    st.builds(Restricted, SOURCES, SOME, st.none() | st.sampled_from([20.0, 30.0])),
    st.builds(Unrestricted, SOURCES),
    st.builds(Granted, SOME, SOURCES),
    st.builds(Revoked, SOME, SOURCES),
    st.builds(Held, SOME, st.frozensets(st.sampled_from([*ALL_SOURCES])), st.sampled_from([20.0, 30.0])),
    st.builds(HoldsEnded, st.sampled_from([20.0, 30.0])),
    st.builds(PresenterSet, st.none() | PEOPLE),
)


def without_empty_lists(state: MeetingState) -> MeetingState:
    return replace(state, listed={source: named for source, named in state.listed.items() if named})


@settings(deadline=None, max_examples=300)
@given(before=st.lists(CHANGES, max_size=15), changes=st.lists(UNDOABLE, min_size=1, max_size=4))
def test_whatever_a_command_changed_can_be_put_back(before: list[Change], changes: list[Change]) -> None:
    # What is listed for a source that anybody may publish, but for the screen, counts for nothing and is not kept.
    state = apply(MEETING, [*before, PutBack(())])
    after = apply(state, changes, command_id=FIRST)
    back = apply(after, [PutBack(after.undoable.get(FIRST, ()))])
    assert without_empty_lists(settings_of(back)) == without_empty_lists(settings_of(state))


@settings(deadline=None, max_examples=100)
@given(history=st.lists(CHANGES, max_size=30))
def test_nobody_is_both_here_and_gone(history: list[Change]) -> None:
    state = apply(MEETING, history)
    assert not state.departed & set(state.members)
    assert state.rooms_in_use() <= state.rooms
    is_somebody_here = any(member.kind is not Kind.RECORDER for member in state.members.values())
    assert not (is_somebody_here and state.empty_since is not None)
    assert is_somebody_here or not state.members or state.empty_since is not None
    assert state.presenter in {None, *state.members}
    assert state.restricted_until.keys() <= state.restricted
    assert all(state.holds.values())
    assert all(len(popouts.open) <= POPOUTS_PER_PERSON for popouts in state.popouts.values())
