"""The benchmarks' own layouts: generated trees with real drawn videos in them, and their damage."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cfer.errors import InputError
from cfer.names import EMOTIONS
from pipeline.actors import extract_clip
from pipeline.datasets import afew, ckplus, cremad, mmi, oulu_casia, ravdess
from pipeline.datasets.drawing import DrawingSettings as Drawing
from pipeline.datasets.drawing import draw_clip
from pipeline.datasets.layout import named
from pipeline.datasets.readers import NAMES, read_dataset, size_of
from pipeline.datasets.synthetic import clip_generator, identity_of
from pipeline.extract import main
from pipeline.manifest import Entry
from pipeline.plan import plan_shards
from pipeline.settings import ExtractionSettings

FRAMES = 6
CKPLUS = ("--dataset", "ck+", "--identity", "dlib")
CODECS = {".avi": "mpeg4", ".mp4": "mpeg4", ".flv": "flv"}


# ----------------------------------------------------------------- drawn clips, in every format


@lru_cache
def drawn(subject: int, expression: str) -> list[np.ndarray]:
    settings = Drawing(frames=FRAMES, picture_size=64)
    generator = clip_generator(0, subject, expression, 0)
    return draw_clip(identity_of(0, subject), expression, settings, generator)


def write_video(path: Path, subject: int, expression: str, frames: int = FRAMES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    with av.open(str(path), "w", format=suffix[1:]) as container:
        stream = container.add_stream(CODECS[suffix], rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.bit_rate = 4_000_000
        for picture in drawn(subject, expression)[:frames]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_pictures(
    folder: Path, name: str, subject: int, expression: str, first: int = 1, frames: int = FRAMES
) -> None:
    """`name` has a place for the number. Fewer frames leave out those in between."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.linspace(0, FRAMES - 1, frames).round().astype(int)
    for number, frame in enumerate(numbers, start=first):
        Image.fromarray(drawn(subject, expression)[frame]).save(folder / name.format(number))


