"""Which differences between methods are tested, and how the report shows them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cfer.errors import InputError
from cfer.evaluate import report
from cfer.evaluate.attacks import LINKAGE, strongest
from cfer.evaluate.significance import MethodResults, difference


def row(
    values: np.ndarray,
    people: str = "S",
    name: str = "seed 0, fold {}",
    share: float = 1 / 9,
) -> MethodResults:
    results = {
        name.format(i): {
            "figures": {"a": float(value)},
            "held_out": [f"{people}{i}", f"{people}{i + 1}"],
            "confusion": [[1, 0], [0, 1]],
            "num_train": 2 / share,
        }
        for i, value in enumerate(values)
    }
    return MethodResults("x", None, results)  # type: ignore[arg-type]


def test_differences_are_tested_with_the_corrected_t_test() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.7, 0.05, (2, 10))
    for name, share in (("seed 0, fold {}", 1 / 9), ("seed {}", 1 / 3)):
        rows = [row(values, name=name, share=share) for values in (first, second)]
        change, p, count = difference(*rows, "a") or (0, 0, 0)
        assert count == 10
        assert change == pytest.approx(np.mean(first - second))
        # Nadeau and Bengio: 1/n becomes 1/n + n_test/n_train.
        plain = stats.ttest_rel(first, second)
        t = plain.statistic * np.sqrt((1 / 10) / (1 / 10 + share))
        assert p == pytest.approx(2 * stats.t.sf(abs(t), 9))
    assert difference(row(first[:1]), row(second[:1]), "a") is None
    assert difference(row(first[:3]), row(second), "b") is None


def test_a_difference_that_is_none_is_found_in_one_of_twenty_experiments() -> None:
    """Ten random splits hold out a quarter of forty people each; the methods differ by chance, and
    by a person's as much as by another's. Taken for independent, 30 % of the differences would be
    found at the 5 % level."""
    generator = np.random.default_rng(0)
    found, trials = 0, 1000
    for _ in range(trials):
        of_person = generator.normal(0, 0.1, 40)
        held_out = [generator.permutation(40)[:10] for _ in range(10)]
        first = row(np.array([of_person[out].mean() for out in held_out]), "S", "seed {}", 1 / 3)
        second = row(np.zeros(10), "S", "seed {}", 1 / 3)
        _, p, _ = difference(first, second, "a") or (0, 0, 0)
        found += p < 0.05
    assert 0.03 < found / trials < 0.09


def test_only_runs_that_held_out_the_same_people_are_compared() -> None:
    values = np.array([0.5, 0.25, 0.75])
    # Of the people's clips one may be lost: they are still the same people.
    assert difference(row(values), row(values, share=1 / 8), "a") is not None
    with pytest.raises(InputError, match=r"^x and x, seed 0, fold 0: 0 of the 4 that they held o"):
        difference(row(values), row(values, "T"), "a")
    unknown = row(values)
    unknown.results["seed 0, fold 1"]["held_out"] = []
    with pytest.raises(InputError, match="fold 1: an earlier cfer trained it, and did not note"):
        difference(row(values), unknown, "a")
    assert report._against(row(values, "T"), row(values), "a") == "not comparable"
    (text,) = report._not_compared([row(values, "T")], row(values))
    assert text.startswith("*Not comparable*: x and x, seed 0, fold 0: 0 of the 4 that")
    assert report._not_compared([row(values)], row(values)) == []
    # Seeds that only one of them has are left out.
    assert difference(row(values), row(values[:2]), "a") == (0.0, 1.0, 2)


def test_a_difference_that_is_the_same_in_every_fold_needs_no_test() -> None:
    values = np.array([0.25, 0.5, 0.75])
    assert difference(row(values), row(values), "a") == (0.0, 1.0, 3)
    assert difference(row(values + 0.125), row(values), "a") == (0.125, 0.0, 3)


def test_the_cells_of_the_report() -> None:
    values = np.array([0.25, 0.5, 0.75])
    reference = row(values)
    assert reference.cell("a") == "0.500 ± 0.250"
    assert row(values[:1]).cell("a") == "0.250"
    assert row(-1000 * values).mean("a", 1) == "−500.0"
    assert reference.cell("b") == reference.mean("b", 0) == "–"
    assert report._against(row(values - 0.125), reference, "a") == "−0.125 (p < 0.001)"
    assert report._against(row(values), reference, "a") == "+0.000 (p = 1.000)"
    assert report._against(reference, reference, "a") == "–"
    assert report._against(row(values, name="seed {}"), reference, "a") == "–"


def test_the_marks_of_a_text_are_its_only_markup() -> None:
    text = "**a<b>** of `--run 'x*y*'`, *by clip* & 2 * 3"
    assert report._marked(text) == (
        "<strong>a&lt;b&gt;</strong> of <code>--run &#39;x*y*&#39;</code>, <em>by clip</em> &amp; "
        "2 * 3"
    )


def test_the_strongest_attacker_is_that_of_the_highest_mean() -> None:
    figures = [
        {"linkage_ridge_training": 0.6, "linkage_MLP_held-out": 0.7, "verification_x": 0.9},
        {"linkage_ridge_training": 0.7, "linkage_MLP_held-out": 0.5, "verification_x": 0.4},
    ]
    results = {
        str(number): {
            "figures": {
                **{f"attack/{name}_pooled_auc": value for name, value in each.items()},
                **{f"attack/{name}_auc": 1 - value for name, value in each.items()},
                "attack/linkage_MLP_held-out_pooled_d_sys": 1.0,
            }
        }
        for number, each in enumerate(figures)
    }
    attacked = MethodResults("x", None, results)  # type: ignore[arg-type]
    means = attacked.means()
    assert strongest(means, LINKAGE) == "attack/linkage_ridge_training_pooled_auc"
    assert strongest(means, LINKAGE, pooled=False) == "attack/linkage_MLP_held-out_auc"
    assert strongest(row(np.zeros(2)).means(), LINKAGE) == ""


def test_two_rows_are_compared_by_the_attacker_that_is_strongest_against_both() -> None:
    """And not by one that only some of their runs have."""
    a, b, rare = (f"attack/linkage_{name}_training_pooled_auc" for name in ("a", "b", "rare"))
    one, other = (
        MethodResults("x", None, {"0": {"figures": first}, "1": {"figures": second}})  # type: ignore[arg-type]
        for first, second in (
            ({a: 0.60, b: 0.58, rare: 0.9}, {a: 0.60, b: 0.58}),
            ({a: 0.50, b: 0.56}, {a: 0.50, b: 0.56}),
        )
    )
    assert rare not in one.means()
    assert report._strongest([one], LINKAGE) == a
    assert report._strongest([one, other], LINKAGE) == b
    assert report._chance(one, LINKAGE) == "0.500"
