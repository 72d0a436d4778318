"""The memory of a running job, of all its processes together, and whether it stays flat.

Counted is each process's proportional set size (PSS, by psutil): a page that three processes share
is a third of a page in each, so that the sum counts it once.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from cfer.errors import InputError

MB = 1e6
KINDS = ("driver", "workers", "ray")
# Processes that are named like a job's actors, and are Ray's.
RAYS_OWN = ("ray::_", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::ActorLocationTracker")


@dataclass(frozen=True)
class Sample:
    """A job at one moment.

    Attributes:
        seconds: since its start.
        clips: how many are finished.
        processes: how many there are.
        driver, workers, ray: MB, of the process that was started, of the actors that do the work,
            and of Ray's own processes with the object store.
    """

    seconds: float
    clips: int
    processes: int
    driver: float
    workers: float
    ray: float

    @property
    def total(self) -> float:
        return self.driver + self.workers + self.ray


class Watch:
    """Samples a process and all that it starts; each sample is in a CSV as soon as it is taken."""

    def __init__(self, pid: int, log: Path) -> None:
        self.samples: list[Sample] = []
        self.members: list[psutil.Process] = []  # as of the last sample
        self._root, self._log, self._started = psutil.Process(pid), log, time.monotonic()
        if not log.exists():  # a run that goes on after a kill adds to what was sampled before
            with log.open("w", newline="") as file:
                csv.writer(file).writerow(field.name for field in fields(Sample))

    def sample(self, clips: int) -> None:
        """Take one; `clips` are finished."""
        memory = dict.fromkeys(KINDS, 0.0)
        count = 0
        try:
            self.members = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in self.members:
            try:
                kind = "driver" if member == self._root else _kind(member)
                memory[kind] += member.memory_full_info().pss / MB
            except (psutil.Error, OSError):  # it has ended meanwhile
                continue
            count += 1
        self.samples.append(Sample(time.monotonic() - self._started, clips, count, **memory))
        with self._log.open("a", newline="") as file:
            csv.writer(file).writerow(round(v, 3) for v in asdict(self.samples[-1]).values())


def _kind(member: psutil.Process) -> str:
    name = " ".join(member.cmdline()[:1])
    return "workers" if name.startswith("ray::") and not name.startswith(RAYS_OWN) else "ray"


def settled(samples: Sequence[Sample], warm_up: int) -> list[Sample]:
    """Without the first `warm_up` clips, and without the end, when the processes leave."""
    usual = statistics.median(sample.processes for sample in samples)
    last = max(n for n, sample in enumerate(samples) if sample.processes >= usual)
    return [s for s in samples[: last + 1] if s.clips - samples[0].clips >= warm_up]


def growth(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """How much a value rises with 1,000 clips: the slope of a least-squares line.

    Raises:
        InputError: no clip was finished between the first sample and the last.
    """
    if not samples or samples[-1].clips == samples[0].clips:
        raise InputError(
            "too few clips were finished after the start to measure a growth; give more --clips"
        )
    thousands = [sample.clips / 1000 for sample in samples]
    return statistics.linear_regression(thousands, [value(s) for s in samples]).slope
