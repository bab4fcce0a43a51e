"""What goes wrong with chosen calls: late, refused, cut off, garbled, or never answered."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypedDict

from signaling.testing.fake_room_service.answers import Answer, Reset


class Which(TypedDict, total=False):
    """
    Which calls something happens to; all where nothing is said.

    Attributes:
        method: As LiveKit names it.
        room: The LiveKit room.
        identity: Whom they are about.
        times: How many of them, from now on.
        takes_effect: True when LiveKit does what was asked, and only the answer suffers.
    """

    method: str
    room: str
    identity: str
    times: int
    takes_effect: bool


class Fault:
    """Something that happens to some calls, until it was often enough, is lifted, or its `with` block ends."""

    def __init__(
        self,
        among: list["Fault"],
        which: Which,
        *,
        delay_s: float | None = 0,
        instead: Answer | Reset | None = None,
    ) -> None:
        """Made by the methods of `FakeRoomService`."""
        self._among = among
        self._which = which
        self._delay_s = delay_s
        self._instead = instead
        self._lifted = asyncio.Event()
        self._hits = 0
        self._changed = asyncio.Condition()
        among.append(self)

    def __enter__(self) -> Self:
        """Keep it for the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """`lift` it."""
        self.lift()

    @property
    def hits(self) -> int:
        """How many calls it has happened to."""
        return self._hits

    async def hit(self, times: int = 1) -> None:
        """Wait until it has happened to so many calls in all; cancelling is fine."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._hits >= times)

    def lift(self) -> None:
        """Let it happen no more; calls that hang in it go on."""
        if self in self._among:
            self._among.remove(self)
        self._lifted.set()

    def _matches(self, method: str, room: str, identity: str) -> bool:
        which = self._which
        return (
            which.get("method", method) == method
            and which.get("room", room) == room
            and which.get("identity", identity) == identity
        )

    async def _happen(self, carry_out: Callable[[], Awaitable[Answer]]) -> Answer | Reset:
        self._hits += 1
        if self._hits == self._which.get("times"):
            self._among.remove(self)
        async with self._changed:
            self._changed.notify_all()
        answer = await carry_out() if self._which.get("takes_effect") else None
        if self._delay_s is None:
            await self._lifted.wait()
        elif self._delay_s:
            await asyncio.sleep(self._delay_s)
        return self._instead or answer or await carry_out()


async def answer_of(
    faults: Iterable[Fault], method: str, room: str, identity: str, carry_out: Callable[[], Awaitable[Answer]]
) -> Answer | Reset:
    """What comes of a call: the first fault that is about it happens, or else it is carried out."""
    for fault in faults:
        if fault._matches(method, room, identity):  # noqa: SLF001  a fault keeps its inside to this module
            return await fault._happen(carry_out)  # noqa: SLF001
    return await carry_out()
