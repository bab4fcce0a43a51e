"""What a store says that went wrong with it, and what follows from that for the meetings of this process."""

from typing import assert_never

import structlog

from signaling import metrics
from signaling.audience import Audience
from signaling.identifiers import RoomId
from signaling.meetings import Meetings
from signaling.stores.contract import Fault, FellBack, FellBehind

log = structlog.get_logger(__name__)


class Faults:
    """Takes in what the store says of itself."""

    def __init__(self, meetings: Meetings, audience: Audience) -> None:
        self._meetings = meetings
        self._audience = audience

    def note(self, fault: Fault) -> None:
        """Something went wrong: begin with what follows from it."""
        match fault:
            case FellBehind(room, reason):
                metrics.STORE_FAULTS.labels("fell_behind").inc()
                for each in self._meetings.rooms() if room is None else [room]:
                    self._interrupt(each, reason)
            case FellBack():
                metrics.STORE_FAULTS.labels("fell_back").inc()
            case _:
                assert_never(fault)

    def _interrupt(self, room: RoomId, reason: str) -> None:
        """Nobody can be told everything any more: their sessions end, and they come back to what is kept."""
        sessions = self._audience.in_room(room)
        log.warning("meeting_interrupted", room=room, sessions=len(sessions), reason=reason)
        for session in sessions:
            session.end("interrupted")
        self._meetings.begin_anew(room)
