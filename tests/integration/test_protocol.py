"""Folds under a parent run: killed, failed, resumed, summed up, swept, reported."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, kill_with_children, wait_for
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cfer import cli
from cfer.data.shards import read_description
from cfer.errors import InputError
from cfer.evaluate import report
from cfer.evaluate.attacked_run import TOO_FEW
from cfer.evaluate.calibration import calibration
from cfer.evaluate.metrics import ScoredClips
from cfer.train.checkpoint import SEAL_NAME, STATE_NAME, Results, read_results
from cfer.train.command import main

OPTIONS = [
    *("--width", "8", "--code-dim", "32", "--batch-size", "4", "--epochs", "2"),
    *("--folds", "2", "--sweep", "lambda=0,1", "--run", "game", "--experiment", "folds"),
]


@dataclass(frozen=True)
class Swept:
    """A sweep over two values with two folds each, which was started three times.

    Attributes:
        folder: the working directory.
        before: the results that were there when the first start was killed.
        failed: what the second said, of which a run failed; and the error that it ended with.
        said: what the third said, which did what was left.
    """

    folder: Path
    before: dict[Path, bytes]
    failed: tuple[str, InputError]
    parent_of_failed: str
    said: str


@pytest.fixture(scope="module")
def swept(ray_session: None, drawn_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("protocol")
    arguments = ["--data", str(drawn_shards), *OPTIONS]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    killed = subprocess.Popen(
        [sys.executable, "-m", "cfer.train", *arguments, "--parallel", "1"],
        cwd=folder,
        env=environment,
    )
    try:
        wait_for(lambda: any(folder.glob("runs/*/*/results.json")), killed)
    finally:
        if killed.poll() is None:
            kill_with_children(killed)
    before = {path: path.read_bytes() for path in folder.glob("runs/*/*/results.json")}
    assert 1 <= len(before) < 4

    # The last of the runs finds a checkpoint that can't be loaded, though it is sealed.
    run = folder / "runs" / "game-lambda=1.0" / "seed0-fold1"
    assert not run.exists()
    checkpoint = run / "epoch-00001"
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE_NAME).write_bytes(b"not a state")
    seal = {"epoch": 1, "sha256": hashlib.sha256(b"not a state").hexdigest()}
    (checkpoint / SEAL_NAME).write_text(json.dumps(seal))

    first, second = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with contextlib.redirect_stderr(first), pytest.raises(InputError) as failed:
            main(arguments)
        parent = json.loads((run.parent / "protocol.json").read_text())["mlflow_run_id"]
        status = MlflowClient().get_run(parent).info.status
        shutil.rmtree(checkpoint)
        with contextlib.redirect_stderr(second):
            assert main(arguments) == 0
    return Swept(folder, before, (first.getvalue(), failed.value), status, second.getvalue())


@pytest.fixture
def client(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(swept.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowClient(f"sqlite:///{swept.folder / 'mlflow.db'}")


def runs_of(client: MlflowClient) -> dict[str, list[Run]]:
    """By their role."""
    experiment = client.get_experiment_by_name("folds")
    assert experiment is not None
    runs: dict[str, list[Run]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        runs.setdefault(run.data.tags["cfer.role"], []).append(run)
    return runs


def results_of(folder: Path, value: str) -> list[Results]:
    found = [
        read_results(str(folder / "runs" / f"game-lambda={value}" / f"seed0-fold{fold}"))
        for fold in (0, 1)
    ]
    assert all(found)
    return [results for results in found if results is not None]


def test_what_was_finished_is_not_done_again(swept: Swept) -> None:
    said, _ = swept.failed
    assert f"{len(swept.before)} of 4 runs are finished already" in said
    assert f"{4 - len(swept.before)} runs, {min(2, 4 - len(swept.before))} at a time" in said
    assert "3 of 4 runs are finished already" in swept.said
    assert "1 runs, 1 at a time: less than a minute\n" in swept.said
    assert "1/1  game-lambda=1.0/seed0-fold1: accuracy " in swept.said
    for path, data in swept.before.items():
        assert path.read_bytes() == data, "a finished fold was done again"


def test_a_run_that_fails_does_not_stop_the_others(swept: Swept) -> None:
    said, error = swept.failed
    count = 4 - len(swept.before)
    assert "game-lambda=1.0/seed0-fold1: failed, and the others go on: " in said
    assert said.count(": accuracy ") == count - 1
    reason = said.split("the others go on: ")[1].splitlines()[0]
    assert "torch.load" in reason
    assert str(error) == (
        f"1 of {count} runs failed (game-lambda=1.0/seed0-fold1): {reason}; start the same command "
        "again to do what is left"
    )
    assert swept.parent_of_failed == "FAILED"


def test_folds_are_children_and_the_parent_holds_their_mean(
    client: MlflowClient, swept: Swept
) -> None:
    runs = runs_of(client)
    assert {run.info.run_name for run in runs["protocol"]} == {"game-lambda=0.0", "game-lambda=1.0"}
    # A name says all by itself, where runs of several methods are compared.
    assert {run.info.run_name for run in runs["fold"]} == {
        f"game-lambda={value}, seed 0, fold {fold}" for value in ("0.0", "1.0") for fold in (0, 1)
    }
    for parent in runs["protocol"]:
        assert parent.info.status == "FINISHED"
        results = results_of(swept.folder, parent.data.params["lambda"])
        children = [
            run for run in runs["fold"] if run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        ]
        finished = {run.info.run_id for run in children if run.info.status == "FINISHED"}
        assert finished == {one.mlflow_run_id for one in results}
        for name in ("held_out/accuracy", "held_out/uar", "cost/bytes_per_clip"):
            values = [one.figures[name] for one in results]
            assert parent.data.metrics[name] == pytest.approx(np.mean(values))
            assert parent.data.metrics[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1))
        assert parent.data.metrics["num_runs"] == 2
        pooled = json.loads(
            Path(client.download_artifacts(parent.info.run_id, "confusion.json")).read_text()
        )
        # Every clip of the set is tested once.
        assert np.sum(pooled["confusion"], axis=1).tolist() == [5, 5]
        total = np.sum([one.confusion for one in results], axis=0)
        assert pooled["confusion"] == total.tolist()
        right = np.trace(total) / 10
        assert parent.data.metrics["pooled/accuracy"] == pytest.approx(right)
        # Of all runs' clips, each by the temperature of other people.
        held_out = ScoredClips.concatenate(
            [
                ScoredClips.of_arrays(
                    np.load(client.download_artifacts(run_id, "predictions/held_out.npz"))
                )
                for run_id in finished
            ]
        )
        calibrated = calibration(held_out)
        assert (calibrated["calibration/clips"], calibrated["calibration/people"]) == (10, 5)
        for name, value in calibrated.items():
            assert parent.data.metrics[name] == pytest.approx(value)
        picture = client.download_artifacts(parent.info.run_id, "reliability.png")
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    # Of the parents that were finished by the last start, or before it.
    for value in ("0.0", "1.0"):
        accuracy = [one.figures["held_out/accuracy"] for one in results_of(swept.folder, value)]
        expected = f"{np.mean(accuracy):.3f} ± {np.std(accuracy, ddof=1):.3f}"
        assert f"game-lambda={value}, 2 runs: accuracy {expected}, UAR " in swept.said


def test_no_subject_is_on_both_sides_of_a_fold(client: MlflowClient, swept: Swept) -> None:
    tested: dict[str, list[str]] = {}
    for run in runs_of(client)["fold"]:
        if run.info.status != "FINISHED":
            continue
        folder = Path(client.download_artifacts(run.info.run_id, "predictions"))
        train, held_out = (
            ScoredClips.of_arrays(np.load(folder / f"{side}.npz")) for side in ("train", "held_out")
        )
        assert not set(train.subjects) & set(held_out.subjects)
        assert len(set(train.clip_ids) | set(held_out.clip_ids)) == 10
        parent = run.data.tags["mlflow.parentRunId"]
        tested.setdefault(parent, []).extend(sorted({str(s) for s in held_out.subjects}))
    assert len(tested) == 2
    for subjects in tested.values():
        assert sorted(subjects) == [f"S{n:03d}" for n in range(1, 6)]


def test_the_sweep_has_a_curve(client: MlflowClient) -> None:
    (run,) = runs_of(client)["sweep"]
    assert run.data.tags["cfer.command"].endswith(" --sweep lambda=0,1")
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((folder / "sweep.json").read_text())
    assert list(points) == ["0.0", "1.0"]
    assert set(points["1.0"]["sd"]) <= set(points["1.0"]["mean"])
    for parent in runs_of(client)["protocol"]:
        point = points[parent.data.params["lambda"]]
        name = "held_out/accuracy"
        assert point["mean"][name] == parent.data.metrics[name]
        assert point["sd"][name] == parent.data.metrics[f"{name}_sd"]


def test_finished_again_does_nothing(
    client: MlflowClient, swept: Swept, drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written() -> dict[Path, int]:
        """By the runs, in their folders."""
        files = [path for path in swept.folder.glob("runs/*/*/**/*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files}

    runs = {run.info.run_id for runs in runs_of(client).values() for run in runs}
    before = written()
    assert len([path for path in before if path.name == "results.json"]) == 4
    assert main(["--data", str(drawn_shards), *OPTIONS]) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().err
    assert {run.info.run_id for runs in runs_of(client).values() for run in runs} == runs
    with pytest.raises(InputError, match=r"started with --epochs 2, and now --epochs is 3"):
        main(["--data", str(drawn_shards), *OPTIONS, "--epochs", "3"])
    assert written() == before


def test_what_earlier_attacks_have_measured_is_measured_again(
    client: MlflowClient, swept: Swept, drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of five people too few are held out: today, none are attacked at all."""
    location = swept.folder / "runs" / "game-lambda=1.0" / "seed0-fold0"
    before = (location / "results.json").read_bytes()
    results = json.loads(before)
    results["figures"]["attack/linkage_ridge_training_pooled_auc"] = 0.9
    (location / "results.json").write_text(json.dumps(results))
    assert main(["--data", str(drawn_shards), *OPTIONS]) == 0
    said = capsys.readouterr()
    assert "game-lambda=1.0/seed0-fold0: attacked anew" in said.err
    assert "linkage 0.9" not in said.out
    assert (location / "results.json").read_bytes() == before
    (parent,) = (run for run in runs_of(client)["protocol"] if run.data.params["lambda"] == "1.0")
    stored = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "runs.json")).read_text()
    )
    assert not [name for name in stored["seed 0, fold 0"]["figures"] if "attack/" in name]


