"""A running server: its answers, whom it asks for a token, what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pebble
import psutil
import pytest
from helpers import (
    MOST_SECONDS,
    ask,
    is_loopback,
    kill_with_children,
    listening,
    serving,
    start_serving,
    wait_for,
)
from hostile import hostile_videos, long_gop

from cfer.errors import InputError
from cfer.predict.limits import Limits
from cfer.predict.recognizer import Recognizer
from cfer.predict.serve import MOST_REQUESTS
from cfer.predict.timeline import as_json, event_as_json, events
from cfer.predict.uploads import Workers, look, predict, why_ended

MEGABYTES = 4
SECONDS = 10
TOKEN = "wonderful"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@contextmanager
def short_folder() -> Iterator[Path]:
    """For temporary files: the path of a socket has to be short."""
    with tempfile.TemporaryDirectory(prefix="cfer-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def server(storage: Path, temporary: Path) -> Iterator[tuple[int, psutil.Process]]:
    (storage / "open").mkdir()
    options = ("--max-megabytes", str(MEGABYTES), "--max-seconds", str(SECONDS))
    options += ("--allow", f"file://{storage}/open")
    with serving(*options, token=TOKEN, TMPDIR=str(temporary)) as running:
        yield running


@pytest.fixture(scope="module")
def port(server: tuple[int, psutil.Process]) -> int:
    return server[0]


@pytest.fixture(scope="module")
def video(drawn_videos: Path) -> Path:
    return drawn_videos / "videos" / "S003" / "surprise_1.mp4"


def test_nothing_listens_beyond_loopback(server: tuple[int, psutil.Process]) -> None:
    _, process = server
    found = listening([process, *process.children(recursive=True)])
    assert found
    assert not {(address, which) for address, which in found if not is_loopback(address)}


def test_the_answer_is_the_recognizers(port: int, video: Path) -> None:
    status, body = ask(port, "/predict?window_seconds=0.5", video.read_bytes(), TOKEN)
    assert status == 200, body
    told = json.loads(body)
    recognizer = Recognizer.from_pretrained()
    predictions = recognizer.predict(video, window_seconds=0.5)
    wanted = [as_json(p) | {"source": "upload"} for p in predictions]
    assert len(told["windows"]) == len(wanted)
    for one, other in zip(told["windows"], wanted, strict=True):
        # A batch of another size sums in another order.
        assert one.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-4)
        assert one == other
    happened = [
        event_as_json(e) | {"probability": pytest.approx(e.probability, abs=1e-4)}
        for e in events(predictions)
    ]
    assert happened
    assert told["events"] == happened
    assert told["model"] == "default"
    assert told["classes"] == list(recognizer.card.classes)
    assert "animated photographs" in told["limits"]


def test_look_is_a_picture(port: int, video: Path) -> None:
    status, body = ask(port, "/look", video.read_bytes(), TOKEN)
    assert status == 200
    assert body.startswith(b"\x89PNG")
    status, body = ask(port, "/look?gop=9", video.read_bytes(), TOKEN)
    assert status == 422
    assert b"--gop 9" in body


def test_the_api_describes_itself(port: int) -> None:
    status, body = ask(port, "/openapi.json", method="GET")
    assert status == 200
    paths = json.loads(body)["paths"]
    assert set(paths) == {"/model", "/predict", "/look"}
    assert "application/octet-stream" in paths["/predict"]["post"]["requestBody"]["content"]
    status, body = ask(port, "/model", token=TOKEN, method="GET")
    assert status == 200
    told = json.loads(body)
    assert told["request_limits"]["megabytes"] == MEGABYTES
    assert told["request_limits"]["seconds"] == SECONDS
    assert told["classes"] == list(Recognizer.from_pretrained().card.classes)
    assert "animated photographs" in told["limits"]


def test_a_token_is_asked_for(port: int, video: Path) -> None:
    body = video.read_bytes()
    for token in ("", "wonderfu"):
        for path in ("/predict", "/look"):
            assert ask(port, path, body, token)[0] == 401
        assert ask(port, "/model", token=token, method="GET")[0] == 401
    # The page asks whoever opens it.
    status, page = ask(port, "/", method="GET")
    assert status == 200
    assert b"<html" in page


def test_a_link_below_what_is_allowed_and_no_other(port: int, video: Path, storage: Path) -> None:
    shutil.copy(video, storage / "open" / "video.mp4")
    shutil.copy(video, storage / "secret.mp4")
    link = f"file://{storage}/open/video.mp4"
    status, body = ask(port, f"/predict?link={link}", token=TOKEN)
    assert status == 200
    windows = json.loads(body)["windows"]
    uploaded = json.loads(ask(port, "/predict", video.read_bytes(), TOKEN)[1])["windows"]
    assert [w["probabilities"] for w in windows] == [w["probabilities"] for w in uploaded]
    assert {w["source"] for w in windows} == {link}
    for link in (
        f"file://{storage}/secret.mp4",
        f"file://{storage}/open/../secret.mp4",
        f"file://{storage}/open/%2e%2e/secret.mp4",
        f"file://{storage}/open/%252e%252e/secret.mp4",
        f"file://{storage}/open/video.mp4%3Fscheme=http",
        f"file://{storage}/opensecret.mp4",
        "file:///etc/passwd",
        f"{storage}/open/video.mp4",
        "http://127.0.0.1/video.mp4",
        f"file://{storage}/open/missing.mp4",
    ):
        status, body = ask(port, f"/predict?link={link}", token=TOKEN)
        assert status == 422, link
        assert b"link" in body
        assert str(storage).encode() not in body


def endless_upload(port: int) -> bytes:
    """Chunk after chunk, until the server answers or hangs up → what it said."""
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    left = head.encode()
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setblocking(False)
        while sent < 100 * MEGABYTES * 1_000_000:
            answers, _, _ = select.select([connection], [connection], [])
            if answers:
                break
            try:
                count = connection.send(left)
            except OSError:
                break
            sent += count
            left = left[count:] or b"10000\r\n" + bytes(0x10000) + b"\r\n"
        else:
            pytest.fail(f"{sent:,} bytes went in")
        connection.setblocking(True)
        return connection.recv(4096)


def endless_headers(port: int) -> int:
    """Line after line, until the server hangs up → how many bytes it took."""
    sent = 0
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\n")
        while sent < 10_000_000:
            sent += connection.send(b"X: 1\r\n" * 1000)
    return sent


def test_hostile_uploads_get_an_error_and_the_server_goes_on(
    port: int, server: tuple[int, psutil.Process], video: Path, tmp_path: Path
) -> None:
    uploads = {name: (422, *given) for name, given in hostile_videos(video, tmp_path).items()}
    uploads["an empty one"] = (422, b"", "an empty upload")
    uploads["more than it may be"] = (413, bytes(MEGABYTES * 1_000_000 + 1), "more than 4 MB")
    for name, (wanted, body, said) in uploads.items():
        for path in ("/predict", "/look"):
            status, answer = ask(port, path, body, TOKEN)
            assert status == wanted, (name, answer)
            assert said in json.loads(answer)["detail"], name
            assert b"cfer-" not in answer, f"{name}: the server's own paths are told"
    assert b" 413 " in endless_upload(port)
    assert endless_headers(port) < 10_000_000
    whole = video.read_bytes()
    assert ask(port, "/predict?faces=..%2F..%2Fetc%2Fpasswd", whole, TOKEN)[0] == 422
    assert ask(port, "/predict?window_seconds=-1", whole, TOKEN)[0] == 422
    assert ask(port, "/look?gop=-1", whole, TOKEN)[0] == 422
    status, answer = ask(port, "/predict?face=all", whole, TOKEN)
    assert (status, json.loads(answer)["detail"][:5]) == (422, "face:"), "an option that isn't one"
    assert ask(port, "/../../etc/passwd", token=TOKEN, method="GET")[0] == 404
    assert ask(port, "/predict", whole, TOKEN)[0] == 200
    assert server[1].is_running()


def test_more_connections_than_there_may_be_are_told_so(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_REQUESTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_for(lambda: ask(port, "/model", token=TOKEN, method="GET")[0] == 503)
    wait_for(lambda: ask(port, "/model", token=TOKEN, method="GET")[0] == 200)


def test_of_a_request_nothing_stays(port: int, video: Path, storage: Path, temporary: Path) -> None:
    before = set(temporary.iterdir())
    shutil.copy(video, storage / "open" / "video.mp4")
    for link in ("", f"?link=file://{storage}/open/video.mp4"):
        for body in (b"not a video", video.read_bytes()):
            ask(port, f"/predict{link}", b"" if link else body, TOKEN)
    ask(port, "/predict", bytes(MEGABYTES * 1_000_000 + 1), TOKEN)
    assert set(temporary.iterdir()) == before


def test_nothing_that_its_own_description_allows_makes_it_fail(port: int, tmp_path: Path) -> None:
    """Requests that are drawn from the OpenAPI description, and some that break it."""
    tested = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", "--no-color", "--seed=1"]
        + [f"http://127.0.0.1:{port}/openapi.json", f"--header=Authorization: Bearer {TOKEN}"]
        + ["--max-examples=40", "--continue-on-failure", "--generation-database=none"]
        # What is drawn is no video.
        + ["--exclude-checks=positive_data_acceptance", f"--request-timeout={MOST_SECONDS}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    assert "3 selected / 3 total" in tested.stdout


# ---- work that can be ended ----------------------------------------------------------------------

LOOK = partial(look, gop=0, model_name="default")
SMALL = partial(predict, source="upload", faces="one", window_seconds=None)


@contextmanager
def workers(**limits: int) -> Iterator[Workers]:
    with Workers(Recognizer.from_pretrained(), Limits(**limits)) as running:
        yield running


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A video that never comes."""
    os.mkfifo(tmp_path / "endless.mp4")
    return tmp_path / "endless.mp4"


