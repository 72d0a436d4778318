"""Many runs as one: folds, seeds and the values of a sweep, and their means and deviations.

As many runs go on at a time as the cluster has room for; each is a child of the MLflow run that
holds their mean and standard deviation. Killed and started again with the same `--run`, finished
folds are kept, and the others go on from their checkpoints.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import ray
import torch

from cfer import tracking
from cfer.cluster import join_cluster
from cfer.data.folds import LOSO, read_index, read_videos, split_into_folds, who_is_held_out
from cfer.data.inputs import LAST, Input
from cfer.data.lock import owned
from cfer.data.shards import Description, read_description
from cfer.data.storage import Folder, absolute_location
from cfer.errors import InputError
from cfer.evaluate.attacks import (
    LINKAGE,
    VERIFICATION,
    attack,
    attack_figures,
    chance_of,
    is_attack,
    is_of_this_suite,
    strongest,
)
from cfer.evaluate.calibration import calibration, held_out_people
from cfer.evaluate.figures import confusion_figure, reliability_figure
from cfer.evaluate.metrics import ScoredClips, recognition
from cfer.evaluate.significance import means_of_runs
from cfer.evaluate.table import predictions_of
from cfer.outputs import say
from cfer.train.checkpoint import (
    RECORD_NAME,
    Results,
    read_record,
    read_results,
    write_record,
    write_results,
)
from cfer.train.config import TrainConfig, command_of
from cfer.train.loop import turn_on_noise
from cfer.train.placement import Placement, cluster_nodes, place_workers
from cfer.train.run import (
    Parent,
    check_training_clips,
    create_tracked_run,
    location_of,
    read_all_rows,
    run,
    split_clips,
    without_unused_options,
)

PARENT_NAME = "protocol.json"
SWEEP_NAME = "sweep.json"
# Reading, probes, attacks, pictures and the stored model.
SECONDS_AROUND_A_RUN = 9.0


@dataclass(frozen=True)
class Summary:
    """The results of a protocol.

    Attributes:
        config: which its runs have in common.
        num_runs: how many it has.
        mean, deviation: of every figure over the runs; the standard deviation is the sample's.
        confusion: pooled over the runs, (C, C), row = true class.
    """

    config: TrainConfig
    num_runs: int
    mean: dict[str, float]
    deviation: dict[str, float]
    confusion: np.ndarray


@dataclass(frozen=True)
class _Job:
    """One run of a protocol."""

    config: TrainConfig
    parent: Parent


@dataclass(frozen=True)
class _Protocol:
    """The parent run of several, and its runs."""

    config: TrainConfig
    parent_id: str
    jobs: list[_Job]


def train_all(
    configs: Sequence[TrainConfig], seeds: Sequence[int], parallel: int = 0
) -> list[Summary]:
    """Run the protocol of each configuration; runs that were finished before are not done again.

    Args:
        configs: each with its own `run` name; `folds` or `split` decides which runs it has.
        seeds: every fold is run with each of them; each cuts its own folds.
        parallel: runs at a time; 0: as many as the cluster has room for.

    Raises:
        InputError: a configuration that can't be run, or runs that failed.
    """
    with contextlib.ExitStack() as stack:
        for config in configs:
            stack.enter_context(owned(Folder(location_of(config)), "--run"))
        tracking.connect()
        protocols = [_prepare(config, seeds) for config in configs]
        join_cluster(for_training=True)
        jobs = [job for protocol in protocols for job in protocol.jobs]
        left = [job for job in jobs if read_results(location_of(job.config)) is None]
        if len(left) < len(jobs):
            say(f"{len(jobs) - len(left)} of {len(jobs)} runs are finished already")
        unfinished = Counter(job.parent.run_id for job in left)
        summaries: dict[str, Summary] = {}

        def summarize_finished() -> None:
            for protocol in protocols:
                if not unfinished[protocol.parent_id] and protocol.parent_id not in summaries:
                    summaries[protocol.parent_id] = _summarize(protocol)

        summarize_finished()
        for job in _run_jobs(left, parallel) if left else ():
            unfinished[job.parent.run_id] -= 1
            summarize_finished()
        return [summaries[protocol.parent_id] for protocol in protocols]


def _prepare(config: TrainConfig, seeds: Sequence[int]) -> _Protocol:
    description = read_description(config.data)
    index = read_index(config.data)
    config = without_unused_options(config, index)
    options = "" if list(seeds) == [config.seed] else f" --seeds {','.join(map(str, seeds))}"
    # A number of folds that can't be is refused before there is a run of this name.
    folds = config.folds
    counts = [len(split_into_folds(index, folds, seed)) if folds else 0 for seed in seeds]
    parent_id = tracked_parent(config, description, "protocol", PARENT_NAME, options)
    jobs = []
    doubts: dict[str, list[str]] = defaultdict(list)
    for seed, count in zip(seeds, counts, strict=True):
        for fold in range(count) if count else [-1]:
            name = f"seed {seed}" + (f", fold {fold}" if count else "")
            run_name = f"{config.run}/seed{seed}" + (f"-fold{fold}" if count else "")
            one = replace(config, seed=seed, fold=fold, run=run_name)
            # What can't be trained, or gone on with, is found before anything is.
            split = split_clips(index, one)
            held_out = who_is_held_out(index, split)
            read_record(location_of(one), RECORD_NAME, one, description, held_out)
            for doubt in check_training_clips(one, index, split, description.classes):
                doubts[doubt].append(name)
            jobs.append(_Job(one, Parent(parent_id, name)))
    for doubt, names in doubts.items():
        say(f"warning: {doubt} ({config.run}: {'; '.join(names[:3])}{'; …' * (len(names) > 3)})")
    return _Protocol(config, parent_id, jobs)


def tracked_parent(
    config: TrainConfig, description: Description, role: str, file: str, options: str
) -> str:
    """The MLflow run above others: that of an earlier start, or a new one → its id.

    Args:
        role: its tag `cfer.role`.
        file: the name of its record in the folder of the run.
        options: of the command, besides the configuration: seeds and values of a sweep, which may
            be more than at the earlier start.
    """
    location = location_of(config)
    run_id = read_record(location, file, config, description)
    if run_id is None:
        run_id = create_tracked_run(config, description, None, role)
        write_record(location, file, config, description, run_id)
    tracking.check_run(run_id, config.run)
    command = f"python -m cfer.train {command_of(config)}{options}"
    tracking.set_tag(run_id, tracking.COMMAND_TAG, command)
    return run_id


# ---- many runs at once ---------------------------------------------------------------------------


def _room(config: TrainConfig, parallel: int, num_jobs: int) -> tuple[int, Placement]:
    """How many runs at a time, and what each of their workers reserves."""
    nodes = cluster_nodes()
    gpus = sum(int(node.gpus) for node in nodes)
    cpus = sum(node.cpus for node in nodes)
    on_gpus = config.device != "cpu" and gpus >= config.workers
    most = (gpus if on_gpus else int(cpus)) // config.workers
    at_once = max(1, min(parallel or most, num_jobs))
    return at_once, place_workers(
        nodes, config.workers * at_once, config.device, config.cpus_per_worker
    )


def _run_jobs(jobs: Sequence[_Job], parallel: int) -> Iterator[_Job]:
    """Run them as Ray tasks, and yield each as it is done.

    Raises:
        InputError: at the end, where some failed.
    """
    at_once, placement = _room(jobs[0].config, parallel, len(jobs))
    say(f"{len(jobs)} runs, {at_once} at a time{_forecast(jobs, at_once, placement)}")
    started = time.monotonic()
    # A run of several workers reserves their CPUs, and reads its clips, itself.
    alone = jobs[0].config.workers == 1
    task = ray.remote(run).options(
        num_cpus=placement.cpus if alone else 0,
        num_gpus=1 if placement.use_gpu and alone else 0,
        max_retries=1,
    )
    # Runs that read the same clips in the same way follow each other, and share their rows.
    by_input: dict[tuple[str, Input], list[_Job]] = defaultdict(list)
    for job in jobs:
        by_input[job.config.data, job.config.what].append(job)
    waiting = deque(job for same in by_input.values() for job in same)
    rows: dict[tuple[str, Input], ray.ObjectRef] = {}
    running: dict[ray.ObjectRef, _Job] = {}
    failed: list[tuple[_Job, str]] = []
    done = 0
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.popleft()
            key = (job.config.data, job.config.what)
            if alone and key not in rows:
                rows = {key: ray.put(read_all_rows(job.config))}
            reference = task.remote(
                replace(
                    job.config,
                    data=absolute_location(job.config.data),
                    storage=absolute_location(job.config.storage),
                ),
                job.parent,
                at_once,
                rows[key] if alone else None,
                tracking.tracking_uri(),
            )
            running[reference] = job
        (ended,), _ = ray.wait(list(running))
        job = running.pop(ended)
        done += 1
        try:
            figures = ray.get(ended).figures
        except ray.exceptions.RayError as error:
            failed.append((job, str(error).strip().splitlines()[-1]))
            say(f"{job.config.run}: failed, and the others go on: {failed[-1][1]}")
            continue
        spent = time.monotonic() - started
        say(
            f"{done}/{len(jobs)}  {job.config.run}: accuracy {figures['held_out/accuracy']:.3f}, "
            f"UAR {figures['held_out/uar']:.3f}  ({spent:.0f} s, about "
            f"{spent / done * (len(jobs) - done):.0f} s left)"
        )
        yield job
    if failed:
        for parent_id in {job.parent.run_id for job, _ in failed}:
            tracking.end_run(parent_id, succeeded=False)
        names = ", ".join(job.config.run for job, _ in failed[:5])
        raise InputError(
            f"{len(failed)} of {len(jobs)} runs failed ({names}{', …' if len(failed) > 5 else ''}):"
            f" {failed[0][1]}; start the same command again to do what is left"
        )


def _forecast(jobs: Sequence[_Job], at_once: int, placement: Placement) -> str:
    """About how long, where that can be timed here: on this machine's CPUs."""
    if placement.use_gpu or jobs[0].config.workers > 1:
        return ""
    one_of_each = {job.parent.run_id: job.config for job in jobs}
    seconds = {parent_id: _seconds_of_a_run(one) for parent_id, one in one_of_each.items()}
    minutes = sum(seconds[job.parent.run_id] for job in jobs) / at_once / 60
    return f": about {minutes:.0f} minutes" if minutes >= 1 else ": less than a minute"


