"""What a process that ends does for its meetings before others look after them."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

import structlog

from signaling.audience import Audience, Connected
from signaling.core.state import MeetingState
from signaling.errors import StoreError
from signaling.identifiers import ParticipantId
from signaling.meeting.meeting import Meeting

log = structlog.get_logger(__name__)

HAND_OVER_S: Final = 1.0
"""How long it tries to tell the store who is left behind; after that the others find out by themselves."""
Lost = dict[ParticipantId, Callable[[MeetingState], bool]]
"""Whose places are kept, each while that is true of the state."""


async def finish(meetings: Collection[Meeting], *, within_s: float) -> None:
    """Wait until all is done that somebody waits for, for so long at most."""
    finishing = [asyncio.create_task(meeting.tasks.finish()) for meeting in meetings]
    if not finishing:
        return
    _, unfinished = await asyncio.wait(finishing, timeout=within_s)
    if unfinished:
        log.warning("turns_left_unfinished", meetings=len(unfinished))
    for task in unfinished:
        task.cancel()
    await asyncio.wait(finishing)


async def leave(audience: Audience, end_beat: Callable[[], Awaitable[None]]) -> None:
    """Have the store know that everybody's connection is gone, and this process; nobody is told anything any more."""
    try:
        async with asyncio.timeout(HAND_OVER_S):
            await _leave_places(audience.everybody())
            await end_beat()
    except (StoreError, TimeoutError) as error:
        log.warning("hand_over_failed", error=str(error) or "no answer in time")
    for session in tuple(audience.everybody()):
        session.finish()


async def _leave_places(sessions: Iterable[Connected]) -> None:
    """Keep everybody's place for the grace period, by one commit for each meeting: they may come back anywhere."""
    left: defaultdict[Meeting, Lost] = defaultdict(dict)
    for session in sessions:
        left[session.meeting][session.id] = session.has_place
    losing = (meeting.places.lose_connections(lost) for meeting, lost in left.items())
    failures = [failed for failed in await asyncio.gather(*losing, return_exceptions=True) if failed is not None]
    for failed in failures:
        if not isinstance(failed, StoreError):
            raise failed
    if failures:
        log.warning("hand_over_failed", error=str(failures[0]), meetings=len(failures))
