"""The work of the cluster's processes on a planned shard of the extraction.

`extract_clip` decodes a video, cuts the face out and encodes it: a *clip actor* does that to all
clips of a shard. A *shard actor* adds their identity, and writes the shard. An actor may die at any
time; Ray then gives its shard to another.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import signal
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from cfer.codec import Bitstream, CodecError
from cfer.data.inputs import apex_picture
from cfer.data.native import NativeVideo
from cfer.data.shards import Clip, Failure, write_shard
from cfer.data.storage import Folder, StorageError, local_copy
from cfer.errors import InputError
from cfer.model.face_embedder import embed_clip, open_face_embedder
from cfer.names import printable
from cfer.video.faces import FaceDetector, FaceWindow, face_clip
from cfer.video.pictures import ClipError, open_pictures
from cfer.video.variation import AS_FOUND, Variation
from cfer.video.windows import windows
from pipeline.manifest import Entry
from pipeline.settings import ExtractionSettings

# A worker that dies may have been killed from outside; one of its clips is suspected when it has
# happened so often at their shard, and from then on each is made in a process of its own.
DEATHS_OF_A_SUSPECT = 2
# A process that is killed so often at one clip is taken to need more memory than there is.
KILLS_OF_A_BAD_CLIP = 3
MOST_DEATHS = 20  # of workers at one shard, in one job
NATIVE_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
log = logging.getLogger("extract")


# ---- one clip ------------------------------------------------------------------------------------


def extract_clip(
    entry: Entry, settings: ExtractionSettings, classes: Sequence[str], detector: FaceDetector
) -> tuple[list[Clip], list[Failure]]:
    """A clip's rows (several, if it was cut into windows), without their identity yet, and its
    failures.

    Raises:
        StorageError: the store of its source is out of order.
    """
    clips: list[Clip] = []
    failures: list[Failure] = []
    try:
        if printable(entry.location) != entry.location:
            raise ClipError(entry.source, "manifest", "its name is not UTF-8; rename it")
        with local_copy(entry.location) as path:
            pictures = open_pictures(path, entry.fps)
            frames = pictures.span(entry.start_seconds, entry.end_seconds)
            if entry.apex_frame is not None and entry.apex_frame not in frames:
                raise ClipError(
                    entry.location,
                    "manifest",
                    f"apex_frame {entry.apex_frame} is not among its frames, {frames[0]} to "
                    f"{frames[-1]}; correct the manifest (frames of the video, from 0)",
                )
            fps = pictures.regular_fps()
            window_frames = settings.window_gops * settings.codec.at(fps).span
            spans = windows(pictures.times(), frames, fps, window_frames)
            generator = np.random.default_rng(zlib.crc32(entry.clip_id.encode()))
            more = [Variation.drawn(generator) for _ in range(settings.views - 1)]
            variations = AS_FOUND, *more
            native = _Native(path, settings, detector, variations)
            for window in face_clip(
                pictures, settings.size, detector, settings.codec, spans, variations=variations
            ):
                clip_id = entry.clip_id
                if window.num_windows > 1:
                    clip_id += f"#{window.number:04d}"
                if window.error is None:
                    clips.append(
                        _clip(entry, clip_id, window, native, settings, classes, generator)
                    )
                else:
                    failures.append(_failure(clip_id, entry.source, window.error))
    except StorageError:
        raise
    except Exception as error:  # one bad clip must not end the job
        if not isinstance(error, InputError):
            log.exception("%s: unexpected error", entry.location)
        return [], [_failure(entry.clip_id, entry.source, error)]
    return clips, failures


def _clip(
    entry: Entry,
    clip_id: str,
    window: FaceWindow,
    native: _Native,
    settings: ExtractionSettings,
    classes: Sequence[str],
    generator: np.random.Generator,
) -> Clip:
    codec = window.codec
    bitstream = window.encode()
    residuals = [
        residual
        for gop in range(len(bitstream.gops))
        for residual in bitstream.accumulated_residuals(gop)
    ]
    apex_frame = apex = None
    if entry.apex_frame is not None and entry.apex_frame in window.frames:
        # Where not every frame is encoded, the one nearest to the apex stands for it.
        encoded = np.array(codec.encoded_frames(len(window.frames)))
        apex_frame = int(np.abs(encoded - (entry.apex_frame - window.frames[0])).argmin())
        apex = apex_picture(window.pictures[apex_frame])
    views, num_bytes, refused = native.read(window)
    return Clip(
        clip_id=clip_id,
        dataset=entry.dataset,
        source=entry.source,
        subject=entry.subject,
        label=None if entry.label is None else classes.index(entry.label),
        label_name=entry.label,
        split=entry.split,
        num_frames=len(bitstream.packets),
        fps=float(codec.encoded_fps(window.fps)),
        pts_seconds=window.encoded_times()[:-1],
        size=settings.size,
        gop_size=settings.gop_size,
        bitstream=bitstream.data,
        views=[
            replace(window, codec=codec.coarser(2 ** generator.uniform(-1, 1))).encode(view).data
            for view in range(1, len(window.views))
        ],
        native=views,
        native_bytes=num_bytes,
        native_refused=refused,
        identity=np.zeros((1, 0), np.float32),
        apex_frame=apex_frame,
        apex=apex,
        intra_fraction=float(np.mean([r.intra_fraction for r in residuals])),
        saturated_fraction=float(np.mean([r.saturated_fraction for r in residuals])),
    )


class _Native:
    """A clip's file as it is, where that was asked for."""

    def __init__(
        self,
        path: Path,
        settings: ExtractionSettings,
        detector: FaceDetector,
        variations: Sequence[Variation],
    ) -> None:
        self._path, self._size, self._variations = path, settings.size, variations
        self._video: NativeVideo | None = None
        self._refused: str | None = None
        if not settings.native:
            return
        if path.is_dir():
            self._refused = "a folder of pictures, and no H.264"
            return
        try:
            self._video = NativeVideo(path, detector)
        except CodecError as error:
            self._refused = self._reason(error)

    def read(self, window: FaceWindow) -> tuple[list[bytes], int, str | None]:
        """See `Clip.native`, `native_bytes` and `native_refused`."""
        if self._video is None:
            return [], 0, self._refused
        start, end = window.times[0], window.times[-1]
        try:
            read = self._video.read(start, end, self._size, self._variations)
        except CodecError as error:
            return [], 0, self._reason(error)
        return [view.tobytes() for view in read.planes], read.bytes_read, None

    def _reason(self, error: CodecError) -> str:
        """Without the path, which may be that of a copy."""
        return str(error).removeprefix(f"{self._path}: ")


