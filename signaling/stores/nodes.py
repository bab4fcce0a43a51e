"""What processes that share a store in one event loop know of each other: who takes a turn, who lives, who looks."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from weakref import WeakValueDictionary

from signaling.errors import TurnLost
from signaling.identifiers import NodeId, RoomId
from signaling.stores.contract import FaultListener


@dataclass(frozen=True, slots=True)
class HeldTurn:
    """A turn that only its holder can end."""

    fence: int
    is_taken_over: bool = False
    lease_s: float = math.inf

    def lasts(self, for_s: float) -> bool:  # noqa: ARG002 - however long that is
        """Nobody else can have it."""
        return True


class Turns:
    """The exclusive steps of meetings."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[RoomId, asyncio.Lock] = WeakValueDictionary()
        self._fences = count(1)
        self._taken: dict[RoomId, int] = {}

    @asynccontextmanager
    async def of(self, room: RoomId) -> AsyncIterator[HeldTurn]:
        """A meeting's exclusive step, waiting ones go in order."""
        async with self._locks.setdefault(room, asyncio.Lock()):
            self._taken[room] = fence = next(self._fences)
            try:
                yield HeldTurn(fence)
            finally:
                del self._taken[room]

    def check(self, room: RoomId, fence: int | None) -> None:
        """Raises `TurnLost` if that turn is over."""
        if fence is not None and self._taken.get(room) != fence:
            raise TurnLost(f"the turn of {room} is over")


class Nodes:
    """Which processes live, and which meetings they look after."""

    def __init__(self) -> None:
        self._lives_until: dict[NodeId, float] = {}
        self._looks: dict[RoomId, NodeId] = {}

    def beat(self, node: NodeId, until: float, now: float) -> frozenset[NodeId]:
        """A process lives until then at least; all that live now."""
        self._lives_until[node] = until
        self._lives_until = {each: ends for each, ends in self._lives_until.items() if ends > now}
        return frozenset(self._lives_until)

    def look_after(self, room: RoomId, node: NodeId, now: float) -> bool:
        """Whether a process looks after a meeting from now on: it does unless another that lives does."""
        holder = self._looks.get(room, node)
        if holder != node and self._lives_until.get(holder, now) > now:
            return False
        self._looks[room] = node
        return True

    def begin(self, room: RoomId, node: NodeId | None) -> None:
        """A meeting is kept from now on; the process that began it looks after it, if it lives and no other does."""
        if node in self._lives_until and self._looks.get(room) not in self._lives_until:
            self._looks[room] = node

    def left_alone(self, rooms: Iterable[RoomId]) -> tuple[RoomId, ...]:
        """Those of them after which no process looks that lived at the last beat."""
        return tuple(sorted(room for room in rooms if self._looks.get(room) not in self._lives_until))

    def forget(self, room: RoomId) -> None:
        """The meeting is kept no longer."""
        self._looks.pop(room, None)


class OneProcess:
    """
    What is so of every store that one process has to itself, though several may have it one after another.

    Attributes:
        nodes: Those that said that they live.
    """

    lease_s: float = math.inf

    def __init__(self) -> None:
        self.nodes = Nodes()

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        """A node lives until then at least; all that live now."""
        return self.nodes.beat(node, until, now)

    async def look_after(self, room: RoomId, node: NodeId, *, now: float) -> bool:
        """Have a node look after a meeting, unless another one that lives does: whether it does."""
        return self.nodes.look_after(room, node, now)

    def listen_to_faults(self, listener: FaultListener) -> None:
        """No other process can be the reason for one."""

    def follow(self, room: RoomId) -> None:
        """Every commit is made here."""

    def unfollow(self, room: RoomId) -> None:
        """As above."""

    async def time(self) -> None:
        """No other process has the meetings."""
