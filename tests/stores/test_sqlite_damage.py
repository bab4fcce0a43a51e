"""What a SQLite store does when somebody lays hands on its file, or the disk is full, while it runs."""

import asyncio
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from signaling.core.changes import Banned, Unbanned
from signaling.errors import StoreError, StoreLocked
from signaling.identifiers import ParticipantId, RoomId
from signaling.stores import sqlite
from signaling.stores.contract import AuditEntry, Kept
from signaling.stores.sqlite import SQLiteStore
from tests.core.meetings import BOARD
from tests.meeting_on_fake import until
from tests.stores.logs import append, begun, following, hand, large, record
from tests.stores.test_sqlite import HOLD, audit, busy, child, opened, writer_threads

OTHER = RoomId("another")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "meetings.sqlite"


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


# --- Hands laid on the file --------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def delete_the_log(path: Path) -> None:
    log_of(path).unlink()


def delete_everything(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


def replace_by_text(path: Path) -> None:
    path.unlink()
    path.write_text("Minutes of the meeting\n" * 1_000)


def replace_by_something_else(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE invoices (id INTEGER)")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


def overwrite_the_log(path: Path) -> None:
    with log_of(path).open("r+b") as file:
        file.write(b"\xff" * log_of(path).stat().st_size)


def spoil_one_byte_of_the_log(path: Path) -> None:
    with log_of(path).open("r+b") as file:
        file.seek(40)
        file.write(bytes([file.read(1)[0] ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def truncate_the_log(path: Path) -> None:
    os.truncate(log_of(path), 100)


HANDS = [
    delete,
    delete_the_log,
    delete_everything,
    move_away,
    replace_by_a_copy,
    replace_by_text,
    replace_by_something_else,
    overwrite,
    overwrite_the_log,
    spoil_one_byte_of_the_log,
    truncate,
    truncate_the_log,
]


async def fill(store: SQLiteStore) -> None:
    for revision in (1, 2):
        assert await append(store, revision, audit=audit(revision))
    assert await append(store, 1, OTHER, audit=audit(1))
    assert await append(store, 1, RoomId("forgotten"), audit=audit(1))
    assert await store.forget(RoomId("forgotten"), 1)
    assert await store.keep_once(Kept.TICKET, "t", until=10, now=0)
    assert await store.keep_once(Kept.CLOSED_ROOM, "r", until=20, now=0)


async def until_written(store: SQLiteStore, revision: int, entry: AuditEntry | None = None) -> None:
    """Try for as long as the store does not."""

    async def try_it() -> bool:
        try:
            return await append(store, revision, audit=entry)
        except StoreError:
            return False

    async with asyncio.timeout(10):
        while not await try_it():  # noqa: ASYNC110 - there is no event for what another process holds
            await asyncio.sleep(0.01)


async def crashed(path: Path) -> Path:
    """What is found in the place of the file by a process that is started after the other one was killed."""
    there = path.parent.parent / "after"
    shutil.copytree(path.parent, there)
    return there / path.name


async def check_all_is_there(path: Path, revision: int) -> None:
    async with opened(path) as store:
        assert await store.rooms() == (OTHER, BOARD)
        assert await store.read(BOARD) == record(revision)
        assert await store.read(OTHER) == record(1, OTHER)
        assert await store.kept(Kept.TICKET, now=0) == {"t": 10}
        assert await store.kept(Kept.CLOSED_ROOM, now=0) == {"r": 20}


@pytest.mark.parametrize("lay_hands_on", HANDS, ids=lambda each: each.__name__)
async def test_nothing_that_was_acknowledged_is_lost_with_the_file(
    path: Path, lay_hands_on: Callable[[Path], None]
) -> None:
    async with opened(path) as store:
        await fill(store)
        with capture_logs() as logs:
            lay_hands_on(path)
            assert await append(store, 3)
        await check_all_is_there(await crashed(path), 3)
        assert await append(store, 4)
    await check_all_is_there(path, 4)
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("store_damaged", "error"),
        ("store_renewed", "warning"),
    ]


@pytest.mark.parametrize("lay_hands_on", HANDS, ids=lambda each: each.__name__)
async def test_it_is_noticed_although_nothing_is_written(
    path: Path, lay_hands_on: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_LOOK_S", 0.01)
    async with opened(path) as store:
        await fill(store)
        with capture_logs() as logs:
            lay_hands_on(path)
            await until(lambda: "store_renewed" in [line["event"] for line in logs])
        await check_all_is_there(await crashed(path), 2)


async def test_once_is_enough(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_LOOK_S", 0.01)
    async with opened(path) as store:
        await fill(store)
        with capture_logs() as logs:
            for revision in range(3, 100):
                assert await append(store, revision)
                if revision % 30 == 0:
                    delete(path)
    assert [line["event"] for line in logs] == ["store_damaged", "store_renewed"] * 3


def spoil_and_fail(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM meetings")
    raise ZeroDivisionError


async def test_nobody_who_writes_much_is_taken_for_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_LOOK_S", 0.001)
    with capture_logs() as logs:
        async with opened(path) as store:
            kept = begun()
            for _ in range(100):  # past the size at which SQLite brings its log into the file
                padding = frozenset(ParticipantId(f"{kept.revision}-{number:0100}") for number in range(500))
                made = following(kept, Banned(padding), Unbanned(padding), hand(kept.revision))
                assert await store.append(made)
                kept = made.record
                await store.check()
            assert path.stat().st_size > 50_000
            with pytest.raises(ZeroDivisionError):
                await store._do(spoil_and_fail)
            await store.check()
    assert logs == []


async def test_the_audit_is_saved_as_far_as_the_old_file_can_be_read(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
        delete_everything(path)
        assert await append(store, 3, audit=audit(3))
        assert await store.audit(BOARD, limit=10) == (audit(3), audit(2), audit(1))
        assert await store.audit(RoomId("forgotten"), limit=10) == ()
        await store._do(lambda database: database.execute("UPDATE audit SET entry = x'00' WHERE command_id = 'c-2'"))
        delete(path)
        assert await store.audit(BOARD, limit=10) == (audit(3), audit(1))


async def test_what_somebody_put_in_its_place_is_kept_beside_it(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
        replace_by_text(path)
        theirs = path.read_bytes()
        await store.check()
        assert path.with_name("meetings.sqlite.replaced").read_bytes() == theirs
        overwrite(path)
        await store.check()
    assert sorted(each.name for each in path.parent.iterdir()) == ["meetings.sqlite", "meetings.sqlite.replaced"]


async def test_a_database_that_somebody_put_in_its_place_is_kept_as_it_was_used(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
        replace_by_something_else(path)
        await store.check()
    with closing(sqlite3.connect(path.with_name("meetings.sqlite.replaced"))) as theirs:
        assert theirs.execute("SELECT name FROM sqlite_master").fetchall() == [("invoices",)]
    await check_all_is_there(path, 2)


async def test_writes_that_wait_together_are_all_in_the_new_file_once(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
        async with busy(store):
            delete(path)
            writes = [asyncio.create_task(append(store, n, audit=audit(n))) for n in (3, 4, 4, 5)]
            await asyncio.sleep(0)
        assert await asyncio.gather(*writes) == [True, True, False, True]
        assert [entry.at for entry in await store.audit(BOARD, limit=10)] == [5, 4, 3, 2, 1]


async def test_damage_that_only_reading_shows_is_made_good_too(path: Path) -> None:
    def find_it_malformed(database: sqlite3.Connection) -> str:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if found := database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise AssertionError(found)
        if path.stat().st_ino == before:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        return str(version)

    async with opened(path) as store:
        await fill(store)
        before = path.stat().st_ino
        assert await store._do(find_it_malformed) == "3"
    await check_all_is_there(path, 2)


async def test_a_file_that_another_process_made_meanwhile_is_left_to_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_LOOK_S", 60)  # so that the other process comes first
    async with opened(path) as store:
        await fill(store)
        with capture_logs() as logs:
            delete(path)
            async with child(path, HOLD) as (process, next_line):
                assert await next_line() == "open"
                monkeypatch.setattr(sqlite, "_LOOK_S", 0.01)
                for _ in range(3):
                    with pytest.raises(StoreLocked, match="another process holds it"):
                        await append(store, 3)
                with pytest.raises(StoreLocked):
                    await store.check()
                assert await store.read(BOARD) == record(2)
                process.send_signal(signal.SIGKILL)
                await process.wait()
            await until_written(store, 3)
    events = [line["event"] for line in logs]
    assert events == ["store_damaged", "store_not_renewed", "store_renewed"]
    await check_all_is_there(path, 3)


async def test_while_it_cannot_be_made_anew_nothing_is_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_LOOK_S", 0.01)
    async with opened(path) as store:
        await fill(store)
        shutil.rmtree(path.parent)
        path.parent.write_text("in the way")
        for _ in range(3):
            with pytest.raises(StoreError, match=r"meetings\.sqlite: "):
                await append(store, 3, audit=audit(3))
            with pytest.raises(StoreError):
                await store.check()
        assert await store.read(BOARD) == record(2)
        path.parent.unlink()
        await until_written(store, 3, audit(3))
        assert [entry.at for entry in await store.audit(BOARD, limit=10)] == [3, 2, 1]
    await check_all_is_there(path, 3)
    assert not writer_threads()


# --- The disk is full --------------------------------------------------------------------------------------------


async def test_a_store_that_is_full_says_so_until_it_is_no_longer(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
        pages = (await store._do(lambda database: database.execute("PRAGMA page_count").fetchone()))[0]
        await store._do(lambda database: database.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(StoreError, match="database or disk is full"):
                    await store.append(large(record(2)))
                with pytest.raises(StoreError, match="database or disk is full"):
                    await store.check()
            assert await append(store, 3), "what is small enough is kept"
            with pytest.raises(StoreError):
                await store.check()
            await store._do(lambda database: database.execute("PRAGMA max_page_count = 10000").fetchone())
            await store.check()
            assert await store.append(made := large(record(3)))
            await store.check()
    assert logs == [], "it is not taken for damage"
    async with opened(path) as store:
        assert await store.read(BOARD) == made.record


CHECK_BEYOND_THE_LIMIT = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    async def tell():
        try:
            await store.check()
        except StoreError as error:
            return error
        return "written"
    for number in range(100):
        answer = await tell()
        if answer != "written":
            break
    say(answer)
    say(await tell())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    say(await tell())
    await store.close()
"""


async def test_a_full_disk_is_found_by_asking_alone(path: Path) -> None:
    async with child(path, CHECK_BEYOND_THE_LIMIT) as (process, next_line):
        assert await next_line() == "open"
        for _ in range(2):
            assert (await next_line()).startswith(f"{path}: ")
        assert await next_line() == "written"
        assert await process.wait() == 0
