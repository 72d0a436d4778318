"""The picture of a GOP of H.264 as it is in the file: residuals, vectors, references, block types,
intra blocks, bytes. Nothing is encoded anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure, SubFigure

from cfer.codec import GRAY, MACROBLOCK, Residual
from cfer.codec.bitstream import BLOCK, BLOCK_OF_REFERENCE
from cfer.predict.gop_arrays import (
    EMPTY,
    INTER,
    INTER_PARTS,
    INTRA,
    block_types,
    has_samples,
    movements,
)
from cfer.predict.panels import (
    APPEARANCE,
    CHANGE,
    INTRA_COLOR,
    LEFT_WIDTH,
    draw_arrows,
    draw_bytes,
    draw_grid,
    draw_head,
    draw_key,
    draw_kinds,
    draw_pale,
    draw_picture,
    draw_residuals,
    new_page,
    short_name,
    write_note,
)
from cfer.predict.stream_arrays import AFTER, AROUND, BEFORE, MOST_FRAMES, NOTHING, ShownStream

METHOD = (
    "A video codec stores one whole picture (the I-frame). Of the P- and B-frames after it, it "
    "stores how blocks moved, and what their motion does not explain: the residual."
)
AS_IT_IS = (
    "The file's own H.264 stream, as it is. --encoded shows the face, encoded anew, and where a "
    "recognizer looked."
)
BYTES = {"I": APPEARANCE, "P": CHANGE, "B": "#9db8d6"}
TYPES = {
    EMPTY: ("#eef0f2", "no residual"),
    INTER: ("#b9cde4", "one vector"),
    INTER_PARTS: ("#6f97c4", "several vectors"),
    INTRA: (INTRA_COLOR, "intra"),
}
DIRECTIONS = {
    BEFORE: ("#6f97c4", "before"),
    AFTER: ("#eda45e", "after"),
    AROUND: ("#cfc0e0", "both"),
    NOTHING: (INTRA_COLOR, "intra"),
}
MOST_NAMES = 3  # of references, in a note
REFERENCES = ("#b9cde4", "#3d6fa5", "#eda45e", "#b04a5a")
OTHERS = "#7a7f87"
OFTEN = LinearSegmentedColormap.from_list(
    "often", [(*to_rgb(APPEARANCE), 0.0), (*to_rgb(APPEARANCE), 0.9)]
)


def draw_stream(shown: ShownStream) -> Figure:
    b_frame = shown.largest("B")
    panels: list[Any] = ["types", "references", *(["directions"] if b_frame else []), "intra"]
    num_columns = max(len(shown.positions), 2)
    shape = shown.bitstream.height / shown.bitstream.width
    head, (left, right, *_), bottom, aspect, page = new_page(shape, num_columns, len(panels))
    _draw_head(head, shown)
    _draw_left(left, shown, aspect)
    direct, accumulated = right.subfigures(2, 1, squeeze=False)[:, 0]
    _draw_direct(direct, shown)
    _draw_accumulated(accumulated, shown)
    axes = bottom.subplot_mosaic([panels])
    p_frame = shown.largest("P")
    if p_frame:
        _draw_types(axes["types"], shown, p_frame)
        _draw_references(axes["references"], shown, p_frame)
    if b_frame:
        _draw_directions(axes["directions"], shown, b_frame)
    _draw_intra(axes["intra"], shown)
    return page


def _draw_head(head: SubFigure, shown: ShownStream) -> None:
    counts = ", ".join(f"{shown.kinds.count(k)} {k}" for k in "IPB" if k in shown.kinds)
    what = f"the first {MOST_FRAMES} frames" if shown.is_cut else f"{len(shown.kinds)} frames"
    title = f"{short_name(shown.name)}: GOP {shown.number}, {what} ({counts}) in "
    title += f"{shown.sizes.sum():,} bytes"
    draw_head(head, title, [METHOD, AS_IT_IS])


def _draw_left(left: SubFigure, shown: ShownStream, aspect: float) -> None:
    axes = left.subplot_mosaic([["i_frame"], ["bytes"]], height_ratios=[aspect * LEFT_WIDTH, 1.3])
    axes["i_frame"].set_title("I-frame: the whole picture")
    draw_picture(axes["i_frame"], shown.bitstream.i_frame(shown.gop), smooth=True)
    axes["bytes"].set_title("Bytes per frame")
    colors = [BYTES[kind] for kind in shown.kinds]
    marks = {position: shown.name_of(position) for position in shown.positions}
    draw_bytes(axes["bytes"], shown.sizes, colors, marks)
    sums = {
        k: sum(s for s, of in zip(shown.sizes.tolist(), shown.kinds, strict=True) if of == k)
        for k in "IPB"
    }
    parts = " + ".join(f"{kind} {count:,}" for kind, count in sums.items() if count)
    write_note(axes["bytes"], f"{parts}, in the order of the bitstream")


def _draw_direct(panel: SubFigure, shown: ShownStream) -> None:
    residuals = [shown.direct(position) for position in shown.positions]
    masks = [
        residual.intra.repeat(MACROBLOCK // BLOCK, 0).repeat(MACROBLOCK // BLOCK, 1)
        for residual in residuals
    ]
    names = [shown.name_of(position) for position in shown.positions]
    title = "Direct residuals: what each frame transmits (green: intra, the picture itself)"
    _draw_row(panel, title, names, residuals, masks)


def _draw_accumulated(panel: SubFigure, shown: ShownStream) -> None:
    found = [shown.accumulated[position] for position in shown.positions]
    names = [
        f"{shown.name_of(position)} since {shown.name_of(start)}"
        for position, (start, _) in zip(shown.positions, found, strict=True)
    ]
    title = (
        "Accumulated residuals: change over some frames, less motion "
        "(green: intra, or predicted from it)"
    )
    residuals = [residual for _, residual in found]
    _draw_row(panel, title, names, residuals, [r.masked for r in residuals if r.masked is not None])


def _draw_row(
    panel: SubFigure,
    title: str,
    names: Sequence[str],
    residuals: Sequence[Residual],
    masks: Sequence[np.ndarray],
) -> None:
    """`masks`: of 4 × 4 blocks, as `Residual.masked`."""
    lumas = [residual.y.astype(np.int16) - GRAY for residual in residuals]
    hidden = [_in_samples(mask, luma) for mask, luma in zip(masks, lumas, strict=True)]
    left = np.concatenate([np.abs(luma[~mask]) for luma, mask in zip(lumas, hidden, strict=True)])
    limit = max(int(np.percentile(left, 99)), 8) if left.size else 8
    for axes, mask in zip(draw_residuals(panel, title, names, lumas, limit), hidden, strict=True):
        color = np.zeros((*mask.shape, 4))
        color[mask] = *to_rgb(INTRA_COLOR), 1
        axes.imshow(color, interpolation="nearest")
        box = {"color": "#ffffffcc", "pad": 1.5}
        where: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "color": "#1e7a5a"}
        axes.text(0.975, 0.025, f"{mask.mean():.1%} intra", bbox=box, **where)


def _in_samples(blocks: np.ndarray, luma: np.ndarray) -> np.ndarray:
    samples: np.ndarray = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[: luma.shape[0], : luma.shape[1]]
    return samples


def _draw_types(axes: Axes, shown: ShownStream, position: int) -> None:
    axes.set_title(f"Blocks and vectors of {shown.name_of(position)}")
    residual, luma = shown.direct(position), shown.lumas[position]
    types = block_types(residual)
    types[(types != INTRA) & ~has_samples(residual)] = EMPTY
    draw_kinds(axes, types, MACROBLOCK, [color for color, _ in TYPES.values()], luma)
    draw_grid(axes, *luma.shape)
    length = draw_arrows(axes, movements(residual), MACROBLOCK, max(luma.shape))
    counts = np.bincount(types.ravel(), minlength=len(TYPES))
    words = [(color, f"{counts[kind]:,}  {words}") for kind, (color, words) in TYPES.items()]
    draw_key(axes, f"The largest P-frame. {length} No residual: skipped, or a vector alone.", words)


def _draw_references(axes: Axes, shown: ShownStream, position: int) -> None:
    axes.set_title(f"References of {shown.name_of(position)}")
    shares, ranks = shown.references(position)
    colors = [*REFERENCES, OTHERS, INTRA_COLOR]
    kinds = np.where(ranks < 0, len(colors) - 1, ranks.clip(max=len(REFERENCES)))
    draw_kinds(axes, kinds, BLOCK_OF_REFERENCE, colors, shown.lumas[position])
    words = [
        (color, f"{name}  {share:.1%}")
        for color, (name, share) in zip(colors, shares, strict=False)
    ]
    if len(shares) > len(REFERENCES):
        rest = shares[len(REFERENCES) :]
        words[len(REFERENCES) :] = [(OTHERS, f"{len(rest)} others  {sum(s for _, s in rest):.1%}")]
    note = "The frame that each block is predicted from, and its share of the blocks that are."
    draw_key(axes, note, words)


def _draw_directions(axes: Axes, shown: ShownStream, position: int) -> None:
    axes.set_title(f"References of {shown.name_of(position)}: before, after")
    before, after, kinds = shown.directions(position)
    colors = [color for color, _ in DIRECTIONS.values()]
    draw_kinds(axes, kinds, BLOCK_OF_REFERENCE, colors, shown.lumas[position])
    shares = np.bincount(kinds.ravel(), minlength=len(DIRECTIONS)) / kinds.size
    words = [(color, f"{shares[kind]:.1%}  {words}") for kind, (color, words) in DIRECTIONS.items()]
    note = "The largest B-frame."
    for where, names in (("before", before), ("after", after)):
        if names:
            more = ", …" if len(names) > MOST_NAMES else ""
            note += f" Shown {where} it: {', '.join(names[:MOST_NAMES])}{more}."
    draw_key(axes, note, words)


def _draw_intra(axes: Axes, shown: ShownStream) -> None:
    axes.set_title("How often each block is intra")
    i_frame = shown.bitstream.i_frame(shown.gop)
    draw_pale(axes, i_frame.mean(2))
    often = shown.intra.mean(0)
    height, width = i_frame.shape[:2]
    samples = often.repeat(MACROBLOCK, 0).repeat(MACROBLOCK, 1)[:height, :width]
    # The edges of a picture may be intra far more often than all else.
    most = max(float(np.percentile(often, 99)), 0.01)
    axes.imshow(samples, cmap=OFTEN, vmin=0, vmax=most, interpolation="nearest")
    said = []
    for kind in "PB":
        shares = shown.intra_fractions(kind)
        if len(shares):
            said.append(f"{kind}-frames {shares.mean():.1%}, at the worst {shares.max():.1%}")
    write_note(
        axes,
        f"Share of intra macroblocks: {'; '.join(said)}. Darkest: in {most:.0%} of the frames, or "
        "more. They hold the picture itself, no residual.",
    )
