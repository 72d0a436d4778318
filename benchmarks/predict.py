"""A clip's file → its label, by residuals and by decoded pictures.

Both ways end in a network of the same shape, that of the model that ships, and look at the same
frames: the last one of each GOP. The network for pictures has not been trained: only its cost is
looked at. The decoded way takes the difference to the first picture, which is the best
decoded input that was measured (docs/results.md). For orientation, the cost of a usual
decoded-image network stands beside them: ResNet-18 on 16 RGB pictures of 224 × 224, of the same
file; it was not trained. All begin with clips in the fixed-GOP form. The cost of bringing a video
there (finding the face, which every way needs; encoding, which only residuals need) is measured by
`cfer bench extract`.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
import torchvision
from av.video.reformatter import VideoReformatter

from benchmarks.measure import Measurement, Ratio, Spread, Work, side_by_side
from cfer.codec import GRAY, Bitstream, encode
from cfer.data.inputs import Input, to_planes
from cfer.model.network import Predictor
from cfer.predict.recognizer import Recognizer

FPS = Fraction(25)  # of the clips
RESNET_FRAMES, RESNET_SIZE = 16, 224
DECODED = Input("difference")
RESIDUALS, PICTURES = "residuals", "decoded pictures"
BYTES = "bytes decoded: pictures / residuals"
RESNET = f"ResNet-18, {RESNET_FRAMES} pictures of {RESNET_SIZE}"


def measure(clips: Sequence[Sequence[np.ndarray]], rounds: int) -> Measurement:
    """Time clips of RGB pictures, brought to the fixed-GOP form of the model that ships."""
    torch.set_num_threads(1)
    recognizer = Recognizer.from_pretrained()
    card = recognizer.card
    resnet = torchvision.models.resnet18(num_classes=len(card.classes)).eval()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, pictures in enumerate(clips):
            paths.append(Path(folder) / f"{number}.mp4")
            codec = card.codec.at(FPS)
            taken = [pictures[n] for n in codec.encoded_frames(len(pictures))]
            squares = [cv2.resize(p, (card.size, card.size)) for p in taken]
            encode(squares, codec, codec.encoded_fps(FPS)).save(paths[-1])
        streams = [Bitstream.open(path) for path in paths]
        for stream, path in zip(streams, paths, strict=True):
            theirs = decoded_planes(path, _last_frames(stream))
            ours = DECODED.read(stream, range(len(stream.gops)))
            if not np.array_equal(theirs, ours):
                raise AssertionError(
                    f"{path}: decoding alone gives other planes than cfer.data.inputs"
                )

        last = {path: _last_frames(s) for path, s in zip(paths, streams, strict=True)}
        decoded = for_pictures(recognizer)
        read = [card.what.read(s, range(len(s.gops))) for s in streams]

        def only_read(path: Path) -> None:
            stream = Bitstream.open(path)
            card.what.read(stream, range(len(stream.gops)))

        ways: dict[str, tuple[Callable[[Any], object], Sequence[Any], int]] = {
            RESIDUALS: (partial(_by_residuals, recognizer), paths, 5),
            PICTURES: (lambda path: _by_pictures(decoded, path, last[path]), paths, 5),
            RESNET: (partial(_by_resnet, resnet), paths, 1),
            "residuals: read alone": (only_read, paths, 5),
            "residuals: network alone": (lambda p: recognizer.probabilities(p[None]), read, 5),
        }

        def work(name: str) -> Work:
            way, of, per_round = ways[name]
            return Work(name, lambda: len([way(one) for one in of]), "clips", per_round)

        measurement = side_by_side(
            [work(name) for name in ways],
            [Ratio(RESIDUALS, PICTURES, 3), Ratio(RESIDUALS, RESNET, 10)],
            rounds,
            "predict",
            f"{len(clips)} clips: the decoded pictures are those that cfer.data.inputs sees",
        )
        touched = [
            sum(len(s.packets[n]) for n in card.what.packets_read(s, range(len(s.gops))))
            for s in streams
        ]
        whole = [sum(map(len, s.packets)) for s in streams]
        fewer = sum(whole) / sum(touched)
        measurement.ratios[BYTES] = Spread(fewer, fewer, fewer)
        measurement.targets[BYTES] = 10
        measurement.figures = {
            "clips": f"{len(clips)} of {card.size} × {card.size}, "
            f"{np.mean([len(s.packets) for s in streams]):.0f} frames, "
            f"of {np.mean([len(pictures) for pictures in clips]):.0f} in the video, "
            f"GOP {card.codec.gop_size}, {len(read[0])} of them looked at",
            "latency of one clip": f"{1e3 / measurement.rates[RESIDUALS].median:.2f} ms by "
            f"residuals, {1e3 / measurement.rates[PICTURES].median:.2f} ms by pictures",
            "bytes decoded": f"{sum(touched) / sum(whole):.2f} of what the pictures need",
            "memory beyond the imports": ", ".join(
                f"{name} {_peak_megabytes(name, paths[0]):,.0f} MB"
                for name in (RESIDUALS, PICTURES, RESNET)
            ),
        }
    return measurement


def _by_residuals(recognizer: Recognizer, path: Path) -> None:
    stream = Bitstream.open(path)
    list(recognizer.predict_bitstream(stream, window_gops=len(stream.gops)))


def for_pictures(recognizer: Recognizer) -> Recognizer:
    """A network of the same shape with random weights, for the planes of decoded pictures."""
    card = recognizer.card
    network = replace(card.network, num_planes=DECODED.num_planes, gain=DECODED.gain)
    return Recognizer(Predictor(network).eval(), replace(card, what=DECODED, network=network))


def _by_pictures(recognizer: Recognizer, path: Path, last: Sequence[int]) -> None:
    """The frames to look at, the last of each GOP, are given to this way for nothing."""
    recognizer.probabilities(decoded_planes(path, last)[None])


def _by_resnet(resnet: torch.nn.Module, path: Path) -> None:
    with torch.inference_mode():
        resnet(_resnet_input(path))


def decoded_planes(path: Path, wanted: Sequence[int]) -> np.ndarray:
    """These frames less the first one, as in `cfer.data.inputs`: uint8 (T, 6, S/2, S/2)."""
    first: np.ndarray | None = None
    found = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if first is not None and number not in wanted:
                continue
            planes = to_planes(frame.to_ndarray(format="yuv420p")).astype(np.int16)
            first = planes if first is None else first
            if number in wanted:
                found.append((planes - first + GRAY).clip(0, 255).astype(np.uint8))
    return np.stack(found)


def _resnet_input(path: Path) -> torch.Tensor:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = list(container.decode(video=0))
    chosen = np.linspace(0, len(frames) - 1, RESNET_FRAMES).round().astype(int)
    converter = VideoReformatter()  # one for all pictures is the quickest
    pictures = [
        converter.reformat(frames[n], RESNET_SIZE, RESNET_SIZE, "rgb24", threads=1).to_ndarray()
        for n in chosen
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _last_frames(stream: Bitstream) -> list[int]:
    return [gop[-1] for gop in stream.gops if len(gop) > 1]


def _peak_megabytes(way: str, path: Path) -> float:
    """Of a process that labels one clip in this way and does nothing else, beyond its imports."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_label_one, (way, path))


def _label_one(way: str, path: Path) -> float:
    torch.set_num_threads(1)
    imported = _peak()
    if way == RESNET:
        _by_resnet(torchvision.models.resnet18(num_classes=7).eval(), path)
    elif way == RESIDUALS:
        _by_residuals(Recognizer.from_pretrained(), path)
    else:
        recognizer = for_pictures(Recognizer.from_pretrained())
        _by_pictures(recognizer, path, _last_frames(Bitstream.open(path)))
    return _peak() - imported


def _peak() -> float:
    # getrusage's ru_maxrss is no smaller than that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
