from dataclasses import replace

import pytest

from signaling.core.changes import (
    Banned,
    CameSeen,
    Change,
    Departed,
    Granted,
    Held,
    HoldsEnded,
    MutesNoted,
    PresenterSet,
    PutBack,
    Restricted,
    Revoked,
    Unrestricted,
)
from signaling.core.commands import End, Move
from signaling.core.effects import Allow, Finding, Permission, Presence, Priority, Remove, Track
from signaling.core.enforcement import (
    call_for,
    is_plain,
    left_by_others,
    must_wait,
    owner_of,
    plan,
    silencing,
    strangers,
    unmuted_again,
    unnoted,
)
from signaling.core.participants import Kind, LiveKitKind, Role, Source
from signaling.core.state import Block, BlockWas, Came, MeetingState
from signaling.identifiers import CONTROLLER, Identity, LiveKitRoom, ParticipantId, TrackSid
from signaling.messages import moderation
from tests.core.meetings import (
    ALICE,
    ALL,
    BOB,
    CAMERA,
    CAROL,
    DAVE,
    LEFT,
    LEFT_ROOM,
    MAIN,
    MEETING,
    MICROPHONE,
    POPOUT,
    RECORDER,
    SCREEN,
    WITHOUT_MICROPHONE,
    WITHOUT_SCREEN,
    after,
    allowing,
    carried_out,
    changed,
    enable,
    joined,
    left,
    present,
    promote,
    somebody,
    track,
)


def with_left_room(state: MeetingState) -> MeetingState:
    return replace(state, rooms=state.rooms | {LEFT_ROOM})


RESTRICTED = after(MEETING, (ALICE, enable()))
ABOUT_MICROPHONES = frozenset({MICROPHONE})


# --- Nobody who agrees gets a call ------------------------------------------------------------------------------


def test_nobody_who_agrees_gets_a_call() -> None:
    roster = [present(ALICE, *ALL), present(BOB, *WITHOUT_MICROPHONE), present(CAROL, *WITHOUT_MICROPHONE)]
    assert plan(RESTRICTED, roster) == []


def test_nobody_in_livekit_nobody_told() -> None:
    assert plan(RESTRICTED, []) == []


def test_whoever_does_not_agree_is_told_what_they_may_publish() -> None:
    roster = [present(ALICE, *ALL), present(BOB, *ALL), present(CAROL)]
    assert plan(RESTRICTED, roster) == [
        Allow(MAIN, Identity(BOB), WITHOUT_MICROPHONE, Priority.IDLE),
        Allow(MAIN, Identity(CAROL), WITHOUT_MICROPHONE, Priority.IDLE),
    ]


@pytest.mark.parametrize(
    ("permission", "allowed", "agrees"),
    [
        (Permission(can_publish=True, sources=ALL), ALL, True),
        (Permission(can_publish=True, sources=()), ALL, False),
        (Permission(can_publish=False, sources=ALL), ALL, False),
        (Permission(can_publish=True, sources=(MICROPHONE, CAMERA)), (CAMERA, MICROPHONE), False),
        (Permission(can_publish=True, sources=(CAMERA, CAMERA)), (CAMERA,), False),
        (Permission(can_publish=True, sources=(CAMERA, None)), (CAMERA,), False),
        (Permission(can_publish=True, sources=(CAMERA,)), (CAMERA,), True),
        (Permission(can_publish=False, sources=()), (), True),
        (Permission(can_publish=False, sources=(CAMERA,)), (), True),
        (Permission(can_publish=True, sources=()), (), False),
    ],
)
def test_to_agree_is_what_livekit_takes_for_no_change(
    permission: Permission, allowed: tuple[Source, ...], *, agrees: bool
) -> None:
    assert permission.allows_exactly(allowed) is agrees


def test_to_allow_nothing_is_told_as_nothing() -> None:
    state = changed(MEETING, *(Restricted(source, frozenset()) for source in (CAMERA, MICROPHONE, SCREEN)))
    assert plan(state, [present(BOB, *ALL)]) == [Allow(MAIN, Identity(BOB), (), Priority.IDLE)]
    assert plan(state, [present(BOB)]) == []


def test_who_may_publish_nothing_must_not_keep_an_empty_list_which_means_all() -> None:
    state = changed(MEETING, *(Restricted(source, frozenset()) for source in (CAMERA, MICROPHONE, SCREEN)))
    presence = Presence(MAIN, Identity(BOB), Permission(can_publish=True, sources=()))
    assert call_for(state, presence) == Allow(MAIN, Identity(BOB), (), Priority.IDLE)


