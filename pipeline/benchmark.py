"""From a data set to the table of methods: draw or unpack, extract, train every fold, report.

    python pipeline/benchmark.py --dataset synthetic --out bench            # the whole table
    python pipeline/benchmark.py --dataset synthetic --out quick --quick    # the same, in minutes
    python pipeline/benchmark.py --dataset ravdess --root ARCHIVES --out bench

Every method (`cfer.train.config.METHODS`) is trained on the same clips, folds, epochs and seeds; more
rows are trained on clips that were encoded without motion search, or with every frame. With
`--search` the rows are another table's: the recommended recipe, with one setting of the encoder or
of the training changed in each. Killed and started again, it goes on where it was. The table is in
`OUT/report`.
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script, Python looks for modules in pipeline/ and not in the folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cfer.cluster import join_cluster
from cfer.data.folds import ClipIndex, read_index
from cfer.errors import InputError, exit_with_message
from cfer.evaluate import report
from cfer.train.command import PROTOCOLS, parse_seeds
from cfer.train.config import METHODS, TrainConfig, config_of
from cfer.train.protocol import train_all
from pipeline import extract
from pipeline.datasets import synthetic
from pipeline.datasets.readers import NAMES

SYNTHETIC = "synthetic"
NUM_SUBJECTS = 60
QUICK_SUBJECTS = 12
QUICK: dict[str, Any] = {"folds": "2", "seeds": "0", "epochs": 4}
SEARCH_PROTOCOL: dict[str, Any] = {"folds": "5"}


@dataclass(frozen=True)
class TableRow:
    """A line of a table: a name, how its clips are encoded, how it is trained."""

    name: str
    codec: tuple[str, ...] = ()
    training: tuple[tuple[str, Any], ...] = ()


CROSS_ENTROPY = ("method", "cross-entropy")
MIN_MIN = ("method", "min-min")
# Of a GOP that encodes few of its frames, direct residuals are little else than accumulated ones.
EVERY_FRAME = ("--gop-size", "24")
NO_SEARCH = ("--no-motion-search",)

OPPONENTS = [
    *(TableRow(name, (), (("method", name),)) for name in METHODS if "direct" not in name),
    TableRow("no-motion-search", NO_SEARCH, (CROSS_ENTROPY,)),
    TableRow("no-motion-search+min-min", NO_SEARCH, (MIN_MIN,)),
    TableRow("every-frame", EVERY_FRAME, (CROSS_ENTROPY,)),
    TableRow("every-frame+min-min", EVERY_FRAME, (MIN_MIN,)),
    TableRow("every-frame+difference", EVERY_FRAME, (("method", "frame-difference"),)),
    *(TableRow(name, EVERY_FRAME, (("method", name),)) for name in METHODS if "direct" in name),
]

# Each changes one thing of the recommended recipe; the first is the recipe itself.
SEARCH = [
    TableRow("recommended", (), (CROSS_ENTROPY,)),
    *(TableRow(f"gop-size {n}", ("--gop-size", str(n)), (CROSS_ENTROPY,)) for n in (2, 6, 24)),
    TableRow("gop-span 12", ("--gop-span", "12"), (CROSS_ENTROPY,)),
    *(TableRow(f"quantizer {q}", ("--quantizer", str(q)), (CROSS_ENTROPY,)) for q in (2, 6, 10)),
    *(TableRow(f"size {n}", ("--size", str(n)), (CROSS_ENTROPY,)) for n in (64, 160)),
    TableRow("planes luma", (), (CROSS_ENTROPY, ("planes", "luma"))),
    TableRow("frames 4", ("--gop-size", "6"), (CROSS_ENTROPY, ("frames", "4"))),
    TableRow(
        "frames 4 pooling max",
        ("--gop-size", "6"),
        (CROSS_ENTROPY, ("frames", "4"), ("pooling", "max")),
    ),
    TableRow("gain-jitter 0", (), (CROSS_ENTROPY, ("gain_jitter", 0.0))),
    TableRow("shift-pixels 8", (), (CROSS_ENTROPY, ("shift_pixels", 8))),
    TableRow("width 8", (), (CROSS_ENTROPY, ("width", 8))),
    TableRow("width 32", (), (CROSS_ENTROPY, ("width", 32))),
    TableRow("lambda 0.3", (), (MIN_MIN, ("identity_weight", 0.3))),
    TableRow("lambda 1", (), (MIN_MIN, ("identity_weight", 1.0))),
    TableRow("lambda 5", (), (MIN_MIN, ("identity_weight", 5.0))),
    TableRow(
        "lambda 5 estimator-steps 5",
        (),
        (MIN_MIN, ("identity_weight", 5.0), ("estimator_steps", 5)),
    ),
]


def data_rows(rows: Sequence[TableRow], index: ClipIndex) -> list[TableRow]:
    """The rows that this data set can be trained for; the others are named with their reason."""
    kept = []
    for row in rows:
        settings = METHODS.get(dict(row.training).get("method", ""), {})
        reason = ""
        if settings.get("game") == "gradient-reversal" and not any(index.subjects):
            reason = "no clip has a subject"
        if settings.get("apex_weight") and not index.num_annotated_apexes:
            reason = "no clip has its apex annotated"
        if reason:
            say(f"left out: {row.name} ({reason})")
        else:
            kept.append(row)
    return kept


def chosen_rows(rows: Sequence[TableRow], names: str | None) -> list[TableRow]:
    """The rows of these names, commas between; all, where none is given. Raises InputError."""
    if names is None:
        return list(rows)
    wanted = [name.strip() for name in names.split(",")]
    unknown = sorted(set(wanted) - {row.name for row in rows})
    if unknown:
        raise InputError(
            f"--rows {names}: no row {', '.join(unknown)}; there are "
            f"{', '.join(row.name for row in rows)}"
        )
    return [row for row in rows if row.name in wanted]


def unpacked(root: Path, out: Path) -> Path:
    """The data set's tree: `root` itself, or what its ZIP archives hold, unpacked once.

    Raises:
        InputError: no such folder, or an archive that is damaged or would write outside `out`.
    """
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder; give the one with the data set's files")
    archives = sorted(path for path in root.iterdir() if path.suffix.lower() == ".zip")
    if not archives:
        return root
    for archive in archives:
        done = out / f".{archive.name}.done"
        if done.exists():
            continue
        say(f"unpacking {archive.name}")
        try:
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    if not (out / name).resolve().is_relative_to(out.resolve()):
                        raise InputError(f"{archive}: {name} would be written outside {out}")
                # One archive of RAVDESS after the other holds a folder of its own actor.
                file.extractall(out)
        except zipfile.BadZipFile as error:
            raise InputError(f"{archive}: {error}; download it again") from error
        except RuntimeError as error:
            # It has a password, or a compression that Python does not know.
            raise InputError(
                f"{archive}: {error}; unpack it yourself, and give --root the folder"
            ) from error
        done.touch()
    return out


def settings_of(options: argparse.Namespace) -> tuple[dict[str, Any], list[int]]:
    """What all rows have in common: the data set's protocol, shortened or not, and its seeds."""
    settings: dict[str, Any] = {**PROTOCOLS[options.dataset]}
    if options.search:
        settings |= SEARCH_PROTOCOL
    if options.quick:
        settings |= QUICK
    if settings.get("split") == "column":
        settings.pop("folds", None)  # an owner's split is one of its own
    if options.seeds:
        settings["seeds"] = options.seeds
    if options.epochs:
        settings["epochs"] = options.epochs
    return settings, parse_seeds(str(settings.pop("seeds", "0")))


