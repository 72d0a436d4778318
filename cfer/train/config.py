"""What a training run is: one typed configuration, the named methods, the command line made of it.

The defaults are the recommended recipe; `python pipeline/benchmark.py --search` changes one thing
of it at a time.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cfer.data.inputs import KINDS, PLANES, Input, parse_frame_rule
from cfer.errors import InputError
from cfer.model.game import PLAYERS
from cfer.model.network import POOLINGS
from cfer.train.batches import Augmentation

# The opponents of the paper's table, and ours: each is the default run with these settings.
METHODS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "min-min": {"identity_weight": 1.0},
    "min-min+apex": {"identity_weight": 1.0, "apex_weight": 1.0},
    "min-max": {"game": "min-max", "identity_weight": 0.1},
    "gradient-reversal": {"game": "gradient-reversal", "identity_weight": 0.1},
    # One direct residual is the change of one frame: a clip takes several.
    "direct": {"input": "direct", "frames": "4"},
    "direct+min-min": {"input": "direct", "frames": "4", "identity_weight": 1.0},
    "motion": {"input": "motion"},
    "residual+motion": {"input": "accumulated+motion"},
    "stills-apex": {"input": "pictures"},
    "stills-sampled": {"input": "pictures", "frames": "4"},
    "stills-apex+min-min": {"input": "pictures", "identity_weight": 1.0},
    "frame-difference": {"input": "difference"},
}
CHOICES: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "gpu"),
    "split": ("subjects", "column"),
    "method": ("", *METHODS),
    "game": tuple(PLAYERS),
    "input": KINDS,
    "planes": PLANES,
    "pooling": POOLINGS,
    "class_weights": ("none", "balanced"),
}
# Where and with how many processes a run is computed may change between two starts of it.
OPERATIONAL = ("data", "run", "workers", "device", "cpus_per_worker", "storage", "experiment")
SHORT_NAMES = {"identity_weight": "lambda", "apex_weight": "mu"}


def flag(name: str) -> str:
    """The option of a field of `TrainConfig`."""
    return "--" + SHORT_NAMES.get(name, name).replace("_", "-")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The comment of each field is its help text on the command line."""

    data: str  # folder or URI of the shards that pipeline/extract.py wrote
    run: str = ""  # name of the run; the same name goes on with it (default: made from the time)
    workers: int = 1  # training processes
    device: str = "auto"  # auto, cpu or gpu (one GPU a worker)
    cpus_per_worker: float = 0.0  # CPUs to reserve for each worker (default: what leaves room)
    storage: str = "runs"  # folder or URI for checkpoints; shared by all nodes of a cluster
    experiment: str = "cfer"  # MLflow experiment
    method: str = ""  # sets --game, --lambda, --mu, --input, --frames; what you give beside wins
    epochs: int = 90  # passes over the training clips
    batch_size: int = 16  # clips per step, over all workers, who take equal parts of it
    lr: float = 2e-3  # player 2's highest learning rate (AdamW: 5 % warm-up, then cosine to 0)
    estimator_lr: float = 2e-3  # player 1's learning rate
    estimator_steps: int = 2  # player 1's steps per turn
    weight_decay: float = 0.02  # player 2's
    game: str = "min-min"  # what λ weighs: vCLUB, or an opponent's term (see cfer.model.game)
    identity_weight: float = 0.0  # λ: weight of the identity term; 0: cross-entropy alone
    apex_weight: float = 0.0  # μ: weight of rebuilding the annotated apex picture
    label_smoothing: float = 0.1  # share of the target spread over all classes, in [0, 1)
    input: str = "accumulated"  # what the recognizer sees (see cfer.data.inputs)
    planes: str = "yuv"  # of it; or luma alone
    frames: str = "last"  # `last` P-frame of each GOP, or a number of P-frames per clip
    width: int = 16  # channels of the encoder's first stage
    pooling: str = "mean"  # of a clip's frames
    code_dim: int = 64  # dimension of the expression code
    dropout: float = 0.0  # share of the code zeroed before the classifier, in [0, 1)
    flip: float = 0.5  # probability of a horizontal flip
    shift_pixels: int = 4  # largest random shift, pixels of the crop
    gain_jitter: float = 0.3  # residuals are multiplied by up to exp(± this)
    class_weights: str = "none"  # in the cross-entropy; balanced: rare classes count as much
    seed: int = 0  # of weights, order, augmentation and the choice of subjects
    split: str = "subjects"  # hold out `subjects`, or follow the data set's own split `column`
    val_fraction: float = 0.25  # share of the subjects to hold out
    val_subjects: str = ""  # hold out exactly these subjects, separated by commas
    folds: str = ""  # folds of subjects, as many in each: a number, or loso: one subject each
    fold: int = -1  # train this fold alone, from 0 (default: all of them, under one parent run)

    def __post_init__(self) -> None:
        at_least = {
            **dict.fromkeys(("workers", "epochs", "batch_size", "estimator_steps", "code_dim"), 1),
            **dict.fromkeys(("cpus_per_worker", "identity_weight", "apex_weight"), 0),
            **dict.fromkeys(("weight_decay", "shift_pixels", "gain_jitter", "seed"), 0),
        }
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise InputError(f"{flag(name)} {getattr(self, name)}: give {least} or more")
        for name in ("lr", "estimator_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)} {getattr(self, name)}: give more than 0")
        for name in ("label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)}: give 0 or more, below 1")
        check_shares(self.batch_size, self.workers)
        if not 0 < self.val_fraction < 1:
            raise InputError(f"--val-fraction {self.val_fraction}: give a share between 0 and 1")
        if not 0 <= self.flip <= 1:
            raise InputError(f"--flip {self.flip}: give a probability, 0 to 1")
        if self.width < 4 or self.width % 4:
            raise InputError(f"--width {self.width}: give a multiple of 4")
        if self.fold >= 0 and not self.folds:
            raise InputError(f"--fold {self.fold}: it needs --folds, the number of folds")
        if sum([self.split == "column", bool(self.val_subjects), bool(self.folds)]) > 1:
            raise InputError("--split column, --val-subjects, --folds: give one of the three")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{flag(name)} {getattr(self, name)}: give one of {', '.join(allowed)}"
                )
        _ = self.what

    @property
    def clips_per_worker(self) -> int:
        """Each worker's part of a step."""
        return self.batch_size // self.workers

    @property
    def what(self) -> Input:
        return Input(self.input, self.planes, parse_frame_rule(self.frames))

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.flip, self.shift_pixels, self.gain_jitter)


