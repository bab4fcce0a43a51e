"""Connections that have ended, a few at a time."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

AT_ONCE: Final = 4
"""What an ended connection sets off takes up to a millisecond; between so many, everybody else has a turn."""


class Departures:
    """
    Tells of the ends of connections in the order in which they came, so many in one iteration of the event loop.

    When a network fails, thousands end in one moment; who is still there is not to wait for all of them.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_telling = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, tell: Callable[[], None]) -> None:
        """Call `tell` soon."""
        self._waiting.append(tell)
        if not self._is_telling:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(min(AT_ONCE, len(self._waiting))):
            loop.call_soon(self._waiting.popleft())
        if self._waiting:
            loop.call_soon(self._go_on)
        else:
            self._is_telling = False
