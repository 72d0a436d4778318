"""H.264 as it is, as a recognizer's input: known movements of a head and of a part of the face."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from h264_streams import x264
from videos import write_video

from cfer.codec import GRAY, Bitstream, CodecError, CodecSettings, encode
from cfer.data.frames import COLUMNS, _chosen, frames_of_clips, unpack_views
from cfer.data.inputs import STEPS_OF_ENERGY, STEPS_PER_PIXEL, Input
from cfer.data.native import FaceReader, NativeVideo, Run, read_native, runs
from cfer.data.shards import read_clips
from cfer.data.torch_dataset import ClipDataset
from cfer.errors import InputError
from cfer.train.batches import Augmentation, BatchMaker, Standardization, load_clips
from cfer.video.faces import FaceDetector, Square
from cfer.video.follow import NOWHERE
from cfer.video.pictures import VideoPictures, open_pictures
from cfer.video.variation import AS_FOUND, Variation

SIDE = 128  # of the head, and of its crop: a pixel is a pixel
HEIGHT, WIDTH = 192, 256
HEAD = Square(48, 32, SIDE, 1.0, 1)
NO_B = "keyint=100:bframes=0:ref=1"
FIXTURES = Path(__file__).parents[2] / "fixtures"


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Blurred noise, uint8 (height, width), in which each place can be found again."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width))
    blurred = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 50 * blurred / blurred.std(), 20, 235).astype(np.uint8)


def clip(
    frames: int, head: tuple[float, float] = (0, 0), jaw: float = 0, parameters: str = NO_B
) -> Bitstream:
    """A head before a wall. In each frame it goes on by so many pixels, right and down; in it the
    jaw, the lowest third, goes down by `jaw` more."""
    wall, face = texture(HEIGHT, WIDTH, 0), texture(SIDE, SIDE, 1)
    pictures = []
    for t in range(frames):
        moved = face.copy()
        top, drop = 2 * SIDE // 3, round(jaw * t)
        moved[top + drop :] = face[top : SIDE - drop]
        picture = wall.copy()
        x, y = round(HEAD.x + head[0] * t), round(HEAD.y + head[1] * t)
        picture[y : y + SIDE, x : x + SIDE] = moved
        pictures.append(np.repeat(picture[..., None], 3, 2))
    return Bitstream(x264(pictures, parameters), "clip")


def steps(planes: np.ndarray) -> np.ndarray:
    """The motion planes in pixels."""
    return (planes[3:].astype(int) - GRAY) / STEPS_PER_PIXEL


class Finder:
    """Instead of a detector: it finds a head of noise where it was put."""

    def __init__(self, square: Square) -> None:
        self.found = [square]
        self.again: Square | None = square

    def find(self, picture: np.ndarray) -> list[Square]:
        return self.found

    def find_again(self, picture: np.ndarray, square: Square) -> Square | None:
        return self.again


def test_a_head_is_followed_by_the_vectors() -> None:
    bitstream = clip(9, head=(3, -2))
    reader = FaceReader(bitstream, NOWHERE, (HEIGHT, WIDTH), Finder(HEAD))
    for frame in range(9):
        square = reader.square(frame)
        assert abs(square.x - HEAD.x - 3 * frame) <= 1
        assert abs(square.y - HEAD.y + 2 * frame) <= 1
        assert square.side == SIDE


def test_after_two_seconds_the_same_face_is_looked_for_again() -> None:
    """Where it isn't seen where it was, the nearest one that there is; and if all are somebody
    else's, where the vectors say."""
    bitstream = clip(52)  # 25 a second
    near, far = replace(HEAD, x=HEAD.x + 5), replace(HEAD, x=HEAD.x + 2 * SIDE)
    for again, found, wanted in (
        (replace(HEAD, y=HEAD.y + 3), [near], replace(HEAD, y=HEAD.y + 3)),
        (None, [far, near], near),
        (None, [far], HEAD),
    ):
        finder = Finder(HEAD)
        reader = FaceReader(bitstream, NOWHERE, (HEIGHT, WIDTH), finder)
        assert reader.square(49) == HEAD
        finder.again, finder.found = again, found
        assert reader.square(51) == wanted


