"""The clips that the benches run on: videos of the user's, drawn textures, or many drawn faces."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from cfer.data.storage import Folder
from cfer.errors import InputError
from cfer.video.pictures import open_pictures

MANIFEST = "manifest.csv"
DRAWN = "drawn"  # in a folder of many clips: the few that they are copies of
CLIPS_PER_FOLDER = 1000


def clips_of(videos: Sequence[Path], size: int, max_frames: int) -> list[list[np.ndarray]]:
    """The first pictures of each video, its middle square scaled; without a video, of two textures.

    RGB, uint8 (size, size, 3) each.
    """
    if videos:
        return [_square_pictures(path, size, max_frames) for path in videos]
    return [moving_texture(max_frames, size, seed) for seed in range(2)]


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


def _square_pictures(path: Path, size: int, max_frames: int) -> list[np.ndarray]:
    pictures = []
    for picture in itertools.islice(open_pictures(path), max_frames):
        side = min(picture.shape[:2])
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        pictures.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
    return pictures


def write_video(path: Path, pictures: Iterable[np.ndarray], fps: Fraction, crf: int) -> None:
    """H.264 at a constant rate factor: RGB, uint8 (H, W, 3) each, all of one size.

    The same pictures give the same bytes.
    """
    with open(path, "wb") as file, av.open(file, "w", format="mp4") as container:
        # x264's assembly for macroblock trees gives other bits from run to run.
        options = {"crf": str(crf), "preset": "veryfast", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for number, picture in enumerate(pictures):
            # 4:2:0 has even sides.
            even = np.ascontiguousarray(
                picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
            )
            if number == 0:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))


def many_clips(folder: Path, count: int) -> list[dict[str, str]]:
    """The first `count` rows of a folder's manifest; each `path` is absolute.

    A new folder is filled with drawn faces: 6 people × 7 expressions, again and again, each file
    with a name of its own at its end, so that no two have the same bytes. Whole files are kept.

    Raises:
        InputError: a folder of the user's that has fewer clips, or no paths.
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
        from pipeline.datasets.synthetic import draw_dataset

        draw_dataset(folder / DRAWN, subjects=6)
    drawn = _rows(folder / DRAWN / MANIFEST)
    videos = [(folder / DRAWN / row["path"]).read_bytes() for row in drawn]
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
        # A box at an MP4's end that every reader skips (ISO/IEC 14496-12, 8.1.2).
        name = path.stem.encode()
        data = videos[number % len(videos)] + (8 + len(name)).to_bytes(4, "big") + b"free" + name
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.stat().st_size != len(data):
            target.write_bytes(data)
    manifest = folder / MANIFEST
    if not manifest.exists() or len(_rows(manifest)) < count:
        write_rows(manifest, rows)


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """A manifest that the extraction reads; it appears whole or not at all."""
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
