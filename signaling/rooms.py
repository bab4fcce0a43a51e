"""A meeting's turns: from a command to the committed state, one at a time, whatever fails on the way."""

import asyncio
import contextlib
import math
import operator
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeVar, assert_never

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from signaling import metrics
from signaling.closed_rooms import ClosedRooms
from signaling.core.announcements import mute_announcements, to_moderators
from signaling.core.applying import apply
from signaling.core.changes import BypassNoted, CameSeen, MutesNoted
from signaling.core.commands import (
    AnyCommand,
    Bypass,
    DepartUnlessBack,
    End,
    EndIfEmpty,
    Expire,
    HostCommand,
    LoseConnections,
    MemberCommand,
    ModeratorCommand,
    NoteCame,
    NoteRoomDeleted,
    NoteUnmutedAgain,
)
from signaling.core.conclusions import Conclusion, conclude, presenters_of
from signaling.core.decisions import FRESH_S, Decision, Refusal, decide, may_moderate, refusal_of
from signaling.core.effects import Agree, Expel, Finding, Mute, Presence, Priority, Stop, Track
from signaling.core.enforcement import (
    is_unknown,
    must_wait,
    owner_of,
    plan,
    screen_is_taken,
    silencing,
    strangers,
    unmuted_again,
)
from signaling.core.participants import SCREEN_SOURCES, Source
from signaling.core.policy import is_service, publishable, stricter
from signaling.core.references import people
from signaling.core.state import CameInto, MeetingState, Popouts, came_into_both
from signaling.entrance import LATE_S, Entrance
from signaling.errors import MediaServerError, MediaServerUnavailable, SignalingError, StoreError
from signaling.identifiers import (
    CONTROLLER,
    CommandId,
    Identity,
    LiveKitRoom,
    ParticipantId,
    RoomId,
    TrackSid,
    new_command_id,
)
from signaling.livekit.contract import MediaServer, Notice
from signaling.meeting.journal import NOTHING_TO_DO, Committed, Draft, Journal, draft_of
from signaling.messages import livekit, moderation
from signaling.reconciler import Place, Reconciler
from signaling.stores.contract import Record, Staged, Store, Unstaged
from signaling.view import Attendance, Shown

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

MAX_WAITING: Final = 64
"""Commands of one meeting that may wait for their turn; of one person, no more than are left for others."""
MAX_SMALL: Final = 4
"""What one person may have waiting of what needs no turn, hands and popouts, unless they moderate."""
TURN_S: Final = 15.0
"""How long a turn waits for LiveKit in all."""
IDLE_S: Final = 0.2
"""How long a turn waits for people who publish nothing that the decision is about."""
REMOVED_UNSEEN: Final = 8
"""How many people who have gone are removed from LiveKit without looking who is there; a list is one call."""
SHOWN_AFTER_S: Final = 0.05
"""How long changes are gathered before watchers are told."""


MOST_EXTENDED_S: Final = 300.0
"""For how much longer than the grace places are kept at most, while nobody can be let in at once."""
GATHERED_S: Final = 0.1
"""What falls due within so long after something else did is done together."""


class TooManyWaiting(Exception):
    """The meeting, or this person in it, has as many commands waiting as may."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every meeting of a module, as it was set."""

    screen_share_requires_permission: bool = False
    remove_unknown: bool = False
    sweep_s: float = 5
    empty_s: float = 60
    grace_s: float = 10


@dataclass(frozen=True, slots=True)
class Seen:
    """
    What was seen when a decision was carried out.

    Attributes:
        silenced: Of those who were muted, the sources by which they had been heard or seen.
        later: What is to be tried again, once the decision stands.
    """

    findings: Mapping[ParticipantId, Finding]
    silenced: Mapping[ParticipantId, frozenset[Source]] | None = None
    later: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = ()


