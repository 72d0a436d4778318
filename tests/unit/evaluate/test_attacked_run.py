"""What the attacks need of a data set and of a table of people, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfer.data.folds import read_identities, read_index, read_videos
from cfer.errors import InputError
from cfer.evaluate.attacked_run import (
    FACE_SIDE,
    TOO_FEW,
    embed_photographs,
    faces_of,
    read_groups,
    read_photographs,
    table,
    wide_table,
)
from cfer.evaluate.attacks import OTHERS, TRAINING, Attack, Suite
from cfer.evaluate.figures import faces_figure
from cfer.evaluate.metrics import ScoredClips
from cfer.evaluate.trials import Estimate
from cfer.video.pictures import open_pictures


def test_the_windows_of_a_video_have_it_in_common(drawn_shards: Path) -> None:
    index = read_index(str(drawn_shards))
    videos = read_videos(str(drawn_shards))
    assert sorted(videos) == sorted(index.clip_ids)
    assert all(Path(video).suffix == ".mp4" for video in videos.values())


def test_a_face_is_the_mean_of_a_persons_i_frames(drawn_shards: Path) -> None:
    index = read_index(str(drawn_shards))
    wanted = {who for who in index.subjects if who is not None}
    faces = faces_of(str(drawn_shards), wanted)
    assert faces.keys() == wanted
    for face in faces.values():
        assert face.shape == (FACE_SIDE, FACE_SIDE)
        assert 0 <= face.min() < face.max() <= 1
    first, second, *_ = (faces[who] for who in sorted(wanted))
    assert np.abs(first - second).mean() > 0.01
    assert faces_of(str(drawn_shards), {"nobody"}) == {}


def test_groups_of_people_are_read(tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text("subject,gender,age\na,female,under 25\nb,,35 and over\n")
    assert read_groups(file) == {
        "a": {"gender": "female", "age": "under 25"},
        "b": {"age": "35 and over"},
    }
    for text in ("person,gender\na,female\n", "subject\na\n", ""):
        file.write_text(text)
        with pytest.raises(InputError, match="it needs a column 'subject'"):
            read_groups(file)
    with pytest.raises(InputError, match="not a CSV file that can be read"):
        read_groups(tmp_path / "nothing.csv")
    for text, wrong in (
        ("subject,age\na,1\nb,2,3\n", "line 3: not as many cells"),
        ("subject,age\na\n", "line 2: not as many cells"),
        ("subject,age\n,1\n", "line 2: not as many cells as the head has, or an empty one"),
        ("subject,age\na,1\na,2\n", "line 3: a is listed twice"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=wrong):
            read_groups(file)
    file.write_text("subject,age,gender\na,,f\n")
    assert read_groups(file) == {"a": {"gender": "f"}}, "what isn't known"


def test_a_photograph_is_embedded_as_the_clips_are(
    drawn_shards: Path, drawn_videos: Path, tmp_path: Path
) -> None:
    """On the scale of the run's z_I, so that a person's picture is nearest to their own clips."""
    index = read_index(str(drawn_shards))
    raw = np.array([read_identities(str(drawn_shards))[clip_id] for clip_id in index.clip_ids])
    z_I = (raw - 0.1) / np.linspace(1, 2, raw.shape[1])
    blank = np.zeros((len(z_I), 2))
    clips = ScoredClips(np.array(index.labels), blank, blank, z_I, index.subjects, index.clip_ids)
    files = {}
    for who in sorted({who for who in index.subjects if who is not None}):
        video = next((drawn_videos / "videos" / who).glob("*.mp4"))
        (picture,) = open_pictures(video).select([5])
        files[who] = tmp_path / f"{who}.png"
        Image.fromarray(picture).save(files[who])
    table = tmp_path / "people.csv"
    rows = "".join(f"{who},{file.name}\n" for who, file in files.items())
    table.write_text(f"subject,path\n{rows}")
    assert read_photographs(table) == files
    embedded = embed_photographs(files, str(drawn_shards), clips)
    for who, vector in embedded.items():
        distances = np.linalg.norm(z_I - vector, axis=1)
        assert index.subjects[int(distances.argmin())] == who
        assert distances.min() < np.linalg.norm(z_I - z_I.mean(0), axis=1).mean()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(files[who])
    with pytest.raises(InputError, match=f"{who}.png: no face found in it"):
        embed_photographs(files, str(drawn_shards), clips)
    files[who].write_text("no picture")
    with pytest.raises(InputError, match=f"{who}.png: not a picture that can be read"):
        embed_photographs(files, str(drawn_shards), clips)
    table.write_text("subject,file\na,a.png\n")
    with pytest.raises(InputError, match="it needs a column 'subject' and one 'path'"):
        read_photographs(table)


def suite() -> Suite:
    sure = Estimate(0.123, 0.012, 0.987, 0.5)
    matched = dict.fromkeys(("auc", "eer", "d_sys", "rank1"), sure)
    read = {"recall": Estimate(-0.1, -0.2, 0.3, 0.0)}
    return Suite(
        people=120,
        clips=6000,
        clips_pooled=25.0,
        attacks=[
            Attack("verification, learned", OTHERS, "auc", matched, matched),
            Attack("identification, 113 people", TRAINING, "recall", read, read),
        ],
    )


def test_the_table_is_read_in_a_hundred_columns() -> None:
    text = table(suite())
    assert max(map(len, text.splitlines())) <= 100
    assert "verification, learned  held-out      0.12 [0.01, 0.99]  " in text
    assert "identification, 113 people  training      −0.10 [−0.20, 0.30] (0.00)" in text
    assert table(Suite()) == TOO_FEW


def test_the_pages_table_has_a_dash_where_an_attack_has_no_such_figure() -> None:
    head, first, second = wide_table(suite())
    assert len(head) == len(first) == len(second)
    assert second[-3:] == ["–"] * 3
    assert "–" not in first


def test_the_faces_are_shown_one_below_the_other() -> None:
    pictures = np.linspace(0, 1, 12 * 2 * 16).reshape(12, 2, 4, 4)
    rebuilt = {f"p{number:02d}": (real, made) for number, (real, made) in enumerate(pictures)}
    figure = faces_figure(rebuilt, "faces", most=10)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(shown) == 20
    np.testing.assert_allclose(shown[3], pictures[3, 0])
    np.testing.assert_allclose(shown[13], pictures[3, 1])