def test_what_was_decided_by_name_is_told_too() -> None:
    state = changed(
        MEETING, Revoked(frozenset({ALICE, BOB})), Restricted(SCREEN, frozenset()), Granted(frozenset({CAROL}))
    )
    roster = [present(ALICE, *WITHOUT_SCREEN), present(BOB, *ALL), present(CAROL, *WITHOUT_SCREEN)]
    state = changed(state, Revoked(frozenset({ALICE, BOB})))
    assert {(call.identity, call.sources) for call in plan(state, roster) if isinstance(call, Allow)} == {
        (Identity(BOB), WITHOUT_SCREEN),
        (Identity(CAROL), ALL),
    }


# --- Popouts: as issued, not by the look of a name ---------------------------------------------------------------

WITH_POPOUT = after(RESTRICTED, (BOB, POPOUT))


def test_an_issued_popout_is_left_alone() -> None:
    assert plan(WITH_POPOUT, [present("bob-popout1", is_service=True), present("bob-popout1")]) == []
    assert plan(WITH_POPOUT, [present("bob-popout1")], remove_unknown=True) == []


def test_a_popout_that_may_publish_is_not_as_it_was_issued() -> None:
    assert plan(WITH_POPOUT, [present("bob-popout1", *ALL)]) == [Allow(MAIN, Identity("bob-popout1"), ())]


@pytest.mark.parametrize(
    "identity", ["bob-popout2", "bob-popout0", "bob-popout01", "bob-popout1 ", "carol-popout1", "-popout1"]
)
def test_what_only_looks_like_a_popout_is_somebody_unknown(identity: str) -> None:
    assert plan(WITH_POPOUT, [present(identity, *ALL)]) == [
        Allow(MAIN, Identity(identity), WITHOUT_MICROPHONE, Priority.IDLE)
    ]
    assert plan(WITH_POPOUT, [present(identity, *ALL)], remove_unknown=True) == [Remove(MAIN, Identity(identity))]


def test_the_oldest_of_too_many_popouts_is_removed() -> None:
    state = after(MEETING, *([(BOB, POPOUT)] * 17))
    roster = [present(f"bob-popout{number}", is_service=True) for number in range(1, 18)]
    assert plan(state, roster) == [Remove(MAIN, Identity("bob-popout1"))]


def test_popouts_of_somebody_who_left_are_removed() -> None:
    assert plan(left(WITH_POPOUT, BOB), [present("bob-popout1", is_service=True)]) == [
        Remove(MAIN, Identity("bob-popout1"))
    ]


def test_popouts_do_not_stay_behind_when_their_owner_moves() -> None:
    state = after(WITH_POPOUT, (CONTROLLER, Move(BOB, LEFT)))
    for room in (MAIN, LEFT_ROOM):
        assert plan(state, [present("bob-popout1", room=room)]) == [Remove(room, Identity("bob-popout1"))]


def test_a_popout_in_another_room_than_it_was_issued_for_is_removed() -> None:
    state = with_left_room(WITH_POPOUT)
    assert plan(state, [present("bob-popout1", room=LEFT_ROOM)]) == [Remove(LEFT_ROOM, Identity("bob-popout1"))]


@pytest.mark.parametrize(
    ("identity", "owner"),
    [
        ("bob", "bob"),
        ("bob-popout1", "bob"),
        ("bob-popout2", "bob-popout2"),
        ("bob-popout01", "bob-popout01"),
        ("carol-popout1", "carol-popout1"),
        ("dave", "dave"),
    ],
)
def test_a_popout_counts_as_its_owners(identity: str, owner: str) -> None:
    assert owner_of(Identity(identity), WITH_POPOUT) == owner


# --- Recorders and other services --------------------------------------------------------------------------------


def test_a_recorder_is_left_alone() -> None:
    state = joined(RESTRICTED, somebody(RECORDER, kind=Kind.RECORDER))
    for sources in (ALL, (), (CAMERA,)):
        assert plan(state, [present(RECORDER, *sources, is_service=True)], remove_unknown=True) == []


def test_hidden_and_service_participants_are_left_alone() -> None:
    assert plan(RESTRICTED, [present("EG_abc", *ALL, is_service=True)]) == []
    assert plan(RESTRICTED, [present("EG_abc", *ALL, is_service=True)], remove_unknown=True) == []