class Meeting:
    """
    One meeting, as this process looks after it.

    Args:
        clock: Seconds since the epoch.
        entrance: Where people wait to be let in.
        closed: What is kept closed of meetings that have ended.
        is_arriving: Whether somebody is being let in.
        on_forgotten: Called when the meeting is over and nothing of it is kept any more.
        on_people_in_livekit: Called before each sweep, if LiveKit has listed anybody before.
        on_state_changed: Called with what watchers are to be told.

    Attributes:
        watchers: Whoever watches; while somebody does, `on_state_changed` is called.
        newest: The newest commit's record, `None` before the first that this process hears of.
    """

    def __init__(
        self,
        room: RoomId,
        store: Store,
        media: MediaServer,
        rules: Rules,
        *,
        clock: Callable[[], float] = time.time,
        entrance: Entrance | None = None,
        closed: ClosedRooms | None = None,
        is_arriving: Callable[[ParticipantId], bool] = lambda _: False,
        on_forgotten: Callable[[], None] = lambda: None,
        on_people_in_livekit: Callable[[], None] = lambda: None,
        on_state_changed: Callable[[moderation.StateChanged], None] = lambda _: None,
    ) -> None:
        self.room = room
        self.watchers: set[object] = set()
        self._store = store
        self._media = media
        self._rules = rules
        self._clock = clock
        self._entrance = Entrance(clock) if entrance is None else entrance
        self._closed = ClosedRooms(store, media, clock=clock) if closed is None else closed
        self._is_arriving = is_arriving
        self._on_forgotten = on_forgotten
        self._on_people_in_livekit = on_people_in_livekit
        self._on_state_changed = on_state_changed
        self.journal = Journal(
            room,
            store,
            clock=clock,
            screen_share_requires_permission=rules.screen_share_requires_permission,
        )
        self.journal.listen(self._on_commit)
        self._opening = asyncio.Lock()
        self._waiting: Counter[ParticipantId] = Counter()
        self._small: Counter[ParticipantId] = Counter()
        self._lost: dict[ParticipantId, Callable[[], bool]] = {}
        self._losing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._minted_while_staged: set[ParticipantId] = set()
        self._turn_is_running = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_expiring = False
        self._is_lifting = False
        self._expired_at = -math.inf
        self.attendance = Attendance()
        self._deadlines_seen: tuple[object, ...] = ()
        self._showing: asyncio.TimerHandle | None = None
        self.reconciler = Reconciler(
            room,
            media,
            self.effective_state,
            before_sweep=self._before_sweep,
            after_sweep=self._after_sweep,
            on_drift=self._on_drift,
            on_bypass=self._on_bypass,
            note_came=self._note_came,
            remove_unknown=rules.remove_unknown,
            sweep_s=rules.sweep_s,
            on_change=self._show_soon,
        )
        self._shown = Shown(self.reconciler)
        self._bypasses: set[TrackSid] = set()
        self._came: CameInto = {}
        """What counts already, and is being committed."""
        self._strangers_told: set[ParticipantId] = set()

    # --- Reading -------------------------------------------------------------------------------------------------

    @property
    def newest(self) -> Record | None:
        """The newest commit's record, `None` before the first that this process hears of."""
        return self.journal.newest

    async def record(self) -> Record:
        """What is kept of the meeting; of one that is not kept yet, how it would begin."""
        return await self.journal.record()

    async def effective_state(self) -> MeetingState:
        """The newest state, a staged decision included."""
        return await self.journal.effective_state()

    def sources_for_token(self, record: Record, participant: ParticipantId) -> tuple[Source, ...]:
        """What a token may allow now; while a decision is staged, what it allows is looked at again after the turn."""
        if record.staged is None:
            allowed = publishable(participant, record.state)
        else:
            self._minted_while_staged.add(participant)
            allowed = stricter(participant, record.state, record.effective)
        if record.state.presenter == participant and screen_is_taken(record.state, self.reconciler.roster, participant):
            self.reconciler.repair({participant})
            return tuple(source for source in allowed if source not in SCREEN_SOURCES)
        return allowed

    async def preview(self, sender: ParticipantId, command: AnyCommand, command_id: CommandId) -> Conclusion | Refusal:
        """
        What a command would come to now if LiveKit does its part. Nothing is done, and no turn waited for.

        Raises:
            StoreError: The store did not answer.
        """
        state = await self.effective_state()
        if (refusal := refusal_of(state, sender, command, self._clock())) is not None:
            return refusal  # before LiveKit is asked
        try:
            await self.reconciler.look(state.rooms_in_use())
        except MediaServerUnavailable:
            return Refusal("livekit_unavailable")
        decision = self._decide_seeing(state, sender, command, command_id)
        if isinstance(decision, Refusal):
            return decision
        findings: dict[ParticipantId, Finding] = {}
        if isinstance(decision.effect, Mute):
            for who in decision.targets:
                for place in self._places(state, who):
                    if (presence := self.reconciler.presence(*place)) is not None:
                        _worsen(findings, who, silencing(presence, decision.effect.sources))
        return conclude(state, decision, findings, present=self._present(state))

    # --- Deciding ------------------------------------------------------------------------------------------------

    async def commit_now(
        self, sender: ParticipantId, command: AnyCommand, command_id: CommandId | None = None
    ) -> Committed | Refusal:
        """
        Decide and commit what needs no turn: who is here, and what always stands whatever LiveKit says.

        Raises:
            TooManyWaiting: This person has as much of this waiting as may be.
            StoreError: Nothing was committed.
        """
        if not isinstance(command, MemberCommand):
            return await self.journal.decide(sender, lambda _: command, command_id, is_urgent=isinstance(command, End))
        moderates = self.newest is not None and may_moderate(self.newest.state, sender)
        if self._small[sender] >= (MAX_WAITING if moderates else MAX_SMALL):  # they lower the hands of others
            raise TooManyWaiting
        self._small[sender] += 1
        try:
            return await self.journal.decide(sender, lambda _: command, command_id)
        finally:
            self._small[sender] -= 1
            if not self._small[sender]:
                del self._small[sender]

    async def lose_connections(self, lost: Mapping[ParticipantId, Callable[[], bool]]) -> None:
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
            self._losing = self.spawn(self._write_losses())
        await asyncio.shield(self._losing)

    async def _write_losses(self) -> None:
        lost: dict[ParticipantId, Callable[[], bool]] = {}

        def choose(_: MeetingState) -> LoseConnections | None:
            if self._losing is asyncio.current_task():
                self._losing = None  # whoever comes from now on is of the next commit
                lost.update(self._lost)
                self._lost.clear()
            people = frozenset(who for who, is_lost in lost.items() if is_lost())
            return LoseConnections(people, self._clock() + self._rules.grace_s) if people else None

        try:
            await self.journal.decide(CONTROLLER, choose)
        finally:
            if self._losing is asyncio.current_task():  # it came to nothing, as everybody who waits is told
                self._losing = None
                self._lost.clear()

    async def take_turn(
        self, sender: ParticipantId, command: AnyCommand, command_id: CommandId
    ) -> Conclusion | Refusal:
        """
        Carry a command through when its turn comes; to be called in a task that `see_through` or `spawn` has made.

        Raises:
            TooManyWaiting: As many wait as may.
            StoreError: The store did not answer. A decision that was staged by then is finished as soon as it can be;
                any other came to nothing.
        """
        if (refusal := self._refused_at_once(sender, command)) is not None:
            return refusal
        is_counted = not isinstance(command, HostCommand)
        most = MAX_SMALL if isinstance(command, MemberCommand) else MAX_WAITING
        if is_counted and self._waiting[sender] >= min(most, MAX_WAITING - self._waiting.total()):
            raise TooManyWaiting
        self._waiting[sender] += is_counted
        metrics.COMMANDS_WAITING.inc()
        is_waiting = True
        try:
            async with self._exclusively():
                is_waiting = False
                self._begin(sender, is_counted=is_counted)
                record = await self.record()
                if record.staged is not None:
                    record = await self._finish(record.staged)
                if (refusal := refusal_of(record.state, sender, command, self._clock())) is not None:
                    return refusal
                decision = await self._decide(record.state, sender, command, command_id)
                if isinstance(decision, Refusal):
                    return decision
                return await self._carry_through(decision)
        finally:
            if is_waiting:
                self._begin(sender, is_counted=is_counted)

    def _refused_at_once(self, sender: ParticipantId, command: AnyCommand) -> Refusal | None:
        """Why it need not even wait: the sender may neither now nor when what is being done is done."""
        if self.newest is None:
            return None
        refusal = refusal_of(self.newest.state, sender, command, self._clock())
        if refusal is None or self.newest.staged is None:
            return refusal
        return refusal_of(self.journal.effective_of(self.newest), sender, command, self._clock())

    async def _decide(
        self, state: MeetingState, sender: ParticipantId, command: AnyCommand, command_id: CommandId
    ) -> Decision | Refusal:
        if may_moderate(state, sender) and _concerns_strangers(state, command):
            with contextlib.suppress(MediaServerUnavailable):
                await self.reconciler.look(state.rooms_in_use())
        return self._decide_seeing(state, sender, command, command_id)

    def _decide_seeing(
        self, state: MeetingState, sender: ParticipantId, command: AnyCommand, command_id: CommandId
    ) -> Decision | Refusal:
        """Decide, as of the last look."""
        is_theirs = isinstance(command, ModeratorCommand)
        others = strangers(state, self.reconciler.roster) if is_theirs else {}
        return decide(state, sender, command, now=self._clock(), command_id=command_id, strangers=others)

    def _present(self, state: MeetingState) -> dict[ParticipantId, Presence]:
        """Who is where they belong, or has never joined, as of the last look."""
        return {
            ParticipantId(presence.identity): presence
            for presence in self.reconciler.roster
            if state.room_of(ParticipantId(presence.identity)) in {None, presence.room}
        }

    def _begin(self, sender: ParticipantId, *, is_counted: bool) -> None:
        self._waiting[sender] -= is_counted
        if not self._waiting[sender]:
            del self._waiting[sender]
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

    async def _carry_through(self, decision: Decision, *, is_again: bool = False) -> Conclusion | Refusal:
        if decision.effect is None:
            return await self._conclude(decision, Seen({}))
        if not self._media.answering and not decision.holds:
            if is_again:
                await self._roll_back(decision)
            return Refusal("livekit_unavailable")
        if not await self._stage(decision):
            return OVER
        try:
            try:
                seen = await self._carry_out(decision)
            except MediaServerUnavailable:
                if not decision.holds:
                    await self._roll_back(decision)
                    return Refusal("livekit_unavailable")
                concerned = _concerned(decision, (await self.record()).state)
                seen = Seen(dict.fromkeys(concerned, Finding.UNANSWERED))
                self.reconciler.doubt(concerned)
            conclusion = await self._conclude(decision, seen)
        except asyncio.CancelledError:
            raise  # this process ends: the decision stays staged, and is finished at the next start
        except Exception as error:
            # What always stands is finished by the next turn or sweep, as is what was being finished.
            if not isinstance(error, StoreError) or not (decision.holds or is_again):
                await self._roll_back(decision)
            raise
        if isinstance(conclusion, Conclusion):
            for work in seen.later:
                self.run_in_background(work())
        return conclusion

    async def _stage(self, decision: Decision | None) -> bool:
        """Have this decision staged, or none; not if the meeting is over."""

        def draft(record: Record) -> Draft | Refusal:
            if not record.state.goes_on:
                return NOTHING_TO_DO
            return Draft(staging=Unstaged() if decision is None else Staged(decision))

        return isinstance(await self.journal.commit(draft), Committed)

    async def _roll_back(self, decision: Decision) -> None:
        await self._stage(None)
        # Calls that went unanswered may have been carried out all the same.
        state = (await self.record()).state
        self.reconciler.doubt(_concerned(decision, state))

    async def _conclude(self, decision: Decision, seen: Seen) -> Conclusion | Refusal:
        def draft(record: Record) -> Draft | Refusal:
            if _is_over(record, decision):
                return OVER
            present = self._present(record.state)
            conclusion = conclude(record.state, decision, seen.findings, silenced=seen.silenced, present=present)
            return draft_of(decision, conclusion, Unstaged())

        committed = await self.journal.commit(draft)
        if isinstance(committed, Refusal):
            return committed
        assert committed.conclusion is not None  # noqa: S101 - it was drafted with it
        return committed.conclusion

    def _on_commit(self, before: Record | None, record: Record) -> None:
        if before is not None:
            self._free_the_screen(before, record)

    def _free_the_screen(self, before: Record, record: Record) -> None:
        """Everybody may share again when the presenter leaves, be it while they were being appointed."""
        presenters = set[ParticipantId]() if before.state.presenter is None else {before.state.presenter}
        if before.staged is not None and record.staged is None:
            presenters |= presenters_of(before.staged)
        if not presenters <= record.state.members.keys():
            self.reconciler.repair(record.state.members)

    # --- Carrying out --------------------------------------------------------------------------------------------

    async def _carry_out(self, decision: Decision) -> Seen:
        before = (await self.record()).state
        state = apply(before, decision.changes)
        match decision.effect:
            case Mute() as effect:
                return await self._mute(state, decision, effect)
            case Stop() as effect:
                return await self._stop(state, decision, effect)
            case Agree(participants, sources):
                return Seen(await self._agree(state, participants, sources))
            case Expel(participants):
                return Seen(await self._expel(before, state, participants))
            case None:
                return Seen({})
            case _:
                assert_never(decision.effect)

    def _places(self, state: MeetingState, participant: ParticipantId) -> Iterator[Place]:
        """Where somebody belongs; or where they are, if they have never joined."""
        room = state.room_of(participant)
        for found in self.reconciler.rooms_of(Identity(participant)) if room is None else {room}:
            yield found, Identity(participant)

    async def _mute(self, state: MeetingState, decision: Decision, effect: Mute) -> Seen:
        sources = effect.sources
        places = {place: who for who in effect.participants for place in self._places(state, who)}
        silent = await self.reconciler.look(
            state.rooms_in_use() if effect.strangers_but is not None else {room for room, _ in places}
        )
        held = frozenset(places) if effect.is_held else frozenset[Place]()
        if effect.strangers_but is not None:
            places |= {
                (presence.room, presence.identity): ParticipantId(presence.identity)
                for presence in self.reconciler.roster
                if is_unknown(state, presence)
                and not is_service(presence)
                and ParticipantId(presence.identity) not in effect.strangers_but
            }
        before = {place: found for place in places if (found := self.reconciler.presence(*place)) is not None}
        tasks = {
            place: asyncio.create_task(
                self._hold(place, before.get(place), sources)
                if place in held
                else self.reconciler.mute(*place, sources)
            )
            for place in places
            if place[0] not in silent
        }
        findings = await self._gathered(tasks, places)
        silenced: dict[ParticipantId, frozenset[Source]] = {}
        later: list[Callable[[], Coroutine[Any, Any, None]]] = []
        for place, presence in before.items():
            who, live = places[place], _live(presence, sources)
            silenced[who] = silenced.get(who, frozenset()) | {track.source for track in live if track.source}
            if findings[who].is_failure:
                heard = frozenset(track.sid for track in live)
                late = partial(self._mute_late, decision, place, who, sources, heard, is_held=place in held)
                later.append(late)
        if effect.is_held:
            self.reconciler.doubt([who for who, finding in findings.items() if finding is Finding.UNANSWERED])
        meant = {place: who for place, who in places.items() if place not in held and place[0] not in silent}
        self.reconciler.mute_also(
            {place: partial(self._tell_of_late_mute, decision, who) for place, who in meant.items()}, sources
        )
        for place, who in meant.items():
            # Who was dealt with at once may have begun to publish while others still were.
            begun = self._live_sids(place, sources) - _sids(before.get(place))
            if begun:
                later.append(partial(self._mute_late, decision, place, who, sources, begun, is_held=False))
        return Seen(findings, silenced, tuple(later))

    def _live_sids(self, place: Place, sources: frozenset[Source]) -> frozenset[TrackSid]:
        presence = self.reconciler.presence(*place)
        return frozenset() if presence is None else frozenset(map(_sid, _live(presence, sources)))

    def _tell_of_late_mute(self, decision: Decision, who: ParticipantId, sources: frozenset[Source]) -> None:
        told = tuple(mute_announcements(who, decision.moderator, sources))
        noted = MutesNoted({who: sources}, self._clock())
        self.run_in_background(until_done(lambda: self.journal.announce(told, noted)))

    async def _hold(self, place: Place, before: Presence | None, sources: frozenset[Source]) -> Finding:
        """Take the sources away, which ends their tracks."""
        finding = await self.reconciler.agree(place, Priority.LIVE)
        if finding.is_failure or finding is Finding.ABSENT:
            return finding
        return Finding.NO_TRACK if before is None else silencing(before, sources)

    async def _mute_late(
        self,
        decision: Decision,
        place: Place,
        participant: ParticipantId,
        sources: frozenset[Source],
        tracks: frozenset[TrackSid],
        *,
        is_held: bool,
    ) -> None:
        within_s = decision.at + FRESH_S - self._clock()
        if is_held:
            is_muted = await self.reconciler.agree_late(place, within_s) and bool(tracks)
            holds = (await self.effective_state()).holds.get(participant, {})
            is_muted = is_muted and sources <= holds.keys()  # else it is not by this that they agree
        else:
            is_muted = await self.reconciler.mute_late(*place, sources, tracks, within_s)
        if is_muted:
            self._tell_of_late_mute(decision, participant, sources)

    async def _stop(self, state: MeetingState, decision: Decision, effect: Stop) -> Seen:
        places = {place: who for who in effect.participants for place in self._places(state, who)}
        silent = await self.reconciler.look({room for room, _ in places})
        before = {place: found for place in places if (found := self.reconciler.presence(*place)) is not None}
        tasks = {
            place: asyncio.create_task(self.reconciler.stop(place, effect.sources))
            for place in places
            if place[0] not in silent
        }
        findings = await self._gathered(tasks, places)
        within_s = decision.at + FRESH_S - self._clock()
        later = [
            partial(self.reconciler.stop_late, place, effect.sources, frozenset(map(_sid, published)), within_s)
            for place, presence in before.items()
            if findings[places[place]].is_failure and (published := presence.tracks_of(effect.sources))
        ]
        return Seen(findings, later=tuple(later))

    async def _gathered(
        self, tasks: Mapping[Place, asyncio.Task[Finding]], places: Mapping[Place, ParticipantId]
    ) -> dict[ParticipantId, Finding]:
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=TURN_S)
        finally:
            for task in tasks.values():
                task.cancel()
        findings: dict[ParticipantId, Finding] = {}
        for place, who in places.items():
            _worsen(findings, who, _finding(tasks.get(place)))
        return findings

    async def _agree(
        self, state: MeetingState, participants: frozenset[ParticipantId] | None, sources: frozenset[Source]
    ) -> dict[ParticipantId, Finding]:
        began_at = asyncio.get_running_loop().time()
        reconciler = self.reconciler
        if participants is None:
            rooms = state.rooms_in_use()
        else:
            rooms = frozenset(room for who in participants for room, _ in self._places(state, who))
        silent = await reconciler.look(rooms)
        heard_of = rooms - silent
        roster = list(reconciler.roster)
        concerned = [
            presence
            for presence in roster
            if presence.room in heard_of
            and (participants is None or owner_of(presence.identity, state) in participants)
        ]
        # Whoever becomes the presenter gets the screen when it was taken away from everybody else, and not before.
        waiting = [presence for presence in concerned if must_wait(state, presence, roster)]
        urgent, idle = {}, {}
        calls = plan(state, roster, remove_unknown=self._rules.remove_unknown, about=participants, sources=sources)
        await reconciler.note_before_change(concerned if calls else ())
        for call in calls:
            place = (call.room, call.identity)
            if call.room not in heard_of:
                continue
            if participants is None and call.priority is Priority.IDLE and not waiting:
                idle[place] = reconciler.settle(place, Priority.SETTLING)
            else:
                urgent[place] = reconciler.settle(place, call.priority)
        if urgent:
            await asyncio.wait(urgent.values(), timeout=TURN_S)
        for presence in waiting:
            place = (presence.room, presence.identity)
            urgent[place] = reconciler.settle(place, Priority.LIVE)
            await asyncio.wait({urgent[place]}, timeout=TURN_S)
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
        named = strangers(state, roster).keys() if participants is None else participants
        return {who: finding for who, finding in findings.items() if who in state.members or who in named}

    async def _expel(
        self, before: MeetingState, state: MeetingState, participants: frozenset[ParticipantId]
    ) -> dict[ParticipantId, Finding]:
        rooms = {room for who in participants for room, _ in self._places(before, who)}
        rooms |= {found.room for found in self.reconciler.roster if owner_of(found.identity, state) in participants}
        silent = await self.reconciler.look(before.rooms_in_use() | rooms)
        tasks = {
            (presence.room, presence.identity): self.reconciler.settle(
                (presence.room, presence.identity), Priority.REPAIR
            )
            for presence in self.reconciler.roster
            if owner_of(presence.identity, state) in participants
        }
        if tasks:
            await asyncio.wait(tasks.values(), timeout=TURN_S)
        findings = {who: Finding.UNANSWERED for who in participants if before.room_of(who) in silent}
        for place, task in tasks.items():
            _worsen(findings, owner_of(place[1], state), _finding(task))
        self.reconciler.doubt([who for who, finding in findings.items() if finding is Finding.UNANSWERED])
        if before.rooms - before.doomed - before.rooms_in_use():
            self.reconciler.repair(participants)  # they may be in any room that was ever used; nobody waits for that
        return findings

    def remove_identities(self, participant: ParticipantId, state: MeetingState) -> Awaitable[object]:
        """Remove from LiveKit what `state`, which holds no more, had there of somebody; what fails is tried again."""
        room = state.room_of(participant)
        places = {(popout.room, popout.identity) for popout in state.popouts.get(participant, Popouts()).open}
        if room is not None:
            places.add((room, Identity(participant)))
        return asyncio.gather(*(self.reconciler.remove(place, participant) for place in sorted(places)))

    async def _before_sweep(self) -> None:
        if any(True for _ in self.reconciler.roster):
            self._on_people_in_livekit()
        await self.finish_staged()

    async def _after_sweep(self) -> None:
        """Tell moderators what the look at everybody has shown beside drift."""
        state = await self.effective_state()
        again = unmuted_again(state, self.reconciler.roster, self._clock())
        if again:
            await self.commit_now(CONTROLLER, NoteUnmutedAgain(again))
        await self._tell_of_strangers()

    async def _tell_of_strangers(self, *removed: Presence) -> None:
        """
        Tell moderators who is in LiveKit and has never joined: once, and again if they had gone.

        Args:
            removed: Who was there until just now.
        """
        state = await self.effective_state()
        unknown = {
            ParticipantId(presence.identity)
            for presence in (*self.reconciler.roster, *removed)
            if is_unknown(state, presence) and not is_service(presence)
        }
        untold = unknown - self._strangers_told
        self._strangers_told = unknown
        if not untold:
            return
        events = [moderation.UnknownParticipant(identity=who) for who in sorted(untold)]
        try:
            await self.journal.announce([to_moderators(state, event) for event in events])
        except StoreError:
            self._strangers_told -= untold
            raise

    async def _note_came(self, came: CameInto) -> None:
        """Remember with what people came who never joined; if the store does not answer, it counts all the same."""
        self._came = came_into_both(self._came, came)
        self.journal.anticipate(CameSeen, CameSeen(self._came))
        try:
            await self._commit_came(came)
        except StoreError as error:
            log.warning("note_put_off", room=self.room, error=str(error))
            self.run_in_background(until_done(lambda: self._commit_came(came)))

    async def _commit_came(self, came: CameInto) -> None:
        await self.commit_now(CONTROLLER, NoteCame(came))
        left = {
            room: {who: what for who, what in people.items() if came.get(room, {}).get(who) != what}
            for room, people in self._came.items()
        }
        self._came = {room: people for room, people in left.items() if people}
        self.journal.anticipate(CameSeen, CameSeen(self._came) if self._came else None)

    def _on_drift(self, found: Presence, expected: tuple[Source, ...]) -> None:
        self.run_in_background(until_done(lambda: self._tell_of_drift(found, expected)))

    async def _tell_of_drift(self, found: Presence, expected: tuple[Source, ...]) -> None:
        state = await self.effective_state()
        repaired = moderation.DriftRepaired(
            participant=found.identity,
            found=tuple(source.value for source in found.permission.allowed()),
            expected=tuple(source.value for source in expected),
        )
        await self.journal.announce([to_moderators(state, repaired)])
        await self._tell_of_strangers(found)

    def _on_bypass(self, presence: Presence, track: Track) -> None:
        if track.source is not None and track.sid not in self._bypasses:
            self.run_in_background(self._stop_bypass(presence, track, track.source))

    async def _stop_bypass(self, presence: Presence, track: Track, source: Source) -> None:
        """Take the source away at once; what follows from it is decided when the meeting's turn comes."""
        state = await self.effective_state()
        who = owner_of(presence.identity, state)
        if track.sid in self._bypasses or track.sid in state.bypasses.get(who, ()):
            return  # it is being stopped, or LiveKit could not be told yet, and will be
        media: Literal["audio", "video"] = "audio" if track.is_sound else "video"
        self._bypasses.add(track.sid)
        self.journal.anticipate(track.sid, BypassNoted(who, source, track.sid, media))
        try:
            finding = await self.reconciler.agree((presence.room, presence.identity), Priority.REPAIR)
            if finding.is_failure:
                await self.reconciler.note_drift(presence, finding, "bypass")
            else:
                metrics.BYPASSES.inc()
            event = "bypass_found" if finding.is_failure else "bypass_stopped"
            log.warning(event, room=self.room, participant=who, track_sid=track.sid, source=source.value)
            noted = Bypass(who, source, track.sid, media)
            await until_done(lambda: self.take_turn(CONTROLLER, noted, new_command_id()))
        finally:
            self._bypasses.discard(track.sid)
            self.journal.anticipate(track.sid, None)

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
        is_once = isinstance(decision.effect, Stop) or (
            isinstance(decision.effect, Mute) and not decision.effect.is_held
        )
        if is_once and self._clock() - decision.at > FRESH_S:
            await self._conclude(decision, Seen(dict.fromkeys(decision.targets, Finding.UNANSWERED)))
        else:
            await self._carry_through(decision, is_again=True)
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
        await self._closed.make_way(room)
        await self._media.ensure_room(room)

    async def react(self, notice: Notice) -> None:
        """Do what follows from something that LiveKit has reported."""
        if notice.kind != "room_finished":
            await self.reconciler.react(notice)
            await self._tell_of_strangers()
            return
        self._media.forget_rooms(notice.room)
        if notice.room in (await self.effective_state()).rooms_in_use():
            await self.restore_rooms()

    async def restore_rooms(self) -> None:
        """Make all rooms in use again after LiveKit was gone; clients give up soon."""
        for room in sorted((await self.effective_state()).rooms_in_use()):
            if room not in (await self.effective_state()).rooms_in_use():
                continue  # the meeting has ended meanwhile
            try:
                await self.open_room(room)
            except MediaServerError as error:
                log.warning("room_not_restored", room=room, error=str(error))
        self.reconciler.repair((await self.effective_state()).members)

    async def delete_doomed_rooms(self) -> None:
        """Delete the rooms of the meeting that is over, however long LiveKit and the store take; then forget it."""
        for room in sorted((await until_done(self.record)).state.doomed):
            await until_done(partial(self._delete_room, room))
        if await until_done(self._forget):
            self._on_forgotten()

    async def _forget(self) -> bool:
        record = await self._store.read(self.room)
        is_over = record is not None and not record.state.members and not record.state.doomed
        return record is not None and is_over and await self._store.forget(self.room, record.revision)

    async def _delete_room(self, room: LiveKitRoom) -> None:
        async with self._opening:
            if room in (await self.record()).state.doomed:
                await self._media.delete_room(room)
                await self._closed.close(room)
                await self.commit_now(CONTROLLER, NoteRoomDeleted(room))

    # --- Time passing --------------------------------------------------------------------------------------------

    def note(self, record: Record) -> None:
        """A commit of this meeting was made: see to it that whatever ends by itself does so in time."""
        self.journal.note(record)
        state = record.state
        self._show_soon()
        deadlines = (state.members, state.restricted_until, state.holds, state.unmute_requests)
        if len(self._deadlines_seen) != len(deadlines) or any(map(operator.is_not, deadlines, self._deadlines_seen)):
            self._deadlines_seen = deadlines
            self._arm(state)

    def _arm(self, state: MeetingState) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_expiring:
            return  # who is at it looks again
        loop = asyncio.get_running_loop()
        deadlines = list(self._places_end(state).values())
        # Looked at every second while anybody may come back: a loop that is late for that is late for them.
        look_in_s = LATE_S if deadlines else math.inf
        if state.empty_since is not None:
            deadlines.append(state.empty_since + self._rules.empty_s)
        if not self._is_lifting:
            deadlines += _ends(state)
        if deadlines:
            delay_s = max(min(deadlines) - self._clock(), self._expired_at + GATHERED_S - loop.time(), 0)
            due_at = loop.time() + min(delay_s, look_in_s)
            self._timer = loop.call_at(due_at, self._look_at_the_time, due_at)

    def _places_end(self, state: MeetingState) -> dict[ParticipantId, float]:
        """
        Until when the places of people whose connections are gone are kept.

        The time to come back begins anew when nobody could be let in at once; whoever is being let in has come back.
        """
        away = {who: member.returns_until for who, member in state.members.items() if member.returns_until is not None}
        if not away:
            return {}
        held_up_until = self._entrance.held_up_at() + self._rules.grace_s
        return {
            who: math.inf if self._is_arriving(who) else max(until, min(held_up_until, until + MOST_EXTENDED_S))
            for who, until in away.items()
        }

    def _look_at_the_time(self, due_at: float) -> None:
        self._timer = None
        self._entrance.note_late(asyncio.get_running_loop().time() - due_at)
        self._is_expiring = True
        self.run_in_background(self._end_what_is_due())

    async def _end_what_is_due(self) -> None:
        try:
            await until_done(self._expire)
        finally:
            self._is_expiring = False
        self._arm((await until_done(self.record)).state)

    async def _expire(self) -> None:
        state, now = (await self.record()).state, self._clock()
        overdue = frozenset(who for who, until in self._places_end(state).items() if until <= now)
        if overdue:
            try:
                departed = await self.journal.decide(
                    CONTROLLER,
                    lambda _: DepartUnlessBack(frozenset(who for who in overdue if not self._is_arriving(who)), now),
                )
            except StoreError:
                self._entrance.note_closed()
                raise
            if isinstance(departed, Committed):
                self._expired_at = asyncio.get_running_loop().time()
                gone = departed.before.state.members.keys() - departed.record.state.members.keys()
                if len(gone) > REMOVED_UNSEEN:
                    self.reconciler.repair(gone)  # by a list, since hardly anybody of them is still there
                else:
                    self.run_in_background(self._remove_all(gone, departed.before.state))
        if not self._is_lifting and any(end <= now for end in _ends(state)):
            self._is_lifting = True
            self.run_in_background(self._lift_what_is_due(now))
        empty_since = (await self.record()).state.empty_since
        if empty_since is not None and empty_since + self._rules.empty_s <= now:
            await self.end_if_empty(empty_since)

    async def _lift_what_is_due(self, now: float) -> None:
        try:
            await until_done(lambda: self.take_turn(CONTROLLER, Expire(now), new_command_id()))
        finally:
            self._is_lifting = False
        self._arm((await until_done(self.record)).state)

    async def _remove_all(self, people: AbstractSet[ParticipantId], state: MeetingState) -> None:
        await asyncio.gather(*(self.remove_identities(who, state) for who in sorted(people)))

    async def end(self) -> asyncio.Task[None]:
        """
        End the meeting: its state is cleared at once, its LiveKit rooms are deleted as soon as LiveKit answers.

        Returns:
            The deleting, which goes on whether or not anybody waits for it.
        """
        await self.commit_now(CONTROLLER, End())
        return self.run_in_background(self.delete_doomed_rooms())

    async def end_if_empty(self, since: float) -> None:
        """End the meeting if nobody has been in it since then, in seconds since the epoch."""
        if isinstance(await self.commit_now(CONTROLLER, EndIfEmpty(since)), Committed):
            self.run_in_background(self.delete_doomed_rooms())

    # --- Showing -------------------------------------------------------------------------------------------------

    def show(self, record: Record) -> moderation.StateView:
        """The meeting as a moderator sees it as of `record` or later; whoever watches has been told of all of it."""
        return self._show(record if self.newest is None or record.revision > self.newest.revision else self.newest)

    def _show(self, record: Record) -> moderation.StateView:
        view, changed = self._shown.update(record)
        if changed is not None and self.watchers:
            self._on_state_changed(changed)
        return view

    def _show_soon(self) -> None:
        if self.watchers and self._showing is None:
            self._showing = asyncio.get_running_loop().call_later(SHOWN_AFTER_S, self._show_newest)

    def _show_newest(self) -> None:
        self._showing = None
        if self.newest is not None:
            self._show(self.newest)

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

    async def see_through(self, work: Coroutine[Any, Any, Result]) -> Result:
        """
        Do all of something that was begun. Cancelling stops the waiting, never the work.

        Raises:
            StoreError: This process ends. What was staged by then is finished at the next start; what was not came to
                nothing.
        """
        return await self.completion(self.spawn(work))

    async def completion(self, task: asyncio.Task[Result]) -> Result:
        """What a task of this meeting comes to; see `see_through`."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as error:
            waiting = asyncio.current_task()
            if task.cancelled() and waiting is not None and not waiting.cancelling():
                raise StoreError("the meeting is being closed") from error
            task.add_done_callback(self._log_unheard)
            raise

    def _log_unheard(self, task: asyncio.Task[Any]) -> None:
        """Log what nobody waits to be told any more."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError):
            log.error("store_failed", room=self.room, error=str(error))
        elif error is not None and not isinstance(error, SignalingError):
            log.error("work_failed_unheard", room=self.room, exc_info=error)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Like `spawn`, for work that nobody need wait for: what goes wrong is logged."""
        task = self.spawn(self._log_failure(work))
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before its first step, it never began
        return task

    async def _log_failure(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StoreError as error:
            log.error("store_failed", room=self.room, error=str(error))  # noqa: TRY400 - no bug, no traceback
        except Exception:
            log.exception("background_work_failed", room=self.room)

    async def close(self) -> None:
        """End all that runs for this meeting; its state stays in the store."""
        for timer in (self._timer, self._showing):
            if timer is not None:
                timer.cancel()
        self.watchers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.reconciler.close()


async def until_done(work: Callable[[], Awaitable[Result]]) -> Result:
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
        [
            *(Finding.AGREED, Finding.ABSENT, Finding.NO_TRACK, Finding.ALREADY_MUTED, Finding.CHANGED),
            *(Finding.MUTED, Finding.STOPPED, Finding.SETTLING, Finding.REJECTED, Finding.UNANSWERED),
        ]
    )
}


def _worsen(findings: dict[ParticipantId, Finding], participant: ParticipantId, finding: Finding) -> None:
    """Somebody with several identities is as well off as the worst of them."""
    known = findings.get(participant)
    if known is None or _SEVERITY[finding] > _SEVERITY[known]:
        findings[participant] = finding


def _finding(task: asyncio.Task[Finding] | None) -> Finding:
    return task.result() if task is not None and task.done() and not task.cancelled() else Finding.UNANSWERED


def _live(presence: Presence, sources: frozenset[Source]) -> list[Track]:
    return [track for track in presence.tracks_of(sources) if not track.muted]


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


def _ends(state: MeetingState) -> list[float]:
    """When something that was decided ends by itself."""
    held = [until for sources in state.holds.values() for until in sources.values()]
    requested = [request.expires_at for request in state.unmute_requests.values()]
    return [*state.restricted_until.values(), *held, *requested]


def _is_over(record: Record, decision: Decision) -> bool:
    """Whether the meeting of this decision has ended since, though another may have begun."""
    if decision.effect is None:
        return not record.state.goes_on
    return record.staged is None or record.staged.command_id != decision.command_id


OVER: Final = Refusal("insufficient_permissions")
"""Of a command whose meeting has ended before it was carried out."""


def _sid(track: Track) -> TrackSid:
    return track.sid


def _sids(presence: Presence | None) -> frozenset[TrackSid]:
    return frozenset() if presence is None else frozenset(map(_sid, presence.tracks))


def _concerned(decision: Decision, state: MeetingState) -> frozenset[ParticipantId]:
    effect = decision.effect
    if isinstance(effect, Agree) and effect.participants is None:
        return frozenset(state.members)
    return decision.targets
