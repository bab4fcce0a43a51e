"""Participants with real media, and the child process that they live in."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from livekit.protocol import models

import signaling
from signaling.testing.child import Child, ParticipantError, ParticipantProcessDied
from signaling.testing.participants.errors import JoinRefused, PublishRefused, WaitedInVain

_CALL_S: Final = 20.0
"""For what LiveKit answers at once; the SDK itself gives up publishing after 10 s."""

EventName: TypeAlias = Literal[
    "connected",
    "disconnected",
    "participant_connected",
    "participant_disconnected",
    "permission_changed",
    "reconnected",
    "reconnecting",
    "track_muted",
    "track_published",
    "track_unmuted",
    "track_unpublished",
]


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that a participant was told by LiveKit.

    Attributes:
        at: When, by `time.monotonic`, which on one machine is comparable between processes.
        identity: Whom it is about; empty when it is about the connection.
        source: As tokens spell it; empty when it is not about a track.
        reason: Why the connection ended, as LiveKit names it, such as `PARTICIPANT_REMOVED`.
        permission: With `connected` and `permission_changed`: what the participant itself may do now.
    """

    name: EventName
    at: float
    identity: str = ""
    source: str = ""
    track_sid: str = ""
    reason: str = ""
    permission: models.ParticipantPermission | None = None


