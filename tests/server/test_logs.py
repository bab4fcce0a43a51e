import json
import logging
import sys

import pytest
import structlog

from signaling.server.logs import configure_logging

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJl"


def test_a_machine_gets_a_line_of_json_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    structlog.get_logger("signaling.module").info("participant_joined", room="standup", participant="bob")
    written = capsys.readouterr()
    assert written.out == ""
    entry = json.loads(written.err)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "participant_joined",
        "level": "info",
        "logger": "signaling.module",
        "participant": "bob",
        "room": "standup",
    }


def test_a_person_gets_a_line_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    structlog.get_logger("signaling.module").info("participant_joined", room="standup")
    line = capsys.readouterr().err
    assert "participant_joined" in line
    assert "room=standup" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_terminal_is_a_person(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    configure_logging(None, "info")
    structlog.get_logger("signaling").info("ready")
    assert capsys.readouterr().err.startswith("{") is not is_terminal


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")
    log = structlog.get_logger("signaling.module")
    log.info("unseen")
    log.warning("seen")
    assert json.loads(capsys.readouterr().err)["event"] == "seen"


def test_libraries_write_warnings_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "debug")
    for name in ("websockets.server", "signaling.server.websockets", "aiohttp.access", "asyncio"):
        if name.startswith("signaling"):
            logging.getLogger(name).setLevel(logging.WARNING)  # as the server does for its library
        logging.getLogger(name).info("unseen")
        logging.getLogger(name).warning("from %s", name)
        entry = json.loads(capsys.readouterr().err)
        assert (entry["event"], entry["level"], entry["logger"]) == (f"from {name}", "warning", name)


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging("console" if form == "console" else "json", "info")
    secret = "hidden in a variable"
    try:
        _ = secret[len(secret)]
    except IndexError:
        structlog.get_logger("signaling").exception("command_failed")
    written = capsys.readouterr().err
    assert "IndexError" in written
    assert secret not in written.replace(f'secret = "{secret}"', "")


@pytest.mark.parametrize("text", [TOKEN, f"Bearer {TOKEN}", f"ticket#{TOKEN}", "ticket#anything"])
def test_a_token_that_somebody_logs_is_not_written(capsys: pytest.CaptureFixture[str], text: str) -> None:
    configure_logging("json", "info")
    structlog.get_logger("signaling").info("failed", error=f"cannot read {text}, sorry")
    logging.getLogger("aiohttp").warning("cannot read '%s'", text)
    for line in capsys.readouterr().err.splitlines():
        assert "…" in json.loads(line).get("error", json.loads(line)["event"])
        assert TOKEN not in line
        assert "anything" not in line
