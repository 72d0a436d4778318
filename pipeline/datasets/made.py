"""Data sets that are made here: videos written by many processes, resumable.

A folder belongs to the settings that it was begun with. A video appears whole or not at all, and
one that is there is not made again.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import av
import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from cfer.errors import InputError

# A child of the extraction's logger: what is made for it is in its log.
log = logging.getLogger("extract.made")
Task = TypeVar("Task")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Another path to write to: the file appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    yield temporary
    os.replace(temporary, path)


def write_video(path: Path, pictures: Iterable[np.ndarray], fps: Fraction | int, crf: int) -> int:
    """Write RGB uint8 pictures as H.264 at a constant rate factor → how many there were.

    The same pictures give the same bytes. An odd side loses its last line: 4:2:0 has none.
    """
    count = 0
    with (
        written_whole(path) as temporary,
        open(temporary, "wb") as file,
        av.open(file, "w", format="mp4") as container,
    ):
        # x264's assembly for macroblock trees gives other bits from run to run.
        options = {"crf": str(crf), "preset": "veryfast", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for picture in pictures:
            height, width = (side // 2 * 2 for side in picture.shape[:2])
            if count == 0:
                stream.height, stream.width = height, width
            count += 1
            even = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))
    return count


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV with a header, whole or not at all."""
    with written_whole(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def make_missing(
    directory: Path,
    tasks: Sequence[Task],
    path_of: Callable[[Task], str],
    make: Callable[[Task], int],
    verb: str,
    workers: int,
) -> None:
    """Make the videos that are not there yet, with a progress bar, or lines in a log.

    Args:
        path_of: where a task's video is, below the directory.
        make: makes one → its number of frames; runs in other processes.
        verb: what is done, as in "drawing".
    """
    for parent in {(directory / path_of(task)).parent for task in tasks}:
        parent.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not (directory / path_of(task)).exists()]
    if len(missing) < len(tasks):
        log.info("%d of %d clips are there already", len(tasks) - len(missing), len(tasks))
    start = last = time.monotonic()
    frames = 0
    from tqdm import tqdm

    bar = tqdm(_made(missing, make, workers), verb, len(missing), unit="clip", disable=None)
    for done, count in enumerate(bar, start=1):
        frames += count
        if bar.disable and time.monotonic() - last > 10:
            last = time.monotonic()
            log.info("%s: %d of %d clips", verb, done, len(missing))
    seconds = max(time.monotonic() - start, 1e-9)
    log.info(
        "%s: %d clips, %d frames made now in %.0f s (%.0f frames/s)",
        directory,
        len(tasks),
        frames,
        seconds,
        frames / seconds,
    )


def _made(tasks: Sequence[Task], make: Callable[[Task], int], workers: int) -> Iterator[int]:
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(make, tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        for future in as_completed([pool.submit(make, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle; threads of OpenCV and NumPy would fight over the workers'
    # cores.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threadpool_limits(1)


def claim(directory: Path, mine: Mapping[str, Any]) -> None:
    """Make the folder these settings' own.

    Raises:
        InputError: it is another's, or can't be written.
    """
    record = directory / "settings.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            with written_whole(record) as temporary:
                temporary.write_text(json.dumps(mine, indent=1) + "\n")
            return
        theirs = json.loads(record.read_text())
    except OSError as error:
        raise InputError(
            f"--out {directory}: can't be written ({error.strerror}); give another folder"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{record}: is not the record of a set that was made here ({error}); delete the folder "
            "or give another one with --out"
        ) from error
    if theirs != mine:
        differing = [
            f"{name} {theirs.get(name)} there, {value} now"
            for name, value in mine.items()
            if theirs.get(name) != value
        ]
        raise InputError(
            f"--out {directory}: was made with other settings ({', '.join(differing)}); use the "
            "same ones, delete the folder, or give another one"
        )
