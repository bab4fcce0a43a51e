"""What every store does, each in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import signaling.stores.redis.appending
from signaling.core.announcements import Announcement, Everyone
from signaling.core.changes import Restricted, Unbanned
from signaling.core.decisions import Decision
from signaling.core.participants import Source
from signaling.errors import TurnLost
from signaling.identifiers import CommandId, NodeId, ParticipantId, RoomId
from signaling.messages import livekit
from signaling.messages.moderation import Outcome
from signaling.stores.contract import AuditEntry, Commit, Kept, Record, Store
from signaling.stores.memory import MemoryStore
from signaling.stores.redis import RedisStore
from signaling.stores.sqlite import SQLiteStore
from tests.core.meetings import ALICE, BOARD, BOB
from tests.stores.logs import append, begun, commit, following, hand, record
from tests.stores.shared_store import Shared, SharedStore

OTHER = RoomId("another")
AUDIT_ENTRIES = 5


@pytest.fixture(params=["memory", "sqlite", "shared", "redis"])
def unopened(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    match request.param:
        case "memory":
            return MemoryStore(audit_entries=AUDIT_ENTRIES)
        case "sqlite":
            return SQLiteStore(tmp_path / "meetings.sqlite", audit_entries=AUDIT_ENTRIES)
        case "shared":
            return SharedStore(Shared(audit_entries=AUDIT_ENTRIES))  # the double is to do what the real ones do
        case _:
            return RedisStore(request.getfixturevalue("redis_url"), audit_entries=AUDIT_ENTRIES)


@pytest.fixture
async def store(unopened: Store) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(unopened.close)
        await unopened.open()
        yield unopened


@pytest.fixture
def commits(store: Store) -> list[Commit]:
    """What a listener is told."""
    told: list[Commit] = []
    store.listen(told.append)
    return told


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        CommandId(f"c-{number}"),
        float(number),
        ALICE,
        "force_mute",
        (BOB,),
        (Outcome(participant=BOB, outcome="muted"),),
    )


async def write_entries(store: Store, *numbers: int, room: RoomId = BOARD) -> None:
    """Write a meeting once with each of these audit entries."""
    for number in numbers:
        kept = await store.read(room)
        revision = 0 if kept is None else kept.revision
        assert await append(store, revision + 1, room, audit=entry(number))


def numbers(entries: tuple[AuditEntry, ...]) -> list[int]:
    return [int(entry.at) for entry in entries]


# --- Opening and closing -----------------------------------------------------------------------------------------


async def test_closing_twice_is_fine(unopened: Store) -> None:
    await unopened.open()
    await unopened.close()
    await unopened.close()


async def test_closing_what_was_never_opened_is_fine(unopened: Store) -> None:
    await unopened.close()


# --- Writing and reading -----------------------------------------------------------------------------------------


async def test_there_is_no_record_of_a_meeting_that_was_never_written(store: Store) -> None:
    assert await store.read(BOARD) is None
    assert await store.rooms() == ()


async def test_what_was_written_is_read(store: Store) -> None:
    change = Restricted(Source.MICROPHONE, frozenset({ALICE}))
    staged = Decision(CommandId("c-1"), "enable_microphone_restrictions", ALICE, 1.0, (change,))
    written = following(begun(), staged=staged)
    assert await store.append(written)
    kept = await store.read(BOARD)
    assert kept == written.record
    assert kept.effective.restricted == {Source.MICROPHONE}
    assert kept.state.restricted == frozenset()


async def test_what_was_written_here_is_known_without_asking(store: Store) -> None:
    store.follow(BOARD)
    await store.read(BOARD)
    assert store.known(BOARD) is None
    await append(store, 1)
    await append(store, 2)
    assert store.known(BOARD) == await store.read(BOARD) == record(2)


async def test_rooms_are_sorted(store: Store) -> None:
    for name in ("b", "Z", "a", "ü"):
        assert await append(store, 1, RoomId(name))
    assert await store.rooms() == ("Z", "a", "b", "ü")


async def test_each_revision_follows_the_one_before(store: Store) -> None:
    for revision in (1, 2, 3):
        assert await append(store, revision)
    assert await store.read(BOARD) == record(3)


@pytest.mark.parametrize("revision", [0, 1, 2, 4, 5])
async def test_a_revision_that_is_not_the_next_is_not_written(
    store: Store, commits: list[Commit], revision: int
) -> None:
    for before in (1, 2):
        await append(store, before)
    commits.clear()
    assert not await append(store, revision, audit=entry(9))
    assert await store.read(BOARD) == record(2)
    assert await store.audit(BOARD, limit=10) == ()
    assert commits == []


@pytest.mark.parametrize("revision", [0, 2])
async def test_the_first_revision_is_1(store: Store, revision: int) -> None:
    assert not await append(store, revision)
    assert await store.rooms() == ()


async def test_one_of_many_who_write_the_same_revision_wins(store: Store, commits: list[Commit]) -> None:
    await append(store, 1)
    attempts = [following(record(1), hand(number)) for number in range(100, 120)]
    written = await asyncio.gather(*map(store.append, attempts))
    assert written.count(True) == 1
    winner = attempts[written.index(True)]
    assert await store.read(BOARD) == winner.record
    assert commits == [commit(1), winner]


async def test_whoever_tries_again_loses_no_write(store: Store, commits: list[Commit]) -> None:
    async def count_up(room: RoomId) -> None:
        while True:
            kept = await store.read(room)
            if await append(store, 1 if kept is None else kept.revision + 1, room):
                return

    async with asyncio.timeout(30):
        await asyncio.gather(*(count_up(room) for _ in range(20) for room in (BOARD, OTHER)))
    for room in (BOARD, OTHER):
        assert await store.read(room) == record(20, room)
        revisions = [each.record.revision for each in commits if each.record.state.room == room]
        assert revisions == list(range(1, 21))


# --- Listening ---------------------------------------------------------------------------------------------------


async def test_listeners_are_told_before_write_returns(store: Store) -> None:
    told: list[tuple[str, Commit]] = []
    store.listen(lambda made: told.append(("first", made)))
    store.listen(lambda made: told.append(("second", made)))
    announcements = [Announcement(Everyone(), livekit.MicrophoneRestrictionsDisabled())]
    assert await store.append(commit(1, announcements=announcements))
    expected = commit(1, announcements=announcements)
    assert told == [("first", expected), ("second", expected)]


async def test_listeners_are_told_in_the_event_loop(store: Store) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    store.listen(lambda _: loops.append(asyncio.get_running_loop()))
    await append(store, 1)
    assert loops == [asyncio.get_running_loop()]


async def test_whoever_is_told_reads_what_was_written(store: Store) -> None:
    readers: list[asyncio.Task[Record | None]] = []
    store.listen(lambda _: readers.append(asyncio.create_task(store.read(BOARD))))
    await append(store, 1)
    assert await readers[0] == record(1)


async def test_listeners_are_told_only_of_what_comes_after(store: Store) -> None:
    await append(store, 1)
    commits: list[Commit] = []
    store.listen(commits.append)
    await append(store, 2)
    assert commits == [commit(2)]


async def test_writes_begun_together_are_told_of_in_order(store: Store, commits: list[Commit]) -> None:
    assert all(await asyncio.gather(*(append(store, revision) for revision in range(1, 101))))
    assert [each.record.revision for each in commits] == list(range(1, 101))


async def test_a_cancelled_write_is_told_of_once(store: Store, commits: list[Commit]) -> None:
    writing = asyncio.create_task(append(store, 1, audit=entry(1)))
    await asyncio.sleep(0)  # it begins
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert await append(store, 2)
    assert commits == [commit(1, audit=entry(1)), commit(2)]
    assert await store.read(BOARD) == record(2)
    assert numbers(await store.audit(BOARD, limit=10)) == [1]


# --- Reading the log ---------------------------------------------------------------------------------------------


async def test_what_followed_a_revision_can_be_read(store: Store) -> None:
    announced = [Announcement(Everyone(), livekit.MicrophoneRestrictionsDisabled())]
    made = [commit(1), commit(2, announcements=announced, audit=entry(2)), commit(3)]
    for each in made:
        assert await store.append(each)
    assert await append(store, 1, OTHER)
    for after in range(4):
        assert await store.entries(BOARD, after) == tuple(each.entry for each in made[after:])


@pytest.mark.parametrize("after", [-1, 3, 4])
async def test_nothing_is_known_to_follow_what_has_not_been(store: Store, after: int) -> None:
    for revision in (1, 2):
        await append(store, revision)
    assert await store.entries(BOARD, after) is None


async def test_nothing_follows_in_a_meeting_that_is_not_kept(store: Store) -> None:
    assert await store.entries(BOARD, 0) is None
    await append(store, 1)
    await store.forget(BOARD, 1)
    assert await store.entries(BOARD, 0) is None
    assert await store.entries(BOARD, 1) is None


async def test_old_entries_are_kept_no_longer_and_the_newest_are_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling.stores.redis.appending, "KEEPS_S", 0.0)
    before, made = begun(), list[Commit]()
    people = frozenset(ParticipantId(f"p{number:0100}") for number in range(40))
    for _ in range(400):
        outcomes = (Outcome(participant=BOB, outcome="muted"),)
        audit = AuditEntry(CommandId("c"), 1.0, ALICE, "force_mute", outcomes=outcomes)
        made.append(following(before, Unbanned(people), hand(len(made)), audit=audit))
        before = made[-1].record
        assert await store.append(made[-1])
    assert await store.entries(BOARD, 0) is None
    known = [after for after in range(401) if await store.entries(BOARD, after) is not None]
    assert known == list(range(known[0], 401)), "from some revision on"
    assert len(known) > 1
    assert await store.entries(BOARD, known[0]) == tuple(each.entry for each in made[known[0] :])
    assert await store.read(BOARD) == before


# --- Forgetting --------------------------------------------------------------------------------------------------


async def test_a_forgotten_meeting_is_gone_with_its_audit(store: Store) -> None:
    await write_entries(store, 1, 2)
    await write_entries(store, 3, room=OTHER)
    assert await store.forget(BOARD, 2)
    assert await store.read(BOARD) is None
    assert await store.audit(BOARD, limit=10) == ()
    assert await store.rooms() == (OTHER,)
    assert numbers(await store.audit(OTHER, limit=10)) == [3]


async def test_a_forgotten_meeting_can_begin_anew(store: Store) -> None:
    await write_entries(store, 1, 2)
    await store.forget(BOARD, 2)
    assert not await append(store, 3)
    await write_entries(store, 7)
    assert await store.read(BOARD) == record(1)
    assert numbers(await store.audit(BOARD, limit=10)) == [7]


@pytest.mark.parametrize("revision", [0, 1, 3])
async def test_a_meeting_that_was_written_since_is_not_forgotten(store: Store, revision: int) -> None:
    await write_entries(store, 1, 2)
    assert not await store.forget(BOARD, revision)
    assert await store.read(BOARD) == record(2)
    assert numbers(await store.audit(BOARD, limit=10)) == [2, 1]


async def test_a_meeting_that_is_not_kept_is_not_forgotten(store: Store) -> None:
    assert not await store.forget(BOARD, 0)
    assert not await store.forget(BOARD, 1)


async def test_nobody_is_told_of_forgetting(store: Store, commits: list[Commit]) -> None:
    await append(store, 1)
    await store.forget(BOARD, 1)
    assert commits == [commit(1)]


async def test_of_a_write_and_forgetting_one_wins(store: Store) -> None:
    await append(store, 1)
    written, forgotten = await asyncio.gather(append(store, 2), store.forget(BOARD, 1))
    assert written
    assert not forgotten
    forgotten, written = await asyncio.gather(store.forget(BOARD, 2), append(store, 3))
    assert forgotten
    assert not written
    assert await store.read(BOARD) is None


# --- The audit ---------------------------------------------------------------------------------------------------


async def test_a_meeting_without_commands_has_no_audit(store: Store) -> None:
    await append(store, 1)
    assert await store.audit(BOARD, limit=10) == ()
    assert await store.audit(OTHER, limit=10) == ()


async def test_the_audit_is_newest_first(store: Store) -> None:
    await write_entries(store, 1, 2, 3)
    assert await store.audit(BOARD, limit=10) == (entry(3), entry(2), entry(1))


async def test_an_entry_about_many_people_comes_back_as_it_was(store: Store) -> None:
    outcomes = [Outcome(participant=ParticipantId(f"p{number:04}"), outcome="restricted") for number in range(1_000)]
    outcomes[7] = Outcome(participant=ParticipantId("p0007"), outcome="failed", error="livekit_rejected")
    outcomes[500] = Outcome(participant=ParticipantId("p0500"), outcome="unrestricted", detail="cannot_publish_again")
    outcomes.append(Outcome(participant=ParticipantId("a"), outcome="restricted"))
    written = replace(entry(1), outcomes=tuple(outcomes))
    await append(store, 1, audit=written)
    assert await store.audit(BOARD, limit=1) == (written,)


async def test_the_audit_is_of_one_meeting(store: Store) -> None:
    await write_entries(store, 1, 3)
    await write_entries(store, 2, 4, room=OTHER)
    assert numbers(await store.audit(BOARD, limit=10)) == [3, 1]
    assert numbers(await store.audit(OTHER, limit=10)) == [4, 2]


async def test_the_audit_can_be_read_in_pages(store: Store) -> None:
    await write_entries(store, 1, 2, 3, 4, 5)
    first = await store.audit(BOARD, limit=2)
    second = await store.audit(BOARD, limit=2, before=first[-1].command_id)
    third = await store.audit(BOARD, limit=2, before=second[-1].command_id)
    assert [numbers(page) for page in (first, second, third)] == [[5, 4], [3, 2], [1]]
    assert await store.audit(BOARD, limit=2, before=third[-1].command_id) == ()


async def test_nothing_comes_after_an_entry_that_is_not_kept(store: Store) -> None:
    await write_entries(store, 1, 2)
    await write_entries(store, 3, room=OTHER)
    assert await store.audit(BOARD, limit=10, before=CommandId("c-3")) == ()
    assert await store.audit(RoomId("never"), limit=10, before=CommandId("c-1")) == ()


async def test_an_entry_is_known_by_its_command_while_it_is_kept(store: Store) -> None:
    await write_entries(store, *range(1, AUDIT_ENTRIES + 2))
    known = [
        number
        for number in range(1, AUDIT_ENTRIES + 3)
        if await store.audited(BOARD, CommandId(f"c-{number}")) == entry(number)
    ]
    assert known == list(range(2, AUDIT_ENTRIES + 2))
    assert await store.audited(OTHER, CommandId("c-2")) is None


async def test_a_limit_of_0_is_nothing(store: Store) -> None:
    await write_entries(store, 1)
    assert await store.audit(BOARD, limit=0) == ()


async def test_so_many_entries_of_a_meeting_are_kept_and_no_more(store: Store) -> None:
    await write_entries(store, *range(1, AUDIT_ENTRIES + 4))
    await write_entries(store, 1, room=OTHER)
    assert numbers(await store.audit(BOARD, limit=100)) == [8, 7, 6, 5, 4]
    assert await store.audit(BOARD, limit=100, before=CommandId("c-3")) == ()
    assert numbers(await store.audit(OTHER, limit=100)) == [1]


# --- What is kept beside the meetings ---------------------------------------------------------------------------


async def test_a_key_is_kept_once(store: Store) -> None:
    assert await store.keep_once(Kept.TICKET, "a", until=10, now=0)
    assert not await store.keep_once(Kept.TICKET, "a", until=10, now=0)
    assert await store.keep_once(Kept.TICKET, "b", until=10, now=0)


async def test_kinds_know_nothing_of_each_other(store: Store) -> None:
    for kind in Kept:
        assert await store.keep_once(kind, "a", until=10, now=0)
    assert await store.kept(Kept.CLOSED_ROOM, now=0) == {"a": 10}


async def test_a_key_is_kept_until_its_end_and_no_longer(store: Store) -> None:
    assert await store.keep_once(Kept.TICKET, "a", until=10, now=0)
    assert not await store.keep_once(Kept.TICKET, "a", until=10, now=10)
    assert await store.keep_once(Kept.TICKET, "a", until=20, now=10.5)
    assert not await store.keep_once(Kept.TICKET, "a", until=20, now=10.5)


async def test_what_is_kept_can_be_asked_for(store: Store) -> None:
    assert await store.kept(Kept.CLOSED_ROOM, now=0) == {}
    for number in range(5):
        await store.keep_once(Kept.CLOSED_ROOM, f"room-{number}", until=10 * number, now=0)
    assert await store.kept(Kept.CLOSED_ROOM, now=25) == {"room-3": 30, "room-4": 40}
    kept = await store.kept(Kept.CLOSED_ROOM, now=30)
    assert kept == {"room-3": 30, "room-4": 40}
    kept.clear()  # it is the caller's
    assert await store.kept(Kept.CLOSED_ROOM, now=35) == {"room-4": 40}


async def test_the_later_end_counts_whoever_was_first(store: Store) -> None:
    for until in (10, 30, 20):
        await store.keep_once(Kept.TICKET, "a", until=until, now=0)
    assert await store.kept(Kept.TICKET, now=25) == {"a": 30}
    assert not await store.keep_once(Kept.TICKET, "a", until=30, now=30)
    assert await store.kept(Kept.TICKET, now=31) == {}


async def test_of_many_who_keep_the_same_key_at_once_one_is_first(store: Store) -> None:
    async with asyncio.timeout(30):
        answers = await asyncio.gather(
            *(store.keep_once(Kept.TICKET, key, until=10 + number, now=0) for number in range(50) for key in "ab")
        )
    assert sum(answers[0::2]) == sum(answers[1::2]) == 1
    assert await store.kept(Kept.TICKET, now=0) == {"a": 59, "b": 59}


async def test_a_key_is_kept_although_whoever_kept_it_stopped_waiting(store: Store) -> None:
    keeping = asyncio.create_task(store.keep_once(Kept.TICKET, "a", until=10, now=0))
    await asyncio.sleep(0)  # it begins
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert not await store.keep_once(Kept.TICKET, "a", until=10, now=0)


async def test_what_is_kept_outlasts_meetings(store: Store) -> None:
    await append(store, 1)
    await store.keep_once(Kept.CLOSED_ROOM, BOARD, until=10, now=0)
    await store.forget(BOARD, 1)
    assert await store.kept(Kept.CLOSED_ROOM, now=0) == {BOARD: 10}


# --- Turns -------------------------------------------------------------------------------------------------------


async def test_turns_are_exclusive_and_in_order(store: Store) -> None:
    steps: list[tuple[int, str]] = []

    async def take(number: int) -> None:
        async with store.turn(BOARD):
            steps.append((number, "begins"))
            await asyncio.sleep(0)
            steps.append((number, "ends"))

    async with asyncio.timeout(5):
        await asyncio.gather(*map(take, range(10)))
    assert steps == [(number, step) for number in range(10) for step in ("begins", "ends")]


async def test_meetings_do_not_wait_for_each_other(store: Store) -> None:
    async with asyncio.timeout(5), store.turn(BOARD), store.turn(OTHER):
        pass


async def test_a_turn_that_failed_lets_the_next_begin(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store.turn(BOARD):
            raise ZeroDivisionError
    async with asyncio.timeout(5), store.turn(BOARD):
        pass


async def test_whoever_stops_waiting_for_a_turn_holds_up_nobody(store: Store) -> None:
    taken: list[str] = []

    async def take(name: str) -> None:
        async with store.turn(BOARD):
            taken.append(name)

    async with asyncio.timeout(5):
        async with store.turn(BOARD):
            impatient, patient = asyncio.create_task(take("impatient")), asyncio.create_task(take("patient"))
            await asyncio.sleep(0)  # both wait
            impatient.cancel()
        await asyncio.gather(impatient, patient, return_exceptions=True)
    assert taken == ["patient"]


async def test_a_turn_does_not_hinder_reading_and_writing(store: Store) -> None:
    async with store.turn(BOARD):
        assert await append(store, 1)
        assert await store.read(BOARD) == record(1)


async def test_what_belongs_to_a_turn_that_is_over_is_refused(store: Store) -> None:
    async with store.turn(BOARD) as first:
        assert await store.append(commit(1), fence=first.fence)
    with pytest.raises(TurnLost):
        await store.append(commit(2), fence=first.fence)
    async with store.turn(BOARD) as second, store.turn(OTHER):
        assert second.fence > first.fence
        with pytest.raises(TurnLost):
            await store.append(commit(2), fence=first.fence)
        assert await store.append(commit(2)), "what belongs to no turn need not wait for it"
        assert await store.append(commit(3), fence=second.fence)
    assert await store.read(BOARD) == commit(3).record


# --- Several nodes -----------------------------------------------------------------------------------------------

HERE, THERE = NodeId("here"), NodeId("there")


async def test_nodes_live_for_as_long_as_they_said_last(store: Store) -> None:
    assert await store.beat(HERE, until=15, now=0) == {HERE}
    assert await store.beat(THERE, until=20, now=5) == {HERE, THERE}
    assert await store.beat(THERE, until=29, now=14) == {HERE, THERE}
    assert await store.beat(THERE, until=30, now=15) == {THERE}
    assert await store.beat(THERE, until=16, now=16) == frozenset()


async def test_one_node_that_lives_looks_after_a_meeting(store: Store) -> None:
    await store.beat(HERE, until=15, now=0)
    await store.beat(THERE, until=15, now=0)
    assert await store.look_after(BOARD, HERE, now=1)
    assert not await store.look_after(BOARD, THERE, now=1)
    assert await store.look_after(OTHER, THERE, now=1)
    assert not await store.look_after(OTHER, HERE, now=1)
    await store.beat(HERE, until=25, now=10)
    assert await store.look_after(OTHER, HERE, now=15), "the other lives no longer"
    assert not await store.look_after(OTHER, THERE, now=16)
    assert await store.look_after(BOARD, HERE, now=30), "nobody else asks"


async def test_nobody_looks_after_a_meeting_that_is_forgotten(store: Store) -> None:
    await store.beat(HERE, until=15, now=0)
    await append(store, 1)
    assert await store.look_after(BOARD, HERE, now=1)
    assert await store.forget(BOARD, 1)
    assert await store.look_after(BOARD, THERE, now=2)


async def test_a_meeting_is_left_alone_until_a_node_looks_after_it_and_after_that_has_died(store: Store) -> None:
    assert await store.left_alone() == ()
    await store.beat(HERE, until=15, now=0)
    await store.beat(THERE, until=20, now=0)
    for room in (OTHER, BOARD):
        await append(store, 1, room)
    assert await store.left_alone() == (OTHER, BOARD), "nobody is said to have begun them"
    await store.look_after(BOARD, HERE, now=1)
    assert await store.left_alone() == (OTHER,)
    await store.look_after(OTHER, THERE, now=1)
    assert await store.left_alone() == ()
    await store.beat(THERE, until=30, now=15)
    assert await store.left_alone() == (BOARD,)
    await store.look_after(BOARD, THERE, now=15)
    await store.beat(THERE, until=16, now=16)
    assert await store.left_alone() == (OTHER, BOARD), "it has ended"
    assert await store.forget(BOARD, 1)
    assert await store.left_alone() == (OTHER,)


async def test_who_begins_a_meeting_looks_after_it_if_they_live(store: Store) -> None:
    await store.beat(HERE, until=15, now=0)
    for room, node in ((BOARD, HERE), (OTHER, THERE)):
        made = commit(1, room)
        assert await store.append(replace(made, entry=replace(made.entry, node=node)))
    assert await store.left_alone() == (OTHER,), "its node was never heard of"
    assert not await store.look_after(BOARD, THERE, now=1)
    assert await store.look_after(OTHER, HERE, now=1)


async def test_who_looks_after_a_meeting_without_being_heard_of_leaves_it_alone(store: Store) -> None:
    await append(store, 1)
    assert await store.look_after(BOARD, THERE, now=1)
    assert await store.left_alone() == (BOARD,)
    await store.beat(HERE, until=15, now=2)
    assert await store.look_after(BOARD, HERE, now=2)
    assert await store.left_alone() == ()


async def test_a_key_that_is_kept_no_longer_may_be_kept_anew(unopened: Store) -> None:
    for _ in range(2):
        await unopened.open()
        assert await unopened.keep_once(Kept.CLOSED_ROOM, "standup", until=100, now=1)
        await unopened.keep_once(Kept.CLOSED_ROOM, "kiosk", until=100, now=1)
        await unopened.keep_no_longer(Kept.CLOSED_ROOM, "standup")
        await unopened.keep_no_longer(Kept.CLOSED_ROOM, "nobody")
        assert await unopened.kept(Kept.CLOSED_ROOM, now=2) == {"kiosk": 100}
        await unopened.close()
