"""CK+: the extended Cohn–Kanade data set, posed expressions from neutral to apex.

Where: https://www.jeffcohn.net/Resources/ (before: http://www.pitt.edu/~emotion/ck-spread.htm), for
research, upon a signed agreement. Unpack `extended-cohn-kanade-images.zip` and `Emotion_labels.zip`
into one folder (`TREE`).

593 sequences of 123 subjects, of which 327, of 118 subjects, have an emotion label (Lucey et al.,
CVPR Workshops 2010). A sequence without one is left out: its expression fits no prototype. The
first picture is neutral, the last one the apex, which the label's file is named after; 30 pictures
a second.

Checked against the owners' ReadMeFirst.txt as it is quoted on the web, and public code that reads
these folders; not against the data themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from cfer.errors import InputError
from cfer.video.files import numbered_pictures
from pipeline.datasets.layout import (
    child,
    clip,
    folders,
    layout_error,
    left_out,
    log,
    named,
    visible,
)
from pipeline.manifest import Entry

NAME = "CK+"
NOUN = "sequences"
# The files count them from 1.
CLASSES = ("anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
PUBLISHED = "327 sequences of 118 subjects"
FPS = Fraction(30)
TREE = """
ROOT/
├── cohn-kanade-images/
│   └── S005/001/S005_001_00000001.png …
└── Emotion/
    └── S005/001/S005_001_00000011_emotion.txt        "   3.0000000e+00"
"""


def read(root: Path) -> list[Entry]:
    """The labeled sequences.

    Raises:
        InputError: not this layout, a label without its pictures, or a subject twice.
    """
    images = _part(root, "extended-cohn-kanade-images", "cohn-kanade-images")
    emotion = _part(root, "Emotion_labels", "Emotion")
    if images is None or emotion is None:
        missing = "Emotion" if images else "cohn-kanade-images"
        raise layout_error(root, NAME, TREE, f"there is no {missing}/ in it")
    labels = {
        sequence: (file, _label(file))
        for sequence, folder in _sequences(emotion)
        if (file := _label_file(folder)) is not None
    }
    entries, without_label = [], []
    for sequence, folder in _sequences(images):
        if sequence not in labels:
            without_label.append(sequence)
            continue
        file, label = labels.pop(sequence)
        pictures = numbered_pictures(folder)
        if not pictures:
            labels[sequence] = file, label
            continue
        if _number(pictures[-1].stem) != _number(file.stem):
            log.warning("%s: its label is for another picture than its last", sequence)
        known = {"subject": sequence.split("/")[0], "apex_frame": len(pictures) - 1, "fps": FPS}
        entries.append(clip(folder, root, NAME, sequence, label, **known))
    if labels:
        names = ", ".join(sorted(labels)[:10]) + (", …" if len(labels) > 10 else "")
        raise InputError(
            f"{images}: no pictures of {len(labels)} labeled sequences: {names}; copy them again, "
            f"or remove their labels from {emotion}"
        )
    left_out(without_label, "sequences without an emotion label")
    return entries


def _part(root: Path, archive: str, name: str) -> Path | None:
    """A folder of the root, or of the folder named after the archive that it came in."""
    found = child(root, name)
    if found is None and (unpacked := child(root, archive)) is not None:
        found = child(unpacked, name)
    return found


def _sequences(folder: Path) -> Iterator[tuple[str, Path]]:
    for subject, subject_folder in named(folders(folder), r"S\d{3}", "subject").items():
        for number, sequence in named(folders(subject_folder), r"\d{3}", "sequence").items():
            yield f"{subject}/{number}", sequence


def _label_file(folder: Path) -> Path | None:
    files = [file for file in visible(folder) if file.name.lower().endswith("_emotion.txt")]
    if len(files) > 1:
        raise InputError(
            f"{files[0]} and {files[1].name}: two labels of one sequence; remove the wrong one"
        )
    return files[0] if files else None


def _label(file: Path) -> str:
    text = file.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(r"[1-7](\.0*(e[+-]?0+)?)?", text):
        raise InputError(
            f"{file}: {text[:40]!r} is no emotion from 1 ({CLASSES[0]}) to 7 ({CLASSES[-1]}); "
            "copy it again, or remove it"
        )
    return CLASSES[int(text[0]) - 1]


def _number(stem: str) -> int:
    """The picture's number in S005_001_00000011 and S005_001_00000011_emotion."""
    return int(re.findall(r"\d+", stem)[-1])
