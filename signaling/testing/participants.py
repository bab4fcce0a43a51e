"""
Participants for tests: with real media in child processes, or with nothing but signaling.

Nothing here loads LiveKit's native library into this process; the children do.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import aiohttp
import websockets
from livekit.api import AccessToken, LiveKitAPI, ServerError, VideoGrants
from livekit.protocol import models
from livekit.protocol import room as room_service
from livekit.protocol import rtc as signaling_protocol
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket

import signaling
from signaling.testing.child import Child, ParticipantError, ParticipantProcessDied

_PROTOCOL_VERSION: Final = 15
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


class JoinRefused(ParticipantError):
    """LiveKit did not let the participant in; the message has its words."""


class PublishRefused(ParticipantError):
    """The participant may not publish this source."""


class WaitedInVain(ParticipantError):
    """What was waited for did not come in time; the message says what was there instead."""


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


def participant_token(
    api_key: str,
    api_secret: str,
    room: str,
    identity: str,
    *,
    can_publish: bool = True,
    can_publish_sources: Sequence[str] | None = None,
    can_subscribe: bool = True,
    hidden: bool = False,
    kind: AccessToken.ParticipantKind = "standard",
    ttl_s: float = 600,
) -> str:
    """
    Mint a token with which a participant may join.

    Args:
        can_publish_sources: As they are to stand in the token; as in LiveKit, none of them allows every source.
        ttl_s: How long it is valid; LiveKit allows a minute more.

    """
    grants = VideoGrants(
        room_join=True,
        room=room,
        can_publish=can_publish,
        can_publish_sources=None if can_publish_sources is None else list(can_publish_sources),
        can_publish_data=False,
        can_subscribe=can_subscribe,
        hidden=hidden,
    )
    token = AccessToken(api_key, api_secret).with_identity(identity).with_name(identity).with_kind(kind)
    return token.with_ttl(timedelta(seconds=ttl_s)).with_grants(grants).to_jwt()


async def room_service_answers(url: str, token: str, room: str, identity: str) -> dict[str, int]:
    """
    Try each call of LiveKit's RoomService with the token of a participant, as one that cheats would.

    What is allowed takes effect: on the participant and its room.

    Args:
        url: Of LiveKit, in any form.
        identity: The participant's own.

    Returns:
        The HTTP status that each call was answered with, by its name; 401 for all of them if the token is a good one.

    Raises:
        ParticipantError: LiveKit did not answer.

    """
    everything = models.ParticipantPermission(can_publish=True, can_subscribe=True, can_publish_data=True)
    one: dict[str, Any] = {"room": room, "identity": identity}
    requests = {
        "create_room": room_service.CreateRoomRequest(name=f"{room}-of-{identity}"),
        "list_rooms": room_service.ListRoomsRequest(),
        "list_participants": room_service.ListParticipantsRequest(room=room),
        "get_participant": room_service.RoomParticipantIdentity(**one),
        "update_participant": room_service.UpdateParticipantRequest(**one, permission=everything),
        "mute_published_track": room_service.MuteRoomTrackRequest(**one, track_sid="TR_none", muted=False),
        "update_subscriptions": room_service.UpdateSubscriptionsRequest(**one),
        "send_data": room_service.SendDataRequest(room=room, data=b"none"),
        "update_room_metadata": room_service.UpdateRoomMetadataRequest(room=room, metadata="none"),
        "forward_participant": room_service.ForwardParticipantRequest(**one, destination_room=room),
        "move_participant": room_service.MoveParticipantRequest(**one, destination_room=room),
        "remove_participant": room_service.RoomParticipantIdentity(**one),
        "delete_room": room_service.DeleteRoomRequest(room=room),
    }
    answers: dict[str, int] = {}
    try:
        async with asyncio.timeout(_CALL_S), aiohttp.ClientSession() as http:
            service = LiveKitAPI.with_token(token, url.replace("ws", "http", 1), session=http, failover=False).room
            for name, request in requests.items():
                try:
                    await getattr(service, name)(request)
                    answers[name] = HTTPStatus.OK
                except ServerError as refused:
                    answers[name] = refused.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ParticipantError("LiveKit's RoomService does not answer") from error
    return answers


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


class SignalOnlyParticipant:
    """
    A participant without media: a WebSocket that speaks LiveKit's signaling, cheap enough for rooms of hundreds.

    LiveKit lists it as JOINED, its permissions work, and it is dropped after about 60 s.
    """

    def __init__(self, connection: ClientConnection, joined: signaling_protocol.JoinResponse) -> None:
        """Made by `connect`."""
        self._connection = connection
        self._me = joined.participant
        self._reason = ""
        self._refresh_token = ""
        self._told = asyncio.Condition()
        self._asked: dict[str, asyncio.Future[str]] = {}
        self.closed: Final[asyncio.Future[str]] = asyncio.get_running_loop().create_future()
        """Resolves to why it ended, such as `PARTICIPANT_REMOVED`; empty when LiveKit gave no reason."""
        self._reading = asyncio.create_task(self._read(), name=f"signaling of {self.identity}")

    @classmethod
    async def connect(cls, url: str, token: str, *, timeout_s: float = 10) -> Self:
        """
        Join.

        Args:
            url: Of LiveKit, in ws form.

        Raises:
            JoinRefused: LiveKit did not let it in.

        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = await connect_websocket(
                    f"{url}/rtc?protocol={_PROTOCOL_VERSION}&auto_subscribe=0&sdk=python",
                    additional_headers={"Authorization": f"Bearer {token}"},
                    compression=None,
                    max_size=None,
                    ping_interval=None,
                    close_timeout=1,
                )
                first = signaling_protocol.SignalResponse.FromString(await _bytes(connection))
        except websockets.InvalidStatus as refused:
            words = (refused.response.body or b"").decode(errors="replace")
            raise JoinRefused(f"{refused.response.status_code}: {words}") from refused
        except websockets.ConnectionClosed as closed:
            raise JoinRefused("the connection was closed") from closed
        if not first.HasField("join"):
            await connection.close()
            raise JoinRefused(f"LiveKit answered with {first.WhichOneof('message')}")
        return cls(connection, first.join)

    async def __aenter__(self) -> Self:
        """Stay for the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """`close` it."""
        await self.close()

    @property
    def identity(self) -> str:
        """Who it is, by its token."""
        return self._me.identity

    @property
    def sid(self) -> str:
        """LiveKit's id of this session."""
        return self._me.sid

    @property
    def permission(self) -> models.ParticipantPermission:
        """What it may do, as LiveKit told it last."""
        return self._me.permission

    @property
    def refresh_token(self) -> str:
        """The last token that LiveKit gave it to come back with; empty before there was one."""
        return self._refresh_token

    async def until(self, condition: Callable[[Self], bool], *, timeout_s: float = 10) -> None:
        """
        Wait until LiveKit has told it something that fulfils `condition`, or had before.

        Raises:
            WaitedInVain: It has not; the message has the permission that it was told of.

        """
        try:
            async with asyncio.timeout(timeout_s), self._told:
                await self._told.wait_for(lambda: condition(self))
        except TimeoutError:
            permission = str(self.permission).replace("\n", " ")
            raise WaitedInVain(f"{self.identity} was not told so within {timeout_s:g} s, but: {permission}") from None

    async def announce(self, source: str, *, is_sound: bool | None = None, timeout_s: float = 10) -> str:
        """
        Ask LiveKit to publish a track, and never send any media for it: nobody hears of it, and no list has it.

        Returns:
            The sid that the track would have.

        Raises:
            PublishRefused: LiveKit says that it may not.

        """
        if is_sound is None:
            is_sound = source in {"microphone", "screen_share_audio"}
        cid = f"{source}-{time.monotonic_ns()}"
        request = signaling_protocol.SignalRequest(
            add_track=signaling_protocol.AddTrackRequest(
                cid=cid, type="AUDIO" if is_sound else "VIDEO", source=source.upper()
            )
        )
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[cid] = answered
        try:
            async with asyncio.timeout(timeout_s):
                await self._connection.send(request.SerializeToString())
                return await answered
        except TimeoutError:
            raise WaitedInVain(f"LiveKit did not say whether {self.identity} may publish {source}") from None
        finally:
            del self._asked[cid]

    async def close(self) -> None:
        """Leave."""
        self._reason = self._reason or "CLIENT_INITIATED"
        with suppress(websockets.ConnectionClosed):
            leave = signaling_protocol.SignalRequest(leave=signaling_protocol.LeaveRequest(reason="CLIENT_INITIATED"))
            await self._connection.send(leave.SerializeToString())
        await self._connection.close()
        await self._reading

    async def _read(self) -> None:
        try:
            while True:
                self._take(signaling_protocol.SignalResponse.FromString(await _bytes(self._connection)))
                async with self._told:
                    self._told.notify_all()
        except websockets.ConnectionClosed:
            self.closed.set_result(self._reason)
            for answered in self._asked.values():
                if not answered.done():
                    answered.set_exception(ParticipantError(f"LiveKit closed the connection: {self._reason}"))

    def _take(self, response: signaling_protocol.SignalResponse) -> None:
        match response.WhichOneof("message"):
            case "update":
                for participant in response.update.participants:
                    if participant.sid == self._me.sid:
                        self._me = participant
            case "refresh_token":
                self._refresh_token = response.refresh_token
            case "leave":
                self._reason = models.DisconnectReason.Name(response.leave.reason)
            case "track_published":
                answered = self._asked.get(response.track_published.cid)
                if answered is not None and not answered.done():
                    answered.set_result(response.track_published.track.sid)
            case "request_response":
                refused = response.request_response
                answered = self._asked.get(refused.add_track.cid)
                if answered is not None and not answered.done():
                    source = models.TrackSource.Name(refused.add_track.source).lower()
                    why = signaling_protocol.RequestResponse.Reason.Name(refused.reason)
                    answered.set_exception(PublishRefused(f"{self.identity} may not publish {source}: {why}"))
            case _:
                pass


async def _bytes(connection: ClientConnection) -> bytes:
    return await connection.recv(decode=False)


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
