"""One face, one fixed square: the crop that training and prediction share.

The square stays where it is for a whole clip (or a window of a long one): a crop that followed the
face would put motion into the residuals that the face did not make. The rule:

1. MTCNN looks at `LOOKS` frames, evenly spaced. A face counts from a probability of
   `MIN_PROBABILITY`. Small faces are looked for in frames without a large one (`LARGE_FACE`).
2. Faces of different frames that overlap are one person. A person seen in less than half as many
   frames as the one seen most often is dropped.
3. The largest person is taken; among those within `SAME_SIZE` of the largest area, the one nearest
   to the picture's center.
4. That person's median box, its longer side grown by `MARGIN`, is the square. Where it leaves the
   picture, the picture's edge is repeated.

    for window in face_clip("clip.mp4", size=112, detector=FaceDetector()):
        window.pictures             # RGB, uint8 (112, 112, 3)

With `every=True` there is a square for each person of rule 2, small or large, and a face keeps its
number from one window to the next where its squares overlap (`SAME_PERSON`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from cfer.codec import Bitstream, CodecSettings, encode
from cfer.video.pictures import ClipError, StreamPictures, open_pictures, windows

LOOKS = 5  # frames of a window in which a face is looked for
MIN_PROBABILITY = 0.95
SAME_SIZE = 0.10  # a share of the larger area
SAME_PERSON = 0.3  # intersection over union
MARGIN = 0.3  # a share of the box's longer side, half of it on either side
# A face of less than MIN_FACE / LOOK_SIZE of the picture's longer side is not looked for.
LOOK_SIZE, MIN_FACE = 480, 24  # pixels
# Most of the detector's time goes into the scales for small faces. Three steps of its pyramid up,
# those for larger ones are the same scales as before, so a large face gets the very same box.
LARGE_FACE = MIN_FACE / 0.709**3


@dataclass(frozen=True)
class Square:
    """Where the face is: pixels of the picture; it may reach beyond the picture's edges.

    Attributes:
        x, y: the left upper corner.
        side: of the square.
        probability: the detector's, the least of the frames that count, in [0, 1].
        num_persons: how many persons were there to choose from.
    """

    x: int
    y: int
    side: int
    probability: float
    num_persons: int


@dataclass(frozen=True)
class FaceWindow:
    """One window of a clip, cropped; or why it could not be.

    Attributes:
        number, num_windows: which one, from 1, of how many (0: not known yet, of a stream).
        frames: the clip's frame numbers.
        fps: frames per second, on average.
        times: when each of the frames is shown, and, one value more, when the window ends: seconds
            since the clip's first picture.
        face: whose: 1, or the number that the person has throughout the clip.
        square: where the face was found.
        pictures: RGB, uint8 (size, size, 3), of the frames that were asked for; none where there is
            an error.
        error: no face was found.
    """

    number: int
    num_windows: int
    frames: range
    fps: Fraction
    times: list[float] = field(repr=False)
    face: int = 1
    square: Square | None = None
    pictures: list[np.ndarray] = field(default_factory=list, repr=False)
    error: ClipError | None = None

    def encoded_times(self, settings: CodecSettings) -> list[float]:
        """Of the frames that these settings encode, and of the window's end."""
        return [self.times[n] for n in (*settings.encoded_frames(len(self.frames)), -1)]

    def encode(self, settings: CodecSettings) -> Bitstream:
        """The pictures, which `settings.encoded_frames` chose, with their times."""
        fps = settings.encoded_fps(self.fps)
        return encode(self.pictures, settings, fps, self.encoded_times(settings))


