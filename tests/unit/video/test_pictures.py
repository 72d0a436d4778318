"""Reading clips: real encoded videos and pictures, whole, damaged, turned and mixed up."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import re
import resource
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from hostile import huge_png, png_video
from PIL import Image
from videos import quarters, write_video

from cfer.video import pictures as clips
from cfer.video.files import numbered_pictures
from cfer.video.pictures import ClipError, FolderPictures, StreamPictures, open_pictures


def gray_ramp(num_frames: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 + 8 * n, np.uint8) for n in range(num_frames)]


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


def displayed(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """What a display matrix means: the sample at (x, y) is shown at (a·x + c·y, b·x + d·y)."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    shown = np.zeros((row.max() + 1, column.max() + 1, 3), np.uint8)
    shown[row, column] = picture
    return shown


ORIENTATIONS = [
    (*straight, *turned)
    for signs in itertools.product((1, -1), repeat=2)
    for straight, turned in (
        ((signs[0], 0), (0, signs[1])),
        ((0, signs[0]), (signs[1], 0)),
    )
]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_the_display_matrix_is_followed(tmp_path, matrix):
    """Of all eight orientations, also those of a front camera, which are mirrored."""
    path = tmp_path / "turned.mp4"
    write_video(path, [quarters()] * 3, matrix=matrix)
    pictures = open_pictures(path)
    expected = displayed(quarters(), *matrix)
    for shown in (next(iter(pictures)), next(pictures.select({2}))):
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_are_turned_as_their_exif_says(tmp_path, suffix):
    # What a viewer shows is upright; the camera stored it turned.
    stored = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: lambda p: np.rot90(p, -1),
    }
    for orientation, store in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.fromarray(np.ascontiguousarray(store(quarters())))
        picture.save(tmp_path / f"{orientation}.{suffix}", exif=exif, quality=95)
    shown = list(open_pictures(tmp_path))
    assert len(shown) == 8
    for picture in shown:
        assert picture.shape == (64, 96, 3)
        assert np.abs(picture.astype(int) - quarters()).mean() < 2


def test_pixels_become_square(tmp_path):
    path = tmp_path / "anamorphic.mp4"
    write_video(path, gray_ramp(3), pixel_aspect=Fraction(4, 3))
    assert next(iter(open_pictures(path))).shape == (64, 128, 3)


@pytest.mark.parametrize("aspect", [(4000, 1), (17, 1), (1, 17)])
def test_pixels_of_a_shape_that_no_camera_makes_are_refused(tmp_path, monkeypatch, aspect):
    """Before memory is taken for a picture of so many."""
    path = tmp_path / "wide.mp4"
    write_video(path, gray_ramp(3), pixel_aspect=Fraction(2))
    data = bytearray(path.read_bytes())
    at = data.index(b"pasp") + 4
    data[at : at + 8] = struct.pack(">II", *aspect)
    path.write_bytes(data)
    monkeypatch.setattr(cv2, "resize", None)
    with pytest.raises(ClipError, match=f"pixels are {aspect[0]}:{aspect[1]}.* -aspect 16:9"):
        list(open_pictures(path))
    with path.open("rb") as file, pytest.raises(ClipError, match="-aspect 16:9"):
        StreamPictures(file, "a pipe")


def test_pictures_beyond_all_measure_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "large.mp4"
    write_video(path, gray_ramp(3), pixel_aspect=Fraction(4, 3))
    monkeypatch.setattr(clips, "MOST_PIXELS", 128 * 64)
    assert open_pictures(path).count() == 3
    monkeypatch.setattr(clips, "MOST_PIXELS", 128 * 64 - 1)
    with pytest.raises(ClipError, match=r"large\.mp4: its pictures are 128×64, and may have 8,191"):
        open_pictures(path)


@pytest.mark.parametrize("said", [64, 16_000])
def test_a_picture_that_is_larger_than_its_header_says(tmp_path, said):
    """Some kB of a PNG of 256 megapixels, which are not decoded, not even to see what is there."""
    path = tmp_path / "huge.mov"
    path.write_bytes(png_video(path, huge_png(), said))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ClipError):
        open_pictures(path).count()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000, "kB"


