"""The benches check what they time, a ratio that fell is found, and the documented figures are
those of the files."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import REPOSITORY, commands, run_documented_bench

from benchmarks import extract, measure
from benchmarks.__main__ import main
from benchmarks.codec import coviar_residuals
from benchmarks.material import clips_of, moving_texture
from benchmarks.measure import Measurement, Ratio, Spread, Work, side_by_side
from benchmarks.predict import _resnet_input, decoded_planes, for_pictures
from cfer.codec import Bitstream, CodecSettings, encode
from cfer.data.inputs import Input
from cfer.errors import InputError
from cfer.model.network import Predictor
from cfer.predict.recognizer import Recognizer

*BENCHES, COMPARE = commands("How fast", "docs/speed.md")
DOCUMENTED = REPOSITORY / "docs" / "bench"


def documented(name: str) -> str:
    (command,) = (command for command in BENCHES if command.split()[2] == name)
    return command


# ---- benches, in their quick form ----------------------------------------------------------------


def test_the_documented_bench_of_the_codec_and_its_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = run_documented_bench(documented("codec"), tmp_path, "--max-frames", "26")
    assert found["verified"].startswith("22 P-frames of 1 clips")
    assert found["figures"]["clips"] == "1 of 224 × 224, 24 frames, GOP 12"
    assert found["figures"]["a residual raw"] == f"{224 * 224 * 3 // 2:,} bytes"
    assert found["figures"]["intra macroblocks"] == "0.000000"
    assert "blocks of 1 videos in H.264: none differs" in found["verified"]
    assert found["targets"]["H.264: residuals, direct / H.264: FFmpeg, decode only"] == 0.8
    monkeypatch.chdir(tmp_path)
    Path("docs").symlink_to(REPOSITORY / "docs")
    # How fast one round was, nobody knows.
    assert main(COMPARE.split()[2:]) == ("FELL" in capsys.readouterr().out)


def test_the_documented_bench_of_the_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By a clock that goes on by a second whenever it is looked at: each stage takes one, the
    detector one for a search and for each of its three looks, and the stage that it is inside of
    one more for each."""
    monkeypatch.setattr(extract.time, "perf_counter", itertools.count().__next__)
    found = run_documented_bench(documented("extract"), tmp_path)
    assert found["verified"].startswith("3 frames of 1 videos")
    # Faces are looked for while the video is read, which doesn't count as reading.
    assert found["figures"] == {
        "share of: decode, crop and encode": "45.5%",
        "share of: find the face": "36.4%",
        "share of: embed an I-frame": "9.1%",
        "share of: write the shard": "9.1%",
    }
    assert [(name, rate["median"]) for name, rate in found["rates"].items()] == [
        ("decode and encode alone", 3),
        ("everything but the networks", 3 / 6),
        ("the networks alone", 3 / 5),
        ("everything", 3 / 11),
    ]


