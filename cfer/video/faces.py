"""One face, one square: the crop that training and prediction share. The rule:

1. MTCNN looks at the frames of a window that are encoded: the first, the last and, between them,
   one every `LOOK_SECONDS`. A face counts from a probability of `MIN_PROBABILITY`. Small faces are
   looked for in frames without a large one (`LARGE_FACE`). All of a frame is searched in one look
   of `FULL_LOOKS`; in the others, the last of MTCNN's three networks looks where the faces were,
   which takes much less time. Where it doesn't see each of them, all is searched again.
2. A face that has moved by less than `NEAR` from one look to the next is the same person's. A
   person seen in less than half as many frames as the one seen most often is dropped.
3. The largest person is taken; among those within `SAME_SIZE` of the largest area, the one nearest
   to the picture's center.
4. That person's median box, its longer side grown by `MARGIN`, is the square. Within a GOP it goes
   along with the head (`cfer.video.follow`). Where it leaves the picture, the picture's edge is
   repeated.

    for window in face_clip(open_pictures("clip.mp4"), 112, FaceDetector(), CodecSettings()):
        window.pictures             # RGB, uint8 (112, 112, 3)

With `every=True` each person of rule 2 has a square, and a face keeps its number from one window to
the next (`NEAR`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from cfer.codec import Bitstream, CodecSettings, encode
from cfer.video.follow import Follower, Track, warped
from cfer.video.pictures import ClipError, Pictures, StreamPictures, one_frame
from cfer.video.variation import AS_FOUND, Variation
from cfer.video.windows import WindowCutter, fps_within, shifted

LOOK_SECONDS = 0.25  # from one frame that the detector looks at to the next
FULL_LOOKS = 5  # those of a second
MIN_PROBABILITY = 0.95
SAME_SIZE = 0.10  # a share of the larger area
NEAR = 0.75  # from center to center, in sides of the boxes
MOST_GROWN = 2  # of a side, from one look to the next
MARGIN = 0.3  # a share of the box's longer side, half of it on either side
# A face of less than MIN_FACE / LOOK_SIZE of the picture's longer side is not looked for.
LOOK_SIZE, MIN_FACE = 480, 24  # pixels
# Most of the detector's time goes into the scales for small faces. This is three steps up its own
# pyramid: the larger scales stay the same, so a large face gets the same box either way.
LARGE_FACE = MIN_FACE / 0.709**3
ONET_SIZE = 48  # pixels of the square that MTCNN's last network sees


@dataclass(frozen=True)
class Square:
    """Where a face is in a window, in pixels of the picture; it may reach beyond the edges.

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
        views: of each variation of the square, RGB, uint8 (size, size, 3), of the frames that are
            encoded; none with an error.
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
    views: list[list[np.ndarray]] = field(default_factory=list, repr=False)
    error: ClipError | None = None

    @property
    def pictures(self) -> list[np.ndarray]:
        """The first view."""
        return self.views[0] if self.views else []

    def encoded_times(self) -> list[float]:
        """The times of the frames that are encoded, and of the window's end."""
        return [self.times[n] for n in (*self.codec.encoded_frames(len(self.frames)), -1)]

    def encode(self, view: int = 0) -> Bitstream:
        fps = self.codec.encoded_fps(self.fps)
        return encode(self.views[view], self.codec, fps, self.encoded_times())


@dataclass(frozen=True)
class Face:
    """A face in one frame.

    Attributes:
        box: x0, y0, x1, y1, float64, pixels.
        probability: that it is one.
        points: the eyes and the tip of the nose, float64 (3, 2), pixels.
    """

    box: np.ndarray
    probability: float
    points: np.ndarray

    @property
    def center(self) -> np.ndarray:
        return (self.box[:2] + self.box[2:]) / 2

    @property
    def side(self) -> float:
        return float((self.box[2:] - self.box[:2]).max())


_Person = list[tuple[int, Face]]  # the frames that someone was seen in, ascending