def _failure(clip_id: str, source: str, error: Exception) -> Failure:
    if isinstance(error, ClipError):
        stage, reason = error.stage, error.reason
    else:
        stage, reason = "extract", str(error)
    return Failure(clip_id, source, stage, reason, type(error).__name__)


# ---- one shard, in two actors --------------------------------------------------------------------


class ClipActor:
    """Turns the sources of one planned shard at a time into clips without their identity."""

    def __init__(
        self, out: str, settings: ExtractionSettings, classes: Sequence[str], job: str
    ) -> None:
        self.out, self.settings, self.classes, self.job = out, settings, classes, job
        self.detector = FaceDetector()
        _use_one_thread()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        attempt = _Attempt(self.out, int(row["index"]), "clips", self.job)
        clips: list[Clip] = []
        failures: list[Failure] = []
        with _ChildProcess(self.settings, self.classes) as child:
            for entry in pickle.loads(row["entries"]):
                if attempt.deaths >= DEATHS_OF_A_SUSPECT:
                    rows, failed = child.extract_clip(entry)
                else:
                    rows, failed = extract_clip(entry, self.settings, self.classes, self.detector)
                clips += rows
                failures += failed
        attempt.end()
        work = {name: row[name] for name in ("index", "digest")}
        return {**work, "clips": pickle.dumps(clips), "failures": pickle.dumps(failures)}


