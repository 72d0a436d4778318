"""The real extraction job at scale: the machine-hours of millions of clips, and its memory.

Each run is the job in a process of its own, on a Ray of its own on this machine. `measure_hours`
times the stages of a clip on one core without Ray, in turns with whole jobs, and multiplies.
`measure_run` is one long job, of which the memory of all processes is sampled.
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
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmarks.extract import IDENTITY, Stages, clocked
from benchmarks.material import many_clips, write_rows
from benchmarks.measure import Measurement, Ratio
from benchmarks.memory import KINDS, Sample, Watch, growth, settled
from cfer.data.shards import Clip, read_description
from cfer.data.storage import Folder
from cfer.errors import InputError
from cfer.video.pictures import open_pictures
from pipeline.settings import ExtractionSettings, FaceNetwork

CLIPS_OF_STAGES, CLIPS_OF_A_JOB, CLIPS_OF_A_RUN = 8, 240, 20_000
MANY = (1_000_000, 100_000_000)
STAGES_ALONE, DIGEST = "the stages alone, on one core", "hash the source"
# Each source is read for its digest, and then to be extracted.
READS_OF_A_SOURCE = 2
# Memory is flat where it grows by no more than this; a million clips then add 2 GB.
FLAT_MB_PER_1000_CLIPS = 2.0
WARM_UP = 0.1  # a share of the clips


# ---- running the job -----------------------------------------------------------------------------


def run_job(
    rows: Sequence[dict[str, str]],
    folder: Path,
    workers: int,
    clips_per_shard: int,
    *,
    identity: Sequence[str] = ("dlib",),
    cores: int | None = None,
    seconds_between: float = 0.5,
) -> list[Sample]:
    """Extract a manifest's rows into FOLDER/shards, and check the result → samples of its memory.

    The samples are in FOLDER/memory.csv as soon as they are taken, and the job's output is in
    FOLDER/job.log; a job that was killed goes on when this is called again.

    Args:
        identity: the face network, and `--gpu` where it is to run on GPUs.
        cores: confines all its processes to so many cores.
        seconds_between: two samples.

    Raises:
        InputError: it failed; the end of its log is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest, shards, log = folder / "manifest.csv", folder / "shards", folder / "job.log"
    write_rows(manifest, rows)
    command = [
        *(sys.executable, "-m", "pipeline.extract"),
        *("--videos", str(manifest), "--out", str(shards), "--identity", *identity),
        *("--actors", str(workers), "--clips-per-shard", str(clips_per_shard)),
    ]
    with log.open("ab") as output:
        # Not on a cluster that happens to run here: its memory would not be this job's.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "RAY_ADDRESS": "local"}
        )
    if cores is not None:
        os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:cores])
    watch = Watch(process.pid, folder / "memory.csv")
    try:
        while process.returncode is None:
            watch.sample(min(len(rows), clips_per_shard * len(_records(shards))))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds_between)
    finally:
        if process.returncode is None:
            process.terminate()  # it ends Ray's processes itself
        # Else they would share the cores with the next job.
        for member in psutil.wait_procs(watch.members, timeout=20)[1]:
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.wait()
    if process.returncode:
        end = log.read_text(errors="replace")[-2000:]
        raise InputError(f"{' '.join(command)} failed; {log} ends:\n{end}")
    _verify(shards, rows)
    return watch.samples


def _records(shards: Path) -> list[Path]:
    """The completion records that are there."""
    return [path for path in shards.glob("shard-*.json") if re.search(r"-\d+\.json$", path.name)]


def _verify(shards: Path, rows: Sequence[dict[str, str]]) -> None:
    """Every clip of the manifest is in the shards, or among the failures, and no other."""
    description = read_description(shards)
    found = {failure.clip_id for failure in description.failures}
    for path in description.shard_paths(Folder(shards)):
        found.update(pq.read_table(path, columns=["clip_id"])["clip_id"].to_pylist())
    found = {re.sub(r"#\d{4,}$", "", clip_id) for clip_id in found}
    if found != {row["clip_id"] for row in rows}:
        raise AssertionError(f"{shards}: {len(found)} clips came out, {len(rows)} went in")


