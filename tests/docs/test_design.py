"""The design page and CONTRIBUTING name what is there: files, parts, and who knows whom."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, REPOSITORY, blocks, names, rows
from tests.way_of_a_command import walk

PACKAGE = REPOSITORY / "signaling"
DESIGN = (DOCS / "design.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = {
    **{PACKAGE / f"{names(row[0])[0]}.py": names(row[2]) for row in rows("design.md", "The process")},
    **{PACKAGE / "meeting" / f"{names(row[0])[0]}.py": names(row[2]) for row in rows("design.md", "A meeting")},
}
NO_PARTS = {"__init__", "__main__", "errors", "identifiers", "lazily", "metrics", "settings"}
MODULES = {".".join(part.relative_to(REPOSITORY).with_suffix("").parts): part.stem for part in ROWS}
NOT_WALKED = {"server/connection.py", "server/outbox.py", "meeting/tracks.py"}
"""Of the picture, what the walk does not enter: it has no server around it, and restricts instead of muting."""


def files(page: str) -> set[str]:
    """The files and folders that a page names in its text."""
    return {
        name
        for code in names(page.replace("\n", " "))
        for name in re.findall(r"(?:[\w.]+/)+(?:\w+\.\w+)?|\w+\.py", code)
    }


def parts_known(module: Path) -> list[str]:
    """The parts that a module imports."""
    imports = [node.module for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.ImportFrom)]
    return sorted({MODULES[name] for name in imports if name in MODULES})


def layers(container: str) -> Iterator[list[str]]:
    """The layers of a package, each as pyproject.toml has it."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [contract] = [each for each in contracts if each["type"] == "layers" and each["containers"] == [container]]
    for layer in contract["layers"]:
        yield re.findall(r"\w+", layer)


@pytest.mark.parametrize("page", [DESIGN, CONTRIBUTING], ids=["design", "contributing"])
def test_every_file_that_is_named_is_there(page: str) -> None:
    named = files(page)
    assert len(named) > 10
    assert [name for name in named if not [*REPOSITORY.glob(name), *PACKAGE.rglob(name)]] == []


async def test_a_command_goes_through_the_files_of_the_picture() -> None:
    [picture] = [block for block in blocks() if block.page == "docs/design.md"]
    drawn = set(re.findall(r"[\w/]+\.py", picture.text))
    way = await walk()
    assert drawn > NOT_WALKED
    assert drawn - NOT_WALKED <= set(way.files)


def test_every_part_has_its_line() -> None:
    modules = [*PACKAGE.glob("*.py"), *(PACKAGE / "meeting").glob("*.py")]
    assert ROWS.keys() == {module for module in modules if module.stem not in NO_PARTS}


@pytest.mark.parametrize("part", ROWS, ids=lambda part: part.relative_to(PACKAGE).as_posix())
def test_a_part_knows_those_that_are_listed(part: Path) -> None:
    assert ROWS[part] == parts_known(part)


@pytest.mark.parametrize(("container", "first"), [("signaling", "`cli` →"), ("signaling.meeting", "Inside of")])
def test_the_layers_are_those_that_are_checked(container: str, first: str) -> None:
    [paragraph] = [each for each in DESIGN.split("\n\n") if each.startswith(first)]
    told = paragraph.partition(":")[2] if first == "Inside of" else paragraph
    assert [sorted(names(layer)) for layer in told.split("→")] == [sorted(layer) for layer in layers(container)]
