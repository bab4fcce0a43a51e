"""One meeting, as this process looks after it: its parts put together."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from signaling.closed_rooms import ClosedRooms
from signaling.entrance import Entrance
from signaling.identifiers import NodeId, RoomId, new_node_id
from signaling.livekit.contract import MediaServer, Notice
from signaling.meeting.agreement import Agreement
from signaling.meeting.clock import Clock
from signaling.meeting.due import Due
from signaling.meeting.enforcing import Enforcing
from signaling.meeting.incidents import Incidents
from signaling.meeting.journal import Journal
from signaling.meeting.lease import Lease, LeasedMediaServer
from signaling.meeting.muted import JustMuted
from signaling.meeting.places import Places
from signaling.meeting.reconciler import Reconciler
from signaling.meeting.rooms import Rooms
from signaling.meeting.roster import Roster
from signaling.meeting.tasks import Tasks
from signaling.meeting.tracks import Tracks
from signaling.meeting.turn import Turns
from signaling.meeting.view import Attendance, View
from signaling.messages import moderation
from signaling.stores.contract import Store


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every meeting of a module, as it was set."""

    screen_share_requires_permission: bool = False
    remove_unknown: bool = False
    sweep_s: float = 5
    empty_s: float = 60
    grace_s: float = 10


class Meeting:
    """
    One meeting, as this process looks after it.

    Args:
        clock: Seconds since the epoch.
        entrance: Where people wait to be let in.
        closed: What is kept closed of meetings that have ended.
        node: This process.
        on_forgotten: Called when the meeting is over and nothing of it is kept any more.
        on_people_in_livekit: Called before each sweep, if LiveKit has listed anybody before.
        on_state_changed: Called with what watchers are to be told.

    Attributes:
        journal: What is kept of it, and the only one that writes.
        roster: Who is in LiveKit.
        due: Who is to be looked at.
        just_muted: Who was muted in this moment.
        agreement: What tells LiveKit of people.
        lease: The turns that are taken here.
        turns: From a command to a commit.
        rooms: Its LiveKit rooms.
        places: Its members' places.
        timer: What ends by itself.
        view: As moderators see it.
        attendance: As joiners see who is there.
        incidents: What the looks have shown.
        reconciler: What keeps LiveKit agreeing.
        tasks: What runs for it.
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
        node: NodeId | None = None,
        on_forgotten: Callable[[], None] = lambda: None,
        on_people_in_livekit: Callable[[], None] = lambda: None,
        on_state_changed: Callable[[moderation.StateChanged], None] = lambda _: None,
    ) -> None:
        entrance = Entrance(clock) if entrance is None else entrance
        closed = ClosedRooms(store, media, clock=clock) if closed is None else closed
        media = LeasedMediaServer(media)
        node = new_node_id() if node is None else node
        remove_unknown = rules.remove_unknown
        self.just_muted = just_muted = JustMuted()
        self.room = room
        self.tasks = tasks = Tasks(room)
        self.journal = journal = Journal(
            room,
            store,
            clock=clock,
            screen_share_requires_permission=rules.screen_share_requires_permission,
            node=node,
        )

        async def looks_after() -> bool:
            return await store.look_after(room, node, now=clock())

        self.due = due = Due(longest_pause_s=rules.sweep_s, doubt_s=media.timeout_s)
        self.roster = roster = Roster(journal, media, due, tasks)
        self.agreement = agreement = Agreement(journal, media, roster, due, just_muted, remove_unknown=remove_unknown)
        tracks = Tracks(journal, media, roster, due, just_muted, agreement)
        enforcing = Enforcing(
            journal,
            roster,
            due,
            just_muted,
            agreement,
            tracks,
            tasks,
            clock=clock,
            remove_unknown=remove_unknown,
        )
        self.lease = lease = Lease(store, media, journal, due, tasks)
        self.turns = turns = Turns(lease, media, journal, roster, due, enforcing, tasks, clock=clock)
        self.rooms = rooms = Rooms(store, media, journal, due, closed, on_forgotten, looks_after=looks_after)
        self.places = places = Places(journal, due, agreement, tasks, entrance, clock=clock, grace_s=rules.grace_s)
        self.incidents = incidents = Incidents(
            journal,
            roster,
            due,
            agreement,
            turns,
            tasks,
            clock=clock,
            remove_unknown=remove_unknown,
            looks_after=looks_after,
        )
        self.reconciler = Reconciler(
            media,
            journal,
            roster,
            due,
            agreement,
            tracks,
            turns,
            incidents,
            remove_unknown=remove_unknown,
            sweep_s=rules.sweep_s,
            looks_after=looks_after,
            on_people_in_livekit=on_people_in_livekit,
        )
        self.timer = Clock(
            journal,
            turns,
            places,
            rooms,
            tasks,
            entrance,
            clock=clock,
            empty_s=rules.empty_s,
            looks_after=looks_after,
        )
        self.view = View(journal, roster, due, on_state_changed)
        self.attendance = Attendance()

    def start(self) -> None:
        """Begin to keep LiveKit in agreement."""
        self.tasks.run_in_background(self.reconciler.run())

    async def react(self, notice: Notice) -> None:
        """Do what follows from something that LiveKit has reported."""
        if notice.kind == "room_finished":
            await self.rooms.note_finished(notice.room)
        else:
            await self.reconciler.react(notice)

    async def close(self) -> None:
        """End all that runs for this meeting; its state stays in the store."""
        self.timer.stop()
        self.view.stop()
        await self.tasks.close()
        await self.agreement.close()
        self.due.close()
