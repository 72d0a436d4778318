"""Any videos sorted into folders by class: no agreement, no metadata, no subjects.

Every folder in the root is a class, and every video or folder of numbered pictures in it is a clip
(`TREE`); there is no further level. A class that is an emotion gets the name that all data sets
share (happy is happiness); others keep theirs. Where subjects, splits or apex frames are known,
write them into a CSV (`--dataset csv`): without subjects, the same person can be on both sides of a
fold.
"""

from __future__ import annotations

from pathlib import Path

from cfer.errors import InputError
from cfer.names import EMOTIONS
from cfer.video.files import numbered_pictures
from pipeline.datasets.layout import clip, folders, layout_error, left_out, relative, videos
from pipeline.manifest import Entry, without_suffix

NAME = "folder"
NOUN = "clips"
CLASSES = None
PUBLISHED = None
TREE = """
ROOT/
├── anger/
│   ├── clip.mp4
│   └── other/0001.png …
└── happiness/ …
"""


def read(root: Path) -> list[Entry]:
    """The clips of all classes.

    Raises:
        InputError: not this layout: no class, a class twice, or clips at another level.
    """
    if not root.is_dir():
        raise layout_error(root, NAME, TREE, "there is no such folder")
    left_out([video.name for video in videos(root)], "videos outside the classes' folders")
    entries = []
    classes: dict[str, Path] = {}
    for folder in folders(root):
        name = folder.name.strip()
        label = EMOTIONS.get(name.lower(), name)
        other = classes.setdefault(label, folder)
        if other != folder:
            raise InputError(f"{other} and {folder}: both are the class {label}; merge them")
        if numbered_pictures(folder):
            raise InputError(
                f"{folder}: pictures lie directly in a class's folder; put those of each clip into "
                "a folder of its own"
            )
        pictures = [path for path in folders(folder) if numbered_pictures(path)]
        deeper = [path for path in folders(folder) if path not in pictures]
        left_out([relative(path, root) for path in deeper], "folders without numbered pictures")
        for path in (*videos(folder), *pictures):
            clip_id = f"{label}/{without_suffix(Path(path.name))}"
            entries.append(clip(path, root, root.resolve().name, clip_id, label))
    return entries
