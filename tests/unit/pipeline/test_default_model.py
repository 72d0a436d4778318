"""Tests of what the shipped model's card says of groups of people."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.default_model import age_band, groups_of_people, recall_by_group


@pytest.mark.parametrize(
    ("years", "band"), [(18, "under 25"), (24.9, "under 25"), (25, "25 to 34"), (35, "35 and over")]
)
def test_bands_of_age_have_no_gap(years: float, band: str) -> None:
    assert age_band(years) == band


def test_the_owners_tables_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "london").mkdir()
    (tmp_path / "london" / "london_info.csv").write_text(
        "face_id,face_age,face_gender,face_eth\n001,24,female,white\n002,NA,male,east_asian/white\n"
    )
    (tmp_path / "canada_info.csv").write_text("face_id,face_age,face_gender\n003f,41,female\n")
    assert groups_of_people(tmp_path) == {
        "001": {"age": "under 25", "gender": "female", "ethnicity": "white"},
        "002": {"gender": "male", "ethnicity": "east_asian/white"},
        "003f": {"age": "35 and over", "gender": "female"},
    }


def test_recall_counts_clips_of_known_people_by_each_of_their_groups() -> None:
    people = {"a": {"age": "under 25", "gender": "female"}, "b": {"gender": "male"}}
    counted = recall_by_group(["a", "b", "a", "c", None], [True, False, False, True, True], people)
    assert counted == {
        "age": {"under 25": (1, 2)},
        "gender": {"female": (1, 2), "male": (0, 1)},
    }