def _seconds_of_a_run(config: TrainConfig) -> float:
    """About how long a run takes on one core of this machine: a few turns on noise are timed."""
    description = read_description(config.data)
    num_clips = len(split_clips(read_index(config.data), config).train)
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
    turns = config.epochs * math.ceil(num_clips / config.batch_size)
    return SECONDS_AROUND_A_RUN + min(times[1:]) * turns


# ---- their means and deviations ------------------------------------------------------------------


def _summarize(protocol: _Protocol) -> Summary:
    """Mean, deviation and pooled confusion matrix, in the parent run.

    In the mean each run counts the same (of `loso`, each person); in what is pooled, each clip.
    """
    runs: dict[str, Results] = {}
    videos: dict[str, str] = {}  # read where a run has to be attacked
    for job in protocol.jobs:
        results = read_results(location_of(job.config))
        assert results is not None, f"{job.config.run} has not finished"
        if not is_of_this_suite(results.figures):
            videos = videos or read_videos(job.config.data)
            results = _attacked_again(job, results, videos)
        runs[job.parent.name] = results
        tracking.mark_finished(results.mlflow_run_id)
    figures = [results.figures for results in runs.values()]
    # Of so few clips an ECE is too high: it is that of all runs' clips, below.
    mean = {
        name: value
        for name, value in means_of_runs(figures).items()
        if not name.startswith("calibration/")
    }
    values = {name: [each[name] for each in figures if name in each] for name in mean}
    summary = Summary(
        config=protocol.config,
        num_runs=len(runs),
        mean=mean,
        deviation={
            name: float(np.std(each, ddof=1)) for name, each in values.items() if len(each) > 1
        },
        confusion=np.sum([results.confusion for results in runs.values()], axis=0),
    )
    pooled = recognition(summary.confusion)
    clips = ScoredClips.concatenate(
        [held_out_people(*_stored_predictions(results)) for results in runs.values()]
    )
    calibrated = calibration(clips)
    classes = read_description(protocol.config.data).classes
    tracker = tracking.Tracker(protocol.parent_id)
    tracker.log_figures(
        {
            **summary.mean,
            **{f"{name}_sd": value for name, value in summary.deviation.items()},
            **{f"pooled/{name}": value for name, value in pooled.items()},
            **calibrated,
            "num_runs": len(runs),
        },
        0,
    )
    title = f"{protocol.config.run}: pooled over {len(runs)} runs, UAR {pooled['uar']:.3f}"
    tracker.log_figure(confusion_figure(summary.confusion, classes, title), "confusion.png")
    if calibrated:
        title = f"{protocol.config.run}: held-out subjects of {len(runs)} runs"
        tracker.log_figure(reliability_figure(clips, title), "reliability.png")
    tracker.log_table(
        {"classes": classes, "confusion": summary.confusion.tolist()}, "confusion.json"
    )
    tracker.log_table({name: asdict(results) for name, results in runs.items()}, "runs.json")
    tracking.end_run(protocol.parent_id, succeeded=True)
    return summary


