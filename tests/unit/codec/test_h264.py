"""Residuals of H.264 against prediction from pixels alone, on streams of several kinds."""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from h264_streams import remuxed, scene, x264
from helpers import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from cfer.cli import run
from cfer.codec import GRAY, Bitstream, CodecError, CodecSettings, encode, residuals
from cfer.codec.decoder import planes_of
from cfer.codec.format import BitReader, BitWriter
from cfer.codec.h264 import H264
from cfer.codec.h264_syntax import (
    PPS,
    SLICE,
    START_CODE,
    B,
    I,
    P,
    PictureParameters,
    SequenceParameters,
    SliceHeader,
    gray_slice,
    nal_unit,
    rbsp_of,
)
from cfer.codec.verify import Picture, compare, verify
from cfer.errors import InputError

FIXTURES = REPOSITORY / "tests" / "fixtures" / "h264"
CHECKED_FRAMES = 2  # of a real file
PLAIN = "keyint=15:no-deblock=1:ref=1:bframes=0:weightp=0"
PYRAMID = "keyint=15:ref=4:bframes=5:b-adapt=0:b-pyramid=normal"


@cache
def clip(parameters: str = PYRAMID, container: str = "mp4", **kind: bool) -> Bitstream:
    return Bitstream(x264(scene(**kind), parameters, container), "clip")


def headers(bitstream: Bitstream) -> list[SliceHeader]:
    assert isinstance(bitstream._format, H264)
    return [header for frame in bitstream._format.frames for header in frame.slices]


def accumulated_mismatches(bitstream: Bitstream, start: int) -> tuple[int, int, int]:
    """Frames since a start, their blocks, and how many are not prediction from such frames or from
    gray + residual. What is predicted from are accumulated residuals themselves."""
    codec, sides = bitstream._format, (bitstream.height, bitstream.width)
    chroma = sides[0] // 2, sides[1] // 2
    gray = Picture(tuple(np.full(shape, GRAY, np.uint8) for shape in (sides, chroma, chroma)))
    pictures: dict[int, Picture] = {}
    total = np.zeros(3, int)
    for shown in bitstream.residuals_since(start):
        direct = bitstream.direct_residual(shown.frame)
        known = {n: pictures.get(n, gray) for kept in codec.references(shown.frame) for n in kept}
        total += compare(
            codec, shown.frame, (shown.y, shown.u, shown.v), (direct.y, direct.u, direct.v),
            shown.motion_vectors, known, with_weights=False,
        )  # fmt: skip
        pictures[shown.frame] = Picture((shown.y, shown.u, shown.v))
    return len(pictures), int(total[0]), int(total[1])


# ---- exactness -----------------------------------------------------------------------------------


def uses_what_it_is_for(name: str, bitstream: Bitstream) -> bool:
    every, types = headers(bitstream), bitstream.frame_types
    pps = every[0].pps
    checks = {
        "plain CABAC": pps.cabac and every[0].deblocking[0] == 1,
        "plain CAVLC": not pps.cabac and every[0].deblocking[0] == 1,
        "baseline": not pps.cabac and "B" not in types and not pps.tail[1],
        "main": pps.cabac and "B" in types and not pps.tail[1],
        "high": pps.tail[1] > 0 and every[0].deblocking[0] == 0,
        "several references": max(h.num_refs[0] for h in every) == 4,
        "B-pyramid": any(h.kind == B and h.ref_idc for h in every)
        and any(h.marking for h in every if not h.is_idr),
        "temporal direct": pps.weighted_bipred_idc == 2
        and any(h.kind == B and not h.direct_spatial for h in every),
        "explicit weights": sum(h.weights is not None for h in every) > 5,
        "explicit weights, a fade": sum(h.weights is not None for h in every) > 20,
        "several slices": len(every) == 4 * len(types),
        "small partitions": True,
        "open GOP": not any(h.is_idr for h in every[1:]) and "IB" in types,
        "scaling matrices": pps.constrained_intra_pred and pps.tail[1] > 3,
        "intra refresh": types.count("I") == 1,
    }  # fmt: skip
    return bool(checks[name])


@pytest.mark.parametrize(
    ("name", "parameters", "kind"),
    [
        ("plain CABAC", PLAIN, {}),
        ("plain CAVLC", f"{PLAIN}:cabac=0:8x8dct=0", {}),
        ("baseline", "keyint=15:cabac=0:8x8dct=0:bframes=0:weightp=0:ref=2", {}),
        ("main", "keyint=15:8x8dct=0:bframes=2:b-pyramid=none", {}),
        ("high", "keyint=15:8x8dct=1:deblock=2,2", {"flashes": True}),
        ("several references", "keyint=15:ref=4:bframes=0:weightp=0", {}),
        ("B-pyramid", PYRAMID, {}),
        ("temporal direct", "keyint=15:ref=3:bframes=3:b-adapt=0:direct=temporal", {}),
        ("explicit weights", "keyint=15:weightp=2:ref=4:bframes=3", {"fades": True}),
        ("explicit weights, a fade", "keyint=30:weightp=2:ref=3:bframes=0", {"fades": True}),
        ("several slices", "keyint=15:slices=4", {}),
        ("small partitions", "keyint=15:partitions=all:ref=2:subme=7", {"small_parts": True}),
        ("open GOP", "open-gop=1:keyint=12:bframes=3:b-adapt=0", {}),
        ("scaling matrices", "keyint=15:cqm=jvt:constrained-intra=1", {"flashes": True}),
        ("intra refresh", "intra-refresh=1:keyint=10:bframes=0", {}),
    ],
)  # fmt: skip
def test_a_residual_is_exact(name: str, parameters: str, kind: dict[str, bool]) -> None:
    """What a decoder shows is a prediction from the pictures before + the direct residual; what is
    accumulated, a prediction from what is accumulated + the direct residual."""
    bitstream = clip(parameters, **kind)
    assert uses_what_it_is_for(name, bitstream)
    proof = verify(bitstream, 0 if name.startswith("plain") else 15)
    assert proof.differing == 0
    assert proof.blocks > 30 * proof.frames * (1 - proof.intra_fraction) / 2
    if name == "small partitions":
        assert 0 < proof.partly < proof.blocks / 2
    else:
        assert proof.partly == 0
    assert (proof.intra_fraction > 0.01) == ("flashes" in kind or name == "intra refresh")
    later = bitstream.gops[-2][0] if len(bitstream.gops) > 1 else 0
    p_frame = bitstream.frame_types.find("P", later + 1)
    for start in (later, p_frame):
        frames, blocks, differing = accumulated_mismatches(bitstream, start)
        assert differing == 0
        assert blocks >= 20 * frames
        assert frames > 0 or start == p_frame


