"""What each training worker does: epochs of the game, and the figures that they end with."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from cfer import tracking
from cfer.data.inputs import APEX_SIZE, LAST
from cfer.data.shards import Description
from cfer.data.storage import Folder
from cfer.errors import NotFinite
from cfer.evaluate.figures import confusion_figure, curves_figure, embedding_figure
from cfer.evaluate.metrics import ScoredClips, confusion_matrix, cross_entropy, recalls, recognition
from cfer.evaluate.probes import leakage
from cfer.model.game import PLAYERS, Batch, Weights, optimizer_of, play_turn
from cfer.model.network import ExpressionNet, ModelConfig, Predictor
from cfer.outputs import say
from cfer.train.batches import BatchMaker, LoadedClips, Standardization, load_clips
from cfer.train.checkpoint import (
    RESULTS_NAME,
    Results,
    _check_finite,
    _restore,
    _save,
    newest_checkpoint,
)
from cfer.train.config import TrainConfig
from cfer.train.links import linked

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
    tracker = tracking.Tracker(setup["run_id"])
    train_rows = _share("train", rank, setup)
    val_rows = _share("validation", rank, setup)
    standardize = _standardization(train_rows, device)
    train_clips = BatchMaker(train_rows, config.what, standardize, device, setup["train_subjects"])
    val_clips = BatchMaker(val_rows, config.what, standardize, device)
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
    network = ExpressionNet(setup["card"].network, config.apex_weight > 0)
    num_subjects = len(setup["train_subjects"])
    player = PLAYERS[config.game](config.code_dim, identity_dim, num_subjects)
    wrapped_network = prepare_model(network)
    wrapped_player = prepare_model(player)
    optimizer = optimizer_of(network, config.lr, config.weight_decay)
    player_optimizer = optimizer_of(player, config.estimator_lr)
    stateful = {
        "network": network,
        "player": player,
        "network_optimizer": optimizer,
        "player_optimizer": player_optimizer,
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
        wrapped_network.train()
        sums: dict[str, Tensor] = {}
        batches = train_clips.training_epoch(
            num_steps, batch_size, config.augmentation, config.seed, epoch, rank
        )
        step = epoch * num_steps
        try:
            for step, batch in enumerate(batches, start=epoch * num_steps):
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * _schedule(step, total_steps)
                terms = play_turn(
                    wrapped_network,
                    wrapped_player,
                    optimizer,
                    player_optimizer,
                    batch,
                    weights,
                    config.estimator_steps,
                )
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + value
            _check_finite({name: part.state_dict() for name, part in stateful.items()})
            validation = _gather(predict(network, val_clips, config.batch_size))
        except NotFinite as error:
            raise _stopped(error, config, step, num_steps, setup["location"]) from error
        figures = _mean_over_workers(sums, num_steps, num_steps * batch_size)
        figures |= _validation_figures(validation, len(setup["classes"]))
        figures["time/learning_rate"] = optimizer.param_groups[0]["lr"]
        figures["time/epoch_seconds"] = time.perf_counter() - started
        history.append(figures)
        spent_seconds += figures["time/epoch_seconds"]
        if rank == 0:
            # An epoch that MLflow has is in a checkpoint: it is not trained and logged again.
            _save(setup, stateful, history, spent_seconds, standardize)
            tracker.log_epoch(figures, epoch + 1)
            if setup["shows_epochs"]:
                say(_progress_line(len(history), figures, config, spent_seconds))

    training = _gather(predict(network, train_clips, config.batch_size))
    validation = _gather(predict(network, val_clips, config.batch_size))
    bytes_read = _all_reduce(train_rows.bytes_read.sum() + val_rows.bytes_read.sum())
    if rank == 0:
        num_clips = len(training.labels) + len(validation.labels)
        encoder_size = sum(p.numel() for p in network.encoder.parameters())
        classifier_size = sum(p.numel() for p in network.classifier.parameters())
        _finish(
            tracker,
            network,
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
    network = ExpressionNet(model_config(config, num_classes, identity_dim), config.apex_weight > 0)
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
        wrap(network),
        wrap(player),
        optimizer_of(network),
        optimizer_of(player),
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


def _share(side: str, rank: int, setup: Mapping[str, Any]) -> LoadedClips:
    rows = setup.get(f"rows-{side}")
    if rows is None:
        rows = list(ray.train.get_dataset_shard(f"{side}-{rank}").iter_rows())
    return load_clips(rows, setup["identity_dim"])


def _all_reduce(values: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def _standardization(rows: LoadedClips, device: torch.device) -> Standardization:
    z_I = rows.z_I.double().to(device)
    count = torch.tensor([len(rows)], dtype=torch.float64, device=device)
    sums = _all_reduce(torch.cat([z_I.sum(0), (z_I**2).sum(0), count]))
    total, total_squares = sums[:-1].chunk(2)
    return Standardization.of(total.cpu(), total_squares.cpu(), float(sums[-1]))


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
def predict(network: ExpressionNet, clips: BatchMaker, batch_size: int) -> ScoredClips:
    """This worker's clips, each once and unvaried."""
    network.eval()
    parts: dict[str, list[np.ndarray]] = {"labels": [], "logits": [], "z_R": [], "z_I": []}
    for batch in clips.in_order(batch_size):
        z_R, logits, _ = network(batch.planes, batch.mask, batch.z_I)
        values = {"labels": batch.labels, "logits": logits, "z_R": z_R, "z_I": batch.z_I}
        for name, value in values.items():
            parts[name].append(value.cpu().numpy())
    widths = {
        "labels": (),
        "logits": (network.classifier.out_features,),
        "z_R": (network.classifier.in_features,),
        "z_I": (clips.rows.z_I.shape[1],),
    }
    arrays = {
        name: np.concatenate([np.zeros((0, *widths[name]), np.float32), *values])
        for name, values in parts.items()
    }
    arrays["labels"] = arrays["labels"].astype(np.int64)
    return ScoredClips(
        **arrays, subjects=list(clips.rows.subjects), clip_ids=list(clips.rows.clip_ids)
    )