class MediaParticipant:
    """
    A participant with real media, made by `ParticipantProcess.connect`.

    Every method raises `ParticipantProcessDied` when its process is no more.
    """

    def __init__(self, process: "ParticipantProcess", number: int) -> None:
        """Made by `ParticipantProcess.connect`."""
        self._process = process
        self._number = number
        self._events: list[Event] = []
        self._told = asyncio.Condition()
        self._identity = ""

    # --- Coming and going ----------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """Who it is, by its token."""
        return self._identity

    async def disconnect(self) -> None:
        """Leave the room."""
        await self._ask("disconnect")

    async def reconnect(self, url: str, token: str) -> None:
        """
        Leave, if it has not left, and join with this token. Nothing is published until asked for.

        Raises:
            JoinRefused: LiveKit did not let it in.

        """
        self._identity = (await self._ask("reconnect", url=url, token=token))["identity"]

    # --- Publishing ----------------------------------------------------------------------------------------------

    async def publish_microphone(self, frequency_hz: int = 440) -> str:
        """Publish a tone as a microphone, and return the track's sid. See `publish`."""
        return await self.publish("microphone", frequency_hz=frequency_hz)

    async def publish_camera(self) -> str:
        """Publish a moving picture as a camera, and return the track's sid. See `publish`."""
        return await self.publish("camera")

    async def publish_screen_share(self, *, with_audio: bool = False) -> str:
        """Publish a moving picture as a screen, and return its track's sid; with a tone beside it. See `publish`."""
        sid = await self.publish("screen_share")
        if with_audio:
            await self.publish("screen_share_audio")
        return sid

    async def publish(
        self,
        source: str,
        *,
        frequency_hz: int = 440,
        is_sound: bool | None = None,
        anyway: bool = False,
        within_s: float = 15,
    ) -> str:
        """
        Publish a track; one of this source that it had before goes first.

        Args:
            source: What the participant says it is; a client that cheats may also say `unknown`.
            frequency_hz: The tone's, if it is sound.
            is_sound: Whether it really is sound; what fits the source when nothing is said.
            anyway: Try it even though LiveKit had told the participant that it may not, as one that cheats would.
                LiveKit does not answer that; the SDK gives up after 10 s.
            within_s: When to give up, if not with the SDK, which does not notice that the participant was removed.

        Returns:
            The track's sid.

        Raises:
            PublishRefused: It may not, or LiveKit did not take it in time.

        """
        answer = await self._ask(
            "publish",
            within_s,
            source=source,
            frequency_hz=frequency_hz,
            is_sound=is_sound,
            anyway=anyway,
            within_s=within_s,
        )
        return str(answer["track_sid"])

    async def unpublish(self, source: str) -> None:
        """End its own track; nothing is wrong with one that LiveKit took away before."""
        await self._ask("unpublish", source=source)

    async def mute(self, source: str) -> None:
        """Mute its own track."""
        await self._ask("mute", source=source)

    async def unmute(self, source: str) -> None:
        """Unmute its own track, whoever muted it; 50 ms after that at the earliest, which the SDK needs."""
        await self._ask("unmute", source=source)

    # --- Listening and watching ----------------------------------------------------------------------------------

    async def heard(
        self, identity: str, source: str = "microphone", *, since: float | None = None, timeout_s: float = 10
    ) -> float:
        """
        Wait until somebody can be heard.

        Args:
            since: Only what is heard from then on counts; without it, being heard just now is enough.

        Returns:
            The time of the first audible frame of 20 ms, by `time.monotonic`.

        Raises:
            WaitedInVain: They were not; the message has the levels of all.

        """
        return await self._perceived(identity, source, since, timeout_s)

    async def silent(
        self, identity: str, source: str = "microphone", *, quiet_s: float = 0.3, timeout_s: float = 10
    ) -> float:
        """
        Wait until somebody cannot be heard any more: for `quiet_s`, or because their track is gone.

        Returns:
            When the last audible frame came, by `time.monotonic`; minus infinity when there never was one.

        Raises:
            WaitedInVain: They still were; the message has the levels of all.

        """
        return await self._ended(identity, source, quiet_s, timeout_s)

    async def heard_for(self, identity: str, *, since: float, until: float) -> float:
        """
        Listen until then, and count for how many seconds somebody could be heard, whatever source it came under.

        What is heard late counts: let them be `silent` before, or begin 0.3 s later.

        Args:
            since, until: By `time.monotonic`; each audible frame in between counts for its 20 ms.

        """
        answer = await self._ask(
            "heard_for", max(until - time.monotonic(), 0), identity=identity, since=since, until=until
        )
        return float(answer["seconds"])

    async def level(self, identity: str, source: str = "microphone") -> float:
        """How loud somebody is: the RMS of the last 20 ms. A tone of ours has about 5,600, silence 0."""
        return float((await self._ask("level", identity=identity, source=source))["level"])

    async def seen(
        self, identity: str, source: str = "camera", *, since: float | None = None, timeout_s: float = 10
    ) -> float:
        """Wait until somebody can be seen, subscribing if need be; the rest is as with `heard`."""
        return await self._perceived(identity, source, since, timeout_s)

    async def unseen(
        self, identity: str, source: str = "camera", *, still_s: float = 0.5, timeout_s: float = 10
    ) -> float:
        """Wait until no picture has come for `still_s`, or the track is gone; the rest is as with `silent`."""
        return await self._ended(identity, source, still_s, timeout_s)

    async def _perceived(self, identity: str, source: str, since: float | None, timeout_s: float) -> float:
        answer = await self._ask(
            "perceived", timeout_s, identity=identity, source=source, since=since, timeout_s=timeout_s
        )
        return float(answer["at"])

    async def _ended(self, identity: str, source: str, quiet_s: float, timeout_s: float) -> float:
        answer = await self._ask(
            "ended", timeout_s, identity=identity, source=source, quiet_s=quiet_s, timeout_s=timeout_s
        )
        return float("-inf") if answer["at"] is None else float(answer["at"])

    # --- What it was told ----------------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[Event, ...]:
        """All that it was told so far, oldest first."""
        return tuple(self._events)

    @property
    def permission(self) -> models.ParticipantPermission:
        """What it may do, as LiveKit told it last."""
        for event in reversed(self._events):
            if event.permission is not None:
                return event.permission
        raise ParticipantError("the participant was never connected")

    async def wait_for(
        self,
        name: EventName,
        *,
        identity: str | None = None,
        source: str | None = None,
        since: float = 0,
        timeout_s: float = 10,
    ) -> Event:
        """
        Wait for an event, or find it among those of before.

        Args:
            identity, source: Whom and what it must be about; anybody and anything when nothing is said.
            since: It must not be older, by `time.monotonic`.

        Raises:
            WaitedInVain: It did not come; the message has what did.

        """

        def found() -> Event | None:
            for event in self._events:
                if (
                    event.name == name
                    and event.at >= since
                    and (identity is None or event.identity == identity)
                    and (source is None or event.source == source)
                ):
                    return event
            return None

        try:
            async with asyncio.timeout(timeout_s), self._told:
                while (event := found()) is None:
                    self._process.raise_if_dead()
                    await self._told.wait()
                return event
        except TimeoutError:
            told = ", ".join(f"{event.name} {event.identity} {event.source}".rstrip() for event in self._events)
            raise WaitedInVain(f"{self._identity} was not told {name} within {timeout_s:g} s, but: {told}") from None

    async def _tell(self, event: Event | None) -> None:
        if event is not None:
            self._events.append(event)
        async with self._told:
            self._told.notify_all()

    async def _ask(self, operation: str, within_s: float = _CALL_S, /, **arguments: object) -> dict[str, Any]:
        return await self._process.ask(operation, within_s, participant=self._number, arguments=arguments)


