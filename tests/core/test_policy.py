import pytest

from signaling.core.participants import Kind, Role, Source
from signaling.core.policy import publishable, stricter
from signaling.core.state import Block, Granted, MeetingState, Restricted, Revoked, RoleGiven, Unrestricted, new_meeting
from signaling.identifiers import ParticipantId
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


# --- The stricter of two -----------------------------------------------------------------------------------------


def test_a_token_minted_during_a_restriction_is_restricted_already() -> None:
    assert stricter(BOB, MEETING, RESTRICTED) == WITHOUT_MICROPHONE


def test_a_token_minted_while_one_is_lifted_is_restricted_still() -> None:
    assert stricter(BOB, RESTRICTED, MEETING) == WITHOUT_MICROPHONE


def test_a_token_allows_what_both_allow() -> None:
    assert stricter(BOB, RESTRICTED, SCREENS_BY_PERMISSION) == (CAMERA,)
    assert stricter(ALICE, RESTRICTED, SCREENS_BY_PERMISSION) == ALL
