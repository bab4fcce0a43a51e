"""What time it is for everything that ends by itself: for all nodes alike, whatever their own clocks say."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

DIFFERS_S: Final = 30.0
"""By how much clocks may differ for tickets and tokens to be taken for what they are."""
_EXACT_S: Final = 0.1
"""What is no more than this apart is the same."""
_SLOW_S: Final = 1.0
"""An answer that took longer says nothing exact of the time."""


class SteadyClock:
    """
    Seconds since the epoch that pass evenly, whatever is done to the system's clock meanwhile.

    It is set by the system's clock when it is made. Stepping that afterwards, in either direction, makes nothing
    last longer or shorter; what this clock shows follows at the next start of the process.

    Args:
        wall: The system's clock.
        monotonic: Seconds that pass evenly, from whenever.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._began_at = wall() - monotonic()

    def __call__(self) -> float:
        """Now."""
        return self._began_at + self._monotonic()


class NodeClock:
    """
    Seconds since the epoch by which several nodes can count: this node's own clock, set right by the store's.

    Args:
        own: This node's.
        wall: The system's clock, by which others sign.
    """

    def __init__(self, own: Callable[[], float], wall: Callable[[], float]) -> None:
        self.wall = wall
        self._own = own
        self._ahead_s: float | None = None
        self._differs_s: int | None = None

    def __call__(self) -> float:
        """Now."""
        return self._own() - (self._ahead_s or 0)

    def earliest(self) -> float:
        """
        The time at which nothing that others have signed is over before it is.

        That is checked by the system's clock, which may be stepped: what was used must stay known for as long as it
        might be valid again.
        """
        return min(self(), self.wall())

    @property
    def differs_s(self) -> int | None:
        """How far the system's clock is ahead of the store's (or behind, below 0), if that is too much."""
        return self._differs_s

    async def compare(self, tell: Callable[[], Awaitable[float | None]]) -> None:
        """
        Go by what the store says that it is, and see whether the system's clock does.

        Raises:
            StoreError: It does not answer.
        """
        asked_at, began_at = asyncio.get_running_loop().time(), self._own()
        wall_ahead_s = self.wall() - began_at
        time_there = await tell()
        if time_there is None:
            return  # no other node has the meetings
        took_s = asyncio.get_running_loop().time() - asked_at
        ahead_s = began_at + took_s / 2 - time_there
        if self._ahead_s is None or (took_s <= _SLOW_S and abs(ahead_s - self._ahead_s) > _EXACT_S + took_s / 2):
            self._ahead_s = ahead_s
        self._note(round(self._ahead_s + wall_ahead_s))

    def _note(self, differs_s: int) -> None:
        known = self._differs_s
        if abs(differs_s) <= DIFFERS_S:
            self._differs_s = None
            if known is not None:
                log.info("clock_agrees")
        elif known is None or abs(differs_s - known) > DIFFERS_S:
            self._differs_s = differs_s
            log.warning("clock_differs", seconds=differs_s)
