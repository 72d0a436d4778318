"""The bench of H.264 times what `cfer predict` does, and decodes the pictures that it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import DRAWN, commands, run_documented_bench

from benchmarks import h264
from benchmarks.__main__ import main
from benchmarks.h264 import KnownFaces, _decoded, _planned, encoded_anew, from_pictures, natively
from benchmarks.material import moving_texture
from benchmarks.predict import for_pictures
from cfer.codec import CodecSettings, encode
from cfer.errors import InputError
from cfer.predict.recognizer import Recognizer
from cfer.video.pictures import open_pictures

VIDEO = DRAWN / "videos" / "S001" / "surprise_1.mp4"


def test_the_documented_bench_of_h264(tmp_path: Path):
    (command,) = (c for c in commands("How fast", "docs/speed.md") if c.split()[2] == "h264")
    found = run_documented_bench(command, tmp_path)
    assert found["verified"] == "1 windows of 1 videos: each way labels all of them"
    assert found["units"]["as it is"] == "windows"
    assert found["figures"]["windows"] == "1, of 1.00 s in the mean"
    assert found["figures"]["looks for a face"] == "1 in the files as they are"


def test_each_way_labels_the_windows_that_predict_cuts():
    recognizer, known = Recognizer.from_pretrained(), KnownFaces()
    anew = recognizer.encoding_anew()
    video = _planned(recognizer, known, VIDEO)
    for model, said in (
        (recognizer, natively(recognizer, known, video)),
        (anew, encoded_anew(anew, known, video)),
    ):
        wanted = [list(p.probabilities.values()) for p in model.predict(VIDEO)]
        np.testing.assert_allclose(said, wanted, atol=1e-6)
    assert np.shape(from_pictures(for_pictures(recognizer), known, video)) == (1, 8)


def test_the_decoded_pictures_are_those_of_the_runs():
    """But for the loop filter, which is left out: nearer to them than to any other."""
    video = _planned(Recognizer.from_pretrained(), KnownFaces(), VIDEO)
    found = dict(_decoded(video))
    assert found.keys() == video.stops.keys() != set()
    with av.open(str(VIDEO)) as container:
        pictures = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    for number, seconds in video.stops.items():
        distances = [np.abs(found[number].astype(int) - picture).mean() for picture in pictures]
        assert np.argmin(distances) == round(seconds * 24)


def test_faces_that_are_known_are_not_looked_for(monkeypatch: pytest.MonkeyPatch):
    known, picture = KnownFaces(), next(iter(open_pictures(VIDEO)))
    (square,) = known.find(picture)
    again = known.find_again(picture, square)
    other = replace(square, x=square.x + 1)
    for network in ("faces", "again"):
        monkeypatch.setattr(h264.FaceDetector, network, None)
    assert known.find(picture) == [square]
    assert known.find_again(picture, square) == again
    for unknown in (lambda: known.find(picture[::-1]), lambda: known.find_again(picture, other)):
        with pytest.raises(TypeError):
            unknown()


def test_what_can_not_be_measured(tmp_path: Path):
    with pytest.raises(InputError, match=r"h264: give videos of H\.264 with a face"):
        main(["h264"])
    encode(moving_texture(6, 64), CodecSettings(gop_size=3), 25).save(tmp_path / "mpeg4.mp4")
    with pytest.raises(InputError, match="give videos that are read as they are"):
        main(["h264", str(tmp_path / "mpeg4.mp4")])
