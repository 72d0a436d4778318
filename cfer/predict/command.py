"""The commands about videos and models: `cfer predict`, `look`, `encode`, `residuals`, `models`,
`serve`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from cfer.errors import InputError
from cfer.names import printable
from cfer.options import parse_command
from cfer.outputs import check_output
from cfer.predict.limits import Limits

if TYPE_CHECKING:
    from cfer.predict.recognizer import Prediction, Recognizer

Source = Annotated[str, arg(metavar="SOURCE")]
Video = Annotated[Path, arg(metavar="VIDEO")]
Clip = Annotated[Path, arg(metavar="CLIP")]
Picture = Annotated[Path, arg(metavar="PICTURE")]
File = Annotated[Path, arg(metavar="FILE")]
Seconds = Annotated[float | None, arg(metavar="SECONDS")]
ModelName = Annotated[
    str,
    arg(
        metavar="MODEL",
        help="`default`, a .safetensors file, the name or id of a training run, runs:/ID/model, or "
        "models:/NAME/VERSION",
    ),
]


def predict(
    sources: Positional[Annotated[tuple[str, ...], arg(metavar="SOURCE…")]],
    model: ModelName = "default",
    faces: Literal["one", "all"] = "one",
    window_seconds: Seconds = None,
    step_seconds: Seconds = None,
    start: Seconds = None,
    end: Seconds = None,
    follow: Seconds = None,
    json: bool = False,
    csv: Path | None = None,
    plot: Path | None = None,
    annotate: Path | None = None,
) -> int:
    """The expressions of videos: a line for each window of time, then one for each expression that
    rises, with its onset and its apex. A file in the fixed-GOP form that the model wants is read as
    it is, and H.264 by a model that was trained on it (`cfer train --stream native`); of any other
    video the face is found, cropped and encoded.

    Args:
        sources: videos; folders of numbered pictures, videos or shards; `-`: a piped MPEG-TS or MKV
        faces: of several in view: the largest, or every one, numbered.
        window_seconds: of a window; not given: what the model was made for, of a stream a GOP.
        step_seconds: from one window's beginning to the next's; not given: half a window.
        start: predict on a part of the video alone, from here; if it is short, in one window.
        end: and to here.
        follow: the video is still being written: wait until nothing came for so long.
        json: print a JSON object a line, for each window; then {"event": …} for each expression.
        csv: also write a row for each window into this file; events are not in it.
        plot: draw the probabilities and events over time into this PNG; of one video.
        annotate: write the video with labels and bars in it, an MP4; of one video.
    """
    from cfer.predict import timeline
    from cfer.predict.models import DEFAULT, DEFAULT_LIMITS
    from cfer.predict.recognizer import Recognizer

    expanded = expand_sources(sources)
    for option, path in (("plot", plot), ("annotate", annotate)):
        if path and (len(expanded) > 1 or not is_one_video(expanded[0])):
            raise InputError(f"--{option}: of one video at a time; give one video file")
    for path, suffixes in ((csv, ()), (plot, (".png",)), (annotate, (".mp4",))):
        if path:
            check_output(path, *suffixes, sources=expanded)
    if plot or annotate:
        import matplotlib  # noqa: F401  # said before the work, where it is not installed
    recognizer = Recognizer.from_pretrained(model)
    if model == DEFAULT:
        print(f"note: {DEFAULT_LIMITS}", file=sys.stderr)
    classes = recognizer.card.classes
    show: Callable[[Prediction], None] = print_json if json else TablePrinter(classes, expanded)
    show_events = print_json_events if json else print_summary
    how = {"faces": faces, "window_seconds": window_seconds, "step_seconds": step_seconds}
    part: dict[str, Any] = {"start_seconds": start, "end_seconds": end}
    found: list[Prediction] = []
    num_failed = 0
    with timeline.csv_rows(csv, classes) as write_row:
        for source in expanded:
            try:
                windows = _predictions(recognizer, source, how, part, follow)
                _tell(windows, (found.append, write_row, show), show_events)
            except InputError as error:
                if len(expanded) == 1:
                    raise
                num_failed += 1
                print(f"error: {error}", file=sys.stderr)
    if plot:
        timeline.plot(Path(expanded[0]), found, classes).savefig(plot, dpi=110)
    if annotate:
        timeline.annotate(Path(expanded[0]), found, annotate)
    if num_failed:
        print(f"{num_failed} of {len(expanded)} sources failed", file=sys.stderr)
    return 1 if num_failed else 0


def _tell(
    windows: Iterator[Prediction],
    takers: Sequence[Callable[[Prediction], None]],
    show_events: Callable[[Sequence[Prediction]], None],
) -> None:
    """Give each window to some as it comes, and each video's to one at its end."""
    for _, of_video in groupby(windows, attrgetter("source")):
        told: list[Prediction] = []
        try:
            for prediction in of_video:
                told.append(prediction)
                for take in takers:
                    take(prediction)
        finally:  # a stream that is stopped, or breaks off, has shown something, too
            show_events(told)


