"""One picture that explains the method on a clip of one's own: `cfer look VIDEO PICTURE.png`.

What one GOP holds (I-frame, direct and accumulated residuals, motion vectors, block types, bytes of
each frame), and what a recognizer makes of it (probabilities, and where it looked). What is shown
is computed by functions of their own, which return arrays: `frame_bytes`, `movements`,
`movements_since_i_frame`, `block_types`, `class_activation`, `activation_picture`.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cfer.codec import GRAY, MACROBLOCK, Bitstream, CodecError, Residual
from cfer.data.inputs import BLOCK, traced_motion
from cfer.data.shards import DESCRIPTION_NAME, Clip, read_clips
from cfer.errors import InputError
from cfer.model.card import ModelCard
from cfer.model.network import Predictor, scale_planes
from cfer.predict.recognizer import Recognizer, face_bitstream

NUM_RESIDUALS = 4
NUM_IDS = 3  # that a message about clip ids names
# From one cell of the encoder's last stage to the next, pixels of the picture: a plane has half of
# its sides, and the stem and two of the stages halve it again.
CELL = 16

# ---- what is shown -------------------------------------------------------------------------------

INTRA, INTER, INTER_PARTS, EMPTY = range(4)


def frame_bytes(bitstream: Bitstream, gop: int) -> np.ndarray:
    """What each frame of a GOP takes in the bitstream: int64 (frames,), bytes."""
    return np.array([len(bitstream.packets[n]) for n in bitstream.gops[gop]], np.int64)


def movements(residual: Residual) -> np.ndarray:
    """How the blocks of a P-frame moved since the frame before it: float32 (blocks, 4), pixels.

    A row is the block's center (x, y) and its movement (dx, dy), to the right and downwards: from
    the place in the frame before that the block is predicted from. Intra blocks have no row.
    """
    vectors = residual.motion_vectors
    # A vector points from the block back to where it comes from.
    scale = np.maximum(vectors["motion_scale"], 1).astype(np.float32)
    columns = (
        vectors["dst_x"],
        vectors["dst_y"],
        -vectors["motion_x"] / scale,
        -vectors["motion_y"] / scale,
    )
    return np.stack(columns, axis=1).astype(np.float32)


def movements_since_i_frame(residuals: Iterable[Residual]) -> np.ndarray:
    """How the 8 × 8 blocks of a GOP's last P-frame moved since its I-frame.

    Args:
        residuals: of all P-frames of the GOP, up to that one.

    Returns:
        float32 (blocks, 4), rows as in `movements`; the vectors, traced back (`traced_motion`).
    """
    (last,) = deque(traced_motion(residuals), maxlen=1)
    down, right = -last
    row, column = np.mgrid[: down.shape[0], : down.shape[1]]
    parts = ((column + 0.5) * BLOCK, (row + 0.5) * BLOCK, right, down)
    return np.stack([part.ravel() for part in parts], axis=1).astype(np.float32)


def block_types(residual: Residual) -> np.ndarray:
    """How each macroblock of a P-frame is coded: uint8 (ceil(H/16), ceil(W/16)).

    Args:
        residual: a direct one; an accumulated one is not zero where its frame has nothing.

    Returns:
        INTRA: no prediction, its samples stand in the bitstream; INTER: one vector for 16 × 16;
        INTER_PARTS: a vector for each 8 × 8 (for each field, if interlaced); EMPTY: the vector is
        zero, and so is the residual. Whether such a one was skipped by a single bit, or written out
        as empty, can't be told from what a decoder gives.
    """
    height, width = residual.y.shape
    rows, columns = -(-height // MACROBLOCK), -(-width // MACROBLOCK)
    if not residual.is_coded:
        return np.full((rows, columns), EMPTY, np.uint8)
    vectors = residual.motion_vectors
    at = vectors["dst_y"] // MACROBLOCK, vectors["dst_x"] // MACROBLOCK
    num_vectors = np.zeros((rows, columns), int)
    np.add.at(num_vectors, at, 1)
    moves = np.zeros((rows, columns), bool)
    moves[at] |= (vectors["motion_x"] != 0) | (vectors["motion_y"] != 0)
    types = np.full((rows, columns), INTER, np.uint8)
    types[~moves & ~_has_residual(residual, rows, columns)] = EMPTY
    types[num_vectors > 1] = INTER_PARTS
    types[num_vectors == 0] = INTRA
    return types


def _has_residual(residual: Residual, rows: int, columns: int) -> np.ndarray:
    """bool (rows, columns): whether a macroblock has a sample of Y, U or V that is not zero."""
    there = np.zeros((rows, columns), bool)
    for plane, side in (
        (residual.y, MACROBLOCK),
        (residual.u, MACROBLOCK // 2),
        (residual.v, MACROBLOCK // 2),
    ):
        whole = np.zeros((rows * side, columns * side), bool)
        whole[: plane.shape[0], : plane.shape[1]] = plane != GRAY
        there |= whole.reshape(rows, side, columns, side).any((1, 3))
    return there


@dataclass(frozen=True)
class ClassActivation:
    """What each place of each frame adds to the score of one class.

    Attributes:
        target: the class, by its number in the model's.
        logits: float32 (classes,), the scores of all, before the softmax.
        bias: of the target's logit, what it would be if the last stage were zero everywhere.
        contributions: float32 (T, rows, columns), for the T frames that the model was given and the
            cells of the encoder's last stage. They sum to `logits[target] - bias`.
    """

    target: int
    logits: np.ndarray
    bias: float
    contributions: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """float32 (classes,), which sum to 1."""
        return torch.from_numpy(self.logits).softmax(0).numpy()


def class_activation(
    predictor: Predictor, planes: np.ndarray, target: int | None = None
) -> ClassActivation:
    """Where a model looked: Zhou et al., "Learning Deep Features for Discriminative Localization",
    CVPR 2016.

    After the last stage come an average over a grid, a mean over the frames and two linear layers.
    So a logit is linear in the stage's output, and output × gradient, summed over the channels, is
    exactly what a cell adds to it. (With max pooling over the frames it is linear piece by piece
    and grows in proportion to that output, so the sum is exact there as well.)

    Args:
        predictor: the model, in evaluation mode.
        planes: what it is given, uint8 (T, C, S/2, S/2).
        target: a class, by its number; None: the likeliest.
    """
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    hook = predictor.encoder.stages.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            mask = torch.ones(1, len(planes), dtype=torch.bool)
            # A copy, since the planes may be read-only.
            code = predictor.encoder(scale_planes(torch.tensor(planes))[None], mask)
            logits = predictor.classifier(code)[0]
    finally:
        hook.remove()
    target = int(logits.argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(logits[target], kept[0])
    with torch.no_grad():
        bias = predictor.classifier(predictor.encoder.code.bias)[target]
        contributions = (gradient * kept[0]).sum(1)
    return ClassActivation(target, logits.detach().numpy(), float(bias), contributions.numpy())


def activation_picture(contributions: np.ndarray, size: int) -> np.ndarray:
    """One frame's contributions, float32 (rows, columns), over its picture: float32 (size, size).

    Interpolated, so what it shows is a place, and not a quantity that sums to anything.
    """
    # The strides sample every second place from the first one on: a cell looks around the pixel
    # CELL · n, and not around the middle of the n-th tile of CELL pixels.
    at = ((np.arange(size) - 0.5) / CELL).astype(np.float32)
    columns, rows = np.meshgrid(at, at)
    return cv2.remap(
        np.ascontiguousarray(contributions, np.float32),
        columns,
        rows,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )


# ---- where it comes from -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """A GOP, and what a model makes of it.

    Attributes:
        name: of the video or the clip.
        bitstream, gop: the GOP's number, from 0.
        clip: the row that it is stored in, if it comes out of a data set.
        model_name, card: of the model.
        activation: None where the model can't be given such a clip.
        frames: those that the model was given.
    """

    name: str
    bitstream: Bitstream
    gop: int
    clip: Clip | None
    model_name: str
    card: ModelCard
    activation: ClassActivation | None
    frames: Sequence[int]

    @property
    def numbers(self) -> range:
        return self.bitstream.gops[self.gop]

    @cached_property
    def sizes(self) -> np.ndarray:
        return frame_bytes(self.bitstream, self.gop)

    @cached_property
    def accumulated(self) -> tuple[dict[int, Residual], np.ndarray]:
        """The residuals that are drawn, by their positions, and `movements_since_i_frame`: of a
        long GOP no more is held at a time."""
        wanted = {*self.positions, *(self.numbers.index(frame) for frame in self.frames)}
        kept = {}

        def passing() -> Iterator[Residual]:
            residuals = self.bitstream.iter_accumulated_residuals(self.gop)
            for position, residual in enumerate(residuals, start=1):
                if position in wanted:
                    kept[position] = residual
                yield residual

        moves = movements_since_i_frame(passing())
        return kept, moves

    @cached_property
    def positions(self) -> list[int]:
        """Of the P-frames whose residuals are drawn; 1 is the first one's."""
        count = len(self.numbers) - 1
        steps = np.linspace(1, count, min(NUM_RESIDUALS, count))
        return sorted({round(step) for step in steps})

    @cached_property
    def largest(self) -> int:
        """Position of the P-frame that has most to tell of vectors and blocks."""
        return 1 + int(self.sizes[1:].argmax())

    def residual(self, kind: str, position: int) -> Residual:
        return self.direct(position) if kind == "direct" else self.accumulated[0][position]

    def limit(self, kind: str) -> int:
        """The residual's size at the colors' end: beyond it are 1 % of the samples."""
        sizes = [np.abs(_signed(self.residual(kind, position))) for position in self.positions]
        return max(int(np.percentile(sizes, 99)), 8)

    def direct(self, position: int) -> Residual:
        return self.bitstream.direct_residual(self.numbers[position])

    def picture(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(y, u, v) of one frame."""
        return next(islice(self.bitstream.gop_pictures(self.gop), position, None))


def look(source: str | Path, clip_id: str | None, gop: int, model_name: str) -> Figure:
    """The picture of one GOP.

    Args:
        source: a video, a folder of numbered pictures, or a data set of `pipeline/extract.py`. A
            bitstream of MPEG-4 Part 2 is shown as it is; of any other video the face is found,
            cropped and encoded as the model wants it.
        clip_id: the data set's clip; None of a video.
        gop: its number, from 0.
        model_name: see `cfer.predict.models`.

    Raises:
        InputError: no such source, clip, GOP or model; a GOP without a P-frame.
    """
    return look_with(source, clip_id, gop, model_name, Recognizer.from_pretrained(model_name))


def look_with(
    source: str | Path,
    clip_id: str | None,
    gop: int,
    model_name: str,
    recognizer: Recognizer,
) -> Figure:
    """As `look`, with a model that is open already; `model_name` is what the picture calls it."""
    card = recognizer.card
    clip: Clip | None = None
    if "://" in str(source) or (Path(source) / DESCRIPTION_NAME).is_file():
        clip = _find_clip(str(source), clip_id)
        bitstream = Bitstream(clip.bitstream, clip.clip_id)
    elif clip_id is not None:
        raise InputError(
            f"--clip {clip_id}: {source} is no data set; give the folder of shards, or leave --clip"
        )
    else:
        bitstream = _open(Path(source), card)
    _check_gop(str(source), bitstream, gop)
    activation, frames = None, []
    if recognizer.is_fixed_gop(bitstream):
        gops = range(gop, gop + 1)
        frames = card.what.wanted(bitstream, gops)
        activation = class_activation(recognizer.predictor, card.what.read(bitstream, gops))
    name = Path(source).name if clip is None else clip.clip_id
    return _draw(_Shown(name, bitstream, gop, clip, model_name, card, activation, frames))


def _open(path: Path, card: ModelCard) -> Bitstream:
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if path.is_file():
        try:
            return Bitstream.open(path)
        except CodecError:
            pass  # another codec: it is decoded, and encoded anew
    return face_bitstream(path, card.size, card.codec)


def _find_clip(directory: str, clip_id: str | None) -> Clip:
    clips = read_clips(directory)
    if clip_id is None:
        ids = [clip.clip_id for clip in islice(clips, NUM_IDS)]
        raise InputError(f"{directory}: a data set of many clips; give --clip ID ({_few(ids)})")
    ids = []
    for clip in clips:
        if clip.clip_id == clip_id:
            return clip
        ids.append(clip.clip_id)
    raise InputError(f"--clip {clip_id}: no such clip in {directory}; give one of {_few(ids)}")


def _few(ids: Sequence[str]) -> str:
    return ", ".join([*ids[:NUM_IDS], "…"])


def _check_gop(source: str, bitstream: Bitstream, gop: int) -> None:
    count = len(bitstream.gops)
    if not 0 <= gop < count:
        some = "one GOP; give 0" if count == 1 else f"{count} GOPs; give 0 to {count - 1}"
        raise InputError(f"--gop {gop}: {source} has {some}")
    if len(bitstream.gops[gop]) == 1:
        raise InputError(
            f"--gop {gop}: this GOP of {source} is an I-frame alone, so there is no residual; "
            + ("give another GOP" if count > 1 else "give a clip of several frames")
        )


def _signed(residual: Residual) -> np.ndarray:
    return residual.y.astype(np.int16) - GRAY


# ---- how it is drawn -----------------------------------------------------------------------------

# Inches; `cfer look` makes 1600 pixels of the page's width.
PAGE_WIDTH, MARGIN = 14.5, 0.4
MOST_ARROWS = 20  # from left to right
NOTE_WIDTH = 45  # characters
INK, FAINT, EDGE = "#20262d", "#5d6873", "#c9d0d6"
APPEARANCE, CHANGE, HEAT = "#2a9d74", "#3d6fa5", "#d9480f"
TYPES = {
    EMPTY: ("#e9ecef", "nothing sent"),
    INTER: ("#b9cde4", "one vector"),
    INTER_PARTS: ("#6f97c4", "several vectors"),
    INTRA: ("#7cc7ab", "intra (no vector)"),
}
SIGNED = matplotlib.colormaps["RdBu_r"]
HOT = LinearSegmentedColormap.from_list(
    "hot", [(*to_rgb("#ffd43b"), 0.0), (*to_rgb("#ff922b"), 0.6), (*to_rgb(HEAT), 0.85)]
)
RESIDUALS = {
    "direct": "Direct residuals: what each P-frame transmits",
    "accumulated": "Accumulated residuals: change since the I-frame, less motion",
}
SEEN = {
    "accumulated": "accumulated residuals",
    "direct": "direct residuals",
    "motion": "motion vectors",
    "accumulated+motion": "accumulated residuals and motion vectors",
    "pictures": "decoded pictures",
    "difference": "the difference of decoded pictures",
}


class _Box(NamedTuple):
    """Inches from the page's left and top edge."""

    left: float
    top: float
    width: float
    height: float


class _Page:
    """A figure that is laid out by inches: no panel can come to lie over another by accident."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(PAGE_WIDTH, height), facecolor="white")

    def axes(self, box: _Box) -> Axes:
        bottom = 1 - (box.top + box.height) / self.height
        return self.figure.add_axes(
            (box.left / PAGE_WIDTH, bottom, box.width / PAGE_WIDTH, box.height / self.height)
        )

    def text(self, left: float, top: float, text: str, size: float = 10, **style: Any) -> None:
        """`top` is the text's upper edge."""
        style = {"color": INK, "va": "top", "linespacing": 1.4, **style}
        self.figure.text(
            left / PAGE_WIDTH, 1 - top / self.height, text, fontsize=size, parse_math=False, **style
        )

    def heading(self, box: _Box, text: str) -> None:
        self.text(box.left, box.top - 0.09, text, 11.5, weight="bold", va="baseline")

    def note(self, box: _Box, text: str) -> None:
        lines = textwrap.fill(text, NOTE_WIDTH)
        self.text(box.left, box.top + box.height + 0.09, lines, 9.5, color=FAINT)

    def legend(self, box: _Box, handles: Sequence[Patch]) -> None:
        self.figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(box.left / PAGE_WIDTH, 1 - (box.top + box.height + 0.05) / self.height),
            ncols=2,
            fontsize=9.5,
            labelcolor=FAINT,
            frameon=False,
            borderpad=0,
            borderaxespad=0.2,
            handlelength=1,
            handleheight=1,
            columnspacing=1,
        )

    def picture(self, box: _Box, picture: np.ndarray, smooth: bool = False, **style: Any) -> Axes:
        """Samples stay squares unless `smooth`, where there is room for them."""
        axes = self.axes(box)
        enlarged = "bicubic" if smooth else "nearest"
        has_room = picture.shape[1] < 240
        axes.imshow(picture, interpolation=enlarged if has_room else "auto", **style)
        axes.set_anchor("NW")
        axes.set_xticks([])
        axes.set_yticks([])
        _frame(axes, EDGE, 0.8)
        return axes


