"""Which files are clips: videos by their suffix, and folders of numbered pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
# A file in a store is a video or not by its name alone; these are FFmpeg's own lists, less sound.
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".mts",
    ".3gp", ".3g2", ".264", ".265", ".amv", ".asf", ".divx", ".dv", ".f4v", ".gif", ".gxf",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".mj2", ".mjpeg", ".mjpg",
    ".mk3d", ".mod", ".mpe", ".mpv", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod",
    ".trp", ".ts", ".vob", ".wtv", ".xvid", ".y4m",
)  # fmt: skip
READ_FORMATS = (
    f"videos ({', '.join(VIDEO_SUFFIXES)}) and folders of numbered pictures "
    f"({', '.join(PICTURE_SUFFIXES)})"
)
NUM_EXAMPLES = 5  # of files, in a message


def is_video_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def is_video(path: Path) -> bool:
    return is_video_name(path.name) and path.is_file()


def is_numbered_picture(name: str) -> bool:
    """Whether a file's name is that of a picture, and ends in a number."""
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".") and stem[-1:].isdecimal()


def is_picture_folder(path: Path) -> bool:
    return path.is_dir() and any(is_numbered_picture(entry.name) for entry in os.scandir(path))


def numbered_pictures(folder: str | Path) -> list[Path]:
    """The numbered pictures of a folder, in the order of their numbers."""
    names = [e.name for e in os.scandir(folder) if is_numbered_picture(e.name) and e.is_file()]
    return [Path(folder) / name for name in sorted(names, key=picture_order)]


def picture_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """A key that sorts the names of numbered pictures: the number's, then the name itself."""
    # Text and numbers alternate, so that keys of the same prefix compare number with number.
    parts = re.split(r"(\d+)", os.path.splitext(name)[0])
    return tuple(int(part) if part.isdecimal() else part for part in parts), name


def clips_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The videos and folders of numbered pictures in this folder and all below it; and the files
    that are no clips. Both are sorted, and without hidden files.

    A folder that several links lead to, or that a link in it leads back to, is searched once.
    """
    clips: list[Path] = []
    left_out: list[Path] = []
    seen: set[tuple[int, int]] = set()
    # Links come last, so that a folder is known by its own name where it has one here.
    waiting = [folder]
    while waiting:
        for where, folders, files in os.walk(
            waiting.pop(0), onerror=lambda error: left_out.append(Path(error.filename))
        ):
            here = Path(where)
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [here / name for name in folders if (here / name).is_symlink()]
            if any(map(is_numbered_picture, files)):
                clips.append(here)
            for name in files:
                if is_video(here / name):
                    clips.append(here / name)
                elif not is_numbered_picture(name) and not name.startswith("."):
                    left_out.append(here / name)
    return sorted(clips), sorted(left_out)


def left_out_line(names: Sequence[str | Path]) -> str:
    """A line about the files that `clips_below` left out."""
    some = ", ".join(map(str, names[:NUM_EXAMPLES]))
    more = f", … and {len(names) - NUM_EXAMPLES} more" if len(names) > NUM_EXAMPLES else ""
    are = "1 file is" if len(names) == 1 else f"{len(names)} files are"
    return f"{are} left out, no clip by the name: {some}{more}"
