"""What is easily broken without anybody noticing: each of these was found by a fault made on purpose."""

from signaling.core.applying import apply
from signaling.core.bypasses import unaccompanied
from signaling.core.changes import Banned, Held, PutBack, Restricted, Revoked, Unrestricted
from signaling.core.commands import Expire
from signaling.core.decisions import Refusal, decide
from signaling.core.effects import Agree, Finding, Permission, Presence, Track
from signaling.core.enforcement import is_unknown, plan, unnoted
from signaling.core.participants import Kind, LiveKitKind, Source
from signaling.core.state import ASK_AGAIN_S, BanWas, Came, MeetingState
from signaling.identifiers import CONTROLLER, CommandId, Identity, TrackSid
from signaling.messages import moderation
from tests.core.meetings import (
    ALICE,
    ALL,
    AT,
    BOB,
    CAMERA,
    CAROL,
    COMMAND,
    DAVE,
    MAIN,
    MEETING,
    MICROPHONE,
    RECORDER,
    SCREEN_AUDIO,
    after,
    changed,
    concluded,
    decided,
    enable,
    joined,
    left,
    outcomes,
    present,
    somebody,
)

QUIET = changed(MEETING, Restricted(MICROPHONE, frozenset()))


def of(source: Source, *, is_sound: bool, sid: str = "TR_1") -> Track:
    return Track(TrackSid(sid), source, muted=False, is_sound=is_sound)


def test_a_camera_is_no_picture_of_a_screen() -> None:
    sound = of(SCREEN_AUDIO, is_sound=True)
    shown = present(BOB, *ALL, tracks=(sound, of(CAMERA, is_sound=False, sid="TR_2")))
    assert unaccompanied(QUIET, shown) == (sound,)


def test_a_picture_that_is_declared_as_the_sound_of_a_screen_is_no_sound() -> None:
    assert unaccompanied(QUIET, present(BOB, *ALL, tracks=(of(SCREEN_AUDIO, is_sound=False),))) == ()


def test_what_ends_by_itself_cannot_be_undone() -> None:
    lasting = changed(MEETING, Restricted(MICROPHONE, frozenset(), until=AT))
    lifted = concluded(lasting, CONTROLLER, Expire(AT), at=AT).state
    assert MICROPHONE not in lifted.restricted
    assert lifted.undoable == {}


def test_who_is_kicked_is_removed_though_they_were_not_in_livekit() -> None:
    kicked = concluded(MEETING, ALICE, moderation.Kick(participants=(BOB,)), {})
    assert outcomes(kicked) == {BOB: "removed"}
    gone = concluded(kicked.state, ALICE, moderation.Kick(participants=(BOB,)), {BOB: Finding.CHANGED})
    assert outcomes(gone) == {BOB: "removed"}
    assert outcomes(concluded(gone.state, ALICE, moderation.Kick(participants=(BOB,)), {})) == {BOB: "not_connected"}


def test_the_end_of_one_hold_concerns_nobody_else_who_is_held() -> None:
    held = changed(
        MEETING,
        Held(frozenset({BOB}), frozenset({MICROPHONE}), AT),
        Held(frozenset({CAROL}), frozenset({MICROPHONE}), AT + 60),
    )
    decision = decided(held, CONTROLLER, Expire(AT), at=AT)
    assert decision.targets == {BOB}
    assert decision.effect == Agree(frozenset({BOB}), frozenset({MICROPHONE}))


def allowing_all(who: str, kind: LiveKitKind = LiveKitKind.STANDARD) -> Presence:
    """Somebody of whom LiveKit lists no sources, which means all."""
    return Presence(MAIN, Identity(who), Permission(can_publish=True, sources=()), kind=kind)


def test_all_sources_are_named_to_people_and_services_are_left_alone() -> None:
    assert plan(MEETING, [allowing_all("agent", LiveKitKind.AGENT)]) == []
    assert [call.identity for call in plan(MEETING, [allowing_all("bob")])] == ["bob"]


def test_undoing_a_restriction_leaves_no_empty_list_behind() -> None:
    restricted = after(MEETING, (ALICE, enable(BOB)))
    undone = after(restricted, (ALICE, moderation.Undo(command_id=COMMAND)))
    assert undone.restricted == frozenset()
    assert undone.listed == {}


def test_nobody_is_banned_again_by_undoing_who_has_come_in_since() -> None:
    assert changed(MEETING, PutBack((BanWas(BOB, was_set=True),))).bans == frozenset()
    assert apply(MeetingState(MEETING.room), [PutBack((BanWas(BOB, was_set=True),))]).bans == {BOB}


def test_only_settings_that_differ_are_remembered_for_undoing() -> None:
    restricted = apply(MEETING, [Restricted(MICROPHONE, frozenset())], command_id=CommandId("c-2"))
    again = apply(restricted, [Restricted(MICROPHONE, frozenset())], command_id=CommandId("c-3"))
    assert set(again.undoable) == {"c-2"}
    lifted = apply(again, [Unrestricted(MICROPHONE)])
    assert lifted.undoable == {"c-2": ()}


def test_when_somebody_was_asked_is_remembered_for_as_long_as_nobody_may_ask_again() -> None:
    ask = moderation.AskToUnmute(participants=(BOB,))
    asked = concluded(MEETING, ALICE, ask, at=AT).state
    assert asked.asked_at == {BOB: AT}
    again = decide(asked, ALICE, ask, now=AT + ASK_AGAIN_S - 4, command_id=COMMAND)
    assert again == Refusal("rate_limit_exceeded", retry_after_s=4)
    later = concluded(asked, ALICE, moderation.AskToUnmute(participants=(CAROL,)), at=AT + ASK_AGAIN_S).state
    assert later.asked_at == {CAROL: AT + ASK_AGAIN_S}


def test_with_what_somebody_came_is_noted_of_services_and_not_of_people() -> None:
    state = joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER))
    state = changed(state, Revoked(frozenset({BOB, RECORDER}), CAMERA))
    roster = [present(BOB, *ALL), present(RECORDER, *ALL)]
    assert unnoted(state, roster, about_to_change=True) == {MAIN: {RECORDER: Came("", frozenset(ALL))}}


def test_who_is_banned_is_nobody_whom_moderators_need_to_be_told_of() -> None:
    assert is_unknown(MEETING, present(DAVE, *ALL))
    assert not is_unknown(changed(MEETING, Banned(frozenset({DAVE}))), present(DAVE, *ALL))
    assert not is_unknown(left(MEETING, BOB), present(BOB, *ALL))
