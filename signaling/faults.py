"""What a store says that went wrong with it, and what follows from that for the meetings of this process."""

from collections.abc import Callable
from typing import assert_never

import structlog

from signaling import metrics
from signaling.audience import Audience
from signaling.core.decisions import may_moderate
from signaling.identifiers import RoomId
from signaling.meetings import Meetings
from signaling.messages import moderation
from signaling.stores.contract import Fault, FellBack, FellBehind

log = structlog.get_logger(__name__)


class Faults:
    """
    Takes in what the store says of itself.

    Args:
        clock: Seconds since the epoch.

    Attributes:
        rolled_back: Of how many meetings the store has lost something (`meetings`), and when it last did (`at`, seconds
            since the epoch); `None` if that never happened.
    """

    def __init__(self, meetings: Meetings, audience: Audience, *, clock: Callable[[], float]) -> None:
        self.rolled_back: dict[str, float] | None = None
        self._meetings = meetings
        self._audience = audience
        self._clock = clock

    def note(self, fault: Fault) -> None:
        """Something went wrong: begin with what follows from it."""
        match fault:
            case FellBehind(room, reason):
                metrics.STORE_FAULTS.labels("fell_behind").inc()
                for each in self._meetings.rooms() if room is None else [room]:
                    self._interrupt(each, reason)
            case FellBack():
                metrics.STORE_FAULTS.labels("fell_back").inc()
                self._roll_back(fault)
            case _:
                assert_never(fault)

    def _interrupt(self, room: RoomId, reason: str) -> None:
        """Nobody can be told everything any more: their sessions end, and they come back to what is kept."""
        sessions = self._audience.in_room(room)
        log.warning("meeting_interrupted", room=room, sessions=len(sessions), reason=reason)
        for session in sessions:
            session.end("interrupted")
        self._meetings.begin_anew(room)

    def _roll_back(self, fault: FellBack) -> None:
        """Go on from the older state: who is not in it comes back, moderators are told, LiveKit is set right."""
        room, ids = fault.room, fault.command_ids
        log.warning("state_rolled_back", room=room, command_ids=len(ids))
        before = 0 if self.rolled_back is None else self.rolled_back["meetings"]
        self.rolled_back = {"meetings": before + 1, "at": round(self._clock(), 3)}
        meeting = self._meetings.get(room)
        if meeting is None:
            return
        record = fault.record or meeting.journal.beginning()
        told = moderation.StateRolledBack(command_ids=ids[-moderation.MAX_ROLLED_BACK :])
        for session in self._audience.in_room(room):
            member = record.state.members.get(session.id)
            if member is None or member.session != session.key:
                session.end("interrupted")
                continue
            session.fall_back(record.revision)
            if session.has_moderation and may_moderate(record.state, session.id):
                session.tell(told)
        meeting.journal.note(record)
        meeting.tasks.run_in_background(meeting.reconciler.sweep())
