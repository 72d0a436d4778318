"""From a data set to the table of methods: make or unpack, extract, train every fold, report.

    cfer benchmark --dataset synthetic --out bench            # the whole table
    cfer benchmark --dataset synthetic --out quick --quick    # the same, in minutes
    cfer benchmark --dataset puppets --root PHOTOS --out bench
    cfer benchmark --dataset ravdess --root ARCHIVES --out bench

Every method (`cfer.train.config.METHODS`) is trained on the same clips, folds, epochs and seeds;
more rows are trained on clips that were encoded without motion search, or with every frame. With
`--search` the rows are another table's: the recommended recipe, with one setting of the encoder or
of the training changed in each. With `--curve` they are methods at several strengths, for the plot
of the accuracy against what an attacker finds out. Killed and started again, it goes on where it
was. The table is in `OUT/report` (`OUT/report-search`, `OUT/report-curve`).
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cfer.errors import InputError, exit_with_message
from cfer.options import check_at_least, parse
from cfer.outputs import say
from cfer.train.command import PROTOCOLS, parse_seeds
from cfer.train.config import METHODS, NAMING_GAMES, TrainConfig, config_of

if TYPE_CHECKING:
    from cfer.data.folds import ClipIndex

SYNTHETIC, PUPPETS = "synthetic", "puppets"
NUM_SUBJECTS = 60
QUICK_SUBJECTS = 12
QUICK: dict[str, Any] = {"folds": "2", "seeds": "0", "epochs": 4}
SEARCH_PROTOCOL: dict[str, Any] = {"folds": "5"}


DatasetName = Literal[
    "synthetic", "puppets", "ck+", "mmi", "afew", "oulu-casia", "ravdess", "crema-d"
]


@dataclass(frozen=True)
class BenchmarkOptions:
    """From a data set to the table of methods: make or unpack, extract, train all folds, report."""

    dataset: DatasetName
    out: Path  # folder to work in
    root: Path | None = (
        None  # the data set's folder, or one with its ZIP archives; of puppets, photos
    )
    quick: bool = False  # few people, folds and epochs
    search: bool = False  # the rows of the recipe search, not the methods
    curve: bool = False  # the methods at several strengths: accuracy against identity
    rows: str | None = None  # only these rows of the table, commas between
    subjects: int | None = None  # people to draw (60) or animate (all); 12 with --quick
    seeds: str | None = None  # commas between; not given: those of the data set's protocol
    epochs: int | None = None  # of each run; not given: those of the protocol
    identity: str = "auto"  # frozen face network
    experiment: str | None = None  # MLflow experiment; not given: benchmark-DATASET
    parallel: int = 0  # runs at a time; 0: as many as fit
    max_failures: int = 0  # clips that may fail


@dataclass(frozen=True)
class TableRow:
    """A line of a table: a name, how its clips are encoded, how it is trained."""

    name: str
    codec: tuple[str, ...] = ()
    training: tuple[tuple[str, Any], ...] = ()


CROSS_ENTROPY = ("method", "cross-entropy")
MIN_MIN = ("method", "min-min")
# Of a GOP that encodes few of its frames, direct residuals are little else than accumulated ones.
# Of these, more than one view would not fit into memory.
EVERY_FRAME = ("--gop-size", "24", "--gop-seconds", "0", "--views", "1")
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
    TableRow("views 1", ("--views", "1"), (CROSS_ENTROPY,)),
    *(TableRow(f"gop-size {n}", ("--gop-size", str(n)), (CROSS_ENTROPY,)) for n in (2, 6, 24)),
    *(TableRow(f"gop-seconds {s}", ("--gop-seconds", s), (CROSS_ENTROPY,)) for s in ("0.5", "1.5")),
    *(TableRow(f"quantizer {q}", ("--quantizer", str(q)), (CROSS_ENTROPY,)) for q in (2, 6, 10)),
    *(TableRow(f"size {n}", ("--size", str(n)), (CROSS_ENTROPY,)) for n in (64, 160)),
    *(TableRow(f"input {i}", (), (CROSS_ENTROPY, ("input", i))) for i in ("accumulated", "motion")),
    TableRow("planes luma", (), (CROSS_ENTROPY, ("planes", "luma"))),
    TableRow("frames 2", (), (CROSS_ENTROPY, ("frames", "2"))),
    TableRow("frames 2 pooling max", (), (CROSS_ENTROPY, ("frames", "2"), ("pooling", "max"))),
    TableRow("gain-jitter 0", (), (CROSS_ENTROPY, ("gain_jitter", 0.0))),
    TableRow("gain-jitter 0.3", (), (CROSS_ENTROPY, ("gain_jitter", 0.3))),
    TableRow("shift-pixels 4", (), (CROSS_ENTROPY, ("shift_pixels", 4))),
    TableRow("width 16", (), (CROSS_ENTROPY, ("width", 16))),
    TableRow("width 48", (), (CROSS_ENTROPY, ("width", 48))),
    *(TableRow(f"lambda {w:g}", (), (MIN_MIN, ("identity_weight", w))) for w in (0.1, 0.3, 1.0)),
    TableRow("code-dim 64", (), (CROSS_ENTROPY, ("code_dim", 64))),
]

WIDE = TableRow("cross-entropy code-dim 64", (), (CROSS_ENTROPY, ("code_dim", 64)))


def _swept(method: str, weights: Sequence[float]) -> list[TableRow]:
    return [
        TableRow(f"{method} lambda {w:g}", (), (("method", method), ("identity_weight", w)))
        for w in weights
    ]


# What each method takes from the identity, and from the accuracy. The first is the reference.
CURVE = [
    TableRow("cross-entropy", (), (CROSS_ENTROPY,)),
    WIDE,
    *(TableRow(f"{WIDE.name} erase {k}", (), (*WIDE.training, ("erase", k))) for k in (4, 16)),
    *_swept("min-min", (0.1, 0.3, 1.0)),
    TableRow("min-min erase 1", (), (MIN_MIN, ("erase", 1))),
    *_swept("min-min-vclub", (1.0, 10.0, 100.0)),
    *_swept("min-max", (0.1, 1.0)),
    *_swept("gradient-reversal", (0.1, 1.0)),
    *(TableRow(name, (), (("method", name),)) for name in ("stills-apex", "frame-difference")),
    *_swept("stills-apex+min-min", (0.3, 1.0)),
    *(
        TableRow(f"{name} blur {sigma:g}", (), (("method", name), ("blur", sigma)))
        for name in ("stills-apex", "cross-entropy")
        for sigma in (2.0, 4.0)
    ),
    *(TableRow(name, (), (("method", name),)) for name in ("residual", "motion", "identification")),
]


# Of each table: what its experiment's name begins with, its rows, the folder of its page.
TABLES = {
    "methods": ("benchmark", OPPONENTS, "report"),
    "search": ("recipe", SEARCH, "report-search"),
    "curve": ("curve", CURVE, "report-curve"),
}


def table_of(options: BenchmarkOptions) -> str:
    """Which of `TABLES` was asked for. Raises InputError where two were."""
    if options.search and options.curve:
        raise InputError("--search, --curve: two tables; give one of the two")
    return "search" if options.search else "curve" if options.curve else "methods"


def data_rows(rows: Sequence[TableRow], index: ClipIndex) -> list[TableRow]:
    """The rows that this data set can be trained for; the others are named with their reason."""
    kept = []
    for row in rows:
        settings = METHODS.get(dict(row.training).get("method", ""), {})
        reason = ""
        if settings.get("game") in NAMING_GAMES and not any(index.subjects):
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


def settings_of(options: BenchmarkOptions) -> tuple[dict[str, Any], list[int]]:
    """What all rows have in common: the data set's protocol, shortened or not, and its seeds."""
    settings: dict[str, Any] = {**PROTOCOLS[options.dataset]}
    if options.search:
        settings |= SEARCH_PROTOCOL
    if options.quick:
        settings |= QUICK
    if settings.get("split") == "column":
        settings.pop("folds", None)  # an owner's split is one of its own
    if options.seeds is not None:
        settings["seeds"] = options.seeds
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    return settings, parse_seeds(str(settings.pop("seeds", "0")))


