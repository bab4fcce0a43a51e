"""Turns: what a crash leaves behind, and what the next process makes of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from signaling.core.commands import AnyCommand, Enter, LoseConnections
from signaling.core.conclusions import Conclusion
from signaling.core.decisions import Decision, decide
from signaling.core.participants import Participant, Role, Source
from signaling.core.policy import publishable
from signaling.core.state import Block, MeetingState
from signaling.errors import MediaServerUnavailable, StoreError
from signaling.identifiers import CONTROLLER, LiveKitRoom, ParticipantId, RoomId, new_command_id
from signaling.livekit.room_service import RoomService
from signaling.meeting.meeting import Meeting, Rules
from signaling.messages import control, livekit, moderation
from signaling.stores import open_store
from signaling.stores.contract import Commit, Store
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import until

if TYPE_CHECKING:
    from signaling.livekit.contract import MediaServer

ALICE, BOB, CAROL = (ParticipantId(name) for name in ("alice", "bob", "carol"))


class Crash(BaseException):
    """The process is gone: from here on nothing that it does has any effect."""


class Trap:
    """Goes off at a certain await, and stays gone off."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0

    def pass_by(self) -> None:
        self.passed += 1
        if self.passed >= self.at:
            raise Crash


class Trapped:
    """Something whose every await may be the last, just before or just after it had its effect."""

    def __init__(self, target: object, trap: Trap) -> None:
        self._target = target
        self._trap = trap

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the target has
        found = getattr(self._target, name)
        if iscoroutinefunction(found):
            return self._around(found)
        if name in {"slot", "turn"}:
            return lambda *args: self._inside(found(*args))
        return found

    def _around(self, call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def trapped(*args: object, **kwargs: object) -> object:
            self._trap.pass_by()
            answer = await call(*args, **kwargs)
            self._trap.pass_by()
            return answer

        return trapped

    @asynccontextmanager
    async def _inside(self, context: AbstractAsyncContextManager[object]) -> AsyncIterator[object]:
        self._trap.pass_by()
        async with context as given:
            self._trap.pass_by()
            yield given


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'meetings.sqlite'}"
    opened = open_store(url, audit_entries=100)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def media(fake: FakeRoomService) -> AsyncIterator[RoomService]:
    async with RoomService(fake.url, fake.api_key, fake.api_secret, timeout_s=2) as service:
        yield service


async def set_up(fake: FakeRoomService, meeting: Meeting) -> str:
    """Alice moderates; Bob is heard, Carol is there. The sid of Bob's microphone."""
    for participant, role in ((ALICE, Role.MODERATOR), (BOB, Role.USER), (CAROL, Role.USER)):
        await meeting.turns.commit_now(participant, Enter(Participant(participant, role=role)))
    room = LiveKitRoom(meeting.room)
    await meeting.rooms.open(room)
    for participant in (ALICE, BOB, CAROL):
        fake.join(room, participant)
    await meeting.reconciler.go_over(None)
    return fake.publish(room, BOB, "microphone")


def microphone_is_restricted(state: MeetingState) -> bool:
    return Source.MICROPHONE in state.restricted


COMMANDS: list[tuple[str, AnyCommand, Callable[[MeetingState], bool]]] = [
    (
        "microphone_restrictions_enabled",
        livekit.EnableMicrophoneRestrictions(unrestricted_participants=(CAROL,)),
        microphone_is_restricted,
    ),
    (
        "screen_share_permissions_updated",
        livekit.RevokeScreenSharePermission(participants=(BOB, CAROL)),
        lambda state: Block(BOB, Source.SCREEN_SHARE) in state.blocks,
    ),
    ("role_updated", control.GrantModeratorRole(target=BOB), lambda state: state.is_moderator(BOB)),
    ("permissions_changed", moderation.SetPresenter(participant=BOB), lambda state: state.presenter == BOB),
    ("permissions_changed", moderation.Mute(participants=(BOB,), hold_s=600), lambda state: BOB in state.holds),
    ("kicked", moderation.Kick(participants=(CAROL,), ban=True), lambda state: CAROL in state.bans),
]


