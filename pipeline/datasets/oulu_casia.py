"""Oulu-CASIA NIR&VIS: posed expressions from neutral to apex, in several lights.

Where: https://www.oulu.fi/cmvs/node/41316 (Center for Machine Vision and Signal Analysis,
University of Oulu), for research, upon an agreement that a member of the permanent staff signs.

What is read is visible light, strong (`VL/Strong`, see `TREE`); beside it lie `VL/Weak`, `VL/Dark`,
and near infrared (`NI`).

80 subjects × 6 expressions = 480 sequences in each light (Zhao et al., Image and Vision Computing
2011). The first picture is neutral, the last one the apex; 25 pictures a second. The root may also
be `OriginalImg`, `B_OriginalImg`, `VL` or `Strong` itself.

Checked against public code that reads these folders, and subjects, expressions and frame rate
against the paper's abstract; not against the data themselves.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from cfer.names import EMOTIONS
from cfer.video.files import numbered_pictures
from pipeline.datasets.layout import child, clip, folders, layout_error, named
from pipeline.manifest import Entry

NAME = "Oulu-CASIA"
NOUN = "sequences"
CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
PUBLISHED = "480 sequences of 80 subjects"
FPS = Fraction(25)
FOLDERS = "Anger|Disgust|Fear|Happiness|Sadness|Surprise"
TREE = """
ROOT/
└── OriginalImg/VL/Strong/P001/
    ├── Anger/000.jpeg …
    └── Disgust/ Fear/ Happiness/ Sadness/ Surprise/
"""


def read(root: Path) -> list[Entry]:
    """The sequences in strong visible light.

    Raises:
        InputError: not this layout, or a subject or a class twice.
    """
    strong = root
    for names in (("OriginalImg", "B_OriginalImg"), ("OriginalImg",), ("VL",), ("Strong",)):
        strong = child(strong, *names) or strong
    if strong.name.lower() != "strong":
        raise layout_error(root, NAME, TREE, "there is no VL/Strong/ in it")
    entries = []
    for subject, subject_folder in named(folders(strong), r"P\d{3}", "subject").items():
        for name, folder in named(folders(subject_folder), FOLDERS, "class").items():
            label = EMOTIONS[name.lower()]
            # A folder without a picture fails in the extraction, which says so.
            apex = max(len(numbered_pictures(folder)) - 1, 0)
            known = {"subject": subject, "apex_frame": apex, "fps": FPS}
            entries.append(clip(folder, root, NAME, f"{subject}/{label}", label, **known))
    return entries
