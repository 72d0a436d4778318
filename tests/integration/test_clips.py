"""Pictures beside those of FFmpeg's own program."""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from cfer.video.pictures import open_pictures

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on the PATH")


def shown_by_ffmpeg(path: Path) -> np.ndarray:
    """The first picture, turned and mirrored as FFmpeg does by itself."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "image2pipe"]
    done = subprocess.run([*command, "-c:v", "png", "-"], capture_output=True, check=True)
    return np.asarray(Image.open(io.BytesIO(done.stdout)).convert("RGB"))


def check(path: Path) -> None:
    ours, theirs = next(iter(open_pictures(path))), shown_by_ffmpeg(path)
    assert ours.shape[0] == theirs.shape[0]
    # Its pixels need not be square.
    theirs = cv2.resize(theirs, ours.shape[1::-1])
    assert np.abs(ours.astype(int) - theirs).mean() < 3


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("signs", [*itertools.product((1, -1), repeat=2)])
def test_all_eight_orientations(tmp_path, is_turned, signs):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48], picture[:32, 48:], picture[32:, :48] = 255, 170, 85
    one, other = (sign << 16 for sign in signs)
    matrix = (0, one, 0, other, 0) if is_turned else (one, 0, 0, 0, other)
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.set_display_matrix([*matrix, 0, 0, 0, 1 << 30])
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    check(path)


@pytest.mark.parametrize("name", ["hflip_matrix.mp4", "vflip_matrix.mp4"])
def test_videos_of_front_cameras(cases_dir, name):
    check(cases_dir / name)
