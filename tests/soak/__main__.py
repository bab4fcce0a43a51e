"""Several nodes under faults for a while, and what came of it: `python -m tests.soak`."""

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.media import Media
from tests.soak.report import table, write
from tests.soak.soaking import Soak, rooms_of
from tests.soak.sound import FakeSound

_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def main() -> int:
    """0, unless something was wrong, or never seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="another one each time by default")
    parser.add_argument("--rooms", type=int, default=30, help="of ten people")
    parser.add_argument("--listened", type=int, default=10, help="meetings in which somebody listens; 10 by default")
    parser.add_argument("--without-media", action="store_true", help="on a double of LiveKit's RoomService")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="leave the logs of all nodes there")
    parser.add_argument("--page", type=Path, default=_PAGE, help="where the table is written; %(default)s by default")
    asked = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("LIVEKIT_", "MODERATION_"))]:
        if name != "LIVEKIT_SERVER_PATH":
            del os.environ[name]
    began_at = time.monotonic()

    def say(what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_at:6.1f} s  {what}\n")

    with tempfile.TemporaryDirectory(prefix="soak-") as own:
        directory = asked.keep or Path(own)
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            parser.error(f"--keep: there is something in {directory} already")
        rooms = rooms_of(asked.rooms)
        sound = FakeSound() if asked.without_media else Media(rooms, listened=asked.listened, seed=asked.seed)
        soak = Soak(directory, sound, seed=asked.seed, seconds=asked.seconds, rooms=asked.rooms, say=say)
        report = asyncio.run(soak.run())
    write(report, asked.page)
    sys.stdout.writelines(f"{line}\n" for line in table(report))
    sys.stdout.writelines(f"FOUND: {what}\n" for what in report.failures)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
