"""What an extraction does about names that mean harm, and about workers that died at a shard."""

from __future__ import annotations

import json
import pickle

import pytest

from cfer.errors import InputError
from pipeline.actors import MOST_DEATHS, ClipActor
from pipeline.extract import main
from pipeline.manifest import Entry
from pipeline.settings import ExtractionSettings

# ---- names that mean harm ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../x.mp4", "videos/../../x.mp4", "s3://b/../x.mp4"])
def test_a_manifest_does_not_lead_upwards(tmp_path, path):
    (tmp_path / "m.csv").write_text(f"path\n{path}\n")
    with pytest.raises(InputError, match=r"m\.csv, line 2: path .* goes up by `\.\.`"):
        main(["--videos", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out")])


def test_a_manifest_does_not_lead_out_by_a_link(six_videos, tmp_path):
    video = sorted(six_videos.glob("*.mp4"))[0]
    (tmp_path / "link.mp4").symlink_to(video)
    (tmp_path / "folder").symlink_to(six_videos)
    for name in ("link.mp4", f"folder/{video.name}"):
        (tmp_path / "m.csv").write_text(f"path\n{name}\n")
        with pytest.raises(InputError, match=r"line 2: path .* is a link that leads out") as caught:
            main(["--videos", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out")])
        assert str(video) in str(caught.value)


# ---- workers that died ---------------------------------------------------------------------------


@pytest.fixture
def row(six_videos):
    """A planned shard of one clip, as an actor is given it."""
    video = sorted(six_videos.glob("*.mp4"))[0]
    entry = Entry(str(video), "a", "a.mp4", label="fear")
    return {"index": 3, "digest": "d", "entries": pickle.dumps([entry])}


@pytest.fixture
def work_begun(tmp_path):
    """What tells an actor of those that died at its shard."""

    def write(job: str, deaths: int) -> None:
        text = json.dumps({"job": job, "deaths": deaths})
        (tmp_path / "working-00003-clips.json").write_text(text)

    return write


SETTINGS = ExtractionSettings(size=64, gop_size=3, gop_seconds=1 / 3, identity="dlib")


def test_a_shard_at_which_too_many_died_is_given_up(row, work_begun, tmp_path):
    actor = ClipActor(str(tmp_path), SETTINGS, ["fear"], "now")
    work_begun("now", MOST_DEATHS - 1)
    with pytest.raises(InputError, match=rf"shard 3: {MOST_DEATHS} workers died at its clips; see"):
        actor(row)


def test_deaths_of_another_job_say_nothing(row, work_begun, tmp_path):
    actor = ClipActor(str(tmp_path), SETTINGS, ["fear"], "now")
    work_begun("before", MOST_DEATHS - 1)
    made = actor(row)
    assert (made["index"], made["digest"]) == (3, "d")
    (clip,) = pickle.loads(made["clips"])
    assert (clip.clip_id, clip.label, clip.num_frames) == ("a", 0, 9)
    assert pickle.loads(made["failures"]) == []
    assert not list(tmp_path.iterdir()), "it says that it has ended"


def test_an_actor_that_ends_in_its_work_leaves_its_mark(row, tmp_path):
    actor = ClipActor(str(tmp_path), SETTINGS, [], "now")
    for deaths in (0, 1):
        with pytest.raises(pickle.UnpicklingError):
            actor({**row, "entries": b"no entries"})
        (mark,) = tmp_path.iterdir()
        assert mark.name == "working-00003-clips.json"
        assert json.loads(mark.read_text()) == {"job": "now", "deaths": deaths}
