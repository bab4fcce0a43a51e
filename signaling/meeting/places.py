"""Places in a meeting: kept for the grace for those whose connections are gone, and given up after it."""

import asyncio
import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

from signaling.core.commands import DepartUnlessBack, LoseConnections, Reconnect
from signaling.core.decisions import Refusal
from signaling.core.state import MeetingState
from signaling.entrance import Entrance
from signaling.errors import StoreError
from signaling.identifiers import CONTROLLER, ParticipantId, SessionId
from signaling.meeting.agreement import Agreement
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.tasks import Tasks

MOST_EXTENDED_S: Final = 300.0
"""For how much longer than the grace places are kept at most, while nobody can be let in at once."""
REMOVED_UNSEEN: Final = 8
"""How many people who have gone are removed from LiveKit without looking who is there; a list is one call."""


class Session(Protocol):
    """Somebody's way into the meeting."""

    key: SessionId

    def keeps_place(self, state: MeetingState) -> bool:
        """Whether the participant is connected by it, and nobody has taken their place over."""


class Places:
    """
    The places of one meeting's members.

    Args:
        clock: Seconds since the epoch.
        grace_s: How long a place is kept.
        entrance: Where people wait to be let in.
    """

    def __init__(
        self,
        journal: Journal,
        due: Due,
        agreement: Agreement,
        tasks: Tasks,
        entrance: Entrance,
        *,
        clock: Callable[[], float],
        grace_s: float,
    ) -> None:
        self._journal = journal
        self._due = due
        self._agreement = agreement
        self._tasks = tasks
        self._entrance = entrance
        self._clock = clock
        self._grace_s = grace_s
        self._lost: dict[ParticipantId, Callable[[MeetingState], bool]] = {}
        self._losing: asyncio.Task[None] | None = None

    async def lose_connections(self, lost: Mapping[ParticipantId, Callable[[MeetingState], bool]]) -> None:
        """
        Keep the places of people whose connections are gone for the grace period.

        However many lose theirs at once, that is one commit.

        Args:
            lost: For each of them, whether it is still true when it is committed.

        Raises:
            StoreError: Nothing changed.
        """
        self._lost.update(lost)
        if self._losing is None:
            self._losing = self._tasks.spawn(self._write_losses())
        await asyncio.shield(self._losing)

    async def _write_losses(self) -> None:
        lost: dict[ParticipantId, Callable[[MeetingState], bool]] = {}

        def choose(state: MeetingState) -> LoseConnections | None:
            if self._losing is asyncio.current_task():
                self._losing = None  # whoever comes from now on is of the next commit
                lost.update(self._lost)
                self._lost.clear()
            people = frozenset(who for who, is_lost in lost.items() if is_lost(state))
            return LoseConnections(people, self._clock() + self._grace_s) if people else None

        try:
            await self._journal.decide(CONTROLLER, choose)
        finally:
            if self._losing is asyncio.current_task():  # it came to nothing, as everybody who waits is told
                self._losing = None
                self._lost.clear()

    async def reconnect(self, sessions: Mapping[ParticipantId, Session]) -> bool:
        """
        Have those whose places are kept be here as before, by the sessions that they have; whether there was anybody.

        Raises:
            StoreError: Nothing changed.
        """

        def choose(state: MeetingState) -> Reconnect:
            return Reconnect({who: session.key for who, session in sessions.items() if session.keeps_place(state)})

        return not isinstance(await self._journal.decide(CONTROLLER, choose), Refusal)

    def end(self, state: MeetingState) -> dict[ParticipantId, float]:
        """
        Until when the places of people whose connections are gone are kept.

        The time to come back begins anew when nobody could be let in at once; whoever is being let in has come back.
        """
        away = {who: member.returns_until for who, member in state.members.items() if member.returns_until is not None}
        if not away:
            return {}
        held_up_until = self._entrance.held_up_at() + self._grace_s
        return {
            who: math.inf if self._is_arriving(who) else max(until, min(held_up_until, until + MOST_EXTENDED_S))
            for who, until in away.items()
        }

    def _is_arriving(self, participant: ParticipantId) -> bool:
        return self._entrance.is_arriving(self._journal.room, participant)

    async def give_up(self, now: float) -> bool:
        """
        Whoever has not come back by now is a member no longer; whether there was anybody.

        Raises:
            StoreError: They have more time.
        """
        overdue = frozenset(who for who, until in self.end(await self._journal.state()).items() if until <= now)
        if not overdue:
            return False
        try:
            departed = await self._journal.decide(
                CONTROLLER,
                lambda _: DepartUnlessBack(frozenset(who for who in overdue if not self._is_arriving(who)), now),
            )
        except StoreError:
            self._entrance.note_closed()
            raise
        if isinstance(departed, Refusal):
            return False
        before = departed.before.state
        gone = before.members.keys() - departed.record.state.members.keys()
        if len(gone) > REMOVED_UNSEEN:
            self._due.repair(gone)  # by a list, since hardly anybody of them is still there
        else:
            self._tasks.run_in_background(self._remove_all(gone, before))
        return True

    async def _remove_all(self, people: AbstractSet[ParticipantId], state: MeetingState) -> None:
        await asyncio.gather(*(self._agreement.remove_identities(who, state) for who in sorted(people)))
