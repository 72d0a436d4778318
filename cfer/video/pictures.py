"""A clip's pictures, from a video file or a folder of numbered pictures, one after another.

    pictures = open_pictures("clip.mp4")
    for picture in pictures:            # decodes; a second loop decodes again
        ...                             # RGB, uint8 (H, W, 3)
    pictures.times()                    # when each is shown, and when the last one ends

Pictures are upright, as FFmpeg's own programs turn and mirror them, with square pixels. Times are
seconds since the first picture, as the file has them: a phone's frame rate varies. `StreamPictures`
reads a pipe, or a file that is still being written, once. A long video is never held in memory
whole. A clip is read completely or it is an error: a video that is damaged half-way is not
shortened, since the expression may be in the missing part.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
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
from cfer.video.files import PICTURE_SUFFIXES, numbered_pictures, picture_order
from cfer.video.variation import Place
from cfer.video.windows import regular_fps

# A folder of pictures does not say how fast they were taken.
FOLDER_FPS = Fraction(25)
HELD_BYTES = 512 << 20  # of decoded frames: about 380 of 1280 × 720
# A pixel's width by its height is at most 4 in video, but a file can claim anything.
MOST_ASPECT = 16
# People and programs give times with three decimals.
ROUNDED_SECONDS = 0.0005
# Where time stamps go back by less, the file has mixed up the order of the pictures; where they go
# back by more, or to the beginning, a new clock begins: two recordings were joined.
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

    Raises:
        ClipError: in all that decodes: not readable to its end, no picture, or pictures of
            different sizes.
    """

    def __init__(self, source: Path, fps: Fraction) -> None:
        self.source = source
        self.fps = fps

    def __iter__(self) -> Iterator[np.ndarray]:
        """RGB pictures, uint8 (H, W, 3), all of one size."""
        raise NotImplementedError

    def select(self, numbers: Collection[int]) -> Iterator[np.ndarray]:
        """The pictures of these frame numbers, ascending; no others are converted, and none after
        the last of these is decoded."""
        raise NotImplementedError

    def count(self) -> int:
        """The number of pictures; all of them are decoded for it, so that damage is found here."""
        raise NotImplementedError

    def times(self) -> list[float]:
        """When each picture is shown and, one value more, when the last one ends: seconds since
        the first one, ascending."""
        raise NotImplementedError

    def regular_fps(self) -> Fraction:
        """As `cfer.video.windows.regular_fps`: a browser's recordings say that they have 1000."""
        return regular_fps(self.times()[:-1], self.fps)

    def span(self, start_seconds: float | None = None, end_seconds: float | None = None) -> range:
        """The numbers of the pictures from one time to another (`times`), both included; None: from
        the first one, to the last one.

        Raises:
            ClipError: fewer than two pictures, which have no change; or an end beyond the clip's.
        """
        times = self.times()
        first, stop = 0, len(times) - 1
        if start_seconds is not None:
            first = bisect_left(times, start_seconds - ROUNDED_SECONDS, hi=stop)
        if end_seconds is not None:
            stop = bisect_right(times, end_seconds + ROUNDED_SECONDS, hi=stop)
        if end_seconds is not None and end_seconds > times[-1] + ROUNDED_SECONDS:
            raise ClipError(
                self.source,
                "manifest",
                f"its span ends at {end_seconds:g} s, and the video at {times[-1]:.3f} s; give an "
                "end within it, or none",
            )
        if stop - first < 2 and (start_seconds, end_seconds) == (None, None):
            raise one_frame(self.source)
        if stop - first < 2:
            end = times[-1] if end_seconds is None else end_seconds
            if first >= stop and (start_seconds or 0) >= times[-1]:
                raise ClipError(
                    self.source,
                    "manifest",
                    f"its span starts at {start_seconds:g} s, and the video ends at "
                    f"{times[-1]:.3f} s; give a start within it",
                )
            raise ClipError(
                self.source,
                "manifest",
                f"fewer than two pictures from {start_seconds or 0:g} s to {end:g} s, and a change "
                f"takes two (the video ends at {times[-1]:.3f} s): correct start and end",
            )
        return range(first, stop)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.source)!r}, fps={float(self.fps):g})"