def _gather(share: ScoredClips) -> ScoredClips:
    """Every worker's clips on every worker: nothing dropped, nothing twice."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ScoredClips.concatenate([share])
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, share)
    return ScoredClips.concatenate(parts)


def _validation_figures(validation: ScoredClips, num_classes: int) -> dict[str, float]:
    predicted = validation.logits.argmax(1)
    confusion = confusion_matrix(validation.labels, predicted, num_classes)
    figures = {
        **recognition(confusion),
        "cross_entropy": cross_entropy(validation.logits, validation.labels),
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
    network: ExpressionNet,
    training: ScoredClips,
    validation: ScoredClips,
    history: Sequence[Mapping[str, float]],
    cost: Mapping[str, float],
    setup: Mapping[str, Any],
) -> None:
    """Measure, log and record what the run ends with."""
    classes = setup["classes"]
    confusion = confusion_matrix(validation.labels, validation.logits.argmax(1), len(classes))
    extra = {
        **leakage(training, validation, setup["config"]["seed"]),
        **{f"recall/{name}": value for name, value in recalls(confusion, classes).items()},
        **cost,
    }
    tracker.complete_epochs(history)
    tracker.log_figures(extra, len(history))
    figures = {**history[-1], **extra}
    title = f"held-out subjects, accuracy {figures['held_out/accuracy']:.3f}"
    tracker.log_figure(confusion_figure(confusion, classes, title), "confusion.png")
    tracker.log_figure(curves_figure(history), "curves.png")
    tracker.log_figure(embedding_figure(validation, classes), "embedding.png")
    tracker.log_predictions(train=training.arrays(), held_out=validation.arrays())
    kept = {name: float(value) for name, value in figures.items() if np.isfinite(value)}
    card = replace(setup["card"], figures=kept)
    tracker.log_model(Predictor.of(network, card.network), card)
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
