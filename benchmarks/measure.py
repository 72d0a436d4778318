"""What the benches share: rounds side by side, ratios with their spread, a table, a JSON file.

A machine with other work to do is slower at one time than at another, by more than the difference
that is measured. So all works of a bench take turns, round after round, and a ratio is taken within
its round. Reported is the median over the rounds, with the smallest and the largest value.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cfer.errors import InputError
from cfer.tracking import code_version

# A ratio that fell below this share of its former value has regressed.
REGRESSION = 2 / 3


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, the smallest and the largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_figure(self.median)} ({_figure(self.low)} … {_figure(self.high)})"


@dataclass(frozen=True)
class Work:
    """Something to be timed.

    Attributes:
        name: its name in the table.
        run: does it once, and returns how many units that were.
        unit: what it counts, in the plural.
        per_round: how often it is run in a round; more often for a short work.
    """

    name: str
    run: Callable[[], int]
    unit: str = "frames"
    per_round: int = 1


@dataclass(frozen=True)
class Ratio:
    """The speed of one work as a multiple of another's, with the target (at least), if any."""

    work: str
    reference: str
    target: float | None = None

    @property
    def name(self) -> str:
        return f"{self.work} / {self.reference}"


@dataclass
class Measurement:
    """The result of a bench.

    Attributes:
        bench: which one.
        verified: what was checked before anything was timed.
        rates: units per second of each work.
        units: of the rates.
        ratios: by `Ratio.name`; higher is better.
        targets: of the ratios that have one.
        figures: everything else: shares, bytes, memory.
        circumstances: command, commit, hardware, software.
    """

    bench: str
    verified: str
    rates: dict[str, Spread]
    units: dict[str, str]
    ratios: dict[str, Spread]
    targets: dict[str, float]
    figures: dict[str, str] = field(default_factory=dict)
    circumstances: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        bench: str,
        verified: str,
        rates: Mapping[str, Sequence[float]],
        units: Mapping[str, str],
        ratios: Sequence[Ratio],
    ) -> Measurement:
        """From each work's rate in every round, in units per second."""
        pairs = {r.name: zip(rates[r.work], rates[r.reference], strict=True) for r in ratios}
        return cls(
            bench,
            verified,
            rates={name: Spread.of(values) for name, values in rates.items()},
            units=dict(units),
            ratios={name: Spread.of([a / b for a, b in both]) for name, both in pairs.items()},
            targets={r.name: r.target for r in ratios if r.target is not None},
            circumstances=_circumstances(),
        )

    def table(self) -> str:
        """For the terminal."""
        width = max(map(len, [*self.rates, *self.ratios, *self.figures, "verified"])) + 2
        lines = [f"{'verified':{width}s}{self.verified}", ""]
        for name, rate in self.rates.items():
            lines.append(f"{name:{width}s}{rate} {self.units[name]}/s")
        lines.append("")
        for name, ratio in self.ratios.items():
            target = self.targets.get(name)
            aim = ""
            if target is not None:
                aim = f"   target {target:g}: {'met' if ratio.median >= target else 'MISSED'}"
            lines.append(f"{name:{width}s}{ratio}{aim}")
        lines += ["", *(f"{name:{width}s}{text}" for name, text in self.figures.items())]
        lines += ["", *(f"{name:{width}s}{text}" for name, text in self.circumstances.items())]
        return "\n".join(lines)


def side_by_side(
    works: Sequence[Work], ratios: Sequence[Ratio], rounds: int, bench: str, verified: str
) -> Measurement:
    """Time the works in turns."""
    units = {work.name: work.unit for work in works}
    return Measurement.of(bench, verified, rates_in_turns(works, rounds, bench), units, ratios)


def rates_in_turns(works: Sequence[Work], rounds: int, bench: str) -> dict[str, list[float]]:
    """Each work's units per second in every round, after one run that is not timed.

    Every second round goes backwards, so that no work always follows the same one.
    """
    rates: dict[str, list[float]] = {work.name: [] for work in works}
    for work in works:
        work.run()
    for number in tqdm(range(rounds), bench, unit="round", disable=None, leave=False):
        for work in works if number % 2 == 0 else reversed(works):
            started = time.perf_counter()
            count = sum(work.run() for _ in range(work.per_round))
            rates[work.name].append(count / (time.perf_counter() - started))
    return rates


def _circumstances() -> dict[str, str]:
    """A figure is worth nothing without them."""
    import torch

    state = code_version()
    names = ("torch", "av", "numpy", "ray")
    found = {
        "command": "cfer bench " + " ".join(sys.argv[1:]).removeprefix("bench "),
        "commit": state.get("git_commit", "not a checkout")
        + (" with changes" if state.get("git_dirty") == "true" else ""),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "software": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names),
    }
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """For the terminal and for a page."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def compare(before: Path, after: Path) -> tuple[str, bool]:
    """Two JSON files of one bench → a table of their ratios, and whether one fell by over a third
    or is no longer measured.

    Raises:
        InputError: not such a file, or not of the same bench.
    """
    old, new = _read(before), _read(after)
    if old["bench"] != new["bench"]:
        raise InputError(f"{before} is of {old['bench']}, {after} of {new['bench']}")
    was, now = (
        {name: ratio["median"] for name, ratio in one["ratios"].items()} for one in (old, new)
    )
    if not was.keys() & now.keys():
        raise InputError(f"{before} and {after} have no ratio in common; give two of one bench")
    lines, regressed = [], False
    width = max(map(len, [*was, *now])) + 2
    for name, ratio in was.items():
        fell = name not in now or now[name] < REGRESSION * ratio
        regressed |= fell
        is_now = _figure(now[name]) + "   FELL" * fell if name in now else "GONE"
        lines.append(f"{name:{width}s}{_figure(ratio)} → {is_now}")
    lines += [f"{name}: new" for name in now if name not in was]
    return "\n".join(lines), regressed


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        _ = content["bench"], [ratio["median"] for ratio in content["ratios"].values()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not written by `cfer bench … --json` ({error!r})") from error
    return content


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
