"""Reading clips: real encoded videos and pictures, whole, damaged, turned and mixed up."""

from __future__ import annotations

import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cfer import clips
from cfer.clips import ClipError, FolderPictures, numbered_pictures, open_pictures, windows


def gray_ramp(num_frames: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 + 8 * n, np.uint8) for n in range(num_frames)]


def write_video(
    path: Path,
    pictures: list[np.ndarray],
    *,
    codec: str = "libx264",
    fps: int | Fraction = 25,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    faststart: bool = False,
) -> None:
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def noise(num_frames: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(num_frames)]


def test_a_video_gives_its_pictures_in_order_and_again(tmp_path):
    path = tmp_path / "ramp.mp4"
    write_video(path, gray_ramp(15), fps=Fraction(30000, 1001))
    pictures = open_pictures(path)
    assert pictures.fps == Fraction(30000, 1001)
    assert pictures.count() == 15
    for _ in range(2):
        values = [picture.mean() for picture in pictures]
        assert np.allclose(values, [20 + 8 * n for n in range(15)], atol=3)
    selected = list(pictures.select({3, 11}))
    assert [round(picture.mean() / 8 - 2.5) for picture in selected] == [3, 11]


def test_frame_rate_given_by_hand_wins(tmp_path):
    path = tmp_path / "ramp.mp4"
    write_video(path, gray_ramp(3))
    assert open_pictures(path, Fraction(50)).fps == 50


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_metadata_is_undone(tmp_path, rotation):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 255  # the left upper quarter
    path = tmp_path / "turned.mp4"
    write_video(path, [picture] * 3, rotation=rotation)
    shown = next(iter(open_pictures(path)))
    expected = np.rot90(picture, rotation // 90)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 8


def test_pixels_become_square(tmp_path):
    path = tmp_path / "anamorphic.mp4"
    write_video(path, gray_ramp(3), pixel_aspect=Fraction(4, 3))
    assert next(iter(open_pictures(path))).shape == (64, 128, 3)


def test_numbered_pictures_are_sorted_as_numbers(tmp_path):
    for number, suffix in ((10, "png"), (9, "PNG"), (1, "png"), (100, "png")):
        picture = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"S1_{number}.{suffix}")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "._S1_2.png").write_bytes(b"x")
    (tmp_path / "landmarks_1.txt").write_text("x")
    (tmp_path / "thumbnail.png").write_bytes(b"not numbered, so not read")
    pictures = open_pictures(tmp_path)
    assert isinstance(pictures, FolderPictures)
    assert pictures.fps == 25
    assert [picture[0, 0, 0] for picture in pictures] == [1, 9, 10, 100]
    assert [picture[0, 0, 0] for picture in pictures.select([3, 1])] == [9, 100]
    assert len(numbered_pictures(tmp_path)) == pictures.count() == 4


def test_a_short_video_is_decoded_once(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, gray_ramp(12))
    wanted = list(open_pictures(path).select({2, 11}))
    pictures = open_pictures(path)
    assert pictures.count() == 12
    monkeypatch.setattr(clips, "HELD_BYTES", 64 * 96 * 5)
    longer = open_pictures(path)
    assert longer.count() == 12
    assert np.array_equal(list(longer.select({2, 11})), wanted)
    path.unlink()
    assert np.array_equal(list(pictures.select({2, 11})), wanted)
    with pytest.raises(OSError, match=r"a\.mp4"):
        list(longer.select({2}))


def test_gray_and_16_bit_pictures(tmp_path):
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "1.png")
    Image.fromarray(np.full((8, 8), 77 * 256 + 200, np.uint16)).save(tmp_path / "2.png")
    for picture in open_pictures(tmp_path):
        assert picture.shape == (8, 8, 3)
        assert picture.dtype == np.uint8
        assert (picture == 77).all()


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def scrambled(data: bytes) -> bytes:
    damaged = bytearray(data)
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    # Longer than a frame: of damage that spares the beginning of each, a decoder need not notice.
    damaged[middle : middle + 6000] = bytes(range(250)) * 24
    return bytes(damaged)


@pytest.mark.parametrize(
    ("change", "faststart", "stage", "reason"),
    [
        (lambda data: b"", False, "open", "the file is empty"),
        (lambda data: b"no video\n" * 50, False, "open", "not a video"),
        (cut, False, "open", "cut off before its index"),
        (cut, True, "decode", "damaged or cut off at frame"),
        (scrambled, False, "decode", "damaged or cut off at frame"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end(tmp_path, change, faststart, stage, reason):
    path = tmp_path / "clip.mp4"
    write_video(path, noise(24), faststart=faststart)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ClipError) as caught:
        open_pictures(path).count()
    assert caught.value.stage == stage
    assert reason in caught.value.reason
    assert str(path) in str(caught.value)


def test_a_file_cut_off_between_two_frames(tmp_path):
    """The decoder meets no error at all then: only the number of frames tells."""
    path = tmp_path / "clip.mp4"
    write_video(path, noise(24), codec="mpeg4", faststart=True)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        last = packets[15]
        end = last.pos + last.size
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ClipError, match="damaged or cut off at frame 16"):
        open_pictures(path).count()


def test_a_file_without_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match="no video stream"):
        open_pictures(path)


def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(ClipError, match="No such file"):
        open_pictures(tmp_path / "missing.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ClipError, match="neither a file nor a folder"):
        open_pictures(tmp_path / "pipe.mp4")


def test_bad_folders(tmp_path):
    with pytest.raises(ClipError, match="no numbered picture"):
        open_pictures(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "1.png")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "2.png")
    with pytest.raises(ClipError, match=r"2\.png is 9×8 pixels, and the first one 8×8"):
        list(open_pictures(tmp_path))
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipError, match=r"2\.png is not a readable picture"):
        list(open_pictures(tmp_path))
    (tmp_path / "01.jpg").write_bytes(data)
    with pytest.raises(ClipError, match="the same number"):
        open_pictures(tmp_path)


@pytest.mark.parametrize(
    ("num_frames", "window_frames", "expected"),
    [
        (10, None, [(0, 10)]),
        (10, 10, [(0, 10)]),
        (20, 10, [(0, 10), (10, 20)]),
        (22, 10, [(0, 10), (10, 20), (20, 22)]),
        (21, 10, [(0, 10), (10, 21)]),  # one frame left over is not lost
    ],
)
def test_windows(num_frames, window_frames, expected):
    cut_up = windows(num_frames, window_frames)
    assert [(span.start, span.stop) for span in cut_up] == expected


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ClipError("a.mp4", "face", "no face")))
    assert (error.source, error.stage, error.reason) == ("a.mp4", "face", "no face")
    assert str(error) == "a.mp4: no face"


def test_real_videos_are_whole(faces_dir):
    num_frames = {file.stem: open_pictures(file).count() for file in faces_dir.glob("*.mp4")}
    for name, expected in {"d18": 216, "s29": 160}.items():
        assert num_frames.get(name, expected) == expected
    assert min(num_frames.values()) >= 2