@pytest.mark.parametrize(
    ("event", "command", "holds"), COMMANDS, ids=[type(command).__name__ for _, command, _ in COMMANDS]
)
async def test_a_crash_at_any_await_of_a_turn_leaves_it_finished_or_undone_and_livekit_agrees(
    fake: FakeRoomService,
    media: RoomService,
    store: Store,
    event: str,
    command: AnyCommand,
    holds: Callable[[MeetingState], bool],
) -> None:
    commits: list[Commit] = []
    store.listen(commits.append)
    finished_after_crash = 0
    for at in range(1, 1_000):
        room = RoomId(f"meeting-{at}")
        before = Meeting(room, store, media, Rules())
        await set_up(fake, before)
        commits.clear()
        trap = Trap(at)
        dying = Meeting(room, cast("Store", Trapped(store, trap)), cast("MediaServer", Trapped(media, trap)), Rules())
        completed = await _take_turn_until_crash(dying, command)
        await dying.close()
        await before.close()

        restarted = Meeting(room, store, media, Rules())
        was_staged = (await restarted.journal.record()).staged is not None
        await restarted.turns.finish_staged()
        await restarted.reconciler.go_over(None)
        record = await restarted.journal.record()
        assert record.staged is None
        announced = [a for commit in commits for a in commit.entry.announcements if a.event.message == event]
        assert len(announced) == int(holds(record.state))
        if was_staged:
            assert holds(record.state)
            finished_after_crash += 1
        for participant in (ALICE, BOB, CAROL):
            is_there = participant in fake.permissions(room)
            assert is_there is (participant in record.state.members)
            allowed = [s.value for s in Source if is_there and fake.may_publish(room, participant, s.value)]
            assert allowed == list(publishable(participant, record.state))
        await restarted.close()
        if completed:
            assert holds(record.state)
            break
    else:
        pytest.fail("the turn never came to an end")
    assert finished_after_crash > 5


async def _take_turn_until_crash(meeting: Meeting, command: AnyCommand) -> bool:
    try:
        answer = await meeting.turns.take(ALICE, command, new_command_id())
    except Crash:
        return False
    assert isinstance(answer, Conclusion)
    return True


@pytest.mark.parametrize(("age_s", "is_muted"), [(0, True), (16, False)])
async def test_a_mute_that_a_crash_interrupted_is_carried_out_while_it_is_fresh(
    fake: FakeRoomService, media: RoomService, store: Store, age_s: float, *, is_muted: bool
) -> None:
    clock = 1_000.0
    meeting = Meeting(RoomId("m"), store, media, Rules(), clock=lambda: clock)
    track = await set_up(fake, meeting)
    with fake.hang(method="MutePublishedTrack") as hanging:
        turn = meeting.turns.take(ALICE, livekit.ForceMute(participants=(BOB,)), new_command_id())
        muting = asyncio.create_task(meeting.tasks.see_through(turn))
        await hanging.hit()
        await meeting.close()
    with pytest.raises(StoreError):
        await muting
    fake.unpublish("m", BOB, track)  # the call that hung may still have been carried out
    fake.publish("m", BOB, "microphone")

    clock += age_s
    restarted = Meeting(meeting.room, store, media, Rules(), clock=lambda: clock)
    await restarted.turns.finish_staged()
    assert (await restarted.journal.record()).staged is None
    (listed,) = fake.participant("m", BOB).tracks
    assert listed.muted is is_muted
    (entry,) = await store.audit(meeting.room, limit=10)
    assert [(outcome.outcome, outcome.error) for outcome in entry.outcomes] == [
        ("muted", None) if is_muted else ("failed", "livekit_unavailable")
    ]
    await restarted.close()


async def stage(meeting: Meeting, command: AnyCommand, now: float) -> None:
    """Be about to carry out what Alice commands, and no more."""
    decision = decide((await meeting.journal.record()).state, ALICE, command, now=now, command_id=new_command_id())
    assert isinstance(decision, Decision)
    assert await meeting.turns._stage(decision)
    await meeting.close()


