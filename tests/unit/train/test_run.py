"""Training without Ray: what a run is, where its workers go, its checkpoints and figures; and what
is refused before anything is started."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.train import WorkerGroupError
from torch import nn

from cfer.data import shards
from cfer.data.folds import ClipIndex, Split, read_index
from cfer.data.inputs import APEX_SIZE, Input
from cfer.data.shards import read_description
from cfer.errors import InputError, NotFinite, WorkerError
from cfer.evaluate.metrics import ScoredClips
from cfer.model.network import ModelConfig
from cfer.train.batches import Augmentation, BatchMaker, LoadedClips, Standardization
from cfer.train.checkpoint import (
    SEAL_NAME,
    STATE_NAME,
    Results,
    _restore,
    _save,
    newest_checkpoint,
    read_results,
)
from cfer.train.command import build_parser, main
from cfer.train.config import METHODS, OPERATIONAL, TrainConfig, command_of, config_of
from cfer.train.loop import (
    _mean_over_workers,
    _progress_line,
    _schedule,
    _standardization,
    _stopped,
    _validation_figures,
    model_config,
    turn_on_noise,
)
from cfer.train.placement import Node, place_workers
from cfer.train.run import (
    RECORD_NAME,
    _class_weights,
    _cuts,
    _final_lines,
    _fit_again_and_again,
    check_same,
    check_training_clips,
    read_record,
    split_clips,
    without_effectless,
)

CPU = torch.device("cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, in which no Ray is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    was_there = ray.is_initialized()  # of other tests of this process
    yield tmp_path
    assert ray.is_initialized() == was_there


# ---- placing the workers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "asked", "expected"),
    [
        ([Node(2, 0)], 1, "auto", 0, (1.0, False)),
        ([Node(2, 0)], 2, "cpu", 0, (0.5, False)),
        ([Node(2, 0)], 8, "auto", 0, (0.12, False)),
        ([Node(1, 0)], 1, "auto", 0, (0.5, False)),
        ([Node(8, 0)], 2, "auto", 3, (3.0, False)),
        ([Node(16, 1)], 1, "auto", 0, (1.0, True)),
        ([Node(16, 1)], 1, "cpu", 0, (1.0, False)),
        ([Node(16, 1)], 2, "auto", 0, (1.0, False)),
        # 3 CPUs for 3 workers, but no node has room for more than one of 0.7 and above.
        ([Node(1, 0), Node(1, 0), Node(2, 0)], 4, "auto", 0, (0.75, False)),
        ([Node(4, 2), Node(32, 0)], 2, "gpu", 0, (1.0, True)),
        # The CPUs beside the GPUs are few, and those of the other node don't help.
        ([Node(1, 2), Node(32, 0)], 2, "gpu", 0, (0.5, True)),
    ],
)
def test_workers_are_placed_with_room_to_spare(
    nodes: list[Node], workers: int, device: str, asked: float, expected: tuple[float, bool]
) -> None:
    placement = place_workers(nodes, workers, device, asked)
    assert (placement.cpus, placement.use_gpu) == expected
    total = sum(node.cpus for node in nodes)
    assert workers * placement.cpus <= total - min(1, total / 2) + 1e-9
    if workers > total:
        assert placement.warning == (
            f"--workers {workers} share {total} CPUs: this works, slower than --workers {total}"
        )
    else:
        assert placement.warning == ""


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "asked", "message"),
    [
        ([Node(2, 0)], 1, "gpu", 0, "the cluster has 0 GPUs.*; give --workers 1 --device cpu"),
        ([Node(8, 1)], 2, "gpu", 0, "the cluster has 1 GPUs.*; give --workers 1$"),
        ([Node(2, 0)], 2, "cpu", 1, "has 2 CPUs on 1 nodes, and 1 must stay free"),
        ([Node(4, 0), Node(4, 0)], 1, "cpu", 5, "--cpus-per-worker 5"),
        ([Node(2, 0)], 1000, "cpu", 0, "too many"),
    ],
)
def test_what_can_never_be_placed_is_refused(
    nodes: list[Node], workers: int, device: str, asked: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place_workers(nodes, workers, device, asked)


def test_shares_differ_by_one_clip_at_most() -> None:
    assert _cuts(10, 3) == [0, 3, 6, 10]
    assert _cuts(2, 3) == [0, 0, 1, 2]
    assert _cuts(6, 1) == [0, 6]


# ---- what a run is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            ({name: 0}, f"--{name.replace('_', '-')} 0: give 1 or more")
            for name in ("workers", "epochs", "batch_size", "estimator_steps", "code_dim")
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
        TrainConfig(data="x", **wrong)


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
            config = TrainConfig("x", batch_size=batch, workers=count)
        except InputError:
            continue
        assert config.clips_per_worker * count == batch
    with pytest.raises(InputError) as error:
        TrainConfig("x", batch_size=batch, workers=workers)
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
            TrainConfig("x", **wanted)


def test_fewer_training_clips_than_a_step_has_are_said() -> None:
    index = ClipIndex(list("abcd"), [None] * 4, [0, 1, 0, 1], [None] * 4, 0, 0)
    split = Split(["a", "b", "c"], ["d"])
    classes = ["joy", "fear"]
    assert check_training_clips(TrainConfig("x", batch_size=3), index, split, classes) == []
    assert check_training_clips(TrainConfig("x", batch_size=4), index, split, classes) == [
        "--batch-size 4: there are 3 training clips, so some are in a step more than once"
    ]
    nothing = torch.zeros(3, dtype=torch.int64)
    frames = [np.full((1, 6, 8, 8), 128, np.uint8)] * 3
    apex = torch.zeros(3, 3, APEX_SIZE, APEX_SIZE)
    rows = LoadedClips(
        frames, torch.arange(3), torch.zeros(3, 2), apex, nothing.bool(), [None] * 3, [], nothing
    )
    maker = BatchMaker(rows, Input(), Standardization(torch.zeros(2), torch.ones(2)), CPU)
    (batch,) = maker.training_epoch(1, 8, Augmentation(), seed=0, epoch=0, rank=0)
    assert sorted(torch.bincount(batch.labels).tolist()) == [2, 3, 3]


def test_the_least_of_each_option_is_allowed() -> None:
    ones = dict.fromkeys(("workers", "epochs", "batch_size", "estimator_steps", "code_dim"), 1)
    zeros = dict.fromkeys(("weight_decay", "shift_pixels", "gain_jitter", "seed", "flip"), 0)
    config = TrainConfig(data="x", width=4, label_smoothing=0, folds="2", fold=0, **ones, **zeros)
    assert config.augmentation == Augmentation(0, 0, 0)
    assert TrainConfig("x", flip=1, shift_pixels=6).augmentation == Augmentation(1, 6, 0.3)


def test_a_method_sets_what_is_not_given_beside_it() -> None:
    def parsed(*arguments: str) -> TrainConfig:
        return config_of(vars(build_parser().parse_args(["--data", "x", *arguments])))

    assert parsed("--method", "cross-entropy").identity_weight == 0
    game = parsed("--method", "min-min+apex", "--mu", "3")
    assert game.identity_weight > 0
    assert game.apex_weight == 3
    assert parsed("--method", "stills-sampled").what == Input("pictures", "yuv", 4)
    assert parsed("--method", "gradient-reversal").game == "gradient-reversal"
    for arguments in (["--method", "min-max"], ["--method", "min-min", "--lambda", "7"], []):
        config = parsed(*arguments)
        words = command_of(config).split()
        assert config_of(vars(build_parser().parse_args(words))) == config
    assert command_of(parsed("--method", "min-min")) == "--data x --method min-min"
    for method in METHODS:
        assert parsed("--method", method).method == method


def test_every_option_has_its_help_and_its_default() -> None:
    said = " ".join(build_parser().format_help().split())
    assert "channels of the encoder's first stage (default: 16)" in said
    assert "player 2's highest learning rate (AdamW: 5 % warm-up, then cosine to 0)" in said
    assert "--lambda IDENTITY_WEIGHT λ: weight of the identity term" in said
    assert "--device {auto,cpu,gpu}" in said
    assert "name of the run; the same name goes on with it (default: made from the time)" in said


def test_unknown_choices_and_missing_data_are_said_by_the_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, message in (
        (["--data", "x", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--data", "x", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--epochs", "2"], "the following arguments are required: --data"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_the_model_is_as_the_options_say() -> None:
    config = TrainConfig("x", width=8, code_dim=32, pooling="max", dropout=0.5, input="motion")
    assert model_config(config, 7, 128) == ModelConfig(
        num_classes=7,
        identity_dim=128,
        num_planes=config.what.num_planes,
        gain=config.what.gain,
        width=8,
        code_dim=32,
        pooling="max",
        dropout=0.5,
    )


# ---- what is refused before anything is started --------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--workers", "16"],
            r"--workers 16: more than there are training clips \(8\); give fewer",
        ),
        (["--workers", "7"], "--batch-size 14 or 21, or --workers 4 or 8$"),
        (["--folds", "2", "--fold", "2"], "--fold 2: there are 2 folds, numbered from 0"),
        (["--split", "column"], "--split column: clip S001_happiness_1 has the split None"),
        (["--val-subjects", "S001,me"], "--val-subjects: me: not in the data set; its subjects"),
    ],
)
def test_what_this_data_set_cannot_give_starts_nothing(
    options: list[str], message: str, drawn_shards: Path, here: Path
) -> None:
    with pytest.raises(InputError, match=message):
        main(["--data", str(drawn_shards), "--run", "never", *options])
    assert os.listdir(here) == []


def test_no_data_set_is_one_line(here: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no dataset\.json in it") as error:
        main(["--data", str(here / "nowhere")])
    assert "\n" not in str(error.value)
    assert os.listdir(here) == []


def test_a_run_goes_on_with_its_own_settings_alone(drawn_shards: Path, here: Path) -> None:
    description = read_description(drawn_shards)
    config = TrainConfig(str(drawn_shards), run="mine", epochs=3)
    record: dict[str, Any] = {
        "config": asdict(config),
        "classes": description.classes,
        "data_digest": description.digest,
        "mlflow_run_id": "-",
    }
    check_same(record, config, description)
    for field in fields(TrainConfig):
        other = {**record, "config": {**record["config"], field.name: "other"}}
        if field.name in (*OPERATIONAL, "method"):  # whose settings are fields themselves
            check_same(other, config, description)
        else:
            with pytest.raises(InputError, match=r"--run mine: it was started with --\S+ other"):
                check_same(other, config, description)
    with pytest.raises(InputError, match=r"started with data set \(SHA-256\) 0f, and now data set"):
        check_same({**record, "data_digest": "0f"}, config, description)
    with pytest.raises(InputError, match=r"happiness.* was trained on joy"):
        check_same({**record, "classes": ["joy", "surprise"]}, config, description)

    # A method is short for settings; who gives them one by one goes on with the same run.
    by_name = config_of({"data": "x", "run": "mine", "method": "min-min", "epochs": 3})
    one_by_one = config_of({"data": "x", "run": "mine", "identity_weight": 1.0, "epochs": 3})
    check_same({**record, "config": asdict(by_name)}, one_by_one, description)

    run = here / "runs" / "mine"
    run.mkdir(parents=True)
    (run / RECORD_NAME).write_text(json.dumps(record))
    with pytest.raises(InputError, match="started with --epochs 3, and now --epochs is 4; give"):
        main(["--data", str(drawn_shards), "--run", "mine", "--epochs", "4"])
    # Cut otherwise, it would go on with people whom it has been trained on.
    (run / RECORD_NAME).write_text(json.dumps({**record, "held_out": ["S001"]}))
    options = ["--run", "mine", "--epochs", "3", "--val-subjects"]
    with pytest.raises(InputError, match="started with --val-subjects , and now"):
        main(["--data", str(drawn_shards), *options, "S002"])
    record["config"]["val_subjects"] = "S002"
    (run / RECORD_NAME).write_text(json.dumps({**record, "held_out": ["S001"]}))
    with pytest.raises(InputError, match="--run mine: it was started with other people held out"):
        main(["--data", str(drawn_shards), *options, "S002"])
    # An earlier cfer did not note who they were, and cut folds alone in another way.
    (run / RECORD_NAME).write_text(json.dumps(record))
    config = TrainConfig(str(drawn_shards), run="mine", epochs=3, val_subjects="S002")
    assert read_record(config, description, ["S002"]) == record
    record["config"] |= {"val_subjects": "", "folds": "2", "fold": 0}
    (run / RECORD_NAME).write_text(json.dumps(record))
    with pytest.raises(InputError, match="by a cfer that cuts the data set in another way"):
        read_record(replace(config, val_subjects="", folds="2", fold=0), description, ["S002"])
    assert os.listdir(run) == [RECORD_NAME]


# ---- what is trained on --------------------------------------------------------------------------


def index_of(
    subjects: list[str | None], splits: list[str | None] | None = None, num_apexes: int = 0
) -> ClipIndex:
    names = [f"clip {n}" for n in range(len(subjects))]
    splits = splits or [None] * len(names)
    return ClipIndex(names, subjects, [0] * len(names), splits, num_apexes, 0)


def test_each_way_to_hold_out_subjects(
    drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = read_index(str(drawn_shards))
    people = dict(zip(index.clip_ids, index.subjects, strict=True))

    def held_out(**options: Any) -> set[str | None]:
        split = split_clips(index, TrainConfig("x", **options))
        assert sorted(split.train + split.validation) == sorted(index.clip_ids)
        return {people[clip_id] for clip_id in split.validation}

    assert held_out(val_subjects="S002,S004") == {"S002", "S004"}
    assert len(held_out(val_fraction=0.4)) == 2
    assert len({frozenset(held_out(seed=seed)) for seed in range(8)}) > 1
    folds = [held_out(folds="loso", fold=fold) for fold in range(5)]
    assert folds == [{f"S{n:03d}"} for n in range(1, 6)]

    column = TrainConfig("x", split="column")
    splits: list[str | None] = ["train", "train", "val"]
    assert split_clips(index_of([None] * 3, splits), column).validation == ["clip 2"]
    assert split_clips(index_of(["a", "b", "c"], splits), column).train == ["clip 0", "clip 1"]
    assert capsys.readouterr().err == ""
    split_clips(index_of(["a", "b", "a"], splits), column)
    assert "warning: --split column: 1 subjects are on both sides" in capsys.readouterr().err


def test_classes_that_cannot_be_learnt() -> None:
    index = ClipIndex(list("abcdef"), [None] * 6, [0, 0, 1, 2, 2, 2], [None] * 6, 0, 0)
    config = TrainConfig("x", batch_size=2)
    classes = ["joy", "nan", "fear", "awe"]
    assert check_training_clips(config, index, Split(list("abd"), list("cef")), classes) == [
        "no training clip is nan, so no clip will be recognized as it: c can only be wrong",
        "no training clip is awe, so no clip will be recognized as it",
    ]
    assert check_training_clips(config, index, Split(list("abcd"), list("ef")), classes[:3]) == [
        "the class 'nan' (c) looks like a missing value"
    ]
    with pytest.raises(
        InputError, match=r"--data x: all 2 training clips are joy \(a, b\), so that"
    ):
        check_training_clips(config, index, Split(list("ab"), list("cdef")), classes)


def test_a_data_set_of_one_class_starts_nothing(drawn_shards: Path, here: Path) -> None:
    """Its model would be right about every clip."""
    clips = [replace(clip, label=0) for clip in shards.read_clips(drawn_shards)]
    receipt = shards.write_shard(here / "one", 0, clips, [], "test")
    described = replace(read_description(drawn_shards), shards=[receipt], counts={})
    shards.write_description(here / "one", described)
    with pytest.raises(InputError, match="all 8 training clips are happiness"):
        main(["--data", "one", "--run", "never"])
    assert os.listdir(here) == ["one"]


def test_options_without_effect_are_said_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig("x", apex_weight=2)
    assert without_effectless(config, index_of(["a"], num_apexes=1)) == config
    assert capsys.readouterr().err == ""
    assert without_effectless(config, index_of(["a"])) == replace(config, apex_weight=0)
    assert "warning: --mu 2 has no effect: no clip has its apex" in capsys.readouterr().err
    reversal = TrainConfig("x", game="gradient-reversal")
    assert without_effectless(reversal, index_of(["a", None])) == reversal
    with pytest.raises(InputError, match="--game gradient-reversal: it names the training subj"):
        without_effectless(reversal, index_of([None, None]))


def test_balanced_class_weights_are_of_the_training_clips() -> None:
    names = [f"clip {n}" for n in range(7)]
    index = ClipIndex(names, [None] * 7, [0, 0, 0, 1, 1, 1, 2], [None] * 7, 0, 0)
    split = Split(names[:4], names[4:])
    config = TrainConfig(data="x", class_weights="balanced")
    # Three clips of one class and one of another weigh the same, four in all.
    assert _class_weights(config, index, split, 3) == pytest.approx([2 / 3, 2, 0])
    assert _class_weights(TrainConfig(data="x"), index, split, 3) is None


def test_identities_are_standardized_by_those_of_the_training_clips() -> None:
    z_I = torch.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    nothing = torch.zeros(3, dtype=torch.int64)
    rows = LoadedClips([np.zeros(1)] * 3, nothing, z_I, z_I, nothing.bool(), [], [], nothing)
    standardize = _standardization(rows, CPU)
    assert torch.allclose(standardize.mean, z_I.mean(0))
    assert torch.allclose(standardize.std, torch.tensor([z_I[:, 0].std(correction=0), 1.0]))
    assert torch.allclose(standardize(z_I)[:, 0].std(correction=0), torch.tensor(1.0))


# ---- figures -------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [_schedule(step, 100) for step in range(100)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert _schedule(5 + 50, 105) == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert _schedule(0, 1) == 1


def test_figures_of_an_epoch_are_means_of_its_steps() -> None:
    sums = {"loss": torch.tensor(6.0), "num_correct": torch.tensor(9.0), "term": torch.tensor(-3.0)}
    means = _mean_over_workers(sums, num_steps=3, num_clips=12)
    assert means == {"train/loss": 2, "train/accuracy": 0.75, "train/term": -1}

    logits = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]))
    held_out = ScoredClips(
        np.array([0, 1, 1, 1]), logits, np.zeros((4, 1)), np.zeros((4, 1)), ["a"] * 4, ["c"] * 4
    )
    figures = _validation_figures(held_out, 2)
    assert figures["held_out/accuracy"] == 0.75
    assert figures["held_out/uar"] == pytest.approx((1 + 2 / 3) / 2)
    expected = -np.mean(np.log([0.9, 0.4, 0.8, 0.7]))
    assert figures["held_out/cross_entropy"] == pytest.approx(expected)


def test_what_is_said_of_an_epoch_and_of_the_end() -> None:
    epoch = {
        "train/loss": 0.5,
        "train/cross_entropy": 0.25,
        "train/identity_term": 0.125,
        "train/estimator_loss": 1.5,
        "train/apex_error": 0.0625,
        "train/accuracy": 0.75,
        "held_out/accuracy": 0.625,
        "held_out/uar": 0.375,
        "time/epoch_seconds": 3.0,
    }
    config = TrainConfig("x", run="mine", epochs=5)
    assert _progress_line(2, epoch, config, 8.0) == (
        "epoch   2/5  loss 0.500  CE 0.250  identity 0.125  player 1 1.500  train acc 0.750  "
        "held-out acc 0.625  UAR 0.375  3.0 s, 12 s left"
    )
    with_apex = _progress_line(2, epoch, replace(config, apex_weight=1), 8.0)
    assert "player 1 1.500  apex 0.0625  train acc" in with_apex

    last = {
        "held_out/accuracy": 0.75,
        "held_out/uar": 0.5,
        "held_out/macro_f1": 0.25,
        "leakage/linear_train": 0.4,
        "leakage/chance_train": 0.2,
        "leakage/r2": 0.1,
    }
    assert _final_lines(Results(last, [], "0f"), config) == (
        "run mine, last epoch, held-out subjects: accuracy 0.750, UAR 0.500, macro-F1 0.250\n"
        "  identity in the code: strict probe 0.400 (chance 0.200) on training subjects, - on "
        "held-out ones; R² 0.100\n"
        "  model: runs:/0f/model"
    )


def test_a_turn_that_is_timed_is_one_of_the_game() -> None:
    """Both players have moved after it."""
    wrapped: list[nn.Module] = []

    def kept(module: nn.Module) -> nn.Module:
        wrapped.append(module)
        return module

    config = TrainConfig("x", width=4, code_dim=8, identity_weight=1, apex_weight=1)
    turn = turn_on_noise(config, 3, 16, num_clips=4, num_frames=2, side=16, wrap=kept)
    before = [[p.detach().clone() for p in module.parameters()] for module in wrapped]
    turn()
    assert len(wrapped) == 2
    for module, old in zip(wrapped, before, strict=True):
        assert any(not torch.equal(p, was) for p, was in zip(module.parameters(), old, strict=True))


# ---- checkpoints ---------------------------------------------------------------------------------


def test_only_a_complete_checkpoint_counts(tmp_path: Path) -> None:
    for epoch, data, damage in ((1, b"one", b""), (2, b"two", b""), (3, b"three", b"x")):
        folder = tmp_path / f"epoch-{epoch:05d}"
        folder.mkdir()
        (folder / STATE_NAME).write_bytes(data + damage)
        seal = {"epoch": epoch, "sha256": hashlib.sha256(data).hexdigest()}
        (folder / SEAL_NAME).write_text(json.dumps(seal))
    (tmp_path / "epoch-00004").mkdir()
    (tmp_path / "epoch-00004" / SEAL_NAME).write_text('{"epoch": 4, "sha')
    (tmp_path / "epoch-00004" / STATE_NAME).write_bytes(b"four")
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "epoch-00002")
    assert newest_checkpoint(str(tmp_path / "nothing")) is None


SETUP: dict[str, Any] = {"config": {"epochs": 3}, "classes": ["a"], "run_id": "0f"}
NOTHING = Standardization(torch.zeros(1), torch.ones(1))


def test_a_checkpoint_restores_what_was_saved_and_is_the_only_one(tmp_path: Path) -> None:
    setup = {**SETUP, "location": str(tmp_path)}
    saved, restored = nn.Linear(3, 2), nn.Linear(3, 2)
    assert _restore(str(tmp_path), {"player": restored}, CPU) == ([], 0.0)
    _save(setup, {"player": nn.Linear(3, 2)}, [{"a": 1.0}], 2.0, NOTHING)
    _save(setup, {"player": saved}, [{"a": 1.0}, {"a": 0.5}], 3.5, NOTHING)
    assert _restore(str(tmp_path), {"player": restored}, CPU) == ([{"a": 1.0}, {"a": 0.5}], 3.5)
    assert torch.equal(saved.weight, restored.weight)
    assert os.listdir(tmp_path) == ["epoch-00002"]
    assert json.loads((tmp_path / "epoch-00002" / SEAL_NAME).read_text())["epoch"] == 2


def test_a_checkpoint_of_a_run_that_diverged_is_not_gone_on_with(tmp_path: Path) -> None:
    setup = {**SETUP, "location": str(tmp_path)}
    for diverged in ("player", "player_optimizer"):
        player = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(player.parameters(), fused=True)
        player(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        stateful: dict[str, Any] = {"player": player, "player_optimizer": optimizer}
        _save(setup, stateful, [{"a": 1.0}], 2.0, NOTHING)
        assert _restore(str(tmp_path), stateful, CPU) == ([{"a": 1.0}], 2.0)
        with torch.no_grad():
            (player.weight if diverged == "player" else optimizer.state[player.weight]["exp_avg"])[
                1, 1
            ] = math.nan
        _save(setup, stateful, [{"a": 1.0}], 2.0, NOTHING)
        restored = nn.Linear(3, 2)
        before = restored.weight.detach().clone()
        with pytest.raises(
            NotFinite, match=rf"epoch-00001: {diverged} \S.*not finite: the run had"
        ):
            _restore(
                str(tmp_path),
                {"player": restored, "player_optimizer": torch.optim.AdamW(restored.parameters())},
                CPU,
            )
        assert torch.equal(before, restored.weight)


def test_what_is_said_of_a_run_that_diverged(tmp_path: Path) -> None:
    config = TrainConfig("x", run="mine", lr=1e8, epochs=4)
    error = NotFinite("player 2's loss is not")
    said = str(_stopped(error, config, 2 * 10 + 6, 10, str(tmp_path)))
    rate = 1e8 * _schedule(26, 40)
    assert said == (
        f"run mine has stopped in epoch 3, step 7 of 10, at the learning rate {rate:g} (player "
        "1's: 0.002): player 2's loss is not; its last good checkpoint is none; start another "
        "--run with a lower --lr or --estimator-lr"
    )
    _save({**SETUP, "location": str(tmp_path)}, {}, [{}, {}], 2.0, NOTHING)
    said = str(_stopped(error, config, 26, 10, str(tmp_path)))
    assert f"its last good checkpoint is {tmp_path}/epoch-00002; start" in said


def test_the_newest_checkpoint_while_the_run_goes_on(tmp_path: Path) -> None:
    """Of one that is removed while it is looked at, the next has been there before."""
    setup = {**SETUP, "location": str(tmp_path)}
    is_enough = threading.Event()

    def write() -> None:
        epoch = 0
        while not is_enough.is_set():
            epoch += 1
            _save(setup, {}, [{}] * epoch, 0.0, NOTHING)

    seen = {0}
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        try:
            while len(seen) < 100 and not writing.done():
                found = newest_checkpoint(str(tmp_path))
                epoch = 0 if found is None else int(found.rsplit("-", 1)[1])
                assert epoch >= max(seen)
                seen.add(epoch)
        finally:
            is_enough.set()
        writing.result()


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_results(str(tmp_path)) is None
    results = Results({"a": 0.5}, [[1, 0], [0, 1]], "0f", 6, ["S001", "S002"])
    (tmp_path / "results.json").write_text(json.dumps(asdict(results)))
    assert read_results(str(tmp_path)) == results
    earlier = {"figures": {"a": 0.5}, "confusion": [[1]], "mlflow_run_id": "0f"}
    (tmp_path / "results.json").write_text(json.dumps(earlier))
    assert read_results(str(tmp_path)) == Results({"a": 0.5}, [[1]], "0f", 0, [])


# ---- workers that fail ---------------------------------------------------------------------------


class Trainer:
    """Ray Train's, to whose workers happens what is given, one after the other."""

    def __init__(self, *events: Exception | Callable[[], None] | None) -> None:
        self.left = list(events)
        self.threads: list[threading.Thread] = []

    def fit(self) -> None:
        self.threads.append(threading.current_thread())
        event = self.left.pop(0)
        if isinstance(event, Exception):
            raise WorkerGroupError("where it was\n", {0: event})
        if event is not None:
            event()


