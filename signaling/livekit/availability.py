"""Whether LiveKit answers, and takes our calls at all."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Final, Literal

import structlog
from livekit.api import ServerError
from tenacity import AsyncRetrying, retry_if_exception, wait_exponential

from signaling.errors import MediaServerError, MediaServerRejected, MediaServerUnavailable

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
"""Between probes, and before the first if LiveKit was away just before."""
_LONGEST_CHECK_PAUSE_S: Final = 5.0
"""Between checks while LiveKit refuses everything; and how long ago it must have been heard of to be checked at all."""
UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403

Trouble = Literal["unreachable", "unauthorized", "unexpected_answer"]
"""Why LiveKit does nothing of what it is asked."""
_SETTINGS: Final[MappingProxyType[Trouble, str]] = MappingProxyType(
    {
        "unreachable": "LIVEKIT_URL",
        "unauthorized": "LIVEKIT_API_KEY, LIVEKIT_API_SECRET",
        "unexpected_answer": "LIVEKIT_URL",
    }
)
"""What is perhaps wrong then."""


class Availability:
    """
    What calls have shown of LiveKit as a whole; while it is away or refuses everything, it is asked again and again.

    Args:
        ask: Asks what is refused to nobody whose settings are right, and notes here what came of it.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        self._ask = ask
        self._is_closed = False
        self._answering = True
        self._last_answer_at = float("-inf")
        self._returned_at = float("-inf")
        self._pause_s = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._refusing: Trouble | None = None
        self._checking: asyncio.Task[None] | None = None
        self._on_silence: list[Callable[[], None]] = []
        self._on_return: list[Callable[[], None]] = []

    @property
    def answering(self) -> bool:
        """False from the moment when calls get no answer until a probe gets one."""
        return self._answering

    @property
    def trouble(self) -> Trouble | None:
        """Why LiveKit does nothing of what it is asked, as far as is known; `None` if it does."""
        return self._refusing if self._answering else "unreachable"

    def on_silence(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever LiveKit is found not to answer any more."""
        self._on_silence.append(callback)

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever LiveKit answers again after it had not."""
        self._on_return.append(callback)

    def check_answering(self) -> None:
        """
        Go on only if LiveKit answers.

        Raises:
            MediaServerUnavailable: It does not.
        """
        if not self._answering:
            raise not_answering()

    async def check(self) -> None:
        """Ask; `trouble` then says what came of it."""
        with contextlib.suppress(MediaServerError):
            await self._ask()

    def check_if_long_unheard(self) -> None:
        """Begin to `check`, unless LiveKit has been heard of lately or is being asked anyway."""
        is_long_ago = asyncio.get_running_loop().time() > self._last_answer_at + _LONGEST_CHECK_PAUSE_S
        if self._answering and is_long_ago:
            self._begin_checking(at_once=True)

    async def close(self) -> None:
        """End the asking; from now on calls that get no answer begin none."""
        self._is_closed = True
        tasks = [task for task in (self._probe, self._checking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- What calls have shown -----------------------------------------------------------------------------------

    def note_acceptance(self) -> None:
        """LiveKit has done what it was asked."""
        self._note_answer()
        if self._refusing is not None:
            self._refusing = None
            log.info("media_server_accepts_again")
            self._begin_anew()

    def note_refusal(self, method: str, error: Exception) -> None:
        """LiveKit said no: to this call, or to all of them. Listing rooms is right whatever LiveKit holds."""
        self._note_answer()
        status = error.status if isinstance(error, ServerError) else None
        if status == UNAUTHORIZED or (method == "ListRooms" and status == _FORBIDDEN):
            refusing: Trouble = "unauthorized"
        elif method == "ListRooms":
            refusing = "unexpected_answer"
        else:
            return
        if self._refusing != refusing:
            self._refusing = refusing
            # What it says is left out: that may repeat the token.
            log.error("media_server_refuses", reason=refusing, setting=_SETTINGS[refusing], status=status)
        self._begin_checking(at_once=False)

    def note_silence(self, began_at: float, error: MediaServerError) -> None:
        """A call that began then, by the loop's clock, got no answer."""
        if not self._answering or self._last_answer_at > began_at or self._is_closed:
            return  # something else was answered meanwhile: it is this call, not LiveKit
        self._answering = False
        # One that answers a probe and nothing else would be asked for everything again without a pause.
        is_soon = asyncio.get_running_loop().time() < self._returned_at + _LONGEST_PAUSE_S
        self._pause_s = min(max(self._pause_s * 2, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S) if is_soon else 0
        log.warning("media_server_unavailable", setting=_SETTINGS["unreachable"], error=str(error))
        for callback in self._on_silence:
            callback()
        if self._probe is None or self._probe.done():  # a late answer to another call may have come before the probe's
            self._probe = asyncio.create_task(self._probe_until_answered(), name="media-server-probe")

    def _note_answer(self) -> None:
        self._last_answer_at = asyncio.get_running_loop().time()
        if not self._answering:
            self._answering = True
            self._returned_at = self._last_answer_at
            log.info("media_server_answers_again")
            self._begin_anew()

    def _begin_anew(self) -> None:
        for callback in self._on_return:
            callback()

    # --- Asking --------------------------------------------------------------------------------------------------

    def _begin_checking(self, *, at_once: bool) -> None:
        if not self._is_closed and (self._checking is None or self._checking.done()):
            self._checking = asyncio.create_task(self._check_until_accepted(at_once=at_once), name="media-server-check")

    async def _check_until_accepted(self, *, at_once: bool) -> None:
        if at_once:
            await self.check()
        pause_s = _LONGEST_PAUSE_S
        while self._refusing is not None:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_CHECK_PAUSE_S)
            await self.check()

    async def _probe_until_answered(self) -> None:
        await asyncio.sleep(self._pause_s)
        retrying = AsyncRetrying(
            # A bug too must not end the probing, or LiveKit would stay away for good.
            retry=retry_if_exception(
                lambda error: isinstance(error, Exception) and not isinstance(error, MediaServerRejected)
            ),
            wait=wait_exponential(multiplier=_SHORTEST_PAUSE_S, max=_LONGEST_PAUSE_S),
        )
        # Any answer will do, also a no; the call notes it.
        with contextlib.suppress(MediaServerRejected):
            await retrying(self._ask)


def not_answering() -> MediaServerUnavailable:
    """What a call fails with while LiveKit does not answer."""
    return MediaServerUnavailable("LiveKit does not answer")
