import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from signaling.cli.server_commands import add_server_parser
from signaling.livekit.installation import VERSION


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LIVEKIT_SERVER_PATH", raising=False)
    parser = argparse.ArgumentParser()
    add_server_parser(parser.add_subparsers())

    def run(*arguments: str) -> int:
        parsed = parser.parse_args(["server", *arguments])
        status = parsed.run(parsed)
        assert isinstance(status, int)
        return status

    return run


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    path = tmp_path / "livekit-moderation" / f"livekit-server-v{VERSION}"
    path.parent.mkdir()
    path.touch(0o755)
    return path


def test_path_prints_what_would_be_started(
    run: Callable[..., int], installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("path") == 0
    assert capsys.readouterr() == (f"{installed}\n", "")


def test_path_prefers_the_configured_one(
    run: Callable[..., int],
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configured = tmp_path / "mine"
    configured.touch(0o755)
    monkeypatch.setenv("LIVEKIT_SERVER_PATH", str(configured))
    assert run("path") == 0
    assert capsys.readouterr().out == f"{configured}\n"
    monkeypatch.setenv("LIVEKIT_SERVER_PATH", "")
    assert run("path") == 0
    assert capsys.readouterr().out == f"{installed}\n"


def test_path_fails_and_names_the_ways_out_when_there_is_none(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("path") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "livekit-moderation server install" in err
    assert "LIVEKIT_URL" in err


def test_path_fails_when_the_configured_one_is_no_program(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIVEKIT_SERVER_PATH", str(tmp_path))
    assert run("path") == 1
    assert "LIVEKIT_SERVER_PATH" in capsys.readouterr().err


def test_install_does_nothing_when_it_is_installed(
    run: Callable[..., int], installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("install") == 0
    assert capsys.readouterr() == (f"{installed}\n", "")


def test_install_builds_it_and_says_how_it_goes(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(
        "#!/bin/sh\n"
        "PATH=/usr/bin:/bin\n"
        'if [ "$1" = version ]; then echo go version go1.26.0; exit; fi\n'
        'if [ "$1" = env ]; then exit 1; fi\n'
        'mkdir -p "$GOBIN"\n'
        'printf "#!/bin/sh\\necho 1.13.5\\n" >"$GOBIN/server"\n'
        'chmod +x "$GOBIN/server"\n'
    )
    go.chmod(0o755)
    assert run("install") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/livekit-moderation/livekit-server-v{VERSION}\n"
    assert err.splitlines()[-1] == f"Installed livekit-server {VERSION}."


def test_install_fails_when_it_cannot_be_written(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert run("install") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "XDG_CACHE_HOME" in err


def test_no_event_loop_is_left_behind(run: Callable[..., int], installed: Path) -> None:
    assert run("install") == 0
    assert installed.exists()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_command_is_needed(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run()
    assert "COMMAND" in capsys.readouterr().err
