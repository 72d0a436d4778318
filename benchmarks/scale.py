"""The real extraction job at scale: its memory, its throughput, and what millions of clips cost.

Each run is `python -m pipeline.extract` in a process of its own, on a Ray of its own on this
machine, with a thread here that samples the memory of all its processes. The *cost model* knows
what each stage takes (measured without Ray, on one core) and takes from two small runs what the job
takes besides; then it says beforehand how long two larger runs take, and they are run.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmarks import cost
from benchmarks.cost import Assumptions, Costs, predict
from benchmarks.extract import (
    ENCODE,
    FACES,
    IDENTITY,
    READ,
    RESIDUALS,
    STAGES,
    WRITE,
    Clock,
    Extracted,
    Stages,
)
from benchmarks.material import many_clips, write_rows
from benchmarks.measure import Measurement, Ratio, Spread, measurement_of
from benchmarks.memory import (
    PARTS,
    Sample,
    Watch,
    available_cores,
    by_run,
    cores_of_others,
    growth,
    machine_seconds,
    read_log,
    settled_runs,
)
from cfer.codec import CodecSettings
from cfer.data.shards import cut_into_shards, expected_bytes, read_description
from cfer.data.storage import Folder
from cfer.errors import InputError

# The job's defaults, given to it by name so that stages and job are sure to do the same.
SIZE, SETTINGS, WINDOW_GOPS = 112, CodecSettings(3, 4, gop_span=24), 20
WINDOW_FRAMES = WINDOW_GOPS * SETTINGS.span
CLIPS_OF_STAGES, CLIPS_OF_A_RUN, CLIPS_OF_WORKERS = 8, 20_000, 240
# Memory is flat where it grows by no more than this; a million clips then add 2 GB.
FLAT_MB_PER_1000_CLIPS = 2.0
WARM_UP = 0.1  # a share of the clips
SECONDS_TO_END = 20

Draw = Callable[[Path], None]


@dataclass(frozen=True)
class Sizes:
    """How many clips: of the two runs that are fitted, of those that are predicted, and of the
    manifest that tells, beside the largest of them, what the driver holds of each clip."""

    fitted: tuple[int, int]
    checked: tuple[int, ...]
    planned: int

    @classmethod
    def of(cls, workers: int, clips_per_shard: int, quick: bool) -> Sizes:
        turn = workers * clips_per_shard
        if quick:
            return cls((turn, 3 * turn), (6 * turn,), turn)
        return cls((turn, 10 * turn), (120, 480), 4000)


@dataclass(frozen=True)
class Job:
    """A run of the job: its wall time, its samples, and how many cores other programs used."""

    seconds: float
    samples: list[Sample]
    cores_of_others: float
    folder: Path

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def clips_per_second(self, workers: int, clips_per_shard: int) -> float:
        """From when every worker has finished a shard to the last one's end: without the start."""
        ends = sorted(path.stat().st_mtime for path in _records(self.shards))
        if len(ends) <= workers or ends[-1] == ends[workers - 1]:
            raise InputError(
                f"{self.folder}: {len(ends)} finished shards of {workers} workers tell no "
                "throughput; give more --clips"
            )
        return clips_per_shard * (len(ends) - workers) / (ends[-1] - ends[workers - 1])


# ---- running the job -----------------------------------------------------------------------------


