"""Several nodes under faults for a while, and what came of it: `python -m tests.soak`."""

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
from pathlib import Path

from tests.soak.soaking import Soak, table


def main() -> int:
    """0, unless something was wrong, or never seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="another one each time by default")
    parser.add_argument("--rooms", type=int, default=30)
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="leave the logs of all nodes there")
    asked = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("LIVEKIT_", "MODERATION_"))]:
        if name != "LIVEKIT_SERVER_PATH":
            del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="soak-") as own:
        directory = asked.keep or Path(own)
        directory.mkdir(parents=True, exist_ok=True)
        soak = Soak(directory, seed=asked.seed, seconds=asked.seconds, rooms=asked.rooms)
        report = asyncio.run(soak.run())
    sys.stdout.writelines(f"{line}\n" for line in table(report))
    sys.stdout.writelines(f"FOUND: {what}\n" for what in report.failures)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
