"""Strangers' videos: what one may cost, and the processes that work on them.

A video is looked at, decoded and predicted in a process of its own, which has a limit of memory and
a deadline: at either it is ended, and the next video gets a new one. Within it nothing that a file
says of itself is believed before it is looked at: its container, its picture's size, its frames.
"""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import av.error
import cv2
import pebble
import psutil
import torch

from cfer.codec.containers import open_input, video_stream
from cfer.data.storage import Folder
from cfer.errors import InputError, is_full
from cfer.predict.recognizer import Recognizer
from cfer.predict.timeline import as_json

# Of FFmpeg's demuxers, those of files that hold a video. A playlist (HLS, concat, …) would make it
# open other files, or other servers.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,m4v,h264,hevc,ivf,mxf"
MOST_STREAMS = 64
MOST_FRAMES_A_SECOND = 60
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What one video may cost.

    Attributes:
        megabytes: of the file.
        seconds: of the video.
        pixels: of a picture, as it is coded and as it is shown.
        frames: of the video.
        upload_seconds: for the file to arrive.
        work_seconds: from the file's arrival to the answer, waiting apart.
        memory_megabytes: for the work, beside what the model takes.
    """

    megabytes: int = 64
    seconds: int = 60
    pixels: int = 4096 * 2304
    frames: int = 3600
    upload_seconds: int = 120
    work_seconds: int = 120
    memory_megabytes: int = 2000

    @classmethod
    def of(cls, megabytes: int, seconds: int, work_seconds: int, memory_megabytes: int) -> Limits:
        """Those that an operator sets.

        Raises:
            InputError: one that is not at least 1.
        """
        for option, value in (
            ("max-megabytes", megabytes),
            ("max-seconds", seconds),
            ("time-limit", work_seconds),
            ("memory-limit", memory_megabytes),
        ):
            if value < 1:
                raise InputError(f"--{option} {value}: give 1 or more")
        return cls(
            megabytes=megabytes,
            seconds=seconds,
            frames=seconds * MOST_FRAMES_A_SECOND,
            work_seconds=work_seconds,
            memory_megabytes=memory_megabytes,
        )


class TooLarge(InputError):
    """A file of more bytes than are taken."""


class NotAllowed(InputError):
    """A link to what the operator did not allow."""


def too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"more than {limits.megabytes} MB; give a shorter video")


# ---- what a video may be -------------------------------------------------------------------------


def check_video(path: Path, limits: Limits) -> None:
    """Decode it once within the limits; what goes through may be read without them.

    Raises:
        InputError: not a video, too large or too long a one.
    """
    options = {
        "max_pixels": str(limits.pixels),
        "max_streams": str(MOST_STREAMS),
        "format_whitelist": FORMATS,
    }
    try:
        with open(path, "rb") as file, open_input(file, **options) as container:
            stream = video_stream(container)
            if stream is None or stream.codec_context is None:
                raise InputError("there is no video stream in it; give a video")
            stream.codec_context.options = {"max_pixels": str(limits.pixels)}
            stream.codec_context.thread_count = 1
            aspect = stream.sample_aspect_ratio or Fraction(1)
            _check_picture(stream.width, stream.height, aspect, limits)
            for frames, frame in enumerate(container.decode(stream), start=1):
                _check_picture(frame.width, frame.height, aspect, limits)
                if frames > limits.frames or (frame.time or 0) > limits.seconds:
                    raise InputError(
                        f"longer than {limits.seconds} s or {limits.frames} frames; cut it"
                    )
    except av.error.FFmpegError as error:
        raise InputError(f"not a readable video ({error.strerror}); give a video file") from error


def _check_picture(width: int, height: int, aspect: Fraction, limits: Limits) -> None:
    shown = max(round(width * aspect), width)
    if shown * height > limits.pixels:
        raise InputError(f"{shown} × {height}: more than {limits.pixels:,} pixels; scale it down")


def open_link(link: str, allowed: Sequence[str]) -> tuple[Folder, str]:
    """The place that a link names: a folder, opened by the operator's words alone, and a name in
    it.

    Args:
        link: a URI; what it says is decoded once, and that is what is checked and opened.
        allowed: URIs that the operator lets links point below.

    Raises:
        NotAllowed: it is not below one of them; or has options, or steps out by a spelling or by a
            symbolic link.
    """
    refused = NotAllowed(
        "this server reads no such link; the operator names what it reads with --allow"
    )
    path = unquote(link)
    # Options, and whatever a store or a second decoding could take for something else.
    is_strange = any(c in link for c in "?#") or unquote(path) != path or "\\" in path
    if is_strange or not path.isprintable():
        raise refused
    for place in allowed:
        name = path.removeprefix(_root_of(place))
        if name == path or any(part in ("", ".", "..") for part in name.split("/")):
            continue
        folder = Folder(place)
        if not folder.is_local:
            return folder, name
        try:
            inside = Path(folder.path).resolve()
            file = inside.joinpath(name).resolve()
        except (OSError, RuntimeError) as error:  # links that go round in a circle
            raise refused from error
        if file.is_relative_to(inside):
            return Folder(file.parent), file.name
    raise refused


def _root_of(place: str) -> str:
    """What links below it begin with."""
    parts = urlsplit(place)
    # The operator's own key, if it is there, is no part of a link.
    host = parts.netloc.rpartition("@")[2] if parts.scheme == "s3" else parts.netloc
    return f"{parts.scheme}://{host}{unquote(parts.path).rstrip('/')}/"


def check_allowed(allowed: Sequence[str]) -> None:
    """Before any link is read: are these locations that links can point below?

    Raises:
        InputError: one is no URI, or of no store that can be used.
    """
    for place in allowed:
        scheme = place.partition("://")[0]
        if "://" not in place or scheme != scheme.lower() or "#" in place:
            raise InputError(f"--allow {place}: give a URI, such as s3://bucket/videos, file:///…")
        Folder(place)


def save_link(link: str, allowed: Sequence[str], path: Path, limits: Limits) -> None:
    """Copy what a link names to this file.

    Raises:
        InputError: nothing readable is there.
        NotAllowed: see `open_link`.
        TooLarge: more than a file may have.
    """
    size = 0
    try:
        folder, name = open_link(link, allowed)
        with open(path, "wb") as file:
            for data in folder.chunks(name):
                size += len(data)
                if size > limits.megabytes * 1_000_000:
                    raise too_large(limits)
                file.write(data)
    except (NotAllowed, TooLarge):
        raise
    except (OSError, InputError) as error:
        if is_full(error):
            raise
        # What the operator's store says is not for strangers.
        raise InputError("nothing readable at this link") from error


# ---- what is done with it ------------------------------------------------------------------------


def predict(
    recognizer: Recognizer, path: Path, source: str, faces: str, window_gops: int | None
) -> list[dict[str, Any]]:
    """Each window of a video, and each face in it, as an answer tells it."""
    found = recognizer.predict_windows(path, faces=faces, window_gops=window_gops)
    return [{**as_json(window), "source": source} for window in found]


def look(recognizer: Recognizer, path: Path, gop: int, model_name: str) -> bytes:
    """What the method sees of one GOP, as a PNG."""
    from cfer.predict.look import look_with

    file = io.BytesIO()
    look_with(path, None, gop, model_name, recognizer).savefig(file, format="png", dpi=90)
    return file.getvalue()


Work = Callable[[Recognizer, Path], Result]


class Workers:
    """Processes that work on strangers' videos, one at a time each. A context: they are ready
    within, and ended after it.

    Args:
        recognizer: what they predict with.
        limits: of each video.
        allowed: URIs that links may point below.
        count: how many there are.
        threads: of each.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        limits: Limits,
        allowed: Sequence[str] = (),
        count: int = 1,
        threads: int = 1,
    ) -> None:
        self._limits, self._count = limits, count
        self._arguments = (recognizer, limits, tuple(allowed), threads)
        self._pool_lock = threading.Lock()
        # A new process is a copy of one that has imported everything, and has done nothing yet.
        multiprocessing.set_forkserver_preload([__name__, "cfer.predict.look", "facenet_pytorch"])
        self._pool = self._new_pool()

    def _new_pool(self) -> pebble.ProcessPool:
        return pebble.ProcessPool(
            max_workers=self._count,
            initializer=_start,
            initargs=self._arguments,
            context=multiprocessing.get_context("forkserver"),
        )

    def __enter__(self) -> Workers:
        for ready in [self._pool.schedule(_is_ready) for _ in range(self._count)]:
            ready.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def submit(self, work: Work[Result], path: Path, link: str | None = None) -> Future[Result]:
        """Have it done with a video.

        Args:
            work: `predict` or `look`, with what they need beside the model and the path.
            path: where the video is, or where it is put.
            link: where it is taken from; None: it is there.

        Returns:
            Its result, or:

            InputError: the video can't be used.
            TimeoutError: it takes too long, and was ended.
            pebble.ProcessExpired: it takes too much memory, or ended its process: `why_ended`.
            BrokenProcessPool: a process that had no work has died; ask again.
        """
        with self._pool_lock:
            # Pebble gives a pool up where a process dies that has no work.
            if not self._pool.active:
                self.__exit__()
                self._pool = self._new_pool()
            future: Future[Result] = self._pool.schedule(
                _do, args=(work, path, link), timeout=self._limits.work_seconds
            )
            return future


