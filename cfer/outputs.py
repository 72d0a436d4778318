"""What a command says on the way, and a check before any work that its files can be written."""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cfer.errors import InputError


def say(text: str) -> None:
    """A line on stderr."""
    # Not by print(): in its workers Ray Train replaces it by one that writes everything twice.
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def count_reasons(reasons: Iterable[str | None]) -> Counter[str]:
    """How often each reason is given, without what is of one case alone, in parentheses at its end;
    None is none."""
    return Counter(re.sub(r" \([^()]*\)$", "", reason) for reason in reasons if reason)


def check_output(path: Path, *suffixes: str, sources: Iterable[str | Path] = ()) -> None:
    """Raises InputError: a file can't be written there, ends in none of the given suffixes, or is
    one of the sources that are read, or in a folder of them."""
    for source in map(Path, sources):
        if path.exists() and source.exists():
            if path.samefile(source):
                raise InputError(f"{path}: that is the video itself; give another file")
            if source.is_dir() and path.absolute().parent.samefile(source):
                raise InputError(f"{path}: that is a file of the source; give another")
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: give a file that ends in {' or '.join(suffixes)}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    with _refused_in_a_line(path):
        if path.is_dir() or path.is_file():
            open(path, "ab").close()
        elif not path.exists():  # a pipe would wait for a reader
            tempfile.TemporaryFile(dir=folder).close()


def check_output_folder(path: Path) -> None:
    """Make a folder; InputError: it can't be made, or files can't be written in it."""
    with _refused_in_a_line(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


@contextmanager
def _refused_in_a_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); correct the path or its permissions"
        ) from error
