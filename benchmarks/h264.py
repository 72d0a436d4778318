"""A video in H.264 → the label of each of its windows, from the file as people have it.

Three ways look at the same windows, in four views each, and end in a network of the same shape:

- *as it is*: `cfer.data.native`, by vectors and the energy of direct residuals;
- *encoded anew*: the face is decoded, cut out and encoded, and its residuals are read;
- *decoded pictures*: the face in the last picture of each run less that in the first. FFmpeg
  decodes as quickly as it can: without the loop filter, and without what no other picture needs.
  The faces are given to it for nothing. Its network is untrained: only its cost is looked at.

Each is timed with the face finder, which looks as often for the decoded pictures as for the file as
it is, and without, where the finder has its answers by heart. For orientation, a usual network on
decoded pictures: ResNet-18 on 16 of 224 × 224, a window in one view. What is in the window is known
beforehand to all: opening the file to plan the windows is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torchvision
from tqdm import tqdm

from benchmarks.measure import Measurement, Ratio, Work, side_by_side
from benchmarks.predict import RESNET, RESNET_FRAMES, RESNET_SIZE, for_pictures
from cfer.codec import GRAY, CodecError
from cfer.data.inputs import to_planes
from cfer.data.native import NativeVideo, Run, runs
from cfer.errors import InputError
from cfer.predict.recognizer import VARIATIONS, Recognizer
from cfer.video.faces import Face, FaceDetector, Square, crop, face_clip
from cfer.video.follow import warped
from cfer.video.pictures import open_pictures
from cfer.video.variation import Variation
from cfer.video.windows import windows

NATIVE, ENCODED, PICTURES = "as it is", "encoded anew", "decoded pictures"
FINDING = ", finding faces"
Look = Callable[[FaceDetector], object]
KEY_STEP = 8  # of the pixels by which a picture is known again, one in so many


class KnownFaces(FaceDetector):
    """A face finder that has each answer by heart, once it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self._faces: dict[object, list[list[Face]]] = {}
        self._again: dict[object, list[Face]] = {}

    def faces(self, pictures: Sequence[np.ndarray], every: bool = False) -> list[list[Face]]:
        key = every, *map(_key, pictures)
        if key not in self._faces:
            self._faces[key] = super().faces(pictures, every)
        return self._faces[key]

    def again(self, picture: np.ndarray, boxes: np.ndarray) -> list[Face]:
        key = _key(picture), boxes.tobytes()
        if key not in self._again:
            self._again[key] = super().again(picture, boxes)
        return self._again[key]


def _key(picture: np.ndarray) -> bytes:
    return picture[::KEY_STEP, ::KEY_STEP].tobytes()


class _Recording(FaceDetector):
    """Answers as another finder does, and keeps what it was asked."""

    def __init__(self, finder: FaceDetector) -> None:
        self._finder = finder
        self.looks: list[Look] = []

    def faces(self, pictures: Sequence[np.ndarray], every: bool = False) -> list[list[Face]]:
        self.looks.append(lambda finder: finder.faces(pictures, every))
        return self._finder.faces(pictures, every)

    def again(self, picture: np.ndarray, boxes: np.ndarray) -> list[Face]:
        self.looks.append(lambda finder: finder.again(picture, boxes))
        return self._finder.again(picture, boxes)


@dataclass(frozen=True)
class Window:
    """What is known of a window beforehand: its frames in the order in which they are shown, its
    time in the file, its runs, and the face in their first and last frames."""

    frames: range
    start: float
    end: float
    runs: list[Run]
    squares: list[tuple[Square, Square]]


@dataclass(frozen=True)
class Planned:
    """A video and its windows.

    Attributes:
        stops: when the first and last frames of runs are shown: seconds, by frame.
        all_needed: whether others are predicted from all of them.
        looks: for the face, when the file is read as it is.
    """

    path: Path
    windows: list[Window]
    stops: dict[int, float]
    all_needed: bool
    looks: list[Look]