class ParticipantProcess(Child):
    """
    A child process with participants in it, as many as you like; one with sound costs about 4 % of a core.

    What goes wrong in LiveKit's native library ends the child alone. It ends with this process, however that ends.
    Use it as an async context manager; leaving it disconnects everybody.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        super().__init__("the participants' process was ended", JoinRefused, PublishRefused, WaitedInVain)
        self._participants: dict[int, MediaParticipant] = {}
        self._ready = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Start the child and wait until it listens."""
        root = str(Path(signaling.__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        await self._start(
            *(sys.executable, "-m", "signaling.testing.participant_process"),
            environment=os.environ | {"PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"},
        )
        try:
            async with asyncio.timeout(_CALL_S):
                await self._ready.wait()
            self.raise_if_dead()
        except BaseException:
            await self._end()
            raise
        return self

    async def connect(
        self, url: str, token: str, *, listens: bool = False, publish_tone_hz: int | None = None
    ) -> MediaParticipant:
        """
        Let a participant join.

        Args:
            url: Of LiveKit, in ws form.
            listens: Whether it hears the others; watching needs no such decision.
            publish_tone_hz: Publish a microphone with this tone at once.

        Raises:
            JoinRefused: LiveKit did not let it in.
            PublishRefused: It may not publish a microphone.

        """
        number = len(self._participants)
        participant = self._participants[number] = MediaParticipant(self, number)
        answer = await participant._ask("connect", url=url, token=token, listens=listens)  # noqa: SLF001  it is this module's own
        participant._identity = answer["identity"]  # noqa: SLF001  see above
        if publish_tone_hz is not None:
            await participant.publish_microphone(publish_tone_hz)
        return participant

    def kill(self) -> None:
        """End the child at once, as a crash would: LiveKit is not told, and lists its participants for 20 s more."""
        with suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGKILL)

    async def died(self, *, timeout_s: float = 10) -> ParticipantProcessDied:
        """Wait until the child has ended by itself, and return what is known about it."""
        async with asyncio.timeout(timeout_s):
            await asyncio.wait(self._reading)
        self._death_is_known = True
        if self._death is None:
            raise ParticipantError("the participants' process was ended by us")
        return self._death

    async def _tell(self, message: dict[str, Any] | None) -> None:
        if message is None or "ready" in message:
            self._ready.set()
        else:
            await self._participants[message["participant"]]._tell(_event(message))  # noqa: SLF001  see above
        if message is None:
            for participant in self._participants.values():
                await participant._tell(None)  # noqa: SLF001  see above


def _event(message: Mapping[str, Any]) -> Event:
    permission = message["permission"]
    return Event(
        name=message["event"],
        at=message["at"],
        identity=message["identity"],
        source=message["source"],
        track_sid=message["track_sid"],
        reason=message["reason"],
        permission=None if permission is None else models.ParticipantPermission(**permission),
    )
