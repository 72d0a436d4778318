"""AFEW: Acted Facial Expressions in the Wild, short scenes of films, as in the EmotiW challenges.

Where: https://cs.anu.edu.au/few/AFEW.html, and for EmotiW its organizers
(https://sites.google.com/view/emotiw2018), for research, upon an agreement that a member of the
academic staff signs. Unpack `Train_AFEW.zip` and `Val_AFEW.zip` into one folder (`TREE`). Folders
of aligned faces (`AlignedFaces_LBPTOP_Points/`) are not read.

AFEW 7.0 and 8.0 have 773 videos for training and 383 for validation (Dhall et al., EmotiW 2017 and
2018); those for testing have no public labels. Who is seen is not known, so there are no subjects.

Checked against public code that reads these folders, and the numbers against papers and lists that
cite them; not against the data themselves.
"""

from __future__ import annotations

from pathlib import Path

from cfer.names import EMOTIONS
from pipeline.datasets.layout import child, clip, folders, layout_error, named, videos
from pipeline.manifest import Entry, without_suffix

NAME = "AFEW"
NOUN = "clips"
CLASSES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
PUBLISHED = "773 train and 383 validation clips"
FOLDERS = "Angry|Disgust|Fear|Happy|Neutral|Sad|Surprise"
PARTS = {"train": ("Train_AFEW", "Train"), "validation": ("Val_AFEW", "Val")}
TREE = """
ROOT/
├── Train_AFEW/
│   ├── Angry/000046280.avi …
│   └── Disgust/ Fear/ Happy/ Neutral/ Sad/ Surprise/
└── Val_AFEW/
    └── Angry/ …
"""


def read(root: Path) -> list[Entry]:
    """The videos of both splits.

    Raises:
        InputError: not this layout, or a class twice.
    """
    parts = {split: part for split, names in PARTS.items() if (part := child(root, *names))}
    if not parts:
        raise layout_error(root, NAME, TREE, "there is neither Train_AFEW/ nor Val_AFEW/ in it")
    entries = []
    for split, part in parts.items():
        classes = [f for f in folders(part) if not f.name.lower().startswith("alignedfaces")]
        for name, folder in named(classes, FOLDERS, "class").items():
            for video in videos(folder):
                clip_id = without_suffix(video.relative_to(root))
                label = EMOTIONS[name.lower()]
                entries.append(clip(video, root, NAME, clip_id, label, split=split))
    return entries
