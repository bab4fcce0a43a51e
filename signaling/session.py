"""One participant's way into a meeting."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from signaling.answers import Answers
from signaling.audience import Audience, EndReason
from signaling.core.commands import ChangeRole, Depart, Move
from signaling.core.decisions import Refusal
from signaling.core.participants import Role
from signaling.core.state import MeetingState, Member
from signaling.credentials import Credentials
from signaling.errors import InvalidParticipant, SessionEnded, StoreError
from signaling.identifiers import CONTROLLER, BreakoutId, ParticipantId, new_command_id, new_session_id
from signaling.meeting.journal import Committed
from signaling.meeting.meeting import Meeting
from signaling.meeting.turn import OVER
from signaling.meeting.view import join_data
from signaling.messages import control, livekit
from signaling.messages.base import Event, Namespace
from signaling.messages.envelope import Delivery, TransactionId

log = structlog.get_logger(__name__)

Deliver = Callable[[Delivery], object]
CONTROL: Final = Namespace.CONTROL.value
MODERATION: Final = Namespace.MODERATION.value


@dataclass(frozen=True, slots=True)
class Found:
    """
    What somebody found when they were let in.

    Attributes:
        member: Themselves, if they were in the meeting already.
        goes_on: Whether the meeting had begun.
    """

    member: Member | None
    goes_on: bool


class Session:
    """
    One participant's way into a meeting; made by `ModerationModule.join`.

    Attributes:
        key: Our id of the session.
        id: The participant.
        room: The meeting.
        joined: Done when joining is complete, or has come to nothing.
        has_entered: Whether the participant is, or was, in the meeting by this session.
        found: What the participant found, once they have been let in.
    """

    def __init__(
        self,
        meeting: Meeting,
        participant: ParticipantId,
        deliver: Deliver,
        extensions: frozenset[str],
        audience: Audience,
        credentials: Credentials,
        answers: Answers,
    ) -> None:
        self.key, self.id, self.room = new_session_id(), participant, meeting.room
        self._ended: asyncio.Future[EndReason] = asyncio.get_running_loop().create_future()
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_control = CONTROL in extensions
        self.has_moderation = MODERATION in extensions
        self.found: Found | None = None
        self._audience, self._credentials, self._answers = audience, credentials, answers
        self._meeting = meeting
        self._deliver = deliver
        self._since: int | None = None
        self._held_back: list[tuple[int, Delivery]] = []
        self.has_entered = False
        self._moving = 0
        self._is_over = self._is_given_up = self._is_breaking = False
        self._ends: list[tuple[int, EndReason]] = []
        self._join_data: bytes | None = None
        self._join_success: control.JoinSuccess | None = None

    @property
    def ended(self) -> "asyncio.Future[EndReason]":
        """
        Resolves to the reason when the module ends the session, after the last delivery; the host then closes.

        It stays open when the host itself ends the session by `leave` or `disconnect`. Each time that it is asked for
        it is another future, so that whoever stops waiting for one (`asyncio.wait_for`) cancels no more than that.
        """
        return asyncio.shield(self._ended)

    @property
    def join_data(self) -> dict[str, object] | None:
        """What the host tells the joiner under the key `livekit`; `None` while LiveKit does not answer."""
        if self._join_data is None:
            return None
        data: dict[str, object] = json.loads(self._join_data)
        return data

    def take_join_success(self) -> control.JoinSuccess:
        """
        The whole answer to `control/join`, as of the moment of joining, for hosts that speak that namespace.

        It may be taken once: it names everybody in the meeting, and is not kept after that.
        """
        taken, self._join_success = self._join_success, None
        if taken is None:
            raise RuntimeError("the session is without the extension `control`, or its join_success was taken before")
        return taken

    @property
    def is_over(self) -> bool:
        """Whether nothing is delivered any more, whoever ended it."""
        return self._is_over

    async def receive(self, namespace: str, payload: object, transaction_id: TransactionId | None = None) -> None:
        """
        Carry out what a client sent; returns when it is answered. Nothing that a client sends makes this raise.

        Commands of a meeting take effect in the order of these calls. Cancelling gives up the answer, not the command.

        Args:
            namespace: `livekit`, `livekit_moderation`, or `control` when the session has it.
            payload: The command as parsed JSON, whatever that is.
            transaction_id: Carried back by the sender's own copies of the answers.

        Raises:
            ValueError: A namespace that is not the module's: the host's mistake.
        """
        if not self._is_over:
            with suppress(StoreError):  # this process ends, and the client was told
                await self._meeting.tasks.see_through(self._answers.receive(self, namespace, payload, transaction_id))

    async def change_role(self, role: Role) -> None:
        """
        Give or take a role until the meeting ends; tried in LiveKit before this returns, and retried after.

        Raises:
            InvalidParticipant: Nobody of kind `guest` or `sip` becomes a moderator.
            SessionEnded: The participant is no longer here.
            StoreError: Nothing changed.
        """
        await self._meeting.tasks.see_through(self._change_role(role))

    async def _change_role(self, role: Role) -> None:
        self._check()
        answer = await self._meeting.turns.take(CONTROLLER, ChangeRole(self.id, role), new_command_id())
        if answer is OVER:
            raise SessionEnded(f"the meeting {self.room} has ended")
        if isinstance(answer, Refusal) and answer.error == "insufficient_permissions":
            raise InvalidParticipant(f"{self.id}: nobody of their kind is a {role}")
        if isinstance(answer, Refusal) and answer.error != "nothing_to_do":
            raise SessionEnded(f"{self.id} is not in the meeting")

    async def move(self, breakout: BreakoutId | None) -> None:
        """
        Move to a breakout, or back to the main room (`None`); everything decided in the meeting goes along.

        Delivers `credentials` for the other room, renews `join_data`, and removes the participant from the old room.

        Raises:
            SessionEnded: The participant is no longer here.
            StoreError: Nothing changed.
        """
        await self._meeting.tasks.see_through(self._move(breakout))

    async def be_moved(self, breakout: BreakoutId | None) -> None:
        """Like `move`, by the controller: moderators are told, and the audit keeps it."""
        await self._meeting.tasks.see_through(self._move(breakout, is_action=True))

    async def _move(self, breakout: BreakoutId | None, *, is_action: bool = False) -> None:
        self._check()
        self._moving += 1
        try:
            committed = await self._meeting.turns.commit_now(self.id, Move(self.id, breakout, is_action))
        finally:
            self._moving -= 1
        if isinstance(committed, Refusal):
            raise SessionEnded(f"{self.id} is not in the meeting")
        await self._renew()
        await self._meeting.agreement.remove_identities(self.id, committed.before.state)

    def note_entered(self) -> None:
        """The participant is in the meeting by this session: what came before may be of one that is over by now."""
        if not self.has_entered:  # and not taken for gone meanwhile
            self.has_entered = True
            self._held_back, self._ends = [], []

    def note_moved(self, revision: int) -> None:
        """The participant belongs into another room, by a commit that may have been made elsewhere."""
        if not self._moving and not self._is_over and self._since is not None and revision > self._since:
            self._meeting.tasks.run_in_background(self._renew())

    async def _renew(self) -> None:
        """Tell the participant how to get into the room where they belong now."""
        credentials = await self._credentials.mint(self._meeting, self.id)
        record = await self._meeting.journal.record()
        if credentials is None:
            self._join_data = None
            self.tell(livekit.LiveKitError(error="livekit_unavailable"))
        else:
            self._join_data = _kept(join_data(record, credentials))
            self.tell(credentials)

    async def leave(self, reason: control.LeaveReason = "quit") -> None:
        """
        Leave for good: all identities are removed from LiveKit, tried before this returns and retried after.

        Raises:
            StoreError: The participant is still here; leaving may be tried again.
        """
        if not self._is_over:
            await self._meeting.tasks.see_through(self._leave(reason))

    async def _leave(self, reason: control.LeaveReason) -> None:
        if self._is_over or self._give_way():
            return
        depart = Depart(self.id, reason)
        committed = await self._meeting.journal.decide(self.id, lambda state: depart if self.has_place(state) else None)
        self.finish()
        if isinstance(committed, Committed):
            removing = self._meeting.agreement.remove_identities(self.id, committed.before.state)
            del committed  # the state before names everybody; when a whole meeting leaves, that is a lot of names
            await removing

    async def disconnect(self) -> None:
        """
        The connection broke: place and media are kept for the grace period, for this participant to join again.

        Raises:
            StoreError: Nothing changed; it may be tried again.
        """
        if not self._is_over:
            await self._meeting.tasks.see_through(self._disconnect())

    async def _disconnect(self) -> None:
        if self._is_over or self._give_way():
            return
        self._is_breaking = True  # also if it may have been written, and is to be tried again
        await self._meeting.places.lose_connections({self.id: self.has_place})
        self.finish()

    def has_place(self, state: MeetingState) -> bool:
        """Whether the participant's place is this session's: it is not over, and no newer one was or is let in."""
        member = state.members.get(self.id)
        is_newest = member is not None and member.session == self.key
        return is_newest and not self._is_over and not self._audience.is_being_taken_over(self)

    def keeps_place(self, state: MeetingState) -> bool:
        """Whether it is, and the participant is connected: whoever takes them for gone is wrong."""
        return self.has_entered and not self._is_breaking and not self._is_given_up and self.has_place(state)

    def give_up(self) -> None:
        """Whoever let the participant in does not want to know any more: nothing is delivered from here on."""
        self._is_given_up = True
        self._deliver = lambda _: None

    @property
    def is_given_up(self) -> bool:
        """Whether whoever let the participant in does not want to know any more."""
        return self._is_given_up

    def tell(self, event: Event, transaction_id: TransactionId | None = None) -> None:
        """Deliver an event to this session alone."""
        self.push(Delivery(event, self._audience.timestamp(), transaction_id), None)

    def push(self, delivery: Delivery, revision: int | None) -> None:
        """Deliver; what belongs to a commit that the joiner already knows of is left out."""
        if self._is_over:
            return
        if revision is not None and self._since is None:
            self._held_back.append((revision, delivery))
        elif revision is None or self._since is None or revision > self._since:
            try:
                self._deliver(delivery)
            except (Exception, asyncio.CancelledError):
                # The host's callback, which may have asked a future that was cancelled. Others are to get theirs.
                log.exception("delivery_failed", room=self.room, participant=self.id)

    def begin(
        self, revision: int, join_data: livekit.JoinData | None, join_success: control.JoinSuccess | None
    ) -> None:
        """From here on deliveries go out, beginning with those that came after `revision`."""
        self._join_data = None if join_data is None else _kept(join_data)
        self._join_success = join_success
        self._since = revision
        if not self.joined.done():
            self.joined.set_result(None)
        held_back, self._held_back = self._held_back, []
        ends = next((each for each in self._ends if each[0] > revision), None)
        for committed, delivery in held_back:
            if ends is None or committed <= ends[0]:  # nothing comes after what ends it
                self.push(delivery, committed)
        if ends is not None:
            self.end(ends[1])

    def end(self, reason: EndReason, revision: int | None = None) -> None:
        """The module ends the session; not for a commit from before the participant joined."""
        if revision is not None and self._since is None:
            self._ends.append((revision, reason))
        elif not self._is_over and (revision is None or self._since is None or revision > self._since):
            self.finish()
            self._ended.set_result(reason)

    def fall_back(self, revision: int) -> None:
        """The meeting is again as it was at `revision`: what is committed from there is new, and is told."""
        if self._since is None:
            self.end("interrupted")  # what they are about to be told may be lost
        else:
            self._since = min(self._since, revision)

    def _give_way(self) -> bool:
        """End as taken over if that is about to be: what is undone now must not be undone to the newer session."""
        if not self._audience.is_being_taken_over(self):
            return False
        self.end("taken_over")
        return True

    def finish(self) -> None:
        """Deliver nothing any more; the host has ended the session, and knows."""
        self._is_over = True
        self._audience.drop(self)

    def _check(self) -> None:
        if self._is_over:
            raise SessionEnded(f"{self.id}'s session has ended")

    @property
    def meeting(self) -> Meeting:
        """The meeting as this process looks after it."""
        return self._meeting

    @property
    def has_begun(self) -> bool:
        """Whether joining is complete."""
        return self._since is not None


def _kept(data: livekit.JoinData) -> bytes:
    """As it is kept for as long as the session: a message takes several times as much memory as its JSON."""
    return data.model_dump_json(exclude_none=True).encode()
