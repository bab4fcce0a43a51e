"""What `livekit-moderation demo` does: a meeting to look at, and then to moderate."""

import asyncio
import contextlib
import secrets
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from signaling.cli import failover
from signaling.cli.cheats import CHEATS, STRANGER, cheater
from signaling.cli.nodes import Nodes, running_nodes
from signaling.cli.tour import ROOM, STEPS, Cast, Line, cast
from signaling.core.participants import Kind, Participant, Role
from signaling.errors import SignalingError
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.installation import find, install
from signaling.server.logs import configure_logging
from signaling.server.tickets import make_ticket
from signaling.settings import ServerSettings
from signaling.testing.client import SignalingClient
from signaling.testing.participants import participant_token
from signaling.testing.redis_server import find_redis
from signaling.testing.ticket_desk import TicketDesk

_Stage = TypeVar("_Stage")

_AUDIBLE_RMS = 400
_REACTION_S = 0.5
"""How long a cheat may be heard once LiveKit could have reported it, on a busy machine."""
_LOOK_EVERY_S = 0.25


async def perform(console: Console, *, once: bool, nodes: int = 1) -> int:
    """
    Run the demo; its exit status.

    Raises:
        RedisMissing: Several nodes need one.
    """
    configure_logging("console", "error")
    began_at = time.perf_counter()
    key = secrets.token_urlsafe(32)
    settings = ServerSettings(
        moderation_ticket_key=key,
        moderation_store_url="memory:",
        moderation_listen="127.0.0.1:0",
        moderation_internal_listen="127.0.0.1:0",
    )
    if nodes > 1:
        find_redis()
    if settings.livekit_url is None and find(settings.livekit_server_path) is None:
        await _install(console)

    def ticket(participant: str, *, role: str = "moderator", kind: str = "user") -> str:
        somebody = Participant(ParticipantId(participant), Role(role), Kind(kind), display_name=participant.title())
        return make_ticket(key, "HS256", somebody, RoomId(ROOM))

    def client(participant: str, *, role: str = "user", kind: str = "user") -> SignalingClient:
        return SignalingClient(running.of(participant).signaling_url, ticket(participant, role=role, kind=kind))

    async with running_nodes(settings, nodes) as running, cast(client) as people:
        console.print(f"[bold]In the meeting[/] after {time.perf_counter() - began_at:.1f} s{_where(running)}\n")
        all_true = await _show(console, STEPS, people)
        console.print("[bold]Clients that cheat[/]: for how long they were heard, and what Alice was told\n")
        # A LiveKit that is not ours cannot know where to report to.
        found_within_s = 0 if running.is_reported_to else settings.moderation_sweep_s
        async with cheater(
            people,
            forged_token=participant_token(*running.livekit_keys, ROOM, STRANGER),
            heard_at_most_s=found_within_s + _REACTION_S,
            sweep_s=settings.moderation_sweep_s,
        ) as mallory:
            all_true &= await _show(console, CHEATS, mallory)
        if nodes > 1:
            console.print("[bold]A node is killed[/]: who was connected to it comes back to another\n")
            async with failover.survivors(people, running) as survivors:
                all_true &= await _show(console, failover.steps(running), survivors)
        if once:
            return 0 if all_true else 1
        async with TicketDesk(ticket, running.living[0].signaling_url) as desk:
            _print_addresses(console, running, desk, key)
            with contextlib.suppress(asyncio.CancelledError):
                await _show_who_is_heard(console, people)
    return 0 if all_true else 1


async def _install(console: Console) -> None:
    with console.status("livekit-server is not installed yet") as status:
        await install(lambda line: status.update(Text(line)) if console.is_terminal else console.print(Text(line)))


def _where(nodes: Nodes) -> str:
    """Who is on which node, if there are several."""
    if len(nodes.all) == 1:
        return ""
    return "".join(f", {guest.title()} on {nodes.of(guest).name}" for guest in ("alice", "bob", "carol"))


async def _show(
    console: Console, steps: Sequence[tuple[str, Callable[[_Stage], Awaitable[Line]]]], stage: _Stage
) -> bool:
    """Take these steps, and print what came of each; whether all came true."""
    all_true = True
    for title, step in steps:
        with console.status(title):
            try:
                line = await step(stage)
            except SignalingError as error:
                all_true = False
                mark, came = ("✗ ", "bold red"), Text(str(error))
            else:
                mark = "✓ ", "bold green"
                came = Text.assemble(f"{line.seen} ", (f"{line.ms:.0f} ms", "cyan"), line.then)
        console.print(Text.assemble(mark, (title, "bold"), " · ", came), soft_wrap=True)
    console.print()
    return all_true


def _print_addresses(console: Console, nodes: Nodes, desk: TicketDesk, key: str) -> None:
    """What somebody needs who wants to moderate the meeting by hand. A token is never part of an address."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "livekit-moderation" else "python -m signaling"
    console.print("[bold]The meeting stays open.[/] Alice moderates; join and moderate with her. Ctrl-C ends it.\n")
    first, *others = nodes.living
    for name, value in (
        ("signaling", first.signaling_url),
        *(("or", node.signaling_url) for node in others),
        ("LiveKit", nodes.livekit_url),
        ("metrics", f"{first.internal_url}/metrics"),
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
