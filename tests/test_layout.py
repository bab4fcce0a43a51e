"""How long modules and classes may be. What is longer still has a limit of its own here, until it is split."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE_LINES = 450
CLASS_LINES = 300
LONGER: dict[str, int] = {}


def lengths(path: Path) -> dict[str, int]:
    """How many lines a module has, and each class in it."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    found = {name: len(text.splitlines())}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.end_lineno is not None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[f"{name}: {node.name}"] = node.end_lineno - first + 1
    return found


LENGTHS = {name: lines for path in sorted((ROOT / "signaling").rglob("*.py")) for name, lines in lengths(path).items()}


def limit(name: str) -> int:
    return MODULE_LINES if name.endswith(".py") else CLASS_LINES


def test_no_module_and_no_class_is_long() -> None:
    assert len(LENGTHS) > 100
    assert {name: lines for name, lines in LENGTHS.items() if lines > LONGER.get(name, limit(name))} == {}


def test_what_is_long_no_longer_has_no_limit_of_its_own() -> None:
    assert [name for name in LONGER if LENGTHS.get(name, 0) <= limit(name)] == [], "take them out of LONGER"
