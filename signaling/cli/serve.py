"""`livekit-moderation serve`: the stand-alone server."""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from signaling.errors import ConfigurationError, SignalingError
from signaling.settings import ServerSettings


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
            asyncio.run(_serve(settings))
    except SignalingError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


async def _serve(settings: ServerSettings) -> None:
    from signaling.server import ModerationServer  # noqa: PLC0415 - as above

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ModerationServer(settings) as server:
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