def _frame(axes: Axes, color: str, width: float) -> None:
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=width)


def _draw(shown: _Shown) -> Figure:
    # A picture that is far from square leaves room in its panel; the page keeps its shape.
    aspect = min(max(shown.bitstream.height / shown.bitstream.width, 0.55), 1.25)
    left_width, right = 3.0, MARGIN + 3.0 + 0.5
    column_gap, row_gap = 0.12, 0.42
    cell = (PAGE_WIDTH - MARGIN - 0.8 - right - (NUM_RESIDUALS - 1) * column_gap) / NUM_RESIDUALS
    top = 1.68
    height = max(2 * aspect * cell + row_gap, aspect * left_width + 1.7)
    # Few residuals leave room beside them.
    beside = right + len(shown.positions) * (cell + column_gap) + 1.2
    is_beside = shown.activation is not None and PAGE_WIDTH - MARGIN - beside > 3
    num_panels, panel_gap = 3 if is_beside else 4, 0.45
    panel = (PAGE_WIDTH - 2 * MARGIN - (num_panels - 1) * panel_gap) / num_panels
    panels_top = top + height + 0.65
    panels = [
        _Box(MARGIN + n * (panel + panel_gap), panels_top, panel, aspect * panel)
        for n in range(num_panels)
    ]
    says = panels[-1]
    if is_beside:
        says = _Box(beside, top, PAGE_WIDTH - MARGIN - beside, height - 0.5)
    page = _Page(panels_top + max(aspect * panel, 2.2) + 1.25)

    _draw_title(page, shown)
    appearance = _Box(MARGIN, top, left_width, aspect * left_width)
    if shown.clip is None:
        _draw_i_frame(page, shown, appearance)
    else:
        _draw_stored(page, shown, shown.clip, appearance)
    below = aspect * left_width + 0.55
    _draw_bytes(page, shown, _Box(MARGIN, top + below, left_width, height - below))
    for row, kind in enumerate(("direct", "accumulated")):
        row_top = top + row * (aspect * cell + row_gap)
        limit = shown.limit(kind)
        for column, position in enumerate(shown.positions):
            box = _Box(right + column * (cell + column_gap), row_top, cell, aspect * cell)
            if column == 0:
                page.heading(box, RESIDUALS[kind])
            _draw_residual(page, shown, kind, position, limit, box)
        scale = right + len(shown.positions) * (cell + column_gap)
        _draw_scale(page, limit, _Box(scale, row_top, 0.13, aspect * cell))
    _draw_motion(page, shown, panels[0])
    _draw_types(page, shown, panels[1])
    if shown.activation is None:
        _draw_no_prediction(page, shown, panels[2])
    else:
        _draw_activation(page, shown, shown.activation, panels[2])
        _draw_probabilities(page, shown, shown.activation, says)
    return page.figure


