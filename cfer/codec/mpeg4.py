"""MPEG-4 Part 2 (ISO/IEC 14496-2), bit by bit: the layer header, and the gray picture for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cfer.errors import InputError

GRAY = 128
VOP_START_CODE = b"\x00\x00\x01\xb6"
MACROBLOCK = 16  # samples along one side
# The start code of a video object layer (6.3.1), and the header behind it.
_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f](.{1,400})", re.DOTALL)


class CodecError(InputError):
    """A bitstream that cannot be written as asked, or cannot be read exactly."""


class BitReader:
    """Bits of a header, most significant first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the header ends too early")
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)


@dataclass(frozen=True)
class VideoObjectLayer:
    """The fields of the video object layer's header that are needed to write a picture for it
    (14496-2, 6.2.3).

    Attributes:
        width, height: in samples of luma.
        time_bits: length of the field for a frame's time within its second.
        interlaced: whether a macroblock may be coded as two fields.
        low_delay: whether the header says that there is no B-frame.
    """

    width: int
    height: int
    time_bits: int
    interlaced: bool
    low_delay: bool

    @classmethod
    def parse(cls, header: bytes, name: str) -> VideoObjectLayer:
        """Read the header in these bytes; `name` is what messages call the video.

        Raises:
            CodecError: no layer header, or a coding tool whose residuals cannot be read exactly.
        """
        found = _LAYER.search(header)
        if found is None:
            raise CodecError(f"{name}: it has no MPEG-4 layer header; re-encode it (cfer encode)")
        try:
            return cls._parse(BitReader(found[1]))
        except ValueError as error:
            raise CodecError(
                f"{name}: {error}, so its residuals cannot be read exactly; "
                "re-encode it (cfer encode)"
            ) from error

    @classmethod
    def _parse(cls, bits: BitReader) -> VideoObjectLayer:
        bits.take(1 + 8)  # random access, object type
        version = 1
        if bits.take(1):
            version = bits.take(4)
            bits.take(3)  # priority
        if bits.take(4) == 15:  # extended aspect ratio
            bits.take(16)
        low_delay = False
        if bits.take(1):  # control parameters
            bits.take(2)  # chroma format
            low_delay = bool(bits.take(1))
            if bits.take(1):  # buffer verifier
                bits.take(79)
        if bits.take(2) != 0:
            raise ValueError("it is not rectangular")
        bits.take(1)
        ticks_per_second = bits.take(16)
        bits.take(1)
        time_bits = max((ticks_per_second - 1).bit_length(), 1)
        if bits.take(1):  # fixed rate
            bits.take(time_bits)
        bits.take(1)
        width = bits.take(13)
        bits.take(1)
        height = bits.take(13)
        bits.take(1)
        interlaced = bool(bits.take(1))
        if not bits.take(1):
            raise ValueError("it has overlapped block motion compensation")
        if bits.take(1 if version == 1 else 2):
            raise ValueError("it has sprites (global motion compensation)")
        if bits.take(1):
            raise ValueError("its samples are not of 8 bits")
        if bits.take(1):  # MPEG quantization, perhaps with matrices
            for _ in range(2):
                if bits.take(1):
                    for _ in range(64):
                        if bits.take(8) == 0:
                            break
        if version != 1:
            bits.take(1)  # quarter-sample vectors
        if not bits.take(1):
            raise ValueError("it has complexity estimation")
        bits.take(1)  # resynchronization markers
        if bits.take(1):
            raise ValueError("its data are partitioned")
        if version != 1:
            if bits.take(1):
                raise ValueError("it has NEWPRED")
            if bits.take(1):
                raise ValueError("it has reduced-resolution pictures")
        if bits.take(1):
            raise ValueError("it is scalable")
        return cls(width, height, time_bits, interlaced, low_delay)

    def is_coded(self, vop: bytes) -> bool:
        """Whether a VOP (the bytes after its start code) is coded, or repeats the one before it.

        Raises:
            ValueError: it ends before it says so.
        """
        # Of every frame of a file that is opened, so by arithmetic and not by a `BitReader`.
        bits, at = int.from_bytes(vop[:64], "big"), 8 * len(vop[:64]) - 3
        while at >= 0 and bits >> at & 1:  # whole seconds, after two bits of the coding type
            at -= 1
        at -= self.time_bits + 3  # a zero, a marker, the ticks, a marker
        if at < 0:
            raise ValueError("its header ends too early")
        return bool(bits >> at & 1)


def gray_vop(layer: VideoObjectLayer) -> bytes:
    """An I-VOP whose samples are all 128, for a stream's own layer header (14496-2, 6.2.5).

    Every block is intra with a DC difference of 0 and no other coefficient: the predicted DC is
    1024 at the picture's border, so it is 1024 everywhere, and 1024 / 8 = 128.
    """
    bits = ["00", "0", "1", "0" * layer.time_bits, "1", "1"]  # I, time, marker, coded
    bits.append("000")  # the DC is always written with the DC table
    if layer.interlaced:
        bits.append("10")  # top field first; no alternate scan
    bits.append("00001")  # quantizer 1: DC in steps of 8
    # Intra with no coefficient ("1"), no AC prediction ("0"), no luma coefficient ("0011"),
    # [frame DCT], then a DC difference of size 0 for four luma and two chroma blocks.
    macroblock = "1" + "0" + "0011" + "0" * layer.interlaced + "011" * 4 + "11" * 2
    columns, rows = -(-layer.width // MACROBLOCK), -(-layer.height // MACROBLOCK)
    bits.append(macroblock * (columns * rows))
    text = "".join(bits) + "0"  # stuffing: a zero, then ones up to the byte's end
    text += "1" * (-len(text) % 8)
    return VOP_START_CODE + int(text, 2).to_bytes(len(text) // 8, "big")
