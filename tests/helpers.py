"""What tests share beside fixtures: processes and their ports, the project's own commands, its
pages."""

from __future__ import annotations

import contextlib
import glob
import http.client
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
DRAWN = Path(__file__).parent / "fixtures" / "drawn"
SHARDS = Path(__file__).parent / "fixtures" / "shards"
# Most of the tests' time is waiting. Two processes and what they start take some 12 GB.
NUM_PROCESSES = 2
# A wait is for an event. This only ends one for an event that will never come, also on a machine
# that is ten times slower than the one on which the longest took two minutes.
MOST_SECONDS = 1500
# An MLflow server starts seven processes more, for jobs that no test has.
NO_MLFLOW_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

# Below those that Linux gives to whoever asks for any, so nobody takes one before it is used; the
# ones 10,000 above, where SeaweedFS listens too, are among those. Ray's own begin at 10,002.
PORTS = range(20_000, 22_768)


# ---- processes -----------------------------------------------------------------------------------


def _ports_of_this_process() -> Iterator[int]:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    own = PORTS[int(worker.removeprefix("gw")) :: NUM_PROCESSES]
    first = random.randrange(len(own))  # several suites may run on a machine
    return itertools.cycle([*own[first:], *own[:first]])


_next_ports = _ports_of_this_process()


def free_ports(count: int) -> list[int]:
    """At which nothing listens; never the same again."""
    ports: list[int] = []
    while len(ports) < count:
        port = next(_next_ports)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


def is_open(port: int) -> bool:
    with socket.socket() as one:
        # A free port may be the one that the connection is made from.
        return one.connect_ex(("127.0.0.1", port)) == 0 and one.getsockname()[1] != port


def wait_for(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    seconds_between: float = 0.02,
) -> None:
    """Until it holds. A `process` that ends before has failed: nothing is left to wait for."""
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        assert process is None or process.poll() is None, f"it ended first: {process.args}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(seconds_between)


def kill_with_children(process: subprocess.Popen) -> None:
    """As a machine that goes down does: Ray's processes too, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=MOST_SECONDS)


def listening(family: Iterable[psutil.Process]) -> set[tuple[str, str]]:
    """Where processes listen by TCP: the address, and which it is."""
    found = set()
    for member in family:
        try:
            for connection in member.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, " ".join(member.cmdline())[:80]))
        except psutil.Error:  # it has ended
            continue
    return found


def is_loopback(address: str) -> bool:
    return address.removeprefix("::ffff:") in ("127.0.0.1", "::1")


def find_postgres() -> Path | None:
    """The folder of a PostgreSQL server's programs; Debian keeps it off the PATH."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(packaged, key=lambda file: float(file.parts[-3]), default=None)
    return None if newest is None else newest.parent


@dataclass
class S3Server:
    """A real S3 server of our own, on loopback; it can be told to fail."""

    port: int
    uri: str = ""  # of an empty bucket

    def request(self, method: str, path: str) -> bytes:
        # Not urllib, which would keep the proxies that it found at its first use.
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return answer.read()
        finally:
            connection.close()

    def be(self, mode: str) -> int:
        """A mode from now on (s3_server.py) → how many requests were disturbed so far."""
        return int(self.request("POST", f"/-/be/{mode}"))


# ---- the project's commands ----------------------------------------------------------------------

EXTRACTION = ("--size", "64", "--identity", "dlib", "--clips-per-shard", "2", "--actors", "1")


