"""What is said of a soak: when it counts as failed, and where its table goes."""

from pathlib import Path

import pytest

from tests.soak.report import Report, table, write

PAGE = "Before.\n\n<!-- what `make soak` measured last, written by itself: begin -->\nold\n<!-- end -->\n\nAfter.\n"


def report() -> Report:
    made = Report(seed=7, seconds=600, people=300, rooms=30, nodes=3, media="real", listened_to=10)
    made.heard_ever = 100
    made.seen = {"a turn taken over": 3, "a lost answer repeated": 1}
    return made


def test_it_fails_by_what_it_never_saw() -> None:
    made = report()
    assert made.failures == []
    made.seen["a lost answer repeated"] = 0
    assert made.failures == ["never seen: a lost answer repeated"]


def test_it_fails_by_what_was_wrong() -> None:
    made = report()
    made.wrong = ["audited_once: x was lost", "told_in_order: y was left out"]
    made.beyond, made.left_heard, made.broken = ["bob in room-1"], ["carol in room-2"], ["node-0: a traceback"]
    assert len(made.failures) == 5
    rows = dict(line.strip("| ").rsplit(" | ", 1) for line in table(made)[2:])
    assert rows["of the acknowledged: lost, answered before their commit, or otherwise than kept"] == "1"
    assert rows["sessions with events left out, twice or out of order"] == "1"
    assert rows["people heard who may not be, for longer than one node takes"] == "1"


def test_the_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write(report(), page)
    written = page.read_text()
    assert written.startswith("Before.\n\n<!--")
    assert written.endswith("<!-- end -->\n\nAfter.\n")
    assert "| people, rooms, nodes | 300, 30, 3 |" in written
    assert "old" not in written
    write(report(), page)
    assert page.read_text() == written


def test_a_page_without_a_place_for_it_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Nothing here.")
    with pytest.raises(ValueError, match="no place"):
        write(report(), page)
