"""What is to be extracted: one entry per clip, from a folder, a glob pattern or a CSV.

The CSV has a header. `path` is required, and relative to the CSV's folder; the rest is optional:

    path,clip_id,subject,label,split,apex_frame,dataset,fps

`label` is a class name, `apex_frame` a frame number from 0. An empty cell means "unknown".
"""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from cfer.clips import VIDEO_SUFFIXES, clips_below, is_picture_folder, is_video
from cfer.errors import InputError

COLUMNS = ("path", "clip_id", "subject", "label", "split", "apex_frame", "dataset", "fps")


@dataclass(frozen=True)
class Entry:
    """One clip to extract.

    Attributes:
        path: of the video, or of the folder of numbered pictures; it need not exist.
        clip_id: unique in the manifest.
        source: what the data set calls it: the path as the manifest gives it, so that the same
            videos in another place give the same shards.
        subject, label, split: None where unknown; `label` is a class name.
        apex_frame: frame number from 0, or None.
        dataset: the data set's name.
        fps: overrides the clip's own.
    """

    path: Path
    clip_id: str
    source: str
    subject: str | None = None
    label: str | None = None
    split: str | None = None
    apex_frame: int | None = None
    dataset: str = ""
    fps: Fraction | None = None


def read_manifest(videos: str) -> list[Entry]:
    """Every clip, sorted by `clip_id`.

    Args:
        videos: a folder (looked through with all its sub-folders for videos and for folders of
            numbered pictures), a glob pattern, or a CSV.

    Raises:
        InputError: nothing there, or a row that is not right (it is named).
    """
    path = Path(videos)
    if path.is_dir():
        entries = _from_paths(list(clips_below(path)), path, path.resolve().name)
    elif path.suffix.lower() == ".csv":
        entries = read_csv(path)
    else:
        found = [Path(p) for p in glob.glob(videos, recursive=True)]
        clips = [p for p in found if is_video(p) or is_picture_folder(p)]
        base = Path(os.path.commonpath([p.parent for p in clips])) if clips else path
        entries = _from_paths(clips, base, base.resolve().name)
    if not entries:
        raise InputError(
            f"--videos {videos}: no clip found; give a folder with videos "
            f"({', '.join(VIDEO_SUFFIXES)}) or folders of numbered pictures, a glob pattern in "
            "quotes, or a CSV with a `path` column"
        )
    return checked(entries, f"--videos {videos}")


def checked(entries: Sequence[Entry], given: str) -> list[Entry]:
    """The entries, sorted by `clip_id`; `given` is the option that named them.

    Raises:
        InputError: a `clip_id` of two clips, or one that a window of a long video could have.
    """
    taken: dict[str, Entry] = {}
    for entry in entries:
        if re.search(r"#\d{4,}$", entry.clip_id):
            raise InputError(
                f"{given}: {entry.source}: its clip_id {entry.clip_id!r} ends as those of a long "
                "video's windows do; give it another name"
            )
        other = taken.setdefault(entry.clip_id, entry)
        if other is not entry:
            raise InputError(
                f"{given}: {other.source} and {entry.source} are both {entry.clip_id!r}; remove "
                "one of them, or rename it"
            )
    return sorted(entries, key=lambda entry: entry.clip_id)


def class_names(entries: Sequence[Entry], given: Sequence[str] | None = None) -> list[str]:
    """The classes in order: as given, or else every label that occurs, sorted.

    Raises:
        InputError: a label that is not among those given, or a name given twice.
    """
    if given is None:
        return sorted({entry.label for entry in entries if entry.label is not None})
    if len(set(given)) != len(given):
        raise InputError(f"--classes {','.join(given)}: a name occurs twice")
    for entry in entries:
        if entry.label is not None and entry.label not in given:
            raise InputError(
                f"{entry.source}: unknown class {entry.label!r}; --classes has {', '.join(given)}: "
                "correct the label, or add it to --classes"
            )
    return list(given)


def _from_paths(paths: Sequence[Path], base: Path, dataset: str) -> list[Entry]:
    entries = []
    taken: dict[str, Path] = {}
    for path in paths:
        relative = path.relative_to(base) if path != base else Path(path.resolve().name)
        # Two videos may differ in their endings alone.
        clip_id = relative.as_posix() if relative.stem in taken else without_suffix(relative)
        if clip_id in taken:
            clip_id = relative.as_posix()
        taken[clip_id] = path
        entries.append(Entry(path, clip_id, relative.as_posix(), dataset=dataset))
    return entries


def without_suffix(path: Path) -> str:
    """A path without a video's ending, the parts joined by `/`."""
    has_one = path.suffix.lower() in VIDEO_SUFFIXES
    return (path.with_suffix("") if has_one else path).as_posix()


def read_csv(path: Path) -> list[Entry]:
    """The clips of a CSV with the columns `COLUMNS`, in its order.

    Raises:
        InputError: as `csv_rows` does, or a row that is not right.
    """
    entries: dict[str, Entry] = {}
    for where, cells in csv_rows(path, COLUMNS, ("path",)):
        entry = _entry(cells, path, where)
        if entry.clip_id in entries:
            raise InputError(
                f"{where}: clip_id {entry.clip_id!r} occurs twice; give every clip one of its own"
            )
        entries[entry.clip_id] = entry
    return list(entries.values())


def csv_rows(
    path: Path, columns: Sequence[str], required: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV with a header: where each one is (file and line), and its stripped cells.

    Raises:
        InputError: not a readable CSV, a column missing or unknown, or a row that does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    header = list(reader.fieldnames or [])
    for name in required:
        if name not in header:
            raise InputError(
                f"{path}: no column `{name}` in its header ({', '.join(header) or 'empty'}); the "
                f"columns are {', '.join(columns)}"
            )
    unknown = sorted(set(header) - set(columns))
    if unknown:
        raise InputError(
            f"{path}: unknown column {', '.join(map(repr, unknown))}; the columns are "
            f"{', '.join(columns)}: rename or remove it"
        )
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(
                    f"{where}: not as many cells as the header has; quote cells with commas"
                )
            yield where, {str(name): str(cell).strip() for name, cell in row.items()}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _entry(cells: dict[str, str], path: Path, where: str) -> Entry:
    source = cells["path"]
    if not source:
        raise InputError(f"{where}: `path` is empty; give the clip's path, or remove the row")
    relative = Path(source)
    return Entry(
        path=path.parent / relative,
        clip_id=cells.get("clip_id") or without_suffix(relative),
        source=source,
        subject=cells.get("subject") or None,
        label=cells.get("label") or None,
        split=cells.get("split") or None,
        apex_frame=apex_frame(cells.get("apex_frame", ""), where),
        dataset=cells.get("dataset") or path.resolve().parent.name,
        fps=_fps(cells.get("fps", ""), where),
    )


def apex_frame(cell: str, where: str) -> int | None:
    """The frame number in a cell; None where it is empty, InputError where it is none."""
    if not cell:
        return None
    if not cell.isdecimal():
        raise InputError(f"{where}: apex_frame {cell!r}: give a frame number from 0, or nothing")
    return int(cell)


def _fps(cell: str, where: str) -> Fraction | None:
    if not cell:
        return None
    try:
        fps = Fraction(cell)
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if not 0 < fps <= 1000:
        raise InputError(f"{where}: fps {cell!r}: give frames per second, such as 25 or 30000/1001")
    return fps
