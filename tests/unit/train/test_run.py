"""The driver of a run: what is refused before anything is started, what is trained on, workers that
fail."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import WorkerGroupError

from cfer.data import shards
from cfer.data.folds import ClipIndex, Split, read_index, who_is_held_out
from cfer.data.shards import read_description
from cfer.errors import InputError, WorkerError
from cfer.train.checkpoint import RECORD_NAME, Results, save, write_record
from cfer.train.command import main, options_of
from cfer.train.config import NAMING_GAMES, TrainConfig
from cfer.train.protocol import PARENT_NAME
from cfer.train.run import (
    _class_weights,
    _cuts,
    _final_lines,
    _fit_until_done,
    check_training_clips,
    split_clips,
    without_unused_options,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, in which no Ray is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    was_there = ray.is_initialized()  # of other tests of this process
    yield tmp_path
    assert ray.is_initialized() == was_there


# ---- what is refused before anything is started --------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--workers", "16"],
            r"--workers 16: more than there are training clips \(8\); give fewer",
        ),
        (["--workers", "7"], "--batch-size 28 or 35, or --workers 4 or 8$"),
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


@pytest.mark.parametrize(
    ("record", "options"), [(RECORD_NAME, []), (PARENT_NAME, ["--folds", "2"])]
)
def test_a_run_of_another_store_is_one_line(
    record: str, options: list[str], drawn_shards: Path, here: Path
) -> None:
    """As after a start from another directory, where the store is another file."""
    argv = ["--data", str(drawn_shards), "--run", "mine", "--epochs", "3", *options]
    index = read_index(drawn_shards)
    config = without_unused_options(options_of(argv).config, index)
    held_out = [] if options else who_is_held_out(index, split_clips(index, config))
    description = read_description(drawn_shards)
    folder = str(here / "runs" / "mine")
    write_record(folder, record, config, description, "f" * 32, held_out=held_out)
    with pytest.raises(InputError, match=r"fff, which is missing in sqlite:.*same folder") as error:
        main(argv)
    assert "\n" not in str(error.value)


def test_a_run_of_other_settings_or_people_starts_nothing(drawn_shards: Path, here: Path) -> None:
    """Of this name there is one; the refusals: tests/unit/train/test_checkpoint.py."""
    config = TrainConfig(str(drawn_shards), run="mine", epochs=3, val_subjects="S002")
    folder = here / "runs" / "mine"
    description = read_description(drawn_shards)
    write_record(str(folder), RECORD_NAME, config, description, "0f", held_out=["S001"])
    options = ["--data", str(drawn_shards), "--run", "mine", "--val-subjects", "S002"]
    with pytest.raises(InputError, match="started with --epochs 3, and now --epochs is 4; give"):
        main([*options, "--epochs", "4"])
    with pytest.raises(InputError, match="--run mine: it was started with other people held out"):
        main([*options, "--epochs", "3"])
    assert os.listdir(folder) == [RECORD_NAME]


def test_a_data_set_of_one_class_starts_nothing(drawn_shards: Path, here: Path) -> None:
    """Its model would be right about every clip."""
    clips = [replace(clip, label=0) for clip in shards.read_clips(drawn_shards)]
    receipt = shards.write_shard(here / "one", 0, clips, [], "test")
    described = replace(read_description(drawn_shards), shards=[receipt], counts={})
    shards.write_description(here / "one", described)
    with pytest.raises(InputError, match="all 8 training clips are happiness"):
        main(["--data", "one", "--run", "never"])
    assert os.listdir(here) == ["one"]


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


def test_fewer_training_clips_than_a_step_has_are_said() -> None:
    index = ClipIndex(list("abcd"), [None] * 4, [0, 1, 0, 1], [None] * 4, 0, 0)
    split = Split(["a", "b", "c"], ["d"])
    classes = ["joy", "fear"]
    assert check_training_clips(TrainConfig("x", batch_size=3), index, split, classes) == []
    assert check_training_clips(TrainConfig("x", batch_size=4), index, split, classes) == [
        "--batch-size 4: there are 3 training clips, so some are in a step more than once"
    ]


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


def test_options_without_effect_are_said_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig("x", apex_weight=2)
    assert without_unused_options(config, index_of(["a"], num_apexes=1)) == config
    assert capsys.readouterr().err == ""
    assert without_unused_options(config, index_of(["a"])) == replace(config, apex_weight=0)
    assert "warning: --mu 2 has no effect: no clip has its apex" in capsys.readouterr().err
    for game in NAMING_GAMES:
        naming = TrainConfig("x", game=game)
        assert without_unused_options(naming, index_of(["a", None])) == naming
        with pytest.raises(InputError, match=f"--game {game}: it names the training subjects"):
            without_unused_options(naming, index_of([None, None]))


def test_balanced_class_weights_are_of_the_training_clips() -> None:
    names = [f"clip {n}" for n in range(7)]
    index = ClipIndex(names, [None] * 7, [0, 0, 0, 1, 1, 1, 2], [None] * 7, 0, 0)
    split = Split(names[:4], names[4:])
    config = TrainConfig(data="x", class_weights="balanced")
    # Three clips of one class and one of another weigh the same, four in all.
    assert _class_weights(config, index, split, 3) == pytest.approx([2 / 3, 2, 0])
    assert _class_weights(TrainConfig(data="x"), index, split, 3) is None


def test_shares_differ_by_one_clip_at_most() -> None:
    assert _cuts(10, 3) == [0, 3, 6, 10]
    assert _cuts(2, 3) == [0, 0, 1, 2]
    assert _cuts(6, 1) == [0, 6]


def test_the_lines_at_the_end() -> None:
    last = {
        "held_out/accuracy": 0.75,
        "held_out/uar": 0.5,
        "held_out/macro_f1": 0.25,
        "attack/linkage_ridge_training_pooled_auc": 0.4,
        "attack/linkage_MLP_training_pooled_auc": 0.6,
        "attack/linkage_MLP_training_auc": 0.7,
        "attack/chance_of_linkage_pooled": 0.54,
    }
    assert _final_lines(Results(last, [], "0f"), TrainConfig("x", run="mine")) == (
        "run mine, last epoch, held-out subjects: accuracy 0.750, UAR 0.500, macro-F1 0.250\n"
        "  identity in the code: linkage 0.600 (by chance 0.540), verification -: pooled AUC of "
        "the strongest attacker\n"
        "  probabilities: temperature 1.000, not fitted: that takes clips of two held-out people\n"
        "  model: runs:/0f/model"
    )


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
    location = str(tmp_path)
    trainer = Trainer(lost(), lost(), lost(), None)
    _fit_until_done(trainer, location)  # type: ignore[arg-type]
    assert trainer.left == []
    assert threading.main_thread() not in trainer.threads, "Ray Train would take Ctrl-C for itself"
    said = capsys.readouterr().err
    assert said.count("a worker was lost (WorkerCrashedError: ") == 3
    assert said.count("); going on from the beginning\n") == 3

    trainer = Trainer(lost(), lost(), lost(), lost(), None)
    with pytest.raises(WorkerError, match=r"^training failed 4 times in its first epoch: Worker"):
        _fit_until_done(trainer, location)  # type: ignore[arg-type]
    capsys.readouterr()

    trainer = Trainer(code_failed(), code_failed(), None)
    with pytest.raises(WorkerError) as end:
        _fit_until_done(trainer, location)  # type: ignore[arg-type]
    assert str(end.value) == "training failed 2 times in its first epoch: ValueError: the last"
    assert "where it was" in end.value.traceback
    assert capsys.readouterr().err == (
        "a worker failed (ValueError: the last); going on from the beginning\n"
    )


def test_a_run_that_gets_on_is_gone_on_with_however_often_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = str(tmp_path)
    history: list[dict[str, float]] = []

    def gets_on_and_fails() -> None:
        history.append({})
        save(location, {}, history, 0.0)
        raise WorkerGroupError("where it was\n", {0: code_failed()})

    trainer = Trainer(*[gets_on_and_fails] * 3, None)
    _fit_until_done(trainer, location)  # type: ignore[arg-type]
    assert trainer.left == []
    assert capsys.readouterr().err.count("going on from the last checkpoint\n") == 3
    with pytest.raises(
        WorkerError, match=r"^training failed 2 times after epoch-00003: ValueError"
    ):
        _fit_until_done(Trainer(code_failed(), code_failed()), location)  # type: ignore[arg-type]


def test_a_mistake_of_the_users_is_said_at_once(tmp_path: Path) -> None:
    trainer = Trainer(InputError("give another"), None)
    with pytest.raises(InputError, match=r"^give another$"):
        _fit_until_done(trainer, str(tmp_path))  # type: ignore[arg-type]
    assert trainer.left == [None]
