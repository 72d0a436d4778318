"""Training for real: a Ray cluster, drawn faces, MLflow; kills, resumes and refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from helpers import kill_with_children, run_module
from mlflow.tracking import MlflowClient

from cfer import evaluate, shards, tracking
from cfer.batches import Standardisation
from cfer.codec import Bitstream
from cfer.config import TrainConfig, command_of, config_of
from cfer.data import ClipIndex, Split
from cfer.errors import InputError
from cfer.inputs import Input
from cfer.predict import Recognizer
from cfer.run import (
    SEAL_NAME,
    STATE_NAME,
    Node,
    _class_weights,
    _save,
    newest_checkpoint,
    place_workers,
    read_results,
    run,
)
from cfer.train import build_parser, main

SMALL = ("--width", "8", "--code-dim", "32", "--batch-size", "8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory for runs, with its own MLflow store."""
    return tmp_path_factory.mktemp("training")


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return place


@pytest.fixture(scope="module")
def game_run(place: Path, ray_session: None, drawn_shards: Path) -> tuple[dict[str, float], str]:
    """A finished run of the whole game on two workers → its last figures, its name."""
    before = os.getcwd()
    os.chdir(place)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        arguments = ["--data", str(drawn_shards), "--workers", "2", "--run", "game", *SMALL]
        arguments += ["--epochs", "12", "--lambda", "0.5", "--mu", "0.2"]
        assert main(arguments) == 0
        results = read_results(str(place / "runs" / "game"))
    finally:
        os.chdir(before)
    assert results is not None
    return results.figures, results.mlflow_run_id


def planes_of(clip: shards.Clip) -> np.ndarray:
    return Input().read(Bitstream(clip.bitstream, clip.clip_id), range(2))


