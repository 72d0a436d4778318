"""Files of several containers: their packets and times, whole, cut off, and no bitstream at all."""

from __future__ import annotations

import io
import os
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from bitstreams import moving_texture
from videos import write_video

from cfer.codec import Bitstream, CodecError, CodecSettings, encode


def copied(clip, target, **how):
    """The packets of a clip in a file of another kind."""
    with av.open(io.BytesIO(clip.data)) as source, av.open(target, "w", **how) as sink:
        stream = sink.add_stream_from_template(source.streams.video[0], rate=25)
        stream.time_base = Fraction(1, 25)
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


@pytest.mark.parametrize("container", ["avi", "matroska"])
def test_times_of_other_containers(container):
    times = [0, 0.04, 0.08, 0.24, 0.28, 0.4, 0.44, 0.48]
    clip = encode(moving_texture(7, 64, 64), CodecSettings(gop_size=3), 25, times)
    file = copied(clip, io.BytesIO(), format=container)
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


def test_files_that_are_no_video(tmp_path):
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("no video\n" * 100)
    empty.write_bytes(b"")
    for path, reason in ((text, "not a readable video"), (empty, "empty"), (tmp_path, "cannot")):
        with pytest.raises(CodecError, match=reason) as caught:
            Bitstream.open(path)
        assert str(path) in str(caught.value)


def test_another_codec_is_refused(tmp_path):
    path = tmp_path / "mjpeg.avi"
    write_video(path, [np.zeros((32, 32, 3), np.uint8)], codec="mjpeg")
    with pytest.raises(CodecError, match=r"mjpeg\.avi: its codec is mjpeg"):
        Bitstream.open(path)


def test_a_film_in_another_codec_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    write_video(path, [np.zeros((64, 64, 3), np.uint8)] * 3, codec="mpeg2video")
    os.truncate(path, 1 << 28)  # a hole: it takes no room on the disk
    tracemalloc.start()
    with pytest.raises(CodecError, match="its codec is mpeg2video"):
        Bitstream.open(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50_000_000
