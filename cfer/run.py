"""One training run: Ray Train DDP over Ray Data, or one process; checkpoints; what is logged.

`cfer.train` is the command. A run has a folder `<storage>/<run>` with

    run.json              its configuration and its MLflow run, written when it is started
    epoch-00012/          the newest checkpoint: both players, both optimisers, the figures so far
    results.json          the figures of the last epoch; written last, so its presence says "done"

so that a run that was killed goes on from its last complete checkpoint to the result of an
undisturbed one, and a finished one is not done again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor, nn

from cfer import evaluate, tracking
from cfer.batches import BatchMaker, Rows, Standardisation, load_rows
from cfer.cluster import join_cluster
from cfer.config import OPERATIONAL, SHORT_NAMES, TrainConfig, command_of, flag
from cfer.data import (
    ClipIndex,
    Split,
    read_clips,
    read_index,
    split_by_column,
    split_by_subject,
    split_into_folds,
    who_is_held_out,
)
from cfer.errors import InputError, NotFinite, WorkerError
from cfer.evaluate import Predictions
from cfer.game import PLAYERS, Batch, Weights, optimiser_of, play_turn
from cfer.inputs import APEX_SIZE, LAST
from cfer.links import WorkersLinkThemselves, linked
from cfer.model import ModelConfig, Predictor, Recogniser
from cfer.model_file import ModelCard
from cfer.names import rows_named, says_nothing
from cfer.shards import Description, read_description
from cfer.storage import Folder, absolute_location, below

STATE_NAME = "state.pt"
SEAL_NAME = "state.json"
RECORD_NAME = "run.json"
RESULTS_NAME = "results.json"
# Of a run that makes no new checkpoint between them: where workers died, as on machines that are
# taken away; where all of them live, and the code itself failed.
MOST_LOSSES = 4
MOST_ERRORS = 2


@dataclass(frozen=True)
class Results:
    """What a finished run is worth.

    Attributes:
        figures: of the last epoch, by the names that MLflow has them under.
        confusion: of the held-out clips, (C, C), row = true class.
        mlflow_run_id: where the rest is.
        num_train: how many clips it was trained on.
        held_out: who was held out (`cfer.data.who_is_held_out`); empty of an earlier cfer's run.
    """

    figures: dict[str, float]
    confusion: list[list[int]]
    mlflow_run_id: str
    num_train: int = 0
    held_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parent:
    """The run that this one is nested in, and what it is called there."""

    run_id: str
    name: str


# ---- placing the workers -------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """What each worker reserves; `warning` where that is less than anyone would like."""

    cpus: float
    use_gpu: bool
    warning: str = ""


def place_workers(
    nodes: Sequence[Node], workers: int, device: str, cpus_per_worker: float
) -> Placement:
    """Reserve so that the workers fit, and room is left for Ray Data.

    Training workers that reserve every CPU leave Ray Data none, and both then wait for ever. So
    one CPU of the cluster (half of it, where there is only one) stays free; and a request that the
    cluster can't hold is refused here instead of waiting for nodes that never come.

    Raises:
        InputError: the workers can never be placed.
    """
    gpus = sum(int(node.gpus) for node in nodes)
    total = sum(node.cpus for node in nodes)
    if device == "gpu" and gpus < workers:
        raise InputError(
            f"--device gpu --workers {workers}: the cluster has {gpus} GPUs, and every worker "
            f"needs one; give --workers {gpus or 1}{'' if gpus else ' --device cpu'}"
        )
    use_gpu = device == "gpu" or (device == "auto" and gpus >= workers)

    def places(cpus: float) -> int:
        per_node = (math.floor(node.cpus / cpus + 1e-9) for node in nodes)
        if use_gpu:
            return sum(min(n, int(node.gpus)) for n, node in zip(per_node, nodes, strict=True))
        return sum(per_node)

    room = min(1.0, total / 2)
    if cpus_per_worker:
        if places(cpus_per_worker) < workers or workers * cpus_per_worker > total - room + 1e-9:
            raise InputError(
                f"--cpus-per-worker {cpus_per_worker:g} --workers {workers}: the cluster has "
                f"{total:g} CPUs on {len(nodes)} nodes, and {room:g} must stay free for reading "
                "the data; give fewer workers or less for each, or leave --cpus-per-worker out"
            )
        return Placement(cpus_per_worker, use_gpu)
    # Ray counts CPUs in steps of 0.0001; 0.01 is fine enough and readable.
    cpus = min(1.0, math.floor(100 * (total - room) / workers) / 100)
    while cpus >= 0.01 and places(cpus) < workers:
        cpus = round(cpus - 0.01, 2)
    if cpus < 0.01:
        raise InputError(
            f"--workers {workers}: too many for {total:g} CPUs on {len(nodes)} nodes; give fewer"
        )
    warning = ""
    if not use_gpu and workers > total:
        warning = (
            f"--workers {workers} share {total:g} CPUs: this works, slower than "
            f"--workers {max(1, int(total))}"
        )
    return Placement(cpus, use_gpu, warning)


def cluster_nodes() -> list[Node]:
    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


# ---- in a training worker ------------------------------------------------------------------------


def train_worker(setup: dict[str, Any]) -> None:
    """What each Ray Train worker does; `setup` is what `run` hands over."""
    with linked(get_device()):
        _train(setup)


def _train(setup: dict[str, Any]) -> None:
    config = TrainConfig(**setup["config"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    device = get_device()
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        processes = context.get_local_world_size() * setup["parallel_runs"]
        torch.set_num_threads(max(1, cores // processes))
    torch.manual_seed(config.seed)

    # Ray Train logs every report whole, under a logger that is named by its file's path.
    logging.disable(logging.INFO)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # DDP's advice on the memory layout of 1×1 convolutions, where both layouts are the same.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    tracking.connect(setup["tracking_uri"])
    tracker = tracking.Tracker(setup["run_id"]) if rank == 0 else tracking.NoTracker()
    train_rows = _share("train", rank, setup)
    val_rows = _share("validation", rank, setup)
    standardise = _standardisation(train_rows, device)
    train_clips = BatchMaker(train_rows, config.what, standardise, device, setup["train_subjects"])
    val_clips = BatchMaker(val_rows, config.what, standardise, device)
    weights = Weights(
        config.identity_weight,
        config.apex_weight,
        config.label_smoothing,
        None if setup["class_weights"] is None else torch.tensor(setup["class_weights"]).to(device),
    )

    # The same number of full batches on every rank, or one would wait for another for ever.
    batch_size = config.clips_per_worker
    num_steps = math.ceil(setup["num_train"] / config.batch_size)

    identity_dim = setup["identity_dim"]
    recogniser = Recogniser(setup["card"].network, config.apex_weight > 0)
    num_subjects = len(setup["train_subjects"])
    player = PLAYERS[config.game](config.code_dim, identity_dim, num_subjects)
    wrapped_recogniser = prepare_model(recogniser)
    wrapped_player = prepare_model(player)
    optimiser = optimiser_of(recogniser, config.lr, config.weight_decay)
    player_optimiser = optimiser_of(player, config.estimator_lr)
    stateful = {
        "recogniser": recogniser,
        "player": player,
        "recogniser_optimiser": optimiser,
        "player_optimiser": player_optimiser,
    }
    history, spent_seconds = _restore(setup["location"], stateful, device)

    total_steps = config.epochs * num_steps
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        # Every draw of an epoch is a function of (seed, epoch, rank): there is no generator whose
        # state a checkpoint would have to keep.
        torch.manual_seed(
            int(np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1)[0])
        )
        wrapped_recogniser.train()
        sums: dict[str, Tensor] = {}
        batches = train_clips.training_epoch(
            num_steps, batch_size, config.augmentation, config.seed, epoch, rank
        )
        step = epoch * num_steps
        try:
            for step, batch in enumerate(batches, start=epoch * num_steps):
                for group in optimiser.param_groups:
                    group["lr"] = config.lr * _schedule(step, total_steps)
                terms = play_turn(
                    wrapped_recogniser,
                    wrapped_player,
                    optimiser,
                    player_optimiser,
                    batch,
                    weights,
                    config.estimator_steps,
                )
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + value
            _check_finite({name: part.state_dict() for name, part in stateful.items()})
            validation = _gather(predict(recogniser, val_clips, config.batch_size))
        except NotFinite as error:
            raise _stopped(error, config, step, num_steps, setup["location"]) from error
        figures = _mean_over_workers(sums, num_steps, num_steps * batch_size)
        figures |= _validation_figures(validation, len(setup["classes"]))
        figures["time/learning_rate"] = optimiser.param_groups[0]["lr"]
        figures["time/epoch_seconds"] = time.perf_counter() - started
        history.append(figures)
        spent_seconds += figures["time/epoch_seconds"]
        if rank == 0:
            # An epoch that MLflow has is in a checkpoint: it is not trained and logged again.
            _save(setup, stateful, history, spent_seconds, standardise)
            tracker.log_epoch(figures, epoch + 1)
            if setup["shows_epochs"]:
                _say(_progress_line(len(history), figures, config, spent_seconds))

    training = _gather(predict(recogniser, train_clips, config.batch_size))
    validation = _gather(predict(recogniser, val_clips, config.batch_size))
    bytes_read = _all_reduce(train_rows.bytes_read.sum() + val_rows.bytes_read.sum())
    if rank == 0:
        num_clips = len(training.labels) + len(validation.labels)
        encoder_size = sum(p.numel() for p in recogniser.encoder.parameters())
        classifier_size = sum(p.numel() for p in recogniser.classifier.parameters())
        _finish(
            tracker,
            recogniser,
            training,
            validation,
            history,
            {
                "cost/parameters": encoder_size + classifier_size,
                "cost/bytes_per_clip": float(bytes_read) / num_clips,
                "time/train_seconds": spent_seconds,
            },
            setup,
        )


def seconds_of_a_run(config: TrainConfig, description: Description, num_clips: int) -> float:
    """About how long a run on so many training clips takes, on one core of this machine.

    A few turns on noise are timed; reading, probing and logging are not.
    """
    clip_gops = description.counts["frames"] / description.counts["clips"]
    clip_gops /= description.codec["gop_size"]
    turn = turn_on_noise(
        config,
        num_classes=len(description.classes),
        identity_dim=int(description.identity["dimension"]),
        num_clips=config.batch_size,
        num_frames=math.ceil(clip_gops) if config.what.frames == LAST else int(config.what.frames),
        side=int(description.codec["size"]) // 2,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        turn()
        times.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return min(times[1:]) * config.epochs * math.ceil(num_clips / config.batch_size)


def turn_on_noise(
    config: TrainConfig,
    num_classes: int,
    identity_dim: int,
    num_clips: int,
    num_frames: int,
    side: int,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> Callable[[], object]:
    """A turn of the game as this configuration plays it, to be timed on the CPU.

    Args:
        num_clips, num_frames, side: of its one batch, (num_clips, num_frames, C, side, side).
        wrap: what is done to the two players, such as DDP.
    """
    recogniser = Recogniser(model_config(config, num_classes, identity_dim), config.apex_weight > 0)
    player = PLAYERS[config.game](config.code_dim, identity_dim, 2)
    batch = Batch(
        planes=torch.randn(num_clips, num_frames, config.what.num_planes, side, side) / 10,
        mask=torch.ones(num_clips, num_frames, dtype=torch.bool),
        labels=torch.arange(num_clips) % num_classes,
        z_I=torch.randn(num_clips, identity_dim),
        subjects=torch.arange(num_clips) % 2,
        apex=torch.zeros(num_clips, 3, APEX_SIZE, APEX_SIZE),
        has_apex=torch.ones(num_clips, dtype=torch.bool),
    )
    return partial(
        play_turn,
        wrap(recogniser),
        wrap(player),
        optimiser_of(recogniser),
        optimiser_of(player),
        batch,
        Weights(config.identity_weight, config.apex_weight),
        config.estimator_steps,
    )


def model_config(config: TrainConfig, num_classes: int, identity_dim: int) -> ModelConfig:
    return ModelConfig(
        num_classes=num_classes,
        identity_dim=identity_dim,
        num_planes=config.what.num_planes,
        gain=config.what.gain,
        width=config.width,
        code_dim=config.code_dim,
        pooling=config.pooling,
        dropout=config.dropout,
    )


def _share(side: str, rank: int, setup: Mapping[str, Any]) -> Rows:
    rows = setup.get(f"rows-{side}")
    if rows is None:
        rows = list(ray.train.get_dataset_shard(f"{side}-{rank}").iter_rows())
    return load_rows(rows, setup["identity_dim"])


def _all_reduce(values: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def _standardisation(rows: Rows, device: torch.device) -> Standardisation:
    z_I = rows.z_I.double().to(device)
    count = torch.tensor([len(rows)], dtype=torch.float64, device=device)
    sums = _all_reduce(torch.cat([z_I.sum(0), (z_I**2).sum(0), count]))
    total, total_squares = sums[:-1].chunk(2)
    return Standardisation.of(total.cpu(), total_squares.cpu(), float(sums[-1]))


def _schedule(step: int, total_steps: int) -> float:
    """Share of the highest learning rate: linear over the first 5 % of the steps, then cosine."""
    warm_up = max(1, total_steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))


def _stopped(
    error: NotFinite, config: TrainConfig, step: int, num_steps: int, location: str
) -> NotFinite:
    """What is said of a training that has diverged at a step, counted from 0 over all epochs."""
    rate = config.lr * _schedule(step, config.epochs * num_steps)
    checkpoint = newest_checkpoint(location)
    return NotFinite(
        f"run {config.run} has stopped in epoch {step // num_steps + 1}, step "
        f"{step % num_steps + 1} of {num_steps}, at the learning rate {rate:g} (player 1's: "
        f"{config.estimator_lr:g}): {error}; its last good checkpoint is {checkpoint or 'none'}; "
        "start another --run with a lower --lr or --estimator-lr"
    )


def _check_finite(state: Mapping[str, Any]) -> None:
    """Raises NotFinite where a number in it, or in what is in it, is infinite or none."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            _check_finite({f"{name} {key}": part for key, part in value.items()})
        elif isinstance(value, Tensor) and not torch.isfinite(value).all():
            raise NotFinite(f"{name} is not finite")


