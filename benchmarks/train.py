"""Training steps, beside the same steps on batches that lie in memory already.

*Tensors in memory* is a plain PyTorch loop on batches that were made before, so it waits for
nothing. The loop of `cfer train` draws, augments and packs each batch from the clips' uint8 planes,
between two steps: it waits for data as long as making the batches alone takes. With `--data`, real
runs of `cfer train` follow, with one worker and with more, each on one core of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from mlflow import MlflowClient

from benchmarks.measure import Measurement, Ratio, Work, rates_in_turns
from cfer.data.inputs import APEX_SIZE
from cfer.errors import InputError
from cfer.model.game import PLAYERS, Batch, Weights, optimizer_of, play_turn
from cfer.model.network import ExpressionNet
from cfer.train.batches import BatchMaker, LoadedClips, Standardization
from cfer.train.config import TrainConfig, check_shares
from cfer.train.loop import model_config

NUM_CLASSES, IDENTITY_DIM, NUM_SUBJECTS = 7, 128, 60
LOOP, FLOOR, LOADER = "cfer's loop", "tensors in memory", "making the batches alone"
EPOCHS_PER_ROUND = 10


def measure(
    num_clips: int,
    side: int,
    device: torch.device,
    rounds: int,
    batch_size: int,
    data: str | None = None,
    workers: int = 2,
    epochs: int = 20,
) -> Measurement:
    """Time epochs of the default model in the min-min game on random planes.

    Args:
        num_clips: of an epoch, one frame each (GOP as long as the clip).
        side: of the face crop in pixels.
        data: shards, on which `cfer train` is run as well, with one worker and with `workers`, for
            so many `epochs`.

    Raises:
        InputError: a run failed, or the machine has fewer cores than workers.
    """
    check_shares(batch_size, workers if data else 1)
    cores = len(os.sched_getaffinity(0))
    if data and workers > cores:
        raise InputError(f"--workers {workers}: each needs a core, and this machine has {cores}")
    config = TrainConfig(data="", identity_weight=1.0, batch_size=batch_size)
    draws = torch.Generator().manual_seed(0)
    shape = (num_clips, 1, config.what.num_planes, side // 2, side // 2)
    planes = torch.randint(96, 160, shape, generator=draws, dtype=torch.uint8).numpy()
    rows = LoadedClips(
        views=[[frames] for frames in planes],
        labels=torch.arange(num_clips) % NUM_CLASSES,
        z_I=torch.randn(num_clips, IDENTITY_DIM, generator=draws),
        apex=torch.zeros(num_clips, 3, APEX_SIZE, APEX_SIZE),
        has_apex=torch.zeros(num_clips, dtype=torch.bool),
        subjects=[str(n % NUM_SUBJECTS) for n in range(num_clips)],
        clip_ids=[str(n) for n in range(num_clips)],
        bytes_read=torch.zeros(num_clips, dtype=torch.int64),
    )
    unscaled = Standardization(torch.zeros(IDENTITY_DIM), torch.ones(IDENTITY_DIM))
    maker = BatchMaker(rows, config.what, unscaled, device)
    num_steps = num_clips // batch_size
    if num_steps < 1:
        raise InputError(f"--clips {num_clips}: give at least a batch, {batch_size}")
    model = model_config(config, NUM_CLASSES, IDENTITY_DIM)
    network = ExpressionNet(model, with_apex=False).to(device)
    player = PLAYERS[config.game](model.code_dim, IDENTITY_DIM, NUM_SUBJECTS).to(device)
    optimizers = [optimizer_of(part, lr=1e-4) for part in (network, player)]
    weights = Weights(config.identity_weight)
    steps = config.estimator_steps

    def epoch(number: int) -> Iterator[Batch]:
        return maker.training_epoch(num_steps, batch_size, config.augmentation, 0, number, 0)

    ready = list(epoch(0))
    seen = torch.cat([batch.labels for batch in ready])
    if len(seen) != num_steps * batch_size:
        raise AssertionError(f"an epoch has {len(seen)} clips")
    # No two clips have the same embedding.
    if len(torch.cat([batch.z_I for batch in ready]).unique(dim=0)) != len(seen):
        raise AssertionError("an epoch does not have each clip once")

    def run(batches: Iterable[Batch], is_played: bool = True) -> int:
        for batch in batches:
            if is_played:
                play_turn(network, player, optimizers[0], optimizers[1], batch, weights, steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return num_steps * batch_size

    works = [
        Work(LOOP, lambda: run(epoch(1)), "clips", EPOCHS_PER_ROUND),
        Work(FLOOR, lambda: run(ready), "clips", EPOCHS_PER_ROUND),
        Work(LOADER, lambda: run(epoch(1), is_played=False), "clips", EPOCHS_PER_ROUND),
    ]
    rates = rates_in_turns(works, rounds, "train")
    units = dict.fromkeys(rates, "clips")
    # Waiting for less than 5 % of a step on a CPU, 10 % on a GPU.
    on_cpu = device.type == "cpu"
    ratios = [
        Ratio(LOADER, LOOP, 20 if on_cpu else 10),
        Ratio(LOOP, FLOOR, 0.95 if on_cpu else 0.9),
    ]
    if data:
        names = {1: "cfer.train, 1 worker", workers: f"cfer.train, {workers} workers"}
        for name in names.values():
            rates[name], units[name] = [], "epochs"
        for _ in range(rounds):
            for number, name in names.items():
                rates[name].append(1 / _epoch_seconds(data, number, epochs))
        ratios.append(Ratio(names[workers], names[1], 1.7 if workers == 2 else None))
    measurement = Measurement.of(
        "train",
        f"{num_clips} clips of {side} × {side}: each comes once in an epoch",
        rates,
        units,
        ratios,
    )
    wait = measurement.rates[LOOP].median / measurement.rates[LOADER].median
    measurement.figures["device"] = f"{device}, batches of {batch_size}"
    measurement.figures["waiting for data"] = f"{wait:.1%} of the loop"
    return measurement


def _epoch_seconds(data: str, workers: int, epochs: int) -> float:
    cores = sorted(os.sched_getaffinity(0))[:workers]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "cfer.train", "--data", data, "--method", "min-min"),
            *("--workers", str(workers), "--epochs", str(epochs), "--run", "bench"),
            *("--storage", folder, "--device", "cpu"),
        ]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        if done.returncode:
            raise InputError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        results = json.loads(Path(folder, "bench", "results.json").read_text())
        history = MlflowClient(environment["MLFLOW_TRACKING_URI"]).get_metric_history(
            results["mlflow_run_id"], "time/epoch_seconds"
        )
        # Without the first epoch, which allocates, where there are more.
        values = [epoch.value for epoch in sorted(history, key=lambda epoch: epoch.step)]
        return statistics.median(values[1:] or values)
