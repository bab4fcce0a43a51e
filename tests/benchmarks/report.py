"""What was measured, as a table, as JSON and as a page."""

import dataclasses
import datetime as dt
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.table import Table

from signaling.livekit.installation import require
from tests.benchmarks.measure import Growth, Options, Row, growth, p95

_HEAD: Final = ("what", "where", "n", "measured (p95)", "baseline (p95)", "ratio", "goal", "met")
_TITLES: Final = {"nodes": "Several nodes"}
_COUNTS: Final = frozenset({"calls", "people"})
_HOW: Final = """
A ratio compares two medians of the same run: what is measured and its baseline are taken in turns, each round begins
with another of them, and a first round does not count. Goals that are no ratio are of the median, or of the p95 where
they say so.

- *mute*, *one*, *restriction*: a real `livekit-server` with n real participants, who are in a process of their own;
  live are those with a running microphone. The module is embedded in the measuring process, and the moderator only
  signals. The baselines call the library (`livekit-api`) from there too, with a token signed once. The usual algorithm
  of a mute gets each participant in turn and mutes each of their microphones; that of a restriction lists, and rewrites
  every permission. Withdrawn and settled mean answered by LiveKit; *was told* is by the publisher's own clock. Cut off
  are connections that LiveKit closed, by its own counter, while restricting and lifting; of all other figures, runs in
  which that happened count only if it happened in all. Each run begins when LiveKit has nothing more to tell anybody.
- *cheats*: a restricted meeting on a real `livekit-server`, with the module embedded in the measuring process. Eleven
  people, each a client that cheats with real sound, do what the row says with a token of before the restriction; a
  hidden listener with LiveKit's own SDK subscribes to all sound as soon as it is told of it. Heard is from the first
  audible frame of 20 ms to the last; who is not heard within 1.5 s counts as 0, and the row says how often somebody
  was heard. Nobody cheats twice: each round is a meeting of its own. Its cheats begin 0.38 s after each other, so
  that with webhooks each, but the sound of a screen, has been dealt with when the next begins; without, sweeps come
  at any time of a cheat, and a few are heard at once, each by itself. Without webhooks the meeting is swept every
  second, not every five, to see as many; what is heard grows with it. With webhooks there is no sweep. Sound in a
  track of type `VIDEO` aborts whoever subscribes: that one is measured from the client's publishing it, before
  LiveKit has agreed on any media, to LiveKit's taking it away. An unknown source LiveKit itself refuses.
- *repair*: *an old token*: somebody restricted returns with a token of before, without media, to a real
  `livekit-server` that reports by webhooks to the measuring process, in which the module is embedded. LiveKit is
  right when they are told so, by their own clock: since the HTTP request came in, or since LiveKit let them in. *A
  sweep*: in a full room, as for restrictions. *Reports*: signed webhooks of people who agree, handed one after
  another to the module's `receive_webhook`, on a RoomService without latency, until all that follows from them is
  done. *Joining LiveKit*: a room of people who have joined the signaling of `livekit-moderation serve`, 8 at a time,
  reported to it or not. On two cores, which LiveKit and the clients share, the joins a second are theirs and move
  with whatever else runs; what webhooks cost is told by the CPU of each join.
- *command*: the CPU of the measuring process, by its own clock, from a frame's text until all is done that follows from
  it, less that of the same two calls made bare right before or after, on a RoomService without latency in another
  process; the meetings of all sizes are there at once, and logs are written as `serve` writes them.
- *echo*, *token*, *broadcast*, *joins*, *memory*: `livekit-moderation serve` in a process of its own, with a store in
  memory and a real `livekit-server`, against a bare `websockets` server in another. Neither compresses; both have the
  same clients, in the measuring process, which thus share the machine with the server. Joins are 20 at a time and end
  with `join_success`; the baseline is connecting and one echo; with SQLite it is the same server with a store in
  memory. Memory is what the server's process has resident, above what it had before; Python keeps most of it for the
  next meeting, and *more after one meeting more* is what the third adds.
- *crowd*: pings of 20 people, ten times as often as clients send them, to `livekit-moderation serve` while a process of
  others, which gives way to the server's, is there: so many connections that say nothing, and are there again when
  they are ended; so many handshakes in flight, none with a ticket; guests who send frames of 1 MiB as fast as they are
  read; people in rooms of 50 who are idle, then all of them gone at once by the end of their process, then after their
  grace. A trip begins when the ping is due. The figure of a round is the p99 of its trips; the baseline is nobody else.
- *nodes*: `livekit-moderation serve`, one or three, on a `redis-server` of their own that writes every command to its
  file, and one on SQLite, in processes of their own on one real `livekit-server`; the people of each meeting are spread
  evenly over the nodes, so that each node follows all of them, which is the worst case. All clients are in the
  measuring process, and everything shares the cores. *A commit* is the store's `append`, one after the other, of an
  entry of one change with one outcome in its audit; *CPU* is that of the measuring process, Redis' own apart. *Hands a
  second* are the most, of loads of 4 to 64 commands at once in as many meetings of ten, with which 99 of 100 are told
  within 50 ms to somebody on the same node: the load is sought once, the figures are of runs of their own that held it,
  and their ratios medians over pairs of a round; the CPU is that of that load, of all nodes together. *Joins in 10 s*
  come evenly, whether or not those before are in. A restriction is given in all meetings at once. What Redis is asked
  is counted by `INFO commandstats`: scripts asked for by nodes, and all commands that it then executed, those within
  scripts included.
"""


