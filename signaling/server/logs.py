"""How the stand-alone server logs: to standard error, for a person or for a machine, and never a secret."""

import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TextIO

import structlog

from signaling import metrics

REFUSALS: Final = frozenset(
    {
        *("bad_request", "connection_refused", "connections_full", "webhook_refused"),
        *("connection_not_joined", "flood_cut_off", "slow_reader_cut_off"),
    }
)
"""What anybody can cause who reaches a port, or has a ticket: so many lines of each kind, and then their number."""
REFUSALS_PER_S: Final = 10
_PATIENT: Final = frozenset({"debug", "info"})
"""Lines of these levels wait for others."""
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
"""What waits to be written when nobody reads standard error; lines beyond that are counted, and gone."""
_FLUSH_S: Final = 1
"""How long the end waits for who does not read."""
_GATHER_S: Final = 0.02
"""How long lines wait for others, since the thread that writes them takes the interpreter from whoever logs."""
_WINDOW_S: Final = 1

_TOKEN: Final = re.compile(
    r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+|(?<=ticket#)[^\s\"',]+|(?<=bearer )[^\s\"',]+", re.IGNORECASE
)
_TOKEN_SIGNS: Final = ("eyj", "et#", "earer ")
"""What is in a line, in lower case, before the expression finds anything: it takes longer than making the line."""


def configure_logging(
    form: Literal["console", "json"] | None, level: Literal["debug", "info", "warning", "error"]
) -> "LogWriter":
    """
    Send what this package and its libraries log to standard error.

    Args:
        form: `None` for `console` on a terminal, else `json`.
        level: The least that is written; of libraries, warnings at least, since what they say below holds tokens.

    Returns:
        What writes; it is flushed when the process ends.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    for_people = form == "console" or (form is None and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )  # a richer traceback would show variables
        ]
        if for_people
        else [structlog.processors.format_exc_info, _to_json]
    )
    writer = LogWriter(sys.stderr)
    writer.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer, _hide_tokens],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [writer]
    logging.captureWarnings(capture=True)  # else they go between the lines, and wait for who reads
    root.setLevel(logging.WARNING)
    logging.getLogger("signaling").setLevel(level.upper())
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, _Writing(writer, (*renderer, _hide_tokens))],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return writer


class _Writing:
    """
    Ends what structlog does with a line: it goes to the writer without the standard library.

    That would look for the caller, and take a record and two copies for it: most of what a line costs.
    """

    def __init__(self, writer: "LogWriter", renderer: Sequence[structlog.typing.Processor]) -> None:
        self._writer = writer
        self._renderer = renderer

    def __call__(self, logger: logging.Logger, method: str, line: MutableMapping[str, Any]) -> NoReturn:
        """Make the line and put it in, unless it is one too many."""

        def make() -> bytes:
            rendered: Any = line
            try:
                for processor in self._renderer:
                    rendered = processor(logger, method, rendered)
                return _encoded(rendered)
            except Exception as error:  # noqa: BLE001 - whoever logs is not to fail for it
                return self._writer.fail(logger.name, error)

        self._writer.put(logger.name, line, make, at_once=line["level"] not in _PATIENT)
        raise structlog.DropEvent


class LogWriter(logging.Handler):
    """
    Writes lines in a thread of its own, so that whoever logs never waits for who reads.

    What does not fit, because nobody reads, is left out, and so is what one kind of refusal has beyond
    `REFUSALS_PER_S`: both are counted, and their numbers are written as soon as they can be.

    Args:
        stream: Where to.
        max_waiting_bytes: What may wait to be written.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._write = _writing_to(stream)
        self._max_waiting_bytes = max_waiting_bytes
        self._limit = _RefusalLimit(clock)
        self._changed = threading.Condition()
        """Guards what follows, and the limit; whoever writes does so without it."""
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._left_out = 0
        self._is_urgent = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line in; never waits."""
        self.put(record.name, record.msg, lambda: self._line_of(record), at_once=record.levelno > logging.INFO)

    def put(self, logger: str, message: object, make_line: Callable[[], bytes], *, at_once: bool) -> None:
        """
        Put a line in, unless it is one too many; never waits.

        Args:
            message: What structlog made of it, a dictionary; else what a library says.
            make_line: Called if the line is to be written.
            at_once: Not to wait for others, so that it is there whatever comes next.
        """
        with self._changed:
            had_suppressed = self._limit.has_suppressed
            if self._limit.is_over(logger, message):
                metrics.LOG_LINES_LEFT_OUT.labels("refusals").inc()
                if not had_suppressed:  # else the thread wakes up to tell of them anyway
                    self._changed.notify_all()
                return
        line = make_line()
        with self._changed:
            self._say_what_was_left_out()
            self._put(line, at_once=at_once)

    def fail(self, logger: str, error: Exception) -> bytes:
        """The line that takes the place of one that cannot be made, which would hold what was to be logged."""
        return _encoded(self.format(_record("log_line_failed", at=logger, error=type(error).__name__)))

    def flush(self) -> None:
        """Wait until all is written, for a moment at most if nobody reads."""
        with self._changed:
            self._say_what_was_left_out(at_once=True)
            self._is_urgent = bool(self._lines)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting_bytes == 0, _FLUSH_S)

    def close(self) -> None:
        """Flush, and write nothing any more."""
        self.flush()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def _line_of(self, record: logging.LogRecord) -> bytes:
        try:
            return _encoded(self.format(record))
        except Exception as error:  # noqa: BLE001 - the standard library would write it, with arguments, and wait
            return self.fail(record.name, error)

    def _put(self, line: bytes, *, at_once: bool) -> None:
        if self._is_closed or self._waiting_bytes + len(line) > self._max_waiting_bytes:
            self._left_out += 1
            metrics.LOG_LINES_LEFT_OUT.labels("unread").inc()
        else:
            self._lines.append(line)
            self._waiting_bytes += len(line)
            if at_once or len(self._lines) == 1:
                self._is_urgent = self._is_urgent or at_once
                self._changed.notify_all()

    def _say_what_was_left_out(self, *, at_once: bool = False) -> None:
        for event, error, lines in self._limit.take_suppressed(at_once=at_once):
            more = {} if error is None else {"error": error}
            line = self._line_of(_record("refusals_not_logged", refused=event, lines=lines, **more))
            self._put(line, at_once=True)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._left_out:
                    if self._is_closed:
                        return
                    self._changed.wait(_WINDOW_S if self._limit.has_suppressed else None)
                    self._say_what_was_left_out()
                self._changed.wait_for(lambda: self._is_urgent or self._is_closed, _GATHER_S)
                self._is_urgent = False
                lines, number = b"".join(self._lines), len(self._lines)
                self._lines.clear()
                left_out, self._left_out = self._left_out, 0
            try:
                self._write(lines)
                if left_out:  # there is room again: somebody reads
                    self._write(self._line_of(_record("log_lines_lost", lines=left_out)))
            except (OSError, ValueError):  # nobody is there any more, the disk is full, or the stream is closed
                metrics.LOG_LINES_LEFT_OUT.labels("unread").inc(number)
            with self._changed:
                self._waiting_bytes -= len(lines)
                self._changed.notify_all()


@dataclass(slots=True)
class _Window:
    began: float
    lines: int = 0
    suppressed: int = 0


class _RefusalLimit:
    """Counts the lines of each kind that anybody can cause, and those that were too many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str | None], _Window] = {}
        self.has_suppressed = False

    def is_over(self, logger: str, message: object) -> bool:
        """Whether this line is one too many; those of a library are one kind, since whoever dials in causes them."""
        if not isinstance(message, dict):
            kind: tuple[str, str | None] = logger, None
        elif (event := message.get("event")) in REFUSALS:
            error = message.get("error")
            kind = event, error if isinstance(error, str) else None
        else:
            return False
        window = self._windows.setdefault(kind, _Window(self._clock()))
        if not window.suppressed and self._clock() - window.began >= _WINDOW_S:
            window.began, window.lines = self._clock(), 0
        window.lines += 1
        if window.lines <= REFUSALS_PER_S:
            return False
        window.suppressed += 1
        self.has_suppressed = True
        return True

    def take_suppressed(self, *, at_once: bool) -> Iterator[tuple[str, str | None, int]]:
        """What was suppressed in windows that are over, or in all of them; they begin anew."""
        if not self.has_suppressed:
            return
        now = self._clock()
        for (event, error), window in self._windows.items():
            if window.suppressed and (at_once or now - window.began >= _WINDOW_S):
                yield event, error, window.suppressed
                window.began, window.lines, window.suppressed = now, 0, 0
        self.has_suppressed = any(window.suppressed for window in self._windows.values())


