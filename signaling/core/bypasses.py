"""Media that go by another name than their own: what a client says of a track is a claim, and rights go by claims."""

from signaling.core.effects import Presence, Track
from signaling.core.enforcement import allowable, is_exempt
from signaling.core.participants import Source
from signaling.core.policy import is_service, publishable
from signaling.core.state import MeetingState
from signaling.identifiers import ParticipantId

_OF_PICTURES = frozenset({Source.CAMERA, Source.SCREEN_SHARE})
_OF_SOUNDS = frozenset({Source.MICROPHONE, Source.SCREEN_SHARE_AUDIO})


def bypassing(state: MeetingState, presence: Presence) -> tuple[Track, ...]:
    """Tracks that bring what somebody may not publish under the name of something that they may."""
    disguised = [track for track in presence.tracks if track.source in (_OF_PICTURES if track.is_sound else _OF_SOUNDS)]
    if not disguised:  # so with nearly everybody, whom every sweep asks about
        return ()
    kept = _kept_from(state, presence)
    return tuple(track for track in disguised if (Source.MICROPHONE if track.is_sound else Source.CAMERA) in kept)


def unaccompanied(state: MeetingState, presence: Presence) -> tuple[Track, ...]:
    """
    Sound of a screen without a screen, from somebody who may not speak and was not granted the screen by name.

    The picture may only be on its way: each track is listed when its first media arrives, in any order.
    """
    sounds = tuple(track for track in presence.tracks if track.is_sound and track.source is Source.SCREEN_SHARE_AUDIO)
    if not sounds or Source.MICROPHONE not in _kept_from(state, presence):
        return ()
    if any(track.source is Source.SCREEN_SHARE and not track.is_sound for track in presence.tracks):
        return ()
    if ParticipantId(presence.identity) in state.listed.get(Source.SCREEN_SHARE, frozenset()):
        return ()
    return sounds


def _kept_from(state: MeetingState, presence: Presence) -> frozenset[Source]:
    if is_exempt(state, presence):
        return frozenset()
    if is_service(presence):
        allowed = publishable(ParticipantId(presence.identity), state, is_service=True)
    else:  # a stranger's token may say less than the meeting does
        allowed = allowable(state, presence)
    return frozenset(Source) - frozenset(allowed)
