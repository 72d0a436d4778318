"""Videos → clips, stage by stage, beside decoding and encoding them with nothing else.

What `pipeline/extract.py` does to a clip, in one process and on one core, with a clock around each
stage; Ray's part is left out. The *floor* decodes each video once, scales the chosen frames in
FFmpeg, and encodes them.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

from benchmarks.measure import Measurement, Ratio, measurement_of
from cfer.codec import Bitstream, CodecSettings
from cfer.codec.containers import open_input, video_stream
from cfer.data.shards import Clip, shard_name, write_shard
from cfer.errors import InputError
from cfer.model.face_embedder import embed_clip, open_face_embedder
from cfer.video.faces import FaceDetector, FaceWindow, Square, face_clip

READ, FACES, ENCODE = "decode and crop", "find the face", "encode"
RESIDUALS, IDENTITY, WRITE = "read residuals", "embed an I-frame", "write the shard"
STAGES = (READ, FACES, ENCODE, RESIDUALS, IDENTITY, WRITE)
NETWORKS = (FACES, IDENTITY)
FLOOR, WHOLE = "decode and encode alone", "everything"
REST, NETWORKS_ALONE = "everything but the networks", "the networks alone"


class Clock:
    """Seconds of each stage of one round."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - started


class _ClockedDetector(FaceDetector):
    clock = Clock()

    def find(self, pictures: Sequence[np.ndarray], every: bool = False) -> list[Square]:
        with self.clock.stage(FACES):
            return super().find(pictures, every)


@dataclass(frozen=True)
class Extracted:
    """What went through the stages, and how many seconds each took."""

    seconds: dict[str, float]
    clips: list[Clip]
    source_frames: int


class Stages:
    """The extraction of videos with a face in each, with a clock; identity by dlib.

    Args:
        size: side of the face crop in pixels.
        window_frames: a longer video is cut into windows of so many frames; None leaves it whole.
    """

    def __init__(self, size: int, settings: CodecSettings, window_frames: int | None = None):
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        self._size, self._settings, self._window_frames = size, settings, window_frames
        self._detector = _ClockedDetector()
        self._embedder = open_face_embedder("dlib", None, "cpu")

    def extract(self, videos: Sequence[Path], folder: Path, clock: Clock) -> Extracted:
        """Write the videos' clips as one shard into the folder.

        Raises:
            InputError: a video that cannot be read, or has no face.
        """
        self._detector.clock = clock
        clips, source_frames, before = [], 0, clock.spent[FACES]
        for path in videos:
            with clock.stage(READ):
                windows = list(
                    face_clip(
                        path,
                        self._size,
                        self._detector,
                        self._window_frames,
                        take=self._settings.encoded_frames,
                    )
                )
            clips += [self._clip_of(window, clock) for window in windows]
            source_frames += sum(len(window.frames) for window in windows)
        # Which is done in the midst of it.
        clock.spent[READ] -= clock.spent[FACES] - before
        with clock.stage(WRITE):
            write_shard(folder, 0, clips, [], "")
        return Extracted(clock.spent, clips, source_frames)

    def _clip_of(self, window: FaceWindow, clock: Clock) -> Clip:
        if window.error is not None:
            raise window.error
        settings = self._settings
        with clock.stage(ENCODE):
            bitstream = window.encode(settings)
        with clock.stage(RESIDUALS):
            gops = range(len(bitstream.gops))
            residuals = [r for g in gops for r in bitstream.accumulated_residuals(g)]
            intra = float(np.mean([r.intra_fraction for r in residuals]))
            saturated = float(np.mean([r.saturated_fraction for r in residuals]))
        with clock.stage(IDENTITY):
            identity = embed_clip(self._embedder, bitstream)
        return Clip(
            clip_id="a clip", dataset="", source="", subject=None, label=None, label_name=None,
            split=None, num_frames=len(window.pictures), fps=float(bitstream.fps),
            pts_seconds=window.encoded_times(settings)[:-1], size=self._size,
            gop_size=settings.gop_size, bitstream=bitstream.data,
            identity=identity, apex_frame=None, apex=None, intra_fraction=intra,
            saturated_fraction=saturated,
        )  # fmt: skip


