"""Pictures beside those of FFmpeg's own program."""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from videos import quarters, write_video

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
    one, other = signs
    path = tmp_path / "turned.mp4"
    write_video(
        path, [quarters()] * 3, matrix=(0, one, other, 0) if is_turned else (one, 0, 0, other)
    )
    check(path)


@pytest.mark.parametrize("name", ["hflip_matrix.mp4", "vflip_matrix.mp4"])
def test_videos_of_front_cameras(cases_dir, name):
    check(cases_dir / name)
