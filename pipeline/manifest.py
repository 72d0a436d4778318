"""What is to be extracted: one entry per clip, from a folder, a glob pattern or a CSV.

The CSV has a header. `path` is required, and relative to the CSV's folder; the rest is optional:

    path,clip_id,subject,label,split,apex_frame,dataset,fps,start_seconds,end_seconds

`label` is a class name, `apex_frame` a frame number of the video from 0. A clip may be a part of a
video, and several may be of one; where start or end is empty, it is the video's. Elsewhere, an
empty cell means "unknown"; what
programs write for a missing value (`nan`, `NULL`, …) is refused, and so are two spellings of one
subject or label.

A folder, a CSV and what it names may be in an object store (`s3://bucket/videos`). A CSV may come
from anywhere: what it names by a relative path lies below its own folder. It leads out of there
neither by `..` nor by a link; an absolute path or a URI says openly where it leads.
"""

from __future__ import annotations

import csv
import glob
import io
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from cfer.data.storage import Folder, folder_of, is_uri
from cfer.errors import InputError
from cfer.names import (
    check_labels,
    check_subjects,
    plain_label,
    printable,
    rows_named,
    says_nothing,
)
from cfer.video.files import (
    READ_FORMATS,
    VIDEO_SUFFIXES,
    clips_below,
    is_numbered_picture,
    is_picture_folder,
    is_video,
    is_video_name,
    left_out_line,
)

# A child of the job's logger, so that these lines are in its log too.
log = logging.getLogger("extract.manifest")

COLUMNS = (
    *("path", "clip_id", "subject", "label", "split", "apex_frame", "dataset", "fps"),
    *("start_seconds", "end_seconds"),
)


@dataclass(frozen=True)
class Entry:
    """One clip to extract.

    Attributes:
        location: path or URI of the video, or of the folder of numbered pictures; it need not
            exist.
        clip_id: unique in the manifest.
        source: what the data set calls it: the path as the manifest gives it, so that the same
            videos in another place give the same shards.
        subject, label, split: None where unknown; `label` is a class name.
        apex_frame: frame number from 0, of the video even where the clip is a part of it; or None.
        dataset: the data set's name.
        fps: overrides the clip's own.
        start_seconds, end_seconds: the part of the video, both included, by its own time stamps
            (`cfer.video.pictures.Pictures.span`); None: its beginning, its end.
    """

    location: str
    clip_id: str
    source: str
    subject: str | None = None
    label: str | None = None
    split: str | None = None
    apex_frame: int | None = None
    dataset: str = ""
    fps: Fraction | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


def read_manifest(videos: str) -> list[Entry]:
    """Every clip, sorted by `clip_id`.

    Args:
        videos: a folder (looked through with all its sub-folders for videos and for folders of
            numbered pictures), a video, a glob pattern, or a CSV; a folder or a CSV may be a URI.
            What is there by this very name is no pattern. Files that are left out are named in the
            log.

    Raises:
        InputError: nothing there, or a row that is not right (it is named).
    """
    path = Path(videos)
    left_out: Sequence[str | Path] = ()
    if videos.lower().endswith(".csv"):
        entries = read_csv(videos)
        if not entries:
            raise InputError(f"--videos {videos}: has a head and no row; give a row for each clip")
    elif is_uri(videos):
        entries, left_out = _from_store(videos)
    elif path.is_dir():
        clips, left_out = clips_below(path)
        entries = _from_paths(clips, path, path.resolve().name)
    elif path.exists():
        entries = _from_paths([path], path.parent, path.resolve().parent.name)
    else:
        found = _each_once(map(Path, glob.glob(videos, recursive=True)))
        clips = [p for p in found if is_video(p) or is_picture_folder(p)]
        taken = set(clips)
        others = (p for p in found if p not in taken and p.is_file())
        left_out = [p for p in others if p.parent not in taken or not is_numbered_picture(p.name)]
        base = Path(os.path.commonpath([p.parent for p in clips])) if clips else path
        entries = _from_paths(clips, base, base.resolve().name)
    if left_out:
        log.warning("--videos %s: %s", videos, left_out_line(left_out))
    if not entries:
        raise InputError(
            f"--videos {videos}: no clip found; give a folder of {READ_FORMATS}, a video, a glob "
            "pattern in quotes, or a CSV with a `path` column"
        )
    return checked(entries, f"--videos {videos}")