def test_every_sample_of_a_plain_stream_is_compared() -> None:
    """One reference, no intra block, no partition below 8 × 8: blocks fill the picture."""
    bitstream = clip(PLAIN)
    for number in (1, 7):
        residual = bitstream.direct_residual(number)
        vectors = residual.motion_vectors
        area = vectors["w"].astype(int) * vectors["h"]
        assert area.sum() == 80 * 96
        assert residual.saturated_fraction == 0
        assert np.abs(residual.y.astype(int) - GRAY).max() > 3


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_one_sample_off_by_one_is_seen(plane: int) -> None:
    bitstream = clip(PLAIN)
    accumulated = bitstream.accumulated_residuals(0)
    before, shown = (
        tuple(p.copy() for p in (r.y, r.u, r.v)) for r in (accumulated[2], accumulated[3])
    )
    direct = bitstream.direct_residual(shown_number := accumulated[3].frame)
    how = bitstream._format, shown_number
    sent = direct.y, direct.u, direct.v
    rest = accumulated[3].motion_vectors, {accumulated[2].frame: Picture(before)}
    assert compare(*how, shown, sent, *rest).tolist()[1:] == [0, 0]
    shown[plane][21, 30] += 1
    assert compare(*how, shown, sent, *rest).tolist()[1:] == [1, 0]


def naive_luma(picture: np.ndarray, x: int, y: int) -> int:
    """A sample at (x, y) in quarters, letter by letter as in ITU-T H.264, 8.4.2.2.1."""

    def full(column: int, row: int) -> int:
        rows, columns = picture.shape
        return int(picture[min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)])

    def taps(values: list[int]) -> int:
        e, f, g, h, i, j = values
        return e - 5 * f + 20 * g + 20 * h - 5 * i + j

    def clip1(value: int) -> int:
        return min(max(value, 0), 255)

    column, row = x >> 2, y >> 2
    near = range(-2, 4)

    def b1(row: int) -> int:
        return taps([full(column + n, row) for n in near])

    def h1(column: int) -> int:
        return taps([full(column, row + n) for n in near])

    corner, right, below = full(column, row), full(column + 1, row), full(column, row + 1)
    b, s = clip1((b1(row) + 16) >> 5), clip1((b1(row + 1) + 16) >> 5)
    h, m = clip1((h1(column) + 16) >> 5), clip1((h1(column + 1) + 16) >> 5)
    j = clip1((taps([b1(row + n) for n in near]) + 512) >> 10)
    pairs = {
        (0, 0): (corner, corner), (0, 1): (corner, h), (0, 2): (h, h), (0, 3): (below, h),
        (1, 0): (corner, b), (1, 1): (b, h), (1, 2): (h, j), (1, 3): (h, s),
        (2, 0): (b, b), (2, 1): (b, j), (2, 2): (j, j), (2, 3): (j, s),
        (3, 0): (right, b), (3, 1): (b, m), (3, 2): (j, m), (3, 3): (s, m),
    }  # fmt: skip
    one, other = pairs[x & 3, y & 3]
    return (one + other + 1) >> 1


