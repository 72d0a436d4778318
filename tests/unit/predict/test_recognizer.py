"""Prediction: what it reads, what it does not, where a video comes from, and `cfer predict`.

With the model that ships, and with one for the drawn videos' size whose weights are as they come:
what it says is not what is tested.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from h264_streams import remuxed
from helpers import Pipe, as_mpegts, windows_of
from small_recognizer import small_recognizer

from cfer.cli import run
from cfer.codec import Bitstream, CodecError, CodecSettings, encode
from cfer.codec.mpeg4 import VOP_START_CODE
from cfer.data.inputs import Input
from cfer.data.native import NativeVideo, NativeWindow
from cfer.data.shards import Description, read_clips, verify, write_description, write_shard
from cfer.errors import InputError
from cfer.model.card import write_model
from cfer.predict.models import DEFAULT_LIMITS
from cfer.predict.recognizer import (
    VARIATIONS,
    Prediction,
    Recognizer,
    face_bitstream,
    of_views,
)
from cfer.predict.timeline import event_as_json, events, summary
from cfer.video import pictures as clips
from cfer.video.faces import FaceDetector, face_clip
from cfer.video.pictures import GrowingFile, open_pictures
from pipeline.actors import extract_clip
from pipeline.manifest import Entry
from pipeline.settings import ExtractionSettings

CODEC = CodecSettings(gop_size=12, quantizer=4)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return small_recognizer(Input("accumulated+motion"), CODEC)


@pytest.fixture(scope="module")
def model(recognizer: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its file."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model(path, recognizer.predictor, recognizer.card)
    return str(path)


@pytest.fixture(scope="module")
def video(drawn_videos: Path) -> Path:
    return drawn_videos / "videos" / "S003" / "surprise_1.mp4"


@pytest.fixture(scope="module")
def other(drawn_videos: Path) -> Path:
    return drawn_videos / "videos" / "S004" / "happiness_1.mp4"


@pytest.fixture(scope="module")
def clip(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video's face, as the recognizer wants it."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    face_bitstream(video, 64, CODEC).save(path)
    return path


# ---- what is read --------------------------------------------------------------------------------


def test_the_i_frame_is_not_looked_at(recognizer: Recognizer, clip: Path) -> None:
    """With every I-frame destroyed in the file, the prediction is the same to the bit."""
    (wanted,) = recognizer.predict(clip)
    whole = Bitstream.open(clip)
    data = whole.data
    for gop in whole.gops:
        packet = whole.packets[gop[0]]
        start = packet.find(VOP_START_CODE) + 5
        ruined = packet[:start] + b"\xa5" * (len(packet) - start)
        assert data.count(packet) == 1
        data = data.replace(packet, ruined)
    ruined_clip = Bitstream(data, "ruined")
    with pytest.raises(CodecError):
        ruined_clip.i_frames()
    (given,) = recognizer.predict_bitstream(ruined_clip)
    assert given.probabilities == wanted.probabilities


def test_the_p_frames_are_looked_at(recognizer: Recognizer, clip: Path, other: Path) -> None:
    (one,), (two,) = (recognizer.predict(path) for path in (clip, other))
    assert one.probabilities != two.probabilities


def test_only_the_packets_that_are_needed_reach_the_decoder(clip: Path) -> None:
    whole = Bitstream.open(clip)
    direct = Input("direct")
    wanted = direct.read(whole, range(2))
    assert direct.packets_read(whole, range(2)) == [11, 23]
    emptied = Bitstream.open(clip)
    for number in range(len(emptied.packets)):
        if number not in (11, 23):
            emptied.packets[number] = b""
    assert np.array_equal(direct.read(emptied, range(2)), wanted)


def test_a_video_is_predicted_as_its_encoded_clip(
    recognizer: Recognizer, video: Path, clip: Path
) -> None:
    """As the mean over views, of which the first is that clip."""
    (raw,), (encoded,) = (recognizer.predict(path) for path in (video, clip))
    assert raw.square is not None
    assert encoded.square is None
    same = {"source": encoded.source, "square": None, "probabilities": encoded.probabilities}
    assert (raw.way, encoded.way) == ("encoded", "clip")
    assert replace(raw, **same, way="clip") == encoded
    assert (raw.source, raw.start_seconds, raw.end_seconds) == (str(video), 0, 1)
    assert raw.num_frames == 2
    assert raw.face == 1
    card = recognizer.card
    (window,) = face_clip(
        open_pictures(video), card.size, recognizer._detector, card.codec, variations=VARIATIONS
    )
    views = [replace(window, views=[view]) for view in window.views]
    each = [recognizer.predict_views(view)[0] for view in views]
    planes = card.what.read(Bitstream.open(clip), range(2))
    of_both = recognizer.probabilities(np.stack([planes, card.what.mirrored(planes)]))
    assert of_both[0] == pytest.approx(list(encoded.probabilities.values()))
    assert each[0] == pytest.approx(of_views(of_both))
    assert len(np.unique(each, axis=0)) == len(VARIATIONS), "each view is another"
    assert of_views(np.array(each)) == pytest.approx(list(raw.probabilities.values()), abs=1e-6)
    assert sum(raw.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert tuple(raw.probabilities) == recognizer.card.classes
    assert raw.probabilities[raw.label] == max(raw.probabilities.values())


# ---- H.264 as it is ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native() -> Recognizer:
    """A model that reads H.264 as it is."""
    return small_recognizer(Input("energy+motion", stream="native"), CODEC)


@pytest.fixture(scope="module")
def native_model(native: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("native") / "native.safetensors"
    write_model(path, native.predictor, native.card)
    return str(path)


@pytest.fixture(scope="module")
def half(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, each a GOP; the second shows no face."""
    path = tmp_path_factory.mktemp("half") / "half.mp4"
    wall = [np.full((64, 64, 3), 90 + n, np.uint8) for n in range(24)]
    with av.open(str(path), "w") as container:
        options = {"x264-params": "keyint=24:min-keyint=24:scenecut=0"}
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in pictures_of(video) + wall:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_h264_is_read_as_it_is(native: Recognizer, video: Path, drawn_shards: Path) -> None:
    """As the mean over its views, of which the first is what `cfer extract --native` stored."""
    (found,) = native.predict(video)
    assert (found.way, found.refused, found.source) == ("native", None, str(video))
    assert (found.start_seconds, found.end_seconds, found.num_frames) == (0, 1, 1)
    read = NativeVideo(video, native._detector).read(0, 1, 64, VARIATIONS)
    assert found.square == read.square
    each = [native.probabilities(planes[None]) for planes in read.planes]
    each += [native.probabilities(native.card.what.mirrored(p)[None]) for p in read.planes]
    wanted = of_views(np.concatenate(each))
    assert list(found.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-6)
    row = next(c for c in read_clips(drawn_shards) if c.clip_id.endswith("S003_surprise_1"))
    stored = np.frombuffer(row.native[0], np.uint8).reshape(read.planes[0].shape)
    assert np.abs(stored.astype(int) - read.planes[0]).mean() < 1
    assert row.native_bytes == read.bytes_read