class VideoPictures(Pictures):
    """The film of a file (`cfer.codec.containers.video_stream`)."""

    def __init__(self, source: Path, fps: Fraction | None) -> None:
        with _open_video(source) as (_, stream, _):
            rate = fps or stream.average_rate or stream.guessed_rate
            self._pixel_aspect = _pixel_aspect(source, stream)
        self._is_timed_by_rate = fps is not None
        self._times: list[float] = []
        # A video is read several times; a short one is decoded only once.
        self._decoded: list[av.VideoFrame] = []
        if not rate:
            raise ClipError(
                source, "open", "it has no frame rate; give one in the manifest's column fps"
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

    def take_times(self, times: Sequence[float]) -> None:
        """Times that are known already (`times`), so that nothing is decoded for them."""
        self._times = list(times)

    def coded_place(self) -> tuple[Place, tuple[int, int]]:
        """From pixels of these pictures, upright and square, to samples of the bitstream; and the
        height and width of the pictures. The first frame is decoded for it."""
        return _coded_place(self.source, next(self._decode()), self._pixel_aspect)

    def _frames(self) -> Iterator[av.VideoFrame]:
        if self._decoded:
            yield from self._decoded
            return
        held: list[av.VideoFrame] = []
        num_bytes = 0
        times = [0.0]  # of the frames, and of the end of the last one
        timed = _timed(self._decode(), self.source, self.fps, self._pixel_aspect)
        for frame, shown, end in timed:
            times[-1:] = [shown, end]
            num_bytes += sum(plane.buffer_size for plane in frame.planes)
            if num_bytes <= HELD_BYTES:
                held.append(frame)
            else:
                held.clear()
            yield frame
        if self._is_timed_by_rate:
            self._times = _times_by_rate(len(times) - 1, self.fps)
        else:
            # The decoder gives them in order of display, whatever their time stamps say.
            self._times = [*sorted(times[:-1]), times[-1]]
        self._decoded = held

    def _decode(self) -> Iterator[av.VideoFrame]:
        decoded = 0
        with _open_video(self.source) as (container, stream, file):
            try:
                for packet in whole_packets(container, stream, file):
                    for frame in stream.decode(packet):
                        if frame.is_corrupt:
                            raise CutOff("the decoder had to guess parts of it")
                        yield frame
                        decoded += 1
            except (av.error.FFmpegError, OSError, CutOff) as error:
                why = getattr(error, "strerror", error)
                raise ClipError(
                    self.source,
                    "decode",
                    f"damaged or cut off at frame {decoded} ({why}); copy it again, or cut the "
                    "damaged part out and give the rest as a clip of its own",
                ) from error
        if decoded == 0:
            raise ClipError(
                self.source, "decode", "there is no frame in it; record or copy it again"
            )


class StreamPictures:
    """The video of a pipe, or of a file that grows: each picture once, as soon as it is there.

    Args:
        file: an object to read bytes from; it need not be able to seek.
        name: what messages call it.

    Attributes:
        source: the name.
        fps: frames per second, on average; 25 where the stream does not say it.

    Raises:
        ClipError: it does not begin as a video in a form that can be read while it is written
            (MPEG-TS, Matroska, fragmented MP4, AVI).
    """

    def __init__(self, file: SupportsRead, name: str) -> None:
        self.source = name
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
        self.fps = Fraction(self._stream.average_rate or self._stream.guessed_rate or FOLDER_FPS)
        self._pixel_aspect = _pixel_aspect(name, self._stream)
        self._read = self._read_timed()
        self._ahead: list[tuple[np.ndarray, float, float]] = []  # read, and not given yet

    @property
    def why_not_native(self) -> str | None:
        """Why its packets can't be read as they are (`cfer.data.native_stream`); None: they can."""
        if (codec := self._stream.codec_context.name) != "h264":
            return f"{self.source}: its codec is {codec}"
        if (container := self._container.format.name) in ("h264", "avi"):
            return f"{self.source}: {container}, which does not say when each picture is shown"
        return None

    @property
    def extradata(self) -> bytes:
        """Parameters for the decoder, as the container has them."""
        return bytes(self._stream.codec_context.extradata or b"")

    def packets(self) -> Iterator[av.Packet]:
        """Instead of pictures: each packet once, as soon as it is there (`containers.packets`).

        Raises:
            ClipError: the stream breaks off.
        """
        with self._container as container:
            try:
                yield from packets(container, self._stream)
            except av.error.FFmpegError as error:
                raise self._broke_off(error) from error

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that come out of the decoder after a packet of `packets`; None: the last ones,
        and the next packet begins anew.

        Raises:
            ClipError: damage.
        """
        decoder = self._stream.codec_context
        try:
            frames = decoder.decode(packet)
        except av.error.FFmpegError as error:
            raise self._broke_off(error) from error
        if packet is None:
            decoder.flush_buffers()
        # Whoever joins a broadcast sees damage up to the first I-frame.
        return [frame for frame in frames if not frame.is_corrupt]

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB, uint8 (H, W, 3), upright, with square pixels."""
        return _upright(frame, self._pixel_aspect)

    def coded_place(self, frame: av.VideoFrame) -> tuple[Place, tuple[int, int]]:
        """As `VideoPictures.coded_place`, by one of its frames."""
        return _coded_place(self.source, frame, self._pixel_aspect)

    def _broke_off(self, error: av.error.FFmpegError) -> ClipError:
        return ClipError(self.source, "decode", f"the stream broke off ({error.strerror})")

    def regular_fps(self) -> Fraction:
        """As `Pictures.regular_fps`, by the first second; to be asked before the pictures."""
        for picture in self._read:
            self._ahead.append(picture)
            if picture[1] >= 1:
                break
        return regular_fps([shown for _, shown, _ in self._ahead], self.fps)

    def timed(self) -> Iterator[tuple[np.ndarray, float, float]]:
        """Each picture, RGB, uint8 (H, W, 3), when it is shown, and until when at least: seconds
        since the first one.

        Raises:
            ClipError: the stream breaks off, or pictures of different sizes.
        """
        while self._ahead:
            yield self._ahead.pop(0)
        yield from self._read

    def _read_timed(self) -> Iterator[tuple[np.ndarray, float, float]]:
        timed = _timed(self._frames(), self.source, self.fps, self._pixel_aspect)
        for frame, shown, end in timed:
            yield _upright(frame, self._pixel_aspect), shown, end

    def _frames(self) -> Iterator[av.VideoFrame]:
        for packet in self.packets():
            yield from self.decode(packet)


def _timed(
    frames: Iterable[av.VideoFrame], source: str | Path, fps: Fraction, pixel_aspect: Fraction
) -> Iterator[tuple[av.VideoFrame, float, float]]:
    """Each frame, when it is shown, and when the latest one so far ends: seconds since the first.

    Raises:
        ClipError: frames of different sizes.
    """
    shape: tuple[int, int] | None = None
    origin: Fraction | None = None
    latest = end = Fraction(0)
    for number, frame in enumerate(frames):
        upright = _upright_shape(frame, pixel_aspect)
        shape = shape or _bounded(source, upright)
        _check_shape(source, f"frame {number}", upright, shape)
        base = frame.time_base
        shown = end
        if frame.pts is not None and base is not None:
            stamp = frame.pts * base
            if origin is None:
                origin = stamp
            shown = stamp - origin
            if end and (shown <= 0 or shown < latest - SECONDS_OF_DISORDER):
                origin, shown = stamp - end, end
        if shown >= latest:
            latest = shown
            end = shown + (frame.duration * base if frame.duration and base else 1 / fps)
        yield frame, float(shown), float(end)


class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _ReadOnly:
    """A file without `seek`, since PyAV would use it.

    PyAV asks for 32 kB at a time, which is seconds of a small picture: it gets what is there.
    """

    def __init__(self, file: SupportsRead) -> None:
        self.read = getattr(file, "read1", file.read)


class GrowingFile:
    """A file that another program is still writing: it ends where nothing more has been written
    for `patience_seconds`."""

    def __init__(self, path: Path, patience_seconds: float) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  # for as long as this object lives
        self._patience_seconds = patience_seconds
        self._has_ended = False  # FFmpeg asks again at the end, and would wait again

    def read(self, size: int, /) -> bytes:
        deadline = time.monotonic() + self._patience_seconds
        while not (data := self._file.read(size)):
            self._has_ended |= time.monotonic() > deadline
            if self._has_ended:
                return b""
            time.sleep(0.05)
        return data


class HeldPictures(Pictures):
    """Pictures that are there already.

    Args:
        source, fps: as `Pictures`.
        pictures: RGB, uint8 (H, W, 3) each.
        times: when each is shown, and when the last one ends.
    """

    def __init__(
        self, source: Path, fps: Fraction, pictures: Sequence[np.ndarray], times: Sequence[float]
    ) -> None:
        super().__init__(source, fps)
        self._pictures, self._times = pictures, list(times)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._pictures)

    def select(self, numbers: Collection[int]) -> Iterator[np.ndarray]:
        return (self._pictures[number] for number in sorted(numbers))

    def count(self) -> int:
        return len(self._pictures)

    def times(self) -> list[float]:
        return self._times


