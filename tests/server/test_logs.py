import ast
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import signaling
from signaling import metrics
from signaling.server import logs
from signaling.server.logs import REFUSALS_PER_S, LogWriter, configure_logging

LIMIT_S = 20
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJl"


def written(capsys: pytest.CaptureFixture[str]) -> str:
    """What was logged so far."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    return capsys.readouterr().err


def test_a_machine_gets_a_line_of_json_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    structlog.get_logger("signaling.module").info("participant_joined", room="standup", participant="bob")
    entry = json.loads(written(capsys))
    assert capsys.readouterr().out == ""
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
    line = written(capsys)
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
    assert written(capsys).startswith("{") is not is_terminal


def test_a_warning_of_python_is_a_line_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging("json", "info")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        entry = json.loads(written(capsys))
        logging.captureWarnings(capture=False)
    assert (entry["logger"], entry["level"]) == ("py.warnings", "warning")
    assert "DeprecationWarning: old" in entry["event"]


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")
    log = structlog.get_logger("signaling.module")
    log.info("unseen")
    log.warning("seen")
    assert json.loads(written(capsys))["event"] == "seen"


def test_libraries_write_warnings_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "debug")
    for name in ("websockets.server", "signaling.server.websockets", "aiohttp.access", "asyncio"):
        if name.startswith("signaling"):
            logging.getLogger(name).setLevel(logging.WARNING)  # as the server does for its library
        logging.getLogger(name).info("unseen")
        logging.getLogger(name).warning("from %s", name)
        entry = json.loads(written(capsys))
        assert (entry["event"], entry["level"], entry["logger"]) == (f"from {name}", "warning", name)


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging("console" if form == "console" else "json", "info")
    secret = "hidden in a variable"
    try:
        _ = secret[len(secret)]
    except IndexError:
        structlog.get_logger("signaling").exception("command_failed")
    said = written(capsys)
    assert "IndexError" in said
    assert secret not in said.replace(f'secret = "{secret}"', "")


@pytest.mark.parametrize("text", [TOKEN, f"Bearer {TOKEN}", f"ticket#{TOKEN}", "ticket#anything", "bearer anything"])
def test_a_token_that_somebody_logs_is_not_written(capsys: pytest.CaptureFixture[str], text: str) -> None:
    configure_logging("json", "info")
    structlog.get_logger("signaling").info("failed", error=f"cannot read {text}, sorry")
    logging.getLogger("aiohttp").warning("cannot read '%s'", text)
    for line in written(capsys).splitlines():
        assert "…" in json.loads(line).get("error", json.loads(line)["event"])
        assert TOKEN not in line
        assert "anything" not in line


# --- Nobody waits for who reads ----------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, LogWriter]]:
    """A writer into a pipe, and the end from which to read."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = LogWriter(stream, max_waiting_bytes=100_000)
        logger = logging.getLogger("signaling.piped")
        logger.propagate = False
        logger.handlers[:] = [writer]
        logger.setLevel(logging.INFO)
        yield reading, writer
        logger.handlers.clear()
        logger.propagate = True
        os.close(reading)  # who writes is told so, should they still
        writer.close()
        writer._thread.join(LIMIT_S)
        assert not writer._thread.is_alive()


def piped() -> logging.Logger:
    return logging.getLogger("signaling.piped")


