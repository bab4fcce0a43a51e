import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.mutants import ROOT, Mutant, Stale, read, read_all

MUTANTS = read_all()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.where)
def test_none_is_out_of_date(mutant: Mutant) -> None:
    """Change the list together with the code: what is named there must be in the file exactly once."""
    compile(mutant.source(), mutant.file, "exec")
    assert mutant.new != mutant.old
    assert mutant.tests
    assert [test for test in mutant.tests if not (ROOT / test.partition("::")[0]).is_file()] == []


def test_there_are_many_and_few_that_need_an_explanation() -> None:
    assert len(MUTANTS) >= 150
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert sum(mutant.explanation != "" for mutant in MUTANTS) < len(MUTANTS) / 10


LIST = """\
# What is read over

@ signaling/core/policy.py: tests/core/test_policy.py

-     if participant in state.bans:
+     if participant not in state.bans:

-     if participant in state.bans:
-         return ()
+     if participant in state.bans:
+         return tuple()
? The same in other
? words.

-     known = _known.get(key)
-     if known is None:
+     if True:
"""


def test_a_list_is_read(tmp_path: Path) -> None:
    (path := tmp_path / "some.txt").write_text(LIST)
    first, second, third = read(path)
    assert (first.where, first.file, first.tests) == (
        "some.txt:5",
        "signaling/core/policy.py",
        ("tests/core/test_policy.py",),
    )
    assert (first.old, first.new, first.explanation) == (
        "    if participant in state.bans:",
        "    if participant not in state.bans:",
        "",
    )
    assert (second.where, second.explanation) == ("some.txt:8", "The same in other words.")
    assert third.new == "    if True:"


@pytest.mark.parametrize("wrong", ["+ x\n", "- x\n= y\n", "-x\n+ y\n"])
def test_what_is_no_mutation_is_told(tmp_path: Path, wrong: str) -> None:
    (path := tmp_path / "some.txt").write_text(f"@ a.py: b.py\n\n{wrong}")
    with pytest.raises(ValueError, match=r"some\.txt:3 is no mutation"):
        list(read(path))


@pytest.mark.parametrize(("old", "times"), [("no such line", 0), ("return", 2)])
def test_a_mutation_of_what_is_not_there_once_is_out_of_date(tmp_path: Path, old: str, times: int) -> None:
    (tmp_path / "a.py").write_text("return\nreturn\n")
    with pytest.raises(Stale, match=f"is there {times} times"):
        Mutant("some.txt:1", "a.py", (), old, "x").source(tmp_path)


def test_a_fault_is_noticed_or_not_and_only_the_latter_needs_words(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text(LIST)
    process = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-m", "tests.mutants", "--lists", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    kinds = [line[:21].strip() for line in process.stdout.splitlines() if ".txt:" in line]
    assert kinds == ["killed", "survived, explained", "SURVIVED"], process.stdout + process.stderr
    assert process.returncode == 1
    assert "The same in other words." in process.stdout
    assert "1 killed, 1 survived, explained, 1 SURVIVED, 0 BROKEN" in process.stdout