def expand_sources(given: Sequence[str]) -> list[str]:
    """A folder of clips is its clips, and what is left out is named on stderr; what is a clip or a
    stream itself stays.

    Raises:
        InputError: nothing there, or a folder without a video.
    """
    from cfer.data import is_dataset
    from cfer.video.files import READ_FORMATS, clips_below, left_out_line

    sources: list[str] = []
    for name in given:
        path = Path(name)
        if name == "-" or path.is_file() or is_dataset(path):
            sources.append(name)
        elif path.is_dir():
            clips, left_out = clips_below(path)
            if left_out:
                print(f"note: {name}: {left_out_line(left_out)}", file=sys.stderr)
            if not clips:
                raise InputError(
                    f"{name}: no video and no numbered picture in this folder; what is read are "
                    f"{READ_FORMATS}"
                )
            sources += map(str, clips)
        else:
            raise InputError(f"{name}: there is no such file or folder")
    if not sources:
        raise InputError("no source: give a video, a folder, or - for a video that is piped in")
    return sources


def is_one_video(source: str) -> bool:
    from cfer.data import is_dataset

    return source != "-" and not is_dataset(Path(source))


def _predictions(
    recognizer: Recognizer,
    source: str,
    how: Mapping[str, Any],
    part: Mapping[str, Any],
    follow: float | None,
) -> Iterator[Prediction]:
    from cfer.video.pictures import GrowingFile

    if follow is None and is_one_video(source):
        return recognizer.predict_windows(source, **how, **part)
    if any(seconds is not None for seconds in part.values()):
        raise InputError("--start, --end: of a video file or a folder of pictures; leave them out")
    if source == "-":
        if sys.stdin is None:
            raise InputError("-: standard input is closed; give a file, or pipe a video in")
        return recognizer.predict_stream(sys.stdin.buffer, "standard input", **how)
    if follow is not None:
        if not 0 < follow < math.inf:
            raise InputError(f"--follow {follow:g}: give how many seconds to wait, more than 0")
        return recognizer.predict_stream(GrowingFile(Path(source), follow), source, **how)
    if how["faces"] != "one" or how["step_seconds"] is not None:
        raise InputError(
            f"--faces all, --step-seconds: {source} holds shards, clips of one face each, whose "
            "windows follow one another; leave them out"
        )
    return recognizer.predict_shards(source, window_seconds=how["window_seconds"])


class TablePrinter:
    """A line per window under a head of class names, with the source's name where there are some"""

    def __init__(self, classes: Sequence[str], sources: Sequence[str]) -> None:
        self._widths = {name: max(len(name), 5) for name in classes}
        self._label_width = max(map(len, classes))
        self._names_sources = len(sources) > 1 or not is_one_video(sources[0])
        self._source = ""
        self._head_is_printed = False

    def __call__(self, prediction: Prediction) -> None:
        if not self._head_is_printed:
            columns = "  ".join(f"{name:>{width}s}" for name, width in self._widths.items())
            print(f"{'from':>8s} {'to':>8s}  face  {'label':{self._label_width}s}  {columns}")
            self._head_is_printed = True
        if self._names_sources and prediction.source != self._source:
            print(f"{printable(prediction.source)}:")
            self._source = prediction.source
        columns = "  ".join(
            f"{prediction.probabilities.get(name, float('nan')):{width}.3f}"
            for name, width in self._widths.items()
        )
        print(
            f"{prediction.start_seconds:7.2f}s {prediction.end_seconds:7.2f}s  "
            f"{prediction.face or '-':>4}  {prediction.label or 'no face':{self._label_width}s}  "
            f"{columns if prediction.label else ''}".rstrip(),
            flush=True,
        )