def test_who_logs_never_waits_for_who_reads_and_what_was_lost_is_counted(
    pipe: tuple[int, LogWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writer = pipe
    monkeypatch.setattr(logs, "REFUSALS_PER_S", 10_000)  # that is another test
    monkeypatch.setattr(logs, "_FLUSH_S", 0.01)
    before = metrics.LOG_LINES_LEFT_OUT.labels("unread")._value.get()
    for number in range(2_000):
        piped().info("%s %s", number, "x" * 500)
    writer.flush()
    lost = metrics.LOG_LINES_LEFT_OUT.labels("unread")._value.get() - before
    assert 1_000 < lost < 1_900
    numbers: list[int] = []
    told, rest = 0, b""
    while len(numbers) + told < 2_000:
        *lines, rest = (rest + os.read(reading, 65_536)).split(b"\n")
        numbers += [int(line.split()[0]) for line in lines if line[:1].isdigit()]
        told += sum(ast.literal_eval(line.decode())["lines"] for line in lines if line.startswith(b"{"))
    assert told == lost
    assert numbers == sorted(set(numbers))


def test_what_is_written_is_written_when_the_log_is_closed(pipe: tuple[int, LogWriter]) -> None:
    reading, writer = pipe
    piped().info("first")
    piped().info("second")
    writer.close()
    assert os.read(reading, 100) == b"first\nsecond\n"


def test_a_stream_that_is_closed_ends_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    writer = LogWriter(stream)
    before = metrics.LOG_LINES_LEFT_OUT.labels("unread")._value.get()
    for _ in range(2):
        writer.handle(logging.LogRecord("asyncio", logging.ERROR, "", 0, "text", None, None))
        writer.flush()
    assert metrics.LOG_LINES_LEFT_OUT.labels("unread")._value.get() == before + 2
    writer.close()


def test_a_line_that_cannot_be_made_is_one_that_says_so(pipe: tuple[int, LogWriter]) -> None:
    reading, writer = pipe
    writer.handle(logging.LogRecord("asyncio", logging.ERROR, "", 0, "%d", (TOKEN,), None))
    writer.flush()
    line = os.read(reading, 10_000)
    assert b"log_line_failed" in line
    assert TOKEN.encode() not in line


def test_a_line_of_ours_that_cannot_be_made_is_one_that_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    class Unspeakable:
        def __repr__(self) -> str:
            raise ValueError(TOKEN)

    configure_logging("json", "info")
    structlog.get_logger("signaling.module").info("command_applied", outcomes=Unspeakable())
    said = written(capsys)
    entry = json.loads(said)
    assert (entry["event"], entry["at"], entry["error"]) == ("log_line_failed", "signaling.module", "ValueError")
    assert TOKEN not in said


def test_lines_wait_for_others_until_one_is_more_than_information(
    pipe: tuple[int, LogWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_GATHER_S", 10 * LIMIT_S)
    reading, _ = pipe
    piped().info("first")
    piped().info("second")
    piped().error("third")
    assert os.read(reading, 100) == b"first\nsecond\nthird\n"


# --- What anybody can cause --------------------------------------------------------------------------------------


def entries(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_of_each_kind_of_refusal_some_are_written_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    log = structlog.get_logger("signaling.server.handshake")
    for _ in range(500):
        log.info("connection_refused", error="origin")
        log.info("command_applied")
    log.info("connection_refused", error="invalid_ticket")
    found = entries(written(capsys))
    assert len([line for line in found if line["event"] == "command_applied"]) == 500
    refused = [line["error"] for line in found if line["event"] == "connection_refused"]
    assert refused == ["origin"] * REFUSALS_PER_S + ["invalid_ticket"]
    assert found[-1].items() >= {
        "event": "refusals_not_logged", "refused": "connection_refused", "error": "origin",
        "lines": 500 - REFUSALS_PER_S, "level": "warning",
    }.items()  # fmt: skip


def test_each_kind_of_refusal_is_an_event_of_the_log() -> None:
    source = "".join(file.read_text() for file in Path(signaling.__file__).parent.rglob("*.py"))
    assert {event for event in logs.REFUSALS if not re.search(rf'log\.[a-z]+\(\s*"{event}"', source)} == set()


def test_libraries_are_limited_too_and_their_number_is_told_without_another_line(
    pipe: tuple[int, LogWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_WINDOW_S", 0.01)
    reading, _ = pipe
    left_out = metrics.LOG_LINES_LEFT_OUT.labels("refusals")._value
    before = left_out.get()
    while left_out.get() == before:
        piped().error("out of descriptors")
    said = b""
    while b"refusals_not_logged" not in said:
        said += os.read(reading, 65_536)
    assert b"'refused': 'signaling.piped', 'lines': 1" in said


def test_a_new_second_begins_anew() -> None:
    now = 0.0
    limit = logs._RefusalLimit(lambda: now)
    told = [limit.is_over("asyncio", "no more descriptors") for _ in range(REFUSALS_PER_S + 2)]
    assert told == [False] * REFUSALS_PER_S + [True] * 2
    assert list(limit.take_suppressed(at_once=False)) == []
    now = 1
    assert list(limit.take_suppressed(at_once=False)) == [("asyncio", None, 2)]
    assert not limit.has_suppressed
    assert not limit.is_over("asyncio", "no more descriptors")
