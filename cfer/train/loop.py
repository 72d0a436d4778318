"""What each training worker does: epochs of the game, and the figures that they end with."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from cfer import tracking
from cfer.data.inputs import APEX_SIZE
from cfer.errors import InputError, NotFinite
from cfer.evaluate.attacks import attack, attack_figures
from cfer.evaluate.calibration import calibration, held_out_people
from cfer.evaluate.figures import (
    confusion_figure,
    curves_figure,
    embedding_figure,
    reliability_figure,
)
from cfer.evaluate.metrics import ScoredClips, confusion_matrix, cross_entropy, recalls, recognition
from cfer.model.card import ModelCard
from cfer.model.erasure import erasure, fold
from cfer.model.game import PLAYERS, Batch, Weights, learns, optimizer_of, play_turn
from cfer.model.network import ExpressionNet, ModelConfig, Predictor
from cfer.outputs import say
from cfer.train.batches import BatchMaker, LoadedClips, Standardization, load_clips
from cfer.train.checkpoint import (
    Results,
    check_finite,
    newest_checkpoint,
    restore,
    save,
    write_results,
)
from cfer.train.config import TrainConfig
from cfer.train.links import linked


@dataclass(frozen=True)
class Setup:
    """What the driver gives to every training worker.

    Attributes:
        config: of the run.
        card: of the model, without its figures.
        location: the folder of the run.
        mlflow_run_id, tracking_uri: where the run is tracked.
        held_out: who is held out.
        num_train: training clips of all workers.
        videos: {clip id: the video that it is from}.
        train_subjects: those of the training clips, sorted; player 1 knows them by their positions.
        class_weights: in the cross-entropy, one for each class; None: all weigh the same.
        parallel_runs: how many runs share this machine's cores.
        prints_epochs: whether there is a line for each epoch.
        rows: the clips of each side, as rows of `frames_of_clips`, where the driver's own process
            trains; otherwise the workers get theirs from Ray Data.
    """

    config: TrainConfig
    card: ModelCard
    location: str
    mlflow_run_id: str
    tracking_uri: str
    held_out: list[str]
    num_train: int
    videos: Mapping[str, str]
    train_subjects: list[str]
    class_weights: list[float] | None
    parallel_runs: int
    prints_epochs: bool
    rows: Mapping[str, Sequence[dict[str, Any]]] | None = None


def threads_of(cores: int, processes: int, cpus_per_worker: float) -> int:
    """PyTorch's threads in one of some processes that share a machine's cores: no more than were
    reserved for it (0: nothing was), so that there is room for another command."""
    return max(1, min(cores // processes, round(cpus_per_worker or cores)))


def train_worker(setup: Setup) -> None:
    """Train in this worker, from its clips to the last epoch; rank 0 writes all that is kept."""
    with linked(get_device()):
        _train(setup)


def _train(setup: Setup) -> None:
    config = setup.config
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), get_device()
    if device.type == "cpu":
        processes = context.get_local_world_size() * setup.parallel_runs
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads_of(cores, processes, config.cpus_per_worker))
    torch.manual_seed(config.seed)

    # Ray Train logs every report whole, under a logger that is named by its file's path.
    logging.disable(logging.INFO)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # DDP's advice on the memory layout of 1×1 convolutions, where both layouts are the same.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    tracking.connect(setup.tracking_uri)
    tracker = tracking.Tracker(setup.mlflow_run_id) if rank == 0 else None

    train_clips = _clips_of(setup, "train", rank)
    val_clips = _clips_of(setup, "validation", rank)
    standardize = _standardization(train_clips, device)
    train_batches = BatchMaker(train_clips, config.what, standardize, device, setup.train_subjects)
    val_batches = BatchMaker(val_clips, config.what, standardize, device)
    class_weights = setup.class_weights
    weights = Weights(
        config.identity_weight,
        config.apex_weight,
        config.label_smoothing,
        None if class_weights is None else torch.tensor(class_weights).to(device),
    )

    network = ExpressionNet(setup.card.network, config.apex_weight > 0)
    shape = setup.card.network
    player = PLAYERS[config.game](shape.code_dim, shape.identity_dim, len(setup.train_subjects))
    wrapped_network = prepare_model(network)
    # DDP refuses a module without parameters.
    wrapped_player = prepare_model(player) if learns(player) else player.to(device)
    optimizer = optimizer_of(network, config.lr, config.weight_decay)
    player_optimizer = optimizer_of(player, config.estimator_lr)
    stateful = {
        "network": network,
        "player": player,
        "network_optimizer": optimizer,
        "player_optimizer": player_optimizer,
    }
    turn = partial(play_turn, wrapped_network, wrapped_player, optimizer, player_optimizer)
    history, spent_seconds = restore(setup.location, stateful, device)
    validation: ScoredClips | None = None

    # The same number of full batches on every rank, or one would wait for another for ever.
    batch_size = config.clips_per_worker
    num_steps = math.ceil(setup.num_train / config.batch_size)
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        # Every draw of an epoch is a function of (seed, epoch, rank): there is no generator whose
        # state a checkpoint would have to keep.
        seeds = np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1)
        torch.manual_seed(int(seeds[0]))
        wrapped_network.train()
        sums: dict[str, Tensor] = {}
        batches = train_batches.training_epoch(
            num_steps, batch_size, config.augmentation, config.seed, epoch, rank
        )
        step = epoch * num_steps
        try:
            for step, batch in enumerate(batches, start=epoch * num_steps):
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * _schedule(step, config.epochs * num_steps)
                terms = turn(batch, weights, config.estimator_steps)
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + value
            check_finite({name: part.state_dict() for name, part in stateful.items()})
            # The last one's figures are the run's, for which all views count.
            is_last = epoch == config.epochs - 1
            validation = _gather(
                predict(network, val_batches, config.batch_size, every_view=is_last)
            )
        except NotFinite as error:
            raise _diverged(error, config, step, num_steps, setup.location) from error
        figures = _mean_over_workers(sums, num_steps, num_steps * batch_size)
        figures |= _validation_figures(validation, len(setup.card.classes))
        figures["time/learning_rate"] = optimizer.param_groups[0]["lr"]
        figures["time/epoch_seconds"] = time.perf_counter() - started
        history.append(figures)
        spent_seconds += figures["time/epoch_seconds"]
        if tracker:
            # An epoch that MLflow has is in a checkpoint: it is not trained and logged again.
            save(setup.location, stateful, history, spent_seconds)
            tracker.log_epoch(figures, epoch + 1)
            if setup.prints_epochs:
                say(_progress_line(len(history), figures, config, spent_seconds))

    training = _gather(predict(network, train_batches, config.batch_size))
    if config.erase:
        known = erasure(training.z_R, training.z_I, training.labels, config.erase)
        fold(network.encoder, *known)
        training = _gather(predict(network, train_batches, config.batch_size))
    if config.erase or validation is None:  # the encoder is another, or all epochs were done before
        validation = _gather(predict(network, val_batches, config.batch_size, every_view=True))
    bytes_read = _all_reduce((train_clips.bytes_read.sum() + val_clips.bytes_read.sum()).to(device))
    if tracker:
        parts = (network.encoder, network.classifier)
        cost = {
            "cost/parameters": sum(p.numel() for part in parts for p in part.parameters()),
            "cost/bytes_per_clip": float(bytes_read)
            / (len(training.labels) + len(validation.labels)),
            "time/train_seconds": spent_seconds,
        }
        _finish(setup, tracker, network, training, validation, history, cost)


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
        wrap: applied to each of the two players, such as DDP.
    """
    shape = model_config(config, num_classes, identity_dim)
    network = ExpressionNet(shape, config.apex_weight > 0)
    player = PLAYERS[config.game](shape.code_dim, identity_dim, 2)
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
        wrap(player) if learns(player) else player,
        optimizer_of(network),
        optimizer_of(player),
        batch,
        Weights(config.identity_weight, config.apex_weight),
        config.estimator_steps,
    )


