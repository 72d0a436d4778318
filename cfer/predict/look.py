"""One picture that explains the method on your own clip: `cfer look VIDEO PICTURE.png`.

What one GOP holds (I-frame, direct and accumulated residuals, motion vectors, block types, bytes of
each frame), and what a recognizer makes of it (probabilities, and where it looked).
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cfer.codec import MACROBLOCK, Bitstream, CodecError
from cfer.data import is_dataset
from cfer.data.inputs import BLOCK
from cfer.data.shards import Clip, read_clips
from cfer.errors import InputError
from cfer.model.card import ModelCard
from cfer.predict.gop_arrays import (
    EMPTY,
    INTER,
    INTER_PARTS,
    INTRA,
    NUM_RESIDUALS,
    ClassActivation,
    Shown,
    activation_picture,
    block_types,
    class_activation,
    movements,
    movements_since_i_frame,
)
from cfer.predict.recognizer import Recognizer, face_bitstream

NUM_IDS = 3  # that a message about clip ids names


def look(source: str | Path, clip_id: str | None, gop: int, model_name: str) -> Figure:
    """The picture of one GOP.

    Args:
        source: a video, a folder of numbered pictures, or a data set of `cfer extract`. A
            bitstream of MPEG-4 Part 2 is shown as it is; in any other video the face is found,
            cropped and encoded as the model wants it.
        clip_id: the data set's clip; None for a video.
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
    if "://" in str(source) or is_dataset(Path(source)):
        clip = _find_clip(str(source), clip_id)
        bitstream = Bitstream(clip.bitstream, clip.clip_id)
    elif clip_id is not None:
        raise InputError(
            f"--clip {clip_id}: {source} is not a data set; give the folder of shards, "
            "or leave out --clip"
        )
    else:
        bitstream = _open(Path(source), card)
    _check_gop(str(source), bitstream, gop)
    activation, given = None, []
    if recognizer.is_fixed_gop(bitstream):
        gops = range(gop, gop + 1)
        given = [bitstream.gops[gop].index(n) for n in card.what.wanted(bitstream, gops)]
        activation = class_activation(recognizer.predictor, card.what.read(bitstream, gops))
    name = Path(source).name if clip is None else clip.clip_id
    shown = Shown(name, bitstream, gop, clip, Path(model_name).name, card, activation, given)
    with matplotlib.rc_context(STYLE):
        return _draw(shown)


def _open(path: Path, card: ModelCard) -> Bitstream:
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if path.is_file():
        try:
            return Bitstream.open(path, codecs=["mpeg4"])
        except CodecError:
            pass  # another codec: it is decoded, and encoded anew
    return face_bitstream(path, card.size, card.codec)


def _find_clip(directory: str, clip_id: str | None) -> Clip:
    ids: list[str] = []
    for clip in read_clips(directory):
        if clip.clip_id == clip_id:
            return clip
        ids.append(clip.clip_id)
        if clip_id is None and len(ids) == NUM_IDS:
            break
    some = ", ".join([*ids[:NUM_IDS], "…"])
    if clip_id is None:
        raise InputError(f"{directory}: a data set of many clips; give --clip ID ({some})")
    raise InputError(f"--clip {clip_id}: no such clip in {directory}; give one of {some}")


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


# ---- how it is drawn -----------------------------------------------------------------------------

