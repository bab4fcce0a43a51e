"""What a participant hears and sees of the others."""

import asyncio
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

from livekit import rtc

from signaling.testing.participant_process.media import (
    HEARD_MS,
    PICTURE_GAP_S,
    REMEMBERED,
    SOUND_GAP_S,
    Medium,
    listen,
    watch,
)
from signaling.testing.participant_process.replies import Refused, Reply
from signaling.testing.participant_process.sources import SOUNDS, source_name

_DRAINING_S: Final = 0.3
_POLL_S: Final = 0.005


class Perception:
    """All that comes from others, over as many connections as the participant makes."""

    def __init__(self, connected: Callable[[], rtc.Room], *, listens: bool) -> None:
        """
        Perceive nothing yet.

        Args:
            connected: The room that the participant is in now.
            listens: Whether it subscribes to sound.

        """
        self._connected = connected
        self._listens = listens
        self._media: dict[tuple[str, str], Medium] = {}
        self._heard: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._watched: set[tuple[str, str]] = set()
        self._readers: dict[str, asyncio.Task[None]] = {}

    async def perceived(self, identity: str, source: str, *, since: float | None, timeout_s: float) -> Reply:
        """When it was first heard or seen: since then, or without interruption up to now."""
        medium = self._medium(identity, source)
        gap_s = _gap_s(source)

        def first() -> float | None:
            if since is None:
                return medium.began_at if medium.continues(time.monotonic(), gap_s) else None
            index = bisect_left(medium.perceived, since)
            return medium.perceived[index] if index < len(medium.perceived) else None

        return await self._until(first, f"{identity} was not perceived by {source}", timeout_s)

    async def ended(self, identity: str, source: str, *, quiet_s: float | None, timeout_s: float) -> Reply:
        """When it was last heard or seen, once that is long enough ago, or the track is gone."""
        medium = self._medium(identity, source)
        gap_s = _gap_s(source) if quiet_s is None else quiet_s
        seen_ended = 0

        def last() -> float | None:
            nonlocal seen_ended
            seen_ended = seen_ended + 1 if medium.ended(time.monotonic(), gap_s) else 0
            # Twice, since frames may wait for this loop; what waits has come in by the second time.
            return None if seen_ended < 2 else medium.last_at  # noqa: PLR2004

        return await self._until(last, f"{identity} was still perceived by {source}", timeout_s)

    async def heard_for(self, identity: str, *, since: float, until: float) -> Reply:
        """How much could be heard of somebody between these times, whatever source it came under."""
        self._check_listening()
        await asyncio.sleep(until - time.monotonic())
        return {"seconds": sum(since <= at <= until for at in self._heard[identity]) * HEARD_MS / 1000}

    async def level(self, identity: str, source: str) -> Reply:
        """How loud somebody is now."""
        return {"level": self._medium(identity, source).level}

    def _medium(self, identity: str, source: str) -> Medium:
        if source in SOUNDS:
            self._check_listening()
        if source not in SOUNDS and (identity, source) not in self._watched:
            self._watched.add((identity, source))
            other = self._connected().remote_participants.get(identity)
            for publication in () if other is None else other.track_publications.values():
                self.consider(publication, identity)
        return self._media.setdefault((identity, source), Medium())

    def _check_listening(self) -> None:
        if not self._listens:
            raise Refused("ParticipantError", "the participant does not listen: connect it with listens=True")

    async def _until(self, result: Callable[[], float | None], failure: str, timeout_s: float) -> Reply:
        try:
            async with asyncio.timeout(timeout_s):
                while (at := result()) is None:  # noqa: ASYNC110  time itself is what is waited for
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            now = time.monotonic()
            media = ", ".join(
                f"{identity}'s {source}: level {medium.level:.0f} on {len(medium.levels)} tracks, "
                + (f"last perceived {now - medium.last_at:.2f} s ago" if medium.perceived else "never perceived")
                for (identity, source), medium in self._media.items()
            )
            raise Refused("WaitedInVain", f"{failure} within {timeout_s:g} s ({media})") from None
        return {"at": None if at == float("-inf") else at}

    def consider(self, publication: rtc.RemoteTrackPublication, identity: str) -> None:
        """
        Subscribe to what this participant is after.

        Sound by type and by mime type: a video track that carries sound aborts the process of whoever subscribes.
        """
        carries_sound = publication.mime_type.lower().startswith("audio/")
        source = source_name(publication.source)
        if publication.kind == rtc.TrackKind.KIND_AUDIO:
            wanted = carries_sound and self._listens
        else:
            wanted = not carries_sound and (identity, source) in self._watched
        if wanted and not publication.subscribed:
            publication.set_subscribed(True)

    def read(
        self,
        track: rtc.RemoteAudioTrack | rtc.RemoteVideoTrack,
        publication: rtc.RemoteTrackPublication,
        identity: str,
    ) -> None:
        """Take what comes by a track that is subscribed to now."""
        medium = self._media.setdefault((identity, source_name(publication.source)), Medium())
        reading = (
            listen(track, publication.sid, medium, self._heard[identity])
            if publication.kind == rtc.TrackKind.KIND_AUDIO
            else watch(track, publication.sid, medium)
        )
        self._readers[publication.sid] = asyncio.create_task(reading, name=f"reading {publication.sid}")

    def gone(self, publication: rtc.RemoteTrackPublication) -> None:
        """
        The track is gone, and its reader has to go.

        The SDK may never end it, and would even feed it what somebody publishes next. But what is on the way is still
        heard: a moment is left for that.
        """
        reader = self._readers.pop(publication.sid, None)
        if reader is not None:
            asyncio.get_running_loop().call_later(_DRAINING_S, reader.cancel)

    async def end(self) -> None:
        """Read nothing any more: the connection is gone."""
        readers = tuple(self._readers.values())
        self._readers.clear()
        for reader in readers:
            reader.cancel()
        if readers:
            await asyncio.wait(readers)


def _gap_s(source: str) -> float:
    return SOUND_GAP_S if source in SOUNDS else PICTURE_GAP_S
