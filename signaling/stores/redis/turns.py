"""Whose turn it is in each meeting: a lease with a fencing token; who waits is woken."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog

from signaling.errors import StoreError
from signaling.identifiers import RoomId
from signaling.stores.redis import scripts
from signaling.stores.redis.link import Link
from signaling.stores.redis.scripts import Keys

log = structlog.get_logger(__name__)

LEASE_S: Final = 10.0
"""How long a turn is kept for a holder who is not heard of."""
_MARGIN_S: Final = 0.05
"""By how much clocks that should run alike may differ within a lease."""


@dataclass(slots=True)
class LeasedTurn:
    """
    A turn for as long as its lease lasts, which its holder makes longer again and again.

    Attributes:
        ends_at: By the event loop's clock, which cannot be set; no later than Redis ends it.
    """

    fence: int
    is_taken_over: bool
    lease_s: float
    ends_at: float

    def lasts(self, for_s: float) -> bool:
        """Whether nobody else can have the turn within that time."""
        return asyncio.get_running_loop().time() + for_s + _MARGIN_S < self.ends_at


class Turns:
    """The turns of one node. On a node they go in order; nodes take them in the order in which they asked."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._node = token_hex(8)
        self._number = 0
        self._locks: WeakValueDictionary[RoomId, asyncio.Lock] = WeakValueDictionary()
        self._waiting: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def of(self, room: RoomId) -> AsyncIterator[LeasedTurn]:
        """A meeting's exclusive step."""
        async with self._locks.setdefault(room, asyncio.Lock()):
            self._number += 1
            me = f"{self._node}-{self._number}"
            keys = Keys.of(room)
            try:
                turn = await self._take(keys, me)
                if turn.is_taken_over:
                    log.warning("turn_taken_over", room=room)
                renewing = self._in_background(self._renew(keys, me, turn))
                try:
                    yield turn
                finally:
                    renewing.cancel()
            finally:
                await asyncio.shield(self._in_background(self._release(keys, me, room)))

    async def _take(self, keys: Keys, me: str) -> LeasedTurn:
        loop = asyncio.get_running_loop()
        woken = self._waiting[me] = asyncio.Event()
        try:
            while True:
                asked_at = loop.time()
                taken, *answer = await self._link.run(
                    scripts.TAKE, (keys.turn, keys.waiting), me, round(LEASE_S * 1_000)
                )
                if taken:
                    fence, taken_over = answer
                    return LeasedTurn(int(fence), taken_over == b"1", LEASE_S, asked_at + LEASE_S)
                try:
                    async with asyncio.timeout(int(answer[0]) / 1_000 + _MARGIN_S):
                        await woken.wait()
                except TimeoutError:
                    continue  # the holder's lease is over, unless it was made longer
                woken.clear()
        finally:
            del self._waiting[me]

    def wake(self, waiter: str) -> None:
        """It is this one's turn."""
        if (event := self._waiting.get(waiter)) is not None:
            event.set()

    def wake_all(self) -> None:
        """Somebody may have been told while nobody heard."""
        for event in self._waiting.values():
            event.set()

    async def _renew(self, keys: Keys, me: str, turn: LeasedTurn) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LEASE_S / 3)
            asked_at = loop.time()
            try:
                is_held = await self._link.run(scripts.RENEW, (keys.turn,), me, turn.fence, round(LEASE_S * 1_000))
            except StoreError as error:
                log.debug("lease_not_renewed", error=str(error))
                continue  # it may be in time yet
            if not is_held:
                turn.ends_at = 0
                return
            turn.ends_at = asked_at + LEASE_S

    async def _release(self, keys: Keys, me: str, room: RoomId) -> None:
        try:
            await self._link.run(
                scripts.RELEASE, (keys.turn, keys.waiting), me, round(LEASE_S * 1_000), scripts.NEWS, room
            )
        except StoreError as error:
            log.warning("turn_not_given_back", room=room, error=str(error), ends_in_s=LEASE_S)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Nothing is kept any longer from here."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