def test_a_change_of_size_is_seen_before_the_picture_is_converted(tmp_path, monkeypatch):
    for name, side in (("small.ts", 64), ("large.ts", 256)):
        write_video(tmp_path / name, [np.full((side, side, 3), 90, np.uint8)] * 3)
    joined = (tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes()
    (tmp_path / "both.ts").write_bytes(joined)
    converted = []
    upright = clips._upright
    monkeypatch.setattr(
        clips,
        "_upright",
        lambda frame, aspect: converted.append(frame.width) or upright(frame, aspect),
    )
    for pictures in (
        StreamPictures(io.BytesIO(joined), "a pipe").timed(),
        open_pictures(tmp_path / "both.ts"),
    ):
        converted.clear()
        with pytest.raises(ClipError, match="frame 3 is 256×256 pixels, and the first one 64×64"):
            list(pictures)
        assert converted == [64] * 3


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


@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (10, 2), (12, 4), (14, 6), (16, 8)])
def test_samples_of_a_camera_are_as_bright_as_they_were(tmp_path, bits, shift):
    """In a PNG of 16 bits, whose upper ones the camera leaves empty; one scale for a whole clip."""
    dark = np.arange(64, dtype=np.uint16).reshape(8, 8) << shift
    bright = dark.copy()
    bright[0, 0] = (1 << bits) - 1
    color = np.stack([bright, dark, dark], axis=2)
    for number, picture in enumerate((dark, bright, color[:, :, ::-1])):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    shown = list(open_pictures(tmp_path))
    for picture, expected in zip(shown[:2], (dark, bright), strict=True):
        assert np.array_equal(picture, np.stack([expected >> shift] * 3, axis=2))
    assert np.array_equal(shown[2], color >> shift)
    assert all(picture.dtype == np.uint8 for picture in shown)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[:-30])
    with pytest.raises(ClipError, match=r"2\.png is not a readable picture"):
        list(open_pictures(tmp_path))