def test_prediction_is_that_of_the_standard() -> None:
    rng = np.random.default_rng(0)
    planes = tuple(rng.integers(0, 256, shape, np.uint8) for shape in ((16, 32), (8, 16), (8, 16)))
    picture = Picture(planes)
    for right, down in itertools.product(range(4), range(4)):
        for x, y in ((8, 8), (-40, 20), (130, -9), (60, 90), (-400, 300)):
            at = 4 * (x // 4) + right, 4 * (y // 4) + down
            naive = [
                [naive_luma(planes[0], at[0] + 4 * i, at[1] + 4 * k) for i in range(4)]
                for k in range(4)
            ]
            assert picture.luma(*at, 4, 4).tolist() == naive
    for x, y in rng.integers(-60, 190, (40, 2)).tolist():  # 8.4.2.2.2
        rows, columns = (
            np.clip([y >> 3, (y >> 3) + 1], 0, 7),
            np.clip([x >> 3, (x >> 3) + 1], 0, 15),
        )
        a, b, c, d = (int(planes[2][row, column]) for row in rows for column in columns)
        fx, fy = x & 7, y & 7
        wanted = (8 - fx) * (8 - fy) * a + fx * (8 - fy) * b + (8 - fx) * fy * c + fx * fy * d
        assert picture.chroma(2, x, y, 1, 1).tolist() == [[(wanted + 32) >> 6]]


def test_files_as_they_were_found(faces_dir) -> None:
    for path in sorted(faces_dir.glob("*.mp4")):
        bitstream = Bitstream.open(path)
        kinds = set(bitstream.frame_types)
        assert kinds == set("IPB"), path
        # A short beginning: all that comes before a frame has to be decoded.
        stop = bitstream.frame_types.find("B", 20) + 1
        short = Bitstream(bitstream._format.annex_b(range(stop)), path.name)
        proof = verify(short, CHECKED_FRAMES)
        assert proof.differing == 0
        assert proof.blocks > 400


@pytest.mark.parametrize("name", ["whole", "slices", "intra"])
def test_another_encoder(name: str) -> None:
    """Streams of minih264 (tests/fixtures/h264); `slices` has packets with parts of pictures."""
    bitstream = Bitstream.open(FIXTURES / f"minih264-{name}.mp4")
    assert bitstream.frame_types == 2 * ("I" + 14 * "P")
    assert len(headers(bitstream)) == (34 if name == "slices" else 30)
    proof = verify(bitstream, 0)
    assert (proof.frames, proof.differing, proof.partly) == (28, 0, 0)
    assert proof.blocks > 1000
    assert (proof.intra_fraction > 0.05) == (name == "intra")
    if name != "intra":
        for start in (0, 3):
            frames, blocks, differing = accumulated_mismatches(bitstream, start)
            assert (frames, blocks > 400, differing) == (14 - start, True, 0)


@pytest.mark.parametrize("seed", range(4))
def test_references_that_are_marked_and_listed_by_commands(seed: int) -> None:
    """Long-term references too: a stream whose headers say at random what is kept, and which of it
    each index stands for. Its pictures are strange, and as exact as any."""
    rng = np.random.default_rng(seed)
    bitstream = clip("keyint=15:ref=4:bframes=0:weightp=0", "h264")
    codec = bitstream._format
    first = headers(bitstream)[0]
    most = first.sps.num_ref_frames
    short, long = [0], {}  # numbers of frames; those of long-term references by their index
    data = first.sps.written(0) + first.pps.written(True)
    data += replace(first, poc=(0, 0)).written(codec._slices(0)[0])
    kinds = set()
    for number in range(1, 15):
        header = codec.frames[number].slices[0]
        modifications, before = [], header.frame_num
        for _ in range(header.num_refs[0]):
            if long and (not short or rng.random() < 0.4):
                modifications.append((2, int(rng.choice(list(long)))))
                continue
            picture = int(rng.choice(short))
            back = (before - picture - 1) % first.sps.max_frame_num
            modifications.append((0, back))
            before = picture
        operations = [(4, 3)] if number == 1 else []
        kind = int(rng.choice([0, 1, 2, 3, 6])) if number > 1 else 6
        if kind in (1, 3) and short:
            picture = int(rng.choice(short))
            short.remove(picture)
            operations.append((kind, number - picture - 1))
            if kind == 3:
                index = int(rng.integers(3))
                operations[-1] += (index,)
                long[index] = picture
        elif kind == 2 and long:
            operations.append((2, int(rng.choice(list(long)))))
            del long[operations[-1][1]]
        index = int(rng.integers(3)) if kind == 6 else None

        def will_be_kept(index: int | None = index) -> int:
            return len(short) + (len(long) + 1 if index is None else len({*long, index}))

        if operations or index is not None:
            while will_be_kept() > most:
                operations.append((1, number - short.pop(0) - 1))
        elif will_be_kept() > most:  # without a command the oldest one goes
            del short[0]
        if index is None:
            short.append(number)
        else:
            operations.append((6, index))
            long[index] = number
        kinds |= {operation[0] for operation in operations}
        written = replace(
            header, poc=(2 * number, 0), modifications=[modifications], marking=operations or None
        )
        data += written.written(codec._slices(number)[0])
    assert kinds >= {3, 4, 6}
    marked = Bitstream(data, "marked")
    assert sorted(marked._format.kept(14)) == sorted([*short, *long.values()])
    proof = verify(marked, 0)
    assert (proof.frames, proof.differing) == (14, 0)
    for start in (0, 5, 9):
        frames, blocks, differing = accumulated_mismatches(marked, start)
        assert (frames, blocks > 100, differing) == (14 - start, True, 0)


# ---- containers, and what a file may be like -----------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "mpegts", "avi", "h264"])
def test_a_residual_is_the_same_in_every_container(container: str) -> None:
    # AVI takes start codes alone, and has no times of display.
    original = clip(PYRAMID, "h264" if container == "avi" else "mp4")
    file = io.BytesIO()
    with av.open(io.BytesIO(original.data)) as source, av.open(file, "w", format=container) as sink:
        stream = sink.add_stream_from_template(source.streams.video[0], rate=25)
        stream.time_base = Fraction(1, 25)
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream = stream
                if container == "avi":
                    packet.dts, packet.pts, packet.time_base = number, None, Fraction(1, 25)
                sink.mux(packet)
    bitstream = Bitstream(file.getvalue(), "copied")
    assert bitstream.frame_types.startswith("IPBBBBBPB")
    assert len(bitstream.gops) == 2
    for number in (3, 20):
        one, other = bitstream.direct_residual(number), original.direct_residual(number)
        for plane in "yuv":
            assert np.array_equal(getattr(one, plane), getattr(other, plane))
    order = bitstream.display_order
    assert [bitstream.times[n] for n in order] == pytest.approx([n / 25 for n in range(30)])
    assert bitstream.times[-1] == pytest.approx(30 / 25)
    with av.open(io.BytesIO(bitstream.data)) as there:
        shown = [frame.to_ndarray(format="yuv420p") for frame in there.decode(video=0)]
    pictures = list(bitstream.pictures())
    assert len(pictures) == len(shown) == 30
    assert all(np.array_equal(pictures[n][0], s[:80]) for n, s in zip(order, shown, strict=True))
    second = list(bitstream.gop_pictures(1))
    assert all(np.array_equal(s[0], p[0]) for s, p in zip(second, pictures[15:], strict=True))
    assert bitstream.i_frame(1).shape == (80, 96, 3)


def test_frames_that_an_edit_list_leaves_out_are_shown_at_no_time() -> None:
    """As of a film that was cut without encoding it anew: they are there to be decoded alone."""
    cut = Bitstream(remuxed(clip("keyint=15:bframes=2").data, seconds=-7 / 25), "cut")
    with av.open(io.BytesIO(cut.data)) as there:
        count = sum(1 for _ in there.decode(video=0))
    assert (len(cut.packets), count) == (30, 23)
    shown = [n / 25 for n in range(24)]
    assert cut.shown_times == pytest.approx(shown)
    times = [cut.times[n] for n in cut.display_order]
    assert times == pytest.approx([n / 25 for n in range(-7, 23)])
    assert cut.times[-1] == pytest.approx(23 / 25)


def test_avi_says_when_frames_are_decoded() -> None:
    """And has a clock of its own: 50 chunks a second, of which every second one is empty."""
    original = clip(PYRAMID, "h264")
    file = io.BytesIO()
    with av.open(io.BytesIO(original.data)) as source, av.open(file, "w", format="avi") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0], rate=50)
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.stream = stream
            packet.dts, packet.pts, packet.time_base = 2 * number, None, Fraction(1, 50)
            sink.mux(packet)
    *times, _ = Bitstream(file.getvalue(), "copied").shown_times
    assert times == pytest.approx([n / 25 for n in range(30)])


def flv_tags(data: bytes) -> list[bytes]:
    """The tags of an FLV file that hold video, but for the one that ends it."""
    at, found = 13, []
    while at < len(data):
        size = 11 + int.from_bytes(data[at + 1 : at + 4], "big")
        if data[at] == 9 and data[at + 12] != 2:
            found.append(data[at : at + size + 4])
        at += size + 4
    return found


