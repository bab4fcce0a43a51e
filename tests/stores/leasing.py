"""A store in memory whose turns are leases: a holder can be lost, and the answer to a write too."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import count

from signaling.errors import StoreError, TurnLost
from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import AuditEntry, Commit, Entry, Turn
from signaling.stores.memory import MemoryStore


@dataclass
class LeasedTurn:
    """A turn that ends without its holder."""

    fence: int
    is_taken_over: bool
    lease_s: float
    is_expired: bool = False

    def lasts(self, for_s: float) -> bool:
        """Until it is expired, for as long as a lease."""
        return not self.is_expired and for_s < self.lease_s


class LeasingStore(MemoryStore):
    """
    Meetings in memory, with turns that can be taken over.

    Attributes:
        loses_answer_to: Of which writes the answer is lost, though they are made.
        answers: Whether it is told what the audit has.
    """

    def __init__(self, *, lease_s: float = 10.0) -> None:
        super().__init__()
        self.loses_answer_to: Callable[[Entry], bool] = lambda _: False
        self.answers = True
        self.lease_s = lease_s
        self._held: dict[RoomId, LeasedTurn] = {}
        self._moved = asyncio.Condition()
        self._numbers = count(1)

    def turn(self, room: RoomId) -> AbstractAsyncContextManager[Turn]:
        return self._leased(room)

    @asynccontextmanager
    async def _leased(self, room: RoomId) -> AsyncIterator[LeasedTurn]:
        async with self._moved:
            await self._moved.wait_for(lambda: room not in self._held or self._held[room].is_expired)
            turn = LeasedTurn(next(self._numbers), is_taken_over=room in self._held, lease_s=self.lease_s)
            self._held[room] = turn
        try:
            yield turn
        finally:
            async with self._moved:
                if self._held.get(room) is turn:
                    del self._held[room]
                self._moved.notify_all()

    async def expire(self, room: RoomId) -> None:
        """Whoever has the turn has not been heard of for too long."""
        async with self._moved:
            self._held[room].is_expired = True
            self._moved.notify_all()

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        held = self._held.get(commit.entry.room)
        if fence is not None and (held is None or held.fence != fence or held.is_expired):
            raise TurnLost("the turn is over")
        is_written = await super().append(commit)
        if self.loses_answer_to(commit.entry):
            raise StoreError("the answer is lost")
        return is_written

    async def audited(self, room: RoomId, command_id: CommandId) -> AuditEntry | None:
        if not self.answers:
            raise StoreError("no answer")
        return await super().audited(room, command_id)
