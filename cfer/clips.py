"""A clip's pictures, from a video file or from a folder of numbered pictures, one after another.

    pictures = open_pictures("clip.mp4")
    for picture in pictures:            # decodes; a second loop decodes again
        ...                             # RGB, uint8 (H, W, 3)

`StreamPictures` are those of a pipe, or of a file that is still being written: they come once. A
video is never held in memory whole. A clip is read completely or it is an error: a video that is
damaged half-way is not shortened, since what is missing may be the expression.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.error
import cv2
import numpy as np
from PIL import Image

from cfer.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".mts",
)  # fmt: skip
# A folder of pictures does not say how fast they were taken.
FOLDER_FPS = Fraction(25)
HELD_BYTES = 512 << 20  # of decoded frames: about 380 of 1280 × 720


class ClipError(InputError):
    """A clip that cannot be used.

    Attributes:
        source: the video or the folder.
        stage: where it failed: manifest, open, decode, face, encode, identity or native crash.
        reason: what is wrong, and what to do.
    """

    def __init__(self, source: str | Path, stage: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source, self.stage, self.reason = str(source), stage, reason

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str, str]]:
        return type(self), (self.source, self.stage, self.reason)


class Pictures:
    """The pictures of a clip in order of display, decoded anew by every loop over them.

    Attributes:
        source: the video or the folder.
        fps: frames per second; of a video with a varying rate, the average.
    """

    def __init__(self, source: Path, fps: Fraction) -> None:
        self.source = source
        self.fps = fps

    def __iter__(self) -> Iterator[np.ndarray]:
        """RGB pictures, uint8 (H, W, 3), all of one size.

        Raises:
            ClipError: not readable to its end, no picture, or pictures of different sizes.
        """
        raise NotImplementedError

    def select(self, numbers: Collection[int]) -> Iterator[np.ndarray]:
        """The pictures of these frame numbers, ascending; those in between are not converted.

        Raises:
            ClipError: as the loop over the pictures does, up to the last one wanted.
        """
        raise NotImplementedError

    def count(self) -> int:
        """How many pictures there are; each is decoded for it, so that damage is found here.

        Raises:
            ClipError: as the loop over the pictures does.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.source)!r}, fps={float(self.fps):g})"


class VideoPictures(Pictures):
    """The first video stream of a file, upright (rotation metadata) and with square pixels."""

    def __init__(self, source: Path, fps: Fraction | None) -> None:
        with _open_video(source) as container:
            stream = container.streams.video[0]
            rate = fps or stream.average_rate or stream.guessed_rate
            self._pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        # A video is gone through several times; a short one is decoded but once.
        self._decoded: list[av.VideoFrame] = []
        if not rate:
            raise ClipError(
                source, "open", "it does not say its frame rate; give it in the manifest's fps"
            )
        super().__init__(source, Fraction(rate))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (_upright(frame, self._pixel_aspect) for frame in self._frames())

    def select(self, numbers: Collection[int]) -> Iterator[np.ndarray]:
        last = max(numbers)
        for number, frame in enumerate(self._frames()):
            if number in numbers:
                yield _upright(frame, self._pixel_aspect)
            if number >= last:
                return

    def count(self) -> int:
        return sum(1 for _ in self._frames())

    def _frames(self) -> Iterator[av.VideoFrame]:
        if self._decoded:
            yield from self._decoded
            return
        held: list[av.VideoFrame] = []
        num_bytes = 0
        shape: tuple[int, int] | None = None
        for number, frame in enumerate(self._decode()):
            shape = shape or (frame.height, frame.width)
            _check_shape(self.source, f"frame {number}", (frame.height, frame.width), shape)
            num_bytes += sum(plane.buffer_size for plane in frame.planes)
            if num_bytes <= HELD_BYTES:
                held.append(frame)
            else:
                held.clear()
            yield frame
        self._decoded = held

    def _decode(self) -> Iterator[av.VideoFrame]:
        decoded = discarded = 0
        with _open_video(self.source) as container:
            stream = container.streams.video[0]
            # FFmpeg would take every CPU, in every worker.
            stream.codec_context.thread_count = 1
            try:
                for packet in container.demux(stream):
                    discarded += packet.is_discard
                    for frame in packet.decode():
                        assert isinstance(frame, av.VideoFrame)
                        if frame.is_corrupt:
                            raise self._damaged(decoded, "the decoder had to guess parts of it")
                        yield frame
                        decoded += 1
            except av.error.FFmpegError as error:
                raise self._damaged(decoded, str(error.strerror)) from error
            # A file cut off between two frames ends without any error.
            if decoded + discarded < stream.frames:
                raise self._damaged(decoded, f"the file announces {stream.frames} frames")
        if decoded == 0:
            raise ClipError(
                self.source, "decode", "there is no frame in it; record or copy it again"
            )

    def _damaged(self, frame: int, why: str) -> ClipError:
        return ClipError(
            self.source,
            "decode",
            f"damaged or cut off at frame {frame} ({why}); copy it again, or cut the damaged part "
            "out and give the rest as a clip of its own",
        )