@pytest.mark.parametrize("other", ["chroma-qp-offset=6", "cabac=0"])
def test_parameters_that_a_container_changes_in_mid_stream(other: str) -> None:
    settings = "keyint=15:bframes=0:ref=1:weightp=0:"
    files = [x264(scene(), settings + end, "flv") for end in ("chroma-qp-offset=0", other)]
    first, second = map(flv_tags, files)
    later = [
        tag[:4] + (int.from_bytes(tag[4:7], "big") + 1200).to_bytes(3, "big") + tag[7:]
        for tag in second
    ]
    joined = Bitstream(files[0][:13] + b"".join(first + later), "joined")
    alone = Bitstream(files[1], "alone")
    assert len(joined.packets) == 60
    # The second record's NAL units have lengths of two bytes.
    shorter = later[0][:20] + bytes([later[0][20] & 0xFD]) + later[0][21:]
    with pytest.raises(CodecError, match="shorter: its packets change their form in mid-stream"):
        Bitstream(files[0][:13] + b"".join([*first, shorter, *later[1:]]), "shorter")
    for number in (1, 20):
        one, known = joined.direct_residual(30 + number), alone.direct_residual(number)
        assert all(np.array_equal(getattr(one, p), getattr(known, p)) for p in "yuv")
    with av.open(io.BytesIO(joined.data)) as there:
        shown = [frame.to_ndarray(format="yuv420p")[:80] for frame in there.decode(video=0)]
    assert all(np.array_equal(y, s) for (y, _, _), s in zip(joined.pictures(), shown, strict=True))


