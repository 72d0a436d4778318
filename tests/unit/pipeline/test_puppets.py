"""Sets of puppets: the same seed is the same set, and its manifest says what is where."""

from __future__ import annotations

import csv
import os
import re
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from painted import FULL, freckled, painted, smiling, write_pair, write_person

from cfer.cli import run
from cfer.errors import InputError
from pipeline.datasets.puppets import (
    PuppetSettings,
    Task,
    animate,
    apex_frame,
    contact_sheet,
    film_strip,
    stage,
)
from pipeline.puppets.acting import CLASSES
from pipeline.puppets.photos import photographs_below
from pipeline.puppets.rig import OWN

SMALL = PuppetSettings(size=64, seed=11)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("p1_03.png", "p2_03.png"):
        write_person(painted(48), folder / name)
    return folder


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    animate(photos, folder, SMALL, people=1, clips_per_class=1)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_manifest_lists_the_spans_of_every_video(made: Path, photos: Path) -> None:
    rows, strengths = rows_of(made / "manifest.csv"), rows_of(made / "spans.csv")
    assert list(rows[0]) == [
        "path", "clip_id", "subject", "label", "start_seconds", "end_seconds", "dataset",
    ]  # fmt: skip
    assert {row["path"] for row in rows} == {f"videos/p1/{label}_1.mp4" for label in CLASSES}
    assert len({row["clip_id"] for row in rows}) == len(rows)
    assert {(row["subject"], row["dataset"]) for row in rows} == {("p1", "puppets")}
    assert [row["clip_id"] for row in strengths] == [row["clip_id"] for row in rows]
    for row, strength in zip(rows, strengths, strict=True):
        video = Path(row["path"]).stem.removesuffix("_1")
        assert strength["video"] == video
        assert strength["label"] == row["label"] in (video, "neutral")
        assert (float(strength["intensity"]) > 0) == (row["label"] != "neutral")
    # As planned, and within what the video shows.
    person = photographs_below(photos)[0]
    for label in CLASSES:
        clip, _ = Task(person, label, 0).plan(SMALL)
        own = [row for row in rows if row["path"].endswith(f"{label}_1.mp4")]
        assert len(own) == len(clip.spans)
        with av.open(str(made / "videos" / "p1" / f"{label}_1.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == clip.fps
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == clip.num_frames
        assert frames[0].shape == (64, 64, 3)
        assert all(float(row["end_seconds"]) < len(frames) / clip.fps for row in own)
    assert not list(made.rglob("*.part"))


def test_the_pictures_are_of_the_photograph(made: Path) -> None:
    """Hair above, skin below it, with some light and noise."""
    for label in ("neutral", "happiness"):
        with av.open(str(made / "videos" / "p1" / f"{label}_1.mp4")) as container:
            first = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)
        skin = first[28:40, 26:38].reshape(-1, 3).mean(axis=0)
        assert skin[0] > skin[1] > skin[2] > 20


def test_a_clip_does_not_depend_on_the_others(made: Path, photos: Path, tmp_path: Path) -> None:
    """Two people and a second clip of each, of which all but a few are there already."""
    wanted = ["p1/fear_1.mp4", "p1/surprise_1.mp4"]
    for person in ("p1", "p2"):
        (tmp_path / "videos" / person).mkdir(parents=True)
        for label in CLASSES:
            for number in (1, 2):
                name = f"{person}/{label}_{number}.mp4"
                if name not in [*wanted, "p2/fear_1.mp4", "p1/fear_2.mp4"]:
                    (tmp_path / "videos" / name).write_bytes(b"there already")
    animate(photos, tmp_path, SMALL, clips_per_class=2)
    for name in wanted:
        assert (tmp_path / "videos" / name).read_bytes() == (made / "videos" / name).read_bytes()
    assert (tmp_path / "videos/p1/anger_1.mp4").read_bytes() == b"there already"
    rows = rows_of(tmp_path / "manifest.csv")
    assert rows_of(made / "manifest.csv") == [
        row for row in rows if row["subject"] == "p1" and row["path"].endswith("_1.mp4")
    ]


def test_people_classes_repetitions_and_seeds_are_other_clips(photos: Path) -> None:
    one, other = photographs_below(photos)
    tasks = [Task(one, "fear", 0), Task(other, "fear", 0), Task(one, "anger", 0)]
    clips = [task.plan(SMALL)[0] for task in [*tasks, Task(one, "fear", 1)]]
    clips.append(tasks[0].plan(PuppetSettings(size=64, seed=4))[0])
    assert len({clip.curves["yaw"][0] for clip in clips}) == 5
    assert tasks[0].plan(PuppetSettings(size=128, seed=11))[0].spans == clips[0].spans


def test_a_folder_of_another_seed_is_left_alone(made: Path, photos: Path) -> None:
    before = (made / "manifest.csv").read_bytes()
    message = r"was made with other settings \(seed 11 there, 4 now\); use the same ones, delete"
    with pytest.raises(InputError, match=message):
        animate(photos, made, PuppetSettings(size=64, seed=4), people=1, clips_per_class=1)
    assert (made / "manifest.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--people", "0", "--people 0: give 1 or more"),
        ("--clips-per-class", "-1", "--clips-per-class -1: give 1 or more"),
        ("--workers", "0", "--workers 0: give 1 or more"),
        ("--size", "65", "--size 65: give an even number"),
        ("--size", "32", "--size 32: give an even number of pixels, 64 or more"),
    ],
)
def test_numbers_that_cannot_be(
    photos: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    for asked in ("--out", "set"), ("--sheet", "sheet.png"), ("--film", "film.png"):
        words = ["puppets", "--photos", str(photos), asked[0], str(tmp_path / asked[1])]
        with pytest.raises(InputError, match=re.escape(message)):
            run([*words, option, value])
    assert not list(tmp_path.iterdir())


def test_nothing_is_asked_for(photos: Path) -> None:
    with pytest.raises(InputError, match="give --out, to make a data set, or --sheet or --film"):
        run(["puppets", "--photos", str(photos)])
    with pytest.raises(InputError, match=r"sheet\.gif: give a file that ends in \.png or \.jpg"):
        run(["puppets", "--photos", str(photos), "--sheet", "sheet.gif"])


def test_a_sheet_and_a_film_are_the_clips_of_the_set(photos: Path, tmp_path: Path) -> None:
    people = photographs_below(photos)
    sheet = contact_sheet(people[:1], SMALL)
    assert sheet.shape == (64 + 64 // 8, 64 * len(CLASSES), 3)
    cells = np.stack(np.split(sheet[64 // 8 :].astype(int), len(CLASSES), axis=1))
    assert min(np.abs(one - other).mean() for one, other in pairwise(cells)) > 3
    strip = film_strip(people[0], "happiness", SMALL)
    assert strip.shape == (2 * 64, 6 * 64, 3)
    assert run(["puppets", "--photos", str(photos), "--film", str(tmp_path / "film.png")]) == 0
    written = cv2.imread(str(tmp_path / "film.png"))
    wanted = film_strip(people[0], "happiness", PuppetSettings())
    assert np.array_equal(written[..., ::-1], wanted)


def test_the_apex_is_where_the_expression_is_at_its_strongest(photos: Path) -> None:
    for person in photographs_below(photos):
        for repetition in range(4):
            clip, _ = Task(person, "happiness", repetition).plan(SMALL)
            smile = clip.curves["12L"] + clip.curves["12R"]
            assert smile[apex_frame(clip)] > 0.75 * smile.max()
            clip, _ = Task(person, "neutral", repetition).plan(SMALL)
            assert apex_frame(clip) == (clip.num_frames - 1) // 2


def test_who_has_a_smiling_photograph_smiles_that_smile(tmp_path: Path) -> None:
    """In about half of the happy clips; the spans are as planned without it."""
    neutral = freckled(painted(64))
    write_pair(neutral, smiling(neutral, FULL), tmp_path, "p1")
    (person,) = photographs_below(tmp_path)
    shown = []
    for repetition in range(8):
        task = Task(person, "happiness", repetition)
        clip, made, _ = stage(task, SMALL)
        assert clip.spans == task.plan(SMALL)[0].spans
        assert made.smile is not None
        shown.append(bool(clip.curves[OWN].any()))
    assert 2 <= sum(shown) <= 6
    clip, made, _ = stage(Task(person, "anger", 0), SMALL)
    assert not clip.curves[OWN].any()


def test_a_second_run_makes_only_what_is_missing(photos: Path, made: Path, tmp_path: Path) -> None:
    kept, lost = (made / "videos" / "p1" / f"{name}_1.mp4" for name in ("anger", "sadness"))
    before = {path: path.read_bytes() for path in made.rglob("*.*") if path.is_file()}
    os.utime(kept, (1, 1))
    lost.unlink()
    (made / "manifest.csv").unlink()
    animate(photos, made, SMALL, people=1, clips_per_class=1)
    assert kept.stat().st_mtime == 1
    assert {path: path.read_bytes() for path in before} == before
