"""What the benches run on: videos of one's own, a drawn texture that moves, or many drawn faces."""

from __future__ import annotations

import csv
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from cfer.codec.containers import open_input
from cfer.data.storage import Folder
from cfer.errors import InputError
from cfer.video.pictures import open_pictures

MANIFEST = "manifest.csv"
DRAWN = "drawn"  # in a folder of many clips: the few that they are copies of
CLIPS_PER_FOLDER = 1000


def moving_texture(num_frames: int, size: int, seed: int = 0) -> list[np.ndarray]:
    """A blurred noise picture that drifts, turns and flickers: RGB, uint8 (size, size, 3) each."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (2 * size, 2 * size, 3)).astype(np.float32)
    base = cv2.GaussianBlur(noise, (0, 0), 3)
    base = (base - base.mean()) * 4 + 128
    pictures = []
    for t in range(num_frames):
        turn = cv2.getRotationMatrix2D((size, size), 1.5 * np.sin(t / 5), 1)
        turn[:, 2] += [5 * np.sin(t / 7) - size / 2, 4 * np.cos(t / 6) - size / 2]
        moved = cv2.warpAffine(base, turn, (size, size)) + 4 * np.sin(t / 3)
        pictures.append(np.clip(moved, 0, 255).astype(np.uint8))
    return pictures


def square_pictures(path: Path, size: int, max_frames: int) -> list[np.ndarray]:
    """The middle square of a video's first frames, scaled: RGB, uint8 (size, size, 3) each."""
    pictures = []
    for picture in itertools.islice(open_pictures(path), max_frames):
        side = min(picture.shape[:2])
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        pictures.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
    return pictures


def clips_of(videos: list[Path], size: int, max_frames: int) -> list[list[np.ndarray]]:
    """The pictures of each video; without a video, of two textures."""
    if videos:
        return [square_pictures(path, size, max_frames) for path in videos]
    return [moving_texture(max_frames, size, seed) for seed in range(2)]


def many_clips(folder: Path, count: int) -> list[dict[str, str]]:
    """The first `count` rows of a folder's manifest; each `path` is absolute.

    In a new folder there are drawn faces: 6 people × 7 expressions, again and again, each file with
    a comment of its own in it, so that no two have the same bytes. What is there already is kept.

    Raises:
        InputError: a folder of one's own that has fewer clips or no paths, or the drawing failed.
    """
    manifest = folder / MANIFEST
    if (folder / DRAWN).exists() or not manifest.exists():
        _draw_many(folder, count)
    rows = _rows(manifest)
    if len(rows) < count:
        raise InputError(
            f"--material {folder}: its {MANIFEST} has {len(rows)} clips and {count} are wanted; "
            "ask for fewer, or name a new folder to have faces drawn"
        )
    return [{**row, "path": str((folder / row["path"]).resolve())} for row in rows[:count]]


def _draw_many(folder: Path, count: int) -> None:
    if not (folder / DRAWN / MANIFEST).exists():  # which is written last
        _draw(folder / DRAWN)
    drawn = _rows(folder / DRAWN / MANIFEST)
    rows = []
    for number in tqdm(range(count), "material", unit="clip", disable=None, leave=False):
        source = drawn[number % len(drawn)]
        path = Path("clips", f"{number // CLIPS_PER_FOLDER:04d}", f"clip-{number:07d}.mp4")
        rows.append(
            {
                "path": str(path),
                "clip_id": path.stem,
                "subject": source["subject"],
                "label": source["label"],
            }
        )
        if not (folder / path).exists():
            _copy_with_comment(folder / DRAWN / source["path"], folder / path, path.stem)
    manifest = folder / MANIFEST
    if not manifest.exists() or len(_rows(manifest)) < count:
        write_rows(manifest, rows)


def _draw(folder: Path) -> None:
    command = [
        *(sys.executable, "-m", "pipeline.datasets.synthetic"),
        *("--out", str(folder), "--subjects", "6"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def _copy_with_comment(source: Path, target: Path, comment: str) -> None:
    """The same packets in a file of other bytes; it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    with (
        open(source, "rb") as there,
        open_input(there) as video,
        open(temporary, "wb") as file,
        av.open(file, "w", format="mp4") as copy,
    ):
        copy.metadata["comment"] = comment
        stream = copy.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video.streams.video[0]):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    os.replace(temporary, target)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """A manifest that `pipeline/extract.py` reads; it appears whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    Folder(path.parent).write(path.name, text.getvalue().encode())


def _rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not rows[0].keys() >= {"path", "clip_id"}:
        raise InputError(f"{manifest}: needs the columns path and clip_id, and a row")
    return rows