def why_ended(error: pebble.ProcessExpired, limits: Limits) -> str:
    """What to say of a video whose process ended."""
    if error.exitcode == _OUT_OF_MEMORY:
        return (
            f"it takes more than {limits.memory_megabytes} MB of memory; give a smaller or a "
            "shorter video"
        )
    return "it ended the process that read it; give it in another format"


# ---- in a worker process -------------------------------------------------------------------------

_OUT_OF_MEMORY = 77  # an exit status
_recognizer: Recognizer
_limits: Limits
_allowed: Sequence[str]


def _start(recognizer: Recognizer, limits: Limits, allowed: Sequence[str], threads: int) -> None:
    global _recognizer, _limits, _allowed
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    _recognizer, _limits, _allowed = recognizer, limits, allowed
    _recognizer.warm_up()
    most = psutil.Process().memory_info().vms + limits.memory_megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _end_with_the_server() -> None:
    """Where it is killed, nobody else ends the work that was asked for."""
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _is_ready() -> None:
    """Done by a worker, which is ready then."""


def _do(work: Work[Result], path: Path, link: str | None) -> Result:
    try:
        if link is not None:
            save_link(link, _allowed, path, _limits)
        check_video(path, _limits)
        return work(_recognizer, path)
    except TooLarge:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            # Whatever failed at it may be left in any state.
            os._exit(_OUT_OF_MEMORY)
        if not isinstance(error, InputError):
            raise
        # The server's own paths are not told.
        raise InputError(str(error).replace(str(path), "the video")) from None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # PyTorch, its oneDNN and OpenCV have no class of their own for it.
    said = str(error) if isinstance(error, RuntimeError | cv2.error) else ""
    is_told = "alloc" in said or "could not create a primitive" in said
    return is_told or (error.__cause__ is not None and _is_out_of_memory(error.__cause__))
