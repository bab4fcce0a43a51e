import pytest

from signaling.core import policy
from signaling.core.changes import (
    Banned,
    BypassNoted,
    Granted,
    Held,
    PresenterSet,
    Restricted,
    Revoked,
    RoleGiven,
    Unrestricted,
)
from signaling.core.effects import Presence
from signaling.core.participants import Kind, LiveKitKind, Role, Source
from signaling.core.policy import is_service, publishable, stricter
from signaling.core.state import Block, BlockCause, MeetingState, new_meeting
from signaling.identifiers import ParticipantId, TrackSid
from tests.core.meetings import (
    ALICE,
    ALL,
    BOARD,
    BOB,
    CAMERA,
    CAROL,
    DAVE,
    MEETING,
    MICROPHONE,
    PHONE,
    RECORDER,
    SCREEN,
    WITHOUT_MICROPHONE,
    WITHOUT_SCREEN,
    changed,
    joined,
    left,
    present,
    somebody,
)

RESTRICTED = changed(MEETING, Restricted(MICROPHONE, frozenset({CAROL})))
SCREENS_BY_PERMISSION = changed(MEETING, Restricted(SCREEN, frozenset()))
EVERYTHING_RESTRICTED = changed(MEETING, *(Restricted(source, frozenset()) for source in (CAMERA, MICROPHONE, SCREEN)))


def blocked(state: MeetingState, who: ParticipantId, source: Source) -> MeetingState:
    return MeetingState(
        BOARD,
        members=state.members,
        restricted=state.restricted,
        listed=state.listed,
        blocks=state.blocks | {Block(who, source)},
    )


def test_everybody_may_publish_everything_in_livekits_order() -> None:
    for who in (ALICE, BOB, CAROL):
        assert publishable(who, MEETING) == (
            Source.CAMERA,
            Source.MICROPHONE,
            Source.SCREEN_SHARE,
            Source.SCREEN_SHARE_AUDIO,
        )


def test_whoever_is_neither_moderator_nor_listed_is_restricted() -> None:
    assert publishable(BOB, RESTRICTED) == WITHOUT_MICROPHONE


def test_whoever_is_listed_is_not() -> None:
    assert publishable(CAROL, RESTRICTED) == ALL


def test_a_moderator_is_not() -> None:
    assert publishable(ALICE, RESTRICTED) == ALL


def test_an_empty_allow_list_restricts_everyone_but_moderators() -> None:
    state = changed(MEETING, Restricted(MICROPHONE, frozenset()))
    assert publishable(ALICE, state) == ALL
    assert publishable(BOB, state) == publishable(CAROL, state) == WITHOUT_MICROPHONE


def test_a_late_joiner_is_restricted_too() -> None:
    assert publishable(DAVE, joined(RESTRICTED, somebody(DAVE))) == WITHOUT_MICROPHONE


def test_somebody_listed_who_was_absent_is_unrestricted_when_they_return() -> None:
    assert publishable(CAROL, joined(left(RESTRICTED, CAROL), somebody(CAROL))) == ALL
    state = changed(MEETING, Restricted(MICROPHONE, frozenset({DAVE})))
    assert publishable(DAVE, joined(state, somebody(DAVE))) == ALL


def test_a_restricted_microphone_leaves_screen_share_audio_alone() -> None:
    assert Source.SCREEN_SHARE_AUDIO in publishable(BOB, RESTRICTED)


def test_a_recorder_is_not_touched_by_a_restriction() -> None:
    state = joined(EVERYTHING_RESTRICTED, somebody(RECORDER, kind=Kind.RECORDER))
    assert publishable(RECORDER, state) == ALL


@pytest.mark.parametrize("kind", [Kind.USER, Kind.GUEST, Kind.SIP])
def test_everybody_else_is(kind: Kind) -> None:
    assert publishable(DAVE, joined(EVERYTHING_RESTRICTED, somebody(DAVE, kind=kind))) == ()


def test_whoever_never_joined_is_restricted_like_anyone() -> None:
    assert publishable(DAVE, RESTRICTED) == WITHOUT_MICROPHONE


def test_a_departed_moderator_is_restricted_like_anyone() -> None:
    assert publishable(ALICE, left(RESTRICTED, ALICE)) == WITHOUT_MICROPHONE


def test_a_departed_recorder_is_restricted_like_anyone() -> None:
    state = left(joined(RESTRICTED, somebody(RECORDER, kind=Kind.RECORDER)), RECORDER)
    assert publishable(RECORDER, state) == WITHOUT_MICROPHONE


@pytest.mark.parametrize(
    ("source", "remaining"),
    [(CAMERA, ALL[1:]), (MICROPHONE, WITHOUT_MICROPHONE), (SCREEN, WITHOUT_SCREEN)],
)
def test_what_is_blocked_by_name_is_gone_for_moderators_too(source: Source, remaining: tuple[Source, ...]) -> None:
    for who in (ALICE, BOB):
        assert publishable(who, blocked(MEETING, who, source)) == remaining
        assert publishable(CAROL, blocked(MEETING, who, source)) == ALL