async def test_a_mute_that_holds_is_carried_out_however_long_ago_a_crash_interrupted_it(
    fake: FakeRoomService, media: RoomService, store: Store
) -> None:
    clock = 1_000.0
    meeting = Meeting(RoomId("m"), store, media, Rules(), clock=lambda: clock)
    await set_up(fake, meeting)
    await stage(meeting, moderation.Mute(participants=(BOB,), hold_s=600), clock)
    clock += 60
    restarted = Meeting(meeting.room, store, media, Rules(), clock=lambda: clock)
    await restarted.turns.finish_staged()
    assert not fake.may_publish("m", BOB, "microphone")
    (entry,) = await store.audit(meeting.room, limit=10)
    assert [(outcome.participant, outcome.outcome) for outcome in entry.outcomes] == [(BOB, "muted")]
    await restarted.close()


async def test_a_stop_that_a_crash_interrupted_long_ago_is_not_carried_out(
    fake: FakeRoomService, media: RoomService, store: Store
) -> None:
    clock = 1_000.0
    meeting = Meeting(RoomId("m"), store, media, Rules(), clock=lambda: clock)
    await set_up(fake, meeting)
    await stage(meeting, moderation.Stop(source="microphone", participants=(BOB,)), clock)
    clock += 60
    restarted = Meeting(meeting.room, store, media, Rules(), clock=lambda: clock)
    await restarted.turns.finish_staged()
    assert fake.participant("m", BOB).tracks
    (entry,) = await store.audit(meeting.room, limit=10)
    assert [(outcome.participant, outcome.outcome) for outcome in entry.outcomes] == [(BOB, "failed")]
    await restarted.close()


async def restrict_and_die(fake: FakeRoomService, meeting: Meeting) -> None:
    """End in the middle of a restriction."""
    command = livekit.EnableMicrophoneRestrictions(unrestricted_participants=())
    with fake.hang(method="UpdateParticipant") as hanging:
        turn = meeting.turns.take(ALICE, command, new_command_id())
        restricting = asyncio.create_task(meeting.tasks.see_through(turn))
        await hanging.hit()
        await meeting.close()
    with pytest.raises(StoreError):
        await restricting


async def test_a_staged_decision_is_finished_by_the_next_turn_too(
    fake: FakeRoomService, media: RoomService, store: Store
) -> None:
    meeting = Meeting(RoomId("m"), store, media, Rules())
    await set_up(fake, meeting)
    await restrict_and_die(fake, meeting)
    await until(lambda: media.answering)
    restarted = Meeting(meeting.room, store, media, Rules())
    await restarted.turns.take(ALICE, livekit.ForceMute(participants=(BOB,)), new_command_id())
    assert Source.MICROPHONE in (await restarted.journal.record()).state.restricted
    assert [entry.action for entry in await store.audit(meeting.room, limit=5)] == [
        "force_mute",
        "enable_microphone_restrictions",
    ]
    await restarted.close()


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_staged_decision_is_rolled_back_if_livekit_answers_nothing(
    fake: FakeRoomService, media: RoomService, store: Store, *, is_known: bool
) -> None:
    meeting = Meeting(RoomId("m"), store, media, Rules())
    await set_up(fake, meeting)
    await restrict_and_die(fake, meeting)
    await fake.offline()
    if is_known:
        with pytest.raises(MediaServerUnavailable):
            await media.list_presences(LiveKitRoom(meeting.room))
        assert not media.answering
    restarted = Meeting(meeting.room, store, media, Rules())
    await restarted.turns.finish_staged()
    record = await restarted.journal.record()
    assert record.staged is None
    assert record.state.restricted == frozenset()
    await restarted.close()


