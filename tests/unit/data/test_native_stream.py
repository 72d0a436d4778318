"""A stream of H.264 is read as its file is, while it comes; no picture is decoded for nothing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from h264_streams import x264
from helpers import DRAWN, Pipe

from cfer.codec import Bitstream, CodecError
from cfer.codec.bitstream import GrowingBitstream
from cfer.data.native import NativeVideo, NativeWindow
from cfer.data.native_stream import MOST_SECONDS, NativeStream, StreamWindow
from cfer.video.faces import FaceDetector
from cfer.video.pictures import StreamPictures, open_pictures
from cfer.video.variation import AS_FOUND

FPS, SIZE = 24, 64
VIDEO = DRAWN / "videos" / "S003" / "surprise_1.mp4"


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def pictures() -> list[np.ndarray]:
    """Four seconds of one face: twice forth and back."""
    forth = list(open_pictures(VIDEO))
    return [*forth, *forth[::-1]] * 2


def written(path: Path, pictures: list[np.ndarray], parameters: str) -> Path:
    container = {".ts": "mpegts", ".mkv": "matroska"}.get(path.suffix, path.suffix[1:])
    path.write_bytes(x264(pictures, parameters, container, crf=10, rate=FPS))
    return path


class Watched(StreamPictures):
    """Counts the packets that are decoded."""

    decoded = 0

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        self.decoded += packet is not None
        return super().decode(packet)


def stream_of(path: Path, detector: FaceDetector) -> tuple[NativeStream, Watched, Pipe]:
    pipe = Pipe(path.read_bytes())
    pictures = Watched(pipe, path.name)
    return NativeStream(pictures, detector), pictures, pipe


def windows_of(stream: NativeStream) -> list[StreamWindow]:
    assert stream.regular_fps() == FPS
    return list(stream.windows(FPS, FPS // 2, SIZE, [AS_FOUND]))


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
@pytest.mark.parametrize("parameters", ["keyint=30", "keyint=200:bframes=0"])
def test_windows_are_those_of_the_file(suffix, parameters, detector, tmp_path):
    path = written(tmp_path / f"video.{suffix}", pictures(), parameters)
    stream, watched, _ = stream_of(path, detector)
    found = windows_of(stream)
    assert [w.frames for w in found] == [range(n, n + 24) for n in range(0, 73, 12)]
    video = NativeVideo(path, detector)
    for window in found:
        wanted = video.read(window.times[0], window.times[-1], SIZE)
        assert isinstance(window.read, NativeWindow)
        assert np.array_equal(window.read.planes, wanted.planes)
        assert (window.read.square, window.read.bytes_read) == (wanted.square, wanted.bytes_read)
    # To know how its pictures are turned, and none after that.
    assert watched.decoded < 30


def test_a_window_comes_before_its_gop_ends(detector, tmp_path):
    path = written(tmp_path / "video.ts", pictures(), "keyint=200")
    stream, _, pipe = stream_of(path, detector)
    first = next(stream.windows(FPS, FPS // 2, SIZE, [AS_FOUND]))
    assert isinstance(first.read, NativeWindow)
    assert pipe.tell() < 0.75 * path.stat().st_size


def test_of_what_is_refused_there_are_the_pictures(detector, tmp_path):
    """The second of three GOPs of a second shows no face; the last is decoded again from its own
    keyframe on."""
    face = pictures()[:24]
    wall = [np.full_like(face[0], 90 + n) for n in range(24)]
    path = written(tmp_path / "video.ts", [*face, *wall, *face], "keyint=24:min-keyint=24")
    stream, watched, _ = stream_of(path, detector)
    assert stream.regular_fps() == FPS
    decoded = list(open_pictures(path))
    ways = []
    for window in stream.windows(FPS, FPS, SIZE, [AS_FOUND]):
        ways.append(isinstance(window.read, NativeWindow))
        if not ways[-1]:
            assert isinstance(window.read, CodecError)
            assert "no face in the I-frame" in str(window.read)
            held = stream.pictures(window)
            assert held.count() == 24
            assert held.times() == window.times
            for number, picture in zip(window.frames, held, strict=True):
                assert np.array_equal(picture, decoded[number])
    assert ways == [True, False, True]
    assert watched.decoded < 72


def test_a_piece_without_end_is_not_read_as_it_is(detector, tmp_path):
    path = written(tmp_path / "video.ts", pictures()[:48], "keyint=200")
    stream, _, _ = stream_of(path, detector)
    stream.regular_fps()
    (piece,) = stream._pieces
    piece.start -= MOST_SECONDS
    (window, *_) = stream.windows(FPS, FPS, SIZE, [AS_FOUND])
    assert "without a keyframe" in str(window.read)
    assert stream.pictures(window).count() == FPS


@pytest.mark.parametrize("container", ["avi", "h264"])
def test_what_does_not_say_when_pictures_are_shown(container, tmp_path):
    path = written(tmp_path / f"video.{container}", pictures()[:24], "keyint=24")
    said = StreamPictures(Pipe(path.read_bytes()), "a pipe").why_not_native
    assert said == f"a pipe: {container}, which does not say when each picture is shown"


def test_a_bitstream_grows(tmp_path):
    path = written(tmp_path / "video.mkv", pictures()[:40], "keyint=200")
    whole = Bitstream.open(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [(bytes(p), p.pts) for p in container.demux(stream) if p.size]
        extradata = bytes(stream.codec_context.extradata or b"")
        base = Fraction(stream.time_base)
    growing = GrowingBitstream(extradata, packets[:7], "grows", Fraction(FPS), base)
    before = growing.direct_residual(3)
    assert len(growing.packets) == 7
    for more in (packets[7:8], packets[8:30], packets[30:]):
        growing.extend(more)
    assert growing.frame_types == whole.frame_types
    assert growing.gops == whole.gops
    np.testing.assert_allclose(growing.times[:-1], whole.times[:-1], atol=1e-6)
    for number in (1, 3, 25, 39):
        ours, theirs = growing.direct_residual(number), whole.direct_residual(number)
        assert np.array_equal(ours.packed(), theirs.packed())
    assert np.array_equal(growing.direct_residual(3).packed(), before.packed())
    with pytest.raises(CodecError, match="its first frame is no I-frame"):
        GrowingBitstream(extradata, packets[1:5], "begins late", Fraction(FPS), base)