def run_job(
    rows: list[dict[str, str]],
    folder: Path,
    workers: int,
    clips_per_shard: int,
    seconds_between: float = 0.5,
    only_plan: bool = False,
    cores: int | None = None,
) -> Job:
    """Extract a manifest's rows into FOLDER/shards, and check what came out.

    The samples are in FOLDER/memory.csv as soon as they are taken, and the job's own words in
    FOLDER/job.log; a job that was killed goes on when this is called again.

    Args:
        only_plan: end it when its first shard is finished.
        cores: with all its processes on so many cores, in place of all that there are.

    Raises:
        InputError: it failed; the end of its log is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest, shards = folder / "manifest.csv", folder / "shards"
    write_rows(manifest, rows)
    command = [
        *(sys.executable, "-m", "pipeline.extract"),
        *("--videos", str(manifest), "--out", str(shards), "--identity", "dlib"),
        *("--actors", str(workers), "--clips-per-shard", str(clips_per_shard)),
        *("--size", str(SIZE), "--gop-size", str(SETTINGS.gop_size)),
        *("--gop-span", str(SETTINGS.span), "--quantizer", str(SETTINGS.quantizer)),
        *("--window-gops", str(WINDOW_GOPS)),
    ]

    def finished() -> int:
        return min(len(rows), clips_per_shard * len(_records(shards)))

    before, started = machine_seconds(), time.monotonic()
    with (folder / "job.log").open("ab") as log:
        # Not on a cluster that happens to run here: its memory would not be this job's.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "RAY_ADDRESS": "local"}
        )
    if cores is not None:
        os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:cores])
    watch = Watch(process.pid, finished, seconds_between, folder / "memory.csv")
    with watch:
        try:
            while process.poll() is None:
                if only_plan and finished():
                    break
                time.sleep(0.05)
            seconds = time.monotonic() - started
        finally:
            is_left = process.poll() is None
            _end(process, watch)
    if process.returncode and not (only_plan and is_left):
        text = (folder / "job.log").read_text(errors="replace")
        raise InputError(f"{' '.join(command)} failed; {folder / 'job.log'} ends:\n{text[-2000:]}")
    used = watch.samples[-1].cpu_seconds if watch.samples else 0.0
    job = Job(seconds, watch.samples, cores_of_others(before, used), folder)
    if not only_plan:
        _verify(shards, rows)
    return job


def _end(process: subprocess.Popen[bytes], watch: Watch) -> None:
    """Nothing that was started stays: Ray's processes end with their driver, or are ended."""
    if process.poll() is None:
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_END
    while watch.family and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.05)
    for member in watch.family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _records(shards: Path) -> list[Path]:
    """The completion records that are there."""
    if not shards.is_dir():
        return []
    with os.scandir(shards) as entries:
        return [Path(entry.path) for entry in entries if re.match(r"shard-\d+\.json$", entry.name)]


def _verify(shards: Path, rows: Sequence[dict[str, str]]) -> None:
    """Every clip of the manifest is in the shards, or among the failures, and no other."""
    description = read_description(shards)
    found = {failure.clip_id for failure in description.failures}
    for path in description.shard_paths(Folder(shards)):
        found.update(pq.read_table(path, columns=["clip_id"])["clip_id"].to_pylist())
    found = {re.sub(r"#\d{4,}$", "", clip_id) for clip_id in found}
    if found != {row["clip_id"] for row in rows}:
        raise AssertionError(f"{shards}: {len(found)} clips came out, {len(rows)} went in")


# ---- the cost model ------------------------------------------------------------------------------