def print_json(prediction: Prediction) -> None:
    from cfer.predict.timeline import as_json

    print(json.dumps(as_json(prediction)), flush=True)


def print_summary(windows: Sequence[Prediction]) -> None:
    from cfer.predict.timeline import summary, ways

    for line in [*summary(windows), *ways(windows)]:
        print(line, flush=True)


def print_json_events(windows: Sequence[Prediction]) -> None:
    from cfer.predict.timeline import event_as_json, events

    for event in events(windows):
        told = {"source": windows[0].source, "event": event_as_json(event)}
        print(json.dumps(told), flush=True)


def look(
    source: Positional[Source],
    picture: Positional[Picture],
    clip: str | None = None,
    gop: int = 0,
    encoded: bool = False,
    model: ModelName = "default",
) -> int:
    """One GOP of a video in one picture: I-frame, residuals, motion vectors, block types, bytes of
    each frame. H.264 and MPEG-4 Part 2 are shown as they are in the file. In any other video the
    face is found and encoded, and the picture also shows where the recognizer looked.

    Args:
        source: a video, a folder of numbered pictures, or of shards.
        picture: the PNG to write.
        clip: of a folder of shards, the clip with this id.
        gop: which GOP to show.
        encoded: of H.264, too, show the face, encoded anew, and where the recognizer looked.
    """
    check_output(picture, ".png", sources=[source])
    from cfer.predict.look import look as look_of

    figure, how = look_of(source, clip, gop, model, encoded)
    figure.savefig(picture, dpi=110)
    print(f"note: {printable(source)}: {how}", file=sys.stderr)
    print(picture)
    return 0


def encode(
    video: Positional[Video],
    clip: Positional[Clip],
    size: int = 112,
    gop_size: int = 3,
    gop_seconds: float = 1.0,
    quantizer: int = 4,
    motion_search: bool = True,
) -> int:
    """Find the face of a video, crop it, and write it as MPEG-4 with GOPs of one length: what the
    shards hold, and what `cfer predict` then reads without looking for a face.

    Args:
        video: a video, or a folder of numbered pictures.
        clip: the MP4 to write.
        size: side of the crop, pixels.
        gop_size: frames per GOP.
        gop_seconds: seconds of the video that a GOP stands for; 0: every frame is encoded.
        quantizer: 1 (finest) to 31.
        motion_search: all motion vectors zero.
    """
    from cfer.codec import CodecSettings
    from cfer.predict.recognizer import face_bitstream

    if size < 16 or size % 2:
        raise InputError(f"--size {size}: must be an even number of at least 16 pixels")
    if gop_size < 2:
        raise InputError(f"--gop-size {gop_size}: give 2 or more; a GOP of 1 has no residual")
    check_output(clip, sources=[video])
    settings = CodecSettings(gop_size, quantizer, None, motion_search, gop_seconds=gop_seconds)
    bitstream = face_bitstream(video, size, settings)
    bitstream.save(clip)
    print(
        f"{clip}: {len(bitstream.packets)} frames in {len(bitstream.gops)} GOPs, "
        f"{len(bitstream.data):,} bytes"
    )
    return 0