def test_a_picture_of_too_many_pixels_is_an_error_of_its_clip(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ClipError, match=r"1\.png is too large"):
        list(open_pictures(tmp_path))


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


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_a_file_that_is_shorter_than_its_header_says(tmp_path, codec, suffix):
    path = tmp_path / f"clip.{suffix}"
    write_video(path, noise(12), codec=codec)
    data = path.read_bytes()
    assert open_pictures(path).count() == 12
    with av.open(str(path)) as container:
        fourth = [packet for packet in container.demux(video=0) if packet.size][4]
    # Within a packet, and before it: to FFmpeg, that is the end.
    for end in (fourth.pos + fourth.size // 2, fourth.pos):
        path.write_bytes(data[:end])
        with pytest.raises(ClipError, match="damaged or cut off at frame"):
            open_pictures(path).count()


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_avi_that_skips_frames_is_whole(tmp_path, codec):
    """It announces them, and has an empty chunk for each."""
    path = tmp_path / "skipping.avi"
    kept = [n for n in range(20) if n not in (5, 6, 12)]
    pictures = [gray_ramp(20)[n] for n in kept]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        if codec == "mjpeg":
            stream.pix_fmt = "yuvj420p"
        for number, picture in zip(kept, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20
    read = open_pictures(path)
    assert read.count() == 17
    assert read.times() == pytest.approx([*(n / 25 for n in kept), 20 / 25])


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [
        ("drop.avi", 72),
        ("packed.avi", 70),
        ("og265_noel.mp4", 48),
        ("cover_first.mp4", 72),
        ("phone.3gp", 72),
    ],
)
def test_what_ffmpeg_decodes_without_complaint_is_whole(cases_dir, name, num_frames):
    pictures = open_pictures(cases_dir / name)
    assert pictures.count() == num_frames
    times = pictures.times()
    assert times[0] == 0
    assert all(before < after for before, after in itertools.pairwise(times))


# ---- which stream --------------------------------------------------------------------------------


def write_streams(
    path: Path,
    films: Sequence[tuple[str, int, Disposition, int]] = (),
    sound: bool = False,
    title: str = "",
) -> None:
    """Films of a codec, a side, a disposition and so many pictures, and perhaps sound."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        streams = []
        for codec, side, disposition, _ in films:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for stream, (_, side, _, count) in zip(streams, films, strict=True):
            picture = np.full((side, side, 3), 90, np.uint8)
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        if audio is not None:
            silence = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


COVER = ("mjpeg", 32, Disposition.attached_pic, 1)
FILM = ("mpeg4", 64, Disposition.default, 4)


def test_a_file_without_video(tmp_path):
    path = tmp_path / "sound.mp4"
    write_streams(path, sound=True)
    with pytest.raises(ClipError, match="no video stream"):
        open_pictures(path)


def with_cover_first(path: Path) -> None:
    """A cover stands in the `udta` of an MP4's index; from there to its beginning."""
    data = path.read_bytes()
    start = data.rindex(b"moov") - 4
    end = start + int.from_bytes(data[start : start + 4], "big")
    boxes, at = [], start + 8
    while at < end:
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append(data[at : at + size])
        at += size
    boxes.sort(key=lambda box: box[4:8] != b"udta")
    path.write_bytes(data[: start + 8] + b"".join(boxes) + data[end:])


def test_a_cover_is_no_film(tmp_path):
    path = tmp_path / "film.mp4"
    write_streams(path, [COVER, FILM])
    with_cover_first(path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
    pictures = open_pictures(path)
    assert pictures.count() == 4
    assert next(iter(pictures)).shape == (64, 64, 3)
    assert len(list(StreamPictures(io.BytesIO(path.read_bytes()), "a file").timed())) == 4
    sound = tmp_path / "sound.mp4"
    write_streams(sound, [COVER], sound=True)
    with pytest.raises(ClipError, match="no video stream"):
        open_pictures(sound)


def test_the_default_stream_is_read(tmp_path):
    path = tmp_path / "two.mkv"
    write_streams(path, [("mpeg4", 32, Disposition(0), 3), FILM])
    pictures = open_pictures(path)
    assert pictures.count() == 4
    assert next(iter(pictures)).shape == (64, 64, 3)


# ---- a name is a name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "2023-05-01T10:30:00.mp4",
        "concat:a.mp4",
        "http:a.mp4",
        "file:a.mp4",
        "a%03d.mp4",
        "clip[1].mp4",
        os.fsdecode(b"J\xfcrgen.mp4"),
    ],
)
def test_any_name_is_a_files(tmp_path, monkeypatch, name):
    """And none is a URL or a pattern of FFmpeg's."""
    write_video(tmp_path / "written.mp4", gray_ramp(4))
    monkeypatch.chdir(tmp_path)
    Path("written.mp4").rename(name)
    assert open_pictures(name).count() == 4


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile film.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfilm.ts\n#EXT-X-ENDLIST\n",
    ],
)
def test_no_other_file_is_reached_through_one(tmp_path, text):
    write_video(tmp_path / "film.mp4", gray_ramp(4))
    write_video(tmp_path / "film.ts", gray_ramp(4))
    path = tmp_path / "list.mp4"
    path.write_text(text)
    with pytest.raises(ClipError, match="not a video"):
        open_pictures(path)
    with path.open("rb") as file, pytest.raises(ClipError, match="not a video"):
        StreamPictures(file, "a pipe")


def test_titles_in_any_encoding_do_not_matter(tmp_path):
    path = tmp_path / "old.avi"
    write_streams(path, [FILM], title="Juergen")
    data = path.read_bytes()
    assert b"Juergen" in data
    path.write_bytes(data.replace(b"Juergen", b"J\xfcrgens"))
    assert open_pictures(path).count() == 4


# ---- files that are no clips ---------------------------------------------------------------------


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


