"""cfer: facial expressions from the residuals of a compressed video, without the identity.

cfer.read_gops("clip.mp4")                      # I-frame and residuals, GOP by GOP
cfer.residuals("clip.mp4", "accumulated")       # those of every P-frame
cfer.Recognizer.from_pretrained().predict("video.mp4")
cfer.open_dataset("shards")                     # for a PyTorch training loop of your own
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfer.codec import Bitstream, Gop, Residual, encode, read_gops, residuals
    from cfer.data.torch_dataset import ClipDataset, open_dataset
    from cfer.predict.recognizer import Prediction, Recognizer
    from cfer.predict.timeline import Event, events

# Ray's switch for systems on which it makes no clusters: the processes of a Ray that is started for
# this machine alone then listen at loopback. Ray reads it as it is imported; a cluster that is
# joined has its own.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

_HOMES = {
    "Bitstream": "cfer.codec",
    "ClipDataset": "cfer.data.torch_dataset",
    "Event": "cfer.predict.timeline",
    "Gop": "cfer.codec",
    "Prediction": "cfer.predict.recognizer",
    "Recognizer": "cfer.predict.recognizer",
    "Residual": "cfer.codec",
    "encode": "cfer.codec",
    "events": "cfer.predict.timeline",
    "open_dataset": "cfer.data.torch_dataset",
    "read_gops": "cfer.codec",
    "residuals": "cfer.codec",
}
__all__ = [
    "Bitstream",
    "ClipDataset",
    "Event",
    "Gop",
    "Prediction",
    "Recognizer",
    "Residual",
    "encode",
    "events",
    "open_dataset",
    "read_gops",
    "residuals",
]


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first used: PyTorch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cfer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
