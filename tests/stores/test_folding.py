"""Whatever is committed: a log that is folded anew gives the record that the writer had."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signaling.core.applying import apply
from signaling.core.changes import Change, Ended, HandSet, Restricted
from signaling.core.decisions import Decision, decide
from signaling.core.participants import Source
from signaling.core.state import MeetingState
from signaling.identifiers import CommandId, SessionId
from signaling.stores import sqlite_log
from signaling.stores.contract import AuditEntry, Commit, Entry, Origin, Record, Staged, Store, Unstaged, fold
from signaling.stores.memory import MemoryStore
from signaling.stores.serialization import dump_entry, load_entry
from signaling.stores.sqlite import SQLiteStore
from signaling.stores.sqlite_log import LEAST_BYTES
from tests.core.meetings import ALICE, AT, BOARD, BOB, MEETING
from tests.core.test_rules import BEGUN, BEGUN_BY_PERMISSION, OPENING, STEPS, concluded_with

GRANTED = Decision(CommandId("c-1"), "restrict", ALICE, 1.0, (Restricted(Source.CAMERA, frozenset()),), is_action=True)
FIRST, SECOND = SessionId("s-1"), SessionId("s-2")
ORIGINS = st.sampled_from([None, Origin(FIRST), Origin(FIRST, 7), Origin(SECOND, "seven")])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)  # JSON has no others, and all of ours are times
st.register_type_strategy(float, NUMBERS)
CHANGES: st.SearchStrategy[Change] = st.one_of(*map(st.from_type, get_args(Change)))


# --- Folding -----------------------------------------------------------------------------------------------------


def test_an_entry_changes_the_record_before() -> None:
    raised = HandSet(BOB, up=True, at=5.0)
    after = fold(Record(6, MEETING, GRANTED), Entry(BOARD, 7, 5.0, (raised,)))
    assert after == Record(7, apply(MEETING, [raised]), GRANTED)


def test_the_first_entry_changes_what_the_meeting_begins_as() -> None:
    raised = HandSet(BOB, up=True, at=5.0)
    after = fold(Record(0, MeetingState(BOARD)), Entry(BOARD, 1, 5.0, (raised,), MEETING))
    assert after == Record(1, apply(MEETING, [raised]))


@pytest.mark.parametrize("before", [None, GRANTED, replace(GRANTED, command_id=CommandId("c-2"))])
def test_what_is_staged_stays_until_something_else_is_or_nothing(before: Decision | None) -> None:
    record = Record(6, MEETING, before)
    staged = [fold(record, Entry(BOARD, 7, 5.0, staging=each)).staged for each in (None, Staged(GRANTED), Unstaged())]
    assert staged == [before, GRANTED, None]


@pytest.mark.parametrize("staging", [None, Staged(GRANTED)])
def test_a_meeting_that_is_over_has_nothing_staged(staging: Staged | None) -> None:
    after = fold(Record(6, MEETING, GRANTED), Entry(BOARD, 7, 5.0, (Ended(),), staging=staging))
    assert not after.state.goes_on
    assert after.staged is None


@pytest.mark.parametrize("is_undoable", [True, False])
def test_what_a_command_did_can_be_undone_by_its_id_if_it_is_of_that_kind(is_undoable: bool) -> None:  # noqa: FBT001
    entry = Entry(BOARD, 7, 5.0, GRANTED.changes, command_id=CommandId("c-1"), is_undoable=is_undoable)
    assert [*fold(Record(6, MEETING), entry).state.undoable] == ["c-1"] * is_undoable


# --- Logs at random ----------------------------------------------------------------------------------------------


def draw_log(data: st.DataObject) -> list[Commit]:
    """What is committed to some meeting: commands as they are staged and concluded, and changes that nobody decided."""
    made = list[Commit]()
    record = Record(0, data.draw(st.sampled_from([BEGUN, BEGUN_BY_PERMISSION])))

    def append(changes: tuple[Change, ...], staging: Staged | Unstaged | None = None, **other: Any) -> None:  # noqa: ANN401 - of several types
        nonlocal record
        begins_as = None if record.revision else record.state
        entry = Entry(BOARD, record.revision + 1, AT, changes, begins_as, staging, **other)
        made.append(Commit(entry, fold(record, entry)))
        record = made[-1].record

    for number, (sender, command) in enumerate([*OPENING, *data.draw(st.lists(STEPS, min_size=1, max_size=20))]):
        decision = decide(record.state, sender, command, now=AT, command_id=CommandId(f"c-{number}"))
        if not isinstance(decision, Decision):
            append(tuple(data.draw(st.lists(CHANGES, max_size=2))), origin=data.draw(ORIGINS))
            continue
        if is_staged := data.draw(st.booleans()):
            append((), Staged(decision))
        conclusion = concluded_with(data, record.state, decision)
        append(
            conclusion.changes,
            Unstaged() if is_staged else None,
            command_id=decision.command_id,
            is_undoable=decision.is_action,
            announcements=conclusion.announcements,
            audit=AuditEntry(decision.command_id, AT, sender, decision.action, outcomes=conclusion.outcomes),
            origin=data.draw(ORIGINS),
        )
    return made


def folded(before: Record, entries: Sequence[Entry]) -> Record:
    return reduce(fold, entries, before)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_an_entry_that_was_kept_makes_the_record_that_it_made_before(data: st.DataObject) -> None:
    made = draw_log(data)
    assert [load_entry(dump_entry(each.entry)) for each in made] == [each.entry for each in made]
    again = [load_entry(dump_entry(each.entry)) for each in made]
    assert folded(Record(0, MeetingState(BOARD)), again) == made[-1].record


def memory(_: Path) -> Store:
    return MemoryStore()


def sqlite(directory: Path) -> Store:
    return SQLiteStore(directory / "meetings.sqlite")


@pytest.mark.parametrize("make", [memory, sqlite])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_a_log_that_is_folded_anew_gives_the_record_that_the_writer_had(
    make: Callable[[Path], Store], data: st.DataObject
) -> None:
    made = draw_log(data)
    reopened_at = data.draw(st.sets(st.integers(0, len(made))))
    least_bytes = data.draw(st.sampled_from([0, 3_000, LEAST_BYTES]))

    async def check(store: Store, revision: int) -> None:
        assert await store.read(BOARD) == (made[revision - 1].record if revision else None)
        for after in range(1, revision + 1):
            entries = await store.entries(BOARD, after)
            if entries is not None:
                assert folded(made[after - 1].record, entries) == made[revision - 1].record
        assert not revision or await store.entries(BOARD, revision) == ()
        entries = await store.entries(BOARD, 0)
        if entries is not None:
            assert folded(Record(0, MeetingState(BOARD)), entries) == made[revision - 1].record

    async def run(directory: Path) -> None:
        store = make(directory)
        await store.open()
        for revision, each in enumerate(made, start=1):
            assert await store.append(each)
            assert not await store.append(each)
            if revision in reopened_at or each is made[-1]:
                await check(store, revision)
                await store.close()
                await store.open()
                await check(store, revision)
        await store.close()

    with TemporaryDirectory() as directory, patch.object(sqlite_log, "LEAST_BYTES", least_bytes):
        asyncio.run(run(Path(directory)))
