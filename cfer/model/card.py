"""One model, one file: weights as safetensors, and the card that describes them.

The card (classes, picture size, codec settings, input, shape of the network, where the model comes
from) is JSON in the file's own header. A file is numbers and text: reading it runs no code, and
takes no more memory than the file is long.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pydantic
import safetensors
import safetensors.torch
import torch

from cfer.codec import CodecSettings, spelled_as_now
from cfer.data.inputs import Input
from cfer.errors import InputError, NotFinite
from cfer.model.network import (
    EARLIER_STEM_STRIDE,
    MOST,
    ModelConfig,
    Predictor,
    not_finite,
)

SUFFIX = ".safetensors"
CARD_NAME = "cfer"  # of the card in the file's header
FORMAT_VERSION = 1
MOST_CLIPS = 10**9  # of a group; a card with more is damaged


@dataclass(frozen=True)
class ModelCard:
    """The facts that are needed to make a model's input and to read its output.

    Attributes:
        classes: names, in the order of the output.
        size: side of the face crop in pixels, even.
        codec: how the crop is encoded.
        what: which planes of which frames the model sees.
        network: the shape of the weights.
        window_seconds: a longer video is predicted in windows of this length.
        window_gops: the same in GOPs, where there are no seconds: an earlier cfer's card.
        origin: where it comes from, as text: data set and its digest, commit, command, limits.
        figures: by metric, the last figures of its training run on held-out clips.
        temperature: by which the classifier's weights are divided; 1: not calibrated.
        recall_by_group: of groups of people, such as ages: {group: {value: (clips that are
            recognized, all of its clips)}}.

    Raises:
        InputError: a value out of its range, or two that contradict each other.
    """

    classes: tuple[str, ...]
    size: int
    codec: CodecSettings
    what: Input
    network: ModelConfig
    window_seconds: float | None = None
    window_gops: int = 1
    origin: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    recall_by_group: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (
            ("classes", len(self.classes)),
            ("size", self.size),
            ("window_gops", self.window_gops),
        ):
            if not 1 <= value <= MOST:
                raise InputError(f"model card: {name} {value} is not between 1 and {MOST}")
        if self.window_seconds is not None and not 0 < self.window_seconds <= MOST:
            raise InputError(
                f"model card: window_seconds {self.window_seconds} is not between 0 and {MOST}"
            )
        if self.size % 2:
            raise InputError(f"model card: size {self.size} is odd")
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise InputError(
                f"model card: classes {list(self.classes)} are not all different names"
            )
        if self.network.num_classes != len(self.classes):
            raise InputError(
                f"model card: {len(self.classes)} classes, and a network for "
                f"{self.network.num_classes}"
            )
        if self.network.num_planes != self.what.num_planes:
            raise InputError(
                f"model card: an input of {self.what.num_planes} planes, and a network for "
                f"{self.network.num_planes}"
            )
        if not 0 < self.temperature < math.inf:
            raise InputError(f"model card: temperature {self.temperature} is not a positive number")
        for group, recalls in self.recall_by_group.items():
            for who, (right, count) in recalls.items():
                if not 0 <= right <= count or not 1 <= count <= MOST_CLIPS:
                    raise InputError(
                        f"model card: recall_by_group {group} {who}: {right} of {count} clips is "
                        f"not a number of 1 to {MOST_CLIPS} and a part of it"
                    )

    @property
    def planes_shape(self) -> tuple[int, int, int]:
        """(C, S/2, S/2): the shape of a frame's planes."""
        return self.what.num_planes, self.size // 2, self.size // 2

    def window_frames(self, fps: Fraction, seconds: float | None = None) -> int:
        """How many frames of a video of so many frames per second a window has, at least 2; of a
        window of this length, or of the card's own."""
        seconds = seconds or self.window_seconds
        if seconds is None:
            return self.window_gops * self.codec.at(fps).span
        return max(round(seconds * fps), 2)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card; raises `InputError` where it is none, or is of another format."""
        try:
            values = _JSON.validate_json(text)
            version = values.pop("format", None)
            if version != FORMAT_VERSION:
                raise InputError(
                    f"model card: format {version}, and this cfer reads {FORMAT_VERSION}; use the "
                    "cfer that wrote it, or a newer one"
                )
            if isinstance(values.get("codec"), dict):
                values["codec"] = spelled_as_now(values["codec"])
            if isinstance(values.get("network"), dict):
                values["network"].setdefault("stem_stride", EARLIER_STEM_STRIDE)
            card = _CARD.validate_json(json.dumps(values), strict=True)
        except pydantic.ValidationError as error:
            (first, *_) = error.errors()
            where = ".".join(map(str, first["loc"]))
            said = f"{where} {first['msg'].removeprefix('Value error, ')}".strip()
            raise InputError(f"model card: not one of cfer's ({said})") from error
        known = asdict(card)
        for part, names in ((values, known), *((values[n], known[n]) for n in _PARTS)):
            if unknown := sorted(set(part) - set(names)):
                raise InputError(
                    f"model card: {unknown[0]} is unknown to this cfer; use a newer one"
                )
        return card


def calibration_line(temperature: float, figures: Mapping[str, float]) -> str:
    """What is known of the probabilities of a model or of a run, for people."""
    named = {name.removeprefix("calibration/"): value for name, value in figures.items()}
    if not {"clips", "people", "ece_before", "ece_after"} <= named.keys():
        return f"temperature {temperature:.3f}, not fitted: that takes clips of two held-out people"
    return (
        f"temperature {temperature:.3f}, fitted to {named['clips']:.0f} clips of "
        f"{named['people']:.0f} held-out people; ECE {named['ece_before']:.3f} before, "
        f"{named['ece_after']:.3f} after (cross-fitted)"
    )


_PARTS = ("codec", "what", "network")
_JSON = pydantic.TypeAdapter(dict[str, Any])
_CARD = pydantic.TypeAdapter(ModelCard)


def write_model(path: str | Path, predictor: Predictor, card: ModelCard) -> None:
    """Write a model file. The same weights and card give the same bytes."""
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in predictor.state_dict().items()
    }
    safetensors.torch.save_file(tensors, str(path), metadata={CARD_NAME: card.to_json()})


def read_model(path: str | Path) -> tuple[Predictor, ModelCard]:
    """A model in evaluation mode on the CPU, and its card.

    Raises:
        InputError: no such file, not a model of cfer's, or weights that are not finite or do not
            have the shapes that the card describes.
    """
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata: Mapping[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path}: not a readable model file ({error}); give a {SUFFIX} file that `cfer models "
            "export` wrote"
        ) from error
    if CARD_NAME not in metadata:
        raise InputError(f"{path}: a {SUFFIX} file without cfer's card; it is another program's")
    try:
        card = ModelCard.from_json(metadata[CARD_NAME])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    # Takes no memory, since a damaged card could ask for any amount.
    with torch.device("meta"):
        predictor = Predictor(card.network)
    wanted = {name: (value.shape, value.dtype) for name, value in predictor.state_dict().items()}
    found = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    if wanted != found:
        raise InputError(
            f"{path}: its weights are not those that its card describes; copy it again"
        )
    if name := not_finite(tensors):
        raise NotFinite(
            f"{path}: its weights {name} are not finite: its training has diverged; train it again "
            "with a lower --lr"
        )
    predictor.load_state_dict(tensors, assign=True)
    return predictor.to(memory_format=torch.channels_last).eval(), card
