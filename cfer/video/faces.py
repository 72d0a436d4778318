"""One face, one fixed square: the crop that training and prediction share.

The square stands still for a whole clip (or a window of a long one): a crop that followed the face
would put motion into the residuals that the face did not make. The rule:

1. MTCNN looks at `LOOKS` frames, evenly spaced. A face counts from a probability of
   `MIN_PROBABILITY`. Small faces are looked for in frames without a large one (`LARGE_FACE`).
2. Faces of different frames that overlap are one person. A person seen in less than half as many
   frames as the one seen most often is dropped.
3. The largest person is taken; among those within `SAME_SIZE` of the largest area, the one nearest
   to the picture's center.
4. That person's median box, its longer side grown by `MARGIN`, is the square. Where it leaves the
   picture, the picture's edge is repeated.

    for window in face_clip(open_pictures("clip.mp4"), 112, FaceDetector(), CodecSettings()):
        window.pictures             # RGB, uint8 (112, 112, 3)

With `every=True` each person of rule 2 has a square, and a face keeps its number from one window to
the next where its squares overlap (`SAME_PERSON`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from cfer.codec import Bitstream, CodecSettings, encode
from cfer.video.pictures import ClipError, Pictures, StreamPictures, one_frame, windows

LOOKS = 5  # frames of a window that the detector looks at
MIN_PROBABILITY = 0.95
SAME_SIZE = 0.10  # a share of the larger area
SAME_PERSON = 0.3  # intersection over union
MARGIN = 0.3  # a share of the box's longer side, half of it on either side
# A face of less than MIN_FACE / LOOK_SIZE of the picture's longer side is not looked for.
LOOK_SIZE, MIN_FACE = 480, 24  # pixels
# Most of the detector's time goes into the scales for small faces. This is three steps up its own
# pyramid: the larger scales stay the same, so a large face gets the same box either way.
LARGE_FACE = MIN_FACE / 0.709**3

_Crops = dict[int, list[np.ndarray]]  # by the number of the face


@dataclass(frozen=True)
class Square:
    """Where a face is, in pixels of the picture; a square may reach beyond the picture's edges.

    Attributes:
        x, y: the upper left corner.
        side: at least 2.
        probability: the detector's, in [0, 1]: the lowest over the frames.
        num_persons: the number of persons to choose from.
    """

    x: int
    y: int
    side: int
    probability: float
    num_persons: int


@dataclass(frozen=True)
class FaceWindow:
    """One face in one window of a clip, cropped; or an error.

    Attributes:
        number, num_windows: the window's number, from 1, and how many there are (0: a stream's are
            not known).
        frames: the clip's frame numbers.
        fps: frames per second, on average.
        codec: how it is to be encoded, a GOP's length in frames.
        times: when each of the frames is shown and, one value more, when the window ends: seconds
            since the clip's first picture.
        face: the person's number in the clip, from 1.
        square: where the face is.
        pictures: RGB, uint8 (size, size, 3), of the frames that are encoded; none with an error.
        error: no face was found.
    """

    number: int
    num_windows: int
    frames: range
    fps: Fraction
    codec: CodecSettings
    times: list[float] = field(repr=False)
    face: int = 1
    square: Square | None = None
    pictures: list[np.ndarray] = field(default_factory=list, repr=False)
    error: ClipError | None = None

    def encoded_times(self) -> list[float]:
        """The times of the frames that are encoded, and of the window's end."""
        return [self.times[n] for n in (*self.codec.encoded_frames(len(self.frames)), -1)]

    def encode(self) -> Bitstream:
        fps = self.codec.encoded_fps(self.fps)
        return encode(self.pictures, self.codec, fps, self.encoded_times())


@dataclass(frozen=True)
class _Face:
    box: np.ndarray  # x0, y0, x1, y1 in pixels, float64
    probability: float