def check_shares(batch_size: int, workers: int) -> None:
    """Raises InputError where a step's clips can't be dealt to the workers in equal parts.

    Each of them counts as much in DDP's mean of the gradients, so unequal parts would weigh clips
    unequally; and fewer clips than were asked for would be another training.
    """
    if batch_size % workers == 0:
        return
    below = batch_size // workers * workers
    sizes = [size for size in (below, below + workers) if size]
    divisors = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
    fewer = [count for count in divisors if count < workers][-1:]
    more = [count for count in divisors if count > workers][:1]
    raise InputError(
        f"--batch-size {batch_size} --workers {workers}: so many clips can't be dealt to the "
        f"workers in equal parts; give --batch-size {' or '.join(map(str, sizes))}, or --workers "
        f"{' or '.join(map(str, fewer + more))}"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `TrainConfig`; what is not given is absent from the result."""
    # The comment behind each field is its help, and where its unit is said.
    lines = inspect.getsource(TrainConfig).splitlines()
    pairs = [line.split("  # ", 1) for line in lines if ": " in line and "  # " in line]
    texts = {field.split(":")[0].strip(): text for field, text in pairs}
    kinds = {"int": int, "float": float, "str": str}
    for field in fields(TrainConfig):
        has_default = field.default not in ("", -1) and field.name != "data"
        choices = [name for name in CHOICES.get(field.name, ()) if name] or None
        parser.add_argument(
            flag(field.name),
            dest=field.name,
            type=kinds[str(field.type)],
            required=field.name == "data",
            default=argparse.SUPPRESS,
            choices=choices,
            metavar=None if choices else field.name.upper(),
            help=texts[field.name].replace("%", "%%")
            + (f" (default: {field.default})" if has_default else ""),
        )


def config_of(given: Mapping[str, Any]) -> TrainConfig:
    """What the options that were given amount to: `--method` first, then each option by itself."""
    names = {field.name for field in fields(TrainConfig)}
    chosen = {name: value for name, value in given.items() if name in names}
    return TrainConfig(**{**METHODS.get(chosen.get("method", ""), {}), **chosen})


def command_of(config: TrainConfig) -> str:
    """The options that differ from the defaults, as one would type them."""
    import shlex

    method = METHODS.get(config.method, {})
    words = []
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if value != method.get(field.name, field.default):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [flag(field.name), shlex.quote(text)]
    return " ".join(words)
