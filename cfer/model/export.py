"""A model for other programs: a PyTorch program, TorchScript or ONNX, each checked for its output.

    cfer models export NAME model.onnx           # or .pt2 (torch.export), .ts (TorchScript)

What is exported takes planes, uint8 (N, T, C, S/2, S/2) with any N and T, and gives probabilities,
float32 (N, classes); the card goes with it, as `NAME.json` beside the file.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cfer.codec import GRAY
from cfer.errors import InputError
from cfer.model.card import ModelCard
from cfer.model.network import Predictor

TOLERANCE = 1e-5  # of a probability


def export_program(predictor: Predictor, card: ModelCard, path: Path) -> None:
    """A `torch.export` program (.pt2), which needs PyTorch alone."""
    torch.export.save(_program(predictor, card), str(path))


def _program(predictor: Predictor, card: ModelCard) -> torch.export.ExportedProgram:
    any_number = torch.export.Dim.DYNAMIC
    return torch.export.export(
        _plain(predictor), (_example(card),), dynamic_shapes=({0: any_number, 1: any_number},)
    )


def _plain(predictor: Predictor) -> Predictor:
    # What is stored does not depend on the layout that is the fastest here.
    return copy.deepcopy(predictor).to(memory_format=torch.contiguous_format)


def _example(card: ModelCard) -> torch.Tensor:
    # Two of each: an example with one clip or one frame would fix that number in the program.
    return torch.full((2, 2, *card.planes_shape), GRAY, dtype=torch.uint8)


def export_torchscript(predictor: Predictor, card: ModelCard, path: Path) -> None:
    """TorchScript (.ts), for `torch.jit.load` or LibTorch."""
    with warnings.catch_warnings(), torch.inference_mode():
        # PyTorch advises torch.export in its place; programs in C++ still load this one.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(_plain(predictor), (_example(card),)), str(path))


def export_onnx(predictor: Predictor, card: ModelCard, path: Path) -> None:
    """ONNX: input `planes`, output `probabilities`."""
    any_number = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        _plain(predictor),
        (_example(card),),
        str(path),
        input_names=["planes"],
        output_names=["probabilities"],
        dynamic_shapes=({0: any_number, 1: any_number},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


EXPORTS: dict[str, Callable[[Predictor, ModelCard, Path], None]] = {
    ".pt2": export_program,
    ".ts": export_torchscript,
    ".onnx": export_onnx,
}


def export(predictor: Predictor, card: ModelCard, path: Path) -> float:
    """Write the model in the form that the suffix names, and `NAME.json` (its card) beside it.

    The file appears once its output was found equal, on clips of other numbers than the one it was
    made with.

    Returns:
        The largest difference of a probability.

    Raises:
        InputError: an unknown suffix, or a package that the form needs and that is not there.
        RuntimeError: the exported model computes something else.
    """
    form = EXPORTS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{path}: give a file that ends in one of {', '.join(sorted(EXPORTS))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        try:
            form(predictor, card, written)
            load = _LOADERS[path.suffix.lower()](written)
        except ImportError as error:
            raise InputError(
                f"{path}: {error.name} is not installed; pip install 'cfer[export]'"
            ) from error
        worst = 0.0
        for clips, frames in ((1, 1), (3, 5)):
            planes = np.random.default_rng(frames).integers(
                0, 256, (clips, frames, *card.planes_shape), dtype=np.uint8
            )
            with torch.inference_mode():
                wanted = predictor(torch.from_numpy(planes)).numpy()
            worst = max(worst, float(np.abs(load(planes) - wanted).max()))
        if worst > TOLERANCE:
            raise RuntimeError(f"{path}: exported, its probabilities differ by up to {worst:.2g}")
        written.replace(path)
    path.with_suffix(".json").write_text(card.to_json() + "\n")
    return worst


Run = Callable[[np.ndarray], np.ndarray]


def _load_program(path: Path) -> Run:
    network = torch.export.load(str(path)).module()
    return lambda planes: network(torch.from_numpy(planes)).detach().numpy()


def _load_torchscript(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.load(str(path))
    return lambda planes: network(torch.from_numpy(planes)).detach().numpy()


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda planes: np.asarray(session.run(None, {"planes": planes})[0])


_LOADERS: dict[str, Callable[[Path], Run]] = {
    ".pt2": _load_program,
    ".ts": _load_torchscript,
    ".onnx": _load_onnx,
}