def experiment_of(options: BenchmarkOptions) -> str:
    """The MLflow experiment: one for each table, since all rows of one are compared."""
    words = [TABLES[table_of(options)][0], options.dataset]
    return "-".join(words + ["quick"] * options.quick)


def main(argv: Sequence[str] | None = None) -> int:
    """Everything, or what is left of it → exit status."""
    options = parse(BenchmarkOptions, "cfer benchmark", argv)
    check_at_least(1, subjects=options.subjects, epochs=options.epochs)
    check_at_least(0, parallel=options.parallel, max_failures=options.max_failures)
    from cfer.cluster import join_cluster
    from cfer.data.folds import read_index
    from cfer.evaluate import report
    from cfer.train.protocol import train_all

    started = time.monotonic()
    _, table, folder = TABLES[table_of(options)]
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    join_cluster(for_training=True)
    source = _source(options)
    settings, seeds = settings_of(options)
    rows = chosen_rows(table, options.rows)
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
    page = report.write(experiment, out / folder)
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {page}")
    return 0


def _source(options: BenchmarkOptions) -> list[str]:
    """The options that tell the extraction where the clips are."""
    if options.dataset == SYNTHETIC:
        videos = options.out / "videos"
        subjects = options.subjects or (QUICK_SUBJECTS if options.quick else NUM_SUBJECTS)
        from pipeline.datasets import synthetic

        synthetic.draw(out=videos, subjects=subjects)
        return ["--videos", str(videos / "manifest.csv")]
    if options.root is None:
        raise InputError(f"--dataset {options.dataset}: give --root, the folder with its files")
    if options.dataset == PUPPETS:
        from pipeline.datasets import puppets

        people = options.subjects or (QUICK_SUBJECTS if options.quick else None)
        puppets.puppets(photos=options.root, out=options.out / "videos", people=people)
        return ["--videos", str(options.out / "videos" / "manifest.csv")]
    return [
        *("--dataset", options.dataset),
        *("--root", str(unpacked(options.root, options.out / "unpacked"))),
    ]


def _extracted(
    codec: tuple[str, ...], source: list[str], out: Path, options: BenchmarkOptions
) -> str:
    """The shards of one way of encoding."""
    name = "-".join(part.lstrip("-") for part in ("shards", *codec))
    arguments = [*source, "--out", str(out / name), *codec, "--identity", options.identity]
    say("extract " + " ".join(arguments))
    from pipeline import extract

    if extract.main([*arguments, "--max-failures", str(options.max_failures)]):
        raise InputError(
            f"{out / name}/failures.csv: more clips failed than --max-failures "
            f"{options.max_failures}; look at their reasons, and allow as many as you accept"
        )
    return str(out / name)


if __name__ == "__main__":
    exit_with_message(main)
