"""Which nodes live, and which members are here by one that does not, or by this one after all."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog

from signaling.audience import Audience, Connected
from signaling.clock import NodeClock
from signaling.core.state import MeetingState, Member
from signaling.identifiers import NodeId, ParticipantId, SessionId
from signaling.meeting.meeting import Meeting
from signaling.stores.contract import Store

log = structlog.get_logger(__name__)

BEAT_S: Final = 5.0
"""How often a node says that it lives."""
LIVES_S: Final = 15.0
"""How long it counts as living after that: people who were connected to it have their grace from then on."""


class Presence:
    """
    What one node says of itself, and knows of the others.

    Args:
        node: This process.
        clock: Seconds since the epoch.
    """

    def __init__(self, store: Store, audience: Audience, node: NodeId, *, clock: NodeClock) -> None:
        self._store = store
        self._audience = audience
        self._node = node
        self._clock = clock
        self._alive: frozenset[NodeId] = frozenset()
        self._said_at: float | None = None
        """By the event loop's clock, which cannot be set."""
        self._saying = asyncio.Lock()

    # --- Nodes ---------------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """
        Say that this node lives, and learn who does; by the same time as the others, whatever this node's clock says.

        Raises:
            StoreError: The store does not answer.
        """
        await self._clock.compare(self._store.time)
        asked_at, now = asyncio.get_running_loop().time(), self._clock()
        self._alive = await self._store.beat(self._node, until=now + LIVES_S, now=now)
        said_at, self._said_at = self._said_at, asked_at
        if said_at is not None and asked_at - said_at > LIVES_S:
            log.warning("node_was_silent", silent_s=round(asked_at - said_at, 1))

    async def beat_if_late(self) -> None:
        """
        Say that this node lives if the others may not believe it, as after it was paused, or without the store.

        Raises:
            StoreError: The store does not answer.
        """
        async with self._saying:
            if self._said_at is None or asyncio.get_running_loop().time() - self._said_at > BEAT_S:
                await self.beat()

    async def end(self) -> None:
        """
        Say that this node ends.

        Raises:
            StoreError: The store does not answer.
        """
        now = self._clock()
        await self._store.beat(self._node, until=now, now=now)

    # --- Their people --------------------------------------------------------------------------------------------

    def lost(
        self, state: MeetingState, *, even_away: bool = False
    ) -> dict[ParticipantId, Callable[[MeetingState], bool]]:
        """
        Who is here by a node that is gone, or by this one and without a session; and whether that is so still.

        Args:
            even_away: Also those whose connections are known to be gone, since nobody could let them in meanwhile.
        """
        return {
            who: partial(self._is_gone_by, who, member.session)
            for who, member in state.members.items()
            if (even_away or member.returns_until is None) and self._is_gone(who, member, state)
        }

    def _is_gone_by(self, who: ParticipantId, session: SessionId | None, state: MeetingState) -> bool:
        """Whether somebody is here by that session and not really: by a newer one they may be on a newer node."""
        member = state.members.get(who)
        return member is not None and member.session == session and self._is_gone(who, member, state)

    def _is_gone(self, who: ParticipantId, member: Member, state: MeetingState) -> bool:
        if member.node == self._node:
            return not self._audience.of(state.room, who)
        return member.node not in self._alive

    async def let_in_again(self, meeting: Meeting) -> None:
        """
        Have those be here by the sessions that they have who were taken for gone, since this node was not heard of.

        Raises:
            StoreError: The store does not answer.
        """
        state = (meeting.journal.newest or await meeting.journal.record()).state
        if sessions := self._given_up(state):
            await self.beat_if_late()
            if await meeting.places.reconnect({session.id: session for session in sessions}):
                log.warning("let_in_again", room=meeting.room, participants=len(sessions))

    def _given_up(self, state: MeetingState) -> Sequence[Connected]:
        return [
            session
            for who, member in state.members.items()
            if member.returns_until is not None and member.node == self._node
            for session in self._audience.of(state.room, who)
            if session.keeps_place(state)
        ]
