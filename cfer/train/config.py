"""What a training run is: one typed configuration, the named methods, the command line made of it.

The defaults are the recommended recipe, with the min-min game; `cfer benchmark --search`
changes one thing of the recipe at a time.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from tyro.conf import arg

from cfer.errors import InputError
from cfer.options import check_at_least

if TYPE_CHECKING:
    from cfer.data.inputs import Input
    from cfer.train.batches import Augmentation

# Ours and our opponents: each is the recommended recipe with these settings.
METHODS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"identity_weight": 0.0},
    "min-min": {},
    "min-min-vclub": {"game": "vclub", "identity_weight": 1.0},
    "min-min+apex": {"apex_weight": 1.0},
    "min-max": {"game": "min-max", "identity_weight": 0.1},
    "gradient-reversal": {"game": "gradient-reversal", "identity_weight": 0.1},
    # As many numbers as there is room for: what any code of this input could give away.
    "identification": {"game": "identification", "identity_weight": 1.0, "code_dim": 64},
    # One direct residual is the change of one frame: a clip takes several.
    "direct": {"input": "direct", "frames": "4", "identity_weight": 0.0},
    "direct+min-min": {"input": "direct", "frames": "4"},
    "residual": {"input": "accumulated", "identity_weight": 0.0},
    "motion": {"input": "motion", "identity_weight": 0.0},
    "stills-apex": {"input": "pictures", "identity_weight": 0.0},
    "stills-sampled": {"input": "pictures", "frames": "4", "identity_weight": 0.0},
    "stills-apex+min-min": {"input": "pictures"},
    "frame-difference": {"input": "difference", "identity_weight": 0.0},
}
# The names are written out, since the command line shows them without importing PyTorch.
Method = Literal[
    "cross-entropy",
    "min-min",
    "min-min-vclub",
    "min-min+apex",
    "min-max",
    "gradient-reversal",
    "identification",
    "direct",
    "direct+min-min",
    "residual",
    "motion",
    "stills-apex",
    "stills-sampled",
    "stills-apex+min-min",
    "frame-difference",
]
Game = Literal["min-min", "vclub", "min-max", "gradient-reversal", "identification"]
NAMING_GAMES = ("gradient-reversal", "identification")  # they need subjects
Planes = Literal["yuv", "luma"]
Pooling = Literal["mean", "max"]
ClassWeights = Literal["none", "balanced"]
Split = Literal["subjects", "column"]
Lambda = Annotated[float, arg(name="lambda")]
Mu = Annotated[float, arg(name="mu")]
Kind = Literal[
    "accumulated",
    "direct",
    "motion",
    "accumulated+motion",
    "energy",
    "energy+motion",
    "pictures",
    "difference",
]
Stream = Literal["encoded", "native", "both"]
# Where and with how many processes a run is computed may change between two starts of it.
OPERATIONAL = ("data", "run", "workers", "device", "cpus_per_worker", "storage", "experiment")
SHORT_NAMES = {"identity_weight": "lambda", "apex_weight": "mu"}


def flag(name: str) -> str:
    """The option of a field of `TrainConfig`."""
    return "--" + SHORT_NAMES.get(name, name).replace("_", "-")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    # The comment on each field is its help text on the command line.

    data: str = "shards"  # folder or URI of the shards that `cfer extract` wrote
    run: str = ""  # name of the run; the same name goes on with it; empty: the method's
    workers: int = 1  # training processes
    device: Literal["auto", "cpu", "gpu"] = "auto"  # gpu: one GPU for each worker
    cpus_per_worker: float = 0.0  # CPUs to reserve for each worker; 0: what leaves room
    storage: str = "runs"  # folder or URI for checkpoints; shared by all nodes of a cluster
    experiment: str = "cfer"  # MLflow experiment
    method: Method = "min-min"  # sets --game, --lambda, --mu, --input, --frames; those given win
    epochs: int = 90  # passes over the training clips
    batch_size: int = 32  # clips per step, over all workers, who take equal parts of it
    lr: float = 3e-3  # player 2's highest learning rate (AdamW: 5 % warm-up, then cosine to 0)
    estimator_lr: float = 2e-3  # player 1's learning rate; that of min-min is exact, and has none
    estimator_steps: int = 2  # player 1's steps per turn
    weight_decay: float = 0.02  # player 2's
    game: Game = "min-min"  # what λ weighs: the exact bound, or another (see cfer.model.game)
    identity_weight: Lambda = 0.3  # λ: weight of the identity term; 0: cross-entropy alone
    apex_weight: Mu = 0.0  # μ: weight of rebuilding the annotated apex picture
    label_smoothing: float = 0.1  # share of the target spread over all classes, in [0, 1)
    input: Kind = "accumulated+motion"  # what the recognizer sees (see cfer.data.inputs)
    planes: Planes = "yuv"  # of the input: all three, or luma alone
    frames: str = "last"  # `last` P-frame of each GOP, or a number of P-frames per clip
    stream: Stream = "encoded"  # its residuals: encoded anew; native, as in the H.264 file; or both
    blur: float = 0.0  # of the input, to hide who is seen: a Gaussian's σ in samples of its planes
    width: int = 32  # channels of the encoder's first stage
    pooling: Pooling = "mean"  # of a clip's frames
    code_dim: int = 0  # dimension of the expression code; 0: classes − 1, all that C can read
    erase: int = 0  # directions of the code, those that tell most of z_I, erased after training
    dropout: float = 0.0  # share of the code zeroed before the classifier, in [0, 1)
    flip: float = 0.5  # probability of a horizontal flip
    shift_pixels: int = 8  # largest random shift, pixels of the crop
    gain_jitter: float = 0.6  # residuals are multiplied by up to exp(± this)
    class_weights: ClassWeights = "none"  # balanced: rare classes count as much as others
    seed: int = 0  # of weights, order, augmentation and the choice of subjects
    split: Split = "subjects"  # hold out subjects, or follow the data set's own split column
    val_fraction: float = 0.25  # share of the subjects to hold out
    val_subjects: str = ""  # hold out exactly these subjects, separated by commas
    folds: str = ""  # folds of subjects, as many in each: a number, or loso: one subject each
    fold: int = -1  # train this fold alone, from 0; -1: all of them, under one parent run

    def checked(self) -> TrainConfig:
        """Itself.

        Raises:
            InputError: a value that no run can have, or two that exclude each other.
        """
        positive = ("workers", "epochs", "batch_size", "estimator_steps")
        no_less_than_0 = (
            *("cpus_per_worker", "identity_weight", "apex_weight", "weight_decay"),
            *("shift_pixels", "gain_jitter", "seed", "code_dim", "erase", "blur"),
        )
        for least, names in ((1, positive), (0, no_less_than_0)):
            check_at_least(least, **{SHORT_NAMES.get(n, n): getattr(self, n) for n in names})
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
        for name, kind in get_type_hints(TrainConfig).items():
            allowed = get_args(kind)
            if allowed and getattr(self, name) not in allowed:
                raise InputError(
                    f"{flag(name)} {getattr(self, name)}: give one of {', '.join(allowed)}"
                )
        _ = self.what
        return self

    @property
    def clips_per_worker(self) -> int:
        """Each worker's part of a step."""
        return self.batch_size // self.workers

    @property
    def what(self) -> Input:
        from cfer.data.inputs import Input, parse_frame_rule

        return Input(self.input, self.planes, parse_frame_rule(self.frames), self.stream)

    @property
    def augmentation(self) -> Augmentation:
        from cfer.train.batches import Augmentation

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


def config_of(given: Mapping[str, Any]) -> TrainConfig:
    """What the fields that were given amount to: those of `method` first, then each by itself.

    Raises:
        InputError: see `TrainConfig.checked`.
    """
    method = given.get("method", "min-min")
    config = TrainConfig(**{**METHODS[method], "run": method, **given})
    return config.checked()


def command_of(config: TrainConfig) -> str:
    """The options that differ from the defaults, as one would type them."""
    method = METHODS[config.method] | {"run": config.method}
    words = []
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if value != method.get(field.name, field.default):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [flag(field.name), shlex.quote(text)]
    return " ".join(words)