# Inches; `cfer look` makes 1600 pixels of the width and the margins.
WIDTH, MARGIN, LEFT_WIDTH, CELL_WIDTH = 13.7, 0.4, 3.4, 2.3
MOST_ARROWS = 20  # from left to right
NOTE_WIDTH = 45  # characters
INK, FAINT, EDGE = "#20262d", "#5d6873", "#c9d0d6"
APPEARANCE, CHANGE, HEAT = "#2a9d74", "#3d6fa5", "#d9480f"
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
METHOD = (
    "A video codec stores one whole picture (the I-frame). Of each frame after it (a P-frame) it "
    "stores how blocks moved, and what their motion does not explain: the residual."
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


def _draw(shown: Shown) -> Figure:
    # Few residuals leave room beside them.
    num_columns = max(len(shown.positions), 2)
    room = NUM_RESIDUALS - num_columns
    panels = ["motion", "types", "advice", "advice"]
    if shown.activation is not None:
        panels[2:] = ["looked"] if room == 2 else ["looked", "says"]

    # A picture that is far from square leaves room in its panel; the page keeps its shape.
    aspect = min(max(shown.bitstream.height / shown.bitstream.width, 0.55), 1.25)
    top_height = max(2 * (aspect * CELL_WIDTH + 0.55), aspect * LEFT_WIDTH + 1.8)
    heights = [1.1, top_height, 0.2, aspect * (WIDTH / len(panels) - 0.2) + 1.2]
    width, height = WIDTH + 2 * MARGIN, sum(heights) + 2 * MARGIN
    within = (MARGIN / width, MARGIN / height, WIDTH / width, sum(heights) / height)
    layout = ConstrainedLayoutEngine(rect=within, w_pad=0, wspace=0.05)
    page = Figure((width, height), facecolor="white", layout=layout)
    parts = page.subfigures(4, 1, squeeze=False, height_ratios=heights)
    head, top, _, bottom = parts[:, 0]
    _draw_head(head, shown)
    widths = [LEFT_WIDTH, num_columns * CELL_WIDTH + 1.1, *([room * CELL_WIDTH] if room else [])]
    left, right, *beside = top.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_left(left, shown, aspect)
    for panel, kind in zip(right.subfigures(2, 1), RESIDUALS, strict=True):
        _draw_residuals(panel, shown, kind)
    axes = bottom.subplot_mosaic([panels])
    _draw_motion(axes["motion"], shown)
    _draw_types(axes["types"], shown)
    if shown.activation is None:
        _draw_no_prediction(axes["advice"], shown)
    else:
        _draw_activation(axes["looked"], shown, shown.activation)
        says = axes["says"] if "says" in axes else beside[0].subplots()
        _draw_probabilities(says, shown, shown.activation)
    return page


def _draw_head(head: SubFigure, shown: Shown) -> None:
    count = len(shown.bitstream.gops)
    name = shown.name if len(shown.name) <= 44 else f"{shown.name[:24]}…{shown.name[-19:]}"
    part = "" if count == 1 else f"GOP {shown.gop} of 0 to {count - 1}, "
    title = f"{name}: {part}{len(shown.sizes)} frames in {shown.sizes.sum():,} bytes"
    message = "The residual holds what changes in a face, and little of whose face it is."
    if shown.activation is not None:
        label = shown.card.classes[shown.activation.target]
        title += f"  →  {label}, {shown.activation.probabilities.max():.0%}"
        message = f"The recognizer is given {SEEN[shown.card.what.kind]}, and nothing else."
    head.text(0, 1, title, va="top", size=min(18, 1500 / len(title)), weight="bold")
    head.text(0, 0.6, f"{METHOD}\n{message}", va="top", size=11, color=FAINT, linespacing=1.4)


def _picture(axes: Axes, picture: np.ndarray, smooth: bool = False, **style: Any) -> None:
    """Samples stay squares unless `smooth`, where there is room for them."""
    interpolation = "bicubic" if smooth else "nearest"
    has_room = picture.shape[1] < 240
    axes.imshow(picture, interpolation=interpolation if has_room else "auto", **style)
    axes.set(anchor="NW", xticks=[], yticks=[], autoscale_on=False)
    axes.spines[:].set(visible=True, linewidth=0.8)


def _note(axes: Axes, text: str) -> None:
    axes.set_xlabel(textwrap.fill(text, NOTE_WIDTH), linespacing=1.4)


def _draw_left(left: SubFigure, shown: Shown, aspect: float) -> None:
    """The I-frame and the bytes; of a stored clip, what else its row holds."""
    heights, title = [aspect * LEFT_WIDTH, 1.3], "I-frame: what the face looks like"
    panels: list[Any] = [["i_frame"], ["bytes"]]
    if shown.clip is not None:
        heights, title = [aspect * LEFT_WIDTH / 2, 1.5, 1.3], "I-frame"
        panels = [["i_frame", "apex"], ["row", "row"], ["bytes", "bytes"]]
    axes = left.subplot_mosaic(panels, height_ratios=heights)
    axes["i_frame"].set_title(title)
    _picture(axes["i_frame"], shown.bitstream.i_frame(shown.gop), smooth=True)
    if shown.clip is not None:
        _draw_stored(axes["apex"], axes["row"], shown.clip)
    _draw_bytes(axes["bytes"], shown)


def _draw_stored(apex: Axes, row: Axes, clip: Clip) -> None:
    if clip.apex is None:
        apex.set_axis_off()
    else:
        apex.set_title("Stored apex")
        _picture(apex, clip.apex, smooth=True)
    stored = {
        "subject": clip.subject or "–",
        "label": clip.label_name or "–",
        "apex": "–" if clip.apex_frame is None else f"frame {clip.apex_frame}",
        "frames": f"{clip.num_frames}, at {clip.fps:g} per second",
        "picture": f"{clip.size} × {clip.size}, GOP {clip.gop_size}",
        "bitstream": f"{len(clip.bitstream):,} bytes (MP4)",
        "identity": f"{clip.identity.shape[1]} numbers",
    }
    row.set_axis_off()
    row.set_ylim(len(stored), 0)
    for line, (name, value) in enumerate(stored.items()):
        row.text(0, line, name, color=FAINT)
        row.text(0.28, line, value)


def _draw_bytes(axes: Axes, shown: Shown) -> None:
    first, rest, last = int(shown.sizes[0]), int(shown.sizes[1:].sum()), shown.last
    title = "Bytes per frame"
    colors = [APPEARANCE, *[CHANGE] * last]
    apex_frame = None if shown.clip is None else shown.clip.apex_frame
    if apex_frame is not None and apex_frame in shown.numbers:
        colors[shown.numbers.index(apex_frame)] = INK
        title += " (dark: apex)"
    axes.set_title(title)
    words = f"{last} P-frames" if last > 1 else "1 P-frame"
    _note(axes, f"I-frame {first:,} + {words} {rest:,} = {first + rest:,}")
    axes.bar(range(last + 1), shown.sizes, color=colors, width=0.8 if last < 80 else 1.0)
    axes.set_xlim(-0.7, last + 0.7)
    # The I-frame and P1 would write over each other.
    marks = [n for n in shown.positions if n > last / 12]
    axes.set_xticks([0, *marks], ["I", *(f"P{n}" for n in marks)])
    # On the right, so that the bars begin where the I-frame does.
    axes.yaxis.tick_right()
    # Ticks are made as the page is drawn, when STYLE no longer holds.
    axes.tick_params(labelsize=9, color=FAINT, labelcolor=FAINT)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines["left"].set_visible(False)
    axes.spines["right"].set_visible(True)


def _draw_residuals(panel: SubFigure, shown: Shown, kind: str) -> None:
    panel.suptitle(RESIDUALS[kind], x=0, ha="left")
    limit = shown.limit(kind)
    row = panel.subplots(1, len(shown.positions), squeeze=False)[0]
    for position, axes in zip(shown.positions, row, strict=True):
        luma = shown.luma_residual(kind, position)
        _picture(axes, luma, cmap=SIGNED, vmin=-limit, vmax=limit)
        white, heat = {"color": "#ffffffcc", "pad": 1.5}, {"color": HEAT, "pad": 2.5}
        style: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "bbox": white}
        axes.text(0.025, 0.975, f"P{position}", **style)
        if position in shown.given and kind == shown.kind_given:
            axes.spines[:].set(color=HEAT, linewidth=2.5)
            style |= {"ha": "center", "va": "baseline", "color": "white", "bbox": heat}
            axes.text(0.5, 0.025, "the recognizer sees this", **style)
    # Beside the last one; its labels need some height.
    height = max(1.0, 0.4 * luma.shape[1] / luma.shape[0])
    place = axes.inset_axes((1.05, 1 - height, 0.06, height))
    scale = panel.colorbar(axes.images[0], cax=place)
    scale.set_ticks([-limit, 0, limit], labels=[f"−{limit}\ndarker", "0", f"brighter\n+{limit}"])
    darker, _, brighter = scale.ax.get_yticklabels()
    darker.set(color=SIGNED(0.08), va="bottom")
    brighter.set(color=SIGNED(0.92), va="top")


