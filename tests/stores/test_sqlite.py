"""What is the SQLite store's own: the file, the thread, and what a crash leaves."""

import asyncio
import os
import signal
import sqlite3
import stat
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

import signaling
from signaling.core.participants import Source
from signaling.errors import StoreError, StoreLocked
from signaling.identifiers import CommandId, RoomId
from signaling.stores import sqlite, sqlite_file
from signaling.stores.contract import AuditEntry, Commit, Kept
from signaling.stores.sqlite import SQLiteStore
from signaling.stores.sqlite_log import append_entry
from tests.core.meetings import ALICE, BOARD
from tests.stores.logs import append, commit, following, hand, record

CHILD = """
import asyncio, resource, sys
from pathlib import Path
from signaling.errors import StoreError
from signaling.identifiers import CommandId, ParticipantId
from signaling.stores.contract import AuditEntry, Kept
from signaling.stores.sqlite import SQLiteStore
from tests.stores.logs import BOARD, append, begun, large

def say(*words):
    print(*words, flush=True)

async def main(path):
    store = SQLiteStore(path)
    try:
        await store.open()
    except StoreError as error:
        return say(type(error).__name__, error)
    say("open")
    {body}

asyncio.run(main(Path(sys.argv[1])))
"""
HOLD = "await asyncio.Event().wait()"
WRITE_FOR_EVER = """
    for revision in range(1, 1_000_000):
        audit = AuditEntry(CommandId(f"c-{revision}"), 1.0, ParticipantId("alice"), "force_mute")
        assert await append(store, revision, audit=audit)
        say(revision)
"""
WRITE_BEYOND_THE_LIMIT = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    kept = begun()
    try:
        while await store.append(commit := large(kept)):
            kept = commit.record
    except StoreError as error:
        say(error)
    say(kept.revision, (await store.read(BOARD)).revision)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    say(await store.append(large(kept)))
    await store.close()
"""


@asynccontextmanager
async def child(path: Path, body: str) -> AsyncIterator[tuple[Process, Callable[[], "asyncio.Future[str]"]]]:
    """Another process that opens the store and then does this; with it, what reads its next line."""
    root = Path(signaling.__file__).parents[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD.replace("{body}", body),
        path,
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    output = process.stdout
    assert output is not None

    async def next_line() -> str:
        async with asyncio.timeout(30):
            return (await output.readline()).decode().rstrip("\n")

    try:
        yield process, lambda: asyncio.ensure_future(next_line())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meetings.sqlite"


def audit(number: int) -> AuditEntry:
    return AuditEntry(CommandId(f"c-{number}"), float(number), ALICE, "force_mute")


def writer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "signaling-sqlite"]


@asynccontextmanager
async def busy(store: SQLiteStore) -> AsyncIterator[None]:
    """While this lasts, the writer thread is held up, and what is asked of it waits."""
    begun, released = threading.Event(), threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        begun.set()
        assert released.wait(30)

    waiting = asyncio.create_task(store._do(wait))
    await asyncio.sleep(0)
    assert begun.wait(30)
    try:
        yield
    finally:
        released.set()
        await waiting


# --- Durability --------------------------------------------------------------------------------------------------


async def test_what_was_written_is_there_after_reopening(path: Path) -> None:
    async with opened(path) as store:
        await append(store, 1, audit=audit(1))
        await append(store, 2, audit=audit(2))
        await append(store, 1, RoomId("another"))
        await append(store, 1, RoomId("forgotten"), audit=audit(3))
        await store.forget(RoomId("forgotten"), 1)
    async with opened(path) as store:
        assert await store.rooms() == ("another", "board")
        assert await store.read(BOARD) == record(2)
        assert await store.audit(BOARD, limit=10) == (audit(2), audit(1))
        assert await store.audit(RoomId("forgotten"), limit=10) == ()
        assert not await append(store, 2)
        assert await append(store, 3)


async def test_a_closed_store_can_be_opened_again(path: Path) -> None:
    store = SQLiteStore(path)
    for revision in (1, 2, 3):
        await store.open()
        assert await append(store, revision)
        await store.close()


async def test_a_killed_process_loses_nothing_that_was_acknowledged(path: Path) -> None:
    async with child(path, WRITE_FOR_EVER) as (process, next_line):
        assert await next_line() == "open"
        for revision in range(1, 301):
            assert await next_line() == str(revision)
        process.send_signal(signal.SIGKILL)
        rest = [int(line) async for line in process.stdout if line.endswith(b"\n")] if process.stdout else []
        assert await process.wait() == -signal.SIGKILL
    acknowledged = max([300, *rest])
    async with opened(path) as store:
        kept = await store.read(BOARD)
        assert kept is not None
        # One more may have been committed before the process could say so.
        assert acknowledged <= kept.revision <= acknowledged + 1
        assert kept.state.version == kept.revision
        entries = await store.audit(BOARD, limit=1_000_000)
        assert [entry.command_id for entry in entries] == [f"c-{number}" for number in range(kept.revision, 0, -1)]


async def test_a_full_disk_is_an_error_and_the_store_goes_on_after_it(path: Path) -> None:
    async with child(path, WRITE_BEYOND_THE_LIMIT) as (process, next_line):
        assert await next_line() == "open"
        assert (await next_line()).startswith(f"{path}: ")
        written, read = (await next_line()).split()
        assert int(written) == int(read) > 1
        assert await next_line() == "True"
        assert await process.wait() == 0
    async with opened(path) as store:
        kept = await store.read(BOARD)
        assert kept is not None
        assert kept.revision == int(written) + 1


KEEP_FOR_EVER = """
    for number in range(1_000_000):
        assert await store.keep_once(Kept.TICKET, f"t-{number}", until=10, now=0)
        say(number)
