"""The extraction and the training, told to stop by Ctrl-C or SIGTERM: nothing is left running, and
the same command goes on. And what listens while they work: nothing beyond loopback."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import (
    EXTRACTION,
    MOST_SECONDS,
    REPOSITORY,
    extract,
    is_loopback,
    listening,
    wait_for,
)

from cfer.data.shards import read_description

STOPPED = "interrupted; what is finished is kept\n"


class Command:
    """A command in a session of its own, as a terminal's foreground job; with all its processes."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.family: dict[int, psutil.Process] = {}
        self.listening: set[tuple[str, str]] = set()
        self.lines: list[str] = []
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
        """Note new members of the family."""
        others = [p for p in psutil.process_iter(["ppid"]) if p.pid not in self.family]
        while new := [process for process in others if self._is_parent(process.info["ppid"])]:
            self.family |= {process.pid: process for process in new}
            others = [process for process in others if process.pid not in self.family]

    def _is_parent(self, pid: int) -> bool:
        return pid in self.family and self.family[pid].is_running()

    def names(self) -> str:
        return "\n".join(_what_runs(member) for member in self.family.values())

    def wait_for(self, is_due: Callable[[], bool]) -> None:
        """Meanwhile its processes are noted, and then where they listen."""

        def look_and_ask() -> bool:
            self.look()
            return is_due()

        try:
            # Each look is at all processes of the machine; it is not to hold the command up.
            wait_for(look_and_ask, self.process, seconds_between=0.2)
        except AssertionError as error:
            error.add_note("".join(self.lines))
            raise
        self.listening |= listening(self.family.values())

    def stop(self, number: signal.Signals, to_group: bool, times: int = 1) -> list[str]:
        """Send the signal, and see that nothing is left → what was said after it."""
        said = len(self.lines)
        for _ in range(times):
            # While one is on its way, another of its kind would be none.
            wait_for(lambda: not self._has_coming(number))
            if self.process.poll() is None:
                (os.killpg if to_group else os.kill)(self.process.pid, number)
        self.process.wait()
        # Not later: left to themselves, some of Ray's would end after a minute, too.
        left = [command for member in self.family.values() if (command := _what_runs(member))]
        assert all("multiprocessing.resource_tracker" in command for command in left), left
        psutil.wait_procs(list(self.family.values()), timeout=MOST_SECONDS)
        self._reader.join()
        assert not self._own_memory()
        return self.lines[said:]

    def _has_coming(self, number: signal.Signals) -> bool:
        """Whether a signal was sent to the process, and has not arrived."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        (pending,) = (line.split()[1] for line in status.splitlines() if line[:7] == "ShdPnd:")
        return bool(int(pending, 16) & 1 << number - 1)

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

    def kill(self) -> None:
        for member in self.family.values():
            if member.is_running():
                member.kill()
        self.process.wait()


def _what_runs(member: psutil.Process) -> str:
    """Its command line; nothing of one that has ended."""
    try:
        return " ".join(member.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Command]]:
    """Starts a command in the test's folder; where the test fails, it is ended."""
    commands: list[Command] = []

    def start(arguments: list[str]) -> Command:
        commands.append(Command(arguments, tmp_path))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


# ---- the extraction ------------------------------------------------------------------------------

NUM_CLIPS = 60  # of which many are left when the first is done


@pytest.fixture(scope="module")
def videos(drawn_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest that has each of the drawn videos several times."""
    file = tmp_path_factory.mktemp("videos") / "many.csv"
    paths = sorted((drawn_videos / "videos").glob("*/*.mp4"))
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "clip_id"))
        writer.writerows((paths[n % len(paths)], n) for n in range(NUM_CLIPS))
    return file


def extraction(videos: Path, out: Path) -> list[str]:
    return [
        *(str(REPOSITORY / "pipeline" / "extract.py"), "--videos", str(videos), "--out", str(out)),
        *EXTRACTION,
    ]


def test_extraction_ends_at_ctrl_c_and_goes_on(start, videos, ray_session, tmp_path) -> None:
    out = tmp_path / "out"
    command = start(extraction(videos, out))
    command.wait_for(lambda: any(out.glob("shard-*.parquet")))
    said = command.stop(signal.SIGINT, to_group=True)
    assert command.process.returncode == 130
    assert [line for line in said if "interrupted" in line] == [STOPPED]
    assert not any("Traceback" in line for line in said)
    assert len(command.family) > 5
    assert len(command.listening) > 5
    assert all(is_loopback(address) for address, _ in command.listening), command.listening
    assert not (out / "dataset.json").exists()

    status, again = extract(videos, out)
    assert status == 0, again
    assert "of which 0 are done already" not in again
    assert read_description(out).counts["clips"] == NUM_CLIPS


@pytest.mark.parametrize(
    ("number", "process"), [(signal.SIGTERM, "gcs_server"), (signal.SIGINT, "raylet/raylet")]
)
def test_a_stop_while_ray_starts(start, number, process, videos, tmp_path) -> None:
    command = start(extraction(videos, tmp_path / "out"))
    command.wait_for(lambda: process in command.names())
    said = command.stop(number, to_group=False)
    assert command.process.returncode == 128 + number
    assert STOPPED in said
    assert not any("Traceback" in line for line in said)


# ---- the training --------------------------------------------------------------------------------


def test_training_ends_at_sigterm_and_goes_on(start, drawn_shards, tmp_path) -> None:
    """Also: at Ctrl-C twice, in the middle of the work."""
    training = [
        *("-m", "cfer.train", "--data", str(drawn_shards), "--workers", "2", "--run", "stopped"),
        *("--width", "8", "--code-dim", "32", "--batch-size", "4"),
        *("--epochs", "90000"),  # whatever the machine, it is in the midst of them
    ]
    folder = tmp_path / "runs" / "stopped"
    command = start(training)
    command.wait_for(lambda: any(folder.glob("epoch-*/state.json")))
    said = command.stop(signal.SIGTERM, to_group=False)
    assert command.process.returncode == 143
    assert STOPPED in said
    assert not any("Traceback" in line for line in said), said
    assert len(command.listening) > 8
    assert all(is_loopback(address) for address, _ in command.listening), command.listening
    before = max(folder.glob("epoch-*"))  # the one before it may be there yet

    command = start(training)
    command.wait_for(lambda: max(folder.glob("epoch-*")).name > before.name)
    said = command.stop(signal.SIGINT, to_group=True, times=2)
    assert command.process.returncode == 130
    assert "it was started before: going on from its last checkpoint\n" in command.lines
    assert not any("Traceback" in line for line in said), said
