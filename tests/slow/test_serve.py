"""A server that asks for no token: many clients at once, and its page in a browser."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers import ask, serving, wait_for

from cfer.codec import CodecSettings
from cfer.predict.recognizer import Recognizer, face_bitstream
from cfer.predict.timeline import summary, ways


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, psutil.Process]]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def video(drawn_videos: Path) -> Path:
    return drawn_videos / "videos" / "S003" / "surprise_1.mp4"


def resident(process: psutil.Process) -> int:
    """Bytes of what a server's processes hold for themselves."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += one.memory_full_info().uss
    return total


def test_fifty_clients_at_once(
    server: tuple[int, psutil.Process], video: Path, tmp_path: Path
) -> None:
    port, process = server
    clip = tmp_path / "clip.mp4"
    face_bitstream(video, 112, CodecSettings(gop_size=24)).save(clip)
    bodies = [clip.read_bytes(), video.read_bytes()]
    alone = [json.loads(ask(port, "/predict", body)[1])["windows"] for body in bodies]
    before, most = resident(process), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.5):
            most = max(most, resident(process))

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


def test_another_sites_page_gets_nothing(server: tuple[int, psutil.Process], video: Path) -> None:
    port, body = server[0], video.read_bytes()
    here = f"127.0.0.1:{port}"
    for headers, status in (
        ({"Host": here}, 200),
        ({"Host": here, "Origin": f"http://{here}"}, 200),
        ({"Host": here, "Origin": "http://evil.example"}, 403),
        ({"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"}, 403),
        ({"Host": f"evil.example:{port}"}, 403),
    ):
        for path in ("/predict", "/look"):
            assert ask(port, path, body, headers=headers)[0] == status, headers


def test_the_page_in_a_browser(
    server: tuple[int, psutil.Process], video: Path, tmp_path: Path
) -> None:
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
        browser.get(f"http://127.0.0.1:{server[0]}/")
        text = tmp_path / "text.mp4"
        text.write_text("not a video\n" * 100)

        def give(path: Path) -> None:
            browser.find_element(By.ID, "file").send_keys(str(path))

        def shown(name: str) -> str:
            return browser.find_element(By.ID, name).text

        wait_for(lambda: "animated photographs" in shown("note"))
        give(text)
        wait_for(lambda: "text.mp4: not a readable video" in shown("error"))

        def listed() -> list[str]:
            return [item.text for item in browser.find_elements(By.CSS_SELECTOR, ".events li")]

        def picture_is_shown() -> bool:
            return browser.find_element(By.ID, "look").is_displayed()

        recognizer = Recognizer.from_pretrained()
        give(video)
        for faces in ("one", "all"):
            if faces == "all":
                browser.find_element(By.ID, "every").click()  # the same video is asked about again
            (window,) = recognizer.predict(video, faces=faces, window_seconds=1)
            read = "; ".join(["surprise_1.mp4: 1 window", *ways([window])])
            wait_for(lambda read=read: shown("status") == read and picture_is_shown())
            assert listed() == summary([window])
        assert shown("error") == ""
        classes = recognizer.card.classes
        lines = browser.find_elements(By.CSS_SELECTOR, "svg.timeline path")
        assert len(lines) == len(classes)
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