class StreamPictures(Pictures):
    """The video of a pipe, or of a file that grows: each picture once, as soon as it is there.

    Args:
        file: something to read bytes from; it need not be able to seek.
        name: what messages call it.

    Raises:
        ClipError: what comes first is no video in a form that can be read while it is written
            (MPEG-TS, Matroska, fragmented MP4, AVI).
    """

    def __init__(self, file: SupportsRead, name: str) -> None:
        try:
            self._container = av.open(_ReadOnly(file), "r")
        except av.error.FFmpegError as error:
            raise ClipError(
                name,
                "open",
                f"not a video that can be read while it is written ({error.strerror}); write it as "
                "MPEG-TS (-f mpegts), Matroska or fragmented MP4",
            ) from error
        if not self._container.streams.video:
            raise ClipError(name, "open", "there is no video stream in it; give a video")
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate = stream.average_rate or stream.guessed_rate or FOLDER_FPS
        self._pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        super().__init__(Path(name), Fraction(rate))

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from _of_one_size(self.source, self._frames(), self._pixel_aspect)

    def _frames(self) -> Iterator[av.VideoFrame]:
        with self._container as container:
            try:
                for frame in container.decode(video=0):
                    # Who joins a broadcast sees damage up to the first I-frame.
                    if not frame.is_corrupt:
                        yield frame
            except av.error.FFmpegError as error:
                raise ClipError(
                    self.source, "decode", f"the stream broke off ({error.strerror})"
                ) from error


class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _ReadOnly:
    """PyAV would try to seek in whatever has a method for it.

    It asks for 32 kB at a time, which are seconds of a small picture: what is there is given.
    """

    def __init__(self, file: SupportsRead) -> None:
        self.read = getattr(file, "read1", file.read)


class GrowingFile:
    """A file that another program is still writing: its end is where nothing more has come for
    `patience_seconds`."""

    def __init__(self, path: Path, patience_seconds: float) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  # for as long as this object lives
        self._patience_seconds = patience_seconds
        self._has_ended = False  # FFmpeg asks again, and would wait again

    def read(self, size: int, /) -> bytes:
        deadline = time.monotonic() + self._patience_seconds
        while not (data := self._file.read(size)):
            self._has_ended |= time.monotonic() > deadline
            if self._has_ended:
                return b""
            time.sleep(0.05)
        return data