def _draw_title(page: _Page, shown: _Shown) -> None:
    count = len(shown.bitstream.gops)
    name = shown.name if len(shown.name) <= 44 else f"{shown.name[:24]}…{shown.name[-19:]}"
    part = "" if count == 1 else f"GOP {shown.gop} of 0 to {count - 1}, "
    title = f"{name}: {part}{len(shown.numbers)} frames in {shown.sizes.sum():,} bytes"
    told = "The residual holds what changes in a face, and little of whose face it is."
    if shown.activation is not None:
        label = shown.card.classes[shown.activation.target]
        title += f"  →  {label}, {shown.activation.probabilities.max():.0%}"
        told = f"The recognizer is given {SEEN[shown.card.what.kind]}, and nothing else."
    page.text(MARGIN, 0.3, title, min(18, 1500 / len(title)), weight="bold")
    page.text(
        MARGIN,
        0.75,
        "A video codec stores one whole picture (the I-frame). Of each frame after it (a P-frame) "
        "it stores how blocks moved, and what their motion does not explain: the residual.\n"
        + told,
        11,
        color=FAINT,
    )


def _draw_i_frame(page: _Page, shown: _Shown, box: _Box) -> None:
    page.heading(box, "I-frame: what the face looks like")
    page.picture(box, shown.bitstream.i_frame(shown.gop), smooth=True)


