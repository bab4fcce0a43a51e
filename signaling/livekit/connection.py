"""Calls to LiveKit: one pooled HTTP session, a token for each room, a deadline, and what came of them."""

import asyncio
import time
from datetime import timedelta
from functools import cache
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp
import structlog
from google.protobuf.message import DecodeError, Message
from livekit.api import AccessToken, ServerError, VideoGrants
from livekit.api.twirp_client import TwirpClient
from livekit.protocol import room as protocol
from prometheus_client import Counter, Histogram

from signaling import metrics
from signaling.errors import MediaServerUnavailable
from signaling.identifiers import LiveKitRoom
from signaling.livekit.availability import UNAUTHORIZED, Availability
from signaling.livekit.error_table import map_error

log = structlog.get_logger(__name__)
Response = TypeVar("Response", bound=Message)

NOWHERE: Final = LiveKitRoom("")
_SERVICE: Final = "RoomService"
_TOKEN_LIFETIME_S: Final = 3_600
_LIVEKIT_SHARE: Final = 0.75
"""Of our deadline; LiveKit's own waits for a node that answers for a participant end before ours does."""
_CLOCK_STEP_S: Final = 5.0
"""By how much the wall clock may differ from the monotonic one before what it has dated counts for nothing."""


class Connection:
    """
    RoomService of one LiveKit deployment, in its own words.

    Args:
        url: Of LiveKit, in http or ws form.
        timeout_s: The deadline of one call, above 0.
    """

    def __init__(self, url: str, api_key: str, api_secret: str, *, timeout_s: float) -> None:
        self._url = url
        self._api_key = api_key
        self._api_secret = api_secret
        self.timeout_s = timeout_s
        self.availability = Availability(self._ask)
        self._session: aiohttp.ClientSession | None = None
        self._twirp: TwirpClient | None = None
        self._headers: dict[LiveKitRoom, tuple[float, float, dict[str, str]]] = {}
        """With the time at which each token was made, and the difference of the clocks by then."""

    async def __aenter__(self) -> Self:
        timeout_ms = round(self.timeout_s * _LIVEKIT_SHARE * 1_000)
        self._session = aiohttp.ClientSession(
            headers={"X-Twirp-Timeout-Ms": str(timeout_ms)}, connector=aiohttp.TCPConnector(limit=0)
        )
        self._twirp = TwirpClient(self._session, self._url, "livekit", failover=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.availability.close()  # else a call that the closing cuts off would begin to probe
        if self._session is not None:
            await self._session.close()

    async def call(
        self, method: str, room: LiveKitRoom, request: Message, answer: type[Response], *, asking: bool = False
    ) -> Response:
        """
        Call LiveKit about a room.

        Args:
            answer: What is answered.
            asking: Whether this is to find out if LiveKit answers; else it fails at once while it does not.

        Raises:
            MediaServerError: One of them, as the table of errors says.
        """
        if not asking:
            self.availability.check_answering()
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        result = None
        try:
            async with asyncio.timeout(self.timeout_s):
                answered = await self._authorized(method, room, request, answer)
            result = "ok"
        except (ServerError, aiohttp.ClientError, TimeoutError, DecodeError, AttributeError) as error:
            mapped = map_error(error)
            result = "unavailable" if isinstance(mapped, MediaServerUnavailable) else "rejected"
            if isinstance(mapped, MediaServerUnavailable):
                self.availability.note_silence(began_at, mapped)
            else:
                self.availability.note_refusal(method, error)
            log.debug("livekit_call_failed", method=method, room=room, error=str(mapped))
            raise mapped from error
        finally:
            if result is not None:  # else it was cancelled
                _counter(method, result).inc()
                _duration(method).observe(loop.time() - began_at)
        self.availability.note_acceptance()
        return answered

    def forget(self, room: LiveKitRoom) -> None:
        """A room is called no longer."""
        self._headers.pop(room, None)

    async def _ask(self) -> None:
        request = protocol.ListRoomsRequest(names=["none"])
        await self.call("ListRooms", NOWHERE, request, protocol.ListRoomsResponse, asking=True)

    async def _authorized(self, method: str, room: LiveKitRoom, request: Message, answer: type[Response]) -> Response:
        if self._twirp is None:
            raise RuntimeError("RoomService is used outside its `async with`")
        cached = self._headers.get(room)
        try:
            return await self._twirp.request(_SERVICE, method, request, self._authorization(room), answer)
        except ServerError as error:
            if error.status != UNAUTHORIZED or cached is None or self._headers.get(room) is not cached:
                raise
        # Its token was made while a clock was wrong, perhaps: ours, or LiveKit's.
        del self._headers[room]
        return await self._twirp.request(_SERVICE, method, request, self._authorization(room), answer)

    def _authorization(self, room: LiveKitRoom) -> dict[str, str]:
        """The headers for a room, with a token that is made once an hour: signing one a call costs 40 % more CPU."""
        now = asyncio.get_running_loop().time()
        difference = time.time() - time.monotonic()
        made_at, difference_then, headers = self._headers.get(room, (float("-inf"), difference, {}))
        is_misdated = abs(difference - difference_then) > _CLOCK_STEP_S  # the wall clock was set meanwhile
        if now - made_at > _TOKEN_LIFETIME_S / 2 or is_misdated:
            grants = VideoGrants(room_create=True, room_list=True, room_admin=True, room=room)
            token = AccessToken(self._api_key, self._api_secret).with_grants(grants)
            jwt = token.with_ttl(timedelta(seconds=_TOKEN_LIFETIME_S)).to_jwt()
            headers = {"authorization": f"Bearer {jwt}"}
            self._headers.pop(room, None)
            self._headers[room] = (now, difference, headers)
            self._drop_old_headers(now)
        return headers

    def _drop_old_headers(self, now: float) -> None:
        while True:
            room, (made_at, _, _) = next(iter(self._headers.items()))  # the oldest; the newest was made just now
            if now - made_at <= _TOKEN_LIFETIME_S / 2:
                return
            del self._headers[room]


@cache
def _counter(method: str, result: str) -> Counter:
    return metrics.LIVEKIT_CALLS.labels(method, result)


@cache
def _duration(method: str) -> Histogram:
    return metrics.LIVEKIT_CALL_DURATION.labels(method)