def write_text(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def litter(root: Path) -> None:
    """What macOS and Windows leave in folders."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        write_text(folder / ".DS_Store")
        write_text(folder / "Thumbs.db")
    write_text(root / "__MACOSX" / "Emotion" / "S005" / "001" / "._S005_001_00000006_emotion.txt")


# ----------------------------------------------------------------- the eight trees


def ckplus_sequence(root: Path, sequence: str, subject: int, expression: str, **more) -> None:
    stem = sequence.replace("/", "_")
    folder = root / "cohn-kanade-images" / sequence
    write_pictures(folder, stem + more.pop("name", "_{:08d}.png"), subject, expression, **more)
    frames = more.get("frames", FRAMES)
    code = ckplus.CLASSES.index(expression) + 1
    label = root / "Emotion" / sequence / f"{stem}_{frames:08d}_emotion.txt"
    write_text(label, f"   {code}.0000000e+00\n")


def tree_of_ckplus(root: Path) -> None:
    ckplus_sequence(root, "S005/001", 0, "anger")
    ckplus_sequence(root, "S010/002", 1, "happiness", name="_{:08d}.PNG")
    ckplus_sequence(root, "S010/003", 1, "surprise", frames=3)
    ckplus_sequence(root, "S011/001", 2, "disgust")
    shutil.rmtree(root / "Emotion" / "S011" / "001")
    (root / "Emotion" / "S011" / "001").mkdir()
    ckplus_sequence(root, "S037/001", 3, "fear")
    cut(root / "cohn-kanade-images" / "S037" / "001" / "S037_001_00000003.png")
    (root / "Emotion" / "S010").rename(root / "Emotion" / "s010")
    (root / "Emotion").rename(root / "emotion")
    write_text(root / "emotion" / "S005" / "001" / "._S005_001_00000006_emotion.txt", "9")


def mmi_session(root: Path, session: str, stem: str, emotion: int, *drawing, **more) -> Path:
    folder = root / "Sessions" / session
    write_video(folder / f"{stem}{more.get('suffix', '.avi')}", *drawing)
    tags = f'<Metatag Name="FACS" Value="1"/><Metatag Name="Emotion" Value="{emotion}"/>'
    write_text(folder / f"{stem}.xml", f"<Session><!-- -->{tags}</Session>")
    track = f'<session><track view="{more.get("view", 0)}" filename="{stem}.avi"/></session>'
    write_text(folder / "session.xml", track)
    return folder


def tree_of_mmi(root: Path) -> None:
    folder = mmi_session(root, "1767", "S028-001", 4, 0, "happiness", suffix=".AVI")
    units = (
        '<ActionUnit Number="12"><Marker Frame="1" Type="0"/><Marker Frame="2" Type="1"/>'
        '<Marker Frame="4" Type="2"/><Marker Frame="6" Type="3"/></ActionUnit>'
        '<ActionUnit Number="6"><Marker Frame="3" Type="1"/><Marker Frame="5" Type="2"/>'
        '<Marker Frame="6" Type="3"/></ActionUnit>'
        '<ActionUnit Number="45"><Marker Frame="2" Type="2"/></ActionUnit>'
    )
    write_text(folder / "S028-001-oao_aucs.xml", f"<FACS>{units}</FACS>")
    mmi_session(root, "1768", "S028-002", 2, 0, "disgust")
    mmi_session(root, "1801", "s031-001", 6, 1, "surprise", 3, view=2)
    mmi_session(root, "1802", "S031-002", 9, 1, "contempt")
    mmi_session(root, "1803", "S031-003", 1, 1, "anger", view=1)
    cut(mmi_session(root, "1805", "S031-005", 3, 1, "fear") / "S031-005.avi")
    write_text(root / "Sessions" / "1900" / "S050-001.jpg")


def tree_of_afew(root: Path) -> None:
    write_video(root / "Train_AFEW" / "Angry" / "000046280.avi", 0, "anger")
    write_video(root / "Train_AFEW" / "Happy" / "000046281.AVI", 1, "happiness")
    write_video(root / "Val_AFEW" / "Sad" / "000149120.avi", 2, "sadness", 3)
    write_text(root / "Val_AFEW" / "Fear" / "000149121.avi")
    for folder in ("AlignedFaces_LBPTOP_Points", "AlignedFaces_LBPTOP_Points_Val"):
        faces = root / "Train_AFEW" / folder / "Faces" / "000046280"
        write_pictures(faces, "{:03d}.jpg", 0, "anger")


def tree_of_oulu_casia(root: Path) -> None:
    for kind in ("NI/Strong", "VL/Weak", "VL/Strong"):
        folder = root / "OriginalImg" / kind
        write_pictures(folder / "P001" / "Anger", "{:03d}.jpeg", 0, "anger", first=0)
    write_pictures(folder / "p002" / "Happiness", "{:03d}.JPEG", 1, "happiness", first=0)
    write_pictures(folder / "p002" / "Fear", "{:03d}.jpeg", 1, "fear", first=0, frames=3)
    write_pictures(folder / "P080" / "Sadness", "{:03d}.jpeg", 2, "sadness", first=0)
    cut(folder / "P080" / "Sadness" / "002.jpeg")


def tree_of_ravdess(root: Path) -> None:
    actor = root / "Video_Speech_Actor_01" / "Actor_01"
    write_video(actor / "01-01-05-01-02-01-01.mp4", 0, "anger")
    write_video(actor / "02-01-05-01-02-01-01.mp4", 0, "anger")
    write_video(actor / "02-01-03-02-01-01-01.mp4", 0, "happiness")
    write_video(root / "Actor_24" / "01-01-08-01-01-02-24.MP4", 1, "surprise", 3)
    write_video(root / "Actor_24" / "01-01-06-01-01-02-24.mp4", 1, "fear")
    cut(root / "Actor_24" / "01-01-06-01-01-02-24.mp4")
    write_text(root / "Actor_24" / "01-02-06-01-01-02-24.mp4")
    write_text(root / "Actor_24" / "03-01-06-01-01-02-24.wav")
    write_text(root / "Actor_24" / "notes.txt")


def tree_of_cremad(root: Path) -> None:
    folder = root / "VideoFlash"
    write_video(folder / "1001_DFA_ANG_XX.flv", 0, "anger")
    write_video(folder / "1001_IEO_HAP_HI.FLV", 0, "happiness")
    write_video(folder / "1002_ITH_SAD_LO.flv", 1, "sadness", 3)
    write_text(folder / "1002_TIE_NEU_XX.flv", "no video at all" * 100)
    write_text(root / "AudioWAV" / "1001_DFA_ANG_XX.wav")


def tree_of_folder(root: Path) -> None:
    write_video(root / "anger" / "clip.mp4", 0, "anger")
    write_video(root / "Happy" / "clip.AVI", 0, "happiness")
    write_pictures(root / "wink" / "other", "{:04d}.PNG", 1, "contempt", frames=3)
    write_pictures(root / "wink" / "torn", "{:04d}.png", 2, "contempt")
    cut(root / "wink" / "torn" / "0004.png")
    write_text(root / "wink" / "notes" / "read.me")
    write_text(root / "outside.mp4")


def tree_of_csv(root: Path) -> None:
    write_video(root / "videos" / "a.MP4", 0, "anger")
    write_pictures(root / "b", "{:02d}.png", 1, "fear", frames=3)
    text = (
        "path,clip_id,subject,label,split,apex_frame,dataset,fps\n"
        "videos/a.MP4,,S1,anger,train,5,mine,\n"
        "b,second,S2,fear,test,,mine,30\n"
        "nosuch.mp4,third,S2,anger,test,,mine,\n"
    )
    write_text(root / "manifest.csv", text)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "ck+": tree_of_ckplus,
    "mmi": tree_of_mmi,
    "afew": tree_of_afew,
    "oulu-casia": tree_of_oulu_casia,
    "ravdess": tree_of_ravdess,
    "crema-d": tree_of_cremad,
    "folder": tree_of_folder,
    "csv": tree_of_csv,
}

# clip_id: subject, label, split, apex_frame; None in place of a row that ends in failures.csv.
ROWS: dict[str, dict[str, tuple[str | None, str, str | None, int | None]]] = {
    "ck+": {
        "S005/001": ("S005", "anger", None, 5),
        "S010/002": ("S010", "happiness", None, 5),
        "S010/003": ("S010", "surprise", None, 2),
        "S037/001": ("S037", "fear", None, 5),
    },
    "mmi": {
        "S028-001": ("S028", "happiness", None, 4),
        "S028-002": ("S028", "disgust", None, None),
        "S031-001": ("S031", "surprise", None, None),
        "S031-005": ("S031", "fear", None, None),
    },
    "afew": {
        "Train_AFEW/Angry/000046280": (None, "anger", "train", None),
        "Train_AFEW/Happy/000046281": (None, "happiness", "train", None),
        "Val_AFEW/Sad/000149120": (None, "sadness", "validation", None),
        "Val_AFEW/Fear/000149121": (None, "fear", "validation", None),
    },
    "oulu-casia": {
        "P001/anger": ("P001", "anger", None, 5),
        "P002/happiness": ("P002", "happiness", None, 5),
        "P002/fear": ("P002", "fear", None, 2),
        "P080/sadness": ("P080", "sadness", None, 5),
    },
    "ravdess": {
        "Actor_01/01-05-01-02-01-01": ("Actor_01", "anger", None, None),
        "Actor_01/01-03-02-01-01-01": ("Actor_01", "happiness", None, None),
        "Actor_24/01-08-01-01-02-24": ("Actor_24", "surprise", None, None),
        "Actor_24/01-06-01-01-02-24": ("Actor_24", "fear", None, None),
    },
    "crema-d": {
        "1001_DFA_ANG_XX": ("1001", "anger", None, None),
        "1001_IEO_HAP_HI": ("1001", "happiness", None, None),
        "1002_ITH_SAD_LO": ("1002", "sadness", None, None),
        "1002_TIE_NEU_XX": ("1002", "neutral", None, None),
    },
    "folder": {
        "anger/clip": (None, "anger", None, None),
        "happiness/clip": (None, "happiness", None, None),
        "wink/other": (None, "wink", None, None),
        "wink/torn": (None, "wink", None, None),
    },
    "csv": {
        "videos/a": ("S1", "anger", "train", 5),
        "second": ("S2", "fear", "test", None),
        "third": ("S2", "anger", "test", None),
    },
}
# One sequence of 3 frames in each tree.
SHORT = {
    *("S010/003", "S031-001", "Val_AFEW/Sad/000149120", "P002/fear"),
    *("Actor_24/01-08-01-01-02-24", "1002_ITH_SAD_LO", "wink/other", "second"),
}
# The damaged clip of each tree: its stage and reason.
FAILURES = {
    "ck+": ("S037/001", "decode", "S037_001_00000003.png is not a readable picture"),
    "mmi": ("S031-005", "decode", "damaged or cut off"),
    "afew": ("Val_AFEW/Fear/000149121", "open", "the file is empty"),
    "oulu-casia": ("P080/sadness", "decode", "002.jpeg is not a readable picture"),
    "ravdess": ("Actor_24/01-06-01-01-02-24", "open", "not a video, or cut off"),
    "crema-d": ("1002_TIE_NEU_XX", "open", "not a video"),
    "folder": ("wink/torn", "decode", "0004.png is not a readable picture"),
    "csv": ("third", "open", "cannot be read"),
}
CLASSES = {
    "ck+": ckplus.CLASSES,
    "mmi": mmi.CLASSES,
    "afew": afew.CLASSES,
    "oulu-casia": oulu_casia.CLASSES,
    "ravdess": ravdess.CLASSES,
    "crema-d": cremad.CLASSES,
    "folder": ("anger", "happiness", "wink"),
    "csv": ("anger", "fear"),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    """A folder with each data set's tree, by its name."""
    folder = tmp_path_factory.mktemp("trees")
    for name, build in BUILDERS.items():
        build(folder / name)
        litter(folder / name)
    return folder


@pytest.fixture
def tree(trees, tmp_path) -> Callable[[str], Path]:
    """A copy of one tree, to be damaged."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(trees / name, tmp_path / name))

    return copy


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the readers write to the job's log."""
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("extract")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield written
    log.removeHandler(handler)
    log.setLevel(level)


# ----------------------------------------------------------------- reading


@pytest.mark.parametrize("name", NAMES)
def test_clips_subjects_labels_and_classes(trees, name):
    root = trees / name
    entries, classes = read_dataset(name, root)
    got = {e.clip_id: (e.subject, e.label, e.split, e.apex_frame) for e in entries}
    assert got == ROWS[name]
    assert [entry.clip_id for entry in entries] == sorted(ROWS[name])
    assert tuple(classes) == CLASSES[name]
    assert {entry.location for entry in entries} == {str(root / e.source) for e in entries}
    if name not in ("folder", "csv"):
        assert set(classes) <= set(EMOTIONS.values())
        assert len({entry.dataset for entry in entries}) == 1


def test_frame_rates_of_pictures(trees):
    assert {entry.fps for entry in read_dataset("ck+", trees / "ck+")[0]} == {30}
    assert {entry.fps for entry in read_dataset("oulu-casia", trees / "oulu-casia")[0]} == {25}
    assert {entry.fps for entry in read_dataset("mmi", trees / "mmi")[0]} == {None}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "ck+",
            [
                "left out: 1 sequences without an emotion label: S011/001",
                "CK+: found 4 sequences of 3 subjects; published: 327 sequences of 118 subjects",
            ],
        ),
        (
            "mmi",
            [
                "left out: 1 sessions without one of the six emotions: 1802",
                "left out: 1 sessions in profile: 1803",
                "left out: 1 sessions without a video: 1900",
                "MMI: 4 sequences of 2 subjects",
            ],
        ),
        (
            "afew",
            [
                "AFEW: found 2 train and 2 validation clips; "
                "published: 773 train and 383 validation clips"
            ],
        ),
        (
            "oulu-casia",
            [
                "Oulu-CASIA: found 4 sequences of 3 subjects; "
                "published: 480 sequences of 80 subjects"
            ],
        ),
        (
            "ravdess",
            [
                "left out: 1 songs: 01-02-06-01-01-02-24.mp4",
                "left out: 1 sound without pictures: 03-01-06-01-01-02-24.wav",
                "RAVDESS: 1 silent videos set aside: their takes have sound too",
                "RAVDESS: found 4 clips of 2 subjects; published: 1440 clips of 24 subjects",
            ],
        ),
        ("crema-d", ["CREMA-D: found 4 clips of 2 subjects; published: 7442 clips of 91 subjects"]),
        (
            "folder",
            [
                "left out: 1 videos outside the classes' folders: outside.mp4",
                "left out: 1 folders without numbered pictures: wink/notes",
                "folder: 4 clips",
            ],
        ),
    ],
)
def test_nothing_is_left_out_silently(trees, lines, name, expected):
    read_dataset(name, trees / name)
    assert sorted(lines) == sorted(expected)


