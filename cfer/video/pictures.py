"""A clip's pictures, from a video file or from a folder of numbered pictures, one after another.

    pictures = open_pictures("clip.mp4")
    for picture in pictures:            # decodes; a second loop decodes again
        ...                             # RGB, uint8 (H, W, 3)
    pictures.times()                    # when each is shown, and when the last one ends

Pictures are upright, as FFmpeg's own programs turn and mirror them, with square pixels. Times are
seconds since the first picture, as the file gives them: a phone does not take pictures at one rate.
`StreamPictures` are those of a pipe, or of a file that is still being written: they come once. A
video is never held in memory whole. A clip is read completely or it is an error: a video that is
damaged half-way is not shortened, since what is missing may be the expression.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import av
import av.error
import cv2
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from PIL import ExifTags, Image

from cfer.codec.containers import (
    MOST_PIXELS,
    CutOff,
    open_input,
    packets,
    video_stream,
    whole_packets,
)
from cfer.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
# By its name alone a file in a store is a video or none; these are FFmpeg's own lists, less sound.
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".mts",
    ".3gp", ".3g2", ".264", ".265", ".amv", ".asf", ".divx", ".dv", ".f4v", ".gif", ".gxf",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".mj2", ".mjpeg", ".mjpg",
    ".mk3d", ".mod", ".mpe", ".mpv", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod",
    ".trp", ".ts", ".vob", ".wtv", ".xvid", ".y4m",
)  # fmt: skip
READ_FORMATS = (
    f"videos ({', '.join(VIDEO_SUFFIXES)}) and folders of numbered pictures "
    f"({', '.join(PICTURE_SUFFIXES)})"
)
NUM_EXAMPLES = 5  # of files, in a message
# A folder of pictures does not say how fast they were taken.
FOLDER_FPS = Fraction(25)
HELD_BYTES = 512 << 20  # of decoded frames: about 380 of 1280 × 720
# A pixel's width by its height is at most 4 in video; a file can say anything.
MOST_ASPECT = 16
# A time stamp that goes back by less is of pictures whose order the file mixed up; by more, or to
# the beginning, the clock was set anew, as where two recordings were joined.
SECONDS_OF_DISORDER = 1


class ClipError(InputError):
    """A clip that cannot be used.

    Attributes:
        source: the video or the folder.
        stage: where it failed: manifest, open, decode, face, encode, identity or native crash.
        reason: what is wrong, and what to do.
    """

    def __init__(self, source: str | Path, stage: str, reason: str) -> None:
        # All three, so that it comes whole out of another process.
        super().__init__(str(source), stage, reason)
        self.source, self.stage, self.reason = str(source), stage, reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class Pictures:
    """The pictures of a clip in order of display, decoded anew by every loop over them.

    Attributes:
        source: the video or the folder.
        fps: frames per second; of a video with a varying rate, the average (see `times`).
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

    def times(self) -> list[float]:
        """When each picture is shown, and, one value more, when the last one ends: seconds since
        the first one, ascending.

        Raises:
            ClipError: as the loop over the pictures does.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.source)!r}, fps={float(self.fps):g})"


class VideoPictures(Pictures):
    """The film of a file (`cfer.codec.video_stream`)."""

    def __init__(self, source: Path, fps: Fraction | None) -> None:
        with _open_video(source) as (_, stream, _):
            rate = fps or stream.average_rate or stream.guessed_rate
            self._pixel_aspect = _pixel_aspect(source, stream)
        self._is_timed_by_rate = fps is not None
        self._times: list[float] = []
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
        return len(self.times()) - 1

    def times(self) -> list[float]:
        if not self._times:
            for _ in self._frames():
                pass
        return self._times

    def _frames(self) -> Iterator[av.VideoFrame]:
        if self._decoded:
            yield from self._decoded
            return
        held: list[av.VideoFrame] = []
        num_bytes = 0
        shape: tuple[int, int] | None = None
        clock = _Clock(self.fps)
        times: list[float] = []
        for number, frame in enumerate(self._decode()):
            now = _upright_shape(frame, self._pixel_aspect)
            shape = shape or _bounded(self.source, now)
            _check_shape(self.source, f"frame {number}", now, shape)
            times.append(clock.shown(frame))
            num_bytes += sum(plane.buffer_size for plane in frame.planes)
            if num_bytes <= HELD_BYTES:
                held.append(frame)
            else:
                held.clear()
            yield frame
        if self._is_timed_by_rate:
            self._times = _times_by_rate(len(times), self.fps)
        else:
            # The decoder gives them in order of display, whatever their time stamps say.
            self._times = [*sorted(times), clock.end]
        self._decoded = held

    def _decode(self) -> Iterator[av.VideoFrame]:
        decoded = 0
        with _open_video(self.source) as (container, stream, file):
            try:
                for packet in whole_packets(container, stream, file):
                    for frame in _decode(packet):
                        if frame.is_corrupt:
                            raise self._damaged(decoded, "the decoder had to guess parts of it")
                        yield frame
                        decoded += 1
            except (av.error.FFmpegError, OSError) as error:
                raise self._damaged(decoded, str(error.strerror)) from error
            except CutOff as error:
                raise self._damaged(decoded, str(error)) from error
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
            self._container = open_input(_ReadOnly(file))
        except av.error.FFmpegError as error:
            raise ClipError(
                name,
                "open",
                f"not a video that can be read while it is written ({error.strerror}); write it as "
                "MPEG-TS (-f mpegts), Matroska or fragmented MP4",
            ) from error
        self._stream = _film(name, self._container)
        rate = self._stream.average_rate or self._stream.guessed_rate or FOLDER_FPS
        self._pixel_aspect = _pixel_aspect(name, self._stream)
        super().__init__(Path(name), Fraction(rate))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (picture for picture, _, _ in self.timed())

    def timed(self) -> Iterator[tuple[np.ndarray, float, float]]:
        """Each picture, when it is shown, and until when at least: seconds since the first one.

        Raises:
            ClipError: the stream breaks off, or pictures of different sizes.
        """
        shape: tuple[int, int] | None = None
        clock = _Clock(self.fps)
        for number, frame in enumerate(self._frames()):
            now = _upright_shape(frame, self._pixel_aspect)
            shape = shape or _bounded(self.source, now)
            _check_shape(self.source, f"frame {number}", now, shape)
            shown = clock.shown(frame)
            yield _upright(frame, self._pixel_aspect), shown, clock.end

    def _frames(self) -> Iterator[av.VideoFrame]:
        with self._container as container:
            try:
                for packet in packets(container, self._stream):
                    # Who joins a broadcast sees damage up to the first I-frame.
                    yield from (frame for frame in _decode(packet) if not frame.is_corrupt)
            except av.error.FFmpegError as error:
                raise ClipError(
                    self.source, "decode", f"the stream broke off ({error.strerror})"
                ) from error


class _Clock:
    """From frames' time stamps to seconds since the first one.

    Attributes:
        end: when the latest frame so far ends.
    """

    def __init__(self, fps: Fraction) -> None:
        self._frame = 1 / fps  # where a file does not say how long one lasts
        self._origin: Fraction | None = None
        self._latest = self._end = Fraction(0)

    @property
    def end(self) -> float:
        return float(self._end)

    def shown(self, frame: av.VideoFrame) -> float:
        """When this frame is shown, the next one that the decoder gives."""
        base = frame.time_base
        if frame.pts is None or base is None:
            now = self._end
        else:
            stamp = frame.pts * base
            if self._origin is None:
                self._origin = stamp
            now = stamp - self._origin
            if self._end and (now <= 0 or now < self._latest - SECONDS_OF_DISORDER):
                self._origin, now = stamp - self._end, self._end
        lasts = frame.duration * base if frame.duration and base else self._frame
        if now >= self._latest:
            self._latest, self._end = now, now + lasts
        return float(now)


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

    Gaps in the numbering are no error. A JPEG or PNG that its EXIF turns is turned. Pictures of 16
    bits are brought to 8: cameras of 10, 12 or 14 bits leave the upper ones empty, so the clip's
    brightest sample tells which 8 to take.
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

    def times(self) -> list[float]:
        return _times_by_rate(len(self.files), self.fps)

    def _read(self, file: Path) -> np.ndarray:
        samples, turn = self._samples(file)
        if samples.dtype == np.uint16:
            samples = (samples >> self._bits - 8).astype(np.uint8)
        return _turned(samples, turn)

    @cached_property
    def _bits(self) -> int:
        """Of the samples in pictures of 16 bits; one number for all, so that nothing flickers."""
        read = (self._samples(file)[0] for file in self.files)
        most = max(int(samples.max()) for samples in read if samples.dtype == np.uint16)
        return next(bits for bits in (8, 10, 12, 14, 16) if most < 1 << bits)

    def _samples(self, file: Path) -> tuple[np.ndarray, _Turn]:
        """A picture as it is stored, RGB, uint8 or uint16 (H, W, 3); and how to turn it."""
        try:
            with Image.open(file) as image:
                turn = _EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), _UPRIGHT)
                image.load()  # OpenCV makes up what a damaged file lacks
                if _is_of_16_bits(file):
                    return _samples_of_16_bits(file), turn
                return np.asarray(image.convert("RGB")), turn
        except Image.DecompressionBombError as error:
            raise ClipError(
                self.source, "decode", f"{file.name} is too large ({error}); scale it down"
            ) from error
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            # SyntaxError is what Pillow raises for a broken PNG.
            raise ClipError(
                self.source, "decode", f"{file.name} is not a readable picture; copy it again"
            ) from error


def _is_of_16_bits(file: Path) -> bool:
    """Only a PNG can be."""
    with file.open("rb") as opened:
        head = opened.read(25)
    return head[1:4] == b"PNG" and head[24:] == b"\x10"


def _samples_of_16_bits(file: Path) -> np.ndarray:
    """RGB, uint16 (H, W, 3). Pillow would give 8 bits of a picture in color."""
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    read = cv2.imdecode(np.fromfile(file, np.uint8), flags)
    if read is None:
        raise ValueError("not a readable PNG")
    return read[:, :, ::-1]


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


def clips_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Videos and folders of numbered pictures in this folder and all below it, and what else is
    there, each sorted. Hidden files count as neither.

    A folder that links lead to as well, or that a link in it leads back to, is looked through once.
    """
    clips: list[Path] = []
    left_out: list[Path] = []
    seen: set[tuple[int, int]] = set()
    # Links last, so that what is there under its own name has that name.
    waiting = [folder]
    while waiting:
        for where, folders, files in os.walk(
            waiting.pop(0), onerror=lambda error: left_out.append(Path(error.filename))
        ):
            here = Path(where)
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [here / name for name in folders if (here / name).is_symlink()]
            if any(map(is_numbered_picture, files)):
                clips.append(here)
            for name in files:
                if is_video(here / name):
                    clips.append(here / name)
                elif not is_numbered_picture(name) and not name.startswith("."):
                    left_out.append(here / name)
    return sorted(clips), sorted(left_out)