def _mean_over_workers(
    sums: Mapping[str, Tensor], num_steps: int, num_clips: int
) -> dict[str, float]:
    """Sums over one worker's steps → means over all workers', as `train/…`."""
    names = sorted(sums)
    counts = [num_clips if name == "num_correct" else num_steps for name in names]
    totals = torch.stack([sums[name].double() for name in names])
    stacked = _all_reduce(torch.cat([totals, totals.new_tensor(counts)]))
    values, all_counts = stacked.chunk(2)
    figures = dict(zip(names, (values / all_counts).tolist(), strict=True))
    figures["accuracy"] = figures.pop("num_correct")
    return {f"train/{name}": value for name, value in figures.items()}


@torch.no_grad()
def predict(recogniser: Recogniser, clips: BatchMaker, batch_size: int) -> Predictions:
    """This worker's clips, each once and unvaried."""
    recogniser.eval()
    parts: dict[str, list[np.ndarray]] = {"labels": [], "logits": [], "z_R": [], "z_I": []}
    for batch in clips.in_order(batch_size):
        z_R, logits, _ = recogniser(batch.planes, batch.mask, batch.z_I)
        values = {"labels": batch.labels, "logits": logits, "z_R": z_R, "z_I": batch.z_I}
        for name, value in values.items():
            parts[name].append(value.cpu().numpy())
    widths = {
        "labels": (),
        "logits": (recogniser.classifier.out_features,),
        "z_R": (recogniser.classifier.in_features,),
        "z_I": (clips.rows.z_I.shape[1],),
    }
    arrays = {
        name: np.concatenate([np.zeros((0, *widths[name]), np.float32), *values])
        for name, values in parts.items()
    }
    arrays["labels"] = arrays["labels"].astype(np.int64)
    return Predictions(
        **arrays, subjects=list(clips.rows.subjects), clip_ids=list(clips.rows.clip_ids)
    )