"""


async def test_a_killed_process_has_kept_every_key_that_it_was_first_with(path: Path) -> None:
    async with child(path, KEEP_FOR_EVER) as (process, next_line):
        assert await next_line() == "open"
        for number in range(200):
            assert await next_line() == str(number)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with opened(path) as store:
        kept = await store.kept(Kept.TICKET, now=0)
        assert kept.keys() >= {f"t-{number}" for number in range(200)}
        for number in range(200):
            assert not await store.keep_once(Kept.TICKET, f"t-{number}", until=20, now=0)


async def test_keys_are_kept_over_reopening_until_their_ends(path: Path) -> None:
    async with opened(path) as store:
        for key, until in {"a": 10, "b": 20}.items():
            assert await store.keep_once(Kept.WEBHOOK, key, until=until, now=0)
        assert not await store.keep_once(Kept.WEBHOOK, "a", until=15, now=0)
    async with opened(path) as store:
        assert await store.kept(Kept.WEBHOOK, now=12) == {"a": 15, "b": 20}
        assert not await store.keep_once(Kept.WEBHOOK, "b", until=20, now=12)
        assert await store.keep_once(Kept.WEBHOOK, "a", until=30, now=16)
    async with opened(path) as store:
        assert await store.kept(Kept.WEBHOOK, now=16) == {"a": 30, "b": 20}


async def test_what_has_ended_is_in_the_file_no_longer(path: Path) -> None:
    async with opened(path) as store:
        for number in range(10):
            await store.keep_once(Kept.TICKET, str(number), until=number, now=0)
        await store.keep_once(Kept.TICKET, "10", until=10, now=8)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT key FROM kept ORDER BY until").fetchall() == [("8",), ("9",), ("10",)]


async def test_a_key_that_could_not_be_kept_is_nobodys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    async with opened(path) as store:
        with monkeypatch.context() as patched:
            patched.setattr(sqlite, "_keep_once", fail)
            with pytest.raises(StoreError):
                await store.keep_once(Kept.TICKET, "a", until=10, now=0)
        assert await store.kept(Kept.TICKET, now=0) == {}
        assert await store.keep_once(Kept.TICKET, "a", until=10, now=0)


SCHEMA_1 = """
CREATE TABLE meetings (room TEXT PRIMARY KEY, revision INTEGER NOT NULL, record BLOB NOT NULL);
CREATE TABLE audit (room TEXT NOT NULL, number INTEGER NOT NULL, command_id TEXT NOT NULL, entry BLOB NOT NULL);
CREATE UNIQUE INDEX audit_by_number ON audit (room, number);
CREATE INDEX audit_by_command ON audit (room, command_id);
PRAGMA application_id = 0x4C4B4D4F;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""
"""What the first version made."""
RECORD_1 = b"""{"format":1,"revision":2,"state":{"room":"board","version":3,"members":{"alice":{"role":"moderator",\
"kind":"user","joined_at":1000.0,"display_name":"Alice","breakout":null,"hand_is_up":false,"returns_until":null,\
"knows_moderation":true}},"roles":{},"restricted":["microphone"],"restricted_by_default":[],"restricted_until":{},\
"listed":{"microphone":["bob"]},"blocks":[],"holds":{},"had":{},"bypasses":{},"bans":["mallory"],"presenter":null,\
"unmute_requests":{},"asked_at":{},"mutes":{},"undoable":{},"popouts":{},"departed":[],"rooms":["board"],"doomed":[],\
"empty_since":null},"staged":null}"""
ENTRY_1 = b"""{"format":1,"command_id":"c-1","at":1.0,"moderator":"alice","action":"force_mute","targets":[],\
"outcomes":[],"reason":null}"""


