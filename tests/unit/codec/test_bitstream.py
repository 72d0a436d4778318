"""The codec against an independent motion compensation, on real bitstreams."""

from __future__ import annotations

import io
import os
import tracemalloc
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from bitstreams import (
    count_mismatches,
    direct_residuals,
    face_pictures,
    luma_on_flat_reference,
    moving_texture,
    not_coded,
    someone_elses,
)

from cfer.codec import GRAY, CodecError, CodecSettings, encode
from cfer.codec.bitstream import Bitstream, Residual, _planes

# ----------------------------------------------------------------- exactness


def test_residual_is_exact_on_a_drawn_clip():
    bitstream = encode(moving_texture(30), CodecSettings(), 25)
    mismatches, compared, saturated, kinds = count_mismatches(
        bitstream, direct_residuals(bitstream)
    )
    assert mismatches == 0
    assert compared > 0.99 * (compared + saturated)
    assert compared + saturated == 27 * 96 * 128 * 3 // 2, "every block is an inter block"
    assert all(kinds[k] > 0 for k in ("full", "half", "rounding 0", "rounding 1")), kinds


@pytest.mark.parametrize("name", ["d10.mp4", "d18.mp4", "s18.mp4"])
def test_residual_is_exact_on_a_real_clip(faces_dir, name):
    bitstream = encode(face_pictures(faces_dir, name, 40), CodecSettings(), 25)
    mismatches, compared, _, kinds = count_mismatches(bitstream, direct_residuals(bitstream))
    assert mismatches == 0
    assert compared > 0.999 * 36 * 192 * 192 * 3 // 2
    assert all(kinds[k] > 0 for k in ("full", "half", "rounding 0", "rounding 1")), kinds


def test_four_vectors_a_macroblock_are_exact(tmp_path):
    path = someone_elses(moving_texture(26), tmp_path / "four.mp4", flags="+mv4")
    bitstream = Bitstream.open(path)
    mismatches, compared, _, kinds = count_mismatches(bitstream, direct_residuals(bitstream))
    assert kinds["four"] > 10
    assert mismatches == 0
    assert compared > 100_000


@pytest.mark.parametrize("plane", ["y", "u", "v"])
def test_one_sample_off_by_one_is_seen(plane):
    bitstream = encode(moving_texture(8), CodecSettings(), 25)
    residuals = direct_residuals(bitstream)
    pictures = list(bitstream.pictures())
    changed = getattr(residuals[3], plane).copy()
    decoded = pictures[3]["yuv".index(plane)]
    row, column = np.argwhere((decoded > 1) & (decoded < 254))[0]
    changed[row, column] += 1
    residuals[3] = replace(residuals[3], **{plane: changed})
    assert count_mismatches(bitstream, residuals)[0] == 1


def test_known_translation_is_the_motion_vector():
    big = moving_texture(1, 200, 300)[0]
    pictures = [big[40 : 40 + 96, 80 - 3 * t : 80 - 3 * t + 128] for t in range(5)]
    bitstream = encode(pictures, CodecSettings(quantizer=1), 25)
    vectors = bitstream.direct_residual(2).motion_vectors
    inner = vectors[(vectors["dst_x"] > 24) & (vectors["dst_x"] < 104)]
    # The picture moves 3 samples to the right a frame: a block finds its reference on the left.
    assert np.median(inner["motion_x"] / inner["motion_scale"]) == -3
    assert np.median(inner["motion_y"]) == 0


def test_without_motion_search_no_vector_moves():
    bitstream = encode(moving_texture(6), CodecSettings(motion_search=False), 25)
    vectors = bitstream.direct_residual(3).motion_vectors
    assert len(vectors) == 48
    assert not vectors["motion_x"].any()
    assert not vectors["motion_y"].any()


def test_accumulated_without_motion_is_the_change_since_the_i_frame():
    bitstream = encode(moving_texture(12), CodecSettings(motion_search=False), 25)
    pictures = list(bitstream.pictures())
    for residual in bitstream.accumulated_residuals(0):
        change = pictures[residual.frame][0].astype(int) - pictures[0][0]
        inside = (residual.y > 0) & (residual.y < 255)
        # Clipping at black and white on the way is the only difference there can be.
        unclipped = (pictures[residual.frame][0] > 8) & (pictures[residual.frame][0] < 247)
        same = (residual.y.astype(int) - GRAY == change)[inside & unclipped]
        assert same.mean() > 0.99


