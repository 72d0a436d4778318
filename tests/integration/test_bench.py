"""What the benches say of the memory of other processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers import wait_for

from benchmarks.memory import Watch, read_log

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
        log = tmp_path / "memory.csv"
        with Watch(process.pid, lambda: 7, 0.01, log) as watch:
            wait_for(lambda: watch.samples)
            family = watch.family
        sample = watch.samples[0]
        assert sample.processes == len(family) == 2
        assert sample.clips == 7
        assert 120 < sample.total < 160
        assert sample.total == sample.driver + sample.workers + sample.ray + sample.object_store
        assert read_log(log)[0].total == pytest.approx(sample.total, abs=0.01)
        assert Watch(process.pid, lambda: 7, 1, log)._run == 1
    finally:
        for member in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
            member.send_signal(signal.SIGKILL)
        process.wait()
