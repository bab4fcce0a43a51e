"""What came of a soak, as a table, and where it is kept in the documentation."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.soak.node import Size

_BEGIN: Final = "<!-- what `make soak` measured last, written by itself: begin -->"
_END: Final = "<!-- end -->"


@dataclass
class Report:
    """
    What came of a soak.

    Attributes:
        media: How there was any.
        seen: How often what must have been seen was.
        acknowledged: How many commands were.
        beyond: Who was heard though they may not be, for longer than with one node.
        left_heard: The same, in the end.
        longest_s: For how long somebody was who may not be, at most, faults included.
        longest_without_s: The same, counting only while there was no fault.
        grown: Of each node that has lived long enough: what it took at first and in the end.
    """

    seed: int
    seconds: float
    people: int
    rooms: int
    nodes: int
    media: str
    listened_to: int
    faults: Counter[str] = field(default_factory=Counter)
    seen: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    refused: int = 0
    unanswered: int = 0
    let_in_again: int = 0
    joins: int = 0
    moves: int = 0
    commits: int = 0
    webhooks: int = 0
    wrong: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    left_heard: list[str] = field(default_factory=list)
    heard_times: int = 0
    heard_ever: int = 0
    listened_share: float = 0.0
    longest_s: float = 0.0
    longest_without_s: float = 0.0
    grown: dict[str, tuple[float, Size, Size]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def of(self, *checks: str) -> list[str]:
        """What these checks found."""
        return [each for each in self.wrong if each.partition(":")[0] in checks]

    @property
    def unseen(self) -> list[str]:
        """What never came to pass, and should have."""
        return [what for what, times in self.seen.items() if not times]

    @property
    def failures(self) -> list[str]:
        """All because of which it is no success."""
        return [
            *(f"never seen: {what}" for what in self.unseen),
            *self.wrong,
            *(f"heard for too long: {who}" for who in self.beyond),
            *(f"heard in the end: {who}" for who in self.left_heard),
            *([] if self.heard_ever else ["nobody was ever heard"]),
            *(f"broken: {what}" for what in self.broken),
        ]


def table(report: Report) -> Sequence[str]:
    """The figures, as a table in Markdown."""
    lost = report.of("audited_once", "answered_after_commit")
    disorder = report.of("told_in_order")
    rest = [each for each in report.wrong if each not in lost and each not in disorder]
    rows = [
        ("seed, seconds of faults", f"{report.seed}, {report.seconds:g}"),
        ("people, rooms, nodes", f"{report.people}, {report.rooms}, {report.nodes}"),
        ("LiveKit", f"{report.media}; {report.listened_to} meetings are listened to"),
        ("people heard at all; of the time, so much was listened", f"{report.heard_ever}; {report.listened_share:.0%}"),
        *((f"fault: {kind.replace('_', ' ')}", times) for kind, times in sorted(report.faults.items())),
        ("faults", report.faults.total()),
        *((f"seen: {what}", times) for what, times in report.seen.items()),
        ("meetings in which others took people of a node for gone, who were let in again", report.let_in_again),
        ("sessions, moves to breakouts and back", f"{report.joins:,}, {report.moves:,}"),
        ("commits, webhooks accepted", f"{report.commits:,}, {report.webhooks:,}"),
        ("commands acknowledged", f"{report.acknowledged:,}"),
        (
            "commands refused, commands without an answer (their node was stopped)",
            f"{report.refused:,}, {report.unanswered:,}",
        ),
        ("of the acknowledged: lost, answered before their commit, or otherwise than kept", len(lost)),
        ("sessions with events left out, twice or out of order", len(disorder)),
        (
            "logs with gaps, meetings that no order of commands explains, places lost, decisions left staged",
            len(rest),
        ),
        ("people heard who may not be, for longer than one node takes", len(report.beyond)),
        ("people heard in the end who may not be", len(report.left_heard)),
        (
            "heard though they may not be: times, longest without a fault, longest with faults",
            f"{report.heard_times:,}, {report.longest_without_s:.1f} s, {report.longest_s:.1f} s",
        ),
        *(
            (
                f"{name}: memory, open files, tasks, over {seconds:.0f} s",
                f"{a.memory_kib:,} → {b.memory_kib:,} KiB, {a.files} → {b.files}, {a.tasks} → {b.tasks}",
            )
            for name, (seconds, a, b) in report.grown.items()
        ),
    ]
    return ["| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows)]


def write(report: Report, page: Path) -> None:
    """
    Put the table into the documentation, in the place of the one before.

    Raises:
        ValueError: The page has no place for it.
    """
    text = page.read_text(encoding="utf-8")
    begins, ends = text.find(_BEGIN), text.find(_END)
    if not 0 <= begins < ends:
        raise ValueError(f"{page} has no place for the table")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    verdict = "Nothing was wrong." if not report.failures else f"It counts as failed: {len(report.failures)} findings."
    made = "\n".join([_BEGIN, "", f"Measured on {machine}. {verdict}", "", *table(report), "", ""])
    page.write_text(text[:begins] + made + text[ends:], encoding="utf-8")