def test_a_complete_data_set_is_as_published(tmp_path, lines):
    for subject in range(80):
        for name in oulu_casia.FOLDERS.split("|"):
            write_text(tmp_path / "VL" / "Strong" / f"P{subject + 1:03d}" / name / "000.jpeg")
    read_dataset("oulu-casia", tmp_path)
    assert lines == ["Oulu-CASIA: 480 sequences of 80 subjects, as published"]


def test_sizes():
    entries = [Entry("a", "a", "a", "S1"), Entry("b", "b", "b", "S1")]
    assert size_of(entries, "clips") == "2 clips of 1 subjects"
    assert size_of([Entry("a", "a", "a", split="train")], "clips") == "1 train clips"


@pytest.mark.parametrize("below", ["", "OriginalImg", "OriginalImg/VL", "OriginalImg/VL/Strong"])
def test_oulu_casia_from_any_of_its_levels(trees, below):
    entries, _ = read_dataset("oulu-casia", trees / "oulu-casia" / below)
    assert len(entries) == 4


def test_other_roots(trees, tree):
    assert len(read_dataset("crema-d", trees / "crema-d" / "VideoFlash")[0]) == 4
    assert len(read_dataset("mmi", trees / "mmi" / "Sessions")[0]) == 4
    assert len(read_dataset("csv", trees / "csv" / "manifest.csv")[0]) == 3
    root = tree("ck+")
    for archive, name in (
        ("Emotion_labels", "emotion"),
        ("extended-cohn-kanade-images", "cohn-kanade-images"),
    ):
        (root / archive).mkdir()
        (root / name).rename(root / archive / name)
    assert len(read_dataset("ck+", root)[0]) == 4


