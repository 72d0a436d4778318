"""Whether two methods really differ, over the folds and seeds that both have.

The corrected resampled t-test (Nadeau & Bengio, "Inference for the Generalization Error", Machine
Learning 2003), since the runs share clips: an uncorrected test would find differences that are not
there. Runs are paired where both rows held out the same people; others are not compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.entities import Run

from cfer.errors import InputError
from cfer.evaluate.attacks import is_attack


@dataclass(frozen=True)
class MethodResults:
    """A protocol of the experiment.

    Attributes:
        name, run: as MLflow has it.
        results: of each of its runs, by the name of the run ("seed 0, fold 3"): `figures` by
            metric, `confusion` and `mlflow_run_id`, and unless an earlier cfer trained it,
            `num_train` and `held_out` (`cfer.data.folds.who_is_held_out`).
    """

    name: str
    run: Run
    results: dict[str, dict[str, Any]]

    def values(self, metric: str) -> dict[str, float]:
        """By the name of the run, of those that have the metric."""
        figures = {name: results["figures"] for name, results in self.results.items()}
        return {name: each[metric] for name, each in figures.items() if metric in each}

    def cell(self, metric: str) -> str:
        """Mean ± standard deviation."""
        mean = self.mean(metric, 3)
        return mean if len(self.values(metric)) < 2 else f"{mean} ± {self.spread(metric)[1]:.3f}"

    def spread(self, metric: str) -> tuple[float, float]:
        """Mean and standard deviation, which is 0 of a single run."""
        values = [*self.values(metric).values()]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def means(self) -> dict[str, float]:
        """As `means_of_runs`."""
        return means_of_runs([results["figures"] for results in self.results.values()])

    def mean(self, metric: str, digits: int) -> str:
        values = [*self.values(metric).values()]
        return f"{np.mean(values):,.{digits}f}".replace("-", "−") if values else "–"


def means_of_runs(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the runs that have it. Of attacks, those that only some of the
    attacked runs have are left out: where fewer people are held out, some attackers are missing,
    and the mean of the others would be of other people."""
    values: dict[str, list[float]] = defaultdict(list)
    for figures in runs:
        for name, value in figures.items():
            values[name].append(value)
    most = max((len(each) for name, each in values.items() if is_attack(name)), default=0)
    return {
        name: float(np.mean(each))
        for name, each in values.items()
        if not is_attack(name) or len(each) == most
    }


def difference(
    row: MethodResults, reference: MethodResults, metric: str
) -> tuple[float, float, int] | None:
    """Mean difference over the runs that both have, its p value, and how many these are.

    None where fewer than two pairs of runs with the same name have the figure. The variance is
    that of Nadeau and Bengio: 1/n becomes 1/n + (clips held out) / (clips trained on), whatever the
    runs differ in. Where they differ in their seeds alone (an owner's split), p says whether other
    seeds would agree, and nothing about other people.

    Raises:
        InputError: two runs of the same name held out different people, or it is not known whom.
    """
    from scipy import stats

    for name in sorted(row.results.keys() & reference.results.keys()):
        _check_paired(row, reference, name)
    mine, others = row.values(metric), reference.values(metric)
    names = sorted(mine.keys() & others.keys())
    changes = np.array([mine[name] - others[name] for name in names])
    if len(changes) < 2:
        return None
    pairs = [one.results[name] for one in (row, reference) for name in names]
    ratio = float(np.mean([np.sum(one["confusion"]) / one["num_train"] for one in pairs]))
    variance = (1 / len(changes) + ratio) * changes.var(ddof=1)
    if variance == 0:
        return float(changes.mean()), 1.0 if changes.mean() == 0 else 0.0, len(changes)
    t = changes.mean() / math.sqrt(variance)
    p = 2 * stats.t.sf(abs(t), len(changes) - 1)
    return float(changes.mean()), float(p), len(changes)


def _check_paired(row: MethodResults, reference: MethodResults, name: str) -> None:
    for one in (row, reference):
        if not one.results[name].get("held_out"):
            raise InputError(
                f"{one.name}, {name}: an earlier cfer trained it, and did not note who was held "
                "out; train it again to compare it"
            )
    mine, others = (set(one.results[name]["held_out"]) for one in (row, reference))
    if mine != others:
        apart = sorted(mine ^ others)
        raise InputError(
            f"{row.name} and {reference.name}, {name}: {len(mine & others)} of the "
            f"{len(mine | others)} that they held out are the same (not "
            f"{', '.join(apart[:5])}{', …' if len(apart) > 5 else ''}); train both on the same "
            "subjects, with the same folds and seeds, to compare them"
        )
