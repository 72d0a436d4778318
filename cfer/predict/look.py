"""One picture that explains the method on your own clip: `cfer look VIDEO PICTURE.png`.

What one GOP holds (I-frame, direct and accumulated residuals, motion vectors, block types, bytes of
each frame), and what a recognizer makes of it (probabilities, and where it looked).
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure, SubFigure

from cfer.codec import MACROBLOCK, Bitstream, CodecError
from cfer.codec.bitstream import FORMATS
from cfer.data import is_dataset
from cfer.data.inputs import BLOCK
from cfer.data.shards import Clip, read_clips
from cfer.errors import InputError
from cfer.predict.gop_arrays import (
    EMPTY,
    INTER,
    INTER_PARTS,
    INTRA,
    ClassActivation,
    Shown,
    activation_picture,
    block_types,
    class_activation,
    movements,
    movements_since_i_frame,
)
from cfer.predict.look_stream import AS_IT_IS, draw_stream
from cfer.predict.panels import (
    APPEARANCE,
    CHANGE,
    EDGE,
    FAINT,
    HEAT,
    INK,
    INTRA_COLOR,
    LEFT_WIDTH,
    STYLE,
    draw_arrows,
    draw_bytes,
    draw_grid,
    draw_head,
    draw_key,
    draw_pale,
    draw_picture,
    draw_residuals,
    new_page,
    short_name,
    write_note,
)
from cfer.predict.recognizer import Recognizer, face_bitstream
from cfer.predict.stream_arrays import MOST_FRAMES, ShownStream

NUM_IDS = 3  # that a message about clip ids names


class Look(NamedTuple):
    """A picture, and which way it was made, and why, in words."""

    figure: Figure
    how: str


def look(
    source: str | Path,
    clip_id: str | None,
    gop: int,
    model_name: str,
    encoded: bool = False,
    recognizer: Recognizer | None = None,
) -> Look:
    """The picture of one GOP.

    Args:
        source: a video, a folder of numbered pictures, or a data set of `cfer extract`. A bitstream
            of H.264 or MPEG-4 Part 2 is shown as it is. In any other video, and where residuals
            can't be read exactly, the face is found, cropped and encoded as the model wants it.
        clip_id: the data set's clip; None for a video.
        gop: its number, from 0.
        model_name: see `cfer.predict.models`; a stream of H.264 is shown without one.
        encoded: encode H.264 in any case, to see where the recognizer looks.
        recognizer: the model, if it is open already; the picture calls it `model_name`.

    Raises:
        InputError: no such source, clip, GOP or model; a GOP without a P-frame.
    """
    path = Path(source)
    if gop < 0:
        raise InputError(f"--gop {gop}: {source}: GOPs are numbered from 0")
    clip: Clip | None = None
    bitstream: Bitstream | None = None
    if "://" in str(source) or is_dataset(path):
        clip = _find_clip(str(source), clip_id)
        bitstream = Bitstream(clip.bitstream, clip.clip_id)
        how = "A stored clip, as it is."
    elif clip_id is not None:
        raise InputError(
            f"--clip {clip_id}: {source} is not a data set; give the folder of shards, "
            "or leave out --clip"
        )
    elif not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    else:
        how = "The face was encoded anew"
        try:
            if path.is_file():
                codecs = ["mpeg4"] if encoded else list(FORMATS)
                bitstream, number = Bitstream.open_gop(path, gop, MOST_FRAMES + 1, codecs)
                if bitstream.codec == "H.264":
                    _check_gop(str(path), bitstream, gop, gop - number)
                    with matplotlib.rc_context(STYLE):
                        shown_stream = ShownStream(path.name, bitstream, number, gop)
                        return Look(draw_stream(shown_stream), AS_IT_IS)
                how = "The file's own MPEG-4 stream, as it is."
        except CodecError as error:
            bitstream = None  # another codec, or one of which not all can be read exactly
            reason = str(error).removeprefix(f"{path}: ").partition(";")[0]
            how += ", for the recognizer." if encoded else f": {reason}."
    recognizer = recognizer or Recognizer.from_pretrained(model_name)
    card = recognizer.card
    bitstream = bitstream or face_bitstream(path, card.size, card.codec)
    _check_gop(str(source), bitstream, gop)
    activation, given = None, []
    if recognizer.is_fixed_gop(bitstream):
        gops = range(gop, gop + 1)
        given = [bitstream.gops[gop].index(n) for n in card.what.wanted(bitstream, gops)]
        activation = class_activation(recognizer.predictor, card.what.read(bitstream, gops))
    name = path.name if clip is None else clip.clip_id
    shown = Shown(name, bitstream, gop, clip, Path(model_name).name, card, activation, given)
    with matplotlib.rc_context(STYLE):
        return Look(_draw(shown, how), how)


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


def _check_gop(source: str, bitstream: Bitstream, gop: int, num_before: int = 0) -> None:
    """`num_before`: how many GOPs of the source come before the bitstream's first one."""
    count = num_before + len(bitstream.gops)
    if gop >= count:
        some = "one GOP; give 0" if count == 1 else f"{count} GOPs; give 0 to {count - 1}"
        raise InputError(f"--gop {gop}: {source} has {some}")
    if len(bitstream.gops[gop - num_before]) == 1:
        raise InputError(
            f"--gop {gop}: this GOP of {source} is an I-frame alone, so there is no residual; "
            "give another GOP, or a clip of several frames"
        )