def test_each_window_is_there_before_the_next_one_is_read(
    native: Recognizer, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    read = NativeVideo.read

    def counted(video: NativeVideo, start: float, end: float, *more: Any) -> NativeWindow:
        asked.append(start)
        return read(video, start, end, *more)

    monkeypatch.setattr(NativeVideo, "read", counted)
    windows = native.predict_windows(half)
    assert (next(windows).start_seconds, asked) == (0, [0])
    assert [window.start_seconds for window in windows] == [0.5, 1]
    assert asked == [0, 0.5, 1]


def test_what_an_edit_list_leaves_out_is_not_predicted(
    native: Recognizer, video: Path, tmp_path: Path
) -> None:
    """A quarter of a second before the cut is there to be decoded, and nobody sees it."""
    path = tmp_path / "cut.mp4"
    path.write_bytes(remuxed(video.read_bytes(), seconds=-0.25))
    (found,) = native.predict(path)
    assert (found.way, found.num_frames) == ("native", 1)
    assert (found.start_seconds, found.end_seconds) == (0, pytest.approx(0.75, abs=0.01))
    read = NativeVideo(video, native._detector).read(0.25, 1, 64, VARIATIONS)
    same = NativeVideo(path, native._detector).read(0, 0.75, 64, VARIATIONS)
    assert np.array_equal(read.planes, same.planes)


def test_what_is_not_read_as_it_is_is_encoded_anew(
    native: Recognizer, recognizer: Recognizer, half: Path, video: Path, tmp_path: Path
) -> None:
    """Window by window, and says why."""
    first, second, third = native.predict(half)
    assert (first.way, first.refused) == ("native", None)
    assert (third.way, third.label) == ("encoded", None)
    assert "no face in the I-frame (at 1.00 s)" in third.refused
    as_before = recognizer.predict(half)
    assert replace(third, refused=None) == as_before[2]
    assert [w.start_seconds for w in (first, second, third)] == [0, 0.5, 1]
    encode(pictures_of(video), CodecSettings(gop_size=8), 24).save(path := tmp_path / "other.mp4")
    (found,) = native.predict(path)
    assert found.way == "encoded"
    assert "its codec is mpeg4" in found.refused
    (found,) = native.predict(video, faces="all")
    assert (found.way, found.refused) == (
        "encoded",
        "of H.264 as it is, one face is read; ask for one, not for all",
    )


def test_a_stream_is_read_as_its_file_is(native: Recognizer, half: Path, tmp_path: Path) -> None:
    """As it is where that can be done, and else encoded anew."""
    path = tmp_path / "half.ts"
    with av.open(str(half)) as source, av.open(str(path), "w") as container:
        (stream,) = source.streams.video
        copied = container.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copied
                container.mux(packet)
    found = list(native.predict_stream(Pipe(path.read_bytes()), str(path), window_seconds=1))
    assert [w.way for w in found][::2] == ["native", "encoded"]
    assert found == native.predict(path, window_seconds=1)
    every = list(native.predict_stream(Pipe(path.read_bytes()), faces="all"))
    assert {w.refused for w in every} == {
        "of H.264 as it is, one face is read; ask for one, not for all"
    }


def test_a_stream_of_joined_recordings_goes_on(
    native: Recognizer, video: Path, other: Path
) -> None:
    """The clock begins anew, and a stream may be joined between keyframes."""
    one, two = as_mpegts(video), as_mpegts(other, video)
    found = list(native.predict_stream(Pipe(one + two), window_seconds=0.5, step_seconds=0.25))
    assert [w.start_seconds for w in found] == pytest.approx(
        [0.25 * n for n in range(11)], abs=1e-3
    )
    assert {w.way for w in found} == {"native"}


def test_the_command_says_which_way_was_taken(
    native_model: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(half), "--model", native_model]) == 0
    *_, native_line, encoded_line, gone_line = capsys.readouterr().out.splitlines()
    assert native_line == "1 of 3 windows read as H.264 transmits them"
    assert re.search(r"^1 encoded anew: .*no face in the I-frame$", encoded_line)
    assert gone_line == "1 of 3 windows without a face"
    assert run(["predict", str(half), "--model", native_model, "--json"]) == 0
    windows = windows_of(capsys.readouterr().out)
    assert [w["way"] for w in windows][::2] == ["native", "encoded"]
    assert windows[0]["refused"] is None
    assert "no face" in windows[2]["refused"]


