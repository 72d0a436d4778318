"""Prediction: what it reads, what it does not, and that it agrees with training and with MLflow."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import mlflow
import numpy as np
import pytest
from helpers import run_module

from cfer.clips import GrowingFile
from cfer.codec import VOP_START_CODE, Bitstream, CodecError, CodecSettings, encode
from cfer.errors import InputError
from cfer.inputs import Input
from cfer.predict import Recognizer, face_bitstream
from cfer.shards import read_clips
from cfer.tracking import find_run


@pytest.fixture
def store(trained_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained_store)
    return trained_store


@pytest.fixture(scope="module")
def video(drawn_videos) -> Path:
    return drawn_videos / "videos" / "S003" / "surprise_1.mp4"


@pytest.fixture(scope="module")
def clip(video, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    face_bitstream(video, 64, CodecSettings()).save(path)
    return path


def test_the_i_frame_is_not_looked_at(store, clip):
    """With every I-frame destroyed in the file, the prediction is the same to the bit."""
    recognizer = Recognizer.from_pretrained("short")
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


def test_the_p_frames_are_looked_at(store, clip, drawn_videos):
    recognizer = Recognizer.from_pretrained("short")
    other = drawn_videos / "videos" / "S003" / "sadness_1.mp4"
    (one,), (two,) = (recognizer.predict(path) for path in (clip, other))
    assert one.probabilities != two.probabilities


def test_only_the_packets_that_are_needed_reach_the_decoder(clip):
    whole = Bitstream.open(clip)
    direct = Input("direct")
    wanted = direct.read(whole, range(2))
    assert direct.packets_read(whole, range(2)) == [11, 23]
    emptied = Bitstream.open(clip)
    for number in range(len(emptied.packets)):
        if number not in (11, 23):
            emptied.packets[number] = b""
    assert np.array_equal(direct.read(emptied, range(2)), wanted)


def test_a_video_is_predicted_as_its_encoded_clip(store, video, clip):
    recognizer = Recognizer.from_pretrained("short")
    (raw,), (encoded,) = (recognizer.predict(path) for path in (video, clip))
    assert raw.square is not None
    assert encoded.square is None
    assert replace(raw, source=encoded.source, square=None) == encoded
    assert raw.num_frames == 2
    assert sum(raw.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert tuple(raw.probabilities) == recognizer.card.classes
    assert raw.probabilities[raw.label] == max(raw.probabilities.values())


def test_prediction_sees_what_training_saw(drawn_shards, clip):
    """The crop and the codec of extraction and of prediction are the same, to the bit."""
    row = next(c for c in read_clips(drawn_shards) if c.clip_id.endswith("S003_surprise_1"))
    encoded = Bitstream.open(clip)
    assert encoded.packets == Bitstream(row.bitstream, row.clip_id).packets


def test_mlflow_alone_predicts_the_same(store, video, clip, tmp_path):
    """In a process that cannot import cfer, with MLflow's own loader."""
    np.save(tmp_path / "planes.npy", Input().read(Bitstream.open(clip), range(2))[None])
    mlflow.set_tracking_uri(store)
    script = tmp_path / "alone.py"
    script.write_text(
        "import sys, json, numpy as np\n"
        "class NoCfer:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('cfer', 'pipeline'):\n"
        "            raise ImportError('no cfer here')\n"
        "sys.meta_path.insert(0, NoCfer())\n"
        "import mlflow\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "assert model.metadata.signature.inputs.inputs[0].type == np.dtype('uint8')\n"
        "out = model.predict(np.load(sys.argv[2]))\n"
        "assert 'cfer' not in sys.modules\n"
        "print(json.dumps([out.tolist(), str(out.dtype)]))\n"
    )
    uri = f"runs:/{find_run('short').info.run_id}/model"
    alone = subprocess.run(
        [sys.executable, "-I", str(script), uri, str(tmp_path / "planes.npy")],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    ((probabilities,), dtype) = json.loads(alone.stdout.splitlines()[-1])
    assert dtype == "float32"
    done = run_module("cfer.cli", "predict", str(video), "--model", "short", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert list(printed["probabilities"].values()) == pytest.approx(probabilities, abs=1e-6)


def test_the_command_prints_a_table(store, clip):
    done = run_module("cfer.cli", "predict", str(clip), "--model", "short")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    recognizer = Recognizer.from_pretrained("short")
    (wanted,) = recognizer.predict(clip)
    assert lines[0].split()[4:] == list(recognizer.card.classes)
    (row,) = lines[1:]
    start, end, face, label, *columns = row.split()
    assert (start, end, face, label) == ("0.00s", "1.00s", "1", wanted.label)
    assert list(map(float, columns)) == pytest.approx(list(wanted.probabilities.values()), abs=6e-4)


def test_long_videos_are_predicted_window_by_window(store, clip):
    recognizer = Recognizer.from_pretrained("short")
    pictures = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    bitstream = encode(pictures, CodecSettings(), 25)
    predictions = list(recognizer.predict_bitstream(bitstream, window_gops=2))
    assert [(p.start_seconds, p.end_seconds) for p in predictions] == [
        (0.0, 0.96),
        (0.96, 1.92),
        (1.92, 2.0),
    ]
    assert [p.num_frames for p in predictions] == [2, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "missing.mp4", "--model", "short"), "missing.mp4: there is no such file"),
        (("predict", "{clip}", "--model", "nosuchrun"), "nosuchrun"),
        (("predict", "{text}", "--model", "short"), "text.mp4: not a video"),
        (("predict", "{noface}", "--model", "short"), "noface.mp4: no face found"),
        (("encode", "{text}", "out.mp4"), "text.mp4: not a video"),
        (("encode", "{clip}", "out.mp4", "--size", "63"), "--size 63: must be an even number"),
        (("encode", "{clip}", "out.mp4", "--gop-size", "0"), "GOP size 0: must be 1 or more"),
        (("look", "{clip}", "out.jpg"), "out.jpg: give a file that ends in .png"),
        (("look", "{clip}", "nowhere/out.png"), "nowhere/out.png: there is no folder nowhere"),
        (("predict", "{clip}", "{clip}", "--plot", "p.png"), "--plot: of one video at a time"),
        (("predict", "{clip}", "--window-gops", "0"), "--window-gops 0: give 1 or more"),
    ],
)
def test_mistakes_are_one_clear_line(store, clip, tmp_path, arguments, message):
    text, noface = tmp_path / "text.mp4", tmp_path / "noface.mp4"
    text.write_text("not a video\n" * 50)
    _flat_video(noface)
    filled = [a.format(clip=clip, text=text, noface=noface) for a in arguments]
    done = run_module("cfer.cli", *filled)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