def _draw_motion(axes: Axes, shown: Shown) -> None:
    axes.set_title("Motion since the I-frame")
    luma = shown.luma(shown.last)
    # Pale, so that the arrows stand out.
    low, high = np.percentile(luma, (1, 99))
    high = max(high, low + 1)
    black = high - (high - low) / 0.3
    _picture(axes, luma, cmap="gray", vmin=black, vmax=high, smooth=True)
    moves = movements_since_i_frame(shown.bitstream.iter_accumulated_residuals(shown.gop))
    length = _draw_arrows(axes, moves, BLOCK, shown.bitstream.width)
    _note(axes, f"Vectors of P1 to P{shown.last}, traced back. {length}")


def _draw_arrows(axes: Axes, moves: np.ndarray, spacing: int, width: int) -> str:
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


def _draw_types(axes: Axes, shown: Shown) -> None:
    # That P-frame has the most vectors and blocks to show.
    largest = 1 + int(shown.sizes[1:].argmax())
    residual = shown.direct(largest)
    axes.set_title(f"Blocks and vectors of P{largest}")
    types = block_types(residual)
    height, width = residual.y.shape
    samples = types.repeat(MACROBLOCK, 0).repeat(MACROBLOCK, 1)[:height, :width]
    colors = ListedColormap([color for color, _ in TYPES.values()])
    _picture(axes, samples, cmap=colors, vmin=0, vmax=len(TYPES) - 1)
    line = 0.8 if max(types.shape) <= 25 else 0.3
    for side, draw, other in ((height, axes.hlines, width), (width, axes.vlines, height)):
        draw(np.arange(MACROBLOCK, side, MACROBLOCK) - 0.5, -0.5, other - 0.5, "white", lw=line)
    length = _draw_arrows(axes, movements(residual), MACROBLOCK, width)
    message = f"The largest P-frame. {length}"
    if (types == INTRA).any():
        message += " Where a block is intra, the residual is the picture itself."
    legend = axes.legend(
        handles=[
            Patch(color=color, label=f"{np.count_nonzero(types == kind)}  {words}")
            for kind, (color, words) in TYPES.items()
        ],
        title=textwrap.fill(message, NOTE_WIDTH),
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(0, -0.02),
        ncols=2,
    )
    legend.get_title().set(color=FAINT, linespacing=1.4)