def clips_per_second(shards: Path, workers: int, clips_per_shard: int) -> float:
    """From when every worker has finished a shard to the last one's end: without the start."""
    ends = sorted(path.stat().st_mtime for path in _records(shards))
    if len(ends) <= workers or ends[-1] == ends[workers - 1]:
        raise InputError(
            f"{shards}: {len(ends)} finished shards are too few to measure the throughput of "
            f"{workers} workers; give more --clips"
        )
    return clips_per_shard * (len(ends) - workers) / (ends[-1] - ends[workers - 1])


# ---- machine-hours -------------------------------------------------------------------------------


def measure_hours(
    material: Path,
    clips: int,
    workers: Sequence[int],
    clips_per_shard: int,
    rounds: int,
    identity: FaceNetwork = "dlib",
    gpu: bool = False,
) -> Measurement:
    """The stages on one core, and jobs with each number of workers and as many cores, in turns.

    A worker is a pair of processes that takes turns on its core: on a machine with more cores than
    workers it would use two.

    Args:
        clips: of each job.
        gpu: embed the I-frames on a GPU.

    Raises:
        InputError: the machine has fewer cores than workers, the material fewer clips, or dlib,
            which has no use for a GPU, is given one.
    """
    cores = len(os.sched_getaffinity(0))
    if not 1 <= min(workers) <= max(workers) <= cores:
        given = " ".join(map(str, workers))
        raise InputError(f"--workers {given}: this machine has {cores} cores; give 1 to {cores}")
    if gpu and identity == "dlib":
        raise InputError("--gpu: dlib stays on the CPU; add --identity facenet")
    rows = many_clips(material, clips)
    stages = Stages(ExtractionSettings(identity=identity), "cuda" if gpu else "cpu")
    sources = [Path(row["path"]) for row in rows[:CLIPS_OF_STAGES]]
    names = {count: f"{count} worker{'s' * (count > 1)}" for count in workers}
    rates: dict[str, list[float]] = {STAGES_ALONE: [], **{name: [] for name in names.values()}}
    spent: list[dict[str, float]] = []
    stage_seconds(stages, sources)  # warms up
    for number in tqdm(range(rounds), "scale", unit="round", disable=None, leave=False):
        seconds, extracted = stage_seconds(stages, sources)
        spent.append(seconds)
        rates[STAGES_ALONE].append(1 / sum(seconds.values()))
        for count in workers if number % 2 == 0 else reversed(workers):
            with tempfile.TemporaryDirectory() as folder:
                network = (identity, *["--gpu"] * gpu)
                run_job(rows, Path(folder), count, clips_per_shard, identity=network, cores=count)
                shards = Path(folder, "shards")
                rates[names[count]].append(clips_per_second(shards, count, clips_per_shard))
                files = [*shards.glob("shard-*")]
                bytes_out = sum(path.stat().st_size for path in files) / clips
    first = names[workers[0]]
    measurement = Measurement.of(
        "scale",
        f"each job of {clips} clips: each clip came out once",
        rates,
        dict.fromkeys(rates, "clips"),
        [
            Ratio(first, STAGES_ALONE, 0.8 * workers[0]),
            *(Ratio(names[n], first, 0.85 * n / workers[0]) for n in workers[1:]),
        ],
    )
    medians = {name: statistics.median(one[name] for one in spent) for name in spent[0]}
    bytes_in = sum(path.stat().st_size for path in sources) / len(sources)
    job_seconds = workers[0] / measurement.rates[first].median
    frames = sum(open_pictures(path).count() for path in sources) / len(sources)
    encoded = sum(clip.num_frames for clip in extracted) / len(sources)
    measurement.figures = {
        "a clip": f"{frames:g} frames, {encoded:g} of them encoded; {bytes_in:,.0f} bytes in, "
        f"{bytes_out:,.0f} out",
        **{stage: f"{1000 * seconds:.2f} ms for a clip" for stage, seconds in medians.items()},
        "all stages": f"{sum(medians.values()):.4f} seconds for a clip",
    }
    for count in MANY:
        measurement.figures[f"{count:,} clips"] = machine_hours(
            count, medians, job_seconds, bytes_in, bytes_out, gpu
        )
    return measurement