def _flat_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(6):
            picture = np.full((96, 96, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_clip_of_i_frames_alone_is_an_error(store):
    recognizer = Recognizer.from_pretrained("short")
    pictures = [np.zeros((64, 64, 3), np.uint8)] * 3
    bitstream = encode(pictures, CodecSettings(gop_size=1), 25)
    with pytest.raises(CodecError, match="no P-frame"):
        list(recognizer.predict_bitstream(bitstream))


def as_mpegts(*videos: Path) -> bytes:
    """The videos' pictures one after another, as a camera would send them: H.264 in MPEG-TS."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.pix_fmt = "yuv420p"
        for video in videos:
            with av.open(str(video)) as source:
                for frame in source.decode(video=0):
                    if not stream.codec_context.is_open:
                        stream.height, stream.width = frame.height, frame.width
                    picture = frame.to_ndarray(format="rgb24")
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_a_pipe_is_predicted_while_it_comes(store, video, drawn_videos):
    """The first window is known before the stream has ended, and a stream needs no seeking."""
    other = drawn_videos / "videos" / "S003" / "sadness_1.mp4"
    stream = as_mpegts(video, other, video)
    process = subprocess.Popen(
        [sys.executable, "-m", "cfer.cli", "predict", "-", "--model", "short", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stream[: len(stream) * 3 // 4])
    process.stdin.flush()
    first = json.loads(process.stdout.readline())
    assert process.poll() is None, "printed while the pipe was open"
    rest, errors = process.communicate(stream[len(stream) * 3 // 4 :])
    assert process.returncode == 0, errors.decode()
    windows = [first, *map(json.loads, rest.splitlines())]
    assert [w["start_seconds"] for w in windows] == [round(0.48 * n, 2) for n in range(6)]
    assert {w["source"] for w in windows} == {"standard input"}
    assert {w["face"] for w in windows} == {1}


def test_a_file_that_grows_is_predicted_to_its_end(store, video, tmp_path):
    stream = as_mpegts(video, video)
    path = tmp_path / "live.ts"
    path.write_bytes(stream[: len(stream) // 2])

    def write_the_rest() -> None:
        time.sleep(1)
        with open(path, "ab") as file:
            file.write(stream[len(stream) // 2 :])

    recognizer = Recognizer.from_pretrained("short")
    writer = threading.Thread(target=write_the_rest)
    writer.start()
    windows = list(recognizer.predict_stream(GrowingFile(path, 4), "live.ts"))
    writer.join()
    assert windows[-1].end_seconds == pytest.approx(48 / 25)
    assert all(w.label for w in windows)


def test_a_pipe_without_a_video_is_one_clear_line(store):
    done = subprocess.run(
        [sys.executable, "-m", "cfer.cli", "predict", "-", "--model", "short"],
        input=b"not a video\n" * 500,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"standard input: not a video that can be read while it is written" in done.stderr
    assert b"Traceback" not in done.stderr


def test_shards_are_predicted_as_their_videos(store, drawn_shards, video):
    recognizer = Recognizer.from_pretrained("short")
    (wanted,) = recognizer.predict(video)
    of_shards = {p.source: p for p in recognizer.predict_shards(drawn_shards)}
    assert len(of_shards) == 56
    (given,) = (p for name, p in of_shards.items() if name.endswith("S003_surprise_1"))
    assert given.probabilities == wanted.probabilities


def test_shards_of_other_settings_are_refused(drawn_shards):
    with pytest.raises(InputError, match="64 × 64 in GOPs of 12, and the model is for 112 × 112"):
        next(Recognizer.from_pretrained().predict_shards(drawn_shards))


def test_a_folder_is_each_of_its_videos(store, video):
    done = run_module("cfer.cli", "predict", str(video.parent), "--model", "short", "--json")
    assert done.returncode == 0, done.stderr
    named = [json.loads(line)["source"] for line in done.stdout.splitlines()]
    assert named == sorted(str(path) for path in video.parent.glob("*.mp4"))


def test_a_source_that_fails_does_not_stop_the_others(store, clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0" * 300)
    done = run_module("cfer.cli", "predict", str(broken), str(clip), "--model", "short", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["source"] == str(clip)
    assert "broken.mp4" in done.stderr
    assert "1 of 2 sources failed" in done.stderr


def test_all_faces_keep_their_numbers(store, drawn_videos, tmp_path):
    """Two people side by side, who come closer: each keeps its number and its own expression."""
    left, right = (
        _pictures(drawn_videos / "videos" / name)
        for name in ("S003/surprise_1.mp4", "S004/sadness_1.mp4")
    )
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 256, 512, "yuv420p"
        for one, two in zip(left * 2, right * 2, strict=True):
            picture = np.concatenate([one, two], axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    windows = Recognizer.from_pretrained("short").predict(path, faces="all", window_gops=1)
    by_face = {n: [w for w in windows if w.face == n] for n in (1, 2)}
    assert len(windows) == 8
    assert [len(found) for found in by_face.values()] == [4, 4]
    centers = {
        n: {(w.square.x + w.square.side / 2) // 256 for w in found} for n, found in by_face.items()
    }
    assert sorted(map(tuple, centers.values())) == [(0,), (1,)]
    (one,) = Recognizer.from_pretrained("short").predict(path)
    assert one.face == 1


def _pictures(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
