"""What a server takes and from whom, before any of it is served; and one that cannot start."""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import HTTPException
from fastapi.security import HTTPAuthorizationCredentials
from hostile import hostile_videos

from cfer.cli import run
from cfer.errors import InputError
from cfer.serve import Limits, api, check_link, check_token, check_video

LIMITS = Limits(seconds=10, frames=600)


@pytest.fixture
def video(drawn_videos: Path) -> Path:
    return drawn_videos / "videos" / "S003" / "surprise_1.mp4"


# ---- videos --------------------------------------------------------------------------------------


def test_a_hostile_video_is_refused(video: Path, tmp_path: Path) -> None:
    for name, (data, said) in hostile_videos(video, tmp_path).items():
        path = tmp_path / "video"
        path.write_bytes(data)
        with pytest.raises(InputError) as error:
            check_video(path, LIMITS, math.inf)
        assert said in str(error.value), name


def test_a_video_within_the_limits_and_one_at_each_of_them(video: Path) -> None:
    check_video(video, Limits(), math.inf)
    exact = Limits(pixels=64 * 64, frames=24, seconds=1)
    check_video(video, exact, math.inf)
    with pytest.raises(InputError, match="longer than 1 s or 23 frames"):
        check_video(video, replace(exact, frames=23), math.inf)
    with pytest.raises(InputError, match="longer than 0 s or 24 frames"):
        check_video(video, replace(exact, seconds=0), math.inf)
    with pytest.raises(InputError):
        check_video(video, replace(exact, pixels=64 * 64 - 1), math.inf)
    with pytest.raises(TimeoutError):
        check_video(video, exact, time.monotonic())


# ---- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        *("s3://b/p", "s3://b/p/../q", "s3://b/p//q", "s3://b/pq", "s3://b/p/./q", "s3://B/p/q"),
        *("s3://b/p/", "/b/p/q", "", "http://127.0.0.1/video.mp4"),
    ],
)
def test_a_link_that_only_looks_allowed(link: str) -> None:
    for allowed in ("s3://b/p/", "s3://b/p"):
        check_link("s3://b/p/q/clip.mp4", ["file:///videos", allowed])
        with pytest.raises(InputError, match="--allow"):
            check_link(link, [allowed])
        with pytest.raises(InputError, match="--allow"):
            check_link("s3://b/p/q/clip.mp4", [])


def test_a_path_is_no_link() -> None:
    with pytest.raises(InputError, match="--allow"):
        check_link("/videos/clip.mp4", ["/videos"])


# ---- the token -----------------------------------------------------------------------------------


def shown(token: str) -> HTTPAuthorizationCredentials:
    return HTTPAuthorizationCredentials(scheme="Bearer", credentials=token)


def test_a_token_that_is_set_has_to_be_shown() -> None:
    token = "wonderful €"
    check_token(shown(token), token)
    for given in (None, shown(""), shown("wonderful"), shown(f"{token} "), shown(token.upper())):
        with pytest.raises(HTTPException, match="401"):
            check_token(given, token)


def test_without_a_token_nothing_has_to_be_shown() -> None:
    check_token(None, "")
    check_token(shown("anything"), "")


def test_every_answer_but_the_page_may_ask_for_a_token() -> None:
    paths = api.openapi()["paths"]
    assert set(paths) == {"/model", "/predict", "/look"}
    for path, methods in paths.items():
        for method, described in methods.items():
            assert described["security"] == [{"HTTPBearer": []}], (path, method)


# ---- a server that cannot start ------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--host 0.0.0.0",
            "--host 0.0.0.0: other machines can reach it; set a token in CFER_TOKEN",
        ),
        ("--host ::", "--host ::: other machines can reach it; set a token in CFER_TOKEN"),
        ("--host example.org", "--host example.org: other machines can reach it"),
        ("--port TAKEN", "--port TAKEN: cannot be used (Address already in use)"),
        ("--port FREE --model missing.safetensors", "missing.safetensors: not a readable model"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    taken_port: int, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.delenv("CFER_TOKEN", raising=False)
    options = options.replace("TAKEN", str(taken_port)).replace("FREE", "0")
    with pytest.raises(InputError, match=re.escape(message.replace("TAKEN", str(taken_port)))):
        run(["serve", *options.split()])


def test_with_a_token_other_machines_may_reach_it(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFER_TOKEN", "wonderful")
    with pytest.raises(InputError, match="cannot be used"):
        run(["serve", "--host", "0.0.0.0", "--port", str(taken_port)])
