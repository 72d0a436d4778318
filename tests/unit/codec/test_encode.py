"""Encoding: GOPs, sizes, rates and times as asked, and what cannot be encoded."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from bitstreams import direct_residuals, moving_texture, someone_elses

from cfer.codec import Bitstream, CodecError, CodecSettings, encode


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


def test_encode_makes_no_intra_block_where_ffmpegs_default_does(tmp_path):
    pictures = moving_texture(24)
    for number in range(6, 12):
        pictures[number] = pictures[number].copy()
        pictures[number][32:64, 48:96] = 250
    default = Bitstream.open(someone_elses(pictures, tmp_path / "default.mp4"))
    ours = encode(pictures, CodecSettings(), 25)
    assert max(r.intra_fraction for r in direct_residuals(default).values()) > 0
    assert max(r.intra_fraction for r in direct_residuals(ours).values()) == 0


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


@pytest.mark.parametrize(
    ("fps", "span"),
    [(24, 24), (Fraction(30000, 1001), 30), (60, 60), (15, 15), (Fraction(5, 2), 3), (1, 3)],
)
def test_a_gop_of_a_second_is_as_many_frames_as_the_video_has_in_it(fps, span):
    settings = CodecSettings(gop_size=3, gop_seconds=1.0, motion_search=False)
    assert settings.at(Fraction(fps)) == CodecSettings(3, motion_search=False, gop_span=span)
    assert settings.at(Fraction(fps)).encoded_frames(60)[2] == span - 1
    in_frames = CodecSettings(3, gop_span=8)
    assert in_frames.at(Fraction(fps)) == in_frames, "an earlier cfer's are frames"
    assert CodecSettings().at(Fraction(fps)) == CodecSettings(), "every frame is encoded"


def test_a_cut_does_not_start_a_gop():
    pictures = moving_texture(10) + moving_texture(10, seed=3)
    assert encode(pictures, CodecSettings(gop_size=20), 25).frame_types == "I" + "P" * 19


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


@pytest.mark.parametrize(
    "settings",
    [
        {"gop_size": 0},
        {"quantizer": 0},
        {"quantizer": 32},
        {"bit_rate": 100_000},
        {"quantizer": None},
        {"quantizer": None, "bit_rate": 5},
        {"gop_seconds": -1.0},
        {"gop_seconds": float("nan")},
        {"gop_seconds": 1e300},
        {"gop_seconds": 1.0, "gop_span": 24},
    ],
)
def test_impossible_settings(settings):
    with pytest.raises(CodecError, match=r"must be|exactly one|one of them"):
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


def test_coarser_settings_stay_within_what_can_be_encoded() -> None:
    assert CodecSettings(quantizer=4).coarser(2).quantizer == 8
    assert CodecSettings(quantizer=4).coarser(0.5).quantizer == 2
    assert CodecSettings(quantizer=20).coarser(2).quantizer == 31
    assert CodecSettings(quantizer=1).coarser(0.5).quantizer == 1
    assert CodecSettings(quantizer=None, bit_rate=8000).coarser(2).bit_rate == 4000
    assert CodecSettings(quantizer=None, bit_rate=1500).coarser(2).bit_rate == 1000
