"""What the looks at LiveKit have shown: drift, bypasses, strangers, and who unmuted again."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

import structlog

from signaling import metrics
from signaling.core.announcements import to_moderators
from signaling.core.bypasses import bypassing, unaccompanied
from signaling.core.changes import BypassNoted
from signaling.core.commands import Bypass, NoteUnmutedAgain
from signaling.core.effects import Allow, Finding, Presence, Priority, Track
from signaling.core.enforcement import call_for, is_unknown, owner_of, unmuted_again
from signaling.core.participants import Source
from signaling.core.policy import is_service
from signaling.errors import StoreError
from signaling.identifiers import CONTROLLER, ParticipantId, TrackSid, new_command_id
from signaling.meeting.agreement import Agreement, Looked
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.roster import LAG_S, Place, Roster
from signaling.meeting.tasks import Tasks, until_done
from signaling.meeting.turn import Turns
from signaling.messages import moderation
from signaling.stores.contract import Entry, Record

log = structlog.get_logger(__name__)

PICTURE_S: Final = 1.0
"""How long the sound of a screen may be there before its picture."""


class Incidents:
    """
    Tells moderators of one meeting what was found, each once, and has decided what follows from it.

    Args:
        clock: Seconds since the epoch.
        remove_unknown: Whether people who never joined are removed, instead of being restricted like anyone.
        looks_after: Whether this process is the one that tells what looks at the meeting have shown.
    """

    def __init__(
        self,
        journal: Journal,
        roster: Roster,
        due: Due,
        agreement: Agreement,
        turns: Turns,
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        remove_unknown: bool,
        looks_after: Callable[[], Awaitable[bool]],
    ) -> None:
        self._journal = journal
        self._roster = roster
        self._due = due
        self._agreement = agreement
        self._turns = turns
        self._tasks = tasks
        self._clock = clock
        self._remove_unknown = remove_unknown
        self._looks_after = looks_after
        self._unrepaired: dict[Place, tuple[Presence, str]] = {}
        """Whom LiveKit was found wrong about and could not be set right, as they were found, and what showed it."""
        self._unaccompanied_since: dict[TrackSid, float] = {}
        self._bypasses: set[TrackSid] = set()
        self._strangers_told: set[ParticipantId] = set()
        self._drift_told: dict[moderation.DriftRepaired, float] = {}
        """What other processes have told of a moment ago, and when, by the clock of the event loop."""
        journal.listen(self._on_commit)

    async def note_look(self, looked: Looked) -> None:
        """Tell what a look at people, or at everybody, has shown."""
        for told in looked.told:
            is_known = (told.found.room, told.found.identity) in self._unrepaired
            if is_known or (looked.people is None and not told.was_due):
                await self.note_drift(told.found, told.finding, "sweep")
        if looked.error is not None:
            raise looked.error
        called = {(told.found.room, told.found.identity) for told in looked.told}
        for place, (before, cause) in tuple(self._unrepaired.items()):
            if place[0] not in looked.silent and looked.concerns(place[1]) and place not in called:
                # A call that went unanswered had its effect after all, or they are gone.
                finding = Finding.ABSENT if self._roster.presence(*place) is None else Finding.AGREED
                await self.note_drift(before, finding, cause)
        tracks = self._roster.tracks()
        self._unaccompanied_since = {sid: at for sid, at in self._unaccompanied_since.items() if sid in tracks}
        await self.look_for_bypasses(
            [presence for presence in self._roster.presences if presence.tracks and looked.concerns(presence.identity)]
        )

    async def note_sweep(self) -> None:
        """Tell what a look at everybody has shown beside that."""
        state = await self._journal.effective_state()
        again = unmuted_again(state, self._roster.presences, self._clock())
        if again:
            await self._turns.commit_now(CONTROLLER, NoteUnmutedAgain(again))
        await self.tell_of_strangers()

    # --- Drift ---------------------------------------------------------------------------------------------------

    async def note_drift(self, found: Presence, finding: Finding, cause: str) -> None:
        """
        Count that LiveKit was found wrong about somebody, and tell of it when it was set right.

        Args:
            found: How LiveKit had them.
            finding: What came of the attempt to set it right.
            cause: What showed it.
        """
        place = (found.room, found.identity)
        is_known = place in self._unrepaired
        if not is_known and (finding is Finding.CHANGED or finding.is_failure):
            metrics.DRIFT.labels(cause).inc()
        if finding.is_failure:
            self._unrepaired.setdefault(place, (found, cause))
            return
        found, cause = self._unrepaired.pop(place, (found, cause))
        if finding is not Finding.CHANGED and not (is_known and finding is Finding.AGREED):
            return
        call = call_for(await self._journal.effective_state(), found, remove_unknown=self._remove_unknown)
        if call is None:
            return  # something else was decided meanwhile: it is right now, and was not repaired
        metrics.REPAIRS.labels(cause).inc()
        log.info("drift_repaired", room=found.room, participant=found.identity, cause=cause)
        expected = call.sources if isinstance(call, Allow) else ()
        self._tasks.run_in_background(until_done(lambda: self._tell_of_drift(found, expected)))

    async def _tell_of_drift(self, found: Presence, expected: tuple[Source, ...]) -> None:
        state = await self._journal.effective_state()
        repaired = moderation.DriftRepaired(
            participant=found.identity,
            found=tuple(source.value for source in found.permission.allowed()),
            expected=tuple(source.value for source in expected),
        )
        if self._drift_told.get(repaired, -math.inf) + LAG_S < asyncio.get_running_loop().time():
            await self._journal.announce([to_moderators(state, repaired)])
        await self.tell_of_strangers(found)

    def _on_commit(self, _before: Record | None, _record: Record, entry: Entry | None) -> None:
        """Two processes may find the same at once, by a report and by a sweep."""
        if entry is None or entry.node == self._journal.node:
            return
        now = asyncio.get_running_loop().time()
        self._drift_told = {event: at for event, at in self._drift_told.items() if at + LAG_S >= now}
        for announcement in entry.announcements:
            match announcement.event:
                case moderation.DriftRepaired() as event:
                    self._drift_told[event] = now
                case moderation.UnknownParticipant(identity=identity):
                    self._strangers_told.add(ParticipantId(identity))
                case _:
                    pass

    # --- Bypasses ------------------------------------------------------------------------------------------------

    async def look_for_bypasses(self, presences: Iterable[Presence]) -> None:
        """Stop whatever of these people gets round what holds."""
        state, now = await self._journal.effective_state(), asyncio.get_running_loop().time()
        for presence in presences:
            for track in bypassing(state, presence):
                self._on_bypass(presence, track)
            alone = unaccompanied(state, presence)
            for track in presence.tracks:
                if track not in alone:
                    self._unaccompanied_since.pop(track.sid, None)
            for track in alone:
                since = self._unaccompanied_since.setdefault(track.sid, now)
                if now >= since + PICTURE_S:
                    self._on_bypass(presence, track)
                elif since == now:
                    # Just after the time, so that this look is not the one that comes too early.
                    asyncio.get_running_loop().call_later(
                        PICTURE_S * 1.01, self._due.repair, {owner_of(presence.identity, state)}
                    )

    def _on_bypass(self, presence: Presence, track: Track) -> None:
        if track.source is not None and track.sid not in self._bypasses:
            self._tasks.run_in_background(self._stop_bypass(presence, track, track.source))

    async def _stop_bypass(self, presence: Presence, track: Track, source: Source) -> None:
        """Take the source away at once; what follows from it is decided when the meeting's turn comes."""
        state = await self._journal.effective_state()
        who = owner_of(presence.identity, state)
        if track.sid in self._bypasses or track.sid in state.bypasses.get(who, ()):
            return  # it is being stopped, or LiveKit could not be told yet, and will be
        media: Literal["audio", "video"] = "audio" if track.is_sound else "video"
        self._bypasses.add(track.sid)
        self._journal.anticipate(track.sid, BypassNoted(who, source, track.sid, media))
        try:
            finding = await self._agreement.agree((presence.room, presence.identity), Priority.REPAIR)
            if finding.is_failure:
                await self.note_drift(presence, finding, "bypass")
            else:
                metrics.BYPASSES.inc()
            event = "bypass_found" if finding.is_failure else "bypass_stopped"
            log.warning(event, room=self._journal.room, participant=who, track_sid=track.sid, source=source.value)
            noted = Bypass(who, source, track.sid, media)
            await until_done(lambda: self._turns.take(CONTROLLER, noted, new_command_id()))
        finally:
            self._bypasses.discard(track.sid)
            self._journal.anticipate(track.sid, None)

    # --- Strangers -----------------------------------------------------------------------------------------------

    async def tell_of_strangers(self, *removed: Presence) -> None:
        """
        Tell moderators who is in LiveKit and has never joined: once, and again if they had gone.

        Args:
            removed: Who was there until just now.
        """
        state = await self._journal.effective_state()
        # A process that does not look at everybody tells only of who is gone before the one that does sees them.
        looks = await self._looks_after()
        seen = self._roster.presences if looks else ()
        unknown = {
            ParticipantId(presence.identity)
            for presence in (*seen, *removed)
            if is_unknown(state, presence) and not is_service(presence)
        }
        untold = unknown - self._strangers_told
        self._strangers_told = unknown if looks else self._strangers_told | unknown
        if not untold:
            return
        events = [moderation.UnknownParticipant(identity=who) for who in sorted(untold)]
        try:
            await self._journal.announce([to_moderators(state, event) for event in events])
        except StoreError:
            self._strangers_told -= untold
            raise