def _draw_activation(axes: Axes, shown: Shown, activation: ClassActivation) -> None:
    axes.set_title("Where the recognizer looked")
    # Of several frames, the one that says most for the class.
    place = int(activation.contributions.sum((1, 2)).argmax())
    position = shown.given[place]
    kind = shown.kind_given
    if kind is None:
        _picture(axes, shown.luma(position), cmap="gray", smooth=True)
    else:
        size = np.abs(shown.luma_residual(kind, position))
        _picture(axes, size, cmap="Greys", vmin=0, vmax=1.2 * shown.limit(kind))
    contributions, stride = activation.contributions[place], shown.card.network.stem_stride
    heat = activation_picture(contributions, shown.bitstream.width, stride)
    axes.imshow(heat, cmap=HOT, vmin=0, vmax=max(float(heat.max()), 1e-6))
    rows, columns = activation.contributions.shape[1:]
    several = f" (of {len(shown.given)} frames given)" if len(shown.given) > 1 else ""
    _note(
        axes,
        f"Class-activation map: the parts of P{position}{several} that speak for "
        f"{shown.card.classes[activation.target]}. All {rows} × {columns} cells sum to its score "
        f"less the bias, {activation.contributions.sum():+.2f}.",
    )


def _draw_probabilities(axes: Axes, shown: Shown, activation: ClassActivation) -> None:
    axes.set_title("What it says")
    axes.set_box_aspect(1)
    axes.set_anchor("NW")
    names = shown.card.classes
    colors = [HEAT if n == activation.target else EDGE for n in range(len(names))]
    bars = axes.barh(names, activation.probabilities, color=colors, height=0.62)
    axes.bar_label(bars, [f"{p:.1%}" for p in activation.probabilities], padding=4)
    axes.set(xlim=(0, 1), xticks=[], ylim=(len(names) - 0.4, -0.6))
    axes.tick_params("y", labelsize=9.5, labelcolor=INK, length=0)
    axes.spines["bottom"].set_visible(False)
    message = f"Model {shown.model_name!r}, on this GOP alone."
    if shown.clip is not None and shown.clip.label_name:
        message += f" Stored label: {shown.clip.label_name}."
    _note(axes, message)


def _draw_no_prediction(axes: Axes, shown: Shown) -> None:
    axes.set_title("No prediction")
    axes.set_axis_off()
    bitstream, card = shown.bitstream, shown.card
    lengths = [len(gop) for gop in bitstream.gops[:-1] or bitstream.gops]
    gops = " to ".join(str(length) for length in sorted({min(lengths), max(lengths)}))
    if shown.clip is None:
        advice = "Have its face found and encoded anew, and look at that:"
        command = "cfer encode VIDEO CLIP.mp4"
    else:
        advice = "Give a model that was trained on this data set (--model), or extract anew:"
        command = "cfer extract …"
    message = (
        f"The model {shown.model_name!r}\n"
        f"takes {card.size} × {card.size} in GOPs of {card.codec.gop_size}.\n"
        f"This is {bitstream.width} × {bitstream.height} in GOPs of {gops}.\n\n{advice}"
    )
    codec = card.codec
    # An earlier cfer's frames are meant at a usual rate.
    seconds = codec.gop_seconds or (codec.gop_span or 0) / 24
    command += f" \\\n  --size {card.size} --gop-size {codec.gop_size} --gop-seconds {seconds:g}"
    words = axes.text(0, 1, message, va="top", size=11, linespacing=1.4)
    axes.annotate(command, (0, -0.1), xycoords=words, va="top", family="monospace", linespacing=1.4)