def measure(videos: Sequence[Path], rounds: int) -> Measurement:
    """Time the model that ships on the windows that `cfer predict` cuts videos into.

    Raises:
        InputError: no window of them can be read as H.264 transmits it.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    recognizer = Recognizer.from_pretrained()
    decoded, anew = for_pictures(recognizer), recognizer.encoding_anew()
    resnet = torchvision.models.resnet18(num_classes=len(recognizer.card.classes)).eval()
    finder, known = FaceDetector(), KnownFaces()
    planned = [
        _planned(recognizer, known, path)
        for path in tqdm(videos, "plan", unit="video", disable=None, leave=False)
    ]
    planned = [video for video in planned if video.windows]
    count = sum(len(video.windows) for video in planned)
    if not count:
        raise InputError(
            "no window can be read as H.264 transmits it; give videos of H.264 with a face in view"
        )
    ways: dict[str, Callable[[Planned], object]] = {RESNET: lambda video: _by_resnet(resnet, video)}
    for name, way, model in (
        (NATIVE, natively, recognizer),
        (ENCODED, encoded_anew, anew),
        (PICTURES, from_pictures, decoded),
    ):
        # What it knows it learns in the first run, which is not timed.
        ways[name] = partial(way, model, known)
        ways[name + FINDING] = partial(way, model, finder)

    def work(name: str) -> Work:
        def run() -> int:
            for video in planned:
                ways[name](video)
            return count

        return Work(name, run, "windows")

    measurement = side_by_side(
        [work(name) for name in ways],
        [
            Ratio(NATIVE, PICTURES, 3),
            Ratio(NATIVE + FINDING, PICTURES + FINDING, 2),
            Ratio(NATIVE, ENCODED),
            Ratio(NATIVE + FINDING, ENCODED + FINDING, 5),
            Ratio(NATIVE, RESNET),
        ],
        rounds,
        "h264",
        f"{count} windows of {len(planned)} videos: each way labels all of them",
    )
    seconds = sum(window.end - window.start for video in planned for window in video.windows)
    looks = sum(len(video.looks) for video in planned)
    measurement.figures = {
        "windows": f"{count}, of {seconds / count:.2f} s in the mean",
        "looks for a face": f"{looks} in the files as they are",
        "decoded pictures": f"{sum(len(video.stops) for video in planned)} looked at; frames that "
        f"no other needs are left out in {sum(video.all_needed for video in planned)} videos",
    }
    return measurement


def _planned(recognizer: Recognizer, known: KnownFaces, path: Path) -> Planned:
    pictures = open_pictures(path)
    try:
        native = NativeVideo(path, known)
    except CodecError as error:
        raise InputError(f"{error}; give videos that are read as they are") from error
    bitstream = native.bitstream
    times = bitstream.shown_times
    fps = pictures.regular_fps()
    frames = recognizer.card.window_frames(fps)
    found: list[tuple[range, list[Run]]] = []
    for span in windows(times, pictures.span(), fps, frames, (frames + 1) // 2):
        start, end = times[span.start], times[span.stop]
        try:
            native.read(start, end, recognizer.card.size)
        except CodecError:
            continue
        found.append((span, runs(bitstream, start, end)))
    stops = {n: bitstream.times[n] for _, some in found for r in some for n in (r.first, r.last)}
    order = list(bitstream.display_order)
    places = {order.index(n): n for n in stops}
    squares: dict[int, Square] = {}
    seen = pictures.select(sorted(places)) if places else ()
    for place, picture in zip(sorted(places), seen, strict=True):
        for square in known.find(picture)[:1]:
            squares[places[place]] = square
    kept = [
        Window(
            span,
            times[span.start],
            times[span.stop],
            some,
            [(squares[r.first], squares[r.last]) for r in some],
        )
        for span, some in found
        if all(n in squares for r in some for n in (r.first, r.last))
    ]

    recording = _Recording(known)
    video = Planned(path, kept, stops, all(map(bitstream.is_reference, stops)), recording.looks)
    natively(recognizer, recording, video)
    return video


def natively(recognizer: Recognizer, detector: FaceDetector, video: Planned) -> list[np.ndarray]:
    """The probabilities of each window, from the file as it is."""
    native = NativeVideo(video.path, detector)
    said = []
    for window in video.windows:
        read = native.read(window.start, window.end, recognizer.card.size, VARIATIONS)
        said.append(recognizer.of_views(recognizer.card.what.of_native(read.planes)))
    return said


def encoded_anew(
    recognizer: Recognizer, detector: FaceDetector, video: Planned
) -> list[np.ndarray]:
    """The probabilities of each window, from its face encoded anew."""
    card, spans = recognizer.card, [window.frames for window in video.windows]
    pictures = open_pictures(video.path)
    faces = face_clip(pictures, card.size, detector, card.codec, spans, variations=VARIATIONS)
    return [recognizer.predict_views(face)[0] for face in faces]


def from_pictures(
    recognizer: Recognizer, detector: FaceDetector, video: Planned
) -> list[np.ndarray]:
    """The probabilities of each window, from the difference of decoded pictures."""
    for look in video.looks:
        look(detector)
    size = recognizer.card.size
    shown = dict(_decoded(video))
    said = []
    for window in video.windows:
        planes = [
            np.stack([_face(shown[at], square, v, size) for v in VARIATIONS]).astype(np.int16)
            for run, both in zip(window.runs, window.squares, strict=True)
            for at, square in zip((run.first, run.last), both, strict=True)
        ]
        changes = [
            (after - before + GRAY).clip(0, 255).astype(np.uint8)
            for before, after in zip(planes[::2], planes[1::2], strict=True)
        ]
        said.append(recognizer.of_views(np.stack(changes, axis=1)))
    return said


def _decoded(video: Planned) -> Iterator[tuple[int, np.ndarray]]:
    """The first and last frames of all runs, planar YUV 4:2:0, as quickly as FFmpeg can."""
    wanted = {round(seconds, 4): number for number, seconds in video.stops.items()}
    first: float | None = None
    options = {"skip_loop_filter": "all"}
    with av.open(str(video.path), options=options) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.skip_frame = "NONREF" if video.all_needed else "DEFAULT"
        for frame in container.decode(stream):
            first = frame.time if first is None else first
            number = wanted.get(round(frame.time - first, 4))
            if number is not None:
                yield number, frame.to_ndarray(format="yuv420p")


def _face(packed: np.ndarray, square: Square, variation: Variation, size: int) -> np.ndarray:
    """The face of a planar picture: uint8 (6, S/2, S/2)."""
    height, width = packed.shape[0] * 2 // 3, packed.shape[1]
    luma = packed[:height]
    chroma = packed[height:].reshape(2, height // 2, width // 2)
    place, side = variation.square(np.array([square.x, square.y]), square.side)
    half = max(side // 2, 1)
    below = place / 2
    below[:, :2] *= side / half
    face = [warped(luma, place, side, size).ravel()]
    face += [warped(plane, below, half, size // 2).ravel() for plane in chroma]
    return to_planes(np.concatenate(face).reshape(size * 3 // 2, size))


def _by_resnet(resnet: torch.nn.Module, video: Planned) -> list[np.ndarray]:
    takers: dict[int, list[int]] = {}
    for number, window in enumerate(video.windows):
        chosen = np.linspace(window.frames[0], window.frames[-1], RESNET_FRAMES).round()
        for frame in sorted({*map(int, chosen)}):
            takers.setdefault(frame, []).append(number)
    faces: Mapping[int, list[np.ndarray]] = {n: [] for n in range(len(video.windows))}
    pictures = open_pictures(video.path).select(sorted(takers))
    for frame, picture in zip(sorted(takers), pictures, strict=True):
        for number in takers[frame]:
            ((square, _), *_) = video.windows[number].squares
            faces[number].append(crop(picture, square, RESNET_SIZE))
    said = []
    with torch.inference_mode():
        for window_faces in faces.values():
            batch = torch.from_numpy(np.stack(window_faces)).permute(0, 3, 1, 2).float() / 255
            said.append(resnet(batch).mean(0).numpy())
    return said
