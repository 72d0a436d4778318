"""Expressions of a video, from the residuals of its P-frames.

    recognizer = Recognizer.from_pretrained()            # the model that ships with cfer
    for prediction in recognizer.predict("video.mp4"):
        print(prediction.start_seconds, prediction.label, prediction.probabilities)

A clip in fixed-GOP form (MPEG-4 Part 2, the model's picture size and GOP) is read as it is: no
I-frame is decoded, and no face is looked for. A model that was trained on native residuals reads a
file in H.264 as it is, too (`cfer.data.native`), wherever it can. Any other video, or window, first
becomes such a clip, with the crop and the encoder's settings that the model was trained on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from heapq import merge
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cfer.codec import Bitstream, CodecError, CodecSettings
from cfer.codec.encode import MOST_SECONDS
from cfer.errors import InputError
from cfer.model.card import ModelCard
from cfer.model.network import Predictor
from cfer.predict.models import DEFAULT, open_model
from cfer.video.variation import AS_FOUND, Variation

if TYPE_CHECKING:
    from cfer.data.native import NativeVideo, NativeWindow
    from cfer.video.faces import FaceDetector, FaceWindow, Square
    from cfer.video.pictures import SupportsRead

FACES = ("one", "all")
# Where exactly a face is found is chance: what is said is the mean over squares that differ so.
VARIATIONS = (
    AS_FOUND,
    Variation(right=0.03, down=0.02, larger=0.04, turned=0.05),
    Variation(right=-0.03, down=-0.02, larger=0.04, turned=-0.05),
    Variation(down=0.03, larger=-0.04),
)
ONE_FACE = "of H.264 as it is, one face is read; ask for one, not for all"
ONE_WINDOW_SECONDS = 2.0  # a part of a video that was asked for is not cut up to this length


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
        way: from which residuals: "clip", of a clip in fixed-GOP form; "native", those of H.264 as
            it is; or "encoded", of the face, encoded anew.
        refused: why a model that reads H.264 as it is did not; None if it did, or never does.
    """

    source: str
    start_seconds: float
    end_seconds: float
    probabilities: dict[str, float]
    num_frames: int
    face: int = 1
    square: Square | None = None
    way: str = "encoded"
    refused: str | None = None

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
            name: `default` (ships with cfer, trained on photo puppets), a .safetensors file, the
                name or id of a training run in the MLflow store, `runs:/ID/model`, or
                `models:/NAME/VERSION`.

        Raises:
            InputError: there is no model of this name, or it can't be read.
        """
        return cls(*open_model(str(name)))

    def encoding_anew(self) -> Recognizer:
        """The same model, which encodes every face anew."""
        what = replace(self.card.what, stream="encoded")
        return Recognizer(self.predictor, replace(self.card, what=what))

    def probabilities(self, planes: np.ndarray) -> np.ndarray:
        """Planes (`cfer.data.inputs`), uint8 (N, T, C, S/2, S/2) → float32 (N, classes)."""
        with torch.inference_mode():
            # A copy, since the planes may be read-only.
            return self.predictor(torch.tensor(planes)).numpy()

    def warm_up(self) -> None:
        """Load and use once what the first video would otherwise wait for."""
        side = self.card.size // 2
        self.probabilities(np.zeros((1, 1, self.card.what.num_planes, side, side), np.uint8))
        self._detector.find(np.zeros((64, 64, 3), np.uint8))

    def predict(
        self,
        source: str | Path,
        *,
        faces: str = "one",
        window_seconds: float | None = None,
        step_seconds: float | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
    ) -> list[Prediction]:
        """Every window of a video file, or of a folder of numbered pictures.

        Args:
            source: its path.
            faces: "one" (the largest, and of equal ones the most central), or "all".
            window_seconds: how long a window is; None: as long as the model's card says.
            step_seconds: from the beginning of one window to that of the next, at most a window;
                None: half a window. A clip in fixed-GOP form is cut between its GOPs, without
                overlap.
            start_seconds, end_seconds: predict on this part of the video alone, both ends included
                (`cfer.video.pictures.Pictures.span`); of a clip in fixed-GOP form, on the GOPs that
                lie in it. A part of at most `ONE_WINDOW_SECONDS` is one window, unless
                `window_seconds` is given.

        Raises:
            ClipError: the video can't be read to its end, has no such part, or its only window
                shows no face.
        """
        return list(
            self.predict_windows(
                source,
                faces=faces,
                window_seconds=window_seconds,
                step_seconds=step_seconds,
                start_seconds=start_seconds,
                end_seconds=end_seconds,
            )
        )

    def predict_windows(
        self,
        source: str | Path,
        *,
        faces: str = "one",
        window_seconds: float | None = None,
        step_seconds: float | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
    ) -> Iterator[Prediction]:
        """As `predict`, each window as soon as it is known."""
        every = _is_every(faces)
        _check_windows(window_seconds, step_seconds, start_seconds, end_seconds)
        is_part = (start_seconds, end_seconds) != (None, None)
        may_be_one = is_part and window_seconds is None
        path = Path(source)
        bitstream = None
        if path.is_file():
            with suppress(CodecError):  # a video of another codec is decoded, and encoded anew
                bitstream = Bitstream.open(path, codecs=["mpeg4"])
        if bitstream is not None and self.is_fixed_gop(bitstream):
            gops = range(len(bitstream.gops))
            if is_part:
                gops = _gops_between(bitstream, start_seconds, end_seconds)
            first, last = bitstream.gops[gops[0]][0], bitstream.gops[gops[-1]][-1]
            num_gops = self._window_gops(bitstream, window_seconds)
            if may_be_one and _is_one_window(bitstream.times[first], bitstream.times[last]):
                num_gops = len(gops)
            yield from self.predict_bitstream(bitstream, window_gops=num_gops, gops=gops)
            return
        # A clip that is already in fixed-GOP form needs no face detector.
        from cfer.video.faces import face_clip
        from cfer.video.pictures import VideoPictures, open_pictures
        from cfer.video.windows import windows

        pictures = open_pictures(path)
        native, refused = None, None
        if self.card.what.is_native:
            native, refused = self._native_video(path, every)
        if native is not None and isinstance(pictures, VideoPictures):
            pictures.take_times(native.bitstream.shown_times)
        frames = pictures.span(start_seconds, end_seconds)
        times = pictures.times()
        if may_be_one and _is_one_window(times[frames[0]], times[frames[-1]]):
            spans = [frames]
        else:
            fps = pictures.regular_fps()
            window_frames = self.card.window_frames(fps, window_seconds)
            step_frames = _step_frames(window_frames, step_seconds, fps)
            spans = windows(times, frames, fps, window_frames, step_frames)
        read: list[Prediction] = []
        left: list[range] = []  # decoded once, for all of these windows
        reasons = dict.fromkeys(spans, refused)
        if native is None:
            left = spans
        else:
            for span in spans:
                start, end = times[span.start], times[span.stop]
                try:
                    said = self._predict_native(native, str(source), start, end)
                except CodecError as error:
                    reasons[span] = str(error)
                    left.append(span)
                    continue
                if left:
                    read.append(said)
                else:
                    yield said
        found: Iterator[FaceWindow] = iter(())
        if left:
            found = face_clip(
                pictures, self.card.size, self._detector, self.card.codec, left, every, VARIATIONS
            )
        encoded = (replace(window, num_windows=len(spans)) for window in found)
        yield from merge(
            read,
            self._predict_faces(str(source), encoded, reasons),
            key=attrgetter("start_seconds"),
        )

    def predict_stream(
        self,
        file: SupportsRead,
        name: str = "stream",
        *,
        faces: str = "one",
        window_seconds: float | None = None,
        step_seconds: float | None = None,
    ) -> Iterator[Prediction]:
        """The video that comes out of a pipe or a socket, window by window as it comes.

        Args:
            file: something to read bytes of MPEG-TS, Matroska, fragmented MP4 or AVI from;
                `cfer.video.pictures.GrowingFile` for a file that is still being written.
            name: what messages and predictions call it.
            faces, step_seconds: see `predict`.
            window_seconds: how long a window is; None: as long as a GOP.

        Raises:
            ClipError: it is not such a video, or breaks off.
        """
        from cfer.data.native import NativeWindow
        from cfer.data.native_stream import NativeStream
        from cfer.video.faces import face_clip, face_stream
        from cfer.video.pictures import StreamPictures

        every = _is_every(faces)
        _check_windows(window_seconds, step_seconds)
        pictures = StreamPictures(file, name)
        native, why = None, None
        if self.card.what.is_native:
            why = ONE_FACE if every else pictures.why_not_native
            native = None if why else NativeStream(pictures, self._detector)
        fps = (native or pictures).regular_fps()
        codec = self.card.codec
        window_frames = codec.at(fps).span
        if window_seconds is not None:
            window_frames = self.card.window_frames(fps, window_seconds)
        step_frames = _step_frames(window_frames, step_seconds, fps)
        size, detector = self.card.size, self._detector
        if native is None:
            found = face_stream(
                pictures, size, detector, codec, window_frames, step_frames, every, VARIATIONS
            )
            yield from self._predict_faces(name, found, defaultdict(lambda: why))
            return
        for window in native.windows(window_frames, step_frames, size, VARIATIONS):
            if isinstance(window.read, NativeWindow):
                times = window.times[0], window.times[-1]
                yield self._prediction_of(window.read, name, *times)
                continue
            held = native.pictures(window)
            found = face_clip(held, size, detector, codec, variations=VARIATIONS)
            whole = (
                replace(w, num_windows=0, frames=window.frames, times=window.times) for w in found
            )
            yield from self._predict_faces(name, whole, {window.frames: str(window.read)})

    def predict_bitstream(
        self,
        bitstream: Bitstream,
        *,
        window_gops: int | None = None,
        gops: range | None = None,
        times: Sequence[float] | None = None,
    ) -> Iterator[Prediction]:
        """A clip in fixed-GOP form; only the packets that the input needs reach the decoder.

        Args:
            window_gops: how many GOPs a prediction looks at; None: as many as are as long as the
                window that the model's card names.
            gops: the numbers of those to predict on; None: all.
            times: instead of the bitstream's own (`Bitstream.times`).

        Raises:
            CodecError: a window without a P-frame, or a damaged one.
        """
        step = self._window_gops(bitstream, None) if window_gops is None else window_gops
        gops = gops or range(len(bitstream.gops))
        times = times or bitstream.times
        for first in gops[::step]:
            window = range(first, min(first + step, gops.stop))
            if first > gops.start and all(len(bitstream.gops[g]) == 1 for g in window):
                break  # a last I-frame by itself shows no change
            planes = self.card.what.read(bitstream, window)
            probabilities = self.probabilities(planes[None])[0]
            yield Prediction(
                source=bitstream.name,
                start_seconds=times[bitstream.gops[window[0]][0]],
                end_seconds=times[bitstream.gops[window[-1]][-1] + 1],
                probabilities=dict(zip(self.card.classes, map(float, probabilities), strict=True)),
                num_frames=len(planes),
                way="clip",
            )

    def predict_shards(
        self, directory: str | Path, *, window_seconds: float | None = None
    ) -> Iterator[Prediction]:
        """Every clip of a data set that `cfer extract` wrote, in order. A window of a longer video
        keeps its place there.

        Args:
            window_seconds: see `predict`; windows end between GOPs, without overlap.

        Raises:
            InputError: it was encoded differently from what the model was trained on.
        """
        from cfer.data.shards import read_clips  # pyarrow, which is for those who have shards

        _check_windows(window_seconds)
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
            num_gops = self._window_gops(bitstream, window_seconds)
            yield from self.predict_bitstream(bitstream, window_gops=num_gops, times=times)

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
        windows: Iterator[FaceWindow],
        refused: Mapping[range, str | None],
    ) -> Iterator[Prediction]:
        """What windows of a face that are encoded say; `refused`: why each isn't read as it is."""
        for window in windows:
            why = refused[window.frames]
            start_seconds, end_seconds = window.times[0], window.times[-1]
            if window.error is not None:
                if window.num_windows == 1:
                    raise window.error
                yield Prediction(name, start_seconds, end_seconds, {}, 0, face=0, refused=why)
                continue
            probabilities, num_frames = self.predict_views(window)
            yield Prediction(
                name,
                start_seconds,
                end_seconds,
                dict(zip(self.card.classes, map(float, probabilities), strict=True)),
                num_frames,
                window.face,
                window.square,
                refused=why,
            )

    def _native_video(self, path: Path, every: bool) -> tuple[NativeVideo | None, str | None]:
        """A file to be read as it is; or why not."""
        from cfer.data.native import NativeVideo

        if every:
            return None, ONE_FACE
        if not path.is_file():
            return None, f"{path}: a folder of pictures, and no H.264"
        try:
            return NativeVideo(path, self._detector), None
        except CodecError as error:
            return None, str(error)

    def _predict_native(
        self, video: NativeVideo, name: str, start_seconds: float, end_seconds: float
    ) -> Prediction:
        """One window of a file that is read as it is; raises `CodecError` as `NativeVideo.read`."""
        window = video.read(start_seconds, end_seconds, self.card.size, VARIATIONS)
        return self._prediction_of(window, name, start_seconds, end_seconds)

    def _prediction_of(
        self, window: NativeWindow, name: str, start_seconds: float, end_seconds: float
    ) -> Prediction:
        planes = self.card.what.of_native(window.planes)
        probabilities = self.of_views(planes)
        return Prediction(
            name,
            start_seconds,
            end_seconds,
            dict(zip(self.card.classes, map(float, probabilities), strict=True)),
            planes.shape[1],
            square=window.square,
            way="native",
        )

    def predict_views(self, window: FaceWindow) -> tuple[np.ndarray, int]:
        """What all views of a face say together (`of_views`), float32 (classes,), and how many
        P-frames each of them has."""
        bitstreams = [window.encode(view) for view in range(len(window.views))]
        planes = np.stack([self.card.what.read(b, range(len(b.gops))) for b in bitstreams])
        return self.of_views(planes), planes.shape[1]

    def of_views(self, planes: np.ndarray) -> np.ndarray:
        """What several views of one thing and their mirror images say together (`of_views`):
        planes, uint8 (V, T, C, S/2, S/2) → float32 (classes,)."""
        both = np.concatenate([planes, self.card.what.mirrored(planes)])
        return of_views(self.probabilities(both))

    def _window_gops(self, bitstream: Bitstream, window_seconds: float | None) -> int:
        """How many GOPs of a clip in fixed-GOP form come closest to a window."""
        seconds = window_seconds or self.card.window_seconds
        if seconds is None:
            return self.card.window_gops
        # The last one may be shorter. Damaged time stamps say 0.
        seconds_of_a_gop = bitstream.times[len(bitstream.gops[0])] or seconds
        return max(round(seconds / seconds_of_a_gop), 1)

    @cached_property
    def _detector(self) -> FaceDetector:
        from cfer.video.faces import FaceDetector

        return FaceDetector()