def model_config(config: TrainConfig, num_classes: int, identity_dim: int) -> ModelConfig:
    """The network of a run.

    A linear classifier of C classes reads C − 1 directions of its code: whatever else a code has
    says nothing of the expression, and much of the person (docs/privacy.md).
    """
    code_dim = config.code_dim or max(num_classes - 1, 1)
    if config.erase >= code_dim:
        raise InputError(
            f"--erase {config.erase}: the code has {code_dim} directions, and some must be left; "
            "give fewer, or a larger --code-dim"
        )
    return ModelConfig(
        num_classes=num_classes,
        identity_dim=identity_dim,
        num_planes=config.what.num_planes,
        gain=config.what.gain,
        blur=config.blur,
        width=config.width,
        code_dim=code_dim,
        pooling=config.pooling,
        dropout=config.dropout,
    )


def _clips_of(setup: Setup, side: str, rank: int) -> LoadedClips:
    if setup.rows is None:
        rows = list(ray.train.get_dataset_shard(f"{side}-{rank}").iter_rows())
    else:
        rows = list(setup.rows[side])
    return load_clips(rows, setup.card.network.identity_dim)


def _all_reduce(values: Tensor) -> Tensor:
    """The sums over all workers."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def _standardization(clips: LoadedClips, device: torch.device) -> Standardization:
    z_I = clips.z_I.double().to(device)
    count = torch.tensor([len(clips)], dtype=torch.float64, device=device)
    sums = _all_reduce(torch.cat([z_I.sum(0), (z_I**2).sum(0), count]))
    total, total_squares = sums[:-1].chunk(2)
    return Standardization.of(total.cpu(), total_squares.cpu(), float(sums[-1]))


def _schedule(step: int, total_steps: int) -> float:
    """Share of the highest learning rate: linear over the first 5 % of the steps, then cosine."""
    warm_up = max(1, total_steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))


def _diverged(
    error: NotFinite, config: TrainConfig, step: int, num_steps: int, location: str
) -> NotFinite:
    """The error of a training that has diverged at a step, counted from 0 over all epochs."""
    rate = config.lr * _schedule(step, config.epochs * num_steps)
    return NotFinite(
        f"run {config.run} has stopped in epoch {step // num_steps + 1}, step "
        f"{step % num_steps + 1} of {num_steps}, at the learning rate {rate:g} (player 1's: "
        f"{config.estimator_lr:g}): {error}; its last good checkpoint is "
        f"{newest_checkpoint(location) or 'none'}; start another --run with a lower --lr or "
        "--estimator-lr"
    )


def _mean_over_workers(
    sums: Mapping[str, Tensor], num_steps: int, num_clips: int
) -> dict[str, float]:
    """The sums over one worker's steps → means over those of all workers, as `train/…`."""
    names = sorted(sums)
    counts = [num_clips if name == "num_correct" else num_steps for name in names]
    totals = torch.stack([sums[name].double() for name in names])
    values, all_counts = _all_reduce(torch.cat([totals, totals.new_tensor(counts)])).chunk(2)
    figures = dict(zip(names, (values / all_counts).tolist(), strict=True))
    figures["accuracy"] = figures.pop("num_correct")
    return {f"train/{name}": value for name, value in figures.items()}