def test_mmi_by_a_table(tree):
    root = tree("mmi")
    text = "session,subject,emotion,apex_frame\n1767,s028,Happy,3\n1803,S031,1,\n"
    write_text(root / "sessions.csv", text)
    for given in (root, root / "sessions.csv"):
        entries, classes = read_dataset("mmi", given)
        got = [(e.clip_id, e.subject, e.label, e.apex_frame) for e in entries]
        assert got == [("S028-001", "S028", "happiness", 3), ("S031-003", "S031", "anger", None)]
        assert tuple(classes) == mmi.CLASSES
    for row, message in (
        ("1767,S028,bored,", r"line 2: emotion 'bored'"),
        ("1767,S028,neutral,", r"line 2: emotion 'neutral'"),
        ("1767,S028,7,", r"line 2: emotion '7'"),
        ("1767,S031,4,", r"line 2: subject 'S031', but the video is S028-001.AVI"),
        ("9,S028,4,", r"line 2: no video of session '9'"),
        ("1767,S028,4,late", r"line 2: apex_frame 'late'"),
        ("1767,S028,4,\n1767,S028,4,", "are both 'S028-001'"),
    ):
        write_text(root / "sessions.csv", f"session,subject,emotion,apex_frame\n{row}\n")
        with pytest.raises(InputError, match=message):
            read_dataset("mmi", root)


