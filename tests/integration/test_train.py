"""Training for real: Ray's workers, drawn faces, MLflow; a kill and a resume; refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from helpers import REPOSITORY, Trained, kill_with_children, wait_for
from mlflow.tracking import MlflowClient
from scipy.special import softmax

from cfer.cli import run
from cfer.codec import Bitstream
from cfer.data import shards
from cfer.data.folds import read_index
from cfer.data.inputs import Input
from cfer.errors import InputError
from cfer.evaluate.attacked_run import TOO_FEW
from cfer.evaluate.calibration import calibration
from cfer.evaluate.metrics import ScoredClips
from cfer.predict.recognizer import Recognizer, of_views
from cfer.tracking import COMMAND_TAG
from cfer.train.checkpoint import STATE_NAME, Results, newest_checkpoint, read_results
from cfer.train.command import main, options_of
from cfer.train.run import split_clips

WHAT = Input("accumulated+motion")  # by default
SMALL = ("--width", "8", "--code-dim", "32", "--batch-size", "4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without runs, and without a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def results(trained: Trained) -> Results:
    found = read_results(str(trained.storage / trained.name))
    assert found is not None
    return found


def arguments_of(trained: Trained, shards: Path) -> list[str]:
    """Those that it was trained with."""
    return ["--data", str(shards), "--run", trained.name, *trained.options]


def planes_of(clip: shards.Clip) -> np.ndarray:
    return WHAT.read(Bitstream(clip.bitstream, clip.clip_id), range(2))


def test_the_game_learns_and_is_tracked(
    in_trained_store: Trained, results: Results, drawn_shards: Path
) -> None:
    run_id, epochs = results.mlflow_run_id, in_trained_store.epochs
    client = MlflowClient(in_trained_store.store)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lambda"] == "0.5"
    assert run.data.params["mu"] == "0.2"
    assert run.data.params["codec_gop_size"] == "12"
    assert run.data.params["data_digest"] == shards.read_description(drawn_shards).digest
    assert len(run.data.params["data_digest"]) == 64
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.digest in run.data.params["data_digest"]
    assert json.loads(dataset.source) == {"uri": str(drawn_shards)}
    assert run.data.tags["cfer_version"]
    assert run.data.tags["cfer.role"] == "run"
    python, module, name, *words = run.data.tags[COMMAND_TAG].split()
    assert (python, module, name) == ("python", "-m", "cfer.train")
    given = arguments_of(in_trained_store, drawn_shards)
    given += ["--storage", str(in_trained_store.storage)]
    assert options_of(words) == options_of(given)

    losses = client.get_metric_history(run_id, "train/cross_entropy")
    assert [metric.step for metric in losses] == list(range(1, epochs + 1))
    assert losses[-1].value < losses[0].value - 0.1
    for name in (
        "train/identity_term",
        "train/estimator_loss",
        "train/apex_error",
        "train/accuracy",
        "held_out/uar",
    ):
        assert len(client.get_metric_history(run_id, name)) == epochs
    apex = client.get_metric_history(run_id, "train/apex_error")
    assert apex[-1].value < apex[0].value
    # 5 % of the 24 steps warm up; the cosine has almost ended in the last.
    rates = [metric.value for metric in client.get_metric_history(run_id, "time/learning_rate")]
    assert rates[0] == max(rates) > 0.0029
    assert 0 < rates[-1] < rates[0] / 100

    folder = Path(client.download_artifacts(run_id, ""))
    for name in ("confusion.png", "curves.png", "embedding.png", "reliability.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    confusion = np.array(results.confusion)
    # Two of five subjects, a clip of each class: every one counted, and once.
    assert confusion.sum(1).tolist() == [2, 2]
    figures = results.figures
    assert figures["held_out/accuracy"] == pytest.approx(np.trace(confusion) / 4)
    # Of the packets that are decoded, and none of the clips whole.
    clips = list(shards.read_clips(drawn_shards))
    sizes = [len(clip.bitstream) for clip in clips]
    assert 0 < figures["cost/bytes_per_clip"] < np.mean(sizes)
    bitstreams = [Bitstream(clip.bitstream, clip.clip_id) for clip in clips]
    read = [len(b.packets[n]) for b in bitstreams for n in WHAT.packets_read(b, range(2))]
    assert figures["cost/bytes_per_clip"] == pytest.approx(sum(read) / len(clips))


def test_stored_model_needs_mlflow_alone(
    in_trained_store: Trained, results: Results, drawn_shards: Path, tmp_path: Path
) -> None:
    recognizer = Recognizer.from_pretrained(in_trained_store.name)
    predict, card = recognizer.probabilities, recognizer.card
    assert list(card.classes) == shards.read_description(drawn_shards).classes
    assert card.what == WHAT
    assert card.size == 64
    assert card.codec == shards.read_description(drawn_shards).codec_settings
    assert card.figures == results.figures
    assert card.origin["data_digest"] == shards.read_description(drawn_shards).digest
    clips = [clip for clip, _ in zip(shards.read_clips(drawn_shards), range(5), strict=False)]
    packed = np.stack([planes_of(clip) for clip in clips])
    probabilities = predict(packed)
    assert probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(predict(packed[2:3, :1]).sum(1), 1, rtol=1e-5)

    model = tmp_path / "model"
    stored = mlflow.artifacts.download_artifacts(f"runs:/{results.mlflow_run_id}/model")
    shutil.copytree(stored, model)
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
assert model.metadata.signature.inputs.inputs[0].type == numpy.dtype("uint8")
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
    alone = np.load(tmp_path / "alone.npy")
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, probabilities, atol=1e-6)


def test_stored_model_predicts_what_training_measured(
    in_trained_store: Trained, results: Results, drawn_shards: Path
) -> None:
    """The confusion matrix of the run again, from the stored model and the held-out clips; and the
    logits that it has stored, divided by the temperature that was fitted to them."""
    recognizer = Recognizer.from_pretrained(results.mlflow_run_id)
    predict = recognizer.probabilities
    stored = MlflowClient().download_artifacts(results.mlflow_run_id, "predictions/held_out.npz")
    scored = ScoredClips.of_arrays(np.load(stored))
    temperature = results.figures["calibration/temperature"]
    assert recognizer.card.temperature == temperature
    assert results.figures == results.figures | calibration(scored)
    calibrated = dict(
        zip(scored.clip_ids, softmax(scored.logits / temperature, axis=1), strict=True)
    )
    config = options_of(arguments_of(in_trained_store, drawn_shards)).config
    held_out = set(split_clips(read_index(str(drawn_shards)), config).validation)
    confusion = np.zeros((2, 2), int)
    for clip in shards.read_clips(drawn_shards):
        if clip.clip_id in held_out:
            views = [Bitstream(data, clip.clip_id) for data in (clip.bitstream, *clip.views)]
            probabilities = of_views(predict(np.stack([WHAT.read(v, range(2)) for v in views])))
            np.testing.assert_allclose(probabilities, calibrated[clip.clip_id], atol=1e-5)
            confusion[clip.label, probabilities.argmax()] += 1
    np.testing.assert_array_equal(confusion, results.confusion)


def test_table_of_runs(
    in_trained_store: Trained,
    results: Results,
    drawn_shards: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = results.figures
    assert run(["evaluate", "cfer"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["run", "runs", "accuracy"]
    assert any(
        line.startswith("game") and f"{figures['held_out/accuracy']:.3f}" in line for line in table
    )
    assert run(["evaluate", "game"]) == 0
    lines = capsys.readouterr().out
    assert f"accuracy {figures['held_out/accuracy']:.3f}" in lines
    assert TOO_FEW in lines
    assert f"happiness {figures['recall/happiness']:.3f}" in lines
    assert (
        f"probabilities: temperature {figures['calibration/temperature']:.3f}, fitted to 4 clips "
        f"of 2 held-out people; ECE {figures['calibration/ece_before']:.3f} before"
    ) in lines
    assert run(["evaluate", "game", "--data", str(drawn_shards)]) == 0
    said = capsys.readouterr().out
    assert "10 clips" in said
    assert ", ece 0." in said
    with pytest.raises(InputError, match="no finished run or experiment"):
        run(["evaluate", "nothing-of-that-name"])


def files_of(trained: Trained) -> dict[Path, int]:
    """All of the run's and of the store's, and when each was last written."""
    files = [path for path in trained.storage.parent.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_finished_run_is_left_alone(
    in_trained_store: Trained, drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(in_trained_store)
    assert any(path.name == "results.json" for path in before)
    arguments = arguments_of(in_trained_store, drawn_shards)
    assert main([*arguments, "--storage", str(in_trained_store.storage)]) == 0
    assert capsys.readouterr().err == (
        "run game is finished already; nothing to do (give another --run)\n"
    )
    assert files_of(in_trained_store) == before


def test_other_settings_or_classes_under_the_same_name_are_refused(
    in_trained_store: Trained, drawn_shards: Path, tmp_path: Path
) -> None:
    before = files_of(in_trained_store)
    arguments = arguments_of(in_trained_store, drawn_shards)
    arguments += ["--storage", str(in_trained_store.storage)]
    with pytest.raises(InputError, match=r"--lambda 0\.5, and now --lambda is 0\.0"):
        main([*arguments, "--lambda", "0"])
    copy = tmp_path / "other"
    shutil.copytree(drawn_shards, copy)
    description = json.loads((copy / "dataset.json").read_text())
    description["classes"] = ["joy" if c == "happiness" else c for c in description["classes"]]
    (copy / "dataset.json").write_text(json.dumps(description))
    arguments[1] = str(copy)
    with pytest.raises(InputError, match=r"joy.* was trained on .*happiness"):
        main(arguments)
    with pytest.raises(InputError, match=r"joy.* was trained on .*happiness"):
        run(["evaluate", "game", "--data", str(copy)])
    assert files_of(in_trained_store) == before


def last_state(folder: Path) -> dict[str, Any]:
    checkpoint = newest_checkpoint(str(folder))
    assert checkpoint is not None
    state: dict[str, Any] = torch.load(Path(checkpoint) / STATE_NAME, weights_only=True)
    return state


def test_killed_and_started_again_ends_as_undisturbed(
    trained: Trained,
    results: Results,
    drawn_shards: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed with all of its Ray cluster, and gone on with in another."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    arguments = arguments_of(trained, drawn_shards)
    folder = here / "runs" / trained.name
    killed = subprocess.Popen([sys.executable, "-m", "cfer.train", *arguments])
    try:
        wait_for(lambda: newest_checkpoint(str(folder)), killed)
    finally:
        if killed.poll() is None:
            kill_with_children(killed)
    assert not (folder / "results.json").exists()
    done_before = last_state(folder)["history"]

    assert main(arguments) == 0
    assert "going on from its last checkpoint" in capsys.readouterr().err

    undisturbed, resumed = last_state(trained.storage / trained.name), last_state(folder)
    assert len(undisturbed["history"]) == len(resumed["history"]) == trained.epochs
    # Down to the seconds that they took: these epochs were not done again.
    np.testing.assert_equal(resumed["history"][: len(done_before)], done_before)
    for part in ("network", "player"):
        for name, weights in undisturbed[part].items():
            assert torch.equal(weights, resumed[part][name]), f"{part}.{name}"
    for first, second in zip(undisturbed["history"], resumed["history"], strict=True):
        timeless = set(first) - {"time/epoch_seconds"}
        np.testing.assert_equal({k: first[k] for k in timeless}, {k: second[k] for k in timeless})
    after = read_results(str(folder))
    assert after is not None
    assert after.confusion == results.confusion
    # In MLflow every epoch is there once, whichever process has sent it.
    there = MlflowClient(f"sqlite:///{here / 'mlflow.db'}").get_metric_history(
        after.mlflow_run_id, "train/loss"
    )
    assert sorted((metric.step, metric.value) for metric in there) == [
        (epoch, figures["train/loss"]) for epoch, figures in enumerate(resumed["history"], start=1)
    ]


def test_more_workers_than_cores_and_the_owners_split_without_subjects(
    ray_session: None, drawn_shards: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: frames drawn at random; clips without a label are left out, and counted; an idle μ is
    said to be idle; one of the workers has nothing to validate on."""
    described = shards.read_description(drawn_shards)
    clips = []
    for i, clip in enumerate(shards.read_clips(drawn_shards)):
        values = {**vars(clip), "subject": None, "apex": None, "apex_frame": None}
        values["split"] = "validation" if i % 4 == 0 else "train"
        if i >= 8:
            values |= {"label": None, "label_name": None}
        clips.append(shards.Clip(**values))
    data = here / "shards"
    data.mkdir()
    receipt = shards.write_shard(data, 0, clips, [], "test")
    shards.write_description(
        data, shards.Description(**{**vars(described), "shards": [receipt], "counts": {}})
    )
    arguments = ["--data", str(data), "--run", "split", *SMALL, "--epochs", "2", "--mu", "1"]
    arguments += ["--class-weights", "balanced", "--frames", "2", "--workers", "3"]
    arguments += ["--batch-size", "3"]
    with pytest.raises(InputError, match=r"8 of 8 labeled clips have no subject.*--split col"):
        main(arguments)
    assert os.listdir(here) == ["shards"]
    assert main([*arguments, "--split", "column"]) == 0
    said = capsys.readouterr().err
    assert "warning: --workers 3 share 2 CPUs" in said
    assert "2 clips without a label are left out" in said
    assert "--mu 1 has no effect" in said
    assert "6 clips to train on, 2 to validate on" in said
    assert [path.name for path in (here / "runs" / "split").glob("epoch-*")] == ["epoch-00002"]
    results = read_results(str(here / "runs" / "split"))
    assert results is not None
    assert np.sum(results.confusion) == 2
    # Without subjects, nobody is known to be held out.
    assert "probabilities: temperature 1.000, not fitted: that takes clips of two" in said
    assert not any(name.startswith("calibration/") for name in results.figures)
    assert Recognizer.from_pretrained("split").card.temperature == 1


