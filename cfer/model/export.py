"""A model for other programs: a PyTorch program or ONNX, checked to compute the same.

    cfer models export NAME model.onnx           # or .pt2 (torch.export)

An exported model takes planes, uint8 (N, T, C, S/2, S/2) with any N and T, and gives probabilities,
float32 (N, classes). Its card is written beside it, as `NAME.json`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cfer.codec import GRAY
from cfer.errors import InputError
from cfer.model.card import ModelCard
from cfer.model.network import Predictor

TOLERANCE = 1e-5  # of a probability
ANY_N_AND_T = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
Run = Callable[[np.ndarray], np.ndarray]


def _plain(predictor: Predictor) -> Predictor:
    # The file must not depend on the memory layout that is the fastest on this machine.
    return copy.deepcopy(predictor).to(memory_format=torch.contiguous_format)


def _example(card: ModelCard) -> tuple[torch.Tensor]:
    # Two of each: an example with one clip or one frame would fix that number in the program.
    return (torch.full((2, 2, *card.planes_shape), GRAY, dtype=torch.uint8),)


def export_program(predictor: Predictor, card: ModelCard, path: Path) -> None:
    """Write a `torch.export` program (.pt2), which needs PyTorch alone."""
    program = torch.export.export(_plain(predictor), _example(card), dynamic_shapes=ANY_N_AND_T)
    torch.export.save(program, str(path))


def _load_program(path: Path) -> Run:
    network = torch.export.load(str(path)).module()
    return lambda planes: network(torch.from_numpy(planes)).detach().numpy()


def export_onnx(predictor: Predictor, card: ModelCard, path: Path) -> None:
    """Write ONNX with the input `planes` and the output `probabilities`."""
    torch.onnx.export(
        _plain(predictor),
        _example(card),
        str(path),
        input_names=["planes"],
        output_names=["probabilities"],
        dynamic_shapes=ANY_N_AND_T,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda planes: np.asarray(session.run(None, {"planes": planes})[0])


Write = Callable[[Predictor, ModelCard, Path], None]
# By suffix: what writes a file, and what reads it again.
EXPORTS: dict[str, tuple[Write, Callable[[Path], Run]]] = {
    ".pt2": (export_program, _load_program),
    ".onnx": (export_onnx, _load_onnx),
}


def export(predictor: Predictor, card: ModelCard, path: Path) -> float:
    """Write the model in the form that the suffix names, and `NAME.json` (its card) beside it.

    The file appears only after its output was found to be the same, for other numbers of clips and
    frames than those of the example that it was made with.

    Returns:
        The largest difference of a probability.

    Raises:
        InputError: an unknown suffix, or a package that the form needs is not installed.
        RuntimeError: the exported model computes something else.
    """
    if path.suffix.lower() not in EXPORTS:
        raise InputError(f"{path}: give a file that ends in one of {', '.join(sorted(EXPORTS))}")
    write, load = EXPORTS[path.suffix.lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        try:
            write(predictor, card, written)
            run = load(written)
        except ImportError as error:
            raise InputError(
                f"{path}: {error.name} is not installed; in the checkout, pip install '.[export]'"
            ) from error
        worst = 0.0
        for clips, frames in ((1, 1), (3, 5)):
            planes = np.random.default_rng(frames).integers(
                0, 256, (clips, frames, *card.planes_shape), dtype=np.uint8
            )
            with torch.inference_mode():
                wanted = predictor(torch.from_numpy(planes)).numpy()
            worst = max(worst, float(np.abs(run(planes) - wanted).max()))
        if worst > TOLERANCE:
            raise RuntimeError(f"{path}: exported, its probabilities differ by up to {worst:.2g}")
        written.replace(path)
    path.with_suffix(".json").write_text(card.to_json() + "\n")
    return worst