@pytest.mark.parametrize("head", [(0, 0), (3, -2)])
def test_the_face_moves_in_its_own_square_alone(head: tuple[float, float]) -> None:
    """However the head moves, the jaw goes down by as much as it does in the face."""
    planes = read_native(clip(7, head, jaw=1), Run(0, 6), HEAD, SIDE).planes[0]
    assert (planes.dtype, planes.shape) == (np.uint8, (5, SIDE // 2, SIDE // 2))
    down, right = steps(planes)
    inside = slice(8, -8)
    upper, jaw = down[8:36, inside], down[-16:-8, inside]
    assert abs(np.median(upper)) <= 0.25
    # From a block to where it was: upwards.
    assert abs(np.median(jaw) + 6) <= 0.5
    assert abs(np.median(right[8:36, inside])) <= 0.25


def test_the_energy_is_the_mean_size_of_the_direct_residuals() -> None:
    bitstream = clip(5, jaw=1)
    residuals = [bitstream.direct_residual(frame) for frame in range(1, 5)]
    y, u, v = (
        np.mean([np.abs(getattr(r, name).astype(float) - GRAY) for r in residuals], axis=0)
        for name in "yuv"
    )
    halves = y[32:160, 48:176].reshape(64, 2, 64, 2).mean((1, 3))
    expected = np.stack([halves, u[16:80, 24:88], v[16:80, 24:88]])
    planes = read_native(bitstream, Run(0, 4), HEAD, SIDE).planes[0]
    assert expected[0].max() > 5
    # OpenCV looks between samples in steps of 1/32.
    np.testing.assert_allclose(
        (planes[:3].astype(float) - GRAY) / STEPS_OF_ENERGY,
        expected,
        atol=1 / STEPS_OF_ENERGY + expected.max() / 64,
    )
    assert expected.max() < 16


def test_the_energy_goes_along_with_the_head() -> None:
    """Where the head is at the time, the jaw is what changes, and not what is behind the head."""
    still, moved = (
        read_native(clip(7, head, jaw=1), Run(0, 6), HEAD, SIDE).planes[0, 0].astype(float) - GRAY
        for head in ((0, 0), (3, -2))
    )
    for energy in (still, moved):
        assert energy[44:56, 8:-8].mean() > 3 * energy[12:32, 8:-8].mean()


def test_variations_are_cut_out_of_one_reading() -> None:
    bitstream = clip(5, head=(2, 1), jaw=1)
    larger = Variation(larger=0.2)
    both = read_native(bitstream, Run(0, 4), HEAD, 64, [AS_FOUND, larger]).planes
    assert both.shape == (2, 5, 32, 32)
    for variation, planes in zip((AS_FOUND, larger), both, strict=True):
        (alone,) = read_native(bitstream, Run(0, 4), HEAD, 64, [variation]).planes
        np.testing.assert_array_equal(planes, alone)
    assert not np.array_equal(*both)


def test_pictures_without_b_frames_are_the_same_pictures() -> None:
    bitstream = clip(17, head=(1, 1), parameters="keyint=8:bframes=3:b-adapt=0")
    for gop in range(len(bitstream.gops)):
        every = dict(zip(bitstream.gops[gop], bitstream.gop_pictures(gop), strict=True))
        found = dict(bitstream.gop_pictures_without_b(gop))
        assert set(found) == {
            n for n in every if bitstream.frame_types[n] != "B" or bitstream.is_reference(n)
        }
        for number, planes in found.items():
            for ours, theirs in zip(planes, every[number], strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_window_is_cut_into_runs() -> None:
    bitstream = clip(60, parameters="keyint=40:bframes=0")  # I-frames at 0 and 1.6 s, of 2.4
    assert runs(bitstream, 0.4, 1.2) == [Run(10, 30)]
    assert runs(bitstream, 0, 2.4, 0.8) == [Run(0, 19), Run(19, 39)], "the rest is too short"
    assert runs(bitstream, 0.9, 2.4) == [Run(22, 39), Run(40, 59)]
    assert runs(bitstream, 1.4, 2.2) == [Run(40, 55)], "0.16 s before an I-frame are left out"
    assert runs(bitstream, 0.4, 0.4) == [Run(9, 10)], "at least a frame"
    assert runs(bitstream, 1.58, 1.6) == [Run(40, 41)]
    assert runs(clip(3, parameters="keyint=1"), 0, 1) == []


def test_intra_blocks_are_reported() -> None:
    bitstream = clip(4)
    pictures = [p[0] for p in bitstream.pictures()]
    assert read_native(bitstream, Run(0, 3), HEAD, 64).intra_fraction == 0
    shown = [np.repeat(y[..., None], 3, 2) for y in pictures]
    shown[2] = shown[2].copy()
    noise = np.random.default_rng(2).integers(40, 220, (64, SIDE, 1))
    shown[2][32:96, 48:176] = noise
    shown[3] = shown[2]
    changed = Bitstream(x264(shown, NO_B), "changed")
    # What is predicted from an intra block in a later frame counts as well.
    assert 0.35 < read_native(changed, Run(0, 3), HEAD, 64).intra_fraction < 0.7


@pytest.mark.parametrize("turn", [None, (0, 1, -1, 0), (-1, 0, 0, 1), (0, -1, 1, 0)])
def test_a_turned_video_is_seen_upright(tmp_path, turn: tuple[int, ...] | None) -> None:
    face = np.repeat(texture(96, 128, 3)[..., None], 3, 2)
    matrix = {"matrix": turn} if turn else {}
    write_video(path := tmp_path / "turned.mp4", [face] * 3, **matrix)
    place, shape = VideoPictures(path, None).coded_place()
    first = next(iter(open_pictures(path)))
    assert first.shape[:2] == shape
    coded = Bitstream.open(path).i_frame(0)
    seen = cv2.warpAffine(coded, place, shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    assert np.abs(seen.astype(int) - first).mean() < 1
    assert np.array_equal(place, NOWHERE) == (turn is None)


def test_of_a_turned_video_the_motion_is_turned_as_well() -> None:
    """A quarter turn: what goes right in the samples goes down where it is shown."""
    bitstream = clip(7, head=(3, 0))
    quarter = np.array([[0.0, 1, 0], [-1, 0, HEIGHT - 1]])  # from shown to coded
    square = Square(HEIGHT - HEAD.y - SIDE, HEAD.x, SIDE, 1.0, 1)
    found = FaceReader(bitstream, quarter, (WIDTH, HEIGHT), Finder(square)).square(6)
    assert abs(found.y - square.y - 18) <= 1
    assert abs(found.x - square.x) <= 1


@pytest.fixture(scope="module")
def drawn() -> Path:
    return FIXTURES / "drawn" / "videos" / "S003" / "surprise_1.mp4"


def test_a_file_is_read_window_by_window(drawn: Path, detector: FaceDetector) -> None:
    video = NativeVideo(drawn, detector)
    window = video.read(0, 1, 64, [AS_FOUND, Variation(right=0.05)])
    assert window.planes.shape == (2, 1, 5, 32, 32)
    assert window.square == detector.find(video.bitstream.i_frame(0))[0]
    total = sum(map(len, video.bitstream.packets))
    assert 0 < window.bytes_read < total
    assert (window.planes != GRAY).mean() > 0.05


def test_a_face_is_looked_for_again_in_a_long_gop(drawn: Path, detector, tmp_path) -> None:
    """It jumps while something hides it; vectors alone would not find it again."""
    face = cv2.resize(next(iter(open_pictures(drawn))), (128, 128))
    pictures = []
    for t in range(75):
        picture = np.full((192, 384, 3), 128, np.uint8)
        if not 20 <= t < 30:
            x = 20 if t < 20 else 60
            picture[32:160, x : x + 128] = face
        pictures.append(picture)
    (path := tmp_path / "jump.mp4").write_bytes(x264(pictures, "keyint=250:bframes=0"))
    video = NativeVideo(path, detector)
    before = video.read(0, 0.5, 64).square
    after = video.read(2.4, 2.9, 64).square
    assert abs(after.x - before.x - 40) < 6


def test_what_is_not_read_as_it_is_says_why(drawn: Path, detector, tmp_path) -> None:
    pictures = [np.repeat(texture(96, 96, 0)[..., None], 3, 2)] * 4
    (path := tmp_path / "wall.mp4").write_bytes(x264(pictures))
    with pytest.raises(CodecError, match=r"no face in the I-frame \(at 0\.00 s\)"):
        NativeVideo(path, detector).read(0, 1, 64)
    (path := tmp_path / "intra.mp4").write_bytes(x264(pictures, "keyint=1"))
    with pytest.raises(CodecError, match=r"no P-frame in the window \(from 0 s to 1 s\)"):
        NativeVideo(path, detector).read(0, 1, 64)
    encode(pictures, CodecSettings(), 25).save(path := tmp_path / "mpeg4.mp4")
    with pytest.raises(CodecError, match="its codec is mpeg4"):
        NativeVideo(path, detector)


def test_the_planes_of_an_input_are_chosen() -> None:
    planes = np.arange(5, dtype=np.uint8).reshape(1, 5, 1, 1) * np.ones((1, 1, 2, 2), np.uint8)

    def chosen(kind: str, of: str) -> list[int]:
        what = Input(kind, of, stream="native")
        found = what.of_native(planes)[0, :, 0, 0].tolist()
        assert what.num_planes == len(found)
        return found

    assert chosen("energy+motion", "yuv") == list(range(5))
    assert chosen("energy+motion", "luma") == [0, 3, 4]
    assert chosen("energy", "luma") == [0]
    assert chosen("motion", "yuv") == [3, 4]
    for kind, frames in (("direct", "last"), ("accumulated+motion", "last"), ("energy", 3)):
        with pytest.raises(InputError, match=r"--stream native: of H\.264 as it is, a whole run"):
            Input(kind, frames=frames, stream="native")


def test_views_are_those_of_the_stream_that_was_asked_for() -> None:
    pictures = [np.repeat(texture(32, 32, n)[..., None], 3, 2) for n in range(3)]
    encoded = [encode(pictures, CodecSettings(gop_size=3), 25).data] * 2
    native = [np.full((2, 5, 16, 16), n, np.uint8).tobytes() for n in (1, 2)]

    def first_samples(stream: str, of: list[bytes], for_training: bool) -> list[tuple[int, int]]:
        what = Input("energy+motion", stream=stream)
        return [(len(v), int(v[0, 4, 0, 0])) for v in what.views_of(encoded, of, "", for_training)]

    seen = Input("energy+motion").read(Bitstream(encoded[0], ""), range(1))
    is_encoded = (1, int(seen[0, 4, 0, 0]))
    assert is_encoded[1] not in (1, 2)
    assert first_samples("encoded", native, True) == [is_encoded] * 2
    assert first_samples("native", native, True) == [(2, 1), (2, 2)]
    assert first_samples("both", native, True) == [(2, 1), (2, 2), is_encoded, is_encoded]
    assert first_samples("both", native, False) == [(2, 1), (2, 2)]
    assert first_samples("native", [], True) == [is_encoded] * 2, "as a prediction would"


# ---- shards --------------------------------------------------------------------------------------

BOTH = Input("energy+motion", stream="both")


def test_training_takes_views_of_both_streams(drawn_shards: Path) -> None:
    table = pq.read_table(drawn_shards / "shard-00000.parquet", columns=list(COLUMNS))
    rows = table.to_pylist()
    chosen = [_chosen(row, BOTH, for_training=True) for row in rows]
    for row, made in zip(rows, chosen, strict=True):
        views = unpack_views(made)
        assert [view.shape for view in views] == [(1, 5, 32, 32)] * 2 + [(2, 5, 32, 32)] * 2
        assert views[0].tobytes() == row["native"][0]
        assert made["bytes_read"] == row["native_bytes"]
        held_out = unpack_views(_chosen(row, BOTH, for_training=False))
        assert [view.tobytes() for view in held_out] == row["native"]
    clips = load_clips(chosen, 128)
    standardize = Standardization(clips.z_I.mean(0), torch.ones(128))
    maker = BatchMaker(clips, BOTH, standardize, torch.device("cpu"))
    lengths = {
        tuple(batch.mask.sum(1).tolist())
        for batch in maker.training_epoch(4, len(clips), Augmentation(), 0, 0, 0)
    }
    assert {n for of_batch in lengths for n in of_batch} == {1, 2}, "views of both were drawn"


def test_a_data_set_without_native_planes_is_not_trained_on_them(drawn_shards, tmp_path) -> None:
    description = json.loads((drawn_shards / "dataset.json").read_text())
    description["settings"]["native"] = False
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(
        InputError, match=r"extracted without --native, and the input is of --stream both; "
    ):
        frames_of_clips(str(tmp_path), ["a"], BOTH, for_training=True)


def test_a_torch_dataset_has_the_native_planes(drawn_shards: Path) -> None:
    native = ClipDataset(drawn_shards, Input("motion", stream="native"))
    row = next(iter(read_clips(drawn_shards)))
    stored = np.frombuffer(row.native[0], np.uint8).reshape(1, 5, 32, 32)
    np.testing.assert_array_equal(native[0]["planes"], stored[:, 3:])
