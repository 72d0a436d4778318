"""Folds, seeds and sweeps before they are started, and the lines that they end with."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cfer.errors import InputError
from cfer.train.command import PROTOCOLS, Sweep, main, options_of, parse_seeds
from cfer.train.config import TrainConfig, config_of
from cfer.train.placement import Placement
from cfer.train.protocol import Summary, _forecast, _Job, lines_of
from cfer.train.run import Parent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parallel=-1"], "--parallel -1: give 0 or more"),
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


def test_a_sweep_of_methods_keeps_what_is_given_beside_them() -> None:
    config = config_of({"data": "x", "run": "all", "epochs": 3, "apex_weight": 0.5})
    plain, game, direct = Sweep.parse("method=cross-entropy,min-max,direct+min-min").apply(config)
    assert (plain.run, plain.identity_weight, plain.apex_weight) == (
        "all-method=cross-entropy",
        0,
        0.5,
    )
    assert (game.game, game.identity_weight) == ("min-max", 0.1)
    assert (direct.input, direct.frames, direct.identity_weight, direct.epochs) == (
        "direct",
        "4",
        0.3,
        3,
    )
    with pytest.raises(InputError, match="--sweep method=chess: give some of cross-entropy"):
        Sweep.parse("method=chess").apply(config)


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
    linked = "attack/linkage_ridge_training_pooled_auc"
    mean = {"held_out/accuracy": 0.5, "held_out/uar": 0.25, linked: 0.6}
    mean["attack/chance_of_linkage_pooled"] = 0.53
    deviation = {"held_out/accuracy": 0.125}
    config = TrainConfig("x", run="mine")
    summary = Summary(config, 0, mean, deviation, np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1]]))
    line = (
        "mine, 0 runs: accuracy 0.500 ± 0.125, UAR 0.250; identity in the code: linkage 0.600, "
        "verification - (pooled AUC of the strongest attacker; one run, by chance: 0.53, 0.50)"
    )
    of_clips = "where each clip does: accuracy 0.500, UAR 0.500"
    assert lines_of([summary, replace(summary, config=replace(config, folds="loso"))]) == (
        f"{line}\n  In these means each run counts the same; {of_clips}\n"
        f"{line}\n  In these means each person counts the same; {of_clips}"
    )
    same = replace(summary, mean={**mean, "held_out/uar": 0.5})
    assert lines_of([same, same]) == "\n".join([line.replace("0.250", "0.500")] * 2)