# ----------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [name for name in NAMES if name != "csv"])
def test_a_wrong_root_shows_what_was_expected(tmp_path, name):
    write_text(tmp_path / "other" / "holiday.txt")
    with pytest.raises(InputError) as caught:
        read_dataset(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"--root {tmp_path}: not the layout of ")
    assert re.search(r"\n  expected +found\n  ROOT/ +other/\n  [├└]──", message), message
    with pytest.raises(InputError, match=r"(?s)nosuch: not the layout of .*it does not exist"):
        read_dataset(name, tmp_path / "nosuch")


def test_a_wrong_csv(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.csv: cannot be read"):
        read_dataset("csv", tmp_path)
    write_text(tmp_path / "manifest.csv", "path\n")
    with pytest.raises(InputError, match="no clip in it"):
        read_dataset("csv", tmp_path)


@pytest.mark.parametrize(
    ("name", "source", "target", "message"),
    [
        ("ck+", "cohn-kanade-images/S005", "cohn-kanade-images/S005 (1)", "a copy of .*/S005,"),
        ("ck+", "cohn-kanade-images/S005", "cohn-kanade-images/S005 copy", "a copy of .*/S005,"),
        ("ck+", "cohn-kanade-images/S005", "cohn-kanade-images/s005", "s005: the same subject"),
        ("ck+", "emotion/S005", "emotion/Copy of S005", "a copy of .*/S005,"),
        ("mmi", "Sessions/1767", "Sessions/1767_old", "a copy of .*/1767,"),
        ("mmi", "Sessions/1767", "Sessions/1999", "are both 'S028-001'"),
        ("afew", "Train_AFEW/Angry", "Train_AFEW/Angry (2)", "a copy of .*/Angry,"),
        ("afew", "Train_AFEW/Angry", "Train_AFEW/angry", "the same class twice"),
        ("oulu-casia", "OriginalImg/VL/Strong/P001", "OriginalImg/VL/Strong/p001", "same subject"),
        ("oulu-casia", "OriginalImg/VL/Strong/P001", "OriginalImg/VL/Strong/P001-b", "a copy of"),
        ("ravdess", "Actor_24", "Actor_24 (1)", "looks like a copy of .*Actor_24;"),
        ("ravdess", "Actor_24", "Actor_23", "of actor 24, in the folder Actor_23"),
        ("ravdess", "Actor_24", "Video_Speech_Actor_24", "the same take twice"),
        (
            "ravdess",
            "Actor_24/01-01-08-01-01-02-24.MP4",
            "Actor_24/01-01-08-01-01-02-24 (1).MP4",
            r"looks like a copy of 01-01-08-01-01-02-24\.MP4",
        ),
        (
            "crema-d",
            "VideoFlash/1001_DFA_ANG_XX.flv",
            "VideoFlash/1001_DFA_ANG_XX.mp4",
            "the same clip twice",
        ),
        (
            "crema-d",
            "VideoFlash/1001_DFA_ANG_XX.flv",
            "VideoFlash/1001_DFA_ANG_XX copy.flv",
            "a copy of .*/1001_DFA_ANG_XX,",
        ),
        ("folder", "anger", "Angry", "both are the class anger"),
        ("folder", "anger/clip.mp4", "anger/clip.AVI", "are both 'anger/clip'"),
    ],
)
def test_a_stray_copy_is_an_error(tree, name, source, target, message):
    root = tree(name)
    copy = shutil.copytree if (root / source).is_dir() else shutil.copy
    copy(root / source, root / target)
    with pytest.raises(InputError, match=message):
        read_dataset(name, root)


def test_other_names_are_left_out_aloud(tree, lines):
    root = tree("ck+")
    write_text(root / "cohn-kanade-images" / "protocol" / "a.txt")
    assert len(read_dataset("ck+", root)[0]) == 4
    assert "left out: 1 names that are no subject's: protocol" in lines


def test_ckplus_labels_that_are_not_right(tree, lines):
    root = tree("ck+")
    folder = root / "emotion" / "S005" / "001"
    file = folder / "S005_001_00000006_emotion.txt"
    for text in ("8.0", "0.0000000e+00", "3.5", "", "anger", "1.0000000e+01"):
        write_text(file, text)
        with pytest.raises(InputError, match=r"S005_001_00000006_emotion\.txt: .* is no emotion"):
            read_dataset("ck+", root)
    write_text(file, "1")
    write_text(folder / "S005_001_00000005_emotion.txt", "2")
    with pytest.raises(InputError, match="two labels of one sequence"):
        read_dataset("ck+", root)
    file.unlink()
    entries, _ = read_dataset("ck+", root)
    assert (entries[0].label, entries[0].apex_frame) == ("contempt", 5)
    assert "S005/001: its label is for another picture than its last" in lines


def test_ckplus_labels_without_their_pictures(tree):
    root = tree("ck+")
    shutil.rmtree(root / "cohn-kanade-images" / "S005")
    shutil.rmtree(root / "cohn-kanade-images" / "S010" / "002")
    (root / "cohn-kanade-images" / "S010" / "002").mkdir()
    with pytest.raises(InputError, match=r"no pictures of 2 labeled .*: S005/001, S010/002; copy"):
        read_dataset("ck+", root)
    shutil.rmtree(root / "emotion")
    with pytest.raises(InputError, match=r"there is no Emotion/ in it"):
        read_dataset("ck+", root)


def test_mmi_sessions_that_are_not_right(tree):
    root = tree("mmi")
    folder = root / "Sessions" / "1768"
    (folder / "S028-002.xml").rename(folder / "kept")
    assert len(read_dataset("mmi", root)[0]) == 3
    write_text(folder / "S028-002.xml", "<Session>")
    with pytest.raises(InputError, match=r"S028-002\.xml: not XML"):
        read_dataset("mmi", root)
    (folder / "kept").rename(folder / "S028-002.xml")
    write_text(
        folder / "S028-002-oao_aucs.xml", '<A><ActionUnit><Marker Type="2"/></ActionUnit></A>'
    )
    with pytest.raises(InputError, match="a marker without a frame number"):
        read_dataset("mmi", root)
    shutil.copy(folder / "S028-002.avi", folder / "S028-003.avi")
    with pytest.raises(InputError, match="two videos in one session"):
        read_dataset("mmi", root)
    (folder / "S028-003.avi").unlink()
    (folder / "S028-002.avi").rename(folder / "smile.avi")
    (folder / "S028-002.xml").rename(folder / "smile.xml")
    with pytest.raises(InputError, match=r"smile\.avi: does not say its subject"):
        read_dataset("mmi", root)


def test_cremad_without_its_videos(tree):
    """What a clone without Git LFS has."""
    root = tree("crema-d")
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:10dc\nsize 265922\n"
    for file in sorted((root / "VideoFlash").glob("*.flv"))[:2]:
        write_text(file, text)
    with pytest.raises(InputError, match=r"XX\.flv: a pointer of Git LFS .*1 others.*git lfs pull"):
        read_dataset("crema-d", root)


def test_a_folder_of_pictures_alone(tmp_path):
    write_pictures(tmp_path / "anger", "{:04d}.png", 0, "anger")
    with pytest.raises(InputError, match="pictures lie directly in a class's folder"):
        read_dataset("folder", tmp_path)


def test_numbers_go_on_where_names_do(tmp_path):
    """S0051 is no copy of S005."""
    for name in ("S005", "S0051"):
        (tmp_path / name).mkdir()
    found = named(sorted(tmp_path.iterdir()), r"S\d{3}", "subject")
    assert found == {"S005": tmp_path / "S005"}


# ----------------------------------------------------------------- one person, two subjects


def test_the_same_bytes_under_two_subjects(tree, tmp_path):
    root = tree("ck+")
    for part in ("cohn-kanade-images", "emotion"):
        shutil.copytree(root / part / "S005", root / part / "S099")
    with pytest.raises(InputError) as caught:
        main([*CKPLUS, "--root", str(root), "--out", str(tmp_path / "out")])
    message = str(caught.value)
    assert "the same bytes under two subjects, S005 and S099" in message
    assert f"{root}/cohn-kanade-images/S005/001 and " in message
    assert "on both sides of a fold" in message


def test_the_same_bytes_under_one_subject(tmp_path, lines):
    write_video(tmp_path / "a.mp4", 0, "anger")
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    for subjects in (("S1", "S1"), (None, None), ("S1", None)):
        entries = [
            Entry(str(tmp_path / name), name, name, subject)
            for name, subject in zip(("a.mp4", "b.mp4"), subjects, strict=True)
        ]
        assert len(plan_shards(entries, ExtractionSettings(), [], "")) == 1
        assert lines == [f"{tmp_path}/a.mp4 and {tmp_path}/b.mp4: the same bytes"]
        lines.clear()
    # What cannot be read has no bytes to compare.
    missing = [Entry(str(tmp_path / n), n, n, s) for n, s in (("no", "S1"), ("na", "S2"))]
    plan_shards(missing, ExtractionSettings(), [], "")
    assert lines == []


# ----------------------------------------------------------------- the command


def test_options_that_do_not_fit(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"--dataset ck\+: needs --root"):
        main(["--dataset", "ck+", *out])
    with pytest.raises(InputError, match=r"--root .*: only for a --dataset"):
        main(["--videos", str(tmp_path), "--root", str(tmp_path), *out])
    with pytest.raises(InputError, match="--videos, --dataset: give one of them"):
        main(["--videos", "a", "--dataset", "ck+", *out])
    with pytest.raises(SystemExit, match="2"):
        main(["--dataset", "imagenet", *out])
    assert "imagenet" in capsys.readouterr().err


def test_classes_of_ones_own(trees, tmp_path):
    arguments = ["--dataset", "folder", "--root", str(trees / "folder"), "--out", str(tmp_path)]
    with pytest.raises(InputError, match="unknown class 'wink'"):
        main([*arguments, "--classes", "anger,happiness"])


@pytest.mark.parametrize("name", NAMES)
def test_every_clip_becomes_a_row_or_a_failure(trees, detector, name):
    entries, classes = read_dataset(name, trees / name)
    settings = ExtractionSettings(size=64, gop_size=24, identity="dlib")
    rows, failures = {}, []
    for entry in entries:
        clips, failed = extract_clip(entry, settings, classes, detector)
        rows |= {clip.clip_id: clip for clip in clips}
        failures += failed
    bad, stage, reason = FAILURES[name]
    assert rows.keys() == ROWS[name].keys() - {bad}
    for clip_id, row in rows.items():
        subject, label, split, apex_frame = ROWS[name][clip_id]
        assert (row.subject, row.label_name, row.split) == (subject, label, split)
        assert classes[row.label] == label
        assert row.apex_frame == apex_frame
        assert row.num_frames == (3 if clip_id in SHORT else FRAMES)
    (failure,) = failures
    assert (failure.clip_id, failure.stage) == (bad, stage)
    assert reason in failure.reason
