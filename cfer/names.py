"""Names that people give to subjects and classes: which mean the same, and which mean nothing."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

from cfer.errors import InputError

# One vocabulary over all data sets, and what their owners call it.
EMOTIONS = {
    "anger": "anger", "angry": "anger",
    "contempt": "contempt",
    "disgust": "disgust", "disgusted": "disgust",
    "fear": "fear", "fearful": "fear",
    "happiness": "happiness", "happy": "happiness",
    "sadness": "sadness", "sad": "sadness",
    "surprise": "surprise", "surprised": "surprise",
    "neutral": "neutral",
    "calm": "calm",
}  # fmt: skip
# What pandas, R, SQL, Excel and Python write for a missing value (pandas.read_csv reads these as
# missing), in lower case.
NO_VALUES = frozenset(["", *"nan -nan na n/a #na #n/a <na> null none".split()])
MOST_NAMED = 3


def printable(name: str) -> str:
    """A file's name as text; bytes of it that are not UTF-8 are written as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def says_nothing(name: str) -> bool:
    return plain(name) in NO_VALUES


def plain(name: str) -> str:
    """The same for names that differ only in case, spaces, invisible characters or Unicode form."""
    return "".join(_folded(name).split())


def plain_label(label: str) -> str:
    """The same for labels that differ only as in `plain`, in what joins their words (`very-sad`,
    `very_sad`), in how a number is written (`1`, `1.0`) or in the word for an emotion (`happy`,
    `happiness`)."""
    # Between digits, and before one, a space or a sign has a meaning.
    letter, joint = r"[^\W\d_]", r"[\s_\-‐-―]+"
    words = " ".join(_folded(label).split())
    name = re.sub(rf"(?<={letter}){joint}|{joint}(?={letter})", "", words)
    with suppress(ValueError):
        name = repr(float(name))
    return EMOTIONS.get(name, name)


def _folded(name: str) -> str:
    # Folding may undo the form: The Unicode Standard, section 3.13, D146.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in folded if unicodedata.category(c) != "Cf")


def check_subjects(names: Iterable[tuple[str, str]], where: str) -> None:
    """Raises InputError: two of the names, each given with its row, are one to a reader."""
    _check(names, plain, f"{where}: the subjects", "one person would be on both sides of a fold")


def check_labels(names: Iterable[tuple[str, str]], where: str) -> None:
    """As `check_subjects`, for the names of classes."""
    _check(names, plain_label, f"{where}: the labels", "would be two classes")


def _check(
    names: Iterable[tuple[str, str]], key: Callable[[str], str], what: str, why: str
) -> None:
    rows: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, row in names:
        rows[key(name)][name].append(row)
    for spellings in rows.values():
        if len(spellings) > 1:
            listed = " and ".join(f"{n!r} ({rows_named(spellings[n])})" for n in sorted(spellings))
            raise InputError(
                f"{what} {listed} are one name to a reader, and {why}; give one name, or two that "
                "are clearly different, in the manifest, and extract from it"
            )


def rows_named(rows: list[str]) -> str:
    """A few of them, and how many more there are."""
    more = len(rows) - MOST_NAMED
    return ", ".join(rows[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
