"""The codec on a file that the `ffmpeg` command wrote."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest
from bitstreams import count_mismatches, direct_residuals, moving_texture

from cfer.codec import Bitstream


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg command on this machine")
def test_ffmpeg_commands_file(tmp_path):
    raw = b"".join(p.tobytes() for p in moving_texture(40))
    path = tmp_path / "theirs.mp4"
    subprocess.run(
        shlex.split(
            "ffmpeg -v error -f rawvideo -pix_fmt rgb24 -s 128x96 -i - "
            f"-c:v mpeg4 -q:v 3 -g 15 {path}"
        ),
        input=raw,
        check=True,
    )
    bitstream = Bitstream.open(path)
    assert [len(gop) for gop in bitstream.gops] == [15, 15, 10]
    mismatches, compared, _, _ = count_mismatches(bitstream, direct_residuals(bitstream))
    assert mismatches == 0
    assert compared > 300_000
