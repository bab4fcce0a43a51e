"""An entry as it is sent to Redis, until it is known what came of it."""

import asyncio
from typing import Final

import structlog

from signaling.identifiers import RoomId
from signaling.stores.contract import Entry
from signaling.stores.redis import scripts
from signaling.stores.redis.link import AnswerLost, Link
from signaling.stores.redis.scripts import Keys
from signaling.stores.serialization import dump_audit_entry

log = structlog.get_logger(__name__)

REPEATS_S: Final = 3.0
"""For how long a commit whose answer was lost is tried again, so that it is known what came of it."""
KEEPS_S: Final = 90.0
"""For how long entries are kept at least, so that a node which was without Redis for a minute leaves nothing out."""
CARRIED_BYTES: Final = 4 * 1024
"""What is no longer than this is published with its notice, so that whoever follows need not ask for it."""


class Appending:
    """
    What appends to the log of one meeting.

    Args:
        audit_entries: How many are kept.
    """

    def __init__(self, link: Link, keys: Keys, room: RoomId, *, audit_entries: int) -> None:
        self._link = link
        self._room = room
        self._names = (keys.head, keys.log, keys.snapshot, keys.ids, keys.audit, keys.commands, keys.turn)
        self._audit_entries = audit_entries

    async def send(
        self, entry: Entry, *, before: bytes, entry_id: bytes, data: bytes, snapshot: bytes, fence: int | None
    ) -> bytes:
        """
        Append an entry.

        Args:
            before: Id of the entry that it follows.
            entry_id: Its own: the same twice is appended once.
            data: What is kept of it.
            snapshot: What it comes to; nothing if that is not to be written.

        Returns:
            What `APPEND` does.

        Raises:
            AnswerLost: What came of it is not known.
            StoreError: Redis refused.
        """
        audit = entry.audit
        arguments = (
            entry.revision,
            before,
            entry_id,
            data,
            "" if fence is None else fence,
            "" if audit is None else audit.command_id,
            b"" if audit is None else dump_audit_entry(audit),
            self._audit_entries,
            snapshot,
            round(KEEPS_S * 1_000),
            scripts.NEWS,
            self._room,
            CARRIED_BYTES,
        )
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + REPEATS_S
        is_repeated = False
        while True:
            try:
                answer: bytes = await self._link.run(scripts.APPEND, self._names, *arguments)
            except AnswerLost:
                if not await self._link.back(ends_at - loop.time()):
                    raise
                is_repeated = True
                continue
            if is_repeated:
                log.info("commit_repeated", room=self._room, revision=entry.revision, was=answer.decode())
            return answer
