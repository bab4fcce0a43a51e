"""From a command to a commit: one at a time for each meeting, whatever fails on the way."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from signaling import metrics
from signaling.core.commands import AnyCommand, End, HostCommand, MemberCommand, ModeratorCommand
from signaling.core.conclusions import Conclusion, conclude
from signaling.core.decisions import FRESH_S, Decision, Refusal, decide, may_moderate, refusal_of
from signaling.core.effects import Agree, Finding, Mute, Stop
from signaling.core.enforcement import screen_is_taken, silencing, strangers
from signaling.core.participants import SCREEN_SOURCES, Source
from signaling.core.policy import publishable, stricter
from signaling.core.references import people
from signaling.core.state import MeetingState
from signaling.errors import MediaServerUnavailable, StoreError, TurnLost
from signaling.identifiers import CommandId, ParticipantId
from signaling.livekit.contract import MediaServer
from signaling.meeting.due import Due
from signaling.meeting.enforcing import Enforcing, Seen, worsen
from signaling.meeting.journal import NOTHING_TO_DO, Committed, Draft, Journal, draft_of
from signaling.meeting.lease import Lease
from signaling.meeting.roster import Roster
from signaling.meeting.tasks import Tasks
from signaling.messages import livekit, moderation
from signaling.stores.contract import Entry, Origin, Record, Staged, Unstaged

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 64
"""Commands of one meeting that may wait for their turn; of one person, no more than are left for others."""
MAX_SMALL: Final = 4
"""What one person may have waiting of what needs no turn, hands and popouts, unless they moderate."""
OVER: Final = Refusal("insufficient_permissions")
"""Of a command whose meeting has ended before it was carried out."""


class TooManyWaiting(Exception):
    """The meeting, or this person in it, has as many commands waiting as may."""


class Turns:
    """
    The turns of one meeting.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        lease: Lease,
        media: MediaServer,
        journal: Journal,
        roster: Roster,
        due: Due,
        enforcing: Enforcing,
        tasks: Tasks,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._lease = lease
        self._media = media
        self._journal = journal
        self._roster = roster
        self._due = due
        self._enforcing = enforcing
        self._tasks = tasks
        self._clock = clock
        self._waiting: Counter[ParticipantId] = Counter()
        self._small: Counter[ParticipantId] = Counter()
        self._minted_while_staged: dict[ParticipantId, int] = {}
        """Whose tokens were made while something was staged, by which revision."""
        journal.listen(self._on_commit)

    # --- Reading -------------------------------------------------------------------------------------------------

    def sources_for_token(self, record: Record, participant: ParticipantId) -> tuple[Source, ...]:
        """What a token may allow now; while a decision is staged, what it allows is looked at again after the turn."""
        if record.staged is None:
            allowed = publishable(participant, record.state)
        else:
            self._minted_while_staged[participant] = record.revision
            self._look_after_minting(self._journal.newest)  # others may have been quicker
            allowed = stricter(participant, record.state, record.effective)
        if record.state.presenter == participant and screen_is_taken(record.state, self._roster.presences, participant):
            self._due.repair({participant})
            return tuple(source for source in allowed if source not in SCREEN_SOURCES)
        return allowed

    async def preview(self, sender: ParticipantId, command: AnyCommand, command_id: CommandId) -> Conclusion | Refusal:
        """
        What a command would come to now if LiveKit does its part. Nothing is done, and no turn waited for.

        Raises:
            StoreError: The store did not answer.
        """
        state = await self._journal.effective_state()
        if (refusal := refusal_of(state, sender, command, self._clock())) is not None:
            return refusal  # before LiveKit is asked
        try:
            await self._roster.look(state.rooms_in_use())
        except MediaServerUnavailable:
            return Refusal("livekit_unavailable")
        decision = self._decide_seeing(state, sender, command, command_id)
        if isinstance(decision, Refusal):
            return decision
        findings: dict[ParticipantId, Finding] = {}
        if isinstance(decision.effect, Mute):
            for who in decision.targets:
                for place in self._roster.places_of(state, who):
                    if (presence := self._roster.presence(*place)) is not None:
                        worsen(findings, who, silencing(presence, decision.effect.sources))
        return conclude(state, decision, findings, present=self._roster.present(state))

    # --- Without a turn ------------------------------------------------------------------------------------------

    async def commit_now(
        self,
        sender: ParticipantId,
        command: AnyCommand,
        command_id: CommandId | None = None,
        origin: Origin | None = None,
    ) -> Committed | Refusal:
        """
        Decide and commit what needs no turn: who is here, and what always stands whatever LiveKit says.

        Raises:
            TooManyWaiting: This person has as much of this waiting as may be.
            StoreError: Nothing was committed.
        """
        if not isinstance(command, MemberCommand):
            return await self._journal.decide(sender, lambda _: command, command_id, is_urgent=isinstance(command, End))
        moderates = self._journal.newest is not None and may_moderate(self._journal.newest.state, sender)
        if self._small[sender] >= (MAX_WAITING if moderates else MAX_SMALL):  # they lower the hands of others
            raise TooManyWaiting
        self._small[sender] += 1
        try:
            return await self._journal.decide(sender, lambda _: command, command_id, origin=origin)
        finally:
            self._small[sender] -= 1
            if not self._small[sender]:
                del self._small[sender]

    # --- Turns ---------------------------------------------------------------------------------------------------

    async def take(
        self, sender: ParticipantId, command: AnyCommand, command_id: CommandId, origin: Origin | None = None
    ) -> Conclusion | Refusal:
        """
        Carry a command through when its turn comes; to be called in a task that `see_through` or `spawn` has made.

        Args:
            origin: Whose message asks for it.

        Raises:
            TooManyWaiting: As many wait as may.
            StoreError: The store did not answer, or the turn was lost. A decision that was staged by then is finished
                as soon as it can be; any other came to nothing.
        """
        if (refusal := await self._refused_at_once(sender, command)) is not None:
            return refusal
        is_counted = not isinstance(command, HostCommand)
        most = MAX_SMALL if isinstance(command, MemberCommand) else MAX_WAITING
        if is_counted and self._waiting[sender] >= min(most, MAX_WAITING - self._waiting.total()):
            raise TooManyWaiting
        self._waiting[sender] += is_counted
        metrics.COMMANDS_WAITING.inc()
        is_waiting = True
        begun: tuple[Decision, Record] | None = None
        try:
            async with self._lease.taken():
                is_waiting = False
                self._begin(sender, is_counted=is_counted)
                record = await self._journal.record()
                if record.staged is not None:
                    record = await self._finish(record.staged)
                if command_id in record.state.undoable and (first := await self._journal.first_outcome(command_id)):
                    return first  # it is asked for again
                if (refusal := refusal_of(record.state, sender, command, self._clock())) is not None:
                    return refusal
                decision = await self._decide(record.state, sender, command, command_id)
                if isinstance(decision, Refusal):
                    return decision
                begun = decision, record
                answer = await self._carry_through(decision, origin)
        except StoreError:
            if begun is None or (first := await self._outcome_elsewhere(*begun)) is None:
                raise
            return first  # the answer was lost, or another process has finished it
        finally:
            if is_waiting:
                self._begin(sender, is_counted=is_counted)
        if answer is OVER:
            return await self._outcome_elsewhere(*begun) or await self._over_or_undone()
        return answer

    async def _outcome_elsewhere(self, decision: Decision, before: Record) -> Conclusion | None:
        """What a decision came to if its commit was made all the same, here or by another process."""
        return await self._journal.first_outcome(decision.command_id, decision, after=before.revision)

    async def _over_or_undone(self) -> Refusal:
        """Why nothing came of a decision: the meeting is over, or another process has taken it back."""
        return Refusal("unavailable") if (await self._journal.state()).goes_on else OVER

    async def _refused_at_once(self, sender: ParticipantId, command: AnyCommand) -> Refusal | None:
        """Why it need not even wait: the sender may neither now nor when what is being done is done."""
        if (
            self._journal.newest is None
            or refusal_of(self._journal.newest.state, sender, command, self._clock()) is None
        ):
            return None
        record = await self._journal.record()  # what another node has allowed them may not be known here yet
        refusal = refusal_of(record.state, sender, command, self._clock())
        if refusal is None or record.staged is None:
            return refusal
        # Refused as of now: whether what is staged comes true is not known.
        then = refusal_of(self._journal.effective_of(record), sender, command, self._clock())
        return None if then is None else refusal

    async def _decide(
        self, state: MeetingState, sender: ParticipantId, command: AnyCommand, command_id: CommandId
    ) -> Decision | Refusal:
        if may_moderate(state, sender) and _concerns_strangers(state, command):
            with contextlib.suppress(MediaServerUnavailable):
                await self._roster.look(state.rooms_in_use())
        return self._decide_seeing(state, sender, command, command_id)

    def _decide_seeing(
        self, state: MeetingState, sender: ParticipantId, command: AnyCommand, command_id: CommandId
    ) -> Decision | Refusal:
        """Decide, as of the last look."""
        is_theirs = isinstance(command, ModeratorCommand)
        others = strangers(state, self._roster.presences) if is_theirs else {}
        return decide(state, sender, command, now=self._clock(), command_id=command_id, strangers=others)

    def _begin(self, sender: ParticipantId, *, is_counted: bool) -> None:
        self._waiting[sender] -= is_counted
        if not self._waiting[sender]:
            del self._waiting[sender]
        metrics.COMMANDS_WAITING.dec()

    def _on_commit(self, _before: Record | None, record: Record, _entry: Entry | None) -> None:
        self._look_after_minting(record)

    def _look_after_minting(self, record: Record | None) -> None:
        """Whoever got a token here while something was staged is looked at again, whatever came of that."""
        if record is None or record.staged is not None or not self._minted_while_staged:
            return
        minted = {who for who, revision in self._minted_while_staged.items() if revision < record.revision}
        if minted:
            self._minted_while_staged = {
                who: revision for who, revision in self._minted_while_staged.items() if who not in minted
            }
            self._due.repair(minted)

    async def _carry_through(
        self, decision: Decision, origin: Origin | None = None, *, is_again: bool = False
    ) -> Conclusion | Refusal:
        if decision.effect is None:
            return await self._conclude(decision, Seen({}), origin)
        if not self._media.answering and not decision.holds:
            if is_again:
                await self._roll_back(decision)
            return Refusal("livekit_unavailable")
        if not await self._stage(decision):
            return OVER
        try:
            try:
                seen = await self._enforcing.carry_out(decision)
            except MediaServerUnavailable:
                if not decision.holds:
                    return Refusal("livekit_unavailable") if await self._roll_back(decision) else OVER
                concerned = _concerned(decision, (await self._journal.record()).state)
                seen = Seen(dict.fromkeys(concerned, Finding.UNANSWERED))
                self._due.doubt(concerned)
            conclusion = await self._conclude(decision, seen, origin)
        except asyncio.CancelledError:
            raise  # this process ends: the decision stays staged, and is finished at the next start
        except Exception as error:
            # What always stands is finished by the next turn or sweep, as is what was being finished; and whoever has
            # lost the turn has nothing to take back.
            if not isinstance(error, StoreError) or not (decision.holds or is_again or isinstance(error, TurnLost)):
                await self._roll_back(decision)
            raise
        if isinstance(conclusion, Conclusion):
            for work in seen.later:
                self._tasks.run_in_background(work())
        return conclusion

    async def _stage(self, decision: Decision | None) -> bool:
        """Have this decision staged, or none; not if the meeting is over."""

        def draft(record: Record) -> Draft | Refusal:
            if not record.state.goes_on or record.staged is decision is None:
                return NOTHING_TO_DO
            return Draft(staging=Unstaged() if decision is None else Staged(decision))

        return isinstance(await self._journal.commit(draft, fence=self._lease.fence), Committed)

    async def _roll_back(self, decision: Decision) -> bool:
        """Have a decision staged no longer; not if another process has finished it, for which LiveKit has answered."""
        was_staged = await self._stage(None)
        # Calls that went unanswered may have been carried out all the same.
        self._due.doubt(_concerned(decision, (await self._journal.record()).state))
        return was_staged

    async def _conclude(self, decision: Decision, seen: Seen, origin: Origin | None = None) -> Conclusion | Refusal:
        def draft(record: Record) -> Draft | Refusal:
            if _is_over(record, decision):
                return OVER
            present = self._roster.present(record.state)
            conclusion = conclude(record.state, decision, seen.findings, silenced=seen.silenced, present=present)
            return draft_of(decision, conclusion, Unstaged(), origin)

        committed = await self._journal.commit(draft, fence=self._lease.fence)
        if isinstance(committed, Refusal):
            return committed
        assert committed.conclusion is not None  # noqa: S101 - it was drafted with it
        return committed.conclusion

    # --- After a crash -------------------------------------------------------------------------------------------

    async def finish_staged(self) -> None:
        """Finish what a process that ended left half done, unless a turn is running."""
        if self._lease.is_held or (await self._journal.record()).staged is None:
            return
        async with self._lease.taken():
            staged = (await self._journal.record()).staged
            if staged is not None:
                await self._finish(staged)

    async def _finish(self, decision: Decision) -> Record:
        if _is_once(decision) and self._clock() - decision.at > FRESH_S:
            await self._conclude(decision, Seen(dict.fromkeys(decision.targets, Finding.UNANSWERED)))
        else:
            await self._carry_through(decision, is_again=True)
        log.info(
            "staged_command_finished", room=self._journal.room, command_id=decision.command_id, action=decision.action
        )
        return await self._journal.record()


def _concerns_strangers(state: MeetingState, command: AnyCommand) -> bool:
    match command:
        case moderation.Mute(participants=None, hold_s=hold_s):
            return hold_s is not None  # who is muted once need not be known before
        case (
            livekit.ForceMute(participants=named)
            | moderation.Mute(participants=named)
            | moderation.Allow(participants=named)
            | moderation.Disallow(participants=named)
            | moderation.Stop(participants=named)
            | moderation.Kick(participants=named)
        ):
            return not state.members.keys() >= people(named or (), state)
        case _:
            return False


def _is_once(decision: Decision) -> bool:
    """Whether it is about what is published in this moment, and nothing that holds."""
    return isinstance(decision.effect, Stop) or (isinstance(decision.effect, Mute) and not decision.effect.is_held)


def _is_over(record: Record, decision: Decision) -> bool:
    """Whether the meeting of this decision has ended since, though another may have begun."""
    if decision.effect is None:
        return not record.state.goes_on
    return record.staged is None or record.staged.command_id != decision.command_id


def _concerned(decision: Decision, state: MeetingState) -> frozenset[ParticipantId]:
    effect = decision.effect
    if isinstance(effect, Agree) and effect.participants is None:
        return frozenset(state.members)
    return decision.targets
