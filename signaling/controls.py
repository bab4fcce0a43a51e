"""What a controller does to somebody in a meeting, wherever their connection is, and whether or not they have one."""

import asyncio

from signaling.audience import Audience
from signaling.core.commands import ChangeRole, Move
from signaling.core.decisions import Refusal
from signaling.core.participants import Role
from signaling.errors import InvalidParticipant, NoSuchMeeting, NotInMeeting, SessionEnded
from signaling.identifiers import CONTROLLER, BreakoutId, ParticipantId, RoomId, new_command_id
from signaling.joining import Joining
from signaling.meeting.meeting import Meeting
from signaling.meeting.turn import OVER
from signaling.meetings import Meetings


class Controls:
    """Roles and moves in the meetings of one process."""

    def __init__(self, meetings: Meetings, audience: Audience, joining: Joining) -> None:
        self._meetings = meetings
        self._audience = audience
        self._joining = joining

    async def change_role(self, room: RoomId, participant: ParticipantId, role: Role) -> None:
        """Give or take a role until the meeting ends; see `ModerationModule.change_role`."""
        meeting = await self._meetings.that_goes_on(room)
        changing = meeting.turns.take(CONTROLLER, ChangeRole(participant, role), new_command_id())
        with self._meetings.engaged(room):
            answer = await meeting.tasks.see_through(changing)
        if answer is OVER:
            raise NoSuchMeeting(f"the meeting {room} has ended")
        if isinstance(answer, Refusal) and answer.error == "insufficient_permissions":
            raise InvalidParticipant(f"{participant}: nobody of their kind is a {role}")
        if isinstance(answer, Refusal) and answer.error != "nothing_to_do":
            raise NotInMeeting(f"{participant} is not in the meeting")

    async def move(self, room: RoomId, participant: ParticipantId, breakout: BreakoutId | None) -> None:
        """Move somebody to a breakout, or back; see `ModerationModule.move`."""
        meeting = await self._meetings.that_goes_on(room)
        while True:
            joining = [each for each in self._joining.arriving(room, participant) if not each.joined.done()]
            if joining:  # which would put them back to where they were let in
                await asyncio.wait({joining[-1].joined})
                continue
            listed = [each for each in self._audience.of(room, participant) if not each.is_over]
            if not listed:
                break
            newest = listed[-1]
            try:
                await newest.be_moved(breakout)
            except SessionEnded as error:
                raise NotInMeeting(f"{participant} is not in the meeting") from error
            return
        # Nobody to deliver to here: their connection is another process', which delivers, or it is broken, and whoever
        # comes back gets credentials then.
        with self._meetings.engaged(room):
            await meeting.tasks.see_through(self._move_absent(meeting, participant, breakout))

    async def _move_absent(self, meeting: Meeting, participant: ParticipantId, breakout: BreakoutId | None) -> None:
        committed = await meeting.turns.commit_now(participant, Move(participant, breakout, is_action=True))
        if isinstance(committed, Refusal):
            raise NotInMeeting(f"{participant} is not in the meeting")
        await meeting.agreement.remove_identities(participant, committed.before.state)