def of_views(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities of one thing in several views, float32 (views, classes) → those of the mean of
    their logits, float32 (classes,): so a temperature means the same before and after."""
    logits = np.log(np.maximum(probabilities, np.float32(1e-30))).mean(axis=0)
    shares = np.exp(logits - logits.max())
    combined: np.ndarray = shares / shares.sum()
    return combined


def face_bitstream(source: Path, size: int, settings: CodecSettings) -> Bitstream:
    """The face of a whole video, cropped and encoded as one fixed-GOP clip.

    Raises:
        ClipError: the video is unreadable, has only one frame, or shows no face.
    """
    from cfer.video.faces import FaceDetector, face_clip
    from cfer.video.pictures import open_pictures

    (window,) = face_clip(open_pictures(source), size, FaceDetector(), settings)
    if window.error is not None:
        raise window.error
    return window.encode()


def _is_every(faces: str) -> bool:
    if faces not in FACES:
        raise InputError(f"--faces {faces}: give one of {', '.join(FACES)}")
    return faces == "all"


def _step_frames(window_frames: int, step_seconds: float | None, fps: Fraction) -> int:
    if step_seconds is None:
        return (window_frames + 1) // 2
    step_frames = max(round(step_seconds * fps), 1)
    if step_frames > window_frames:
        raise InputError(
            f"--step-seconds {step_seconds:g}: a window lasts {float(window_frames / fps):.3g} s, "
            "and there would be gaps between windows; give at most that"
        )
    return step_frames


def _is_one_window(first_seconds: float, last_seconds: float) -> bool:
    """Whether a part of a video is so short, by the times of its first and its last picture."""
    return last_seconds - first_seconds <= ONE_WINDOW_SECONDS + 1e-6


def _gops_between(bitstream: Bitstream, start: float | None, end: float | None) -> range:
    """The GOPs of a clip in fixed-GOP form that lie in a part of it.

    Raises:
        InputError: there is none.
    """
    from cfer.video.pictures import ROUNDED_SECONDS

    latest = math.inf if end is None else end + ROUNDED_SECONDS
    inside = [
        number
        for number, gop in enumerate(bitstream.gops)
        if bitstream.times[gop[0]] >= (start or 0) - ROUNDED_SECONDS
        and bitstream.times[gop[-1]] <= latest
    ]
    if not inside:
        raise InputError(
            f"{bitstream.name}: no whole GOP from {start or 0:g} s to "
            f"{bitstream.times[-1] if end is None else end:g} s; correct --start and --end"
        )
    return range(inside[0], inside[-1] + 1)


def _check_windows(
    window_seconds: float | None,
    step_seconds: float | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
) -> None:
    """Raises InputError where these options of a prediction cannot be, or exclude each other."""
    for name, given in (("window", window_seconds), ("step", step_seconds)):
        if given is not None and not 0 < given <= MOST_SECONDS:
            raise InputError(f"--{name}-seconds {given:g}: give 0 < seconds <= {MOST_SECONDS}")
    if start_seconds is not None and not 0 <= start_seconds < math.inf:
        raise InputError(f"--start {start_seconds:g}: give seconds from 0")
    if end_seconds is not None and not (start_seconds or 0) < end_seconds < math.inf:
        raise InputError(f"--end {end_seconds:g}: give more than the start, {start_seconds or 0:g}")
