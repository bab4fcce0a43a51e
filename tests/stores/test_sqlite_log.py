"""Logs in a SQLite file: snapshots, files of earlier versions, and meetings that cannot be read."""

import asyncio
import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from signaling.core.changes import Banned, Restricted
from signaling.core.decisions import Decision
from signaling.core.effects import Agree
from signaling.core.participants import Kind, Role, Source
from signaling.core.state import (
    BanWas,
    Block,
    BlockCause,
    BlockWas,
    Came,
    HoldWas,
    ListingWas,
    MeetingState,
    Member,
    MuteNote,
    Popout,
    Popouts,
    PresenterWas,
    RestrictionWas,
    UnmuteRequest,
)
from signaling.errors import StoreError
from signaling.identifiers import BreakoutId, CommandId, Identity, LiveKitRoom, ParticipantId, RoomId, TrackSid
from signaling.stores import sqlite_log
from signaling.stores.contract import Commit, Kept, Record
from signaling.stores.serialization import dump_entry, dump_record
from signaling.stores.sqlite import SQLiteStore
from tests.core.meetings import ALICE, BOARD, BOB, CAROL, DAVE, LEFT, LEFT_ROOM, MAIN
from tests.stores.logs import append, begun, commit, following, hand, large, record
from tests.stores.test_sqlite import audit, busy, opened

OTHER = RoomId("another")
CAMERA, MICROPHONE, SCREEN = Source.CAMERA, Source.MICROPHONE, Source.SCREEN_SHARE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meetings.sqlite"


