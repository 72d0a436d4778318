"""Real parts, made once: a Ray session, drawn videos, the shards extracted from them, a trained
model.

    tests/unit           in this process: no Ray, no other process
    tests/integration    one Ray session, servers on loopback, commands that are killed
    tests/slow           machines, faults, clusters, browsers, benches: `pytest tests/slow`
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from helpers import (
    DRAWN,
    NO_MLFLOW_JOBS,
    NUM_PROCESSES,
    REPOSITORY,
    SHARDS,
    S3Server,
    Trained,
    extract,
    free_ports,
    is_open,
    wait_for,
)

if TYPE_CHECKING:
    from cfer.video.faces import FaceDetector

# A test never joins a Ray cluster that happens to run on the machine.
os.environ["RAY_ADDRESS"] = "local"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What these two tell their makers is not what tests do.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ |= NO_MLFLOW_JOBS
# Where the tests' S3 server is; said here, so that the processes of the session's Ray know it too.
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "AWS_DEFAULT_REGION": "us-east-1",
}
# Of each folder, these take longest, and begin first: no process is left alone with one at the end.
LONG_FILES = """
    test_run test_train test_protocol test_extract test_serve test_benchmark test_demo
""".split()


# The longest of tests/slow take five minutes; a machine may be ten times slower.
SLOW_TIMEOUT_SECONDS = 3600
LEFT_OUT = "left out: its time had run out"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-slow-after",
        type=float,
        metavar="TIME",
        help="start no slow test after this time, in seconds since 1970; those left out are listed",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Only folders are run by several processes: a file by itself can be debugged."""
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    return NUM_PROCESSES if all(path.is_dir() for path in paths) else 0


def kind_of(item: pytest.Item) -> str:
    """The folder of `tests` that it is in."""
    return item.path.relative_to(Path(__file__).parent).parts[0]


def is_slow(item: pytest.Item) -> bool:
    return kind_of(item) == "slow"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.stem
        order = ("integration", "unit", "slow").index(kind_of(item))
        return order, LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)

    items.sort(key=place)
    for item in filter(is_slow, items):
        item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    latest = item.config.getoption("--no-slow-after")
    if latest is not None and is_slow(item) and time.time() > latest:
        pytest.skip(LEFT_OUT)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = [
        report.nodeid
        for report in terminalreporter.stats.get("skipped", [])
        if LEFT_OUT in str(report.longrepr)
    ]
    if left_out:
        terminalreporter.section(f"{len(left_out)} slow tests were left out: no time")
        terminalreporter.write_line("\n".join(left_out))


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
def cases_dir() -> Path:
    """Files as people have them, where there are some: ../shared/cases, or the folder in
    CFER_CASES."""
    folder = Path(os.environ.get("CFER_CASES", REPOSITORY.parent / "shared" / "cases"))
    if not folder.is_dir():
        pytest.skip(f"no odd files in {folder} (name a folder of them in CFER_CASES)")
    return folder


@pytest.fixture(scope="session")
def photos_dir() -> Path:
    """Photographs with landmarks, where there are some: ../shared/photos, or the folder in
    CFER_PHOTOS."""
    folder = Path(os.environ.get("CFER_PHOTOS", REPOSITORY.parent / "shared" / "photos"))
    if not any(folder.rglob("*.tem")):
        pytest.skip(f"no photographs in {folder} (name a folder of them in CFER_PHOTOS)")
    return folder


@pytest.fixture(scope="session")
def detector() -> FaceDetector:
    from cfer.video.faces import FaceDetector

    return FaceDetector()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Of this process, for all of its tests."""
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


@pytest.fixture(scope="session")
def drawn_videos() -> Path:
    """5 drawn subjects, each happy and surprised: 24 frames of 64 × 64, and their manifest."""
    return DRAWN


@pytest.fixture(scope="session")
def drawn_shards() -> Path:
    """The drawn videos, extracted (tests/fixtures/make.py): 64 × 64, GOP 12, dlib's embedding."""
    return SHARDS


@pytest.fixture(scope="session")
def six_videos(drawn_videos: Path, made_once: MadeOnce) -> Path:
    """Six of the drawn videos in one folder, without a manifest."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for source in sorted((drawn_videos / "videos").glob("*/*.mp4"))[:6]:
            shutil.copy(source, folder / f"{source.parent.name}_{source.name}")

    return made_once("six", make)


@pytest.fixture(scope="session")
def undisturbed(six_videos: Path, ray_session: None, made_once: MadeOnce) -> Path:
    """The six videos, extracted without any fault, in three shards."""

    def make(out: Path) -> None:
        status, said = extract(six_videos, out)
        assert status == 0, said

    return made_once("undisturbed", make)


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
def trained(ray_session: None, drawn_shards: Path, made_once: MadeOnce) -> Trained:
    epochs = 28  # 0.1 s each: it is the workers' start that takes time
    options = (
        *("--workers", "2", "--epochs", str(epochs), "--lambda", "0.5", "--mu", "0.2"),
        *("--width", "8", "--code-dim", "32", "--batch-size", "4", "--dropout", "0.2"),
        *("--val-fraction", "0.4"),  # 2 of 5: one person can be told from nobody
    )

    def described(folder: Path) -> Trained:
        store = f"sqlite:///{folder / 'mlflow.db'}"
        return Trained("game", epochs, store, folder / "runs", options)

    def make(folder: Path) -> None:
        from cfer.train.command import main

        folder.mkdir()
        run = described(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)  # the model's files go to ./mlruns
            patch.setenv("MLFLOW_TRACKING_URI", run.store)
            arguments = ["--data", str(drawn_shards), "--storage", str(run.storage)]
            assert main([*arguments, "--run", run.name, *options]) == 0

    return described(made_once("trained", make))


@pytest.fixture
def in_trained_store(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The store of the trained run is the one that is meant."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.store)
    return trained


# ---- an object store -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    port = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    server = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests" / "s3_server.py"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: is_open(port), server)
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