def measure_cost(
    material: Path,
    workers: int,
    clips_per_shard: int,
    rounds: int,
    frames: int | None,
    assumptions: Assumptions,
    quick: bool,
) -> tuple[Measurement, Draw]:
    """Measure, fit, predict, run what was predicted; then predict what can't be run here.

    Args:
        frames: of each clip in the large predictions; None: as many as the material's have.
    """
    sizes = Sizes.of(workers, clips_per_shard, quick)
    rows = many_clips(material, max(*sizes.checked, sizes.planned))
    costs, clip = _stage_costs(rows[:CLIPS_OF_STAGES], clips_per_shard, rounds)
    jobs: dict[int, Job] = {}
    with tempfile.TemporaryDirectory() as folder:

        def job_of(count: int, only_plan: bool = False) -> Job:
            target = Path(folder, str(count))
            return run_job(rows[:count], target, workers, clips_per_shard, only_plan=only_plan)

        for count in tqdm(sizes.fitted, "fitted", unit="run", disable=None, leave=False):
            jobs[count] = job_of(count)
        rate = jobs[sizes.fitted[-1]].clips_per_second(workers, clips_per_shard)
        costs = costs.fitted(
            clip,
            clips_per_shard,
            workers,
            clips_per_shard * workers / rate,
            [(count, jobs[count].seconds) for count in sizes.fitted],
        )
        predicted = {
            count: costs.job_seconds(clip, count, clips_per_shard, workers)
            for count in sizes.checked
        }
        for count in tqdm(sizes.checked, "checked", unit="run", disable=None, leave=False):
            jobs[count] = job_of(count)
        largest = jobs[sizes.checked[-1]]
        clip = replace(clip, bytes_out=_bytes_of(largest.shards) / sizes.checked[-1])
        planned = jobs.get(sizes.planned) or job_of(sizes.planned, only_plan=True)
    driver_bytes = 1e6 * (_planned_mb(planned) - _planned_mb(largest))
    costs = replace(
        costs,
        driver=growth(largest.samples, workers * clips_per_shard, attrgetter("driver_cpu_seconds"))
        / 1000,
        driver_bytes=max(0.0, driver_bytes / (sizes.planned - sizes.checked[-1])),
    )
    measurement = _checked(jobs, predicted, sizes, rounds)
    measurement.figures = {
        "a clip": f"{clip.frames:g} frames, {clip.encoded:g} of them encoded; "
        f"{clip.bytes_in:,.0f} bytes in, {clip.bytes_out:,.0f} out",
        **_cost_figures(costs, clip, clips_per_shard),
        "other programs": f"{max(j.cores_of_others for j in jobs.values()):.1f} of "
        f"{available_cores()} cores at most, during a run",
    }
    large_clip = clip if frames is None else clip.of_length(frames, SETTINGS, WINDOW_FRAMES)
    for count in (1_000_000, 100_000_000):
        measurement.figures |= _prediction_figures(
            predict(
                costs, large_clip, count, clips_per_shard, _planned(large_clip, count), assumptions
            ),
            large_clip,
            assumptions,
        )
    model = partial(costs.job_seconds, clip, clips_per_shard=clips_per_shard, workers=workers)
    return measurement, partial(_draw_cost, measurement, jobs, sizes, model)


def _planned(clip: cost.Clip, count: int) -> int:
    """How many of so many such clips the job puts into a shard."""
    each = expected_bytes(clip.bytes_in, SIZE, SETTINGS)
    # A million clips are enough for shards of full size.
    return len(cut_into_shards([each] * min(count, 1_000_000))[0])


def _stage_costs(
    rows: Sequence[dict[str, str]], clips_per_shard: int, rounds: int
) -> tuple[Costs, cost.Clip]:
    """What the stages cost in this process, and what the clips are; medians over the rounds."""
    stages = Stages(SIZE, SETTINGS, WINDOW_FRAMES)
    paths = [Path(row["path"]) for row in rows]
    num_bytes = sum(path.stat().st_size for path in paths)
    seconds: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "hash")}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            clock = Clock()
            done = [
                stages.extract(paths[first : first + clips_per_shard], Path(folder), clock)
                for first in range(0, len(paths), clips_per_shard)
            ]
            with clock.stage("hash"):
                for path in paths:
                    hashlib.sha256(path.read_bytes()).digest()
            if number:  # the first round warms up
                for stage, values in seconds.items():
                    values.append(clock.spent[stage])
    spent = {stage: statistics.median(values) for stage, values in seconds.items()}
    return _per_unit(spent, done, len(paths), num_bytes)