def change(path: Path, statement: str, *values: object) -> None:
    """Lay hands on a file that is closed."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement, values)
        database.commit()


def rows(path: Path, table: str, room: RoomId = BOARD) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT * FROM {table} WHERE room = ? ORDER BY revision", (room,)).fetchall()  # noqa: S608


# --- Snapshots ---------------------------------------------------------------------------------------------------


async def test_a_meeting_is_kept_as_what_was_committed(path: Path) -> None:
    made = [commit(1), commit(2, audit=audit(2)), commit(3)]
    async with opened(path) as store:
        for each in made:
            assert await store.append(each)
    assert rows(path, "entries") == [("board", each.entry.revision, dump_entry(each.entry)) for each in made]
    assert rows(path, "snapshots") == []


async def test_a_snapshot_takes_the_place_of_entries_that_outweigh_it(path: Path) -> None:
    snapshots, kept = list[int](), begun()
    async with opened(path) as store:
        assert await append(store, 1, OTHER)
        for number in range(2_000):
            made = following(kept, hand(number)) if number != 500 else large(kept)
            assert await store.append(made)
            kept = made.record
            if await store.entries(BOARD, kept.revision - 1) is None:
                snapshots.append(kept.revision)
                assert await store.entries(BOARD, kept.revision) == ()
    [(_, revision, data)] = rows(path, "snapshots")
    entries = rows(path, "entries")
    assert revision == snapshots[-1]
    assert [each[1] for each in entries] == list(range(revision + 1, 2_001))
    assert sum(len(each[2]) for each in entries) <= max(len(data), sqlite_log.LEAST_BYTES)
    assert len(data) > sqlite_log.LEAST_BYTES, "it holds more than it may without a reason"
    assert 501 in snapshots
    # Of a small meeting so many bytes are kept, and of a large one as much as its snapshot has.
    between = [after - before for before, after in itertools.pairwise(snapshots)]
    assert between[-1] > 1.3 * between[0] > 100
    async with opened(path) as store:
        assert await store.read(BOARD) == kept
        assert await store.read(OTHER) == record(1, OTHER)


async def test_a_first_entry_that_is_large_is_a_snapshot(path: Path) -> None:
    people = frozenset(ParticipantId(f"{number:0100}") for number in range(1_000))
    made = following(begun(), Banned(people))
    async with opened(path) as store:
        assert await store.append(made)
        assert await store.entries(BOARD, 0) is None
    async with opened(path) as store:
        assert await store.read(BOARD) == made.record
        assert await store.append(following(made.record, hand(2)))
    assert [each[1] for each in rows(path, "entries")] == [2]


async def test_a_commit_that_fails_half_way_is_not_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async with opened(path) as store:
        assert await append(store, 1, audit=audit(1))
        with monkeypatch.context() as patched:
            patched.setattr(sqlite_log, "LEAST_BYTES", 0)
            patched.setattr(sqlite_log, "write_snapshot", fail)
            with pytest.raises(StoreError, match="disk I/O error"):
                await append(store, 2, audit=audit(2))
        refuse = "CREATE TRIGGER refuse BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END"
        await store._do(lambda database: database.execute(refuse))
        with pytest.raises(StoreError, match="no"):
            await append(store, 2, audit=audit(2))
        await store._do(lambda database: database.execute("DROP TRIGGER refuse"))
        assert await store.read(BOARD) == record(1)
        assert await store.entries(BOARD, 0) == (commit(1, audit=audit(1)).entry,)
        assert await store.audit(BOARD, limit=9) == (audit(1),)
        assert await append(store, 2)
    async with opened(path) as store:
        assert await store.read(BOARD) == record(2)


async def test_entries_that_wait_together_are_all_there(path: Path) -> None:
    kept, made = begun(), list[Commit]()
    for _ in range(150):
        made.append(large(kept) if len(made) in {3, 4, 70} else following(kept, hand(len(made))))
        kept = made[-1].record
    async with opened(path) as store:
        async with busy(store):
            tasks = [asyncio.create_task(store.append(each)) for each in made]
            await asyncio.sleep(0)  # they wait
        assert all(await asyncio.gather(*tasks))
    async with opened(path) as store:
        assert await store.read(BOARD) == kept


async def test_a_forgotten_meeting_leaves_nothing_in_the_file(path: Path) -> None:
    async with opened(path) as store:
        assert await store.append(large(begun()))
        assert await store.append(following(large(begun()).record, hand(2), audit=audit(1)))
        assert await store.forget(BOARD, 2)
    for table in ("meetings", "entries", "snapshots"):
        assert rows(path, table) == []


async def test_a_file_that_is_made_anew_begins_with_snapshots(path: Path) -> None:
    async with opened(path) as store:
        for revision in (1, 2, 3):
            assert await append(store, revision)
        path.unlink()
        assert await append(store, 4)
        assert await store.entries(BOARD, 2) is None
        assert await store.entries(BOARD, 3) == (commit(4).entry,)
    async with opened(path) as store:
        assert await store.read(BOARD) == record(4)


# --- Files of earlier versions -----------------------------------------------------------------------------------


def member(name: str, joined_at: float, role: Role = Role.USER, **other: Any) -> Member:  # noqa: ANN401 - of several types
    return Member(role, Kind.USER, joined_at, name, **other)


IN_SCHEMA_2 = MeetingState(
    BOARD,
    version=18,
    members={
        ALICE: member("Alice", 1001, Role.MODERATOR),
        BOB: member("Bob", 1002, hand_is_up=True, hand_updated_at=1006.0),
        CAROL: member("Carol", 1003),
        DAVE: member("Dave", 1004, breakout=BreakoutId(LEFT), returns_until=1100.0),
    },
    roles={BOB: Role.MODERATOR},
    restricted=frozenset({MICROPHONE, SCREEN}),
    restricted_by_default=frozenset({SCREEN}),
    restricted_until={MICROPHONE: 1307.0},
    listed={MICROPHONE: frozenset({BOB})},
    blocks=frozenset({Block(CAROL, MICROPHONE, BlockCause.BYPASS), Block(CAROL, CAMERA)}),
    holds={CAROL: {MICROPHONE: 1068.0}, BOB: {MICROPHONE: 1068.0}},
    came={MAIN: {ParticipantId("EG_1"): Came("PA_1", frozenset({CAMERA}))}},
    bypasses={CAROL: frozenset({TrackSid("TR_1")})},
    bans=frozenset({ParticipantId("sip:49")}),
    presenter=BOB,
    unmute_requests={"c-15-1": UnmuteRequest(BOB, ALICE, 1075.0)},
    asked_at={BOB: 1015.0},
    mutes={CAROL: MuteNote(1008.0, frozenset({MICROPHONE})), BOB: MuteNote(1014.0, frozenset({MICROPHONE}))},
    undoable={
        CommandId("c-7"): (RestrictionWas(MICROPHONE, was_set=False), ListingWas(MICROPHONE, BOB, was_set=False)),
        CommandId("c-8"): (HoldWas(MICROPHONE, BOB, None), HoldWas(MICROPHONE, CAROL, None)),
        CommandId("c-9"): (BlockWas(Block(CAROL, CAMERA), was_set=False),),
        CommandId("c-10"): (BanWas(ParticipantId("sip:49"), was_set=False),),
        CommandId("c-17"): (PresenterWas(None),),
    },
    popouts={BOB: Popouts(1, (Popout(Identity("bob-popout1"), MAIN),))},
    departed=frozenset({ParticipantId("sip:49")}),
    rooms=frozenset({MAIN, LEFT_ROOM}),
)
STAGED = Decision(
    CommandId("c-19"),
    "restrict",
    ALICE,
    1019.0,
    (Restricted(CAMERA, frozenset({ALICE})),),
    Agree(None, frozenset({CAMERA})),
    is_action=True,
)


async def test_a_file_of_the_second_version_is_carried_over(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(Path(__file__).with_name("schema_2.sql").read_text(encoding="utf-8"))
    another = MeetingState(OTHER, 1, {CAROL: member("Carol", 1050)}, rooms=frozenset({LiveKitRoom(OTHER)}))
    carried_over = Record(19, IN_SCHEMA_2, STAGED)
    for revision in (19, 20):
        async with opened(path) as store:
            assert await store.rooms() == (OTHER, BOARD)
            kept = await store.read(BOARD)
            assert kept == (carried_over if revision == 19 else following(carried_over, hand(20)).record)
            assert [*kept.state.undoable] == [*IN_SCHEMA_2.undoable], "the oldest are forgotten first"
            assert await store.read(OTHER) == Record(1, another)
            audited = await store.audit(BOARD, limit=99)
            actions = "set_presenter grant_moderator_role ask_to_unmute force_mute kick disallow mute restrict"
            assert [each.action for each in audited] == actions.split()
            assert audited[-2].outcomes[1].outcome == "muted"
            assert await store.audited(BOARD, CommandId("c-7")) is not None
            assert await store.kept(Kept.TICKET, now=0) == {"ticket-1": 2_000}
            assert await store.kept(Kept.WEBHOOK, now=0) == {"EV_1": 3_000}
            assert await store.kept(Kept.CLOSED_ROOM, now=0) == {"gone": 4_000}
            assert await store.entries(BOARD, 18) is None
            if revision == 19:
                assert await store.append(following(carried_over, hand(20)))
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)


# --- Meetings that cannot be read --------------------------------------------------------------------------------


def unknown_kind(path: Path) -> None:
    waved = dump_entry(commit(3).entry).replace(b"hand_set", b"hand_waved")
    change(path, "UPDATE entries SET entry = ? WHERE room = 'board' AND revision = 3", waved)


def unknown_format(path: Path) -> None:
    newer = dump_entry(commit(1).entry).replace(b'"format":1', b'"format":2')
    change(path, "UPDATE entries SET entry = ? WHERE room = 'board' AND revision = 1", newer)


def gap(path: Path) -> None:
    change(path, "DELETE FROM entries WHERE room = 'board' AND revision = 3")


def no_beginning(path: Path) -> None:
    change(path, "DELETE FROM entries WHERE room = 'board' AND revision = 1")


def no_end(path: Path) -> None:
    change(path, "DELETE FROM entries WHERE room = 'board' AND revision = 4")


def torn_tail(path: Path) -> None:
    change(path, "UPDATE entries SET entry = substr(entry, 1, 100) WHERE room = 'board' AND revision = 4")


def begun_twice(path: Path) -> None:
    again = replace(commit(3).entry, begins_as=begun().state)
    change(path, "UPDATE entries SET entry = ? WHERE room = 'board' AND revision = 3", dump_entry(again))


def never_begun(path: Path) -> None:
    first = replace(commit(1).entry, begins_as=None)
    change(path, "UPDATE entries SET entry = ? WHERE room = 'board' AND revision = 1", dump_entry(first))


def in_anothers_place(path: Path) -> None:
    change(path, "UPDATE entries SET entry = ? WHERE room = 'board' AND revision = 3", dump_entry(commit(2).entry))


def of_another_meeting(path: Path) -> None:
    other = dump_entry(commit(3, OTHER).entry)
    change(path, "UPDATE entries SET entry = ? WHERE room = 'board' AND revision = 3", other)


def snapshot_of_another_revision(path: Path) -> None:
    change(path, "INSERT INTO snapshots VALUES ('board', 2, ?)", dump_record(record(1)))


def snapshot_of_another_meeting(path: Path) -> None:
    change(path, "INSERT INTO snapshots VALUES ('board', 2, ?)", dump_record(record(2, OTHER)))


def snapshot_beside_what_it_replaced(path: Path) -> None:
    change(path, "INSERT INTO snapshots VALUES ('board', 2, ?)", dump_record(record(2)))


def snapshot_that_is_none(path: Path) -> None:
    change(path, "INSERT INTO snapshots VALUES ('board', 2, x'00')")


def no_meeting(path: Path) -> None:
    change(path, "DELETE FROM meetings WHERE room = 'board'")


def no_text(path: Path) -> None:
    change(path, "UPDATE entries SET entry = x'ff' WHERE room = 'board' AND revision = 2")


def a_number(path: Path) -> None:
    change(path, "UPDATE entries SET entry = 7 WHERE room = 'board' AND revision = 2")


FAULTS = {
    unknown_kind: "entry 3: no Entry of ours: changes.0",
    unknown_format: "entry 1: Entry of format 2, and this version knows 1 only",
    gap: "entry 4 follows revision 2: what is between them is missing",
    no_beginning: "entry 2 follows revision 0: what is between them is missing",
    no_end: "ends with revision 3 instead of 4",
    torn_tail: "entry 4: no Entry of ours: Invalid JSON",
    begun_twice: "entry 3 does not begin the meeting as the first one does, and only that",
    never_begun: "entry 1 does not begin the meeting as the first one does, and only that",
    in_anothers_place: "entry 3 does not match: it is entry 2 of board",
    of_another_meeting: "entry 3 does not match: it is entry 3 of another",
    snapshot_of_another_revision: "the snapshot of revision 2 does not match: it is of revision 1 of board",
    snapshot_of_another_meeting: "the snapshot of revision 2 does not match: it is of revision 2 of another",
    snapshot_beside_what_it_replaced: "the snapshot of revision 2 does not match: entry 1 is kept too",
    snapshot_that_is_none: "snapshot of revision 2: no Record of ours: Invalid JSON",
    no_meeting: "has a log, and is not among the meetings",
    no_text: "entry 2: no Entry of ours: Invalid JSON",
    a_number: "entry 2: no Entry of ours: ",
}


async def fill(path: Path) -> None:
    async with opened(path) as store:
        for revision in (1, 2, 3, 4):
            assert await append(store, revision, audit=audit(revision))
        for revision in (1, 2):
            assert await append(store, revision, OTHER)


async def check_put_aside(store: SQLiteStore, path: Path, reason: str) -> None:
    """The meeting is left alone, and the other one goes on."""
    for use in (
        lambda: store.read(BOARD),
        lambda: append(store, 1),
        lambda: append(store, 5),
        lambda: store.forget(BOARD, 4),
        lambda: store.entries(BOARD, 0),
    ):
        with pytest.raises(StoreError) as error:
            await use()
        assert str(error.value).startswith(f"{path}: meeting board: {reason}")
    assert await store.rooms() == (OTHER,)
    kept = await store.read(OTHER)
    assert kept is not None
    assert kept == record(kept.revision, OTHER)
    assert await append(store, kept.revision + 1, OTHER, audit=audit(1))


@pytest.mark.parametrize(("spoil", "reason"), FAULTS.items(), ids=lambda each: getattr(each, "__name__", ""))
async def test_a_meeting_that_cannot_be_read_is_put_aside_and_the_others_go_on(
    path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    await fill(path)
    spoil(path)
    before = [rows(path, table) for table in ("meetings", "snapshots", "entries")]
    for _ in ("once", "and again"):
        with capture_logs() as logs:
            async with opened(path) as store:
                await check_put_aside(store, path, reason)
        [line] = logs
        assert (line["event"], line["log_level"], line["room"]) == ("meeting_put_aside", "error", "board")
        assert line["error"].startswith(f"meeting board: {reason}")
    assert [rows(path, table) for table in ("meetings", "snapshots", "entries")] == before


async def test_it_is_left_as_it_is_when_the_file_is_made_anew(path: Path) -> None:
    await fill(path)
    torn_tail(path)
    before = [rows(path, table) for table in ("meetings", "snapshots", "entries")]
    async with opened(path) as store:
        path.unlink()
        await check_put_aside(store, path, FAULTS[torn_tail])
    assert [rows(path, table) for table in ("meetings", "snapshots", "entries")] == before


async def test_a_meeting_of_an_old_file_that_cannot_be_read_is_put_aside(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(Path(__file__).with_name("schema_2.sql").read_text(encoding="utf-8"))
    change(path, "UPDATE meetings SET record = ? WHERE room = 'board'", b'{"format": 2}')
    async with opened(path) as store:
        assert await store.rooms() == (OTHER,)
        with pytest.raises(StoreError, match=f"^{path}: meeting board: snapshot of revision 19: Record of format 2"):
            await store.read(BOARD)
    assert rows(path, "snapshots") == [("board", 19, b'{"format": 2}')]


async def test_an_entry_that_was_spoilt_since_is_named_when_it_is_read(path: Path) -> None:
    async with opened(path) as store:
        for revision in (1, 2):
            assert await append(store, revision)
        await store._do(lambda database: database.execute("UPDATE entries SET entry = x'00' WHERE revision = 2"))
        with pytest.raises(StoreError, match="meeting board: entry 2: no Entry of ours"):
            await store.entries(BOARD, 0)
        assert await store.read(BOARD) == record(2)
        assert await append(store, 3)
