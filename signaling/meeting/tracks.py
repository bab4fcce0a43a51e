"""What ends or mutes what people publish."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_before_delay, wait_exponential

from signaling.core.decisions import FRESH_S
from signaling.core.effects import Finding, Presence, Priority
from signaling.core.enforcement import allowable, silencing
from signaling.core.participants import Source
from signaling.errors import MediaServerRejected, MediaServerUnavailable, ParticipantGone, StoreError, TrackGone
from signaling.identifiers import Identity, LiveKitRoom, ParticipantId, TrackSid
from signaling.livekit.contract import MediaServer
from signaling.meeting.agreement import Agreement
from signaling.meeting.due import FIRST_RETRY_S, Due
from signaling.meeting.journal import Journal
from signaling.meeting.muted import JustMuted
from signaling.meeting.roster import Place, Roster

log = structlog.get_logger(__name__)


class Tracks:
    """What is published in the LiveKit rooms of one meeting."""

    def __init__(
        self,
        journal: Journal,
        media: MediaServer,
        roster: Roster,
        due: Due,
        just_muted: JustMuted,
        agreement: Agreement,
    ) -> None:
        self._journal = journal
        self._media = media
        self._roster = roster
        self._due = due
        self._just_muted = just_muted
        self._agreement = agreement

    # --- Muting --------------------------------------------------------------------------------------------------

    async def mute(
        self, room: LiveKitRoom, identity: Identity, sources: frozenset[Source], only: frozenset[TrackSid] | None = None
    ) -> Finding:
        """
        Mute somebody's live tracks of these sources, as of the last look.

        Args:
            only: Of these tracks; `None` for whatever they publish.
        """
        try:
            for attempt in range(2):
                presence = self._roster.presence(room, identity)
                if presence is None:
                    return Finding.ABSENT
                if only is not None:
                    presence = _with_tracks(presence, only)
                try:
                    return await self._mute_tracks(presence, sources)
                except (ParticipantGone, TrackGone):
                    if attempt:
                        raise
                    await self._roster.look_at(room)  # they, or the track, may be gone in this very moment
        except MediaServerUnavailable:
            return Finding.UNANSWERED
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=room, participant=identity, error=str(error))
        return Finding.REJECTED

    async def _mute_tracks(self, presence: Presence, sources: frozenset[Source]) -> Finding:
        for track in presence.tracks_of(sources):
            if not track.muted:
                async with self._media.slot(presence.room, Priority.LIVE), self._roster.lock(presence.identity):
                    await self._media.mute(presence.room, presence.identity, track.sid)
                    self._roster.note_muted((presence.room, presence.identity), track)
        return silencing(presence, sources)

    async def mute_what_was_meant(self, place: Place) -> None:
        """Mute what somebody has published since, if it was right after they were muted."""
        muting, presence = self._just_muted.mutings.get(place), self._roster.presence(*place)
        if muting is None or presence is None:
            return
        live = frozenset(track.counts_as for track in presence.tracks_of(muting.sources) if not track.muted)
        if not live or muting.until <= asyncio.get_running_loop().time():
            return
        is_muted = await self.mute(*place, live) is Finding.MUTED
        if is_muted or await self.mute_late(*place, live, frozenset(track.sid for track in presence.tracks), FRESH_S):
            muting.on_muted(live)

    async def mute_late(
        self,
        room: LiveKitRoom,
        identity: Identity,
        sources: frozenset[Source],
        only: frozenset[TrackSid],
        within_s: float,
    ) -> bool:
        """
        Try again to mute these tracks, for `within_s` seconds.

        Returns:
            Whether LiveKit has confirmed it: also when it says that they are muted, since it was asked to do so.
        """
        finding = await self._late(room, lambda: self.mute(room, identity, sources, only), within_s)
        return finding in {Finding.MUTED, Finding.ALREADY_MUTED}

    async def agree_late(self, place: Place, within_s: float) -> bool:
        """Try again to agree about an identity, for `within_s` seconds; whether LiveKit does."""
        finding = await self._late(place[0], lambda: self._agreement.agree(place, Priority.REPAIR), within_s)
        return finding in {Finding.CHANGED, Finding.AGREED, Finding.SETTLING}

    async def stop_late(
        self, place: Place, sources: frozenset[Source], only: frozenset[TrackSid], within_s: float
    ) -> None:
        """Try again to stop these tracks, for `within_s` seconds."""
        await self._late(place[0], lambda: self.stop(place, sources, only), within_s)

    async def _late(self, room: LiveKitRoom, again: Callable[[], Awaitable[Finding]], within_s: float) -> Finding:
        async def attempt() -> Finding:
            try:
                await self._roster.look({room})
            except MediaServerUnavailable:
                return Finding.UNANSWERED
            return await again()

        if within_s <= 0:
            return Finding.UNANSWERED
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda finding: finding.is_failure),
            wait=wait_exponential(multiplier=FIRST_RETRY_S, max=1),
            stop=stop_before_delay(within_s),
        )
        try:
            finding: Finding = await retrying(attempt)
        except RetryError:
            return Finding.UNANSWERED
        return finding

    # --- Stopping ------------------------------------------------------------------------------------------------

    async def stop(self, place: Place, sources: frozenset[Source], only: frozenset[TrackSid] | None = None) -> Finding:
        """
        End what somebody publishes of these sources, as of the last look: the right goes away and comes back.

        Args:
            only: If they publish one of these tracks; `None` for whatever they publish.
        """
        room, identity = place
        try:
            async with self._media.slot(room, Priority.LIVE), self._roster.lock(identity):
                return await self._stop_now(place, sources, only)
        except MediaServerUnavailable:
            self._due.doubt({await self._agreement.owner_of(identity)})
            return Finding.UNANSWERED
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=room, participant=identity, error=str(error))
            self._due.retry_later({await self._agreement.owner_of(identity)})
            return Finding.REJECTED
        except StoreError:
            self._due.retry_later({ParticipantId(identity)})  # the right may be gone that was to come back
            raise

    async def _stop_now(self, place: Place, sources: frozenset[Source], only: frozenset[TrackSid] | None) -> Finding:
        presence = self._roster.presence(*place)
        if presence is None:
            return Finding.ABSENT
        tracks = presence.tracks_of(sources)
        if not tracks or not (only is None or any(track.sid in only for track in tracks)):
            return Finding.NO_TRACK
        away = tuple(source for source in presence.permission.allowed() if source not in sources)
        await self._roster.note_before_change([presence])
        try:
            stopped = await self._media.allow(presence, away)
        except ParticipantGone:
            await self._roster.look_for(place)
            if self._roster.presence(*place) is not None:
                raise
            return Finding.ABSENT
        self._roster.note(stopped)
        state = await self._journal.effective_state()
        back = allowable(state, presence, self._roster.presences)
        if not stopped.permission.allows_exactly(back):
            self._roster.note(await self._media.allow(stopped, back))
        return Finding.STOPPED


def _with_tracks(presence: Presence, only: frozenset[TrackSid]) -> Presence:
    return replace(presence, tracks=tuple(track for track in presence.tracks if track.sid in only))
