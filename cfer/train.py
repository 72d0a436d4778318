"""Train a recogniser on the shards of a data set: Ray Train DDP over Ray Data.

    python -m cfer.train --data SHARDS --workers 2
    python -m cfer.train --data SHARDS --run first --lambda 1 --mu 0.1     # the game
    python -m cfer.train --data SHARDS --run cv --folds 10                 # all ten folds
    python -m cfer.evaluate cfer                                           # the table of the runs

Subjects are held out for validation. Every figure that a run ends with is from its last epoch:
nothing is chosen by looking at the held-out subjects. Killed and started again with the same
`--run`, it goes on from its last complete checkpoint to the result of an undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import ray
import ray.data
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor

from cfer import evaluate, tracking
from cfer.cluster import join_cluster
from cfer.data import (
    Augmentation,
    BatchMaker,
    ClipIndex,
    FrameRule,
    Rows,
    Split,
    Standardisation,
    load_rows,
    parse_frame_rule,
    read_clips,
    read_index,
    split_by_column,
    split_by_subject,
)
from cfer.errors import InputError, exit_with_message
from cfer.evaluate import Predictions
from cfer.game import Weights, play_turn
from cfer.mi import IdentityEstimator, identity_moments, log_likelihood, vclub
from cfer.model import ModelConfig, Recogniser
from cfer.shards import Description, read_description
from cfer.storage import Folder, absolute_location

STATE_NAME = "state.pt"
SEAL_NAME = "state.json"
RECORD_NAME = "run.json"
RAY_SNAPSHOT_NAME = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The comment of each field is its help text on the command line."""

    data: str  # folder or URI of the shards that pipeline/extract.py wrote
    run: str = ""  # name of the run; the same name goes on with it (default: made from the time)
    workers: int = 1  # training processes
    device: str = "auto"  # auto, cpu or gpu (one GPU a worker)
    cpus_per_worker: float = 0.0  # CPUs to reserve for each worker (default: what leaves room)
    storage: str = "runs"  # folder or URI for checkpoints; shared by all nodes of a cluster
    experiment: str = "cfer"  # MLflow experiment
    epochs: int = 40  # passes over the training clips
    batch_size: int = 16  # clips per step, over all workers
    lr: float = 2e-3  # player 2's highest learning rate (AdamW: 5 % warm-up, then cosine to 0)
    estimator_lr: float = 2e-3  # player 1's learning rate
    estimator_steps: int = 2  # player 1's steps per turn
    weight_decay: float = 0.02  # player 2's
    identity_weight: float = 0.0  # λ: weight of the identity bound vCLUB; 0.3 to 1 is a good start
    apex_weight: float = 0.0  # μ: weight of rebuilding the annotated apex picture
    label_smoothing: float = 0.1  # share of the target spread over all classes, in [0, 1)
    frames: str = "last"  # `last` P-frame of each GOP, or a number of P-frames per clip
    width: int = 16  # channels of the encoder's first stage
    code_dim: int = 64  # dimension of the expression code
    dropout: float = 0.0  # share of the code zeroed before the classifier, in [0, 1)
    flip: float = 0.5  # probability of a horizontal flip
    shift_pixels: int = 8  # largest random shift, pixels of the crop
    gain_jitter: float = 0.3  # residuals are multiplied by up to exp(± this)
    seed: int = 0  # of weights, order, augmentation and the choice of subjects
    split: str = "subjects"  # hold out `subjects`, or follow the data set's own split `column`
    val_fraction: float = 0.25  # share of the subjects to hold out
    val_subjects: str = ""  # hold out exactly these subjects, separated by commas
    folds: int = 0  # cut the subjects into this many folds (with the seed), hold out one
    fold: int = -1  # which fold, from 0 (default: one run after the other for all of them)

    def __post_init__(self) -> None:
        at_least = {
            **dict.fromkeys(("workers", "epochs", "batch_size", "estimator_steps", "code_dim"), 1),
            **dict.fromkeys(("cpus_per_worker", "identity_weight", "apex_weight"), 0),
            **dict.fromkeys(("weight_decay", "shift_pixels", "gain_jitter", "folds", "seed"), 0),
        }
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: give {least} or more")
        for name in ("lr", "estimator_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: give more than 0")
        for name in ("label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: give 0 or more, below 1")
        if not 0 < self.val_fraction < 1:
            raise InputError(f"--val-fraction {self.val_fraction}: give a share between 0 and 1")
        if not 0 <= self.flip <= 1:
            raise InputError(f"--flip {self.flip}: give a probability, 0 to 1")
        if self.width < 4 or self.width % 4:
            raise InputError(f"--width {self.width}: give a multiple of 4")
        if self.fold >= 0 and not self.folds:
            raise InputError(f"--fold {self.fold}: it needs --folds, the number of folds")
        if sum([self.split == "column", bool(self.val_subjects), self.folds > 0]) > 1:
            raise InputError("--split column, --val-subjects, --folds: give one of the three")
        if "/" in self.run:
            raise InputError(f"--run {self.run}: a name, not a path; --storage says where")
        parse_frame_rule(self.frames)

    @property
    def frame_rule(self) -> FrameRule:
        return parse_frame_rule(self.frames)

    @property
    def weights(self) -> Weights:
        return Weights(self.identity_weight, self.apex_weight, self.label_smoothing)

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.flip, self.shift_pixels, self.gain_jitter)


