"""
An announcement by the backend, sound and picture in step, while nobody but moderators may speak.

Needs `livekit-moderation`, `livekit` and `numpy`:

    LIVEKIT_URL=… LIVEKIT_API_KEY=… LIVEKIT_API_SECRET=… python examples/announce.py --room standup --seconds 10

`announce` is for the process that embeds the module, which knows what holds in the meeting. The command has a module of
its own, so it is for a room that nothing else moderates, or for a `MODERATION_STORE_URL` that it shares with what does.

The announcer is a moderator: no restriction touches moderators, and the allow list stays empty for everybody to see. A
recorder would be exempt too, but nobody sees or hears one. Players keep the microphone and the camera of one stream in
step. Announce one thing at a time in a meeting. A crash of LiveKit's native library ends its process: where processes
share the store, prefer the command.
"""
# ruff: noqa: INP001 - a program, not a package

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

import numpy as np
from livekit import rtc

from signaling import (
    Delivery,
    ModerationModule,
    Participant,
    Role,
    RoomId,
    Session,
    Settings,
    SignalingError,
    parse_participant_id,
    parse_room_id,
)

FPS: Final = 30
RATE: Final = 48_000
AHEAD_MS: Final = 500
"""
How much is made ahead, to be played while this process is out of breath: sound that runs out once is late ever after.
With the synchronizer's default of 100 ms, it came to be 260 ms late on a busy machine.
"""
WIDTH, HEIGHT = 640, 360
MARK: Final = FPS // 10
"""For how many pictures the flash and the beep of each second last."""
HAND, LINE = 140, 3
_X, _Y = np.meshgrid(np.arange(WIDTH) - WIDTH / 2, HEIGHT / 2 - np.arange(HEIGHT))
_RADIUS, _ANGLE = np.hypot(_X, _Y).astype(np.float32), np.arctan2(_X, _Y).astype(np.float32)
_DIAL: Final = np.repeat(np.where(np.abs(_RADIUS - HAND - 20) < LINE, 120, 16).astype(np.uint8)[..., None], 4, axis=2)
_BEEP: Final = (12_000 * np.sin(2 * np.pi * 1_000 * np.arange(RATE // FPS) / RATE)).astype(np.int16)


class AnnouncementFailed(SignalingError):
    """Nobody was silenced, or not everything could be put back; the message says why."""


async def announce(module: ModerationModule, room: RoomId, *, seconds: int) -> None:
    """
    Publish a clock that flashes and beeps every second, and let nobody but moderators speak meanwhile.

    What others decide about the microphones meanwhile stands; else it is afterwards as it was before.

    Raises:
        AnnouncementFailed: LiveKit does not answer.
    """
    told: list[Delivery] = []
    announcer = Participant(
        parse_participant_id(f"announcement-{uuid4()}"), role=Role.MODERATOR, display_name="Announcement"
    )
    session = await module.join(room, announcer, deliver=told.append, extensions=frozenset({"livekit_moderation"}))
    try:
        match session.join_data:
            case {"token": str(token), "public_url": str(url), "microphone_restriction_state": dict(before)}:
                async with on_air(url, token) as synchronizer, silence(session, told, before):
                    for number in range(FPS * (seconds + 1)):
                        picture, sound = await asyncio.to_thread(moment, number)
                        await synchronizer.push(picture)
                        await synchronizer.push(sound)
                    await synchronizer.wait_for_playout()
            case _:
                raise AnnouncementFailed("LiveKit does not answer")
    finally:
        await session.leave()


@asynccontextmanager
async def silence(session: Session, told: list[Delivery], before: dict[str, object]) -> AsyncIterator[None]:
    """Restrict every microphone but the moderators' for the block; then what held before holds again."""
    try:
        await command(session, told, "enable_microphone_restrictions", unrestricted_participants=[])
        yield
    finally:  # also when the command was cancelled, since it takes effect all the same
        decided_by_others = [
            delivery.payload
            for delivery in told
            if delivery.transaction_id is None and delivery.payload["message"].startswith("microphone_restrictions_")
        ]
        listed = (before, *decided_by_others)[-1].get("unrestricted_participants")
        if listed is None:
            await command(session, told, "disable_microphone_restrictions")
        else:
            await command(session, told, "enable_microphone_restrictions", unrestricted_participants=listed)


async def command(session: Session, told: list[Delivery], action: str, **fields: object) -> None:
    """Send a command. Who was not reached is retried by the module; that nobody was, is a failure."""
    transaction_id = str(uuid4())
    await session.receive("livekit", {"action": action, **fields}, transaction_id)
    for delivery in told:
        if delivery.transaction_id == transaction_id and delivery.payload["message"] == "result":
            if "error" in delivery.payload and not delivery.payload["outcomes"]:
                raise AnnouncementFailed(f"{action}: {delivery.payload['error']}")
            return
    raise AnnouncementFailed(f"{action}: the session has ended")


@asynccontextmanager
async def on_air(url: str, token: str) -> AsyncIterator[rtc.AVSynchronizer]:
    """Publish a camera and a microphone, which the synchronizer feeds."""
    room, sound, picture = rtc.Room(), rtc.AudioSource(RATE, 1), rtc.VideoSource(WIDTH, HEIGHT)
    try:
        await room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
        for track, source in (
            (rtc.LocalAudioTrack.create_audio_track("announcement", sound), rtc.TrackSource.SOURCE_MICROPHONE),
            (rtc.LocalVideoTrack.create_video_track("announcement", picture), rtc.TrackSource.SOURCE_CAMERA),
        ):
            await room.local_participant.publish_track(
                track, rtc.TrackPublishOptions(source=source, stream="announcement", simulcast=False, dtx=False)
            )
        synchronizer = rtc.AVSynchronizer(
            audio_source=sound, video_source=picture, video_fps=FPS, video_queue_size_ms=AHEAD_MS
        )
        try:
            yield synchronizer
        finally:
            await synchronizer.aclose()
    finally:
        await room.disconnect()
        await sound.aclose()
        await picture.aclose()


def moment(number: int) -> tuple[rtc.VideoFrame, rtc.AudioFrame]:
    """The picture with this number, and what is to be heard while it is seen; the first second is to tune in."""
    second, part = divmod(number, FPS)
    is_marked = second > 0 and part < MARK
    if is_marked:
        pixels = np.full_like(_DIAL, 235)
    else:
        turned = (_ANGLE - 2 * np.pi * number / FPS / 60 + np.pi) % (2 * np.pi) - np.pi
        hand = (_RADIUS < HAND) & (np.abs(turned) * _RADIUS < LINE)
        pixels = np.where(hand[..., None], np.uint8(200), _DIAL)
    samples = _BEEP if is_marked else np.zeros_like(_BEEP)
    return (
        rtc.VideoFrame(WIDTH, HEIGHT, rtc.VideoBufferType.RGBA, pixels.tobytes()),
        rtc.AudioFrame(samples.tobytes(), RATE, 1, len(samples)),
    )


async def main() -> None:
    """Announce in a room of the LiveKit that the environment names; being stopped puts everything back, too."""
    parser = argparse.ArgumentParser(description="Publish an announcement while nobody but moderators may speak.")
    parser.add_argument("--room", required=True, type=parse_room_id)
    parser.add_argument("--seconds", type=int, default=10)
    arguments = parser.parse_args()
    settings = Settings()
    if settings.livekit_url is None:
        parser.error("LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET must be set")
    async with ModerationModule(settings) as module:
        announcing = asyncio.create_task(announce(module, arguments.room, seconds=arguments.seconds))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, announcing.cancel)
        await asyncio.wait({announcing})
    if announcing.cancelled():
        sys.exit("stopped")
    announcing.result()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except SignalingError as error:
        sys.exit(str(error))