def measure(videos: Sequence[Path], size: int, settings: CodecSettings, rounds: int) -> Measurement:
    """Time the extraction of real videos with a face in each; identity by dlib.

    Raises:
        InputError: no video, or one without a face.
    """
    if not videos:
        raise InputError("extract: give videos with faces; there is nothing to find in a texture")
    stages = Stages(size, settings)

    def one_round(folder: Path) -> tuple[dict[str, float], int]:
        clock = Clock()
        extracted = stages.extract(videos, folder, clock)
        with clock.stage(FLOOR):
            count = sum(_decode_and_encode(path, size, settings) for path in videos)
        stored = pq.read_table(folder / shard_name(0), columns=["bitstream"])["bitstream"]
        if stored.to_pylist() != [clip.bitstream for clip in extracted.clips]:
            raise AssertionError("the shard's bitstreams are not those that were encoded")
        frames = sum(len(Bitstream(data, "a clip").packets) for data in stored.to_pylist())
        if frames != count:
            raise AssertionError(f"the shard has {frames} frames, the floor encodes {count}")
        return clock.spent, count

    rates: dict[str, list[float]] = {FLOOR: [], REST: [], NETWORKS_ALONE: [], WHOLE: []}
    shares: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        one_round(Path(folder))
        for _ in tqdm(range(rounds), "extract", unit="round", disable=None, leave=False):
            spent, count = one_round(Path(folder))
            whole = sum(spent[stage] for stage in STAGES)
            networks = sum(spent[stage] for stage in NETWORKS)
            for name, seconds in (
                (FLOOR, spent[FLOOR]),
                (REST, whole - networks),
                (NETWORKS_ALONE, networks),
                (WHOLE, whole),
            ):
                rates[name].append(count / seconds)
            for stage in STAGES:
                shares[stage].append(spent[stage] / whole)
    measurement = measurement_of(
        rates,
        dict.fromkeys(rates, "frames"),
        # At most 1.3 times the floor; and at most half of everything.
        [Ratio(REST, FLOOR, 1 / 1.3), Ratio(NETWORKS_ALONE, WHOLE, 2.0), Ratio(WHOLE, FLOOR)],
        "extract",
        f"{count} frames of {len(videos)} videos: the shard has as many as the floor encodes",
    )
    measurement.figures = {
        f"share of: {stage}": f"{statistics.median(values):.1%}" for stage, values in shares.items()
    }
    return measurement


def _decode_and_encode(path: Path, size: int, settings: CodecSettings) -> int:
    """The least that any such pipeline does → how many frames."""
    with open(path, "rb") as file, open_input(file) as container:
        stream = video_stream(container)
        assert stream is not None
        num_frames = sum(packet.size > 0 for packet in container.demux(stream))
    wanted = set(settings.encoded_frames(num_frames))
    count = 0
    encoder = av.CodecContext.create("mpeg4", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width = encoder.height = size
    encoder.pix_fmt, encoder.gop_size, encoder.thread_count = "yuv420p", settings.gop_size, 1
    quantizer = str(settings.quantizer)
    encoder.options = {"qmin": quantizer, "qmax": quantizer, "bf": "0"}
    with open(path, "rb") as file, open_input(file) as container:
        stream = video_stream(container)
        assert stream is not None
        stream.codec_context.thread_count = 1
        converter = VideoReformatter()  # one for all frames is the quickest
        encoder.framerate = Fraction(25)
        for number, frame in enumerate(container.decode(stream)):
            if number not in wanted:
                continue
            scaled = converter.reformat(frame, size, size, "yuv420p", threads=1)
            scaled.pts, scaled.time_base = count, Fraction(1, 25)
            encoder.encode(scaled)
            count += 1
    encoder.encode(None)
    return count