@pytest.mark.parametrize(
    ("crop", "is_read"),
    [
        ("right=14", True),
        ("bottom=6", True),
        ("left=2", False),
        ("top=6", False),
        ("right=16", False),
        ("bottom=18", False),
    ],
)
def test_how_far_pictures_may_be_cut(crop: str, is_read: bool) -> None:
    """Masks and vectors count from the corner of what is shown."""
    side, _, samples = crop.partition("=")
    data = clip(PLAIN, "h264").data
    if not is_read:
        with pytest.raises(CodecError, match="its pictures are cut at the left or the top, or by"):
            Bitstream(remuxed(data, "h264", bits=f"h264_metadata=crop_{crop}"), "cut")
        return
    cut = Bitstream(remuxed(data, "h264", bits=f"h264_metadata=crop_{crop}"), "cut")
    less = int(samples)
    assert (cut.width, cut.height) == ((96 - less, 80) if side == "right" else (96, 80 - less))
    assert verify(cut, 4).differing == 0
    residual = cut.direct_residual(5, mask_intra=True)
    assert residual.y.shape == (cut.height, cut.width)
    assert np.array_equal(
        residual.intra, clip(PLAIN).direct_residual(5).intra[: -(-cut.height // 16)]
    )


def test_a_picture_that_is_missing_is_said_where_it_matters() -> None:
    lossy = Bitstream(remuxed(clip(PLAIN).data, "matroska", without=5), "lossy")
    assert np.array_equal(lossy.direct_residual(8).y, clip(PLAIN).direct_residual(9).y)
    for ask in (lambda: verify(lossy), lambda: lossy.reference_frames(8)):
        with pytest.raises(CodecError, match="a picture before frame 5 is missing"):
            ask()
    assert (lossy.reference_frames(16) >= -1).all()  # after the next IDR picture


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_a_header_that_does_not_end_is_given_up(size: int) -> None:
    first = clip(PLAIN, "h264").data
    end = [match.start() for match in re.finditer(b"\x00\x00\x01", first)][4]
    with pytest.raises(CodecError, match=r"a slice changes its list in an unknown way|ends too"):
        Bitstream(first[:end] + START_CODE + b"\x41" + b"\xff" * size, "ones")


def test_a_gop_whose_i_frame_is_spread_over_others_is_opened_whole(tmp_path: Path) -> None:
    """FFmpeg calls each P-frame at which decoding can begin a key frame."""
    path = tmp_path / "refresh.mp4"
    path.write_bytes(clip("intra-refresh=1:keyint=10:bframes=0").data)
    assert Bitstream.open(path).gops == [range(30)]
    found, number = Bitstream.open_gop(path, 0, 300)
    assert (found.gops[number], found.width) == (range(30), 96)
    last, number = Bitstream.open_gop(path, 1, 300)
    assert (number, len(last.gops)) == (1, 1)


def test_a_damaged_file_is_not_opened_in_part_either(tmp_path: Path) -> None:
    path, data = tmp_path / "damaged.mp4", bytearray(clip().data)
    first = data.index(b"mdat") + 4
    data[first : first + 4] = (1 << 24).to_bytes(4, "big")  # of the first NAL unit
    path.write_bytes(data)
    for opened in (lambda: Bitstream.open(path), lambda: Bitstream.open_gop(path, 0, 100)):
        with pytest.raises(CodecError, match=r"damaged\.mp4: frame 0: a slice is cut off"):
            opened()


def test_the_package_reads_h264_as_mpeg4(tmp_path) -> None:
    path = tmp_path / "phone.mp4"
    path.write_bytes(clip().data)
    direct = list(residuals(path, "direct"))
    assert [r.frame for r in direct] == [n for gop in clip().gops for n in gop[1:]]
    accumulated = list(residuals(path))
    assert np.array_equal(accumulated[0].y, direct[0].y)
    assert not np.array_equal(accumulated[-1].y, direct[-1].y)
    with pytest.raises(CodecError, match="residuals are read from MPEG-4 Part 2;"):
        Bitstream.open(path, codecs=["mpeg4"])


@pytest.mark.parametrize(("height", "width"), [(90, 102), (34, 50), (16, 16)])
def test_sizes_of_no_whole_macroblocks(height: int, width: int) -> None:
    bitstream = Bitstream(x264(scene(12, height, width), "keyint=12:ref=3"), "odd")
    assert (bitstream.height, bitstream.width) == (height, width)
    residual = bitstream.direct_residual(3)
    assert residual.y.shape == (height, width)
    assert residual.u.shape == (height // 2, width // 2)
    assert verify(bitstream, 0).differing == 0


def test_parameters_may_change_in_the_stream() -> None:
    kinds = "keyint=15:cabac=0:8x8dct=0:ref=1:bframes=0:weightp=0", PYRAMID, PLAIN
    parts = [clip(kind, "h264") for kind in kinds]
    whole = Bitstream(b"".join(part.data for part in parts), "joined")
    assert whole.frame_types == "".join(part.frame_types for part in parts)
    assert len({header.sps for header in headers(whole)}) == 3
    for index, part in enumerate(parts):
        for number in (4, 17):
            one, other = whole.direct_residual(30 * index + number), part.direct_residual(number)
            assert np.array_equal(one.y, other.y)
        one, other = whole.accumulated_residuals(2 * index + 1), part.accumulated_residuals(1)
        assert all(np.array_equal(a.v, b.v) for a, b in zip(one, other, strict=True))
    pictures = [picture for part in parts for picture in part.pictures()]
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(whole.pictures(), pictures, strict=True))
    assert verify(whole, 12).differing == 0


def test_picture_parameters_may_change_within_a_gop() -> None:
    bitstream = clip(PLAIN, "h264")
    codec = bitstream._format
    pps = headers(bitstream)[0].pps
    other = replace(pps, quantizers=(*pps.quantizers[:2], 7))
    data = codec.annex_b(range(6)) + other.written(True) + codec._annex_b(6)
    data += b"".join(codec._annex_b(n) for n in range(7, 15))
    changed = Bitstream(data, "changed")
    assert [header.pps.quantizers[2] for header in headers(changed)] == [
        *[pps.quantizers[2]] * 6, *[7] * 9
    ]  # fmt: skip
    assert not np.array_equal(changed.direct_residual(9).u, bitstream.direct_residual(9).u)
    assert verify(changed, 0).differing == 0
    assert accumulated_mismatches(changed, 0)[::2] == (14, 0)


def test_a_file_that_begins_within_an_open_gop() -> None:
    whole = clip("open-gop=1:keyint=12:bframes=3:b-adapt=0:b-pyramid=normal:ref=4", "h264")
    codec, start = whole._format, whole.gops[1][0]
    cut = Bitstream(codec.annex_b(range(start, len(whole.packets))), "cut")
    orphans = cut._format.orphans
    assert orphans == {1, 2, 3}
    for number in (2, 5, 11):
        one, other = cut.direct_residual(number), whole.direct_residual(start + number)
        assert np.array_equal(one.y, other.y)
    pictures = list(whole.pictures())[start:]
    for number, (one, other) in enumerate(zip(cut.pictures(), pictures, strict=True)):
        assert np.array_equal(one[0], other[0]) == (number not in orphans)
    for gop in range(2):
        frames, blocks, differing = accumulated_mismatches(cut, cut.gops[gop][0])
        assert (frames > 3, blocks > 100, differing) == (True, True, 0)
    assert verify(cut, 8).differing == 0


def test_frames_are_independent_of_what_was_read_before() -> None:
    bitstream = clip()
    wanted = [bitstream.direct_residual(n).y.copy() for n in (5, 20, 7)]
    running = bitstream.iter_accumulated_residuals(0)
    next(running)
    bitstream.i_frame(1)
    for number, y in zip((5, 20, 7), wanted, strict=True):
        assert np.array_equal(bitstream.direct_residual(number).y, y)
        next(running)
    alone = Bitstream(bitstream.data, "alone")
    for number in range(len(alone.packets)):
        if number != 7:
            alone.packets[number] = b""
    assert np.array_equal(alone.direct_residual(7).y, wanted[2])


def test_what_there_is_no_residual_of() -> None:
    bitstream = clip()
    for number in (0, 15, 30, -1):
        with pytest.raises(ValueError, match="not one of the P-frames"):
            bitstream.direct_residual(number)
    with pytest.raises(ValueError, match="not one of the I- and P-frames"):
        bitstream.residuals_since(bitstream.frame_types.index("B"))
    assert list(Bitstream(x264(scene(3), "keyint=1"), "I-frames").residuals_since(0)) == []


def test_accumulation_needs_every_reference() -> None:
    bitstream = clip(PLAIN, "h264")
    frames = [n for n in range(30) if n != 5]
    codec = bitstream._format
    data = codec.annex_b(range(1)) + b"".join(codec._annex_b(n) for n in frames[1:])
    lacking = Bitstream(data, "lacking")
    assert np.array_equal(lacking.direct_residual(5).y, bitstream.direct_residual(6).y)
    with pytest.raises(CodecError, match="lacking: a picture before frame 5 is missing"):
        lacking.accumulated_residuals(0)
    assert len(lacking.accumulated_residuals(1)) == 14


def test_the_command_says_what_a_file_transmits(tmp_path, capsys) -> None:
    path = tmp_path / "phone.mp4"
    path.write_bytes(clip("keyint=15:bframes=0", flashes=True).data)
    assert run(["residuals", str(path), "--verify", "--frames", "3"]) == 0
    first, p_frames, proof = capsys.readouterr().out.splitlines()
    assert first == f"{path}: H.264, 96 × 80, 30 frames (2 I, 28 P) in 2 GOPs"
    assert re.match(
        r"P-frames: [1-9]\.\d\d% of the macroblocks are intra, at the worst \d\d", p_frames
    )
    assert re.match(r"verified: 3 frames, \d{2,3} inter blocks compared, 0 differ; ", proof)
    mpeg4 = encode(scene(3), CodecSettings(), 25)
    mpeg4.save(path)
    assert run(["residuals", str(path)]) == 0
    assert ": MPEG-4 Part 2, 96 × 80, 3 frames (1 I, 2 P) in 1 GOP\n" in capsys.readouterr().out
    with pytest.raises(CodecError, match=r"it is MPEG-4 Part 2; --verify is for H\.264"):
        run(["residuals", str(path), "--verify"])
    with pytest.raises(InputError, match="--frames -1: give how many, or 0 for all"):
        run(["residuals", str(path), "--frames", "-1"])


# ---- intra ---------------------------------------------------------------------------------------


def on_another_level(packet: bytes, count: int, level: int) -> bytes:
    """A packet whose last NAL unit, an intra picture of so many gray macroblocks, has another
    level: a macroblock of samples (I_PCM), and DC prediction from it everywhere else."""
    start = packet.rfind(START_CODE)
    nal = packet[start + len(START_CODE) :]
    rbsp = rbsp_of(nal)[1:]
    trailing = (rbsp[-1] & -rbsp[-1]).bit_length()
    writer = BitWriter()
    writer.put(*BitReader(rbsp).between(0, 8 * len(rbsp) - trailing - 8 * count))
    writer.put_ue(25)
    writer.put(0, -writer.length % 8)
    writer.put(int.from_bytes(bytes([level]) * 384), 8 * 384)
    for address in range(1, count):
        # No coefficient is written otherwise beside a block that has many (table 9-5).
        few, many = (0x27, 8), (0b0010011_000011, 13)
        writer.put(*(many if address in (1, COLUMNS) else few))
    return packet[:start] + nal_unit(nal[0] >> 5, nal[0] & 31, writer.with_trailing_bits())


COLUMNS, MACROBLOCKS = 6, 30
CONSTRAINED = "keyint=30:constrained-intra=1:ref=3:bframes=2:weightp=0"


def test_intra_macroblocks_are_those_that_follow_no_reference() -> None:
    """On references of another level, all of an inter block changes by the difference, and nothing
    of an intra block, which in this stream may not be predicted from inter blocks."""
    bitstream = clip(CONSTRAINED, flashes=True)
    shares = []
    for number in range(1, 30):
        gray, packet = bitstream._format.direct(number)
        level = on_another_level(gray[0], MACROBLOCKS, 100)
        frames = bitstream._shown(bitstream._new_decoder(), [(level, 0), (packet, number)])
        first, other = next(frames), next(frames)
        assert all((plane == 100).all() for plane in planes_of(first))
        residual = bitstream.direct_residual(number, mask_intra=True)
        plain = bitstream.direct_residual(number)
        change = plain.y.astype(int) - planes_of(other)[0]
        fits = (plain.y > 28) & (plain.y < 255)
        intra = residual.intra.repeat(16, 0).repeat(16, 1)
        assert (change[intra] == 0).all()
        assert (change[~intra & fits] == 28).all()
        assert (residual.y[intra] == GRAY).all()
        assert np.array_equal(residual.y[~intra], plain.y[~intra])
        assert residual.masked.mean() == residual.intra_fraction == plain.intra_fraction
        shares.append(residual.intra_fraction)
    assert max(shares) > 0.1
    assert min(shares) == 0


@pytest.mark.parametrize("parameters", [CONSTRAINED, f"{CONSTRAINED}:b-pyramid=normal:bframes=4"])
def test_what_is_predicted_from_intra_blocks_is_masked(parameters: str) -> None:
    """What does not follow the level of the I-frame's stand-in comes from intra blocks."""
    bitstream = clip(parameters, flashes=True)
    sent = bitstream._format.accumulated(0)
    levels = [(on_another_level(data, MACROBLOCKS, 100), None) for data, _ in sent[:2]]
    others = bitstream._shown(bitstream._new_decoder(), [*levels, *sent[2:]])
    plain = bitstream.accumulated_residuals(0)
    hidden = bitstream.accumulated_residuals(0, mask_intra=True)
    tainted = 0
    for other, shown, residual in zip(others, plain, hidden, strict=True):
        inside = (shown.y > 40) & (shown.y < 240)
        strange = (shown.y.astype(int) - planes_of(other)[0] != 28) & inside
        masked = residual.masked.repeat(4, 0).repeat(4, 1)
        assert not (strange & ~masked).any()
        tainted += int(strange.sum())
        assert (residual.y[masked] == GRAY).all()
        assert (residual.u[masked[::2, ::2]] == GRAY).all()
        assert np.array_equal(residual.y[~masked], shown.y[~masked])
    assert tainted > 2000
    shares = [residual.masked.mean() for residual in hidden]
    assert shares[0] == 0
    assert 0 < min(share for share in shares if share) < 0.3


# ---- headers -------------------------------------------------------------------------------------


def sets(cabac: int = 1) -> tuple[SequenceParameters, PictureParameters]:
    """As they are when they were written by us, and read again."""
    header = headers(clip())[0]
    sps = SequenceParameters.parse(header.sps.written(2)[len(START_CODE) :])
    pps = replace(header.pps, cabac=cabac, weighted_pred=0, weighted_bipred_idc=2)
    return sps, PictureParameters.parse(pps.written(False)[len(START_CODE) :])


OPERATIONS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15)), max_size=5)
MARKING = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([1, 2, 4, 6]), st.integers(0, 16)),
        st.tuples(st.just(3), st.integers(0, 16), st.integers(0, 16)),
        st.just((5,)),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(data=st.data())
