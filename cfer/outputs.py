"""What a command says on the way, and whether the files that it is going to write can be."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfer.errors import InputError


def say(text: str) -> None:
    """A line on stderr.

    Not by print(): in its workers Ray Train replaces it by one that says everything twice.
    """
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def check_output(path: Path, *suffixes: str) -> None:
    """Before any work: can a file be written there?

    Args:
        suffixes: it has to end in one of them, if there are any.

    Raises:
        InputError: it can't.
    """
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
    """Make a folder, before any work, in which files can be written.

    Raises:
        InputError: it can't be made or written.
    """
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