def test_a_member_is_no_service_by_being_hidden() -> None:
    assert plan(RESTRICTED, [present(BOB, *ALL, is_service=True)]) == [
        Allow(MAIN, Identity(BOB), WITHOUT_MICROPHONE, Priority.IDLE)
    ]


def test_a_recorder_in_the_wrong_room_is_removed() -> None:
    state = with_left_room(joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER)))
    presence = present(RECORDER, *ALL, room=LEFT_ROOM, is_service=True)
    assert plan(state, [presence]) == [Remove(LEFT_ROOM, Identity(RECORDER))]


# --- Who has no business there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", ["bob#x", "alice#", "recorder#2", "dave#x", "eve#1#x", "bob-popout1#x"])
@pytest.mark.parametrize("is_service", [True, False])
def test_a_second_session_is_removed(identity: str, *, is_service: bool) -> None:
    state = joined(WITH_POPOUT, somebody(RECORDER, kind=Kind.RECORDER), somebody(DAVE))
    state = changed(left(state, DAVE), Banned(frozenset({ParticipantId("eve#1")})))
    assert plan(state, [present(identity, *WITHOUT_MICROPHONE, is_service=is_service)]) == [
        Remove(MAIN, Identity(identity))
    ]


@pytest.mark.parametrize("identity", ["#", "wumpus#1234", "studio #1", "sip_0301234#22", "helper#2", "bobby#x", "#bob"])
def test_a_name_that_only_looks_like_a_second_session_is_one_like_any_other(identity: str) -> None:
    assert plan(MEETING, [present(identity, *ALL)]) == []
    assert owner_of(Identity(identity), MEETING) == identity
    assert plan(RESTRICTED, [present(identity, *ALL)]) == [
        Allow(MAIN, Identity(identity), WITHOUT_MICROPHONE, Priority.IDLE)
    ]


def test_whoever_was_kicked_by_such_a_name_is_removed_by_it() -> None:
    state = after(MEETING, (ALICE, moderation.Kick(participants=(ParticipantId("wumpus#1234"),))))
    assert plan(state, [present("wumpus#1234", *ALL)]) == [], "they were not there"
    wumpus = ParticipantId("wumpus#1234")
    kicked = changed(MEETING, Departed(wumpus, 1.0, "kicked"))
    for identity in ("wumpus#1234", "wumpus#1234#x"):
        assert plan(kicked, [present(identity, *ALL)]) == [Remove(MAIN, Identity(identity))]
        assert owner_of(Identity(identity), kicked) == wumpus


def test_what_is_kept_from_somebody_by_name_is_kept_from_their_second_session() -> None:
    state = changed(MEETING, Revoked(frozenset({ParticipantId("eve")}), MICROPHONE))
    assert plan(state, [present("eve#x", *ALL)]) == [Allow(MAIN, Identity("eve#x"), WITHOUT_MICROPHONE, Priority.IDLE)]


# --- Whoever never joined is taken away from, never given -------------------------------------------------------


@pytest.mark.parametrize(
    "permission",
    [
        Permission(can_publish=False, sources=()),
        Permission(can_publish=True, sources=(CAMERA,)),
        Permission(can_publish=True, sources=(MICROPHONE, CAMERA)),
        Permission(can_publish=True, sources=()),
    ],
)
@pytest.mark.parametrize("kind", LiveKitKind)
def test_nothing_that_holds_gives_to_who_never_joined(permission: Permission, kind: LiveKitKind) -> None:
    eve = Presence(MAIN, Identity("eve"), permission, kind=kind, sid="PA_1")
    assert plan(MEETING, [eve]) == []
    listed = after(MEETING, (ALICE, enable(ParticipantId("eve"))))
    assert plan(listed, [eve]) == []
    by_name = changed(MEETING, *(Granted(frozenset({ParticipantId("eve")}), source) for source in (CAMERA, SCREEN)))
    assert plan(by_name, [eve]) == []


def test_what_was_taken_from_a_stranger_is_given_back_and_no_more() -> None:
    eve = replace(present("eve", CAMERA, MICROPHONE), sid="PA_1")
    assert unnoted(RESTRICTED, [eve]) == {}
    noted = unnoted(RESTRICTED, [eve], about_to_change=True)
    assert noted == {MAIN: {"eve": Came("PA_1", frozenset({CAMERA, MICROPHONE}))}}
    restricted = changed(RESTRICTED, CameSeen(noted))
    (eve,) = carried_out([eve], plan(restricted, [eve]))
    assert eve.permission.allowed() == (CAMERA,)
    assert unnoted(restricted, [eve], about_to_change=True) == {}
    lifted = changed(restricted, Unrestricted(MICROPHONE))
    assert plan(lifted, [eve]) == [Allow(MAIN, Identity("eve"), (CAMERA, MICROPHONE), Priority.IDLE)]


