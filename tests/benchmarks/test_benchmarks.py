"""The benchmarks measure, compare and say what they found; that the figures are good is not for a test to say."""

import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console

from tests.benchmarks import __main__ as program
from tests.benchmarks.measure import Goal, Options, Row, Sample, exponent, growth, in_turns, p95
from tests.benchmarks.report import as_markdown, table

SMALL = Options(rooms=(4,), repeat=1)


def row(**fields: object) -> Row:
    plain = {"benchmark": "mute", "what": "time", "where": "here", "n": 10, "unit": "ms", "measured": [1.0, 2.0, 9.0]}
    return Row(**plain | fields)  # type: ignore[arg-type]


async def test_variants_are_taken_in_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    async def one() -> Sample:
        order.append("one")
        return {"ms": float(len(order))}

    async def many() -> Sample:
        order.append("many")
        return {"ms": [0.5, 0.25]}

    taken = await in_turns({"one": one, "many": many}, 2)
    assert order == ["one", "many", "many", "one", "one", "many"]
    assert taken == {"one": {"ms": [4.0, 5.0]}, "many": {"ms": [0.5, 0.25, 0.5, 0.25]}}


def test_a_ratio_is_of_the_medians() -> None:
    assert row(baseline=[4.0, 3.0, 100.0]).ratio == 0.5
    assert row().ratio is None
    assert row(baseline=[0.0]).ratio is None


@pytest.mark.parametrize(
    ("goal", "is_met"),
    [
        (None, None),
        (Goal(0.5), True),
        (Goal(0.4), False),
        (Goal(2, "measured"), True),
        (Goal(1.9, "measured"), False),
        (Goal(2, "measured", at_least=True), True),
        (Goal(2.1, "measured", at_least=True), False),
        (Goal(8.3, "p95"), True),
        (Goal(8.2, "p95"), False),
    ],
)
def test_a_goal_is_met_by_the_ratio_the_median_or_the_p95(goal: Goal | None, is_met: bool | None) -> None:  # noqa: FBT001
    assert row(baseline=[4.0], goal=goal).is_met is is_met


def test_the_exponent_is_that_of_the_power() -> None:
    assert exponent([10, 100, 1_000], [3.0, 300.0, 30_000.0]) == pytest.approx(2)
    series = [row(n=n, measured=[n * n], baseline=[7 * n]) for n in (10, 100, 300)]
    (grown,) = growth([*series, row(what="at two sizes only"), row(what="at two sizes only", n=20)])
    assert grown.sizes == (10, 100, 300)
    assert grown.exponent == pytest.approx(2)
    assert grown.baseline_exponent == pytest.approx(1)
    assert growth([row(n=n, measured=[0]) for n in (10, 100, 300)]) == []  # nothing grows where there is nothing


def test_a_goal_says_what_it_is_asked_of() -> None:
    assert str(Goal(1_100, "p95")) == "p95 ≤ 1,100"
    assert str(Goal(1.5)) == "ratio ≤ 1.5"
    assert str(Goal(500, "measured", at_least=True)) == "≥ 500"


def test_a_full_run_tries_each_cheat_twenty_times() -> None:
    assert Options().cheats == 20
    assert SMALL.cheats == 1


def test_nineteen_of_twenty_are_below_p95() -> None:
    assert p95([float(number) for number in range(21)]) == 19
    assert p95([3.0]) == 3


def test_what_is_not_met_and_what_could_not_be_measured_is_shown() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table([row(baseline=[1.0], goal=Goal(1.5))], {"memory": "OSError: no room"}))
    shown = [[cell.strip() for cell in line.split("│")] for line in console.export_text().splitlines()]
    assert ["", "mute: time", "here", "10", "2 (8.3) ms", "1 ms", "2.00", "ratio ≤ 1.5", "no", ""] in shown
    assert ["", "memory", "not measured: OSError: no room", *[""] * 7] in shown


async def test_a_benchmark_that_fails_does_not_keep_others_from_being_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_options: Options) -> AsyncIterator[Row]:
        yield row()
        raise OSError("no room")

    async def works(_options: Options) -> AsyncIterator[Row]:
        yield row(n=20)

    monkeypatch.setattr(program, "BENCHMARKS", {"fails": fails, "works": works})
    rows, failures = await program.measure(["fails", "works"], SMALL, Console(quiet=True))
    assert [each.n for each in rows] == [10, 20]
    assert failures == {"fails": "OSError: no room"}


@pytest.mark.parametrize(
    "names",
    [["mute", "one", "restriction"], ["cheats"], ["repair"], ["command", "echo", "broadcast", "joins"], ["nodes"]],
)
def test_the_program_measures_on_real_servers(names: list[str], tmp_path: Path) -> None:
    written, page = tmp_path / "measured.json", tmp_path / "page.md"
    options = ["--rooms", "4", "--repeat", "1", "--json", str(written), "--markdown", str(page)]
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tests.benchmarks", "--only", *names, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(written.read_text())
    assert found["failures"] == {}
    assert found["options"] == {"rooms": [4], "repeat": 1}
    assert found["machine"].keys() == {"cpu", "cores", "kernel", "python", "livekit_server", "date"}
    assert {each["benchmark"] for each in found["rows"]} == set(names)
    for each in found["rows"]:
        assert each["what"] in ran.stdout + page.read_text()
        assert each["measured"]["median"] == pytest.approx(median(each["measured"]["samples"]), abs=1e-6)
        if each["ratio"] is not None:
            below = median(each["baseline"]["samples"])
            assert each["ratio"] == pytest.approx(each["measured"]["median"] / below, rel=1e-3)
    timed = [each for each in found["rows"] if each["unit"] in {"ms", "/s"}]
    # On a machine with other work no load may keep to its limit, which is then 0 a second.
    timed = [each for each in timed if "at p99" not in each["what"]]
    assert all(each["ratio"] > 0 for each in timed if each["baseline"] is not None)
    # The CPU of one of two processes is what one of both takes less that of the other.
    never_nothing = [
        each for each in timed if each["benchmark"] not in {"command", "cheats"} and "alone" not in each["what"]
    ]
    assert all(min(each["measured"]["samples"]) > 0 for each in never_nothing)
    for sweep_alone in [each for each in timed if "SWEEP" in each["where"] and "screen" in each["what"]]:
        assert min(sweep_alone["measured"]["samples"]) > 500  # it is heard for the second in which its picture may come


def test_the_page_has_a_table_for_each_benchmark_and_the_exponents() -> None:
    rows = [row(n=n, measured=[float(n)], baseline=[2.0 * n], baseline_is="half as fast") for n in (10, 100, 300)]
    page = as_markdown([*rows, row(benchmark="echo")], SMALL)
    assert "## Mute" in page
    assert "## Echo" in page
    assert "| time | here | 300 | 300 ms | 600 ms | 0.50 |" in page
    assert "- Against half as fast: time." in page
    assert "| mute: time | here | 10, 100, 300 | 1.00 | 1.00 |" in page
