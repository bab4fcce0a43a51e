"""What keeps LiveKit agreeing with a meeting: sweeps, retries, and what LiveKit itself reports."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from signaling.core.conclusions import presenters_of
from signaling.core.effects import Allow, Presence, Priority
from signaling.core.enforcement import call_for
from signaling.core.state import MeetingState
from signaling.errors import MediaServerUnavailable, StoreError
from signaling.identifiers import LiveKitRoom, ParticipantId
from signaling.livekit.contract import MediaServer, Notice
from signaling.meeting.agreement import Agreement
from signaling.meeting.due import Due
from signaling.meeting.incidents import Incidents
from signaling.meeting.journal import Journal
from signaling.meeting.roster import Roster
from signaling.meeting.tracks import Tracks
from signaling.meeting.turn import Turns
from signaling.stores.contract import Entry, Record

log = structlog.get_logger(__name__)


class Reconciler:
    """
    Looks at people when they are due, and at everybody again and again.

    Args:
        remove_unknown: Whether people who never joined are removed, instead of being restricted like anyone.
        sweep_s: How often everything is compared, in seconds.
        looks_after: Whether this process, of all that have people in the meeting, is the one that sweeps it.
        on_people_in_livekit: Called before each sweep, if LiveKit has listed anybody before.
    """

    def __init__(
        self,
        media: MediaServer,
        journal: Journal,
        roster: Roster,
        due: Due,
        agreement: Agreement,
        tracks: Tracks,
        turns: Turns,
        incidents: Incidents,
        *,
        remove_unknown: bool,
        sweep_s: float,
        looks_after: Callable[[], Awaitable[bool]],
        on_people_in_livekit: Callable[[], None],
    ) -> None:
        self._media = media
        self._journal = journal
        self._roster = roster
        self._due = due
        self._agreement = agreement
        self._tracks = tracks
        self._turns = turns
        self._incidents = incidents
        self._remove_unknown = remove_unknown
        self._sweep_s = sweep_s
        self._looks_after = looks_after
        self._on_people_in_livekit = on_people_in_livekit
        journal.listen(self._on_commit)

    def _on_commit(self, before: Record | None, record: Record, _entry: Entry | None) -> None:
        if before is not None:
            self._free_the_screen(before, record)

    def _free_the_screen(self, before: Record, record: Record) -> None:
        """Everybody may share again when the presenter leaves, be it while they were being appointed."""
        presenters = set[ParticipantId]() if before.state.presenter is None else {before.state.presenter}
        if before.staged is not None and record.staged is None:
            presenters |= presenters_of(before.staged)
        if not presenters <= record.state.members.keys():
            self._due.repair(record.state.members)

    # --- Looking -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sweep, and retry what is due in between, until cancelled."""
        loop = asyncio.get_running_loop()
        sweep_at = loop.time() + self._sweep_s
        await self._attempt(self._begin())
        while True:
            await self._due.wait(sweep_at)
            now = loop.time()
            is_sweep = now >= sweep_at
            people = self._due.take(now)
            if not is_sweep and not people:
                continue  # woken only to look at the clock again
            if is_sweep:
                sweep_at = now + self._sweep_s
            if self._media.answering:
                await self._attempt(self._look(people, is_sweep=is_sweep))

    async def _begin(self) -> None:
        await self._looks_after()  # from now on, unless another process does

    async def _look(self, people: frozenset[ParticipantId], *, is_sweep: bool) -> None:
        if is_sweep and await self._looks_after():
            await self.sweep()
        elif people:
            await self.go_over(people)

    async def sweep(self) -> None:
        """Look at everybody, finish what was left half done, and tell what that has shown; what fails is logged."""
        await self._attempt(self._prepare_sweep())
        await self._attempt(self.go_over(None))
        await self._attempt(self._incidents.note_sweep())

    async def _prepare_sweep(self) -> None:
        if self._roster.presences:
            self._on_people_in_livekit()
        await self._turns.finish_staged()

    async def _attempt(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (MediaServerUnavailable, StoreError) as error:
            log.warning("sweep_failed", room=self._journal.room, error=str(error))
        except Exception:  # one meeting's bug must not end its protection
            log.exception("sweep_failed", room=self._journal.room)

    async def go_over(self, people: frozenset[ParticipantId] | None) -> None:
        """
        Compare LiveKit with the state, tell it what differs, and moderators what that has shown.

        Args:
            people: Only these; `None` for everybody.

        Raises:
            MediaServerUnavailable: LiveKit did not answer.
        """
        await self._incidents.note_look(await self._agreement.go_over(people))

    # --- What LiveKit reports ------------------------------------------------------------------------------------

    async def react(self, notice: Notice) -> None:
        """
        Make LiveKit agree about whom it has just reported something of; reports may come late, or in any order.

        Whoever has answered no offer of LiveKit's is in the room and heard, though it never reports that they joined:
        the track is then the first sign of them.
        """
        await self._react(notice)
        await self._incidents.tell_of_strangers()

    async def _react(self, notice: Notice) -> None:
        if notice.room not in (await self._journal.effective_state()).rooms:
            return  # it is somebody else's, by whatever name
        place = (notice.room, notice.identity)
        known = self._roster.presence(*place)
        is_known = known is not None and known.sid == notice.sid
        match notice.kind:
            case "participant_left":
                if is_known:  # else it is an earlier session of theirs that is over
                    self._roster.drop(place)
                return
            case "track_unpublished":
                if known is not None and is_known and notice.track is not None:
                    left = self._roster.note_unpublished(known, notice.track)
                    await self._incidents.look_for_bypasses([left])  # sound may have lost its picture
                return
            case "participant_joined" if notice.presence is not None and not is_known:
                if known is not None and known.joined_at_ms > notice.presence.joined_at_ms:
                    return  # an earlier session of theirs, told of late
                self._roster.note(notice.presence)
                await self._roster.note_new_sessions([notice.presence])
            case "track_published" if known is not None and is_known and notice.track is not None:
                self._roster.note_published(known, notice.track)
            case "track_published" if not await self._can_look_at(notice.room):
                self._due.repair({await self._agreement.owner_of(notice.identity)})
                return
            case _:
                pass
        found = self._roster.presence(*place)
        if found is None:
            return
        finding = await self._agreement.agree(place, Priority.REPAIR)
        if not self._is_stricter(found, await self._journal.effective_state()):
            await self._incidents.note_drift(found, finding, notice.kind)
        await self._incidents.look_for_bypasses([found])
        if notice.kind == "track_published":
            await self._tracks.mute_what_was_meant(place)

    def _is_stricter(self, found: Presence, state: MeetingState) -> bool:
        """Whether somebody has come with one of our tokens of while a decision was carried out; that is no drift."""
        call = call_for(state, found, remove_unknown=self._remove_unknown)
        return isinstance(call, Allow) and set(found.permission.allowed()) < set(call.sources)

    async def _can_look_at(self, room: LiveKitRoom) -> bool:
        try:
            return room not in await self._roster.look({room})
        except MediaServerUnavailable:
            return False