# ---- how it is drawn -----------------------------------------------------------------------------

TYPES = {
    EMPTY: ("#e9ecef", "nothing sent"),
    INTER: ("#b9cde4", "one vector"),
    INTER_PARTS: ("#6f97c4", "several vectors"),
    INTRA: (INTRA_COLOR, "intra (no vector)"),
}
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
    "energy": "the size of residuals",
    "energy+motion": "the size of residuals, and motion vectors",
    "pictures": "decoded pictures",
    "difference": "the difference of decoded pictures",
}


def _draw(shown: Shown, how: str) -> Figure:
    # Few residuals leave room beside them.
    num_columns = max(len(shown.positions), 2)
    panels: list[Any] = ["motion", "types", "advice", "advice"]
    if shown.activation is not None:
        panels[2:] = ["looked"] if num_columns == 2 else ["looked", "says"]
    shape = shown.bitstream.height / shown.bitstream.width
    head, (left, right, *beside), bottom, aspect, page = new_page(shape, num_columns, len(panels))
    _draw_head(head, shown, how)
    _draw_left(left, shown, aspect)
    for panel, kind in zip(right.subfigures(2, 1, squeeze=False)[:, 0], RESIDUALS, strict=True):
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


def _draw_head(head: SubFigure, shown: Shown, how: str) -> None:
    count = len(shown.bitstream.gops)
    part = "" if count == 1 else f"GOP {shown.gop} of 0 to {count - 1}, "
    title = f"{short_name(shown.name)}: {part}{len(shown.sizes)} frames in "
    title += f"{shown.sizes.sum():,} bytes"
    message = "The residual holds what changes in a face, and little of whose face it is."
    if shown.activation is not None:
        label = shown.card.classes[shown.activation.target]
        title += f"  →  {label}, {shown.activation.probabilities.max():.0%}"
        message = f"The recognizer is given {SEEN[shown.card.what.kind]}, and nothing else."
    draw_head(head, title, [METHOD, textwrap.shorten(f"{message} {how}", 176, placeholder=" …")])


def _draw_left(left: SubFigure, shown: Shown, aspect: float) -> None:
    """The I-frame and the bytes; of a stored clip, what else its row holds."""
    heights, title = [aspect * LEFT_WIDTH, 1.3], "I-frame: what the face looks like"
    panels: list[Any] = [["i_frame"], ["bytes"]]
    if shown.clip is not None:
        heights, title = [aspect * LEFT_WIDTH / 2, 1.5, 1.3], "I-frame"
        panels = [["i_frame", "apex"], ["row", "row"], ["bytes", "bytes"]]
    axes = left.subplot_mosaic(panels, height_ratios=heights)
    axes["i_frame"].set_title(title)
    draw_picture(axes["i_frame"], shown.bitstream.i_frame(shown.gop), smooth=True)
    if shown.clip is not None:
        _draw_stored(axes["apex"], axes["row"], shown.clip)
    _draw_bytes(axes["bytes"], shown)