def test_the_rate_is_that_of_the_times_whatever_the_file_says(tmp_path):
    """As of a browser's recording: 25 pictures a second, and 1000 by its header."""
    path = tmp_path / "browser.mkv"
    times = [Fraction(n, 25) + Fraction(n % 3, 1000) for n in range(61)]
    write_video(
        path, gray_ramp(26, 32, 32)[:12] * 5 + gray_ramp(26, 32, 32)[:1], fps=1000, times=times
    )
    pictures = open_pictures(path)
    assert pictures.fps == 1000
    assert float(pictures.regular_fps()) == pytest.approx(25, rel=0.001)
    assert open_pictures(path, Fraction(10)).regular_fps() == 10
    with path.open("rb") as file:
        stream = StreamPictures(file, "a pipe")
        assert float(stream.regular_fps()) == pytest.approx(25, rel=0.01)
        streamed = [seconds for _, seconds, _ in stream.timed()]
    assert streamed == pictures.times()[:-1], "none was lost"


def test_a_part_of_a_video_by_its_own_times(tmp_path):
    """Pictures at 0, 0.02, … 0.98 s, and at 1, 1.1, … 1.9 s."""
    path = tmp_path / "varying.mp4"
    times = [Fraction(n, 50) for n in range(50)] + [1 + Fraction(n, 10) for n in range(10)]
    write_video(path, gray_ramp(26, 32, 32)[:12] * 5, times=times)
    pictures = open_pictures(path)
    assert pictures.span() == range(60)
    assert pictures.span(0.98) == range(49, 60)
    assert pictures.span(0.981, 1.1) == range(50, 52)
    assert pictures.span(None, 0.039) == range(2)
    assert pictures.span(1.8, 1.94) == range(58, 60)
    for part, reason in (
        ((0, 2.2), "its span ends at 2.2 s, and the video at 1.940 s"),
        ((1.01, 1.11), "fewer than two pictures from 1.01 s to 1.11 s"),
        ((7, None), "its span starts at 7 s, and the video ends at 1.940 s"),
        ((0.5, 0.2), "fewer than two pictures from 0.5 s to 0.2 s"),
    ):
        with pytest.raises(ClipError, match=re.escape(reason)) as error:
            pictures.span(*part)
        assert error.value.stage == "manifest"


# ---- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_each_picture_has_the_time_that_the_file_gives_it(tmp_path, suffix):
    """50 in the first second, 10 in the next one: phones record so."""
    path = tmp_path / f"varying.{suffix}"
    times = [Fraction(n, 50) for n in range(50)] + [1 + Fraction(n, 10) for n in range(10)]
    write_video(path, gray_ramp(26, 32, 32)[:12] * 5, times=times)
    pictures = open_pictures(path)
    assert pictures.times()[:-1] == pytest.approx(list(map(float, times)), abs=0.002)
    assert times[-1] < pictures.times()[-1] <= 2.1
    with path.open("rb") as file:
        streamed = [seconds for _, seconds, _ in StreamPictures(file, "a pipe").timed()]
    assert streamed == pictures.times()[:-1]
    # A rate given by hand is for files that say it wrongly.
    assert open_pictures(path, Fraction(10)).times() == pytest.approx([n / 10 for n in range(61)])


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_times_of_a_phones_video(cases_dir, name):
    times = open_pictures(cases_dir / name).times()
    assert [times[n] for n in (0, 24, 48, 71)] == pytest.approx([0, 0.8, 4.8, 8.633], abs=0.001)


def test_times_go_on_where_recordings_were_joined(tmp_path):
    write_video(tmp_path / "one.ts", gray_ramp(10))
    one = (tmp_path / "one.ts").read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    assert open_pictures(tmp_path / "two.ts").times() == pytest.approx([n / 25 for n in range(21)])


def test_pictures_in_a_folder_come_at_one_rate(tmp_path):
    for number in (3, 4, 9):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
    assert open_pictures(tmp_path, Fraction(5)).times() == [0, 0.2, 0.4, 0.6]


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ClipError("a.mp4", "face", "no face")))
    assert (error.source, error.stage, error.reason) == ("a.mp4", "face", "no face")
    assert str(error) == "a.mp4: no face"


def test_real_videos_are_whole(faces_dir):
    num_frames = {file.stem: open_pictures(file).count() for file in faces_dir.glob("*.mp4")}
    for name, expected in {"d18": 216, "s29": 160}.items():
        assert num_frames.get(name, expected) == expected
    assert min(num_frames.values()) >= 2
