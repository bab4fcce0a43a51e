"""
A listener that finds out how far apart the flashes and the beeps of an announcement arrive.

A process of its own, since LiveKit's native library has no place in pytest's: url and token come as arguments, a line
of JSON goes out when it listens, and another one when whoever it heard has left.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from livekit import rtc

FRAME_MS = 10
LOUD = 1_000
BRIGHT = 150
APART_S = 0.5


class Onsets:
    """When something began, by `time.monotonic`: each time after it was over."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self._is_on = True

    def note(self, *, is_on: bool) -> None:
        """What has just come in."""
        if is_on and not self._is_on:
            self.at.append(time.monotonic())
        self._is_on = is_on


async def listen(track: rtc.Track, beeps: Onsets) -> None:
    async for event in rtc.AudioStream(track, frame_size_ms=FRAME_MS):
        samples = np.frombuffer(event.frame.data, dtype=np.int16).astype(np.float32)
        beeps.note(is_on=float(np.sqrt(np.mean(np.square(samples)))) > LOUD)


async def watch(track: rtc.Track, flashes: Onsets) -> None:
    async for event in rtc.VideoStream(track):
        frame = event.frame  # I420: the brightness comes first
        brightness = np.frombuffer(frame.data, dtype=np.uint8, count=frame.width * frame.height)
        flashes.note(is_on=float(np.mean(brightness[::16])) > BRIGHT)


def drift_ms(flashes: list[float], beeps: list[float]) -> list[float]:
    """For each flash with a beep near it, by how much the beep came later."""
    nearest = [min((beep - flash for beep in beeps), key=abs, default=APART_S) for flash in flashes]
    return [round(1_000 * apart, 1) for apart in nearest if abs(apart) < APART_S]


async def main(url: str, token: str, tell: Callable[[str], object]) -> None:
    flashes, beeps = Onsets(), Onsets()
    reading: list[asyncio.Task[None]] = []
    is_over = asyncio.Event()
    room = rtc.Room()

    def subscribed(track: rtc.Track, *_: object) -> None:
        is_sound = track.kind == rtc.TrackKind.KIND_AUDIO
        reading.append(asyncio.create_task(listen(track, beeps) if is_sound else watch(track, flashes)))

    def published(publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant) -> None:
        if participant.identity.startswith("announcement-"):
            publication.set_subscribed(True)

    def left(participant: rtc.RemoteParticipant) -> None:
        if participant.identity.startswith("announcement-"):
            is_over.set()

    room.on("track_subscribed", subscribed)
    room.on("track_published", published)
    room.on("participant_disconnected", left)
    await room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
    tell(json.dumps({"ready": True}))
    async with asyncio.timeout(60):
        await is_over.wait()
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)
    tell(json.dumps({"flashes": len(flashes.at), "beeps": len(beeps.at), "drift_ms": drift_ms(flashes.at, beeps.at)}))
    await room.disconnect()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], lambda line: print(line, flush=True)))  # noqa: T201
    os._exit(0)  # the native library's own way out may take long, or crash
