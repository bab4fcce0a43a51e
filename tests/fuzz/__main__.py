"""Attack a server by chance, and print what was found: `python -m tests.fuzz`."""

import argparse
import asyncio
import os
import secrets
import sys

from tests.fuzz.fuzzer import LATE_S, Report, fuzz
from tests.fuzz.targets import TARGETS


def only_of(texts: list[str]) -> dict[str, range]:
    """`frames:12` or `frames:0-12` as targets and their cases."""
    found = {}
    for text in texts:
        name, _, numbers = text.partition(":")
        first, _, last = numbers.partition("-")
        if name not in {target.name for target in TARGETS} or not first.isdigit() or not (last or first).isdigit():
            raise ValueError(f"{text} is not TARGET:NUMBER or TARGET:FIRST-LAST")
        found[name] = range(int(first), int(last or first) + 1)
    return found


def told(report: Report, *, with_echo: bool) -> list[str]:
    """What is printed, line by line."""
    lines = [f"seed {report.seed}, {report.seconds:.0f} s"]
    for name, cases in report.cases.items():
        answers = ", ".join(f"{what} {times:,}" for what, times in sorted(report.answers.get(name, {}).items()))
        lines.append(f"{name}: {cases:,} cases: {answers}")
    echo = report.echo
    lines += [
        f"echo: {echo.count:,} pongs, {echo.late} late by {LATE_S * 1000:.0f} ms, {echo.worst_ms:.0f} ms at worst",
        f"quiet after warming up: {report.warm}",
        f"quiet in the end: {report.end}",
    ]
    for what, found in report.findings.items():
        lines += [f"FOUND: {what}", *(f"  {line}" for line in found.more.splitlines())]
        replay = " ".join(f"{name}:{max(0, cases - 30)}-{cases}" for name, cases in found.after.items())
        lines.append(f"  again: python -m tests.fuzz --seed {report.seed} --only {replay}")
    if with_echo and report.echo.late:
        lines.append(f"FOUND: {report.echo.late} pongs were late")
    return lines


def main() -> int:
    """0, unless something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="another one each time by default")
    parser.add_argument("--cases", type=int, help="of each target, at most")
    parser.add_argument("--only", nargs="+", metavar="TARGET:FIRST-LAST", help="these cases, such as frames:100-130")
    parser.add_argument("--busy", action="store_true", help="others use this machine too: late pongs are counted only")
    asked = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("LIVEKIT_", "MODERATION_"))]:
        if name != "LIVEKIT_SERVER_PATH":
            del os.environ[name]
    only = None if asked.only is None else only_of(asked.only)
    report = asyncio.run(fuzz(asked.seed, seconds=asked.seconds, cases=asked.cases, only=only))
    sys.stdout.writelines(f"{line}\n" for line in told(report, with_echo=not asked.busy))
    return 1 if report.findings or (report.echo.late and not asked.busy) else 0


if __name__ == "__main__":
    sys.exit(main())
