"""What waits for somebody to read it, once it is much."""

import asyncio
from collections.abc import Callable
from typing import Final

MAX_UNREAD_BYTES: Final = 1024 * 1024
"""Who has more than this waiting for them is not listened to until they have read, and is cut off if they do not."""
MAX_WAITING_BYTES: Final = 16 * MAX_UNREAD_BYTES
"""Who has more than this waiting for them is cut off, however fast they read."""
_CHECKS: Final = 10


class Backlog:
    """
    More than a mebibyte that waits for somebody to read it, from when it became so much until it is less.

    Args:
        unread_s: How long they may read nothing of it.
        cut_off: Called when they have not, or when far too much waits.
    """

    __slots__ = ("_cut_off", "_drained", "_loop", "_read_at", "_transport", "_unread", "_unread_s", "_watching")

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        unread_s: float,
        cut_off: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._unread_s = unread_s
        self._cut_off = cut_off
        self._unread = self.size
        self._read_at = loop.time()
        self._watching = loop.call_later(unread_s / _CHECKS, self._watch)
        self._drained: asyncio.Future[None] | None = None

    @property
    def size(self) -> int:
        """How many bytes wait."""
        return self._transport.get_write_buffer_size()

    def note_written(self, before: int | None) -> None:
        """More was written, when so much waited; `None` if it has become so much by that."""
        size = self.size
        if before is not None:
            self._unread += size - before
        if size > MAX_WAITING_BYTES:
            self._cut_off()

    async def drained(self) -> None:
        """Wait until it is less, or has been given up."""
        if self._drained is None:
            self._drained = self._loop.create_future()
        await asyncio.shield(self._drained)

    def stop(self) -> None:
        """It is less, or nobody reads it any more."""
        self._watching.cancel()
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def _watch(self) -> None:
        size, now = self.size, self._loop.time()
        if size < self._unread:
            self._unread, self._read_at = size, now
        elif now - self._read_at >= self._unread_s:
            self._cut_off()
            return
        self._watching = self._loop.call_later(self._unread_s / _CHECKS, self._watch)
