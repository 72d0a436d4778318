"""The benchmarks' own layouts: which there are, and what their readers share.

    python pipeline/extract.py --dataset ck+ --root /data/CK+ --out DIR

Each data set has a module of its own here, which says where to get the data and how its folders
look. Nothing is left out silently: what a reader passes over is counted or named in the log, and
the counts are compared with the published ones. A second folder of a subject is an error, since one
person under two names would be on both sides of a fold.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cfer.errors import InputError
from cfer.video.files import is_video
from pipeline.manifest import Entry, checked, class_names, read_csv

NAMES = ("ck+", "mmi", "afew", "oulu-casia", "ravdess", "crema-d", "folder", "csv")
CSV_NAME = "manifest.csv"
JUNK = ("thumbs.db", "desktop.ini", "__macosx")

# A child of the job's logger, so that these lines are in its log too.
log = logging.getLogger("extract.datasets")


class Adapter(Protocol):
    """What the module of a data set holds.

    Attributes:
        NAME: the data set's name, as it is in the rows.
        NOUN: what its clips are called.
        TREE: its layout.
        CLASSES: in their order; None where the folders name them.
        PUBLISHED: its size in its owners' words, made up as `size_of` does; None where the owners
            publish none.
    """

    @property
    def NAME(self) -> str: ...
    @property
    def NOUN(self) -> str: ...
    @property
    def TREE(self) -> str: ...
    @property
    def CLASSES(self) -> Sequence[str] | None: ...
    @property
    def PUBLISHED(self) -> str | None: ...

    def read(self, root: Path) -> list[Entry]:
        """The clips below a folder; InputError where it is not of this layout."""
        ...


def read_dataset(
    name: str, root: Path, classes: Sequence[str] | None = None
) -> tuple[list[Entry], list[str]]:
    """A data set's clips, sorted by `clip_id`, and its classes in order.

    Args:
        name: one of `NAMES`.
        root: the folder that the owners' archives are unpacked in; of `csv`, the CSV itself, or a
            folder with a manifest.csv.
        classes: in this order; None: the data set's own.

    Raises:
        InputError: no such folder, another layout, or something in it that is not right.
    """
    if name == "csv":
        entries = read_csv(root / CSV_NAME if root.is_dir() else root)
        if not entries:
            raise InputError(f"--root {root}: no clip in it; give a CSV with a row for each clip")
        entries = checked(entries, f"--root {root}")
        log.info("%s: %s", root, size_of(entries, "clips"))
        return entries, class_names(entries, classes)
    adapter = _adapter(name)
    try:
        entries = checked(adapter.read(root), f"--root {root}")
    except OSError as error:
        raise InputError(
            f"{error.filename or root}: cannot be read ({error.strerror}); correct --root, or the "
            "permissions"
        ) from error
    if not entries:
        raise layout_error(root, adapter.NAME, adapter.TREE, "there is no clip in it")
    _compare(adapter, entries)
    return entries, class_names(entries, adapter.CLASSES if classes is None else classes)


def _adapter(name: str) -> Adapter:
    # The modules import this one.
    from pipeline.datasets import afew, ckplus, cremad, folder, mmi, oulu_casia, ravdess

    adapters: dict[str, Adapter] = {
        "ck+": ckplus,
        "mmi": mmi,
        "afew": afew,
        "oulu-casia": oulu_casia,
        "ravdess": ravdess,
        "crema-d": cremad,
        "folder": folder,
    }
    return adapters[name]


def size_of(entries: Sequence[Entry], noun: str) -> str:
    """How many clips: by their splits, or else of how many subjects, where one is known."""
    splits = Counter(entry.split for entry in entries if entry.split is not None)
    subjects = {entry.subject for entry in entries if entry.subject is not None}
    if splits:
        parts = [f"{number} {split}" for split, number in sorted(splits.items())]
        return f"{' and '.join(parts)} {noun}"
    if subjects:
        return f"{len(entries)} {noun} of {len(subjects)} subjects"
    return f"{len(entries)} {noun}"


def _compare(adapter: Adapter, entries: Sequence[Entry]) -> None:
    found = size_of(entries, adapter.NOUN)
    if adapter.PUBLISHED is None:
        log.info("%s: %s", adapter.NAME, found)
    elif found == adapter.PUBLISHED:
        log.info("%s: %s, as published", adapter.NAME, found)
    else:
        log.warning("%s: found %s; published: %s", adapter.NAME, found, adapter.PUBLISHED)


# ---- what the readers share ----------------------------------------------------------------------


def layout_error(root: Path, name: str, tree: str, reason: str) -> InputError:
    """The error of a folder that is not a data set's: the layout, beside what was found."""
    if root.is_dir():
        children = visible(root)
        lines = [child.name + ("/" if child.is_dir() else "") for child in children[:10]]
        lines += [f"… and {len(children) - 10} more"] if len(children) > 10 else []
        lines = lines or ["(empty)"]
    else:
        lines = ["(it is a file, and no folder)" if root.exists() else "(it does not exist)"]
    expected = tree.strip("\n").splitlines()
    width = max(map(len, ["expected", *expected])) + 4
    rows = max(len(expected), len(lines))
    pairs = zip(
        ["expected", *expected, *[""] * (rows - len(expected))],
        ["found", *lines, *[""] * (rows - len(lines))],
        strict=True,
    )
    table = "\n".join(f"  {left:<{width}}{right}".rstrip() for left, right in pairs)
    return InputError(
        f"--root {root}: not the layout of {name}: {reason}; give the folder that its archives "
        f"were unpacked in\n{table}"
    )


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without what operating systems leave in it."""
    return sorted(
        Path(entry.path)
        for entry in os.scandir(folder)
        if not entry.name.startswith(".") and entry.name.lower() not in JUNK
    )


def folders(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.is_dir()]


def videos(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if is_video(path)]


def files_below(folder: Path) -> Iterator[Path]:
    """Of a link that leads back up, nothing."""
    for path in visible(folder):
        if path.is_dir():
            if not folder.resolve().is_relative_to(path.resolve()):
                yield from files_below(path)
        else:
            yield path


def child(folder: Path, *names: str) -> Path | None:
    """The first of the sub-folders named that is there; upper and lower case are the same."""
    found = {path.name.lower(): path for path in folders(folder)} if folder.is_dir() else {}
    return next((found[name.lower()] for name in names if name.lower() in found), None)


def named(paths: Iterable[Path], pattern: str, what: str) -> dict[str, Path]:
    """The paths whose names match a pattern, by their names in upper case, without any ending.

    Others are left out, with a line in the log.

    Args:
        paths: folders, or files.
        pattern: a regular expression; upper and lower case are the same.
        what: the name stands for: a subject, a sequence, ….

    Raises:
        InputError: two paths with the same name, or one that is named as a copy is.
    """
    found: dict[str, Path] = {}
    others: list[str] = []
    for path in paths:
        name = path.name if path.is_dir() else path.stem
        copied = re.search(rf"(?<![A-Za-z0-9])(?:{pattern})(?!\d)", name, re.IGNORECASE)
        if re.fullmatch(pattern, name, re.IGNORECASE):
            other = found.setdefault(name.upper(), path)
            if other != path:
                raise InputError(
                    f"{other} and {path}: the same {what} twice; remove or merge one of them"
                )
        elif copied:
            raise InputError(
                f"{path}: looks like a copy of {path.with_name(copied.group())}, and would be the "
                f"same {what} under two names; remove it, or move it out of the data set"
            )
        else:
            others.append(path.name)
    left_out(others, f"names that are no {what}'s")
    return found


def left_out(names: Sequence[str], what: str) -> None:
    """One line in the log for what is passed over; nothing where there is none."""
    if names:
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        log.warning("left out: %d %s: %s", len(names), what, some)


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
