"""Who waits to be let in, and whether they have to wait for long."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from signaling.identifiers import ParticipantId, RoomId

LATE_S: Final = 1.0
"""Whoever waits for longer was not let in at once, and nobody else would have been."""


class Entrance:
    """
    The one way into all meetings of a process.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting_since: dict[object, float] = {}
        self._held_up_at = -math.inf
        self._arriving: Counter[tuple[RoomId, ParticipantId]] = Counter()

    @contextmanager
    def arriving(self, room: RoomId, participant: ParticipantId) -> Iterator[None]:
        """Somebody is being let in meanwhile, so that their place is kept for them."""
        self._arriving[room, participant] += 1
        try:
            yield
        finally:
            self._arriving[room, participant] -= 1
            if not self._arriving[room, participant]:
                del self._arriving[room, participant]

    def is_arriving(self, room: RoomId, participant: ParticipantId) -> bool:
        """Whether somebody is being let in."""
        return (room, participant) in self._arriving

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody waits to be let in meanwhile."""
        somebody = object()
        self._waiting_since[somebody] = self._clock()
        try:
            yield
        finally:
            self._look(self._waiting_since.pop(somebody))

    def held_up_at(self) -> float:
        """When people were last seen to be kept waiting, in seconds since the epoch."""
        if self._waiting_since:
            self._look(next(iter(self._waiting_since.values())))
        return self._held_up_at

    def note_late(self, late_s: float) -> None:
        """Something in this process was done so much later than it was due."""
        if late_s > LATE_S:
            self._held_up_at = self._clock()

    def note_closed(self) -> None:
        """Nobody can be let in now: the store does not answer."""
        self._held_up_at = self._clock()

    def _look(self, waiting_since: float) -> None:
        self.note_late(self._clock() - waiting_since)
