"""What of a stranger's video or link is believed, before anything is done with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from h264_streams import remuxed, x264
from hostile import hostile_videos
from small_recognizer import small_recognizer

from cfer.codec import CodecSettings
from cfer.data.inputs import Input
from cfer.errors import InputError
from cfer.predict.limits import Limits
from cfer.predict.uploads import TooLarge, check_video, open_link, predict, save_link
from cfer.video.pictures import open_pictures

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
            check_video(path, LIMITS)
        assert said in str(error.value), name


def test_a_video_within_the_limits_and_one_at_each_of_them(video: Path) -> None:
    check_video(video, Limits())
    exact = Limits(pixels=64 * 64, frames=24, seconds=1)
    check_video(video, exact)
    with pytest.raises(InputError, match="longer than 1 s or 23 frames"):
        check_video(video, replace(exact, frames=23))
    with pytest.raises(InputError, match="longer than 0 s or 24 frames"):
        check_video(video, replace(exact, seconds=0))
    with pytest.raises(InputError):
        check_video(video, replace(exact, pixels=64 * 64 - 1))


def test_a_clock_that_does_not_begin_at_0_is_no_length(video: Path, tmp_path: Path) -> None:
    """As a broadcast's, or a camera's that has run for a while."""
    path = tmp_path / "later.ts"
    path.write_bytes(remuxed(video.read_bytes(), "mpegts", output_ts_offset="200"))
    check_video(path, Limits(seconds=1))


def test_strangers_do_not_learn_where_their_video_is_kept(video: Path, tmp_path: Path) -> None:
    """Nor by why a window was not read as it is: in its second GOP, this one shows no face."""
    path = tmp_path / "cfer-serve" / "video"
    path.parent.mkdir()
    wall = [np.full((64, 64, 3), 90 + n, np.uint8) for n in range(24)]
    path.write_bytes(x264([*open_pictures(video), *wall], "keyint=24", rate=24))
    what = Input("energy+motion", stream="native")
    native = small_recognizer(what, CodecSettings(gop_size=3, gop_seconds=1))
    answer = predict(native, path, "mine.mp4", "one", None)
    windows = answer["windows"]
    assert {window["source"] for window in windows} == {"mine.mp4"}
    assert not [way for way in answer["ways"] if str(path) in way]
    assert windows[-1]["refused"].startswith("mine.mp4: no face in the I-frame")
    assert "cfer-serve" not in str(windows)


# ---- links ---------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that links may point into, with what is beside it."""
    (tmp_path / "open" / "below").mkdir(parents=True)
    (tmp_path / "open" / "below" / "a clip.mp4").write_bytes(b"allowed")
    (tmp_path / "open" / "100%.mp4").write_bytes(b"allowed")
    (tmp_path / "open" / "linked.mp4").symlink_to("below/a clip.mp4")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "open" / "out.mp4").symlink_to("../secret.mp4")
    (tmp_path / "open" / "outside").symlink_to("..")
    (tmp_path / "open" / "circle").symlink_to("circle")
    (tmp_path / "opensecret.mp4").write_bytes(b"secret")
    return tmp_path


def read(link: str, allowed: list[str], folder: Path, limits: Limits = LIMITS) -> bytes:
    save_link(link, allowed, folder / "copy", limits)
    return (folder / "copy").read_bytes()


@pytest.mark.parametrize(
    "name", ["below/a clip.mp4", "below/a%20clip.mp4", "linked.mp4", "100%25.mp4"]
)
def test_a_link_below_what_is_allowed(shared: Path, name: str) -> None:
    for place in (f"file://{shared}/open", f"file://{shared}/open/"):
        assert read(f"file://{shared}/open/{name}", ["s3://b/p", place], shared) == b"allowed"
        with pytest.raises(InputError, match="--allow"):
            read(f"file://{shared}/open/{name}", ["s3://b/p"], shared)


@pytest.mark.parametrize(
    "name",
    [
        *("open/../secret.mp4", "open/%2e%2e/secret.mp4", "open/%2E./secret.mp4"),
        *("open/%252e%252e/secret.mp4", "open/%25252e./secret.mp4", "open/..%2fsecret.mp4"),
        *("open/..\\secret.mp4", "open/..%5csecret.mp4", "open/below/../../secret.mp4"),
        *("open//../secret.mp4", "open//below/a clip.mp4", "open/./below/a clip.mp4", "open/"),
        *("open/out.mp4", "open/outside/secret.mp4", "open/outside/open/linked.mp4/../x"),
        *("open/circle", "opensecret.mp4", "secret.mp4", "open", "open/linked.mp4%00"),
        *("open/linked.mp4?a=b", "open/linked.mp4#a", "open/linked.mp4\n"),
    ],
)
def test_a_link_that_leaves_what_is_allowed(shared: Path, name: str) -> None:
    with pytest.raises(InputError, match="--allow"):
        read(f"file://{shared}/{name}", [f"file://{shared}/open"], shared)
    assert not (shared / "copy").exists()


@pytest.mark.parametrize(
    "link",
    [
        *("s3://b/p", "s3://b/p/../q", "s3://b/p//q", "s3://b/pq", "s3://b/p/./q", "s3://B/p/q"),
        *("s3://b/p/", "/b/p/q", "", "http://127.0.0.1/video.mp4", "s3://b@evil/p/q"),
        *("s3://b/p/a.mp4?endpoint_override=127.0.0.1:1&scheme=http", "s3://key:secret@b/p/q"),
        *("s3://b/p/%2e%2e/q", "s3://b/p/a%3Fb/..", "file://b/p/q", "s3:/b/p/q"),
    ],
)
def test_a_link_to_a_store_that_only_looks_allowed(link: str) -> None:
    for allowed in ("s3://b/p/", "s3://b/p"):
        folder, name = open_link("s3://b/p/q/a%20clip.mp4", ["file:///videos", allowed])
        assert (folder.path.rstrip("/"), name) == ("b/p", "q/a clip.mp4")
        with pytest.raises(InputError, match="--allow"):
            open_link(link, [allowed])


def test_the_store_of_a_link_is_opened_by_the_operators_words() -> None:
    place = "s3://key:secret@b/p?region=eu-west-1&endpoint_override=127.0.0.1:1&scheme=http"
    folder, name = open_link("s3://b/p/clip.mp4", [place])
    assert folder.location == place
    assert (folder.path, name) == ("b/p", "clip.mp4")


def test_a_path_is_no_link(shared: Path) -> None:
    with pytest.raises(InputError, match="--allow"):
        open_link(f"{shared}/open/linked.mp4", [f"{shared}/open"])


def test_what_is_at_a_link_has_a_size_too_and_may_be_missing(shared: Path) -> None:
    place = f"file://{shared}/open"
    (shared / "open" / "large.mp4").write_bytes(bytes(1_000_001))
    with pytest.raises(TooLarge, match="more than 1 MB"):
        read(f"{place}/large.mp4", [place], shared, replace(LIMITS, megabytes=1))
    with pytest.raises(InputError, match=r"^nothing readable at this link$"):
        read("s3://b/p/a.mp4", ["s3://b/p?no=option"], shared)
    for name in ("missing.mp4", "below"):
        with pytest.raises(InputError, match="nothing readable at this link"):
            read(f"{place}/{name}", [place], shared)
