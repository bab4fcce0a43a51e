"""All targets at once, for a time or a number of cases, and what was found."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from websockets.exceptions import InvalidHandshake

from tests.fuzz.grammar import dice_of
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.world import Echo, Finding, Found, Usage, World, world

WARM_UP: Final = 0.25
"""The part of it after which nothing may grow any more."""
LATE_S: Final = 0.1
MORE_MEMORY_MIB: Final = 24
MORE_DESCRIPTORS: Final = 8
MORE_TASKS: Final = 4


@dataclass(frozen=True, slots=True)
class Report:
    """
    What came of it.

    Attributes:
        cases: How many there were, by target.
        answers: What came back, and how often, by target.
        findings: What must not be.
        warm, end: What the server held when all was quiet.
    """

    seed: int
    seconds: float
    cases: Mapping[str, int]
    answers: Mapping[str, Mapping[str, int]]
    findings: Mapping[str, Found]
    echo: Echo
    warm: Usage
    end: Usage


async def fuzz(
    seed: int,
    *,
    seconds: float,
    cases: int | None = None,
    only: Mapping[str, range] | None = None,
) -> Report:
    """
    Attack a server of its own.

    Args:
        cases: How many of each target at most.
        only: These targets, and of each these cases; else all.
    """
    began_at = time.monotonic()
    async with world() as attacked:
        numbers: dict[str, Iterator[int]] = {
            kind.name: iter((only or {}).get(kind.name, range(0) if only else range(cases) if cases else count()))
            for kind in TARGETS
        }
        targets = [kind(attacked) for kind in TARGETS]
        echo = asyncio.create_task(attacked.listen_to_echo(lambda took_s: took_s > LATE_S))
        try:
            await _round(attacked, targets, numbers, seed, began_at + seconds * WARM_UP, (cases or 0) * WARM_UP)
            warm = await attacked.quiet()
            await _round(attacked, targets, numbers, seed, began_at + seconds, None)
            end = await attacked.quiet(lambda usage: _growth(warm, usage) is None)
            if (grown := _growth(warm, end)) is not None:
                attacked.found(grown)
            await attacked.check_that_a_meeting_works()
        except Finding as finding:
            attacked.found(str(finding), finding.more)
            warm = end = Usage(0, 0, 0)
        finally:
            echo.cancel()
            await asyncio.wait({echo})
    if not echo.cancelled() and (error := echo.exception()) is not None:
        attacked.found(f"the echo ended: {error!r}")
    return Report(
        seed,
        time.monotonic() - began_at,
        attacked.counts,
        attacked.answers,
        attacked.findings,
        attacked.echo,
        warm,
        end,
    )


async def _round(
    attacked: World,
    targets: list[Target],
    numbers: Mapping[str, Iterator[int]],
    seed: int,
    until: float,
    most: float | None,
) -> None:
    async with asyncio.TaskGroup() as workers:
        for target in targets:
            for _ in range(target.workers):
                workers.create_task(_work(attacked, target, numbers[target.name], seed, until, most))


async def _work(
    attacked: World, target: Target, numbers: Iterator[int], seed: int, until: float, most: float | None
) -> None:
    for number in numbers:
        attacked.counts[target.name] = attacked.counts.get(target.name, 0) + 1
        try:
            await target.run(dice_of(seed, target.name, number))
        except Finding as finding:
            attacked.found(f"{target.name}: {finding}", f"case {number}: {finding.more}")
        except (OSError, EOFError, InvalidHandshake) as error:
            attacked.check_alive()
            attacked.found(f"{target.name}: {error!r}", f"case {number}")
        except Exception as error:
            error.add_note(f"in {target.name}:{number} of seed {seed}")
            raise
        attacked.check_log()
        attacked.check_alive()
        if time.monotonic() > until or (most and number >= most):
            return


def _growth(warm: Usage, now: Usage) -> str | None:
    if now.memory_mib > warm.memory_mib + MORE_MEMORY_MIB:
        return f"memory has grown from {warm.memory_mib:.0f} to {now.memory_mib:.0f} MiB"
    if now.descriptors > warm.descriptors + MORE_DESCRIPTORS:
        return f"file descriptors have grown from {warm.descriptors} to {now.descriptors}"
    if now.tasks > warm.tasks + MORE_TASKS:
        return f"tasks have grown from {warm.tasks} to {now.tasks}"
    return None