def test_a_run_that_diverges_stops_with_one_line(
    ray_session: None, drawn_shards: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step is from finite weights, and leads to such as nothing can be computed with."""
    common = ["--data", str(drawn_shards), *SMALL, "--lr", "1e30", "--run"]
    with pytest.raises(
        InputError,
        match=r"^run wild has stopped in epoch 1, step 2 of 2, at the learning rate 1e\+30 "
        r"\(player 1's: 0\.002\): player 2's loss.*; its last good checkpoint is none; start anot",
    ):
        main([*common, "wild", "--workers", "2", "--epochs", "3"])
    assert "a worker failed" not in capsys.readouterr().err, "to be tried again"
    assert newest_checkpoint(str(here / "runs" / "wild")) is None
    with pytest.raises(
        InputError, match=r"^2 of 2 runs failed .*-fold\d has stopped in epoch 1, s"
    ):
        main([*common, "wild-folds", "--folds", "2", "--epochs", "1"])


def test_impossible_requests_start_nothing(
    ray_session: None, drawn_shards: Path, here: Path
) -> None:
    common = ["--data", str(drawn_shards), "--run", "never"]
    with pytest.raises(InputError, match="--cpus-per-worker 16 --workers 1: the cluster has 2 CPU"):
        main([*common, "--cpus-per-worker", "16"])
    with pytest.raises(InputError, match="--device gpu --workers 8: the cluster has"):
        main([*common, "--device", "gpu", "--workers", "8"])
    assert os.listdir(here) == [], "no folder of a run, and no store"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", ["min-min", "min-max", "gradient-reversal"])
def test_a_run_on_a_gpu_learns_as_on_the_cpu(
    ray_session: None, drawn_shards: Path, here: Path, method: str
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
