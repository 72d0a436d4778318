"""From videos to Parquet shards of their faces, encoded.

    python pipeline/extract.py                             # the built-in people → shards/
    cfer extract --videos DIR|GLOB|MANIFEST.csv --out DIR
    cfer extract --dataset ck+ --root TREE --out DIR
    cfer extract --dataset puppets --root PHOTOS --out DIR
    ray job submit --working-dir . -- python pipeline/extract.py --videos … --out …

Per clip: find the face, cut it out, encode it at a fixed GOP, and embed an I-frame of the
bitstream by a frozen face network; I-frames and residuals stay in the bitstream. Which clips make
up a shard is decided beforehand (`pipeline.plan`), and the shards are made by a Ray Data job
(`pipeline.job`). A clip that cannot be used ends in `failures.csv` with its reason, one that
crashes the decoder too.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if not __package__:
    # Run as a script, Python looks for modules in pipeline/ and not in the folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cfer.errors import InputError, exit_with_message
from cfer.options import check_at_least, given, parse
from pipeline.settings import PAPER, ExtractionSettings

if TYPE_CHECKING:
    from pipeline.manifest import Entry

LOG_NAME = "extract.log"
# Where what is made here is kept, beside the shards: the built-in people, and puppets.
DRAWN, ANIMATED = "drawn", "puppets"
DatasetName = Literal[
    "ck+",
    "mmi",
    "afew",
    "oulu-casia",
    "ravdess",
    "crema-d",
    "folder",
    "csv",
    "synthetic",
    "puppets",
]

log = logging.getLogger("extract")


@dataclass(frozen=True)
class ExtractOptions:
    """Videos → Parquet shards of encoded faces and identity embeddings. Without --videos and
    --dataset the built-in people are drawn, into drawn/ beside the shards, and extracted."""

    settings: ExtractionSettings
    videos: str | None = None  # a folder or a CSV (path or s3://…), or a glob pattern
    dataset: DatasetName | None = None  # in its owners' layout, below --root
    root: Path | None = None  # where --dataset was unpacked; of csv, the file; of puppets, photos
    out: str = "shards"  # folder or URI (s3://…) to write
    preset: Literal["paper"] | None = None  # GOPs of 12, every frame, 224 × 224
    identity_weights: Path | None = None  # file of FaceNet's weights
    classes: str | None = None  # class names in order, commas between; not given: those found
    actors: int | None = None  # clips at a time; not given: as many as there are CPUs
    gpu: bool = False  # embed the I-frames on GPUs
    max_failures: int = 0  # exit with status 1 above so many


@dataclass(frozen=True)
class _Named:
    """The options that decide what others are."""

    preset: Literal["paper"] | None = None
    quantizer: int | None = None
    bit_rate: int | None = None


def options_of(argv: Sequence[str] | None) -> ExtractOptions:
    """The options of a command line: those given, then those of the preset.

    Raises:
        InputError: a value that can't be, or options that exclude each other.
    """
    named = given(_Named, argv)
    if named.quantizer is not None and named.bit_rate is not None:
        raise InputError("--quantizer, --bit-rate: give one of them")
    defaults = ExtractOptions(ExtractionSettings(**(PAPER if named.preset else {})))
    options = parse(ExtractOptions, "cfer extract", argv, defaults)
    settings = options.settings
    if named.bit_rate is not None:
        settings = replace(settings, quantizer=None)
    if options.videos is not None and options.dataset is not None:
        raise InputError("--videos, --dataset: give one of them")
    if options.root is not None and options.dataset in (None, "synthetic"):
        raise InputError(f"--root {options.root}: only for a --dataset whose files are there")
    if options.root is None and options.dataset not in (None, "synthetic"):
        raise InputError(f"--dataset {options.dataset}: needs --root, the folder with its files")
    check_at_least(1, actors=options.actors)
    check_at_least(0, max_failures=options.max_failures)
    return replace(options, settings=settings.checked())


def made_beside(out: str, folder: str) -> Path:
    """Where videos are made: beside the shards, on a disk that all nodes share.

    Raises:
        InputError: the shards go to an object store.
    """
    if "://" in out:
        raise InputError(
            f"--out {out}: videos are made on a disk; make them by `cfer draw` or `cfer puppets` "
            "(--out DIR), and give --videos DIR/manifest.csv"
        )
    return Path(out).parent / folder


def clips_of(options: ExtractOptions) -> tuple[list[Entry], list[str]]:
    """The clips that are given, sorted, and their classes in order."""
    from pipeline.datasets import puppets, readers, synthetic
    from pipeline.manifest import class_names, read_manifest

    ordered = None
    if options.classes is not None:
        ordered = [name.strip() for name in options.classes.split(",")]
    if options.dataset in (None, "synthetic", "puppets"):
        videos, workers = options.videos, os.cpu_count() or 1
        if options.dataset == "puppets":
            assert options.root is not None
            animated = made_beside(options.out, ANIMATED)
            videos = str(puppets.animate(options.root, animated, workers=workers))
        elif videos is None:
            drawn = made_beside(options.out, DRAWN)
            videos = str(synthetic.draw_dataset(drawn, workers=workers))
        entries = read_manifest(videos)
        classes = class_names(entries, ordered)
    else:
        assert options.root is not None
        entries, classes = readers.read_dataset(options.dataset, options.root, ordered)
    if len(classes) == 1:
        log.warning("every label is %s: nothing can be learned from one class alone", classes[0])
    return entries, classes


def main(argv: Sequence[str] | None = None) -> int:
    """Extract as the command line says → exit status.

    Raises:
        InputError: options, sources or an existing output that is not right.
    """
    options = options_of(argv)
    from pipeline.job import extract, summary

    _log_to(options.out)
    started = time.monotonic()
    entries, classes = clips_of(options)
    description, num_new_frames = extract(
        entries,
        classes,
        options.out,
        options.settings,
        weights=options.identity_weights,
        num_actors=options.actors,
        use_gpu=options.gpu,
    )
    seconds = time.monotonic() - started
    log.info("%s", summary(description, options.out, num_new_frames, seconds))
    if len(description.failures) > options.max_failures:
        log.info("more failures than --max-failures %d", options.max_failures)
        return 1
    return 0


def _log_to(out: str) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if "://" not in out:
        Path(out).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(out) / LOG_NAME))
        handlers[-1].setLevel(logging.DEBUG)
    handlers[0].setLevel(logging.INFO)
    form = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    # A process may extract several times, each into its own log.
    for old in list(log.handlers):
        log.removeHandler(old)
        logging.getLogger("cfer").removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(form)
        log.addHandler(handler)
        logging.getLogger("cfer").addHandler(handler)


if __name__ == "__main__":
    exit_with_message(main)
