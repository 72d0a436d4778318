"""Does a model say the same of a video that was changed a little?

The face is found once, in windows of one GOP. Then the same frames are changed, cropped and encoded
anew, and the model's label of them is compared with its label of the unchanged ones. No label is
needed, so this is no accuracy: a model that says the same of everything is robust, too. Hence `by
chance`, how often the labels would agree if they were dealt out to the windows anew.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cfer.codec import Bitstream, CodecSettings, encode
from cfer.errors import InputError
from cfer.predict.recognizer import Recognizer
from cfer.video.faces import FaceDetector, FaceWindow, Square, crop, face_clip
from cfer.video.pictures import Pictures, open_pictures, windows
from pipeline.datasets.made import write_video

H264_CRF = 35  # coarse, as a messenger sends a video


@dataclass(frozen=True)
class Change:
    """Something that may happen to a video.

    Attributes:
        name: its name in the table.
        square: changes the face's square.
        picture: changes each crop, RGB, uint8 (S, S, 3).
        codec: changes the encoder's settings.
        is_compressed: the whole video is H.264 of `H264_CRF` first.
        is_later: each window begins half its length later.
    """

    name: str
    square: Callable[[Square], Square] = lambda square: square
    picture: Callable[[np.ndarray], np.ndarray] = lambda picture: picture
    codec: Callable[[CodecSettings], CodecSettings] = lambda codec: codec
    is_compressed: bool = False
    is_later: bool = False


def _reframed(
    right: float = 0.0, down: float = 0.0, larger: float = 0.0
) -> Callable[[Square], Square]:
    """Moved and grown by shares of the square's side."""

    def reframe(square: Square) -> Square:
        x, y = (round(share * square.side) for share in (right, down))
        more = round(larger * square.side / 2)
        return replace(
            square, x=square.x + x - more, y=square.y + y - more, side=square.side + 2 * more
        )

    return reframe


def _brighter(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda picture: (picture * np.float32(factor)).round().clip(0, 255).astype(np.uint8)


def _coarser(factor: float) -> Callable[[CodecSettings], CodecSettings]:
    def coarsen(codec: CodecSettings) -> CodecSettings:
        if codec.quantizer is None:
            assert codec.bit_rate is not None
            return replace(codec, bit_rate=max(round(codec.bit_rate / factor), 1000))
        return replace(codec, quantizer=min(max(round(codec.quantizer * factor), 1), 31))

    return coarsen


CHANGES = (
    Change("crop 3 % to the right", square=_reframed(right=0.03)),
    Change("crop 3 % lower", square=_reframed(down=0.03)),
    Change("crop 5 % larger", square=_reframed(larger=0.05)),
    Change("mirrored", picture=lambda picture: np.ascontiguousarray(picture[:, ::-1])),
    Change("darker, × 0.8", picture=_brighter(0.8)),
    Change("brighter, × 1.2", picture=_brighter(1.2)),
    Change("quantizer halved", codec=_coarser(0.5)),
    Change("quantizer doubled", codec=_coarser(2)),
    Change(f"H.264, CRF {H264_CRF}, before", is_compressed=True),
    Change("half a window later", is_later=True),
)


@dataclass(frozen=True)
class Agreement:
    """The probabilities of changed windows, compared with those of the unchanged ones.

    Attributes:
        windows: how many were compared.
        same_label: share of them, in [0, 1].
        by_chance: `same_label` if labels and windows had nothing to do with each other.
        difference: of the probabilities, half the sum of the absolute ones; the mean, in [0, 1].
    """

    windows: int
    same_label: float
    by_chance: float
    difference: float

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray) -> Agreement:
        """Probabilities of the same windows, float (N, classes) each."""
        labels, others = before.argmax(1), after.argmax(1)
        num_classes = before.shape[1]
        counts, other_counts = (np.bincount(n, minlength=num_classes) for n in (labels, others))
        return cls(
            windows=len(before),
            same_label=float((labels == others).mean()),
            by_chance=float(counts / len(before) @ (other_counts / len(before))),
            difference=float(np.abs(before - after).sum(1).mean() / 2),
        )


