"""See which faults the tests would notice: `python -m tests.mutants`."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Final

from tests.mutants.mutants import LISTS, Verdict, read_all, run

_NICE: Final = 5


def main() -> int:
    """0, unless a fault was not noticed that is not explained, or nothing was proved of one."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="those in whose list, line, file or text this is")
    parser.add_argument("--lists", type=Path, default=LISTS, help=argparse.SUPPRESS)
    parser.add_argument("--verbose", action="store_true", help="show what the tests wrote about those that survived")
    asked = parser.parse_args()
    os.nice(_NICE)
    began_at = time.monotonic()
    counts = dict.fromkeys(("killed", "survived, explained", "SURVIVED", "BROKEN"), 0)
    for mutant, verdict, wrote in run(mutant for mutant in read_all(asked.lists) if asked.only in str(mutant)):
        survived = "survived, explained" if mutant.explanation else "SURVIVED"
        kind = {Verdict.KILLED: "killed", Verdict.SURVIVED: survived, Verdict.BROKEN: "BROKEN"}[verdict]
        counts[kind] += 1
        sys.stdout.write(f"{kind:19}  {mutant}\n")
        if mutant.explanation:
            sys.stdout.write(f"{'':19}  {mutant.explanation}\n")
        if kind == "BROKEN" or (asked.verbose and verdict is Verdict.SURVIVED):
            sys.stdout.write(f"{wrote}\n")
        sys.stdout.flush()
    counted = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    sys.stdout.write(f"{sum(counts.values())} mutants in {time.monotonic() - began_at:.0f} s: {counted}\n")
    return 1 if counts["SURVIVED"] or counts["BROKEN"] else 0


if __name__ == "__main__":
    sys.exit(main())
