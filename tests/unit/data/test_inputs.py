"""What the recognizer sees: which frames, and that each kind is what its name says."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from benchmarks.material import moving_texture
from cfer.codec import GRAY, Bitstream, CodecError, CodecSettings, Residual, encode
from cfer.data.inputs import (
    BLOCK,
    KINDS,
    STEPS_OF_ENERGY,
    STEPS_PER_PIXEL,
    Input,
    parse_frame_rule,
    select_frames,
    to_planes,
    traced_motion,
)
from cfer.errors import InputError

SIZE = 64


@pytest.fixture(scope="module")
def clip() -> Bitstream:
    """Three GOPs, the last one cut off."""
    return encode(moving_texture(20, SIZE), CodecSettings(gop_size=8, quantizer=4), 25)


def decoded(clip: Bitstream) -> np.ndarray:
    """The planes of every frame, as a player shows it: int16 (20, 6, 32, 32)."""
    with av.open(io.BytesIO(clip.data)) as container:
        packed = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    return np.stack([to_planes(picture) for picture in packed]).astype(np.int16)


@pytest.mark.parametrize(
    ("i_frames", "p_frames", "expected"),
    [
        ([0, 4, 8], [1, 2, 3, 5, 6, 7, 9], [3, 7, 9]),  # the last GOP is cut off
        ([0, 4, 8], [1, 2, 3, 5, 6, 7], [3, 7]),  # the last GOP is an I-frame alone
        ([0], [1, 2, 3], [3]),
        ([0, 1], [], []),
    ],
)
def test_last_p_frame_of_each_gop(
    i_frames: list[int], p_frames: list[int], expected: list[int]
) -> None:
    assert select_frames(i_frames, p_frames, "last") == expected


def test_a_number_of_frames() -> None:
    p_frames = [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert select_frames([0, 4, 8], p_frames, 3) == [2, 6, 10]
    assert select_frames([0, 4, 8], p_frames, 20) == p_frames
    drawn = [select_frames([0, 4, 8], p_frames, 4, np.random.default_rng(i)) for i in range(50)]
    assert all(frames == sorted(set(frames)) and len(frames) == 4 for frames in drawn)
    assert {frame for frames in drawn for frame in frames} == set(p_frames)


def test_frame_rule_is_checked() -> None:
    assert parse_frame_rule("last") == "last"
    assert parse_frame_rule("4") == 4
    for text in ("0", "-1", "first", "1.5"):
        with pytest.raises(InputError, match="--frames"):
            parse_frame_rule(text)


def test_planes_hold_every_sample_where_it_belongs() -> None:
    packed = np.random.default_rng(0).integers(0, 256, (48, 32), dtype=np.uint8)
    planes = to_planes(packed)
    assert planes.shape == (6, 16, 16)
    luma, u, v = packed[:32], packed[32:40], packed[40:48]
    for row in (0, 1):
        for column in (0, 1):
            np.testing.assert_array_equal(planes[2 * row + column], luma[row::2, column::2])
    np.testing.assert_array_equal(planes[4], u.reshape(16, 16))
    np.testing.assert_array_equal(planes[5], v.reshape(16, 16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", ["last", "5"])
def test_every_kind_has_its_frames_and_planes(clip: Bitstream, kind: str, frames: str) -> None:
    what = Input(kind, "yuv", parse_frame_rule(frames))
    planes = what.read(clip, range(3))
    assert planes.dtype == np.uint8
    assert planes.shape == (3 if frames == "last" else 5, what.num_planes, 32, 32)
    # A part of the clip is read as it is in the whole.
    if frames == "last" and kind != "difference":
        np.testing.assert_array_equal(what.read(clip, range(1, 3)), planes[1:])
    if kind != "motion":
        luma = Input(kind, "luma", what.frames).read(clip, range(3))
        of_luma = 1 if kind.startswith("energy") else 4
        np.testing.assert_array_equal(luma[:, :of_luma], planes[:, :of_luma])
        assert luma.shape[1] == what.num_planes - 2


def test_the_energy_is_the_size_of_the_accumulated_residual(clip: Bitstream) -> None:
    accumulated = Input("accumulated+motion").read(clip, range(3))
    sizes = np.abs(accumulated[:, :6].astype(int) - GRAY)
    energy = Input("energy+motion").read(clip, range(3))
    steps = np.minimum(STEPS_OF_ENERGY * sizes[:, :4].mean(1), 127)
    np.testing.assert_allclose(energy[:, 0].astype(int) - GRAY, steps, atol=0.5)
    chroma = np.minimum(STEPS_OF_ENERGY * sizes[:, 4:], 127)
    np.testing.assert_array_equal(energy[:, 1:3].astype(int) - GRAY, chroma)
    np.testing.assert_array_equal(energy[:, 3:], accumulated[:, 6:])
    # The sizes of a mirrored picture are its mirrored sizes; motion to the right goes left.
    mirrored = Input("energy+motion").mirrored(energy)
    np.testing.assert_array_equal(mirrored[:, :4], energy[:, :4, :, ::-1])
    opposite = 2 * GRAY - energy[:, 4, :, ::-1].astype(int)
    np.testing.assert_array_equal(mirrored[:, 4], opposite.clip(0, 255))


def test_pictures_and_differences_are_what_a_player_shows(clip: Bitstream) -> None:
    shown = decoded(clip)
    np.testing.assert_array_equal(Input("pictures").read(clip, range(3)), shown[[7, 15, 19]])
    change = (shown[[7, 15, 19]] - shown[0] + GRAY).clip(0, 255)
    np.testing.assert_array_equal(Input("difference").read(clip, range(3)), change)


def test_without_motion_the_accumulated_residual_is_the_difference() -> None:
    settings = CodecSettings(gop_size=20, quantizer=2, motion_search=False)
    still = encode(moving_texture(12, SIZE), settings, 25)
    difference = Input("difference").read(still, range(1)).astype(int)
    accumulated = Input().read(still, range(1)).astype(int)
    inside = (np.abs(difference - GRAY) < 100) & (np.abs(accumulated - GRAY) < 100)
    # The decoder cuts each picture to 0 … 255 on the way.
    assert np.mean(np.abs(difference - accumulated)[inside] <= 1) > 0.99


def test_only_the_packets_that_are_said_to_be_read_are_read(clip: Bitstream) -> None:
    for kind in KINDS:
        for frames in ("last", 3):
            what = Input(kind, "yuv", frames)  # type: ignore[arg-type]
            wanted = what.read(clip, range(1, 3))
            emptied = Bitstream(clip.data, "emptied")
            for number in set(range(20)) - set(what.packets_read(clip, range(1, 3))):
                emptied.packets[number] = b""
            np.testing.assert_array_equal(what.read(emptied, range(1, 3)), wanted)


def test_motion_follows_a_moving_picture() -> None:
    """The picture moves 2 right and 1 up in each frame: 3 frames later, 6 left and 3 down of it."""
    base = moving_texture(1, 2 * SIZE)[0]
    pictures = [base[20 + n : 20 + n + SIZE, 40 - 2 * n : 40 - 2 * n + SIZE] for n in range(4)]
    clip = encode(pictures, CodecSettings(gop_size=4), 25)
    fields = list(traced_motion(clip.accumulated_residuals(0)))
    inner = (slice(2, -2), slice(2, -2))
    for number, field in enumerate(fields, start=1):
        assert field.shape == (2, SIZE // BLOCK, SIZE // BLOCK)
        assert float(np.median(field[0][inner])) == 1 * number
        assert float(np.median(field[1][inner])) == -2 * number
    (planes,) = Input("motion").read(clip, range(1))
    assert int(np.median(planes[0])) == GRAY + 3 * STEPS_PER_PIXEL
    assert int(np.median(planes[1])) == GRAY - 6 * STEPS_PER_PIXEL


def test_motion_is_traced_through_the_block_that_a_vector_points_into(clip: Bitstream) -> None:
    """Two frames by hand: a block that takes its picture from its neighbor takes its past too."""
    dtype = clip.accumulated_residuals(0)[0].motion_vectors.dtype

    def frame(number: int, vectors: list[tuple[int, int, int, int]]) -> Residual:
        table = np.zeros(len(vectors), dtype)
        for entry, (x, y, right, down) in zip(table, vectors, strict=True):
            entry["dst_x"], entry["dst_y"], entry["w"], entry["h"] = x, y, 16, 16
            entry["motion_x"], entry["motion_y"], entry["motion_scale"] = 2 * right, 2 * down, 2
        zeros = np.zeros((32, 32), np.uint8)
        return Residual(number, zeros, zeros[:16, :16], zeros[:16, :16], table)

    first = frame(1, [(8, 8, 0, 0), (24, 8, 0, -3)])
    second = frame(2, [(8, 8, 16, 0), (24, 8, 0, 0)])
    one, two = traced_motion([first, second])
    assert one[:, 0, 2].tolist() == [-3, 0]
    assert two[:, 0, 0].tolist() == [-3, 16]
    assert two[:, 1, 1].tolist() == [-3, 16]
    assert two[:, 0, 2].tolist() == [-3, 0]
    assert not two[:, 2:].any()


def test_what_cannot_be_read_is_an_error(clip: Bitstream) -> None:
    with pytest.raises(InputError, match="--input flow: give one of accumulated"):
        Input("flow")
    with pytest.raises(InputError, match="--planes rgb"):
        Input(planes="rgb")
    stills = encode(moving_texture(3, SIZE), CodecSettings(gop_size=1), 25)
    with pytest.raises(CodecError, match="no P-frame"):
        Input().read(stills, range(3))


@pytest.mark.parametrize("kind", ["accumulated", "motion", "accumulated+motion"])
def test_mirrored_planes_are_those_of_the_mirrored_picture(kind: str) -> None:
    rng = np.random.default_rng(0)
    luma = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    chroma = rng.integers(0, 256, (2, 8, 8), dtype=np.uint8)
    down, right = rng.integers(-100, 101, (2, 8, 8))

    def planes(luma: np.ndarray, chroma: np.ndarray, down: np.ndarray, right: np.ndarray):
        packed = to_planes(np.concatenate([luma, chroma.reshape(8, 16)]))
        motion = (np.stack([down, right]) + 128).astype(np.uint8)
        parts = {
            "accumulated": [packed],
            "motion": [motion],
            "accumulated+motion": [packed, motion],
        }
        return np.concatenate(parts[kind])[None]

    # What moves to the right in a picture moves to the left in its mirror image.
    turned = planes(luma[:, ::-1], chroma[..., ::-1], down[:, ::-1], -right[:, ::-1])
    given = planes(luma, chroma, down, right)
    assert np.array_equal(Input(kind).mirrored(given), turned)
    assert np.array_equal(Input(kind).mirrored(turned), given)
