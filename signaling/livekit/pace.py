"""How many calls a room bears at once, and whose turn is next."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from signaling.core.effects import Priority


class Pace:
    """
    A few places for calls; who waits for one is served by priority, then in order.

    LiveKit tells everybody in the room of each change and closes the signaling of a client for which more than 200
    messages wait, so more calls in flight lose participants and gain no time.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @asynccontextmanager
    async def slot(self, priority: Priority) -> AsyncIterator[None]:
        """Wait for a place, and keep it inside the block."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(priority)
        try:
            yield
        finally:
            self._pass_on()

    def refuse_waiting(self, error: Exception) -> None:
        """Whoever waits for a place fails with `error` instead."""
        for _, _, place in self._waiting:
            if not place.done():
                place.set_exception(error)
        self._waiting.clear()

    async def _wait(self, priority: Priority) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._pass_on()  # it was given in the moment of being cancelled
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
