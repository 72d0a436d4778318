"""Strangers' videos: which of them are read, and the processes that work on them.

A video is checked, decoded and predicted in a process of its own, which has a limit of memory and a
deadline: at either it is ended, and the next video gets a new one. Nothing that a file says about
itself is believed before it is checked: its container, its picture's size, its frames.
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
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

import av.error
import cv2
import pebble
import psutil
import torch

from cfer.codec.containers import open_input, video_stream
from cfer.data.storage import Folder
from cfer.errors import InputError, is_full
from cfer.predict.limits import Limits
from cfer.predict.recognizer import Recognizer
from cfer.predict.timeline import as_json, event_as_json, events, ways

# FFmpeg's demuxers of files that hold a video. A playlist (HLS, concat, …) would make it open other
# files, or other servers.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,m4v,h264,hevc,ivf,mxf"
MOST_STREAMS = 64
Result = TypeVar("Result")


class TooLarge(InputError):
    """A file of more bytes than the limits allow."""


class NotAllowed(InputError):
    """A link to something that the operator did not allow."""


def append(file: BinaryIO, data: bytes, limits: Limits) -> None:
    """Write the next bytes of a video; TooLarge: it has more of them than the limits allow."""
    if file.tell() + len(data) > limits.megabytes * 1_000_000:
        raise TooLarge(f"more than {limits.megabytes} MB; give a shorter video")
    file.write(data)


# ---- what a video may be -------------------------------------------------------------------------


def check_video(path: Path, limits: Limits) -> None:
    """Decode a file once within the limits; what passes may then be read without them.

    Raises:
        InputError: not a video, or one that is too large or too long.
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
            first: float | None = None  # a broadcast's clock does not begin at 0
            for frames, frame in enumerate(container.decode(stream), start=1):
                _check_picture(frame.width, frame.height, aspect, limits)
                shown = frame.time or 0
                first = shown if first is None else first
                if frames > limits.frames or shown - first > limits.seconds:
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
        link: a URI; it is decoded once, and the result is what is checked and opened.
        allowed: URIs that the operator lets links point below.

    Raises:
        NotAllowed: it is not below one of them, has options, or leads out by its spelling or by a
            symbolic link.
    """
    refused = NotAllowed(
        "this server reads no such link; the operator names what it reads with --allow"
    )
    path = unquote(link)
    # Options, and whatever a store or a second decoding could take to mean something else.
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
    """What the links below an allowed place start with."""
    parts = urlsplit(place)
    # The operator's own key, if there is one, is not part of a link.
    host = parts.netloc.rpartition("@")[2] if parts.scheme == "s3" else parts.netloc
    return f"{parts.scheme}://{host}{unquote(parts.path).rstrip('/')}/"


def check_allowed(allowed: Sequence[str]) -> None:
    """Before any link is read: can links point below these locations?

    Raises:
        InputError: one is not a URI, or is of no store that can be used.
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
        TooLarge: the file has too many bytes.
    """
    try:
        folder, name = open_link(link, allowed)
        with open(path, "wb") as file:
            for data in folder.chunks(name):
                append(file, data, limits)
    except (NotAllowed, TooLarge):
        raise
    except (OSError, InputError) as error:
        if is_full(error):
            raise
        # Strangers do not learn what the operator's store says.
        raise InputError("nothing readable at this link") from error


# ---- what is done with it ------------------------------------------------------------------------


def predict(
    recognizer: Recognizer, path: Path, source: str, faces: str, window_seconds: float | None
) -> dict[str, list[Any]]:
    """Each window of a video and each face in it, the events, and how the video was read, as an
    answer reports them."""
    found = [
        replace(
            window,
            source=source,
            # Strangers do not learn where the server keeps it.
            refused=window.refused and window.refused.replace(str(path), source),
        )
        for window in recognizer.predict(path, faces=faces, window_seconds=window_seconds)
    ]
    return {
        "windows": [as_json(window) for window in found],
        "events": [event_as_json(event) for event in events(found)],
        "ways": ways(found),
    }


def look(recognizer: Recognizer, path: Path, gop: int, model_name: str) -> bytes:
    """What the recognizer is given of one GOP, as a PNG."""
    from cfer.predict.look import look as look_of

    file = io.BytesIO()
    found = look_of(path, None, gop, model_name, encoded=True, recognizer=recognizer)
    found.figure.savefig(file, format="png", dpi=90)
    return file.getvalue()


Work = Callable[[Recognizer, Path], Result]


class Workers:
    """Processes that work on strangers' videos, one at a time each: a context, at whose start they
    are ready, and at whose end they are ended.

    Args:
        recognizer: what they predict with.
        limits: of each video.
        allowed: URIs that links may point below.
        count: how many processes there are, and so how many videos are worked on at a time.
        threads: of each process.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        limits: Limits,
        allowed: Sequence[str] = (),
        count: int = 1,
        threads: int = 1,
    ) -> None:
        self.recognizer, self.limits, self._count = recognizer, limits, count
        self._arguments = (recognizer, limits, tuple(allowed), threads)
        self._pool_lock = threading.Lock()
        # A new process is a copy of one that has imported everything and has done nothing yet.
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
        """Have work done with a video.

        Args:
            work: `predict` or `look`, with their arguments other than the model and the path.
            path: where the video is, or where it is put.
            link: where it is taken from; None: it is there already.

        Returns:
            A future of the result, or of an error:

            InputError: the video can't be used.
            TimeoutError: the work took too long, and was ended.
            pebble.ProcessExpired: it took too much memory or ended its process: see `why_ended`.
            BrokenProcessPool: an idle process has died; ask again.
        """
        with self._pool_lock:
            # Pebble gives a pool up if an idle process dies.
            if not self._pool.active:
                self.__exit__()
                self._pool = self._new_pool()
            future: Future[Result] = self._pool.schedule(
                _do, args=(work, path, link), timeout=self.limits.work_seconds
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
    """If the server is killed, nobody else ends the work that it was asked for."""
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _is_ready() -> None:
    """The worker that has done this is ready."""


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
            # Whatever ran out of memory may be left in any state.
            os._exit(_OUT_OF_MEMORY)
        if not isinstance(error, InputError):
            raise
        # Strangers do not learn the server's own paths.
        raise InputError(str(error).replace(str(path), "the video")) from None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # PyTorch, its oneDNN and OpenCV have no class of their own for it.
    message = str(error) if isinstance(error, RuntimeError | cv2.error) else ""
    is_said = "alloc" in message or "could not create a primitive" in message
    return is_said or (error.__cause__ is not None and _is_out_of_memory(error.__cause__))
