"""Tests on people, on drawn ones: each part says what the model says, and counts it right."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import commands
from scipy.stats import binom

from benchmarks.__main__ import main
from benchmarks.real import (
    COLUMNS,
    MOVER,
    MOVING,
    NO_FACE,
    STILL,
    Clip,
    Share,
    measure,
    measure_smiles,
    measure_spoken,
    measure_windows,
    read_marks,
    read_people,
    says,
    smile_figures,
    window_figures,
)
from cfer.errors import InputError
from cfer.model.card import write_model
from cfer.predict.models import default_path
from cfer.predict.recognizer import Recognizer
from cfer.video.pictures import open_pictures
from pipeline.datasets import cremad
from pipeline.datasets.drawing import FPS, DrawingSettings
from pipeline.datasets.made import write_video
from pipeline.datasets.synthetic import draw_dataset

DRAWN_MODEL = Path(__file__).parents[2] / "fixtures" / "drawn.safetensors"


@pytest.fixture(scope="module")
def models() -> dict[str, Recognizer]:
    """A model of drawn faces, without a class neutral."""
    return {"drawn": Recognizer.from_pretrained(DRAWN_MODEL)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    """Pictures of two drawn people, from neutral to the apex, by person and expression."""
    folder, names = tmp_path_factory.mktemp("clips"), ["happiness", "surprise"]
    draw_dataset(folder, 2, DrawingSettings(picture_size=192), names)
    return {
        f"{person} {name}": [*open_pictures(folder / "videos" / person / f"{name}_1.mp4")]
        for person in ("S001", "S002")
        for name in names
    }


@pytest.fixture(scope="module")
def videos(clips, tmp_path_factory) -> Path:
    """A film of one person's two expressions, one of the other's happiness, one without a face."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "both.mp4", [*clips["S001 happiness"], *clips["S001 surprise"]], FPS, 12)
    write_video(folder / "one.mp4", clips["S002 happiness"], FPS, 12)
    write_video(folder / "empty.mp4", [np.full((192, 192, 3), 90, np.uint8)] * 24, FPS, 12)
    return folder


@pytest.fixture(scope="module")
def photos(clips, tmp_path_factory) -> Path:
    """Neutral and smiling pictures of two people, of one with a smile alone, of one without a face;
    in the London set's layout."""
    folder = tmp_path_factory.mktemp("photos")
    for side, number in (("neutral_front", "03"), ("smiling_front", "08")):
        (folder / "london" / side).mkdir(parents=True)
        gray = np.full((192, 192, 3), 90, np.uint8)
        pictures = {"001": clips["S001 happiness"], "002": clips["S002 happiness"]}
        pictures |= {"003": [gray]} | ({"004": [gray]} if number == "08" else {})
        for person, several in pictures.items():
            picture = several[0 if number == "03" else -1][:, :, ::-1]
            cv2.imwrite(str(folder / "london" / side / f"{person}_{number}.png"), picture)
    (folder / "london" / "london_info.csv").write_text(
        "face_id,face_age,face_gender,face_eth\n001,24,female,white\n002,35,male,black\n"
    )
    return folder


def written(path: Path, *rows: str, columns: str = ",".join(COLUMNS)) -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


# ---- one window ----------------------------------------------------------------------------------


