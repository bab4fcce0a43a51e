"""Who is in LiveKit, as far as is known, and with what they came."""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final
from weakref import WeakValueDictionary

import structlog

from signaling.core.changes import CameSeen
from signaling.core.commands import NoteCame
from signaling.core.effects import Presence, Priority, Track
from signaling.core.enforcement import left_by_others, unnoted
from signaling.core.state import CameInto, MeetingState, came_into_both
from signaling.errors import MediaServerRejected, MediaServerUnavailable, StoreError
from signaling.identifiers import CONTROLLER, Identity, LiveKitRoom, ParticipantId, TrackSid
from signaling.livekit.contract import MediaServer
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.tasks import Tasks, until_done

log = structlog.get_logger(__name__)

Place = tuple[LiveKitRoom, Identity]
LAG_S: Final = 1.0
"""How long what LiveKit has reported of a track may be missing in its lists; and how long a mute meets new tracks."""


class Roster:
    """
    What LiveKit was last seen to hold of a meeting's people.

    Attributes:
        on_change: Called when what is known of LiveKit may have changed.
    """

    def __init__(self, journal: Journal, media: MediaServer, due: Due, tasks: Tasks) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._journal = journal
        self._media = media
        self._due = due
        self._tasks = tasks
        self._known: dict[Place, Presence] = {}
        self._told_at: dict[Place, float] = {}
        self._listed_at: dict[LiveKitRoom, float] = {}
        self._published_at: dict[TrackSid, float] = {}
        self._locks: WeakValueDictionary[Identity, asyncio.Lock] = WeakValueDictionary()
        self._came: CameInto = {}
        """What counts already, and is being committed."""

    # --- Who is there --------------------------------------------------------------------------------------------

    @property
    def presences(self) -> Collection[Presence]:
        """Everybody in LiveKit, as of the last look."""
        return self._known.values()

    def presence(self, room: LiveKitRoom, identity: Identity) -> Presence | None:
        """One identity as of the last look."""
        return self._known.get((room, identity))

    def rooms(self) -> frozenset[LiveKitRoom]:
        """The rooms where anybody is, as of the last look."""
        return frozenset(room for room, _ in self._known)

    def copy(self) -> Mapping[Place, Presence]:
        """Everybody in LiveKit, as of the last look, by place."""
        return dict(self._known)

    def places_of(self, state: MeetingState, participant: ParticipantId) -> Iterator[Place]:
        """Where somebody belongs; or where they are, if they have never joined."""
        room, identity = state.room_of(participant), Identity(participant)
        if room is not None:
            yield room, identity
        else:
            yield from [place for place in self._known if place[1] == identity]

    def present(self, state: MeetingState) -> Mapping[ParticipantId, Presence]:
        """Who is where they belong, or has never joined, as of the last look; to be read before the next."""
        return _Present(self._known, state)

    def lock(self, identity: Identity) -> asyncio.Lock:
        """What whoever tells LiveKit of an identity holds: calls about one never overlap."""
        return self._locks.setdefault(identity, asyncio.Lock())

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
        if len(wanted) == 1:
            try:
                await self.look_at(wanted[0])
            except MediaServerRejected:
                return frozenset(wanted)
            return frozenset()
        answers = await asyncio.gather(*(self.look_at(room) for room in wanted), return_exceptions=True)
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

    async def look_at(self, room: LiveKitRoom) -> None:
        """
        List who is in one LiveKit room.

        Raises:
            MediaServerError: LiveKit did not answer, or not usefully.
        """
        async with self._media.slot(room, Priority.REPAIR):
            began_at = asyncio.get_running_loop().time()
            presences = await self._list(room)
        state = await self._journal.effective_state()
        if self._listed_at.get(room, began_at) > began_at:
            return  # a list that was asked for later came first
        self._listed_at[room] = began_at
        here = {listed.identity for listed in presences}
        gone = {place for place in (*self._known, *self._told_at) if place[1] not in here and place[0] == room}
        changed: list[Presence] = []
        taken: CameInto = {}
        for listed in presences:
            place = (room, listed.identity)
            known = self._known.get(place)
            # What LiveKit answered to a call is newer than a list that was asked for before.
            if known is listed or self._told_at.get(place, began_at) > began_at:
                continue
            merged = listed if known is None else self._merged(known, listed)
            if known is not None and not self._is_being_told(place):
                left = left_by_others(state, known, merged)
                if left is not None:
                    taken = came_into_both(taken, {room: {ParticipantId(place[1]): left}})
            self._known[place] = merged
            changed.append(merged)
        for place in gone:
            if self._told_at.get(place, began_at) <= began_at:
                self.drop(place)
        # Older lists do not count any more, and newer ones are newer than this.
        self._told_at = {place: at for place, at in self._told_at.items() if at > began_at or place[0] != room}
        if taken:
            await self._note_came(taken)
        if changed:
            await self.note_new_sessions(changed)
        self.on_change()

    async def look_for(self, place: Place) -> None:
        """List the room of somebody about whom LiveKit did not know: they may be coming or going in this moment."""
        presences = await self._list(place[0])
        self.drop(place)
        for listed in presences:
            if listed.identity == place[1]:
                self.note(listed)

    async def _list(self, room: LiveKitRoom) -> tuple[Presence, ...]:
        state = await self._journal.effective_state()
        if room not in state.rooms - state.doomed:
            return ()  # of a meeting that is over, say
        return await self._media.list_presences(room, make=state.is_in_use(room))

    def _is_being_told(self, place: Place) -> bool:
        """Whether a call about somebody is under way, or may yet take effect: what is seen of them may be our doing."""
        lock, who = self._locks.get(place[1]), ParticipantId(place[1])
        return (lock is not None and lock.locked()) or who in self._due or self._due.is_in_doubt(who)

    def _merged(self, known: Presence, listed: Presence) -> Presence:
        """What a list says of somebody, with what is known of this session of theirs beside it."""
        if known.sid != listed.sid:
            return listed
        now, sids = asyncio.get_running_loop().time(), {track.sid for track in listed.tracks}
        lagging = tuple(
            track
            for track in known.tracks
            if track.sid not in sids and self._published_at.get(track.sid, -math.inf) + LAG_S > now
        )
        if lagging:
            listed = replace(listed, tracks=(*listed.tracks, *lagging))
        return _as_known(listed, known)

    # --- Being told ----------------------------------------------------------------------------------------------

    def note(self, presence: Presence) -> None:
        """LiveKit has answered, or reported, how somebody is now."""
        place = (presence.room, presence.identity)
        known = self._known.get(place)
        if known is not None and known.sid == presence.sid:
            presence = _as_known(presence, known)
        self._known[place] = presence
        self._told_at[place] = asyncio.get_running_loop().time()
        self.on_change()

    def note_removed(self, place: Place) -> None:
        """LiveKit has removed somebody."""
        self._known.pop(place, None)
        self._told_at[place] = asyncio.get_running_loop().time()
        self.on_change()

    def note_muted(self, place: Place, track: Track) -> None:
        """A sweep that had its list before must not take them for somebody who unmuted again."""
        known = self._known.get(place)
        if known is not None:
            muted = tuple(replace(each, muted=True) if each.sid == track.sid else each for each in known.tracks)
            self.note(replace(known, tracks=muted))

    def note_published(self, known: Presence, track: Track) -> None:
        """LiveKit has reported a track of somebody who is known."""
        others = _without_track(known, track).tracks
        self._published_at[track.sid] = asyncio.get_running_loop().time()
        self.note(_learning_from(replace(known, tracks=(*others, track)), track))

    def note_unpublished(self, known: Presence, track: Track) -> Presence:
        """LiveKit has reported that a track is gone; how they are now."""
        self._published_at.pop(track.sid, None)
        left = _learning_from(_without_track(known, track), track)
        self.note(left)
        return left

    def drop(self, place: Place) -> None:
        """Nothing is known of somebody any more."""
        self._known.pop(place, None)
        self._told_at.pop(place, None)

    def tracks(self) -> frozenset[TrackSid]:
        """All tracks that are there; what was reported of others is forgotten."""
        listed = frozenset(track.sid for presence in self._known.values() for track in presence.tracks)
        self._published_at = {sid: at for sid, at in self._published_at.items() if sid in listed}
        return listed

    # --- With what they came -------------------------------------------------------------------------------------

    async def note_new_sessions(self, presences: Iterable[Presence]) -> None:
        """Whoever is back is known by what they first came with, if that was noted."""
        if found := unnoted(await self._journal.effective_state(), presences):
            await self._note_came(found)

    async def note_before_change(self, presences: Iterable[Presence]) -> None:
        """Have noted with what those of these people came who never joined: LiveKit is about to be told of them."""
        if found := unnoted(await self._journal.effective_state(), presences, about_to_change=True):
            await self._note_came(found)

    async def _note_came(self, came: CameInto) -> None:
        """Remember with what people came who never joined; if the store does not answer, it counts all the same."""
        self._came = came_into_both(self._came, came)
        self._journal.anticipate(CameSeen, CameSeen(self._came))
        try:
            await self._commit_came(came)
        except StoreError as error:
            log.warning("note_put_off", room=self._journal.room, error=str(error))
            self._tasks.run_in_background(until_done(lambda: self._commit_came(came)))

    async def _commit_came(self, came: CameInto) -> None:
        await self._journal.decide(CONTROLLER, lambda _: NoteCame(came))
        left = {
            room: {who: what for who, what in people.items() if came.get(room, {}).get(who) != what}
            for room, people in self._came.items()
        }
        self._came = {room: people for room, people in left.items() if people}
        self._journal.anticipate(CameSeen, CameSeen(self._came) if self._came else None)


