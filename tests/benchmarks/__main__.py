"""Measure, print one table, and write it down: `python -m tests.benchmarks`."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Final

from rich.console import Console

from signaling.server.logs import configure_logging
from tests.benchmarks import cheat_rows, crowd_rows, livekit_rows, memory_rows, nodes_rows, repair_rows, signaling_rows
from tests.benchmarks.measure import Options, Row, growth
from tests.benchmarks.report import as_json, as_markdown, growth_table, table

BENCHMARKS: Final[Mapping[str, Callable[[Options], AsyncIterator[Row]]]] = {
    "mute": livekit_rows.mute,
    "one": livekit_rows.one,
    "restriction": livekit_rows.restriction,
    "cheats": cheat_rows.cheats,
    "repair": repair_rows.repair,
    "command": signaling_rows.command,
    "echo": signaling_rows.echo,
    "token": signaling_rows.token,
    "broadcast": signaling_rows.broadcast,
    "joins": signaling_rows.joins,
    "memory": memory_rows.memory,
    "crowd": crowd_rows.crowd,
    "nodes": nodes_rows.nodes,
}
QUICK: Final = Options(rooms=(10, 30), repeat=3)


async def measure(names: list[str], options: Options, console: Console) -> tuple[list[Row], dict[str, str]]:
    """Every row of these benchmarks, and why there are none of some."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for name in names:
        began_at = time.monotonic()
        try:
            async for row in BENCHMARKS[name](options):
                rows.append(row)
                console.print(f"{name}: {row.what}, {row.where}, {row.n}", style="dim")
        except Exception as error:  # noqa: BLE001 - the other benchmarks are to be measured all the same
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}"
        console.print(f"{name} took {time.monotonic() - began_at:.0f} s", style="dim")
    return rows, failures


def main() -> int:
    """0, unless something could not be measured; goals that are not met are shown, and change nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small rooms and few rounds")
    parser.add_argument("--rooms", type=lambda text: tuple(map(int, text.split(","))), help="such as 10,100,300")
    parser.add_argument("--repeat", type=int, help="rounds that count")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    asked = parser.parse_args()
    default = QUICK if asked.quick else Options()
    options = Options(rooms=asked.rooms or default.rooms, repeat=asked.repeat or default.repeat)
    for name in [name for name in os.environ if name.startswith(("LIVEKIT_", "MODERATION_"))]:
        if name != "LIVEKIT_SERVER_PATH":
            del os.environ[name]
    progress = Console(stderr=True)
    with tempfile.TemporaryFile("w") as log:
        with redirect_stderr(log):
            configure_logging("json", "info")  # what a module in this process logs costs what it costs in `serve`
        rows, failures = asyncio.run(measure(asked.only, options, progress))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(rows, failures))
    if grown := growth(rows):
        console.print(growth_table(grown))
    if asked.json is not None:
        asked.json.write_text(json.dumps(as_json(rows, failures, options), indent=1) + "\n")
    if asked.markdown is not None:
        asked.markdown.write_text(as_markdown(rows, options))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