def test_a_window_is_predicted_as_a_clip_of_its_frames(models, videos, tmp_path):
    """From the first frame at or after the onset to the last at or before the apex."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, picture in enumerate([*open_pictures(videos / "both.mp4")][25:43]):
        cv2.imwrite(str(folder / f"{number:03d}.png"), picture[:, :, ::-1])
    (wanted,) = models["drawn"].predict(folder)
    found, _ = says(models["drawn"], videos / "both.mp4", 1.01, 1.76)  # frames at 1/24 s
    assert found == pytest.approx(wanted.probabilities, abs=1e-6)
    (first,) = models["drawn"].predict(videos / "one.mp4")
    assert first.probabilities != pytest.approx(found, abs=0.05)
    whole, _ = says(models["drawn"], videos / "one.mp4", 0, 23 / 24)
    assert whole == pytest.approx(first.probabilities, abs=1e-6)
    assert says(models["drawn"], videos / "empty.mp4", 0, 0.5) == ({}, "encoded")


@pytest.mark.parametrize(("onset", "apex"), [(0, 2.5), (1.5, 1.501), (3, 4)])
def test_a_window_beyond_the_video_or_of_one_frame(models, videos, onset, apex):
    with pytest.raises(InputError, match=r"both\.mp4: .* 2\.000 s"):
        says(models["drawn"], videos / "both.mp4", onset, apex)


# ---- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "of"), [(0, 7), (22, 56), (1, 1), (102, 102), (3, 6)])
def test_the_interval_is_the_exact_one(hits, of):
    """Its ends are the shares at which so few, or so many, hits have a probability of 2.5 %."""
    share = Share.count([True] * hits + [False] * (of - hits))
    assert (share.hits, share.of) == (hits, of)
    if hits == 0:
        assert share.low == 0
    else:
        assert binom.sf(hits - 1, of, share.low) == pytest.approx(0.025)
    if hits == of:
        assert share.high == 1
    else:
        assert binom.cdf(hits, of, share.high) == pytest.approx(0.025)


def test_a_share_as_text():
    assert str(Share.count([True] * 22 + [False] * 34)) == "22 of 56 = 0.39 [0.26, 0.53]"
    assert str(Share.count([])) == "–"


def clip(label: str, said: str, confidence: int = 0, **groups: str) -> Clip:
    probabilities = {said: 0.6, "other": 0.4} if said != NO_FACE else {}
    return Clip("clip", label, {"m": probabilities}, confidence, groups)


def test_windows_are_counted():
    found = window_figures(
        [
            clip("happiness", "happiness", 3),
            clip("happiness", "fear", 2),
            clip("happiness", "happiness", 1),
            clip("fear", "fear", 1),
            clip("neutral", "happiness", 2),
            clip("neutral", NO_FACE, 3),
        ],
        "m",
        ("fear", "happiness"),
    )
    assert (found.right.hits, found.right.of) == (3, 6)
    assert (found.right_of_sure.hits, found.right_of_sure.of) == (1, 4)
    assert found.mean_recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.confusion == {
        "fear": {"fear": 1},
        "happiness": {"happiness": 2, "fear": 1},
        "neutral": {"happiness": 1, NO_FACE: 1},
    }
    assert found.unknown == ["neutral"]


def test_smiles_are_counted_by_group():
    women, men = {"age": "25 to 34", "gender": "female"}, {"age": "unknown", "gender": "male"}
    still = [
        clip("happiness", "happiness", **women),
        clip("happiness", "fear", **women),
        clip("happiness", "happiness", **men),
    ]
    moving = [clip("happiness", "fear", **groups) for groups in (women, women, men)]
    mover = [clip("neutral", said, **women) for said in ("happiness", "fear", NO_FACE)]
    found = smile_figures({STILL: still, MOVING: moving, MOVER: mover}, "m")
    assert {kind: share.hits for kind, share in found.happiness.items()} == {
        STILL: 2,
        MOVING: 0,
        MOVER: 1,
    }
    assert found.said[MOVER] == {"happiness": 1, "fear": 1, NO_FACE: 1}
    assert {name: (group[STILL].hits, group[STILL].of) for name, group in found.groups.items()} == {
        "age 25 to 34": (1, 2),
        "age unknown": (1, 1),
        "gender female": (1, 2),
        "gender male": (1, 1),
    }
    assert found.groups["gender female"][MOVING].hits == 0


# ---- the parts -----------------------------------------------------------------------------------


def test_marked_windows(models, videos, tmp_path):
    file = written(
        tmp_path / "w.csv",
        "both,0,0.96,happiness,3,anything",
        "both,1,1.96,surprise,1,",
        "empty,0,0.5,neutral,2,",
        columns="video,onset_s,apex_s,label,confidence,annotators",
    )
    found = measure_windows(models, read_marks(file, videos))
    assert [(c.name, c.label, c.confidence) for c in found.clips] == [
        ("both 0.00–0.96", "happiness", 3),
        ("both 1.00–1.96", "surprise", 1),
        ("empty 0.00–0.50", "neutral", 2),
    ]
    for seen, (onset, apex) in zip(found.clips, [(0, 0.96), (1, 1.96)], strict=False):
        wanted, way = says(models["drawn"], videos / "both.mp4", onset, apex)
        assert way == "encoded"
        assert seen.said["drawn"] == wanted
    # A drawn face is what this model was trained on.
    assert found.figures["drawn"].confusion["happiness"] == {"happiness": 1}
    assert found.figures["drawn"].confusion["neutral"] == {NO_FACE: 1}
    text = found.table(details=True)
    assert "drawn has no class neutral: its 1 windows count as wrong." in text
    assert "| empty 0.00–0.50 | neutral | 2 | no face |" in text
    assert "| both 0.00–0.96 |" not in found.table(details=False)


def test_a_model_that_reads_h264_stands_there_both_ways(videos, tmp_path, native_model):
    file = written(tmp_path / "w.csv", "one,0,0.96,happiness,3", "both,0,0.96,happiness,3")
    found = measure([native_model], windows=file, videos=videos)
    assert found.models == [native_model, f"{native_model}, encoded anew"]
    native, anew = (found.windows.clips[0].said[name] for name in found.models)
    model = Recognizer.from_pretrained(native_model)
    assert native == says(model, videos / "one.mp4", 0, 0.96)[0]
    (encoded,) = model.encoding_anew().predict(videos / "one.mp4")
    assert anew == pytest.approx(encoded.probabilities, abs=1e-6)
    assert native != pytest.approx(anew, abs=1e-4)
    line = f"{native_model}: 2 of 2 read as H.264 transmits them, the others encoded anew."
    assert line in found.table()


@pytest.mark.parametrize(
    ("columns", "row", "why"),
    [
        ("video,onset_s,apex,label,confidence", "both,0,1,fear,2", "there is no apex_s"),
        (",".join(COLUMNS), "absent,0,1,fear,2", "line 2: there is no video 'absent'"),
        (",".join(COLUMNS), "both,1.5,1,fear,2", r"line 2: from 1\.5 s to 1\.0 s; .* apex"),
        (",".join(COLUMNS), "both,-1,1,fear,2", "line 2: from -1.0 s"),
        (",".join(COLUMNS), "both,0,soon,fear,2", "line 2: .* numbers.*soon"),
        (",".join(COLUMNS), "both,0,1,fear", "line 2: .* numbers"),
        (",".join(COLUMNS), "both,0,nan,fear,2", "line 2: from 0.0 s to nan s"),
        (",".join(COLUMNS), "both,0,1,,2", "line 2: no label"),
    ],
)
def test_a_wrong_table_of_windows_is_a_line(videos, tmp_path, columns, row, why):
    with pytest.raises(InputError, match=f"--windows .*w.csv.*{why}"):
        read_marks(written(tmp_path / "w.csv", row, columns=columns), videos)


def test_people_of_the_photographs(photos):
    people = read_people(photos)
    assert people == read_people(photos / "london")
    assert [p.name for p in people] == ["001", "002", "003", "004"]
    assert people[0].groups == {"age": "under 25", "gender": "female", "ethnicity": "white"}
    assert people[1].groups["age"] == "35 and over"
    assert set(people[2].groups.values()) == {"unknown"}
    assert people[3].neutral is None
    assert [p.name for p in read_people(photos, ["002"])] == ["002"]
    with pytest.raises(InputError, match="--people 9: no photograph"):
        read_people(photos, ["001", "9"])
    with pytest.raises(InputError, match=r"--photos .*needs neutral_front/"):
        read_people(photos / "london" / "neutral_front")


def test_smiles_and_movers(models, photos):
    """A drawn smile is one, also between two pictures of it; who cannot be used is named."""
    found = measure_smiles(models, read_people(photos))
    assert found.left_out == {
        "003": "no face in 003_03.png",
        "004": "no photograph in neutral_front",
    }
    assert [*found.clips] == [STILL, MOVING, MOVER]
    assert all([c.name for c in some] == ["001", "002"] for some in found.clips.values())
    assert {c.label for c in found.clips[MOVER]} == {"neutral"}
    for first, second in ((STILL, MOVING), (MOVING, MOVER)):
        for one, other in zip(found.clips[first], found.clips[second], strict=True):
            assert one.said["drawn"] != pytest.approx(other.said["drawn"], abs=1e-4)
    assert found.figures["drawn"].happiness[STILL].hits == 2
    assert found.figures["drawn"].groups["gender male"][STILL].of == 1
    text = found.table(details=True)
    assert "2 left out: 003 (no face in 003_03.png), 004 (no photograph in neutral_front)." in text
    assert re.search(r"^\| 001 \| happiness 0\.\d\d \|", text, re.M)
    again = measure_smiles(models, read_people(photos, ["002"]))
    assert again.clips[MOVING] == found.clips[MOVING][1:]


def test_nobody_with_two_faces_is_an_error(models, photos):
    with pytest.raises(InputError, match=r"nobody with two .*no face in 003_03"):
        measure_smiles(models, read_people(photos, ["003"]))


@pytest.fixture(scope="module")
def spoken(videos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("crema-d")
    (folder / "VideoFlash").mkdir()
    for source, name in (("both", "1001_DFA_HAP_XX"), ("empty", "1001_DFA_NEU_XX")):
        shutil.copy(videos / f"{source}.mp4", folder / "VideoFlash" / f"{name}.mp4")
    return folder


def test_clips_of_crema_d(models, spoken, videos):
    found = measure_spoken(models, cremad.read(spoken))
    windows = models["drawn"].predict(videos / "both.mp4", window_seconds=1.0)
    assert len(windows) == 3
    wanted = np.mean([[*window.probabilities.values()] for window in windows], axis=0)
    assert [c.label for c in found.mean] == ["happiness", "neutral"]
    assert [*found.mean[0].said["drawn"].values()] == pytest.approx(wanted)
    likeliest = max(windows, key=lambda window: max(window.probabilities.values()))
    assert found.strongest[0].said["drawn"] == likeliest.probabilities
    assert found.mean[1].label_of("drawn") == found.strongest[1].label_of("drawn") == NO_FACE
    assert "| 1001_DFA_NEU_XX | neutral | no face | no face |" in found.table()


# ---- the command ---------------------------------------------------------------------------------


def test_the_documented_command_measures_models_side_by_side(
    videos, photos, spoken, predictor, card, tmp_path, capsys
):
    """The shipped model beside another, of other classes."""
    (command,) = commands("Tests on real people", "docs/limits.md")
    other = tmp_path / "new.safetensors"
    write_model(other, predictor, card)
    rows = ("both,0,0.96,happiness,3", "both,1,1.96,surprise,2")
    at = {
        "new.safetensors": other,
        "windows.csv": written(tmp_path / "windows.csv", *rows),
        "videos": videos,
        "photos": photos,
        "CREMA-D": spoken,
        "videos/*.mp4": videos / "one.mp4",
        "real.json": tmp_path / "real.json",
    }
    words = command.split()
    assert words[:3] == ["cfer", "bench", "real"]
    assert {*at} < {*words}
    assert main([str(at.get(word, word)) for word in words[2:]] + ["--people", "001,003"]) == 0
    said = capsys.readouterr().out
    assert "Not given" not in said
    assert f"{other} has no class happiness: its 1 windows count as wrong." in said
    assert "animated photographs" in said
    figures = json.loads((tmp_path / "real.json").read_text())
    assert figures["models"] == ["default", "default, encoded anew", str(other)]
    for part in ("windows", "smiles"):
        assert [*figures[part]["figures"]] == figures["models"]
    assert figures["windows"]["figures"]["default"]["right"]["of"] == 2
    assert figures["smiles"]["figures"]["default"]["happiness"][STILL]["of"] == 1
    assert [*figures["spoken"]["right"]] == [*figures["robustness"]["models"]] == figures["models"]
    assert re.search(r"^\| mirrored \| 1 \| .* \| \d \| ", said, re.M)


def test_only_what_is_given_is_measured(videos, tmp_path, capsys):
    """A file and the shipped model of the same weights: the same figures."""
    copy = tmp_path / "copy.safetensors"
    shutil.copy(default_path(), copy)
    file = written(tmp_path / "w.csv", "one,0,0.9,happiness,3")
    words = ["--model", str(copy), "default", "--windows", str(file), "--videos", str(videos)]
    assert main(["real", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("Not given.") == 3
    ours, theirs = re.findall(r"^\| (?:default|\S+copy\S+) (\|.*\[.*)", said, re.M)
    assert ours == theirs


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "give --windows and --videos, --photos, --crema-d or --robustness"),
        ({"windows": Path("w.csv")}, "belong together"),
        ({"robust": [Path("v.mp4")], "people": ["001"]}, "give --photos"),
    ],
)
def test_options_that_do_not_belong_together(given, why):
    with pytest.raises(InputError, match=why):
        measure(["default"], **given)


# ---- real people ---------------------------------------------------------------------------------


def test_real_windows_and_real_smiles(faces_dir, models):
    """Of people, where there are some; the shipped model has seen none."""
    shared = faces_dir.parent
    file, photographs = shared / "real" / "windows.csv", shared / "photos" / "london"
    if not (file.exists() and photographs.exists()):
        pytest.skip(f"no {file}, or no {photographs}")
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    marks = [m for m in read_marks(file, faces_dir) if m.video.stem in ("d18", "d19")]
    assert len(marks) == sum(row["video"] in ("d18", "d19") for row in rows) > 0
    found = measure_windows(models, marks)
    assert all(c.said["drawn"] for c in found.clips)  # a face is in each
    smiles = measure_smiles(models, read_people(photographs, ["001", "014"]))
    assert not smiles.left_out
    assert all(c.said["drawn"] for some in smiles.clips.values() for c in some)