class FaceDetector:
    """MTCNN (Zhang et al., IEEE Signal Processing Letters 2016); its weights come with the package.

    Args:
        device: "cpu", or "cuda".
    """

    def __init__(self, device: str = "cpu") -> None:
        # PyTorch takes seconds and 200 MB, and some processes import this but find no faces.
        from facenet_pytorch import MTCNN

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # facenet-pytorch's own torch.load
            self._networks = {
                least: MTCNN(keep_all=True, min_face_size=least, device=device)
                for least in (MIN_FACE, LARGE_FACE)
            }

    def faces(self, pictures: Sequence[np.ndarray], every: bool) -> list[list[_Face]]:
        """The faces of each of a few pictures, by rule 1.

        Args:
            pictures: RGB, uint8 (H, W, 3), all of one size.
            every: also look for small faces in the pictures that have a large one.
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
        without = [number for number, faces in enumerate(found) if not faces]
        if without and not every:
            small = self._detect([pictures[number] for number in without], scale, MIN_FACE)
            for number, faces in zip(without, small, strict=True):
                found[number] = faces
        return found

    def _detect(
        self, pictures: Sequence[np.ndarray], scale: float, least: float
    ) -> list[list[_Face]]:
        """The faces of at least `least` pixels, in pictures that were scaled by `scale`."""
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
        """`squares_of` the `faces` in a few pictures of one clip."""
        return squares_of(self.faces(pictures, every), pictures[0].shape[:2])


def squares_of(faces: Sequence[Sequence[_Face]], shape: tuple[int, ...]) -> list[Square]:
    """Rules 2 to 4: a square for each person.

    Args:
        faces: the faces in each frame that was looked at.
        shape: height and width of the pictures, in pixels.

    Returns:
        First the square of the person of rule 3, then those of the others, from large to small.
    """
    persons: list[list[_Face]] = []
    for face in (face for frame in faces for face in frame):
        overlaps = [_overlap(face.box, _median_box(person)) for person in persons]
        if max(overlaps, default=0) >= SAME_PERSON:
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
    return float(np.median([np.prod(face.box[2:] - face.box[:2]) for face in person]))


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
    """Cut the square out and scale it to `size`: RGB, uint8 (H, W, 3) → uint8 (size, size, 3)."""
    height, width = picture.shape[:2]
    x0, y0 = square.x, square.y
    x1, y1 = x0 + square.side, y0 + square.side
    inside = picture[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    margins = max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0)
    inside = cv2.copyMakeBorder(inside, *margins, cv2.BORDER_REPLICATE)
    # Shrink by averaging: anything else would turn fine texture into flicker.
    method = cv2.INTER_AREA if square.side >= size else cv2.INTER_LINEAR
    return cv2.resize(inside, (size, size), interpolation=method)


def face_clip(
    pictures: Pictures,
    size: int,
    detector: FaceDetector,
    codec: CodecSettings,
    spans: Sequence[range] | None = None,
    every: bool = False,
) -> Iterator[FaceWindow]:
    """A clip's face pictures, ready to be encoded, one window after the other.

    The source is read three times (to count, to look, to crop), so that only the crops of the
    windows that overlap are held in memory.

    Args:
        pictures: the clip's (`cfer.video.pictures.open_pictures`).
        size: side of the crops in pixels.
        codec: how they will be encoded, which says which of them to crop.
        spans: the frames of each window (`cfer.video.pictures.windows`); None: one, of all. No
            picture is looked at for two of them: a window that begins before the end of the one
            looked at last has the squares of that one.
        every: give a `FaceWindow` for each person of a window, not for one of them.

    Raises:
        ClipError: the source cannot be read to its end, or has only one frame. A window without a
            face raises nothing: its `FaceWindow` has an error.
    """
    codec, times = codec.at(pictures.mean_fps()), pictures.times()
    spans = spans or [pictures.span()]
    looked_at: list[range] = []
    place = []  # in `looked_at`, of the window whose squares each window has
    for span in spans:
        if not looked_at or span.start >= looked_at[-1].stop:
            looked_at.append(span)
        place.append(len(looked_at) - 1)
    looks = pictures.select({frame for span in looked_at for frame in _looks(span)})
    found = [detector.find(list(islice(looks, len(_looks(span)))), every) for span in looked_at]
    tracks = _Tracks()
    kept = [tracks.kept(squares, every) for squares in found]
    takers: dict[int, list[int]] = {}  # by frame, the windows that have it
    for number, span in enumerate(spans):
        for position in codec.encoded_frames(len(span)):
            takers.setdefault(span[position], []).append(number)
    last = {number: frame for frame in sorted(takers) for number in takers[frame]}
    crops: dict[int, _Crops] = {}
    for frame, picture in zip(sorted(takers), pictures.select(takers), strict=True):
        for number in takers[frame]:
            span, squares = spans[number], kept[place[number]]
            _add_crops(crops.setdefault(number, {}), picture, squares, size)
            if frame == last[number]:
                shown = times[span.start : span.stop + 1]
                window = FaceWindow(number + 1, len(spans), span, pictures.fps, codec, shown)
                yield from _each_face(pictures.source, window, squares, crops.pop(number))


def face_stream(
    pictures: StreamPictures,
    size: int,
    detector: FaceDetector,
    codec: CodecSettings,
    window_frames: int,
    step_frames: int,
    every: bool = False,
) -> Iterator[FaceWindow]:
    """As `face_clip`, for pictures that come once, cut as `cfer.video.pictures.windows` does.

    A GOP's length in `codec` is in frames.

    A window comes as soon as there are two more frames than it has. Its whole pictures are held in
    memory until then.
    """
    tracks = _Tracks()
    squares: Mapping[int, Square] = {}
    held: list[np.ndarray] = []
    times = [0.0]  # of the pictures held, and of the end of the last one
    first = number = looked_until = 0

    def window(span: range) -> Iterator[FaceWindow]:
        nonlocal number, looked_until, squares
        number += 1
        if span.start >= looked_until:
            looked_until = span.stop
            seen = [held[frame - first] for frame in _looks(span)]
            squares = tracks.kept(detector.find(seen, every), every)
        crops: _Crops = {}
        for position in codec.encoded_frames(len(span)):
            _add_crops(crops, held[span[position] - first], squares, size)
        shown = times[span.start - first : span.stop - first + 1]
        empty = FaceWindow(number, 0, span, pictures.fps, codec, shown)
        yield from _each_face(pictures.source, empty, squares, crops)

    for picture, shown, end in pictures.timed():
        held.append(picture)
        times[-1:] = [shown, end]
        # A single frame left over belongs to the window before it.
        if len(held) == window_frames + 2:
            yield from window(range(first, first + window_frames))
            first += step_frames
            del held[:step_frames], times[:step_frames]
    if first == 0 and len(held) < 2:
        raise one_frame(pictures.source)
    for span in windows(range(first, first + len(held)), window_frames, step_frames):
        yield from window(span)


class _Tracks:
    """Numbers for persons, which they keep from one window to the next."""

    def __init__(self) -> None:
        self._last: dict[int, Square] = {}  # where each face was seen last

    def kept(self, squares: Sequence[Square], every: bool) -> dict[int, Square]:
        """By its number, each of the squares that are used: the first one; or all of them, with the
        numbers of the faces known so far that they overlap, the best pairs first, or new numbers.
        """
        if not every:
            return dict(enumerate(squares[:1], start=1))
        pairs = sorted(
            (-_overlap(_corners(square), _corners(known)), face, position)
            for position, square in enumerate(squares)
            for face, known in self._last.items()
        )
        numbers: dict[int, int] = {}
        for overlap, face, position in pairs:
            taken = position in numbers or face in numbers.values()
            if -overlap >= SAME_PERSON and not taken:
                numbers[position] = face
        kept = {}
        for position, square in enumerate(squares):
            face = numbers.get(position) or len(self._last) + 1
            kept[face] = self._last[face] = square
        return kept


def _corners(square: Square) -> np.ndarray:
    return np.array([square.x, square.y, square.x + square.side, square.y + square.side])


def _add_crops(
    crops: _Crops, picture: np.ndarray, squares: Mapping[int, Square], size: int
) -> None:
    for face, square in squares.items():
        crops.setdefault(face, []).append(crop(picture, square, size))


def _each_face(
    source: str | Path, window: FaceWindow, squares: Mapping[int, Square], crops: _Crops
) -> Iterator[FaceWindow]:
    """The window, once for each face in it; or once with an error, where there is no face."""
    for face, square in squares.items():
        yield replace(window, face=face, square=square, pictures=crops[face])
    if not squares:
        span = window.frames
        error = ClipError(
            source,
            "face",
            f"no face found in frames {span[0]} to {span[-1]} (looked at {len(_looks(span))} of "
            f"them); the face has to be upright, and at least 1/{LOOK_SIZE // MIN_FACE} of the "
            "picture's longer side: cut the video so that one is in view",
        )
        yield replace(window, error=error)


def _looks(span: range) -> list[int]:
    """The middle frames of `LOOKS` equal parts; every frame of a shorter window."""
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
