"""What keeps LiveKit agreeing with a meeting: settling, retries, and the sweep."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakSet, WeakValueDictionary

import structlog
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_before_delay, wait_exponential

from signaling import metrics
from signaling.core.bypasses import bypassing, unaccompanied
from signaling.core.decisions import FRESH_S
from signaling.core.effects import Allow, Finding, Permission, Presence, Priority, Remove, Track
from signaling.core.enforcement import (
    allowable,
    call_for,
    left_by_others,
    must_wait,
    owner_of,
    plan,
    silencing,
    unnoted,
)
from signaling.core.participants import Source
from signaling.core.state import CameInto, MeetingState, came_into_both
from signaling.errors import MediaServerRejected, MediaServerUnavailable, ParticipantGone, StoreError, TrackGone
from signaling.identifiers import Identity, LiveKitRoom, ParticipantId, RoomId, TrackSid
from signaling.livekit.contract import MediaServer, Notice

log = structlog.get_logger(__name__)

Place = tuple[LiveKitRoom, Identity]
PICTURE_S: Final = 1.0
"""How long the sound of a screen may be there before its picture."""
_FIRST_RETRY_S: Final = 0.1
_LAG_S: Final = 1.0
"""How long what LiveKit has reported of a track may be missing in its lists; and how long a mute meets new tracks."""
_ROUNDS: Final = 3
"""Calls for one identity before LiveKit counts as contradicting itself."""


_RECONCILERS: Final = WeakSet["Reconciler"]()
metrics.SETTLING.set_function(lambda: sum(reconciler.count_settling() for reconciler in tuple(_RECONCILERS)))


async def _nothing() -> None:
    """What is awaited when nobody wants to know."""


async def _forgotten(_came: CameInto) -> None:
    """What is awaited when nobody remembers."""


@dataclass(slots=True)
class _Due:
    """
    When somebody is to be looked at, by the clock of the event loop, and how long to wait if that comes to nothing.

    Each has a pause of their own: whom LiveKit keeps refusing must not keep anybody else waiting.
    """

    at: float
    pause_s: float


@dataclass(frozen=True, slots=True)
class _Muting:
    """Somebody was muted, and what they publish in this very moment is meant too."""

    sources: frozenset[Source]
    until: float
    on_muted: Callable[[frozenset[Source]], None]


class Reconciler:
    """
    Makes LiveKit agree with one meeting, whatever made them differ.

    It holds sets of people, never permissions: right before each call the newest state is read, and after it once more,
    so that an old plan cannot overwrite a new decision. Calls about one identity never overlap.

    Args:
        read: The newest state of the meeting, a staged decision included.
        before_sweep, after_sweep: Awaited before everything is compared, and after.
        remove_unknown: Whether people who never joined are removed, instead of being restricted like anyone.
        sweep_s: How often everything is compared, in seconds.
        on_change: Called when what is known of LiveKit, or of who is to be dealt with, may have changed.
        on_drift: Called when LiveKit was set right: with whom it was wrong about, and what they may publish.
        on_bypass: Called, perhaps more than once, with a track that gets round what holds, and whose it is.
        note_came: Awaited with what people who never joined are given back at most: before LiveKit is told of them,
            when they are back, and when somebody else has taken something from them.
    """

    def __init__(
        self,
        room: RoomId,
        media: MediaServer,
        read: Callable[[], Awaitable[MeetingState]],
        *,
        before_sweep: Callable[[], Awaitable[None]],
        remove_unknown: bool,
        sweep_s: float,
        after_sweep: Callable[[], Awaitable[None]] = _nothing,
        on_change: Callable[[], None] = lambda: None,
        on_drift: Callable[[Presence, tuple[Source, ...]], None] = lambda _found, _expected: None,
        on_bypass: Callable[[Presence, Track], None] = lambda _presence, _track: None,
        note_came: Callable[[CameInto], Awaitable[None]] = _forgotten,
    ) -> None:
        self._room = room
        self._after_sweep = after_sweep
        self._on_change = on_change
        self._on_drift = on_drift
        self._on_bypass = on_bypass
        self._note_came = note_came
        self._unaccompanied_since: dict[TrackSid, float] = {}
        self._media = media
        self._read = read
        self._before_sweep = before_sweep
        self._remove_unknown = remove_unknown
        self._sweep_s = sweep_s
        self._roster: dict[Place, Presence] = {}
        self._told_at: dict[Place, float] = {}
        self._listed_at: dict[LiveKitRoom, float] = {}
        self._locks: WeakValueDictionary[Identity, asyncio.Lock] = WeakValueDictionary()
        self._unrepaired: dict[Place, tuple[Presence, str]] = {}
        """Whom LiveKit was found wrong about and could not be set right, as they were found, and what showed it."""
        self._published_at: dict[TrackSid, float] = {}
        self._mutings: dict[Place, _Muting] = {}
        self._due: dict[ParticipantId, _Due] = {}
        self._due_since_look: set[ParticipantId] = set()
        self._in_doubt: dict[ParticipantId, float | None] = {}
        self._settling: dict[Place, asyncio.Task[Finding]] = {}
        self._tasks: set[asyncio.Task[Finding]] = set()
        self._wake = asyncio.Event()
        _RECONCILERS.add(self)

    @property
    def roster(self) -> Iterable[Presence]:
        """Everybody in LiveKit, as of the last look."""
        return self._roster.values()

    def presence(self, room: LiveKitRoom, identity: Identity) -> Presence | None:
        """One identity as of the last look."""
        return self._roster.get((room, identity))

    def rooms_of(self, identity: Identity) -> frozenset[LiveKitRoom]:
        """The rooms where an identity is, as of the last look."""
        return frozenset(room for room, present in self._roster if present == identity)

    def is_settling(self, participant: ParticipantId) -> bool:
        """Whether LiveKit is still to be told about them."""
        return participant in self._due or any(place[1] == Identity(participant) for place in self._settling)

    def count_settling(self) -> int:
        """How many people LiveKit is still to be told about; may be asked from any thread."""
        return len({*tuple(self._due), *(ParticipantId(identity) for _, identity in tuple(self._settling))})

    def repair(self, participants: Iterable[ParticipantId]) -> None:
        """Look at these people, at once, and again until LiveKit agrees."""
        now = asyncio.get_running_loop().time()
        people = frozenset(participants)
        self._due |= {who: _Due(now, _FIRST_RETRY_S) for who in people}
        self._note_due(people)

    def doubt(self, participants: Collection[ParticipantId]) -> None:
        """
        Calls about these people went unanswered, and may still take effect.

        LiveKit counts as agreeing about them only when two looks, one deadline apart, have found it so.
        """
        self._in_doubt.update(dict.fromkeys(participants))
        self._retry_later(participants)

    def _retry_later(self, participants: Iterable[ParticipantId]) -> None:
        people = frozenset(participants)
        self._postpone(people)
        self._note_due(people)

    def _postpone(self, participants: Iterable[ParticipantId]) -> None:
        """Look at these people after their pause, and after a longer one next time; not at once."""
        now = asyncio.get_running_loop().time()
        for who in participants:
            due = self._due.setdefault(who, _Due(now, _FIRST_RETRY_S))
            if due.at <= now:
                due.at = now + due.pause_s
                due.pause_s = min(due.pause_s * 2, self._sweep_s)

    def _note_due(self, participants: frozenset[ParticipantId]) -> None:
        self._due_since_look |= participants
        self._wake.set()
        self._on_change()

    # --- Looking -------------------------------------------------------------------------------------------------

    async def look(self, rooms: Iterable[LiveKitRoom]) -> frozenset[LiveKitRoom]:
        """
        List who is in these LiveKit rooms.

        Returns:
            The rooms about which LiveKit did not answer, or not usefully.

        Raises:
            MediaServerUnavailable: About none of them.
        """
        wanted = sorted(set(rooms))
        answers = await asyncio.gather(*(self._look_at(room) for room in wanted), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(
                answer, MediaServerUnavailable | MediaServerRejected
            ):
                raise answer
        silent = [answer for answer in answers if isinstance(answer, MediaServerUnavailable)]
        if silent and len(silent) == len(wanted):
            raise silent[0]
        return frozenset(
            room for room, answer in zip(wanted, answers, strict=True) if isinstance(answer, BaseException)
        )

    async def _look_at(self, room: LiveKitRoom) -> None:
        async with self._media.slot(room, Priority.REPAIR):
            began_at = asyncio.get_running_loop().time()
            presences = await self._list(room)
        state = await self._read()
        if self._listed_at.get(room, began_at) > began_at:
            return  # a list that was asked for later came first
        self._listed_at[room] = began_at
        listed = {(room, presence.identity): self._merged(presence) for presence in presences}
        known = {place for place in (*self._roster, *self._told_at) if place[0] == room}
        taken: CameInto = {}
        for place in known | set(listed):
            # What LiveKit answered to a call is newer than a list that was asked for before.
            if self._told_at.get(place, began_at) > began_at:
                continue
            if place in listed and place in self._roster and not self._is_being_told(place):
                left = left_by_others(state, self._roster[place], listed[place])
                if left is not None:
                    taken = came_into_both(taken, {room: {ParticipantId(place[1]): left}})
            if place in listed:
                self._roster[place] = listed[place]
            else:
                self._drop(place)
        if taken:
            await self._note_came(taken)
        await self._note_new_sessions(listed.values())
        self._on_change()

    def _is_being_told(self, place: Place) -> bool:
        """Whether a call about somebody is under way, or may yet take effect: what is seen of them may be our doing."""
        lock, who = self._locks.get(place[1]), ParticipantId(place[1])
        return (lock is not None and lock.locked()) or who in self._due or who in self._in_doubt

    def _merged(self, listed: Presence) -> Presence:
        """What a list says of somebody, with what is known of this session of theirs beside it."""
        known = self._roster.get((listed.room, listed.identity))
        if known is None or known.sid != listed.sid:
            return listed
        now, sids = asyncio.get_running_loop().time(), {track.sid for track in listed.tracks}
        lagging = (
            track
            for track in known.tracks
            if track.sid not in sids and self._published_at.get(track.sid, -math.inf) + _LAG_S > now
        )
        return replace(
            listed,
            tracks=(*listed.tracks, *lagging),
            publishes_once=listed.publishes_once or known.publishes_once,
        )

    async def _note_new_sessions(self, presences: Iterable[Presence]) -> None:
        """Whoever is back is known by what they first came with, if that was noted."""
        if found := unnoted(await self._read(), presences):
            await self._note_came(found)

    async def note_before_change(self, presences: Iterable[Presence]) -> None:
        """Have noted with what those of these people came who never joined: LiveKit is about to be told of them."""
        if found := unnoted(await self._read(), presences, about_to_change=True):
            await self._note_came(found)

    async def _look_for(self, place: Place) -> None:
        """List the room of somebody about whom LiveKit did not know: they may be coming or going in this moment."""
        presences = await self._list(place[0])
        self._drop(place)
        for listed in presences:
            if listed.identity == place[1]:
                self._note(listed)

    async def _list(self, room: LiveKitRoom) -> tuple[Presence, ...]:
        state = await self._read()
        if room not in state.rooms - state.doomed:
            return ()  # of a meeting that is over, say
        return await self._media.list_presences(room, make=room in state.rooms_in_use())

    def _note(self, presence: Presence) -> None:
        place = (presence.room, presence.identity)
        known = self._roster.get(place)
        if known is not None and known.sid == presence.sid and known.publishes_once:
            presence = replace(presence, publishes_once=True)
        self._roster[place] = presence
        self._told_at[place] = asyncio.get_running_loop().time()
        self._on_change()

    def _note_removed(self, place: Place) -> None:
        self._roster.pop(place, None)
        self._told_at[place] = asyncio.get_running_loop().time()
        self._on_change()

    def _drop(self, place: Place) -> None:
        self._roster.pop(place, None)
        self._told_at.pop(place, None)

    def _lock(self, identity: Identity) -> asyncio.Lock:
        return self._locks.setdefault(identity, asyncio.Lock())

    # --- Agreeing ------------------------------------------------------------------------------------------------

    async def agree(self, place: Place, priority: Priority) -> Finding:
        """
        Make LiveKit agree about one identity in one room, as of the newest state.

        Whoever could not be dealt with is tried again later; cancelling leaves them to the sweep.
        """
        room, identity = place
        try:
            # The place among the calls first, then the identity: the other way round, a call that waits long for its
            # place would keep an urgent one about the same person waiting too.
            async with self._media.slot(room, priority), self._lock(identity):
                finding = await self._agree_now(place)
        except MediaServerUnavailable:
            finding = Finding.UNANSWERED
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=room, participant=identity, error=str(error))
            finding = Finding.REJECTED
        except StoreError:
            self._retry_later({ParticipantId(identity)})
            raise
        if finding.is_failure:
            owner = await self._owner_of(identity)
            if finding is Finding.UNANSWERED:
                self.doubt({owner})
            else:
                self._retry_later({owner})
        return finding

    async def _owner_of(self, identity: Identity) -> ParticipantId:
        try:
            return owner_of(identity, await self._read())
        except StoreError:
            return ParticipantId(identity)  # what is a popout is left to the sweep

    async def _agree_now(self, place: Place) -> Finding:
        finding = Finding.AGREED
        looked_again = False
        for _ in range(_ROUNDS):
            presence = self._roster.get(place)
            if presence is None:
                return Finding.ABSENT if finding is Finding.AGREED else finding
            state, roster = await self._read(), self._roster.values()
            call = call_for(state, presence, remove_unknown=self._remove_unknown, roster=roster)
            try:
                match call:
                    case None if must_wait(state, presence, roster):
                        self._retry_later({owner_of(place[1], state)})
                        return Finding.SETTLING
                    case None:
                        return finding
                    case Remove():
                        await self._media.remove(*place)
                        self._note_removed(place)
                    case Allow(sources=sources):
                        await self.note_before_change([presence])
                        told = await self._media.allow(presence, sources)
                        self._note(told)
                        self._mute_no_more(place, frozenset(sources).difference(presence.permission.allowed()))
                        if told.sid != presence.sid:
                            continue  # it was another session that was known: how this one was, nobody can tell
                finding = Finding.CHANGED
            except ParticipantGone:
                if looked_again:
                    raise
                looked_again = True
                await self._look_for(place)
        raise MediaServerRejected("LiveKit answers with another permission than it was told")

    async def remove(self, place: Place, owner: ParticipantId) -> None:
        """Remove an identity that has no business in a room any more, without looking whether it is there."""
        unseen = Presence(*place, Permission(can_publish=False, sources=()))
        try:
            async with self._media.slot(place[0], Priority.REPAIR), self._lock(place[1]):
                if isinstance(call_for(await self._read(), unseen), Remove):  # else they are back already
                    await self._media.remove(*place)
                    self._note_removed(place)
        except MediaServerUnavailable:
            self.doubt({owner})
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=place[0], participant=place[1], error=str(error))
            self._retry_later({owner})
        except StoreError as error:
            log.warning("removal_put_off", room=place[0], participant=place[1], error=str(error))
            self._retry_later({owner})

    def settle(self, place: Place, priority: Priority) -> asyncio.Task[Finding]:
        """Begin to agree about one identity, and go on whether or not anybody waits for it."""
        task = self._settling.get(place)
        if task is None or priority < Priority.SETTLING:
            task = asyncio.create_task(self.agree(place, priority), name=f"agree-{place[1]}")
            self._settling[place] = task
            self._tasks.add(task)  # also while a more urgent one has taken its place
            task.add_done_callback(lambda done: self._settled(place, done))
            self._on_change()
        return task

    def _settled(self, place: Place, task: asyncio.Task[Finding]) -> None:
        self._tasks.discard(task)
        if self._settling.get(place) is task:
            del self._settling[place]
            self._on_change()
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, StoreError):
            log.warning("agreeing_failed", room=self._room, participant=place[1], error=str(error))
        else:
            log.error("agreeing_failed", room=self._room, participant=place[1], exc_info=error)

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
                presence = self._roster.get((room, identity))
                if presence is None:
                    return Finding.ABSENT
                if only is not None:
                    presence = _with_tracks(presence, only)
                try:
                    return await self._mute_tracks(presence, sources)
                except (ParticipantGone, TrackGone):
                    if attempt:
                        raise
                    await self._look_at(room)  # they, or the track, may be gone in this very moment
        except MediaServerUnavailable:
            return Finding.UNANSWERED
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=room, participant=identity, error=str(error))
        return Finding.REJECTED

    async def _mute_tracks(self, presence: Presence, sources: frozenset[Source]) -> Finding:
        for track in presence.tracks_of(sources):
            if not track.muted:
                async with self._media.slot(presence.room, Priority.LIVE), self._lock(presence.identity):
                    await self._media.mute(presence.room, presence.identity, track.sid)
                    self._note_muted((presence.room, presence.identity), track)
        return silencing(presence, sources)

    def mute_also(
        self, places: Mapping[Place, Callable[[frozenset[Source]], None]], sources: frozenset[Source]
    ) -> None:
        """
        Mute too what these people publish within a second: who is just about to be heard is meant.

        Args:
            places: What is called for each, with the sources of which LiveKit has confirmed it.
        """
        now = asyncio.get_running_loop().time()
        self._mutings = {place: muting for place, muting in self._mutings.items() if muting.until > now}
        self._mutings |= {place: _Muting(sources, now + _LAG_S, on_muted) for place, on_muted in places.items()}

    def _mute_no_more(self, place: Place, given: frozenset[Source]) -> None:
        """What somebody publishes since they were given a source is not what a mute of before meant."""
        muting = self._mutings.get(place)
        if muting is not None:
            self._mutings[place] = replace(muting, sources=muting.sources - given)

    async def _mute_what_was_meant(self, place: Place) -> None:
        muting, presence = self._mutings[place], self._roster[place]
        live = frozenset(track.counts_as for track in presence.tracks_of(muting.sources) if not track.muted)
        if not live or muting.until <= asyncio.get_running_loop().time():
            return
        is_muted = await self.mute(*place, live) is Finding.MUTED
        if is_muted or await self.mute_late(*place, live, frozenset(track.sid for track in presence.tracks), FRESH_S):
            muting.on_muted(live)

    def _note_muted(self, place: Place, track: Track) -> None:
        """A sweep that had its list before must not take them for somebody who unmuted again."""
        known = self._roster.get(place)
        if known is not None:
            muted = tuple(replace(each, muted=True) if each.sid == track.sid else each for each in known.tracks)
            self._note(replace(known, tracks=muted))

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
        finding = await self._late(place[0], lambda: self.agree(place, Priority.REPAIR), within_s)
        return finding in {Finding.CHANGED, Finding.AGREED, Finding.SETTLING}

    async def stop_late(
        self, place: Place, sources: frozenset[Source], only: frozenset[TrackSid], within_s: float
    ) -> None:
        """Try again to stop these tracks, for `within_s` seconds."""
        await self._late(place[0], lambda: self.stop(place, sources, only), within_s)

    async def _late(self, room: LiveKitRoom, again: Callable[[], Awaitable[Finding]], within_s: float) -> Finding:
        async def attempt() -> Finding:
            try:
                await self.look({room})
            except MediaServerUnavailable:
                return Finding.UNANSWERED
            return await again()

        if within_s <= 0:
            return Finding.UNANSWERED
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda finding: finding.is_failure),
            wait=wait_exponential(multiplier=_FIRST_RETRY_S, max=1),
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
            async with self._media.slot(room, Priority.LIVE), self._lock(identity):
                return await self._stop_now(place, sources, only)
        except MediaServerUnavailable:
            self.doubt({await self._owner_of(identity)})
            return Finding.UNANSWERED
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=room, participant=identity, error=str(error))
            self._retry_later({await self._owner_of(identity)})
            return Finding.REJECTED

    async def _stop_now(self, place: Place, sources: frozenset[Source], only: frozenset[TrackSid] | None) -> Finding:
        presence = self._roster.get(place)
        if presence is None:
            return Finding.ABSENT
        tracks = presence.tracks_of(sources)
        if not tracks or not (only is None or any(track.sid in only for track in tracks)):
            return Finding.NO_TRACK
        away = tuple(source for source in presence.permission.allowed() if source not in sources)
        await self.note_before_change([presence])
        try:
            stopped = await self._media.allow(presence, away)
        except ParticipantGone:
            await self._look_for(place)
            if place in self._roster:
                raise
            return Finding.ABSENT
        self._note(stopped)
        state = await self._read()
        back = allowable(state, presence, self._roster.values())
        if not stopped.permission.allows_exactly(back):
            self._note(await self._media.allow(stopped, back))
        return Finding.STOPPED

    # --- What LiveKit reports ------------------------------------------------------------------------------------

    async def react(self, notice: Notice) -> None:
        """
        Make LiveKit agree about whom it has just reported something of; reports may come late, or in any order.

        Whoever has answered no offer of LiveKit's is in the room and heard, though it never reports that they joined:
        the track is then the first sign of them.
        """
        if notice.room not in (await self._read()).rooms:
            return  # it is somebody else's, by whatever name
        place = (notice.room, notice.identity)
        known = self._roster.get(place)
        is_known = known is not None and known.sid == notice.sid
        match notice.kind:
            case "participant_left":
                if is_known:  # else it is an earlier session of theirs that is over
                    self._drop(place)
                return
            case "track_unpublished":
                if known is not None and is_known and notice.track is not None:
                    self._published_at.pop(notice.track.sid, None)
                    left = _learning_from(_without_track(known, notice.track), notice.track)
                    self._note(left)
                    await self._look_for_bypasses([left])  # sound may have lost its picture
                return
            case "participant_joined" if notice.presence is not None and not is_known:
                if known is not None and known.joined_at_ms > notice.presence.joined_at_ms:
                    return  # an earlier session of theirs, told of late
                self._note(notice.presence)
                await self._note_new_sessions([notice.presence])
            case "track_published" if known is not None and is_known and notice.track is not None:
                others = _without_track(known, notice.track).tracks
                self._published_at[notice.track.sid] = asyncio.get_running_loop().time()
                self._note(_learning_from(replace(known, tracks=(*others, notice.track)), notice.track))
            case "track_published" if not await self._can_look_at(notice.room):
                self.repair({await self._owner_of(notice.identity)})
                return
            case _:
                pass
        found = self._roster.get(place)
        if found is None:
            return
        finding = await self.agree(place, Priority.REPAIR)
        if not self._is_stricter(found, await self._read()):
            await self.note_drift(found, finding, notice.kind)
        await self._look_for_bypasses([found])
        if notice.kind == "track_published" and place in self._mutings and place in self._roster:
            await self._mute_what_was_meant(place)

    def _is_stricter(self, found: Presence, state: MeetingState) -> bool:
        """Whether somebody has come with one of our tokens of while a decision was carried out; that is no drift."""
        call = call_for(state, found, remove_unknown=self._remove_unknown)
        return isinstance(call, Allow) and set(found.permission.allowed()) < set(call.sources)

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
        call = call_for(await self._read(), found, remove_unknown=self._remove_unknown)
        if call is None:
            return  # something else was decided meanwhile: it is right now, and was not repaired
        metrics.REPAIRS.labels(cause).inc()
        log.info("drift_repaired", room=found.room, participant=found.identity, cause=cause)
        self._on_drift(found, call.sources if isinstance(call, Allow) else ())

    async def _look_for_bypasses(self, presences: Sequence[Presence]) -> None:
        state, now = await self._read(), asyncio.get_running_loop().time()
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
                        PICTURE_S * 1.01, self.repair, {owner_of(presence.identity, state)}
                    )

    async def _can_look_at(self, room: LiveKitRoom) -> bool:
        try:
            return room not in await self.look({room})
        except MediaServerUnavailable:
            return False

    # --- Sweeping ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sweep, and retry what is due in between, until cancelled."""
        loop = asyncio.get_running_loop()
        sweep_at = loop.time() + self._sweep_s
        while True:
            await self._pause(min(sweep_at, self._next_look()) - loop.time())
            now = loop.time()
            is_sweep = now >= sweep_at
            people = frozenset(who for who, due in self._due.items() if due.at <= now)
            if not is_sweep and not people:
                continue  # woken only to look at the clock again
            if is_sweep:
                sweep_at = now + self._sweep_s
            self._postpone(people)  # unless they agree by then, or become due at once again meanwhile
            if self._media.answering:
                if is_sweep:
                    await self._attempt(self._before_sweep())
                await self._attempt(self.go_over(None if is_sweep else people))
                if is_sweep:
                    await self._attempt(self._after_sweep())

    def _next_look(self) -> float:
        return min((due.at for due in self._due.values()), default=math.inf)

    async def _attempt(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (MediaServerUnavailable, StoreError) as error:
            log.warning("sweep_failed", room=self._room, error=str(error))
        except Exception:  # one meeting's bug must not end its protection
            log.exception("sweep_failed", room=self._room)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._wake.wait()
        self._wake.clear()

    async def go_over(self, people: frozenset[ParticipantId] | None) -> None:
        """
        Compare LiveKit with the state and tell it what differs.

        Args:
            people: Only these; `None` for everybody.

        Raises:
            MediaServerUnavailable: LiveKit did not answer.
        """
        self._due_since_look.clear()
        state = await self._read()
        if people is None and self._roster:
            rooms = state.rooms_in_use() | {room for room, _ in self._roster}
        else:
            # People who left or were moved may be in any room that was ever used, known of or not.
            rooms = state.rooms
        silent = await self.look(rooms)
        listed = {track.sid for presence in self._roster.values() for track in presence.tracks}
        self._published_at = {sid: at for sid, at in self._published_at.items() if sid in listed}
        self._unaccompanied_since = {sid: at for sid, at in self._unaccompanied_since.items() if sid in listed}
        found, due = dict(self._roster), frozenset(self._due)
        calls = plan(state, found.values(), remove_unknown=self._remove_unknown, about=people)
        waiting = {
            owner_of(presence.identity, state)
            for presence in self._roster.values()
            if must_wait(state, presence, self._roster.values())
        }
        priority = Priority.SWEEP if people is None else Priority.REPAIR
        await self.note_before_change(found[call.room, call.identity] for call in calls if isinstance(call, Allow))
        findings = await asyncio.gather(
            *(self.agree((call.room, call.identity), priority) for call in calls), return_exceptions=True
        )
        failed = set()
        for call, finding in zip(calls, findings, strict=True):
            if isinstance(finding, BaseException):  # only now, when all the others have ended
                raise finding
            owner = owner_of(call.identity, state)
            place = (call.room, call.identity)
            if place in self._unrepaired or (people is None and owner not in due):
                await self.note_drift(found[place], finding, "sweep")
            if finding.is_failure:
                failed.add(owner)
            elif finding is Finding.CHANGED and owner in self._in_doubt:
                self._in_doubt[owner] = None
        called = {(call.room, call.identity) for call in calls}
        for place, (before, cause) in tuple(self._unrepaired.items()):
            is_looked_at = place[0] not in silent and (people is None or owner_of(place[1], state) in people)
            if is_looked_at and place not in called:
                # A call that went unanswered had its effect after all, or they are gone.
                finding = Finding.AGREED if place in self._roster else Finding.ABSENT
                await self.note_drift(before, finding, cause)
        await self._look_for_bypasses(
            [
                presence
                for presence in self._roster.values()
                if people is None or owner_of(presence.identity, state) in people
            ]
        )
        self._retry_later(waiting)  # until nobody else has the screen any more
        if not silent:
            # Whoever became due meanwhile is due for another look.
            agreed = frozenset(self._due if people is None else people) - failed - self._due_since_look
            self._clear(agreed)

    def _clear(self, agreed: Iterable[ParticipantId]) -> None:
        now = asyncio.get_running_loop().time()
        for person in tuple(agreed):
            if person in self._in_doubt:
                sure_at = self._in_doubt[person]
                if sure_at is None:
                    self._in_doubt[person] = now + self._media.timeout_s
                if sure_at is None or now < sure_at:
                    continue
                del self._in_doubt[person]
            self._due.pop(person, None)
            self._on_change()

    async def close(self) -> None:
        """End what is under way."""
        _RECONCILERS.discard(self)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _without_track(presence: Presence, track: Track) -> Presence:
    return replace(presence, tracks=tuple(other for other in presence.tracks if other.sid != track.sid))


def _learning_from(presence: Presence, track: Track) -> Presence:
    """Somebody, with what their track tells of them: it may be gone before a list shows it."""
    return replace(presence, publishes_once=presence.publishes_once or track.is_streamed_in)


def _with_tracks(presence: Presence, only: frozenset[TrackSid]) -> Presence:
    return replace(presence, tracks=tuple(track for track in presence.tracks if track.sid in only))