def test_whoever_comes_back_with_what_they_were_left_with_gets_back_what_they_first_had() -> None:
    first = CameSeen({MAIN: {ParticipantId("eve"): Came("PA_1", frozenset(ALL))}})
    restricted = changed(RESTRICTED, first)
    back = replace(present("eve", *WITHOUT_MICROPHONE), sid="PA_2")
    assert unnoted(restricted, [back]) == {MAIN: {"eve": Came("PA_2", frozenset(ALL))}}
    smaller = replace(present("eve", CAMERA), sid="PA_2")
    noted = unnoted(restricted, [smaller])
    assert noted == {MAIN: {"eve": Came("PA_2", frozenset({CAMERA}))}}
    assert plan(changed(restricted, CameSeen(noted), Unrestricted(MICROPHONE)), [smaller]) == []


def test_what_somebody_came_with_counts_in_that_room() -> None:
    state = with_left_room(RESTRICTED)
    viewer = replace(present("eve"), sid="PA_1")
    speaker = replace(present("eve", MICROPHONE, room=LEFT_ROOM), sid="PA_2")
    restricted = changed(state, CameSeen(unnoted(state, [viewer, speaker], about_to_change=True)))
    silent = carried_out([viewer, speaker], plan(restricted, [viewer, speaker]))
    assert [presence.permission.allowed() for presence in silent] == [(), ()]
    assert unnoted(restricted, silent) == {}
    lifted = changed(restricted, Unrestricted(MICROPHONE))
    assert plan(lifted, silent) == [Allow(LEFT_ROOM, Identity("eve"), (MICROPHONE,), Priority.IDLE)]
    joined_anew = joined(restricted, somebody(ParticipantId("eve")))
    assert joined_anew.came == {}


def test_what_others_take_from_a_stranger_is_not_given_back() -> None:
    restricted = changed(RESTRICTED, CameSeen({MAIN: {ParticipantId("eve"): Came("PA_1", frozenset(ALL))}}))
    before = replace(present("eve", *WITHOUT_MICROPHONE), sid="PA_1")
    demoted = replace(before, permission=present("eve", *WITHOUT_MICROPHONE[1:]).permission)
    least = left_by_others(restricted, before, demoted)
    assert least == Came("PA_1", frozenset(ALL[1:]))
    noted = changed(restricted, CameSeen({MAIN: {ParticipantId("eve"): least}}))
    assert plan(noted, [demoted]) == []
    assert plan(changed(noted, Unrestricted(MICROPHONE)), [demoted]) == [
        Allow(MAIN, Identity("eve"), ALL[1:], Priority.IDLE)
    ]


def test_what_we_take_from_a_stranger_is_nothing_that_others_took() -> None:
    came = CameSeen({MAIN: {ParticipantId("eve"): Came("PA_1", frozenset(ALL))}})
    has_all, is_silent = (replace(present("eve", *sources), sid="PA_1") for sources in (ALL, WITHOUT_MICROPHONE))
    restricted = changed(RESTRICTED, came)
    assert left_by_others(restricted, has_all, is_silent) is None  # it is to be so
    assert left_by_others(restricted, is_silent, has_all) is None  # they have more than before
    assert left_by_others(RESTRICTED, has_all, is_silent) is None  # nothing was ever taken
    free = changed(MEETING, came)
    assert left_by_others(free, has_all, is_silent) == Came("PA_1", frozenset(WITHOUT_MICROPHONE))
    assert left_by_others(free, has_all, replace(is_silent, sid="PA_2")) is None  # another session
    assert left_by_others(free, replace(has_all, sid="PA_0"), is_silent) is None
    here = joined(free, somebody(ParticipantId("eve"), kind=Kind.RECORDER))
    assert left_by_others(here, has_all, is_silent) is None  # ours is given back all


