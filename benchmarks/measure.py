"""What the benches share: rounds side by side, ratios with their spread, JSON, a plot.

A machine that does other work besides is slower at one time than at another, by more than what is
to be measured. So all works of a bench take turns, round after round, and a ratio is taken within
its round; what is reported is the median over the rounds, with the smallest and the largest.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cfer.errors import InputError
from cfer.tracking import code_version

# A ratio that fell below this share of what it was has regressed.
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
        name: what the table calls it.
        run: does it once, and returns how many units that were.
        unit: what it counts, in the plural.
        per_round: how often it is run in a round; more for what is short.
    """

    name: str
    run: Callable[[], int]
    unit: str = "frames"
    per_round: int = 1


@dataclass(frozen=True)
class Ratio:
    """Speed of one work as a multiple of another's, and what is aimed at (at least)."""

    work: str
    reference: str
    target: float | None = None

    @property
    def name(self) -> str:
        return f"{self.work} / {self.reference}"


@dataclass
class Measurement:
    """What a bench found.

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
    rates: dict[str, Spread] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, Spread] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    circumstances: dict[str, str] = field(default_factory=dict)

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
    """Time the works in turns.

    Args:
        works: each is run once before, unmeasured.
        rounds: how often; every second one goes backwards, so that no work always follows the same.
    """
    rates: dict[str, list[float]] = {work.name: [] for work in works}
    for work in works:
        work.run()
    for number in tqdm(range(rounds), bench, unit="round", disable=None, leave=False):
        for work in works if number % 2 == 0 else reversed(works):
            started = time.perf_counter()
            count = sum(work.run() for _ in range(work.per_round))
            rates[work.name].append(count / (time.perf_counter() - started))
    units = {work.name: work.unit for work in works}
    return measurement_of(rates, units, ratios, bench, verified)


def measurement_of(
    rates: Mapping[str, Sequence[float]],
    units: Mapping[str, str],
    ratios: Sequence[Ratio],
    bench: str,
    verified: str,
) -> Measurement:
    """From each work's rate in every round, in units per second."""
    measurement = Measurement(
        bench,
        verified,
        rates={name: Spread.of(values) for name, values in rates.items()},
        units=dict(units),
        circumstances=circumstances(),
    )
    for ratio in ratios:
        pairs = zip(rates[ratio.work], rates[ratio.reference], strict=True)
        measurement.ratios[ratio.name] = Spread.of([one / other for one, other in pairs])
        if ratio.target is not None:
            measurement.targets[ratio.name] = ratio.target
    return measurement


def circumstances() -> dict[str, str]:
    """What a figure is worth nothing without."""
    state = code_version()
    names = ("torch", "av", "numpy", "ray")
    found = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "commit": state.get("git_commit", "not a checkout")
        + (" with changes" if state.get("git_dirty") == "true" else ""),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "software": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names),
    }
    import torch

    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found


def write_json(measurement: Measurement, path: Path) -> None:
    path.write_text(json.dumps(asdict(measurement), indent=1, ensure_ascii=False) + "\n")


def write_plot(measurement: Measurement, path: Path) -> None:
    """The ratios as bars, with their spread; a line where a target is."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(measurement.ratios)
    height = 1.2 + 0.45 * len(names)
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    for row, name in enumerate(names):
        ratio, target = measurement.ratios[name], measurement.targets.get(name)
        missed = target is not None and ratio.median < target
        axes.barh(row, ratio.median, color="tab:orange" if missed else "tab:blue")
        axes.plot([ratio.low, ratio.high], [row, row], color="black", linewidth=1.5)
        axes.text(ratio.high, row, f"  {_figure(ratio.median)}", va="center")
        if target is not None:
            axes.plot([target, target], [row - 0.45, row + 0.45], color="tab:red", linewidth=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("times as fast (median; line: all rounds; red: the target)")
    axes.set_title(f"{measurement.bench}: {measurement.circumstances['processor']}")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def compare(before: Path, after: Path) -> tuple[str, bool]:
    """Two files of `write_json` → a table of their ratios, and whether one fell by over a third, or
    is not measured any more.

    Raises:
        InputError: not such a file, or not of the same bench.
    """
    old, new = _read(before), _read(after)
    if old["bench"] != new["bench"]:
        raise InputError(f"{before} is of {old['bench']}, {after} of {new['bench']}")
    shared = [name for name in old["ratios"] if name in new["ratios"]]
    if not shared:
        raise InputError(f"{before} and {after} have no ratio in common; give two of one bench")
    lines, regressed = [], False
    width = max(map(len, shared)) + 2
    for name in shared:
        was, now = (one["ratios"][name]["median"] for one in (old, new))
        fell = now < REGRESSION * was
        regressed |= fell
        lines.append(f"{name:{width}s}{_figure(was)} → {_figure(now)}{'   FELL' if fell else ''}")
    gone = [name for name in old["ratios"] if name not in new["ratios"]]
    lines += [f"{name:{width}s}{_figure(old['ratios'][name]['median'])} → GONE" for name in gone]
    lines += [f"{name}: new" for name in new["ratios"] if name not in old["ratios"]]
    return "\n".join(lines), regressed or bool(gone)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        _ = content["bench"], [ratio["median"] for ratio in content["ratios"].values()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not written by `benchmarks … --json` ({error!r})") from error
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
