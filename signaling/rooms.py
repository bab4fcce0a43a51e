"""A meeting's turns: from a command to the committed state, one at a time, whatever fails on the way."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar
from uuid import uuid4

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from signaling import metrics
from signaling.core.decisions import (
    FRESH_S,
    AnyCommand,
    Conclusion,
    Decision,
    DepartUnlessBack,
    End,
    NoteRoomDeleted,
    Refusal,
    conclude,
    decide,
    force_muted,
)
from signaling.core.effects import Agree, Finding, Mute, Priority
from signaling.core.enforcement import owner_of, plan
from signaling.core.participants import Source
from signaling.core.policy import publishable, stricter
from signaling.core.state import MeetingState, Member, Popouts, apply, new_meeting
from signaling.errors import MediaServerError, MediaServerUnavailable, StoreError
from signaling.identifiers import CONTROLLER, CommandId, Identity, LiveKitRoom, ParticipantId, RoomId, TrackSid
from signaling.livekit.contract import MediaServer
from signaling.reconciler import Reconciler
from signaling.stores.contract import AuditEntry, Record, Store
from signaling.view import Attendance

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

MAX_WAITING: Final = 64
"""Commands of one meeting that may wait for their turn."""
TURN_S: Final = 15.0
"""How long a turn waits for LiveKit in all."""
IDLE_S: Final = 0.2
"""How long a turn waits for people who publish nothing that the decision is about."""


class TooManyWaiting(Exception):
    """The meeting has as many commands waiting as it may."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every meeting of a module, as it was set."""

    screen_share_requires_permission: bool = False
    remove_unknown: bool = False
    sweep_s: float = 5
    empty_s: float = 60


@dataclass(frozen=True, slots=True)
class Committed:
    """A change of the state that needed no turn: the state that it changed, and the record with it."""

    before: MeetingState
    record: Record


def new_command_id() -> CommandId:
    """A fresh id for a command."""
    return CommandId(uuid4().hex)