def test_a_recorder_of_ours_is_noted_when_something_is_kept_from_it_by_name() -> None:
    state = joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER))
    recorder = present(RECORDER, *ALL[1:], is_service=True)
    assert unnoted(state, [recorder], about_to_change=True) == {}
    named = changed(state, Revoked(frozenset({RECORDER}), CAMERA))
    noted = unnoted(named, [recorder])
    assert noted == {MAIN: {RECORDER: Came("", frozenset(ALL))}}
    lifted = changed(named, CameSeen(noted), Granted(frozenset({RECORDER}), CAMERA))
    assert plan(lifted, [recorder]) == [Allow(MAIN, Identity(RECORDER), ALL, Priority.IDLE)]


# --- Rooms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["bob", "eve", "bob#x", "bob-popout1"])
def test_nobody_is_touched_in_a_room_that_only_looks_like_a_breakout(who: str) -> None:
    somewhere = present(who, room=LiveKitRoom("board:lobby"))
    state = changed(WITH_POPOUT, Banned(frozenset({ParticipantId("eve")})))
    assert plan(state, [somewhere], remove_unknown=True) == []
    assert strangers(state, [somewhere]) == {}


@pytest.mark.parametrize("who", [ALICE, BOB])
def test_somebody_who_left_is_removed(who: ParticipantId) -> None:
    assert plan(left(MEETING, who), [present(who, *ALL)]) == [Remove(MAIN, Identity(who))]


def test_until_they_join_anew() -> None:
    assert plan(joined(left(MEETING, BOB), somebody(BOB)), [present(BOB, *ALL)]) == []


def test_somebody_who_left_is_no_service_by_being_hidden() -> None:
    assert plan(left(MEETING, BOB), [present(BOB, is_service=True)]) == [Remove(MAIN, Identity(BOB))]


def test_somebody_in_the_wrong_room_is_removed_from_it_alone() -> None:
    state = after(MEETING, (CONTROLLER, Move(BOB, LEFT)))
    roster = [present(BOB, *ALL), present(BOB, *ALL, room=LEFT_ROOM)]
    assert plan(state, roster) == [Remove(MAIN, Identity(BOB))]


def test_the_rooms_of_an_ended_meeting_are_left_to_their_deletion() -> None:
    state = after(WITH_POPOUT, (CONTROLLER, End()))
    assert state.doomed == {MAIN}
    assert plan(state, [present(ALICE, *ALL), present(BOB, *ALL), present("bob-popout1", is_service=True)]) == []


def test_who_never_joined_is_restricted_like_anyone() -> None:
    assert plan(RESTRICTED, [present(DAVE, *ALL)]) == [Allow(MAIN, Identity(DAVE), WITHOUT_MICROPHONE, Priority.IDLE)]
    assert plan(RESTRICTED, [present(DAVE, *WITHOUT_MICROPHONE)]) == []
    assert plan(MEETING, [present(DAVE, *ALL)]) == []


def test_or_removed() -> None:
    assert plan(MEETING, [present(DAVE, *ALL)], remove_unknown=True) == [Remove(MAIN, Identity(DAVE))]


def test_members_are_not_unknown() -> None:
    assert plan(MEETING, [present(who, *ALL) for who in (ALICE, BOB, CAROL)], remove_unknown=True) == []


# --- Order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tracks", "priority"),
    [
        ((), Priority.IDLE),
        ((track(MICROPHONE),), Priority.LIVE),
        ((track(MICROPHONE, muted=True),), Priority.MUTED),
        ((track(MICROPHONE, muted=True), track(MICROPHONE)), Priority.LIVE),
        ((track(MICROPHONE, muted=True), track(CAMERA)), Priority.MUTED),
        ((track(CAMERA),), Priority.IDLE),
        ((track(CAMERA, muted=True),), Priority.IDLE),
        ((track(SCREEN),), Priority.IDLE),
        ((track(None),), Priority.LIVE),
        ((track(None, muted=True),), Priority.MUTED),
    ],
)
def test_who_publishes_the_source_comes_first(tracks: tuple[Track, ...], priority: Priority) -> None:
    [call] = plan(RESTRICTED, [present(BOB, *ALL, tracks=tracks)], sources=ABOUT_MICROPHONES)
    assert call.priority is priority


def test_live_then_muted_then_idle() -> None:
    people = [somebody(ParticipantId(f"p{number}")) for number in range(4)]
    state = joined(RESTRICTED, *people)
    roster = [
        present("p0", *ALL),
        present("p1", *ALL, tracks=(track(muted=True),)),
        present("p2", *ALL, tracks=(track(),)),
        present(BOB, *ALL, tracks=(track(CAMERA),)),
        present("p3", *ALL, tracks=(track(),)),
        present("bob#x", *ALL),
    ]
    calls = plan(state, roster, sources=ABOUT_MICROPHONES)
    assert [call.identity for call in calls] == ["bob#x", "p2", "p3", "p1", "p0", "bob"]
    assert [call.priority for call in calls] == [0, 1, 1, 2, 3, 3]