def _draw_stored(page: _Page, shown: _Shown, clip: Clip, box: _Box) -> None:
    """The I-frame beside the apex that the row holds, and what else it does."""
    side = (box.width - 0.12) / 2
    left = box._replace(width=side, height=side)
    page.heading(left, "I-frame")
    page.picture(left, shown.bitstream.i_frame(shown.gop), smooth=True)
    right = left._replace(left=box.left + side + 0.12)
    if clip.apex is not None:
        page.heading(right, "Stored apex")
        page.picture(right, clip.apex, smooth=True)
    stored = {
        "subject": clip.subject or "–",
        "label": clip.label_name or "–",
        "apex": "–" if clip.apex_frame is None else f"frame {clip.apex_frame}",
        "frames": f"{clip.num_frames}, at {clip.fps:g} per second",
        "picture": f"{clip.size} × {clip.size}, GOP {clip.gop_size}",
        "bitstream": f"{len(clip.bitstream):,} bytes (MP4)",
        "identity": f"{clip.identity.shape[1]} numbers",
    }
    for row, (name, value) in enumerate(stored.items()):
        line = box.top + side + 0.3 + 0.21 * row
        page.text(box.left, line, name, 10, color=FAINT, va="baseline", linespacing=1)
        page.text(box.left + 0.85, line, value, 10, va="baseline", linespacing=1)


