"""The data sets that the extraction knows by name, each with the module that reads its folders.

    cfer extract --dataset ck+ --root /data/CK+ --out DIR

A reader's module says where to get the data and how its folders look. Nothing is left out silently:
what a reader passes over is counted or named in the log, and the counts are compared with the
published ones. A module holds

    NAME        the data set's name, as it is in the rows
    NOUN        what its clips are called
    TREE        its layout
    CLASSES     in their order; None where the folders name them
    PUBLISHED   its size in its owners' words, made up as `size_of` does; None where the owners
                publish none
    read(root)  the clips below a folder; InputError where it is not of this layout
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cfer.errors import InputError
from pipeline.datasets import afew, ckplus, cremad, folder, mmi, oulu_casia, ravdess
from pipeline.datasets.layout import layout_error, log
from pipeline.manifest import Entry, checked, class_names, read_csv

READERS: dict[str, ModuleType] = {
    "ck+": ckplus,
    "mmi": mmi,
    "afew": afew,
    "oulu-casia": oulu_casia,
    "ravdess": ravdess,
    "crema-d": cremad,
    "folder": folder,
}
NAMES = (*READERS, "csv")


def read_dataset(
    name: str, root: Path, classes: Sequence[str] | None = None
) -> tuple[list[Entry], list[str]]:
    """A data set's clips, sorted by `clip_id`, and its classes in order.

    Args:
        name: one of `NAMES`.
        root: the folder that the owners' archives are unpacked in; for `csv`, the CSV itself, or a
            folder with a manifest.csv.
        classes: in this order; None: the data set's own.

    Raises:
        InputError: no such folder, another layout, or something in it that is not right.
    """
    if name == "csv":
        entries = read_csv(root / "manifest.csv" if root.is_dir() else root)
        if not entries:
            raise InputError(f"--root {root}: no clip in it; give a CSV with a row for each clip")
        entries = checked(entries, f"--root {root}")
        log.info("%s: %s", root, size_of(entries, "clips"))
        return entries, class_names(entries, classes)
    reader = READERS[name]
    try:
        entries = checked(reader.read(root), f"--root {root}")
    except OSError as error:
        raise InputError(
            f"{error.filename or root}: cannot be read ({error.strerror}); correct --root, or the "
            "permissions"
        ) from error
    if not entries:
        raise layout_error(root, reader.NAME, reader.TREE, "there is no clip in it")
    found = size_of(entries, reader.NOUN)
    if reader.PUBLISHED in (None, found):
        log.info("%s: %s%s", reader.NAME, found, ", as published" if reader.PUBLISHED else "")
    else:
        log.warning("%s: found %s; published: %s", reader.NAME, found, reader.PUBLISHED)
    return entries, class_names(entries, reader.CLASSES if classes is None else classes)


def size_of(entries: Sequence[Entry], noun: str) -> str:
    """How many clips: by their splits, or else of how many subjects, where one is known."""
    splits = Counter(entry.split for entry in entries if entry.split is not None)
    if splits:
        parts = [f"{number} {split}" for split, number in sorted(splits.items())]
        return f"{' and '.join(parts)} {noun}"
    subjects = {entry.subject for entry in entries if entry.subject is not None}
    return f"{len(entries)} {noun}" + (f" of {len(subjects)} subjects" if subjects else "")
