"""Samples taken in turns with those of a baseline, what is asked of their ratio, and how they grow."""

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, median, quantiles
from typing import Literal, TypeAlias

Sample: TypeAlias = Mapping[str, float | Sequence[float]]
Variant: TypeAlias = Callable[[], Awaitable[Sample]]
Taken: TypeAlias = Mapping[str, Mapping[str, list[float]]]

_SIZES_FOR_A_FIT = 3


@dataclass(frozen=True, slots=True)
class Options:
    """
    How much is measured.

    Attributes:
        rooms: Participants in LiveKit.
        repeat: Rounds that count; each takes every variant once.
    """

    rooms: tuple[int, ...] = (10, 100, 300)
    repeat: int = 4

    @property
    def connections(self) -> tuple[int, ...]:
        """Sizes of meetings that only signal: as many more as LiveKit would not bear."""
        return (*self.rooms, 1_000) if max(self.rooms) >= 300 else self.rooms

    @property
    def cheats(self) -> int:
        """How often each cheat is tried: for a p95, unless it is to be quick."""
        return self.repeat * 5 if max(self.rooms) >= 300 else self.repeat

    @property
    def is_quick(self) -> bool:
        """Whether it is to be quick."""
        return max(self.rooms) < 300

    @property
    def seconds(self) -> float:
        """For how long pings are sent at a time."""
        return 1 if self.is_quick else 5

    @property
    def many(self) -> int:
        """How many connections are a crowd."""
        return 1_000 if self.is_quick else 10_000

    @property
    def attackers(self) -> Mapping[str, int]:
        """How many there are of each kind."""
        return {"silent": 500 if self.is_quick else 2_000, "handshakes": 50, "frames": 10}

    @property
    def idle_connections(self) -> int:
        """How many share the memory that is measured."""
        return min(2_000, max(self.rooms) * 10)


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of a ratio, of the measured median itself, or of what 19 of 20 measured do not exceed."""

    limit: float
    of: Literal["ratio", "measured", "p95"] = "ratio"
    at_least: bool = False

    def __str__(self) -> str:
        of = "" if self.of == "measured" else f"{self.of} "
        return f"{of}{'≥' if self.at_least else '≤'} {self.limit:,g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    What was measured, and beside it what it is compared with, in the same unit.

    Attributes:
        benchmark: What `--only` calls it.
        what: The quantity.
        where: The situation; rows that differ only in `n` make a series.
        baseline_is: What the baseline did.
        is_paired: Whether each of the measured has the one of the baseline beside it that was taken in the same round.
    """

    benchmark: str
    what: str
    where: str
    n: int
    unit: str
    measured: Sequence[float]
    baseline: Sequence[float] = ()
    baseline_is: str = "-"
    goal: Goal | None = None
    is_paired: bool = False

    @property
    def ratio(self) -> float | None:
        """Of the medians, or the median of the pairs'; `None` when there is nothing to divide by."""
        if self.is_paired and len(self.measured) == len(self.baseline) and all(self.baseline):
            return median(above / below for above, below in zip(self.measured, self.baseline, strict=True))
        below = median(self.baseline) if self.baseline else 0
        return median(self.measured) / below if below else None

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is; `None` without one."""
        if self.goal is None:
            return None
        value = {"ratio": self.ratio, "measured": median(self.measured), "p95": p95(self.measured)}[self.goal.of]
        if value is None:
            return None
        return value >= self.goal.limit if self.goal.at_least else value <= self.goal.limit


@dataclass(frozen=True, slots=True)
class Growth:
    """How a series grows: `n` to the power of `exponent`, by least squares of the logarithms."""

    benchmark: str
    what: str
    where: str
    sizes: tuple[int, ...]
    exponent: float
    baseline_exponent: float | None


async def in_turns(variants: Mapping[str, Variant], repeat: int) -> Taken:
    """
    Take every variant once in each round, after a round that does not count; each round begins with another one.

    Returns:
        By variant and quantity, in the order in which they were taken.
    """
    names = list(variants)
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for turn in range(repeat + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            sample = await variants[name]()
            if turn:
                for quantity, value in sample.items():
                    taken[name].setdefault(quantity, []).extend(value if isinstance(value, Sequence) else [value])
    return taken


def p95(samples: Sequence[float]) -> float:
    """What 19 of 20 do not exceed."""
    return samples[0] if len(samples) == 1 else quantiles(samples, n=20, method="inclusive")[-1]


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of the logarithm of the values over that of the sizes."""
    return linear_regression([math.log(n) for n in sizes], [math.log(value) for value in values]).slope


def growth(rows: Iterable[Row]) -> list[Growth]:
    """Of every series that was measured at three sizes or more."""
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        series.setdefault((row.benchmark, row.what, row.where), []).append(row)
    found = []
    for name, members in series.items():
        sizes = tuple(row.n for row in members)
        values = [median(row.measured) for row in members]
        if len(set(sizes)) < _SIZES_FOR_A_FIT or min(values) <= 0:
            continue
        below = [median(row.baseline) if row.baseline else 0 for row in members]
        found.append(Growth(*name, sizes, exponent(sizes, values), exponent(sizes, below) if min(below) > 0 else None))
    return found