def test_prediction_sees_what_was_extracted(drawn_shards: Path, clip: Path) -> None:
    """The crop and the codec of extraction and of prediction are the same, to the bit."""
    row = next(c for c in read_clips(drawn_shards) if c.clip_id.endswith("S003_surprise_1"))
    encoded = Bitstream.open(clip)
    assert encoded.packets == Bitstream(row.bitstream, row.clip_id).packets


def test_shards_are_predicted_as_their_clips(
    recognizer: Recognizer, drawn_shards: Path, clip: Path
) -> None:
    (wanted,) = recognizer.predict(clip)
    of_shards = {p.source: p for p in recognizer.predict_shards(drawn_shards)}
    assert len(of_shards) == 10
    (given,) = (p for name, p in of_shards.items() if name.endswith("S003_surprise_1"))
    assert given.probabilities == wanted.probabilities


def test_shards_of_other_settings_are_refused(drawn_shards: Path) -> None:
    with pytest.raises(InputError, match="64 × 64 in GOPs of 12, and the model is for 112 × 112"):
        next(Recognizer.from_pretrained().predict_shards(drawn_shards))


def test_long_videos_are_predicted_window_by_window(recognizer: Recognizer) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    bitstream = encode(pictures, CODEC, 25)
    predictions = list(recognizer.predict_bitstream(bitstream))
    assert [(p.start_seconds, p.end_seconds) for p in predictions] == [
        (0.0, 0.96),
        (0.96, 1.92),
        (1.92, 2.0),
    ]
    assert [p.num_frames for p in predictions] == [2, 2, 1]
    ends = [p.end_seconds for p in recognizer.predict_bitstream(bitstream, window_gops=1)]
    assert ends == [0.48, 0.96, 1.44, 1.92, 2.0]
    # A last I-frame alone has no change to see.
    cut = encode(pictures[:25], CODEC, 25)
    assert [p.num_frames for p in recognizer.predict_bitstream(cut)] == [2]


def test_a_clip_of_i_frames_alone_is_an_error(recognizer: Recognizer) -> None:
    pictures = [np.zeros((64, 64, 3), np.uint8)] * 3
    bitstream = encode(pictures, CodecSettings(gop_size=1), 25)
    with pytest.raises(CodecError, match="no P-frame"):
        list(recognizer.predict_bitstream(bitstream))


def test_every_gop_but_the_last_has_the_models_length(recognizer: Recognizer) -> None:
    def of(*lengths: int) -> Bitstream:
        starts = {sum(lengths[:number]) for number in range(len(lengths))}
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=24, options={"g": "600"})
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
            for number in range(sum(lengths)):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), "rgb24")
                kinds = av.video.frame.PictureType
                frame.pict_type = kinds.I if number in starts else kinds.P
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        bitstream = Bitstream(file.getvalue(), "gray")
        assert tuple(len(gop) for gop in bitstream.gops) == lengths
        return bitstream

    for fitting in (of(12, 12), of(12, 12, 6), of(6)):
        assert recognizer.is_fixed_gop(fitting)
    for other in (of(6, 12), of(12, 6, 12), of(12, 13)):
        assert not recognizer.is_fixed_gop(other)
    gray = np.full((12, 48, 64, 3), 90, np.uint8)
    assert not recognizer.is_fixed_gop(encode(gray, CODEC, 24))


