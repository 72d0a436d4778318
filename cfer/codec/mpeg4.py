"""MPEG-4 Part 2 (ISO/IEC 14496-2), bit by bit: the layer header, and the gray picture for it.

Prediction is from the frame before, so the gray picture is an I-VOP that is written for the
stream's own header (`gray_vop`) and fits any encoder's stream. FFmpeg uses the same picture where
an I-frame is missing, so mostly not even that has to be decoded (`_missing_is_gray`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import av.error

from cfer.codec.decoder import new_decoder, packet_of, planes_of
from cfer.codec.format import GRAY, MACROBLOCK, BitReader, CodecError, Format, Sent

VOP_START_CODE = b"\x00\x00\x01\xb6"
# The start code of a video object layer (6.3.1), and the header behind it.
_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f](.{1,400})", re.DOTALL)


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


class Mpeg4(Format):
    """The frames of an MPEG-4 Part 2 video (see `Format`).

    Args:
        extradata: the codec's header, as the container has it.
        packets: the bytes of each frame.
        name: what messages call the video.

    Raises:
        CodecError: a B-frame, a coding tool whose residuals cannot be read exactly, or damage.
    """

    decoder = "mpeg4"
    keeps_gray = False
    # Report damaged data; by default the decoder conceals it.
    decoder_options: ClassVar = {"err_detect": "explode"}

    def __init__(self, extradata: bytes, packets: list[bytes], name: str) -> None:
        self.packets, self.name = packets, name
        self.sources = range(len(packets))
        # The layer header is somewhere before the first picture, wherever the muxer put it.
        self.header = extradata + packets[0][: max(packets[0].find(VOP_START_CODE), 0)]
        self.layer = VideoObjectLayer.parse(self.header, name)
        self.width, self.height = self.layer.width, self.layer.height
        self.frame_types = "".join(map(self.frame_type, range(len(packets))))

    @property
    def display_order(self) -> Sequence[int]:
        return range(len(self.packets))

    def whole(self, frames: range) -> list[Sent]:
        first = self.frame_types.rindex("I", 0, frames[0] + 1)
        coded = [n for n in range(first, frames.stop) if self.frame_types[n] != "N"]
        sent = [(self.packets[n], n if n in frames else None) for n in coded]
        return [(self.alone(first), sent[0][1]), *sent[1:]]

    def alone(self, i_frame: int) -> bytes:
        packet = self.packets[i_frame]
        return self.header + packet[packet.find(VOP_START_CODE) :]

    def direct(self, frame: int) -> tuple[list[bytes], bytes]:
        return self.reference, self.packets[frame]

    def accumulated(self, start: int) -> list[Sent]:
        sent = [(self.packets[n], n) for n in self.window(start) if self.frame_types[n] == "P"]
        return [*((packet, None) for packet in self.reference), *sent] if sent else []

    def references(self, frame: int) -> list[Sequence[int]]:
        return [[frame - 1]]

    def kept(self, frame: int) -> Sequence[int]:
        return [frame]

    @cached_property
    def reference(self) -> list[bytes]:
        """The packets that the decoder is given in place of an I-frame, to show residuals."""
        # FFmpeg's gray picture ends at the visible edge, and motion may point into the rest of a
        # macroblock beyond it. Where the decoder delays pictures, it also shows its gray one.
        whole = self.width % MACROBLOCK == 0 and self.height % MACROBLOCK == 0
        if whole and self.layer.low_delay and _missing_is_gray():
            return []
        return [self.gray]

    @property
    def gray(self) -> bytes:
        return self.header + gray_vop(self.layer)

    def frame_type(self, number: int) -> str:
        packet = self.packets[number]
        start = packet.find(VOP_START_CODE)
        if not 0 <= start < len(packet) - 4:
            raise CodecError(f"{self.name}: frame {number} holds no picture; the file is damaged")
        if packet.find(VOP_START_CODE, start + 4) >= 0:
            raise CodecError(
                f"{self.name}: packet {number} holds several pictures (a packed bitstream); "
                "re-encode it (cfer encode)"
            )
        kind = "IPBS"[packet[start + 4] >> 6]
        if kind in "BS":
            tool = "a B-frame" if kind == "B" else "a sprite (global motion compensation)"
            raise CodecError(
                f"{self.name}: frame {number} is {tool}, whose residual cannot be read exactly; "
                "re-encode it (cfer encode), or encode with -bf 0"
            )
        try:
            return kind if kind == "I" or self.layer.is_coded(packet[start + 4 :]) else "N"
        except ValueError as error:
            raise CodecError(
                f"{self.name}: frame {number}: {error}; the file is damaged"
            ) from error


# A stream of 16 × 16, and a P-frame of it that changes nothing.
_STILL_HEADER = bytes.fromhex("000001b001000001b58913000001000000012000c48d8800cd0084021463")
_STILL_P_FRAME = bytes.fromhex("000001b650f0237f")


@cache
def _missing_is_gray() -> bool:
    """Whether this FFmpeg uses a picture of 128 where a P-frame lacks its I-frame.

    Every version so far does (`mpegvideo`'s dummy pictures), but none promises it: each process
    checks once.
    """
    decoder = new_decoder("mpeg4", _STILL_HEADER, Mpeg4.decoder_options)
    try:
        frames = [*decoder.decode(packet_of(_STILL_P_FRAME)), *decoder.decode(None)]
    except av.error.FFmpegError:
        return False
    return len(frames) == 1 and all((plane == GRAY).all() for plane in planes_of(frames[0]))