class FolderPictures(Pictures):
    """A folder of numbered pictures (.png, .jpg, .jpeg), in the order of their numbers.

    Gaps in the numbering are no error. Pictures are turned as their EXIF says. Samples of 16 bits
    are reduced to 8: cameras of 10, 12 or 14 bits leave the upper bits empty, so the brightest
    sample of the clip shows which 8 to take.
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
            other = keys.setdefault(picture_order(file.name)[0], file)
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
        """How many bits the samples use: one number for the clip, so that nothing flickers."""
        read = (self._samples(file)[0] for file in self.files)
        most = max(int(samples.max()) for samples in read if samples.dtype == np.uint16)
        return next(bits for bits in (8, 10, 12, 14, 16) if most < 1 << bits)

    def _samples(self, file: Path) -> tuple[np.ndarray, _Turn]:
        """A picture as it is stored, RGB, uint8 or uint16 (H, W, 3); and how to turn it."""
        try:
            with Image.open(file) as image:
                turn = _EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), _UPRIGHT)
                image.load()  # of a damaged file, OpenCV would invent the missing part
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
    """RGB, uint16 (H, W, 3). Pillow reads only 8 bits of a picture in color."""
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    read = cv2.imdecode(np.fromfile(file, np.uint8), flags)
    if read is None:
        raise ValueError("not a readable PNG")
    return read[:, :, ::-1]


def open_pictures(source: str | Path, fps: Fraction | None = None) -> Pictures:
    """Open a video file or a folder of numbered pictures.

    Args:
        source: its path.
        fps: frames per second, in place of the clip's own; a folder has 25 without it.

    Raises:
        ClipError: there is no such file, it is no video, or there is no picture in the folder.
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
    # A named pipe would be waited for without end.
    if not stat.S_ISREG(mode):
        raise ClipError(path, "open", "neither a file nor a folder; give a video or pictures")
    return VideoPictures(path, fps)