def residuals(video: Positional[Video], verify: bool = False, frames: int = 24) -> int:
    """What a video in H.264 or MPEG-4 Part 2 transmits: its frames by kind, how much of them is
    intra (appearance, and no residual), and how much is too large for 8 bits.

    Args:
        video: a file; nothing is encoded anew.
        verify: of H.264, prove that residuals are exact: decoded pictures, less the residual, must
            be predictions from the pictures that they refer to. Exit status 1 if a block differs.
        frames: how many P- and B-frames are compared, evenly chosen; 0: all.
    """
    import numpy as np

    from cfer.codec import Bitstream
    from cfer.codec.verify import verify as proof_of

    if frames < 0:
        raise InputError(f"--frames {frames}: give how many, or 0 for all")
    bitstream = Bitstream.open(video)
    kinds = {kind: bitstream.frame_types.count(kind) for kind in "IPBN"}
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    num_gops = len(bitstream.gops)
    print(
        f"{printable(str(video))}: {bitstream.codec}, {bitstream.width} × {bitstream.height}, "
        f"{len(bitstream.packets)} frames ({counts}) in {num_gops} GOP{'s' * (num_gops > 1)}"
    )
    for kind in "PB":
        numbers = [n for n, k in enumerate(bitstream.frame_types) if k == kind]
        every = [
            (r.intra_fraction, r.saturated_fraction)
            for r in map(bitstream.direct_residual, numbers)
        ]
        if every:
            intra, saturated = np.array(every).T
            print(
                f"{kind}-frames: {intra.mean():.2%} of the macroblocks are intra, at the worst "
                f"{intra.max():.2%}; {saturated.mean():.4%} of the samples saturate"
            )
    if not verify:
        return 0
    proof = proof_of(bitstream, frames)
    partly = f", {proof.partly:,} of them in part (smaller than 8 × 8)" if proof.partly else ""
    print(
        f"verified: {proof.frames} frames, {proof.blocks:,} inter blocks compared{partly}, "
        f"{proof.differing:,} differ; {proof.intra_fraction:.2%} of the macroblocks are intra"
    )
    return 1 if proof.differing else 0


def models(argv: Sequence[str] | None = None) -> int:
    """List, show, export and import models."""
    actions: dict[str, Callable[..., int]] = {
        "list": _list,
        "show": _show,
        "export": _export,
        "import": _import,
    }
    return parse_command(actions, "cfer models", models.__doc__ or "", argv)


def _list() -> int:
    """The shipped model, and those of the MLflow store."""
    from cfer.predict.models import table

    print(table())
    return 0


def _show(model: Positional[ModelName]) -> int:
    """Classes, input, figures and origin of a model."""
    from cfer.predict.models import describe

    print(describe(model))
    return 0


def _export(model: Positional[ModelName], file: Positional[File]) -> int:
    """Write a model for another program.

    Args:
        file: ends in .safetensors, .onnx or .pt2.
    """
    from cfer.predict.models import export

    print(export(model, file))
    return 0


def _import(file: Positional[File], name: str) -> int:
    """Put a model file into the MLflow registry.

    Args:
        file: a .safetensors file of `cfer models export`.
        name: what to call it there.
    """
    from cfer.predict.models import import_file

    print(import_file(file, name))
    return 0


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    model: ModelName = "default",
    readers: int = 1,
    allow: UseAppendAction[tuple[str, ...]] = (),
    max_megabytes: int = Limits.megabytes,
    max_seconds: int = Limits.seconds,
    time_limit: int = Limits.work_seconds,
    memory_limit: int = Limits.memory_megabytes,
) -> int:
    """Serve predictions over HTTP until Ctrl-C.

    There is a page to drop a video on, POST /predict and POST /look, and /openapi.json, which
    describes them. If other machines can reach the server, requests have to show the token that is
    in CFER_TOKEN.

    Args:
        host: address to listen at
        port: port to listen at; 0 for any that is free
        readers: number of videos that are worked on at a time
        allow: links may point below this location, such as s3://bucket/videos
        max_megabytes: refuse a larger file
        max_seconds: refuse a longer video
        time_limit: seconds of work on a video, not counting the wait for a reader
        memory_limit: MB of memory for the work on a video, in addition to what the model takes
    """
    limits = Limits.of(max_megabytes, max_seconds, time_limit, memory_limit)
    from cfer.predict.serve import run

    return run(host, port, model, readers, allow, limits)
