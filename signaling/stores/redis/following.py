"""The meetings that a node follows: whether what it knows of them is all that there is."""

from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Final

import structlog

from signaling.errors import StoreError
from signaling.stores.redis.link import Link
from signaling.stores.redis.log import HEAD, MeetingLog
from signaling.stores.redis.scripts import Keys

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 100
_FEW: Final = 50
"""So many are looked at whenever some are."""
_ROUND: Final = 6
"""After looking at some so often, all were looked at."""


class Following:
    """
    Looks at meetings again, though nothing was heard of them: that may be what is wrong.

    Args:
        followed: Gives those that are followed.
    """

    def __init__(self, link: Link, followed: Callable[[], Iterable[MeetingLog]]) -> None:
        self._link = link
        self._followed = followed
        self._at = 0

    async def look_at_all(self) -> None:
        """Make up for whatever was missed."""
        await self._look_at(tuple(self._followed()))

    async def look_at_some(self) -> None:
        """Look at a part of them, each time at another one."""
        followed = tuple(self._followed())
        many = max(_FEW, -(-len(followed) // _ROUND))
        if self._at >= len(followed):
            self._at = 0
        some = followed[self._at : self._at + many]
        self._at += many
        await self._look_at(some)

    async def _look_at(self, logs: Iterable[MeetingLog]) -> None:
        left = iter(logs)
        while some := tuple(islice(left, _AT_ONCE)):
            known = [each.revision for each in some]
            try:
                heads = await self._link.call_all([("HMGET", Keys.of(each.room).head, *HEAD) for each in some])
            except StoreError as error:
                log.info("not_followed", meetings=len(some), error=str(error))
                return
            for each, head, revision in zip(some, heads, known, strict=True):
                if not each.agrees_with(head, revision):
                    await self.go_on(each, each.refresh())

    @staticmethod
    async def go_on(meeting: MeetingLog, work: Awaitable[object]) -> None:
        """Have a meeting go on; what fails is logged, and tried again when Redis answers."""
        try:
            await work
        except StoreError as error:
            log.info("not_followed", room=meeting.room, error=str(error))