class FaceDetector:
    """MTCNN (Zhang et al., IEEE Signal Processing Letters 2016); its weights come with the package.

    Args:
        device: "cpu", or "cuda".
    """

    def __init__(self, device: str = "cpu") -> None:
        # PyTorch takes seconds and 200 MB, and some processes import this but find no faces.
        from facenet_pytorch import MTCNN

        self._device = device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # facenet-pytorch's own torch.load
            self._networks = {
                least: MTCNN(keep_all=True, min_face_size=least, device=device)
                for least in (MIN_FACE, LARGE_FACE)
            }

    def faces(self, pictures: Sequence[np.ndarray], every: bool = False) -> list[list[Face]]:
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
    ) -> list[list[Face]]:
        """The faces of at least `least` pixels, in pictures that were scaled by `scale`."""
        if min(pictures[0].shape[:2]) < least:
            return [[] for _ in pictures]
        found = []
        detected = self._networks[least].detect(list(pictures), landmarks=True)
        for boxes, probabilities, points in zip(*detected, strict=True):
            faces = () if boxes is None else zip(boxes, probabilities, points, strict=True)
            found.append(
                [
                    Face(
                        np.asarray(box, np.float64) / scale,
                        float(probability),
                        np.asarray(at, np.float64)[:3] / scale,
                    )
                    for box, probability, at in faces
                    if probability >= MIN_PROBABILITY
                ]
            )
        return found

    def look(
        self, picture: np.ndarray, before: Sequence[Sequence[Sequence[Face]]], every: bool = False
    ) -> list[list[Face]]:
        """The faces of one picture of a video, by rule 1, in each of the windows that look at it.

        Args:
            picture: RGB, uint8 (H, W, 3). However many windows there are, it's searched once.
            before: of each window, the faces of each look before this one.
            every: as for `faces`.
        """
        seen = [
            self._each_again(picture, looks[-1] if len(looks) % FULL_LOOKS else [])
            for looks in before
        ]
        if not all(seen):
            (found,) = self.faces([picture], every)
            searched = self._each_again(picture, found) or found
            seen = [faces or searched for faces in seen]
        return seen

    def _each_again(self, picture: np.ndarray, known: Sequence[Face]) -> list[Face]:
        """The faces as the last network has them; none, where it doesn't see each of them."""
        if not known:
            return []
        faces = self.again(picture, np.stack([face.box for face in known]))
        # Of two boxes that have come together, both may show the face in front.
        apart = all(next(_matched([a], [b]))[1] is None for a, b in combinations(faces, 2))
        seen = all(face.probability >= MIN_PROBABILITY for face in faces)
        return faces if apart and seen else []

    def again(self, picture: np.ndarray, boxes: np.ndarray) -> list[Face]:
        """Faces that were seen shortly before, each with the probability that it is one still.

        Args:
            picture: RGB, uint8 (H, W, 3).
            boxes: where they were: x0, y0, x1, y1, float64 (N, 4), pixels; N is at least 1.
        """
        import torch

        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) + 1
        corners = (boxes[:, :2] + boxes[:, 2:] - sides - 1) / 2
        crops = [
            warped(picture, np.column_stack([np.eye(2), corner]), max(round(side), 2), ONET_SIZE)
            for corner, side in zip(corners, sides[:, 0], strict=True)
        ]
        seen = torch.from_numpy(np.stack(crops)).to(self._device).permute(0, 3, 1, 2)
        with torch.no_grad():
            answer = self._networks[LARGE_FACE].onet((seen - 127.5) / 128)
        moved, points, is_face = (values.double().cpu().numpy() for values in answer)
        # MTCNN counts the pixels of a box from 1, and those of points from 0.
        found = np.column_stack([corners + 1, corners + sides]) + sides * moved
        x_and_y = points.reshape(-1, 2, 5).transpose(0, 2, 1)[:, :3]
        at = corners[:, None] + sides[:, None] * x_and_y
        return list(map(Face, found, is_face[:, 1].tolist(), at))

    def find(self, picture: np.ndarray) -> list[Square]:
        """The squares of the persons in one picture, that of rule 3 first."""
        looks = dict(enumerate(self.faces([picture])))
        return [_square(person, n) for person, n in persons_of(looks, picture.shape[:2])]

    def find_again(self, picture: np.ndarray, square: Square) -> Square | None:
        """The square of a face that is about where it was; None: it is not seen there any more.

        Args:
            picture: RGB, uint8 (H, W, 3).
            square: where it was.
        """
        center = np.array([square.x, square.y]) + square.side / 2
        half = square.side / (1 + MARGIN) / 2
        (face,) = self.again(picture, np.concatenate([center - half, center + half])[None])
        if face.probability < MIN_PROBABILITY:
            return None
        return _square([(0, face)], square.num_persons)


