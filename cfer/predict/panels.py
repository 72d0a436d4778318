"""How the pictures of `cfer look` are drawn: the page, and the panels that all of them have."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cfer.codec import MACROBLOCK
from cfer.predict.gop_arrays import NUM_RESIDUALS

# Inches; `cfer look` makes 1600 pixels of the width and the margins.
WIDTH, MARGIN, LEFT_WIDTH, CELL_WIDTH = 13.7, 0.4, 3.4, 2.3
MOST_ARROWS = 20  # from left to right
NOTE_WIDTH = 45  # characters
INK, FAINT, EDGE = "#20262d", "#5d6873", "#c9d0d6"
APPEARANCE, CHANGE, HEAT = "#2a9d74", "#3d6fa5", "#d9480f"
INTRA_COLOR = "#7cc7ab"
STYLE: Any = {
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "figure.titleweight": "bold",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xaxis.labellocation": "left",
    "axes.labelcolor": FAINT,
    "axes.edgecolor": EDGE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.labelcolor": FAINT,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.handlelength": 1,
    "legend.handleheight": 1,
    "legend.columnspacing": 1,
}
SIGNED = matplotlib.colormaps["RdBu_r"]


def new_page(
    height_to_width: float, num_columns: int, num_panels: int
) -> tuple[SubFigure, list[SubFigure], SubFigure, float, Figure]:
    """An empty page.

    Args:
        height_to_width: of the pictures.
        num_columns: of the residuals.
        num_panels: below them.

    Returns:
        its head; what is below it, from left to right (I-frame, residuals, and what is left of the
        row if anything is); the part with the panels; the pictures' shape, less what is extreme;
        and the page.
    """
    room = NUM_RESIDUALS - num_columns
    # A picture that is far from square leaves room in its panel; the page keeps its shape.
    aspect = min(max(height_to_width, 0.55), 1.25)
    top_height = max(2 * (aspect * CELL_WIDTH + 0.55), aspect * LEFT_WIDTH + 1.8)
    heights = [1.1, top_height, 0.2, aspect * (WIDTH / num_panels - 0.2) + 1.2]
    width, height = WIDTH + 2 * MARGIN, sum(heights) + 2 * MARGIN
    within = (MARGIN / width, MARGIN / height, WIDTH / width, sum(heights) / height)
    layout = ConstrainedLayoutEngine(rect=within, w_pad=0, wspace=0.05)
    page = Figure((width, height), facecolor="white", layout=layout)
    parts = page.subfigures(4, 1, squeeze=False, height_ratios=heights)
    head, top, _, bottom = parts[:, 0]
    widths = [LEFT_WIDTH, num_columns * CELL_WIDTH + 1.1, *([room * CELL_WIDTH] if room else [])]
    row = list(top.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0])
    return head, row, bottom, aspect, page


def draw_head(head: SubFigure, title: str, lines: Sequence[str]) -> None:
    head.text(0, 1, title, va="top", size=min(18, 1500 / len(title)), weight="bold")
    head.text(0, 0.6, "\n".join(lines), va="top", size=11, color=FAINT, linespacing=1.4)


def short_name(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:24]}…{name[-19:]}"


def draw_picture(axes: Axes, picture: np.ndarray, smooth: bool = False, **style: Any) -> None:
    """Samples stay squares unless `smooth`, where there is room for them."""
    interpolation = "bicubic" if smooth else "nearest"
    has_room = picture.shape[1] < 240
    axes.imshow(picture, interpolation=interpolation if has_room else "auto", **style)
    axes.set(anchor="NW", xticks=[], yticks=[], autoscale_on=False)
    axes.spines[:].set(visible=True, linewidth=0.8)


def draw_pale(axes: Axes, luma: np.ndarray) -> None:
    """A picture's luma, uint8 (H, W), so pale that other things stand out on it."""
    low, high = np.percentile(luma, (1, 99))
    high = max(high, low + 1)
    black = high - (high - low) / 0.3
    draw_picture(axes, luma, cmap="gray", vmin=black, vmax=high, smooth=True)


def write_note(axes: Axes, text: str) -> None:
    axes.set_xlabel(textwrap.fill(text, NOTE_WIDTH), linespacing=1.4)


