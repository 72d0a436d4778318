"""A running server: its answers, what it refuses, many clients at once, the page in a browser."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from helpers import free_ports, is_loopback, kill_with_children, listening, run_module

from cfer.codec import CodecSettings
from cfer.errors import InputError
from cfer.predict import Recognizer, face_bitstream
from cfer.serve import check_link
from cfer.timeline import as_json

MEGABYTES = 4
SECONDS = 10


@contextmanager
def serving(*options: str, token: str = "") -> Iterator[tuple[int, psutil.Process]]:
    """`cfer serve` → its port and process, once it answers."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "cfer.cli", "serve", "--port", str(port), *options],
        env={**os.environ, "CFER_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "serves the model" in line:
                break
        else:
            pytest.fail(f"the server ended with {process.wait()}")
        # What it has to say later must not fill the pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield port, psutil.Process(process.pid)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            kill_with_children(process)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def server(storage: Path) -> Iterator[tuple[int, psutil.Process]]:
    (storage / "open").mkdir()
    options = ("--max-megabytes", str(MEGABYTES), "--max-seconds", str(SECONDS))
    with serving("--allow", f"file://{storage}/open", *options) as running:
        yield running


@pytest.fixture(scope="module")
def port(server: tuple[int, psutil.Process]) -> int:
    return server[0]


@pytest.fixture(scope="module")
def video(drawn_videos: Path) -> Path:
    return drawn_videos / "videos" / "S003" / "surprise_1.mp4"


def ask(
    port: int, path: str, body: bytes | None = None, token: str = "", method: str = "POST"
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_nothing_listens_beyond_loopback(server: tuple[int, psutil.Process]) -> None:
    _, process = server
    found = listening([process, *process.children(recursive=True)])
    assert len(found) > 5
    assert not {(address, which) for address, which in found if not is_loopback(address)}


def test_the_answer_is_the_recognisers(port, video):
    status, body = ask(port, "/predict?window_gops=1", video.read_bytes())
    assert status == 200, body
    told = json.loads(body)
    recognizer = Recognizer.from_pretrained()
    wanted = [as_json(p) | {"source": "upload"} for p in recognizer.predict(video, window_gops=1)]
    assert len(told["windows"]) == len(wanted)
    for one, other in zip(told["windows"], wanted, strict=True):
        # A batch of another size sums in another order.
        assert one.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-4)
        assert one == other
    assert told["classes"] == list(recognizer.card.classes)
    assert "drawn faces" in told["limits"]


def test_look_is_a_picture(port, video):
    status, body = ask(port, "/look", video.read_bytes())
    assert status == 200
    assert body.startswith(b"\x89PNG")


def test_the_api_describes_itself(port):
    status, body = ask(port, "/openapi.json", method="GET")
    assert status == 200
    paths = json.loads(body)["paths"]
    assert set(paths) == {"/model", "/predict", "/look"}
    assert "application/octet-stream" in paths["/predict"]["post"]["requestBody"]["content"]
    assert ask(port, "/docs", method="GET")[0] == 200
    status, body = ask(port, "/model", method="GET")
    assert json.loads(body)["request_limits"]["megabytes"] == MEGABYTES


def test_a_link_below_what_is_allowed_and_no_other(port, video, storage):
    shutil.copy(video, storage / "open" / "video.mp4")
    shutil.copy(video, storage / "secret.mp4")
    given = ask(port, f"/predict?link=file://{storage}/open/video.mp4")
    assert given[0] == 200
    uploaded = json.loads(ask(port, "/predict", video.read_bytes())[1])
    windows = json.loads(given[1])["windows"]
    assert [w["probabilities"] for w in windows] == [
        w["probabilities"] for w in uploaded["windows"]
    ]
    for link in (
        f"file://{storage}/secret.mp4",
        f"file://{storage}/open/../secret.mp4",
        f"file://{storage}/open/%2e%2e/secret.mp4",
        f"file://{storage}/opensecret.mp4",
        "file:///etc/passwd",
        f"{storage}/open/video.mp4",
        "http://127.0.0.1/video.mp4",
        f"file://{storage}/open/missing.mp4",
    ):
        status, body = ask(port, f"/predict?link={link}")
        assert status == 422, link
        assert b"link" in body
        assert str(storage).encode() not in body


@pytest.mark.parametrize(
    "link", ["s3://b/p", "s3://b/p/../q", "s3://b/p//q", "s3://b/pq", "s3://b/p/./q", "s3://B/p/q"]
)
def test_a_link_that_only_looks_allowed(link):
    check_link("s3://b/p/q/clip.mp4", ["s3://b/p/"])
    with pytest.raises(InputError, match="--allow"):
        check_link(link, ["s3://b/p/"])


def huge_png(side: int) -> bytes:
    """A picture of one bit a pixel: some kB, which a decoder makes hundreds of MB of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_video(path: Path, png: bytes, said: int) -> bytes:
    """The picture as a video, in a container that says its side is `said`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width = stream.height = said
        stream.pix_fmt = "monob"
        for number in range(3):
            packet = av.Packet(png)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    return path.read_bytes()


def long_video(path: Path) -> bytes:
    """Many pictures in few bytes and little time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"preset": "ultrafast"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        for number in range(3000):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def endless(port: int) -> bytes:
    """Chunk after chunk, until the server answers or hangs up → what it said."""
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.settimeout(0.01)
        said = b""
        for _ in range(4000):  # 262 MB
            try:
                said = connection.recv(4096)
                break
            except TimeoutError:
                pass
            connection.settimeout(60)
            try:
                connection.sendall(chunk)
            except OSError:
                break
            connection.settimeout(0.01)
        else:
            pytest.fail("262 MB went in")
        return said


def test_hostile_uploads_get_an_error_and_the_server_goes_on(port, server, video, tmp_path):
    png = huge_png(16000)
    assert len(png) < 100_000
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n" % str(video).encode()
    concat = b"ffconcat version 1.0\nfile '%s'\n" % str(video).encode()
    whole = video.read_bytes()
    for name, body, status in (
        ("an empty one", b"", 422),
        ("text", b"not a video\n" * 1000, 422),
        ("noise", np.random.default_rng(0).bytes(100_000), 422),
        ("zeros", bytes(100_000), 422),
        ("a picture", png, 422),
        ("16k × 16k, and says so", png_video(tmp_path / "a.mov", png, 16000), 422),
        ("16k × 16k, and says 64 × 64", png_video(tmp_path / "b.mov", png, 64), 422),
        ("many pictures", long_video(tmp_path / "c.mp4"), 422),
        ("cut off", whole[: len(whole) // 2], 422),
        ("a playlist of a file here", playlist, 422),
        ("a list of files here", concat, 422),
        ("more than it may be", bytes(MEGABYTES * 1_000_000 + 1), 413),
    ):
        given = ask(port, "/predict", body)
        assert given[0] == status, (name, given)
        assert json.loads(given[1])["detail"], name
        assert b"cfer-" not in given[1], f"{name}: the server's own paths are told"
        assert ask(port, "/look", body)[0] == status, name
    assert b" 413 " in endless(port)
    assert ask(port, "/predict?faces=..%2F..%2Fetc%2Fpasswd", whole)[0] == 422
    assert ask(port, "/predict?window_gops=-1", whole)[0] == 422
    assert ask(port, "/../../etc/passwd", method="GET")[0] == 404
    assert ask(port, "/predict", whole)[0] == 200
    assert server[1].is_running()


def resident(process: psutil.Process) -> int:
    """Bytes of what a server's processes hold for themselves."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += one.memory_full_info().uss
    return total


def test_fifty_clients_at_once(port, server, video, tmp_path):
    clip = tmp_path / "clip.mp4"
    face_bitstream(video, 112, CodecSettings(gop_size=24)).save(clip)
    bodies = [clip.read_bytes(), video.read_bytes()]
    alone = [json.loads(ask(port, "/predict", body)[1])["windows"] for body in bodies]
    before, most = resident(server[1]), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.5):
            most = max(most, resident(server[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(50) as clients:
        answers = list(
            clients.map(lambda n: ask(port, "/predict", bodies[n % 10 == 0]), range(150))
        )
    done.set()
    watcher.join()
    assert {status for status, _ in answers} == {200}
    for number, (_, body) in enumerate(answers):
        (wanted,) = alone[number % 10 == 0]
        (given,) = json.loads(body)["windows"]
        # Of a batch, the sums run in another order.
        assert given["label"] == wanted["label"]
        assert list(given["probabilities"].values()) == pytest.approx(
            list(wanted["probabilities"].values()), abs=1e-4
        )
    assert most < before + 500_000_000, f"{before:,} → {most:,} bytes"


def test_a_token_is_asked_for(video):
    with serving(token="wonderful") as (port, _):
        body = video.read_bytes()
        for path in ("/predict", "/look"):
            assert ask(port, path, body)[0] == 401
            assert ask(port, path, body, token="wonderfu")[0] == 401
        assert ask(port, "/model", method="GET")[0] == 401
        assert ask(port, "/", method="GET")[0] == 200
        assert ask(port, "/predict", body, token="wonderful")[0] == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0: other machines can reach it; set a token in"),
        (("--port", "{taken}"), "--port {taken}: cannot be used (Address already in use)"),
        (("--model", "missing.safetensors"), "missing.safetensors"),
    ],
)
def test_a_server_that_cannot_start_says_why(options, message):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        taken = one.getsockname()[1]
        env = {k: v for k, v in os.environ.items() if k != "CFER_TOKEN"}
        done = run_module("cfer.cli", "serve", *(o.format(taken=taken) for o in options), env=env)
    assert done.returncode == 2
    assert message.format(taken=taken) in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_in_a_browser(port, video, tmp_path):
    """A video is given; its timeline and the picture of what the method sees come up."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver here")
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(option)
    options.add_argument("--window-size=1150,1500")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        browser.get(f"http://127.0.0.1:{port}/")
        text = tmp_path / "text.mp4"
        text.write_text("not a video\n" * 100)

        def give(path: Path) -> None:
            browser.find_element(By.ID, "file").send_keys(str(path))

        def wait_for(what) -> None:
            deadline = time.monotonic() + 120
            while not what():
                assert time.monotonic() < deadline, browser.find_element(By.TAG_NAME, "body").text
                time.sleep(0.2)

        def shown(name: str) -> str:
            return browser.find_element(By.ID, name).text

        wait_for(lambda: "drawn faces" in shown("note"))
        give(text)
        wait_for(lambda: "text.mp4: not a readable video" in shown("error"))
        give(video)
        wait_for(lambda: shown("status") == "surprise_1.mp4: done")
        assert shown("error") == ""
        assert len(browser.find_elements(By.CSS_SELECTOR, "svg.timeline path")) == 7
        classes = Recognizer.from_pretrained().card.classes
        assert shown("legend").split() == list(classes)
        look = browser.find_element(By.ID, "look")
        assert int(look.get_attribute("naturalWidth")) > 800
        for entry in browser.get_log("browser"):
            assert "favicon" in entry["message"] or "422" in entry["message"], entry
        picture = os.environ.get("CFER_SCREENSHOT")
        if picture:
            browser.save_screenshot(picture)
    finally:
        browser.quit()