def experiment_of(options: argparse.Namespace) -> str:
    """The MLflow experiment: one for each table, since all rows of one are compared."""
    words = ["recipe" if options.search else "benchmark", options.dataset]
    return "-".join(words + ["quick"] * options.quick)


def benchmark(options: argparse.Namespace) -> Path:
    """Everything, or what is left of it → the report's page."""
    started = time.monotonic()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    join_cluster(for_training=True)
    source = _source(options)
    settings, seeds = settings_of(options)
    rows = chosen_rows(SEARCH if options.search else OPPONENTS, options.rows)
    encodings = list(dict.fromkeys(row.codec for row in rows))
    say(
        f"{len(encodings)} ways of encoding to extract, then up to {len(rows)} rows to train; each "
        "says how long it takes when it begins"
    )
    experiment = options.experiment or experiment_of(options)
    shards = {codec: _extracted(codec, source, out, options) for codec in encodings}
    configs: list[TrainConfig] = []
    for row in data_rows(rows, read_index(shards[rows[0].codec])):
        given = {**settings, **dict(row.training), "run": row.name}
        config = config_of({**given, "data": shards[row.codec]})
        configs.append(
            replace(config, storage=str(out / "runs" / experiment), experiment=experiment)
        )
    train_all(configs, seeds, options.parallel)
    page = report.write(experiment, out / ("report-search" if options.search else "report"))
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {page}")
    return page


def _source(options: argparse.Namespace) -> list[str]:
    """The options that tell the extraction where the clips are."""
    if options.dataset == SYNTHETIC:
        videos = options.out / "videos"
        subjects = options.subjects or (QUICK_SUBJECTS if options.quick else NUM_SUBJECTS)
        synthetic.main(["--out", str(videos), "--subjects", str(subjects)])
        return ["--videos", str(videos / "manifest.csv")]
    if options.root is None:
        raise InputError(f"--dataset {options.dataset}: give --root, the folder with its files")
    return [
        *("--dataset", options.dataset),
        *("--root", str(unpacked(options.root, options.out / "unpacked"))),
    ]


def _extracted(
    codec: tuple[str, ...], source: list[str], out: Path, options: argparse.Namespace
) -> str:
    """The shards of one way of encoding."""
    name = "-".join(part.lstrip("-") for part in ("shards", *codec))
    arguments = [*source, "--out", str(out / name), *codec, "--identity", options.identity]
    say("extract " + " ".join(arguments))
    if extract.main([*arguments, "--max-failures", str(options.max_failures)]):
        raise InputError(
            f"{out / name}/failures.csv: more clips failed than --max-failures "
            f"{options.max_failures}; look at their reasons, and allow as many as you accept"
        )
    return str(out / name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python pipeline/benchmark.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--dataset", required=True, choices=(SYNTHETIC, *(n for n in NAMES if n in PROTOCOLS))
    )
    parser.add_argument("--root", type=Path, help="its folder, or one with its ZIP archives")
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    parser.add_argument("--quick", action="store_true", help="few people, folds and epochs")
    parser.add_argument(
        "--search", action="store_true", help="the rows of the recipe search, not the methods"
    )
    parser.add_argument("--rows", help="only these rows of the table, commas between")
    parser.add_argument("--subjects", type=int, help=f"people to draw ({NUM_SUBJECTS})")
    parser.add_argument("--seeds", help="of the protocol, commas between")
    parser.add_argument("--epochs", type=int, help="of each run")
    parser.add_argument("--identity", default="auto", help="frozen face recognizer (auto)")
    parser.add_argument("--experiment", help="MLflow experiment (benchmark-DATASET)")
    parser.add_argument("--parallel", type=int, default=0, help="runs at a time (as many as fit)")
    parser.add_argument("--max-failures", type=int, default=0, help="clips that may fail (0)")
    return parser


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    benchmark(build_parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    exit_with_message(main)
