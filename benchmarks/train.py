"""Training steps, beside the same steps on batches that lie in memory already.

*Tensors in memory* is a plain PyTorch loop: every batch was made before, so nothing is waited for.
`cfer.train`'s own loop draws, augments and packs each batch from the clips' uint8 planes, between
two steps: it waits for data as long as making the batches alone takes. With `--data`, real runs of
`cfer.train` follow, of one and of more workers, each worker with one core of its own; and the turns
of such workers alone, with what they exchange and without it.
"""

from __future__ import annotations

import json
import multiprocessing.queues
import multiprocessing.synchronize
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from mlflow import MlflowClient
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import Measurement, Ratio, Spread, Work, side_by_side
from cfer.data.inputs import APEX_SIZE
from cfer.errors import InputError
from cfer.model.game import PLAYERS, Weights, optimizer_of, play_turn
from cfer.model.network import ExpressionNet
from cfer.train.batches import BatchMaker, LoadedClips, Standardization
from cfer.train.config import TrainConfig
from cfer.train.loop import model_config, turn_on_noise

NUM_CLASSES, IDENTITY_DIM, NUM_SUBJECTS = 7, 128, 60
LOOP, FLOOR, LOADER = "cfer's loop", "tensors in memory", "making the batches alone"
EPOCHS_OF_A_RUN = 20
EPOCHS_PER_ROUND = 10
WARM_UP_TURNS, TIMED_TURNS = 5, 40


