"""Prediction: what it reads, what it does not, and that it agrees with training and with MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import run_module

from cfer.codec import VOP_START_CODE, Bitstream, CodecError, CodecSettings, encode
from cfer.inputs import Input
from cfer.predict import face_bitstreams, predict_bitstream, predict_video
from cfer.shards import read_clips
from cfer.tracking import find_run, load_model


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
    ((_, bitstream),) = face_bitstreams(video, 64, CodecSettings(), None)
    bitstream.save(path)
    return path


def test_the_i_frame_is_not_looked_at(store, clip):
    """With every I-frame destroyed in the file, the prediction is the same to the bit."""
    model, description = load_model("short")
    (wanted,) = predict_video(clip, model, description)
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
    (given,) = predict_bitstream(ruined_clip, model, description)
    assert given == wanted


def test_the_p_frames_are_looked_at(store, clip, drawn_videos):
    model, description = load_model("short")
    other = drawn_videos / "videos" / "S003" / "sadness_1.mp4"
    (one,), (two,) = (predict_video(path, model, description) for path in (clip, other))
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
    model, description = load_model("short")
    (raw,), (encoded,) = (predict_video(path, model, description) for path in (video, clip))
    assert raw == encoded
    assert raw.num_frames == 2
    assert sum(raw.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert list(raw.probabilities) == description["classes"]


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
    assert list(printed["probabilities"].values()) == pytest.approx(probabilities, abs=1e-7)


def test_the_command_prints_a_table(store, clip):
    done = run_module("cfer.cli", "predict", str(clip), "--model", "short")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("0.00 to 1.00 s, from 2 P-frames: ")
    assert [line.split()[0] for line in lines[1:]] == load_model("short")[1]["classes"]


def test_long_videos_are_predicted_window_by_window(store, clip):
    model, description = load_model("short")
    pictures = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    bitstream = encode(pictures, CodecSettings(), 25)
    predictions = predict_bitstream(bitstream, model, {**description, "window_gops": 2})
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
        (("show", "{noface}", "out.png"), "noface.mp4: its codec is h264"),
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
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(6):
            picture = np.full((96, 96, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_clip_of_i_frames_alone_is_an_error(store):
    model, description = load_model("short")
    pictures = [np.zeros((64, 64, 3), np.uint8)] * 3
    bitstream = encode(pictures, CodecSettings(gop_size=1), 25)
    with pytest.raises(CodecError, match="no P-frame"):
        predict_bitstream(bitstream, model, description)
