"""The frozen recognisers: whom they tell apart, and what happens without weights or a network."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1

from cfer.errors import InputError
from cfer.identity import FACENET_FILES, open_recogniser
from cfer.shards import read_clips


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No cached weights, and a proxy at which nothing listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    return tmp_path


@pytest.fixture(scope="module")
def first_frames(drawn_shards):
    clips = list(read_clips(drawn_shards))
    return [clip.i_frames[0] for clip in clips], np.array([clip.subject for clip in clips])


def test_dlib_tells_drawn_subjects_apart(first_frames):
    pictures, subjects = first_frames
    recogniser = open_recogniser("dlib")
    vectors = recogniser.embed(pictures)
    assert vectors.shape == (len(pictures), recogniser.dimension) == (10, 128)
    assert vectors.dtype == np.float32
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    accuracy = np.mean(subjects[distances.argmin(axis=1)] == subjects)
    assert accuracy > 0.9, "chance is 0.11"


def test_a_picture_has_one_vector_whatever_its_neighbours(first_frames):
    pictures = first_frames[0][:3]
    recogniser = open_recogniser("dlib")
    together = recogniser.embed(pictures)
    assert np.array_equal(together, recogniser.embed(pictures))
    assert np.allclose(together[1], recogniser.embed([pictures[1]])[0], atol=1e-6)
    assert recogniser.embed([]).shape == (0, 128)


@pytest.fixture(scope="module")
def facenet_file(tmp_path_factory):
    """Weights of the right form (random): the published file's keys, its classifier included."""
    torch.manual_seed(0)
    state = InceptionResnetV1(classify=True, num_classes=8631).state_dict()
    path = tmp_path_factory.mktemp("weights") / "facenet.pt"
    torch.save(state, path)
    return path


def test_facenet_from_a_file_is_the_network_itself(facenet_file, first_frames):
    recogniser = open_recogniser("facenet", facenet_file)
    pictures = (first_frames[0] * 4)[:40]  # more than one batch
    vectors = recogniser.embed(pictures)
    assert vectors.shape == (40, 512)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    network = InceptionResnetV1(classify=False).eval()
    state = torch.load(facenet_file, weights_only=True)
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("logits")})
    import cv2

    resized = cv2.resize(pictures[35], (160, 160), interpolation=cv2.INTER_LINEAR)
    tensor = torch.from_numpy(resized).permute(2, 0, 1)[None].float()
    expected = network((tensor - 127.5) / 128).detach().numpy()[0]
    assert np.allclose(vectors[35], expected, atol=1e-4)


def test_cached_weights_need_no_network(no_network, facenet_file):
    cache = no_network / "torch" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / FACENET_FILES["facenet"]).write_bytes(facenet_file.read_bytes())
    recogniser = open_recogniser("auto")
    assert recogniser.name == "facenet"
    assert recogniser.weights_sha256 == open_recogniser("facenet", facenet_file).weights_sha256


@pytest.mark.parametrize("name", ["facenet", "facenet-casia"])
def test_weights_that_cannot_be_downloaded(no_network, name):
    with pytest.raises(InputError, match="cannot be downloaded") as caught:
        open_recogniser(name)
    assert FACENET_FILES[name] in str(caught.value)
    assert "--identity-weights" in str(caught.value)
    assert "--identity dlib" in str(caught.value)
    assert not list((no_network / "torch").rglob("*.tmp"))


def test_auto_falls_back_to_dlib_with_a_warning(no_network, caplog):
    with caplog.at_level(logging.WARNING):
        recogniser = open_recogniser("auto")
    assert recogniser.name == "dlib"
    assert "dlib" in caplog.text
    assert "cannot be downloaded" in caplog.text


@pytest.mark.parametrize("content", [b"", b"not weights", b"<html>Not found</html>"])
def test_a_file_that_holds_no_weights(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pt: not the weights"):
        open_recogniser("facenet", path)


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"weights\.pt: not the weights"):
        open_recogniser("facenet", path)


def test_missing_weights_and_unknown_name(tmp_path):
    with pytest.raises(InputError, match=r"nosuch\.pt: .*[Nn]o such file"):
        open_recogniser("facenet", tmp_path / "nosuch.pt")
    with pytest.raises(InputError, match="identity arcface"):
        open_recogniser("arcface")
