"""The driver of one training run: Ray Train DDP over Ray Data, or one process.

A run that was killed goes on from its last complete checkpoint to the result of an undisturbed one,
and a finished one is not done again (`cfer.train.checkpoint`: what it has in its folder).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchTrainer

from cfer import tracking
from cfer.cluster import join_cluster
from cfer.data.folds import (
    ClipIndex,
    Split,
    read_index,
    read_videos,
    split_by_column,
    split_by_subject,
    split_into_folds,
    who_is_held_out,
)
from cfer.data.frames import frames_of_clips
from cfer.data.shards import Description, read_description
from cfer.data.storage import Folder, absolute_location, below
from cfer.errors import InputError, WorkerError
from cfer.evaluate.attacks import LINKAGE, VERIFICATION, chance_of, strongest
from cfer.model.card import ModelCard, calibration_line
from cfer.names import rows_named, says_nothing
from cfer.outputs import say
from cfer.train.checkpoint import (
    RECORD_NAME,
    Results,
    newest_checkpoint,
    read_record,
    read_results,
    write_record,
)
from cfer.train.config import NAMING_GAMES, SHORT_NAMES, TrainConfig, command_of
from cfer.train.links import WorkersLinkThemselves
from cfer.train.loop import Setup, model_config, train_worker
from cfer.train.placement import Placement, cluster_nodes, place_workers

# A run is given up after so many failures in a row without a new checkpoint: of workers that died,
# as on machines that are taken away; and of the code itself, where all workers live.
MOST_LOSSES = 4
MOST_ERRORS = 2


@dataclass(frozen=True)
class Parent:
    """The run that this one is nested in, and the name of this one there."""

    run_id: str
    name: str


def run(
    config: TrainConfig,
    parent: Parent | None = None,
    parallel_runs: int = 1,
    rows: Sequence[dict[str, Any]] | None = None,
    tracking_uri: str | None = None,
) -> Results:
    """One run, from the beginning or from its last checkpoint.

    Args:
        config: of one run: where it has folds, `fold` is one of them.
        parent: a run of several folds or seeds that this one is a part of; its epochs are then not
            printed.
        parallel_runs: how many such runs share this machine.
        rows: `read_all_rows(config)`, where several runs share them. With these and one worker it
            trains in this very process (Ray Train's local mode).
        tracking_uri: of MLflow's store, in a process that has not got it from its environment.

    Raises:
        InputError: a data set, split or request that can't be trained on; a run of this name with
            other settings, data or classes.
    """
    description = read_description(config.data)
    index = read_index(config.data)
    split = split_clips(index, config)
    config = without_unused_options(config, index)
    doubts = check_training_clips(config, index, split, description.classes)
    location = location_of(config)
    held_out = who_is_held_out(index, split)
    run_id = read_record(location, RECORD_NAME, config, description, held_out)
    results = None
    if run_id is not None:
        tracking.connect(tracking_uri)
        tracking.check_run(run_id, config.run)
        results = read_results(location)
    if results is not None:
        tracking.mark_finished(results.mlflow_run_id)
        if parent is None:
            say(f"run {config.run} is finished already; nothing to do (give another --run)")
        return results

    join_cluster(for_training=True)
    # Ray Train looks every 2 s whether its workers have ended.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    placement = place_workers(
        cluster_nodes(), config.workers, config.device, config.cpus_per_worker
    )
    if parent is None:
        for warning in filter(None, [placement.warning, *doubts]):
            say(f"warning: {warning}")
        if index.num_unlabeled:
            say(f"{index.num_unlabeled} clips without a label are left out")
        say(
            f"run {config.run}: {len(split.train)} clips to train on, {len(split.validation)} to "
            f"validate on, of {len(description.classes)} classes; {config.workers} workers with "
            f"{placement.cpus:g} CPUs{' and a GPU' if placement.use_gpu else ''} each"
        )
        if run_id is not None:
            found = newest_checkpoint(location)
            where = "its last checkpoint" if found else "the beginning, without a checkpoint"
            say(f"it was started before: going on from {where}")

    if run_id is None:
        tracking.connect(tracking_uri)
        run_id = create_tracked_run(config, description, parent)
        write_record(location, RECORD_NAME, config, description, run_id, held_out=held_out)
    subjects = dict(zip(index.clip_ids, index.subjects, strict=True))
    setup = Setup(
        config=config,
        card=_card(config, description),
        location=location,
        mlflow_run_id=run_id,
        tracking_uri=tracking.tracking_uri(),
        held_out=held_out,
        num_train=len(split.train),
        videos=read_videos(config.data),
        train_subjects=sorted({s for c in split.train if (s := subjects[c]) is not None}),
        class_weights=_class_weights(config, index, split, len(description.classes)),
        parallel_runs=parallel_runs,
        prints_epochs=parent is None,
    )
    try:
        _fit(setup, split, placement, rows)
    except BaseException:
        tracking.end_run(run_id, succeeded=False)
        raise
    tracking.end_run(run_id, succeeded=True)
    results = read_results(location)
    assert results is not None, f"{location}: the run ended without results"
    if parent is None:
        say(_final_lines(results, config))
    return results


def split_clips(index: ClipIndex, config: TrainConfig) -> Split:
    """Which clips are trained on; a function of the data set and the configuration."""
    if config.split == "column":
        split = split_by_column(index)
        subjects = dict(zip(index.clip_ids, index.subjects, strict=True))
        shared = {subjects[c] for c in split.train} & {subjects[c] for c in split.validation}
        if shared - {None}:
            say(
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
    """Warnings about the clips that are to be trained on, a line each.

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
                f"no training clip is {name}, so no clip will be recognized as it"
                + (f": {rows_named(held_out)} can only be wrong" if held_out else "")
            )
        elif says_nothing(name):
            of_it = [clip_id for clip_id in index.clip_ids if label_of[clip_id] == label]
            doubts.append(f"the class {name!r} ({rows_named(of_it)}) looks like a missing value")
    return doubts


