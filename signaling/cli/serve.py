"""`livekit-moderation serve`: the stand-alone server."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import structlog

from signaling.cli.process import collect_in_passing, fair_event_loop, raise_descriptor_limit
from signaling.errors import ConfigurationError, SignalingError
from signaling.settings import ServerSettings

log = structlog.get_logger(__name__)

STOP_S: Final = 8
"""How long stopping may take; who stops a process waits 10 s for it, then kills it."""


def add_serve_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `serve`; it sets `run`, which takes the arguments and returns an exit status."""
    parser = subparsers.add_parser(
        "serve",
        help="run the stand-alone server",
        description="Run the stand-alone server until SIGTERM or Ctrl-C. When it accepts connections, it prints one "
        "line of JSON with its addresses. Settings come from the environment, which wins, and from the file.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML, with names in lower case")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from signaling.server.logs import configure_logging  # noqa: PLC0415 - the other commands need no server

    try:
        settings = ServerSettings.load(arguments.config)
        with contextlib.closing(configure_logging(settings.moderation_log_format, settings.moderation_log_level)):
            deadline = _Deadline()
            try:
                with asyncio.Runner(loop_factory=fair_event_loop) as runner:
                    runner.run(_serve(settings, deadline))
            finally:
                deadline.cancel()
    except SignalingError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


async def _serve(settings: ServerSettings, deadline: "_Deadline") -> None:
    from signaling.server import ModerationServer  # noqa: PLC0415 - as above

    raise_descriptor_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    starting = asyncio.current_task()

    def end() -> None:
        if not stop.is_set():
            stop.set()
            deadline.begin()
            if starting is not None:
                starting.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        async with ModerationServer(settings) as server:
            starting = None
            collecting = asyncio.create_task(collect_in_passing(lambda: server.connections))
            ready = {
                "ready": True,
                "signaling": server.signaling_url,
                "internal": server.internal_url,
                "livekit": server.livekit_url,
            }
            if not stop.is_set():
                sys.stdout.write(f"{json.dumps(ready)}\n")
                sys.stdout.flush()
            await stop.wait()
            collecting.cancel()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


class _Deadline:
    """Ends the process when stopping takes too long, whatever it waits for; what was committed is kept."""

    def __init__(self) -> None:
        self._timer = threading.Timer(STOP_S, self._exit)
        self._timer.daemon = True

    def begin(self) -> None:
        """Stopping has begun."""
        self._timer.start()

    def cancel(self) -> None:
        """It has ended."""
        self._timer.cancel()

    @staticmethod
    def _exit() -> None:
        log.error("stopped_unfinished", after_s=STOP_S)
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(0)
