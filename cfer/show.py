"""A picture of what the bitstream carries: an I-frame, and the residuals that follow it.

cfer show CLIP.mp4 PICTURE.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cfer.codec import GRAY, Bitstream

NUM_RESIDUALS = 4
CONTRAST = 4  # a residual is faint


def show(bitstream: Bitstream, gop: int = 0) -> Figure:
    """The I-frame of a GOP beside direct (above) and accumulated (below) residuals of its P-frames.

    Luma, with its contrast raised `CONTRAST` times around the middle grey, which is zero.
    """
    accumulated = bitstream.accumulated_residuals(gop)
    steps = np.linspace(0, len(accumulated) - 1, min(NUM_RESIDUALS, len(accumulated)))
    positions = sorted({round(step) for step in steps})
    figure = Figure(figsize=(2 * (len(positions) + 2), 4.4), layout="constrained")
    grid = figure.add_gridspec(2, len(positions) + 2)
    axes = figure.add_subplot(grid[:, :2])
    axes.imshow(bitstream.i_frames()[gop])
    axes.set_title("I-frame: what the face looks like")
    axes.set_axis_off()
    for column, position in enumerate(positions):
        frame = accumulated[position].frame
        rows = (
            ("direct", bitstream.direct_residual(frame)),
            ("accumulated", accumulated[position]),
        )
        for row, (kind, residual) in enumerate(rows):
            axes = figure.add_subplot(grid[row, column + 2])
            loud = (residual.y.astype(int) - GRAY) * CONTRAST + GRAY
            axes.imshow(loud, cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"P{position + 1}, {kind}", fontsize=9)
            axes.set_axis_off()
    return figure


def save(bitstream: Bitstream, path: Path) -> None:
    show(bitstream).savefig(path, dpi=100)