def without_unused_options(config: TrainConfig, index: ClipIndex) -> TrainConfig:
    """Without the options that have no effect on this data set, each with a warning.

    Raises:
        InputError: a game that names subjects, without subjects.
    """
    if config.game in NAMING_GAMES and not any(index.subjects):
        raise InputError(
            f"--game {config.game}: it names the training subjects, and no clip has one; add a "
            "`subject` column to the manifest and extract again, or use --game min-min"
        )
    if config.apex_weight and not index.num_annotated_apexes:
        say(
            f"warning: --mu {config.apex_weight:g} has no effect: no clip has its apex annotated "
            "(column `apex_frame` of the manifest)"
        )
        return replace(config, apex_weight=0.0)
    return config


def location_of(config: TrainConfig) -> str:
    """The folder of the run, or of the protocol."""
    return absolute_location(below(config.storage, config.run))


def create_tracked_run(
    config: TrainConfig, description: Description, parent: Parent | None, role: str = "run"
) -> str:
    """A run in MLflow, with all that is needed to repeat it → its id."""
    parameters = {SHORT_NAMES.get(name, name): value for name, value in asdict(config).items()}
    parameters |= {
        "data_digest": description.digest,
        "identity_network": description.identity["name"],
        **{f"codec_{name}": value for name, value in description.codec.items()},
    }
    if parent is None:
        name = config.run
        tags = {
            "cfer.role": role,
            tracking.COMMAND_TAG: f"python -m cfer.train {command_of(config)}",
        }
    else:
        # Where runs of several methods are compared, the fold alone does not tell them apart.
        name = f"{config.run.split('/')[0]}, {parent.name}"
        tags = {"cfer.role": "fold"}
    return tracking.create_run(
        config.experiment,
        name,
        parameters,
        {**tags, "cfer.figures": "of the last epoch; no model selection on held-out subjects"},
        dataset={
            "name": description.name,
            "digest": description.digest,
            "location": absolute_location(config.data),
        },
        parent_id=None if parent is None else parent.run_id,
    )


def _card(config: TrainConfig, description: Description) -> ModelCard:
    identity_dim = int(description.identity["dimension"])
    return ModelCard(
        classes=tuple(description.classes),
        size=description.codec["size"],
        codec=description.codec_settings,
        # Where every frame is encoded, GOPs say nothing about time.
        window_seconds=description.codec_settings.gop_seconds or 1.0,
        what=config.what,
        network=model_config(config, len(description.classes), identity_dim),
        origin={
            "command": f"python -m cfer.train {command_of(config)}",
            "data_set": description.name,
            "data_digest": description.digest,
            "identity_network": description.identity["name"],
            **tracking.code_version(),
        },
    )