def _draw_bytes(page: _Page, shown: _Shown, box: _Box) -> None:
    first, rest = int(shown.sizes[0]), int(shown.sizes[1:].sum())
    count = len(shown.sizes) - 1
    page.heading(box, "Bytes per frame")
    axes = page.axes(_Box(box.left + 0.48, box.top + 0.02, box.width - 0.48, box.height - 0.62))
    colors = [APPEARANCE, *[CHANGE] * count]
    axes.bar(range(count + 1), shown.sizes, color=colors, width=0.8 if count < 80 else 1.0)
    axes.set_xlim(-0.7, count + 0.7)
    _plain(axes)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    # The I-frame and P1 would write over each other.
    marks = [0, *(n for n in shown.positions if n > count / 12)]
    axes.set_xticks(marks, [_name(mark) for mark in marks])
    apex_frame = None if shown.clip is None else shown.clip.apex_frame
    if apex_frame is not None and apex_frame in shown.numbers:
        apex = shown.numbers.index(apex_frame)
        axes.annotate(
            "apex",
            (apex, shown.sizes[apex]),
            xytext=(0, 10),
            textcoords="offset points",
            ha="right" if apex > count / 2 else "left",
            fontsize=9,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8},
        )
    words = f"{count} P-frames" if count > 1 else "1 P-frame"
    page.text(
        box.left,
        box.top + box.height - 0.24,
        f"I-frame {first:,} + {words} {rest:,} = {first + rest:,}",
        9,
        color=FAINT,
    )


