"""Shards on a disk or an object store, and what a network sees of a clip in them."""

from pathlib import Path

DESCRIPTION_NAME = "dataset.json"


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds shards of `cfer extract`, with their description."""
    # Here and not beside the shards, since the question needs no pyarrow.
    return (folder / DESCRIPTION_NAME).is_file()