def told_left_out(names: Sequence[str | Path]) -> str:
    """A line for those of `clips_below` that are no clips."""
    some = ", ".join(map(str, names[:NUM_EXAMPLES]))
    more = f", … and {len(names) - NUM_EXAMPLES} more" if len(names) > NUM_EXAMPLES else ""
    are = "1 file is" if len(names) == 1 else f"{len(names)} files are"
    return f"{are} left out, no clip by the name: {some}{more}"


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


def _times_by_rate(num_frames: int, fps: Fraction) -> list[float]:
    return [float(number / fps) for number in range(num_frames + 1)]


# ---- upright, with square pixels -----------------------------------------------------------------

# What is done to a picture, in this order: rows become columns, left becomes right, top bottom.
_Turn = tuple[bool, bool, bool]
_UPRIGHT: _Turn = (False, False, False)
_EXIF_TURNS: dict[int, _Turn] = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def _turned(picture: np.ndarray, turn: _Turn) -> np.ndarray:
    swap, mirror, flip = turn
    if swap:
        picture = picture.swapaxes(0, 1)
    return np.ascontiguousarray(picture[:: -1 if flip else 1, :: -1 if mirror else 1])


def _turn_of(frame: av.VideoFrame) -> _Turn:
    """From the display matrix: the sample at (x, y) is shown at (a·x + c·y, b·x + d·y)."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _pixel_aspect(source: str | Path, stream: VideoStream) -> Fraction:
    """Width by height of a pixel.

    Raises:
        ClipError: one that no camera makes, or one that makes too large a picture.
    """
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if not Fraction(1, MOST_ASPECT) <= aspect <= MOST_ASPECT:
        raise ClipError(
            source,
            "open",
            f"its pixels are {aspect.numerator}:{aspect.denominator}, width by height; more than "
            f"{MOST_ASPECT}:1 either way is taken for a mistake: write the right shape of the "
            "picture into it (ffmpeg -i VIDEO -c copy -aspect 16:9 MENDED)",
        )
    _bounded(source, (stream.codec_context.height, round(stream.codec_context.width * aspect)))
    return aspect


def _bounded(source: str | Path, shape: tuple[int, int]) -> tuple[int, int]:
    """The height and width of a picture. Raises ClipError where they are beyond all measure."""
    if shape[0] * shape[1] > MOST_PIXELS:
        raise ClipError(
            source,
            "open",
            f"its pictures are {shape[1]}×{shape[0]}, and may have {MOST_PIXELS:,} pixels; scale "
            "it down",
        )
    return shape


def _width(frame: av.VideoFrame, pixel_aspect: Fraction) -> int:
    return max(round(frame.width * pixel_aspect), 1)


def _upright_shape(frame: av.VideoFrame, pixel_aspect: Fraction) -> tuple[int, int]:
    """Of what `_upright` makes; so it is checked before memory is taken for it."""
    height, width = frame.height, _width(frame, pixel_aspect)
    return (width, height) if _turn_of(frame)[0] else (height, width)


def _upright(frame: av.VideoFrame, pixel_aspect: Fraction) -> np.ndarray:
    # By default a conversion starts as many threads as there are cores, for each picture.
    picture: np.ndarray = frame.to_ndarray(format="rgb24", threads=1)
    if pixel_aspect != 1:
        size = (_width(frame, pixel_aspect), frame.height)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    return _turned(picture, _turn_of(frame))


# ---- files ---------------------------------------------------------------------------------------


@contextmanager
def _open_video(source: Path) -> Iterator[tuple[InputContainer, VideoStream, BinaryIO]]:
    with open(source, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            raise ClipError(source, "open", "the file is empty; copy it again")
        file.seek(0)
        try:
            container = open_input(file)
        except (av.error.FFmpegError, OSError) as error:
            raise ClipError(
                source,
                "open",
                f"not a video, or cut off before its index ({error.strerror}); copy it again, or "
                "convert it to MP4",
            ) from error
        with container:
            yield container, _film(source, container), file


def _film(source: str | Path, container: InputContainer) -> VideoStream:
    stream = video_stream(container)
    if stream is None:
        raise ClipError(source, "open", "there is no video stream in it; give a video")
    if stream.codec_context is None:
        raise ClipError(
            source, "open", "its codec is none that this FFmpeg decodes; convert it to MP4"
        )
    # FFmpeg would take every CPU, in every worker.
    stream.codec_context.thread_count = 1
    # What the header does not say is bounded by the decoder, before it takes memory.
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    return stream


def _decode(packet: Packet) -> list[av.VideoFrame]:
    return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]


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