def persons_of(
    looks: Mapping[int, Sequence[Face]], shape: tuple[int, ...]
) -> list[tuple[_Person, int]]:
    """Rules 2 and 3: who is in some frames, and how many persons there are.

    Args:
        looks: the faces in each frame that was looked at, ascending.
        shape: height and width of the pictures, in pixels.

    Returns:
        First the person of rule 3, then the others, from large to small.
    """
    persons: list[_Person] = []
    for frame, faces in looks.items():
        for face, place in _matched(faces, [person[-1][1] for person in persons]):
            if place is None:
                persons.append([(frame, face)])
            else:
                persons[place].append((frame, face))
    if not persons:
        return []
    most = max(map(len, persons))
    persons = [person for person in persons if 2 * len(person) >= most]
    persons.sort(key=_area, reverse=True)
    large = [person for person in persons if _area(person) >= (1 - SAME_SIZE) * _area(persons[0])]
    middle = np.array([shape[1] / 2, shape[0] / 2])
    nearest = min(large, key=lambda p: float(np.linalg.norm(_median_face(p).center - middle)))
    others = [person for person in persons if person is not nearest]
    return [(person, len(persons)) for person in (nearest, *others)]


def _matched(faces: Sequence[Face], known: Sequence[Face]) -> Iterator[tuple[Face, int | None]]:
    """Each face with the number of the known one that it is, the nearest pairs first; or None."""
    pairs = []
    for position, face in enumerate(faces):
        for number, before in enumerate(known):
            distance = float(np.linalg.norm(face.center - before.center))
            sides = face.side, before.side
            if distance <= NEAR * sum(sides) / 2 and max(sides) <= MOST_GROWN * min(sides):
                pairs.append((distance, position, number))
    taken: dict[int, int] = {}
    for _, position, number in sorted(pairs):
        if position not in taken and number not in taken.values():
            taken[position] = number
    for position, face in enumerate(faces):
        yield face, taken.get(position)


def _area(person: _Person) -> float:
    return float(np.median([np.prod(face.box[2:] - face.box[:2]) for _, face in person]))


def _median_face(person: _Person) -> Face:
    box, points = (
        np.median([getattr(face, name) for _, face in person], axis=0) for name in ("box", "points")
    )
    return Face(box, min(face.probability for _, face in person), points)


def _square(person: _Person, num_persons: int) -> Square:
    face = _median_face(person)
    side = face.side * (1 + MARGIN)
    x, y = face.center - side / 2
    return Square(round(x), round(y), max(round(side), 2), face.probability, num_persons)


def _track(person: _Person) -> Track:
    faces = [face for _, face in person]
    return Track(
        [frame for frame, _ in person],
        np.array([face.center for face in faces]),
        np.array([face.points for face in faces]),
        _median_face(person).side * (1 + MARGIN),
    )


def crop(picture: np.ndarray, square: Square, size: int) -> np.ndarray:
    """Cut the square out and scale it to `size`: RGB, uint8 (H, W, 3) → uint8 (size, size, 3)."""
    corner = np.array([square.x, square.y])
    return warped(picture, np.column_stack([np.eye(2), corner]), square.side, size)


