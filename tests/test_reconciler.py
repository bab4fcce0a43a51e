"""What keeps LiveKit agreeing: looking, telling, telling again, and never telling what holds no longer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import structlog.testing
from livekit.protocol import models

from signaling import metrics
from signaling.core.applying import apply
from signaling.core.changes import (
    Change,
    Departed,
    Ended,
    Entered,
    Moved,
    PopoutIssued,
    PresenterSet,
    Restricted,
    RoomDeleted,
    Unrestricted,
)
from signaling.core.effects import Finding, Presence, Priority, Track
from signaling.core.participants import ALL_SOURCES, Kind, Role, Source
from signaling.core.state import MeetingState, Member, Popout, new_meeting
from signaling.errors import MediaServerUnavailable, StoreError
from signaling.identifiers import BreakoutId, Identity, LiveKitRoom, ParticipantId, RoomId, TrackSid
from signaling.livekit.contract import Notice
from signaling.livekit.room_service import RoomService
from signaling.meeting.agreement import Agreement
from signaling.meeting.due import Due
from signaling.meeting.incidents import Incidents
from signaling.meeting.journal import Journal
from signaling.meeting.muted import JustMuted
from signaling.meeting.reconciler import Reconciler
from signaling.meeting.roster import Place, Roster
from signaling.meeting.tasks import Tasks
from signaling.meeting.tracks import Tracks
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import Call, FakeRoomService, Fault
from tests.meeting_on_fake import until

if TYPE_CHECKING:
    from signaling.meeting.turn import Turns

ROOM = LiveKitRoom("standup")
RED = LiveKitRoom("standup:red")
ALICE, BOB, CAROL = (ParticipantId(name) for name in ("alice", "bob", "carol"))
TIMEOUT_S = 0.25
NEVER_S = 600.0
MICROPHONE = frozenset({Source.MICROPHONE})
EVERY_SOURCE = models.ParticipantPermission(
    can_subscribe=True,
    can_publish=True,
    can_publish_sources=[models.CAMERA, models.MICROPHONE, models.SCREEN_SHARE, models.SCREEN_SHARE_AUDIO],
)
WITHOUT_SCREEN = models.ParticipantPermission(
    can_subscribe=True, can_publish=True, can_publish_sources=[models.CAMERA, models.MICROPHONE]
)
EVERYTHING = models.ParticipantPermission(can_subscribe=True, can_publish=True)
NOTHING = models.ParticipantPermission(can_subscribe=True)


def place(participant: str, room: LiveKitRoom = ROOM) -> Place:
    return room, Identity(participant)


class ReadOnly(Journal):
    """The journal of a meeting whose state is what a test says, and of which nothing is told."""

    def __init__(self, stage: "OnFake") -> None:
        super().__init__(RoomId(ROOM), MemoryStore(), clock=time.time)
        self._stage = stage

    async def effective_state(self) -> MeetingState:
        return await self._stage.read()


class OnFake:
    """A state to agree with, and a reconciler that makes the fake agree."""

    def __init__(self, fake: FakeRoomService, media: RoomService) -> None:
        self.fake = fake
        self.media = media
        self.state: MeetingState = new_meeting(RoomId(ROOM), screen_share_requires_permission=False)
        self.errors: list[Exception] = []
        """What reading the state raises, before it works again."""
        self.sweep_errors: list[Exception] = []
        self.reads = 0
        self.sweeps = 0
        self.reconciler = self.another()

    def another(self, *, sweep_s: float = NEVER_S, remove_unknown: bool = False) -> Reconciler:
        journal, tasks, just_muted = ReadOnly(self), Tasks(RoomId(ROOM)), JustMuted()
        self.tasks = tasks
        self.due = Due(longest_pause_s=sweep_s, doubt_s=self.media.timeout_s)
        self.roster = Roster(journal, self.media, self.due, tasks)
        self.agreement = Agreement(
            journal, self.media, self.roster, self.due, just_muted, remove_unknown=remove_unknown
        )
        self.tracks = Tracks(journal, self.media, self.roster, self.due, just_muted, self.agreement)
        turns = cast("Turns", SimpleNamespace(finish_staged=self._before_sweep))

        async def looks_after() -> bool:
            return True

        incidents = Incidents(
            journal,
            self.roster,
            self.due,
            self.agreement,
            turns,
            tasks,
            clock=time.time,
            remove_unknown=remove_unknown,
            looks_after=looks_after,
        )
        self.reconciler = Reconciler(
            self.media,
            journal,
            self.roster,
            self.due,
            self.agreement,
            self.tracks,
            turns,
            incidents,
            remove_unknown=remove_unknown,
            sweep_s=sweep_s,
            looks_after=looks_after,
            on_people_in_livekit=lambda: None,
        )
        return self.reconciler

    async def close(self) -> None:
        """End what is under way."""
        await self.tasks.close()
        await self.agreement.close()
        self.due.close()

    async def read(self) -> MeetingState:
        self.reads += 1
        if self.errors:
            raise self.errors.pop()
        return self.state

    async def _before_sweep(self) -> None:
        self.sweeps += 1
        if self.sweep_errors:
            raise self.sweep_errors.pop()

    def decide(self, *changes: Change) -> None:
        self.state = apply(self.state, changes)

    def restrict(self) -> None:
        self.decide(Restricted(Source.MICROPHONE, frozenset()))

    def unrestrict(self) -> None:
        self.decide(Unrestricted(Source.MICROPHONE))

    def enter(self, *participants: ParticipantId, role: Role = Role.USER) -> None:
        """Join the signaling and LiveKit, with what the state allows by then."""
        for participant in participants:
            self.decide(Entered(participant, Member(role, Kind.USER, joined_at=0)))
            self.rejoin(participant)

    def open_red(self) -> None:
        """Have a breakout."""
        self.state = replace(self.state, rooms=self.state.rooms | {RED})
        self.fake.create_room(RED)

    def rejoin(self, participant: str, permission: models.ParticipantPermission | None = None) -> None:
        """Enter LiveKit, by default with the rights of a token from before any restriction."""
        self.fake.join(ROOM, participant, permission=permission or EVERY_SOURCE)

    def may(self, participant: str, source: str = "microphone") -> bool:
        return self.fake.may_publish(ROOM, participant, source)

    def calls(self, method: str | None = None) -> list[Call]:
        return [call for call in self.fake.calls if method in {None, call.method}]

    def methods(self) -> list[str]:
        return [call.method for call in self.fake.calls]

    async def look(self) -> None:
        await self.roster.look({ROOM})
        self.fake.calls.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reconciler.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            await self.close()


@pytest.fixture
async def media(fake: FakeRoomService) -> AsyncIterator[RoomService]:
    async with RoomService(fake.url, fake.api_key, fake.api_secret, timeout_s=TIMEOUT_S) as service:
        yield service


@pytest.fixture
async def meeting(fake: FakeRoomService, media: RoomService) -> AsyncIterator[OnFake]:
    """Alice moderates; Bob and Carol are there. All is agreed."""
    fake.create_room(ROOM)
    on_fake = OnFake(fake, media)
    on_fake.enter(ALICE, role=Role.MODERATOR)
    on_fake.enter(BOB, CAROL)
    await on_fake.look()
    yield on_fake
    await on_fake.close()


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Put the event loop's clock forward."""
    loop = asyncio.get_event_loop()
    clock, ahead_s = loop.time, 0.0

    def pass_time(seconds: float) -> None:
        nonlocal ahead_s
        ahead_s += seconds

    monkeypatch.setattr(loop, "time", lambda: clock() + ahead_s)
    return pass_time


