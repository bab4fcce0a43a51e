"""`livekit-moderation ticket`: a ticket to connect with, as a controller would make it."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from signaling.core.participants import Kind, Participant, Role
from signaling.errors import ConfigurationError, SignalingError
from signaling.identifiers import parse_breakout_id, parse_participant_id, parse_room_id
from signaling.settings import ServerSettings

Parsed = TypeVar("Parsed")


def add_ticket_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `ticket`; it sets `run`, which takes the arguments and returns an exit status."""
    parser = subparsers.add_parser(
        "ticket",
        help="print a ticket to connect with",
        description="Print a ticket, valid for a minute and once, signed with MODERATION_TICKET_KEY: the secret for "
        "HS256, else the private key in PEM.",
    )
    parser.add_argument("--room", required=True, type=_argument(parse_room_id), help="id of the meeting")
    parser.add_argument(
        "--participant", required=True, type=_argument(parse_participant_id), help="id of the participant"
    )
    parser.add_argument("--name", help="display name; the participant's id if left out")
    parser.add_argument("--role", default=Role.USER.value, choices=[role.value for role in Role])
    parser.add_argument("--kind", default=Kind.USER.value, choices=[kind.value for kind in Kind])
    parser.add_argument("--breakout", type=_argument(parse_breakout_id), help="id of the breakout to enter")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML, with names in lower case")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from signaling.server.tickets import make_ticket  # noqa: PLC0415 - the other commands need no cryptography

    try:
        settings = ServerSettings.load(arguments.config)
        participant = Participant(
            arguments.participant,
            role=Role(arguments.role),
            kind=Kind(arguments.kind),
            display_name=arguments.name or "",
            breakout=arguments.breakout,
        )
        ticket = make_ticket(
            settings.moderation_ticket_key, settings.moderation_ticket_algorithm, participant, arguments.room
        )
    except SignalingError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigurationError) else 1
    sys.stdout.write(f"{ticket}\n")
    return 0


def _argument(parse: Callable[[str], Parsed]) -> Callable[[str], Parsed]:
    """What argparse shows the reason of."""

    def parsed(text: str) -> Parsed:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