def test_folds_that_cannot_be_cut_are_found_before_anything_is_trained(
    client: MlflowClient, swept: Swept, drawn_shards: Path
) -> None:
    arguments = ["--data", str(drawn_shards), "--folds", "6", "--run", "six", "--epochs", "1"]
    with pytest.raises(InputError, match=r"--folds 6: of 5 subjects there can be 2 to 5 folds"):
        main([*arguments, "--experiment", "refused"])
    # So that the name is free for another number.
    assert not list((swept.folder / "runs" / "six").glob("*"))
    assert not client.get_experiment_by_name("refused")


def test_the_table_and_the_page(
    client: MlflowClient, swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept.folder
    assert cli.run(["evaluate", "folds"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3, "one line for each parent, none for the folds"
    accuracy = [one.figures["held_out/accuracy"] for one in results_of(folder, "1.0")]
    expected = f"{np.mean(accuracy):.3f} ± {np.std(accuracy, ddof=1):.3f}"
    assert any("game-lambda=1.0" in line and expected in line for line in table)

    page = report.write("folds", folder / "page")
    text = (folder / "page" / "report.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| **game-lambda=1.0** |"))
    assert expected in line
    # Each fold counts the same there; beside it, each clip.
    total = np.sum([one.confusion for one in results_of(folder, "1.0")], axis=0)
    assert f" | {np.trace(total) / 10:.3f} | " in line
    assert "each run counts the same (of `loso`, each person), and in *by clip*, each clip" in text
    zero = [one.figures["held_out/accuracy"] for one in results_of(folder, "0.0")]
    change = f"{np.mean(accuracy) - np.mean(zero):+.3f}".replace("-", "−")
    assert f"{change} (p" in line
    assert "--lambda 0" in text
    (parent,) = (run for run in runs_of(client)["protocol"] if run.data.params["lambda"] == "1.0")
    names = ("temperature", "ece_before", "ece_after", "nll_before", "nll_after")
    cells = [f"{parent.data.metrics[f'calibration/{name}']:.3f}" for name in names]
    assert f"| **game-lambda=1.0** | {' | '.join(cells)} | " in text
    html = page.read_text()
    assert html.count("<table>") == 4
    # Of five people, nobody can be attacked by what others taught.
    assert html.count("Attacks on one run of game-lambda") == 2
    assert TOO_FEW in html
    # The curve of the sweep, two pictures of each row, two more of one run of each.
    assert html.count("data:image/png;base64,") == 1 + 4 + 4
    assert 'src="game' not in html
    with pytest.raises(InputError, match="no finished run or experiment"):
        report.write("nothing", folder / "page")


def test_the_classes_are_those_of_the_data(swept: Swept, drawn_shards: Path) -> None:
    record = json.loads((swept.folder / "runs" / "game-lambda=0.0" / "protocol.json").read_text())
    assert record["classes"] == read_description(drawn_shards).classes