def test_one_block_of_somebody_leaves_the_others_as_they_are() -> None:
    assert publishable(BOB, blocked(blocked(MEETING, BOB, CAMERA), BOB, MICROPHONE)) == tuple(
        source for source in WITHOUT_MICROPHONE if source is not CAMERA
    )


def test_a_block_by_name_precedes_a_list() -> None:
    assert publishable(CAROL, blocked(RESTRICTED, CAROL, MICROPHONE)) == WITHOUT_MICROPHONE


def test_screen_share_has_two_sources_which_go_together() -> None:
    assert publishable(BOB, SCREENS_BY_PERMISSION) == WITHOUT_SCREEN
    assert publishable(BOB, changed(SCREENS_BY_PERMISSION, Granted(frozenset({BOB})))) == ALL
    assert publishable(BOB, changed(MEETING, Revoked(frozenset({BOB})))) == WITHOUT_SCREEN


def test_screen_sharing_by_permission_does_not_concern_moderators() -> None:
    assert publishable(ALICE, SCREENS_BY_PERMISSION) == ALL


def test_a_camera_may_be_restricted_alone() -> None:
    assert publishable(BOB, changed(MEETING, Restricted(CAMERA, frozenset()))) == ALL[1:]


def test_when_nothing_is_left_nothing_is_left() -> None:
    assert publishable(BOB, EVERYTHING_RESTRICTED) == ()


def test_a_list_of_one_source_says_nothing_of_another() -> None:
    state = changed(MEETING, Restricted(CAMERA, frozenset({BOB})), Restricted(MICROPHONE, frozenset({CAROL})))
    assert publishable(BOB, state) == WITHOUT_MICROPHONE
    assert publishable(CAROL, state) == ALL[1:]


def test_the_list_of_a_lifted_restriction_restricts_nobody() -> None:
    assert publishable(BOB, changed(RESTRICTED, Unrestricted(MICROPHONE))) == ALL


def test_a_role_given_counts_at_once() -> None:
    assert publishable(BOB, changed(RESTRICTED, RoleGiven(BOB, Role.MODERATOR))) == ALL


def test_a_role_taken_counts_at_once() -> None:
    assert publishable(ALICE, changed(RESTRICTED, RoleGiven(ALICE, Role.USER))) == WITHOUT_MICROPHONE


def test_a_role_given_to_a_user_does_not_hold_for_them_by_telephone() -> None:
    state = changed(RESTRICTED, RoleGiven(PHONE, Role.MODERATOR))
    assert publishable(PHONE, joined(state, somebody(PHONE, kind=Kind.SIP))) == WITHOUT_MICROPHONE


def test_a_meeting_may_begin_with_screen_sharing_by_permission() -> None:
    state = joined(new_meeting(BOARD, screen_share_requires_permission=True), somebody(BOB))
    assert publishable(BOB, state) == WITHOUT_SCREEN
    assert publishable(BOB, changed(state, Granted(frozenset({BOB})))) == ALL


def test_or_without() -> None:
    state = joined(new_meeting(BOARD, screen_share_requires_permission=False), somebody(BOB))
    assert publishable(BOB, state) == ALL


# --- Precedence: banned, bypass and hold, blocked by name, presenter, restricted ---------------------------------

BOB_PRESENTS = changed(MEETING, PresenterSet(BOB))
UNTIL = 2_000.0


def test_the_banned_may_publish_nothing_whatever_else_holds() -> None:
    state = changed(MEETING, Granted(frozenset({BOB})), PresenterSet(BOB), Banned(frozenset({BOB, ALICE})))
    assert publishable(BOB, state) == publishable(ALICE, state) == ()
    assert publishable(RECORDER, changed(state, Banned(frozenset({RECORDER}))), is_service=True) == ()


@pytest.mark.parametrize(
    ("source", "remaining"),
    [
        (CAMERA, ALL[1:]),
        (MICROPHONE, WITHOUT_MICROPHONE),
        (SCREEN, WITHOUT_SCREEN),
        (Source.SCREEN_SHARE_AUDIO, ALL[:3]),
    ],
)
def test_what_a_bypass_or_a_hold_took_away_is_gone_for_moderators_and_the_listed_too(
    source: Source, remaining: tuple[Source, ...]
) -> None:
    state = changed(MEETING, *(Restricted(each, frozenset({BOB})) for each in (CAMERA, MICROPHONE, SCREEN)))
    for who in (ALICE, BOB):
        assert publishable(who, changed(state, BypassNoted(who, source, TrackSid("TR_1"), "audio"))) == remaining
        assert publishable(who, changed(state, Held(frozenset({who}), frozenset({source}), UNTIL))) == remaining