def test_priorities_are_repair_live_muted_idle_settling_sweep() -> None:
    assert [priority.name for priority in sorted(Priority)] == ["REPAIR", "LIVE", "MUTED", "IDLE", "SETTLING", "SWEEP"]


# --- About whom --------------------------------------------------------------------------------------------------


def test_a_plan_about_some_people_is_about_them_alone() -> None:
    roster = [present(who, *ALL) for who in (ALICE, BOB, CAROL, DAVE)]
    assert [call.identity for call in plan(RESTRICTED, roster, about=frozenset({BOB, DAVE}))] == ["bob", "dave"]
    assert plan(RESTRICTED, roster, about=frozenset()) == []


def test_a_plan_about_somebody_is_about_their_popouts_too() -> None:
    state = left(WITH_POPOUT, BOB)
    roster = [present(BOB, *ALL), present("bob-popout1"), present("bob-popout7", *ALL), present(CAROL, *ALL)]
    assert plan(state, roster, about=frozenset({BOB})) == [
        Remove(MAIN, Identity("bob")),
        Remove(MAIN, Identity("bob-popout1")),
    ]


def test_a_plan_is_about_one_identity_in_every_room() -> None:
    rooms = [MAIN, LEFT_ROOM, LiveKitRoom("board:right")]
    state = replace(left(MEETING, BOB), rooms=frozenset(rooms))
    calls = plan(state, [present(BOB, room=room) for room in rooms], about=frozenset({BOB}))
    assert calls == [Remove(room, Identity(BOB)) for room in rooms]


# --- Enough ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove_unknown", [True, False])
def test_when_the_calls_were_carried_out_there_are_none_left(*, remove_unknown: bool) -> None:
    state = after(WITH_POPOUT, (ALICE, promote(CAROL)), (CONTROLLER, Move(CAROL, LEFT)))
    state = joined(state, somebody(DAVE, Role.GUEST))
    roster = [
        present(who, *sources, room=room)
        for who in (ALICE, BOB, CAROL, DAVE, "bob#x", "bob-popout1", "eve")
        for room in (MAIN, LEFT_ROOM)
        for sources in (ALL,)
    ]
    calls = plan(state, roster, remove_unknown=remove_unknown)
    assert calls
    assert plan(state, carried_out(roster, calls), remove_unknown=remove_unknown) == []


def test_a_restart_of_livekit_needs_no_calls_of_its_own() -> None:
    assert plan(MeetingState(MEETING.room), []) == []


@pytest.mark.parametrize("finding", Finding)
def test_a_failure_is_no_answer_or_a_no(finding: Finding) -> None:
    assert finding.is_failure is (finding in {Finding.UNANSWERED, Finding.REJECTED})


def test_the_helpers_record_what_livekit_would() -> None:
    assert allowing(*ALL).allows_exactly(ALL)
    assert allowing().allows_exactly(())
    assert Track(TrackSid("TR_1"), MICROPHONE, muted=False, is_sound=True) == track()


def test_a_second_session_is_its_owners() -> None:
    roster = [present("bob#x", *ALL), present("carol#x", *ALL)]
    assert plan(MEETING, roster, about=frozenset({BOB})) == [Remove(MAIN, Identity("bob#x"))]


def test_a_recorder_is_told_of_a_block_by_name_and_of_nothing_else() -> None:
    meeting = joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER))
    assert plan(after(meeting, (ALICE, enable())), [present(RECORDER, CAMERA)]) == []
    blocked = changed(meeting, Revoked(frozenset({RECORDER})))
    assert plan(blocked, [present(RECORDER, *ALL)]) == [Allow(MAIN, Identity(RECORDER), WITHOUT_SCREEN, Priority.IDLE)]


# --- Services that are named -------------------------------------------------------------------------------------