def _name(position: int) -> str:
    return f"P{position}" if position else "I"


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(EDGE)
    axes.tick_params(labelsize=9, colors=FAINT, length=2)


def _draw_residual(
    page: _Page, shown: _Shown, kind: str, position: int, limit: int, box: _Box
) -> None:
    residual = shown.residual(kind, position)
    axes = page.picture(box, _signed(residual), cmap=SIGNED, vmin=-limit, vmax=limit)
    axes.text(
        0.025,
        0.975,
        _name(position),
        transform=axes.transAxes,
        va="top",
        fontsize=9.5,
        color=INK,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )
    if residual.frame in shown.frames and shown.card.what.kind.startswith(kind):
        _frame(axes, HEAT, 2.5)
        axes.text(
            0.5,
            0.025,
            "the recognizer sees this",
            transform=axes.transAxes,
            ha="center",
            fontsize=9.5,
            color="white",
            bbox={"facecolor": HEAT, "edgecolor": "none", "pad": 2.5},
        )


def _draw_scale(page: _Page, limit: int, box: _Box) -> None:
    axes = page.axes(box._replace(top=box.top + 0.2, height=box.height - 0.4))
    steps = np.linspace(limit, -limit, 256)[:, None]
    axes.imshow(steps, cmap=SIGNED, aspect="auto", extent=(0, 1, -limit, limit))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([-limit, 0, limit], [f"−{limit}", "0", f"+{limit}"])
    axes.tick_params(labelsize=9, colors=FAINT, length=2)
    _frame(axes, EDGE, 0.8)
    left, bottom = box.left - 0.02, box.top + box.height
    page.text(left, box.top + 0.09, "brighter", 9, color=SIGNED(0.92), va="baseline")
    page.text(left, bottom, "darker", 9, color=SIGNED(0.08), va="baseline")