def _per_unit(
    spent: dict[str, float], done: Sequence[Extracted], count: int, num_bytes: int
) -> tuple[Costs, cost.Clip]:
    clips = [clip for extracted in done for clip in extracted.clips]
    frames = sum(extracted.source_frames for extracted in done)
    encoded = sum(clip.num_frames for clip in clips)
    costs = Costs(
        frame=spent[READ] / frames,
        window=spent[FACES] / len(clips),
        encoded=(spent[ENCODE] + spent[RESIDUALS]) / encoded,
        identity=spent[IDENTITY] / len(clips),
        row=spent[WRITE] / len(clips),
        megabyte=spent["hash"] / (num_bytes / 1e6),
    )
    clip = cost.Clip(
        frames=frames / count,
        encoded=encoded / count,
        windows=len(clips) / count,
        bytes_in=num_bytes / count,
        bytes_out=sum(len(clip.bitstream) for clip in clips) / count,
    )
    return costs, clip


def _bytes_of(shards: Path) -> int:
    return sum(
        path.stat().st_size for record in _records(shards)
        for path in (record, record.with_suffix(".parquet"))
    )  # fmt: skip


def _planned_mb(job: Job) -> float:
    """The driver's memory when its first clips are finished."""
    return next((s.driver for s in job.samples if s.clips), job.samples[-1].driver)


def _checked(
    jobs: dict[int, Job], predicted: dict[int, float], sizes: Sizes, rounds: int
) -> Measurement:
    rates, units, ratios = {}, {}, []
    for count in sizes.checked:
        measured, said = f"{count} clips, measured", f"{count} clips, as predicted"
        rates[measured] = [count / jobs[count].seconds]
        rates[said] = [count / predicted[count]]
        units[measured] = units[said] = "clips"
        ratios.append(Ratio(measured, said, 0.8))
    counts = [*sizes.fitted, *sizes.checked]
    return measurement_of(
        rates,
        units,
        ratios,
        "scale",
        f"runs of {', '.join(map(str, counts))} clips: each clip came out once; "
        f"stages: {rounds} rounds",
    )


def _cost_figures(costs: Costs, clip: cost.Clip, clips_per_shard: int) -> dict[str, str]:
    each = costs.clip_seconds(clip)
    return {
        "decode and crop": f"{1000 * costs.frame:.2f} ms for a frame of the video",
        "find the face": f"{1000 * costs.window:.1f} ms for a window",
        "encode, read residuals": f"{1000 * costs.encoded:.2f} ms for an encoded frame",
        "embed an I-frame": f"{1000 * costs.identity:.1f} ms for a window",
        "write": f"{1000 * costs.row:.2f} ms for a row",
        "hash": f"{1000 * costs.megabyte:.2f} ms for a megabyte",
        "all stages": f"{each:.4f} core-seconds for a clip",
        "the job, fitted": f"{costs.start:.1f} s to start and end; for a shard of "
        f"{clips_per_shard} clips {costs.shard:.3f} s besides the stages, "
        f"{costs.shard / costs.shard_seconds(clip, clips_per_shard):.0%} of its time",
        "the driver": f"{1000 * costs.driver:.2f} core-ms and {costs.driver_bytes:,.0f} bytes of "
        f"memory for a clip: it can feed {each / costs.driver:,.0f} workers"
        if costs.driver > 0
        else f"no time that could be measured; {costs.driver_bytes:,.0f} bytes for a clip",
    }


def _prediction_figures(
    made: cost.Prediction, clip: cost.Clip, given: Assumptions
) -> dict[str, str]:
    name = f"{made.clips:,} clips"
    return {
        f"{name}: time": f"{made.machines:,} machine{'s' * (made.machines > 1)} of "
        f"{given.cores} cores for {made.hours:.1f} hours ({made.core_hours:,.0f} core-hours), in "
        f"{made.jobs} job{'s' * (made.jobs > 1)}; {clip.frames:g} frames a clip",
        f"{name}: bytes": f"{made.bytes_read / 1e9:,.0f} GB read, {made.bytes_out / 1e9:,.0f} GB "
        f"written in {made.files:,} files; {made.puts:,} requests to write, {made.gets:,} to read",
        f"{name}: money": f"{made.money:,.0f} = {made.money_cores:,.0f} for cores (assumed "
        f"{given.core_hour:g} a core-hour) + {made.money_requests:,.0f} for requests (assumed "
        f"{given.puts:g} and {given.gets:g} for 1,000); storage {made.money_storage_month:,.0f} "
        f"a month (assumed {given.gb_month:g} a GB)",
    }