def _attacked_again(job: _Job, results: Results, videos: Mapping[str, str]) -> Results:
    """The stored codes of a run that an earlier cfer trained, by today's attacks."""
    say(f"{job.config.run}: attacked anew, by attacks that it was not tried with")
    train, held_out = _stored_predictions(results)
    suite = attack(held_out_people(train, held_out), train, videos, seed=job.config.seed)
    figures = attack_figures(suite)
    kept = {name: value for name, value in results.figures.items() if not is_attack(name)}
    attacked = replace(results, figures=kept | figures)
    tracking.Tracker(results.mlflow_run_id).log_figures(figures, job.config.epochs)
    write_results(location_of(job.config), attacked)
    return attacked


def _stored_predictions(results: Results) -> tuple[ScoredClips, ScoredClips]:
    """Of the clips trained on, and of the others."""
    predictions = predictions_of(tracking.find_run(results.mlflow_run_id))
    assert predictions is not None, f"run {results.mlflow_run_id} has no predictions"
    return predictions


def lines_of(summaries: Sequence[Summary]) -> str:
    """A line or two for each protocol, for the user."""
    lines = []
    for summary in summaries:

        def figure(name: str, summary: Summary = summary) -> str:
            if name not in summary.mean:
                return "-"
            spread = f" ± {summary.deviation[name]:.3f}" if name in summary.deviation else ""
            return f"{summary.mean[name]:.3f}{spread}"

        lines.append(
            f"{summary.config.run}, {summary.num_runs} runs: accuracy "
            f"{figure('held_out/accuracy')}, UAR {figure('held_out/uar')}; identity in the code: "
            f"linkage {figure(strongest(summary.mean, LINKAGE))}, verification "
            f"{figure(strongest(summary.mean, VERIFICATION))} (pooled AUC of the strongest "
            "attacker; one run, by chance: "
            f"{chance_of(summary.mean, LINKAGE):.2f}, {chance_of(summary.mean, VERIFICATION):.2f})"
        )
        pooled = recognition(summary.confusion)
        if any(figure(f"held_out/{n}")[:5] != f"{pooled[n]:.3f}" for n in ("accuracy", "uar")):
            each = "each person" if summary.config.folds == LOSO else "each run"
            lines.append(
                f"  In these means {each} counts the same; where each clip does: accuracy "
                f"{pooled['accuracy']:.3f}, UAR {pooled['uar']:.3f}"
            )
    return "\n".join(lines)
