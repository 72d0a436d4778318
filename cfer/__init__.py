"""cfer: facial expressions from the residuals of a compressed video, without the identity.

cfer.read_gops("clip.mp4")                      # I-frame and residuals, GOP by GOP
cfer.residuals("clip.mp4", "accumulated")       # those of every P-frame
cfer.Recognizer.from_pretrained().predict("video.mp4")
cfer.open_dataset("shards")                     # for a PyTorch training loop of your own
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfer.codec import Bitstream, Gop, Residual, encode, read_gops, residuals
    from cfer.dataset import ClipDataset, open_dataset
    from cfer.predict import Prediction, Recognizer

_HOMES = {
    "Bitstream": "cfer.codec",
    "ClipDataset": "cfer.dataset",
    "Gop": "cfer.codec",
    "Prediction": "cfer.predict",
    "Recognizer": "cfer.predict",
    "Residual": "cfer.codec",
    "encode": "cfer.codec",
    "open_dataset": "cfer.dataset",
    "read_gops": "cfer.codec",
    "residuals": "cfer.codec",
}
__all__ = [
    "Bitstream",
    "ClipDataset",
    "Gop",
    "Prediction",
    "Recognizer",
    "Residual",
    "encode",
    "open_dataset",
    "read_gops",
    "residuals",
]


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first used: PyTorch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cfer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
