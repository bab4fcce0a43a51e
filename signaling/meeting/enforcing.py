"""What carries one decision out in LiveKit: everybody whom it concerns, the most urgent first."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, assert_never

from signaling.core.announcements import mute_announcements
from signaling.core.applying import apply
from signaling.core.changes import MutesNoted
from signaling.core.decisions import FRESH_S, Decision
from signaling.core.effects import Agree, Expel, Finding, Mute, Presence, Priority, Stop, Track
from signaling.core.enforcement import is_unknown, must_wait, of_people, owner_of, plan, silencing, strangers
from signaling.core.participants import Source
from signaling.core.policy import is_service
from signaling.core.state import MeetingState
from signaling.identifiers import ParticipantId, TrackSid
from signaling.meeting.agreement import Agreement
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.muted import JustMuted
from signaling.meeting.roster import LAG_S, Place, Roster
from signaling.meeting.tasks import Tasks, until_done
from signaling.meeting.tracks import Tracks
from signaling.stores.contract import Entry, Record

TURN_S: Final = 15.0
"""How long a turn waits for LiveKit in all."""
IDLE_S: Final = 0.2
"""How long a turn waits for people who publish nothing that the decision is about."""


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


class Enforcing:
    """
    Carries out the decisions of one meeting.

    Args:
        clock: Seconds since the epoch.
        remove_unknown: Whether people who never joined are removed, instead of being restricted like anyone.
    """

    def __init__(
        self,
        journal: Journal,
        roster: Roster,
        due: Due,
        just_muted: JustMuted,
        agreement: Agreement,
        tracks: Tracks,
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        remove_unknown: bool,
    ) -> None:
        self._journal = journal
        self._roster = roster
        self._due = due
        self._just_muted = just_muted
        self._agreement = agreement
        self._tracks = tracks
        self._tasks = tasks
        self._clock = clock
        self._remove_unknown = remove_unknown
        journal.listen(self._on_commit)

    async def carry_out(self, decision: Decision) -> Seen:
        """
        Have LiveKit do its part of a decision that is staged.

        Raises:
            MediaServerUnavailable: It said nothing of anybody concerned.
        """
        record = await self._journal.record()
        before = record.state
        is_staged = record.staged is decision  # then each call is made by the very same state
        state = self._journal.effective_of(record) if is_staged else apply(before, decision.changes)
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

    async def _mute(self, state: MeetingState, decision: Decision, effect: Mute) -> Seen:
        sources = effect.sources
        places = {place: who for who in effect.participants for place in self._roster.places_of(state, who)}
        silent = await self._roster.look(
            state.rooms_in_use() if effect.strangers_but is not None else {room for room, _ in places}
        )
        held = frozenset(places) if effect.is_held else frozenset[Place]()
        if effect.strangers_but is not None:
            places |= {
                (presence.room, presence.identity): ParticipantId(presence.identity)
                for presence in self._roster.presences
                if is_unknown(state, presence)
                and not is_service(presence)
                and ParticipantId(presence.identity) not in effect.strangers_but
            }
        before = {place: found for place in places if (found := self._roster.presence(*place)) is not None}
        tasks = {
            place: asyncio.create_task(
                self._hold(place, before.get(place), sources) if place in held else self._tracks.mute(*place, sources)
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
            self._due.doubt([who for who, finding in findings.items() if finding is Finding.UNANSWERED])
        meant = {place: who for place, who in places.items() if place not in held and place[0] not in silent}
        self._just_muted.begin(
            {place: partial(self._tell_of_late_mute, decision, who) for place, who in meant.items()}, sources
        )
        for place, who in meant.items():
            # Who was dealt with at once may have begun to publish while others still were.
            begun = self._live_sids(place, sources) - _sids(before.get(place))
            if begun:
                later.append(partial(self._mute_late, decision, place, who, sources, begun, is_held=False))
        return Seen(findings, silenced, tuple(later))

    def _on_commit(self, before: Record | None, record: Record, entry: Entry | None) -> None:
        """Whoever another process has muted in this moment is meant here too: LiveKit may report their tracks here."""
        decision = None if before is None else before.staged
        if decision is None or entry is None or entry.node == self._journal.node:
            return
        if entry.command_id != decision.command_id or self._clock() - entry.at > LAG_S:
            return
        match decision.effect:
            case Mute(participants, sources) as effect if not effect.is_held:
                places = ((who, place) for who in participants for place in self._roster.places_of(record.state, who))
                tell = {place: partial(self._tell_of_late_mute, decision, who) for who, place in places}
                self._just_muted.begin(tell, sources)
            case Agree(_, sources):
                for place in self._just_muted.mutings:
                    self._just_muted.note_given(place, sources)
            case _:
                pass

    def _live_sids(self, place: Place, sources: frozenset[Source]) -> frozenset[TrackSid]:
        presence = self._roster.presence(*place)
        return frozenset() if presence is None else frozenset(map(_sid, _live(presence, sources)))

    def _tell_of_late_mute(self, decision: Decision, who: ParticipantId, sources: frozenset[Source]) -> None:
        told = tuple(mute_announcements(who, decision.moderator, sources))
        noted = MutesNoted({who: sources}, self._clock())
        self._tasks.run_in_background(until_done(lambda: self._journal.announce(told, noted)))

    async def _hold(self, place: Place, before: Presence | None, sources: frozenset[Source]) -> Finding:
        """Take the sources away, which ends their tracks."""
        finding = await self._agreement.agree(place, Priority.LIVE)
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
            is_muted = await self._tracks.agree_late(place, within_s) and bool(tracks)
            holds = (await self._journal.effective_state()).holds.get(participant, {})
            is_muted = is_muted and sources <= holds.keys()  # else it is not by this that they agree
        else:
            is_muted = await self._tracks.mute_late(*place, sources, tracks, within_s)
        if is_muted:
            self._tell_of_late_mute(decision, participant, sources)

    async def _stop(self, state: MeetingState, decision: Decision, effect: Stop) -> Seen:
        places = {place: who for who in effect.participants for place in self._roster.places_of(state, who)}
        silent = await self._roster.look({room for room, _ in places})
        before = {place: found for place in places if (found := self._roster.presence(*place)) is not None}
        tasks = {
            place: asyncio.create_task(self._tracks.stop(place, effect.sources))
            for place in places
            if place[0] not in silent
        }
        findings = await self._gathered(tasks, places)
        within_s = decision.at + FRESH_S - self._clock()
        later = [
            partial(self._tracks.stop_late, place, effect.sources, frozenset(map(_sid, published)), within_s)
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
                if task.done() and not task.cancelled():
                    task.exception()  # of many that the store failed alike, one is told
        findings: dict[ParticipantId, Finding] = {}
        for place, who in places.items():
            worsen(findings, who, _finding(tasks.get(place)))
        return findings

    async def _agree(
        self, state: MeetingState, participants: frozenset[ParticipantId] | None, sources: frozenset[Source]
    ) -> dict[ParticipantId, Finding]:
        began_at = asyncio.get_running_loop().time()
        if participants is None:
            rooms = state.rooms_in_use()
        else:
            rooms = frozenset(room for who in participants for room, _ in self._roster.places_of(state, who))
        silent = await self._roster.look(rooms)
        heard_of = rooms - silent
        roster = list(self._roster.presences)
        concerned = [
            presence
            for presence in (roster if participants is None else of_people(state, roster, participants))
            if presence.room in heard_of
        ]
        # Whoever becomes the presenter gets the screen when it was taken away from everybody else, and not before.
        waiting = [presence for presence in concerned if must_wait(state, presence, roster)]
        urgent, idle = {}, {}
        calls = plan(state, roster, remove_unknown=self._remove_unknown, about=participants, sources=sources)
        await self._roster.note_before_change(concerned if calls else ())
        for call in calls:
            place = (call.room, call.identity)
            if call.room not in heard_of:
                continue
            if participants is None and call.priority is Priority.IDLE and not waiting:
                idle[place] = self._agreement.settle(place, Priority.SETTLING)
            else:
                urgent[place] = self._agreement.settle(place, call.priority)
        if urgent:
            await asyncio.wait(urgent.values(), timeout=TURN_S)
        for presence in waiting:
            place = (presence.room, presence.identity)
            urgent[place] = self._agreement.settle(place, Priority.LIVE)
            await asyncio.wait({urgent[place]}, timeout=TURN_S)
        if idle:
            spent_s = asyncio.get_running_loop().time() - began_at
            await asyncio.wait(idle.values(), timeout=min(IDLE_S, max(TURN_S - spent_s, 0)))
        missed = state.members if silent else ()
        findings = {who: Finding.UNANSWERED for who in missed if state.room_of(who) in silent}
        for presence in concerned:
            worsen(findings, owner_of(presence.identity, state), Finding.AGREED)
        for place, task in urgent.items():
            worsen(findings, owner_of(place[1], state), _finding(task))
        for place, task in idle.items():
            worsen(findings, owner_of(place[1], state), _finding(task) if task.done() else Finding.SETTLING)
        self._due.doubt([who for who, finding in findings.items() if finding is Finding.UNANSWERED])
        named = strangers(state, roster).keys() if participants is None else participants
        return {who: finding for who, finding in findings.items() if who in state.members or who in named}

    async def _expel(
        self, before: MeetingState, state: MeetingState, participants: frozenset[ParticipantId]
    ) -> dict[ParticipantId, Finding]:
        rooms = {room for who in participants for room, _ in self._roster.places_of(before, who)}
        rooms |= {found.room for found in self._roster.presences if owner_of(found.identity, state) in participants}
        silent = await self._roster.look(before.rooms_in_use() | rooms)
        tasks = {
            (presence.room, presence.identity): self._agreement.settle(
                (presence.room, presence.identity), Priority.REPAIR
            )
            for presence in self._roster.presences
            if owner_of(presence.identity, state) in participants
        }
        if tasks:
            await asyncio.wait(tasks.values(), timeout=TURN_S)
        findings = {who: Finding.UNANSWERED for who in participants if before.room_of(who) in silent}
        for place, task in tasks.items():
            worsen(findings, owner_of(place[1], state), _finding(task))
        self._due.doubt([who for who, finding in findings.items() if finding is Finding.UNANSWERED])
        if before.rooms - before.doomed - before.rooms_in_use():
            self._due.repair(participants)  # they may be in any room that was ever used; nobody waits for that
        return findings


_SEVERITY: Final = {
    finding: severity
    for severity, finding in enumerate(
        [
            *(Finding.AGREED, Finding.ABSENT, Finding.NO_TRACK, Finding.ALREADY_MUTED, Finding.CHANGED),
            *(Finding.MUTED, Finding.STOPPED, Finding.SETTLING, Finding.REJECTED, Finding.UNANSWERED),
        ]
    )
}


def worsen(findings: dict[ParticipantId, Finding], participant: ParticipantId, finding: Finding) -> None:
    """Somebody with several identities is as well off as the worst of them."""
    known = findings.get(participant)
    if known is None or _SEVERITY[finding] > _SEVERITY[known]:
        findings[participant] = finding


def _finding(task: asyncio.Task[Finding] | None) -> Finding:
    return task.result() if task is not None and task.done() and not task.cancelled() else Finding.UNANSWERED


def _live(presence: Presence, sources: frozenset[Source]) -> list[Track]:
    return [track for track in presence.tracks_of(sources) if not track.muted]


def _sid(track: Track) -> TrackSid:
    return track.sid


def _sids(presence: Presence | None) -> frozenset[TrackSid]:
    return frozenset() if presence is None else frozenset(map(_sid, presence.tracks))
