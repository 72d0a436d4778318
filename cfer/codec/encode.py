"""Write a fixed-GOP bitstream: MPEG-4 Part 2, I P P P … I P P P …, through PyAV's stock encoder.

bitstream = encode(pictures, CodecSettings(gop_size=12), fps=25)
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.packet import Packet

from cfer.codec.bitstream import Bitstream
from cfer.codec.containers import TICKS_PER_SECOND, ticks_of
from cfer.codec.format import CodecError

# The layer header has 16 bits for the number of ticks in a second.
MAX_TICKS_PER_SECOND = 65535
MOST_SECONDS = 86_400  # of a GOP, of a window


@dataclass(frozen=True)
class CodecSettings:
    """How to encode. The settings are hyper-parameters of the representation.

    Attributes:
        gop_size: frames from one I-frame to the next, at least 1.
        quantizer: fixed quantizer, 1 (finest) to 31; exclusive with `bit_rate`.
        bit_rate: bits per second, at least 1000; exclusive with `quantizer`.
        motion_search: False makes every motion vector zero: the accumulated residual is then the
            whole change since the I-frame.
        gop_span: how many frames of the video a GOP stands for, at least `gop_size`: the first and
            the last of them and others evenly between are encoded; fewer than half as many frames
            at the end belong to the GOP before. None: every frame is encoded.
        gop_seconds: the same in seconds of the video, which `at` makes frames of; exclusive with
            `gop_span`, 0 where that counts.

    Raises:
        CodecError: a value out of its range.
    """

    gop_size: int = 12
    quantizer: int | None = 2
    bit_rate: int | None = None
    motion_search: bool = True
    gop_span: int | None = None
    gop_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.gop_size < 1:
            raise CodecError(f"GOP size {self.gop_size}: must be 1 or more frames")
        if self.gop_span is not None and self.gop_span < self.gop_size:
            raise CodecError(
                f"GOP span {self.gop_span}: a GOP of {self.gop_size} frames stands for at least as "
                "many frames of the video"
            )
        if not 0 <= self.gop_seconds <= MOST_SECONDS:
            raise CodecError(
                f"GOP of {self.gop_seconds} seconds: must be above 0, or 0 to encode every frame, "
                f"and at most {MOST_SECONDS}"
            )
        if self.gop_seconds and self.gop_span is not None:
            raise CodecError(
                f"GOP span {self.gop_span} and {self.gop_seconds} seconds: give one of them"
            )
        if (self.quantizer is None) == (self.bit_rate is None):
            raise CodecError(
                f"quantizer {self.quantizer} and bit rate {self.bit_rate}: give exactly one of them"
            )
        if self.quantizer is not None and not 1 <= self.quantizer <= 31:
            raise CodecError(f"quantizer {self.quantizer}: must be from 1 (finest) to 31")
        if self.bit_rate is not None and self.bit_rate < 1000:
            raise CodecError(f"bit rate {self.bit_rate}: must be at least 1000 bits per second")

    def at(self, fps: Fraction) -> CodecSettings:
        """These settings for a video of so many frames per second: a GOP's seconds in frames."""
        if not self.gop_seconds:
            return self
        span = max(round(self.gop_seconds * fps), self.gop_size)
        return replace(self, gop_span=span, gop_seconds=0.0)

    @property
    def span(self) -> int:
        """The number of frames of the video that a GOP stands for; only frames have one (`at`)."""
        assert not self.gop_seconds, f"{self.gop_seconds} seconds are frames only `at` a rate"
        return self.gop_size if self.gop_span is None else self.gop_span

    def coarser(self, factor: float) -> CodecSettings:
        """With a quantizer so many times as large, or as small a bit rate, within what there is."""
        if self.quantizer is None:
            assert self.bit_rate is not None
            return replace(self, bit_rate=max(round(self.bit_rate / factor), 1000))
        return replace(self, quantizer=min(max(round(self.quantizer * factor), 1), 31))

    def encoded_frames(self, num_frames: int) -> list[int]:
        """The numbers of the frames that are encoded of a video of `num_frames`, ascending."""
        kept: list[int] = []
        starts = list(range(0, num_frames, self.span))
        # The apex is often a clip's last frame: in a GOP of its own it would have no residual.
        if (
            self.span > self.gop_size
            and len(starts) > 1
            and num_frames - starts[-1] < self.span / 2
        ):
            starts.pop()
        for start, end in zip(starts, [*starts[1:], num_frames], strict=True):
            last = end - 1
            count = min(self.gop_size, last - start + 1)
            kept += np.linspace(start, last, count).round().astype(int).tolist()
        return kept

    def encoded_fps(self, fps: Fraction) -> Fraction:
        """Frames per second of the bitstream that a video of `fps` is encoded into."""
        return fps * self.gop_size / self.span


