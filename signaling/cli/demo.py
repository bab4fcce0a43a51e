"""`livekit-moderation demo`."""

import argparse
import asyncio
import sys
from typing import Final

from signaling.errors import ConfigurationError, SignalingError

MOST_NODES: Final = 16


def add_demo_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo` to the command line."""
    parser = subparsers.add_parser("demo", help="a meeting to look at and moderate")
    parser.add_argument("--once", action="store_true", help="end after the tour; exit status 0 only if all came true")
    parser.add_argument(
        "--nodes",
        type=_nodes,
        default=1,
        metavar="N",
        help="run so many servers on one Redis, people on all of them, and kill one at the end; it needs redis-server",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    # Everything below takes half a second to import, which other commands need not wait for.
    from rich.console import Console  # noqa: PLC0415

    from signaling.cli.performance import perform  # noqa: PLC0415

    try:
        return asyncio.run(perform(Console(highlight=False), once=arguments.once, nodes=arguments.nodes))
    except KeyboardInterrupt:
        return 0
    except SignalingError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigurationError) else 1


def _nodes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_NODES):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {MOST_NODES}")
    return int(text)
