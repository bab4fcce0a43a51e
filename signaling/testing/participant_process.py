"""
The child's side of `ParticipantProcess`: real participants, kept where a native crash takes nobody else along.

Requests come in as lines of JSON, answers and events go out the same way. It ends when its input does.
"""

import asyncio
import itertools
import json
import os
import sys
import time
import traceback
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from livekit import rtc
from livekit.rtc.participant import PublishTrackError, UnpublishTrackError

_RATE: Final = 48_000
_AMPLITUDE: Final = 8_000
_PLAYED_MS: Final = 100
_HEARD_MS: Final = 20
_AUDIBLE: Final = 400.0
"""The RMS from which on something counts as heard: a twelfth of what a tone of ours has."""
_PICTURE: Final = (320, 180)
_PICTURES_PER_S: Final = 10
_SOUND_GAP_S: Final = 0.3
_PICTURE_GAP_S: Final = 0.5
"""Frames that are further apart than this are an interruption."""
_SETTLING_S: Final = 0.05
_DRAINING_S: Final = 0.3
_REMEMBERED: Final = 6_000
_POLL_S: Final = 0.005
_LINE_BYTES: Final = 2**20
_SOUNDS: Final = frozenset({"microphone", "screen_share_audio"})

_Reply: TypeAlias = dict[str, Any]


