"""Real parts, made once: a Ray session, drawn videos, and the shards extracted from them."""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parent.parent
# Most of the tests' time is waiting. Two processes and what they start take some 12 GB.
NUM_PROCESSES = 2
# These take minutes each, and begin first, so that no process is left alone with one at the end.
LONG_FILES = """
    test_nodes test_training_faults test_docs test_cluster test_bench test_interrupts test_train
    test_faults test_cli test_scale test_extract test_serve test_protocol test_predict test_models
    test_benchmark
""".split()

# A test never joins a Ray cluster that happens to run on the machine.
os.environ["RAY_ADDRESS"] = "local"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What these two tell their makers is not what tests do.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}
# An MLflow server starts seven processes more, for jobs that no test has.
NO_MLFLOW_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
os.environ |= NO_MLFLOW_JOBS


# Below those that Linux gives to whoever asks for any, so nobody takes one before it is used; the
# ones 10,000 above, where SeaweedFS listens too, are such ones as well. Ray's own begin at 10,002.
PORTS = range(20_000, 22_768)


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


# Where the tests' S3 server is; said here, so that the processes of the session's Ray know it too.
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Only the whole suite is run by several processes: a file by itself can be debugged."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return NUM_PROCESSES if is_whole else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def no_store_is_left_behind() -> Iterator[None]:
    """MLflow puts the store that a process connects to into its environment: the next test's
    subprocesses would write there."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def faces_dir() -> Path:
    """Real face videos, where there are some: ../shared/faces, or the folder in CFER_FACES."""
    folder = Path(os.environ.get("CFER_FACES", REPOSITORY.parent / "shared" / "faces"))
    if not any(folder.glob("*.mp4")):
        pytest.skip(f"no real face videos in {folder} (name a folder of them in CFER_FACES)")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Of a name and of what makes a folder: the folder, which the first of pytest's processes that
    needs it has made for all of them. Nobody writes into it afterwards."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, is_made = common / name, common / f"{name}.made"
        with FileLock(common / f"{name}.lock"):
            if not is_made.exists():
                make(folder)
                is_made.touch()
        return folder

    return folder_of


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


def is_open(port: int) -> bool:
    with socket.socket() as one:
        # A free port may be the one that the connection is made from.
        return one.connect_ex(("127.0.0.1", port)) == 0 and one.getsockname()[1] != port


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def find_postgres() -> Path | None:
    """The folder of a PostgreSQL server's programs; Debian keeps it off the PATH."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(packaged, key=lambda file: float(file.parts[-3]), default=None)
    return None if newest is None else newest.parent


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """As a machine that goes down does: Ray's processes too, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=20)


# ---- extraction ----------------------------------------------------------------------------------

EXTRACTION = ("--size", "64", "--identity", "dlib", "--clips-per-shard", "2", "--actors", "1")


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


def shard_bytes(out: Path) -> dict[str, bytes]:
    files = [*out.glob("shard-*"), out / "dataset.json", out / "failures.csv"]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="session")
def six_videos(drawn_videos: Path, made_once: MadeOnce) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        for source in sorted((drawn_videos / "videos" / "S001").glob("*.mp4"))[:6]:
            shutil.copy(source, folder / source.name)

    return made_once("six", make)


@pytest.fixture(scope="session")
def undisturbed(six_videos: Path, ray_session: None, made_once: MadeOnce) -> Path:
    """The six videos, extracted without any fault, in three shards."""

    def make(out: Path) -> None:
        status, said = extract(six_videos, out)
        assert status == 0, said

    return made_once("undisturbed", make)


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


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a checkout holds of the program, without what Git ignores: to be shipped with a job."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("cfer", "pipeline"):
        shutil.copytree(
            REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


@pytest.fixture(scope="session")
def drawn_videos(made_once: MadeOnce) -> Path:
    """8 drawn subjects × 7 classes, as the built-in data set writes them."""

    def make(folder: Path) -> None:
        done = run_module(
            "pipeline.datasets.synthetic", "--out", str(folder), "--subjects", "8", "--workers", "2"
        )
        assert done.returncode == 0, done.stderr

    return made_once("drawn", make)


@pytest.fixture(scope="session")
def drawn_shards(drawn_videos: Path, made_once: MadeOnce) -> Path:
    """The drawn videos, extracted by the real job: 64×64, GOP 12, dlib's embedding."""

    def make(folder: Path) -> None:
        done = run_module(
            "pipeline.extract",
            *("--videos", str(drawn_videos / "manifest.csv"), "--out", str(folder)),
            *("--size", "64", "--gop-size", "12", "--gop-span", "12", "--quantiser", "2"),
            *("--identity", "dlib", "--clips-per-shard", "14"),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once("shards", make)


@pytest.fixture(scope="session")
def trained_store(drawn_shards: Path, made_once: MadeOnce) -> str:
    """An MLflow store's URI, with a short run `short` of the whole game in it."""

    def store_in(folder: Path) -> str:
        return f"sqlite:///{folder / 'mlflow.db'}"

    def make(folder: Path) -> None:
        folder.mkdir()
        done = run_module(
            "cfer.train",
            *("--data", str(drawn_shards), "--workers", "2", "--epochs", "3", "--run", "short"),
            *("--lambda", "1", "--mu", "0.1", "--storage", str(folder / "runs")),
            env={**os.environ, "MLFLOW_TRACKING_URI": store_in(folder)},
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return store_in(made_once("trained", make))


# ---- an object store -----------------------------------------------------------------------------


@dataclass
class S3Server:
    """A real S3 server of our own, on loopback; it can be told to fail."""

    port: int
    uri: str = ""  # of an empty bucket

    def request(self, method: str, path: str) -> bytes:
        # Not urllib, which would keep the proxies that it found at its first use.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return answer.read()
        finally:
            connection.close()

    def be(self, mode: str) -> int:
        """`500`, `503`, `slow` or `well` from now on → how many requests were disturbed so far."""
        return int(self.request("POST", f"/-/be/{mode}"))


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    port = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    server = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests" / "s3_server.py"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: is_open(port))
        yield S3Server(port)
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(s3_process: S3Server, request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """The server, in order, with a bucket of this test's own."""
    bucket = re.sub("[^a-z0-9]+", "-", request.node.name.lower())[:63].strip("-")
    s3_process.request("PUT", f"/{bucket}")
    yield S3Server(s3_process.port, f"s3://{bucket}")
    s3_process.be("well")


@pytest.fixture
def s3_bucket(s3: S3Server) -> str:
    """The URI of an empty bucket."""
    return s3.uri