async def test_a_file_of_the_first_version_is_taken_over(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA_1)
        database.execute("INSERT INTO meetings VALUES ('board', 2, ?)", (RECORD_1,))
        database.execute("INSERT INTO audit VALUES ('board', 1, 'c-1', ?)", (ENTRY_1,))
        database.commit()
    for _ in ("upgraded", "opened again"):
        async with opened(path) as store:
            kept = await store.read(BOARD)
            assert kept is not None
            assert kept.revision == 2
            assert kept.state.is_moderator(ALICE)
            assert kept.state.restricted == {Source.MICROPHONE}
            assert kept.state.bans == {"mallory"}
            assert await store.audit(BOARD, limit=10) == (audit(1),)
    async with opened(path) as store:
        assert await store.keep_once(Kept.TICKET, "a", until=10, now=0)
        taken_over = await store.read(BOARD)
        assert taken_over is not None
        assert await store.append(following(taken_over, hand(3)))
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)


# --- One process at a time ---------------------------------------------------------------------------------------


async def test_a_second_process_is_refused(path: Path) -> None:
    async with opened(path) as store, child(path, HOLD) as (_, next_line):
        assert await next_line() == f"StoreLocked {path}: another process holds it"
        assert await append(store, 1)


async def test_what_another_process_holds_can_be_opened_when_that_is_gone(path: Path) -> None:
    async with child(path, HOLD) as (process, next_line):
        assert await next_line() == "open"
        store = SQLiteStore(path)
        with pytest.raises(StoreLocked, match=r"meetings\.sqlite: another process holds it"):
            await store.open()
        assert not writer_threads()
        process.kill()
        await process.wait()
        await store.open()
        await store.close()


async def test_a_second_store_of_this_process_is_refused_and_frees_nothing(path: Path) -> None:
    async with opened(path) as store:
        with pytest.raises(StoreLocked):
            await SQLiteStore(path).open()
        async with child(path, HOLD) as (_, next_line):
            assert (await next_line()).startswith("StoreLocked ")
        assert await append(store, 1)


async def test_opening_twice_is_refused(path: Path) -> None:
    async with opened(path) as store:
        with pytest.raises(StoreError, match="is open already"):
            await store.open()
        assert await append(store, 1)


# --- The file ----------------------------------------------------------------------------------------------------


async def test_the_file_and_its_directories_are_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "moderation" / "meetings.sqlite"
    before = os.umask(0)
    try:
        async with opened(path) as store:
            await append(store, 1)
            files = list(path.parent.iterdir())
    finally:
        os.umask(before)
    assert path in files
    assert len(files) > 1, "the log that is beside it"
    for directory in (path.parent, path.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_the_log_is_for_this_user_only(path: Path) -> None:
    async with opened(path) as store:
        await append(store, 1)
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


async def test_one_file_is_left_when_it_is_closed(path: Path) -> None:
    async with opened(path) as store:
        await append(store, 1)
    assert list(path.parent.iterdir()) == [path]


async def test_a_crash_of_the_process_cannot_lose_what_a_slow_disk_has_not_got_yet(path: Path) -> None:
    async with opened(path) as store:
        assert await store._do(lambda database: database.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
        assert await store._do(lambda database: database.execute("PRAGMA synchronous").fetchone()) == (1,)


def content(path: Path) -> bytes | None:
    return None if path.is_dir() else path.read_bytes()


def damage(path: Path) -> None:
    """Spoil all but the header."""
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))


def a_directory(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("Minutes of the meeting\n" * 1_000)


def something_else(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE invoices (id INTEGER)")


def a_newer_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA application_id = {sqlite_file._APPLICATION_ID}")
        database.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_directory, "is a directory"),
        (text, "file is not a database"),
        (something_else, "is a database of something else"),
        (a_newer_schema, "has schema 99, and this version knows 3 at most"),
    ],
)
async def test_what_is_no_store_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(path)
    before = content(path)
    with pytest.raises(StoreError) as error:
        await SQLiteStore(path).open()
    assert not isinstance(error.value, StoreLocked)
    assert str(error.value) == f"{path}: {reason}"
    assert content(path) == before
    assert not writer_threads()


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    path = tmp_path / "state" / "moderation" / "meetings.sqlite"
    with pytest.raises(StoreError, match=rf"^{path}: .*\({tmp_path / 'state'}\)"):
        await SQLiteStore(path).open()


async def test_a_damaged_file_is_named(path: Path) -> None:
    async with opened(path) as store:
        for number in range(100):
            await append(store, 1, RoomId(f"room-{number}"), audit=audit(number))
    damage(path)
    with pytest.raises(StoreError, match=f"^{path}: .*malformed"):
        await SQLiteStore(path).open()


