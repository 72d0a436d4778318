"""Folds under a parent run: killed, resumed, summed up, swept, reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, kill_with_children
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from scipy import stats

from cfer import evaluate, report
from cfer.errors import InputError
from cfer.run import Results, read_results
from cfer.shards import read_description
from cfer.train import Sweep, main, parse_seeds

OPTIONS = [
    *("--width", "8", "--code-dim", "32", "--batch-size", "8", "--epochs", "2"),
    *("--folds", "2", "--sweep", "lambda=0,1", "--run", "game", "--experiment", "folds"),
]


@pytest.fixture(scope="module")
def swept(drawn_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep over two values with two folds each, killed after its first run and started again
    → its folder, and what the second start said."""
    folder = tmp_path_factory.mktemp("protocol")
    command = [sys.executable, "-m", "cfer.train", "--data", str(drawn_shards), *OPTIONS]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    killed = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not any(folder.glob("runs/*/*/results.json")):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_with_children(killed)
    before = {path: path.read_bytes() for path in folder.glob("runs/*/*/results.json")}
    assert 1 <= len(before) < 4
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 4 runs are finished already" in done.stderr
    assert f"{4 - len(before)} runs, " in done.stderr
    for path, data in before.items():
        assert path.read_bytes() == data, "a finished fold was done again"
    return folder, done.stderr


@pytest.fixture
def client(swept: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    folder, _ = swept
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


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


def test_folds_are_children_and_the_parent_holds_their_mean(
    client: MlflowClient, swept: tuple[Path, str]
) -> None:
    folder, said = swept
    runs = runs_of(client)
    assert {run.info.run_name for run in runs["protocol"]} == {"game-lambda=0.0", "game-lambda=1.0"}
    # A name says all by itself, where runs of several methods are compared.
    assert {run.info.run_name for run in runs["fold"]} == {
        f"game-lambda={value}, seed 0, fold {fold}" for value in ("0.0", "1.0") for fold in (0, 1)
    }
    for parent in runs["protocol"]:
        assert parent.info.status == "FINISHED"
        results = results_of(folder, parent.data.params["lambda"])
        children = [
            run for run in runs["fold"] if run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        ]
        finished = {run.info.run_id for run in children if run.info.status == "FINISHED"}
        assert finished == {one.mlflow_run_id for one in results}
        for name in ("held_out/accuracy", "leakage/auc_held_out", "cost/bytes_per_clip"):
            values = [one.figures[name] for one in results]
            assert parent.data.metrics[name] == pytest.approx(np.mean(values))
            assert parent.data.metrics[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1))
        assert parent.data.metrics["num_runs"] == 2
        pooled = json.loads(
            Path(client.download_artifacts(parent.info.run_id, "confusion.json")).read_text()
        )
        # Every clip of the set is tested once.
        assert np.sum(pooled["confusion"], axis=1).tolist() == [8] * 7
        total = np.sum([one.confusion for one in results], axis=0)
        assert pooled["confusion"] == total.tolist()
        assert f"{parent.data.metrics['held_out/accuracy']:.3f} ±" in said


def test_no_subject_is_on_both_sides_of_a_fold(client: MlflowClient) -> None:
    tested: dict[str, list[str]] = {}
    for run in runs_of(client)["fold"]:
        if run.info.status != "FINISHED":
            continue
        folder = Path(client.download_artifacts(run.info.run_id, "predictions"))
        train, held_out = (
            evaluate.Predictions.of_arrays(np.load(folder / f"{side}.npz"))
            for side in ("train", "held_out")
        )
        assert not set(train.subjects) & set(held_out.subjects)
        assert len(set(train.clip_ids) | set(held_out.clip_ids)) == 56
        parent = run.data.tags["mlflow.parentRunId"]
        tested.setdefault(parent, []).extend(sorted({str(s) for s in held_out.subjects}))
    assert len(tested) == 2
    for subjects in tested.values():
        assert sorted(subjects) == [f"S{n:03d}" for n in range(1, 9)]


def test_the_sweep_has_a_curve(client: MlflowClient) -> None:
    (run,) = runs_of(client)["sweep"]
    assert run.data.tags["cfer.command"].endswith(" --sweep lambda=0,1")
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((folder / "sweep.json").read_text())
    assert list(points) == ["0.0", "1.0"]
    assert set(points["1.0"]["sd"]) <= set(points["1.0"]["mean"])