def _draw_stored(apex: Axes, row: Axes, clip: Clip) -> None:
    if clip.apex is None:
        apex.set_axis_off()
    else:
        apex.set_title("Stored apex")
        draw_picture(apex, clip.apex, smooth=True)
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
    write_note(axes, f"I-frame {first:,} + {words} {rest:,} = {first + rest:,}")
    draw_bytes(axes, shown.sizes, colors, {n: f"P{n}" for n in shown.positions})


def _draw_residuals(panel: SubFigure, shown: Shown, kind: str) -> None:
    lumas = [shown.luma_residual(kind, position) for position in shown.positions]
    names = [f"P{position}" for position in shown.positions]
    row = draw_residuals(panel, RESIDUALS[kind], names, lumas, shown.limit(kind))
    for position, axes in zip(shown.positions, row, strict=True):
        if position in shown.given and kind == shown.kind_given:
            axes.spines[:].set(color=HEAT, linewidth=2.5)
            style: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "color": "white"}
            box = {"color": HEAT, "pad": 2.5}
            seen = "its size" if shown.card.what.kind.startswith("energy") else "this"
            axes.text(0.5, 0.025, f"the recognizer sees {seen}", bbox=box, **style)


def _draw_motion(axes: Axes, shown: Shown) -> None:
    axes.set_title("Motion since the I-frame")
    draw_pale(axes, shown.luma(shown.last))
    moves = movements_since_i_frame(shown.bitstream.iter_accumulated_residuals(shown.gop))
    length = draw_arrows(axes, moves, BLOCK, shown.bitstream.width)
    write_note(axes, f"Vectors of P1 to P{shown.last}, traced back. {length}")


def _draw_types(axes: Axes, shown: Shown) -> None:
    # That P-frame has the most vectors and blocks to show.
    largest = 1 + int(shown.sizes[1:].argmax())
    residual = shown.direct(largest)
    axes.set_title(f"Blocks and vectors of P{largest}")
    types = block_types(residual)
    height, width = residual.y.shape
    samples = types.repeat(MACROBLOCK, 0).repeat(MACROBLOCK, 1)[:height, :width]
    colors = ListedColormap([color for color, _ in TYPES.values()])
    draw_picture(axes, samples, cmap=colors, vmin=0, vmax=len(TYPES) - 1)
    draw_grid(axes, height, width)
    length = draw_arrows(axes, movements(residual), MACROBLOCK, width)
    message = f"The largest P-frame. {length}"
    if (types == INTRA).any():
        message += " Where a block is intra, the residual is the picture itself."
    kinds = TYPES.items()
    words = [
        (color, f"{np.count_nonzero(types == kind)}  {words}") for kind, (color, words) in kinds
    ]
    draw_key(axes, message, words)


def _draw_activation(axes: Axes, shown: Shown, activation: ClassActivation) -> None:
    axes.set_title("Where the recognizer looked")
    # Of several frames, the one that says most for the class.
    place = int(activation.contributions.sum((1, 2)).argmax())
    position = shown.given[place]
    kind = shown.kind_given
    if kind is None:
        draw_picture(axes, shown.luma(position), cmap="gray", smooth=True)
    else:
        size = np.abs(shown.luma_residual(kind, position))
        draw_picture(axes, size, cmap="Greys", vmin=0, vmax=1.2 * shown.limit(kind))
    contributions, stride = activation.contributions[place], shown.card.network.stem_stride
    heat = activation_picture(contributions, shown.bitstream.width, stride)
    axes.imshow(heat, cmap=HOT, vmin=0, vmax=max(float(heat.max()), 1e-6))
    rows, columns = activation.contributions.shape[1:]
    several = f" (of {len(shown.given)} frames given)" if len(shown.given) > 1 else ""
    write_note(
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
    write_note(axes, message)


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
