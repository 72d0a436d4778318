"""Expressions of a video, from the residuals of its P-frames.

    recognizer = Recognizer.from_pretrained()            # the model that ships with cfer
    for prediction in recognizer.predict("video.mp4"):
        print(prediction.start_seconds, prediction.label, prediction.probabilities)

A clip in fixed-GOP form (MPEG-4 Part 2, the model's picture size and GOP) is read as it is: no
I-frame is decoded, and no face is looked for. Any other video first becomes such a clip, with the
crop and the encoder's settings that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cfer.codec import Bitstream, CodecError, CodecSettings
from cfer.errors import InputError
from cfer.model.card import ModelCard
from cfer.model.network import Predictor
from cfer.predict.models import DEFAULT, open_model

if TYPE_CHECKING:
    from cfer.video.faces import FaceDetector, FaceWindow, Square
    from cfer.video.pictures import StreamPictures, SupportsRead

FACES = ("one", "all")


@dataclass(frozen=True)
class Prediction:
    """What one window of a video shows of one face.

    Attributes:
        source: the video, or a clip's id.
        start_seconds, end_seconds: the window's place in the video, by the video's own time stamps;
            its first picture is at 0.
        probabilities: one per class of the model, in [0, 1], with a sum of 1; none if the window
            shows no face.
        num_frames: how many P-frames the probabilities come from.
        face: number of the face, from 1, the same throughout a video; 0 if there is none.
        square: where it was found; None if the clip is already the face's crop.
    """

    source: str
    start_seconds: float
    end_seconds: float
    probabilities: dict[str, float]
    num_frames: int
    face: int = 1
    square: Square | None = None

    @property
    def label(self) -> str | None:
        """The likeliest class; None if the window shows no face."""
        return max(self.probabilities, key=self.probabilities.__getitem__, default=None)


class Recognizer:
    """A trained model, ready to be used on videos: the network and its card."""

    def __init__(self, predictor: Predictor, card: ModelCard) -> None:
        self.predictor = predictor.eval()
        self.card = card

    @classmethod
    def from_pretrained(cls, name: str | Path = DEFAULT) -> Recognizer:
        """A model by its name.

        Args:
            name: `default` (ships with cfer, trained on drawn faces), a .safetensors file, the
                name or id of a training run in the MLflow store, `runs:/ID/model`, or
                `models:/NAME/VERSION`.

        Raises:
            InputError: there is no model of this name, or it can't be read.
        """
        return cls(*open_model(str(name)))

    def probabilities(self, planes: np.ndarray) -> np.ndarray:
        """Planes (`cfer.data.inputs`), uint8 (N, T, C, S/2, S/2) → float32 (N, classes)."""
        with torch.inference_mode():
            # A copy, since the planes may be read-only.
            return self.predictor(torch.tensor(planes)).numpy()

    def warm_up(self) -> None:
        """Load and use once what the first video would otherwise wait for."""
        side = self.card.size // 2
        self.probabilities(np.zeros((1, 1, self.card.what.num_planes, side, side), np.uint8))
        self._detector.find([np.zeros((64, 64, 3), np.uint8)])

    def predict(
        self, source: str | Path, *, faces: str = "one", window_gops: int | None = None
    ) -> list[Prediction]:
        """Every window of a video file, or of a folder of numbered pictures.

        Args:
            source: its path.
            faces: "one" (the largest, and of equal ones the most central), or "all".
            window_gops: how many GOPs a prediction looks at; None: as many as in training. 1 is the
                finest in time.

        Raises:
            ClipError: the video can't be read to its end, or its only window shows no face.
        """
        return list(self.predict_windows(source, faces=faces, window_gops=window_gops))

    def predict_windows(
        self, source: str | Path, *, faces: str = "one", window_gops: int | None = None
    ) -> Iterator[Prediction]:
        """As `predict`, each window as soon as it is known."""
        path = Path(source)
        num_gops = self._window_gops(window_gops)
        bitstream = None
        if path.is_file():
            with suppress(CodecError):  # a video of another codec is decoded, and encoded anew
                bitstream = Bitstream.open(path)
        if bitstream is not None and self.is_fixed_gop(bitstream):
            yield from self.predict_bitstream(bitstream, window_gops=num_gops)
            return
        # A clip that is already in fixed-GOP form needs no face detector.
        from cfer.video.faces import face_clip

        yield from self._predict_faces(str(source), face_clip, path, faces, num_gops)

    def predict_stream(
        self,
        file: SupportsRead,
        name: str = "stream",
        *,
        faces: str = "one",
        window_gops: int | None = 1,
    ) -> Iterator[Prediction]:
        """The video that comes out of a pipe or a socket, window by window as it comes.

        Args:
            file: something to read bytes of MPEG-TS, Matroska, fragmented MP4 or AVI from;
                `cfer.video.pictures.GrowingFile` for a file that is still being written.
            name: what messages and predictions call it.
            faces, window_gops: see `predict`.

        Raises:
            ClipError: it is not such a video, or breaks off.
        """
        from cfer.video.faces import face_stream
        from cfer.video.pictures import StreamPictures

        num_gops = self._window_gops(window_gops)
        pictures = StreamPictures(file, name)
        yield from self._predict_faces(name, face_stream, pictures, faces, num_gops)

    def predict_bitstream(
        self,
        bitstream: Bitstream,
        *,
        window_gops: int | None = None,
        times: Sequence[float] | None = None,
    ) -> Iterator[Prediction]:
        """A clip in fixed-GOP form; only the packets that the input needs reach the decoder.

        Args:
            window_gops: see `predict`.
            times: instead of the bitstream's own (`Bitstream.times`).

        Raises:
            CodecError: a window without a P-frame, or a damaged one.
        """
        step = self._window_gops(window_gops)
        times = times or bitstream.times
        for first in range(0, len(bitstream.gops), step):
            gops = range(first, min(first + step, len(bitstream.gops)))
            if first and all(len(bitstream.gops[g]) == 1 for g in gops):
                break  # a last I-frame by itself shows no change
            planes = self.card.what.read(bitstream, gops)
            probabilities = self.probabilities(planes[None])[0]
            yield Prediction(
                source=bitstream.name,
                start_seconds=times[bitstream.gops[gops[0]][0]],
                end_seconds=times[bitstream.gops[gops[-1]][-1] + 1],
                probabilities=dict(zip(self.card.classes, map(float, probabilities), strict=True)),
                num_frames=len(planes),
            )

    def predict_shards(
        self, directory: str | Path, *, window_gops: int | None = None
    ) -> Iterator[Prediction]:
        """Every clip of a data set that `cfer extract` wrote, in order. A window of a longer video
        keeps its place there.

        Raises:
            InputError: it was encoded differently from what the model was trained on.
        """
        from cfer.data.shards import read_clips  # pyarrow, which is for those who have shards

        for clip in read_clips(directory):
            bitstream = Bitstream(clip.bitstream, clip.clip_id)
            if not self.is_fixed_gop(bitstream):
                raise InputError(
                    f"{directory}: {clip.clip_id} is {bitstream.width} × {bitstream.height} in "
                    f"GOPs of {clip.gop_size}, and the model is for {self.card.size} × "
                    f"{self.card.size} in GOPs of {self.card.codec.gop_size}; give the videos, or "
                    "extract them with the model's settings"
                )
            times = [*clip.pts_seconds, clip.pts_seconds[0] + bitstream.times[-1]]
            yield from self.predict_bitstream(bitstream, window_gops=window_gops, times=times)

    def is_fixed_gop(self, bitstream: Bitstream) -> bool:
        """Whether a bitstream has the picture size and the GOPs that the model was trained on."""
        lengths = [len(gop) for gop in bitstream.gops]
        gop_size = self.card.codec.gop_size
        return (
            (bitstream.width, bitstream.height) == (self.card.size, self.card.size)
            and all(length == gop_size for length in lengths[:-1])
            and lengths[-1] <= gop_size
        )

    def _predict_faces(
        self,
        name: str,
        find: Callable[..., Iterator[FaceWindow]],
        pictures: Path | StreamPictures,
        faces: str,
        num_gops: int,
    ) -> Iterator[Prediction]:
        if faces not in FACES:
            raise InputError(f"--faces {faces}: give one of {', '.join(FACES)}")
        codec = self.card.codec
        for window in find(
            pictures,
            self.card.size,
            self._detector,
            num_gops * codec.span,
            every=faces == "all",
            take=codec.encoded_frames,
        ):
            start_seconds, end_seconds = window.times[0], window.times[-1]
            if window.error is not None:
                if window.num_windows == 1:
                    raise window.error
                yield Prediction(name, start_seconds, end_seconds, {}, 0, face=0)
                continue
            bitstream = window.encode(codec)
            for prediction in self.predict_bitstream(bitstream, window_gops=len(bitstream.gops)):
                yield replace(
                    prediction,
                    source=name,
                    start_seconds=start_seconds,
                    end_seconds=end_seconds,
                    face=window.face,
                    square=window.square,
                )

    def _window_gops(self, given: int | None) -> int:
        if given is not None and given < 1:
            raise InputError(f"--window-gops {given}: give 1 or more")
        return given or self.card.window_gops

    @cached_property
    def _detector(self) -> FaceDetector:
        from cfer.video.faces import FaceDetector

        return FaceDetector()


def face_bitstream(source: Path, size: int, settings: CodecSettings) -> Bitstream:
    """The face of a whole video, cropped and encoded as one fixed-GOP clip.

    Raises:
        ClipError: the video is unreadable, has only one frame, or shows no face.
    """
    from cfer.video.faces import FaceDetector, face_clip

    (window,) = face_clip(source, size, FaceDetector(), take=settings.encoded_frames)
    if window.error is not None:
        raise window.error
    return window.encode(settings)
