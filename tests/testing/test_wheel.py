"""The package as others get it: a wheel in an environment with nothing of ours around it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
LOCK = ROOT / ".ci" / "requirements.lock"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    ended = subprocess.run(  # noqa: S603 - commands of this test
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and what it asks for, in the versions that are locked."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    (wheel,) = directory.glob("*.whl")
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--python", sys.executable, directory / "venv", cwd=directory)
    python = directory / "venv" / "bin" / "python"
    wanted = [f"livekit-moderation[testing] @ {wheel.as_uri()}", "pytest-asyncio"]
    run(uv, "pip", "install", "--quiet", "--python", python, "--constraint", LOCK, *wanted, cwd=directory)
    return python


def test_the_tests_in_the_docs_pass(python: Path, tmp_path: Path) -> None:
    page = MarkdownIt().parse((ROOT / "docs" / "testing.md").read_text())
    blocks = [token.content for token in page if token.type == "fence" and token.info == "python"]
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    printed = run(python, "-m", "pytest", "-p", "no:cacheprovider", "-q", cwd=tmp_path)
    assert f"{len(blocks)} passed" in printed
    assert len(blocks) >= 3


def test_the_command_line_is_there(python: Path, tmp_path: Path) -> None:
    assert "serve" in run(python.with_name("livekit-moderation"), "--help", cwd=tmp_path)
