"""A painted person, as a puppet."""

from __future__ import annotations

import pytest
from painted import painted, write_person

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