def test_a_bitstream_of_other_settings_is_encoded_anew(
    recognizer: Recognizer, video: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.mp4"
    face_bitstream(video, 64, replace(CODEC, gop_size=8)).save(path)
    assert not recognizer.is_fixed_gop(Bitstream.open(path))
    (window,) = recognizer.predict(path)
    assert window.square is not None, "its face was looked for"
    assert window.num_frames == 2
    with pytest.raises(InputError, match="--faces some: give one of one, all"):
        recognizer.predict(path, faces="some")


# ---- windows and parts ---------------------------------------------------------------------------


def test_an_earlier_cards_windows_are_gops_of_so_many_frames(
    recognizer: Recognizer, other: Path, video: Path, tmp_path: Path
) -> None:
    """They overlap by half; those that begin where the one before ends are what they were."""
    path = tmp_path / "long.mp4"
    write_video(path, (pictures_of(video) + pictures_of(other)) * 2)
    assert recognizer.card.window_seconds is None
    found = recognizer.predict(path)
    assert [(w.start_seconds, w.end_seconds) for w in found] == [
        (n / 2, n / 2 + 1) for n in range(7)
    ]
    assert found[::2] == recognizer.predict(path, step_seconds=1)
    by_time = replace(recognizer.card, window_seconds=1.5, window_gops=1)
    found = Recognizer(recognizer.predictor, by_time).predict(path)
    assert [(w.start_seconds, w.end_seconds) for w in found] == [
        *((n * 0.75, n * 0.75 + 1.5) for n in range(4)),
        (3, 4),
    ]


def test_a_window_lasts_as_long_whatever_the_rate(
    recognizer: Recognizer, video: Path, tmp_path: Path
) -> None:
    """24 and 12 pictures a second: each window has one GOP of its first, middle and last one."""
    codec = CodecSettings(gop_size=3, quantizer=4, gop_seconds=1.0)
    by_time = Recognizer(
        recognizer.predictor, replace(recognizer.card, codec=codec, window_seconds=1.0)
    )
    path = tmp_path / "long.mp4"
    write_video(path, pictures_of(video) * 2)
    half = tmp_path / "half.mp4"
    write_video(half, pictures_of(path)[::2], rate=12)
    for source in (path, half):
        found = by_time.predict(source)
        assert [w.start_seconds for w in found] == [0, 0.5, 1]
        assert [w.num_frames for w in found] == [1, 1, 1], "one residual, of the whole second"


def test_a_part_of_a_video_is_predicted_alone(
    recognizer: Recognizer, video: Path, other: Path, tmp_path: Path
) -> None:
    path, alone = tmp_path / "long.mp4", tmp_path / "alone"
    write_video(path, pictures_of(other) + pictures_of(video) * 3)
    alone.mkdir()
    for number, picture in enumerate(pictures_of(path)[24:61]):
        cv2.imwrite(str(alone / f"{number:03d}.png"), picture[..., ::-1])
    (part,) = recognizer.predict(path, start_seconds=1, end_seconds=2.5)
    assert (part.start_seconds, part.end_seconds) == (1, pytest.approx(61 / 24))
    # All its GOPs together, of which the last one is a single I-frame.
    assert part.num_frames == 3
    (wanted,) = recognizer.predict(alone, start_seconds=0)
    assert (part.probabilities, part.square) == (wanted.probabilities, wanted.square)
    # What is longer is cut, and so is what was to be.
    longer = recognizer.predict(path, start_seconds=1)
    assert [w.start_seconds for w in longer] == [1, 1.5, 2, 2.5, 3]
    halves = recognizer.predict(
        path, start_seconds=1, end_seconds=1.99, window_seconds=0.5, step_seconds=0.5
    )
    assert [w.start_seconds for w in halves] == [1, 1.5]


def test_a_part_of_a_clip_in_fixed_gops_is_the_gops_in_it(
    recognizer: Recognizer, tmp_path: Path
) -> None:
    """GOPs of half a second, which windows follow without overlap."""
    pictures = np.random.default_rng(0).integers(0, 256, (96, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / "clip.mp4"
    encode(pictures, CODEC, 24).save(path)
    assert spans(recognizer.predict(path)) == [0, 1, 2, 3, 4]
    assert spans(recognizer.predict(path, window_seconds=1.6)) == [0, 1.5, 3, 4]
    (part,) = recognizer.predict(path, start_seconds=0.4, end_seconds=2.6)
    assert (part.start_seconds, part.end_seconds, part.num_frames) == (0.5, 2.5, 4)
    assert spans(recognizer.predict(path, start_seconds=1, end_seconds=4)) == [1, 2, 3, 4]
    with pytest.raises(InputError, match=r"clip\.mp4: no whole GOP from 3\.6 s to 4 s"):
        recognizer.predict(path, start_seconds=3.6)
    by_time = replace(recognizer.card, window_seconds=2.0)
    assert spans(Recognizer(recognizer.predictor, by_time).predict(path)) == [0, 2, 4]


# ---- several faces, none -------------------------------------------------------------------------


def pictures_of(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_video(path: Path, pictures: list[np.ndarray], rate: int = 24) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_all_faces_keep_their_numbers(
    recognizer: Recognizer, video: Path, other: Path, tmp_path: Path
) -> None:
    """Two people side by side: each keeps its number through all windows."""
    path = tmp_path / "two.mp4"
    both = zip(pictures_of(video), pictures_of(other), strict=True)
    wide = [np.concatenate([cv2.resize(p, (128, 128)) for p in pair], axis=1) for pair in both]
    write_video(path, wide * 2)
    windows = recognizer.predict(path, faces="all", window_seconds=0.5, step_seconds=0.5)
    assert len(windows) == 8
    by_face = {n: [w for w in windows if w.face == n] for n in (1, 2)}
    assert [len(found) for found in by_face.values()] == [4, 4]
    sides = {
        n: {(w.square.x + w.square.side / 2) // 128 for w in found} for n, found in by_face.items()
    }
    assert sorted(map(tuple, sides.values())) == [(0,), (1,)]
    assert [w.face for w in recognizer.predict(path, window_seconds=2)] == [1]
    overlapping = recognizer.predict(path, faces="all", window_seconds=0.5)
    assert len(overlapping) == 14
    assert [w for w in overlapping if w.start_seconds % 0.5 == 0] == windows


def test_a_window_without_a_face_says_so(
    model: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, table = tmp_path / "left.mp4", tmp_path / "left.csv"
    gray = [np.full((64, 64, 3), 90, np.uint8)] * 24
    write_video(path, pictures_of(video) + gray)
    assert run(["predict", str(path), "--model", model, "--csv", str(table)]) == 0
    _, first, between, second, *happened = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["0.00s", "1.00s", "1"]
    assert between.split()[:3] == ["0.50s", "1.50s", "1"], "it begins where there is a face"
    assert second.split() == ["1.00s", "2.00s", "-", "no", "face"]
    *happened, gone_line = happened
    assert happened
    assert all(": onset " in line for line in happened)
    assert gone_line == "1 of 3 windows without a face"
    with table.open() as file:
        there, _, gone = csv.DictReader(file)
    assert there["label"] in ("happiness", "surprise")
    assert (gone["face"], gone["label"], gone["surprise"]) == ("0", "", "")


# ---- times ---------------------------------------------------------------------------------------

# 24 pictures in the first second, and 24 more in the next eight, as of a phone in the dark.
VARYING = [n / 24 for n in range(24)] + [1 + n / 3 for n in range(24)]


@pytest.fixture(scope="module")
def varying(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("varying") / "varying.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "4"})
        stream.codec_context.time_base = Fraction(1, 24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture, seconds in zip(pictures_of(video) * 2, VARYING, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(seconds * 24), Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def spans(windows: Iterable[Prediction]) -> list[float]:
    """Where windows begin, and where the last one ends."""
    windows = list(windows)
    assert all(one.end_seconds == two.start_seconds for one, two in pairwise(windows))
    return [*(w.start_seconds for w in windows), windows[-1].end_seconds]


def test_windows_last_as_long_at_whatever_rate(recognizer: Recognizer, varying: Path) -> None:
    """Of half a second: twelve pictures, and later two. Read as a file and as a stream."""
    half = {"window_seconds": 0.5, "step_seconds": 0.5}
    of_file = recognizer.predict(varying, **half)
    # By the first picture after each half second; the last has the picture before its own, too.
    later = [VARYING[n] for n in (24, 26, 27, 29, 30, 32, 33, 35, 36, 38, 39, 41, 42, 44, 45, 46)]
    assert [w.start_seconds for w in of_file] == pytest.approx([0, 0.5, *later], abs=0.001)
    lasted = [w.end_seconds - w.start_seconds for w in of_file]
    assert lasted == pytest.approx([0.5] * 2 + [2 / 3] * 16, abs=0.001)
    stream = io.BytesIO()
    with av.open(str(varying)) as source, av.open(stream, "w", format="matroska") as sink:
        template = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = template
                sink.mux(packet)
    of_stream = list(recognizer.predict_stream(Pipe(stream.getvalue()), **half))
    for one, other in zip(of_file, of_stream, strict=True):
        assert (one.label, one.num_frames) == (other.label, other.num_frames)
        assert one.start_seconds == pytest.approx(other.start_seconds, abs=0.001)
        if other is not of_stream[-1]:  # how long its last picture is shown, Matroska need not say
            assert one.end_seconds == pytest.approx(other.end_seconds, abs=0.001)


def test_a_clip_has_the_videos_own_times(
    recognizer: Recognizer, varying: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    face_bitstream(varying, 64, CODEC).save(clip)
    assert recognizer.is_fixed_gop(Bitstream.open(clip))
    found = spans(recognizer.predict(clip, window_seconds=0.5))
    assert found == pytest.approx([0, 0.5, 1, 5, 9], abs=0.001)


def test_times_go_from_the_video_through_the_shards(
    recognizer: Recognizer, varying: Path, detector: FaceDetector, tmp_path: Path
) -> None:
    """Of windows of a longer video, a second each, where only some frames are encoded."""
    codec = replace(CODEC, gop_size=4, gop_seconds=0.5)
    card = replace(recognizer.card, codec=codec)
    small = Recognizer(recognizer.predictor, card)
    settings = ExtractionSettings(size=64, gop_size=4, gop_seconds=0.5, quantizer=4, window_gops=2)
    clips, failures = extract_clip(Entry(str(varying), "a", "a.mp4"), settings, [], detector)
    assert failures == []
    assert [clip.clip_id for clip in clips] == [f"a#{n:04d}" for n in range(1, 10)]
    first, *slow = clips
    encoded = [0, 4, 7, 11, 12, 16, 19, 23]
    assert first.pts_seconds == pytest.approx([VARYING[n] for n in encoded])
    for number, clip in enumerate(slow):
        assert clip.pts_seconds == pytest.approx(VARYING[24 + 3 * number : 27 + 3 * number])
    clips = [replace(clip, identity=np.zeros((1, 8), np.float32)) for clip in clips]
    write_description(
        tmp_path,
        Description(
            name="varying",
            classes=[],
            codec={"size": 64, **asdict(codec)},
            identity={"name": "none", "dimension": 8, "weights_sha256": ""},
            settings={},
            shards=[write_shard(tmp_path, 0, clips, [], "work")],
            software={},
        ),
    )
    assert verify(tmp_path) == []
    of_shards = spans(small.predict_shards(tmp_path, window_seconds=0.5))
    assert of_shards == pytest.approx([0, 0.5, *range(1, 10)])


# ---- streams -------------------------------------------------------------------------------------


def test_a_stream_is_predicted_without_seeking_and_as_its_file(
    recognizer: Recognizer, video: Path, other: Path, tmp_path: Path
) -> None:
    stream = as_mpegts(video, other, video)
    windows = list(recognizer.predict_stream(Pipe(stream), "a camera"))
    assert [w.start_seconds for w in windows] == [0.25 * n for n in range(11)]
    assert {w.source for w in windows} == {"a camera"}
    assert {w.face for w in windows} == {1}
    path = tmp_path / "whole.ts"
    path.write_bytes(stream)
    wanted = [replace(w, source="a camera") for w in recognizer.predict(path, window_seconds=0.5)]
    assert windows == wanted
    how = {"window_seconds": 0.7, "step_seconds": 0.3}
    windows = list(recognizer.predict_stream(Pipe(stream), str(path), **how))
    assert len(windows) == 9
    assert windows == recognizer.predict(path, **how)


class WritingClock:
    """In place of the time: whenever a reader sleeps, another piece of the file is written."""

    def __init__(self, path: Path, pieces: list[bytes]) -> None:
        self._path, self._pieces, self._now = path, pieces, 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        if self._pieces:
            with self._path.open("ab") as file:
                file.write(self._pieces.pop(0))


def test_a_file_that_grows_is_predicted_to_its_end(
    recognizer: Recognizer, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, path = as_mpegts(video, video), tmp_path / "live.ts"
    step = len(stream) // 5
    path.write_bytes(stream[:step])
    pieces = [stream[at : at + step] for at in range(step, len(stream), step)]
    clock = WritingClock(path, pieces)
    monkeypatch.setattr(clips, "time", clock)
    windows = list(recognizer.predict_stream(GrowingFile(path, 4), "live.ts"))
    assert path.read_bytes() == stream
    assert windows[-1].end_seconds == pytest.approx(2)
    assert all(w.label for w in windows)
    # It was waited for more, as long as was said; and once.
    assert 4 < clock.monotonic() < 5


def test_the_command_follows_a_file(
    model: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "live.ts"
    path.write_bytes(as_mpegts(video))
    arguments = ["predict", str(path), "--model", model, "--follow", "0.01", "--json"]
    assert run(arguments) == 0
    windows = windows_of(capsys.readouterr().out)
    # Of a stream a window is one GOP, if nothing else is said.
    assert [w["end_seconds"] for w in windows] == [0.5, 0.75, 1]
    assert run([*arguments, "--step-seconds", "0.5"]) == 0
    windows = windows_of(capsys.readouterr().out)
    assert [w["end_seconds"] for w in windows] == [0.5, 1]
    assert run([*arguments, "--window-seconds", "1"]) == 0
    (window,) = windows_of(capsys.readouterr().out)
    assert window["num_frames"] == 2


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_prints_a_table(
    recognizer: Recognizer, model: str, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(clip), "--model", model]) == 0
    printed = capsys.readouterr()
    (wanted,) = recognizer.predict(clip)
    head, row, event = printed.out.splitlines()
    assert [event] == summary([wanted])
    assert head.split() == ["from", "to", "face", "label", *recognizer.card.classes]
    start, end, face, label, *columns = row.split()
    assert (start, end, face, label) == ("0.00s", "1.00s", "1", wanted.label)
    assert list(map(float, columns)) == pytest.approx(list(wanted.probabilities.values()), abs=6e-4)
    for name in recognizer.card.classes:
        assert (
            head.index(name) + len(name)
            == re.search(f"{wanted.probabilities[name]:.3f}", row).end()
        ), "a number ends below the end of its name"
    assert printed.err == "", "only of the model that ships there is something to say"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_window_is_out_as_soon_as_it_is_known(
    model: str, clip: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """Also where the output is no terminal, and would wait for more of it."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))
    assert run(["predict", str(clip), "--model", model, *options]) == 0
    *_, last, _ = written.getvalue().splitlines()
    assert b"0.00s    1.00s" in last or json.loads(last)["end_seconds"] == 1


def test_the_shipped_model_is_used_and_says_what_it_is(
    video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(video), "--json"]) == 0
    printed = capsys.readouterr()
    recognizer = Recognizer.from_pretrained()
    (wanted,) = recognizer.predict(video)
    told, last = map(json.loads, printed.out.splitlines())
    (event,) = events([wanted])
    assert last == {"source": str(video), "event": event_as_json(event)}
    assert list(told["probabilities"]) == list(recognizer.card.classes)
    assert list(told["probabilities"].values()) == pytest.approx(
        list(wanted.probabilities.values()), abs=1e-6
    )
    square = wanted.square
    assert told["box"] == [square.x, square.y, square.side, square.side]
    assert printed.err == f"note: {DEFAULT_LIMITS}\n"


def test_a_folder_is_each_of_its_videos(
    model: str, drawn_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = drawn_videos / "videos" / "S003"
    names = sorted(str(path) for path in folder.glob("*.mp4"))
    assert len(names) == 2
    assert run(["predict", str(folder), "--model", model]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "from"
    # Each under its name.
    assert lines[0::3] == [f"{name}:" for name in names]
    assert all(line.split()[0] == "0.00s" for line in lines[1::3])
    assert all(": onset 0.25 s" in line for line in lines[2::3])


def test_what_is_left_out_of_a_folder_is_named(
    model: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    for number in range(7):
        (tmp_path / f"{number}.bmp").write_bytes(b"x")
    assert run(["predict", str(tmp_path), "--model", model]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {tmp_path}: 7 files are left out, no clip by the name: ")
    assert line.endswith("4.bmp, … and 2 more")


def test_shards_are_each_of_their_clips(
    model: str, drawn_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(drawn_shards), "--model", model, "--window-seconds", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    lines = [line for line in lines if ": onset " not in line]
    named = [line for line in lines if line.endswith(":")]
    assert named == [f"{clip.clip_id}:" for clip in read_clips(drawn_shards)]
    assert len(lines) == 10 * 3, "a name and two GOPs of each"


def test_options_that_would_have_no_effect_are_refused(
    model: str, drawn_shards: Path, clip: Path
) -> None:
    for words, said in (
        ([str(drawn_shards), "--faces", "all"], "holds shards, clips of one face each"),
        ([str(drawn_shards), "--step-seconds", "0.1"], "holds shards, clips of one face each"),
        ([str(clip), "--follow", "-1"], "--follow -1: give how many seconds to wait, more than 0"),
        ([str(clip), "--follow", "nan"], "--follow nan: give how many seconds"),
    ):
        with pytest.raises(InputError, match=said):
            run(["predict", *words, "--model", model])


def test_a_folder_of_pictures_may_hold_videos_too(
    model: str, clip: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a camera's does."""
    for number, picture in enumerate(pictures_of(video)):
        cv2.imwrite(str(tmp_path / f"IMG_{number:04d}.jpg"), picture[..., ::-1])
    (tmp_path / "VID_0100.mp4").write_bytes(clip.read_bytes())
    assert run(["predict", str(tmp_path), "--model", model, "--json"]) == 0
    sources = {window["source"] for window in windows_of(capsys.readouterr().out)}
    assert sources == {str(tmp_path), str(tmp_path / "VID_0100.mp4")}


def test_no_output_is_written_over_what_is_read(video: Path, tmp_path: Path) -> None:
    mine, frames = tmp_path / "mine.mp4", tmp_path / "frames"
    mine.write_bytes(video.read_bytes())
    frames.mkdir()
    for number, picture in enumerate(pictures_of(video)):
        cv2.imwrite(str(frames / f"{number}.png"), picture[..., ::-1])
    before = {path: path.read_bytes() for path in (mine, *frames.iterdir())}
    link = tmp_path / "link.mp4"
    link.symlink_to(mine)
    for words, said in (
        (["predict", str(mine), "--csv", str(mine)], "that is the video itself; give another"),
        (["predict", str(mine), "--annotate", str(link)], "that is the video itself"),
        (["encode", str(mine), str(mine)], "that is the video itself"),
        (["look", str(frames), str(frames / "1.png")], "that is a file of the source"),
        (["predict", str(frames), "--plot", str(frames / "2.png")], "that is a file of the source"),
    ):
        with pytest.raises(InputError, match=said):
            run(words)
    assert before == {path: path.read_bytes() for path in before}


def test_a_folder_of_pictures_is_one_video(
    model: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, picture in enumerate(pictures_of(video)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture[..., ::-1])
    assert run(["predict", str(tmp_path), "--model", model, "--json"]) == 0
    (window,) = windows_of(capsys.readouterr().out)
    assert window["source"] == str(tmp_path)


def test_a_source_that_fails_does_not_stop_the_others(
    model: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, table = tmp_path / "broken.mp4", tmp_path / "all.csv"
    broken.write_bytes(b"\0" * 300)
    sources = [str(broken), str(clip)]
    assert run(["predict", *sources, "--model", model, "--json", "--csv", str(table)]) == 1
    printed = capsys.readouterr()
    (window,) = windows_of(printed.out)
    assert window["source"] == str(clip)
    error, summary = printed.err.splitlines()
    assert error.startswith(f"error: {broken}: not a video")
    assert summary == "1 of 2 sources failed"
    assert len(table.read_text().splitlines()) == 2, "what is known is written"


def test_a_face_is_encoded_for_prediction(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clip.mp4"
    options = ["--size", "64", "--gop-size", "4", "--gop-seconds", "0.5", "--quantizer", "9"]
    assert run(["encode", str(video), str(path), *options]) == 0
    bitstream = Bitstream.open(path)
    assert bitstream.width == bitstream.height == 64
    assert [len(gop) for gop in bitstream.gops] == [4, 4]
    wanted = face_bitstream(video, 64, CodecSettings(gop_size=4, gop_span=12, quantizer=9))
    assert bitstream.packets == wanted.packets
    said = f"{path}: 8 frames in 2 GOPs, {len(bitstream.data):,} bytes\n"
    assert capsys.readouterr().out == said
    assert run(["encode", str(video), str(path), *options, "--no-motion-search"]) == 0
    assert not any(
        residual.motion_vectors["motion_x"].any()
        for gop in range(2)
        for residual in Bitstream.open(path).accumulated_residuals(gop)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict missing.mp4", "missing.mp4: there is no such file or folder"),
        ("predict empty", "empty: no video and no numbered picture in this folder"),
        ("predict photographs", "numbered pictures (.png, .jpg, .jpeg)"),
        ("predict text.mp4", "text.mp4: not a video"),
        ("predict gray.mp4", "gray.mp4: no face found"),
        ("predict clip.mp4 --model missing.safetensors", "missing.safetensors"),
        ("predict clip.mp4 --window-seconds 0", "--window-seconds 0: give 0 < seconds <= 86400"),
        ("predict clip.mp4 --step-seconds nan", "--step-seconds nan: give 0 < seconds <= 86400"),
        ("predict gray.mp4 --step-seconds 30", "--step-seconds 30: a window lasts 1 s"),
        ("predict clip.mp4 --start -1", "--start -1: give seconds from 0"),
        ("predict clip.mp4 --start 1 --end 0.5", "--end 0.5: give more than the start, 1"),
        ("predict gray.mp4 --end 3", "gray.mp4: its span ends at 3 s, and the video at 0.250 s"),
        ("predict gray.mp4 --start 0.2 --end 0.22", "gray.mp4: fewer than two pictures from 0.2 s"),
        ("predict SHARDS --start 1", "--start, --end: of a video file or a folder of pictures"),
        ("predict - --end 1", "--start, --end: of a video file or a folder of pictures"),
        ("predict clip.mp4 clip.mp4 --plot p.png", "--plot: of one video at a time"),
        ("predict - --annotate a.mp4", "--annotate: of one video at a time"),
        ("predict SHARDS --plot p.png", "--plot: of one video at a time"),
        ("predict clip.mp4 --plot p.jpg", "p.jpg: give a file that ends in .png"),
        ("encode text.mp4 out.mp4", "text.mp4: not a video"),
        ("encode clip.mp4 out.mp4 --size 63", "--size 63: must be an even number"),
        ("encode clip.mp4 out.mp4 --size 14", "--size 14: must be an even number of at least 16"),
        ("encode clip.mp4 out.mp4 --gop-size 1", "--gop-size 1: give 2 or more"),
        ("look clip.mp4 out.jpg", "out.jpg: give a file that ends in .png"),
        ("look clip.mp4 nowhere/out.png", "nowhere/out.png: there is no folder nowhere"),
    ],
)
def test_mistakes(
    clip: Path,
    drawn_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(clip.read_bytes())
    Path("text.mp4").write_text("not a video\n" * 50)
    Path("empty").mkdir()
    Path("photographs").mkdir()
    Path("photographs", "1.webp").write_bytes(b"x")
    write_video(Path("gray.mp4"), [np.full((96, 96, 3), 90, np.uint8)] * 6)
    before = set(tmp_path.iterdir())
    words = [str(drawn_shards) if word == "SHARDS" else word for word in arguments.split()]
    with pytest.raises(InputError, match=re.escape(message)):
        run(words)
    assert set(tmp_path.iterdir()) == before


def test_a_pipe_without_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.BytesIO(b"not a video\n" * 500)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(text))
    with pytest.raises(InputError, match="standard input: not a video that can be read while it"):
        run(["predict", "-"])


def test_views_are_combined_by_the_mean_of_their_logits() -> None:
    """So a temperature, which divides the logits, means the same before and after."""
    logits = np.random.default_rng(0).normal(0, 3, (4, 5)).astype(np.float32)

    def softmax(values: np.ndarray) -> np.ndarray:
        return np.exp(values) / np.exp(values).sum(-1, keepdims=True)

    assert of_views(softmax(logits)) == pytest.approx(softmax(logits.mean(axis=0)), rel=1e-5)
    cooled = of_views(softmax(logits / 2))
    assert cooled == pytest.approx(softmax(logits.mean(axis=0) / 2), rel=1e-5)
    certain = of_views(np.array([[1, 0, 0], [0.5, 0.5, 0]], np.float32))
    assert certain.sum() == pytest.approx(1)
    assert certain.argmax() == 0
