"""A model and the data set that it is evaluated on."""

from __future__ import annotations

import pytest

from cfer.errors import InputError
from cfer.evaluate.table import check_classes


def test_other_classes_are_refused() -> None:
    check_classes("m", ["a", "b"], "data", ["a", "b"])
    for given in (["b", "a"], ["a", "b", "c"], ["a"]):
        with pytest.raises(InputError, match="data: its classes are"):
            check_classes("m", ["a", "b"], "data", given)