@dataclass(frozen=True)
class Robustness:
    """The result.

    Attributes:
        model: its name.
        videos, windows: how many.
        with_a_face: how many of the windows.
        labels: of the unchanged windows, how many of each.
        agreement: by the name of the change.
    """

    model: str
    videos: int
    windows: int
    with_a_face: int
    labels: dict[str, int]
    agreement: dict[str, Agreement]

    def table(self) -> str:
        """Markdown, for the terminal and for a page."""
        counts = ", ".join(f"{name} {count}" for name, count in self.labels.items())
        lines = [
            f"{self.videos} videos, {self.windows} windows; a face in {self.with_a_face} of them "
            f"({self.with_a_face / self.windows:.1%}).",
            f"Model {self.model}, labels: {counts}.",
            "",
            "| change | windows | same label | by chance | difference of probabilities |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {a.windows} | {a.same_label:.2f} | {a.by_chance:.2f} "
            f"| {a.difference:.2f} |"
            for name, a in self.agreement.items()
        ]
        return "\n".join(lines)


def measure(recognizer: Recognizer, videos: Sequence[Path], model_name: str) -> Robustness:
    """Every change on every window of the videos that shows a face.

    Raises:
        ClipError: a video that cannot be read.
        InputError: no face in any of them.
    """
    num_windows = 0
    unchanged: list[np.ndarray] = []
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {c.name: [] for c in CHANGES}
    card, detector = recognizer.card, FaceDetector()
    for video in tqdm(videos, "robustness", unit="video", disable=None, leave=False):
        pictures = open_pictures(video)
        codec = card.codec.at(pictures.mean_fps())
        spans = windows(pictures.span(), codec.span)
        num_windows += len(spans)
        seen, before = [], {}
        for window in face_clip(pictures, card.size, detector, codec, spans):
            if window.error is None:
                before[window.number] = _probabilities(recognizer, window.encode())
                seen.append(replace(window, pictures=[]))
        if not seen:
            continue
        unchanged += before.values()
        with tempfile.TemporaryDirectory() as folder:
            compressed = _compressed(pictures, Path(folder))
            for change in CHANGES:
                source = compressed if change.is_compressed else pictures
                pairs[change.name] += [
                    (before[number], after)
                    for number, after in _says(recognizer, source, seen, change)
                ]
    if not unchanged:
        raise InputError("no face was found in any window; give videos with a face in view")
    labels = Counter(card.classes[probabilities.argmax()] for probabilities in unchanged)
    agreement = {
        name: Agreement.of(*(np.stack(side) for side in zip(*both, strict=True)))
        for name, both in pairs.items()
        if both
    }
    return Robustness(
        model_name, len(videos), num_windows, len(unchanged), dict(labels.most_common()), agreement
    )


def _says(
    recognizer: Recognizer, pictures: Pictures, seen: Sequence[FaceWindow], change: Change
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each window, and its probabilities, float64 (classes,), after the change."""
    codec = seen[0].codec
    begin, num_frames = codec.span // 2 if change.is_later else 0, pictures.count()
    taken = [
        (window, [begin + window.frames[n] for n in codec.encoded_frames(len(window.frames))])
        for window in seen
    ]
    taken = [(window, frames) for window, frames in taken if frames[-1] < num_frames]
    if not taken:
        return
    stream = pictures.select({frame for _, frames in taken for frame in frames})
    for window, frames in taken:
        assert window.square is not None
        square = change.square(window.square)
        crops = [
            change.picture(crop(picture, square, recognizer.card.size))
            for picture in islice(stream, len(frames))
        ]
        bitstream = encode(crops, change.codec(codec), codec.encoded_fps(pictures.fps))
        yield window.number, _probabilities(recognizer, bitstream)


def _probabilities(recognizer: Recognizer, bitstream: Bitstream) -> np.ndarray:
    (prediction,) = recognizer.predict_bitstream(bitstream, window_gops=len(bitstream.gops))
    return np.array(list(prediction.probabilities.values()))


def _compressed(pictures: Pictures, folder: Path) -> Pictures:
    """The same pictures after H.264."""
    path = folder / "video.mp4"
    write_video(path, pictures, pictures.fps.limit_denominator(1001), H264_CRF)
    return open_pictures(path)
