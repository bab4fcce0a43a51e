"""The sources of tracks, by the names that LiveKit's tokens use."""

from typing import Final

from livekit import rtc

SOUNDS: Final = frozenset({"microphone", "screen_share_audio"})
"""What is sound, if nothing else is said."""


def source_number(source: str) -> rtc.TrackSource.ValueType:
    """By the names that LiveKit's tokens use; the SDK spells them its own way, with another name for screen sharing."""
    return rtc.TrackSource.Value(f"SOURCE_{source.upper()}".replace("SCREEN_SHARE", "SCREENSHARE"))


def source_name(source: rtc.TrackSource.ValueType) -> str:
    """By the same names."""
    return rtc.TrackSource.Name(source).removeprefix("SOURCE_").replace("SCREENSHARE", "SCREEN_SHARE").lower()
