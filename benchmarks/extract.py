"""Videos → clips, stage by stage, beside decoding and encoding them with nothing else.

The job's own code does the same to a clip, in one process and on one core; Ray's part is left out.
The *floor* decodes each video once, scales the chosen frames in FFmpeg, and encodes them.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

from benchmarks.measure import Measurement, Ratio
from cfer.codec import Bitstream
from cfer.codec.containers import open_input, video_stream
from cfer.data.shards import Clip, shard_name, write_shard
from cfer.errors import InputError
from cfer.model.face_embedder import embed_clip, open_face_embedder
from cfer.video.faces import Face, FaceDetector
from pipeline.actors import ExtractionSettings, extract_clip
from pipeline.manifest import Entry

READ, FACES = "decode, crop and encode", "find the face"
IDENTITY, WRITE = "embed an I-frame", "write the shard"
STAGES = (READ, FACES, IDENTITY, WRITE)
FLOOR, WHOLE = "decode and encode alone", "everything"
REST, NETWORKS_ALONE = "everything but the networks", "the networks alone"
# The job's defaults; a video is one window and seen once, as it is for the floor.
SETTINGS = ExtractionSettings(identity="dlib", views=1, window_gops=1_000_000)


@contextlib.contextmanager
def clocked(spent: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds of the block to `spent[stage]`."""
    started = time.perf_counter()
    yield
    spent[stage] += time.perf_counter() - started


class _ClockedDetector(FaceDetector):
    spent: dict[str, float]

    def faces(self, pictures: Sequence[np.ndarray], every: bool = False) -> list[list[Face]]:
        with clocked(self.spent, FACES):
            return super().faces(pictures, every)

    def again(self, picture: np.ndarray, boxes: np.ndarray) -> list[Face]:
        with clocked(self.spent, FACES):
            return super().again(picture, boxes)


class Stages:
    """The extraction of videos with a face in each, on one core, with a clock.

    Args:
        device: `cpu` or `cuda`, on which FaceNet embeds; dlib stays on the CPU.
    """

    def __init__(self, settings: ExtractionSettings, device: str = "cpu") -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        self._settings = settings
        self._detector = _ClockedDetector()
        self._embedder = open_face_embedder(settings.identity, None, device)

    def extract(
        self, videos: Sequence[Path], folder: Path
    ) -> tuple[list[Clip], defaultdict[str, float]]:
        """Write the videos' clips as one shard into the folder → the clips, seconds by stage.

        Raises:
            InputError: a video that cannot be read, or has no face.
        """
        spent: defaultdict[str, float] = defaultdict(float)
        self._detector.spent = spent
        clips: list[Clip] = []
        for path in videos:
            entry = Entry(str(path), path.stem, path.name)
            with clocked(spent, READ):
                found, failures = extract_clip(entry, self._settings, (), self._detector)
            if failures:
                raise InputError(f"{path}: {failures[0].reason}")
            clips += found
        spent[READ] -= spent[FACES]  # which is inside it
        with clocked(spent, IDENTITY):
            streams = [Bitstream(clip.bitstream, clip.clip_id) for clip in clips]
            identities = [embed_clip(self._embedder, stream) for stream in streams]
        clips = [replace(c, identity=i) for c, i in zip(clips, identities, strict=True)]
        with clocked(spent, WRITE):
            write_shard(folder, 0, clips, [], "")
        return clips, spent


def measure(videos: Sequence[Path], rounds: int) -> Measurement:
    """Time the extraction of real videos with a face in each, with the default settings and dlib.

    Raises:
        InputError: no video, or one without a face.
    """
    if not videos:
        raise InputError("extract: give videos with faces; there is nothing to find in a texture")
    stages = Stages(SETTINGS)
    spent: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in tqdm(range(rounds + 1), "extract", unit="round", disable=None, leave=False):
            clips, seconds = stages.extract(videos, Path(folder))
            with clocked(seconds, FLOOR):
                count = sum(_decode_and_encode(path) for path in videos)
            _verify(Path(folder, shard_name(0)), clips, count)
            seconds[WHOLE] = sum(seconds[stage] for stage in STAGES)
            seconds[NETWORKS_ALONE] = seconds[FACES] + seconds[IDENTITY]
            seconds[REST] = seconds[WHOLE] - seconds[NETWORKS_ALONE]
            spent.append(seconds)
    del spent[0]  # of the round that warms up
    timed = (FLOOR, REST, NETWORKS_ALONE, WHOLE)
    measurement = Measurement.of(
        "extract",
        f"{count} frames of {len(videos)} videos: the shard has as many as the floor encodes",
        {name: [count / seconds[name] for seconds in spent] for name in timed},
        dict.fromkeys(timed, "frames"),
        # At most 1.3 times the floor; and at most half of everything.
        [Ratio(REST, FLOOR, 1 / 1.3), Ratio(NETWORKS_ALONE, WHOLE, 2.0), Ratio(WHOLE, FLOOR)],
    )
    for stage in STAGES:
        share = statistics.median(seconds[stage] / seconds[WHOLE] for seconds in spent)
        measurement.figures[f"share of: {stage}"] = f"{share:.1%}"
    return measurement


def _verify(shard: Path, clips: Sequence[Clip], count: int) -> None:
    """The shard holds these clips, and as many frames as the floor encodes."""
    stored = pq.read_table(shard, columns=["bitstream"])["bitstream"].to_pylist()
    if stored != [clip.bitstream for clip in clips]:
        raise AssertionError("the shard's bitstreams are not those that were encoded")
    frames = sum(len(Bitstream(data, "a clip").packets) for data in stored)
    if frames != count:
        raise AssertionError(f"the shard has {frames} frames, the floor encodes {count}")


def _decode_and_encode(path: Path) -> int:
    """The least work for any such pipeline → how many frames were encoded."""
    size, settings = SETTINGS.size, SETTINGS.codec
    with open(path, "rb") as file, open_input(file) as container:
        film = video_stream(container)
        assert film is not None
        fps = Fraction(film.average_rate or film.guessed_rate or 25)
        num_frames = sum(packet.size > 0 for packet in container.demux(film))
    wanted = set(settings.at(fps).encoded_frames(num_frames))
    encoder = av.CodecContext.create("mpeg4", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width = encoder.height = size
    encoder.pix_fmt, encoder.gop_size, encoder.thread_count = "yuv420p", settings.gop_size, 1
    encoder.framerate = Fraction(25)
    quantizer = str(settings.quantizer)
    encoder.options = {"qmin": quantizer, "qmax": quantizer, "bf": "0"}
    converter = VideoReformatter()  # one for all frames is the quickest
    count = 0
    with open(path, "rb") as file, open_input(file) as container:
        stream = video_stream(container)
        assert stream is not None
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                scaled = converter.reformat(frame, size, size, "yuv420p", threads=1)
                scaled.pts, scaled.time_base = count, Fraction(1, 25)
                encoder.encode(scaled)
                count += 1
    encoder.encode(None)
    return count
