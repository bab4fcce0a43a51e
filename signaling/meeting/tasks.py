"""What runs for one meeting, and ends with it at the latest."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from signaling.errors import MediaServerError, SignalingError, StoreError
from signaling.identifiers import RoomId

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class Tasks:
    """The tasks of one meeting."""

    def __init__(self, room: RoomId) -> None:
        self._room = room
        self._running: set[asyncio.Task[Any]] = set()
        self._awaited: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """A task that ends with the meeting at the latest."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def see_through(self, work: Coroutine[Any, Any, Result]) -> Result:
        """
        Do all of something that was begun. Cancelling stops the waiting, never the work.

        Raises:
            StoreError: This process ends. What was staged by then is finished at the next start; what was not came to
                nothing.
        """
        return await self.completion(self.spawn(work))

    async def completion(self, task: asyncio.Task[Result]) -> Result:
        """What a task of this meeting comes to; see `see_through`."""
        self._awaited.add(task)
        task.add_done_callback(self._awaited.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as error:
            waiting = asyncio.current_task()
            if task.cancelled() and waiting is not None and not waiting.cancelling():
                raise StoreError("the meeting is being closed") from error
            task.add_done_callback(self._log_unheard)
            raise

    def _log_unheard(self, task: asyncio.Task[Any]) -> None:
        """Log what nobody waits to be told any more."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError):
            log.error("store_failed", room=self._room, error=str(error))
        elif error is not None and not isinstance(error, SignalingError):
            log.error("work_failed_unheard", room=self._room, exc_info=error)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Like `spawn`, for work that nobody need wait for: what goes wrong is logged."""
        task = self.spawn(self._log_failure(work))
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before its first step, it never began
        return task

    async def _log_failure(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StoreError as error:
            log.error("store_failed", room=self._room, error=str(error))  # noqa: TRY400 - no bug, no traceback
        except Exception:
            log.exception("background_work_failed", room=self._room)

    async def finish(self) -> None:
        """Wait until all has been done that somebody waits for."""
        while self._awaited:
            await asyncio.wait(tuple(self._awaited))

    async def close(self) -> None:
        """End all of it."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_done(work: Callable[[], Awaitable[Result]]) -> Result:
    """Do what has to be done some time, however often LiveKit or the store fails."""

    async def attempt() -> Result:
        return await work()

    retrying = AsyncRetrying(
        retry=retry_if_exception_type((MediaServerError, StoreError)), wait=wait_exponential(multiplier=0.1, max=5)
    )
    result: Result = await retrying(attempt)
    return result
