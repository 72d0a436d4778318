"""The frozen embedders: whom they tell apart, and what happens without weights or a network."""

from __future__ import annotations

import hashlib
import logging
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1

from cfer.codec import Bitstream, CodecSettings, encode
from cfer.data.shards import read_clips
from cfer.errors import InputError
from cfer.model import face_embedder as identity
from cfer.model.face_embedder import (
    FACENET_FILES,
    FACENET_RELEASE,
    embed_clip,
    facenet_weights,
    open_face_embedder,
)


@pytest.fixture
def tried(monkeypatch):
    """The addresses that are asked for, in their order; they are asked for all the same."""
    addresses = []
    really_open = urllib.request.urlopen

    def note(request, *arguments, **options):
        addresses.append(request.full_url)
        return really_open(request, *arguments, **options)

    monkeypatch.setattr(torch.hub, "urlopen", note)
    return addresses


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
    pictures = [Bitstream(clip.bitstream, clip.clip_id).i_frame(0) for clip in clips]
    return pictures, np.array([clip.subject for clip in clips])


@pytest.fixture(scope="module")
def dlib():
    return open_face_embedder("dlib")


def test_dlib_tells_drawn_subjects_apart(first_frames, dlib):
    pictures, subjects = first_frames
    embedder = dlib
    vectors = embedder.embed(pictures)
    assert vectors.shape == (len(pictures), embedder.dimension) == (10, 128)
    assert vectors.dtype == np.float32
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    accuracy = np.mean(subjects[distances.argmin(axis=1)] == subjects)
    assert accuracy > 0.9, "chance is 0.11"


def test_a_picture_has_one_vector_whatever_its_neighbors(first_frames, dlib):
    pictures = first_frames[0][:3]
    together = dlib.embed(pictures)
    assert np.array_equal(together, dlib.embed(pictures))
    assert np.allclose(together[1], dlib.embed([pictures[1]])[0], atol=1e-6)
    assert dlib.embed([]).shape == (0, 128)


def test_a_clips_identity_is_that_of_its_middle_i_frame(first_frames, dlib):
    pictures = first_frames[0][:5]
    for count, middle in ((1, 0), (2, 1), (5, 2)):
        bitstream = encode(pictures[:count], CodecSettings(gop_size=1), 25)
        vector = embed_clip(dlib, bitstream)
        assert vector.shape == (1, 128)
        assert np.array_equal(vector, dlib.embed([bitstream.i_frames()[middle]]))


@pytest.fixture(scope="module")
def facenet_file(tmp_path_factory):
    """Weights of the right form (random): the published file's keys, its classifier included."""
    torch.manual_seed(0)
    state = InceptionResnetV1(classify=True, num_classes=8631).state_dict()
    path = tmp_path_factory.mktemp("weights") / "facenet.pt"
    torch.save(state, path)
    return path


def test_facenet_from_a_file_is_the_network_itself(facenet_file, first_frames, monkeypatch):
    embedder = open_face_embedder("facenet", facenet_file)
    monkeypatch.setattr(identity, "BATCH", 4)
    pictures = first_frames[0][:6]  # more than one batch
    vectors = embedder.embed(pictures)
    assert vectors.shape == (6, 512)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    network = InceptionResnetV1(classify=False).eval()
    state = torch.load(facenet_file, weights_only=True)
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("logits")})
    import cv2

    for number in (1, 5):
        resized = cv2.resize(pictures[number], (160, 160), interpolation=cv2.INTER_LINEAR)
        tensor = torch.from_numpy(resized).permute(2, 0, 1)[None].float()
        expected = network((tensor - 127.5) / 128).detach().numpy()[0]
        assert np.allclose(vectors[number], expected, atol=1e-4)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_cached_weights_need_no_network(no_network, tried, facenet_file):
    cache = no_network / "torch" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / FACENET_FILES["facenet"]).symlink_to(facenet_file)
    embedder = open_face_embedder("auto")
    assert embedder.name == "facenet"
    assert embedder.weights_sha256 == hashlib.sha256(facenet_file.read_bytes()).hexdigest()
    assert tried == []


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights are published: a folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "release").mkdir()
    monkeypatch.setattr(identity, "FACENET_RELEASE", f"{(tmp_path / 'release').as_uri()}/")
    return tmp_path / "release"


def test_weights_are_downloaded_once_and_whole(tmp_path, release, monkeypatch, tried):
    file = FACENET_FILES["facenet"]
    published = np.random.default_rng(0).bytes((1 << 20) + 5)  # more than is read at a time
    (release / file).write_bytes(published)
    digest = hashlib.sha256(published).hexdigest()
    monkeypatch.setitem(identity.FACENET_SHA256, "facenet", digest)
    path = facenet_weights("facenet")
    assert path == facenet_weights("facenet")
    assert path.read_bytes() == published
    assert files_below(tmp_path / "torch") == [path]
    assert tried == [(release / file).as_uri()]
    assert socket.getdefaulttimeout() is None


def test_another_file_under_the_name_of_the_weights_is_not_taken(tmp_path, release):
    (release / FACENET_FILES["facenet"]).write_bytes(bytes(1000))
    with pytest.raises(InputError, match=r"cannot be downloaded \(invalid hash value"):
        facenet_weights("facenet")
    assert files_below(tmp_path / "torch") == []


def test_weights_whose_digest_nobody_knows_are_not_downloaded(no_network, tried):
    with pytest.raises(InputError, match="nobody has published its SHA-256") as caught:
        open_face_embedder("facenet-casia")
    assert FACENET_RELEASE + FACENET_FILES["facenet-casia"] in str(caught.value)
    assert "--identity-weights" in str(caught.value)
    assert tried == []


def test_weights_that_cannot_be_downloaded(no_network, tried):
    name = "facenet"
    with pytest.raises(InputError, match="cannot be downloaded") as caught:
        open_face_embedder(name)
    assert FACENET_FILES[name] in str(caught.value)
    assert "--identity-weights" in str(caught.value)
    assert "--identity dlib" in str(caught.value)
    assert tried == [FACENET_RELEASE + FACENET_FILES[name]], "once, and no other's"
    assert files_below(no_network) == []


def test_auto_falls_back_to_dlib_with_a_warning(no_network, tried, caplog):
    with caplog.at_level(logging.WARNING):
        embedder = open_face_embedder("auto")
    assert embedder.name == "dlib"
    assert "dlib" in caplog.text
    assert "cannot be downloaded" in caplog.text
    assert tried == [FACENET_RELEASE + FACENET_FILES["facenet"]]


@pytest.mark.parametrize("content", [b"", b"not weights", b"<html>Not found</html>"])
def test_a_file_that_holds_no_weights(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pt: not the weights"):
        open_face_embedder("facenet", path)


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"weights\.pt: not the weights"):
        open_face_embedder("facenet", path)


def test_missing_weights_and_unknown_name(tmp_path):
    with pytest.raises(InputError, match=r"nosuch\.pt: .*[Nn]o such file"):
        open_face_embedder("facenet", tmp_path / "nosuch.pt")
    with pytest.raises(InputError, match="identity arcface"):
        open_face_embedder("arcface")