def one_frame(source: str | Path) -> ClipError:
    return ClipError(
        source, "decode", "only one frame, so there is no change to see; give 2 or more frames"
    )


def _times_by_rate(num_frames: int, fps: Fraction) -> list[float]:
    return [float(number / fps) for number in range(num_frames + 1)]


# ---- upright, with square pixels -----------------------------------------------------------------

# What is done to a picture, in this order: swap rows and columns, mirror left and right, flip top
# and bottom.
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
    """A pixel's width divided by its height.

    Raises:
        ClipError: one that no camera makes, or one that makes the picture too large.
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
    """The given height and width; raises `ClipError` for more than `MOST_PIXELS`."""
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
    """The height and width of `_upright`'s picture, to be checked before memory is taken for it."""
    height, width = frame.height, _width(frame, pixel_aspect)
    return (width, height) if _turn_of(frame)[0] else (height, width)


def _coded_place(
    source: str | Path, frame: av.VideoFrame, pixel_aspect: Fraction
) -> tuple[Place, tuple[int, int]]:
    """See `VideoPictures.coded_place`."""
    height, width = _bounded(source, _upright_shape(frame, pixel_aspect))
    swap, mirror, flip = _turn_of(frame)
    place = np.array([[1.0, 0, 0], [0, 1, 0]])
    if mirror:
        place[0] = -1, 0, width - 1
    if flip:
        place[1] = 0, -1, height - 1
    if swap:
        place = place[::-1].copy()
    stretch = frame.width / _width(frame, pixel_aspect)
    place[0] *= stretch
    place[0, 2] += stretch / 2 - 0.5
    return place, (height, width)


def _upright(frame: av.VideoFrame, pixel_aspect: Fraction) -> np.ndarray:
    # By default each conversion starts as many threads as there are cores.
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
        raise ClipError(source, "open", "this FFmpeg does not decode its codec; convert it to MP4")
    # By default FFmpeg uses every CPU, in every worker.
    stream.codec_context.thread_count = 1
    # The decoder checks sizes that the header does not have, before it takes memory for them.
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    return stream


def _check_shape(
    source: str | Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if shape != expected:
        raise ClipError(
            source,
            "decode",
            f"{name} is {shape[1]}×{shape[0]} pixels, and the first one {expected[1]}×"
            f"{expected[0]}; all pictures of a clip need one size",
        )
