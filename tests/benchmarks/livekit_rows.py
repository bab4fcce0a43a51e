"""Mutes and restrictions on a real LiveKit full of real participants, against the library's bare calls."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from statistics import mean
from typing import Final

from tests.benchmarks.full_room import AT_ONCE, USUAL_AT_ONCE, full_room
from tests.benchmarks.measure import Goal, Options, Row, Taken, Variant, in_turns

_LARGE: Final = 300
_RUNS_TO_TRUST: Final = 10
_BARE: Final = f"the library's calls, {AT_ONCE} in flight"
_OF_THE_LIVE: Final = f"{_BARE}, about the live alone"
_USUAL: Final = "the usual algorithm"


async def mute(options: Options) -> AsyncIterator[Row]:
    """Force mutes of everybody."""
    for n in options.rooms:
        async with full_room(n, live=n) as room:
            taken = await in_turns({"module": room.mute, "bare": room.mute_bare}, _rounds(options, n))
        yield Row(
            benchmark="mute",
            what="last acknowledgement",
            where="all live",
            n=n,
            unit="ms",
            measured=taken["module"]["event"],
            baseline=taken["bare"]["event"],
            baseline_is=_BARE,
            goal=Goal(1.1),
        )
    for n in options.rooms:
        async with full_room(n, live=n // 3, muted=n // 3) as room:
            taken = await in_turns({"module": room.mute, "usual": room.mute_usually}, _rounds(options, n))
        for what, quantity, unit in (("last acknowledgement", "event", "ms"), ("calls", "calls", "calls")):
            yield Row(
                benchmark="mute",
                what=what,
                where="a third live, a third muted",
                n=n,
                unit=unit,
                measured=taken["module"][quantity],
                baseline=taken["usual"][quantity],
                baseline_is=_USUAL,
                goal=Goal(0.5),
            )


async def one(options: Options) -> AsyncIterator[Row]:
    """What concerns one person of a small room: a mute, and the right to share their screen, given and taken."""
    n = min(options.rooms)
    async with full_room(n, live=1) as room:
        muting: dict[str, Variant] = {"module": room.mute_one, "bare": room.mute_bare}
        muted = await in_turns(muting, _rounds(options, n) * 2)
        granting: dict[str, Variant] = {"module": room.grant, "bare": room.grant_bare}
        granted = await in_turns(granting, _rounds(options, n) * 2)
    for what, taken, calls in (("mute", muted, "mute"), ("grant or revoke", granted, "change")):
        yield Row(
            benchmark="one",
            what=f"last acknowledgement of a {what}",
            where="one person",
            n=n,
            unit="ms",
            measured=taken["module"]["event"],
            baseline=taken["bare"]["event"],
            baseline_is=f"the library's list and {calls}",
            goal=Goal(1.25),
        )


async def restriction(options: Options) -> AsyncIterator[Row]:
    """Restrictions of everybody's microphone."""
    for where, share in (("idle", 0), ("a tenth live", 0.1), ("all live", 1)):
        for n in options.rooms:
            live = round(n * share)
            for row in _rows(await _take(options, n, live), where, n, live):
                yield row


async def _take(options: Options, n: int, live: int) -> Taken:
    async with full_room(n, live=live) as room:
        variants: dict[str, Variant] = {
            "module": room.restrict,
            "bare": partial(room.restrict_bare, room.everybody, AT_ONCE),
            "usual": partial(room.restrict_bare, room.everybody, USUAL_AT_ONCE),
        }
        if 0 < live < n:
            variants["live alone"] = partial(room.restrict_bare, room.live, AT_ONCE)
        taken = await in_turns(variants, _rounds(options, n))
        while live == n >= _LARGE and len(taken["module"]["cut off"]) < _RUNS_TO_TRUST:
            for quantity, value in (await room.restrict()).items():
                taken["module"][quantity].append(value)
    return taken


def _rows(taken: Taken, where: str, n: int, live: int) -> list[Row]:
    def row(
        what: str, quantity: str, against: str, baseline_is: str, goal: Goal | None, *, of_baseline: str | None = None
    ) -> Row:
        return Row(
            benchmark="restriction",
            what=what,
            where=where,
            n=n,
            unit="calls" if quantity in {"calls", "again"} else "ms",
            measured=_undisturbed(taken, "module", quantity),
            baseline=_undisturbed(taken, against, of_baseline or quantity),
            baseline_is=baseline_is,
            goal=goal,
        )

    runs, lost = len(taken["module"]["cut off"]), mean(taken["usual"]["cut off"])
    usual = f"{_USUAL}, {USUAL_AT_ONCE} in flight" + (f", which cuts off {lost:.0f} of {n} each time" if lost else "")
    alone = "live alone" if live < n else "bare"
    much_faster = where == "a tenth live" and n >= _LARGE
    rows = [
        row("event", "event", "usual", usual, Goal(0.5 if much_faster else 1.2)),
        row("everyone settled", "settled", "bare", _BARE, Goal(1.1)),
        row("calls", "calls", "bare", _BARE, Goal(1)),
        row("calls with nothing to change", "again", "bare", _BARE, Goal(1, "measured"), of_baseline="calls"),
    ]
    if live:
        rows.insert(0, row("last live microphone withdrawn", "withdrawn", alone, _OF_THE_LIVE, Goal(1.3)))
        rows.insert(1, row("last of them was told", "told", alone, _OF_THE_LIVE, None))
    if live == n:
        rows.append(
            Row(
                benchmark="restriction",
                what=f"cut off in {runs} runs",
                where=where,
                n=n,
                unit="people",
                measured=[sum(taken["module"]["cut off"])],
                baseline=[lost * runs],
                baseline_is=f"{_USUAL}, {USUAL_AT_ONCE} in flight, in as many runs",
                goal=Goal(0, "measured"),
            )
        )
    return rows


def _undisturbed(taken: Taken, variant: str, quantity: str) -> Sequence[float]:
    """Of the runs in which LiveKit cut nobody off, since it then has less to do; of all, if there is no such run."""
    values, lost = taken[variant][quantity], taken[variant]["cut off"]
    return [value for value, people in zip(values, lost, strict=True) if not people] or values


def _rounds(options: Options, n: int) -> int:
    """Small rooms are quick, and need more rounds to tell small differences."""
    return options.repeat if n >= _LARGE else options.repeat**2