def stage_seconds(stages: Stages, sources: Sequence[Path]) -> tuple[dict[str, float], list[Clip]]:
    """Seconds of each stage for one of these clips, on average, and what was extracted."""
    with tempfile.TemporaryDirectory() as folder:
        clips, spent = stages.extract(sources, Path(folder))
    with clocked(spent, DIGEST):
        for path in sources:
            hashlib.sha256(path.read_bytes()).digest()
    return {stage: seconds / len(sources) for stage, seconds in spent.items()}, clips


def machine_hours(
    clips: int,
    stages: Mapping[str, float],
    job_seconds: float,
    bytes_in: float,
    bytes_out: float,
    gpu: bool,
) -> str:
    """What so many clips take.

    Args:
        stages: seconds of each for a clip.
        job_seconds: core-seconds of the whole job for a clip.
        bytes_in, bytes_out: of a clip, and of its part of the shards.
        gpu: whether the embedding was timed on a GPU.
    """
    on_gpu = stages[IDENTITY] if gpu else 0.0
    on_cores = sum(stages.values()) - on_gpu
    return (
        f"{clips * on_cores / 3600:,.0f} core-hours and {clips * on_gpu / 3600:,.0f} GPU-hours by "
        f"the stages, {clips * job_seconds / 3600:,.0f} core-hours by the job; "
        f"{clips * bytes_in * READS_OF_A_SOURCE / 1e9:,.0f} GB read, "
        f"{clips * bytes_out / 1e9:,.0f} GB written"
    )


# ---- one long run --------------------------------------------------------------------------------


def measure_run(
    material: Path, out: Path, clips: int, workers: int, clips_per_shard: int
) -> Measurement:
    """Extract `clips` clips into OUT/shards; does the memory stay flat?

    A run that was killed goes on, and is judged by the clips that were left.
    """
    samples = run_job(
        many_clips(material, clips), out, workers, clips_per_shard,
        seconds_between=min(5.0, clips / 80),
    )  # fmt: skip
    measurement = judged(samples)
    counts = read_description(out / "shards").counts
    measurement.verified = (
        f"{clips} clips went in, {counts['clips']} rows and {counts['failures']} failures came "
        "out, each clip once"
    )
    return measurement


def judged(samples: Sequence[Sample]) -> Measurement:
    """The throughput and the memory of a run, by its samples.

    Raises:
        InputError: too few of them.
    """
    warm_up = int(WARM_UP * (samples[-1].clips - samples[0].clips))
    used = settled(samples, warm_up)
    slope = growth(used, attrgetter("total"))
    thirds = _rates(samples)
    last, first = "extraction, last third", "extraction, first third"
    measurement = Measurement.of(
        "scale run",
        "",
        {last: thirds[-1:], first: thirds[:1]},
        {last: "clips", first: "clips"},
        [Ratio(last, first, 0.9)],
    )
    is_flat = slope <= FLAT_MB_PER_1000_CLIPS
    measurement.figures = {
        "memory": f"{'flat' if is_flat else 'NOT FLAT'}: {slope:+.2f} MB with 1,000 clips, after "
        f"the first {warm_up}; flat is up to {FLAT_MB_PER_1000_CLIPS:g}",
        "time": f"{samples[-1].seconds:,.0f} s",
    }
    for kind in ("total", *KINDS):
        value = attrgetter(kind)
        measurement.figures[f"memory, {kind}"] = (
            f"{max(map(value, used)):,.0f} MB at most, "
            f"{growth(used, value):+.2f} MB with 1,000 clips"
        )
    return measurement


def _rates(samples: Sequence[Sample]) -> list[float]:
    """Clips per second in three parts of the run, from its first finished shard to its last."""
    moved = [s for before, s in itertools.pairwise(samples) if s.clips > before.clips]
    if len(moved) < 4:
        raise InputError("the run was too short to measure its throughput; give more --clips")
    ends = [moved[(len(moved) - 1) * part // 3] for part in range(4)]
    return [
        (after.clips - before.clips) / (after.seconds - before.seconds)
        for before, after in itertools.pairwise(ends)
    ]