def face_clip(
    pictures: Pictures,
    size: int,
    detector: FaceDetector,
    codec: CodecSettings,
    spans: Sequence[range] | None = None,
    every: bool = False,
    variations: Sequence[Variation] = (AS_FOUND,),
) -> Iterator[FaceWindow]:
    """A clip's face pictures, ready to be encoded, one window after the other.

    The source is read three times (to count, to look, to crop), so that only the crops of the
    windows that overlap are held in memory.

    Args:
        pictures: the clip's (`cfer.video.pictures.open_pictures`).
        size: side of the crops in pixels.
        codec: how they will be encoded, which says which of them to crop.
        spans: the frames of each window (`cfer.video.windows`); None: one, of all.
        every: give a `FaceWindow` for each person of a window, not for one of them.
        variations: of the squares, the first for `FaceWindow.pictures`.

    Raises:
        ClipError: the source cannot be read to its end, or has only one frame. A window without a
            face raises nothing: its `FaceWindow` has an error.
    """
    times, fps = pictures.times(), pictures.regular_fps()
    spans = spans or [pictures.span()]
    rates = [fps_within(times[span.start : span.stop], fps) for span in spans]
    codecs = [codec.at(rate) for rate in rates]
    looks = [_looks(*window) for window in zip(spans, codecs, rates, strict=True)]
    found: list[dict[int, list[Face]]] = [{} for _ in spans]
    shape: tuple[int, ...] = ()
    lookers = _by_frame(looks)
    for frame, picture in zip(sorted(lookers), pictures.select(lookers), strict=True):
        shape = picture.shape[:2]
        before = [list(found[number].values()) for number in lookers[frame]]
        seen = detector.look(picture, before, every)
        for number, faces in zip(lookers[frame], seen, strict=True):
            found[number][frame] = faces
    numbers = _Numbers()
    heads = [numbers.of(faces, shape, every) for faces in found]
    takers = _by_frame(
        [span[position] for position in own.encoded_frames(len(span))]
        for span, own in zip(spans, codecs, strict=True)
    )
    last = {number: frame for frame in sorted(takers) for number in takers[frame]}
    cutters: dict[int, dict[int, _Cutter]] = {}
    for frame, picture in zip(sorted(takers), pictures.select(takers), strict=True):
        for number in takers[frame]:
            if number not in cutters:
                cutters[number] = _cutters(heads[number], size, codecs[number], variations)
            for cutter in cutters[number].values():
                cutter.add(picture, frame)
            if frame == last[number]:
                span = spans[number]
                times_shown = times[span.start : span.stop + 1]
                window = FaceWindow(
                    number + 1, len(spans), span, pictures.fps, codecs[number], times_shown
                )
                yield from _each_face(
                    pictures.source, window, cutters.pop(number), len(looks[number])
                )


def face_stream(
    pictures: StreamPictures,
    size: int,
    detector: FaceDetector,
    codec: CodecSettings,
    window_frames: int,
    step_frames: int,
    every: bool = False,
    variations: Sequence[Variation] = (AS_FOUND,),
) -> Iterator[FaceWindow]:
    """As `face_clip`, for pictures that come once, each window as soon as it is complete
    (`cfer.video.windows.WindowCutter`). Its whole pictures are held in memory until then."""
    numbers = _Numbers()
    fps = pictures.regular_fps()
    held: list[np.ndarray] = []
    times = [0.0]  # of the pictures held, and of the end of the last one
    first = number = 0

    def window(span: range) -> Iterator[FaceWindow]:
        nonlocal number
        number += 1
        shown = times[span.start - first : span.stop - first + 1]
        rate = fps_within(shown[:-1], fps)
        own = codec.at(rate)
        looks = _looks(span, own, rate)
        found: dict[int, list[Face]] = {}
        for frame in looks:
            (found[frame],) = detector.look(held[frame - first], [list(found.values())], every)
        heads = numbers.of(found, held[0].shape[:2], every)
        cutters = _cutters(heads, size, own, variations)
        for position in own.encoded_frames(len(span)):
            for cutter in cutters.values():
                cutter.add(held[span[position] - first], span[position])
        empty = FaceWindow(number, 0, span, pictures.fps, own, shown)
        yield from _each_face(pictures.source, empty, cutters, len(looks))

    cut = WindowCutter(fps, window_frames, step_frames)
    for picture, shown_at, end in pictures.timed():
        held.append(picture)
        times[-1:] = [shown_at, end]
        while (span := cut.complete(times[:-1])) is not None:
            yield from window(shifted(span, first))
            passed = cut.needed(times[:-1])
            first += passed
            del held[:passed], times[:passed]
    if first == 0 and len(held) < 2:
        raise one_frame(pictures.source)
    for span in cut.rest(times[:-1]):
        yield from window(shifted(span, first))


