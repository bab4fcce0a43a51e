"""What lets somebody into LiveKit: tokens from the newest state, and popouts."""

from typing import Final

import structlog

from signaling.core.commands import AnyCommand
from signaling.core.decisions import Refusal
from signaling.core.participants import Kind
from signaling.errors import MediaServerError
from signaling.identifiers import BreakoutId, CommandId, Identity, ParticipantId, livekit_room
from signaling.livekit.tokens import TokenMint
from signaling.meeting.meeting import Meeting
from signaling.messages import livekit
from signaling.stores.contract import Origin, Record

log = structlog.get_logger(__name__)

BESIDE_THE_SERVER: Final = frozenset({Kind.SIP, Kind.RECORDER})
"""Kinds that reach LiveKit by its internal address."""


class Credentials:
    """
    Makes tokens for one LiveKit.

    Args:
        public_url: What clients are told to connect to.
        service_url: What is told to those who run beside LiveKit.
    """

    def __init__(self, mint: TokenMint, *, public_url: str, service_url: str) -> None:
        self._mint = mint
        self.public_url = public_url
        self._service_url = service_url

    async def mint(self, meeting: Meeting, participant: ParticipantId) -> livekit.Credentials | None:
        """A token from the newest state, for the room where the participant belongs; `None` without LiveKit."""
        known = meeting.journal.newest  # good enough for which room to make sure of
        if known is None or participant not in known.state.members:
            known = await meeting.journal.record()
        member = known.state.members.get(participant)
        if member is None or not await self._open_room(meeting, member.breakout):
            return None
        record = await meeting.journal.record()
        # Whoever is just being removed gets nothing to come back with.
        is_here = participant in record.state.members and participant in meeting.journal.effective_of(record).members
        return self._credentials(meeting, participant, record) if is_here else None

    def _credentials(self, meeting: Meeting, participant: ParticipantId, record: Record) -> livekit.Credentials:
        member = record.state.members[participant]
        room = livekit_room(meeting.room, member.breakout)
        sources = meeting.turns.sources_for_token(record, participant)
        token = self._mint.for_participant(room, Identity(participant), sources=sources, kind=member.kind)
        return livekit.Credentials(
            room=room,
            token=token,
            public_url=self.public_url,
            service_url=self._service_url if member.kind in BESIDE_THE_SERVER else None,
        )

    async def open_popout(
        self,
        meeting: Meeting,
        participant: ParticipantId,
        command: AnyCommand,
        command_id: CommandId,
        origin: Origin,
    ) -> livekit.PopoutStreamAccessToken | Refusal:
        """A token for one hidden viewer more, who may make an older one go."""
        member = (await meeting.journal.record()).state.members.get(participant)
        if member is None or not await self._open_room(meeting, member.breakout):
            return Refusal("livekit_unavailable")
        committed = await meeting.turns.commit_now(participant, command, command_id, origin)
        if isinstance(committed, Refusal):
            return committed
        popouts = committed.record.state.popouts[participant]
        popout = popouts.open[-1]
        if popouts.issued > len(popouts.open):
            meeting.due.repair({participant})  # an older one may have had to make room
        return livekit.PopoutStreamAccessToken(token=self._mint.for_popout(popout.room, popout.identity))

    async def _open_room(self, meeting: Meeting, breakout: BreakoutId | None) -> bool:
        try:
            await meeting.rooms.open(livekit_room(meeting.room, breakout))
        except MediaServerError as error:
            log.warning("room_not_opened", room=meeting.room, error=str(error))
            return False
        return True
