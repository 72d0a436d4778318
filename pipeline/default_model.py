"""Make the model file that ships with cfer, from photographs: `cfer/predict/default.safetensors`.

    python pipeline/default_model.py --photos DIR --out default

Animates the photographs (docs/data.md says where to get them) and mixtures of two people, extracts
the clips, trains the min-min game on all people but every fifth, and exports the model to
`OUT/default.safetensors`. Its card says what it reaches on the people who were held out, also by
age, gender and ethnicity where the photographs come with a table of these. Killed and started
again, each step goes on where it was.
"""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from cfer.errors import InputError, exit_with_message
from cfer.options import parse
from pipeline.datasets.made import write_csv
from pipeline.puppets.photos import photographs_below
from pipeline.puppets.smile import is_held_out

EXPERIMENT, RUN, MODEL = "default", "default-model", "default.safetensors"
PEOPLE = "people.csv"
STEPS = (
    "puppets --photos {photos} --out videos --mixtures 120",
    "extract --videos videos/manifest.csv --out shards --identity dlib --native",
    "train --data shards --experiment {experiment} --run {run} --epochs 80 "
    "--stream both --input energy+motion --val-subjects {held_out}",
    "models export {run} {model}",
)
UNKNOWN = ("", "NA")  # as the owners write it
AGES = (25, 35)  # the first ages of the second and third band
Groups = dict[str, dict[str, tuple[int, int]]]


def make(photos: Path, out: Path = Path("default")) -> int:
    """Make the model file that ships with cfer, from photographs: OUT/default.safetensors.

    Args:
        photos: folder of photographs with landmarks.
        out: folder to work in.
    """
    people = [photograph.person for photograph in photographs_below(photos)]
    held_out = [person for number, person in enumerate(people) if is_held_out(number)]
    out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        words = step.format(
            photos=shlex.quote(str(photos.resolve())),
            experiment=EXPERIMENT,
            run=RUN,
            model=MODEL,
            held_out=",".join(held_out),
        )
        print(f"$ cfer {words}", flush=True)
        command = [sys.executable, "-m", "cfer.cli", *shlex.split(words)]
        done = subprocess.run(command, cwd=out, check=False)
        if done.returncode:
            print(f"stopped, since the command above ended with {done.returncode}")
            return done.returncode
    groups = groups_of_people(photos)
    _write_people(groups, out / PEOPLE)
    with chdir(out):
        _write_groups(groups)
    return 0


def _write_people(people: Mapping[str, Mapping[str, str]], file: Path) -> None:
    """What `cfer evaluate RUN --groups` reads."""
    names = sorted({name for known in people.values() for name in known})
    rows = ((who, *(known.get(name, "") for name in names)) for who, known in people.items())
    write_csv(file, ("subject", *names), rows)


def _write_groups(people: Mapping[str, Mapping[str, str]]) -> None:
    """Add the recall of each group of people, on the held-out clips, to the model's card."""
    from cfer import tracking
    from cfer.evaluate.table import predictions_of
    from cfer.model.card import read_model, write_model

    predictor, card = read_model(MODEL)
    stored = predictions_of(tracking.find_run(RUN))
    if stored is None:
        raise InputError(f"run {RUN}: its predictions are gone; delete the folder, and start again")
    _, clips = stored
    right = clips.logits.argmax(axis=1) == clips.labels
    groups = recall_by_group(clips.subjects, right, people)
    write_model(MODEL, predictor, replace(card, recall_by_group=groups))


def groups_of_people(photos: Path) -> dict[str, dict[str, str]]:
    """What the owners' tables (`*_info.csv`) say of each person: {person: {group: value}}."""
    people: dict[str, dict[str, str]] = {}
    for table in sorted(photos.rglob("*_info.csv")):
        with table.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                known = {
                    name.removeprefix("face_"): value
                    for name, value in row.items()
                    if value not in UNKNOWN
                }
                person = known.pop("id")
                if "age" in known:
                    known["age"] = age_band(float(known["age"]))
                people[person] = {
                    "ethnicity" if name == "eth" else name: value for name, value in known.items()
                }
    return people


def age_band(years: float) -> str:
    """One of three, of about as many people each."""
    first, second = AGES
    if years < first:
        return f"under {first}"
    return f"{first} to {second - 1}" if years < second else f"{second} and over"


def recall_by_group(
    subjects: Sequence[str | None], right: Iterable[bool], people: Mapping[str, Mapping[str, str]]
) -> Groups:
    """{group: {value: (clips that are recognized, all of its clips)}}, both sorted."""
    counted: dict[str, dict[str, list[int]]] = {}
    for subject, is_right in zip(subjects, right, strict=True):
        for group, value in people.get(subject or "", {}).items():
            count = counted.setdefault(group, {}).setdefault(value, [0, 0])
            count[0] += int(is_right)
            count[1] += 1
    return {
        group: {value: (counts[0], counts[1]) for value, counts in sorted(values.items())}
        for group, values in sorted(counted.items())
    }


if __name__ == "__main__":
    exit_with_message(lambda: parse(make, "python pipeline/default_model.py", None))
