"""What is to be extracted: folders, patterns and CSVs, right and wrong."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import pytest

from cfer.errors import InputError
from pipeline.datasets.layout import files_below
from pipeline.manifest import class_names, read_manifest


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "set"
    for name in ("b/2.mp4", "b/10.AVI", "a/clip.Mp4", "a/clip.avi", "a/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    for name in ("S1/001/S1_001_01.png", "S1/001/.DS_Store", "S1/002/cover.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "3.mp4").write_bytes(b"x")
    (root / "b" / "._2.mp4").write_bytes(b"x")
    return root


def test_a_folder_is_looked_through(tree):
    entries = read_manifest(str(tree))
    assert [entry.source for entry in entries] == [
        "S1/001",
        "a/clip.Mp4",
        "a/clip.avi",
        "b/10.AVI",
        "b/2.mp4",
    ]
    ids = [entry.clip_id for entry in entries]
    assert ids == sorted(set(ids)), "sorted, and each one once"
    assert {"S1/001", "b/10", "b/2"} < set(ids)
    assert all(Path(entry.location).exists() and entry.dataset == "set" for entry in entries)
    assert all(entry.label is None and entry.subject is None for entry in entries)


def test_a_folder_of_pictures_itself(tree):
    (entry,) = read_manifest(str(tree / "S1" / "001"))
    assert entry.location == str(tree / "S1" / "001")


def test_a_pattern(tree):
    entries = read_manifest(str(tree / "**" / "*.mp4"))
    assert [entry.clip_id for entry in entries] == ["2"]
    assert [e.clip_id for e in read_manifest(str(tree / "b" / "*"))] == ["10", "2"]


@pytest.mark.parametrize("pattern", ["", "**/*"])
def test_what_is_left_out_is_named(tree, caplog, pattern):
    read_manifest(str(tree / pattern))
    (line,) = caplog.messages
    assert "2 files are left out, no clip by the name: " in line
    assert f"{tree / 'S1/002/cover.png'}, {tree / 'a/notes.txt'}" in line


def test_an_existing_file_is_no_pattern(tree):
    for name in ("clip[1].mp4", "clip1.mp4"):
        (tree / name).write_bytes(b"x")
    (entry,) = read_manifest(str(tree / "clip[1].mp4"))
    assert entry.location == str(tree / "clip[1].mp4")
    assert (entry.clip_id, entry.dataset) == ("clip[1]", "set")
    (tree / "b[1]").mkdir()
    (tree / "b[1]" / "3.mp4").write_bytes(b"x")
    assert [entry.clip_id for entry in read_manifest(str(tree / "b[1]"))] == ["3"]


def test_a_link_to_its_own_folder_makes_no_clip_twice(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "latest").symlink_to(".")
    for given in (tmp_path, tmp_path / "**" / "*.mp4"):
        assert [entry.clip_id for entry in read_manifest(str(given))] == ["a"]
    assert list(files_below(tmp_path)) == [tmp_path / "a.mp4"]


@pytest.mark.parametrize("what", ["empty", "nosuch", "nosuch/*.mp4"])
def test_nothing_there(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no clip found"):
        read_manifest(str(tmp_path / what))


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> str:
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_several_clips_are_parts_of_one_video(tmp_path):
    rows = "path,clip_id,start_seconds,end_seconds\na.mp4,one,0,1.5\na.mp4,two,1.5,\na.mp4,all,,\n"
    whole, one, two = read_manifest(write(tmp_path, rows))
    assert {entry.location for entry in (one, two, whole)} == {str(tmp_path / "a.mp4")}
    assert [(e.start_seconds, e.end_seconds) for e in (one, two, whole)] == [
        *((0, 1.5), (1.5, None), (None, None))
    ]


def test_a_csv_says_everything(tmp_path):
    text = (
        "path,clip_id,subject,label,split,apex_frame,dataset,fps\n"
        'z.mp4,two,S2,"fear, great",test,0,CK+,30000/1001\n'
        "videos/a.mp4,,,,,,,\n"
        "S1/001,,S1,anger,train,7,CK+,30\n"
    )
    entries = {e.clip_id: e for e in read_manifest(write(tmp_path, text, "utf-8-sig"))}
    assert list(entries) == sorted(entries) == ["S1/001", "two", "videos/a"]
    two, bare = entries["two"], entries["videos/a"]
    assert (two.subject, two.label, two.split) == ("S2", "fear, great", "test")
    assert (two.apex_frame, two.dataset, two.fps) == (0, "CK+", Fraction(30000, 1001))
    assert two.location == str(tmp_path / "z.mp4")
    assert two.source == "z.mp4"
    nothing = (bare.subject, bare.label, bare.split, bare.apex_frame, bare.fps)
    assert nothing == (None,) * 5
    assert bare.dataset == tmp_path.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column `path`"),
        ("file,label\na.mp4,x\n", "no column `path`"),
        ("path;label\na.mp4;x\n", "separated by semicolons; separate them by commas"),
        ("path\tlabel\na.mp4\tx\n", "separated by tabs; separate them by commas"),
        ("path,lable\na.mp4,x\n", "unknown column 'lable'"),
        ("path\n", "has a head and no row"),
        ("path,clip_id\na.mp4,1\nb.mp4,1\n", "line 3: clip_id '1' occurs twice"),
        ("path\na.mp4\na.mp4\n", "line 3: clip_id 'a' occurs twice"),
        ("path,apex_frame\na.mp4,-1\n", "line 2: apex_frame '-1'"),
        ("path,apex_frame\na.mp4,late\n", "line 2: apex_frame 'late'"),
        ("path,fps\na.mp4,0\n", "line 2: fps '0'"),
        ("path,fps\na.mp4,fast\n", "line 2: fps 'fast'"),
        ("path,fps\na.mp4,1/0\n", "line 2: fps '1/0'"),
        ("path,start_seconds\na.mp4,-1\n", "line 2: start_seconds '-1': give seconds from 0"),
        ("path,end_seconds\na.mp4,1:30\n", "line 2: end_seconds '1:30'"),
        ("path,end_seconds\na.mp4,nan\n", "line 2: end_seconds 'nan'"),
        ("path,start_seconds,end_seconds\na.mp4,2,2\n", "line 2: end_seconds 2 is not after"),
        ("path,end_seconds\na.mp4,0\n", "line 2: end_seconds 0 is not after the start, 0"),
        ("path,label\n,x\n", "line 2: `path` is empty"),
        ("path,label,label\na.mp4,x,y\n", "column `label` occurs 2 times in its header"),
        ("path,label,path\na.mp4,x,a.mp4\n", "column `path` occurs 2 times in its header"),
        (
            "path,subject\na.mp4,nan\nb.mp4,nan\n",
            "subject 'nan' (a.mp4, b.mp4) stands for a missing",
        ),
        ("path,subject\na.mp4,S 1\nb.mp4,s1\n", "subjects 'S 1' (a.mp4) and 's1' (b.mp4) are one"),
        ("path,label\na.mp4\n", "line 2: not as many cells"),
        ("path,label\na.mp4,x,y\n", "line 2: not as many cells"),
    ],
)
def test_rows_that_are_not_right(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        read_manifest(write(tmp_path, text))
    assert message in str(caught.value)
    assert "m.csv" in str(caught.value)


def test_a_csv_in_another_encoding_and_no_csv(tmp_path):
    with pytest.raises(InputError, match="not UTF-8"):
        read_manifest(write(tmp_path, "path,subject\na.mp4,J\u00fcrgen\n", "latin-1"))
    with pytest.raises(InputError, match=r"nosuch\.csv: cannot be read"):
        read_manifest(str(tmp_path / "nosuch.csv"))


def test_a_name_that_windows_have_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.mp4: its clip_id 'a#0001' ends as those"):
        read_manifest(str(write(tmp_path, "path,clip_id\na.mp4,a#0001\n")))


def test_classes(tmp_path):
    text = "path,label\na.mp4,sad\nb.mp4,glad\nc.mp4,\n"
    entries = read_manifest(write(tmp_path, text))
    assert class_names(entries) == ["glad", "sad"]
    assert class_names(entries, ["sad", "calm", "glad"]) == ["sad", "calm", "glad"]
    with pytest.raises(InputError, match=r"a\.mp4: unknown class 'sad'.*glad, calm"):
        class_names(entries, ["glad", "calm"])
    with pytest.raises(InputError, match="--classes glad,: a name is empty"):
        class_names(entries, ["glad", ""])
    with pytest.raises(InputError, match="occurs twice"):
        class_names(entries, ["sad", "glad", "sad"])


@pytest.mark.parametrize(
    "name", ["nan", "NaN", "NA", "n/a", "N/A", "null", "None", "<NA>", "\u200b"]
)
def test_a_missing_value_is_no_class(tmp_path, name):
    rows = "".join(f"{row}.mp4,{name}\n" for row in "abcde")
    entries = read_manifest(write(tmp_path, f"path,label\n{rows}f.mp4,glad\ng.mp4,\n"))
    with pytest.raises(InputError) as error:
        class_names(entries)
    assert f"label {name!r} (a.mp4, b.mp4, c.mp4 and 2 more) stands for a missing value" in str(
        error.value
    )
    # Unless it is said to be one.
    assert class_names(entries, [name, "glad"]) == [name, "glad"]


def test_initials_may_be_those_of_a_missing_value(tmp_path, caplog):
    """One of JAFFE's ten people is NA."""
    log = logging.getLogger("extract.manifest")
    log.addHandler(caplog.handler)  # an extraction in this process keeps its lines to itself
    try:
        entries = read_manifest(write(tmp_path, "path,subject\na.mp4,NA\nb.mp4,KA\n"))
    finally:
        log.removeHandler(caplog.handler)
    assert [entry.subject for entry in entries] == ["NA", "KA"]
    assert "subject 'NA' (a.mp4): taken for one person" in caplog.text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Happy", "happy"),
        ("very sad", "very  sad"),
        ("very-sad", "very_sad"),
        ("very sad", "VerySad"),
        ("STRASSE", "straße"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff28appy", "happy"),
        ("hap\u00adpy", "happy"),
        ("happy\u200b", "happy"),
        ("happiness", "happy"),
        ("angry", "Anger"),
        ("1", "1.0"),
        ("1", "01"),
        ("AU 12", "AU12"),
    ],
)
def test_what_two_people_would_call_the_same_label_is_one(tmp_path, one, other):
    entries = read_manifest(
        write(tmp_path, f"path,label\na.mp4,{one}\nb.mp4,{other}\nc.mp4,{one}\nd.mp4,afraid\n")
    )
    with pytest.raises(InputError) as error:
        class_names(entries)
    for listed in (f"{one!r} (a.mp4, c.mp4)", f"{other!r} (b.mp4)"):
        assert listed in str(error.value)
    with pytest.raises(InputError, match="a name occurs twice"):
        class_names([], [one, other])


def test_labels_that_differ_are_left_alone(tmp_path):
    labels = [
        "-1",
        "1",
        "1 2",
        "12",
        "1-2",
        "AU1+2",
        "AU12",
        "a",
        "b",
        "sad",
        "fear",
        "C",
        "C+",
        "-",
    ]
    rows = "".join(f"{number}.mp4,{label}\n" for number, label in enumerate(labels))
    entries = read_manifest(write(tmp_path, f"path,label\n{rows}"))
    assert class_names(entries) == sorted(labels)


def test_the_drawn_set(drawn_videos):
    entries = read_manifest(str(drawn_videos / "manifest.csv"))
    assert len(entries) == 10
    assert all(Path(entry.location).exists() for entry in entries)
    assert class_names(entries) == ["happiness", "surprise"]