def checked(entries: Sequence[Entry], given: str) -> list[Entry]:
    """The entries, sorted by `clip_id`; `given` is the option that named them.

    Raises:
        InputError: a `clip_id` of two clips, or one that a window of a long video could have; a
            subject that is no name, or one of another's spelling.
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
    _check_subjects(entries, given)
    return sorted(entries, key=lambda entry: entry.clip_id)


def _check_subjects(entries: Sequence[Entry], given: str) -> None:
    known = [(entry.subject, entry.source) for entry in entries if entry.subject is not None]
    nobody = [(name, source) for name, source in known if says_nothing(name)]
    rows = rows_named([source for _, source in nobody])
    if {name for name, _ in nobody} == {"NA"}:
        # They may be somebody's initials.
        log.warning("%s: subject 'NA' (%s): taken for one person of that name", given, rows)
    elif nobody:
        raise InputError(
            f"{given}: subject {nobody[0][0]!r} ({rows}) stands for a missing value, and all such "
            "clips would be one person's; leave the cell empty where the subject is unknown"
        )
    check_subjects(known, given)


def class_names(entries: Sequence[Entry], given: Sequence[str] | None = None) -> list[str]:
    """The classes in order: as given, or else every label that occurs, sorted.

    Raises:
        InputError: a label that is not among those given, a name given twice, a label that stands
            for a missing value and is not given, or two spellings of one.
    """
    if given is None:
        labels = [(entry.label, entry.source) for entry in entries if entry.label is not None]
        nothing = [(label, source) for label, source in labels if says_nothing(label)]
        if nothing:
            rows = rows_named([source for _, source in nothing])
            raise InputError(
                f"label {nothing[0][0]!r} ({rows}) stands for a missing value; leave the cell "
                "empty where the label is unknown, or name it in --classes, if it is a class"
            )
        check_labels(labels, "the manifest")
        return sorted({label for label, _ in labels})
    if not all(given):
        raise InputError(f"--classes {','.join(given)}: a name is empty; take a comma out")
    if len({plain_label(name) for name in given}) != len(given):
        raise InputError(f"--classes {','.join(given)}: a name occurs twice")
    for entry in entries:
        if entry.label is not None and entry.label not in given:
            raise InputError(
                f"{entry.source}: unknown class {entry.label!r}; --classes has {', '.join(given)}: "
                "correct the label, or add it to --classes"
            )
    return list(given)


def _each_once(paths: Iterable[Path]) -> list[Path]:
    """Sorted, without the paths that reach a file again by a link to its folder, as `**` does."""
    found: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        real = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
        found.setdefault(real, path)
    return sorted(found.values())


def _from_paths(paths: Sequence[Path], base: Path, dataset: str) -> list[Entry]:
    locations = {}
    for path in paths:
        name = path.relative_to(base) if path != base else Path(path.resolve().name)
        locations[name] = str(path)
    return _named(locations, dataset)


def _from_store(uri: str) -> tuple[list[Entry], list[str]]:
    """Videos and folders of numbered pictures below a folder of an object store, and the names of
    what else is there."""
    folder = Folder(uri)
    found: dict[Path, str] = {}
    left_out = []
    for name in folder.names_below():
        path = Path(name)
        if any(part.startswith(".") for part in path.parts):
            continue
        if is_video_name(path.name):
            found[path] = folder.location_of(name)
        elif is_numbered_picture(path.name):
            is_here = path.parent == Path(".")
            of_pictures = Path(_last_name(uri)) if is_here else path.parent
            found[of_pictures] = uri if is_here else folder.location_of(str(path.parent))
        else:
            left_out.append(name)
    return _named(found, _last_name(uri)), left_out


def _named(locations: Mapping[Path, str], dataset: str) -> list[Entry]:
    """Entries of clips of which only the location is known, by their relative paths."""
    entries = []
    taken: set[str] = set()
    for relative, location in locations.items():
        clip_id = without_suffix(relative)
        if clip_id in taken:
            # Two videos may have names that differ in their endings only.
            clip_id = relative.as_posix()
        taken.add(clip_id)
        source = relative.as_posix()
        entries.append(Entry(location, printable(clip_id), printable(source), dataset=dataset))
    return entries


def _last_name(uri: str) -> str:
    return unquote(uri.partition("?")[0].rstrip("/").rsplit("/", 1)[1])


def without_suffix(path: Path) -> str:
    """A path without a video's ending, the parts joined by `/`."""
    has_one = path.suffix.lower() in VIDEO_SUFFIXES
    return (path.with_suffix("") if has_one else path).as_posix()


