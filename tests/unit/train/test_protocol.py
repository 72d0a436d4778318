"""Folds, seeds and sweeps before they are started; what is said of differences between methods."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from scipy import stats

from cfer.errors import InputError
from cfer.evaluate import report
from cfer.evaluate.significance import MethodResults, difference
from cfer.train.command import PROTOCOLS, Sweep, main, options_of, parse_seeds
from cfer.train.config import TrainConfig, config_of
from cfer.train.placement import Placement
from cfer.train.protocol import Summary, _forecast, _Job, lines_of
from cfer.train.run import Parent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "2", "--seeds", "0,0"], "--seeds 0,0: give different numbers"),
        (["--folds", "2", "--seeds=-1,0"], "--seeds -1,0: give different numbers, 0 or more"),
        (["--folds", "2", "--seeds", "a"], "--seeds a: give numbers"),
        (["--folds", "2", "--fold", "1", "--seeds", "0"], "--fold 1: one fold alone"),
        (["--folds", "2", "--fold", "0", "--sweep", "mu=1"], "--fold 0: one fold alone"),
        (["--folds", "2", "--sweep", "lambda"], "--sweep lambda: give an option and its values"),
        (["--folds", "2", "--sweep", "mood=1,2"], "--sweep mood=1,2: give an option"),
        (["--folds", "2", "--sweep", "mu=a"], "--sweep mu=a: .*; give values of apex_weight"),
        (["--folds", "2", "--sweep", "mu=-1"], "--mu -1.0: give 0 or more"),
        (
            ["--folds", "2", "--sweep", "seed=0,1"],
            "--sweep seed=0,1: .* for seeds there is --seeds",
        ),
        (["--folds", "2", "--sweep", "workers=1,2"], "--sweep workers=1,2: give an option of the"),
        (["--protocol", "afew", "--seeds", "0", "--seed", "1"], "--seed, --seeds: give one"),
        (["--run", "a/b"], "--run a/b: a name, not a path"),
        (["--run", ".a"], "--run .a: a name, not a path"),
    ],
)
def test_wrong_protocols_say_what_is_right_and_start_nothing(
    arguments: list[str],
    message: str,
    drawn_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    was_there = ray.is_initialized()  # of other tests of this process
    with pytest.raises(InputError, match=message):
        main(["--data", str(drawn_shards), *arguments])
    assert ray.is_initialized() == was_there
    assert os.listdir(tmp_path) == []


def test_sweeps_and_seeds_are_read() -> None:
    assert Sweep.parse("lambda=0,0.3") == Sweep("identity_weight", [0.0, 0.3])
    assert Sweep.parse("estimator-steps=1,5") == Sweep("estimator_steps", [1, 5])
    assert Sweep.parse("input=direct,motion") == Sweep("input", ["direct", "motion"])
    assert parse_seeds("2,0") == [2, 0]


def test_a_sweep_is_a_run_of_each_value_beside_what_is_given() -> None:
    config = config_of({"data": "x", "run": "game", "method": "min-max", "epochs": 3})
    none, some = Sweep.parse("lambda=0,0.3").apply(config)
    assert none == replace(config, run="game-lambda=0.0", identity_weight=0)
    assert some == replace(config, run="game-lambda=0.3", identity_weight=0.3)


def test_every_protocol_is_one_that_can_be_run() -> None:
    for name, options in PROTOCOLS.items():
        chosen = options_of(["--data", "x", "--protocol", name])
        assert bool(chosen.config.folds) != (chosen.config.split == "column"), name
        assert parse_seeds(chosen.seeds or "0") == parse_seeds(options.get("seeds", "0")), name


def job(drawn_shards: Path, **options: Any) -> _Job:
    return _Job(TrainConfig(str(drawn_shards), width=4, code_dim=4, **options), Parent("0f", "x"))


def test_a_protocol_says_about_how_long_it_takes(drawn_shards: Path) -> None:
    on_cpus = Placement(1.0, False)
    assert _forecast([job(drawn_shards, epochs=1)], 1, on_cpus) == ": less than a minute"
    found = re.fullmatch(
        r": about (\d+) minutes", _forecast([job(drawn_shards, epochs=10**9)], 1, on_cpus)
    )
    assert found is not None
    assert int(found[1]) > 1000
    # What can't be timed here.
    assert _forecast([job(drawn_shards)], 1, Placement(1.0, True)) == ""
    assert _forecast([job(drawn_shards, workers=2)], 1, on_cpus) == ""


def test_a_protocol_ends_with_a_line_of_means_and_deviations() -> None:
    mean = {"held_out/accuracy": 0.5, "held_out/uar": 0.25, "leakage/chance_held_out": 0.2}
    deviation = {"held_out/accuracy": 0.125}
    config = TrainConfig("x", run="mine")
    summary = Summary(
        config, {}, mean, deviation, np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1]]), "0f"
    )
    line = (
        "mine, 0 runs: accuracy 0.500 ± 0.125, UAR 0.250, strict probe on held-out subjects - "
        "(chance 0.200), AUC -"
    )
    of_clips = "where each clip does: accuracy 0.500, UAR 0.500"
    assert lines_of([summary, replace(summary, config=replace(config, folds="loso"))]) == (
        f"{line}\n  In these means each run counts the same; {of_clips}\n"
        f"{line}\n  In these means each person counts the same; {of_clips}"
    )
    same = replace(summary, mean={**mean, "held_out/uar": 0.5})
    assert lines_of([same, same]) == "\n".join([line.replace("0.250", "0.500")] * 2)


def row(
    values: np.ndarray,
    people: str = "S",
    name: str = "seed 0, fold {}",
    share: float = 1 / 9,
) -> MethodResults:
    names = [name.format(i) for i in range(len(values))]
    figures = {n: {"a": float(v)} for n, v in zip(names, values, strict=True)}
    held_out = {n: [f"{people}{i}", f"{people}{i + 1}"] for i, n in enumerate(names)}
    return MethodResults("x", None, figures, held_out, dict.fromkeys(names, share), {})  # type: ignore[arg-type]


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
    unknown.held_out["seed 0, fold 1"] = []
    with pytest.raises(InputError, match="fold 1: an earlier cfer trained it, and did not note"):
        difference(row(values), unknown, "a")
    assert report._against(row(values, "T"), row(values), "a") == "not comparable"
    (line, end) = report._not_compared([row(values, "T")], row(values))
    assert line.startswith("- *Not comparable*: x and x, seed 0, fold 0: 0 of the 4 that")
    assert end == ""
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