def test_finished_again_does_nothing(
    client: MlflowClient,
    swept: tuple[Path, str],
    ray_session: None,
    drawn_shards: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {run.info.run_id for runs in runs_of(client).values() for run in runs}
    assert main(["--data", str(drawn_shards), *OPTIONS]) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().err
    assert {run.info.run_id for runs in runs_of(client).values() for run in runs} == before
    with pytest.raises(InputError, match=r"started with --epochs 2, and now --epochs is 3"):
        main(["--data", str(drawn_shards), *OPTIONS, "--epochs", "3"])


def test_the_table_and_the_page(
    client: MlflowClient, swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = swept
    assert evaluate.main(["folds"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3, "one line for each parent, none for the folds"
    accuracy = [one.figures["held_out/accuracy"] for one in results_of(folder, "1.0")]
    expected = f"{np.mean(accuracy):.3f} ± {np.std(accuracy, ddof=1):.3f}"
    assert any("game-lambda=1.0" in line and expected in line for line in table)

    page = report.write("folds", folder / "page")
    text = (folder / "page" / "report.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| **game-lambda=1.0** |"))
    assert expected in line
    zero = [one.figures["held_out/accuracy"] for one in results_of(folder, "0.0")]
    change = f"{np.mean(accuracy) - np.mean(zero):+.3f}".replace("-", "−")
    assert f"{change} (p" in line
    assert "--lambda 1" in text
    html = page.read_text()
    assert html.count("<table>") == 3
    # The curve of the sweep, each row's confusion matrix, two more pictures of both rows.
    assert html.count("data:image/png;base64,") == 1 + 2 + 4
    assert 'src="game' not in html
    with pytest.raises(InputError, match="no finished run or experiment"):
        report.write("nothing", folder / "page")


def test_differences_are_tested_with_the_corrected_t_test() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.7, 0.05, (2, 10))

    def row(values: np.ndarray, num_clips: int = 4) -> report.Row:
        figures = {f"seed 0, fold {i}": {"a": float(v)} for i, v in enumerate(values)}
        held_out = {name: [num_clips] * 7 for name in figures}
        return report.Row("x", None, figures, held_out, {})  # type: ignore[arg-type]

    change, p, count = report.difference(row(first), row(second), "a") or (0, 0, 0)
    assert count == 10
    assert change == pytest.approx(np.mean(first - second))
    plain = stats.ttest_rel(first, second)
    # Nadeau and Bengio: 1/n becomes 1/n + n_test/n_train.
    t = plain.statistic * np.sqrt((1 / 10) / (1 / 10 + 1 / 9))
    assert p == pytest.approx(2 * stats.t.sf(abs(t), 9))
    assert report.difference(row(first[:1]), row(second[:1]), "a") is None
    assert report.difference(row(first), row(second, 8), "a") is None, "of other folds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "2", "--seeds", "0,0"], "--seeds 0,0: give different numbers"),
        (["--folds", "2", "--seeds", "a"], "--seeds a: give numbers"),
        (["--folds", "2", "--fold", "1", "--seeds", "0"], "--fold 1: one fold alone"),
        (["--folds", "2", "--sweep", "lambda"], "--sweep lambda: give an option and its values"),
        (["--folds", "2", "--sweep", "mood=1,2"], "--sweep mood=1,2: give an option"),
        (["--folds", "2", "--sweep", "mu=a"], "--sweep mu=a"),
        (
            ["--folds", "2", "--sweep", "seed=0,1"],
            "--sweep seed=0,1: .* for seeds there is --seeds",
        ),
        (["--protocol", "afew", "--seeds", "0", "--seed", "1"], "--seed, --seeds: give one"),
        (["--run", "a/b"], "--run a/b: a name, not a path"),
    ],
)
def test_wrong_protocols_say_what_is_right(
    arguments: list[str], message: str, drawn_shards: Path
) -> None:
    with pytest.raises(InputError, match=message):
        main(["--data", str(drawn_shards), *arguments])


def test_sweeps_and_seeds_are_read() -> None:
    assert Sweep.parse("lambda=0,0.3") == Sweep("identity_weight", [0.0, 0.3])
    assert Sweep.parse("estimator-steps=1,5") == Sweep("estimator_steps", [1, 5])
    assert parse_seeds("2,0") == [2, 0]


def test_the_classes_are_those_of_the_data(swept: tuple[Path, str], drawn_shards: Path) -> None:
    folder, _ = swept
    record = json.loads((folder / "runs" / "game-lambda=0.0" / "protocol.json").read_text())
    assert record["classes"] == read_description(drawn_shards).classes
