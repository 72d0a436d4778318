"""The benches run, check what they time, and a ratio that fell is found."""

from __future__ import annotations

import glob
import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import REPOSITORY, commands

from cfer.bench import measure
from cfer.bench.__main__ import main
from cfer.bench.codec import coviar_residuals
from cfer.bench.material import clips_of, moving_texture
from cfer.bench.measure import Ratio, Spread, measurement_of
from cfer.codec import Bitstream, CodecSettings, encode
from cfer.errors import InputError

*BENCHES, COMPARE = commands("How fast", "docs/speed.md")
DOCUMENTED = REPOSITORY / "docs" / "bench"


@pytest.mark.parametrize("command", BENCHES, ids=lambda command: command.split()[3])
def test_a_documented_bench_runs_in_its_quick_form(
    command: str,
    drawn_videos: Path,
    drawn_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("shards").symlink_to(drawn_shards)
    Path("videos").mkdir()
    shutil.copy(drawn_videos / "videos" / "S002" / "fear_1.mp4", "videos")
    python, module, package, *words = command.split()
    assert (python, module, package) == ("python", "-m", "cfer.bench")
    words = [path for word in words for path in glob.glob(word) or [word]]
    assert main([*words, "--quick", "--plot", "plot.png"]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    name = words[0]
    found = json.loads(Path(f"{name}.json").read_text())
    documented = json.loads((DOCUMENTED / f"{name}.json").read_text())
    assert found["ratios"].keys() == documented["ratios"].keys()
    assert found["targets"] == documented["targets"]
    assert all(ratio["median"] > 0 and text in printed for text, ratio in found["ratios"].items())
    assert found["verified"] in printed
    assert set(found["circumstances"]) >= {"command", "commit", "processor", "software"}
    if name == "extract":
        assert found["verified"].startswith("3 frames of 1 videos")
        figures = found["figures"].items()
        shares = [float(text.rstrip("%")) for title, text in figures if "share" in title]
        assert len(shares) == 6
        assert sum(shares) == pytest.approx(100, abs=0.5)
        assert all(share > 0 for share in shares)
    if name in COMPARE:
        Path("docs").symlink_to(REPOSITORY / "docs")
        # How fast one round was, nobody knows.
        assert main(COMPARE.split()[3:]) == ("FELL" in capsys.readouterr().out)


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


def test_without_a_video_textures_are_drawn():
    clips = clips_of([], 32, 5)
    assert [len(pictures) for pictures in clips] == [5, 5]
    assert all(picture.shape == (32, 32, 3) for pictures in clips for picture in pictures)
    assert not np.array_equal(clips[0][0], clips[1][0])
    assert not np.array_equal(clips[0][0], clips[0][4])


def test_ratios_are_taken_within_a_round():
    rates = {"fast": [10.0, 40.0, 30.0], "slow": [5.0, 10.0, 15.0]}
    found = measurement_of(
        rates, dict.fromkeys(rates, "clips"), [Ratio("fast", "slow", 2.5)], "train", "nothing"
    )
    assert found.ratios == {"fast / slow": Spread(2.0, 2.0, 4.0)}
    assert "target 2.5: MISSED" in found.table()
    assert found.rates["slow"] == Spread(10.0, 5.0, 15.0)


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