class Meeting:
    """
    One meeting, as this process looks after it.

    Args:
        clock: Seconds since the epoch.
        on_forgotten: Called when the meeting is over and nothing of it is kept any more.
    """

    def __init__(
        self,
        room: RoomId,
        store: Store,
        media: MediaServer,
        rules: Rules,
        *,
        clock: Callable[[], float] = time.time,
        on_forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        self.room = room
        self._store = store
        self._media = media
        self._rules = rules
        self._clock = clock
        self._on_forgotten = on_forgotten
        self._writing = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._waiting = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._minted_while_staged: set[ParticipantId] = set()
        self._turn_is_running = False
        self._timer: asyncio.TimerHandle | None = None
        self.attendance = Attendance()
        self._effective: tuple[Record, MeetingState] | None = None
        self._members_seen: Mapping[ParticipantId, Member] | None = None
        self.reconciler = Reconciler(
            room,
            media,
            self.effective_state,
            before_sweep=self.finish_staged,
            remove_unknown=rules.remove_unknown,
            sweep_s=rules.sweep_s,
        )

    # --- Reading -------------------------------------------------------------------------------------------------

    async def record(self) -> Record:
        """What is kept of the meeting; of one that is not kept yet, how it would begin."""
        kept = await self._store.read(self.room)
        if kept is not None:
            return kept
        needs_permission = self._rules.screen_share_requires_permission
        return Record(0, new_meeting(self.room, screen_share_requires_permission=needs_permission))

    async def effective_state(self) -> MeetingState:
        """The newest state, a staged decision included."""
        record = await self.record()
        if self._effective is None or self._effective[0] is not record:
            # Read before and after each call: for everybody in a room, while one decision is carried out.
            self._effective = record, record.effective
        return self._effective[1]

    def sources_for_token(self, record: Record, participant: ParticipantId) -> tuple[Source, ...]:
        """What a token may allow now; while a decision is staged, what it allows is looked at again after the turn."""
        if record.staged is None:
            return publishable(participant, record.state)
        self._minted_while_staged.add(participant)
        return stricter(participant, record.state, record.effective)

    # --- Deciding ------------------------------------------------------------------------------------------------

    async def commit_now(
        self, sender: ParticipantId, command: AnyCommand, command_id: CommandId | None = None
    ) -> Committed | Refusal:
        """
        Decide and commit what needs no turn: who is here, and what always stands whatever LiveKit says.

        Raises:
            StoreError: Nothing was committed.
        """
        identifier = command_id or new_command_id()
        async with self._writing:
            while True:
                record = await self.record()
                decision = decide(record.state, sender, command, now=self._clock(), command_id=identifier)
                if isinstance(decision, Refusal):
                    return decision
                conclusion = conclude(record.state, decision)
                after = replace(record, revision=record.revision + 1, state=conclusion.state)
                if await self._store.write(after, announcements=conclusion.announcements):
                    return Committed(record.state, after)

    async def take_turn(
        self, sender: ParticipantId, command: AnyCommand, command_id: CommandId
    ) -> Conclusion | Refusal:
        """
        Carry a command through when its turn comes. Cancelling stops the waiting, never the turn.

        Raises:
            TooManyWaiting: As many wait as may.
            StoreError: The store did not answer, or this process ends. A decision that was staged by then is finished
                as soon as it can be; any other came to nothing.
        """
        if self._waiting >= MAX_WAITING and sender != CONTROLLER:
            raise TooManyWaiting
        self._waiting += 1
        metrics.COMMANDS_WAITING.inc()
        turn = self.spawn(self._turn(sender, command, command_id))
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError as error:
            waiting = asyncio.current_task()
            if turn.cancelled() and waiting is not None and not waiting.cancelling():
                raise StoreError("the meeting is being closed") from error
            raise

    async def _turn(self, sender: ParticipantId, command: AnyCommand, command_id: CommandId) -> Conclusion | Refusal:
        is_waiting = True
        try:
            async with self._exclusively():
                is_waiting = False
                self._begin()
                record = await self.record()
                if record.staged is not None:
                    record = await self._finish(record.staged)
                decision = decide(record.state, sender, command, now=self._clock(), command_id=command_id)
                if isinstance(decision, Refusal):
                    return decision
                return await self._carry_through(decision)
        finally:
            if is_waiting:
                self._begin()

    def _begin(self) -> None:
        self._waiting -= 1
        metrics.COMMANDS_WAITING.dec()

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        async with self._store.turn(self.room):
            self._turn_is_running = True
            try:
                yield
            finally:
                self._turn_is_running = False
                minted, self._minted_while_staged = self._minted_while_staged, set()
                if minted:
                    self.reconciler.repair(minted)

    async def _carry_through(self, decision: Decision) -> Conclusion | Refusal:
        if decision.effect is None:
            return await self._conclude(decision, {})
        if not self._media.answering and not decision.holds:
            return Refusal("livekit_unavailable")
        await self._stage(decision)
        try:
            findings = await self._carry_out(decision)
        except MediaServerUnavailable:
            if not decision.holds:
                await self._roll_back(decision)
                return Refusal("livekit_unavailable")
            findings = dict.fromkeys(decision.targets, Finding.UNANSWERED)
            self.reconciler.doubt(decision.targets)
        except asyncio.CancelledError:
            raise  # this process ends: the decision stays staged, and is finished at the next start
        except Exception:
            await self._roll_back(decision)
            raise
        return await self._conclude(decision, findings)

    async def _stage(self, decision: Decision | None) -> None:
        async with self._writing:
            while True:
                record = await self.record()
                if await self._store.write(replace(record, revision=record.revision + 1, staged=decision)):
                    return

    async def _roll_back(self, decision: Decision) -> None:
        await self._stage(None)
        # Calls that went unanswered may have been carried out all the same.
        state = (await self.record()).state
        self.reconciler.doubt(_concerned(decision, state))

    async def _conclude(self, decision: Decision, findings: Mapping[ParticipantId, Finding]) -> Conclusion:
        async with self._writing:
            while True:
                record = await self.record()
                conclusion = conclude(record.state, decision, findings)
                after = Record(record.revision + 1, conclusion.state)
                audit = AuditEntry(
                    decision.command_id,
                    decision.at,
                    decision.sender,
                    decision.action,
                    tuple(sorted(decision.targets | decision.unknown)),
                    conclusion.outcomes,
                )
                if await self._store.write(after, announcements=conclusion.announcements, audit=audit):
                    return conclusion

    # --- Carrying out --------------------------------------------------------------------------------------------

    async def _carry_out(self, decision: Decision) -> dict[ParticipantId, Finding]:
        state = apply((await self.record()).state, decision.changes)
        match decision.effect:
            case Mute(participants, sources):
                return await self._mute(state, decision, participants, sources)
            case Agree(participants, sources):
                return await self._agree(state, participants, sources)
            case None:
                return {}

    async def _mute(
        self,
        state: MeetingState,
        decision: Decision,
        participants: frozenset[ParticipantId],
        sources: frozenset[Source],
    ) -> dict[ParticipantId, Finding]:
        places = {who: room for who in participants if (room := state.room_of(who)) is not None}
        silent = await self.reconciler.look(places.values())
        live = {
            who: frozenset(track.sid for track in presence.tracks if not track.muted)
            for who, room in places.items()
            if (presence := self.reconciler.presence(room, Identity(who))) is not None
        }
        tasks = {
            who: asyncio.create_task(self.reconciler.mute(room, Identity(who), sources))
            for who, room in places.items()
            if room not in silent
        }
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=TURN_S)
        finally:
            for task in tasks.values():
                task.cancel()
        findings = {who: _finding(tasks.get(who)) for who in places}
        for who, finding in findings.items():
            if finding.is_failure and who in live:
                self.run_in_background(self._mute_late(decision, places[who], who, sources, live[who]))
        return findings

    async def _mute_late(
        self,
        decision: Decision,
        room: LiveKitRoom,
        participant: ParticipantId,
        sources: frozenset[Source],
        tracks: frozenset[TrackSid],
    ) -> None:
        within_s = decision.at + FRESH_S - self._clock()
        if await self.reconciler.mute_late(room, Identity(participant), sources, tracks, within_s):
            await _until_done(lambda: self._announce(participant, decision.sender))

    async def _announce(self, participant: ParticipantId, moderator: ParticipantId) -> None:
        async with self._writing:
            while True:
                record = await self.record()
                after = replace(record, revision=record.revision + 1)
                if await self._store.write(after, announcements=[force_muted(participant, moderator)]):
                    return

    async def _agree(
        self, state: MeetingState, participants: frozenset[ParticipantId] | None, sources: frozenset[Source]
    ) -> dict[ParticipantId, Finding]:
        began_at = asyncio.get_running_loop().time()
        reconciler = self.reconciler
        if participants is None:
            rooms = state.rooms_in_use()
        else:
            rooms = frozenset(room for who in participants if (room := state.room_of(who)) is not None)
        silent = await reconciler.look(rooms)
        heard_of = rooms - silent
        concerned = [
            presence
            for presence in reconciler.roster
            if presence.room in heard_of
            and (participants is None or owner_of(presence.identity, state) in participants)
        ]
        urgent, idle = {}, {}
        for call in plan(state, concerned, remove_unknown=self._rules.remove_unknown, sources=sources):
            place = (call.room, call.identity)
            if participants is None and call.priority is Priority.IDLE:
                idle[place] = reconciler.settle(place, Priority.SETTLING)
            else:
                urgent[place] = reconciler.settle(place, call.priority)
        if urgent:
            await asyncio.wait(urgent.values(), timeout=TURN_S)
        if idle:
            spent_s = asyncio.get_running_loop().time() - began_at
            await asyncio.wait(idle.values(), timeout=min(IDLE_S, max(TURN_S - spent_s, 0)))
        findings = {who: Finding.UNANSWERED for who in state.members if state.room_of(who) in silent}
        for presence in concerned:
            _worsen(findings, owner_of(presence.identity, state), Finding.AGREED)
        for place, task in urgent.items():
            _worsen(findings, owner_of(place[1], state), _finding(task))
        for place, task in idle.items():
            _worsen(findings, owner_of(place[1], state), _finding(task) if task.done() else Finding.SETTLING)
        reconciler.doubt([who for who, finding in findings.items() if finding is Finding.UNANSWERED])
        return {who: finding for who, finding in findings.items() if who in state.members}

    def remove_identities(self, participant: ParticipantId, state: MeetingState) -> Awaitable[object]:
        """Remove from LiveKit what `state`, which holds no more, had there of somebody; what fails is tried again."""
        room = state.room_of(participant)
        places = {(popout.room, popout.identity) for popout in state.popouts.get(participant, Popouts()).open}
        if room is not None:
            places.add((room, Identity(participant)))
        return asyncio.gather(*(self.reconciler.remove(place, participant) for place in sorted(places)))

    # --- After a crash -------------------------------------------------------------------------------------------

    async def finish_staged(self) -> None:
        """Finish what a process that ended left half done, unless a turn is running."""
        if self._turn_is_running or (await self.record()).staged is None:
            return
        async with self._exclusively():
            staged = (await self.record()).staged
            if staged is not None:
                await self._finish(staged)

    async def _finish(self, decision: Decision) -> Record:
        if isinstance(decision.effect, Mute) and self._clock() - decision.at > FRESH_S:
            await self._conclude(decision, dict.fromkeys(decision.targets, Finding.UNANSWERED))
        else:
            await self._carry_through(decision)
        log.info("staged_command_finished", room=self.room, command_id=decision.command_id, action=decision.action)
        return await self.record()

    # --- LiveKit rooms -------------------------------------------------------------------------------------------

    async def open_room(self, room: LiveKitRoom) -> None:
        """
        Make sure that a LiveKit room is there, and that it is not one of a meeting that is over.

        Raises:
            MediaServerError: It is not known to be there.
        """
        if room in (await self.record()).state.doomed:
            await self._delete_room(room)
        await self._media.ensure_room(room)

    async def restore_rooms(self) -> None:
        """Make all rooms in use again after LiveKit was gone; clients give up soon."""
        state = await self.effective_state()
        for room in sorted(state.rooms_in_use()):
            try:
                await self.open_room(room)
            except MediaServerError as error:
                log.warning("room_not_restored", room=room, error=str(error))
        self.reconciler.repair(state.members)

    async def delete_doomed_rooms(self) -> None:
        """Delete the rooms of the meeting that is over, however long LiveKit and the store take; then forget it."""
        for room in sorted((await _until_done(self.record)).state.doomed):
            await _until_done(partial(self._delete_room, room))
        if await _until_done(self._forget):
            self._on_forgotten()

    async def _forget(self) -> bool:
        record = await self._store.read(self.room)
        is_over = record is not None and not record.state.members and not record.state.doomed
        return record is not None and is_over and await self._store.forget(self.room, record.revision)

    async def _delete_room(self, room: LiveKitRoom) -> None:
        async with self._opening:
            if room in (await self.record()).state.doomed:
                await self._media.delete_room(room)
                await self.commit_now(CONTROLLER, NoteRoomDeleted(room))

    # --- Time passing --------------------------------------------------------------------------------------------

    def note(self, record: Record) -> None:
        """A commit of this meeting was made: see to it that places and empty meetings are given up in time."""
        state = record.state
        if state.members is not self._members_seen:
            self._members_seen = state.members
            self._arm(state)

    def _arm(self, state: MeetingState) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadlines = [member.returns_until for member in state.members.values() if member.returns_until is not None]
        if not state.members and state.empty_since is not None:
            deadlines.append(state.empty_since + self._rules.empty_s)
        if deadlines:
            delay_s = max(min(deadlines) - self._clock(), 0)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, lambda: self.run_in_background(_until_done(self._expire)))

    async def _expire(self) -> None:
        state = (await self.record()).state
        now = self._clock()
        for participant, member in state.members.items():
            if member.returns_until is not None and member.returns_until <= now:
                departed = await self.commit_now(participant, DepartUnlessBack(participant, now))
                if isinstance(departed, Committed):
                    await self.remove_identities(participant, departed.before)
        state = (await self.record()).state
        if not state.members and state.empty_since is not None and state.empty_since + self._rules.empty_s <= now:
            await self.end()
        else:
            self._arm(state)

    async def end(self) -> asyncio.Task[None]:
        """
        End the meeting: its state is cleared at once, its LiveKit rooms are deleted as soon as LiveKit answers.

        Returns:
            The deleting, which goes on whether or not anybody waits for it.
        """
        await self.commit_now(CONTROLLER, End())
        return self.run_in_background(self.delete_doomed_rooms())

    # --- Running -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to keep LiveKit in agreement."""
        self.run_in_background(self.reconciler.run())

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """A task that ends with the meeting at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Like `spawn`, for work that nobody need wait for: what goes wrong is logged."""
        return self.spawn(self._log_failure(work))

    async def _log_failure(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StoreError as error:
            log.error("store_failed", room=self.room, error=str(error))  # noqa: TRY400 - no bug, no traceback
        except Exception:
            log.exception("background_work_failed", room=self.room)

    async def close(self) -> None:
        """End all that runs for this meeting; its state stays in the store."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.reconciler.close()


async def _until_done(work: Callable[[], Awaitable[Result]]) -> Result:
    """Do what has to be done some time, however often LiveKit or the store fails."""

    async def attempt() -> Result:
        return await work()

    retrying = AsyncRetrying(
        retry=retry_if_exception_type((MediaServerError, StoreError)), wait=wait_exponential(multiplier=0.1, max=5)
    )
    result: Result = await retrying(attempt)
    return result


_SEVERITY: Final = {
    finding: severity
    for severity, finding in enumerate(
        [Finding.AGREED, Finding.ABSENT, Finding.CHANGED, Finding.SETTLING, Finding.REJECTED, Finding.UNANSWERED]
    )
}


def _worsen(findings: dict[ParticipantId, Finding], participant: ParticipantId, finding: Finding) -> None:
    """Somebody with several identities is as well off as the worst of them."""
    known = findings.get(participant)
    if known is None or _SEVERITY[finding] > _SEVERITY[known]:
        findings[participant] = finding


def _finding(task: asyncio.Task[Finding] | None) -> Finding:
    return task.result() if task is not None and task.done() and not task.cancelled() else Finding.UNANSWERED


def _concerned(decision: Decision, state: MeetingState) -> frozenset[ParticipantId]:
    effect = decision.effect
    if isinstance(effect, Agree) and effect.participants is None:
        return frozenset(state.members)
    return decision.targets