# Where and with how many processes a run is computed may change between two starts of it.
OPERATIONAL = ("data", "run", "workers", "device", "cpus_per_worker", "storage", "experiment")
CHOICES = {"device": ("auto", "cpu", "gpu"), "split": ("subjects", "column")}
SHORT_NAMES = {"identity_weight": "lambda", "apex_weight": "mu"}


def _flag(name: str) -> str:
    return "--" + SHORT_NAMES.get(name, name).replace("_", "-")


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


def _cluster_nodes() -> list[Node]:
    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


# ---- in a training worker ------------------------------------------------------------------------


def train_worker(setup: dict[str, Any]) -> None:
    """What each Ray Train worker does; `setup` is what `train` hands over."""
    config = TrainConfig(**setup["config"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        cores = os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    torch.manual_seed(config.seed)

    # Ray Train logs every report whole, under a logger that is named by its file's path.
    logging.disable(logging.INFO)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # DDP's advice on the memory layout of 1×1 convolutions, where both layouts are the same.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    tracking.connect(setup["tracking_uri"])
    tracker = tracking.Tracker(setup["run_id"]) if rank == 0 else tracking.NoTracker()
    train_rows = _share("train", rank, setup["identity_dim"])
    val_rows = _share("validation", rank, setup["identity_dim"])
    standardise = _standardisation(train_rows, device)
    train_clips = BatchMaker(train_rows, config.frame_rule, standardise, device)
    val_clips = BatchMaker(val_rows, config.frame_rule, standardise, device)

    # The same number of full batches on every rank, or one would wait for another for ever.
    batch_size = max(1, min(config.batch_size // world_size, setup["smallest_share"]))
    num_steps = -(-setup["largest_share"] // batch_size)

    model_config = ModelConfig(
        len(setup["classes"]),
        setup["identity_dim"],
        config.width,
        config.code_dim,
        config.dropout,
    )
    recogniser = Recogniser(model_config, with_apex=config.apex_weight > 0)
    estimator = IdentityEstimator(config.code_dim, setup["identity_dim"])
    wrapped_recogniser = prepare_model(recogniser)
    wrapped_estimator = prepare_model(estimator)
    optimiser = torch.optim.AdamW(
        recogniser.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    estimator_optimiser = torch.optim.AdamW(estimator.parameters(), lr=config.estimator_lr)
    stateful = {
        "recogniser": recogniser,
        "estimator": estimator,
        "recogniser_optimiser": optimiser,
        "estimator_optimiser": estimator_optimiser,
    }
    history, spent_seconds = _restore(setup["checkpoint"], stateful, device)

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
        for step, batch in enumerate(batches, start=epoch * num_steps):
            for group in optimiser.param_groups:
                group["lr"] = config.lr * _schedule(step, total_steps)
            terms = play_turn(
                wrapped_recogniser,
                wrapped_estimator,
                optimiser,
                estimator_optimiser,
                batch,
                config.weights,
                config.estimator_steps,
            )
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value
        figures = _mean_over_workers(sums, num_steps, num_steps * batch_size)
        validation = _gather(predict(recogniser, val_clips, config.batch_size))
        figures |= _validation_figures(validation, estimator, len(setup["classes"]))
        figures["epoch"] = epoch + 1
        figures["learning_rate"] = optimiser.param_groups[0]["lr"]
        figures["epoch_seconds"] = time.perf_counter() - started
        history.append(figures)
        spent_seconds += figures["epoch_seconds"]

        if epoch + 1 == config.epochs:
            training = _gather(predict(recogniser, train_clips, config.batch_size))
            if rank == 0:
                figures |= evaluate.leakage(training, validation, config.seed)
                _log_results(tracker, recogniser, validation, history, setup)
        tracker.log_metrics({k: v for k, v in figures.items() if k != "epoch"}, epoch + 1)
        if rank == 0:
            _say(_progress_line(figures, config, spent_seconds))
        _report(figures, stateful, history, spent_seconds, standardise, setup, rank)


def _share(side: str, rank: int, identity_dim: int) -> Rows:
    return load_rows(list(ray.train.get_dataset_shard(f"{side}-{rank}").iter_rows()), identity_dim)


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


def _mean_over_workers(
    sums: Mapping[str, Tensor], num_steps: int, num_clips: int
) -> dict[str, float]:
    """Sums over one worker's steps → means over all workers', as `train_…`."""
    names = sorted(sums)
    counts = [num_clips if name == "num_correct" else num_steps for name in names]
    totals = torch.stack([sums[name].double() for name in names])
    stacked = _all_reduce(torch.cat([totals, totals.new_tensor(counts)]))
    values, all_counts = stacked.chunk(2)
    figures = dict(zip(names, (values / all_counts).tolist(), strict=True))
    figures["accuracy"] = figures.pop("num_correct")
    return {f"train_{name}": value for name, value in figures.items()}


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


@torch.no_grad()
def _validation_figures(
    validation: Predictions, estimator: IdentityEstimator, num_classes: int
) -> dict[str, float]:
    confusion = evaluate.confusion_matrix(
        validation.labels, validation.logits.argmax(1), num_classes
    )
    device = next(estimator.parameters()).device
    z_I = torch.from_numpy(validation.z_I).to(device)
    mean, log_variance = estimator(torch.from_numpy(validation.z_R).to(device))
    # Every worker has all clips here, so the moments over the workers are those of the set.
    bound = vclub(mean, log_variance, z_I, identity_moments(z_I)).mean()
    figures = {
        **evaluate.recognition(confusion),
        "cross_entropy": evaluate.cross_entropy(validation.logits, validation.labels),
        "vclub": float(bound),
        "estimator_nll": float(-log_likelihood(mean, log_variance, z_I).mean()),
    }
    return {f"val_{name}": value for name, value in figures.items()}


def _progress_line(figures: Mapping[str, float], config: TrainConfig, spent_seconds: float) -> str:
    epoch = int(figures["epoch"])
    left = spent_seconds / epoch * (config.epochs - epoch)
    apex = f"apex {figures['train_apex_error']:.4f}  " if config.apex_weight else ""
    return (
        f"epoch {epoch:3d}/{config.epochs}  loss {figures['train_loss']:.3f}  "
        f"CE {figures['train_cross_entropy']:.3f}  vCLUB {figures['train_vclub']:.3f}  "
        f"NLL q {figures['train_estimator_nll']:.3f}  {apex}"
        f"train acc {figures['train_accuracy']:.3f}  val acc {figures['val_accuracy']:.3f}  "
        f"UAR {figures['val_uar']:.3f}  {figures['epoch_seconds']:.1f} s, {left:.0f} s left"
    )


def _log_results(
    tracker: tracking.Tracker,
    recogniser: Recogniser,
    validation: Predictions,
    history: Sequence[Mapping[str, float]],
    setup: Mapping[str, Any],
) -> None:
    classes = setup["classes"]
    confusion = evaluate.confusion_matrix(
        validation.labels, validation.logits.argmax(1), len(classes)
    )
    title = f"held-out subjects, accuracy {history[-1]['val_accuracy']:.3f}"
    tracker.log_figure(evaluate.confusion_figure(confusion, classes, title), "confusion.png")
    tracker.log_figure(evaluate.curves_figure(history), "curves.png")
    tracker.log_table({"classes": classes, "confusion": confusion.tolist()}, "confusion.json")
    tracker.log_model(recogniser, setup["description"])


# ---- checkpoints ---------------------------------------------------------------------------------


def _report(
    figures: dict[str, float],
    stateful: Mapping[str, Any],
    history: list[dict[str, float]],
    spent_seconds: float,
    standardise: Standardisation,
    setup: Mapping[str, Any],
    rank: int,
) -> None:
    """Hand the epoch's figures and, on rank 0, the whole state to Ray Train. A barrier."""
    if rank != 0:
        ray.train.report(figures)
        return
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
    seal = {"epoch": len(history), "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / STATE_NAME).write_bytes(buffer.getbuffer())
        (Path(folder) / SEAL_NAME).write_text(json.dumps(seal))
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(
    checkpoint: str | None, stateful: Mapping[str, Any], device: torch.device
) -> tuple[list[dict[str, float]], float]:
    """Load the newest state: Ray Train's, where it restarts a worker, or the one of an earlier
    start of this run → the epochs done, and the seconds they took."""
    current = ray.train.get_checkpoint()
    if current is not None:
        with current.as_directory() as folder:
            data = (Path(folder) / STATE_NAME).read_bytes()
    elif checkpoint is not None:
        data = Folder(checkpoint).read(STATE_NAME)
    else:
        return [], 0.0
    state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    return state["history"], state["spent_seconds"]


def newest_checkpoint(location: str) -> str | None:
    """The complete checkpoint of the latest epoch in a run's folder; removes all others.

    A kill can leave a checkpoint half copied, and Ray Train's own list of them half written: a
    checkpoint counts as complete when its state has the hash that its seal gives.
    """
    folder = Folder(location)
    selector = pafs.FileSelector(folder.path, allow_not_found=True)
    epochs: dict[str, int] = {}
    for info in folder.filesystem.get_file_info(selector):
        if info.type == pafs.FileType.Directory and info.base_name.startswith("checkpoint_"):
            epochs[info.base_name] = _sealed_epoch(Folder(folder.name_of(info.base_name)))
    newest = max(epochs, key=lambda name: (epochs[name], name), default=None)
    if newest is not None and not epochs[newest]:
        newest = None
    for name in epochs:
        if name != newest:
            folder.filesystem.delete_dir(f"{folder.path}/{name}")
    return None if newest is None else folder.name_of(newest)


def _sealed_epoch(folder: Folder) -> int:
    """The epoch of a complete checkpoint, or 0."""
    if not folder.exists(SEAL_NAME) or not folder.exists(STATE_NAME):
        return 0
    try:
        seal = json.loads(folder.read(SEAL_NAME))
    except ValueError:
        return 0
    whole = hashlib.sha256(folder.read(STATE_NAME)).hexdigest() == seal["sha256"]
    return int(seal["epoch"]) if whole else 0


# ---- the driver ----------------------------------------------------------------------------------


def train(config: TrainConfig) -> dict[str, float]:
    """One run, from the beginning or from its last checkpoint → the figures of its last epoch.

    Raises:
        InputError: a data set, split or request that can't be trained on; a run of this name with
            other settings, data or classes.
    """
    description = read_description(config.data)
    index = read_index(config.data)
    split = split_clips(index, config)
    config = _without_effectless(config, index)
    if min(len(split.train), config.batch_size) < config.workers:
        raise InputError(
            f"--workers {config.workers}: more than there are training clips ({len(split.train)}) "
            f"or clips in a batch (--batch-size {config.batch_size}); give fewer workers"
        )
    if not config.run:
        config = replace(config, run=time.strftime("%Y%m%d-%H%M%S"))
    location = absolute_location(f"{config.storage.rstrip('/')}/{config.run}")
    record = _read_record(location, config, description)
    if record is not None and record["finished"]:
        _say(f"run {config.run} is finished already; nothing to do (give another --run to train)")
        return record["finished"]

    join_cluster(for_training=True)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray Train looks every 2 s for what its workers report, and a report waits until it looks:
    # longer than an epoch on a small data set takes.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    placement = place_workers(
        _cluster_nodes(), config.workers, config.device, config.cpus_per_worker
    )
    if placement.warning:
        _say(f"warning: {placement.warning}")
    if index.num_unlabelled:
        _say(f"{index.num_unlabelled} clips without a label are left out")
    _say(
        f"run {config.run}: {len(split.train)} clips to train on, {len(split.validation)} to "
        f"validate on, of {len(description.classes)} classes; {config.workers} workers with "
        f"{placement.cpus:g} CPUs{' and a GPU' if placement.use_gpu else ''} each"
    )

    tracking.connect()
    checkpoint = None
    if record is not None:
        checkpoint = newest_checkpoint(location)
        _say(
            "it was started before: "
            + (
                "going on from its last checkpoint"
                if checkpoint
                else "no checkpoint yet, so from the beginning"
            )
        )
    else:
        record = {
            "config": asdict(config),
            "classes": description.classes,
            "data_digest": description.digest,
            "mlflow_run_id": _create_tracked_run(config, description),
            "finished": None,
        }
        _write_record(location, record)
    # Which checkpoint to start from is settled; Ray Train shall not look for one on its own.
    Folder(location).delete(RAY_SNAPSHOT_NAME)

    try:
        figures = _fit(config, description, split, placement, record, checkpoint)
    except BaseException:
        tracking.end_run(record["mlflow_run_id"], succeeded=False)
        raise
    tracking.end_run(record["mlflow_run_id"], succeeded=True)
    _write_record(location, {**record, "finished": figures})
    _say(_final_lines(figures, config, record["mlflow_run_id"]))
    return figures


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
    return split_by_subject(
        index,
        seed=config.seed,
        val_fraction=config.val_fraction,
        val_subjects=[name for name in config.val_subjects.split(",") if name],
        num_folds=config.folds,
        fold=config.fold,
    )


def _without_effectless(config: TrainConfig, index: ClipIndex) -> TrainConfig:
    if config.apex_weight and not index.num_annotated_apexes:
        _say(
            f"warning: --mu {config.apex_weight:g} has no effect: no clip has its apex annotated "
            "(column `apex_frame` of the manifest)"
        )
        return replace(config, apex_weight=0.0)
    return config


def _read_record(
    location: str, config: TrainConfig, description: Description
) -> dict[str, Any] | None:
    folder = Folder(location)
    if not folder.exists(RECORD_NAME):
        return None
    record = json.loads(folder.read(RECORD_NAME))
    evaluate.check_classes(f"run {config.run}", record["classes"], config.data, description.classes)
    given = {**asdict(config), "data set (SHA-256)": description.digest}
    known = {**record["config"], "data set (SHA-256)": record["data_digest"]}
    for name, value in given.items():
        if name not in OPERATIONAL and known[name] != value:
            what = name if " " in name else _flag(name)
            raise InputError(
                f"--run {config.run}: it was started with {what} {known[name]}, and now {what} is "
                f"{value}; give the same to go on with it, or another --run name"
            )
    return record


def _write_record(location: str, record: Mapping[str, Any]) -> None:
    Folder(location).write(RECORD_NAME, (json.dumps(record, indent=1) + "\n").encode())


def _create_tracked_run(config: TrainConfig, description: Description) -> str:
    parameters = {SHORT_NAMES.get(name, name): value for name, value in asdict(config).items()}
    parameters |= {
        "data_digest": description.digest,
        "identity_network": description.identity["name"],
        **{f"codec_{name}": value for name, value in description.codec.items()},
    }
    return tracking.create_run(
        config.experiment,
        config.run,
        parameters,
        tags={"cfer.figures": "of the last epoch; no model selection on held-out subjects"},
        dataset={
            "name": description.name,
            "digest": description.digest,
            "location": absolute_location(config.data),
        },
    )


def _fit(
    config: TrainConfig,
    description: Description,
    split: Split,
    placement: Placement,
    record: Mapping[str, Any],
    checkpoint: str | None,
) -> dict[str, float]:
    # Read before the workers reserve their CPUs, and dealt in runs of the sorted clips: which
    # worker has which clip is fixed, none is dropped, and shares differ by one at most.
    datasets: dict[str, Any] = {}
    largest = smallest = 0
    for side, clip_ids in (("train", split.train), ("validation", split.validation)):
        for_training = side == "train"
        rows = read_clips(config.data, clip_ids, config.frame_rule, for_training).materialize()
        assert rows.count() == len(clip_ids), f"{rows.count()} rows of {len(clip_ids)} {side} clips"
        cuts = [len(clip_ids) * rank // config.workers for rank in range(config.workers + 1)]
        shares = rows.split_at_indices(cuts[1:-1]) if config.workers > 1 else [rows]
        datasets |= {f"{side}-{rank}": share for rank, share in enumerate(shares)}
        if for_training:
            sizes = np.diff(cuts)
            largest, smallest = int(sizes.max()), int(sizes.min())
    setup = {
        "config": asdict(config),
        "classes": description.classes,
        "identity_dim": int(description.identity["dimension"]),
        "largest_share": largest,
        "smallest_share": smallest,
        "run_id": record["mlflow_run_id"],
        "tracking_uri": tracking.tracking_uri(),
        "checkpoint": checkpoint,
        "description": {
            "classes": description.classes,
            "frames": config.frames,
            **description.codec,
            "window_gops": description.settings["window_gops"],
            "identity_network": description.identity["name"],
            "data_set": description.name,
            "data_digest": description.digest,
            "cfer_version": tracking.code_version()["cfer_version"],
        },
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=setup,
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker={
                "CPU": placement.cpus,
                **({"GPU": 1} if placement.use_gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as its predecessor
            name=config.run,
            storage_path=absolute_location(config.storage),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=1),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    result = trainer.fit()
    assert result.metrics is not None
    return {name: float(value) for name, value in result.metrics.items()}


def _final_lines(figures: Mapping[str, float], config: TrainConfig, run_id: str) -> str:
    def probe(side: str) -> str:
        name = f"probe_linear_{side}_subjects"
        if name not in figures:
            return "-"
        return f"{figures[name]:.3f} (chance {figures[f'probe_chance_{side}_subjects']:.3f})"

    return (
        f"run {config.run}, last epoch, held-out subjects: accuracy {figures['val_accuracy']:.3f}, "
        f"UAR {figures['val_uar']:.3f}, macro-F1 {figures['val_macro_f1']:.3f}\n"
        f"  identity in the code: strict probe {probe('train')} on training subjects, "
        f"{probe('held_out')} on held-out ones; R² {figures['identity_r2']:.3f}\n"
        f"  model: runs:/{run_id}/{tracking.MODEL_NAME}"
    )


def _say(text: str) -> None:
    # Not print(): in its workers Ray Train replaces it by one that says everything twice.
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


# ---- the command ---------------------------------------------------------------------------------


def _help_texts() -> dict[str, str]:
    """The comment behind each field of `TrainConfig`, which is where its unit is said."""
    import inspect

    lines = inspect.getsource(TrainConfig).splitlines()
    pairs = [line.split("  # ", 1) for line in lines if ": " in line and "  # " in line]
    return {field.split(":")[0].strip(): text for field, text in pairs}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cfer.train",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    texts = _help_texts()
    kinds = {"int": int, "float": float, "str": str}
    for field in fields(TrainConfig):
        parser.add_argument(
            _flag(field.name),
            dest=field.name,
            type=kinds[str(field.type)],
            required=field.name == "data",
            default=None if field.name == "data" else field.default,
            choices=CHOICES.get(field.name),
            help=texts[field.name].replace("%", "%%"),
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    config = TrainConfig(**vars(build_parser().parse_args(arguments)))
    if config.folds and config.fold < 0:
        name = config.run or time.strftime("%Y%m%d-%H%M%S")
        for fold in range(config.folds):
            train(replace(config, fold=fold, run=f"{name}-fold{fold}"))
    else:
        train(config)
    return 0


if __name__ == "__main__":
    exit_with_message(main)
