"""The documented benches that start processes of their own, in their quick form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import commands, run_documented_bench

BENCHES = {command.split()[2]: command for command in commands("How fast", "docs/speed.md")}


def test_the_bench_of_the_prediction_knows_the_memory_of_each_way(tmp_path: Path):
    found = run_documented_bench(BENCHES["predict"], tmp_path, "--max-frames", "26")
    assert found["verified"].startswith("1 clips: the decoded pictures are those")
    figures = found["figures"]
    assert figures["clips"].endswith("3 frames, of 24 in the video, GOP 3, 1 of them looked at")
    assert 0 < float(figures["bytes decoded"].split()[0]) < 1
    ways = re.fullmatch(
        r"residuals (\d+) MB, decoded pictures (\d+) MB, ResNet-18.* (\d+) MB",
        figures["memory beyond the imports"],
    )
    assert ways is not None
    residuals, pictures, resnet = map(int, ways.groups())
    # ResNet-18 has 11 million weights, of 4 bytes each.
    assert resnet > 45
    assert max(residuals, pictures) < resnet


def test_the_bench_of_training_runs_with_one_worker_and_with_two(tmp_path: Path):
    found = run_documented_bench(BENCHES["train"], tmp_path, *"--clips 32 --epochs 1".split())
    assert found["verified"] == "32 clips of 112 × 112: each comes once in an epoch"
    assert found["units"]["cfer.train, 2 workers"] == "epochs"
    rates = {name: rate["median"] for name, rate in found["rates"].items()}
    more, one = "cfer.train, 2 workers", "cfer.train, 1 worker"
    expected = rates[more] / rates[one]  # of the one round
    assert found["ratios"][f"{more} / {one}"]["median"] == pytest.approx(expected)
