"""CREMA-D: 91 actors speak twelve sentences in six emotions.

Where: https://github.com/CheyneyComputerScience/CREMA-D, open (Open Database License), with
Git LFS: without `git lfs` installed, a clone holds a line of text in place of every video.

A name is actor, sentence, emotion (ANG, DIS, FEA, HAP, NEU, SAD) and level (XX unspecified, LO, MD,
HI). 7442 clips of 91 actors (the repository's own page). The root may also be `VideoFlash` itself;
videos that were converted (.mp4) may have taken the place of the .flv.

Checked against the repository's README and its list of files, which has 7442 in `VideoFlash`; the
first of them is a pointer of Git LFS. Not checked against the videos themselves.
"""

from __future__ import annotations

from pathlib import Path

from cfer.errors import InputError
from pipeline.datasets.layout import child, clip, layout_error, named, videos
from pipeline.manifest import Entry

NAME = "CREMA-D"
NOUN = "clips"
CODES = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
CLASSES = tuple(CODES.values())
PUBLISHED = "7442 clips of 91 subjects"
# One sound file of the repository ends in X.
PATTERN = rf"\d{{4}}_[A-Z]{{3}}_(?:{'|'.join(CODES)})_(?:XX?|LO|MD|HI)"
# A pointer of Git LFS has about 130 bytes.
POINTER, POINTER_BYTES = b"version https://git-lfs", 1024
TREE = """
ROOT/
└── VideoFlash/
    ├── 1001_DFA_ANG_XX.flv
    └── …
"""


def read(root: Path) -> list[Entry]:
    """All clips.

    Raises:
        InputError: not this layout, a clip twice, or pointers of Git LFS in place of videos.
    """
    folder = child(root, "VideoFlash")
    if folder is None and root.is_dir() and root.name.lower() == "videoflash":
        folder = root
    if folder is None:
        raise layout_error(root, NAME, TREE, "there is no VideoFlash/ in it")
    clips = named(videos(folder), PATTERN, "clip")
    pointers = [path for path in clips.values() if _is_pointer(path)]
    if pointers:
        raise InputError(
            f"{pointers[0]}: a pointer of Git LFS in place of the video (as are "
            f"{len(pointers) - 1} others); run `git lfs pull --include VideoFlash` in the clone"
        )
    entries = []
    for name, path in clips.items():
        actor, _, code, _ = name.split("_")
        entries.append(clip(path, root, NAME, name, CODES[code], subject=actor))
    return entries


def _is_pointer(path: Path) -> bool:
    return path.stat().st_size <= POINTER_BYTES and path.read_bytes().startswith(POINTER)
