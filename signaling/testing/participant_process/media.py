"""Sound and pictures: how they are made, and how they are noticed."""

import asyncio
import itertools
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from livekit import rtc

RATE: Final = 48_000
_AMPLITUDE: Final = 8_000
_PLAYED_MS: Final = 100
HEARD_MS: Final = 20
_AUDIBLE: Final = 400.0
"""The RMS from which on something counts as heard: a twelfth of what a tone of ours has."""
PICTURE: Final = (320, 180)
_PICTURES_PER_S: Final = 10
SOUND_GAP_S: Final = 0.3
PICTURE_GAP_S: Final = 0.5
"""Frames that are further apart than this are an interruption."""
REMEMBERED: Final = 6_000


@dataclass(slots=True)
class Medium:
    """
    What comes from somebody under one source, whatever tracks carry it.

    Attributes:
        perceived: When frames that could be heard or seen came, oldest first.
        began_at: When the first of those came that have followed each other closely ever since.
        frame_at: When the last frame came, audible or not.
        quiet_s: How much silence has come since the last audible frame.
        levels: The mean square of the last frame of each track that there is now.
    """

    perceived: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    began_at: float = 0
    frame_at: float = float("-inf")
    quiet_s: float = 0
    starts_anew: bool = True
    levels: dict[str, float] = field(default_factory=dict)

    @property
    def last_at(self) -> float:
        """When the last of those frames came."""
        return self.perceived[-1] if self.perceived else float("-inf")

    @property
    def level(self) -> float:
        """How loud it is now: an RMS, over all its tracks."""
        return float(np.sqrt(max(self.levels.values(), default=0.0)))

    def perceive(self, now: float, gap_s: float) -> None:
        """Take a frame that could be heard or seen."""
        if self.starts_anew or now - self.last_at >= gap_s:
            self.began_at = now
        self.starts_anew = False
        self.perceived.append(now)
        self.quiet_s = 0

    def lose(self, sid: str) -> None:
        """Forget a track that is gone."""
        self.levels.pop(sid, None)
        self.starts_anew = not self.levels

    def continues(self, now: float, gap_s: float) -> bool:
        """Whether it comes just now."""
        return not self.starts_anew and now - self.last_at < gap_s

    def ended(self, now: float, gap_s: float) -> bool:
        """Whether nothing has come for that long, as far as one can tell now."""
        if not self.levels:
            return True
        # No frames at all may also mean that this process is out of breath: silence that came in is the better sign.
        return now - self.last_at >= gap_s and (self.quiet_s >= gap_s or now - self.frame_at >= gap_s)


async def listen(track: rtc.Track, sid: str, medium: Medium, heard: deque[float]) -> None:
    """Take what comes by a track of sound, until it ends or this is cancelled."""
    stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1, frame_size_ms=HEARD_MS)
    medium.levels[sid] = 0
    try:
        async for event in stream:
            now = time.monotonic()
            samples = np.frombuffer(event.frame.data, dtype=np.int16).astype(np.float32)
            loudness = float(np.mean(np.square(samples)))
            medium.frame_at = now
            medium.levels[sid] = loudness
            if loudness >= _AUDIBLE**2:
                medium.perceive(now, SOUND_GAP_S)
                heard.append(now)
            else:
                medium.quiet_s += HEARD_MS / 1000
    finally:
        medium.lose(sid)
        await stream.aclose()


async def watch(track: rtc.Track, sid: str, medium: Medium) -> None:
    """Take what comes by a track of pictures, until it ends or this is cancelled."""
    stream = rtc.VideoStream(track)
    medium.levels[sid] = 0
    try:
        async for _ in stream:
            medium.frame_at = time.monotonic()
            medium.perceive(medium.frame_at, PICTURE_GAP_S)
    finally:
        medium.lose(sid)
        await stream.aclose()


async def play(source: rtc.AudioSource, frequency_hz: int) -> None:
    """A tone without a seam: whole periods fill the second that is played over and over."""
    seconds = np.arange(RATE) / RATE
    samples = (_AMPLITUDE * np.sin(2 * np.pi * frequency_hz * seconds)).astype(np.int16)
    length = RATE * _PLAYED_MS // 1000
    frames = [
        rtc.AudioFrame(samples[begin : begin + length].tobytes(), RATE, 1, length) for begin in range(0, RATE, length)
    ]
    for frame in itertools.cycle(frames):
        await source.capture_frame(frame)  # waits for room in the queue, which keeps the time


async def show(source: rtc.VideoSource) -> None:
    """A picture that changes its brightness all the time."""
    width, height = PICTURE
    for brightness in itertools.cycle(range(16, 235)):
        pixels = bytes([brightness, brightness, brightness, 255]) * (width * height)
        source.capture_frame(rtc.VideoFrame(width, height, rtc.VideoBufferType.RGBA, pixels))
        await asyncio.sleep(1 / _PICTURES_PER_S)