def test_a_header_is_read_as_it_was_written(data: st.DataObject) -> None:
    sps, pps = sets(data.draw(st.integers(0, 1)))
    kind = data.draw(st.sampled_from([P, B, I]))
    is_idr = kind == I and data.draw(st.booleans())
    ref_idc = data.draw(st.integers(1 if is_idr else 0, 3))
    says_num_refs = data.draw(st.integers(0, 1)) if kind != I else 0
    num_refs = pps.num_refs
    if says_num_refs:
        given_counts = data.draw(st.tuples(st.integers(1, 32), st.integers(1, 32)))
        num_refs = given_counts if kind == B else (given_counts[0], pps.num_refs[1])
    deblocking = data.draw(st.sampled_from([(1, 0, 0), (0, -3, 6), (2, 6, -6), (0, 0, 0)]))
    marking = None
    if is_idr:
        marking = [data.draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))]
    elif ref_idc:
        marking = data.draw(st.none() | MARKING)
    num_lists = 0 if kind == I else 2 if kind == B else 1
    header = SliceHeader(
        sps=sps,
        pps=pps,
        ref_idc=ref_idc,
        is_idr=is_idr,
        first_macroblock=data.draw(st.integers(0, 40)),
        slice_type=kind + data.draw(st.sampled_from([0, 5])),
        kind=kind,
        frame_num=data.draw(st.integers(0, sps.max_frame_num - 1)),
        idr_id=data.draw(st.integers(0, 9)) if is_idr else 0,
        poc=(data.draw(st.integers(0, (1 << 16) - 1)), 0),
        direct_spatial=data.draw(st.integers(0, 1)) if kind == B else 0,
        num_refs=num_refs,
        says_num_refs=says_num_refs,
        modifications=[data.draw(OPERATIONS) for _ in range(num_lists)],
        weights=None,
        marking=marking,
        cabac_init=data.draw(st.integers(0, 2)) if pps.cabac and kind != I else 0,
        quantizer=data.draw(st.integers(-40, 40)),
        deblocking=deblocking,
        num_bits=0,
    )
    payload = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 200, 255]), max_size=90))
    payload = bytes([*payload, 0x80])
    nal = header.written(nal_unit(2, SLICE, payload)[len(START_CODE) :])[len(START_CODE) :]
    assert b"\x00\x00\x01" not in nal
    assert b"\x00\x00\x02" not in nal
    assert b"\x00\x00\x00" not in nal
    read = SliceHeader.parse(nal, {sps.id: sps}, {pps.id: pps})
    assert replace(read, num_bits=0) == header
    again = read.written(nal)
    assert again == START_CODE + nal
    # CABAC data are kept byte by byte, those of CAVLC bit by bit up to the last one.
    bits = "".join(f"{byte:08b}" for byte in rbsp_of(nal)[1:])
    sent = "".join(f"{byte:08b}" for byte in payload)
    start = -(-read.num_bits // 8) * 8 if pps.cabac else read.num_bits
    assert bits[start:].rstrip("0") == sent.rstrip("0")


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 255]), max_size=40))
def test_emulation_prevention(payload: list[int]) -> None:
    """Byte by byte, as in 7.4.1.1."""
    rbsp = bytes([*payload, 0x80])
    naive, zeros = bytearray(), 0
    for byte in rbsp:
        if zeros == 2 and byte <= 3:
            naive.append(3)
            zeros = 0
        naive.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    assert nal_unit(2, SLICE, rbsp) == START_CODE + b"\x41" + naive
    assert rbsp_of(bytes(naive)) == rbsp


