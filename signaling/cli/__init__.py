"""The command `livekit-moderation`."""

import argparse
import sys
from collections.abc import Sequence

import signaling
from signaling.cli.demo import add_demo_parser
from signaling.cli.serve import add_serve_parser
from signaling.cli.server_commands import add_server_parser
from signaling.cli.ticket import add_ticket_parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv: Without the program's name; of the process if left out.

    Returns:
        The exit status: 0, 1 for what failed, 2 for wrong arguments or settings.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "signaling":
            raise
        extra = "testing" if arguments.command == "demo" else "server"
        sys.stderr.write(f"{error.name} is not installed; install livekit-moderation[{extra}]\n")
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="livekit-moderation", description=signaling.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {signaling.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    # Each adds its own, and sets `run`, which takes the arguments and returns an exit status.
    add_demo_parser(commands)
    add_serve_parser(commands)
    add_ticket_parser(commands)
    add_server_parser(commands)
    return parser
