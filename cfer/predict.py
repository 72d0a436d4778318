"""Expressions of a video, from the residuals of its P-frames.

    cfer encode VIDEO CLIP.mp4                    # the face, as a fixed-GOP bitstream
    cfer predict CLIP.mp4 --model NAME            # reads P-frame packets, and nothing else
    cfer predict VIDEO --model NAME               # both at once

In fixed-GOP form (MPEG-4 Part 2, the model's picture size and GOP) a clip is read as it is: no
I-frame is decoded, no face is looked for. Any other video first becomes such a clip, with the crop
and the encoder's settings that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfer.codec import Bitstream, CodecError, CodecSettings, encode
from cfer.inputs import Input, parse_frame_rule

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Prediction:
    """What one window of a video shows.

    Attributes:
        start_seconds, end_seconds: the window's place in the video.
        probabilities: one per class of the model, in [0, 1], which sum to 1.
        num_frames: how many P-frames the probabilities come from.
    """

    start_seconds: float
    end_seconds: float
    probabilities: dict[str, float]
    num_frames: int

    @property
    def label(self) -> str:
        return max(self.probabilities, key=lambda name: self.probabilities[name])


def codec_settings(description: dict[str, Any]) -> CodecSettings:
    """The encoder's settings out of a model's description."""
    names = ("gop_size", "quantiser", "bit_rate", "motion_search")
    return CodecSettings(**{name: description[name] for name in names})


def is_fixed_gop(bitstream: Bitstream, size: int, gop_size: int) -> bool:
    """Whether a bitstream has the picture size and the GOPs that a model was trained on."""
    lengths = [len(gop) for gop in bitstream.gops]
    return (
        (bitstream.width, bitstream.height) == (size, size)
        and all(length == gop_size for length in lengths[:-1])
        and lengths[-1] <= gop_size
    )


def input_of(description: dict[str, Any]) -> Input:
    """What a model looks at, out of its description."""
    return Input(
        description["input"], description["planes"], parse_frame_rule(str(description["frames"]))
    )


def predict_bitstream(
    bitstream: Bitstream, model: Predict, description: dict[str, Any], start_seconds: float = 0.0
) -> list[Prediction]:
    """Predict a clip in fixed-GOP form, one window of the model's length after the other.

    Only the packets that the model's input needs reach the decoder.
    """
    what = input_of(description)
    window_gops = description["window_gops"] or len(bitstream.gops)
    predictions = []
    for first in range(0, len(bitstream.gops), window_gops):
        gops = range(first, min(first + window_gops, len(bitstream.gops)))
        if first and all(len(bitstream.gops[g]) == 1 for g in gops):
            break  # a last I-frame alone: no change to see
        frames = what.read(bitstream, gops)
        probabilities = model(frames[None])[0]
        start, end = bitstream.gops[gops[0]][0], bitstream.gops[gops[-1]][-1] + 1
        predictions.append(
            Prediction(
                start_seconds=start_seconds + float(start / bitstream.fps),
                end_seconds=start_seconds + float(end / bitstream.fps),
                probabilities=dict(
                    zip(description["classes"], map(float, probabilities), strict=True)
                ),
                num_frames=len(frames),
            )
        )
    return predictions


def face_bitstreams(
    source: Path, size: int, settings: CodecSettings, window_gops: int | None
) -> Iterator[tuple[float, Bitstream]]:
    """Find the face, crop, encode: (start in seconds, fixed-GOP clip) of every window.

    Raises:
        ClipError: unreadable, one frame only, or a window without a face.
    """
    # A clip that is in fixed-GOP form already needs no face detector.
    from cfer.faces import FaceDetector, face_clip

    window_frames = None if window_gops is None else window_gops * settings.gop_size
    for window in face_clip(source, size, FaceDetector(), window_frames):
        if window.error is not None:
            raise window.error
        start_seconds = float(window.frames[0] / window.fps)
        yield start_seconds, encode(window.pictures, settings, window.fps)


def predict_video(source: Path, model: Predict, description: dict[str, Any]) -> list[Prediction]:
    """Predict any video, or a folder of numbered pictures."""
    size, settings = description["size"], codec_settings(description)
    bitstream = None
    if source.is_file():
        try:
            bitstream = Bitstream.open(source)
        except CodecError:
            bitstream = None  # another codec: it is decoded, and encoded anew
    if bitstream is not None and is_fixed_gop(bitstream, size, settings.gop_size):
        return predict_bitstream(bitstream, model, description)
    return [
        prediction
        for start, window in face_bitstreams(source, size, settings, description["window_gops"])
        for prediction in predict_bitstream(window, model, description, start)
    ]
