"""Participants without media, cheap enough for hundreds."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import websockets
from livekit.protocol import models
from livekit.protocol import rtc as signaling_protocol
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket

from signaling.testing.child import ParticipantError
from signaling.testing.participants.errors import JoinRefused, PublishRefused, WaitedInVain

_PROTOCOL_VERSION: Final = 15


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
