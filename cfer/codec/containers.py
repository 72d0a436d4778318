"""Video files as FFmpeg opens them: safely, the right stream, and whether they are whole.

A file is handed to FFmpeg open, never by its name: to FFmpeg a name may be a URL (`http:…`,
`concat:…`, or just `2023-05-01T10:30:00.mp4`). Nor may what is in the file lead FFmpeg to another
one, or into the network, as a playlist does.
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
# A frame of every usual rate (24000/1001, 25, 30000/1001, …) is a whole number of the fine ones.
TICKS_PER_SECOND, COARSE_TICKS_PER_SECOND = 720_000, 1000
_MOST_TICKS = (1 << 31) - 1  # from one frame to the next

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_NOT_KNOWN = 0xFFFFFFFF  # the size of an AVI's chunk that was written to a pipe
_LARGEST_PAGE, _LAST_PAGE = 65_307, 4  # of an Ogg (RFC 3533): bytes, and a flag
# Beyond so many an AVI is not followed: a large one has some hundreds.
_MOST_CHUNKS = 10_000


class CutOff(Exception):
    """A video file that lacks something; the message says how that is known."""


def open_input(file: Any, **options: str) -> InputContainer:
    """Something to read bytes from (what can `seek` is a file, what can't is a pipe).

    Args:
        options: more of FFmpeg's.

    Raises:
        av.error.FFmpegError: not a video, or one whose pictures are in other files.
    """
    # FFmpeg decodes a little at once, to see what is there.
    options = {"protocol_whitelist": "", "max_pixels": str(MOST_PIXELS), **options}
    # Titles of old files are in any encoding, and nobody looks at them here.
    return av.open(file, "r", options=options, metadata_errors="replace")


def video_stream(container: InputContainer) -> VideoStream | None:
    """The film: the default video stream, else the first one; a cover picture is none."""
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    default = (stream for stream in films if stream.disposition & Disposition.default)
    return next(default, films[0] if films else None)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of one stream that hold something, and the empty one at its end that flushes a
    decoder. An empty one in between, for a frame that a camera dropped, would flush it too early.

    Raises:
        av.error.FFmpegError, OSError: it can't be read on.
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
    """As `packets`, of a file that is to be whole.

    How many frames a header announces proves nothing: it counts those that a camera dropped, and
    those that an edit list or an open GOP leaves out.

    Raises:
        CutOff: a packet is not whole, or some that the file itself tells of are not there.
    """
    count = 0
    name = container.format.name
    for packet in packets(container, stream):
        # In MPEG-TS it may only say that two files were joined; there the decoder knows.
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
    """Times in seconds, ascending, in ticks of an MP4's own clock, and how many ticks a second has.

    No two are the same, since a container has no two frames at one time. Between two there are less
    than 2^31 ticks; a gap that takes more, of weeks, is shortened.
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
    """Whether an AVI's or a Matroska's pictures would go on beyond the end of the file, or an Ogg's
    last page is not marked as such."""
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
    """The number of 1 to 8 bytes that comes next (RFC 8794, 4); None where it is not known yet."""
    first = file.read(1) or b"\x00"
    num_bytes = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(num_bytes - 1), "big")
    most = (1 << 7 * num_bytes) - 1  # all ones: unknown
    value &= most
    return None if value == most else value