def test_parameter_sets_are_read_as_they_were_written() -> None:
    for parameters in (PYRAMID, PLAIN, f"{PLAIN}:cabac=0:8x8dct=0", "cqm=jvt"):
        header = headers(Bitstream(x264(scene(3), parameters), "three"))[0]
        sps = SequenceParameters.parse(header.sps.written(3)[len(START_CODE) :])
        kept = (
            "id",
            "frame_num_bits",
            "num_ref_frames",
            "columns",
            "rows",
            "width",
            "height",
            "middle",
        )
        assert all(getattr(sps, name) == getattr(header.sps, name) for name in kept)
        assert (sps.poc_type, sps.poc_bits) == (0, 16)
        assert PictureParameters.parse(header.pps.written(True)[len(START_CODE) :]) == header.pps
        without = PictureParameters.parse(header.pps.written(False)[len(START_CODE) :])
        assert (without.weighted_pred, without.tail) == (0, header.pps.tail)


# ---- which pictures blocks refer to, and one GOP of a long file ----------------------------------


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 200, (64, 96, 1), np.uint8).repeat(3, 2)


def test_a_block_refers_to_the_picture_that_it_is_in() -> None:
    """Two pictures of noise by turns: only the last but one predicts a frame."""
    one, other = noise(0), noise(1)
    pictures = [[one, other][t % 2] for t in range(8)]
    bitstream = Bitstream(
        x264(pictures, "keyint=8:ref=3:bframes=0:weightp=0:slices=2"), "two pictures"
    )
    assert bitstream.frame_types == "IPPPPPPP"
    for number in range(3, 8):
        lists = bitstream._format.references(number)[0]
        assert {number - 1, number - 2} <= set(lists)
        found = bitstream.reference_frames(number)
        assert found.shape == (2, 8, 12)
        assert (found[0] == number - 2).mean() > 0.9
        assert (found[1] == -1).all()


def test_a_block_of_a_b_frame_refers_to_before_or_after() -> None:
    """Its left third is the picture before, its right third the one after, and between them is the
    mean of both."""
    before, after = noise(2), noise(3)
    middle = np.concatenate(
        [
            before[:, :32],
            (before[:, 32:64].astype(int) + after[:, 32:64] + 1).astype(int) // 2,
            after[:, 64:],
        ],
        axis=1,
    ).astype(np.uint8)
    pictures = [before, middle, after]
    for weights in ("weightb=0", "weightb=1"):
        parameters = f"keyint=9:bframes=1:b-adapt=0:ref=2:{weights}"
        bitstream = Bitstream(x264(pictures, parameters, crf=10), "thirds")
        assert bitstream.frame_types == "IPB"
        first, second = bitstream.reference_frames(2)
        left, between, right = slice(0, 4), slice(4, 8), slice(8, 12)
        assert ((first == 0) & (second == -1))[:, left].mean() > 0.9
        assert ((first == 0) & (second == 1))[:, between].mean() > 0.9
        assert ((first == -1) & (second == 1))[:, right].mean() > 0.9


def test_intra_blocks_refer_to_nothing() -> None:
    bitstream = clip("keyint=15:cqm=jvt:constrained-intra=1", flashes=True)
    seen = 0
    for number in (n for n, kind in enumerate(bitstream.frame_types) if kind != "I"):
        found = bitstream.reference_frames(number)
        intra = bitstream.direct_residual(number).intra.repeat(2, 0).repeat(2, 1)
        assert np.array_equal((found == -1).all(0), intra)
        seen += int(intra.sum())
    assert seen > 20


def test_references_are_read_of_p_and_b_frames_of_h264() -> None:
    with pytest.raises(ValueError, match="frame 0 is not one of the P-frames"):
        clip().reference_frames(0)
    other = encode(scene(2), CodecSettings(), 25)
    with pytest.raises(CodecError, match=r"references are read from H\.264 alone"):
        other.reference_frames(1)


@pytest.mark.parametrize("container", ["mp4", "mpegts", "h264"])
def test_one_gop_is_that_of_the_whole_file(container: str, tmp_path) -> None:
    whole = Bitstream(x264(scene(30), PYRAMID.replace("15", "8"), container), "whole")
    whole.save(path := tmp_path / "file")
    assert len(whole.gops) == 4
    for gop in (0, 2, 3):
        found, number = Bitstream.open_gop(path, gop, 100)
        frames = found.gops[number]
        assert [found.packets[n][-20:] for n in frames] == [
            whole.packets[n][-20:] for n in whole.gops[gop]
        ]
        assert found.gops[-1] == frames
        one = list(found.iter_accumulated_residuals(number))
        other = whole.accumulated_residuals(gop)
        assert all(np.array_equal(a.y, b.y) for a, b in zip(one, other, strict=True))
    last, number = Bitstream.open_gop(path, 6, 100)
    assert (len(last.gops), number) == (1, 3)


def test_an_i_frame_that_is_no_key_frame_begins_a_gop_too(tmp_path) -> None:
    """It may be predicted across, so all from the key frame on is kept."""
    marked = clip("keyint=8:ref=3:bframes=2:b-adapt=0:open-gop=1")
    # Without the messages that say where decoding can begin.
    whole = Bitstream(marked._format.annex_b(range(30)), "whole")
    whole.save(path := tmp_path / "file.h264")
    assert len(whole.gops) >= 3
    assert sum(header.is_idr for header in headers(whole)) == 1
    found, number = Bitstream.open_gop(path, 1, 5)
    stop = 10  # twice as many are read at a time
    assert whole.gops[1][0] < stop < whole.gops[1][-1]
    assert (number, found.frame_types) == (1, whole.frame_types[:stop])
    one, other = found.direct_residual(stop - 1), whole.direct_residual(stop - 1)
    assert np.array_equal(one.y, other.y)
    with pytest.raises(CodecError, match="GOP 2 begins too far from where decoding can begin"):
        Bitstream.open_gop(path, 2, 5)