@dataclass(frozen=True)
class _Face:
    box: np.ndarray  # x0, y0, x1, y1 in pixels, float64
    probability: float

    @property
    def area(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


class FaceDetector:
    """MTCNN (Zhang et al., IEEE Signal Processing Letters 2016); its weights come with the package.

    Args:
        device: "cpu", or "cuda".
    """

    def __init__(self, device: str = "cpu") -> None:
        # PyTorch takes seconds and 200 MB, and some processes that import this find no faces.
        from facenet_pytorch import MTCNN

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # facenet-pytorch's own torch.load
            self._networks = {
                least: MTCNN(keep_all=True, min_face_size=least, device=device)
                for least in (MIN_FACE, LARGE_FACE)
            }

    def faces(self, pictures: Sequence[np.ndarray], every: bool) -> list[list[_Face]]:
        """The faces of each of a few pictures.

        Args:
            pictures: RGB, uint8 (H, W, 3), all of one size.
            every: False looks for small faces only in the pictures without a large one.
        """
        scale = min(LOOK_SIZE / max(pictures[0].shape[:2]), 1.0)
        if min(pictures[0].shape[:2]) * scale < 1:
            return [[] for _ in pictures]
        if scale < 1:
            pictures = [
                cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                for picture in pictures
            ]
        found = self._detect(pictures, scale, MIN_FACE if every else LARGE_FACE)
        without = [number for number, there in enumerate(found) if not there]
        if without and not every:
            small = self._detect([pictures[number] for number in without], scale, MIN_FACE)
            for number, there in zip(without, small, strict=True):
                found[number] = there
        return found

    def _detect(
        self, pictures: Sequence[np.ndarray], scale: float, least: float
    ) -> list[list[_Face]]:
        """The faces of at least so many pixels, in pictures that were brought to this scale."""
        if min(pictures[0].shape[:2]) < least:
            return [[] for _ in pictures]
        found = []
        detected = self._networks[least].detect(list(pictures))
        for boxes, probabilities in zip(*detected, strict=True):
            pairs = () if boxes is None else zip(boxes, probabilities, strict=True)
            found.append(
                [
                    _Face(np.asarray(box, np.float64) / scale, float(probability))
                    for box, probability in pairs
                    if probability >= MIN_PROBABILITY
                ]
            )
        return found

    def find(self, pictures: Sequence[np.ndarray], every: bool = False) -> list[Square]:
        """The squares of the persons in a few pictures of one clip; the first is the one of rule 3.

        Args:
            pictures: RGB, uint8 (H, W, 3), all of one size.
            every: persons whose faces are small are wanted too, beside those with large ones.
        """
        return squares_of(self.faces(pictures, every), pictures[0].shape[:2])


def squares_of(faces: Sequence[Sequence[_Face]], shape: tuple[int, ...]) -> list[Square]:
    """Rules 2 to 4: from the faces of each frame that was looked at to a square for each person.

    Args:
        faces: for each frame, its faces.
        shape: height and width of the pictures, in pixels.

    Returns:
        The square of the person of rule 3, then the others', the largest first.
    """
    persons: list[list[_Face]] = []
    for face in (face for frame in faces for face in frame):
        overlaps = [_overlap(face.box, _median_box(person)) for person in persons]
        if overlaps and max(overlaps) >= SAME_PERSON:
            persons[int(np.argmax(overlaps))].append(face)
        else:
            persons.append([face])
    if not persons:
        return []
    most = max(map(len, persons))
    persons = [person for person in persons if 2 * len(person) >= most]
    persons.sort(key=_area, reverse=True)
    large = [person for person in persons if _area(person) >= (1 - SAME_SIZE) * _area(persons[0])]
    center = np.array([shape[1] / 2, shape[0] / 2])
    nearest = min(large, key=lambda p: float(np.linalg.norm(_center(_median_box(p)) - center)))
    others = [person for person in persons if person is not nearest]
    return [_square(person, len(persons)) for person in (nearest, *others)]


def _area(person: Sequence[_Face]) -> float:
    return float(np.median([face.area for face in person]))


def _square(person: Sequence[_Face], num_persons: int) -> Square:
    box = _median_box(person)
    side = max(box[2] - box[0], box[3] - box[1]) * (1 + MARGIN)
    x, y = _center(box) - side / 2
    return Square(
        x=round(x),
        y=round(y),
        side=max(round(side), 2),
        probability=min(face.probability for face in person),
        num_persons=num_persons,
    )


def crop(picture: np.ndarray, square: Square, size: int) -> np.ndarray:
    """Cut the square out and bring it to `size`: RGB, uint8 (H, W, 3) → uint8 (size, size, 3)."""
    height, width = picture.shape[:2]
    x0, y0 = square.x, square.y
    x1, y1 = x0 + square.side, y0 + square.side
    inside = picture[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    if inside.shape[:2] != (square.side, square.side):
        inside = cv2.copyMakeBorder(
            inside,
            max(-y0, 0),
            max(y1 - height, 0),
            max(-x0, 0),
            max(x1 - width, 0),
            cv2.BORDER_REPLICATE,
        )
    # Averaging when it shrinks: anything else would turn fine texture into flicker.
    method = cv2.INTER_AREA if square.side >= size else cv2.INTER_LINEAR
    return cv2.resize(inside, (size, size), interpolation=method)


def face_clip(
    source: str | Path,
    size: int,
    detector: FaceDetector,
    window_frames: int | None = None,
    fps: Fraction | None = None,
    every: bool = False,
    take: Callable[[int], Sequence[int]] = range,
) -> Iterator[FaceWindow]:
    """A clip's face pictures, ready to be encoded, one window after the other.

    The source is gone through three times (to count, to look, to crop), so that no more than one
    window of crops is ever held in memory.

    Args:
        source: a video, or a folder of numbered pictures.
        size: side of the crops in pixels.
        window_frames: longer clips are cut into windows of so many frames; None leaves them whole.
        take: which frames of a window of so many to crop (`CodecSettings.encoded_frames`); all.
        fps: overrides the clip's own frame rate.
        every: all persons of a window, one `FaceWindow` each, and not one of them.

    Raises:
        ClipError: the source cannot be read to its end, or has only one frame. A window without a
            face is no exception, but a `FaceWindow` with an error.
    """
    pictures = open_pictures(source, fps)
    num_frames, times = pictures.count(), pictures.times()
    if num_frames < 2:
        raise _one_frame(source)
    spans = windows(num_frames, window_frames)
    looks = pictures.select({frame for span in spans for frame in _looks(span)})
    found = [detector.find(list(islice(looks, len(_looks(span)))), every) for span in spans]
    tracks = _Tracks()
    taken = [[span[frame] for frame in take(len(span))] for span in spans]
    stream = pictures.select({frame for frames in taken for frame in frames})
    for number, (span, there) in enumerate(zip(spans, found, strict=True), start=1):
        shown = times[span.start : span.stop + 1]
        window = FaceWindow(number, len(spans), span, pictures.fps, shown)
        kept = _kept(there, every, tracks)
        yield from _cropped(source, window, islice(stream, len(taken[number - 1])), kept, size)


def face_stream(
    pictures: StreamPictures,
    size: int,
    detector: FaceDetector,
    window_frames: int,
    every: bool = False,
    take: Callable[[int], Sequence[int]] = range,
) -> Iterator[FaceWindow]:
    """As `face_clip`, of pictures that come once: a window's faces as soon as two frames more are
    there. One window of whole pictures is held in memory.

    Raises:
        ClipError: as `face_clip` does.
    """
    tracks = _Tracks()
    held: list[np.ndarray] = []
    times = [0.0]  # of those held, and of the end of the last one
    first, number = 0, 0

    def window(count: int) -> Iterator[FaceWindow]:
        nonlocal first, number
        number += 1
        span = range(first, first + count)
        first += count
        now = [held.pop(0) for _ in range(count)]
        shown = times[: count + 1]
        del times[:count]
        there = detector.find([now[frame - span[0]] for frame in _looks(span)], every)
        empty = FaceWindow(number, 0, span, pictures.fps, shown)
        taken = [now[frame] for frame in take(count)]
        yield from _cropped(pictures.source, empty, taken, _kept(there, every, tracks), size)

    for picture, shown, end in pictures.timed():
        held.append(picture)
        times[-1:] = [shown, end]
        # A single frame left over belongs to the window before it.
        if len(held) == window_frames + 2:
            yield from window(window_frames)
    if first == 0 and len(held) < 2:
        raise _one_frame(pictures.source)
    if held:
        yield from window(len(held))


class _Tracks:
    """Gives persons numbers that they keep from one window to the next."""

    def __init__(self) -> None:
        self._last: dict[int, Square] = {}  # where each face was seen last

    def number(self, there: Sequence[Square]) -> dict[int, Square]:
        """A number for each square: a known face's that it overlaps, best pairs first; else new."""
        pairs = sorted(
            (
                (-_overlap(_corners(square), _corners(known)), face, position)
                for position, square in enumerate(there)
                for face, known in self._last.items()
            ),
        )
        numbers: dict[int, int] = {}
        for overlap, face, position in pairs:
            taken = position in numbers or face in numbers.values()
            if -overlap >= SAME_PERSON and not taken:
                numbers[position] = face
        named = {}
        for position, square in enumerate(there):
            face = numbers.get(position) or len(self._last) + 1
            named[face] = self._last[face] = square
        return named


def _kept(there: Sequence[Square], every: bool, tracks: _Tracks) -> dict[int, Square]:
    return tracks.number(there) if every else dict(enumerate(there[:1], start=1))


def _corners(square: Square) -> np.ndarray:
    return np.array([square.x, square.y, square.x + square.side, square.y + square.side])


def _cropped(
    source: str | Path,
    window: FaceWindow,
    pictures: Iterable[np.ndarray],
    kept: Mapping[int, Square],
    size: int,
) -> Iterator[FaceWindow]:
    """The window, once for each face that is in it; or with an error, where there is none."""
    crops: dict[int, list[np.ndarray]] = {face: [] for face in kept}
    for picture in pictures:
        for face, square in kept.items():
            crops[face].append(crop(picture, square, size))
    for face, square in kept.items():
        yield replace(window, face=face, square=square, pictures=crops[face])
    if not kept:
        span = window.frames
        error = ClipError(
            source,
            "face",
            f"no face found in frames {span[0]} to {span[-1]} (looked at {len(_looks(span))} of "
            f"them); the face has to be upright, and at least 1/{LOOK_SIZE // MIN_FACE} of the "
            "picture's longer side: cut the video so that one is in view",
        )
        yield replace(window, error=error)


def _one_frame(source: str | Path) -> ClipError:
    return ClipError(
        source, "decode", "only one frame, so there is no change to see; give 2 or more frames"
    )


def _looks(span: range) -> list[int]:
    """The middles of `LOOKS` equal parts; every frame, where there are fewer."""
    count = min(LOOKS, len(span))
    return [span[(2 * part + 1) * len(span) // (2 * count)] for part in range(count)]


def _median_box(person: Sequence[_Face]) -> np.ndarray:
    return np.median([face.box for face in person], axis=0)


def _center(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))