def test_causes_add_up() -> None:
    state = changed(
        MEETING,
        Held(frozenset({BOB}), frozenset({MICROPHONE}), UNTIL),
        Revoked(frozenset({BOB}), CAMERA),
        PresenterSet(CAROL),
    )
    assert publishable(BOB, state) == ()


def test_an_allowance_lifts_what_was_named_whatever_the_cause() -> None:
    state = changed(
        MEETING,
        Held(frozenset({BOB, CAROL}), frozenset({MICROPHONE, CAMERA}), UNTIL),
        BypassNoted(BOB, MICROPHONE, TrackSid("TR_1"), "audio"),
        Revoked(frozenset({BOB}), MICROPHONE),
        Granted(frozenset({BOB}), MICROPHONE),
    )
    assert publishable(BOB, state) == ALL[1:]
    assert publishable(CAROL, state) == WITHOUT_MICROPHONE[1:]


def test_nobody_but_the_presenter_shares_the_screen_moderators_included() -> None:
    assert publishable(BOB, BOB_PRESENTS) == ALL
    assert publishable(ALICE, BOB_PRESENTS) == publishable(CAROL, BOB_PRESENTS) == WITHOUT_SCREEN
    assert publishable(CAROL, changed(BOB_PRESENTS, Granted(frozenset({CAROL})))) == WITHOUT_SCREEN


def test_the_presenter_counts_as_listed_for_the_screen_and_for_nothing_else() -> None:
    state = changed(EVERYTHING_RESTRICTED, PresenterSet(BOB))
    assert publishable(BOB, state) == (SCREEN, Source.SCREEN_SHARE_AUDIO)


def test_a_block_by_name_holds_for_the_presenter_too() -> None:
    assert publishable(BOB, changed(BOB_PRESENTS, Revoked(frozenset({BOB})))) == WITHOUT_SCREEN


def test_services_obey_only_what_names_them() -> None:
    state = joined(changed(EVERYTHING_RESTRICTED, PresenterSet(BOB)), somebody(RECORDER, kind=Kind.RECORDER))
    assert publishable(RECORDER, state) == ALL
    assert publishable(DAVE, state, is_service=True) == ALL
    assert publishable(DAVE, changed(state, Revoked(frozenset({DAVE}), CAMERA)), is_service=True) == ALL[1:]
    assert publishable(BOB, state, is_service=True) == ALL[2:], "whoever has joined is what they joined as"


@pytest.mark.parametrize(
    ("kind", "is_hidden", "is_one"),
    [
        (LiveKitKind.STANDARD, False, False),
        (LiveKitKind.SIP, False, False),
        (LiveKitKind.INGRESS, False, True),
        (LiveKitKind.EGRESS, False, True),
        (LiveKitKind.AGENT, False, True),
        (LiveKitKind.STANDARD, True, True),
    ],
)
def test_phone_callers_are_ordinary_and_what_livekit_calls_a_service_is_one(
    kind: LiveKitKind, *, is_hidden: bool, is_one: bool
) -> None:
    presence = present("x", *ALL)
    presence = Presence(presence.room, presence.identity, presence.permission, kind=kind, is_hidden=is_hidden)
    assert is_service(presence) is is_one


def test_of_two_causes_lifting_one_is_not_enough() -> None:
    state = changed(MEETING, BypassNoted(BOB, CAMERA, TrackSid("TR_1"), "audio"))
    assert Block(BOB, CAMERA, BlockCause.BYPASS) in state.blocks
    assert Block(BOB, CAMERA) not in state.blocks


# --- The stricter of two -----------------------------------------------------------------------------------------


def test_a_token_minted_during_a_restriction_is_restricted_already() -> None:
    assert stricter(BOB, MEETING, RESTRICTED) == WITHOUT_MICROPHONE


def test_a_token_minted_while_one_is_lifted_is_restricted_still() -> None:
    assert stricter(BOB, RESTRICTED, MEETING) == WITHOUT_MICROPHONE


def test_a_token_allows_what_both_allow() -> None:
    assert stricter(BOB, RESTRICTED, SCREENS_BY_PERMISSION) == (CAMERA,)
    assert stricter(ALICE, RESTRICTED, SCREENS_BY_PERMISSION) == ALL


def test_what_was_made_of_blocks_goes_when_they_do() -> None:
    known = dict(policy._known)
    state = blocked(MEETING, BOB, CAMERA)
    assert CAMERA not in publishable(BOB, state)
    assert policy._known.keys() - known.keys() == {id(state.blocks)}
    del state
    assert policy._known == known


def test_equal_blocks_of_two_meetings_do_not_get_in_each_others_way() -> None:
    first, second = (blocked(MEETING, BOB, CAMERA) for _ in range(2))
    assert publishable(BOB, first) == publishable(BOB, second)
    del first
    assert CAMERA not in publishable(BOB, second)