def _record(event: str, **fields: object) -> logging.LogRecord:
    """A line of this module's own, as structlog hands them over."""
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, event, None, None)
    line = {"event": event, **fields, "level": "warning", "logger": __name__}
    record.msg = structlog.processors.TimeStamper(fmt="iso", utc=True)(None, "warning", line)
    record.__dict__ |= {"_logger": None, "_name": "warning"}
    return record


def _encoded(text: str) -> bytes:
    return f"{text}\n".encode(errors="backslashreplace")


def _to_json(_logger: object, _method: str, line: MutableMapping[str, Any]) -> str:
    """As `structlog.processors.JSONRenderer` does, which makes an encoder for each line."""
    return _ENCODER.encode(line)


_ENCODER: Final = json.JSONEncoder(default=repr)


def _writing_to(stream: TextIO) -> Callable[[bytes], None]:
    """Past the stream's buffer, whose lock a thread that cannot write would hold when the interpreter ends."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # a stream in memory

        def write_text(data: bytes) -> None:
            stream.write(data.decode())
            stream.flush()

        return write_text

    def write(data: bytes) -> None:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # somebody else made it so
                select.select([], [descriptor], [])

    return write


def _hide_tokens(_logger: object, _method: str, line: MutableMapping[str, Any] | str) -> str:
    """Nobody logs a token or a ticket; should an error's text ever hold one, it goes no further."""
    text = str(line)
    lower = text.lower()
    return _TOKEN.sub("…", text) if any(sign in lower for sign in _TOKEN_SIGNS) else text