def _draw_motion(page: _Page, shown: _Shown, box: _Box) -> None:
    page.heading(box, "Motion since the I-frame")
    last = len(shown.numbers) - 1
    luma = shown.picture(last)[0]
    # Pale, so that the arrows stand out.
    low, high = np.percentile(luma, (1, 99))
    high = max(high, low + 1)
    black = high - (high - low) / 0.3
    axes = page.picture(box, luma, cmap="gray", vmin=black, vmax=high, smooth=True)
    told = _draw_arrows(axes, shown.accumulated[1], BLOCK, shown.bitstream)
    page.note(box, f"Vectors of {_name(1)} to {_name(last)}, traced back. {told}")


def _draw_arrows(axes: Axes, moves: np.ndarray, spacing: int, bitstream: Bitstream) -> str:
    """Arrows of a length that can be seen, on every n-th block of a large picture → what to say."""
    every = spacing * max(round(bitstream.width / spacing / MOST_ARROWS), 1)
    lengths = np.hypot(moves[:, 2], moves[:, 3])
    if not lengths.any():
        return "Nothing moved."
    scale = int(np.clip(1.2 * every / np.percentile(lengths[lengths > 0], 90), 1, 8))
    here = (lengths > 0) & (moves[:, :2].astype(int) // spacing * spacing % every == 0).all(1)
    axes.quiver(
        *moves[here].T,
        angles="xy",
        scale_units="xy",
        scale=1 / scale,
        pivot="mid",
        color=INK,
        units="width",
        width=0.006,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
        minlength=0.3,
    )
    axes.set_xlim(-0.5, bitstream.width - 0.5)
    axes.set_ylim(bitstream.height - 0.5, -0.5)
    drawn = f", drawn {scale} × as long" if scale > 1 else ""
    return f"Up to {lengths.max():.1f} pixels{drawn}."


def _draw_types(page: _Page, shown: _Shown, box: _Box) -> None:
    name, residual = _name(shown.largest), shown.direct(shown.largest)
    page.heading(box, f"Blocks and vectors of {name}")
    types = block_types(residual)
    rows, columns = types.shape
    axes = page.picture(
        box,
        types,
        cmap=ListedColormap([TYPES[kind][0] for kind in range(len(TYPES))]),
        vmin=0,
        vmax=len(TYPES) - 1,
        # The last row and column may reach beyond the picture.
        extent=(-0.5, columns * MACROBLOCK - 0.5, rows * MACROBLOCK - 0.5, -0.5),
    )
    for lines, count in ((axes.axhline, rows), (axes.axvline, columns)):
        for number in range(1, count):
            lines(number * MACROBLOCK - 0.5, color="white", linewidth=0.8 if count <= 25 else 0.3)
    axes.set_xlim(-0.5, shown.bitstream.width - 0.5)
    axes.set_ylim(shown.bitstream.height - 0.5, -0.5)
    told = _draw_arrows(axes, movements(residual), MACROBLOCK, shown.bitstream)
    told = f"The largest P-frame. {told}"
    if (types == INTRA).any():
        told += " Where a block is intra, the residual is the picture itself."
    page.note(box._replace(top=box.top + 0.45), told)
    page.legend(
        box,
        [
            Patch(color=color, label=f"{np.count_nonzero(types == kind)}  {words}")
            for kind, (color, words) in TYPES.items()
        ],
    )


def _draw_activation(page: _Page, shown: _Shown, activation: ClassActivation, box: _Box) -> None:
    label = shown.card.classes[activation.target]
    page.heading(box, "Where the recognizer looked")
    # Of several frames, the one that says most for the class.
    place = int(activation.contributions.sum((1, 2)).argmax())
    frame = shown.frames[place]
    position = shown.numbers.index(frame)
    kind = shown.card.what.kind
    residual = next((name for name in RESIDUALS if kind.startswith(name)), None)
    if residual is None:
        axes = page.picture(box, shown.picture(position)[0], cmap="gray", smooth=True)
    else:
        size = np.abs(_signed(shown.residual(residual, position)))
        limit = 1.2 * shown.limit(residual)
        axes = page.picture(box, size, cmap="Greys", vmin=0, vmax=limit)
    heat = activation_picture(activation.contributions[place], shown.bitstream.width)
    axes.imshow(heat, cmap=HOT, vmin=0, vmax=max(float(heat.max()), 1e-6))
    rows, columns = activation.contributions.shape[1:]
    seen = _name(position)
    if len(shown.frames) > 1:
        seen += f" (of {len(shown.frames)} frames given)"
    page.note(
        box,
        f"Class-activation map: what of {seen} speaks for {label}. All {rows} × {columns} cells "
        f"sum to its score less the bias, {activation.contributions.sum():+.2f}.",
    )


def _draw_probabilities(page: _Page, shown: _Shown, activation: ClassActivation, box: _Box) -> None:
    page.heading(box, "What it says")
    names = shown.card.classes
    height = max(box.height, 2.2)
    axes = page.axes(_Box(box.left + 0.85, box.top, box.width - 1.3, height))
    colors = [HEAT if n == activation.target else EDGE for n in range(len(names))]
    bars = axes.barh(range(len(names)), activation.probabilities, color=colors, height=0.62)
    axes.bar_label(bars, [f"{p:.1%}" for p in activation.probabilities], padding=4, fontsize=10)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(labelsize=10, colors=INK, length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(EDGE)
    told = f"Model {Path(shown.model_name).name!r}, on this GOP alone."
    if shown.clip is not None and shown.clip.label_name:
        told += f" Stored label: {shown.clip.label_name}."
    page.note(box._replace(height=height), told)


def _draw_no_prediction(page: _Page, shown: _Shown, box: _Box) -> None:
    page.heading(box, "No prediction")
    bitstream, card = shown.bitstream, shown.card
    lengths = [len(gop) for gop in bitstream.gops[:-1] or bitstream.gops]
    shortest, longest = min(lengths), max(lengths)
    gops = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    codec = card.codec
    options = f"--size {card.size} --gop-size {codec.gop_size} --gop-span {codec.span}"
    if shown.clip is None:
        advice = "Have its face found and encoded anew, and look at that:"
        command = f"cfer encode VIDEO CLIP.mp4 \\\n  {options}"
    else:
        advice = "Give a model that was trained on this data set (--model), or extract anew:"
        command = f"python -m pipeline.extract … \\\n  {options}"
    page.text(
        box.left,
        box.top + 0.1,
        f"The model {Path(shown.model_name).name!r}\n"
        f"takes {card.size} × {card.size} in GOPs of {codec.gop_size}.\n"
        f"This is {bitstream.width} × {bitstream.height} in GOPs of {gops}.\n\n{advice}",
        11,
    )
    page.text(box.left, box.top + 1.2, command, 10, family="monospace")