class FolderPictures(Pictures):
    """A folder of numbered pictures (.png, .jpg, .jpeg), in the order of their numbers.

    Gaps in the numbering are no error. Pictures of 16 bits are cut to their upper 8.
    """

    def __init__(self, source: Path, fps: Fraction | None) -> None:
        super().__init__(source, fps or FOLDER_FPS)
        self.files = numbered_pictures(source)
        if not self.files:
            raise ClipError(
                source,
                "open",
                f"no numbered picture ({', '.join(PICTURE_SUFFIXES)}) in this folder; name them "
                "by their frame numbers, such as 0001.png",
            )
        keys: dict[tuple[str | int, ...], Path] = {}
        for file in self.files:
            other = keys.setdefault(_natural_key(file.stem), file)
            if other != file:
                raise ClipError(
                    source,
                    "open",
                    f"{other.name} and {file.name} have the same number; remove one of them",
                )

    def __iter__(self) -> Iterator[np.ndarray]:
        shape: tuple[int, ...] | None = None
        for file in self.files:
            picture = self._read(file)
            if shape is None:
                shape = picture.shape
            _check_shape(self.source, file.name, picture.shape, shape)
            yield picture

    def select(self, numbers: Collection[int]) -> Iterator[np.ndarray]:
        return (self._read(self.files[number]) for number in sorted(numbers))

    def count(self) -> int:
        return sum(1 for _ in self)

    def _read(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                if image.mode.startswith("I;16"):
                    gray = (np.asarray(image) >> 8).astype(np.uint8)
                    return np.repeat(gray[:, :, None], 3, axis=2)
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            # SyntaxError is what Pillow raises for a broken PNG.
            raise ClipError(
                self.source, "decode", f"{file.name} is not a readable picture; copy it again"
            ) from error


def open_pictures(source: str | Path, fps: Fraction | None = None) -> Pictures:
    """A video file or a folder of numbered pictures.

    Args:
        source: its path.
        fps: frames per second, where the clip does not say it or says it wrongly; a folder has
            25 without it.

    Raises:
        ClipError: there is no such file, or it is no video, or no picture is in the folder.
    """
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ClipError(
            path, "open", f"cannot be read ({error.strerror}); correct the path"
        ) from error
    if stat.S_ISDIR(mode):
        return FolderPictures(path, fps)
    # Opening a named pipe would wait forever.
    if not stat.S_ISREG(mode):
        raise ClipError(path, "open", "neither a file nor a folder; give a video or pictures")
    return VideoPictures(path, fps)


def numbered_pictures(folder: str | Path) -> list[Path]:
    """The pictures of a folder whose names end in a number, in the order of their numbers."""
    return sorted(
        (
            Path(entry.path)
            for entry in os.scandir(folder)
            if is_numbered_picture(entry.name) and entry.is_file()
        ),
        key=lambda file: picture_order(file.name),
    )


def picture_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """What to sort names of numbered pictures by."""
    return _natural_key(os.path.splitext(name)[0]), name


def is_numbered_picture(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".") and stem[-1:].isdecimal()


def is_video_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def is_video(path: Path) -> bool:
    return is_video_name(path.name) and path.is_file()


def is_picture_folder(path: Path) -> bool:
    return path.is_dir() and any(is_numbered_picture(entry.name) for entry in os.scandir(path))


def clips_below(folder: Path) -> Iterator[Path]:
    """Videos and folders of numbered pictures, in this folder and all below it, in order."""
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(where)
        if any(map(is_numbered_picture, files)):
            yield here
        yield from (here / name for name in sorted(files) if is_video(here / name))


def windows(num_frames: int, window_frames: int | None) -> list[range]:
    """Cut a clip into consecutive windows of `window_frames` frames; None leaves it whole.

    The last window is shorter where the frames do not divide; a single frame left over goes to the
    window before it, since one frame alone has no residual. So no frame is lost.
    """
    if window_frames is None or num_frames <= window_frames:
        return [range(num_frames)]
    starts = list(range(0, num_frames, window_frames))
    if num_frames - starts[-1] == 1:
        starts.pop()
    ends = [*starts[1:], num_frames]
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def _of_one_size(
    source: Path, frames: Iterator[av.VideoFrame], pixel_aspect: Fraction
) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        picture = _upright(frame, pixel_aspect)
        if shape is None:
            shape = picture.shape
        _check_shape(source, f"frame {number}", picture.shape, shape)
        yield picture


def _upright(frame: av.VideoFrame, pixel_aspect: Fraction) -> np.ndarray:
    # By default a conversion starts as many threads as there are cores, for each picture.
    picture: np.ndarray = frame.to_ndarray(format="rgb24", threads=1)
    if pixel_aspect != 1:
        height, width = picture.shape[:2]
        size = (max(round(width * pixel_aspect), 1), height)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    # The metadata counts quarter turns counter-clockwise, as rot90 does.
    if frame.rotation % 360 in (90, 180, 270):
        picture = np.ascontiguousarray(np.rot90(picture, frame.rotation % 360 // 90))
    return picture


def _open_video(source: Path) -> av.container.InputContainer:
    if source.stat().st_size == 0:
        raise ClipError(source, "open", "the file is empty; copy it again")
    try:
        container = av.open(str(source))
    except av.error.FFmpegError as error:
        raise ClipError(
            source,
            "open",
            f"not a video, or cut off before its index ({error.strerror}); copy it again, or "
            "convert it to MP4",
        ) from error
    if not container.streams.video:
        container.close()
        raise ClipError(source, "open", "there is no video stream in it; give a video")
    return container


def _check_shape(
    source: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if shape != expected:
        raise ClipError(
            source,
            "decode",
            f"{name} is {shape[1]}×{shape[0]} pixels, and the first one {expected[1]}×"
            f"{expected[0]}; all pictures of a clip need one size",
        )


def _natural_key(stem: str) -> tuple[str | int, ...]:
    # Text and numbers alternate, so that keys of the same prefix compare number with number.
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", stem))
