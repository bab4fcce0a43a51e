"""Who could be heard though the meeting forbids it, and for how long."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from signaling.core.participants import Source
from signaling.core.policy import publishable
from signaling.identifiers import ParticipantId, RoomId
from tests.soak.sound import Heard, Sound
from tests.soak.witness import Witness

ONE_NODE_S: Final = 8.0
"""
What one node takes at most until it has made up for something when nothing is wrong any more: a sweep (5 s), in which a
call may hang to its deadline (2 s), and a look.
"""
_LOOKS_EVERY_S: Final = 0.1


class Hearing:
    """
    Compares what is heard with what is committed, all the time.

    Args:
        should: To how many meetings there is to be listened.
        is_wrong: Whether there is a fault just now.

    Attributes:
        longest_s: For how long somebody was heard who may not be, at most, faults included.
        longest_without_s: The same, counting only while there was no fault.
        beyond: Who was heard longer than with one node while there was no fault.
        times: How often somebody was heard who may not be, however shortly.
        ever: Who was heard at all.
        listened: How often it was listened to a meeting, and how often it should have been.
    """

    def __init__(self, sound: Sound, witness: Witness, should: int, is_wrong: Callable[[], bool]) -> None:
        self.longest_s = 0.0
        self.longest_without_s = 0.0
        self.beyond: list[str] = []
        self.times = 0
        self.ever = set[Heard]()
        self.listened = (0, 0)
        self._sound = sound
        self._should = should
        self._witness = witness
        self._is_wrong = is_wrong
        self._heard_s: dict[Heard, tuple[float, float]] = {}
        self._newest = frozenset[Heard]()

    @property
    def forbidden(self) -> frozenset[Heard]:
        """Who is heard just now and may not be."""
        return self._newest

    async def listen(self) -> None:
        """Until it is cancelled."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(_LOOKS_EVERY_S)
            now = time.monotonic()
            self._look(now - before)
            before = now

    def _look(self, passed_s: float) -> None:
        heard = self._sound.heard()
        self.ever |= heard
        self.listened = self.listened[0] + self._sound.listening(), self.listened[1] + self._should
        self._newest = frozenset(who for who in heard if self._may_not(*who))
        wrong_s = 0.0 if self._is_wrong() else passed_s
        heard_s = dict[Heard, tuple[float, float]]()
        for who in self._newest:
            if who not in self._heard_s:
                self.times += 1
            in_all_s, without_s = self._heard_s.get(who, (0.0, 0.0))
            heard_s[who] = in_all_s, without_s = in_all_s + passed_s, without_s + wrong_s
            self.longest_s = max(self.longest_s, in_all_s)
            self.longest_without_s = max(self.longest_without_s, without_s)
            if without_s >= ONE_NODE_S > without_s - wrong_s:
                self.beyond.append(f"{who[1]} in {who[0]}")
        self._heard_s = heard_s

    def _may_not(self, room: RoomId, who: str) -> bool:
        state = self._witness.states.get(room)
        return state is not None and Source.MICROPHONE not in publishable(ParticipantId(who), state)