def test_an_ingress_is_touched_only_by_what_names_it() -> None:
    feed = Presence(MAIN, Identity("feed"), allowing(*ALL), kind=LiveKitKind.INGRESS)
    state = changed(RESTRICTED, PresenterSet(BOB))
    assert plan(state, [feed]) == []
    named = changed(state, Revoked(frozenset({ParticipantId("feed")}), CAMERA))
    assert plan(named, [feed]) == [Allow(MAIN, Identity("feed"), ALL[1:], Priority.IDLE)]
    told = replace(feed, permission=allowing(*ALL[1:]))
    seen = CameSeen({MAIN: {ParticipantId("feed"): Came("", frozenset(ALL))}})
    lifted = changed(named, seen, Granted(frozenset({ParticipantId("feed")}), CAMERA))
    assert plan(lifted, [told]) == [Allow(MAIN, Identity("feed"), ALL, Priority.IDLE)]


def test_a_service_keeps_what_it_has_less_what_is_kept_from_it_by_name() -> None:
    agent = Presence(MAIN, Identity("agent"), allowing(MICROPHONE), kind=LiveKitKind.AGENT)
    without_camera = changed(MEETING, Revoked(frozenset({ParticipantId("agent")}), CAMERA))
    assert plan(without_camera, [agent]) == []
    without_microphone = changed(MEETING, Revoked(frozenset({ParticipantId("agent")}), MICROPHONE))
    assert plan(without_microphone, [agent]) == [Allow(MAIN, Identity("agent"), (), Priority.IDLE)]


@pytest.mark.parametrize(
    ("kept", "given_back"),
    [
        (Revoked(frozenset({ParticipantId("feed")}), CAMERA), Granted(frozenset({ParticipantId("feed")}), CAMERA)),
        (Held(frozenset({ParticipantId("feed")}), frozenset({CAMERA}), 5.0), HoldsEnded(5.0)),
        (
            Revoked(frozenset({ParticipantId("feed")}), CAMERA),
            PutBack((BlockWas(Block(ParticipantId("feed"), CAMERA), was_set=False),)),
        ),
    ],
)
def test_what_was_kept_from_a_service_by_name_is_given_back(kept: Change, given_back: Change) -> None:
    feed = Presence(MAIN, Identity("feed"), allowing(*ALL[1:]), kind=LiveKitKind.INGRESS)
    seen = CameSeen({MAIN: {ParticipantId("feed"): Came("", frozenset(ALL))}})
    lifted = changed(RESTRICTED, seen, kept, given_back)
    assert plan(lifted, [feed]) == [Allow(MAIN, Identity("feed"), ALL, Priority.IDLE)]
    assert plan(lifted, [replace(feed, permission=allowing(*ALL))]) == []
    assert plan(changed(RESTRICTED, kept, given_back), [feed]) == [], "nobody is given what they never had"


def test_nobody_waits_for_the_screen_of_a_service_that_is_named_for_something_else() -> None:
    feed = Presence(MAIN, Identity("feed"), allowing(SCREEN), kind=LiveKitKind.INGRESS)
    popout = present("bob-popout1", *ALL)
    presenting = changed(WITH_POPOUT, Revoked(frozenset({ParticipantId("feed")}), CAMERA), PresenterSet(BOB))
    assert not must_wait(presenting, present(BOB, CAMERA), [feed, popout])
    named = changed(presenting, Revoked(frozenset({ParticipantId("feed")})))
    assert must_wait(named, present(BOB, CAMERA), [feed, popout])


def test_a_phone_caller_who_never_joined_is_restricted_like_anyone() -> None:
    phone = Presence(MAIN, Identity("sip:49"), allowing(*ALL), kind=LiveKitKind.SIP)
    assert plan(RESTRICTED, [phone]) == [Allow(MAIN, Identity("sip:49"), WITHOUT_MICROPHONE, Priority.IDLE)]


# --- Bans --------------------------------------------------------------------------------------------------------


def test_the_banned_are_removed_wherever_they_are() -> None:
    state = with_left_room(changed(MEETING, Banned(frozenset({DAVE}))))
    assert plan(state, [present(DAVE, room=LEFT_ROOM)]) == [Remove(LEFT_ROOM, Identity(DAVE))]


# --- The presenter: never two who may share at once --------------------------------------------------------------

CAROL_PRESENTS = changed(MEETING, PresenterSet(CAROL))
WAITING = present(CAROL, *WITHOUT_SCREEN)


def test_a_new_presenter_waits_for_whoever_still_has_the_screen() -> None:
    roster = [present(ALICE, *WITHOUT_SCREEN), present(BOB, *ALL), WAITING]
    calls = plan(CAROL_PRESENTS, roster)
    assert calls == [Allow(MAIN, Identity(BOB), WITHOUT_SCREEN, Priority.IDLE)]
    assert must_wait(CAROL_PRESENTS, WAITING, roster)
    then = carried_out(roster, calls)
    assert plan(CAROL_PRESENTS, then) == [Allow(MAIN, Identity(CAROL), ALL, Priority.IDLE)]
    assert plan(CAROL_PRESENTS, carried_out(then, plan(CAROL_PRESENTS, then))) == []


