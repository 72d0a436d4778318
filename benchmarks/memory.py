"""The memory of a running job, of all its processes together, and whether it stays flat.

What counts is memory that no file backs: each process's own, and the shared memory of Ray's object
store, of which each page counts once (PSS: a page that three processes share is a third of a page
in each). Mapped files, such as PyTorch's libraries, are left out: the kernel drops their pages when
it wants to, and they are shared with whatever else runs on the machine.
"""

from __future__ import annotations

import csv
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cfer.errors import InputError

MB = 1e6
PARTS = ("driver", "workers", "ray", "object_store")
# Processes that have a name as a job's actors do, and are Ray's.
RAYS_OWN = ("ray::_", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::ActorLocationTracker")


@dataclass(frozen=True)
class Sample:
    """A job at one moment.

    Attributes:
        run: 0, and one more each time that the job was started again.
        seconds: since that run's start.
        clips: finished until now, in all runs.
        driver, workers, ray, object_store: MB, of the process that was started, of the actors that
            do the work, of Ray's own processes, and in shared memory.
        processes: how many there are.
        cpu_seconds, driver_cpu_seconds: what they have used in this run, together; and the driver.
    """

    run: int
    seconds: float
    clips: int
    driver: float
    workers: float
    ray: float
    object_store: float
    processes: int
    cpu_seconds: float
    driver_cpu_seconds: float

    @property
    def total(self) -> float:
        return self.driver + self.workers + self.ray + self.object_store


class Watch:
    """Samples a process and all that it starts, from now to the end of the `with` block.

    Args:
        pid: of the process.
        clips: how many clips are finished.
        seconds_between: two samples.
        log: a CSV to which each sample is appended as soon as it is taken, if any.
    """

    def __init__(
        self, pid: int, clips: Callable[[], int], seconds_between: float, log: Path | None = None
    ) -> None:
        self.samples: list[Sample] = []
        self._root, self._clips, self._pause = psutil.Process(pid), clips, seconds_between
        self._log = log
        self._run = 1 + max((sample.run for sample in read_log(log)), default=-1) if log else 0
        self._started = time.monotonic()
        self._cpu_seconds: dict[psutil.Process, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def family(self) -> list[psutil.Process]:
        """Every process that was seen and is there still."""
        return [member for member in list(self._cpu_seconds) if _is_alive(member)]

    def _watch(self) -> None:
        while not self._ended.wait(self._pause):
            sample = self._sample()
            if sample is None:
                return
            self.samples.append(sample)
            if self._log is not None:
                append_log(self._log, sample)

    def _sample(self) -> Sample | None:
        memory = dict.fromkeys(PARTS, 0.0)
        try:
            members = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return None
        count = 0
        for member in members:
            try:
                own, shared = _unbacked(member.pid)
                times = member.cpu_times()
                part = "driver" if member == self._root else _part(member)
            except (psutil.Error, OSError):  # it has ended meanwhile
                continue
            self._cpu_seconds[member] = times.user + times.system
            memory[part] += own / MB
            memory["object_store"] += shared / MB
            count += 1
        return Sample(
            run=self._run,
            seconds=time.monotonic() - self._started,
            clips=self._clips(),
            processes=count,
            cpu_seconds=sum(self._cpu_seconds.values()),
            driver_cpu_seconds=self._cpu_seconds.get(self._root, 0.0),
            driver=memory["driver"],
            workers=memory["workers"],
            ray=memory["ray"],
            object_store=memory["object_store"],
        )


def _is_alive(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _part(member: psutil.Process) -> str:
    command = " ".join(member.cmdline()[:1])
    return "workers" if command.startswith("ray::") and not command.startswith(RAYS_OWN) else "ray"


def _unbacked(pid: int) -> tuple[int, int]:
    """Bytes of a process's own memory, and its part of the shared memory that no file backs."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = [line.split() for line in file]
    kilobytes = {words[0]: int(words[1]) for words in lines if words[0].startswith("Pss_")}
    # Of a process that has ended and is still listed, the file is empty.
    return 1024 * kilobytes.get("Pss_Anon:", 0), 1024 * kilobytes.get("Pss_Shmem:", 0)


def append_log(path: Path, sample: Sample) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Sample)], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow({k: round(v, 3) for k, v in asdict(sample).items()})


def read_log(path: Path) -> list[Sample]:
    """The samples of all runs; none where there is no log.

    Raises:
        InputError: not such a log.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            return [_sample(row) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a log of a job's memory ({error!r}); remove it to begin again"
        ) from error


def _sample(row: dict[str, str]) -> Sample:
    values: dict[str, Any] = {
        f.name: (int if f.type == "int" else float)(row[f.name]) for f in fields(Sample)
    }
    return Sample(**values)


def growth(samples: Sequence[Sample], warm_up: int, value: Callable[[Sample], float]) -> float:
    """How much a value rises with 1,000 clips: a least-squares slope within each run.

    Args:
        warm_up: so many clips of every run do not count.
    """
    above, below = 0.0, 0.0
    for settled in settled_runs(samples, warm_up):
        if len(settled) < 2:
            continue
        clips = np.array([s.clips for s in settled], np.float64) / 1000
        values = np.array([value(s) for s in settled])
        clips -= clips.mean()
        above += float(clips @ (values - values.mean()))
        below += float(clips @ clips)
    if below == 0:
        raise InputError(
            f"no clip was finished after the first {warm_up} of a run, so there is no growth to "
            "tell; give more --clips"
        )
    return above / below


def settled_runs(samples: Iterable[Sample], warm_up: int) -> list[list[Sample]]:
    """Each run without its first clips, and without its end, when its processes leave."""
    runs = []
    for run in by_run(samples):
        usual = statistics.median(sample.processes for sample in run)
        last = max(n for n, sample in enumerate(run) if sample.processes >= usual)
        runs.append([s for s in run[: last + 1] if s.clips - run[0].clips >= warm_up])
    return runs


def by_run(samples: Iterable[Sample]) -> list[list[Sample]]:
    runs: dict[int, list[Sample]] = {}
    for sample in samples:
        runs.setdefault(sample.run, []).append(sample)
    return list(runs.values())


def cores_of_others(before: tuple[float, float], own_seconds: float) -> float:
    """How many cores other programs used since `machine_seconds()` was `before`."""
    now = machine_seconds()
    return max(0.0, (now[1] - before[1] - own_seconds) / max(now[0] - before[0], 1e-9))


def machine_seconds() -> tuple[float, float]:
    """The time, and what all programs have used of the cores until now."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)
    return time.monotonic(), busy


def available_cores() -> int:
    return len(os.sched_getaffinity(0))