def _gather(share: Predictions) -> Predictions:
    """Every worker's clips on every worker: nothing dropped, nothing twice."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Predictions.concatenate([share])
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, share)
    return Predictions.concatenate(parts)


def _validation_figures(validation: Predictions, num_classes: int) -> dict[str, float]:
    predicted = validation.logits.argmax(1)
    confusion = evaluate.confusion_matrix(validation.labels, predicted, num_classes)
    figures = {
        **evaluate.recognition(confusion),
        "cross_entropy": evaluate.cross_entropy(validation.logits, validation.labels),
    }
    return {f"held_out/{name}": value for name, value in figures.items()}


def _progress_line(
    epoch: int, figures: Mapping[str, float], config: TrainConfig, spent_seconds: float
) -> str:
    left = spent_seconds / epoch * (config.epochs - epoch)
    apex = f"apex {figures['train/apex_error']:.4f}  " if config.apex_weight else ""
    return (
        f"epoch {epoch:3d}/{config.epochs}  loss {figures['train/loss']:.3f}  "
        f"CE {figures['train/cross_entropy']:.3f}  identity {figures['train/identity_term']:.3f}  "
        f"player 1 {figures['train/estimator_loss']:.3f}  {apex}"
        f"train acc {figures['train/accuracy']:.3f}  held-out acc "
        f"{figures['held_out/accuracy']:.3f}  UAR {figures['held_out/uar']:.3f}  "
        f"{figures['time/epoch_seconds']:.1f} s, {left:.0f} s left"
    )


def _finish(
    tracker: tracking.Tracker,
    recogniser: Recogniser,
    training: Predictions,
    validation: Predictions,
    history: Sequence[Mapping[str, float]],
    cost: Mapping[str, float],
    setup: Mapping[str, Any],
) -> None:
    """Measure, log and record what the run ends with."""
    classes = setup["classes"]
    confusion = evaluate.confusion_matrix(
        validation.labels, validation.logits.argmax(1), len(classes)
    )
    extra = {
        **evaluate.leakage(training, validation, setup["config"]["seed"]),
        **{f"recall/{name}": value for name, value in evaluate.recalls(confusion, classes).items()},
        **cost,
    }
    tracker.complete_epochs(history)
    tracker.log_figures(extra, len(history))
    figures = {**history[-1], **extra}
    title = f"held-out subjects, accuracy {figures['held_out/accuracy']:.3f}"
    tracker.log_figure(evaluate.confusion_figure(confusion, classes, title), "confusion.png")
    tracker.log_figure(evaluate.curves_figure(history), "curves.png")
    tracker.log_figure(evaluate.embedding_figure(validation, classes), "embedding.png")
    tracker.log_predictions(training, validation)
    kept = {name: float(value) for name, value in figures.items() if np.isfinite(value)}
    card = replace(setup["card"], figures=kept)
    tracker.log_model(Predictor.of(recogniser, card.network), card)
    results = Results(
        kept,
        confusion.tolist(),
        setup["run_id"],
        len(training.labels),
        setup["held_out"],
    )
    Folder(setup["location"]).write(
        RESULTS_NAME, (json.dumps(asdict(results), indent=1) + "\n").encode()
    )


# ---- checkpoints ---------------------------------------------------------------------------------


def _save(
    setup: Mapping[str, Any],
    stateful: Mapping[str, Any],
    history: list[dict[str, float]],
    spent_seconds: float,
    standardise: Standardisation,
) -> None:
    """Write a checkpoint, then its seal; then remove the one before."""
    state = {
        **{name: part.state_dict() for name, part in stateful.items()},
        "history": history,
        "spent_seconds": spent_seconds,
        "z_I_mean": standardise.mean,
        "z_I_std": standardise.std,
        "config": setup["config"],
        "classes": setup["classes"],
        "mlflow_run_id": setup["run_id"],
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    seal = {"epoch": len(history), "sha256": hashlib.sha256(data).hexdigest()}
    run_folder = Folder(setup["location"])
    folder = run_folder.folder(_checkpoint_name(len(history)))
    folder.write(STATE_NAME, data)
    folder.write(SEAL_NAME, json.dumps(seal).encode())
    for name in _checkpoint_names(run_folder):
        if name != _checkpoint_name(len(history)):
            run_folder.delete_folder(name)


def _restore(
    location: str, stateful: Mapping[str, Any], device: torch.device
) -> tuple[list[dict[str, float]], float]:
    """Load the newest state → the figures of the epochs done, and the seconds they took.

    Raises:
        NotFinite: it is of a run that had diverged.
    """
    checkpoint = newest_checkpoint(location)
    if checkpoint is None:
        return [], 0.0
    data = Folder(checkpoint).read(STATE_NAME)
    state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    try:
        _check_finite({name: state[name] for name in stateful})
    except NotFinite as error:
        raise NotFinite(
            f"{checkpoint}: {error}: the run had diverged before it was written, and can't be gone "
            "on with; start another --run with a lower --lr or --estimator-lr"
        ) from error
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    return state["history"], state["spent_seconds"]


def newest_checkpoint(location: str) -> str | None:
    """The complete checkpoint of the latest epoch in a run's folder.

    A kill can leave a checkpoint half written: one counts as complete when its state has the hash
    that its seal gives. The run may be going on, and remove one when the next is written.
    """
    folder = Folder(location)
    seen: list[str] | None = None
    while True:
        names = _checkpoint_names(folder)
        for name in reversed(names):
            if _is_sealed(folder.folder(name)):
                return folder.location_of(name)
        # The next one is complete before anything of the last is removed: the second look finds it.
        if names == seen:
            return None
        seen = names


def _checkpoint_name(epoch: int) -> str:
    return f"epoch-{epoch:05d}"


def _checkpoint_names(folder: Folder) -> list[str]:
    """By epoch, the latest last."""
    return [name for name in folder.folder_names() if name.startswith("epoch-")]


def _is_sealed(folder: Folder) -> bool:
    if not folder.exists(SEAL_NAME) or not folder.exists(STATE_NAME):
        return False
    try:
        seal, state = folder.read(SEAL_NAME), folder.read(STATE_NAME)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False  # it has been removed meanwhile
        raise
    try:
        digest: str = json.loads(seal)["sha256"]
    except ValueError:
        return False
    return hashlib.sha256(state).hexdigest() == digest


# ---- the driver ----------------------------------------------------------------------------------


def run(
    config: TrainConfig,
    parent: Parent | None = None,
    parallel_runs: int = 1,
    rows: Sequence[dict[str, Any]] | None = None,
) -> Results:
    """One run, from the beginning or from its last checkpoint.

    Args:
        config: of one run: where it has folds, `fold` says which.
        parent: a run of several folds or seeds that this one is a part of; it then says nothing of
            its epochs.
        parallel_runs: how many such runs share this machine.
        rows: `read_all_rows(config)`, where several runs share them. With these and one worker it
            trains in this very process (Ray Train's local mode).

    Raises:
        InputError: a data set, split or request that can't be trained on; a run of this name with
            other settings, data or classes.
    """
    description = read_description(config.data)
    index = read_index(config.data)
    split = split_clips(index, config)
    config = without_effectless(config, index)
    doubts = check_training_clips(config, index, split, description.classes)
    location = location_of(config)
    held_out = who_is_held_out(index, split)
    record = read_record(config, description, held_out)
    results = None if record is None else read_results(location)
    if results is not None:
        tracking.connect()
        tracking.mark_finished(results.mlflow_run_id)
        if parent is None:
            _say(f"run {config.run} is finished already; nothing to do (give another --run)")
        return results

    join_cluster(for_training=True)
    # Ray Train looks every 2 s whether its workers have ended.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    placement = place_workers(
        cluster_nodes(), config.workers, config.device, config.cpus_per_worker
    )
    if parent is None:
        for warning in filter(None, [placement.warning, *doubts]):
            _say(f"warning: {warning}")
        if index.num_unlabelled:
            _say(f"{index.num_unlabelled} clips without a label are left out")
        _say(
            f"run {config.run}: {len(split.train)} clips to train on, {len(split.validation)} to "
            f"validate on, of {len(description.classes)} classes; {config.workers} workers with "
            f"{placement.cpus:g} CPUs{' and a GPU' if placement.use_gpu else ''} each"
        )

    tracking.connect()
    if record is not None and parent is None:
        found = newest_checkpoint(location)
        _say(
            "it was started before: "
            + (
                "going on from its last checkpoint"
                if found
                else "no checkpoint yet, so from the beginning"
            )
        )
    if record is None:
        record = {
            "config": asdict(config),
            "classes": description.classes,
            "data_digest": description.digest,
            "held_out": held_out,
            "mlflow_run_id": create_tracked_run(config, description, parent),
        }
        Folder(location).write(RECORD_NAME, (json.dumps(record, indent=1) + "\n").encode())

    run_id = record["mlflow_run_id"]
    setup = {
        "run_id": run_id,
        "tracking_uri": tracking.tracking_uri(),
        "location": location,
        "parallel_runs": parallel_runs,
        "held_out": held_out,
        "shows_epochs": parent is None,
    }
    try:
        _fit(config, description, index, split, placement, setup, rows)
    except BaseException:
        tracking.end_run(run_id, succeeded=False)
        raise
    tracking.end_run(run_id, succeeded=True)
    results = read_results(location)
    assert results is not None, f"{location}: the run ended without {RESULTS_NAME}"
    if parent is None:
        _say(_final_lines(results, config))
    return results


def read_results(location: str) -> Results | None:
    """What a run in this folder ended with; None where it has not ended."""
    folder = Folder(location)
    if not folder.exists(RESULTS_NAME):
        return None
    return Results(**json.loads(folder.read(RESULTS_NAME)))


def split_clips(index: ClipIndex, config: TrainConfig) -> Split:
    """Which clips are trained on; a function of the data set and the configuration."""
    if config.split == "column":
        split = split_by_column(index)
        subjects = dict(zip(index.clip_ids, index.subjects, strict=True))
        shared = {subjects[c] for c in split.train} & {subjects[c] for c in split.validation}
        if shared - {None}:
            _say(
                f"warning: --split column: {len(shared - {None})} subjects are on both sides of "
                "the data set's own split, so its figures are not subject-independent"
            )
        return split
    if config.folds:
        splits = split_into_folds(index, config.folds, config.seed)
        if not 0 <= config.fold < len(splits):
            raise InputError(
                f"--fold {config.fold}: there are {len(splits)} folds, numbered from 0"
            )
        return splits[config.fold]
    return split_by_subject(
        index,
        seed=config.seed,
        val_fraction=config.val_fraction,
        val_subjects=[name for name in config.val_subjects.split(",") if name],
    )


def check_training_clips(
    config: TrainConfig, index: ClipIndex, split: Split, classes: Sequence[str]
) -> list[str]:
    """What is doubtful in the clips that are to be trained on, a line for each.

    Raises:
        InputError: fewer of them than workers, or all of one class.
    """
    count = len(split.train)
    if count < config.workers:
        raise InputError(
            f"--workers {config.workers}: more than there are training clips ({count}); give fewer"
        )
    label_of = dict(zip(index.clip_ids, index.labels, strict=True))
    trained = {label_of[clip_id] for clip_id in split.train}
    if len(trained) == 1:
        (only,) = trained
        raise InputError(
            f"--data {config.data}: all {count} training clips are {classes[only]} "
            f"({rows_named(split.train)}), so that a model would always say so; train on clips of "
            "two classes or more"
        )
    doubts = []
    if count < config.batch_size:
        doubts.append(
            f"--batch-size {config.batch_size}: there are {count} training clips, so some are in a "
            "step more than once"
        )
    for label, name in enumerate(classes):
        held_out = [clip_id for clip_id in split.validation if label_of[clip_id] == label]
        if label not in trained:
            doubts.append(
                f"no training clip is {name}, so no clip will be recognised as it"
                + (f": {rows_named(held_out)} can only be wrong" if held_out else "")
            )
        elif says_nothing(name):
            of_it = [clip_id for clip_id in index.clip_ids if label_of[clip_id] == label]
            doubts.append(f"the class {name!r} ({rows_named(of_it)}) looks like a missing value")
    return doubts


def without_effectless(config: TrainConfig, index: ClipIndex) -> TrainConfig:
    """Without options that this data set has no use for, each with a warning.

    Raises:
        InputError: gradient reversal without subjects.
    """
    if config.game == "gradient-reversal" and not any(index.subjects):
        raise InputError(
            "--game gradient-reversal: it names the training subjects, and no clip has one; add a "
            "`subject` column to the manifest and extract again, or use --game min-min"
        )
    if config.apex_weight and not index.num_annotated_apexes:
        _say(
            f"warning: --mu {config.apex_weight:g} has no effect: no clip has its apex annotated "
            "(column `apex_frame` of the manifest)"
        )
        return replace(config, apex_weight=0.0)
    return config


def location_of(config: TrainConfig) -> str:
    """The folder of the run, or of the protocol."""
    return absolute_location(below(config.storage, config.run))


def read_record(
    config: TrainConfig, description: Description, held_out: Sequence[str]
) -> dict[str, Any] | None:
    """What an earlier start of the run has noted; None where there was none.

    Raises:
        InputError: it was started with other settings, data or classes, or other people held out.
    """
    folder = Folder(location_of(config))
    if not folder.exists(RECORD_NAME):
        return None
    record: dict[str, Any] = json.loads(folder.read(RECORD_NAME))
    check_same(record, config, description)
    # An earlier cfer did not note it; of the cuts that there are, it made folds alone otherwise.
    noted = record.get("held_out", [] if config.folds else held_out)
    if noted != list(held_out):
        raise InputError(
            f"--run {config.run}: it was started with other people held out, by a cfer that cuts "
            "the data set in another way; give another --run name"
        )
    return record


def check_same(record: Mapping[str, Any], config: TrainConfig, description: Description) -> None:
    """Raises InputError where a run was started with other settings, data or classes."""
    evaluate.check_classes(f"run {config.run}", record["classes"], config.data, description.classes)
    given = {**asdict(config), "data set (SHA-256)": description.digest}
    known = {**record["config"], "data set (SHA-256)": record["data_digest"]}
    for name, value in given.items():
        # What `--method` is short for is compared itself.
        if name not in (*OPERATIONAL, "method") and known.get(name) != value:
            what = name if " " in name else flag(name)
            raise InputError(
                f"--run {config.run}: it was started with {what} {known.get(name)}, and now {what} "
                f"is {value}; give the same to go on with it, or another --run name"
            )


def create_tracked_run(
    config: TrainConfig,
    description: Description,
    parent: Parent | None,
    role: str = "run",
) -> str:
    """A run in MLflow, with all that one needs to do it again → its id."""
    parameters = {SHORT_NAMES.get(name, name): value for name, value in asdict(config).items()}
    parameters |= {
        "data_digest": description.digest,
        "identity_network": description.identity["name"],
        **{f"codec_{name}": value for name, value in description.codec.items()},
    }
    return tracking.create_run(
        config.experiment,
        # Where runs of several methods are compared, the fold alone does not say which is which.
        config.run if parent is None else f"{config.run.split('/')[0]}, {parent.name}",
        parameters,
        tags={
            **(
                {"cfer.role": "fold"}
                if parent
                else {
                    "cfer.role": role,
                    tracking.COMMAND_TAG: f"python -m cfer.train {command_of(config)}",
                }
            ),
            "cfer.figures": "of the last epoch; no model selection on held-out subjects",
        },
        dataset={
            "name": description.name,
            "digest": description.digest,
            "location": absolute_location(config.data),
        },
        parent_id=None if parent is None else parent.run_id,
    )


def _fit(
    config: TrainConfig,
    description: Description,
    index: ClipIndex,
    split: Split,
    placement: Placement,
    setup: dict[str, Any],
    rows: Sequence[dict[str, Any]] | None,
) -> None:
    # Read before the workers reserve their CPUs, and dealt in runs of the sorted clips: which
    # worker has which clip is fixed, none is dropped, and shares differ by one at most.
    datasets: dict[str, Any] = {}
    in_process = rows is not None and config.workers == 1
    by_id = {row["clip_id"]: row for row in rows or []}
    for side, clip_ids in (("train", split.train), ("validation", split.validation)):
        if in_process:
            setup[f"rows-{side}"] = [by_id[clip_id] for clip_id in clip_ids]
            continue
        clips = read_clips(config.data, clip_ids, config.what, side == "train").materialize()
        assert clips.count() == len(clip_ids), f"{clips.count()} of {len(clip_ids)} {side} clips"
        cuts = _cuts(len(clip_ids), config.workers)
        shares = clips.split_at_indices(cuts[1:-1]) if config.workers > 1 else [clips]
        datasets |= {f"{side}-{rank}": share for rank, share in enumerate(shares)}
    subjects = dict(zip(index.clip_ids, index.subjects, strict=True))
    setup |= {
        "config": asdict(config),
        "classes": description.classes,
        "identity_dim": int(description.identity["dimension"]),
        "num_train": len(split.train),
        "train_subjects": sorted({s for c in split.train if (s := subjects[c]) is not None}),
        "class_weights": _class_weights(config, index, split, len(description.classes)),
        "card": ModelCard(
            classes=tuple(description.classes),
            size=description.codec["size"],
            codec=description.codec_settings,
            window_gops=description.settings["window_gops"],
            what=config.what,
            network=model_config(
                config, len(description.classes), int(description.identity["dimension"])
            ),
            origin={
                "command": f"python -m cfer.train {command_of(config)}",
                "data_set": description.name,
                "data_digest": description.digest,
                "identity_network": description.identity["name"],
                **tracking.code_version(),
            },
        ),
    }
    if in_process:
        # It says at every run that it is one of this kind.
        logging.getLogger("ray.train").setLevel(logging.ERROR)
    folder = Folder(setup["location"])
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=setup,
        torch_config=WorkersLinkThemselves(),
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_process else config.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker={
                "CPU": placement.cpus,
                **({"GPU": 1} if placement.use_gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as its predecessor
            name=config.run.replace("/", "-"),
            storage_path=f"{folder.path}/ray",
            # Ray would take a name with a `#` or a `?` for a URI.
            storage_filesystem=folder.filesystem,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    if in_process:
        trainer.fit()
    else:
        _fit_again_and_again(trainer, setup)


def _fit_again_and_again(trainer: TorchTrainer, setup: Mapping[str, Any]) -> None:
    """Until it is done, as long as it gets on.

    Raises:
        InputError: of a worker.
        WorkerError: it does not get on.
    """
    checkpoint = newest_checkpoint(setup["location"])
    failures = 0
    while True:
        try:
            _beside_the_main_thread(trainer.fit)
            return
        except ray.train.WorkerGroupError as error:
            causes = list(error.worker_failures.values())
            tracebacks = str(error)
        for cause in causes:
            if isinstance(cause, InputError):
                raise cause
        before, checkpoint = checkpoint, newest_checkpoint(setup["location"])
        failures = 1 if checkpoint != before else failures + 1
        lost = any(isinstance(cause, ray.exceptions.RayError) for cause in causes)
        reason = _last_line(causes[0])
        if failures >= (MOST_LOSSES if lost else MOST_ERRORS):
            where = f"after {checkpoint.rsplit('/', 1)[-1]}" if checkpoint else "in its first epoch"
            failed = WorkerError(f"training failed {failures} times {where}: {reason}")
            failed.where = f"{tracebacks.strip()}\n"
            raise failed
        _say(
            f"{'a worker was lost' if lost else 'a worker failed'} ({reason}); going on from the "
            f"{'last checkpoint' if checkpoint else 'beginning'}"
        )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _beside_the_main_thread(work: Callable[[], Any]) -> None:
    """In the main thread, Ray Train would take Ctrl-C for itself, and end with status 0."""
    outcome: Future[Any] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # for the thread that waits
            outcome.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    outcome.result()


def _cuts(num_clips: int, workers: int) -> list[int]:
    """Where the shares of the workers begin and end."""
    return [num_clips * rank // workers for rank in range(workers + 1)]


def read_all_rows(config: TrainConfig) -> list[dict[str, Any]]:
    """Every labelled clip as `cfer.data.read_clips` gives it, for the runs that share the input."""
    index = read_index(config.data)
    clips = read_clips(config.data, index.clip_ids, config.what, for_training=True)
    return list(clips.iter_rows())


def _class_weights(
    config: TrainConfig, index: ClipIndex, split: Split, num_classes: int
) -> list[float] | None:
    """Each class's weight, inverse to its clips in training; the mean over these clips is 1."""
    if config.class_weights == "none":
        return None
    labels = dict(zip(index.clip_ids, index.labels, strict=True))
    counts = np.bincount([labels[c] for c in split.train], minlength=num_classes)
    present = np.count_nonzero(counts)
    return [float(counts.sum() / (present * count)) if count else 0.0 for count in counts]


def _final_lines(results: Results, config: TrainConfig) -> str:
    figures = results.figures

    def probe(side: str) -> str:
        name = f"leakage/linear_{side}"
        if name not in figures:
            return "-"
        return f"{figures[name]:.3f} (chance {figures[f'leakage/chance_{side}']:.3f})"

    return (
        f"run {config.run}, last epoch, held-out subjects: accuracy "
        f"{figures['held_out/accuracy']:.3f}, UAR {figures['held_out/uar']:.3f}, macro-F1 "
        f"{figures['held_out/macro_f1']:.3f}\n"
        f"  identity in the code: strict probe {probe('train')} on training subjects, "
        f"{probe('held_out')} on held-out ones; R² {figures.get('leakage/r2', math.nan):.3f}\n"
        f"  model: runs:/{results.mlflow_run_id}/{tracking.MODEL_NAME}"
    )


def _say(text: str) -> None:
    # Not print(): in its workers Ray Train replaces it by one that says everything twice.
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
