"""A bell that rings whenever something has happened, for all who wait for something to be true."""

import asyncio
from collections.abc import Callable


class Bell:
    """Rung by whatever sees something; whoever waits looks again then."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something has happened."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Wait until that is true: whether it was, in time."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    await self._rung.wait()
        except TimeoutError:
            return condition()
        return True
