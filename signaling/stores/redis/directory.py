"""Which meetings are kept, which nodes live, and which of them looks after each meeting."""

from typing import Any

from signaling.identifiers import NodeId, RoomId
from signaling.stores.redis import scripts
from signaling.stores.redis.link import Link
from signaling.stores.redis.scripts import Script


class Directory:
    """
    What is known of all meetings together.

    In a cluster it is elsewhere than the meetings, and so no part of what is committed to them: a meeting is listed
    before it is begun, and taken off the list after it has ended.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._found: frozenset[RoomId] = frozenset()

    async def _run(self, script: Script, *arguments: str) -> Any:  # noqa: ANN401 - whatever Redis gives
        return await self._link.run(script, scripts.DIRECTORY, *arguments)

    async def list(self, room: RoomId, node: NodeId | None) -> None:
        """A meeting is kept, or about to be; this node looks after it if it lives, and none does."""
        await self._run(scripts.LIST, room, node or "")

    async def delist(self, room: RoomId) -> None:
        """A meeting is kept no longer."""
        await self._run(scripts.DELIST, room)

    def is_listed(self, room: RoomId) -> bool:
        """Whether it was there when it was looked last."""
        return room in self._found

    async def rooms(self) -> tuple[RoomId, ...]:
        """Every meeting that is kept, sorted."""
        return await self._members(scripts.ROOMS)

    async def left_alone(self) -> tuple[RoomId, ...]:
        """Those after which no node looks that was there at the last beat, sorted."""
        return await self._members(scripts.ALONE)

    async def _members(self, key: str) -> tuple[RoomId, ...]:
        self._found = frozenset(RoomId(room.decode()) for room in await self._link.call("SMEMBERS", key))
        return tuple(sorted(self._found))

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        """A node lives until then at least; all that live now."""
        alive = await self._run(scripts.BEAT, node, repr(until), repr(now))
        return frozenset(NodeId(each.decode()) for each in alive)

    async def look_after(self, room: RoomId, node: NodeId, *, now: float) -> bool:
        """Have a node look after a meeting, unless another one that lives does: whether it does."""
        return bool(await self._run(scripts.LOOK_AFTER, room, node, repr(now)))