def read_csv(path: str | Path) -> list[Entry]:
    """The clips of a CSV (a path or a URI) with the columns `COLUMNS`, in its order.

    Raises:
        InputError: as `csv_rows` does, or a row that is not right.
    """
    entries: dict[str, Entry] = {}
    folder, _ = folder_of(path)
    for where, cells in csv_rows(path, COLUMNS, ("path",), folder):
        entry = _entry(cells, folder, where)
        if entry.clip_id in entries:
            raise InputError(
                f"{where}: clip_id {entry.clip_id!r} occurs twice; give every clip one of its own"
            )
        entries[entry.clip_id] = entry
    return list(entries.values())


def csv_rows(
    path: str | Path, columns: Sequence[str], required: Sequence[str], folder: Folder | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV with a header: where each one is (file and line), and its stripped cells.

    `path` is a local file or, with its `folder`, a URI.

    Raises:
        InputError: not a readable CSV, a column missing, unknown or there twice, or a row that does
            not fit.
    """
    try:
        if folder is not None and is_uri(path):  # opened once: a store takes its time
            text = folder.read(_last_name(str(path))).decode("utf-8-sig")
        else:
            text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    header = list(reader.fieldnames or [])
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise InputError(
            f"{path}: column `{twice[0]}` occurs {header.count(twice[0])} times in its header; "
            "only one of them would be read: rename or remove the others"
        )
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise InputError(
                f"{path}: its cells are separated by {name}; separate them by commas, as "
                "spreadsheets do when they save as «CSV UTF-8» for English"
            )
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


def _entry(cells: dict[str, str], folder: Folder, where: str) -> Entry:
    source = cells["path"]
    if not source:
        raise InputError(f"{where}: `path` is empty; give the clip's path, or remove the row")
    start, end = (_seconds(cells, name, where) for name in ("start_seconds", "end_seconds"))
    if end is not None and end <= (start or 0):
        raise InputError(
            f"{where}: end_seconds {end:g} is not after the start, {start or 0:g}; correct them"
        )
    return Entry(
        location=_location(source, folder, where),
        clip_id=cells.get("clip_id") or without_suffix(Path(source)),
        source=source,
        subject=cells.get("subject") or None,
        label=cells.get("label") or None,
        split=cells.get("split") or None,
        apex_frame=apex_frame(cells.get("apex_frame", ""), where),
        dataset=cells.get("dataset") or _last_name(folder.location),
        fps=_fps(cells.get("fps", ""), where),
        start_seconds=start,
        end_seconds=end,
    )


def _location(source: str, folder: Folder, where: str) -> str:
    """Where a row's `path` leads. Raises InputError where it leads out of the CSV's folder."""
    if ".." in PurePosixPath(source).parts:
        raise InputError(
            f"{where}: path {source!r} goes up by `..`; move the CSV to a folder above its clips, "
            "or give the absolute path"
        )
    if is_uri(source):
        return source
    if is_uri(folder.location):
        return source if source.startswith("/") else folder.location_of(source)
    path = Path(folder.location, source)
    if not Path(source).is_absolute() and not path.resolve().is_relative_to(
        Path(folder.location).resolve()
    ):
        raise InputError(
            f"{where}: path {source!r} is a link that leads out of the CSV's folder, to "
            f"{path.resolve()}; give that path, if it is meant"
        )
    return str(path)


def apex_frame(cell: str, where: str) -> int | None:
    """The frame number in a cell; None where it is empty, InputError where it is not a number."""
    if not cell:
        return None
    if not cell.isdecimal():
        raise InputError(f"{where}: apex_frame {cell!r}: give a frame number from 0, or nothing")
    return int(cell)


def _seconds(cells: Mapping[str, str], name: str, where: str) -> float | None:
    cell = cells.get(name)
    if not cell:
        return None
    try:
        seconds = float(cell)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{where}: {name} {cell!r}: give seconds from 0, such as 2.5, or nothing")
    return seconds


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
