"""What `livekit-moderation demo` does: a meeting to look at, and then to moderate."""

import asyncio
import contextlib
import secrets
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from signaling.cli.tour import ROOM, STEPS, Cast, Line, cast
from signaling.core.participants import Kind, Participant, Role
from signaling.errors import SignalingError
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.installation import find, install
from signaling.server.logs import configure_logging
from signaling.server.server import ModerationServer
from signaling.server.tickets import make_ticket
from signaling.settings import ServerSettings
from signaling.testing.ticket_desk import TicketDesk

_AUDIBLE_RMS = 400
_LOOK_EVERY_S = 0.25


async def perform(console: Console, *, once: bool) -> int:
    """Run the demo; its exit status."""
    configure_logging("console", "error")
    began_at = time.perf_counter()
    key = secrets.token_urlsafe(32)
    settings = ServerSettings(
        moderation_ticket_key=key,
        moderation_store_url="memory:",
        moderation_listen="127.0.0.1:0",
        moderation_internal_listen="127.0.0.1:0",
    )
    if settings.livekit_url is None and find(settings.livekit_server_path) is None:
        await _install(console)

    def ticket(participant: str, *, role: str = "moderator", kind: str = "user") -> str:
        somebody = Participant(ParticipantId(participant), Role(role), Kind(kind), display_name=participant.title())
        return make_ticket(key, "HS256", somebody, RoomId(ROOM))

    async with ModerationServer(settings) as server, cast(server.signaling_url, ticket) as people:
        console.print(f"[bold]In the meeting[/] after {time.perf_counter() - began_at:.1f} s\n")
        all_true = await _tour(console, people)
        if once:
            return 0 if all_true else 1
        async with TicketDesk(ticket, server.signaling_url) as desk:
            _print_addresses(console, server, desk, key)
            with contextlib.suppress(asyncio.CancelledError):
                await _show_who_is_heard(console, people)
    return 0 if all_true else 1


async def _install(console: Console) -> None:
    with console.status("livekit-server is not installed yet") as status:
        await install(lambda line: status.update(Text(line)) if console.is_terminal else console.print(Text(line)))


async def _tour(console: Console, people: Cast) -> bool:
    all_true = True
    for command, step in STEPS:
        with console.status(command):
            try:
                line = await step(people)
            except SignalingError as error:
                all_true = False
                console.print(Text.assemble(("✗ ", "bold red"), (command, "bold"), f" · {error}"), soft_wrap=True)
            else:
                console.print(_shown(line), soft_wrap=True)
    console.print()
    return all_true


def _shown(line: Line) -> Text:
    return Text.assemble(
        ("✓ ", "bold green"), (line.command, "bold"), f" · {line.seen} after ", (f"{line.after_ms:.0f} ms", "cyan")
    )


def _print_addresses(console: Console, server: ModerationServer, desk: TicketDesk, key: str) -> None:
    """What somebody needs who wants to moderate the meeting by hand. A token is never part of an address."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "livekit-moderation" else "python -m signaling"
    console.print("[bold]The meeting stays open.[/] Alice moderates; join and moderate with her. Ctrl-C ends it.\n")
    for name, value in (
        ("signaling", server.signaling_url),
        ("LiveKit", server.livekit_url),
        ("metrics", f"{server.internal_url}/metrics"),
        ("a ticket", f"curl -d '{{\"as\": \"dave\"}}' -H 'Content-Type: application/json' {desk.url}"),
        ("or", f"MODERATION_TICKET_KEY={shlex.quote(key)} {program} ticket --room {ROOM} --participant dave"),
    ):
        # Not folded: somebody will copy it.
        console.print(Text.assemble((f"{name:<11}", "bold"), value), soft_wrap=True)
    console.print()


async def _show_who_is_heard(console: Console, people: Cast) -> None:
    """What the listener hears, until Ctrl-C."""
    if not console.is_terminal:
        await asyncio.get_running_loop().create_future()
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            levels = {guest.name: await people.listener.level(guest.name) for guest in people.guests}
            live.update(_levels(levels), refresh=True)
            await asyncio.sleep(_LOOK_EVERY_S)


def _levels(levels: dict[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, level in levels.items():
        is_heard = level >= _AUDIBLE_RMS
        table.add_row(name.title(), Text("heard" if is_heard else "silent", "green" if is_heard else "dim"))
    return table
