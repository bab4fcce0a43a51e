"""What runs for a whole process, and ends with it at the latest."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import structlog

from signaling.errors import StoreError

log = structlog.get_logger(__name__)


class Background:
    """The tasks of one process that nobody waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(tuple(self._tasks))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin with something."""
        self._tasks.add(task := asyncio.create_task(self._log_failure(work)))
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before its first step, it never began

    async def _log_failure(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StoreError as error:  # a beat or a sweep comes back to it
            log.warning("store_failed", error=str(error))

    async def end(self) -> None:
        """End all of it."""
        for task in self:
            task.cancel()  # it may wait for the store
        await asyncio.gather(*self, return_exceptions=True)
