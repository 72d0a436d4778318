"""Train recognizers on the shards of a data set: one run, or a protocol of many.

    python -m cfer.train --data SHARDS --run first --method min-min         # the game, one split
    python -m cfer.train --data SHARDS --protocol ck+ --method min-min      # ten folds, one parent
    python -m cfer.train --data SHARDS --folds 5 --seeds 0,1,2 --sweep lambda=0,0.3,1,3
    python -m cfer.evaluate.command cfer                                            # the table of the runs

Subjects are held out, or the owner's split is followed. Every figure that a run ends with is from
its last epoch: nothing is chosen by looking at the held-out subjects. The runs of a protocol (folds
× seeds × values of a sweep) go on side by side, as many as the cluster has room for; each is a
child of the MLflow run that holds their mean and standard deviation. Killed and started
again with the same `--run`, finished folds are kept, and the others go on from their checkpoints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cfer import tracking
from cfer.data.folds import LOSO
from cfer.data.lock import owned
from cfer.data.shards import read_description
from cfer.data.storage import Folder
from cfer.errors import InputError, exit_with_message
from cfer.evaluate.figures import sweep_figure
from cfer.outputs import say
from cfer.train.config import (
    OPERATIONAL,
    SHORT_NAMES,
    TrainConfig,
    add_options,
    config_of,
)
from cfer.train.protocol import SWEEP_NAME, Summary, lines_of, tracked_parent, train_all
from cfer.train.run import (
    location_of,
    run,
)

if __name__ == "__main__":
    from cfer.errors import end_quietly_while_importing

    end_quietly_while_importing()


# What a sweep can't change: what has an option of its own, or does not change the result.
NOT_SWEPT = (*OPERATIONAL, "seed", "fold")


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
    "loso": {"folds": LOSO},
}


# ---- the command ---------------------------------------------------------------------------------


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
        kinds = {f.name: {"int": int, "float": float, "str": str}[str(f.type)] for f in _OPTIONS}
        if name not in kinds or not listed:
            raise InputError(
                f"--sweep {text}: give an option and its values, such as lambda=0,0.3,1,3"
            )
        try:
            return Sweep(name, [kinds[name](value) for value in listed.split(",")])
        except ValueError as error:
            raise InputError(f"--sweep {text}: {error}; give values of {name}") from error

    def apply(self, given: Mapping[str, Any]) -> list[TrainConfig]:
        """A configuration for each value, of the options that were given (`config_of`)."""
        short = SHORT_NAMES.get(self.field, self.field)
        return [
            config_of({**given, self.field: value, "run": f"{given['run']}-{short}={value}"})
            for value in self.values
        ]


_OPTIONS = fields(TrainConfig)


def _log_sweep(
    sweep: Sweep, config: TrainConfig, options: str, summaries: Sequence[Summary]
) -> None:
    """A run beside the swept ones, with the curve."""
    description = read_description(config.data)
    run_id = tracked_parent(config, description, "sweep", SWEEP_NAME, options)
    short = SHORT_NAMES.get(sweep.field, sweep.field)
    figure = sweep_figure(
        short,
        sweep.values,
        [(summary.mean, summary.deviation) for summary in summaries],
    )
    tracker = tracking.Tracker(run_id)
    tracker.log_figure(figure, "sweep.png")
    tracker.log_table(
        {
            str(value): {"mean": s.mean, "sd": s.deviation}
            for value, s in zip(sweep.values, summaries, strict=True)
        },
        "sweep.json",
    )
    tracking.end_run(run_id, succeeded=True)
    say(f"the curve over {short}: sweep.png of run {config.run} (runs:/{run_id})")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cfer.train", description=(__doc__ or "").split("\n")[0]
    )
    add_options(parser)
    protocols = parser.add_argument_group("protocols")
    protocols.add_argument(
        "--protocol", choices=PROTOCOLS, help="how results on this data set are reported"
    )
    protocols.add_argument("--seeds", help="run everything with each of these, commas between")
    protocols.add_argument(
        "--sweep", help="run the protocol for each value of an option: lambda=0,0.3,1,3"
    )
    protocols.add_argument(
        "--parallel", type=int, default=0, help="runs at a time (as many as there is room for)"
    )
    return parser


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` → numbers. Raises InputError."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise InputError(f"--seeds {text}: give numbers, commas between") from error
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {text}: give different numbers, 0 or more")
    return seeds


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(build_parser().parse_args(arguments))
    chosen = {name: value for name, value in given.items() if value is not None}
    if "seed" in chosen and "seeds" in chosen:
        raise InputError("--seed, --seeds: give one of them")
    protocol = dict(PROTOCOLS.get(chosen.get("protocol", ""), {}))
    if "seed" in chosen:
        protocol.pop("seeds", None)
    chosen = {**protocol, **chosen}
    chosen.setdefault("run", chosen.get("method") or time.strftime("%Y%m%d-%H%M%S"))
    config = config_of(chosen)
    _check_name(config)
    sweep = Sweep.parse(chosen["sweep"]) if "sweep" in chosen else None
    if not sweep and "seeds" not in chosen and (not config.folds or config.fold >= 0):
        with owned(Folder(location_of(config)), "--run"):
            run(config)
        return 0
    if config.fold >= 0:
        raise InputError(f"--fold {config.fold}: one fold alone goes with neither seeds nor sweep")
    seeds = parse_seeds(str(chosen.get("seeds", config.seed)))
    configs = sweep.apply(chosen) if sweep else [config]
    summaries = train_all(configs, seeds, chosen["parallel"])
    say(lines_of(summaries))
    if sweep:
        options = f" --seeds {chosen['seeds']}" if "seeds" in chosen else ""
        _log_sweep(sweep, config, f"{options} --sweep {chosen['sweep']}", summaries)
    return 0


def _check_name(config: TrainConfig) -> None:
    if "/" in config.run or config.run.startswith("."):
        raise InputError(f"--run {config.run}: a name, not a path; --storage says where")


if __name__ == "__main__":
    exit_with_message(main)