def measure(
    num_clips: int, side: int, device: torch.device, rounds: int, batch_size: int = 16
) -> Measurement:
    """Time epochs of the default model in the min-min game on random planes.

    Args:
        num_clips: of an epoch, one frame each (GOP as long as the clip).
        side: of the face crop in pixels.
    """
    config = TrainConfig(data="", identity_weight=1.0, batch_size=batch_size)
    draws = torch.Generator().manual_seed(0)
    shape = (num_clips, 1, config.what.num_planes, side // 2, side // 2)
    planes = torch.randint(96, 160, shape, generator=draws, dtype=torch.uint8).numpy()
    rows = LoadedClips(
        frames=list(planes),
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
    num_steps = num_clips // config.batch_size
    if num_steps < 1:
        raise InputError(f"--clips {num_clips}: give at least a batch, {config.batch_size}")
    network = model_config(config, NUM_CLASSES, IDENTITY_DIM)
    network = ExpressionNet(network, with_apex=False).to(device)
    player = PLAYERS[config.game](config.code_dim, IDENTITY_DIM, NUM_SUBJECTS).to(device)
    optimizers = [optimizer_of(part, lr=1e-4) for part in (network, player)]
    weights = Weights(config.identity_weight)
    steps = config.estimator_steps

    def epoch(number: int) -> list:
        return list(
            maker.training_epoch(num_steps, config.batch_size, config.augmentation, 0, number, 0)
        )

    ready = epoch(0)
    seen = torch.cat([batch.labels for batch in ready])
    if len(seen) != num_steps * config.batch_size:
        raise AssertionError(f"an epoch has {len(seen)} clips")
    # No two clips have the same embedding.
    if len(torch.cat([batch.z_I for batch in ready]).unique(dim=0)) != len(seen):
        raise AssertionError("an epoch does not have each clip once")

    def play(batches) -> int:  # type: ignore[no-untyped-def]
        for batch in batches:
            play_turn(network, player, optimizers[0], optimizers[1], batch, weights, steps)
        _wait_for(device)
        return num_steps * config.batch_size

    def loop() -> int:
        return play(
            maker.training_epoch(num_steps, config.batch_size, config.augmentation, 0, 1, 0)
        )

    def loader() -> int:
        epoch(1)
        _wait_for(device)
        return num_steps * config.batch_size

    measurement = side_by_side(
        [
            Work(LOOP, loop, "clips", EPOCHS_PER_ROUND),
            Work(FLOOR, lambda: play(ready), "clips", EPOCHS_PER_ROUND),
            Work(LOADER, loader, "clips", EPOCHS_PER_ROUND),
        ],
        # Waiting for less than 5 % of a step on a CPU, 10 % on a GPU.
        [
            Ratio(LOADER, LOOP, 20 if device.type == "cpu" else 10),
            Ratio(LOOP, FLOOR, 0.95 if device.type == "cpu" else 0.9),
        ],
        rounds,
        "train",
        f"{num_clips} clips of {side} × {side}: each comes once in an epoch",
    )
    wait = measurement.rates[LOOP].median / measurement.rates[LOADER].median
    measurement.figures["device"] = f"{device}, batches of {config.batch_size}"
    measurement.figures["waiting for data"] = f"{wait:.1%} of the loop"
    return measurement


def measure_workers(
    measurement: Measurement, data: str, workers: Sequence[int], epochs: int, rounds: int
) -> None:
    """Add real runs of `cfer.train` on these shards, with 1 worker and with more.

    Raises:
        InputError: a run failed, or the machine has fewer cores than workers.
    """
    cores = sorted(os.sched_getaffinity(0))
    if max(workers) > len(cores):
        raise InputError(
            f"--workers {max(workers)}: only {len(cores)} cores, one for each is asked"
        )
    seconds: dict[int, list[float]] = {number: [] for number in workers}
    for _ in range(rounds):
        for number in workers:
            seconds[number].append(_epoch_seconds(data, number, epochs, cores[:number]))
    names = {number: f"cfer.train, {number} worker{'s' * (number > 1)}" for number in workers}
    _add(measurement, {names[n]: seconds[n] for n in workers}, "epochs", str(workers[0]))
    if 2 in workers[1:]:
        measurement.targets[f"{names[2]} / {workers[0]}"] = 1.7


def _epoch_seconds(data: str, workers: int, epochs: int, cores: Sequence[int]) -> float:
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
        # The first epoch's allocations are no part of it, where there are more.
        values = [epoch.value for epoch in sorted(history, key=lambda epoch: epoch.step)]
        return statistics.median(values[1:] or values)


def measure_exchange(
    measurement: Measurement, workers: int, batch_size: int, side: int, rounds: int
) -> None:
    """Add the turns of so many workers, which share a batch; of one; and of workers that exchange
    nothing, which is as good as sharing can get."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    whole = f"a turn of {batch_size} clips, 1 worker"
    shared = f"the same, {workers} workers"
    apart = f"the same, {workers} workers that exchange nothing"
    seconds: dict[str, list[float]] = {whole: [], shared: [], apart: []}
    context = torch.multiprocessing.get_context("spawn")
    for _ in range(rounds):
        results = context.SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(
                _time_turns,
                (workers, batch_size, side, f"{folder}/store", context.Barrier(workers), results),
                nprocs=workers,
            )
        for name, value in zip((whole, apart, shared), results.get(), strict=True):
            seconds[name].append(value)
    _add(measurement, seconds, "turns", "1 worker")


def _add(
    measurement: Measurement, seconds: Mapping[str, Sequence[float]], unit: str, reference: str
) -> None:
    """Works that took so many seconds for a unit in each round; ratios to the first of them, which
    their names call `reference`."""
    first, *_ = seconds.values()
    for number, (name, values) in enumerate(seconds.items()):
        measurement.rates[name] = Spread.of([1 / value for value in values])
        measurement.units[name] = unit
        if number:
            pairs = zip(first, values, strict=True)
            measurement.ratios[f"{name} / {reference}"] = Spread.of([a / b for a, b in pairs])


def _time_turns(
    rank: int,
    workers: int,
    batch_size: int,
    side: int,
    store: str,
    barrier: multiprocessing.synchronize.Barrier,
    results: multiprocessing.queues.SimpleQueue[tuple[float, float, float]],
) -> None:
    """One worker, on a core of its own → seconds of a turn: of the whole batch by rank 0 alone, of
    each rank's share with nothing exchanged, and of the share in DDP."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    config = TrainConfig(data="", identity_weight=1.0)

    def seconds(num_clips: int, **how: Callable[[nn.Module], nn.Module]) -> float:
        turn = turn_on_noise(
            config, NUM_CLASSES, IDENTITY_DIM, num_clips, num_frames=1, side=side // 2, **how
        )
        for _ in range(WARM_UP_TURNS):
            turn()
        started = time.perf_counter()
        for _ in range(TIMED_TURNS):
            turn()
        return (time.perf_counter() - started) / TIMED_TURNS

    whole = seconds(batch_size) if rank == 0 else 0.0
    barrier.wait()
    apart = seconds(batch_size // workers)
    barrier.wait()
    dist.init_process_group("gloo", init_method=f"file://{store}", world_size=workers, rank=rank)
    shared = seconds(batch_size // workers, wrap=DistributedDataParallel)
    dist.destroy_process_group()
    if rank == 0:
        results.put((whole, apart, shared))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
