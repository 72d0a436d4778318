"""Commands that are told to stop, by Ctrl-C or SIGTERM: nothing is left running, and the same
command goes on. And what listens while they work: nothing beyond loopback."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import EXTRACTION, REPOSITORY, extract, is_loopback, listening

from cfer.shards import read_description


class Command:
    """A command in a session of its own, as a terminal's foreground job; with all its processes."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        self.family: dict[int, psutil.Process] = {}
        self.listening: set[tuple[str, str]] = set()
        self.lines: list[str] = []
        self._next_listening = 0.0
        self._memory = set(os.listdir("/dev/shm"))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family[self.process.pid] = psutil.Process(self.process.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def look(self) -> None:
        """Note new members of the family, and now and then where they listen."""
        others = [p for p in psutil.process_iter(["ppid"]) if p.pid not in self.family]
        while new := [process for process in others if self._is_parent(process.info["ppid"])]:
            self.family |= {process.pid: process for process in new}
            others = [process for process in others if process.pid not in self.family]
        if time.monotonic() > self._next_listening:
            self.listening |= listening(self.family.values())
            self._next_listening = time.monotonic() + 2

    def _is_parent(self, pid: int) -> bool:
        return pid in self.family and self.family[pid].is_running()

    def names(self) -> str:
        names = []
        for member in self.family.values():
            try:
                names.append(" ".join(member.cmdline()))
            except psutil.Error:
                continue
        return "\n".join(names)

    def wait_for(self, is_due: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not is_due():
            assert self.process.poll() is None, f"it ended first: {''.join(self.lines)}"
            assert time.monotonic() < deadline, "".join(self.lines)
            self.look()
            time.sleep(0.1)
        self.look()

    def stop(self, number: signal.Signals, to_group: bool, times: int = 1) -> list[str]:
        """Send the signal, and see that nothing is left → what was said after it."""
        said = len(self.lines)
        for n in range(times):
            if n:
                time.sleep(0.3)
            if self.process.poll() is None:
                (os.killpg if to_group else os.kill)(self.process.pid, number)
        try:
            self.process.wait(60)
            self._reader.join(10)
            _, left = psutil.wait_procs(list(self.family.values()), timeout=20)
            assert not left, ([member.cmdline() for member in left], self.lines)
            assert not self._own_memory()
        finally:
            for member in self.family.values():
                if member.is_running():
                    member.kill()
        return self.lines[said:]

    def _own_memory(self) -> set[str]:
        """New shared memory that no living process holds: what others use is theirs. So is what
        the servers of tests that run beside this one leave there when they are killed."""
        shared = Path("/dev/shm")
        new = {
            str(path)
            for path in shared.iterdir()
            if path.name not in self._memory
            and not path.name.startswith("PostgreSQL.")
            and not any(path.glob("*mlflow*"))
        }
        for process in psutil.process_iter() if new else ():
            try:
                new -= {part.path for part in process.memory_maps()}
                new -= {file.path for file in process.open_files()}
            except psutil.Error:
                continue
        return {name for name in new if os.path.exists(name)}


@pytest.fixture(scope="module")
def few_videos(drawn_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 14 of the drawn videos."""
    rows = list(csv.DictReader((drawn_videos / "manifest.csv").open()))[:14]
    file = tmp_path_factory.mktemp("few") / "few.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(row | {"path": drawn_videos / row["path"]} for row in rows)
    return file


def extraction(videos: Path, out: Path) -> list[str]:
    return [
        *(str(REPOSITORY / "pipeline" / "extract.py"), "--videos", str(videos), "--out", str(out)),
        *EXTRACTION,
    ]


def training(shards: Path) -> list[str]:
    return [
        *("-m", "cfer.train", "--data", str(shards), "--workers", "2", "--run", "stopped"),
        *("--width", "8", "--code-dim", "32", "--batch-size", "8", "--epochs", "60"),
    ]


def test_extraction_ends_at_ctrl_c_and_goes_on(
    few_videos: Path, ray_session: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = Command(*extraction(few_videos, out), folder=tmp_path)
    command.wait_for(lambda: any(out.glob("shard-*.parquet")))
    said = command.stop(signal.SIGINT, to_group=True)
    assert command.process.returncode == 130
    assert [line for line in said if "interrupted" in line] == [
        "interrupted; what is finished is kept\n"
    ]
    assert not any("Traceback" in line for line in said)
    assert len(command.family) > 5
    assert len(command.listening) > 5
    assert all(is_loopback(address) for address, _ in command.listening), command.listening
    assert not (out / "dataset.json").exists()

    status, again = extract(few_videos, out)
    assert status == 0, again
    assert "of which 0 are done already" not in again
    assert read_description(out).counts["clips"] == 14


@pytest.mark.parametrize(
    ("number", "process"), [(signal.SIGTERM, "gcs_server"), (signal.SIGINT, "raylet/raylet")]
)
def test_a_stop_while_ray_starts(
    number: signal.Signals, process: str, few_videos: Path, tmp_path: Path
) -> None:
    command = Command(*extraction(few_videos, tmp_path / "out"), folder=tmp_path)
    command.wait_for(lambda: process in command.names())
    said = command.stop(number, to_group=False)
    assert command.process.returncode == 128 + number
    assert "interrupted; what is finished is kept\n" in said
    assert not any("Traceback" in line for line in said)


LOST = """
import os, signal, subprocess, sys, threading
from cfer import errors

errors.MOST_SECONDS_TO_STOP = 2
lock = threading.Lock()

class Hook:
    def __del__(self):
        lock.acquire()
        subprocess.Popen(["sh", "-c", "sleep 600 & wait"])
        print("within", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
        lock.release()

def main():
    Hook()
    print("after", file=sys.stderr)
    lock.acquire()

errors.exit_with_message(main)
"""


def test_a_stop_that_python_loses(tmp_path: Path) -> None:
    """Where Python ignores exceptions, the handler's too; and whoever waits then waits for ever."""
    command = Command("-c", LOST, folder=tmp_path)
    command.wait_for(lambda: len(command.family) == 3)
    command.process.wait(60)
    command.stop(signal.SIGTERM, to_group=False)
    assert command.process.returncode == 143
    assert command.lines[0] == "within\n"
    assert command.lines[-2:] == ["after\n", "interrupted; what is finished is kept\n"]


def test_training_ends_at_sigterm_and_goes_on(drawn_shards: Path, tmp_path: Path) -> None:
    """Also: at Ctrl-C twice, in the middle of the work."""
    folder = tmp_path / "runs" / "stopped"
    command = Command(*training(drawn_shards), folder=tmp_path)
    command.wait_for(lambda: any(folder.glob("epoch-*/state.json")))
    said = command.stop(signal.SIGTERM, to_group=False)
    assert command.process.returncode == 143
    assert "interrupted; what is finished is kept\n" in said
    assert not any("Traceback" in line for line in said), said
    assert len(command.listening) > 8
    assert all(is_loopback(address) for address, _ in command.listening), command.listening
    before = max(folder.glob("epoch-*"))  # the one before it may be there yet

    command = Command(*training(drawn_shards), folder=tmp_path)
    command.wait_for(lambda: max(folder.glob("epoch-*")).name > before.name)
    said = command.stop(signal.SIGINT, to_group=True, times=2)
    assert command.process.returncode == 130
    assert "it was started before: going on from its last checkpoint\n" in command.lines
    assert not any("Traceback" in line for line in said), said
