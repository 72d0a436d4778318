"""Real parts, made once: a Ray session, drawn videos, and the shards extracted from them."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# Of a small extraction.
OPTIONS = ("--size", "64", "--identity", "dlib", "--clips-per-shard", "2", "--actors", "1")

# A test never joins a Ray cluster that happens to run on the machine.
os.environ["RAY_ADDRESS"] = "local"
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
    lines = [re.split(r"\s+# ", line)[0].rstrip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


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


def extract(videos: Path, out: Path, *options: str) -> tuple[int, str]:
    """On the session's own Ray → the exit status, and what was said on stderr."""
    from pipeline.extract import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["--videos", str(videos), "--out", str(out), *OPTIONS, *options])
    return status, said.getvalue()


def shard_bytes(out: Path) -> dict[str, bytes]:
    files = [*out.glob("shard-*"), out / "dataset.json", out / "failures.csv"]
    return {file.name: file.read_bytes() for file in files}


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


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
def drawn_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 drawn subjects × 7 classes, as the built-in data set writes them."""
    folder = tmp_path_factory.mktemp("drawn") / "videos"
    done = run_module(
        "pipeline.datasets.synthetic", "--out", str(folder), "--subjects", "8", "--workers", "2"
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def drawn_shards(drawn_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn videos, extracted by the real job: 64×64, GOP 12, dlib's embedding."""
    folder = tmp_path_factory.mktemp("shards")
    done = run_module(
        "pipeline.extract",
        *("--videos", str(drawn_videos / "manifest.csv"), "--out", str(folder)),
        *("--size", "64", "--gop-size", "12", "--gop-span", "12", "--quantiser", "2"),
        *("--identity", "dlib", "--clips-per-shard", "14"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def six_videos(drawn_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("six")
    for source in sorted((drawn_videos / "videos" / "S001").glob("*.mp4"))[:6]:
        shutil.copy(source, folder / source.name)
    return folder


@pytest.fixture(scope="session")
def undisturbed(
    six_videos: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The six videos in three shards, extracted by one worker and without a break."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    status, said = extract(six_videos, out)
    assert status == 0, said
    return out


@pytest.fixture(scope="session")
def trained_store(drawn_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store's URI, with a short run `short` of the whole game in it."""
    folder = tmp_path_factory.mktemp("trained")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    done = run_module(
        "cfer.train",
        *("--data", str(drawn_shards), "--workers", "2", "--epochs", "3", "--run", "short"),
        *("--lambda", "1", "--mu", "0.1", "--storage", str(folder / "runs")),
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return store


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket on an S3 server of our own, on loopback."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                # Not urllib, which would keep the proxies that it found at its first use.
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("PUT", "/bucket")
                assert connection.getresponse().status == 200
                connection.close()
                break
            except ConnectionError:  # it does not listen yet
                assert server.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.2)
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