def test_the_bench_of_training_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "train.json"
    words = "train --rounds 1 --clips 8 --size 32 --batch-size 4 --json".split()
    assert main([*words, str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["verified"] == "8 clips of 32 × 32: each comes once in an epoch"
    with_runs = json.loads((DOCUMENTED / "train.json").read_text())
    assert found["ratios"].keys() < with_runs["ratios"].keys()
    assert found["targets"].items() < with_runs["targets"].items()
    assert found["figures"]["device"] == "cpu, batches of 4"
    (wait,) = (1 / found["ratios"][name]["median"] for name in found["ratios"] if "making" in name)
    assert float(found["figures"]["waiting for data"].split("%")[0]) == pytest.approx(
        100 * wait, abs=0.06
    )
    with pytest.raises(InputError, match="--clips 3: give at least a batch, 4"):
        main(["train", "--clips", "3", "--batch-size", "4"])
    with pytest.raises(
        InputError, match="--batch-size 32 --workers 3: so many clips can't be deal"
    ):
        main(["train", "--data", "x", "--workers", "3"])


def test_what_cannot_be_measured():
    with pytest.raises(InputError, match="extract: give videos with faces"):
        extract.measure([], 1)
    with pytest.raises(InputError, match="--gop-size 1: "):
        main(["codec", "--gop-size", "1", "--size", "32", "--max-frames", "4"])


def test_decoding_alone_gives_the_planes_that_the_network_sees(tmp_path: Path):
    stream = encode(moving_texture(9, 64), CodecSettings(gop_size=3), 25)
    stream.save(tmp_path / "a.mp4")
    ours = Input("difference").read(stream, range(3))
    assert np.array_equal(decoded_planes(tmp_path / "a.mp4", [2, 5, 8]), ours)
    # Whatever the model that ships sees.
    recognizer = Recognizer.from_pretrained()
    motion = replace(recognizer.card.network, num_planes=8)
    card = replace(recognizer.card, what=Input("accumulated+motion"), network=motion)
    for model in (recognizer, Recognizer(Predictor(motion), card)):
        assert for_pictures(model).probabilities(ours[None]).shape == (1, len(card.classes))
    pictures = _resnet_input(tmp_path / "a.mp4")
    assert pictures.shape == (16, 3, 224, 224)
    assert 0 <= pictures.min() < pictures.max() <= 1


# ---- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DOCUMENTED.glob("*.json")), ids=lambda path: path.stem)
def test_the_documented_figures_are_those_of_the_files(path: Path):
    found = json.loads(path.read_text())
    is_of_scale = found["bench"].startswith("scale")
    page = (REPOSITORY / "docs" / ("scale.md" if is_of_scale else "speed.md")).read_text()
    if is_of_scale:
        assert all(f"| {name} | {text} |" in page for name, text in found["figures"].items())
    for name, ratio in found["ratios"].items():
        target = found["targets"].get(name)
        aim = "" if target is None else f" {target:.3g}"
        assert f"| {name} | {Spread(**ratio)} |{aim} |" in page
    assert "with changes" not in found["circumstances"]["commit"]


def test_ratios_are_taken_within_a_round():
    rates = {"fast": [10.0, 40.0, 30.0], "slow": [5.0, 10.0, 15.0]}
    ratios = [Ratio("fast", "slow", 2.5)]
    found = Measurement.of("train", "nothing", rates, dict.fromkeys(rates, "clips"), ratios)
    assert found.ratios == {"fast / slow": Spread(2.0, 2.0, 4.0)}
    assert "target 2.5: MISSED" in found.table()
    assert found.rates["slow"] == Spread(10.0, 5.0, 15.0)


def test_works_take_turns_and_no_work_always_follows_the_same(monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []

    def work(name: str, seconds: float, per_round: int) -> Work:
        def run() -> int:
            nonlocal now
            done.append(name)
            now += seconds
            return 6

        return Work(name, run, "clips", per_round)

    now = 0.0
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    works = [work("a", 1.5, 1), work("b", 2.0, 2)]
    found = side_by_side(works, [Ratio("a", "b", 1.3)], 3, "any", "nothing")
    # Once without being timed; then forwards, backwards, and forwards again.
    assert done == list("ab" + "abb" + "bba" + "abb")
    assert found.rates == {"a": Spread(4, 4, 4), "b": Spread(3, 3, 3)}
    assert found.ratios["a / b"].median == pytest.approx(4 / 3)
    assert "target 1.3: met" in found.table()


def test_a_ratio_that_fell_by_more_than_a_third_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def file(name: str, bench: str, **ratios: float) -> str:
        content = {"bench": bench, "ratios": {n: {"median": r} for n, r in ratios.items()}}
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    before = file("before.json", "codec", one=3.0, two=1.0)
    assert main(["compare", before, file("same.json", "codec", one=2.01, two=5.0, more=1.0)]) == 0
    assert "more: new" in capsys.readouterr().out
    assert main(["compare", before, file("less.json", "codec", one=3.0)]) == 1
    assert "1 → GONE" in capsys.readouterr().out
    assert main(["compare", before, file("worse.json", "codec", one=1.99, two=1.0)]) == 1
    assert "3 → 1.99   FELL" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"is of codec, .* of train"):
        main(["compare", before, file("other.json", "train", one=1.0)])
    with pytest.raises(InputError, match="no ratio in common"):
        main(["compare", before, file("none.json", "codec", three=1.0)])
    (tmp_path / "text.json").write_text("[]")
    with pytest.raises(InputError, match=r"text\.json: not written by"):
        measure.compare(Path(before), tmp_path / "text.json")
    with pytest.raises(InputError, match=r"missing\.json: cannot be read"):
        measure.compare(Path(before), tmp_path / "missing.json")


# ---- what they are measured on -------------------------------------------------------------------


def test_without_a_video_textures_are_drawn():
    clips = clips_of([], 32, 5)
    assert [len(pictures) for pictures in clips] == [5, 5]
    assert all(picture.shape == (32, 32, 3) for pictures in clips for picture in pictures)
    assert not np.array_equal(clips[0][0], clips[1][0])
    assert not np.array_equal(clips[0][0], clips[0][4])


def test_of_a_video_the_middle_square_of_the_first_frames_is_taken(tmp_path: Path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    encode([wide] * 8, CodecSettings(gop_size=4), 25).save(tmp_path / "a.mp4")
    (pictures,) = clips_of([tmp_path / "a.mp4"], 16, 5)
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 5
    assert min(picture.mean() for picture in pictures) > 240


def test_coviars_residual_is_the_difference_where_nothing_moves():
    still = encode(moving_texture(9, 64), CodecSettings(gop_size=4, motion_search=False), 25)
    found = list(coviar_residuals(still.data))
    pictures = [
        frame.to_ndarray(format="rgb24").astype(np.int16)
        for frame in av.open(io.BytesIO(still.data)).decode(video=0)
    ]
    p_frames = [n for gop in still.gops for n in gop[1:]]
    assert len(found) == len(p_frames) == 6
    for residual, n in zip(found, p_frames, strict=True):
        assert np.array_equal(residual, pictures[n] - pictures[n - 1])


def test_coviars_residual_follows_whole_pixels():
    """A texture that moves by whole pixels leaves less than its difference does."""
    wide = moving_texture(1, 96)[0]
    pictures = [wide[:64, 4 * n : 64 + 4 * n] for n in range(4)]
    moved = encode(pictures, CodecSettings(gop_size=4), 25)
    residuals = list(coviar_residuals(moved.data))
    inner = [np.abs(r[16:48, 16:48]).mean() for r in residuals]
    change = np.abs(pictures[1].astype(int) - pictures[0])[16:48, 16:48].mean()
    assert max(inner) < change / 5
    assert Bitstream(moved.data, "moved").frame_types == "IPPP"