def table(rows: Sequence[Row], failures: Mapping[str, str]) -> Table:
    """One line a row, and one for each benchmark that could not be measured."""
    made = Table(title="Benchmarks", title_justify="left")
    for name in _HEAD:
        made.add_column(name, justify="left" if name in _HEAD[:2] else "right")
    for row in rows:
        what, *rest = _cells(row)
        made.add_row(f"{row.benchmark}: {what}", *rest, style="red" if row.is_met is False else "")
    for name, error in failures.items():
        made.add_row(name, f"not measured: {error}", style="bold red")
    return made


def growth_table(grown: Sequence[Growth]) -> Table:
    """The fitted exponents."""
    made = Table("what", "where", "sizes", "exponent", "baseline's", title="Growth: n to the power of")
    for each in grown:
        what, *rest = _growth_cells(each)
        made.add_row(f"{each.benchmark}: {what}", *rest)
    return made


def as_json(rows: Sequence[Row], failures: Mapping[str, str], options: Options) -> dict[str, Any]:
    """Everything, each sample too."""
    return {
        "machine": machine(),
        "options": dataclasses.asdict(options),
        "rows": [
            {
                "benchmark": row.benchmark,
                "what": row.what,
                "where": row.where,
                "n": row.n,
                "unit": row.unit,
                "measured": _samples(row.measured),
                "baseline": {"is": row.baseline_is} | _samples(row.baseline) if row.baseline else None,
                "ratio": row.ratio,
                "goal": None if row.goal is None else dataclasses.asdict(row.goal),
                "is_met": row.is_met,
            }
            for row in rows
        ],
        "growth": [dataclasses.asdict(each) for each in growth(rows)],
        "failures": dict(failures),
    }


def as_markdown(rows: Sequence[Row], options: Options) -> str:
    """The page."""
    parts = ["# Benchmarks", f"`make bench`, {options.repeat} rounds. {_machine_in_words()}", "## How", _HOW.strip()]
    for name in dict.fromkeys(row.benchmark for row in rows):
        mine = [row for row in rows if row.benchmark == name]
        parts += [f"## {_TITLES.get(name, name.capitalize())}", _lines(_HEAD, [_cells(row) for row in mine])]
        parts.append("\n".join(f"- Against {is_}: {'; '.join(what)}." for is_, what in _baselines(mine).items()))
    if grown := growth(rows):
        parts += ["## Growth", "The exponent e of n^e, fitted by least squares of the logarithms."]
        head = ("what", "where", "sizes", "exponent", "baseline's")
        parts.append(
            _lines(head, [(f"{g.benchmark}: {what}", *rest) for g in grown for what, *rest in [_growth_cells(g)]])
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def machine() -> dict[str, str | int]:
    """What it was measured on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    version = subprocess.run([require(None), "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "livekit_server": version.stdout.split()[-1],
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _machine_in_words() -> str:
    on = machine()
    return (
        f"{on['cores']} cores of {on['cpu']}, Linux {on['kernel']}, Python {on['python']}, "
        f"livekit-server {on['livekit_server']}, {on['date']}."
    )


def _samples(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "p95": p95(values), "samples": [round(value, 6) for value in values]}


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    met = {True: "yes", False: "no", None: ""}[row.is_met]
    baseline = _figure(row.baseline, row.unit) if row.baseline else "-"
    goal = "" if row.goal is None else str(row.goal)
    return row.what, row.where, str(row.n), _figure(row.measured, row.unit), baseline, ratio, goal, met


def _growth_cells(each: Growth) -> tuple[str, ...]:
    below = "-" if each.baseline_exponent is None else f"{each.baseline_exponent:.2f}"
    return each.what, each.where, ", ".join(map(str, each.sizes)), f"{each.exponent:.2f}", below


def _figure(values: Sequence[float], unit: str) -> str:
    if unit in _COUNTS:
        return _digits(median(values))
    most = f" ({_digits(p95(values))})" if len(values) > 1 else ""
    return f"{_digits(median(values))}{most} {unit}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _baselines(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What is compared with which, with the situation where the quantity alone does not say it."""
    named: dict[str, list[str]] = {}
    for row in rows:
        alike = {other.baseline_is for other in rows if other.what == row.what}
        what = row.what if len(alike) == 1 else f"{row.what}, {row.where}"
        if row.baseline and what not in named.setdefault(row.baseline_is, []):
            named[row.baseline_is].append(what)
    return named


def _lines(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells))
