"""H.264 (ITU-T H.264, ISO/IEC 14496-10), bit by bit: parameter sets and slice headers, read, and
written anew for decoding on gray references.

Clauses are those of ITU-T H.264. Whatever is not proven exact is a ValueError that says what it is.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from cfer.codec.format import MACROBLOCK, BitReader, Bits, BitWriter

SLICE, IDR_SLICE, SPS, PPS = 1, 5, 7, 8  # nal_unit_type (table 7-1)
P, B, I = range(3)  # slice_type, modulo 5 (table 7-6)  # noqa: E741
START_CODE = b"\x00\x00\x00\x01"
MOST_REFERENCES = 16  # that are kept, or wait to be shown (A.3.1)
# With so many, every distance between two pictures can be written.
POC_BITS = 16
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # 7.3.2.1.1
_EMULATION = re.compile(rb"\x00\x00(?=[\x00-\x03])")
# Bytes of a slice's header: nearly always; and at the most, with tables of 64 weights.
_USUAL_HEADER, _LONGEST_HEADER = 64, 4096
_MOST_OPERATIONS = 66  # on a list, or of marking: a few more than there can be

Operation = tuple[int, ...]
"""A command of list modification or of reference marking: its number, and what it is given."""


def rbsp_of(nal: bytes) -> bytes:
    """The payload of a NAL unit without emulation prevention (7.3.1)."""
    return nal.replace(b"\x00\x00\x03", b"\x00\x00")


def nal_unit(ref_idc: int, kind: int, rbsp: bytes) -> bytes:
    """A NAL unit with its start code (7.3.1, B.1.1)."""
    if b"\x00\x00" in rbsp:
        rbsp = _EMULATION.sub(b"\x00\x00\x03", rbsp)
    return START_CODE + bytes([ref_idc << 5 | kind]) + rbsp


@dataclass(frozen=True)
class SequenceParameters:
    """What is needed of a sequence parameter set (7.3.2.1.1).

    Attributes:
        id: seq_parameter_set_id.
        frame_num_bits, poc_type, poc_bits: how pictures are numbered.
        num_ref_frames: how many pictures are kept as references.
        columns, rows: in macroblocks.
        width, height: that are shown, in samples of luma.
        head, middle: the bits before and after those that say how pictures are put in order; what
            follows them only helps to show the pictures.
    """

    id: int
    frame_num_bits: int
    poc_type: int
    poc_bits: int
    num_ref_frames: int
    columns: int
    rows: int
    width: int
    height: int
    head: Bits
    middle: Bits

    @classmethod
    def parse(cls, nal: bytes) -> SequenceParameters:
        bits = BitReader(rbsp_of(nal)[1:])
        profile = bits.take(8)
        bits.take(16)  # constraints, level
        number = bits.take_ue()
        if profile in _HIGH_PROFILES:
            chroma = bits.take_ue()
            if chroma != 1:
                names = {0: "it is monochrome", 2: "its chroma is 4:2:2", 3: "its chroma is 4:4:4"}
                raise ValueError(names.get(chroma, "its chroma is of an unknown format"))
            depths = bits.take_ue() + 8, bits.take_ue() + 8
            if depths != (8, 8):
                raise ValueError(f"its samples are of {max(depths)} bits")
            if bits.take(1):
                raise ValueError("it may hold lossless blocks (transform bypass)")
            if bits.take(1):
                for index in range(8):
                    if bits.take(1):
                        _skip_scaling_list(bits, 16 if index < 6 else 64)
        frame_num_bits = bits.take_ue() + 4
        head_end = bits.position
        poc_type, poc_bits = bits.take_ue(), 0
        if poc_type == 0:
            poc_bits = bits.take_ue() + 4
        elif poc_type == 1:
            raise ValueError("it orders pictures by a cycle of offsets (POC type 1)")
        middle_start = bits.position
        num_ref_frames = bits.take_ue()
        bits.take(1)  # gaps in frame_num
        columns, rows = bits.take_ue() + 1, bits.take_ue() + 1
        if not bits.take(1):
            raise ValueError("it is interlaced")
        bits.take(1)  # direct_8x8_inference
        width, height = MACROBLOCK * columns, MACROBLOCK * rows
        if bits.take(1):
            left, right, top, bottom = (2 * bits.take_ue() for _ in range(4))
            # Blocks are counted from the corner of what is shown, to the end of a macroblock.
            if left or top or max(right, bottom) >= MACROBLOCK:
                raise ValueError(
                    "its pictures are cut at the left or the top, or by more than a macroblock"
                )
            width -= right
            height -= bottom
        if (
            frame_num_bits > 16
            or poc_bits > 16
            or num_ref_frames > MOST_REFERENCES
            or min(width, height) < 1
        ):
            raise ValueError("its sequence parameters are out of their range")
        return cls(
            number, frame_num_bits, poc_type, poc_bits, num_ref_frames, columns, rows,
            width, height, bits.between(0, head_end), bits.between(middle_start, bits.position),
        )  # fmt: skip

    def written(self, num_reorder_frames: int) -> bytes:
        """The set with picture order counts of `POC_BITS`, and a promise of how many frames, at
        most, come before one that is shown earlier: the decoder then waits for no others."""
        bits = BitWriter()
        bits.put(*self.head)
        bits.put_ue(0)
        bits.put_ue(POC_BITS - 4)
        bits.put(*self.middle)
        bits.put(1, 1)  # VUI (E.1.1) with a bitstream restriction alone
        bits.put(0b0000_0000_1, 9)
        bits.put(1, 1)  # vectors over picture boundaries
        for value in (0, 0, 16, 16, num_reorder_frames, MOST_REFERENCES):
            bits.put_ue(value)
        return nal_unit(3, SPS, bits.with_trailing_bits())

    @property
    def max_frame_num(self) -> int:
        return 1 << self.frame_num_bits


@dataclass(frozen=True)
class PictureParameters:
    """A picture parameter set (7.3.2.2).

    Attributes:
        id, sps_id: its own, and that of its sequence parameter set.
        cabac: how slice data are coded.
        has_poc_delta: bottom_field_pic_order_in_frame_present_flag.
        num_refs: how many indices the two lists have where a slice does not say.
        weighted_pred, weighted_bipred_idc: of P- and of B-slices.
        quantizers: pic_init_qp_minus26, pic_init_qs_minus26, chroma_qp_index_offset.
        has_deblocking_control: whether slices say how they are deblocked.
        constrained_intra_pred: whether intra blocks keep away from inter blocks.
        tail: the bits after those: 8 × 8 transform, scaling matrices.
    """

    id: int
    sps_id: int
    cabac: int = 0
    has_poc_delta: int = 0
    num_refs: tuple[int, int] = (1, 1)
    weighted_pred: int = 0
    weighted_bipred_idc: int = 0
    quantizers: tuple[int, int, int] = (0, 0, 0)
    has_deblocking_control: int = 1
    constrained_intra_pred: int = 0
    tail: Bits = (0, 0)

    @classmethod
    def parse(cls, nal: bytes) -> PictureParameters:
        bits = BitReader(rbsp_of(nal)[1:].rstrip(b"\x00"))
        number, sps_id = bits.take_ue(), bits.take_ue()
        cabac, has_poc_delta = bits.take(1), bits.take(1)
        if bits.take_ue():
            raise ValueError("it has slice groups (flexible macroblock order)")
        num_refs = bits.take_ue() + 1, bits.take_ue() + 1
        weighted_pred, weighted_bipred_idc = bits.take(1), bits.take(2)
        quantizers = bits.take_se(), bits.take_se(), bits.take_se()
        has_deblocking_control, constrained_intra_pred = bits.take(1), bits.take(1)
        if bits.take(1):
            raise ValueError("it may have redundant pictures")
        if number > 255 or sps_id > 31 or max(num_refs) > 32:
            raise ValueError("its picture parameters are out of their range")
        start = bits.position
        tail, length = bits.between(start, start + bits.left)
        trailing = (tail & -tail).bit_length()  # a one, and zeros
        return cls(
            number, sps_id, cabac, has_poc_delta, num_refs, weighted_pred, weighted_bipred_idc,
            quantizers, has_deblocking_control, constrained_intra_pred,
            (tail >> trailing, length - trailing),
        )  # fmt: skip

    def written(self, with_weights: bool) -> bytes:
        """The set for headers of `SliceHeader.written`, with or without explicit weights."""
        bits = BitWriter()
        bits.put_ue(self.id)
        bits.put_ue(self.sps_id)
        bits.put(self.cabac, 1)
        bits.put(0, 1)
        bits.put_ue(0)
        bits.put_ue(self.num_refs[0] - 1)
        bits.put_ue(self.num_refs[1] - 1)
        bits.put(self.weighted_pred if with_weights else 0, 1)
        explicit = self.weighted_bipred_idc == 1
        bits.put(0 if explicit and not with_weights else self.weighted_bipred_idc, 2)
        for value in self.quantizers:
            bits.put_se(value)
        bits.put(1, 1)
        bits.put(self.constrained_intra_pred, 1)
        bits.put(0, 1)
        bits.put(*self.tail)
        return nal_unit(3, PPS, bits.with_trailing_bits())


@dataclass(frozen=True, slots=True)
class Weights:
    """Explicit weights (7.3.3.2).

    Attributes:
        shifts: luma_log2_weight_denom, chroma_log2_weight_denom.
        lists: of each index of list 0, and of list 1: (weight, offset) of Y, U and V.
        bits: the table as it is written.
    """

    shifts: tuple[int, int]
    lists: list[list[list[tuple[int, int]]]]
    bits: Bits

    @classmethod
    def of_offsets(cls, offsets: list[list[tuple[int, int]]]) -> Weights:
        """All weights are one; of each index of each list, what is added to U and to V."""
        table = BitWriter()
        table.put_ue(0)
        table.put_ue(0)
        for u, v in itertools.chain(*offsets):
            table.put(0b01, 2)  # nothing is said of luma
            for value in (1, u, 1, v):
                table.put_se(value)
        lists = [[[(1, 0), (1, u), (1, v)] for u, v in of_list] for of_list in offsets]
        return cls((0, 0), lists, (table.value, table.length))


@dataclass(slots=True)
class SliceHeader:
    """A slice header (7.3.3).

    Attributes:
        sps, pps: the sets that it refers to.
        ref_idc: 0: the picture is no reference.
        is_idr: whether decoding can begin here, with no picture before.
        first_macroblock: its address.
        slice_type: as it is written; `kind` is `P`, `B` or `I`.
        frame_num: number of the picture among the references.
        idr_id: idr_pic_id.
        poc: pic_order_cnt_lsb, and delta_pic_order_cnt_bottom.
        direct_spatial: direct_spatial_mv_pred_flag.
        num_refs: how many indices the two lists have, said anew in this slice or not.
        says_num_refs: num_ref_idx_active_override_flag.
        modifications: of each list, commands (7.3.3.1).
        weights: explicit ones.
        marking: commands (7.3.3.3); None: the oldest reference goes. Of an IDR picture two flags.
        cabac_init: cabac_init_idc.
        quantizer: slice_qp_delta.
        deblocking: disable_deblocking_filter_idc, and two offsets.
        num_bits: its length, emulation prevention taken out, without the NAL unit's first byte.
    """

    sps: SequenceParameters
    pps: PictureParameters
    ref_idc: int
    is_idr: bool
    first_macroblock: int
    slice_type: int
    kind: int
    frame_num: int
    idr_id: int
    poc: tuple[int, int]
    direct_spatial: int
    num_refs: tuple[int, int]
    says_num_refs: int
    modifications: list[list[Operation]]
    weights: Weights | None
    marking: list[Operation] | None
    cabac_init: int
    quantizer: int
    deblocking: tuple[int, int, int]
    num_bits: int

    @classmethod
    def parse(
        cls, nal: bytes, sps: dict[int, SequenceParameters], pps: dict[int, PictureParameters]
    ) -> SliceHeader:
        """Read the header of a NAL unit of kind `SLICE` or `IDR_SLICE`."""
        # Of a large slice only the beginning is looked at, and all of it only where that ends.
        if len(nal) > _USUAL_HEADER:
            try:
                return cls._parse(nal[:_USUAL_HEADER], sps, pps)
            except ValueError:
                pass
        return cls._parse(nal[:_LONGEST_HEADER], sps, pps)

    @classmethod
    def _parse(
        cls,
        nal: bytes,
        all_sps: dict[int, SequenceParameters],
        all_pps: dict[int, PictureParameters],
    ) -> SliceHeader:
        ref_idc, is_idr = nal[0] >> 5 & 3, nal[0] & 31 == IDR_SLICE
        bits = BitReader(rbsp_of(nal)[1:])
        first_macroblock, slice_type = bits.take_ue(), bits.take_ue()
        kind = slice_type % 5
        if kind > I or slice_type > 9:
            raise ValueError("it has switching slices (SP or SI)")
        pps = all_pps.get(bits.take_ue())
        sps = None if pps is None else all_sps.get(pps.sps_id)
        if pps is None or sps is None:
            raise ValueError("a slice names parameters that are not there")
        frame_num = bits.take(sps.frame_num_bits)
        idr_id = bits.take_ue() if is_idr else 0
        poc = (0, 0)
        if sps.poc_type == 0:
            poc = bits.take(sps.poc_bits), bits.take_se() if pps.has_poc_delta else 0
        direct_spatial = bits.take(1) if kind == B else 0
        num_refs, says_num_refs = pps.num_refs, 0
        modifications: list[list[Operation]] = []
        weights = None
        if kind != I:
            says_num_refs = bits.take(1)
            if says_num_refs:
                num_refs = bits.take_ue() + 1, bits.take_ue() + 1 if kind == B else num_refs[1]
                if max(num_refs) > 32:
                    raise ValueError("a slice has more references than there can be")
            modifications = [_modifications(bits) for _ in range(2 if kind == B else 1)]
            if pps.weighted_pred if kind == P else pps.weighted_bipred_idc == 1:
                weights = _weights(bits, num_refs[: 2 if kind == B else 1])
        marking: list[Operation] | None = None
        if is_idr:
            marking = [(bits.take(1), bits.take(1))]
        elif ref_idc and bits.take(1):
            marking = _marking(bits)
        return cls(
            sps, pps, ref_idc, is_idr, first_macroblock, slice_type, kind, frame_num, idr_id, poc,
            direct_spatial, num_refs, says_num_refs, modifications, weights, marking,
            bits.take_ue() if pps.cabac and kind != I else 0,
            bits.take_se(), _deblocking(bits) if pps.has_deblocking_control else (0, 0, 0),
            bits.position,
        )  # fmt: skip

    def written(self, nal: bytes) -> bytes:
        """The slice with this header in place of the one that it was read with.

        The picture order count takes `POC_BITS`, and the parameters are as their `written`.

        Args:
            nal: the NAL unit that `parse` was given; fields may have been replaced since then, but
                for `num_bits` and what says how the slice data are coded.
        """
        bits = BitWriter()
        bits.put_ue(self.first_macroblock)
        bits.put_ue(self.slice_type)
        bits.put_ue(self.pps.id)
        bits.put(self.frame_num % self.sps.max_frame_num, self.sps.frame_num_bits)
        if self.is_idr:
            bits.put_ue(self.idr_id)
        bits.put(self.poc[0] % (1 << POC_BITS), POC_BITS)
        if self.kind == B:
            bits.put(self.direct_spatial, 1)
        if self.kind != I:
            bits.put(self.says_num_refs, 1)
            if self.says_num_refs:
                for count in self.num_refs[: 2 if self.kind == B else 1]:
                    bits.put_ue(count - 1)
        for operations in self.modifications:
            _put_operations(bits, operations, 3)
        if self.weights:
            bits.put(*self.weights.bits)
        if self.is_idr:
            assert self.marking is not None
            for flag in self.marking[0]:
                bits.put(flag, 1)
        elif self.ref_idc:
            _put_operations(bits, self.marking or [], 0)
        if self.pps.cabac and self.kind != I:
            bits.put_ue(self.cabac_init)
        bits.put_se(self.quantizer)
        bits.put_ue(self.deblocking[0])
        if self.deblocking[0] != 1:
            bits.put_se(self.deblocking[1])
            bits.put_se(self.deblocking[2])
        # Zero words may follow the end of CABAC data (7.3.2.10).
        rbsp = rbsp_of(nal)[1:].rstrip(b"\x00")
        if self.pps.cabac:
            # Slice data begin at a whole byte, after ones (7.3.4).
            padding = -bits.length % 8
            bits.put((1 << padding) - 1, padding)
            data = rbsp[-(-self.num_bits // 8) :]
        else:
            count = 8 * len(rbsp) - self.num_bits
            bits.put(int.from_bytes(rbsp, "big") & ((1 << count) - 1), count)
            data = b""
            # The last one that is set is the first of the trailing bits.
            zeros = (bits.value & -bits.value).bit_length() - 1
            bits.value >>= zeros
            bits.length -= zeros
            bits.put(0, -bits.length % 8)
        head = bits.value.to_bytes(bits.length // 8, "big")
        return nal_unit(self.ref_idc, IDR_SLICE if self.is_idr else SLICE, head + data)


def is_intra_slice(nal: bytes) -> bool:
    """Whether a NAL unit of kind `SLICE` or `IDR_SLICE` holds an I-slice, by its type alone."""
    bits = BitReader(rbsp_of(nal[:_USUAL_HEADER])[1:])
    bits.take_ue()  # first_mb_in_slice
    return bits.take_ue() % 5 == I


def gray_slice(
    sps: SequenceParameters,
    pps: PictureParameters,
    *,
    kind: int,
    is_idr: bool = False,
    ref_idc: int = 1,
    frame_num: int = 0,
    poc: int = 0,
    marking: list[Operation] | None = None,
) -> bytes:
    """A whole picture whose samples are all 128 if those of its references are.

    Args:
        pps: with CAVLC.
        kind: `I`: each macroblock is I_16x16 with DC prediction and no coefficient, and where
            nothing is predicted from, DC prediction is 128 (8.3.3.3, 8.3.4). `P`: each is skipped.
        ref_idc, frame_num, poc, marking: as in `SliceHeader`.
    """
    header = SliceHeader(
        sps, pps, ref_idc=ref_idc, is_idr=is_idr, first_macroblock=0, slice_type=5 + kind,
        kind=kind, frame_num=frame_num, idr_id=0, poc=(poc, 0), direct_spatial=0, num_refs=(1, 1),
        says_num_refs=1, modifications=[[]] if kind == P else [], weights=None,
        marking=[(0, 0)] if is_idr else marking, cabac_init=0, quantizer=0, deblocking=(1, 0, 0),
        num_bits=0,
    )  # fmt: skip
    count = sps.columns * sps.rows
    data = BitWriter()
    if kind == P:
        data.put_ue(count)  # mb_skip_run
        return header.written(b"\x41" + data.with_trailing_bits())
    # mb_type I_16x16_2_0_0 "00100", intra_chroma_pred_mode 0 "1", mb_qp_delta 0 "1", and no
    # coefficient in Intra16x16DCLevel "1" (7.3.5, tables 7-11 and 9-5): a byte for each.
    return header.written(b"\x65" + b"\x27" * count + b"\x80")


def _skip_scaling_list(bits: BitReader, size: int) -> None:
    last = following = 8
    for _ in range(size):  # 7.3.2.1.1.1
        if following:
            following = (last + bits.take_se()) % 256
        last = following or last


def _modifications(bits: BitReader) -> list[Operation]:
    operations: list[Operation] = []
    if bits.take(1):
        while (number := bits.take_ue()) != 3:
            if number > 3 or len(operations) == _MOST_OPERATIONS:
                raise ValueError("a slice changes its list in an unknown way")
            operations.append((number, bits.take_ue()))
    return operations


def _marking(bits: BitReader) -> list[Operation]:
    operations: list[Operation] = []
    while number := bits.take_ue():
        if number > 6 or len(operations) == _MOST_OPERATIONS:
            raise ValueError("a slice marks pictures in an unknown way")
        count = 2 if number == 3 else 0 if number == 5 else 1
        operations.append((number, *(bits.take_ue() for _ in range(count))))
    return operations


def _put_operations(bits: BitWriter, operations: list[Operation], end: int) -> None:
    bits.put(1 if operations else 0, 1)
    if operations:
        for operation in operations:
            for value in operation:
                bits.put_ue(value)
        bits.put_ue(end)


def _weights(bits: BitReader, num_refs: tuple[int, ...]) -> Weights:
    start = bits.position
    shifts = bits.take_ue(), bits.take_ue()
    lists: list[list[list[tuple[int, int]]]] = []
    for count in num_refs:
        lists.append([])
        for _ in range(count):
            planes: list[tuple[int, int]] = []
            for shift, num_planes in zip(shifts, (1, 2), strict=True):
                is_weighted = bits.take(1)
                for _ in range(num_planes):
                    planes.append(
                        (bits.take_se(), bits.take_se()) if is_weighted else (1 << shift, 0)
                    )
            lists[-1].append(planes)
    if max(shifts) > 7:
        raise ValueError("a slice has weights out of their range")
    return Weights(shifts, lists, bits.between(start, bits.position))


def _deblocking(bits: BitReader) -> tuple[int, int, int]:
    how = bits.take_ue()
    return (how, 0, 0) if how == 1 else (how, bits.take_se(), bits.take_se())