@torch.no_grad()
def predict(
    network: ExpressionNet, batches: BatchMaker, batch_size: int, every_view: bool = False
) -> ScoredClips:
    """This worker's clips, each once and unvaried.

    Args:
        every_view: the logits are the mean over all views, as in `cfer.predict`; the codes are the
            first view's in any case.
    """
    network.eval()
    clips = batches.clips
    z_R = np.zeros((len(clips), network.classifier.in_features), np.float32)
    z_I = np.zeros(clips.z_I.shape, np.float32)
    starts = range(0, len(clips), batch_size)
    logits = []  # by view
    for view in range(batches.num_views if every_view else 1):
        logits.append(np.zeros((len(clips), network.classifier.out_features), np.float32))
        for start, batch in zip(starts, batches.in_order(batch_size, view), strict=True):
            codes, scores, _ = network(batch.planes, batch.mask, batch.z_I)
            part = slice(start, start + batch_size)
            logits[view][part] = scores.cpu().numpy()
            if view == 0:
                z_R[part], z_I[part] = codes.cpu().numpy(), batch.z_I.cpu().numpy()
    return ScoredClips(
        clips.labels.numpy(),
        np.mean(logits, axis=0),
        z_R,
        z_I,
        list(clips.subjects),
        clips.clip_ids,
    )


def _gather(share: ScoredClips) -> ScoredClips:
    """The clips of all workers, on every worker: none dropped, none twice."""
    parts: list[Any] = [share]
    if dist.is_initialized():
        parts = [None] * dist.get_world_size()
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
    setup: Setup,
    tracker: tracking.Tracker,
    network: ExpressionNet,
    training: ScoredClips,
    validation: ScoredClips,
    history: Sequence[Mapping[str, float]],
    cost: Mapping[str, float],
) -> None:
    """Measure, log and record what the run ends with."""
    classes = setup.card.classes
    confusion = confusion_matrix(validation.labels, validation.logits.argmax(1), len(classes))
    of_others = held_out_people(training, validation)
    calibrated = calibration(of_others)
    extra = {
        # Erasing changes what the last epoch has measured.
        **_validation_figures(validation, len(classes)),
        **attack_figures(attack(of_others, training, setup.videos, seed=setup.config.seed)),
        **{f"recall/{name}": value for name, value in recalls(confusion, classes).items()},
        **calibrated,
        **cost,
    }
    tracker.complete_epochs(history)
    tracker.log_figures(extra, len(history))
    figures = {**history[-1], **extra}
    title = f"held-out subjects, accuracy {figures['held_out/accuracy']:.3f}"
    tracker.log_figure(confusion_figure(confusion, classes, title), "confusion.png")
    tracker.log_figure(curves_figure(history), "curves.png")
    tracker.log_figure(embedding_figure(validation, classes), "embedding.png")
    if calibrated:
        tracker.log_figure(reliability_figure(of_others, "held-out subjects"), "reliability.png")
    tracker.log_predictions(train=training.arrays(), held_out=validation.arrays())
    kept = {name: float(value) for name, value in figures.items() if np.isfinite(value)}
    temperature = calibrated.get("calibration/temperature", 1.0)
    tracker.log_model(
        Predictor.of(network, setup.card.network, temperature),
        replace(setup.card, figures=kept, temperature=temperature),
    )
    num_train = len(training.labels)
    write_results(
        setup.location,
        Results(kept, confusion.tolist(), setup.mlflow_run_id, num_train, setup.held_out),
    )
