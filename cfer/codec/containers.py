"""Video files: open them safely, choose the right stream, and see whether they are whole.

FFmpeg gets an open file, never a name: it takes some names for URLs (`http:…`, `concat:…`, or just
`2023-05-01T10:30:00.mp4`). Nor may a file's content lead FFmpeg to another file or into the
network, as a playlist would.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

MOST_PIXELS = 1 << 27  # of a picture: one of 16K, 15,360 × 8,640, has a little less
# At every usual rate (24000/1001, 25, 30000/1001, …) a frame lasts a whole number of fine ticks.
TICKS_PER_SECOND, COARSE_TICKS_PER_SECOND = 720_000, 1000
_MOST_TICKS = (1 << 31) - 1  # from one frame to the next

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_NOT_KNOWN = 0xFFFFFFFF  # the size of a chunk in an AVI that was written to a pipe
_LARGEST_PAGE, _LAST_PAGE = 65_307, 4  # of an Ogg (RFC 3533): bytes, and a flag
_MOST_CHUNKS = 10_000  # of an AVI that are looked at: a large one has some hundreds


class CutOff(Exception):
    """A video file that is not whole; the message says how that is known."""


def open_input(file: Any, **options: str) -> InputContainer:
    """Open a video.

    Args:
        file: an object with `read`: a file where it also has `seek`, else a pipe.
        options: more options of FFmpeg's.

    Raises:
        av.error.FFmpegError: not a video, or one whose pictures are in other files.
    """
    # While opening, FFmpeg already decodes some frames.
    options = {"protocol_whitelist": "", "max_pixels": str(MOST_PIXELS), **options}
    # The titles of old files are in any encoding, and are not read here.
    return av.open(file, "r", options=options, metadata_errors="replace")


def video_stream(container: InputContainer) -> VideoStream | None:
    """The film: the default video stream, else the first one; cover pictures do not count."""
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    default = (stream for stream in films if stream.disposition & Disposition.default)
    return next(default, films[0] if films else None)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of one stream that have data, then the empty one that flushes a decoder.

    Some files have empty packets in between, for frames that a camera dropped; they would flush the
    decoder too early, and are left out.

    Raises:
        av.error.FFmpegError, OSError: the file cannot be read to its end.
    """
    last = None
    for packet in container.demux(stream):
        if packet.size:
            yield packet
        last = packet
    if last is not None and not last.size:
        yield last


def whole_packets(
    container: InputContainer, stream: VideoStream, file: BinaryIO
) -> Iterator[Packet]:
    """As `packets`, of a file that has to be whole.

    The number of frames in a header proves nothing: it counts those that a camera dropped, and
    those that an edit list or an open GOP leaves out.

    Raises:
        CutOff: a packet is not whole, or one that the file's own index or header names is missing.
    """
    count = 0
    name = container.format.name
    for packet in packets(container, stream):
        # In MPEG-TS the mark may only mean that two files were joined; the decoder knows better.
        if packet.is_corrupt and "mpegts" not in name:
            raise CutOff("its last packet is not whole")
        count += packet.size > 0
        yield packet
    if "mp4" in name or name == "avi":  # their index has every packet
        named = sum(entry.size > 0 for entry in stream.index_entries)
        if count < named:
            raise CutOff(f"its index names {named} packets, and {count} are there")
    if _ends_early(file):
        raise CutOff("the file is shorter than its header says")


def ticks_of(times: Sequence[float]) -> tuple[list[int], int]:
    """Times (seconds, ascending) as ticks of an MP4's clock, and the number of ticks in a second.

    All ticks are different, since a container has no two frames at one time. MP4 allows less than
    2^31 ticks from one to the next; a longer gap, of weeks, is shortened.
    """
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    is_fine = max(gaps, default=0) * TICKS_PER_SECOND < _MOST_TICKS
    per_second = TICKS_PER_SECOND if is_fine else COARSE_TICKS_PER_SECOND
    ticks: list[int] = []
    for seconds in times:
        tick = round((seconds - times[0]) * per_second)
        ticks.append(min(max(tick, ticks[-1] + 1), ticks[-1] + _MOST_TICKS) if ticks else tick)
    return ticks, per_second


def _ends_early(file: BinaryIO) -> bool:
    """Whether an AVI or Matroska header says that the pictures go on beyond the end of the file, or
    the last page of an Ogg is not marked as the last one."""
    size = file.seek(0, 2)
    file.seek(0)
    kind = file.read(4)
    if kind == b"RIFF":
        return _avi_ends_early(file, size)
    if kind == b"OggS":
        file.seek(max(size - _LARGEST_PAGE, 0))
        tail = file.read()
        page = tail[tail.rfind(b"OggS") :]
        return len(page) < 6 or not page[5] & _LAST_PAGE
    if kind == _EBML:
        file.seek(_size_of_element(file) or 0, 1)
        if file.read(4) == _SEGMENT:
            length = _size_of_element(file)
            return length is not None and file.tell() + length > size
    return False


def _avi_ends_early(file: BinaryIO, size: int) -> bool:
    at = 0
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(12)
        kind, length, what = head[:4], int.from_bytes(head[4:8], "little"), head[8:]
        if len(head) < 12 or length == _NOT_KNOWN:
            break
        if kind == b"LIST" and what == b"movi" and at + 8 + length > size:
            return True
        # A large file is several of the outermost chunks, one after another.
        at += 12 if kind == b"RIFF" else 8 + length + length % 2
    return False


def _size_of_element(file: BinaryIO) -> int | None:
    """The size of 1 to 8 bytes that comes next (RFC 8794, section 4); None: unknown."""
    first = file.read(1) or b"\x00"
    num_bytes = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(num_bytes - 1), "big")
    unknown = (1 << 7 * num_bytes) - 1
    value &= unknown
    return None if value == unknown else value