async def whatever_is_due_has_begun() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def now() -> float:
    return asyncio.get_running_loop().time()


def overlaps(calls: Iterable[Call]) -> bool:
    in_order = sorted(calls, key=lambda call: call.arrived_at)
    return any(later.arrived_at < earlier.answered_at for earlier, later in pairwise(in_order))


# --- Agreeing about one identity ---------------------------------------------------------------------------------


async def test_whoever_agrees_costs_no_call(meeting: OnFake) -> None:
    assert await meeting.agreement.agree(place(BOB), Priority.LIVE) is Finding.AGREED
    assert meeting.methods() == []


async def test_whoever_is_not_there_is_absent(meeting: OnFake) -> None:
    assert await meeting.agreement.agree(place("zoe"), Priority.LIVE) is Finding.ABSENT
    assert meeting.methods() == []


async def test_whoever_differs_is_told_once(meeting: OnFake) -> None:
    meeting.restrict()
    assert await meeting.agreement.agree(place(BOB), Priority.LIVE) is Finding.CHANGED
    assert not meeting.may(BOB)
    assert meeting.methods() == ["UpdateParticipant"]


async def test_an_old_plan_never_overwrites_a_new_decision(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.hang(method="UpdateParticipant", times=1) as in_flight:
        agreeing = asyncio.create_task(meeting.agreement.agree(place(BOB), Priority.LIVE))
        await in_flight.hit()
        meeting.unrestrict()
    assert await agreeing is Finding.CHANGED
    assert meeting.may(BOB)
    assert [call.sources for call in meeting.calls("UpdateParticipant")] == [
        ("camera", "screen_share", "screen_share_audio"),
        tuple(ALL_SOURCES),
    ]


async def test_a_plan_is_made_only_when_its_turn_has_come(meeting: OnFake) -> None:
    """What was decided while others were told is what the last of them is told, at once."""
    meeting.restrict()
    with meeting.fake.hang(method="UpdateParticipant", times=8) as in_flight:
        for number in range(8):
            meeting.enter(ParticipantId(f"p{number}"))
        await meeting.look()
        first = [asyncio.create_task(meeting.agreement.agree(place(f"p{n}"), Priority.LIVE)) for n in range(8)]
        await in_flight.hit(8)
        last = asyncio.create_task(meeting.agreement.agree(place(BOB), Priority.LIVE))
        await asyncio.sleep(0)
        meeting.unrestrict()
    assert await last is Finding.AGREED
    await asyncio.gather(*first)
    assert all(meeting.may(f"p{number}") for number in range(8))
    assert not [call for call in meeting.calls() if call.identity == BOB]


async def test_calls_about_one_identity_never_overlap(meeting: OnFake) -> None:
    meeting.fake.latency_s = 0.01
    track = TrackSid(meeting.fake.publish(ROOM, BOB, "camera"))
    await meeting.look()
    working: list[asyncio.Task[Finding]] = []
    in_flight: Fault | None = None
    for number in range(10):
        (meeting.unrestrict if number % 2 else meeting.restrict)()  # while he is being told what was decided before
        working.append(asyncio.create_task(meeting.agreement.agree(place(BOB), Priority.LIVE)))
        working.append(
            asyncio.create_task(
                meeting.tracks.mute(ROOM, Identity(BOB), frozenset({Source.CAMERA}), frozenset({track}))
            )
        )
        working.append(asyncio.create_task(meeting.agreement.agree(place(CAROL), Priority.IDLE)))
        if in_flight is not None:
            in_flight.lift()
        in_flight = meeting.fake.hang(method="UpdateParticipant", identity=BOB, times=1)
        async with asyncio.timeout(10):
            await in_flight.hit()
            if number == 0:
                await working[-1]  # others need not wait
    assert in_flight is not None
    in_flight.lift()
    await asyncio.gather(*working)
    about_bob = [call for call in meeting.calls() if call.identity == BOB]
    assert len(about_bob) > 10
    assert not overlaps(about_bob)
    assert overlaps(meeting.calls())
    assert meeting.may(BOB)


async def test_the_same_identity_in_two_rooms_is_told_one_after_the_other(meeting: OnFake) -> None:
    meeting.fake.latency_s = 0.02
    meeting.open_red()
    meeting.fake.join(RED, BOB)
    meeting.restrict()
    await meeting.roster.look({ROOM, RED})
    findings = await asyncio.gather(*(meeting.agreement.agree(place(BOB, room), Priority.LIVE) for room in (ROOM, RED)))
    assert findings == [Finding.CHANGED] * 2
    assert not overlaps(call for call in meeting.calls() if call.identity == BOB)


async def test_one_who_came_or_went_in_that_moment_is_listed_and_told_once_more(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.refuse("not_found", times=1, method="UpdateParticipant"):
        assert await meeting.agreement.agree(place(BOB), Priority.LIVE) is Finding.CHANGED
    assert meeting.methods() == ["UpdateParticipant", "ListParticipants", "UpdateParticipant"]
    assert not meeting.may(BOB)


async def test_one_who_is_gone_by_then_is_absent(meeting: OnFake) -> None:
    meeting.restrict()
    meeting.fake.leave(ROOM, BOB)
    assert await meeting.agreement.agree(place(BOB), Priority.LIVE) is Finding.ABSENT
    assert meeting.roster.presence(*place(BOB)) is None
    assert not meeting.due.is_settling(BOB)


async def test_one_for_whom_nobody_ever_answers_is_rejected_and_tried_later(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.refuse("unavailable", method="UpdateParticipant"):
        assert await meeting.agreement.agree(place(BOB), Priority.LIVE) is Finding.REJECTED
    assert meeting.methods() == ["UpdateParticipant", "ListParticipants", "UpdateParticipant"]
    assert meeting.due.is_settling(BOB)


async def test_a_livekit_that_contradicts_itself_is_not_asked_for_ever(meeting: OnFake) -> None:
    meeting.restrict()
    other = models.ParticipantInfo(identity=BOB, permission=EVERYTHING).SerializeToString()
    with meeting.fake.garble(other, method="UpdateParticipant"):
        assert await meeting.agreement.agree(place(BOB), Priority.LIVE) is Finding.REJECTED
    assert meeting.methods() == ["UpdateParticipant"] * 3
    assert meeting.due.is_settling(BOB)


async def test_a_store_that_fails_before_a_call_leaves_the_person_to_be_looked_at_again(meeting: OnFake) -> None:
    meeting.restrict()
    meeting.errors = [StoreError("gone")]
    with pytest.raises(StoreError):
        await meeting.agreement.agree(place(BOB), Priority.LIVE)
    assert meeting.due.is_settling(BOB)
    async with meeting.running():
        await until(lambda: not meeting.may(BOB))


async def test_a_store_that_fails_together_with_livekit_changes_nothing_about_the_doubt(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.hang(method="UpdateParticipant") as hanging:
        agreeing = asyncio.create_task(meeting.agreement.agree(place(BOB), Priority.LIVE))
        await hanging.hit()
        meeting.errors = [StoreError("gone")]
        assert await agreeing is Finding.UNANSWERED
    assert meeting.due.is_settling(BOB)


# --- Settling ----------------------------------------------------------------------------------------------------


async def test_settling_goes_on_when_nobody_waits_for_it(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.hang(method="UpdateParticipant") as hanging:
        task = meeting.agreement.settle(place(BOB), Priority.SETTLING)
        await hanging.hit()
        await asyncio.wait({task}, timeout=0)
        assert meeting.due.is_settling(BOB)
        assert not meeting.due.is_settling(CAROL)
        assert next(iter(metrics.SETTLING.collect())).samples[0].value == meeting.due.count() == 1
    await until(lambda: not meeting.may(BOB))
    assert await task is Finding.CHANGED
    assert not meeting.due.is_settling(BOB)


async def test_who_settles_already_is_not_begun_twice_unless_it_becomes_urgent(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.hang(method="UpdateParticipant") as hanging:
        settling = meeting.agreement.settle(place(BOB), Priority.SETTLING)
        await hanging.hit()
        assert meeting.agreement.settle(place(BOB), Priority.SETTLING) is settling
        urgent = meeting.agreement.settle(place(BOB), Priority.LIVE)
        assert urgent is not settling
        assert meeting.agreement.settle(place(BOB), Priority.SETTLING) is urgent
    assert await settling is Finding.CHANGED
    assert await urgent is Finding.AGREED
    assert meeting.methods() == ["UpdateParticipant"]


async def test_an_urgent_one_does_not_wait_behind_those_who_settle(meeting: OnFake) -> None:
    people = [ParticipantId(f"p{number}") for number in range(30)]
    meeting.enter(*people)
    await meeting.look()
    meeting.fake.latency_s = 0.01
    meeting.restrict()
    settling = [meeting.agreement.settle(place(person), Priority.SETTLING) for person in people]
    urgent = meeting.agreement.settle(place(people[-1]), Priority.LIVE)
    assert await urgent is Finding.CHANGED
    assert len([task for task in settling if task.done()]) < 20
    await asyncio.gather(*settling)
    assert len(meeting.calls("UpdateParticipant")) == len(people)


async def test_closing_ends_all_settling_also_what_something_more_urgent_has_replaced(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.hang(method="UpdateParticipant") as hanging:
        tasks = [meeting.agreement.settle(place(BOB), priority) for priority in (Priority.SETTLING, Priority.LIVE)]
        await hanging.hit()
        await meeting.close()
        assert [task.cancelled() for task in tasks] == [True, True]


@pytest.mark.parametrize(
    ("error", "level"), [(StoreError("gone"), "warning"), (LookupError("a bug"), "error")], ids=["store", "bug"]
)
async def test_settling_that_ends_with_an_error_says_so_and_bugs_with_their_traceback(
    meeting: OnFake, error: Exception, level: str
) -> None:
    meeting.restrict()
    meeting.errors = [error]
    with structlog.testing.capture_logs() as logs:
        await asyncio.wait({meeting.agreement.settle(place(BOB), Priority.SETTLING)})
        await until(lambda: not meeting.agreement._tasks)
    (entry,) = logs
    assert (entry["event"], entry["log_level"], entry["participant"]) == ("agreeing_failed", level, BOB)
    assert ("exc_info" in entry) is (level == "error")


async def test_settling_that_fails_is_tried_again(meeting: OnFake) -> None:
    meeting.restrict()
    async with meeting.running():
        with meeting.fake.refuse("internal", times=2, method="UpdateParticipant"):
            meeting.agreement.settle(place(BOB), Priority.SETTLING)
            await until(lambda: not meeting.may(BOB))


# --- Trying again ------------------------------------------------------------------------------------------------


async def test_repairs_happen_at_once(meeting: OnFake) -> None:
    async with meeting.running():
        meeting.restrict()
        meeting.rejoin("dave")
        meeting.due.repair({BOB})
        await until(lambda: not meeting.may(BOB), timeout_s=2)
        await until(lambda: not meeting.due.is_settling(BOB))
    assert meeting.may(CAROL)  # only those who were named
    assert meeting.may("dave")
    assert meeting.methods() == ["ListParticipants", "UpdateParticipant"]


async def test_while_livekit_refuses_it_is_asked_less_and_less_often_until_it_agrees(meeting: OnFake) -> None:
    meeting.restrict()
    async with meeting.running():
        with meeting.fake.refuse("internal", method="UpdateParticipant") as refusing:
            began_at = now()
            meeting.due.repair({BOB})
            await refusing.hit(4)
            assert now() - began_at > 0.1 + 0.2 + 0.4
            assert refusing.hits == 4
            assert len(meeting.calls("ListParticipants")) == 4
        await until(lambda: not meeting.may(BOB))
        await until(lambda: not meeting.due.is_settling(BOB))
        meeting.fake.calls.clear()
        # Who was agreed about begins anew.
        meeting.unrestrict()
        with meeting.fake.refuse("internal", times=2, method="UpdateParticipant"):
            began_at = now()
            meeting.due.repair({BOB})
            await until(lambda: meeting.may(BOB))
        assert 0.1 + 0.2 < now() - began_at < 1.5


async def test_answers_that_take_long_do_not_make_it_impatient(meeting: OnFake) -> None:
    meeting.restrict()
    async with meeting.running():
        with meeting.fake.refuse("internal", method="UpdateParticipant") as refusing:
            meeting.fake.latency_s = 0.06  # a list and a refusal take longer than the first pause
            began_at = now()
            meeting.due.repair({BOB})
            await refusing.hit(4)
            assert now() - began_at > 8 * 0.06 + 0.1 + 0.2 + 0.4
            meeting.fake.latency_s = 0


async def test_pauses_are_never_longer_than_between_two_sweeps(meeting: OnFake) -> None:
    meeting.restrict()
    meeting.another(sweep_s=0.15)
    async with meeting.running():
        with meeting.fake.refuse("internal", method="UpdateParticipant") as refusing:
            meeting.due.repair({BOB})
            async with asyncio.timeout(5):
                await refusing.hit(8)
        await until(lambda: not meeting.may(BOB))


async def test_a_new_repair_does_not_wait_for_the_pause_of_an_old_one(meeting: OnFake) -> None:
    meeting.restrict()
    async with meeting.running():
        with meeting.fake.refuse("internal", method="UpdateParticipant", identity=BOB) as refusing:
            meeting.due.repair({BOB})
            await refusing.hit(4)
            began_at = now()
            meeting.due.repair({CAROL})
            await until(lambda: not meeting.may(CAROL))
            assert now() - began_at < 0.5  # Bob's next try was 0.8 s away


async def test_whoever_becomes_due_after_the_list_was_made_is_looked_at_again(meeting: OnFake) -> None:
    meeting.restrict()
    await meeting.reconciler.go_over(None)
    async with meeting.running():
        with meeting.fake.hang(method="ListParticipants", takes_effect=True, times=1) as listing:
            meeting.due.repair({CAROL, BOB})
            await listing.hit()
            meeting.rejoin(BOB)  # with an old token, which LiveKit's list does not show
            meeting.due.repair({BOB})
        await until(lambda: not meeting.may(BOB), timeout_s=2)


async def test_whoever_becomes_due_in_the_middle_of_a_sweep_is_looked_at_again(meeting: OnFake) -> None:
    meeting.restrict()
    await meeting.reconciler.go_over(None)
    with meeting.fake.hang(method="ListParticipants", takes_effect=True, times=1) as listing:
        sweeping = asyncio.create_task(meeting.reconciler.go_over(None))
        await listing.hit()
        meeting.rejoin(BOB)
        meeting.due.repair({BOB})
    await sweeping
    assert meeting.may(BOB)
    assert meeting.due.is_settling(BOB)
    async with meeting.running():
        await until(lambda: not meeting.may(BOB), timeout_s=2)


async def test_while_livekit_is_away_nothing_is_asked_and_then_all_is(
    meeting: OnFake, pass_time: Callable[[float], None]
) -> None:
    meeting.restrict()
    meeting.media.on_return(lambda: meeting.due.repair(meeting.state.members))
    meeting.another(sweep_s=0.02)
    async with meeting.running():
        await meeting.fake.offline()
        await until(lambda: not meeting.media.answering)
        reads, sweeps = meeting.reads, meeting.sweeps
        for _ in range(5):
            pass_time(0.02)
            await whatever_is_due_has_begun()
        assert (meeting.reads, meeting.sweeps) == (reads, sweeps)
        await meeting.fake.online()
        await until(lambda: not meeting.may(BOB) and not meeting.may(CAROL))
        assert meeting.may(ALICE)


# --- Doubt -------------------------------------------------------------------------------------------------------


async def test_an_unanswered_call_that_takes_effect_late_is_set_right(meeting: OnFake) -> None:
    meeting.restrict()
    async with meeting.running():
        with meeting.fake.hang(method="UpdateParticipant", times=1) as in_flight:
            agreeing = asyncio.create_task(meeting.agreement.agree(place(BOB), Priority.LIVE))
            await in_flight.hit()
            await meeting.media.list_presences(ROOM)  # LiveKit is there, only this call hangs
            assert await agreeing is Finding.UNANSWERED
            meeting.unrestrict()
            meeting.fake.calls.clear()
            # The first look finds that all agrees, since nothing has changed yet.
            await until(lambda: len(meeting.calls("ListParticipants")) >= 1)
            assert meeting.may(BOB)
            assert meeting.due.is_settling(BOB)
        await until(lambda: not meeting.may(BOB))  # now the call of old takes effect
        await until(lambda: meeting.may(BOB))
        await until(lambda: not meeting.due.is_settling(BOB))
    assert meeting.may(BOB)


async def test_doubt_ends_with_two_looks_that_are_one_deadline_apart(
    meeting: OnFake, pass_time: Callable[[float], None]
) -> None:
    async with meeting.running():
        meeting.due.doubt({BOB})
        await until(lambda: not meeting.due.is_settling(BOB))
        looks = meeting.calls("ListParticipants")
        assert len(looks) >= 2
        assert looks[-1].arrived_at - looks[0].answered_at >= TIMEOUT_S * 0.95
        assert meeting.methods() == ["ListParticipants"] * len(looks)
        assert len(looks) < 8
        reads = meeting.reads
        pass_time(NEVER_S / 2)
        await whatever_is_due_has_begun()
        assert meeting.reads == reads  # and that is the end of it


async def test_a_new_doubt_takes_two_looks_of_its_own(meeting: OnFake, pass_time: Callable[[float], None]) -> None:
    meeting.due.doubt({BOB})
    await meeting.reconciler.go_over(frozenset({BOB}))
    pass_time(TIMEOUT_S)
    meeting.due.doubt({BOB})
    await meeting.reconciler.go_over(frozenset({BOB}))
    assert meeting.due.is_settling(BOB)
    pass_time(TIMEOUT_S)
    await meeting.reconciler.go_over(frozenset({BOB}))
    assert not meeting.due.is_settling(BOB)


async def test_doubt_begins_anew_when_a_look_had_to_set_something_right(
    meeting: OnFake, pass_time: Callable[[float], None]
) -> None:
    meeting.due.doubt({BOB})
    await meeting.reconciler.go_over(None)
    pass_time(TIMEOUT_S)
    meeting.rejoin(BOB, NOTHING)
    await meeting.reconciler.go_over(None)
    assert meeting.may(BOB)
    assert meeting.due.is_settling(BOB)
    pass_time(TIMEOUT_S)
    await meeting.reconciler.go_over(None)
    assert not meeting.due.is_settling(BOB)


async def test_sweeps_end_doubt_too(meeting: OnFake) -> None:
    meeting.another(sweep_s=0.05)
    async with meeting.running():
        meeting.due.doubt({BOB, CAROL})
        await until(lambda: not meeting.due.is_settling(BOB) and not meeting.due.is_settling(CAROL))


# --- Looking -----------------------------------------------------------------------------------------------------


async def test_a_stale_list_never_overrides_what_livekit_answered_since(meeting: OnFake) -> None:
    with meeting.fake.hang(method="ListParticipants", takes_effect=True, times=1) as stale:
        looking = asyncio.create_task(meeting.roster.look({ROOM}))
        await stale.hit()
        meeting.restrict()
        await meeting.agreement.agree(place(BOB), Priority.LIVE)
    await looking
    presence = meeting.roster.presence(*place(BOB))
    assert presence is not None
    assert Source.MICROPHONE not in presence.permission.sources


async def test_a_stale_list_never_overrides_a_newer_one(meeting: OnFake) -> None:
    with meeting.fake.hang(method="ListParticipants", takes_effect=True, times=1) as stale:
        looking = asyncio.create_task(meeting.roster.look({ROOM}))
        await stale.hit()
        track = meeting.fake.publish(ROOM, BOB, "microphone")
        meeting.rejoin("dave")
        meeting.fake.leave(ROOM, CAROL)
        await meeting.roster.look({ROOM})
    await looking
    assert {presence.identity for presence in meeting.roster.presences} == {"alice", "bob", "dave"}
    assert await meeting.tracks.mute(ROOM, Identity(BOB), MICROPHONE) is Finding.MUTED
    assert meeting.calls("MutePublishedTrack")[0].track_sid == track


async def test_a_stale_list_does_not_bring_back_who_was_removed_since_but_a_new_one_does(meeting: OnFake) -> None:
    meeting.rejoin("bob#2")
    await meeting.look()
    with meeting.fake.hang(method="ListParticipants", takes_effect=True, times=1) as stale:
        looking = asyncio.create_task(meeting.roster.look({ROOM}))
        await stale.hit()
        assert await meeting.agreement.agree(place("bob#2"), Priority.REPAIR) is Finding.CHANGED
    await looking
    assert meeting.roster.presence(*place("bob#2")) is None
    meeting.rejoin("bob#2")
    await meeting.roster.look({ROOM})
    assert meeting.roster.presence(*place("bob#2")) is not None


async def test_what_was_remembered_of_people_goes_with_them(meeting: OnFake) -> None:
    for number in range(3):
        meeting.rejoin(f"bob#{number}")
        await meeting.reconciler.go_over(None)
        await meeting.reconciler.go_over(None)
    meeting.restrict()
    await meeting.reconciler.go_over(None)
    for participant in (ALICE, BOB, CAROL):
        meeting.fake.leave(ROOM, participant)
    await meeting.reconciler.go_over(None)
    assert list(meeting.roster.presences) == []
    remembered = (meeting.roster._told_at, meeting.due._in_doubt, meeting.due._looks)
    assert [len(of) for of in (*remembered, meeting.roster._locks)] == [0, 0, 0, 0]


async def test_a_look_names_the_rooms_about_which_nothing_is_known(meeting: OnFake) -> None:
    meeting.open_red()
    with meeting.fake.refuse("internal", method="ListParticipants", room=RED):
        assert await meeting.roster.look({ROOM, RED}) == {RED}
        assert await meeting.roster.look({RED}) == {RED}
    with meeting.fake.hang(method="ListParticipants", room=RED):
        assert await meeting.roster.look({ROOM, RED}) == {RED}
    assert await meeting.roster.look({ROOM, RED}) == frozenset()
    assert await meeting.roster.look(()) == frozenset()
    await meeting.fake.offline()
    with pytest.raises(MediaServerUnavailable):
        await meeting.roster.look({ROOM, RED})


async def test_a_bug_in_looking_is_raised(meeting: OnFake, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: LiveKitRoom, **_which: bool) -> tuple[Presence, ...]:
        raise LookupError("a bug")

    monkeypatch.setattr(meeting.media, "list_presences", fail)
    with pytest.raises(LookupError):
        await meeting.roster.look({ROOM})


async def test_nobody_counts_as_agreed_while_a_room_was_not_seen(meeting: OnFake) -> None:
    meeting.fake.create_room(RED)
    meeting.decide(Entered(CAROL, Member(Role.USER, Kind.USER, joined_at=0, breakout=BreakoutId("red"))))
    meeting.due.repair({BOB})
    with meeting.fake.refuse("internal", method="ListParticipants", room=RED):
        await meeting.reconciler.go_over(frozenset({BOB}))
    assert meeting.due.is_settling(BOB)
    await meeting.reconciler.go_over(frozenset({BOB}))
    assert not meeting.due.is_settling(BOB)


# --- Sweeping ----------------------------------------------------------------------------------------------------


def old_rights(meeting: OnFake) -> Callable[[], bool]:
    meeting.restrict()
    meeting.rejoin(BOB)
    meeting.rejoin(CAROL)
    return lambda: not meeting.may(BOB) and not meeting.may(CAROL) and meeting.may(ALICE)


def rights_taken(meeting: OnFake) -> Callable[[], bool]:
    meeting.rejoin(BOB, NOTHING)
    return lambda: meeting.may(BOB)


def no_sources_which_is_all(meeting: OnFake) -> Callable[[], bool]:
    meeting.restrict()
    meeting.rejoin(BOB, EVERYTHING)
    return lambda: not meeting.may(BOB) and meeting.may(BOB, "camera")


def sources_out_of_order(meeting: OnFake) -> Callable[[], bool]:
    sources = [*EVERY_SOURCE.can_publish_sources]
    meeting.rejoin(BOB, models.ParticipantPermission(can_publish=True, can_publish_sources=[*sources[::-1], *sources]))
    return lambda: list(meeting.fake.permissions(ROOM)[BOB].can_publish_sources) == [1, 2, 3, 4]


def second_session(meeting: OnFake) -> Callable[[], bool]:
    meeting.rejoin("bob#x")
    return lambda: [who.identity for who in meeting.fake.participants(ROOM)] == ["alice", "bob", "carol"]


def another_room(meeting: OnFake) -> Callable[[], bool]:
    meeting.decide(Moved(BOB, BreakoutId("red")))
    meeting.fake.create_room(RED)
    return lambda: BOB not in meeting.fake.permissions(ROOM)


def departed(meeting: OnFake) -> Callable[[], bool]:
    meeting.decide(Departed(BOB, 0, "quit"))
    return lambda: BOB not in meeting.fake.permissions(ROOM)


def closed_popout(meeting: OnFake) -> Callable[[], bool]:
    for number in (1, 2):
        identity = Identity(f"bob-popout{number}")
        meeting.decide(PopoutIssued(BOB, number, Popout(identity, ROOM)))
        meeting.fake.join(ROOM, identity, permission=NOTHING, hidden=True)
    popouts = meeting.state.popouts[BOB]
    meeting.decide(Moved(BOB, BreakoutId("red")), Moved(BOB, None), PopoutIssued(BOB, 3, popouts.open[1]))
    return lambda: set(meeting.fake.permissions(ROOM)) == {"alice", "bob", "carol", "bob-popout2"}


def unknown(meeting: OnFake) -> Callable[[], bool]:
    meeting.restrict()
    meeting.rejoin("zoe")
    return lambda: not meeting.may("zoe") and not meeting.may(BOB)


def unknown_to_be_removed(meeting: OnFake) -> Callable[[], bool]:
    meeting.another(remove_unknown=True)
    meeting.rejoin("zoe")
    return lambda: "zoe" not in meeting.fake.permissions(ROOM)


def livekit_restarted(meeting: OnFake) -> Callable[[], bool]:
    meeting.restrict()
    meeting.fake.crash()
    meeting.fake.create_room(ROOM)
    meeting.rejoin(BOB)
    return lambda: not meeting.may(BOB)


DRIFTS = [
    old_rights,
    rights_taken,
    no_sources_which_is_all,
    sources_out_of_order,
    second_session,
    another_room,
    departed,
    closed_popout,
    unknown,
    unknown_to_be_removed,
    livekit_restarted,
]


@pytest.mark.parametrize("drift", DRIFTS)
async def test_one_sweep_repairs(meeting: OnFake, drift: Callable[[OnFake], Callable[[], bool]]) -> None:
    is_repaired = drift(meeting)
    assert not is_repaired()
    await meeting.reconciler.go_over(None)
    assert is_repaired()
    meeting.fake.calls.clear()
    await meeting.reconciler.go_over(None)
    assert set(meeting.methods()) == {"ListParticipants"}


async def test_services_and_open_popouts_are_left_alone(meeting: OnFake) -> None:
    meeting.restrict()
    meeting.decide(PopoutIssued(BOB, 1, Popout(Identity("bob-popout1"), ROOM)))
    meeting.decide(Entered(ParticipantId("recorder"), Member(Role.USER, Kind.RECORDER, joined_at=0)))
    for identity in ("bob-popout1", "recorder"):
        meeting.fake.join(ROOM, identity, permission=NOTHING, hidden=True)
    meeting.fake.join(ROOM, "agent", kind=models.ParticipantInfo.AGENT)
    meeting.another(remove_unknown=True)
    await meeting.reconciler.go_over(None)
    assert {call.identity for call in meeting.calls()} == {"", BOB, CAROL}


async def test_rooms_of_a_meeting_that_is_over_are_not_made_anew(meeting: OnFake) -> None:
    for change in (
        Ended(),
        RoomDeleted(ROOM),
        Entered(ALICE, Member(Role.USER, Kind.USER, 0, breakout=BreakoutId("red"))),
    ):
        meeting.decide(change)
    meeting.fake.close_room(ROOM)
    await meeting.reconciler.go_over(None)
    joined = Notice(
        "track_published", ROOM, Identity("zoe"), "PA_1", track=Track(TrackSid("TR"), None, muted=False, is_sound=True)
    )
    await meeting.reconciler.react(joined)
    assert meeting.fake.rooms == (RED,)
    assert list(meeting.roster.presences) == []


async def test_a_sweep_is_one_list_when_nothing_drifted(meeting: OnFake) -> None:
    await meeting.reconciler.go_over(None)
    assert meeting.methods() == ["ListParticipants"]
    meeting.fake.calls.clear()
    meeting.another(sweep_s=0.03)
    async with meeting.running():
        await until(lambda: meeting.sweeps >= 6)
    assert set(meeting.methods()) == {"ListParticipants"}
    assert meeting.sweeps - 1 <= len(meeting.calls()) <= meeting.sweeps


async def test_what_drifts_is_repaired_by_the_next_sweep(meeting: OnFake) -> None:
    meeting.another(sweep_s=0.05)
    meeting.restrict()
    async with meeting.running():
        for _ in range(3):
            await until(lambda: not meeting.may(BOB))
            meeting.rejoin(BOB)


async def test_what_was_right_by_an_older_state_is_not_so_by_a_newer(meeting: OnFake) -> None:
    await meeting.reconciler.go_over(None)
    meeting.restrict()
    await meeting.reconciler.go_over(None)
    assert not meeting.may(BOB)
    assert not meeting.may(CAROL)
    meeting.unrestrict()
    await meeting.reconciler.go_over(None)
    assert meeting.may(BOB)
    assert meeting.may(CAROL)


async def test_a_sweep_gives_the_presenter_the_screen_that_others_have_lost(meeting: OnFake) -> None:
    await meeting.reconciler.go_over(None)
    meeting.decide(PresenterSet(BOB))
    meeting.rejoin(BOB, WITHOUT_SCREEN)
    await meeting.reconciler.go_over(None)  # Alice and Carol had it until now
    assert not meeting.may(BOB, "screen_share")
    await meeting.reconciler.go_over(None)
    assert meeting.may(BOB, "screen_share")


@pytest.mark.parametrize("error", [StoreError("gone"), LookupError("a bug"), MediaServerUnavailable("hangs")])
async def test_sweeps_go_on_after_an_error(meeting: OnFake, error: Exception) -> None:
    meeting.another(sweep_s=0.03)
    meeting.restrict()
    meeting.errors = [error] * 3
    async with meeting.running():
        await until(lambda: not meeting.may(BOB))
    assert meeting.errors == []


@pytest.mark.parametrize("error", [StoreError("gone"), LookupError("a bug"), MediaServerUnavailable("hangs")])
async def test_what_comes_before_a_sweep_cannot_hinder_it(meeting: OnFake, error: Exception) -> None:
    meeting.another(sweep_s=0.03)
    meeting.restrict()
    meeting.sweep_errors = [error] * 1_000
    async with meeting.running():
        await until(lambda: not meeting.may(BOB))


async def test_retries_go_on_after_an_error_of_the_store(meeting: OnFake) -> None:
    meeting.restrict()
    meeting.errors = [StoreError("gone")] * 2
    async with meeting.running():
        meeting.due.repair({BOB})
        await until(lambda: not meeting.may(BOB))


def known_of(meeting: OnFake, who: ParticipantId) -> tuple[Source, ...]:
    """What LiveKit allows somebody, as far as the reconciler has heard."""
    presence = meeting.roster.presence(*place(who))
    assert presence is not None
    return presence.permission.allowed()


async def test_one_persons_failure_leaves_no_call_of_the_others_behind(meeting: OnFake) -> None:
    meeting.restrict()
    with meeting.fake.hang(method="UpdateParticipant", identity=CAROL) as hanging:
        sweeping = asyncio.create_task(meeting.reconciler.go_over(None))
        await hanging.hit()
        await until(lambda: Source.MICROPHONE not in known_of(meeting, BOB))  # so that the error is Carol's
        meeting.errors = [StoreError("gone")]
    with pytest.raises(StoreError):
        await sweeping
    assert not meeting.may(CAROL)
    assert meeting.due.is_settling(CAROL)


async def test_rooms_that_are_to_be_deleted_are_not_looked_at(meeting: OnFake) -> None:
    meeting.decide(Ended())
    await meeting.reconciler.go_over(None)
    assert meeting.methods() == []
    assert list(meeting.roster.presences) == []


# --- Removing ----------------------------------------------------------------------------------------------------


async def test_who_left_is_removed_without_a_list(meeting: OnFake) -> None:
    meeting.decide(Departed(BOB, 0, "quit"))
    await meeting.agreement.remove(place(BOB), BOB)
    assert meeting.methods() == ["RemoveParticipant"]
    assert not meeting.due.is_settling(BOB)


async def test_who_is_back_already_is_not_removed(meeting: OnFake) -> None:
    await meeting.agreement.remove(place(BOB), BOB)
    assert meeting.methods() == []


@pytest.mark.parametrize("how", ["refused", "nobody answers", "hanging", "store"])
async def test_a_removal_that_fails_is_tried_again(meeting: OnFake, how: str) -> None:
    meeting.decide(Departed(BOB, 0, "quit"))
    faults = {
        "refused": lambda: meeting.fake.refuse("internal", method="RemoveParticipant", times=2),
        "nobody answers": lambda: meeting.fake.refuse("unavailable", method="RemoveParticipant", times=3),
        "hanging": lambda: meeting.fake.hang(method="RemoveParticipant", times=1),
    }
    if how == "store":
        meeting.errors = [StoreError("gone")]
    else:
        faults[how]()
    async with meeting.running():
        await meeting.agreement.remove(place(BOB), BOB)
        assert BOB in meeting.fake.permissions(ROOM)
        assert meeting.due.is_settling(BOB)
        await until(lambda: BOB not in meeting.fake.permissions(ROOM))
        await until(lambda: not meeting.due.is_settling(BOB))


# --- Muting ------------------------------------------------------------------------------------------------------


async def mute_bob(meeting: OnFake, only: frozenset[TrackSid] | None = None) -> Finding:
    return await meeting.tracks.mute(ROOM, Identity(BOB), MICROPHONE, only)


async def test_only_live_tracks_of_the_source_are_muted(meeting: OnFake) -> None:
    live = meeting.fake.publish(ROOM, BOB, "microphone")
    second = meeting.fake.publish(ROOM, BOB, "microphone")
    meeting.fake.publish(ROOM, BOB, "microphone", muted=True)
    meeting.fake.publish(ROOM, BOB, "camera")
    await meeting.look()
    assert await mute_bob(meeting) is Finding.MUTED
    assert [call.track_sid for call in meeting.calls("MutePublishedTrack")] == [live, second]


async def test_what_there_is_to_mute_is_told_apart(meeting: OnFake) -> None:
    assert await mute_bob(meeting) is Finding.NO_TRACK
    track = TrackSid(meeting.fake.publish(ROOM, BOB, "microphone", muted=True))
    await meeting.look()
    assert await mute_bob(meeting) is Finding.ALREADY_MUTED
    assert await mute_bob(meeting, frozenset({track})) is Finding.ALREADY_MUTED
    assert await mute_bob(meeting, frozenset({TrackSid("TR_1")})) is Finding.NO_TRACK
    assert await meeting.tracks.mute(ROOM, Identity("zoe"), MICROPHONE) is Finding.ABSENT
    assert meeting.methods() == []


async def test_a_track_that_was_published_anew_meanwhile_is_muted(meeting: OnFake) -> None:
    old = meeting.fake.publish(ROOM, BOB, "microphone")
    await meeting.look()
    meeting.fake.unpublish(ROOM, BOB, old)
    new = meeting.fake.publish(ROOM, BOB, "microphone")
    assert await mute_bob(meeting) is Finding.MUTED
    assert [call.track_sid for call in meeting.calls("MutePublishedTrack")] == [old, new]


async def test_somebody_who_left_meanwhile_is_absent(meeting: OnFake) -> None:
    meeting.fake.publish(ROOM, BOB, "microphone")
    await meeting.look()
    meeting.fake.leave(ROOM, BOB)
    assert await mute_bob(meeting) is Finding.ABSENT


async def test_a_mute_that_fails_says_how(meeting: OnFake) -> None:
    meeting.fake.publish(ROOM, BOB, "microphone")
    await meeting.look()
    with meeting.fake.refuse("internal", method="MutePublishedTrack"):
        assert await mute_bob(meeting) is Finding.REJECTED
    with meeting.fake.refuse("unavailable", method="MutePublishedTrack"):
        assert await mute_bob(meeting) is Finding.REJECTED
    with meeting.fake.hang(method="MutePublishedTrack"):
        assert await mute_bob(meeting) is Finding.UNANSWERED


async def late(meeting: OnFake, track: str, within_s: float) -> bool:
    return await meeting.tracks.mute_late(ROOM, Identity(BOB), MICROPHONE, frozenset({TrackSid(track)}), within_s)


async def test_a_late_mute_is_tried_until_livekit_confirms_it_and_touches_no_new_track(meeting: OnFake) -> None:
    track = meeting.fake.publish(ROOM, BOB, "microphone")
    new = meeting.fake.publish(ROOM, BOB, "microphone")
    with meeting.fake.refuse("internal", method="MutePublishedTrack", times=3):
        assert await late(meeting, track, 15)
    assert {listed.sid: listed.muted for listed in meeting.fake.participant(ROOM, BOB).tracks} == {
        track: True,
        new: False,
    }


async def test_a_late_mute_counts_when_the_unanswered_one_took_effect(meeting: OnFake) -> None:
    track = meeting.fake.publish(ROOM, BOB, "microphone", muted=True)
    assert await late(meeting, track, 15)
    assert meeting.calls("MutePublishedTrack") == []


async def test_a_late_mute_of_a_track_that_is_gone_is_none(meeting: OnFake) -> None:
    assert not await late(meeting, "TR_1", 15)


async def test_a_late_mute_is_never_later_than_it_may_be(meeting: OnFake) -> None:
    track = meeting.fake.publish(ROOM, BOB, "microphone")
    with meeting.fake.refuse("internal", method="MutePublishedTrack") as refusing:
        began_at = now()
        assert not await late(meeting, track, 0.65)
        assert now() - began_at < 0.65
        assert refusing.hits == 3  # after 0.1 and 0.3 s; the next would be after 0.7 s


@pytest.mark.parametrize("within_s", [0, -1])
async def test_a_late_mute_that_may_not_be_any_more_is_not_tried(meeting: OnFake, within_s: float) -> None:
    assert not await late(meeting, meeting.fake.publish(ROOM, BOB, "microphone"), within_s)
    assert meeting.methods() == []


async def test_a_late_mute_outlasts_a_livekit_that_is_away(meeting: OnFake) -> None:
    track = meeting.fake.publish(ROOM, BOB, "microphone")
    await meeting.fake.offline()
    muting = asyncio.create_task(late(meeting, track, 15))
    await until(lambda: not meeting.media.answering)
    await meeting.fake.online()
    assert await muting


# --- Whom it must not forget, and what it must not touch ----------------------------------------------------------


async def test_who_must_wait_for_the_screen_is_looked_at_again(meeting: OnFake) -> None:
    meeting.decide(PresenterSet(BOB))
    meeting.rejoin(BOB, NOTHING)  # Carol has the screen still
    await meeting.look()
    assert await meeting.agreement.agree(place(BOB), Priority.LIVE) is Finding.SETTLING
    assert not meeting.may(BOB, "screen_share")
    assert meeting.due.is_settling(BOB)


async def test_a_late_stop_touches_no_track_that_was_published_since(meeting: OnFake) -> None:
    meeting.fake.publish(ROOM, BOB, "microphone")
    await meeting.look()
    before = frozenset({TrackSid("TR_before")})
    assert await meeting.tracks.stop(place(BOB), MICROPHONE, before) is Finding.NO_TRACK
    assert meeting.methods() == []
    assert len(meeting.fake.participant(ROOM, BOB).tracks) == 1
