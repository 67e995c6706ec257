"""Dlib's face embedding in PyTorch is dlib's own, and a damaged file of it is told."""

import dlib
import numpy as np
import pytest
import skimage.data
import torch

from pipeline.faces.embedding import WEIGHTS, FaceEmbedder, parse_embedding_weights, read_embedding_weights
from pipeline.faces.landmarks import Landmarks
from pipeline.records.faces import Box
from pipeline.records.vocabulary import UsageError


@pytest.fixture(scope="module")
def embedder():
    return FaceEmbedder()


@pytest.fixture(scope="module")
def chips():
    """A real face, the same otherwise, and what is no face."""
    photo, landmarks = skimage.data.astronaut(), Landmarks()
    face = landmarks.chip(photo, Box(168, 69, 264, 165))
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
    dark = (face * 0.5).astype(np.uint8)
    return [face, np.ascontiguousarray(face[:, ::-1]), dark, noise, np.zeros((150, 150, 3), np.uint8)]


def test_embeddings_are_dlibs(embedder, chips):
    reference = dlib.face_recognition_model_v1(str(WEIGHTS.find()))
    wanted = np.array([reference.compute_face_descriptor(chip) for chip in chips])
    found = embedder.embed(chips)
    assert (found.shape, found.dtype) == ((5, 128), np.float32)
    assert np.abs(found - wanted).max() < 1e-3


@pytest.mark.lengthy
def test_a_batch_gives_what_each_gives_alone(embedder, chips):
    many = embedder.embed(chips * 5)  # More than go through at once.
    np.testing.assert_allclose(many, np.concatenate([embedder.embed([chip]) for chip in chips] * 5), atol=1e-5)
    assert embedder.embed([]).shape == (0, 128)


def test_one_face_is_near_itself_and_far_from_what_is_none(embedder, chips):
    face, mirrored, dark, noise, black = embedder.embed(chips)
    assert max(np.linalg.norm(face - mirrored), np.linalg.norm(face - dark)) < 0.41
    assert min(np.linalg.norm(face - noise), np.linalg.norm(face - black)) > 0.5


def test_torch_is_asked_for_no_gradients(embedder, chips):
    embedder.embed(chips[:1])
    assert not any(parameter.requires_grad for parameter in embedder._network.parameters())
    assert torch.is_grad_enabled()


def test_a_damaged_or_foreign_file_is_told(tmp_path):
    data = WEIGHTS.find().read_bytes()
    for number, wrong in enumerate((b"", data[:-1], data[:300], data[: len(data) // 2], b"\x00" * 400, data + b"\x00")):
        path = tmp_path / f"{number}.dat"
        path.write_bytes(wrong)
        with pytest.raises(UsageError, match=rf"embedding weights .*{number}.dat: .*; give Dlib's dlib_face_recog"):
            read_embedding_weights(path)
    assert len(parse_embedding_weights(data).convs) == 29