class _Refused(Exception):
    """What the parent raises as the error of that name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind: Final = kind


@dataclass(slots=True)
class _Medium:
    """
    What comes from somebody under one source, whatever tracks carry it.

    Attributes:
        perceived: When frames that could be heard or seen came, oldest first.
        began_at: When the first of those came that have followed each other closely ever since.
        frame_at: When the last frame came, audible or not.
        quiet_s: How much silence has come since the last audible frame.
        levels: The mean square of the last frame of each track that there is now.
    """

    perceived: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    began_at: float = 0
    frame_at: float = float("-inf")
    quiet_s: float = 0
    starts_anew: bool = True
    levels: dict[str, float] = field(default_factory=dict)

    @property
    def last_at(self) -> float:
        return self.perceived[-1] if self.perceived else float("-inf")

    @property
    def level(self) -> float:
        return float(np.sqrt(max(self.levels.values(), default=0.0)))

    def perceive(self, now: float, gap_s: float) -> None:
        if self.starts_anew or now - self.last_at >= gap_s:
            self.began_at = now
        self.starts_anew = False
        self.perceived.append(now)
        self.quiet_s = 0

    def lose(self, sid: str) -> None:
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


@dataclass(frozen=True, slots=True)
class _Published:
    track: rtc.LocalAudioTrack | rtc.LocalVideoTrack
    sid: str
    source: rtc.AudioSource | rtc.VideoSource
    feeding: asyncio.Task[None]


class _Participant:
    """One participant, over as many connections as it makes."""

    def __init__(self, number: int, tell: Callable[[Mapping[str, Any]], None], *, listens: bool) -> None:
        self._number = number
        self._tell = tell
        self._listens = listens
        self._room: rtc.Room | None = None
        self._published: dict[str, _Published] = {}
        self._media: dict[tuple[str, str], _Medium] = {}
        self._heard: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._watched: set[tuple[str, str]] = set()
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._toggled_at = float("-inf")

    # --- Coming and going ----------------------------------------------------------------------------------------

    async def connect(self, url: str, token: str) -> _Reply:
        await self.disconnect()
        room = rtc.Room()
        self._register(room)
        try:
            await room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
        except rtc.ConnectError as error:
            raise _Refused("JoinRefused", str(error)) from error
        self._room = room
        me = room.local_participant
        self._event("connected", me.identity, permission=_plain(me.permissions))
        for other in room.remote_participants.values():
            for publication in other.track_publications.values():
                self._consider(publication, other.identity)
        return {"identity": me.identity, "sid": me.sid, "permission": _plain(me.permissions)}

    async def disconnect(self) -> _Reply:
        room, self._room = self._room, None
        if room is not None:
            await room.disconnect()
        for published in self._published.values():
            await self._stop_feeding(published)
        self._published.clear()
        readers = tuple(self._readers.values())
        self._readers.clear()
        for reader in readers:
            reader.cancel()
        if readers:
            await asyncio.wait(readers)
        return {}

    def _register(self, room: rtc.Room) -> None:
        """What happens is told as it happens; what LiveKit says of others is what moderation is about."""

        def others(name: str) -> Callable[[rtc.Participant], None]:
            return lambda other: self._event(name, other.identity)

        def published(publication: rtc.RemoteTrackPublication, other: rtc.RemoteParticipant) -> None:
            self._event("track_published", other.identity, publication)
            self._consider(publication, other.identity)

        def unpublished(publication: rtc.RemoteTrackPublication, other: rtc.RemoteParticipant) -> None:
            self._gone(publication)
            self._event("track_unpublished", other.identity, publication)

        def subscribed(
            track: rtc.RemoteAudioTrack | rtc.RemoteVideoTrack,
            publication: rtc.RemoteTrackPublication,
            other: rtc.RemoteParticipant,
        ) -> None:
            self._read(track, publication, other.identity)

        def unsubscribed(
            _track: rtc.RemoteTrack | None, publication: rtc.RemoteTrackPublication, _other: rtc.RemoteParticipant
        ) -> None:
            self._gone(publication)

        def told_muted(name: str) -> Callable[[rtc.Participant, rtc.TrackPublication], None]:
            def tell(whose: rtc.Participant, publication: rtc.TrackPublication) -> None:
                if whose.identity == room.local_participant.identity:
                    self._toggled_at = time.monotonic()
                self._event(name, whose.identity, publication)

            return tell

        def permitted(whose: rtc.Participant | None, permission: Any) -> None:  # noqa: ANN401  the SDK's own message
            if whose is not None and whose.identity == room.local_participant.identity:
                self._event("permission_changed", whose.identity, permission=_plain(permission))

        def disconnected(reason: Any) -> None:  # noqa: ANN401  the SDK's own enum
            self._event("disconnected", "", reason=rtc.DisconnectReason.Name(reason))

        room.on("participant_connected", others("participant_connected"))
        room.on("participant_disconnected", others("participant_disconnected"))
        room.on("reconnecting", lambda: self._event("reconnecting", ""))
        room.on("reconnected", lambda: self._event("reconnected", ""))
        room.on("track_muted", told_muted("track_muted"))
        room.on("track_unmuted", told_muted("track_unmuted"))
        room.on("track_published", published)
        room.on("track_unpublished", unpublished)
        room.on("track_subscribed", subscribed)
        room.on("track_unsubscribed", unsubscribed)
        room.on("participant_permissions_changed", permitted)
        room.on("disconnected", disconnected)

    def _event(
        self,
        name: str,
        identity: str,
        publication: rtc.TrackPublication | None = None,
        *,
        reason: str = "",
        permission: Mapping[str, Any] | None = None,
    ) -> None:
        self._tell(
            {
                "participant": self._number,
                "event": name,
                "at": time.monotonic(),
                "identity": identity,
                "source": "" if publication is None else _source_name(publication.source),
                "track_sid": "" if publication is None else publication.sid,
                "reason": reason,
                "permission": permission,
            }
        )

    @property
    def _connected(self) -> rtc.Room:
        if self._room is None:
            raise _Refused("ParticipantError", "the participant is not connected")
        return self._room

    # --- Publishing ----------------------------------------------------------------------------------------------

    async def publish(
        self, source: str, *, frequency_hz: int, is_sound: bool | None, anyway: bool, within_s: float
    ) -> _Reply:
        me = self._connected.local_participant
        await self._unpublish_old(source)
        number = _source_number(source)
        permission = me.permissions
        allowed = permission.can_publish and (
            not permission.can_publish_sources or number in permission.can_publish_sources
        )
        if not allowed and not anyway:
            raise _Refused("PublishRefused", f"{me.identity} was told not to publish {source}")
        options = rtc.TrackPublishOptions()
        options.source = number
        options.simulcast = False
        track: rtc.LocalAudioTrack | rtc.LocalVideoTrack
        made: rtc.AudioSource | rtc.VideoSource
        if source in _SOUNDS if is_sound is None else is_sound:
            made = rtc.AudioSource(_RATE, 1)
            track = rtc.LocalAudioTrack.create_audio_track(source, made)
            feeding = asyncio.create_task(_play(made, frequency_hz), name=f"tone of {me.identity}")
        else:
            made = rtc.VideoSource(*_PICTURE, is_screencast=source == "screen_share")
            track = rtc.LocalVideoTrack.create_video_track(source, made)
            feeding = asyncio.create_task(_show(made), name=f"picture of {me.identity}")
        try:
            async with asyncio.timeout(within_s):
                publication = await me.publish_track(track, options)
        except BaseException as error:
            feeding.cancel()
            await made.aclose()
            if isinstance(error, PublishTrackError):
                raise _Refused("PublishRefused", f"{me.identity} may not publish {source}: {error}") from error
            if isinstance(error, TimeoutError):
                words = f"LiveKit did not take {me.identity}'s {source} within {within_s:g} s"
                raise _Refused("PublishRefused", words) from error
            raise
        self._published[source] = _Published(track, publication.sid, made, feeding)
        return {"track_sid": publication.sid}

    async def unpublish(self, source: str) -> _Reply:
        self._own(source)
        await self._unpublish_old(source)
        return {}

    async def mute(self, source: str) -> _Reply:
        track = self._own(source).track
        await self._settle()
        track.mute()
        self._toggled_at = time.monotonic()
        return {}

    async def unmute(self, source: str) -> _Reply:
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
            raise _Refused("ParticipantError", f"the participant does not publish {source}") from None

    async def _unpublish_old(self, source: str) -> None:
        published = self._published.pop(source, None)
        if published is not None:
            await self._stop_feeding(published)
            with suppress(UnpublishTrackError):  # taken away by LiveKit, or lost with it
                await self._connected.local_participant.unpublish_track(published.sid)

    @staticmethod
    async def _stop_feeding(published: _Published) -> None:
        published.feeding.cancel()
        await asyncio.wait([published.feeding])
        await published.source.aclose()

    # --- Listening -----------------------------------------------------------------------------------------------

    async def perceived(self, identity: str, source: str, *, since: float | None, timeout_s: float) -> _Reply:
        """When it was first heard or seen: since then, or without interruption up to now."""
        medium = self._medium(identity, source)
        gap_s = _gap_s(source)

        def first() -> float | None:
            if since is None:
                return medium.began_at if medium.continues(time.monotonic(), gap_s) else None
            index = bisect_left(medium.perceived, since)
            return medium.perceived[index] if index < len(medium.perceived) else None

        return await self._until(first, f"{identity} was not perceived by {source}", timeout_s)

    async def ended(self, identity: str, source: str, *, quiet_s: float | None, timeout_s: float) -> _Reply:
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

    async def heard_for(self, identity: str, *, since: float, until: float) -> _Reply:
        """How much could be heard of somebody between these times, whatever source it came under."""
        self._check_listening()
        await asyncio.sleep(until - time.monotonic())
        return {"seconds": sum(since <= at <= until for at in self._heard[identity]) * _HEARD_MS / 1000}

    async def level(self, identity: str, source: str) -> _Reply:
        return {"level": self._medium(identity, source).level}

    def _medium(self, identity: str, source: str) -> _Medium:
        if source in _SOUNDS:
            self._check_listening()
        if source not in _SOUNDS and (identity, source) not in self._watched:
            self._watched.add((identity, source))
            other = self._connected.remote_participants.get(identity)
            for publication in () if other is None else other.track_publications.values():
                self._consider(publication, identity)
        return self._media.setdefault((identity, source), _Medium())

    def _check_listening(self) -> None:
        if not self._listens:
            raise _Refused("ParticipantError", "the participant does not listen: connect it with listens=True")

    async def _until(self, result: Callable[[], float | None], failure: str, timeout_s: float) -> _Reply:
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
            raise _Refused("WaitedInVain", f"{failure} within {timeout_s:g} s ({media})") from None
        return {"at": None if at == float("-inf") else at}

    def _consider(self, publication: rtc.RemoteTrackPublication, identity: str) -> None:
        """
        Subscribe to what this participant is after.

        Sound by type and by mime type: a video track that carries sound aborts the process of whoever subscribes.
        """
        carries_sound = publication.mime_type.lower().startswith("audio/")
        source = _source_name(publication.source)
        if publication.kind == rtc.TrackKind.KIND_AUDIO:
            wanted = carries_sound and self._listens
        else:
            wanted = not carries_sound and (identity, source) in self._watched
        if wanted and not publication.subscribed:
            publication.set_subscribed(True)

    def _read(
        self,
        track: rtc.RemoteAudioTrack | rtc.RemoteVideoTrack,
        publication: rtc.RemoteTrackPublication,
        identity: str,
    ) -> None:
        medium = self._media.setdefault((identity, _source_name(publication.source)), _Medium())
        reading = (
            _listen(track, publication.sid, medium, self._heard[identity])
            if publication.kind == rtc.TrackKind.KIND_AUDIO
            else _watch(track, publication.sid, medium)
        )
        self._readers[publication.sid] = asyncio.create_task(reading, name=f"reading {publication.sid}")

    def _gone(self, publication: rtc.RemoteTrackPublication) -> None:
        """
        The track is gone, and its reader has to go.

        The SDK may never end it, and would even feed it what somebody publishes next. But what is on the way is still
        heard: a moment is left for that.
        """
        reader = self._readers.pop(publication.sid, None)
        if reader is not None:
            asyncio.get_running_loop().call_later(_DRAINING_S, reader.cancel)


async def _listen(track: rtc.Track, sid: str, medium: _Medium, heard: deque[float]) -> None:
    stream = rtc.AudioStream(track, sample_rate=_RATE, num_channels=1, frame_size_ms=_HEARD_MS)
    medium.levels[sid] = 0
    try:
        async for event in stream:
            now = time.monotonic()
            samples = np.frombuffer(event.frame.data, dtype=np.int16).astype(np.float32)
            loudness = float(np.mean(np.square(samples)))
            medium.frame_at = now
            medium.levels[sid] = loudness
            if loudness >= _AUDIBLE**2:
                medium.perceive(now, _SOUND_GAP_S)
                heard.append(now)
            else:
                medium.quiet_s += _HEARD_MS / 1000
    finally:
        medium.lose(sid)
        await stream.aclose()


async def _watch(track: rtc.Track, sid: str, medium: _Medium) -> None:
    stream = rtc.VideoStream(track)
    medium.levels[sid] = 0
    try:
        async for _ in stream:
            medium.frame_at = time.monotonic()
            medium.perceive(medium.frame_at, _PICTURE_GAP_S)
    finally:
        medium.lose(sid)
        await stream.aclose()


async def _play(source: rtc.AudioSource, frequency_hz: int) -> None:
    """A tone without a seam: whole periods fill the second that is played over and over."""
    seconds = np.arange(_RATE) / _RATE
    samples = (_AMPLITUDE * np.sin(2 * np.pi * frequency_hz * seconds)).astype(np.int16)
    length = _RATE * _PLAYED_MS // 1000
    frames = [
        rtc.AudioFrame(samples[begin : begin + length].tobytes(), _RATE, 1, length) for begin in range(0, _RATE, length)
    ]
    for frame in itertools.cycle(frames):
        await source.capture_frame(frame)  # waits for room in the queue, which keeps the time


async def _show(source: rtc.VideoSource) -> None:
    """A picture that changes its brightness all the time."""
    width, height = _PICTURE
    for brightness in itertools.cycle(range(16, 235)):
        pixels = bytes([brightness, brightness, brightness, 255]) * (width * height)
        source.capture_frame(rtc.VideoFrame(width, height, rtc.VideoBufferType.RGBA, pixels))
        await asyncio.sleep(1 / _PICTURES_PER_S)


class _Service:
    """Answers the parent's requests, each as soon as it can be."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._participants: dict[int, _Participant] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, requests: asyncio.StreamReader) -> None:
        """Serve until the input ends, then leave every room."""
        while line := await requests.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(participant.disconnect() for participant in self._participants.values()))

    async def _answer(self, request: _Reply) -> None:
        try:
            answer = await self._carry_out(request.pop("op"), request.pop("participant"), request.pop("arguments"))
        except _Refused as refused:
            answer = {"error": refused.kind, "message": str(refused)}
        except Exception:  # noqa: BLE001  the parent raises it, with its traceback
            answer = {"error": "ParticipantError", "message": traceback.format_exc()}
        self._tell({"request": request["request"]} | answer)

    def _carry_out(self, operation: str, number: int, arguments: _Reply) -> Awaitable[_Reply]:
        if operation == "connect":
            self._participants[number] = _Participant(number, self._tell, listens=arguments.pop("listens"))
        participant = self._participants[number]
        operations: Mapping[str, Callable[..., Awaitable[_Reply]]] = {
            "connect": participant.connect,
            "disconnect": participant.disconnect,
            "ended": participant.ended,
            "heard_for": participant.heard_for,
            "level": participant.level,
            "mute": participant.mute,
            "perceived": participant.perceived,
            "publish": participant.publish,
            "reconnect": participant.connect,
            "unmute": participant.unmute,
            "unpublish": participant.unpublish,
        }
        return operations[operation](**arguments)

    def _tell(self, message: Mapping[str, Any]) -> None:
        self._write(json.dumps(message).encode() + b"\n")


def _gap_s(source: str) -> float:
    return _SOUND_GAP_S if source in _SOUNDS else _PICTURE_GAP_S


def _source_number(source: str) -> rtc.TrackSource.ValueType:
    """By the names that LiveKit's tokens use; the SDK spells them its own way, with another name for screen sharing."""
    return rtc.TrackSource.Value(f"SOURCE_{source.upper()}".replace("SCREEN_SHARE", "SCREENSHARE"))


def _source_name(source: rtc.TrackSource.ValueType) -> str:
    return rtc.TrackSource.Name(source).removeprefix("SOURCE_").replace("SCREENSHARE", "SCREEN_SHARE").lower()


def _plain(permission: Any) -> _Reply:  # noqa: ANN401  the SDK's own message
    values = {each.name: getattr(permission, each.name) for each in permission.DESCRIPTOR.fields}
    return values | {"can_publish_sources": list(permission.can_publish_sources)}


async def _serve() -> None:
    # What native code prints must not come between the lines for the parent.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    answers.write(b'{"ready": true}\n')
    await _Service(answers.write).run(requests)


if __name__ == "__main__":
    asyncio.run(_serve())
    sys.stderr.flush()
    os._exit(0)  # everybody has left; the native library's own way out may take long, or crash
