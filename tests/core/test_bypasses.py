"""Media that go by another name than their own."""

from dataclasses import replace

import pytest

from signaling.core.applying import apply
from signaling.core.bypasses import bypassing, unaccompanied
from signaling.core.changes import Granted, Restricted
from signaling.core.effects import Permission, Presence, Track
from signaling.core.participants import Kind, Role, Source
from signaling.core.state import Block, MeetingState
from signaling.identifiers import Identity, ParticipantId, TrackSid
from tests.core.meetings import (
    ALICE,
    BOB,
    CAMERA,
    DAVE,
    MAIN,
    MEETING,
    MICROPHONE,
    RECORDER,
    SCREEN,
    SCREEN_AUDIO,
    allowing,
    joined,
    somebody,
)

QUIET = apply(MEETING, [Restricted(MICROPHONE, frozenset())])
DARK = apply(MEETING, [Restricted(CAMERA, frozenset())])


def track(source: Source | None, *, is_sound: bool, sid: str = "TR_1") -> Track:
    return Track(TrackSid(sid), source, muted=False, is_sound=is_sound)


def publishing(*tracks: Track, who: ParticipantId = BOB) -> Presence:
    return Presence(MAIN, Identity(who), Permission(can_publish=True, sources=()), tracks)


@pytest.mark.parametrize(
    ("state", "published", "is_bypass"),
    [
        (QUIET, track(CAMERA, is_sound=True), True),
        (QUIET, track(SCREEN, is_sound=True), True),
        (QUIET, track(CAMERA, is_sound=False), False),
        (QUIET, track(MICROPHONE, is_sound=True), False),  # that is drift, and no disguise
        (QUIET, track(SCREEN_AUDIO, is_sound=True), False),  # a picture may come
        (QUIET, track(None, is_sound=True), False),  # no right of ours lets it through
        (MEETING, track(CAMERA, is_sound=True), False),
        (DARK, track(MICROPHONE, is_sound=False), True),
        (DARK, track(SCREEN_AUDIO, is_sound=False), True),
        (DARK, track(CAMERA, is_sound=False), False),
        (MEETING, track(MICROPHONE, is_sound=False), False),
    ],
)
def test_what_somebody_may_not_publish_under_another_name_is_a_bypass(
    state: MeetingState,
    published: Track,
    is_bypass: bool,  # noqa: FBT001 - a case
) -> None:
    assert bypassing(state, publishing(published)) == ((published,) if is_bypass else ())


def test_who_may_speak_gets_round_nothing() -> None:
    disguised = track(CAMERA, is_sound=True)
    assert bypassing(QUIET, publishing(disguised, who=ALICE)) == ()
    recorded = joined(QUIET, somebody(RECORDER, kind=Kind.RECORDER, role=Role.USER))
    assert bypassing(recorded, publishing(disguised, who=RECORDER)) == ()


def test_a_stranger_may_not_publish_what_they_did_not_come_with_under_the_name_of_what_they_did() -> None:
    disguised, seen = track(CAMERA, is_sound=True), track(CAMERA, is_sound=False)
    only_seen = replace(publishing(disguised, seen, who=DAVE), permission=allowing(CAMERA))
    assert bypassing(MEETING, only_seen) == (disguised,)
    assert bypassing(MEETING, replace(only_seen, permission=allowing(CAMERA, MICROPHONE))) == ()
    assert bypassing(MEETING, replace(only_seen, identity=Identity(BOB))) == (), "LiveKit is about to allow Bob more"
    assert bypassing(MEETING, replace(only_seen, is_hidden=True)) == (), "a service has nothing but its token"
    kept_from_sound = replace(MEETING, blocks=frozenset({Block(DAVE, Source.MICROPHONE)}))
    assert bypassing(kept_from_sound, replace(only_seen, is_hidden=True)) == (disguised,)
    kept_from_pictures = replace(MEETING, blocks=frozenset({Block(DAVE, Source.CAMERA)}))
    assert bypassing(kept_from_pictures, replace(only_seen, is_hidden=True)) == ()
    sound = track(SCREEN_AUDIO, is_sound=True)
    only_screen = replace(publishing(sound, who=DAVE), permission=allowing(SCREEN, SCREEN_AUDIO))
    assert unaccompanied(MEETING, only_screen) == (sound,)


def test_the_sound_of_a_screen_needs_a_screen_or_a_grant() -> None:
    sound, picture = track(SCREEN_AUDIO, is_sound=True), track(SCREEN, is_sound=False, sid="TR_2")
    assert unaccompanied(QUIET, publishing(sound)) == (sound,)
    assert unaccompanied(QUIET, publishing(sound, picture)) == ()
    assert unaccompanied(QUIET, publishing(sound, track(SCREEN, is_sound=True, sid="TR_2"))) == (sound,)
    assert unaccompanied(apply(QUIET, [Granted(frozenset({BOB}))]), publishing(sound)) == ()
    assert unaccompanied(MEETING, publishing(sound)) == ()
    assert unaccompanied(QUIET, publishing(sound, who=ALICE)) == ()