def test_the_game_learns_and_is_tracked(here: Path, game_run: tuple) -> None:
    figures, run_id = game_run
    tracking.connect()
    client = MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lambda"] == "0.5"
    assert run.data.params["mu"] == "0.2"
    assert len(run.data.params["data_digest"]) == 64
    assert run.inputs.dataset_inputs[0].dataset.digest in run.data.params["data_digest"]
    assert run.data.tags["cfer_version"]

    losses = client.get_metric_history(run_id, "train/cross_entropy")
    assert [metric.step for metric in losses] == list(range(1, 13))
    assert losses[-1].value < losses[0].value - 0.1
    for name in (
        "train/identity_term",
        "train/estimator_loss",
        "train/apex_error",
        "held_out/uar",
    ):
        assert len(client.get_metric_history(run_id, name)) == 12
    apex = client.get_metric_history(run_id, "train/apex_error")
    assert apex[-1].value < apex[0].value
    for name in ("leakage/linear_train", "leakage/linear_held_out", "leakage/r2", "leakage/vclub"):
        assert name in run.data.metrics

    folder = Path(MlflowClient().download_artifacts(run_id, ""))
    for name in ("confusion.png", "curves.png", "embedding.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    results = read_results(str(here / "runs" / "game"))
    assert results is not None
    confusion = np.array(results.confusion)
    # Two of eight subjects, seven clips each: every one counted, and once.
    assert confusion.sum(1).tolist() == [2] * 7
    assert figures["held_out/accuracy"] == pytest.approx(np.trace(confusion) / 14)


def test_stored_model_needs_mlflow_alone(
    here: Path, game_run: tuple, drawn_shards: Path, tmp_path: Path
) -> None:
    _, run_id = game_run
    recognizer = Recognizer.from_pretrained("game")
    predict, card = recognizer.probabilities, recognizer.card
    assert list(card.classes) == shards.read_description(drawn_shards).classes
    assert card.what == Input("accumulated")
    assert card.size == 64
    assert card.codec == shards.read_description(drawn_shards).codec_settings
    results = read_results(str(here / "runs" / "game"))
    assert results is not None
    assert card.figures == results.figures
    clips = [clip for clip, _ in zip(shards.read_clips(drawn_shards), range(5), strict=False)]
    packed = np.stack([planes_of(clip) for clip in clips])
    probabilities = predict(packed)
    assert probabilities.shape == (5, 7)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(predict(packed[2:3, :1]).sum(1), 1, rtol=1e-5)

    model = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/model"), model)
    np.save(tmp_path / "packed.npy", packed)
    program = f"""
import sys
class NoCfer:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cfer", "pipeline"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoCfer())
import mlflow, numpy
model = mlflow.pyfunc.load_model({str(model)!r})
packed = numpy.load({str(tmp_path / "packed.npy")!r})
numpy.save({str(tmp_path / "alone.npy")!r}, model.predict(packed))
assert not any(name.split(".")[0] == "cfer" for name in sys.modules)
try:
    model.predict(packed[..., :-2])
except mlflow.exceptions.MlflowException as error:
    assert "shape" in str(error).lower()
else:
    raise SystemExit("a picture of another size went through")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "alone.npy"), probabilities, atol=1e-6)


def test_stored_model_predicts_what_training_measured(
    here: Path, game_run: tuple, drawn_shards: Path
) -> None:
    """The confusion matrix of the run again, from the stored model and the held-out clips."""
    _, run_id = game_run
    results = read_results(str(here / "runs" / "game"))
    assert results is not None
    predict = Recognizer.from_pretrained(run_id).probabilities
    from cfer.data import read_index
    from cfer.run import split_clips

    config = TrainConfig(data=str(drawn_shards))
    held_out = set(split_clips(read_index(str(drawn_shards)), config).validation)
    confusion = np.zeros((7, 7), int)
    for clip in shards.read_clips(drawn_shards):
        if clip.clip_id in held_out:
            confusion[clip.label, predict(planes_of(clip)[None]).argmax()] += 1
    np.testing.assert_array_equal(confusion, results.confusion)


def test_table_of_runs(
    here: Path, game_run: tuple, drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, _ = game_run
    assert evaluate.main(["cfer"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["run", "runs", "accuracy"]
    assert any(
        line.startswith("game") and f"{figures['held_out/accuracy']:.3f}" in line for line in table
    )
    assert evaluate.main(["game"]) == 0
    lines = capsys.readouterr().out
    assert f"accuracy {figures['held_out/accuracy']:.3f}" in lines
    # Measured anew, from the run's stored predictions.
    assert f"same-subject AUC {figures['leakage/auc_held_out']:.3f}" in lines
    assert f"happiness {figures['recall/happiness']:.3f}" in lines
    assert evaluate.main(["game", "--data", str(drawn_shards)]) == 0
    assert "56 clips" in capsys.readouterr().out
    with pytest.raises(InputError, match="no finished run or experiment"):
        evaluate.main(["nothing-of-that-name"])


def test_a_finished_run_is_left_alone(
    here: Path, game_run: tuple, drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, _ = game_run
    config = TrainConfig(
        str(drawn_shards),
        run="game",
        workers=2,
        width=8,
        code_dim=32,
        batch_size=8,
        epochs=12,
        identity_weight=0.5,
        apex_weight=0.2,
    )
    started = time.monotonic()
    assert run(config).figures == figures
    assert time.monotonic() - started < 5
    assert "finished already" in capsys.readouterr().err


def test_other_settings_or_classes_under_the_same_name_are_refused(
    here: Path, game_run: tuple, drawn_shards: Path, tmp_path: Path
) -> None:
    common = ["--data", str(drawn_shards), "--run", "game", *SMALL, "--epochs", "12", "--mu", "0.2"]
    with pytest.raises(InputError, match=r"--lambda 0\.5, and now --lambda is 0\.0"):
        main(common)
    copy = tmp_path / "other"
    shutil.copytree(drawn_shards, copy)
    description = json.loads((copy / "dataset.json").read_text())
    description["classes"] = ["joy" if c == "happiness" else c for c in description["classes"]]
    (copy / "dataset.json").write_text(json.dumps(description))
    common[1] = str(copy)
    with pytest.raises(InputError, match=r"joy.* was trained on .*happiness"):
        main(common)
    with pytest.raises(InputError, match=r"joy.* was trained on .*happiness"):
        evaluate.main(["game", "--data", str(copy)])


def test_killed_and_started_again_ends_as_undisturbed(
    here: Path,
    ray_session: None,
    drawn_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        *("--data", str(drawn_shards), "--run", "again", *SMALL, "--epochs", "6"),
        *("--lambda", "0.5", "--mu", "0.1", "--dropout", "0.2"),
    ]
    assert main([*arguments, "--storage", str(tmp_path / "undisturbed")]) == 0

    arguments += ["--storage", str(tmp_path / "killed")]
    killed = subprocess.Popen(
        [sys.executable, "-m", "cfer.train", *arguments], stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "killed" / "again"
    deadline = time.monotonic() + 400
    while not any(_epoch_of(path) >= 2 for path in folder.glob("epoch-*")):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_with_children(killed)
    assert not (folder / "results.json").exists()
    done_before = _last_state(folder)["history"]

    capsys.readouterr()
    assert main(arguments) == 0
    assert "going on from its last checkpoint" in capsys.readouterr().err

    states = [_last_state(tmp_path / name / "again") for name in ("undisturbed", "killed")]
    assert [len(state["history"]) for state in states] == [6, 6]
    # Down to the seconds that they took: these epochs were not done again.
    np.testing.assert_equal(states[1]["history"][:2], done_before[:2])
    for part in ("recogniser", "player"):
        for name, weights in states[0][part].items():
            assert torch.equal(weights, states[1][part][name]), f"{part}.{name}"
    for first, second in zip(*(state["history"] for state in states), strict=True):
        timeless = set(first) - {"time/epoch_seconds"}
        np.testing.assert_equal({k: first[k] for k in timeless}, {k: second[k] for k in timeless})


def _epoch_of(checkpoint: Path) -> int:
    try:
        return int(json.loads((checkpoint / SEAL_NAME).read_text())["epoch"])
    except (OSError, ValueError):
        return 0


def _last_state(folder: Path) -> dict:
    newest = max(folder.glob("epoch-*"), key=_epoch_of)
    return torch.load(newest / STATE_NAME, weights_only=True)


def test_only_a_complete_checkpoint_counts(tmp_path: Path) -> None:
    import hashlib

    for epoch, data, damage in ((1, b"one", b""), (2, b"two", b""), (3, b"three", b"x")):
        folder = tmp_path / f"epoch-{epoch:05d}"
        folder.mkdir()
        (folder / STATE_NAME).write_bytes(data + damage)
        seal = {"epoch": epoch, "sha256": hashlib.sha256(data).hexdigest()}
        (folder / SEAL_NAME).write_text(json.dumps(seal))
    (tmp_path / "epoch-00004").mkdir()
    (tmp_path / "epoch-00004" / SEAL_NAME).write_text('{"epoch": 4, "sha')
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "epoch-00002")
    assert newest_checkpoint(str(tmp_path / "nothing")) is None


def test_the_newest_checkpoint_while_the_run_goes_on(tmp_path: Path) -> None:
    """Of one that is removed while it is looked at, the next has been there before."""
    setup = {"location": str(tmp_path), "config": {}, "classes": [], "run_id": ""}
    nothing = Standardisation(torch.zeros(1), torch.ones(1))

    def write() -> None:
        for epoch in range(1, 151):
            _save(setup, {}, [{}] * epoch, 0.0, nothing)
            time.sleep(0.02)

    last = 0
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        while not writing.done():
            found = newest_checkpoint(str(tmp_path))
            epoch = 0 if found is None else int(found.rsplit("-", 1)[1])
            assert epoch >= last
            last = epoch
        writing.result()


def test_more_workers_than_cores_and_frames_drawn_at_random(
    here: Path, ray_session: None, drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(drawn_shards), "--workers", "4", "--run", "four", *SMALL]
    assert main([*arguments, "--epochs", "2", "--frames", "2"]) == 0
    assert "warning: --workers 4 share 2 CPUs" in capsys.readouterr().err
    assert [path.name for path in (here / "runs" / "four").glob("epoch-*")] == ["epoch-00002"]
    assert read_results(str(here / "runs" / "four")) is not None


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "asked", "expected"),
    [
        ([Node(2, 0)], 1, "auto", 0, (1.0, False)),
        ([Node(2, 0)], 2, "cpu", 0, (0.5, False)),
        ([Node(2, 0)], 8, "auto", 0, (0.12, False)),
        ([Node(1, 0)], 1, "auto", 0, (0.5, False)),
        ([Node(8, 0)], 2, "auto", 3, (3.0, False)),
        ([Node(16, 1)], 1, "auto", 0, (1.0, True)),
        ([Node(16, 1)], 2, "auto", 0, (1.0, False)),
        # 3 CPUs for 3 workers, but no node has room for more than one of 0.7 and above.
        ([Node(1, 0), Node(1, 0), Node(2, 0)], 4, "auto", 0, (0.75, False)),
        ([Node(4, 2), Node(32, 0)], 2, "gpu", 0, (1.0, True)),
    ],
)
def test_workers_are_placed_with_room_to_spare(
    nodes: list[Node], workers: int, device: str, asked: float, expected: tuple[float, bool]
) -> None:
    placement = place_workers(nodes, workers, device, asked)
    assert (placement.cpus, placement.use_gpu) == expected
    total = sum(node.cpus for node in nodes)
    assert workers * placement.cpus <= total - min(1, total / 2) + 1e-9


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "asked", "message"),
    [
        ([Node(2, 0)], 1, "gpu", 0, "the cluster has 0 GPUs"),
        ([Node(8, 1)], 2, "gpu", 0, "the cluster has 1 GPUs"),
        ([Node(2, 0)], 2, "cpu", 1, "1 must stay free"),
        ([Node(4, 0), Node(4, 0)], 1, "cpu", 5, "--cpus-per-worker 5"),
        ([Node(2, 0)], 1000, "cpu", 0, "too many"),
    ],
)
def test_what_can_never_be_placed_is_refused(
    nodes: list[Node], workers: int, device: str, asked: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place_workers(nodes, workers, device, asked)


def test_impossible_requests_end_within_seconds_and_without_traceback(
    here: Path, ray_session: None, drawn_shards: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="--cpus-per-worker 16"):
        main(["--data", str(drawn_shards), "--cpus-per-worker", "16", "--run", "never"])
    with pytest.raises(InputError, match="--device gpu"):
        main(["--data", str(drawn_shards), "--device", "gpu", "--run", "never"])
    with pytest.raises(InputError, match="more than there are training clips"):
        main(["--data", str(drawn_shards), "--workers", "50", "--run", "never"])
    assert time.monotonic() - started < 10
    assert not (here / "runs" / "never").exists()
    done = run_module("cfer.train", "--data", str(here / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere: no dataset.json in it" in done.stderr


def test_wrong_options_say_what_is_right() -> None:
    for wrong, message in (
        ({"epochs": 0}, "--epochs 0"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"identity_weight": -1.0}, "--lambda"),
        ({"val_fraction": 1.0}, "--val-fraction"),
        ({"fold": 1}, "--fold 1: it needs --folds"),
        ({"folds": "3", "val_subjects": "a"}, "give one of the three"),
        ({"frames": "none"}, "--frames none"),
        ({"input": "flow"}, "--input flow: give one of accumulated"),
        ({"game": "chess"}, "--game chess"),
        ({"width": 10}, "--width 10"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig(data="x", **wrong)


def test_a_method_sets_what_is_not_given_beside_it() -> None:
    def parsed(*arguments: str) -> TrainConfig:
        return config_of(vars(build_parser().parse_args(["--data", "x", *arguments])))

    assert parsed("--method", "cross-entropy").identity_weight == 0
    game = parsed("--method", "min-min+apex", "--mu", "3")
    assert game.identity_weight > 0
    assert game.apex_weight == 3
    assert parsed("--method", "stills-sampled").what == Input("pictures", "yuv", 4)
    for arguments in (["--method", "min-max"], ["--method", "min-min", "--lambda", "7"], []):
        config = parsed(*arguments)
        words = command_of(config).split()
        assert config_of(vars(build_parser().parse_args(words))) == config


def test_without_subjects_the_split_column_is_the_way(
    here: Path,
    ray_session: None,
    drawn_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also: clips without a label are left out, and counted; an idle μ is said to be idle."""
    described = shards.read_description(drawn_shards)
    clips = []
    for i, clip in enumerate(shards.read_clips(drawn_shards)):
        values = {**vars(clip), "subject": None, "apex": None, "apex_frame": None}
        values["split"] = "validation" if i % 4 == 0 else "train"
        if i >= 53:
            values |= {"label": None, "label_name": None}
        clips.append(shards.Clip(**values))
    receipt = shards.write_shard(tmp_path, 0, clips, [], "test")
    shards.write_description(
        tmp_path, shards.Description(**{**vars(described), "shards": [receipt], "counts": {}})
    )
    arguments = ["--data", str(tmp_path), "--run", "split", *SMALL, "--epochs", "1", "--mu", "1"]
    arguments += ["--class-weights", "balanced"]
    with pytest.raises(InputError, match=r"53 of 53 labelled clips have no subject.*--split col"):
        main(arguments)
    assert main([*arguments, "--split", "column"]) == 0
    said = capsys.readouterr().err
    assert "3 clips without a label are left out" in said
    assert "--mu 1 has no effect" in said
    assert "39 clips to train on, 14 to validate on" in said


def test_balanced_class_weights_are_of_the_training_clips() -> None:
    names = [f"clip {n}" for n in range(7)]
    index = ClipIndex(names, [None] * 7, [0, 0, 0, 1, 1, 1, 2], [None] * 7, 0, 0)
    split = Split(names[:4], names[4:])
    config = TrainConfig(data="x", class_weights="balanced")
    # Three clips of one class and one of another weigh the same, four in all.
    assert _class_weights(config, index, split, 3) == pytest.approx([2 / 3, 2, 0])
    assert _class_weights(TrainConfig(data="x"), index, split, 3) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", ["min-min", "min-max", "gradient-reversal"])
def test_a_run_on_a_gpu_learns_as_on_the_cpu(
    here: Path, ray_session: None, drawn_shards: Path, method: str
) -> None:
    losses = []
    for device in ("cpu", "gpu"):
        name = f"{method}-{device}"
        options = ["--data", str(drawn_shards), "--run", name, *SMALL, "--epochs", "3"]
        assert main([*options, "--method", method, "--device", device]) == 0
        results = read_results(str(here / "runs" / name))
        assert results is not None
        losses.append(results.figures["held_out/cross_entropy"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