def test_first_accumulated_residual_is_the_direct_one():
    bitstream = encode(moving_texture(14), CodecSettings(), 25)
    for number, gop in enumerate(bitstream.gops):
        if len(gop) > 1:
            accumulated = bitstream.accumulated_residuals(number)[0]
            direct = bitstream.direct_residual(gop[1])
            assert np.array_equal(accumulated.y, direct.y)
            assert np.array_equal(accumulated.v, direct.v)


def test_a_direct_residual_needs_its_own_packet_alone():
    bitstream = encode(moving_texture(12), CodecSettings(), 25)
    wanted = bitstream.direct_residual(7)
    for number in range(12):
        if number != 7:
            bitstream.packets[number] = b""
    assert np.array_equal(bitstream.direct_residual(7).y, wanted.y)


# ----------------------------------------------------------------- intra blocks, saturation


def test_intra_fraction_is_what_does_not_follow_the_reference(tmp_path):
    """An inter block's output moves with the reference's level, an intra block's does not."""
    pictures = moving_texture(4, seed=1)
    pictures[2] = pictures[2].copy()
    pictures[2][32:64, 48:96] = 250  # nothing predicts this
    path = someone_elses(pictures, tmp_path / "intra.avi", qmin="2", qmax="2")
    bitstream = Bitstream.open(path)
    fractions = []
    for number in (1, 2, 3):
        (low, low_level), (high, high_level) = (
            luma_on_flat_reference(bitstream, number, level) for level in (100, 128)
        )
        assert high_level - low_level > 20
        still = (low == high).reshape(6, 16, 8, 16).mean(axis=(1, 3)) > 0.9
        fractions.append((still.mean(), bitstream.direct_residual(number).intra_fraction))
    assert fractions[1][1] > 0, "the encoder chose no intra block: this clip tests nothing"
    for by_shift, by_vectors in fractions:
        assert by_shift == pytest.approx(by_vectors)


def test_encode_makes_no_intra_block_where_ffmpegs_default_does(tmp_path):
    pictures = moving_texture(24)
    for number in range(6, 12):
        pictures[number] = pictures[number].copy()
        pictures[number][32:64, 48:96] = 250
    default = Bitstream.open(someone_elses(pictures, tmp_path / "default.mp4"))
    ours = encode(pictures, CodecSettings(), 25)
    assert max(r.intra_fraction for r in direct_residuals(default).values()) > 0
    assert max(r.intra_fraction for r in direct_residuals(ours).values()) == 0


def test_saturation_is_counted():
    black, white = (np.full((32, 32, 3), level, np.uint8) for level in (0, 255))
    half = black.copy()
    half[:, 16:] = 255
    bitstream = encode([black, half], CodecSettings(quantizer=1, motion_search=False), 25)
    residual = bitstream.direct_residual(1)
    # 219 levels of luma do not fit +127, in half of the luma: a third of all the samples.
    assert residual.saturated_fraction == pytest.approx(1 / 3)
    assert encode([white, white], CodecSettings(), 25).direct_residual(1).saturated_fraction == 0


# ----------------------------------------------------------------- the container, and the padding


def test_packets_from_memory_decode_as_the_file_does(tmp_path):
    path = someone_elses(moving_texture(60), tmp_path / "clip.mp4")
    ours = list(Bitstream.open(path).pictures())
    with av.open(str(path)) as container:
        theirs = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    assert len(ours) == len(theirs) == 60
    for (y, u, v), frame in zip(ours, theirs, strict=True):
        chroma = np.concatenate([u.ravel(), v.ravel()]).reshape(48, 128)
        assert np.array_equal(np.concatenate([y, chroma]), frame)


def test_packets_from_memory_decode_as_the_file_does_on_real_clips(faces_dir, tmp_path):
    for source in sorted(faces_dir.glob("*.mp4")):
        encode(face_pictures(faces_dir, source.name, 40), CodecSettings(), 25).save(
            tmp_path / source.name
        )
        bitstream = Bitstream.open(tmp_path / source.name)
        with av.open(str(tmp_path / source.name)) as container:
            frames = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
        wrong = [
            n
            for n, ((y, _, _), frame) in enumerate(zip(bitstream.pictures(), frames, strict=True))
            if not np.array_equal(y, frame[:192])
        ]
        assert not wrong