class ShardActor:
    """Embeds an I-frame of each clip, one shard at a time, and writes the shard."""

    def __init__(
        self,
        out: str,
        settings: ExtractionSettings,
        weights: Path | None,
        weights_sha256: str,
        device: str,
        job: str,
    ) -> None:
        self.out, self.job = out, job
        self.embedder = open_face_embedder(settings.identity, weights, device)
        _use_one_thread()
        if self.embedder.weights_sha256 != weights_sha256:
            raise InputError(
                f"--identity {settings.identity}: this node has other weights than the job's; "
                "remove them there, or give --identity-weights on a shared disk"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["index"])
        attempt = _Attempt(self.out, index, "shard", self.job)
        clips: list[Clip] = []
        failures: list[Failure] = pickle.loads(row["failures"])
        for clip in pickle.loads(row["clips"]):
            try:
                bitstream = Bitstream(clip.bitstream, clip.clip_id)
                clips.append(replace(clip, identity=embed_clip(self.embedder, bitstream)))
            except Exception as error:  # one bad clip must not end the job
                log.exception("%s: unexpected error", clip.clip_id)
                failures.append(_failure(clip.clip_id, clip.source, error))
        receipt = write_shard(self.out, index, clips, failures, str(row["digest"]))
        attempt.end()
        return {"index": receipt.index, "rows": receipt.rows, "failures": len(receipt.failures)}


def _use_one_thread() -> None:
    """One thread for each library, since there is an actor for every CPU."""
    cv2.setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class _Attempt:
    """One actor's try at a shard; its file tells the next actor how many have died at it.

    What another job has left says nothing: that whole job was stopped there.
    """

    def __init__(self, out: str, index: int, stage: str, job: str) -> None:
        self._folder, self._name = Folder(out), f"working-{index:05d}-{stage}.json"
        self.deaths = 0
        if self._folder.exists(self._name):
            before = json.loads(self._folder.read(self._name))
            if before["job"] == job:
                self.deaths = before["deaths"] + 1
        if self.deaths >= MOST_DEATHS:
            raise InputError(
                f"shard {index}: {self.deaths} workers died at its {stage}; see the logs of Ray's "
                "nodes (did they run out of memory? then give fewer --actors), and start again"
            )
        self._folder.write(self._name, json.dumps({"job": job, "deaths": self.deaths}).encode())

    def end(self) -> None:
        self._folder.delete(self._name)


class _ChildProcess:
    """Makes clips in a process of its own, so that it is known which one crashes."""

    def __init__(self, settings: ExtractionSettings, classes: Sequence[str]) -> None:
        self._arguments = (settings, classes)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection

    def __enter__(self) -> _ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def extract_clip(self, entry: Entry) -> tuple[list[Clip], list[Failure]]:
        """As the function does, with a failure where the process ends at this clip."""
        for _ in range(KILLS_OF_A_BAD_CLIP):
            if self._process is None:
                self._start()
            assert self._process is not None
            try:
                self._connection.send(entry)
                made = self._connection.recv()
            except (EOFError, OSError):
                self._process.join()
                ended_by = -(self._process.exitcode or 0)
                self._process = None
                if ended_by in NATIVE_CRASHES:
                    break
                continue
            if isinstance(made, Exception):
                raise made
            return cast(tuple[list[Clip], list[Failure]], made)
        name = signal.Signals(ended_by).name if ended_by > 0 else f"status {-ended_by}"
        if ended_by in NATIVE_CRASHES:
            reason = f"the decoder crashed at it ({name}); convert it to MP4"
        else:
            reason = (
                f"its process was ended {KILLS_OF_A_BAD_CLIP} times ({name}), as where memory runs "
                "out; convert it to a smaller MP4, or cut it"
            )
        return [], [Failure(entry.clip_id, entry.source, "native crash", reason, "")]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(
            target=_extract_clips_in_child, args=(theirs, *self._arguments), daemon=True
        )
        process.start()
        theirs.close()
        self._process = process
        try:
            self._connection.recv()  # it is ready
        except EOFError as error:
            raise RuntimeError("a process for single clips did not start") from error


def _extract_clips_in_child(
    connection: Connection, settings: ExtractionSettings, classes: Sequence[str]
) -> None:
    detector = FaceDetector()
    _use_one_thread()
    connection.send("ready")
    made: Any
    while True:
        try:
            entry = connection.recv()
        except EOFError:
            return
        try:
            made = extract_clip(entry, settings, classes, detector)
        except StorageError as error:
            made = error
        connection.send(made)
