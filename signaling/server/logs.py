"""How the stand-alone server logs: to standard error, for a person or for a machine, and never a secret."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal

import structlog

_TOKEN: Final = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+|(?<=ticket#)[^\s\"',]+")


def configure_logging(
    form: Literal["console", "json"] | None, level: Literal["debug", "info", "warning", "error"]
) -> None:
    """
    Send what this package and its libraries log to standard error.

    Args:
        form: `None` for `console` on a terminal, else `json`.
        level: The least that is written; of libraries, warnings at least, since what they say below holds tokens.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
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
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer, _hide_tokens],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("signaling").setLevel(level.upper())
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _hide_tokens(_logger: object, _method: str, line: MutableMapping[str, Any] | str) -> str:
    """Nobody logs a token or a ticket; should an error's text ever hold one, it goes no further."""
    return _TOKEN.sub("…", str(line))