def test_meanwhile_the_rest_of_their_rights_is_told() -> None:
    roster = [present(BOB, *ALL), present(CAROL, CAMERA)]
    assert Allow(MAIN, Identity(CAROL), WITHOUT_SCREEN, Priority.IDLE) in plan(CAROL_PRESENTS, roster)


def test_a_presenter_who_has_the_screen_keeps_it() -> None:
    roster = [present(BOB, *ALL), present(CAROL, *ALL)]
    assert plan(CAROL_PRESENTS, roster) == [Allow(MAIN, Identity(BOB), WITHOUT_SCREEN, Priority.IDLE)]


@pytest.mark.parametrize(
    "other",
    [
        Presence(MAIN, Identity(BOB), Permission(can_publish=True, sources=())),
        present("zoe", *ALL),
        present("bob#2", *ALL),
        present(BOB, SCREEN, room=LEFT_ROOM),
    ],
)
def test_whoever_may_share_is_waited_for(other: Presence) -> None:
    assert must_wait(CAROL_PRESENTS, WAITING, [other, WAITING])


@pytest.mark.parametrize(
    "other",
    [
        present(BOB, *WITHOUT_SCREEN),
        present(BOB),
        present("recorder", *ALL, is_service=True),
        present(CAROL, *ALL, room=LEFT_ROOM),
    ],
)
def test_whom_the_presenter_does_not_concern_is_not(other: Presence) -> None:
    assert not must_wait(CAROL_PRESENTS, WAITING, [other, WAITING])
    assert not must_wait(CAROL_PRESENTS, other, [WAITING, other])


# --- What is found -----------------------------------------------------------------------------------------------


def test_strangers_are_those_who_never_joined() -> None:
    roster = [
        present(identity) for identity in ("alice", "bob#2", "zoe", "bob-popout1", "bob-popout2", "feed", "zoe#1")
    ]
    assert strangers(WITH_POPOUT, roster).keys() == {"zoe", "bob-popout2", "feed", "zoe#1"}


@pytest.mark.parametrize(
    ("tracks", "finding"),
    [
        ((), Finding.NO_TRACK),
        ((track(CAMERA),), Finding.NO_TRACK),
        ((track(None),), Finding.NO_TRACK),
        ((track(muted=True),), Finding.ALREADY_MUTED),
        ((track(muted=True), track()), Finding.MUTED),
    ],
)
def test_what_muting_comes_to(tracks: tuple[Track, ...], finding: Finding) -> None:
    assert silencing(present(BOB, tracks=tracks), ABOUT_MICROPHONES) is finding


def test_whoever_was_muted_and_is_heard_again_within_a_minute_is_found() -> None:
    state = changed(MEETING, MutesNoted({BOB: ABOUT_MICROPHONES, CAROL: ABOUT_MICROPHONES}, at=100.0))
    roster = [
        present(ALICE, tracks=(track(),)),
        present(BOB, tracks=(track(),)),
        present(CAROL, tracks=(track(CAMERA),)),
    ]
    assert unmuted_again(state, roster, now=160.0) == {BOB}
    assert unmuted_again(state, roster, now=160.1) == frozenset()
    assert unmuted_again(state, [present(BOB, tracks=(track(muted=True),))], now=101.0) == frozenset()


@pytest.mark.parametrize(
    ("permission", "allowed"),
    [
        (Permission(can_publish=False, sources=ALL), ()),
        (Permission(can_publish=True, sources=()), ALL),
        (Permission(can_publish=True, sources=(SCREEN, None, CAMERA)), (CAMERA, SCREEN)),
    ],
)
def test_what_a_permission_lets_through(permission: Permission, allowed: tuple[Source, ...]) -> None:
    assert permission.allowed() == allowed


def test_what_members_may_publish_follows_from_the_state_alone_but_for_presenter_and_services() -> None:
    state = changed(joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER)), PresenterSet(BOB))
    everything = Permission(can_publish=True, sources=())
    seen = [Presence(MAIN, Identity(who), everything) for who in (ALICE, BOB, CAROL, RECORDER, DAVE)]
    assert [str(presence.identity) for presence in seen if is_plain(state, presence)] == [str(ALICE), str(CAROL)]