@pytest.mark.parametrize(
    ("suffix", "gop", "options"),
    [
        ("mp4", 12, {}),
        ("mp4", 250, {}),
        ("avi", 7, {}),
        ("mkv", 1, {}),
        ("mp4", 12, {"flags": "+mv4+aic"}),
        ("mp4", 12, {"flags": "+qpel"}),
        ("avi", 12, {"flags": "+ilme+ildct"}),
        ("mp4", 12, {"mpeg_quant": "1"}),
        ("mp4", 12, {"ps": "200"}),
    ],
)
def test_someone_elses_file(tmp_path, suffix, gop, options):
    """Our gray picture fits any header, and what is decoded on it is what was transmitted."""
    path = someone_elses(
        moving_texture(26), tmp_path / f"a.{suffix}", gop, qmin="2", qmax="2", **options
    )
    bitstream = Bitstream.open(path)
    assert bitstream.frame_types.startswith("I" + "P" * min(gop - 1, 25))
    (gray,) = bitstream._decode([bitstream._gray])
    assert all((plane == GRAY).all() for plane in _planes(gray))
    pictures = list(bitstream.pictures())
    for number, residual in direct_residuals(bitstream).items():
        # Whatever the tools that made it, decoded − residual is a prediction from the frame before,
        # which has nothing of its own to add: it stays close to what it was predicted from.
        prediction = pictures[number][0].astype(int) - (residual.y.astype(int) - GRAY)
        surround = cv2.dilate(pictures[number - 1][0], np.ones((11, 11))) + 3.0
        beneath = cv2.erode(pictures[number - 1][0], np.ones((11, 11))) - 3.0
        assert residual.intra_fraction == 0
        assert residual.y.std() > 0.5
        assert ((prediction <= surround) & (prediction >= beneath)).mean() > 0.995


@pytest.mark.parametrize("side", [(96, 128), (112, 112), (95, 127), (100, 64), (2, 2)])
@pytest.mark.parametrize(
    "options", [{}, {"flags": "+mv4+aic"}, {"flags": "+qpel"}, {"flags": "+ilme+ildct"}]
)
def test_a_missing_i_frame_is_gray(tmp_path, side, options):
    """With nothing before them, P-frames decode as they do on the gray I-VOP of the standard."""
    pictures = moving_texture(14, *side)
    path = someone_elses(pictures, tmp_path / "a.mp4", 12, qmin="2", qmax="2", **options)
    residuals = Bitstream.open(path)
    on_gray = Bitstream.open(path)
    on_gray._reference = [on_gray._gray]
    if side[0] % 16 == 0 and side[1] % 16 == 0:
        assert residuals._reference == []
    for gop in range(2):
        read = residuals.accumulated_residuals(gop), on_gray.accumulated_residuals(gop)
        for one, other in zip(*read, strict=True):
            directs = residuals.direct_residual(one.frame), on_gray.direct_residual(one.frame)
            for left, right in ((one, other), directs):
                for plane in "yuv":
                    assert np.array_equal(getattr(left, plane), getattr(right, plane))
                assert np.array_equal(left.motion_vectors, right.motion_vectors)


# ----------------------------------------------------------------- GOPs and sizes