# --- The thread --------------------------------------------------------------------------------------------------


async def test_no_thread_is_left_after_closing(path: Path) -> None:
    async with opened(path):
        assert len(writer_threads()) == 1
    assert not writer_threads()


async def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    store = SQLiteStore(path)
    for _ in ("before it is opened", "after it was closed"):
        for use in (
            store.rooms,
            lambda: store.read(BOARD),
            lambda: append(store, 1),
            lambda: store.entries(BOARD, 0),
            lambda: store.forget(BOARD, 1),
            lambda: store.audit(BOARD, limit=1),
        ):
            with pytest.raises(StoreError, match=r"meetings\.sqlite: is not open"):
                await use()
        await store.open()
        await store.close()


async def test_closing_finishes_what_was_begun(path: Path) -> None:
    async with opened(path) as store:
        async with busy(store):
            writes = [asyncio.create_task(append(store, revision)) for revision in range(1, 200)]
            await asyncio.sleep(0)  # they begin
            closings = [asyncio.create_task(store.close()) for _ in range(2)]
            await asyncio.sleep(0)
            assert not any(each.done() for each in closings)
        await asyncio.gather(*closings)
        assert all(write.done() for write in writes)
        assert all(await asyncio.gather(*writes))
        assert not writer_threads()
    async with opened(path) as store:
        assert await store.read(BOARD) == record(199)


async def test_a_cancelled_close_closes_all_the_same(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    async with busy(store):
        closing_it = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        closing_it.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing_it
    await store.close()
    assert not writer_threads()


async def test_a_cancelled_open_lets_go_of_everything(path: Path) -> None:
    store = SQLiteStore(path)
    opening = asyncio.create_task(store.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await store.close()
    assert not writer_threads()
    async with opened(path) as another:
        assert await append(another, 1)


async def test_a_write_that_waited_and_was_cancelled_is_made_and_told_of_once(path: Path) -> None:
    async with opened(path) as store:
        commits: list[Commit] = []
        store.listen(commits.append)
        async with busy(store):
            writing = asyncio.create_task(append(store, 1))
            await asyncio.sleep(0)  # it waits
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert await store.read(BOARD) is None
        await store.rooms()
        assert commits == [commit(1)]
        assert await store.read(BOARD) == record(1)


async def test_a_cancelled_write_that_fails_is_told_to_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite, "append_entry", fail)
    async with opened(path) as store:
        commits: list[Commit] = []
        store.listen(commits.append)
        async with busy(store):
            writing = asyncio.create_task(append(store, 1))
            await asyncio.sleep(0)  # it waits
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        assert await store.rooms() == ()
        assert commits == []


# --- Committing together -----------------------------------------------------------------------------------------


async def test_writes_that_wait_together_each_have_their_own_result(path: Path) -> None:
    async with opened(path) as store:
        async with busy(store):
            tasks = [
                asyncio.create_task(append(store, revision, audit=audit(number)))
                for number, revision in enumerate([1, 1, 2, 4, 3, 3])
            ]
            auditing = asyncio.create_task(store.audit(BOARD, limit=10))
            await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == [True, False, True, False, True, False]
        assert [entry.at for entry in await auditing] == [4.0, 2.0, 0.0]
        assert await store.read(BOARD) == record(3)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), ZeroDivisionError()])
async def test_a_write_that_fails_takes_no_other_along(
    path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_one(made: Commit, *rest: object) -> bool:
        written = append_entry(made, *rest)  # type: ignore[arg-type]
        if made.entry.room == "bad":
            raise error
        return written

    monkeypatch.setattr(sqlite, "append_entry", fail_for_one)
    rooms = [RoomId(name) for name in ("a", "bad", "c")]
    async with opened(path) as store:
        async with busy(store):
            tasks = [asyncio.create_task(append(store, 1, room)) for room in rooms]
            await asyncio.sleep(0)
        first, failed, last = await asyncio.gather(*tasks, return_exceptions=True)
        assert first is last is True
        if isinstance(error, sqlite3.Error):
            assert isinstance(failed, StoreError)
            assert str(failed) == f"{path}: disk I/O error"
            assert failed.__cause__ is error
        else:
            assert failed is error
        assert await store.rooms() == ("a", "c")
        assert await store.read(RoomId("bad")) is None


async def test_a_listener_that_raises_keeps_nobody_waiting(path: Path) -> None:
    def raise_it(_: Commit) -> None:
        raise ZeroDivisionError

    logged: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context.get("exception")))
    async with opened(path) as store:
        store.listen(raise_it)
        async with asyncio.timeout(5):
            assert await append(store, 1)
        assert await store.read(BOARD) == record(1)
    assert [type(error) for error in logged] == [ZeroDivisionError]
