"""The options of a run: values that are refused, methods, and the command that a run is."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

import pytest

from cfer.data.inputs import KINDS, PLANES, STREAMS, Input
from cfer.errors import InputError
from cfer.model.game import PLAYERS
from cfer.model.network import POOLINGS
from cfer.train.batches import Augmentation
from cfer.train.command import PROTOCOLS, Protocol, main, options_of
from cfer.train.config import (
    METHODS,
    Game,
    Kind,
    Method,
    Planes,
    Pooling,
    Stream,
    TrainConfig,
    command_of,
)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            ({name: 0}, f"--{name.replace('_', '-')} 0: give 1 or more")
            for name in ("workers", "epochs", "batch_size", "estimator_steps")
        ),
        *(
            ({name: -1}, f"--{name.replace('_', '-')} -1: give 0 or more")
            for name in ("cpus_per_worker", "weight_decay", "shift_pixels", "gain_jitter", "seed")
        ),
        ({"identity_weight": -1.0}, "--lambda -1.0: give 0 or more"),
        ({"apex_weight": math.nan}, "--mu nan: give 0 or more"),
        *(
            ({name: value}, f"--{name.replace('_', '-')} {value}: give more than 0")
            for name in ("lr", "estimator_lr")
            for value in (0.0, math.nan, math.inf)
        ),
        *(
            ({name: value}, f"--{name.replace('_', '-')} {value}: give 0 or more, below 1")
            for name in ("label_smoothing", "dropout")
            for value in (-0.1, 1.0)
        ),
        ({"code_dim": -1}, "--code-dim -1: give 0 or more"),
        ({"erase": -1}, "--erase -1: give 0 or more"),
        ({"blur": -1.0}, "--blur -1.0: give 0 or more"),
        ({"val_fraction": 0.0}, "--val-fraction 0.0: give a share between 0 and 1"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0: give a share between 0 and 1"),
        ({"flip": 1.5}, "--flip 1.5: give a probability, 0 to 1"),
        ({"flip": -0.5}, "--flip -0.5: give a probability, 0 to 1"),
        ({"width": 10}, "--width 10: give a multiple of 4"),
        ({"width": 0}, "--width 0: give a multiple of 4"),
        ({"fold": 0}, "--fold 0: it needs --folds"),
        ({"fold": 1}, "--fold 1: it needs --folds"),
        ({"folds": "3", "val_subjects": "a"}, "give one of the three"),
        ({"folds": "3", "split": "column"}, "give one of the three"),
        ({"frames": "none"}, "--frames none"),
        ({"input": "flow"}, "--input flow: give one of accumulated"),
        ({"game": "chess"}, "--game chess: give one of min-min, "),
        ({"device": "tpu"}, "--device tpu: give one of auto, cpu, gpu"),
    ],
)
def test_wrong_options_say_what_is_right(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(data="x", **wrong).checked()


@pytest.mark.parametrize(
    ("batch", "workers", "nearest"),
    [
        (16, 7, "--batch-size 14 or 21, or --workers 4 or 8"),
        (3, 4, "--batch-size 4, or --workers 3"),
        (16, 50, "--batch-size 50, or --workers 16"),
        (9, 2, "--batch-size 8 or 10, or --workers 1 or 3"),
    ],
)
def test_a_step_has_as_many_clips_as_were_asked_for(batch: int, workers: int, nearest: str) -> None:
    for count in range(1, workers + 1):
        try:
            config = TrainConfig("x", batch_size=batch, workers=count).checked()
        except InputError:
            continue
        assert config.clips_per_worker * count == batch
    with pytest.raises(InputError) as error:
        TrainConfig("x", batch_size=batch, workers=workers).checked()
    assert str(error.value) == (
        f"--batch-size {batch} --workers {workers}: so many clips can't be dealt to the workers in "
        f"equal parts; give {nearest}"
    )
    # What it advises is taken.
    for words in nearest.split(", or "):
        option, *values = words.replace(" or ", " ").split()
        for value in values:
            wanted = {"batch_size": batch, "workers": workers}
            wanted[option.removeprefix("--").replace("-", "_")] = int(value)
            TrainConfig("x", **wanted).checked()


def test_the_least_of_each_option_is_allowed() -> None:
    ones = dict.fromkeys(("workers", "epochs", "batch_size", "estimator_steps"), 1)
    none = ("weight_decay", "shift_pixels", "gain_jitter", "seed", "flip", "code_dim", "erase")
    zeros = dict.fromkeys(none, 0)
    config = TrainConfig(data="x", width=4, label_smoothing=0, folds="2", fold=0, **ones, **zeros)
    assert config.checked().augmentation == Augmentation(0, 0, 0)
    assert TrainConfig("x", flip=1, shift_pixels=6).checked().augmentation == Augmentation(
        1, 6, 0.6
    )


def test_a_method_sets_what_is_not_given_beside_it() -> None:
    def parsed(*arguments: str) -> TrainConfig:
        return options_of(["--data", "x", *arguments]).config

    assert parsed("--method", "cross-entropy").identity_weight == 0
    assert parsed("--method", "cross-entropy").what == Input("accumulated+motion")
    assert parsed("--method", "residual").what == Input("accumulated")
    game = parsed("--method", "min-min+apex", "--mu", "3")
    assert game.identity_weight > 0
    assert game.apex_weight == 3
    assert parsed("--method", "stills-sampled").what == Input("pictures", "yuv", 4)
    assert parsed("--method", "gradient-reversal").game == "gradient-reversal"
    for arguments in (["--method", "min-max"], ["--method", "min-min", "--lambda", "7"], []):
        config = parsed(*arguments)
        assert options_of(command_of(config).split()).config == config
    assert command_of(parsed("--method", "min-max")) == "--data x --method min-max"
    for method in METHODS:
        assert parsed("--method", method).method == method


def test_every_option_has_its_help_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "channels of the encoder's first stage (default: 32)" in said
    assert "player 2's highest learning rate (AdamW: 5 % warm-up, then cosine to 0)" in said
    assert "--lambda FLOAT λ: weight of the identity term" in said
    assert "--device {auto,cpu,gpu}" in said


def test_unknown_choices_and_values_are_said_by_the_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option, value in (("--device", "tpu"), ("--epochs", "many")):
        with pytest.raises(SystemExit) as end:
            main(["--data", "x", option, value])
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert option in said
        assert value in said


def test_the_names_on_the_command_line_are_those_of_what_they_choose() -> None:
    """They are written out there, since the modules that have them import PyTorch."""
    for written, there in (
        (Method, METHODS),
        (Protocol, PROTOCOLS),
        (Game, PLAYERS),
        (Kind, KINDS),
        (Planes, PLANES),
        (Stream, STREAMS),
        (Pooling, POOLINGS),
    ):
        assert get_args(written) == tuple(there)


def test_without_options_it_is_the_min_min_game_on_shards() -> None:
    options = options_of([])
    assert options.config == TrainConfig("shards", run="min-min")
    assert (options.config.game, options.config.identity_weight) == ("min-min", 0.3)
    paper = options_of(["--preset", "paper", "--mu", "0.5"]).config
    assert (paper.method, paper.identity_weight, paper.apex_weight) == ("min-min-vclub", 1.0, 0.5)
    assert paper.game == "vclub"
    assert options_of(["--preset", "paper"]).config.apex_weight == 1.0
    with pytest.raises(InputError, match="--preset, --method: give one of them"):
        options_of(["--preset", "paper", "--method", "min-max"])
    # What is given beside a protocol wins over it.
    for words, seeds, epochs in (
        ("", "0,1,2", 30),
        (" --seed 4", "", 30),
        (" --epochs 2", "0,1,2", 2),
    ):
        given = options_of(f"--protocol synthetic{words}".split())
        assert (given.seeds, given.config.epochs, given.config.folds) == (seeds, epochs, "5")