def _draw_cost(
    measurement: Measurement,
    jobs: dict[int, Job],
    sizes: Sizes,
    model: Callable[[int], float],
    path: Path,
) -> None:
    figure, (axes,) = _axes(1, f"cost model: {measurement.circumstances['processor']}")
    counts = range(0, max(sizes.checked) + 1, max(1, max(sizes.checked) // 60))
    axes.plot(counts, [model(count) for count in counts], color="tab:blue", label="model")
    for name, those, face in (("fitted", sizes.fitted, "white"), ("checked", sizes.checked, None)):
        seconds = [jobs[count].seconds for count in those]
        axes.scatter(
            those, seconds, facecolor=face or "tab:orange", edgecolor="tab:orange", zorder=3,
            label=f"measured, {name}",
        )  # fmt: skip
    axes.set_xlabel("clips")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=100)


# ---- one long run --------------------------------------------------------------------------------


def measure_run(
    material: Path, out: Path, clips: int, workers: int, clips_per_shard: int, quick: bool
) -> tuple[Measurement, Draw]:
    """Extract `clips` clips; does the memory stay flat? Goes on where a killed one was."""
    rows = many_clips(material, clips)
    job = run_job(rows, out, workers, clips_per_shard, 0.2 if quick else 5.0)
    samples = read_log(out / "memory.csv")
    measurement = judged(samples, clips)
    measurement.figures["other programs"] = (
        f"{job.cores_of_others:.1f} of {available_cores()} cores"
    )
    description = read_description(job.shards)
    measurement.verified = (
        f"{clips} clips went in, {description.counts['clips']} rows and "
        f"{description.counts['failures']} failures came out, each clip once"
    )
    return measurement, partial(draw_run, samples, measurement)


def judged(samples: Sequence[Sample], clips: int) -> Measurement:
    """What the samples of a run say of its throughput and its memory.

    Raises:
        InputError: too few of them.
    """
    warm_up = int(WARM_UP * clips)
    settled = list(itertools.chain.from_iterable(settled_runs(samples, warm_up)))
    slope = growth(samples, warm_up, attrgetter("total"))
    rates = _rates(samples)
    measurement = measurement_of(
        {"extraction, last third": rates[-1:], "extraction, first third": rates[:1]},
        {"extraction, last third": "clips", "extraction, first third": "clips"},
        [Ratio("extraction, last third", "extraction, first third", 0.9)],
        "scale run",
        "",
    )
    is_flat = slope <= FLAT_MB_PER_1000_CLIPS
    measurement.figures = {
        "memory": f"{'flat' if is_flat else 'NOT FLAT'}: {slope:+.2f} MB with 1,000 clips, after "
        f"the first {warm_up}; flat is up to {FLAT_MB_PER_1000_CLIPS:g}",
        "memory, most": f"{max(s.total for s in settled):,.0f} MB",
        "runs": f"{len(by_run(samples))}, {sum(r[-1].seconds for r in by_run(samples)):,.0f} s",
    }
    for part in PARTS:
        values = [getattr(sample, part) for sample in settled]
        part_slope = growth(samples, warm_up, attrgetter(part))
        measurement.figures[f"memory, {part.replace('_', ' ')}"] = (
            f"{statistics.median(values):,.0f} MB, {part_slope:+.2f} MB with 1,000 clips"
        )
    return measurement


def _rates(samples: Sequence[Sample]) -> list[float]:
    """Clips per second in three parts of the run, without the times when no job ran."""
    steps = []
    for run in by_run(samples):
        moved = [s for before, s in itertools.pairwise(run) if s.clips > before.clips]
        steps += [
            (after.clips - before.clips, after.seconds - before.seconds)
            for before, after in itertools.pairwise(moved)
        ]
    if len(steps) < 3:
        raise InputError("the run was too short to tell its throughput; give more --clips")
    parts = [steps[len(steps) * n // 3 : len(steps) * (n + 1) // 3] for n in range(3)]
    return [sum(clips for clips, _ in part) / sum(s for _, s in part) for part in parts]


def draw_run(samples: Sequence[Sample], measurement: Measurement, path: Path) -> None:
    """Memory and finished clips over time; the runs of a job that was killed, one after another."""
    minutes, before = [], 0.0
    for run in by_run(samples):
        minutes += [(before + sample.seconds) / 60 for sample in run]
        before += run[-1].seconds
    title = f"{samples[-1].clips:,} clips: memory {measurement.figures['memory']}"
    figure, (memory, clips) = _axes(2, title)
    for part in PARTS:
        memory.plot(minutes, [getattr(s, part) for s in samples], label=part.replace("_", " "))
    memory.plot(minutes, [s.total for s in samples], color="black", label="total")
    memory.set_ylabel("MB")
    memory.set_ylim(bottom=0)
    memory.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.05), frameon=False)
    clips.plot(minutes, [s.clips for s in samples], color="tab:gray")
    clips.set_ylabel("clips finished")
    clips.set_xlabel("minutes")
    figure.savefig(path, dpi=100)


# ---- more workers --------------------------------------------------------------------------------


def measure_workers(
    material: Path, clips: int, workers: Sequence[int], clips_per_shard: int, rounds: int
) -> tuple[Measurement, Draw]:
    """The job's throughput with each number of workers and as many cores, in turns.

    A worker is a pair of processes, which takes turns on its core: on a machine of more cores than
    workers it would use two.

    Raises:
        InputError: the machine has fewer cores than workers.
    """
    cores = available_cores()
    if max(workers) > cores:
        raise InputError(f"--actors {max(workers)}: this machine has {cores} cores; give fewer")
    rows = many_clips(material, clips)
    names = {count: f"{count} worker{'s' * (count > 1)}" for count in workers}
    rates: dict[str, list[float]] = {name: [] for name in names.values()}
    others = []
    for number in tqdm(range(rounds), "workers", unit="round", disable=None, leave=False):
        for count in workers if number % 2 == 0 else reversed(workers):
            with tempfile.TemporaryDirectory() as folder:
                job = run_job(rows, Path(folder), count, clips_per_shard, cores=count)
                rates[names[count]].append(job.clips_per_second(count, clips_per_shard))
            others.append(job.cores_of_others)
    first = workers[0]
    measurement = measurement_of(
        rates,
        dict.fromkeys(rates, "clips"),
        [Ratio(names[n], names[first], 0.85 * n / first) for n in workers[1:]],
        "scale workers",
        f"each run of {clips} clips: each clip came out once",
    )
    measurement.figures["other programs"] = f"{max(others):.1f} of {cores} cores at most"
    return measurement, partial(_draw_workers, measurement, names)


def _draw_workers(measurement: Measurement, names: dict[int, str], path: Path) -> None:
    figure, (axes,) = _axes(1, f"throughput: {measurement.circumstances['processor']}")
    spreads: list[Spread] = [measurement.rates[name] for name in names.values()]
    counts = list(names)
    medians = [spread.median for spread in spreads]
    low = [spread.median - spread.low for spread in spreads]
    high = [spread.high - spread.median for spread in spreads]
    axes.errorbar(counts, medians, (low, high), marker="o", capsize=4, label="measured")
    ideal = [medians[0] * count / counts[0] for count in counts]
    axes.plot(counts, ideal, color="tab:gray", linestyle="--", label="in proportion")
    axes.set_xticks(counts)
    axes.set_xlabel("workers")
    axes.set_ylabel("clips per second")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=100)


def _axes(rows: int, title: str):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, figsize=(9, 2 + 2.6 * rows), sharex=rows > 1, layout="constrained", squeeze=False
    )
    figure.suptitle(title, fontsize=10)
    return figure, axes[:, 0]
