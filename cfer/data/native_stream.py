"""As `native`, of a stream: the windows of a pipe, or of a file that grows, as they come.

The packets are cut at keyframes into pieces, and each piece is a bitstream that grows. Pictures are
decoded where a window can't be read as it is, each at most once, and from the piece on in which it
begins: of a stream that can be read, none after the first.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av

from cfer.codec import CodecError
from cfer.codec.bitstream import GrowingBitstream, packet_data
from cfer.data.native import FaceReader, NativeWindow, Run, long_enough, parts, read_window
from cfer.video.faces import FaceDetector
from cfer.video.follow import Place
from cfer.video.pictures import (
    SECONDS_OF_DISORDER,
    ClipError,
    HeldPictures,
    StreamPictures,
    one_frame,
)
from cfer.video.variation import Variation
from cfer.video.windows import WindowCutter, regular_fps, shifted

MOST_SECONDS = 60.0  # of a piece: its headers are read anew for each window


@dataclass(frozen=True)
class StreamWindow:
    """A window of a stream.

    Attributes:
        frames: the numbers of its pictures, from 0, in the order in which they are shown.
        times: when each is shown and, one value more, when the window ends: seconds since the first
            picture.
        read: what it shows of a face; or why it can't be read as it is.
    """

    frames: range
    times: list[float]
    read: NativeWindow | CodecError


@dataclass(eq=False)
class _Piece:
    """Packets from a keyframe on: when they are shown, those that the bitstream doesn't have yet,
    the bitstream and its reader; or why there are none."""

    start: float
    end: float
    new: list[tuple[bytes, int | None]] = field(default_factory=list)
    bitstream: GrowingBitstream | None = None
    reader: FaceReader | None = None
    refused: CodecError | None = None


class NativeStream:
    """The windows of a stream of H.264.

    Args:
        stream: nothing has been read of it yet.
        detector: finds the face.
    """

    def __init__(self, stream: StreamPictures, detector: FaceDetector) -> None:
        self._stream, self._detector = stream, detector
        self._source = stream.packets()
        self._pieces: list[_Piece] = []
        self._shown: list[float] = []  # when the pictures from number `_first` on are shown
        self._first = 0
        self._base = self._origin = Fraction(0)  # a tick of the stream's clock; the beginning
        self._final = self._end = 0.0  # up to when all packets are there; when the last one ends
        # What the decoder hasn't had yet, and what came out of it, by when it's shown.
        self._waiting: deque[tuple[_Piece, av.Packet, float]] = deque()
        self._time_of: dict[int, float] = {}
        self._held: dict[float, av.VideoFrame] = {}
        self._place: tuple[Place, tuple[int, int]] | None = None

    def regular_fps(self) -> Fraction:
        """As `StreamPictures.regular_fps`; to be asked before the windows."""
        while (not self._shown or self._final < 1) and self._advance():
            pass
        return regular_fps(self._known(), self._stream.fps)

    def windows(
        self, window_frames: int, step_frames: int, size: int, variations: Sequence[Variation]
    ) -> Iterator[StreamWindow]:
        """Each as soon as it is complete (`cfer.video.windows.WindowCutter`).

        Args:
            window_frames, step_frames: see there.
            size, variations: see `cfer.data.native.read_window`.

        Raises:
            ClipError: the stream breaks off, or has only one frame.
        """

        def window(span: range) -> StreamWindow:
            times = self._shown[span.start - self._first : span.stop - self._first + 1]
            times += [self._end] if len(times) == len(span) else []
            return StreamWindow(span, times, self._read(times[0], times[-1], size, variations))

        cut = WindowCutter(self.regular_fps(), window_frames, step_frames)
        while self._advance():
            while (span := cut.complete(self._known())) is not None:
                yield window(shifted(span, self._first))
                self._drop(cut.needed(self._known()))
        if self._first == 0 and len(self._shown) < 2:
            raise one_frame(self._stream.source)
        for span in cut.rest(self._shown):
            yield window(shifted(span, self._first))

    def _known(self) -> list[float]:
        """When pictures are shown between which no other can come any more."""
        return self._shown[: bisect_right(self._shown, self._final)]

    def pictures(self, window: StreamWindow) -> HeldPictures:
        """Those of the window that was yielded last.

        Raises:
            ClipError: damage.
        """
        self._decode(window.times[-2])
        times = [at for at in window.times[:-1] if at in self._held]
        if len(times) < 2:
            raise ClipError(
                self._stream.source,
                "decode",
                f"{len(window.frames) - len(times)} of {len(window.frames)} pictures from "
                f"{window.times[0]:.2f} s on are damaged; send it again",
            )
        pictures = [self._stream.picture(self._held[at]) for at in times]
        name, fps = Path(self._stream.source), self._stream.fps
        return HeldPictures(name, fps, pictures, [*times, window.times[-1]])

    def _advance(self) -> bool:
        """Take the next packet; False: there is none."""
        packet = next(self._source, None)
        if packet is None:
            return False
        if not packet.size or (not self._pieces and not packet.is_keyframe):
            return True  # the end, or a stream that was joined between two keyframes
        self._base = base = packet.time_base
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:  # it follows the one before
            stamp = round((Fraction(self._end) + self._origin) / base)
        packet.pts = stamp
        if not self._pieces:
            self._origin = stamp * base
        shown = float(stamp * base - self._origin)
        if packet.is_keyframe:
            if self._pieces and (shown <= 0 or shown < self._end - SECONDS_OF_DISORDER):
                self._origin = stamp * base - Fraction(self._end)  # another recording
                shown = self._end
            self._pieces.append(_Piece(shown, shown))
        piece = self._pieces[-1]
        duration = packet.duration * base if packet.duration else 1 / self._stream.fps
        piece.end = self._end = max(self._end, shown + float(duration))
        data = packet_data(packet, self._stream.extradata, self._stream.source)
        piece.new.append((data, stamp))
        insort(self._shown, shown)
        decoded = stamp if packet.dts is None else packet.dts
        self._final = max(self._final, float(decoded * base - self._origin))
        self._waiting.append((piece, packet, shown))
        return True

    def _drop(self, count: int) -> None:
        """Of pictures that no window has any more."""
        del self._shown[:count]
        self._first += count
        start = self._shown[0]
        while len(self._pieces) > 1 and self._pieces[1].start <= start:
            del self._pieces[0]
        if self._waiting and self._waiting[0][0] not in self._pieces:
            while self._waiting and self._waiting[0][0] not in self._pieces:
                self._waiting.popleft()
            self._stream.decode(None)  # it goes on at a keyframe
            self._time_of.clear()
        self._held = {at: frame for at, frame in self._held.items() if at >= start}

    def _read(
        self, start: float, end: float, size: int, variations: Sequence[Variation]
    ) -> NativeWindow | CodecError:
        try:
            found: list[tuple[float, list[tuple[FaceReader, Run]]]] = []
            for piece in self._pieces:
                if piece.start < end and start < piece.end:
                    reader = self._reader(piece)
                    for seconds, some in parts(reader.bitstream, start, end):
                        found.append((seconds, [(reader, run) for run in some]))
            name = self._stream.source
            return read_window(name, long_enough(found), (start, end), size, variations)
        except CodecError as error:
            return error

    def _reader(self, piece: _Piece) -> FaceReader:
        """With all packets that are there; raises CodecError where a piece can't be read so."""
        stream, new = self._stream, piece.new
        piece.new = []
        try:
            if piece.refused is not None:
                raise piece.refused
            if piece.end - piece.start > MOST_SECONDS:
                raise CodecError(f"{stream.source}: {MOST_SECONDS:g} s and more without a keyframe")
            if piece.bitstream is None:
                piece.bitstream = GrowingBitstream(
                    stream.extradata, new, stream.source, stream.fps, self._base, piece.start
                )
            elif new:
                piece.bitstream.extend(new)
        except CodecError as error:
            piece.refused, piece.bitstream, piece.reader = error, None, None
            raise
        if self._place is None:
            self._decode(piece.start)
            self._place = stream.coded_place(next(iter(self._held.values())))
        piece.reader = piece.reader or FaceReader(piece.bitstream, *self._place, self._detector)
        return piece.reader

    def _decode(self, until: float) -> None:
        """Up to the picture that is shown then, or the first after it: a damaged one is left out.

        Raises:
            ClipError: not one picture comes out to the end.
        """
        while not any(at >= until for at in self._held):
            has_more = bool(self._waiting) or self._advance()
            if has_more and not self._waiting:
                continue  # a packet that is of no use
            packet = None
            if has_more:
                _, packet, shown = self._waiting.popleft()
                self._time_of[packet.pts or 0] = shown
            for frame in self._stream.decode(packet):
                at = self._time_of.pop(frame.pts or 0, None)
                if at is not None:
                    self._held[at] = frame
            if not has_more:
                break
        if not self._held:
            raise ClipError(self._stream.source, "decode", "no picture in it can be decoded")
