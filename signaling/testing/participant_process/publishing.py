"""What a participant publishes."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from livekit import rtc
from livekit.rtc.participant import PublishTrackError, UnpublishTrackError

from signaling.testing.participant_process.media import PICTURE, RATE, play, show
from signaling.testing.participant_process.replies import Refused, Reply
from signaling.testing.participant_process.sources import SOUNDS, source_number

_SETTLING_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Published:
    track: rtc.LocalAudioTrack | rtc.LocalVideoTrack
    sid: str
    source: rtc.AudioSource | rtc.VideoSource
    feeding: asyncio.Task[None]


class Publishing:
    """The tracks of one participant, at most one of each source."""

    def __init__(self, connected: Callable[[], rtc.Room]) -> None:
        """
        Publish nothing yet.

        Args:
            connected: The room that the participant is in now.

        """
        self._connected = connected
        self._published: dict[str, _Published] = {}
        self._toggled_at = float("-inf")

    async def publish(
        self, source: str, *, frequency_hz: int, is_sound: bool | None, anyway: bool, within_s: float
    ) -> Reply:
        """Publish a tone or a picture, in place of what there was of this source."""
        me = self._connected().local_participant
        await self._unpublish_old(source)
        number = source_number(source)
        permission = me.permissions
        allowed = permission.can_publish and (
            not permission.can_publish_sources or number in permission.can_publish_sources
        )
        if not allowed and not anyway:
            raise Refused("PublishRefused", f"{me.identity} was told not to publish {source}")
        options = rtc.TrackPublishOptions()
        options.source = number
        options.simulcast = False
        track: rtc.LocalAudioTrack | rtc.LocalVideoTrack
        made: rtc.AudioSource | rtc.VideoSource
        if source in SOUNDS if is_sound is None else is_sound:
            made = rtc.AudioSource(RATE, 1)
            track = rtc.LocalAudioTrack.create_audio_track(source, made)
            feeding = asyncio.create_task(play(made, frequency_hz), name=f"tone of {me.identity}")
        else:
            made = rtc.VideoSource(*PICTURE, is_screencast=source == "screen_share")
            track = rtc.LocalVideoTrack.create_video_track(source, made)
            feeding = asyncio.create_task(show(made), name=f"picture of {me.identity}")
        try:
            async with asyncio.timeout(within_s):
                publication = await me.publish_track(track, options)
        except BaseException as error:
            feeding.cancel()
            await made.aclose()
            if isinstance(error, PublishTrackError):
                raise Refused("PublishRefused", f"{me.identity} may not publish {source}: {error}") from error
            if isinstance(error, TimeoutError):
                words = f"LiveKit did not take {me.identity}'s {source} within {within_s:g} s"
                raise Refused("PublishRefused", words) from error
            raise
        self._published[source] = _Published(track, publication.sid, made, feeding)
        return {"track_sid": publication.sid}

    async def unpublish(self, source: str) -> Reply:
        """End a track."""
        self._own(source)
        await self._unpublish_old(source)
        return {}

    async def mute(self, source: str) -> Reply:
        """Mute a track."""
        track = self._own(source).track
        await self._settle()
        track.mute()
        self._toggled_at = time.monotonic()
        return {}

    async def unmute(self, source: str) -> Reply:
        """Unmute a track."""
        track = self._own(source).track
        await self._settle()
        track.unmute()
        self._toggled_at = time.monotonic()
        return {}

    async def _settle(self) -> None:
        """
        Wait until LiveKit has what the SDK tells it about the last mute.

        Otherwise the next one may overtake that, and LiveKit be left with the older state: once in 300 times.
        """
        await asyncio.sleep(max(0.0, self._toggled_at + _SETTLING_S - time.monotonic()))

    def _own(self, source: str) -> _Published:
        try:
            return self._published[source]
        except KeyError:
            raise Refused("ParticipantError", f"the participant does not publish {source}") from None

    async def _unpublish_old(self, source: str) -> None:
        published = self._published.pop(source, None)
        if published is not None:
            await self._stop_feeding(published)
            with suppress(UnpublishTrackError):  # taken away by LiveKit, or lost with it
                await self._connected().local_participant.unpublish_track(published.sid)

    @staticmethod
    async def _stop_feeding(published: _Published) -> None:
        published.feeding.cancel()
        await asyncio.wait([published.feeding])
        await published.source.aclose()

    def note_toggled(self) -> None:
        """A track of the participant was muted or unmuted just now, by whomever."""
        self._toggled_at = time.monotonic()

    async def end(self) -> None:
        """Feed nothing any more: the connection is gone."""
        for published in self._published.values():
            await self._stop_feeding(published)
        self._published.clear()
