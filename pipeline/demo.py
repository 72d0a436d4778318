"""The whole path on drawn faces: draw → extract → train → evaluate → predict, in minutes."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cfer.cli import run
from cfer.errors import InputError, status_of
from cfer.outputs import check_output_folder

NUM_CLASSES = 7


def demo(out: Path = Path("demo"), subjects: int = 40) -> int:
    """Draw people, extract, train, evaluate and predict, all in one folder; the commands are
    printed. Started again, it goes on where it was.

    Args:
        out: folder to work in.
        subjects: people to draw; a quarter of them is held out.
    """
    started = time.monotonic()
    if subjects < 4:
        raise InputError(f"--subjects {subjects}: give 4 or more; a quarter of them is held out")
    check_output_folder(out)
    held_out = [f"S{n:03d}" for n in range(subjects - subjects // 4 + 1, subjects + 1)]
    clip = f"videos/videos/{held_out[-1]}/happiness_1.mp4"
    steps = [
        (
            f"Draw {subjects} people, each with {NUM_CLASSES} expressions",
            f"draw --out videos --subjects {subjects}",
        ),
        (
            "Find the faces, encode, read I-frames and residuals out of the bitstreams",
            "extract --videos videos/manifest.csv --out shards --identity dlib",
        ),
        (
            f"Train on {subjects - len(held_out)} of them: the min-min game",
            "train --data shards --workers 2 --experiment demo --run demo --mu 0.1 "
            f"--epochs 30 --val-subjects {','.join(held_out)}",
        ),
        (f"The {len(held_out)} people that it has never seen", "evaluate demo"),
        (
            "The face of one of them, as a fixed-GOP clip; and its residuals as a picture",
            f"encode {clip} clip.mp4",
        ),
        ("", "look clip.mp4 residuals.png --model demo"),
        ("Its expression, from the P-frames alone", "predict clip.mp4 --model demo"),
    ]
    with contextlib.chdir(out):
        for title, command in steps:
            if title:
                print(f"\n== {title} ({time.monotonic() - started:.0f} s)", flush=True)
            print(f"$ cfer {command}", flush=True)
            status = _run_here(*shlex.split(command))
            if status:
                print(f"cfer demo: stopped, since the command above ended with {status}")
                return status
    minutes = (time.monotonic() - started) / 60
    print(
        f"\n== Done in {minutes:.1f} minutes. Chance is {1 / NUM_CLASSES:.2f}. Look next at:\n"
        f"  {out}/residuals.png                          what the recognizer sees\n"
        f"  cd {out} && mlflow ui --backend-store-uri sqlite:///mlflow.db\n"
        "                                              curves, confusion matrix, the model\n"
        f"  cd {out} && cfer predict YOUR_VIDEO --model demo\n"
        "  README.md                                   your own videos, options, how it works"
    )
    return 0


def _run_here(*argv: str) -> int:
    """A command in this process: each of its own would import PyTorch, and start Ray, again."""
    if argv[0] == "extract" and not Path("runs", "demo", "results.json").exists():
        from cfer.cluster import join_cluster

        # Training reports its progress through a Ray that was started for it.
        join_cluster(for_training=True)
    with _logging_restored():
        status = status_of(lambda: run(argv))
    sys.stdout.flush()
    return status


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """How a command wants its messages is not how the next one does."""
    loggers = [logging.getLogger(name) for name in (None, "cfer", "extract")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            for handler in set(logger.handlers) - set(handlers):
                logger.removeHandler(handler)
                handler.close()
            logger.setLevel(level)
            logger.propagate = propagate
