"""The layer header of other programs' files, and the gray picture for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from bitstreams import direct_residuals, moving_texture, someone_elses

from cfer.codec import GRAY, Bitstream, CodecError, CodecSettings, encode
from cfer.codec.decoder import planes_of


@pytest.mark.parametrize(
    ("suffix", "gop", "options"),
    [
        ("mp4", 12, {}),
        ("mp4", 250, {}),
        ("avi", 7, {}),
        ("mkv", 1, {}),
        ("mp4", 12, {"flags": "+mv4+aic"}),
        ("mp4", 12, {"flags": "+qpel"}),
        ("avi", 12, {"flags": "+ilme+ildct"}),
        ("mp4", 12, {"mpeg_quant": "1"}),
        ("mp4", 12, {"ps": "200"}),
    ],
)
def test_someone_elses_file(tmp_path, suffix, gop, options):
    """Our gray picture fits any header, and what is decoded on it is what was transmitted."""
    path = someone_elses(
        moving_texture(26), tmp_path / f"a.{suffix}", gop, qmin="2", qmax="2", **options
    )
    bitstream = Bitstream.open(path)
    assert bitstream.frame_types.startswith("I" + "P" * min(gop - 1, 25))
    (gray,) = bitstream._decode([(bitstream._format.gray, 0)])
    assert all((plane == GRAY).all() for plane in planes_of(gray))
    pictures = list(bitstream.pictures())
    for number, residual in direct_residuals(bitstream).items():
        # Whatever the tools that made it, decoded − residual is a prediction from the frame before,
        # which has nothing of its own to add: it stays close to what it was predicted from.
        prediction = pictures[number][0].astype(int) - (residual.y.astype(int) - GRAY)
        surround = cv2.dilate(pictures[number - 1][0], np.ones((11, 11))) + 3.0
        beneath = cv2.erode(pictures[number - 1][0], np.ones((11, 11))) - 3.0
        assert residual.intra_fraction == 0
        assert residual.y.std() > 0.5
        assert ((prediction <= surround) & (prediction >= beneath)).mean() > 0.995


@pytest.mark.parametrize(("height", "width"), [(95, 127), (33, 47), (2, 2), (100, 64)])
def test_odd_sizes(height, width):
    bitstream = encode(moving_texture(5, height, width), CodecSettings(), 25)
    residual = bitstream.direct_residual(2)
    assert residual.y.shape == (height, width)
    assert residual.u.shape == (-(-height // 2), -(-width // 2))
    (gray,) = bitstream._decode([(bitstream._format.gray, 0)])
    assert all((plane == GRAY).all() for plane in planes_of(gray))
    assert bitstream.i_frames()[0].shape == (height, width, 3)


def test_data_partitioning_is_refused(tmp_path):
    path = someone_elses(moving_texture(6), tmp_path / "p.mp4", data_partitioning="1")
    with pytest.raises(CodecError, match="partitioned"):
        Bitstream.open(path)