def test_work_is_ended_at_its_deadline_or_as_its_process_dies(video: Path, endless: Path) -> None:
    others = set(psutil.Process().children(recursive=True))

    def own() -> list[psutil.Process]:
        """The workers, but not the server that they are forked by."""
        new = set(psutil.Process().children(recursive=True)) - others
        return [process for process in new if process.parent() != psutil.Process()]

    with workers(work_seconds=10) as running:
        with pytest.raises(TimeoutError):
            running.submit(SMALL, endless).result()
        waiting = running.submit(SMALL, endless)
        with open(endless, "wb"):  # only now does somebody read there
            for process in own():
                process.kill()
        with pytest.raises(pebble.ProcessExpired):
            waiting.result()
        assert running.submit(SMALL, video).result()["events"]
        # And at rest, as where the machine's memory ends.
        for process in own():
            process.kill()
        psutil.wait_procs(own())
        with suppress(BrokenProcessPool):
            running.submit(SMALL, video).result()
        assert running.submit(SMALL, video).result()["events"]


def test_work_has_so_much_memory_and_a_gop_of_any_length_needs_little(
    video: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(long_gop(path, 600, 1280, 720))  # its pictures alone are 830 MB
    with workers(memory_megabytes=100) as running:
        with pytest.raises(pebble.ProcessExpired) as ended:
            running.submit(LOOK, path).result()
        assert "more than 100 MB of memory" in why_ended(ended.value, Limits(memory_megabytes=100))
        assert running.submit(SMALL, video).result()["events"]
    with workers(memory_megabytes=600, work_seconds=MOST_SECONDS) as running:
        assert (
            running.submit(partial(look, gop=0, model_name="default"), path)
            .result()
            .startswith(b"\x89PNG")
        )


def test_hostile_videos_take_little_memory(video: Path, tmp_path: Path) -> None:
    with workers(memory_megabytes=200, seconds=10, frames=600) as running:
        for data, _ in hostile_videos(video, tmp_path).values():
            path = tmp_path / "video"
            path.write_bytes(data)
            with pytest.raises(InputError):
                running.submit(SMALL, path).result()


# ---- a server that ends --------------------------------------------------------------------------


def test_clients_that_do_nothing_do_not_keep_a_server_from_ending() -> None:
    """`serving` waits for its end."""
    with serving(token=TOKEN) as (port, _), socket.create_connection(("127.0.0.1", port)) as one:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        one.sendall(f"{head}Content-Length: 1000\r\n\r\nno more".encode())
        assert ask(port, "/model", token=TOKEN, method="GET")[0] == 200


def test_a_killed_server_leaves_no_process_and_the_next_one_no_video(endless: Path) -> None:
    with short_folder() as folder:
        _kill_and_start_again(endless, folder)


def _kill_and_start_again(endless: Path, folder: Path) -> None:
    allowed = f"file://{endless.parent}"
    port, process = start_serving("--allow", allowed, TMPDIR=str(folder))
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        link = f"/predict?link={allowed}/{endless.name}"

        def give_a_video() -> None:
            with suppress(OSError, http.client.HTTPException):
                ask(port, link)

        client = threading.Thread(target=give_a_video)
        client.start()
        wait_for(lambda: list(folder.glob("cfer-serve-*")))
        process.kill()
        process.wait()
        client.join()
        _, alive = psutil.wait_procs(family, timeout=MOST_SECONDS)
        assert not alive
    finally:
        if process.poll() is None:
            kill_with_children(process)
    assert list(folder.glob("cfer-serve-*"))
    with serving(TMPDIR=str(folder)):
        assert not list(folder.glob("cfer-serve-*"))
