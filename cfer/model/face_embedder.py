"""Face embedders, frozen networks: from a picture of a face to a vector that identifies the person.

    embedder = open_face_embedder("dlib")
    embedder.embed(pictures)          # RGB, uint8 (S, S, 3) each → float32 (N, 128)

- `facenet`, `facenet-casia`: InceptionResnetV1 of facenet-pytorch (after Schroff et al., "FaceNet",
  CVPR 2015), trained on VGGFace2 or CASIA-WebFace. The weights of the first are downloaded on first
  use, and checked by their SHA-256; the file of the second has to be given.
- `dlib`: the ResNet of dlib (King, "Dlib-ml", JMLR 2009), whose weights install from PyPI.
- `auto`: FaceNet if its weights are here or can be downloaded, else dlib.

The pictures are crops of `cfer.video.faces`, so the place of the face in them is known.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import pickle
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from cfer.codec import Bitstream
from cfer.errors import InputError

log = logging.getLogger(__name__)

FACENET_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
FACENET_FILES = {
    "facenet": "20180402-114759-vggface2.pt",
    "facenet-casia": "20180408-102900-casia-webface.pt",
}
# Of the published files, by which a download is checked.
FACENET_SHA256 = {"facenet": "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"}
FACENET_SIZE = 160  # pixels, as in its training
DLIB_NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
DLIB_LANDMARKS = "shape_predictor_5_face_landmarks.dat"
NAMES = ("auto", *FACENET_FILES, "dlib")
DOWNLOAD_TIMEOUT_SECONDS = 10
BATCH = 32
# dlib's detector needs a face of 80 pixels; a crop of cfer.video.faces, enlarged to this size, has
# one of about 190.
DLIB_PICTURE_SIZE = 320
# About where dlib's own detector puts its square in a crop of cfer.video.faces: left, top, right,
# bottom, as shares of the side.
DLIB_FACE = (0.20, 0.26, 0.80, 0.86)


class FaceEmbedder(Protocol):
    """A frozen face network.

    Attributes:
        name: facenet, facenet-casia or dlib.
        dimension: D, of the embedding.
        weights_sha256: of the file of weights; for dlib, of its two files one after the other.
    """

    name: str
    dimension: int
    weights_sha256: str

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """RGB pictures, uint8 (S, S, 3), face crops of `cfer.video.faces` → float32 (N, D).

        FaceNet's vectors are of length 1, dlib's are not.
        """
        ...


def open_face_embedder(
    name: str, weights: str | Path | None = None, device: str = "cpu"
) -> FaceEmbedder:
    """Load an embedder, and download its weights if they are missing.

    Args:
        name: facenet, facenet-casia, dlib, or auto.
        weights: a file of weights to use in place of the published one.
        device: "cpu", or "cuda" (FaceNet only; dlib stays on the CPU).

    Raises:
        InputError: an unknown name, weights that cannot be downloaded, or a file that holds none.
    """
    if name not in NAMES:
        raise InputError(f"identity {name}: there is no such embedder; use {', '.join(NAMES)}")
    if name == "auto":
        name = "facenet"
        try:
            weights = weights or facenet_weights(name)
        except InputError as error:
            log.warning("dlib's face network is used in place of FaceNet, since: %s", error)
            name = "dlib"
    if name == "dlib":
        return DlibEmbedder(weights)
    path = Path(weights) if weights is not None else facenet_weights(name)
    return FaceNetEmbedder(name, path, device)


def embed_clip(embedder: FaceEmbedder, bitstream: Bitstream) -> np.ndarray:
    """A clip's identity: the embedding of the middle one of its I-frames, float32 (1, D).

    A clip shows one person, and an embedding takes longer than everything else that is done to a
    GOP (`cfer bench extract`).
    """
    return embedder.embed([bitstream.i_frame(len(bitstream.gops) // 2)])


class FaceNetEmbedder:
    """InceptionResnetV1 of facenet-pytorch. PyTorch is imported only here: dlib needs none."""

    dimension = 512

    def __init__(self, name: str, weights: Path, device: str = "cpu") -> None:
        import torch
        from facenet_pytorch import InceptionResnetV1

        self.name = name
        self.weights_sha256 = _sha256(weights)
        self._device = device
        self._network = InceptionResnetV1(pretrained=None, classify=False)
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            # The published files also hold the classifier over their training set's people.
            state = {k: v for k, v in state.items() if not k.startswith("logits.")}
            self._network.load_state_dict(state)
        except (
            RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError,
            ValueError,
        ) as error:  # fmt: skip
            reason = str(error).split("\n")[0]
            raise InputError(
                f"{weights}: not the weights of facenet-pytorch's InceptionResnetV1 ({reason}); "
                f"delete it to have it downloaded again, or give the file {FACENET_FILES[name]} "
                "with --identity-weights"
            ) from error
        self._network.eval().requires_grad_(False).to(device)

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        batches = [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, len(pictures), BATCH):
            resized = [_resize(p, FACENET_SIZE) for p in pictures[start : start + BATCH]]
            batch = torch.from_numpy(np.stack(resized)).to(self._device)  # (N, 160, 160, 3)
            batch = (batch.permute(0, 3, 1, 2).float() - 127.5) / 128
            with torch.inference_mode():
                batches.append(self._network(batch).cpu().numpy())
        return np.concatenate(batches).astype(np.float32)


class DlibEmbedder:
    """dlib's ResNet with its own alignment by five landmarks.

    Where dlib's detector does not find the face in the crop, the landmarks are searched in
    `DLIB_FACE`.
    """

    name = "dlib"
    dimension = 128

    def __init__(self, weights: str | Path | None = None) -> None:
        try:
            import dlib
        except ImportError as error:
            raise InputError("identity dlib: it is not installed; pip install dlib-bin") from error
        network = Path(weights) if weights is not None else _model_file(DLIB_NETWORK)
        landmarks = _model_file(DLIB_LANDMARKS)
        self.weights_sha256 = _sha256(network, landmarks)
        self._rectangle = dlib.rectangle
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(landmarks))
        try:
            self._network = dlib.face_recognition_model_v1(str(network))
        except RuntimeError as error:
            raise InputError(
                f"{network}: not the weights of dlib's face network; give the file "
                f"{DLIB_NETWORK}, or leave out --identity-weights"
            ) from error

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        vectors = np.zeros((len(pictures), self.dimension), np.float32)
        for number, picture in enumerate(pictures):
            picture = _resize(picture, DLIB_PICTURE_SIZE)
            shape = self._landmarks(picture, self.face(picture))
            vectors[number] = self._network.compute_face_descriptor(picture, shape)
        return vectors

    def face(self, picture: np.ndarray) -> Any:
        """dlib's rectangle of the face in a crop: its largest detection, or `DLIB_FACE`."""
        found = self._detector(picture, 0)
        if found:
            return max(found, key=lambda rectangle: rectangle.area())
        side = picture.shape[0]
        return self._rectangle(*(round(share * side) for share in DLIB_FACE))