def run_module(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGUMENTS`, from the repository."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=False,
        **options,
    )


def extract(videos: str | Path, out: str | Path, *options: str) -> tuple[int, str]:
    """On the session's own Ray → the exit status, and what was said on stderr."""
    from pipeline.extract import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["--videos", str(videos), "--out", str(out), *EXTRACTION, *options])
    return status, said.getvalue()


def start_extraction(
    videos: str | Path, out: str | Path, *options: str, **environment: str
) -> subprocess.Popen[bytes]:
    """On a Ray of its own, in a session of its own; a test that fails shows what it said."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.extract", "--videos", str(videos), "--out", str(out)]
        + [*EXTRACTION, *options],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


# Loaded by each Python process that has it on its path; opening the poisoned file ends the process
# within native code, as a fault of the decoder does.
POISON = """
import ctypes
import av

_open = av.open

def _open_or_crash(file, *arguments, **options):
    if str(getattr(file, "name", file)).endswith("_poisoned.mp4"):
        ctypes.string_at(0)
    return _open(file, *arguments, **options)

av.open = _open_or_crash
"""


def poisoned_python(folder: Path) -> str:
    """A PYTHONPATH, in a new folder: on it, Python crashes at files called `…_poisoned.mp4`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(POISON)
    return str(folder)


def shard_bytes(out: Path) -> dict[str, bytes]:
    files = [*out.glob("shard-*"), out / "dataset.json", out / "failures.csv"]
    return {file.name: file.read_bytes() for file in files}


def start_serving(
    *options: str, token: str = "", **environment: str
) -> tuple[int, subprocess.Popen[str]]:
    """`cfer serve`, and wait until it answers → its port and process."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "cfer.cli", "serve", "--port", str(port), *options]
        + ["--time-limit", str(MOST_SECONDS)],
        env={**os.environ, "CFER_TOKEN": token, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "serves the model" in line:
            break
    else:
        raise AssertionError(f"the server ended with {process.wait()}")
    # What it has to say later must not fill the pipe.
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return port, process


@contextlib.contextmanager
def serving(
    *options: str, token: str = "", **environment: str
) -> Iterator[tuple[int, psutil.Process]]:
    """`cfer serve` → its port and process, once it answers; it ends by SIGTERM, with status 0."""
    port, process = start_serving(*options, token=token, **environment)
    try:
        yield port, psutil.Process(process.pid)
        process.terminate()
        assert process.wait(MOST_SECONDS) == 0
    finally:
        if process.poll() is None:
            kill_with_children(process)


def ask(
    port: int,
    path: str,
    body: bytes | None = None,
    token: str = "",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Ask a server on this machine → status, and what it answers."""
    shown = {"Authorization": f"Bearer {token}"} if token else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MOST_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, body, {**shown, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()


def as_mpegts(*videos: Path) -> bytes:
    """The videos' pictures one after another, as a camera would send them: H.264 in MPEG-TS."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.pix_fmt = "yuv420p"
        for video in videos:
            with av.open(str(video)) as source:
                for frame in source.decode(video=0):
                    if not stream.codec_context.is_open:
                        stream.height, stream.width = frame.height, frame.width
                    picture = frame.to_ndarray(format="rgb24")
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


class Pipe(io.BytesIO):
    """What is there is given; whoever wants more than that at a time would wait for it."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read(1000)

    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("it would wait")

    def seek(self, *_: int) -> int:
        raise AssertionError("a pipe can't")


def windows_of(printed: str | bytes) -> list[dict[str, Any]]:
    """Of what `cfer predict --json` prints, the windows; the rest are events."""
    return [told for told in map(json.loads, printed.splitlines()) if "event" not in told]


@dataclass(frozen=True)
class Trained:
    """A finished run of the whole game, on two workers.

    Attributes:
        name: of the run, in MLflow and as a model.
        epochs: how many it was trained for.
        store: the MLflow store's URI.
        storage: the folder of runs.
        options: those of the command that trained it, without where things are.
    """

    name: str
    epochs: int
    store: str
    storage: Path
    options: tuple[str, ...]


# ---- the project's pages -------------------------------------------------------------------------


def commands(title: str, page: str = "README.md") -> list[str]:
    """The commands under a title of a page, without what they say of themselves."""
    section = (REPOSITORY / page).read_text().split(f"# {title}\n")[1]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section.split("\n## ")[0], re.M | re.S)
    return command_lines(block)


def command_lines(block: str) -> list[str]:
    """The commands of a block of shell, each as one line."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = [re.split(r"\s+# ", line)[0].rstrip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run_documented_bench(command: str, folder: Path, *more: str) -> dict[str, Any]:
    """With more options, in this folder and on a drawn clip → its file of figures.

    Whatever one of docs/speed.md is: it prints its result, and finds what is documented.
    """
    from benchmarks.__main__ import main

    cfer, bench, *words = command.split()
    assert (cfer, bench) == ("cfer", "bench")
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        Path("shards").symlink_to(SHARDS)
        Path("videos").mkdir()
        Path("videos", "one.mp4").symlink_to(DRAWN / "videos" / "S001" / "surprise_1.mp4")
        words = [path for word in words for path in glob.glob(word) or [word]]
        assert main([*words, "--rounds", "1", *more]) == 0
        found: dict[str, Any] = json.loads(Path(f"{words[0]}.json").read_text())
    documented = json.loads((REPOSITORY / "docs" / "bench" / f"{words[0]}.json").read_text())
    assert found["ratios"].keys() == documented["ratios"].keys()
    assert found["targets"] == documented["targets"]
    for name, ratio in found["ratios"].items():
        assert ratio["median"] > 0
        assert name in printed.getvalue()
    assert found["verified"] in printed.getvalue()
    assert set(found["circumstances"]) >= {"command", "commit", "processor", "software"}
    return found


@contextlib.contextmanager
def ray_head(folder: Path, **variables: str) -> Iterator[str]:
    """A cluster as `ray start --head` makes it in a folder, with a dashboard; the jobs' address."""
    # Socket names below Ray's folder must be short.
    files = Path("/tmp") / f"cfer-{os.getpid()}"
    ports = free_ports(4)
    names = (
        "--port",
        "--dashboard-port",
        "--dashboard-agent-listen-port",
        "--ray-client-server-port",
    )
    environment = {
        **os.environ,
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "disabled",
        # A job's `python` is the one that is found where the cluster was started.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **variables,
    }
    head = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        + [f"--temp-dir={files}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        + [f"{name}={port}" for name, port in zip(names, ports, strict=True)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: is_open(ports[1]) and is_open(ports[2]), head)
        yield f"http://127.0.0.1:{ports[1]}"
    finally:
        kill_with_children(head)
        shutil.rmtree(files, ignore_errors=True)
