"""The residuals against an independent motion compensation, on real bitstreams."""

from __future__ import annotations

import io
import weakref
from dataclasses import replace

import av
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
    with_intra_blocks,
)

from cfer.codec import GRAY, Bitstream, CodecError, CodecSettings, Residual, encode


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


def test_intra_fraction_is_what_does_not_follow_the_reference(tmp_path):
    """An inter block's output moves with the reference's level, an intra block's does not."""
    bitstream = with_intra_blocks(tmp_path)
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


def test_intra_blocks_are_masked_with_what_is_predicted_from_them(tmp_path):
    bitstream = with_intra_blocks(tmp_path)
    plain, hidden = (bitstream.accumulated_residuals(0, mask_intra=how) for how in (False, True))
    assert not hidden[0].masked.any()
    assert hidden[1].masked.mean() == plain[1].intra_fraction > 0
    for one, other in zip(plain, hidden, strict=True):
        assert (other.masked >= other.intra.repeat(4, 0).repeat(4, 1)).all()
        assert one.masked is None
        masked = other.masked.repeat(4, 0).repeat(4, 1)
        assert (other.y[masked] == GRAY).all()
        assert np.array_equal(other.y[~masked], one.y[~masked])
    alone = bitstream.direct_residual(2, mask_intra=True)
    assert np.array_equal(alone.masked, alone.intra.repeat(4, 0).repeat(4, 1))


def test_saturation_is_counted():
    black, white = (np.full((32, 32, 3), level, np.uint8) for level in (0, 255))
    half = black.copy()
    half[:, 16:] = 255
    bitstream = encode([black, half], CodecSettings(quantizer=1, motion_search=False), 25)
    residual = bitstream.direct_residual(1)
    # 219 levels of luma do not fit +127, in half of the luma: a third of all the samples.
    assert residual.saturated_fraction == pytest.approx(1 / 3)
    assert encode([white, white], CodecSettings(), 25).direct_residual(1).saturated_fraction == 0


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
    on_gray._format.reference = [on_gray._format.gray]
    if side[0] % 16 == 0 and side[1] % 16 == 0:
        assert residuals._format.reference == []
    for gop in range(2):
        read = residuals.accumulated_residuals(gop), on_gray.accumulated_residuals(gop)
        for one, other in zip(*read, strict=True):
            directs = residuals.direct_residual(one.frame), on_gray.direct_residual(one.frame)
            for left, right in ((one, other), directs):
                for plane in "yuv":
                    assert np.array_equal(getattr(left, plane), getattr(right, plane))
                assert np.array_equal(left.motion_vectors, right.motion_vectors)


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
    changed = not_coded(clip.packets[3], clip._format.layer.time_bits)
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


def test_b_frames_are_refused(tmp_path):
    path = someone_elses(moving_texture(12), tmp_path / "b.mp4", bf="2")
    with pytest.raises(CodecError, match=r"b\.mp4: frame \d+ is a B-frame"):
        Bitstream.open(path)


def test_a_damaged_packet_is_an_error_not_a_picture():
    bitstream = encode(moving_texture(6), CodecSettings(), 25)
    packet = bitstream.packets[3]
    bitstream.packets[3] = packet[:20] + bytes(len(packet) - 20)
    with pytest.raises(CodecError, match="damaged"):
        bitstream.direct_residual(3)


def test_i_frames_and_p_frames_are_told_apart():
    bitstream = encode(moving_texture(5), CodecSettings(), 25)
    for number in (0, 5, -1):
        with pytest.raises(ValueError, match="not one of the P-frames"):
            bitstream.direct_residual(number)
    picture = bitstream.i_frames()[0]
    assert np.abs(picture.astype(int) - moving_texture(1)[0]).mean() < 8
    assert io.BytesIO(bitstream.data).read(8)[4:] == b"ftyp"


def test_two_pictures_in_one_packet_are_an_error():
    clip = encode(moving_texture(7, 64, 64), CodecSettings(gop_size=7), 25)
    bitstream = Bitstream(clip.data, "packed")
    bitstream.packets[2:4] = [bitstream.packets[2] + bitstream.packets[3]]
    with pytest.raises(CodecError, match="packed: packet 2 holds several pictures"):
        bitstream._format.frame_type(2)


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


@pytest.mark.parametrize("kept", [0, 1])
def test_a_frame_that_ends_at_its_start_is_damage(kept: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    stream = encode(noise, CodecSettings(gop_size=6), 25)
    packet = stream.packets[4]
    cut = packet[: 4 + kept].rjust(len(packet), b"\x00")
    with pytest.raises(CodecError, match=r"frame 4.*; the file is damaged"):
        list(Bitstream(stream.data.replace(packet, cut), "clip").accumulated_residuals(0))