class _Present(Mapping[ParticipantId, Presence]):
    """Who is where they belong, or has never joined. Most commands are about few of many, who are found one by one."""

    def __init__(self, known: Mapping[Place, Presence], state: MeetingState) -> None:
        self._known = known
        self._state = state
        self._all: dict[ParticipantId, Presence] | None = None

    def __getitem__(self, participant: ParticipantId) -> Presence:
        room = self._state.room_of(participant)
        return self._everybody[participant] if room is None else self._known[room, Identity(participant)]

    def __iter__(self) -> Iterator[ParticipantId]:
        return iter(self._everybody)

    def __len__(self) -> int:
        return len(self._everybody)

    @property
    def _everybody(self) -> dict[ParticipantId, Presence]:
        if self._all is None:
            self._all = {
                ParticipantId(presence.identity): presence
                for presence in self._known.values()
                if self._state.room_of(ParticipantId(presence.identity)) in {None, presence.room}
            }
        return self._all


def _as_known(presence: Presence, known: Presence) -> Presence:
    """Somebody, with what is known of this session of theirs for good."""
    if not known.publishes_once or presence.publishes_once:
        return presence
    return replace(presence, publishes_once=True)


def _without_track(presence: Presence, track: Track) -> Presence:
    return replace(presence, tracks=tuple(other for other in presence.tracks if other.sid != track.sid))


def _learning_from(presence: Presence, track: Track) -> Presence:
    """Somebody, with what their track tells of them: it may be gone before a list shows it."""
    return replace(presence, publishes_once=presence.publishes_once or track.is_streamed_in)