def _fit(
    setup: Setup, split: Split, placement: Placement, rows: Sequence[dict[str, Any]] | None
) -> None:
    config = setup.config
    sides = {"train": split.train, "validation": split.validation}
    datasets: dict[str, Any] = {}
    in_process = rows is not None and config.workers == 1
    if in_process:
        by_id = {row["clip_id"]: row for row in rows or ()}
        shared = {side: [by_id[clip_id] for clip_id in ids] for side, ids in sides.items()}
        setup = replace(setup, rows=shared)
        # It reports at every run that it is one of this kind.
        logging.getLogger("ray.train").setLevel(logging.ERROR)
    else:
        # Read before the workers reserve their CPUs, and dealt in stretches of the sorted clips:
        # which worker has which clip is fixed, none is dropped, and shares differ by one at most.
        for side, ids in sides.items():
            clips = frames_of_clips(config.data, ids, config.what, side == "train").materialize()
            assert clips.count() == len(ids), f"{clips.count()} of {len(ids)} {side} clips"
            cuts = _cuts(len(ids), config.workers)
            shares = clips.split_at_indices(cuts[1:-1]) if config.workers > 1 else [clips]
            datasets |= {f"{side}-{rank}": share for rank, share in enumerate(shares)}
    folder = Folder(setup.location)
    trainer = TorchTrainer(
        partial(train_worker, setup),
        torch_config=WorkersLinkThemselves(),
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_process else config.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker={"CPU": placement.cpus, "GPU": int(placement.use_gpu)},
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
        _fit_until_done(trainer, setup.location)


def _fit_until_done(trainer: TorchTrainer, location: str) -> None:
    """Start the training again after each failure, as long as there are new checkpoints.

    Raises:
        InputError: of a worker.
        WorkerError: too many failures without a new checkpoint.
    """
    checkpoint = newest_checkpoint(location)
    failures = 0
    while True:
        try:
            _run_in_thread(trainer.fit)
            return
        except ray.train.WorkerGroupError as error:
            causes = list(error.worker_failures.values())
            tracebacks = str(error)
        for cause in causes:
            if isinstance(cause, InputError):
                raise cause
        before, checkpoint = checkpoint, newest_checkpoint(location)
        failures = 1 if checkpoint != before else failures + 1
        lost = any(isinstance(cause, ray.exceptions.RayError) for cause in causes)
        lines = [line.strip() for line in str(causes[0]).splitlines() if line.strip()]
        reason = f"{type(causes[0]).__name__}: {lines[-1] if lines else ''}"
        if failures >= (MOST_LOSSES if lost else MOST_ERRORS):
            where = f"after {checkpoint.rsplit('/', 1)[-1]}" if checkpoint else "in its first epoch"
            failed = WorkerError(f"training failed {failures} times {where}: {reason}")
            failed.traceback = f"{tracebacks.strip()}\n"
            raise failed
        say(
            f"{'a worker was lost' if lost else 'a worker failed'} ({reason}); going on from the "
            f"{'last checkpoint' if checkpoint else 'beginning'}"
        )


def _run_in_thread(work: Callable[[], Any]) -> None:
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
    """Every labeled clip, as rows of `frames_of_clips`, for the runs that share the input."""
    index = read_index(config.data)
    clips = frames_of_clips(config.data, index.clip_ids, config.what, for_training=True)
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

    def attacked(kind: str) -> str:
        name = strongest(figures, kind)
        by_chance = f" (by chance {chance_of(figures, kind):.3f})"
        return f"{kind} {figures[name]:.3f}{by_chance}" if name else f"{kind} -"

    return (
        f"run {config.run}, last epoch, held-out subjects: accuracy "
        f"{figures['held_out/accuracy']:.3f}, UAR {figures['held_out/uar']:.3f}, macro-F1 "
        f"{figures['held_out/macro_f1']:.3f}\n"
        f"  identity in the code: {attacked(LINKAGE)}, {attacked(VERIFICATION)}: pooled AUC of "
        "the strongest attacker\n"
        "  probabilities: "
        f"{calibration_line(figures.get('calibration/temperature', 1.0), figures)}\n"
        f"  model: runs:/{results.mlflow_run_id}/{tracking.MODEL_NAME}"
    )
