"""MMI: posed expressions from neutral over the apex back to neutral, each session one video.

Where: https://mmifacedb.eu, for research, upon a signed agreement. Select the sessions with
basic emotions in its web interface, and download them with their metadata (`TREE`).

Emotions 1 to 6 are anger, disgust, fear, happiness, sadness, surprise; sessions with other ones, or
none, are left out, and so are those in profile (view 1). Markers of an action unit say from which
frame, counted from 1, it is neutral (type 0), at its onset (1), apex (2) or offset (3); the apex is
the first frame at which most units are at theirs, and unknown without that file.

Or a `sessions.csv` in the root, or as the root itself, in place of the metadata; then the sessions
are those that it lists, and an emotion is a name or a number from 1 to 6:

    session,subject,emotion,apex_frame
    1767,S028,happiness,42

The owners publish 2900 videos and pictures of 75 subjects, but not how many show basic emotions:
the literature mostly counts 205 frontal sequences (or 213). So no number is compared.

Checked against four public programs that read these folders; not against the data themselves. They
also show that the videos of many subjects lie on their side, and that those of view 2 show a face
twice, frontal and in a mirror. Turn the former upright before extraction (a rotation in the
container's metadata is enough): faces are not found in them, and they end in failures.csv.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from cfer.errors import InputError
from cfer.names import EMOTIONS
from pipeline.datasets.layout import child, clip, folders, layout_error, left_out, named, videos
from pipeline.manifest import Entry, apex_frame, csv_rows

NAME = "MMI"
NOUN = "sequences"
# The metadata count them from 1.
CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
PUBLISHED = None
COLUMNS = ("session", "subject", "emotion", "apex_frame")
PROFILE = "1"
APEX = "2"
TREE = """
ROOT/
├── sessions.csv                 (in place of the .xml)
└── Sessions/1767/
    ├── S028-001.avi             (subject and number)
    ├── S028-001.xml             <Metatag Name="Emotion" Value="4" />
    ├── S028-001-oao_aucs.xml    <ActionUnit …><Marker Frame="31" Type="2" /> (optional)
    └── session.xml              <track view="0" …>
"""


def read(root: Path) -> list[Entry]:
    """The sessions of the six emotions.

    Raises:
        InputError: not this layout, metadata or a CSV that are not right, or a session twice.
    """
    table = root if root.is_file() else root / "sessions.csv"
    base = table.parent
    sessions = child(base, "Sessions") or (base if base.name.lower() == "sessions" else None)
    if sessions is None:
        raise layout_error(root, NAME, TREE, "there is no Sessions/ in it")
    found = named(folders(sessions), r"\d+", "session")
    return _from_csv(table, found, base) if table.is_file() else _from_metadata(found, base)


def _from_metadata(sessions: dict[str, Path], root: Path) -> list[Entry]:
    entries = []
    reasons: dict[str, list[str]] = defaultdict(list)
    for session, folder in sessions.items():
        video = _video(folder)
        if video is None:
            reasons["sessions without a video"].append(session)
            continue
        emotion = _emotion(video.with_suffix(".xml"))
        if emotion not in range(1, 7):
            reasons["sessions without one of the six emotions"].append(session)
            continue
        if _view(folder / "session.xml") == PROFILE:
            reasons["sessions in profile"].append(session)
            continue
        apex = _apex_of_units(video.with_name(f"{video.stem}-oao_aucs.xml"))
        entries.append(_entry(video, root, _subject(video), CLASSES[emotion - 1], apex))
    for reason, names in reasons.items():
        left_out(names, reason)
    return entries


def _from_csv(table: Path, sessions: dict[str, Path], root: Path) -> list[Entry]:
    entries = []
    for where, cells in csv_rows(table, COLUMNS, COLUMNS[:3]):
        session, subject = cells["session"], cells["subject"].upper()
        video = _video(sessions[session]) if session in sessions else None
        if video is None:
            raise InputError(
                f"{where}: no video of session {session!r} in {root}; download it, or remove the "
                "row"
            )
        if subject != _subject(video):
            raise InputError(
                f"{where}: subject {subject!r}, but the video is {video.name}; correct the row"
            )
        emotion = cells["emotion"].lower()
        if emotion.isdecimal() and 1 <= int(emotion) <= 6:
            label = CLASSES[int(emotion) - 1]
        else:
            label = EMOTIONS.get(emotion, "")
        if label not in CLASSES:
            raise InputError(
                f"{where}: emotion {cells['emotion']!r}: give 1 to 6, or one of "
                f"{', '.join(CLASSES)}"
            )
        apex = apex_frame(cells.get("apex_frame", ""), where)
        entries.append(_entry(video, root, subject, label, apex))
    return entries


def _entry(video: Path, root: Path, subject: str, label: str, apex: int | None) -> Entry:
    known = {"subject": subject, "apex_frame": apex}
    return clip(video, root, NAME, video.stem.upper(), label, **known)


def _video(folder: Path) -> Path | None:
    files = videos(folder)
    if len(files) > 1:
        raise InputError(
            f"{files[0]} and {files[1].name}: two videos in one session; remove one of them"
        )
    return files[0] if files else None


def _subject(video: Path) -> str:
    match = re.fullmatch(r"(S\d+)-\d+", video.stem, re.IGNORECASE)
    if match is None:
        raise InputError(
            f"{video}: does not say its subject; name it as MMI does, such as S028-001.avi"
        )
    return match[1].upper()


def _emotion(file: Path) -> int:
    """The number in a session's metadata; 0 without one."""
    for tag in _elements(file, "Metatag"):
        value = tag.get("Value", "")
        if tag.get("Name") == "Emotion" and value.isdecimal():
            return int(value)
    return 0


def _view(file: Path) -> str | None:
    return next((track.get("view") for track in _elements(file, "track")), None)


def _apex_of_units(file: Path) -> int | None:
    """The first frame, from 0, at which most action units are at their apex."""
    spans: list[tuple[int, int]] = []
    for unit in _elements(file, "ActionUnit"):
        try:
            marks = sorted(
                (int(mark.get("Frame", "")), mark.get("Type", "")) for mark in unit.iter("Marker")
            )
        except ValueError as error:
            raise InputError(f"{file}: a marker without a frame number; copy it again") from error
        for number, (frame, kind) in enumerate(marks):
            if kind == APEX:
                ends = [f for f, k in marks[number + 1 :] if k != APEX]
                spans.append((frame, ends[0] if ends else frame + 1))
    if not spans:
        return None
    # The number of units at their apex only grows where one begins.
    first = max(
        sorted(start for start, _ in spans), key=lambda at: sum(a <= at < b for a, b in spans)
    )
    return first - 1


def _elements(file: Path, tag: str) -> list[ElementTree.Element]:
    """All elements of a name in a file of metadata; none where there is no file."""
    if not file.is_file():
        return []
    try:
        return list(ElementTree.parse(file).getroot().iter(tag))
    except ElementTree.ParseError as error:
        raise InputError(f"{file}: not XML ({error}); copy it again") from error