@pytest.mark.parametrize(("gop", "frames"), [(1, 3), (2, 5), (12, 30), (12, 12), (700, 650)])
def test_gop_structure(gop, frames):
    size = 96 if frames < 100 else 16
    bitstream = encode(moving_texture(frames, size, size), CodecSettings(gop_size=gop), 25)
    assert bitstream.frame_types == "".join("P" if n % gop else "I" for n in range(frames))
    assert len(bitstream.i_frames()) == len(bitstream.gops) == -(-frames // gop)
    for number, expected in enumerate(bitstream.gops):
        residuals = bitstream.accumulated_residuals(number)
        assert [r.frame for r in residuals] == list(expected)[1:]


def test_a_gop_that_stands_for_more_frames_than_it_has():
    settings = CodecSettings(gop_size=3, gop_span=8)
    # First and last of each eight; the last GOP stands for what is left, unless that is little.
    assert settings.encoded_frames(21) == [0, 4, 7, 8, 12, 15, 16, 18, 20]
    assert settings.encoded_frames(20) == [0, 4, 7, 8, 12, 15, 16, 18, 19]
    assert settings.encoded_frames(19) == [0, 4, 7, 8, 13, 18]
    assert settings.encoded_frames(17) == [0, 4, 7, 8, 12, 16]
    assert settings.encoded_frames(9) == [0, 4, 8]
    assert settings.encoded_frames(3) == [0, 1, 2]
    assert settings.encoded_frames(1) == [0]
    assert CodecSettings(gop_size=12).encoded_frames(30) == list(range(30))
    assert settings.encoded_fps(Fraction(24)) == 9
    assert CodecSettings(gop_size=12).encoded_fps(Fraction(24)) == 24
    with pytest.raises(CodecError, match="GOP span 2: a GOP of 3 frames"):
        CodecSettings(gop_size=3, gop_span=2)


def test_a_cut_does_not_start_a_gop():
    pictures = moving_texture(10) + moving_texture(10, seed=3)
    assert encode(pictures, CodecSettings(gop_size=20), 25).frame_types == "I" + "P" * 19


@pytest.mark.parametrize(("height", "width"), [(95, 127), (33, 47), (2, 2), (100, 64)])
def test_odd_sizes(height, width):
    bitstream = encode(moving_texture(5, height, width), CodecSettings(), 25)
    residual = bitstream.direct_residual(2)
    assert residual.y.shape == (height, width)
    assert residual.u.shape == (-(-height // 2), -(-width // 2))
    (gray,) = bitstream._decode([bitstream._gray])
    assert all((plane == GRAY).all() for plane in _planes(gray))
    assert bitstream.i_frames()[0].shape == (height, width, 3)


def test_packed_is_planar_yuv():
    residual = encode(moving_texture(4), CodecSettings(), 25).direct_residual(2)
    packed = residual.packed()
    assert packed.shape == (144, 128)
    assert packed.dtype == np.uint8
    assert np.array_equal(packed[:96], residual.y)
    assert np.array_equal(packed[96:120].reshape(48, 64), residual.u)
    assert np.array_equal(packed[120:].reshape(48, 64), residual.v)


def test_a_still_picture_has_no_residual():
    bitstream = encode([moving_texture(1)[0]] * 4, CodecSettings(quantizer=1), 25)
    assert np.abs(bitstream.accumulated_residuals(0)[-1].y.astype(int) - GRAY).max() <= 3


def test_a_frame_that_is_not_coded_has_a_zero_residual():
    clip = encode(moving_texture(6), CodecSettings(), 25)
    data = clip.data
    changed = not_coded(clip.packets[3], clip._layer.time_bits)
    # The container holds the packet at its old length; what follows the header is stuffing.
    changed = changed.ljust(len(clip.packets[3]), b"\x00")
    assert data.count(clip.packets[3]) == 1
    bitstream = Bitstream(data.replace(clip.packets[3], changed), "with an N-VOP")
    assert bitstream.frame_types == "IPPNPP"
    direct = bitstream.direct_residual(3)
    assert (direct.y == GRAY).all()
    assert (direct.u == GRAY).all()
    accumulated = bitstream.accumulated_residuals(0)
    assert [r.frame for r in accumulated] == [1, 2, 3, 4, 5]
    assert np.array_equal(accumulated[2].y, accumulated[1].y)
    pictures = list(bitstream.pictures())
    assert np.array_equal(pictures[3][0], pictures[2][0])


def test_bit_rate():
    pictures = moving_texture(50)
    sizes = [
        len(encode(pictures, CodecSettings(quantizer=None, bit_rate=rate), 25).data)
        for rate in (30_000, 300_000)
    ]
    assert sizes[1] > 1.5 * sizes[0]


def test_encoding_is_deterministic_and_survives_a_file(tmp_path):
    first, second = (encode(moving_texture(15), CodecSettings(), 25) for _ in range(2))
    assert first.data == second.data
    first.save(tmp_path / "a.mp4")
    read = Bitstream.open(tmp_path / "a.mp4")
    assert read.packets == first.packets
    assert read.fps == 25


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 29.97, 23.976, 12.5, 1000, 0.5])
def test_frame_rates(fps):
    bitstream = encode(moving_texture(5, 32, 32), CodecSettings(), fps)
    assert float(bitstream.fps) == pytest.approx(float(fps), rel=1e-3)
    assert bitstream.direct_residual(4).frame == 4


# ----------------------------------------------------------------- what cannot be read


def test_b_frames_are_refused(tmp_path):
    path = someone_elses(moving_texture(12), tmp_path / "b.mp4", bf="2")
    with pytest.raises(CodecError, match=r"b\.mp4: frame \d+ is a B-frame"):
        Bitstream.open(path)


def test_data_partitioning_is_refused(tmp_path):
    path = someone_elses(moving_texture(6), tmp_path / "p.mp4", data_partitioning="1")
    with pytest.raises(CodecError, match="partitioned"):
        Bitstream.open(path)


def test_another_codec_is_refused(tmp_path):
    path = tmp_path / "mjpeg.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuvj420p"
        picture = np.zeros((32, 32, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(CodecError, match=r"mjpeg\.avi: its codec is mjpeg"):
        Bitstream.open(path)


def test_files_that_are_no_video(tmp_path):
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("no video\n" * 100)
    empty.write_bytes(b"")
    for path, reason in ((text, "not a readable video"), (empty, "empty"), (tmp_path, "cannot")):
        with pytest.raises(CodecError, match=reason) as caught:
            Bitstream.open(path)
        assert str(path) in str(caught.value)


def test_a_damaged_packet_is_an_error_not_a_picture():
    bitstream = encode(moving_texture(6), CodecSettings(), 25)
    packet = bitstream.packets[3]
    bitstream.packets[3] = packet[:20] + bytes(len(packet) - 20)
    with pytest.raises(CodecError, match="damaged"):
        bitstream.direct_residual(3)


@pytest.mark.parametrize(
    "settings",
    [
        {"gop_size": 0},
        {"quantizer": 0},
        {"quantizer": 32},
        {"bit_rate": 100_000},
        {"quantizer": None},
        {"quantizer": None, "bit_rate": 5},
    ],
)
def test_impossible_settings(settings):
    with pytest.raises(CodecError, match=r"must be|exactly one"):
        CodecSettings(**settings)


def test_pictures_that_cannot_be_encoded():
    with pytest.raises(CodecError, match="no picture"):
        encode([], CodecSettings(), 25)
    with pytest.raises(CodecError, match="picture 1"):
        encode(
            [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 16, 3), np.uint8)], CodecSettings(), 25
        )
    with pytest.raises(CodecError, match="uint8"):
        encode([np.zeros((32, 32), np.uint8)], CodecSettings(), 25)


def test_i_frames_and_p_frames_are_told_apart():
    bitstream = encode(moving_texture(5), CodecSettings(), 25)
    for number in (0, 5, -1):
        with pytest.raises(ValueError, match="not one of the P-frames"):
            bitstream.direct_residual(number)
    picture = bitstream.i_frames()[0]
    assert np.abs(picture.astype(int) - moving_texture(1)[0]).mean() < 8
    assert io.BytesIO(bitstream.data).read(8)[4:] == b"ftyp"


def copied(clip, target, **how):
    """The packets of a clip in a file of another kind."""
    with av.open(io.BytesIO(clip.data)) as source, av.open(target, "w", **how) as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                sink.mux(packet)
    return target


@pytest.mark.parametrize("container", ["mp4", "avi", "matroska"])
def test_packets_are_those_that_a_demuxer_finds(container):
    clip = encode(moving_texture(7, 64, 64), CodecSettings(gop_size=3), 25)
    data = copied(clip, io.BytesIO(), format=container).getvalue()
    with av.open(io.BytesIO(data)) as there:
        demuxed = [bytes(packet) for packet in there.demux(video=0) if packet.size]
    read = Bitstream(data, "copied")
    assert read.packets == demuxed
    assert read.frame_types == "IPPIPPI"


def test_times_are_the_containers_and_change_no_packet():
    pictures = moving_texture(7, 64, 64)
    times = [3, 3.4, 3.77, 3.8, 8.0, 8.01, 9.2, 9.9]
    evenly = encode(pictures, CodecSettings(gop_size=3), 24)
    assert evenly.times == [n / 24 for n in range(8)]
    given = encode(pictures, CodecSettings(gop_size=3), 24, times)
    assert given.packets == evenly.packets
    since_first = pytest.approx([seconds - 3 for seconds in times], abs=1e-5)
    assert given.times == since_first
    assert Bitstream(given.data, "again").times == given.times
    with av.open(io.BytesIO(given.data)) as container:
        frames = list(container.decode(video=0))
    assert [frame.time for frame in frames] + [given.times[-1]] == since_first
    # Two at one time, which no container has, are an instant apart.
    (_, first, second, *_) = encode(pictures, CodecSettings(), 24, [0, 1, 1, 2, 3, 4, 5, 6]).times
    assert first < second < first + 1e-5
    # A picture may stand for hours, as in a recording of a screen.
    hours = [0, 1, 2, 20_000, 20_001, 20_002, 90_000, 90_001]
    assert encode(pictures, CodecSettings(), 24, hours).times == pytest.approx(hours, abs=1e-3)


@pytest.mark.parametrize("container", ["avi", "matroska"])
def test_times_of_other_containers(container):
    times = [0, 0.04, 0.08, 0.24, 0.28, 0.4, 0.44, 0.48]
    clip = encode(moving_texture(7, 64, 64), CodecSettings(gop_size=3), 25, times)
    file = io.BytesIO()
    with av.open(io.BytesIO(clip.data)) as source, av.open(file, "w", format=container) as sink:
        stream = sink.add_stream_from_template(source.streams.video[0], rate=25)
        stream.time_base = Fraction(1, 25)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                sink.mux(packet)
    read = Bitstream(file.getvalue(), "copied")
    assert read.packets == clip.packets
    assert read.times == pytest.approx(times, abs=0.001)


def test_a_file_that_is_cut_off_is_not_read_as_a_shorter_one(tmp_path):
    clip = encode(moving_texture(7, 64, 64), CodecSettings(gop_size=3), 25)
    # The index of an MP4 stands at its end, unless it is made for streaming.
    path = copied(clip, tmp_path / "index first.mp4", options={"movflags": "+faststart"})
    data = path.read_bytes()
    assert Bitstream(data, "whole").packets == clip.packets
    for missing in (1, len(clip.packets[6]), len(clip.packets[6]) + 10):
        with pytest.raises(CodecError, match="cut off: not a readable video"):
            Bitstream(data[:-missing], "cut off")


def test_two_pictures_in_one_packet_are_told():
    clip = encode(moving_texture(7, 64, 64), CodecSettings(gop_size=7), 25)
    bitstream = Bitstream(clip.data, "packed")
    bitstream.packets[2:4] = [bitstream.packets[2] + bitstream.packets[3]]
    with pytest.raises(CodecError, match="packed: packet 2 holds several pictures"):
        bitstream._frame_types()


def test_a_film_in_another_codec_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    os.truncate(path, 1 << 30)  # a hole: it takes no room on the disk
    tracemalloc.start()
    with pytest.raises(CodecError, match="its codec is h264"):
        Bitstream.open(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50_000_000


def test_residuals_of_a_gop_of_any_length_are_held_one_at_a_time() -> None:
    clip = encode(moving_texture(20), CodecSettings(gop_size=20), 25)
    seen: list[weakref.ref[Residual]] = []
    most = 0
    for number, residual in enumerate(clip.iter_accumulated_residuals(0)):
        seen.append(weakref.ref(residual))
        most = max(most, sum(one() is not None for one in seen))
        assert residual.frame == number + 1
    assert number == 18
    assert most <= 3
    pairs = zip(clip.iter_accumulated_residuals(0), clip.accumulated_residuals(0), strict=True)
    for one, other in pairs:
        # Whatever else is asked of the bitstream in between.
        clip.direct_residual(3)
        assert np.array_equal(one.y, other.y)
        assert np.array_equal(one.motion_vectors, other.motion_vectors)