def test_of_a_long_file_no_more_is_read_than_one_gop(tmp_path) -> None:
    """What follows can't be read."""
    path = tmp_path / "joined.h264"
    path.write_bytes(clip(PLAIN, "h264").data + x264(scene(9), "", "h264", "yuv420p10le"))
    with pytest.raises(CodecError, match="10 bits"):
        Bitstream.open(path)
    found, number = Bitstream.open_gop(path, 0, 7)
    assert (number, found.frame_types) == (0, "IPPPPPP")
    assert np.array_equal(found.direct_residual(6).y, clip(PLAIN).direct_residual(6).y)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "parameters", "pixels"),
    [
        ("it is interlaced", "interlaced=1", "yuv420p"),
        ("it is interlaced", "fake-interlaced=1", "yuv420p"),
        ("its samples are of 10 bits", "", "yuv420p10le"),
        ("its chroma is 4:2:2", "", "yuv422p"),
        ("its chroma is 4:4:4", "", "yuv444p"),
        ("it is monochrome", "", "gray"),
        ("it may hold lossless blocks (transform bypass)", "qp=0", "yuv420p"),
    ],
)
def test_what_is_not_proven_exact_is_refused(what: str, parameters: str, pixels: str) -> None:
    with pytest.raises(CodecError) as caught:
        Bitstream(x264(scene(3), parameters, pixels=pixels), "file.mp4")
    assert str(caught.value) == (
        f"file.mp4: {what}, so its residuals cannot be read exactly; re-encode it (cfer encode)"
    )


def changed_pps(pps: PictureParameters, groups: int = 0, redundant: int = 0) -> bytes:
    bits = BitWriter()
    bits.put_ue(pps.id)
    bits.put_ue(pps.sps_id)
    bits.put(pps.cabac << 1, 2)
    bits.put_ue(groups)
    for value in (0, 0):
        bits.put_ue(value)
    bits.put(0, 3)
    for value in pps.quantizers:
        bits.put_se(value)
    bits.put(0b100 | redundant, 3)
    return nal_unit(3, PPS, bits.with_trailing_bits())


def test_tools_that_no_encoder_here_has_are_refused() -> None:
    bitstream = clip("keyint=15:slices=2:bframes=0", "h264")
    codec = bitstream._format
    pps, sps = headers(bitstream)[0].pps, headers(bitstream)[0].sps
    first, second = codec.annex_b(range(1)), codec._annex_b(1)
    one, two = codec._slices(1)
    header = codec.frames[1].slices[0]

    def refused(*packets: bytes) -> str:
        with pytest.raises(CodecError) as caught:
            H264(b"", list(packets), "file.h264")
        message = str(caught.value)
        assert message.startswith("file.h264: ")
        assert message.endswith("; re-encode it (cfer encode)")
        return message

    assert "slice groups (flexible macroblock order)" in refused(first + changed_pps(pps, groups=1))
    assert "redundant pictures" in refused(first + changed_pps(pps, redundant=1))
    partition = START_CODE + bytes([one[0] & 0xE0 | 2]) + one[1:]
    assert "frame 1: its slices are in partitions" in refused(first, partition)
    for slice_type in (3, 4, 8, 9):
        switching = replace(header, slice_type=slice_type).written(one)
        assert "frame 1: it has switching slices (SP or SI)" in refused(first, switching)
    assert "frame 1: its first slice is missing" in refused(first, START_CODE + two, second)
    any_order = START_CODE + two + START_CODE + one
    assert "frame 1: its slices are in any order" in refused(first, any_order)
    assert "frame 1: its packet holds several pictures" in refused(first, second + second)
    written = sps.written(0) + pps.written(True)
    restart = replace(header, marking=[(5,)]).written(one)
    gray = gray_slice(sps, replace(pps, cabac=0, id=9), kind=I, is_idr=True)
    start = written + replace(pps, cabac=0, id=9).written(True) + gray
    assert "frame 1: it numbers pictures anew in mid-stream" in refused(start, restart)
    small = Bitstream(x264(scene(2, 64, 64), container="h264"), "a")
    other = small._format.annex_b(range(1))
    assert "frame 2: the size of its pictures changes" in refused(first, second, other)
    cycle = BitWriter()
    cycle.put(*sps.head)
    for value in (1, 0):
        cycle.put_ue(value)
    set_of_cycle = nal_unit(3, 7, cycle.with_trailing_bits())
    assert "a cycle of offsets (POC type 1)" in refused(set_of_cycle)
    assert "frame 0: a slice names parameters that are not there" in refused(second)


def test_a_file_that_begins_in_the_midst_of_a_gop() -> None:
    codec = clip(PLAIN, "h264")._format
    with pytest.raises(CodecError, match="begins late: its first frame is no I-frame; cut it at"):
        Bitstream(codec.annex_b(range(3, 9)), "begins late")


def test_damage_is_an_error_and_no_picture() -> None:
    bitstream = Bitstream(clip(f"{PLAIN}:cabac=0:8x8dct=0", "h264").data, "damaged")
    bitstream.packets[4] = bitstream.packets[4][: len(bitstream.packets[4]) // 2]
    with pytest.raises(CodecError, match="damaged"):
        bitstream.direct_residual(4)
    assert bitstream.direct_residual(3).y.shape == (80, 96)
    bitstream.packets[4] = b""
    with pytest.raises(CodecError, match="frame 4 is damaged"):
        bitstream.direct_residual(4)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(data=st.data())
def test_bytes_that_anybody_may_have_written(data: st.DataObject) -> None:
    whole = bytearray(small())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 9))
        whole[at : at + data.draw(st.sampled_from([1, 1, 2, 8]))] = data.draw(st.binary(max_size=8))
    try:
        bitstream = Bitstream(bytes(whole), "fuzz")
        for gop, numbers in enumerate(bitstream.gops):
            bitstream.accumulated_residuals(gop, mask_intra=True)
            for number in numbers[1:]:
                bitstream.direct_residual(number)
    except CodecError as error:
        said = str(error)
    else:
        return
    assert said.startswith("fuzz: ")


@cache
def small() -> bytes:
    return x264(scene(5, 32, 32), "keyint=4:bframes=1", "h264")
