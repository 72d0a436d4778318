"""`cfer verify`: is a data set whole?"""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg


def verify(directory: Positional[Annotated[str, arg(metavar="DIR")]]) -> int:
    """Check every hash, count and row of a data set.

    Args:
        directory: folder or URI that `cfer extract` wrote.
    """
    from cfer.data import shards

    problems = shards.verify(directory)
    for problem in problems:
        print(problem)
    description = shards.read_description(directory)
    counts = description.counts
    print(
        f"{directory}: {len(description.shards)} shards, {counts['clips']} clips, "
        f"{counts['frames']} frames, {counts['bytes']:,} bytes, {counts['failures']} failures: "
        + (f"{len(problems)} PROBLEMS" if problems else "every hash and count is right")
    )
    return 1 if problems else 0