async def test_two_moderators_at_once_both_get_what_they_asked_for_in_some_order(
    fake: FakeRoomService, media: RoomService, store: Store
) -> None:
    meeting = Meeting(RoomId("m"), store, media, Rules())
    await set_up(fake, meeting)
    await meeting.turns.take(ALICE, control.GrantModeratorRole(target=BOB), new_command_id())
    commands = [
        (
            ALICE if n % 2 else BOB,
            livekit.EnableMicrophoneRestrictions(unrestricted_participants=(ParticipantId(f"p{n}"),)),
        )
        for n in range(20)
    ]
    answers = await asyncio.gather(
        *(meeting.turns.take(sender, command, new_command_id()) for sender, command in commands)
    )
    assert all(isinstance(answer, Conclusion) for answer in answers)
    assert (await meeting.journal.record()).state.listed[Source.MICROPHONE] == {"p19"}
    await meeting.close()


async def test_people_who_come_and_go_during_a_turn_are_kept(
    fake: FakeRoomService, media: RoomService, store: Store
) -> None:
    meeting = Meeting(RoomId("m"), store, media, Rules())
    await set_up(fake, meeting)
    with fake.hang(method="UpdateParticipant") as hanging:
        restricting = asyncio.create_task(
            meeting.turns.take(
                ALICE, livekit.EnableMicrophoneRestrictions(unrestricted_participants=()), new_command_id()
            )
        )
        await hanging.hit()
        dave = ParticipantId("dave")
        await asyncio.gather(
            meeting.turns.commit_now(dave, Enter(Participant(dave))),
            *(
                meeting.turns.commit_now(ParticipantId(f"p{n}"), Enter(Participant(ParticipantId(f"p{n}"))))
                for n in range(20)
            ),
        )
    await restricting
    state = (await meeting.journal.record()).state
    assert len(state.members) == 24
    assert Source.MICROPHONE not in publishable(dave, state)
    await meeting.close()


@pytest.mark.parametrize("store", ["memory"], indirect=True)
async def test_a_bug_while_carrying_out_rolls_back_and_is_no_secret(
    fake: FakeRoomService, media: RoomService, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Meeting(RoomId("m"), store, media, Rules())
    await set_up(fake, meeting)

    async def fail(*_: object, **_which: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(media, "list_presences", fail)
    with pytest.raises(LookupError):
        await meeting.turns.take(ALICE, livekit.ForceMute(participants=(BOB,)), new_command_id())
    monkeypatch.undo()
    assert (await meeting.journal.record()).staged is None
    assert isinstance(
        await meeting.turns.take(ALICE, livekit.ForceMute(participants=(BOB,)), new_command_id()), Conclusion
    )
    await meeting.close()


class Failing:
    """A store that does not answer for a while."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.failures = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the store has
        return getattr(self._store, name)

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        if self.failures:
            self.failures -= 1
            raise StoreError("the store does not answer")
        return await self._store.append(commit, fence=fence)


@pytest.fixture
async def failing(store: Store) -> Failing:
    return Failing(store)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
async def test_a_place_is_given_up_although_the_store_failed_when_it_was_due(
    fake: FakeRoomService, media: RoomService, store: Store, failing: Failing
) -> None:
    meeting = Meeting(RoomId("m"), cast("Store", failing), media, Rules(empty_s=60))
    store.listen(lambda commit: meeting.journal.note(commit.record))
    await set_up(fake, meeting)
    await meeting.turns.commit_now(CONTROLLER, LoseConnections(frozenset({BOB}), until=1.0))  # long over
    failing.failures = 2
    await until(lambda: BOB not in fake.permissions("m"))
    assert failing.failures == 0
    await meeting.close()


@pytest.mark.parametrize("store", ["memory"], indirect=True)
async def test_the_rooms_of_an_ended_meeting_are_deleted_although_the_store_failed(
    fake: FakeRoomService, media: RoomService, failing: Failing
) -> None:
    forgotten = asyncio.Event()
    meeting = Meeting(RoomId("m"), cast("Store", failing), media, Rules(), on_forgotten=forgotten.set)
    await set_up(fake, meeting)
    with fake.hang(method="DeleteRoom", times=1) as hanging:
        await meeting.timer.end()
        await hanging.hit()
        failing.failures = 2
    async with asyncio.timeout(10):
        await forgotten.wait()
    assert fake.rooms == ()
    assert failing.failures == 0
    await meeting.close()