def facenet_weights(name: str) -> Path:
    """The file of published weights in torch's own cache, downloaded if it is missing.

    Raises:
        InputError: it cannot be downloaded, or the download is another file.
    """
    import torch

    file = FACENET_FILES[name]
    path = Path(torch.hub.get_dir()).parent / "checkpoints" / file  # where facenet-pytorch looks
    if path.exists():
        return path
    url, digest = FACENET_RELEASE + file, FACENET_SHA256.get(name)
    try:
        if digest is None:
            raise OSError("nobody has published its SHA-256 to check it by")
        path.parent.mkdir(parents=True, exist_ok=True)
        # `torch.hub` has no timeout of its own.
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
        try:
            # It writes a temporary file first, so several workers may download at once.
            torch.hub.download_url_to_file(url, str(path), digest, sys.stderr.isatty())
        finally:
            socket.setdefaulttimeout(before)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"identity network: {url} cannot be downloaded ({reason}); fetch the file on another "
            "machine and give it with --identity-weights FILE, or use --identity dlib, whose "
            "weights install from PyPI"
        ) from error
    return path


def _model_file(file: str) -> Path:
    """A file of the package face_recognition_models, which needs pkg_resources to be imported."""
    spec = importlib.util.find_spec("face_recognition_models")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "models" / file
        if path.exists():
            return path
    raise InputError(f"identity dlib: there is no {file}; pip install face_recognition_models")


def _resize(picture: np.ndarray, size: int) -> np.ndarray:
    method = cv2.INTER_AREA if picture.shape[0] >= size else cv2.INTER_LINEAR
    return cv2.resize(picture, (size, size), interpolation=method)


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); correct --identity-weights"
            ) from error
    return digest.hexdigest()
