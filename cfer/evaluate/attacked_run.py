"""The attacks on the codes of a stored run, and how they are shown.

A run holds its clips' codes, identities and people. Which video a clip is from, and what the faces
look like, is read from the run's data set: pictures of people are not stored a second time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from PIL import Image, ImageOps

from cfer.codec import Bitstream
from cfer.data.folds import read_identities, read_videos
from cfer.data.shards import read_columns, read_description
from cfer.errors import InputError
from cfer.evaluate.attacks import Attack, Suite, attack
from cfer.evaluate.calibration import held_out_people
from cfer.evaluate.metrics import ScoredClips
from cfer.evaluate.table import predictions_of
from cfer.evaluate.trials import Estimate

FACE_SIDE = 32
MOST_PICTURES = 8  # of a person, averaged into a face
NEUTRAL = "neutral"
COLUMN, PATH = "subject", "path"
Groups = Mapping[str, Mapping[str, str]]


def attack_run(
    run: Run,
    groups: Groups | None = None,
    photographs: Mapping[str, Path] | None = None,
    labels: bool = False,
) -> list[Suite]:
    """Attack the people whom a run has held out by its codes and, if asked for, by the labels alone
    that it has predicted; empty suites where it held out too few.

    Args:
        groups: {person: {attribute: value}}.
        photographs: {person: a picture of the face}.

    Raises:
        InputError: a photograph that can't be read, or shows no face; a run without predictions, or
            whose data set is not where it was.
    """
    predictions = predictions_of(run)
    if predictions is None:
        raise InputError(
            f"{run.info.run_name}: it holds no codes; give one of its runs (mlflow ui)"
        )
    train, _ = predictions
    held_out = held_out_people(*predictions)
    data = data_of(run)
    if read_description(data).digest != run.data.params.get("data_digest"):
        raise InputError(f"{data}: not the data set any more that the run was trained on")
    videos = read_videos(data)
    people = {who for who in (*held_out.subjects, *train.subjects) if who is not None}
    faces = faces_of(data, people)
    shown = {who: file for who, file in (photographs or {}).items() if who in held_out.subjects}
    if photographs and len(shown) < 2:
        raise InputError(
            f"--photographs: of the {len(photographs)} people in it, {len(shown)} are among those "
            "whom the run held out, and codes are linked to two or more; name held-out people"
        )
    z_I = embed_photographs(shown, data, held_out) if shown else {}
    attacked = [(held_out, train)]
    if labels:
        attacked.append((held_out.of_labels_alone(), train.of_labels_alone()))
    seed = int(run.data.params["seed"])
    return [attack(*clips, videos, groups, faces, z_I, seed) for clips in attacked]


def data_of(run: Run) -> str:
    """The location of the data set that a run was trained on; empty where it is not known."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return json.loads(inputs[0].dataset.source).get("uri", "") if inputs else ""


def faces_of(data: str, people: set[str]) -> dict[str, np.ndarray]:
    """{person: gray float (FACE_SIDE, FACE_SIDE) in [0, 1]}: the mean of some I-frames.

    Of the person's neutral clips, or where there are none, of all clips.
    """
    pictures: dict[bool, dict[str, list[np.ndarray]]] = {True: {}, False: {}}
    for table in read_columns(data, ["clip_id", "subject", "label_name", "bitstream"]):
        for row in table.to_pylist():
            known = pictures[row["label_name"] == NEUTRAL].setdefault(row["subject"], [])
            if row["subject"] in people and len(known) < MOST_PICTURES:
                known.append(_small(Bitstream(row["bitstream"], row["clip_id"]).i_frame(0)))
    return {
        who: np.mean(pictures[True].get(who) or pictures[False][who], axis=0)
        for who in sorted(people)
        if pictures[True].get(who) or pictures[False].get(who)
    }


def embed_photographs(
    photographs: Mapping[str, Path], data: str, clips: ScoredClips
) -> dict[str, np.ndarray]:
    """{person: z_I of the photograph}, by the network and on the scale of the clips' z_I.

    The scale is not stored with a run: it is the line through the same clips' embeddings in the
    data set.
    """
    from cfer.model.face_embedder import open_face_embedder
    from cfer.video.faces import FaceDetector, crop

    description = read_description(data)
    embedder = open_face_embedder(description.identity["name"])
    if embedder.weights_sha256 != description.identity["weights_sha256"]:
        raise InputError(f"{data}: its identities are by other weights than {embedder.name}'s here")
    detector, crops = FaceDetector(), []
    for file in photographs.values():
        picture = _picture(file)
        squares = detector.find(picture)
        if not squares:
            raise InputError(f"{file}: no face found in it; give another photograph")
        crops.append(crop(picture, squares[0], description.codec["size"]))
    known = read_identities(data)
    raw = np.array([known[clip_id] for clip_id in clips.clip_ids])
    varies = np.minimum(raw.std(0), clips.z_I.std(0)) > 0
    scale = np.where(varies, raw.std(0), 1) / np.where(varies, clips.z_I.std(0), 1)
    embedded = clips.z_I.mean(0) + (embedder.embed(crops) - raw.mean(0)) / scale
    return dict(zip(photographs, embedded, strict=True))


