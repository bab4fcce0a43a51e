"""The LiveKit rooms of one meeting: made, restored, deleted."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog

from signaling.closed_rooms import ClosedRooms
from signaling.core.commands import NoteRoomDeleted
from signaling.errors import MediaServerError
from signaling.identifiers import CONTROLLER, LiveKitRoom
from signaling.livekit.contract import MediaServer
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.tasks import until_done
from signaling.stores.contract import Store

log = structlog.get_logger(__name__)

STANDBY_S: Final = 1.0
"""How much later than the process that looks after a meeting the others do what is not done by then."""


class Rooms:
    """
    The LiveKit rooms that one meeting uses or has used.

    Args:
        closed: What is kept closed of meetings that have ended.
        looks_after: Whether this process, of all that have people in the meeting, is the one that looks after it.
        on_forgotten: Called when the meeting is over and nothing of it is kept any more.
    """

    def __init__(
        self,
        store: Store,
        media: MediaServer,
        journal: Journal,
        due: Due,
        closed: ClosedRooms,
        on_forgotten: Callable[[], None],
        *,
        looks_after: Callable[[], Awaitable[bool]],
    ) -> None:
        self._store = store
        self._media = media
        self._journal = journal
        self._due = due
        self._closed = closed
        self._on_forgotten = on_forgotten
        self._looks_after = looks_after
        self._opening = asyncio.Lock()

    async def open(self, room: LiveKitRoom) -> None:
        """
        Make sure that a LiveKit room is there, and that it is not one of a meeting that is over.

        Raises:
            MediaServerError: It is not known to be there.
        """
        if room in (await self._journal.record()).state.doomed:
            await self._delete_room(room)
        await self._closed.make_way(room)
        await self._media.ensure_room(room)

    async def note_finished(self, room: LiveKitRoom) -> None:
        """LiveKit has reported that a room is gone."""
        self._media.forget_rooms(room)
        if room in (await self._journal.effective_state()).rooms_in_use():
            await self.restore()

    async def restore_once(self) -> None:
        """
        Make all rooms in use again after LiveKit was gone, as one of all the processes that may have noticed it.

        Whoever looks after the meeting does it at once. It may be gone, or may not have noticed; so the others look a
        moment later whether a room is missing.
        """
        if not await until_done(self._looks_after):
            await asyncio.sleep(STANDBY_S)
            if not await until_done(self._is_any_missing):
                return
        await self.restore()

    async def _is_any_missing(self) -> bool:
        rooms = (await self._journal.effective_state()).rooms_in_use()
        missing = rooms - await self._media.rooms_there(sorted(rooms)) if rooms else rooms
        if missing:
            self._media.forget_rooms(*missing)
        return bool(missing)

    async def restore(self) -> None:
        """Make all rooms in use again after LiveKit was gone; clients give up soon."""
        for room in sorted((await self._journal.effective_state()).rooms_in_use()):
            if room not in (await self._journal.effective_state()).rooms_in_use():
                continue  # the meeting has ended meanwhile
            try:
                await self.open(room)
            except MediaServerError as error:
                log.warning("room_not_restored", room=room, error=str(error))
        self._due.repair((await self._journal.effective_state()).members)

    async def delete_doomed(self) -> None:
        """Delete the rooms of the meeting that is over, however long LiveKit and the store take; then forget it."""
        for room in sorted((await until_done(self._journal.record)).state.doomed):
            await until_done(partial(self._delete_room, room))
        if await until_done(self._forget):
            self._on_forgotten()

    async def _forget(self) -> bool:
        record = await self._store.read(self._journal.room)
        if record is None:
            return True  # another process was quicker
        is_over = not record.state.members and not record.state.doomed
        return is_over and await self._store.forget(self._journal.room, record.revision)

    async def _delete_room(self, room: LiveKitRoom) -> None:
        async with self._opening:
            if room in (await self._journal.record()).state.doomed:
                await self._media.delete_room(room)
                await self._closed.close(room)
                await self._journal.decide(CONTROLLER, lambda _: NoteRoomDeleted(room))