def _looks(span: range, codec: CodecSettings, fps: Fraction) -> list[int]:
    """The frames of a window that the detector looks at: a function of the window alone, whatever
    others there are."""
    encoded = [span[position] for position in codec.encoded_frames(len(span))]
    count = min(len(encoded), 1 + math.ceil((len(span) - 1) / (LOOK_SECONDS * fps)))
    return [encoded[place] for place in np.linspace(0, len(encoded) - 1, count).round().astype(int)]


def _by_frame(frames: Iterable[Sequence[int]]) -> dict[int, list[int]]:
    """Frames of each window → for each frame, the numbers of the windows that have it."""
    having: dict[int, list[int]] = {}
    for number, own in enumerate(frames):
        for frame in own:
            having.setdefault(frame, []).append(number)
    return having


@dataclass(frozen=True)
class _Head:
    square: Square
    track: Track


class _Numbers:
    """Numbers for persons, which they keep from one window to the next."""

    def __init__(self) -> None:
        self._last: dict[int, Face] = {}  # where each was seen last

    def of(
        self, looks: Mapping[int, Sequence[Face]], shape: tuple[int, ...], every: bool
    ) -> dict[int, _Head]:
        """The heads of a window that are used, by number: that of rule 3, or all of them."""
        persons = persons_of(looks, shape)[: None if every else 1]
        heads = [_Head(_square(person, n), _track(person)) for person, n in persons]
        if not every:
            return dict(enumerate(heads, start=1))
        known = list(self._last)
        faces = [_median_face(person) for person, _ in persons]
        matched = _matched(faces, list(self._last.values()))
        numbered = {}
        for head, (face, place) in zip(heads, matched, strict=True):
            number = len(self._last) + 1 if place is None else known[place]
            numbered[number] = head
            self._last[number] = face
        return numbered


class _Cutter:
    """The crops of one face in one window, by variation."""

    def __init__(
        self, head: _Head, size: int, codec: CodecSettings, variations: Sequence[Variation]
    ) -> None:
        self.square = head.square
        self.views: list[list[np.ndarray]] = [[] for _ in variations]
        self._follower = Follower(head.track, size, variations)
        self._gop_size = codec.gop_size

    def add(self, picture: np.ndarray, frame: int) -> None:
        is_first = len(self.views[0]) % self._gop_size == 0
        cut = self._follower.i_frame if is_first else self._follower.p_frame
        for view, crop_of_it in zip(self.views, cut(picture, frame), strict=True):
            view.append(crop_of_it)


def _cutters(
    heads: Mapping[int, _Head], size: int, codec: CodecSettings, variations: Sequence[Variation]
) -> dict[int, _Cutter]:
    return {face: _Cutter(head, size, codec, variations) for face, head in heads.items()}


def _each_face(
    source: str | Path, window: FaceWindow, cutters: Mapping[int, _Cutter], num_looks: int
) -> Iterator[FaceWindow]:
    """The window, once for each face in it; or once with an error, where there is no face."""
    for face, cutter in cutters.items():
        yield replace(window, face=face, square=cutter.square, views=cutter.views)
    if not cutters:
        span = window.frames
        error = ClipError(
            source,
            "face",
            f"no face found in frames {span[0]} to {span[-1]} (looked at {num_looks} of them); the "
            f"face has to be upright, and at least 1/{LOOK_SIZE // MIN_FACE} of the picture's "
            "longer side: cut the video so that one is in view",
        )
        yield replace(window, error=error)
