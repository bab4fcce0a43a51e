"""What one meeting is found to have lost, or cannot be read, and who is told."""

from collections import deque
from collections.abc import Callable
from secrets import token_hex
from typing import Final

import structlog

from signaling.errors import StoreError
from signaling.identifiers import CommandId, RoomId
from signaling.stores.contract import Fault, FellBack, FellBehind, Record
from signaling.stores.redis import scripts
from signaling.stores.redis.link import Link
from signaling.stores.redis.scripts import Keys

log = structlog.get_logger(__name__)

_REMEMBERED: Final = 512
"""Commits of a meeting that can be named as lost."""


class Losses:
    """
    What was seen of one meeting, and may be there no longer.

    Args:
        tell_fault: Called with what is wrong with it.
    """

    def __init__(self, link: Link, keys: Keys, room: RoomId, tell_fault: Callable[[Fault], None]) -> None:
        self._link = link
        self._keys = keys
        self._room = room
        self._tell_fault = tell_fault
        self._recent: deque[tuple[bytes, CommandId]] = deque(maxlen=_REMEMBERED)

    def remember(self, entry: bytes, command_id: CommandId) -> None:
        """The commit of a command was seen, by its entry's id."""
        self._recent.append((entry, command_id))

    async def commands(self) -> tuple[CommandId, ...]:
        """Of the commands whose commits were seen here, those whose commits are not there."""
        recent = tuple(self._recent)
        if not recent:
            return ()
        found = await self._link.call("ZMSCORE", self._keys.ids, *(entry for entry, _ in recent))
        ids = [command for (_, command), score in zip(recent, found, strict=True) if score is None]
        return tuple(dict.fromkeys(ids))

    async def put_aside(self, entry: bytes, error: StoreError) -> None:
        """
        Keep what cannot be read as it was found, under other keys.

        Args:
            entry: Id of the newest entry.
            error: Why it cannot be read; raised again if it has changed since.
        """
        name = f":aside:{token_hex(4)}"
        keys = [getattr(self._keys, each) for each in ("head", "log", "snapshot", "ids", "audit", "commands")]
        if not await self._link.run(scripts.PUT_ASIDE, keys, entry, name):
            raise StoreError(f"meeting {self._room}: {error}") from error
        log.error("meeting_put_aside", room=self._room, keys=f"{self._keys.head}{name}", error=str(error))

    def judge(
        self, before: Record, record: Record, lost: tuple[CommandId, ...], *, oldest: int | None, has_ended: bool
    ) -> None:
        """
        Tell why what was known is not in the log.

        Args:
            before: What was known.
            record: What is kept.
            oldest: The first revision of the entries that are kept; `None` if it is another meeting of that name.
            has_ended: Whether the one that was known has.
        """
        if oldest is None and (has_ended or not before.state.goes_on):
            if before.state.goes_on:
                self.fall_behind("it has ended, and another has begun")
        elif oldest is not None and before.revision < oldest:
            self.fall_behind(f"entries before revision {oldest} are kept no longer")
        else:
            self.fall_back(record, lost)

    def fall_back(self, record: Record | None, lost: tuple[CommandId, ...]) -> None:
        """It is an older one now: these commands are lost."""
        self._recent.clear()
        log.error("store_fell_back", room=self._room, commands_lost=len(lost))
        self._tell_fault(FellBack(self._room, record, lost))

    def fall_behind(self, reason: str) -> None:
        """It cannot be followed without leaving something out."""
        log.warning("store_fell_behind", room=self._room, reason=reason)
        self._tell_fault(FellBehind(self._room, f"meeting {self._room}: {reason}"))