def draw_bytes(
    axes: Axes, sizes: np.ndarray, colors: Sequence[str], marks: Mapping[int, str]
) -> None:
    """A bar for each frame of a GOP; `marks` names some of them, by their position."""
    last = len(sizes) - 1
    axes.bar(range(last + 1), sizes, color=colors, width=0.8 if last < 80 else 1.0)
    axes.set_xlim(-0.7, last + 0.7)
    # The I-frame and the first one would write over each other.
    marks = {0: "I"} | {n: name for n, name in marks.items() if n > last / 12}
    axes.set_xticks(list(marks), list(marks.values()))
    # On the right, so that the bars begin where the I-frame does.
    axes.yaxis.tick_right()
    # Ticks are made as the page is drawn, when STYLE no longer holds.
    axes.tick_params(labelsize=9, color=FAINT, labelcolor=FAINT)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines["left"].set_visible(False)
    axes.spines["right"].set_visible(True)


def draw_residuals(
    panel: SubFigure, title: str, names: Sequence[str], lumas: Sequence[np.ndarray], limit: int
) -> list[Axes]:
    """A row of residuals: int16 (H, W) each, colored up to ±`limit`."""
    panel.suptitle(title, x=0, ha="left")
    row = list(panel.subplots(1, len(lumas), squeeze=False)[0])
    for axes, name, luma in zip(row, names, lumas, strict=True):
        draw_picture(axes, luma, cmap=SIGNED, vmin=-limit, vmax=limit)
        white = {"color": "#ffffffcc", "pad": 1.5}
        axes.text(0.025, 0.975, name, transform=axes.transAxes, va="top", bbox=white)
    # Beside the last one; its labels need some height.
    height = max(1.0, 0.4 * luma.shape[1] / luma.shape[0])
    place = row[-1].inset_axes((1.05, 1 - height, 0.06, height))
    scale = panel.colorbar(row[-1].images[0], cax=place)
    scale.set_ticks([-limit, 0, limit], labels=[f"−{limit}\ndarker", "0", f"brighter\n+{limit}"])
    darker, _, brighter = scale.ax.get_yticklabels()
    darker.set(color=SIGNED(0.08), va="bottom")
    brighter.set(color=SIGNED(0.92), va="top")
    return row


def draw_arrows(axes: Axes, moves: np.ndarray, spacing: int, width: int) -> str:
    """Arrows of a length that can be seen, on every n-th block of a large picture → what to say."""
    every = spacing * max(round(width / spacing / MOST_ARROWS), 1)
    lengths = np.hypot(moves[:, 2], moves[:, 3])
    if not lengths.any():
        return "Nothing moved."
    scale = int(np.clip(1.2 * every / np.percentile(lengths[lengths > 0], 90), 1, 8))
    here = (lengths > 0) & (moves[:, :2].astype(int) // spacing * spacing % every == 0).all(1)
    style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "pivot": "mid"}
    head: dict[str, Any] = {"headwidth": 4, "headlength": 4.5, "headaxislength": 4}
    axes.quiver(
        *moves[here].T, scale=1 / scale, color=INK, width=0.006, minlength=0.3, **style, **head
    )
    drawn = f", drawn {scale} × as long" if scale > 1 else ""
    return f"Up to {lengths.max():.1f} pixels{drawn}."


def draw_kinds(
    axes: Axes, kinds: np.ndarray, side: int, colors: Sequence[str], luma: np.ndarray
) -> None:
    """The kind of each block, as a color over the picture.

    Args:
        kinds: integers (rows, columns), that number the colors.
        side: of a block, in samples.
        luma: uint8 (H, W).
    """
    height, width = luma.shape
    samples = kinds.repeat(side, 0).repeat(side, 1)[:height, :width]
    low, high = np.percentile(luma, (1, 99))
    shade = 0.72 + 0.28 * ((luma[..., None] - low) / max(high - low, 1)).clip(0, 1)
    draw_picture(axes, np.array([to_rgb(color) for color in colors])[samples] * shade)


def draw_key(axes: Axes, note: str, kinds: Sequence[tuple[str, str]]) -> None:
    """Below a panel: a note, and what each color means."""
    legend = axes.legend(
        handles=[Patch(color=color, label=words) for color, words in kinds],
        title=textwrap.fill(note, NOTE_WIDTH),
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(0, -0.02),
        ncols=2,
    )
    legend.get_title().set(color=FAINT, linespacing=1.4)


def draw_grid(axes: Axes, height: int, width: int) -> None:
    """White lines between macroblocks."""
    line = 0.8 if max(height, width) <= 25 * MACROBLOCK else 0.3
    for side, draw, other in ((height, axes.hlines, width), (width, axes.vlines, height)):
        draw(np.arange(MACROBLOCK, side, MACROBLOCK) - 0.5, -0.5, other - 0.5, "white", lw=line)
