"""What the readers of data sets share: looking through folders, and what to say about them.

A second folder of a subject is an error, since one person under two names would be on both sides of
a fold.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cfer.errors import InputError
from cfer.video.files import is_video
from pipeline.manifest import Entry

JUNK = ("thumbs.db", "desktop.ini", "__macosx")

# A child of the job's logger, so that these lines are in its log too.
log = logging.getLogger("extract.datasets")


def clip(path: Path, root: Path, dataset: str, clip_id: str, label: str, **known: Any) -> Entry:
    """The entry of a video or of a folder of pictures; `known` are more fields of `Entry`."""
    return Entry(str(path), clip_id, relative(path, root), label=label, dataset=dataset, **known)


def layout_error(root: Path, name: str, tree: str, reason: str) -> InputError:
    """The error for a folder that is not a data set's: its layout, beside what was found."""
    if root.is_dir():
        children = visible(root)
        found = [child.name + ("/" if child.is_dir() else "") for child in children[:10]]
        found += [f"… and {len(children) - 10} more"] if len(children) > 10 else []
        found = found or ["(empty)"]
    else:
        found = ["(it is a file, not a folder)" if root.exists() else "(it does not exist)"]
    expected = ["expected", *tree.strip("\n").splitlines()]
    width = max(map(len, expected)) + 4
    pairs = zip_longest(expected, ["found", *found], fillvalue="")
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
    """Every file, also in sub-folders; a link that leads back up is not followed."""
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
