"""Train on the shards of a data set: one run, or a protocol of many.

    python -m cfer.train --workers 8                         # the min-min game on shards/
    cfer train --data SHARDS --protocol ck+                  # ten folds, one parent
    cfer train --data SHARDS --folds 5 --seeds 0,1,2 --sweep lambda=0,0.3,1,3
    cfer evaluate cfer                                       # the table of the runs

Subjects are held out, or the owner's split is followed. Every figure that a run ends with is from
its last epoch: nothing is chosen by looking at the held-out subjects. Killed and started again with
the same `--run`, a run goes on from its last checkpoint (`cfer.train.protocol`: of many).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from cfer.errors import InputError
from cfer.options import check_at_least, given, parse
from cfer.train.config import METHODS, OPERATIONAL, SHORT_NAMES, Method, TrainConfig

if TYPE_CHECKING:
    from cfer.train.protocol import Summary

# How results on a data set are reported: subject-independent folds, or its owner's split.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "ck+": {"folds": "10"},
    "mmi": {"folds": "10"},
    "oulu-casia": {"folds": "10"},
    "afew": {"split": "column", "seeds": "0,1,2"},
    "ravdess": {"folds": "6"},
    "crema-d": {"folds": "5"},
    # A third of the recommended epochs: all methods have to fit into an hour or two of two cores.
    "synthetic": {"folds": "5", "seeds": "0,1,2", "epochs": 30},
    "puppets": {"folds": "5", "seeds": "0,1,2", "epochs": 30},
    "loso": {"folds": "loso"},
}
Protocol = Literal[
    "ck+", "mmi", "oulu-casia", "afew", "ravdess", "crema-d", "synthetic", "puppets", "loso"
]
# The game as the paper plays it; all the rest of the recipe is ours.
PAPER: dict[str, Any] = {"method": "min-min-vclub", "apex_weight": 1.0}
# What a sweep can't change: what has an option of its own, or does not change the result.
NOT_SWEPT = (*OPERATIONAL, "seed", "fold")
SET_BY_METHODS = sorted({name for settings in METHODS.values() for name in settings})


@dataclass(frozen=True)
class TrainOptions:
    """Train on the shards of a data set: one run, or a protocol of many."""

    config: TrainConfig
    preset: Literal["paper"] | None = None  # the min-min game, with the apex where it is annotated
    protocol: Protocol | None = None  # how results on this data set are reported
    seeds: str = ""  # run everything with each of these, commas between
    sweep: str = ""  # run the protocol for each value of an option: lambda=0,0.3,1,3
    parallel: int = 0  # runs at a time; 0: as many as there is room for


@dataclass(frozen=True)
class _Named:
    """The options that decide what is the default of others."""

    method: Method | None = None
    preset: Literal["paper"] | None = None
    protocol: Protocol | None = None
    seed: int | None = None
    seeds: str | None = None


def options_of(argv: Sequence[str] | None) -> TrainOptions:
    """The options of a command line: those given, then what method, preset and protocol say.

    Raises:
        InputError: see `TrainConfig.checked`; `--seed` beside `--seeds`.
    """
    named = given(_Named, argv)
    if named.seed is not None and named.seeds is not None:
        raise InputError("--seed, --seeds: give one of them")
    defaults = {**(PAPER if named.preset else {}), **PROTOCOLS.get(named.protocol or "", {})}
    if named.preset and named.method:
        raise InputError("--preset, --method: give one of them; the preset has a method of its own")
    seeds = defaults.pop("seeds", "")
    if named.seed is not None:
        seeds = ""
    method = named.method or defaults.get("method", "min-min")
    config = TrainConfig(**{**METHODS[method], **defaults, "method": method})
    options = parse(TrainOptions, "cfer train", argv, TrainOptions(config, seeds=seeds))
    check_at_least(0, parallel=options.parallel)
    config = replace(options.config, run=options.config.run or method).checked()
    if "/" in config.run or config.run.startswith("."):
        raise InputError(f"--run {config.run}: a name, not a path; --storage says where")
    return replace(options, config=config)


@dataclass(frozen=True)
class Sweep:
    """A field of the configuration, and the values that it is to take."""

    field: str
    values: list[Any]

    @staticmethod
    def parse(text: str) -> Sweep:
        """`lambda=0,0.3,1` → a sweep. Raises InputError."""
        name, _, listed = text.partition("=")
        long_names = {short: long for long, short in SHORT_NAMES.items()}
        name = long_names.get(name, name.replace("-", "_"))
        if name in NOT_SWEPT:
            raise InputError(
                f"--sweep {text}: give an option of the training; for seeds there is --seeds, for "
                "folds --folds"
            )
        kinds: dict[str, type] = {f.name: type(f.default) for f in fields(TrainConfig)}
        if name not in kinds or not listed:
            raise InputError(
                f"--sweep {text}: give an option and its values, such as lambda=0,0.3,1,3"
            )
        try:
            return Sweep(name, [kinds[name](value) for value in listed.split(",")])
        except ValueError as error:
            raise InputError(f"--sweep {text}: {error}; give values of {name}") from error

    def apply(self, config: TrainConfig) -> list[TrainConfig]:
        """The configuration with each value. Raises InputError: see `TrainConfig.checked`."""
        short = SHORT_NAMES.get(self.field, self.field)
        if self.field == "method":
            return [_with_method(config, f"{config.run}-method={m}", m) for m in self.values]
        return [
            replace(config, run=f"{config.run}-{short}={value}", **{self.field: value}).checked()
            for value in self.values
        ]


def _with_method(config: TrainConfig, run: str, method: str) -> TrainConfig:
    """The configuration with another method; what was given beside the method stays."""
    if method not in METHODS:
        raise InputError(f"--sweep method={method}: give some of {', '.join(METHODS)}")
    before, after = TrainConfig(**METHODS[config.method]), TrainConfig(**METHODS[method])
    own = [name for name in SET_BY_METHODS if getattr(config, name) == getattr(before, name)]
    changed: dict[str, Any] = {"method": method, **{name: getattr(after, name) for name in own}}
    return replace(config, run=run, **changed).checked()


def _log_sweep(
    sweep: Sweep, config: TrainConfig, options: str, summaries: Sequence[Summary]
) -> None:
    """A run beside the swept ones, with the curve."""
    from cfer import tracking
    from cfer.data.shards import read_description
    from cfer.evaluate.figures import sweep_figure
    from cfer.outputs import say
    from cfer.train.protocol import SWEEP_NAME, tracked_parent

    description = read_description(config.data)
    run_id = tracked_parent(config, description, "sweep", SWEEP_NAME, options)
    short = SHORT_NAMES.get(sweep.field, sweep.field)
    points = [(summary.mean, summary.deviation) for summary in summaries]
    tracker = tracking.Tracker(run_id)
    tracker.log_figure(sweep_figure(short, sweep.values, points), "sweep.png")
    tracker.log_table(
        {
            str(value): {"mean": mean, "sd": deviation}
            for value, (mean, deviation) in zip(sweep.values, points, strict=True)
        },
        "sweep.json",
    )
    tracking.end_run(run_id, succeeded=True)
    say(f"the curve over {short}: sweep.png of run {config.run} (runs:/{run_id})")


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` → numbers. Raises InputError."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise InputError(f"--seeds {text}: give numbers, commas between") from error
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {text}: give different numbers, 0 or more")
    return seeds


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says → exit status.

    Raises:
        InputError: options, data or a request that can't be trained on.
    """
    options = options_of(argv)
    config = options.config
    sweep = Sweep.parse(options.sweep) if options.sweep else None
    one_run = not sweep and not options.seeds and (not config.folds or config.fold >= 0)
    if config.fold >= 0 and not one_run:
        raise InputError(f"--fold {config.fold}: one fold alone goes with neither seeds nor sweep")
    seeds = parse_seeds(options.seeds or str(config.seed))
    configs = sweep.apply(config) if sweep else [config]

    from cfer.data.lock import owned
    from cfer.data.storage import Folder
    from cfer.outputs import say
    from cfer.train.protocol import lines_of, train_all
    from cfer.train.run import location_of, run

    if one_run:
        with owned(Folder(location_of(config)), "--run"):
            run(config)
        return 0
    summaries = train_all(configs, seeds, options.parallel)
    say(lines_of(summaries))
    if sweep:
        seeds_given = f" --seeds {options.seeds}" if options.seeds else ""
        _log_sweep(sweep, config, f"{seeds_given} --sweep {options.sweep}", summaries)
    return 0
