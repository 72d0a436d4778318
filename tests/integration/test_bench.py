"""The memory of other processes, as the benches see it."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.memory import Watch

# Shares what it has with a child, which has some of its own.
FAMILY = """
import os, signal
mine = b"x" * 80_000_000
if os.fork() == 0:
    own = b"y" * 40_000_000
print("ready", flush=True)
signal.pause()
"""


def test_the_memory_of_a_family_counts_shared_pages_once(tmp_path: Path):
    """A child that only reads what it inherited adds nothing; what it writes is its own."""
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        watch = Watch(process.pid, tmp_path / "memory.csv")
        watch.sample(clips=7)
        (sample,) = watch.samples
        assert (sample.processes, sample.clips) == (2, 7)
        assert 120 < sample.total < 160
        assert sample.total == sample.driver + sample.workers + sample.ray
        with (tmp_path / "memory.csv").open(newline="") as log:
            (row,) = csv.DictReader(log)
        assert float(row["driver"]) == pytest.approx(sample.driver, abs=0.01)
    finally:
        for member in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
            member.send_signal(signal.SIGKILL)
        process.wait()
