"""Whether two methods really differ, over the folds and seeds that both have.

The corrected resampled t-test (Nadeau & Bengio, "Inference for the Generalization Error", Machine
Learning 2003), since the runs share clips: an uncorrected test would find differences that are not
there. Runs are paired where both rows held out the same people; others are not compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from mlflow.entities import Run

from cfer.errors import InputError


@dataclass(frozen=True)
class MethodResults:
    """A protocol of the experiment.

    Attributes:
        name, run: as MLflow has it.
        figures: by the name of each of its runs ("seed 0, fold 3"), then by metric.
        held_out: by the same names, who was held out (`cfer.data.folds.who_is_held_out`).
        test_share: by the same names, clips held out per clip that was trained on.
        run_ids: by the same names.
    """

    name: str
    run: Run
    figures: dict[str, dict[str, float]]
    held_out: dict[str, list[str]]
    test_share: dict[str, float]
    run_ids: dict[str, str]

    def cell(self, metric: str) -> str:
        """Mean ± standard deviation."""
        values = [f[metric] for f in self.figures.values() if metric in f]
        mean = self.mean(metric, 3)
        return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.3f}"

    def mean(self, metric: str, digits: int) -> str:
        values = [f[metric] for f in self.figures.values() if metric in f]
        return f"{np.mean(values):,.{digits}f}".replace("-", "−") if values else "–"


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

    names = sorted(row.figures.keys() & reference.figures.keys())
    for name in names:
        _check_paired(row, reference, name)
    names = [n for n in names if metric in row.figures[n] and metric in reference.figures[n]]
    changes = np.array([row.figures[n][metric] - reference.figures[n][metric] for n in names])
    if len(changes) < 2:
        return None
    ratio = float(np.mean([one.test_share[name] for one in (row, reference) for name in names]))
    variance = (1 / len(changes) + ratio) * changes.var(ddof=1)
    if variance == 0:
        return float(changes.mean()), 1.0 if changes.mean() == 0 else 0.0, len(changes)
    t = changes.mean() / math.sqrt(variance)
    p = 2 * stats.t.sf(abs(t), len(changes) - 1)
    return float(changes.mean()), float(p), len(changes)


def _check_paired(row: MethodResults, reference: MethodResults, name: str) -> None:
    for one in (row, reference):
        if not one.held_out[name]:
            raise InputError(
                f"{one.name}, {name}: an earlier cfer trained it, and did not note who was held "
                "out; train it again to compare it"
            )
    mine, others = set(row.held_out[name]), set(reference.held_out[name])
    if mine != others:
        apart = sorted(mine ^ others)
        raise InputError(
            f"{row.name} and {reference.name}, {name}: {len(mine & others)} of the "
            f"{len(mine | others)} that they held out are the same (not "
            f"{', '.join(apart[:5])}{', …' if len(apart) > 5 else ''}); train both on the same "
            "subjects, with the same folds and seeds, to compare them"
        )
