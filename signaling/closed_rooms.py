"""LiveKit rooms of meetings that have ended: they stay closed for as long as tokens of those meetings can open them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from weakref import WeakValueDictionary

import structlog

from signaling.errors import MediaServerError, StoreError
from signaling.identifiers import LiveKitRoom, RoomId
from signaling.livekit.contract import MediaServer
from signaling.stores.contract import Kept, Store

log = structlog.get_logger(__name__)

CLOSED_S: Final = 3_600.0
"""
How long a room stays closed since anybody was there. LiveKit gives whoever comes in a token for ten minutes and more;
one that makes rooms for whoever comes (`auto_create`, its default) makes such a room anew, and gives them another.
"""
_NAMES_A_CALL: Final = 500


async def _never(_room: LiveKitRoom) -> bool:
    return False


class ClosedRooms:
    """
    Deletes again what LiveKit has made again of a meeting that is over: when it reports somebody there, or at a look.

    Args:
        is_in_use: Whether a meeting that goes on has such a room.
        clock: Seconds since the epoch.
        look_s: How often LiveKit is asked which of the rooms are there.
    """

    def __init__(
        self,
        store: Store,
        media: MediaServer,
        is_in_use: Callable[[LiveKitRoom], Awaitable[bool]] = _never,
        *,
        clock: Callable[[], float],
        look_s: float = 5,
    ) -> None:
        self._store = store
        self._media = media
        self._is_in_use = is_in_use
        self._clock = clock
        self._look_s = look_s
        self._until: dict[LiveKitRoom, float] = {}
        self._locks: WeakValueDictionary[LiveKitRoom, asyncio.Lock] = WeakValueDictionary()

    async def load(self) -> None:
        """Go on with what other processes have closed."""
        before = dict(self._until)
        kept = await self._store.kept(Kept.CLOSED_ROOM, now=self._clock())
        rooms = {LiveKitRoom(room): until for room, until in kept.items()}
        found = {room: until for room, until in rooms.items() if not await self._is_in_use(room)}
        closed_since = {room: until for room, until in self._until.items() if before.get(room) != until}
        self._until = found | closed_since

    def __contains__(self, room: LiveKitRoom) -> bool:
        return self._until.get(room, 0) > self._clock()

    async def close(self, room: LiveKitRoom) -> None:
        """
        The room was deleted, and stays so.

        Raises:
            StoreError: It is not kept.
        """
        now = self._clock()
        await self._store.keep_once(Kept.CLOSED_ROOM, room, until=now + CLOSED_S, now=now)
        self._until[room] = now + CLOSED_S

    async def make_way(self, room: LiveKitRoom) -> None:
        """
        A meeting uses the room: if it is the first to do so since, whoever has come back into it goes.

        Raises:
            MediaServerError: They may still be there.
        """
        if room in self:
            # One of all nodes does it: the next would throw out those who came by then.
            async with self._lock(room), self._store.turn(RoomId(f"closed:{room}")):
                if room not in await self._store.kept(Kept.CLOSED_ROOM, now=self._clock()):
                    self._until.pop(room, None)  # another node has made way, or its time has ended
                elif await self._is_in_use(room):  # else it has ended meanwhile, and stays closed
                    await self._media.delete_room(room)
                    if await self._is_in_use(room):
                        await self._store.keep_no_longer(Kept.CLOSED_ROOM, room)
                        self._until.pop(room, None)

    async def react(self, room: LiveKitRoom) -> None:
        """LiveKit has reported somebody in a room; what fails is tried again at the next look."""
        if room in self:
            try:
                await self._delete_again(room)
            except (MediaServerError, StoreError) as error:
                log.warning("closed_room_not_deleted", room=room, error=str(error))

    async def _delete_again(self, room: LiveKitRoom) -> None:
        async with self._lock(room):
            if room in self and not await self._is_in_use(room):
                await self._media.delete_room(room)
                log.info("closed_room_deleted_again", room=room)
                await self.close(room)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            if self._media.answering:
                try:
                    await self.load()  # other nodes have closed some since, or used them again
                    await self.look()
                except (MediaServerError, StoreError) as error:
                    log.warning("closed_rooms_not_looked_at", error=str(error))
                except Exception:  # a bug must not leave them open for good
                    log.exception("closed_rooms_not_looked_at")

    async def look(self) -> None:
        """
        Delete what is there and should not be.

        Raises:
            MediaServerError: LiveKit did not answer, or refused.
        """
        closed = sorted(self._until)
        for first in range(0, len(closed), _NAMES_A_CALL):
            for room in sorted(await self._media.rooms_there(closed[first : first + _NAMES_A_CALL])):
                await self._delete_again(room)

    def _lock(self, room: LiveKitRoom) -> asyncio.Lock:
        return self._locks.setdefault(room, asyncio.Lock())
