"""A meeting's turn as this process holds it: what may be begun within it, and what is made up for when it was lost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from signaling.core.effects import Presence, Priority
from signaling.core.participants import Source
from signaling.errors import TurnLost
from signaling.identifiers import Identity, LiveKitRoom, TrackSid
from signaling.livekit.contract import MediaServer
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.tasks import Tasks, until_done
from signaling.stores.contract import Store, Turn


class LeasedMediaServer(MediaServer):
    """
    What one meeting asks of LiveKit. While a turn is held here, nobody is told anything that may outlast it.

    LiveKit has no fence: a call that is still under way when somebody else has the turn may undo what they do. Looks do
    nobody any harm, and rooms are made and deleted by whoever finds it out, turn or not.

    Attributes:
        turn: That is held here.
    """

    def __init__(self, media: MediaServer) -> None:
        self.turn: Turn | None = None
        self._media = media

    def _check(self) -> None:
        """Raises `TurnLost` if a call that begins now might outlast the turn."""
        if self.turn is not None and not self.turn.lasts(self._media.timeout_s):
            raise TurnLost("the turn does not last for another call")

    @property
    def answering(self) -> bool:
        """As of all meetings."""
        return self._media.answering

    @property
    def timeout_s(self) -> float:
        """The deadline of one call."""
        return self._media.timeout_s

    def on_return(self, callback: Callable[[], None]) -> None:
        """As of all meetings."""
        self._media.on_return(callback)

    def slot(self, room: LiveKitRoom, priority: Priority) -> AbstractAsyncContextManager[None]:
        """Wait for a place among the calls for a room."""
        return self._media.slot(room, priority)

    async def ensure_room(self, room: LiveKitRoom) -> None:
        """Make sure that a room is there."""
        await self._media.ensure_room(room)

    def forget_rooms(self, *rooms: LiveKitRoom) -> None:
        """Whether these rooms are there is not known any more."""
        self._media.forget_rooms(*rooms)

    async def delete_room(self, room: LiveKitRoom) -> None:
        """End a room."""
        await self._media.delete_room(room)

    async def rooms_there(self, rooms: Sequence[LiveKitRoom]) -> frozenset[LiveKitRoom]:
        """Which of these rooms there are."""
        return await self._media.rooms_there(rooms)

    async def list_presences(self, room: LiveKitRoom, *, make: bool = True) -> tuple[Presence, ...]:
        """Everybody in a room."""
        return await self._media.list_presences(room, make=make)

    async def allow(self, presence: Presence, sources: tuple[Source, ...]) -> Presence:
        """Let somebody publish these sources and no others. Raises `TurnLost` too."""
        self._check()
        return await self._media.allow(presence, sources)

    async def mute(self, room: LiveKitRoom, identity: Identity, track: TrackSid) -> None:
        """Mute a track. Raises `TurnLost` too."""
        self._check()
        await self._media.mute(room, identity, track)

    async def remove(self, room: LiveKitRoom, identity: Identity) -> None:
        """Disconnect an identity. Raises `TurnLost` too."""
        self._check()
        await self._media.remove(room, identity)


class Lease:
    """
    The turns of one meeting that this process takes, one after another.

    What a holder sent who was too slow may reach LiveKit until its lease and the deadline of a call are over. So that
    long after a turn was lost, or was taken over from somebody else, everybody in the meeting is looked at again.

    Args:
        media: What turns speak to.
    """

    def __init__(self, store: Store, media: LeasedMediaServer, journal: Journal, due: Due, tasks: Tasks) -> None:
        self._store = store
        self._media = media
        self._journal = journal
        self._due = due
        self._tasks = tasks
        self._making_up: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether a turn is being taken here."""
        return self._media.turn is not None

    @property
    def fence(self) -> int | None:
        """That of the turn that is being taken here."""
        return None if self._media.turn is None else self._media.turn.fence

    @property
    def is_making_up(self) -> bool:
        """Whether everybody is to be looked at again in a while."""
        return self._making_up is not None and not self._making_up.done()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """
        Take the meeting's next turn.

        Raises:
            StoreError: It could not be taken; or it was lost (`TurnLost`).
        """
        async with self._store.turn(self._journal.room) as turn:
            self._media.turn = turn
            if turn.is_taken_over:
                self._make_up_after(turn.lease_s)
            try:
                yield
            except TurnLost:
                self._make_up_after(turn.lease_s)
                raise
            finally:
                self._media.turn = None

    def _make_up_after(self, lease_s: float) -> None:
        if self._making_up is not None:
            self._making_up.cancel()  # it would be too early
        self._making_up = self._tasks.run_in_background(self._make_up(lease_s + self._media.timeout_s))

    async def _make_up(self, in_s: float) -> None:
        await asyncio.sleep(in_s)
        self._due.repair((await until_done(self._journal.effective_state)).members)
