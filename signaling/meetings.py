"""The meetings that this process looks after: begun when somebody comes, let go of when nothing is kept of them."""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog

from signaling import metrics
from signaling.audience import Audience
from signaling.background import Background
from signaling.clock import NodeClock
from signaling.closed_rooms import ClosedRooms
from signaling.core.changes import ConnectionLost
from signaling.entrance import Entrance
from signaling.errors import NoSuchMeeting, StoreError
from signaling.handover import finish, leave
from signaling.identifiers import LiveKitRoom, NodeId, RoomId, room_of
from signaling.livekit.contract import MediaServer, Notice
from signaling.livekit.webhooks import Webhook
from signaling.meeting.meeting import Meeting, Rules
from signaling.meeting.tasks import until_done
from signaling.messages import moderation
from signaling.presence import BEAT_S, Presence
from signaling.stores.contract import Commit, Store

log = structlog.get_logger(__name__)


class Meetings:
    """
    All meetings of one process; an asynchronous context.

    Args:
        clock: Seconds since the epoch.
        node: This process.
    """

    def __init__(
        self,
        store: Store,
        media: MediaServer,
        rules: Rules,
        audience: Audience,
        entrance: Entrance,
        *,
        clock: NodeClock,
        node: NodeId,
    ) -> None:
        self._node = node
        self._presence = Presence(store, audience, node, clock=clock)
        self._store = store
        self._media = media
        self._rules = rules
        self._audience = audience
        self._entrance = entrance
        self._clock = clock
        self._meetings: dict[RoomId, Meeting] = {}
        self._engaged: defaultdict[RoomId, int] = defaultdict(int)
        self._interrupted: set[RoomId] = set()
        """Where people may still have places by sessions of this process that are over."""
        self._background = Background()
        self._warns_of_missing_webhooks = True
        self._is_open = True
        self._is_handed_over = False
        self.closed = ClosedRooms(store, media, self._is_in_use, clock=clock, look_s=rules.sweep_s)

    # --- One meeting ---------------------------------------------------------------------------------------------

    def __getitem__(self, room: RoomId) -> Meeting:
        """
        A meeting, kept already or about to begin.

        Raises:
            StoreError: This process ends.
        """
        if not self._is_open:
            raise StoreError("this process ends: nothing is begun any more")
        meeting = self._meetings.get(room)
        if meeting is None:
            meeting = Meeting(
                room,
                self._store,
                self._media,
                self._rules,
                clock=self._clock,
                entrance=self._entrance,
                closed=self.closed,
                node=self._node,
                on_forgotten=lambda: self._let_go_if_unused(room),
                on_people_in_livekit=self._note_people_in_livekit,
                on_state_changed=lambda changed: self._on_state_changed(room, changed),
            )
            self._meetings[room] = meeting
            self._store.follow(room)
            metrics.MEETINGS.inc()
            meeting.start()
        return meeting

    def get(self, room: RoomId) -> Meeting | None:
        """A meeting that this process looks after already."""
        return self._meetings.get(room)

    def rooms(self) -> Sequence[RoomId]:
        """The meetings that this process looks after."""
        return tuple(self._meetings)

    async def that_goes_on(self, room: RoomId) -> Meeting:
        """
        A meeting that has begun and is not over.

        Raises:
            NoSuchMeeting: There is none.
            StoreError: The store does not answer.
        """
        record = await self._store.read(room)
        if record is None or not record.state.goes_on:
            raise NoSuchMeeting(f"there is no meeting {room}")
        return self[room]

    @contextmanager
    def engaged(self, room: RoomId) -> Iterator[None]:
        """Somebody comes or is taken back meanwhile, so the meeting is looked after, though it may not be kept yet."""
        self._engaged[room] += 1
        try:
            yield
        finally:
            self._engaged[room] -= 1
            if not self._engaged[room]:
                del self._engaged[room]
                self._let_go_if_unused(room)

    def _let_go_if_unused(self, room: RoomId) -> None:
        """Nothing need run for a meeting of which nothing is kept, unless somebody begins it."""
        if room in self._meetings and self._is_unused(room):
            self.run_in_background(self._let_go_of(room))

    def _is_unused(self, room: RoomId) -> bool:
        return room not in self._engaged and room not in self._audience

    async def _let_go_of(self, room: RoomId) -> None:
        meeting = self._meetings.get(room)
        if meeting is None:
            return
        async with self._store.turn(room):
            pass  # whoever still waited for a turn has had it
        is_over = (await until_done(meeting.journal.record)).revision == 0
        if not is_over:
            is_ours = await self._store.look_after(room, self._node, now=self._clock())
            is_over = not is_ours and not meeting.due.count() and not meeting.lease.is_making_up  # for this process
        if is_over and self._is_unused(room) and self._meetings.get(room) is meeting:
            del self._meetings[room]
            self._store.unfollow(room)
            metrics.MEETINGS.dec()
            try:
                await meeting.tasks.finish()  # whoever left last waits until they are removed from LiveKit
            finally:
                await meeting.close()

    def begin_anew(self, room: RoomId) -> None:
        """Forget what this process knows of a meeting: whoever comes to it here finds it as it is kept."""
        if not self._is_open or (meeting := self._meetings.pop(room, None)) is None:
            return
        self._store.unfollow(room)
        metrics.MEETINGS.dec()
        self._interrupted.add(room)
        self.run_in_background(self._find_again(meeting))

    async def _find_again(self, meeting: Meeting) -> None:
        await meeting.close()
        await self._look_at_places(meeting.room)

    async def _is_in_use(self, room: LiveKitRoom) -> bool:
        record = await self._store.read(room_of(room))
        return record is not None and record.state.goes_on and room in record.state.rooms

    # --- All meetings --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Go on with what earlier processes have left, and begin to look after meetings.

        Raises:
            StoreError: The store does not answer.
        """
        await self.beat()
        self.run_in_background(self._beat_again())
        self.run_in_background(self.closed.run())

    async def beat(self) -> None:
        """
        Say that this process lives, and go on with what processes that do not have left.

        Raises:
            StoreError: The store does not answer.
        """
        await self._presence.beat()
        for room in await self._store.left_alone():
            if room not in self._meetings:
                await self._take_up(room)
        for room in self._meetings.keys() | self._interrupted:
            if room in self._meetings or room in self._interrupted:  # still
                await self._look_at_places(room)

    async def _beat_again(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self.beat()
            except StoreError as error:
                log.warning("beat_failed", error=str(error))
            except Exception:  # a bug must not make this process count as dead
                log.exception("beat_failed")

    async def _take_up(self, room: RoomId) -> None:
        """Look after a meeting if nobody does: everybody in it has the grace period to return."""
        if not await self._store.look_after(room, self._node, now=self._clock()):
            return  # a process that lives sees to it
        meeting = self[room]
        record = await meeting.journal.record()
        meeting.journal.note(record)
        await meeting.places.lose_connections(self._presence.lost(record.state, even_away=True))
        meeting.tasks.run_in_background(meeting.turns.finish_staged())
        meeting.tasks.run_in_background(meeting.rooms.restore())
        if record.state.doomed:
            meeting.tasks.run_in_background(meeting.rooms.delete_doomed())

    async def _look_at_places(self, room: RoomId) -> None:
        """Whoever is connected nowhere any more has the grace period to return; what fails is tried again."""
        try:
            with self.engaged(room):
                await self._give_grace(self[room])
        except StoreError as error:
            log.warning("places_not_looked_at", room=room, error=str(error))
        else:
            self._interrupted.discard(room)

    async def _give_grace(self, meeting: Meeting) -> None:
        if lost := self._presence.lost((meeting.journal.newest or await meeting.journal.record()).state):
            await meeting.places.lose_connections(lost)
        await self._presence.let_in_again(meeting)

    def restore_rooms(self) -> None:
        """LiveKit is back, perhaps without its rooms."""
        for meeting in self._meetings.values():
            meeting.tasks.run_in_background(meeting.rooms.restore_once())

    def note(self, commit: Commit) -> None:
        """A commit was made: what follows from it in its meeting, and what is told of it."""
        meeting = self._meetings.get(commit.entry.room)
        if meeting is None:
            return
        meeting.journal.note(commit.record, commit.entry)
        self._audience.tell(commit)
        if commit.entry.node != self._node and any(isinstance(each, ConnectionLost) for each in commit.entry.changes):
            meeting.tasks.run_in_background(until_done(partial(self._presence.let_in_again, meeting)))
        if not commit.record.state.goes_on and commit.entry.node != self._node:
            # Whoever ended it may be gone before its rooms are.
            meeting.tasks.run_in_background(meeting.rooms.delete_doomed())

    @property
    def is_open(self) -> bool:
        """Whether anything is begun any more."""
        return self._is_open

    def react(self, webhook: Webhook) -> None:
        """Begin with what follows from something that LiveKit has reported."""
        self._warns_of_missing_webhooks = False
        if webhook.notice is None:
            return
        meeting = self._meetings.get(room_of(webhook.notice.room))
        if meeting is not None:
            meeting.tasks.run_in_background(meeting.react(webhook.notice))
        else:
            self.run_in_background(self._react_for_another(webhook.notice))
        if webhook.notice.kind in {"participant_joined", "track_published"}:
            self.run_in_background(self.closed.react(webhook.notice.room))

    async def _react_for_another(self, notice: Notice) -> None:
        """Something was reported of a meeting with nobody in it but by other processes."""
        if await until_done(partial(self._is_in_use, notice.room)):
            room = room_of(notice.room)
            with self.engaged(room):
                await self[room].react(notice)

    def _note_people_in_livekit(self) -> None:
        if self._warns_of_missing_webhooks:
            self._warns_of_missing_webhooks = False
            log.warning("webhooks_missing", consequence=f"drift is repaired within {self._rules.sweep_s:g} s only")

    def _on_state_changed(self, room: RoomId, changed: moderation.StateChanged) -> None:
        meeting = self._meetings.get(room)
        if meeting is not None:
            newest = meeting.journal.newest
            state = None if newest is None else newest.state
            self._audience.tell_watchers(room, meeting.view.watchers, state, changed)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that ends with this process at the latest."""
        if not self._is_open:  # nobody would end it
            work.close()
            return
        self._background.run(work)

    async def hand_over(self, *, within_s: float) -> None:
        """Begin nothing any more, finish within that time what somebody waits for, and leave everybody's place."""
        self._is_open = False
        await finish(self._meetings.values(), within_s=within_s)
        await self._background.end()  # a beat after the last one would have others wait for it
        await leave(self._audience, self._presence.end)
        self._is_handed_over = True

    async def close(self) -> None:
        """End all that runs for them; what was committed stays in the store."""
        self._is_open = False
        meetings, self._meetings = self._meetings, {}
        for meeting in meetings.values():
            metrics.MEETINGS.dec()
            await meeting.close()
        await self._background.end()
        for session in tuple(self._audience.everybody()):
            self._audience.drop(session)
        if not self._is_handed_over:
            await leave(self._audience, self._presence.end)