def spelled_as_now(codec: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings by today's names: an earlier cfer wrote `quantiser` for `quantizer`."""
    return {"quantizer" if name == "quantiser" else name: codec[name] for name in codec}


def encode(
    pictures: Iterable[np.ndarray],
    settings: CodecSettings,
    fps: Fraction | float,
    times: Sequence[float] | None = None,
) -> Bitstream:
    """Encode RGB pictures, uint8 (H, W, 3), all of one size, as I P P P … I P P P ….

    Args:
        pictures: all of them are encoded; `settings.encoded_frames` says which frames of a video
            to give.
        fps: frames per second of these pictures (`settings.encoded_fps`); rate control uses it.
        times: when each picture is shown and, one value more, when the last one ends: seconds,
            ascending. Only the container has them; the packets are the same without them. None:
            evenly, at `fps`.

    Raises:
        CodecError: no picture, one that cannot be encoded, or pictures of different shapes.
    """
    rate = _encodable_rate(fps)
    pictures = iter(pictures)
    first = next(pictures, None)
    if first is None:
        raise CodecError("no picture to encode")
    _check_picture(first)
    options = {
        "g": str(settings.gop_size),
        "bf": "0",
        # A scene change must not start a GOP of its own.
        "sc_threshold": "1000000000",
        # An intra block in a P-frame would carry appearance.
        "intra_penalty": "100000",
        # Without it, FFmpeg cuts a GOP of more than 600 frames down to 600, and only warns.
        "strict": "experimental",
        # The encoder must not write its version into the stream.
        "flags": "+bitexact",
    }
    if settings.quantizer is not None:
        # `global_quality` is ignored without a flag that PyAV does not pass on.
        options |= {"qmin": str(settings.quantizer), "qmax": str(settings.quantizer)}
    if not settings.motion_search:
        options["motion_est"] = "zero"
    output = io.BytesIO()
    ticks, per_second = ([], TICKS_PER_SECOND) if times is None else ticks_of(times)

    def tick(number: int) -> int:
        return ticks[number] if ticks else round(number / rate * per_second)

    def encoded() -> Iterator[Packet]:
        for number, picture in enumerate(itertools.chain([first], pictures)):
            if picture.shape != first.shape:
                raise CodecError(
                    f"picture {number} is {picture.shape}, the first one {first.shape}"
                )
            # The stream converts it, by a converter that it keeps.
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            yield from stream.encode(frame)
        yield from stream.encode(None)

    how = {"fflags": "+bitexact", "video_track_timescale": str(per_second)}
    with av.open(output, "w", format="mp4", options=how) as container:
        stream = container.add_stream("mpeg4", rate=rate, options=options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if settings.bit_rate is not None:
            stream.bit_rate = settings.bit_rate
        for number, packet in enumerate(encoded()):
            packet.time_base = Fraction(1, per_second)
            packet.pts = packet.dts = tick(number)
            packet.duration = tick(number + 1) - tick(number)
            container.mux(packet)
    return Bitstream(output.getvalue(), "encoded clip")


def _check_picture(picture: np.ndarray) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise CodecError(f"a picture is uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    if min(picture.shape[:2]) < 2 or max(picture.shape[:2]) > 8191:
        raise CodecError(f"a picture's sides are 2 to 8191 pixels, not {picture.shape[:2]}")


def _encodable_rate(fps: Fraction | float) -> Fraction:
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise CodecError(f"{fps} frames per second: must be above 0")
    if rate.numerator > MAX_TICKS_PER_SECOND:
        rate = Fraction(min(round(rate), MAX_TICKS_PER_SECOND))
    return rate
