"""What a video format has to say so that `Bitstream` can read residuals from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import ClassVar, Protocol

from cfer.errors import InputError

GRAY = 128
MACROBLOCK = 16  # samples along one side

Sent = tuple[bytes, int | None]
"""A packet for a decoder, and the number of the frame that it shows; None: nobody asks for it."""


class CodecError(InputError):
    """A bitstream that cannot be written as asked, or cannot be read exactly."""


class Format(Protocol):
    """The frames of one video, for a stock decoder: as they are, or on gray references.

    Attributes:
        width, height: in samples of luma.
        packets: the bytes of each frame.
        sources: the number of the container's packet that each frame came in.
        frame_types: one letter a frame: I, P, B, or N (the picture before it, again).
        decoder: FFmpeg's name for it.
        header: what the decoder is told before the first packet.
        decoder_options: FFmpeg's, by name.
        keeps_gray: whether a decoder still has the gray picture after a direct residual.
        orphans: the numbers of frames that are predicted from what the file lacks, and not shown.
    """

    width: int
    height: int
    packets: list[bytes]
    sources: Sequence[int]
    frame_types: str
    header: bytes
    decoder: ClassVar[str]
    decoder_options: ClassVar[Mapping[str, str]]
    keeps_gray: ClassVar[bool]

    @property
    def orphans(self) -> Set[int]:
        return frozenset()

    @property
    def display_order(self) -> Sequence[int]:
        """The numbers of the frames, in the order in which they are shown."""

    def window(self, start: int) -> range:
        """The frames after one, up to the next I-frame."""
        stop = self.frame_types.find("I", start + 1)
        return range(start + 1, stop if stop > 0 else len(self.packets))

    def whole(self, frames: range) -> list[Sent]:
        """What has to be decoded to see these frames as any player shows them."""

    def alone(self, i_frame: int) -> bytes:
        """An I-frame with the headers that it needs."""

    def direct(self, frame: int) -> tuple[list[bytes], bytes]:
        """What a decoder is given to show one frame's residual: the gray reference, the same list
        for as long as the decoder may keep it, and the frame."""

    def accumulated(self, start: int) -> list[Sent]:
        """What a decoder is given to show the residuals since a frame, up to the next I-frame.

        Raises:
            CodecError: they would not be exact.
        """

    def references(self, frame: int) -> list[Sequence[int]]:
        """Of each list of references, the numbers of the frames in it."""

    def kept(self, frame: int) -> Sequence[int]:
        """The numbers of the frames that later ones may be predicted from."""


class BitReader:
    """Bits of a header, most significant first; a ValueError where it ends too early.

    Attributes:
        left: how many are left.
    """

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._size = self.left = 8 * len(data)

    @property
    def position(self) -> int:
        """How many bits were read."""
        return self._size - self.left

    def take(self, count: int) -> int:
        if count > self.left:
            raise ValueError("the header ends too early")
        self.left -= count
        return (self._value >> self.left) & ((1 << count) - 1)

    def take_ue(self) -> int:
        """An unsigned Exp-Golomb code (H.264, 9.1)."""
        rest = self._value & ((1 << self.left) - 1)
        # As many bits follow the first one as there are zeros before it.
        left = 2 * rest.bit_length() - self.left - 1
        if left < 0:
            raise ValueError("the header ends too early")
        self.left = left
        return (rest >> left) - 1

    def take_se(self) -> int:
        """A signed one (9.1.1): 0, 1, −1, 2, −2, …"""
        code = self.take_ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)

    def between(self, start: int, end: int) -> Bits:
        """The bits from one position to another."""
        return (self._value >> (self._size - end)) & ((1 << (end - start)) - 1), end - start


Bits = tuple[int, int]
"""Some bits as a number, and how many they are."""


class BitWriter:
    """Bits, most significant first."""

    def __init__(self) -> None:
        self.value = self.length = 0

    def put(self, value: int, count: int) -> None:
        self.value = self.value << count | value
        self.length += count

    def put_ue(self, value: int) -> None:
        self.put(value + 1, 2 * (value + 1).bit_length() - 1)

    def put_se(self, value: int) -> None:
        self.put_ue(2 * value - 1 if value > 0 else -2 * value)

    def with_trailing_bits(self) -> bytes:
        """A one, and zeros up to the byte's end (H.264, 7.3.2.11)."""
        self.put(1, 1)
        self.put(0, -self.length % 8)
        return self.value.to_bytes(self.length // 8, "big")
