"""What ends by itself, in time: places that are kept, restrictions, holds, requests, and the meeting."""

import asyncio
import math
import operator
from collections.abc import Awaitable, Callable
from typing import Final

from signaling.core.commands import End, EndIfEmpty, Expire
from signaling.core.decisions import Refusal
from signaling.core.state import MeetingState
from signaling.entrance import LATE_S, Entrance
from signaling.identifiers import CONTROLLER, new_command_id
from signaling.meeting.journal import Journal
from signaling.meeting.places import Places
from signaling.meeting.rooms import STANDBY_S, Rooms
from signaling.meeting.tasks import Tasks, until_done
from signaling.meeting.turn import Turns
from signaling.stores.contract import Entry, Record

GATHERED_S: Final = 0.1
"""What falls due within so long after something else did is done together."""


class Clock:
    """
    Sees to it that whatever ends by itself does so in time.

    Of all processes that have people in the meeting, the one that looks after it is in time. The others are there for
    what it leaves undone: they come a moment later, and find nothing to do but when it is gone.

    Args:
        clock: Seconds since the epoch.
        entrance: Where people wait to be let in: what is late here is late for them.
        empty_s: How long a meeting goes on with nobody in it.
        looks_after: Whether this process is the one that looks after the meeting.
    """

    def __init__(
        self,
        journal: Journal,
        turns: Turns,
        places: Places,
        rooms: Rooms,
        tasks: Tasks,
        entrance: Entrance,
        *,
        clock: Callable[[], float],
        empty_s: float,
        looks_after: Callable[[], Awaitable[bool]],
    ) -> None:
        self._journal = journal
        self._turns = turns
        self._places = places
        self._rooms = rooms
        self._tasks = tasks
        self._entrance = entrance
        self._clock = clock
        self._empty_s = empty_s
        self._looks_after = looks_after
        self._behind_s = 0.0
        """How much later than in time this process is, on purpose."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_expiring = False
        self._is_lifting = False
        self._expired_at = -math.inf
        self._deadlines_seen: tuple[object, ...] = ()
        journal.listen(self._on_commit)

    def _on_commit(self, _before: Record | None, record: Record, _entry: Entry | None) -> None:
        state = record.state
        deadlines = (state.members, state.restricted_until, state.holds, state.unmute_requests)
        if len(self._deadlines_seen) != len(deadlines) or any(map(operator.is_not, deadlines, self._deadlines_seen)):
            self._deadlines_seen = deadlines
            self._arm(state)

    def _arm(self, state: MeetingState) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_expiring:
            return  # who is at it looks again
        loop = asyncio.get_running_loop()
        deadlines = self._deadlines(state)
        # Looked at every second while anybody may come back: a loop that is late for that is late for them.
        look_in_s = LATE_S if self._places.end(state) else math.inf
        if deadlines:
            delay_s = max(
                min(deadlines) + self._behind_s - self._clock(), self._expired_at + GATHERED_S - loop.time(), 0
            )
            due_at = loop.time() + min(delay_s, look_in_s)
            self._timer = loop.call_at(due_at, self._look_at_the_time, due_at)

    def _deadlines(self, state: MeetingState) -> list[float]:
        deadlines = list(self._places.end(state).values())
        if state.empty_since is not None:
            deadlines.append(state.empty_since + self._empty_s)
        if not self._is_lifting:
            deadlines += _ends(state)
        return deadlines

    def _look_at_the_time(self, due_at: float) -> None:
        self._timer = None
        self._entrance.note_late(asyncio.get_running_loop().time() - due_at)
        self._is_expiring = True
        self._tasks.run_in_background(self._end_what_is_due())

    async def _end_what_is_due(self) -> None:
        try:
            await until_done(self._expire)
        finally:
            self._is_expiring = False
        self._arm((await until_done(self._journal.record)).state)

    async def _expire(self) -> None:
        now = self._clock()
        if all(deadline > now for deadline in self._deadlines(await self._journal.state())):
            return
        self._behind_s = 0.0 if await self._looks_after() else STANDBY_S
        now -= self._behind_s
        if await self._places.give_up(now):
            self._expired_at = asyncio.get_running_loop().time()
        if not self._is_lifting and any(end <= now for end in _ends(await self._journal.state())):
            self._is_lifting = True
            self._tasks.run_in_background(self._lift_what_is_due(now))
        empty_since = (await self._journal.state()).empty_since
        if empty_since is not None and empty_since + self._empty_s <= now:
            await self.end_if_empty(empty_since)

    async def _lift_what_is_due(self, now: float) -> None:
        try:
            await until_done(lambda: self._turns.take(CONTROLLER, Expire(now), new_command_id()))
        finally:
            self._is_lifting = False
        self._arm((await until_done(self._journal.record)).state)

    async def end(self) -> asyncio.Task[None]:
        """
        End the meeting: its state is cleared at once, its LiveKit rooms are deleted as soon as LiveKit answers.

        Returns:
            The deleting, which goes on whether or not anybody waits for it.
        """
        await self._turns.commit_now(CONTROLLER, End())
        return self._tasks.run_in_background(self._rooms.delete_doomed())

    async def end_if_empty(self, since: float) -> None:
        """End the meeting if nobody has been in it since then, in seconds since the epoch."""
        if not isinstance(await self._turns.commit_now(CONTROLLER, EndIfEmpty(since)), Refusal):
            self._tasks.run_in_background(self._rooms.delete_doomed())

    def stop(self) -> None:
        """Nothing ends by itself any more in this process."""
        if self._timer is not None:
            self._timer.cancel()


def _ends(state: MeetingState) -> list[float]:
    """When something that was decided ends by itself."""
    held = [until for sources in state.holds.values() for until in sources.values()]
    requested = [request.expires_at for request in state.unmute_requests.values()]
    return [*state.restricted_until.values(), *held, *requested]
