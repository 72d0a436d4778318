"""A painted person, as a puppet; and that person's smile."""

from __future__ import annotations

import numpy as np
import pytest
from painted import FULL, freckled, painted, smiling, write_person

from pipeline.puppets.photos import Face, photographs_below
from pipeline.puppets.rig import Rig


@pytest.fixture(scope="package")
def face(tmp_path_factory: pytest.TempPathFactory) -> Face:
    folder = tmp_path_factory.mktemp("painted")
    write_person(painted(), folder / "p1_03.png")
    return Face.read(photographs_below(folder)[0])


@pytest.fixture(scope="package")
def rig(face: Face) -> Rig:
    return Rig.of(face)


@pytest.fixture(scope="package")
def neutral() -> np.ndarray:
    """With freckles."""
    return freckled(painted(64))


@pytest.fixture(scope="package")
def full_smile(neutral: np.ndarray) -> np.ndarray:
    """Of the same person."""
    return smiling(neutral, FULL)
