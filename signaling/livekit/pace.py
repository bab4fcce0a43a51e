"""How many calls a room bears at once, and whose turn is next."""

import asyncio
import heapq
import itertools
from contextlib import AbstractAsyncContextManager
from types import TracebackType

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

    def slot(self, priority: Priority) -> AbstractAsyncContextManager[None]:
        """Wait for a place, and keep it inside the block."""
        return _Slot(self, priority)

    def refuse_waiting(self, error: Exception) -> None:
        """Whoever waits for a place fails with `error` instead."""
        for _, _, place in self._waiting:
            if not place.done():
                place.set_exception(error)
        self._waiting.clear()

    async def take(self, priority: Priority) -> None:
        """Wait for a place."""
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.pass_on()  # it was given in the moment of being cancelled
            raise

    def pass_on(self) -> None:
        """Leave a place to whoever is next."""
        while self._waiting:
            _, _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class _Slot(AbstractAsyncContextManager[None]):
    """A place for the time of a block; as a class, since a generator for each call costs three times as much."""

    def __init__(self, pace: Pace, priority: Priority) -> None:
        self._pace = pace
        self._priority = priority

    async def __aenter__(self) -> None:
        await self._pace.take(self._priority)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pace.pass_on()