def code_failed() -> Exception:
    return ValueError("of these words\nthe last\n")


def lost() -> Exception:
    return ray.exceptions.WorkerCrashedError()


def test_lost_workers_are_replaced_four_times_and_failed_code_is_tried_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = {**SETUP, "location": str(tmp_path)}
    trainer = Trainer(lost(), lost(), lost(), None)
    _fit_again_and_again(trainer, setup)  # type: ignore[arg-type]
    assert trainer.left == []
    assert threading.main_thread() not in trainer.threads, "Ray Train would take Ctrl-C for itself"
    said = capsys.readouterr().err
    assert said.count("a worker was lost (WorkerCrashedError: ") == 3
    assert said.count("); going on from the beginning\n") == 3

    trainer = Trainer(lost(), lost(), lost(), lost(), None)
    with pytest.raises(WorkerError, match=r"^training failed 4 times in its first epoch: Worker"):
        _fit_again_and_again(trainer, setup)  # type: ignore[arg-type]
    capsys.readouterr()

    trainer = Trainer(code_failed(), code_failed(), None)
    with pytest.raises(WorkerError) as end:
        _fit_again_and_again(trainer, setup)  # type: ignore[arg-type]
    assert str(end.value) == "training failed 2 times in its first epoch: ValueError: the last"
    assert "where it was" in end.value.where
    assert capsys.readouterr().err == (
        "a worker failed (ValueError: the last); going on from the beginning\n"
    )


def test_a_run_that_gets_on_is_gone_on_with_however_often_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = {**SETUP, "location": str(tmp_path)}
    history: list[dict[str, float]] = []

    def gets_on_and_fails() -> None:
        history.append({})
        _save(setup, {}, history, 0.0, NOTHING)
        raise WorkerGroupError("where it was\n", {0: code_failed()})

    trainer = Trainer(*[gets_on_and_fails] * 3, None)
    _fit_again_and_again(trainer, setup)  # type: ignore[arg-type]
    assert trainer.left == []
    assert capsys.readouterr().err.count("going on from the last checkpoint\n") == 3
    with pytest.raises(
        WorkerError, match=r"^training failed 2 times after epoch-00003: ValueError"
    ):
        _fit_again_and_again(Trainer(code_failed(), code_failed()), setup)  # type: ignore[arg-type]


def test_a_mistake_of_the_users_is_said_at_once(tmp_path: Path) -> None:
    trainer = Trainer(InputError("give another"), None)
    with pytest.raises(InputError, match=r"^give another$"):
        _fit_again_and_again(trainer, {**SETUP, "location": str(tmp_path)})  # type: ignore[arg-type]
    assert trainer.left == [None]
