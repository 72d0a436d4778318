"""A new store that several processes open at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers import REPOSITORY

CONNECT = """
import sys
from cfer import tracking
print("ready", flush=True)
sys.stdin.readline()
client = tracking.connect()
print(client.create_experiment(sys.argv[1]))
"""


def test_of_several_commands_that_begin_together_none_fails(tmp_path: Path) -> None:
    """Each would make the tables of the database."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONNECT, f"experiment {number}"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    assert len({out for out, _ in ended}) == 3