def _picture(file: Path) -> np.ndarray:
    """RGB uint8 (H, W, 3), upright."""
    try:
        with Image.open(file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{file}: not a picture that can be read; copy it again") from error


def _small(picture: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) → gray float (FACE_SIDE, FACE_SIDE) in [0, 1]."""
    import cv2

    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (FACE_SIDE, FACE_SIDE), interpolation=cv2.INTER_AREA) / 255.0


def read_groups(file: Path) -> dict[str, dict[str, str]]:
    """A CSV file with a column `subject` and one for each attribute → {person: {attribute: value}}.

    Raises:
        InputError: no such file, or no such column.
    """
    rows = _rows("--groups", file, "one for each attribute, such as gender,")
    return {
        row[COLUMN]: {name: value for name, value in row.items() if name != COLUMN and value}
        for row in rows
    }


def read_photographs(file: Path) -> dict[str, Path]:
    """A CSV file with the columns `subject` and `path` → {person: picture}, as in a manifest.

    Raises:
        InputError: no such file, or no such columns.
    """
    rows = _rows("--photographs", file, f"one {PATH!r},", PATH)
    return {row[COLUMN]: file.parent / row[PATH] for row in rows}


def _rows(option: str, file: Path, wanted: str, *columns: str) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{option} {file}: not a CSV file that can be read ({error})") from error
    if not rows or not {COLUMN, *columns} <= rows[0].keys() or len(rows[0]) < 2:
        raise InputError(
            f"{option} {file}: it needs a column {COLUMN!r} and {wanted} and a row for each person"
        )
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        where = f"{option} {file}, line {number}"
        if None in row or None in row.values() or not all(row[name] for name in (COLUMN, *columns)):
            raise InputError(
                f"{where}: not as many cells as the head has, or an empty one; fill it"
            )
        if row[COLUMN] in seen:
            raise InputError(f"{where}: {row[COLUMN]} is listed twice; leave one of the two")
        seen.add(row[COLUMN])
    return rows


# ---- how it is shown -----------------------------------------------------------------------------


LEGEND = """\
Pooled: all clips of half of a person's videos (about {pooled:.0f}), matched with the codes or
faces of the other half; all clips, matched with photographs. Identification: accuracy on other
videos. Attributes: mean recall of the values. Inversion: share of the faces' variance rebuilt."""
TOO_FEW = "attacks: none, since too few people are held out to learn from some and attack others"


def table(suite: Suite) -> str:
    """The suite in lines of at most 100 characters; a sentence where there is none."""
    if not suite.people:
        return TOO_FEW
    parts = [
        f"What an attacker finds out about {suite.people} held-out people from the codes of their "
        f"{suite.clips:,} clips\n[95 % interval over people] (by chance); see docs/privacy.md"
    ]
    for rows in blocks(suite):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (zip(row, widths, strict=True) for row in rows)
        parts.append(
            "\n".join(
                "  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines
            )
        )
    return "\n\n".join([*parts, LEGEND.format(pooled=suite.clips_pooled)])


def blocks(suite: Suite) -> list[list[list[str]]]:
    """Tables, the head first: AUC and EER; rank-1 and linkability; the other attacks."""

    def rows(
        head: Sequence[str], cells: Callable[[Attack], list[str]], auc: bool
    ) -> list[list[str]]:
        chosen = [each for each in suite.attacks if (each.measure == "auc") == auc]
        return [
            ["attack", "learned from", *head],
            *([each.name, each.learned_from, *cells(each)] for each in chosen),
        ]

    def errors(each: Attack) -> list[str]:
        return [_cell(each.one["auc"]), _cell(each.pooled["auc"]), _cell(each.pooled["eer"])]

    def links(each: Attack) -> list[str]:
        return [_cell(each.pooled[name], with_chance=True) for name in ("rank1", "d_sys")]

    def others(each: Attack) -> list[str]:
        return [_cell(when[each.measure], with_chance=True) for when in (each.one, each.pooled)]

    return [
        rows(["AUC, one clip", "AUC, pooled", "EER, pooled"], errors, auc=True),
        rows(["rank-1, pooled", "D_sys, pooled"], links, auc=True),
        rows(["one clip", "all clips"], others, auc=False),
    ]


def wide_table(suite: Suite) -> list[list[str]]:
    """All of `blocks` in one table, the head first; a dash where an attack has no such figure."""
    names = ("auc", "eer", "rank1", "d_sys")
    rows = [["attack", "learned from", "one clip", "pooled", "EER", "rank-1", "D_sys"]]
    for each in suite.attacks:
        first = next(iter(each.pooled))
        cells = [_cell(when[first], with_chance=True) for when in (each.one, each.pooled)]
        others = [
            _cell(each.pooled[name], with_chance=True) if name in each.pooled else "–"
            for name in names[1:]
        ]
        rows.append([each.name, each.learned_from, *cells, *others])
    return rows


def _cell(estimate: Estimate, with_chance: bool = False) -> str:
    values = (estimate.value, estimate.low, estimate.high, estimate.chance)
    value, low, high, chance = (f"{number:.2f}".replace("-", "−") for number in values)
    return f"{value} [{low}, {high}]" + (f" ({chance})" if with_chance else "")
