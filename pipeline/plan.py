"""Which clips make up which shard, and the digest of all that decides a shard's content.

The unit of work is a shard: the next clips of the sorted manifest, as many as make some megabytes
by what their sources have (`cfer.data.shards.cut_into_shards`), so that the plan follows from the
sources and the settings alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import ray
import ray.data
from tqdm import tqdm

from cfer.cluster import join_cluster
from cfer.codec import spelled_as_now
from cfer.data.shards import (
    SCHEMA_VERSION,
    cut_into_shards,
    expected_bytes,
)
from cfer.data.storage import Folder, StorageError, folder_of, is_uri
from cfer.errors import InputError
from cfer.names import printable
from cfer.video import faces, follow
from cfer.video.files import is_numbered_picture, picture_order
from pipeline.manifest import Entry
from pipeline.settings import ExtractionSettings

PLAN_NAME = "extraction.json"
SOURCES_PER_TASK = 64
MOST_WARNINGS = 5
log = logging.getLogger("extract")
T = TypeVar("T")


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be: its clips, and the digest of all that decides its content."""

    index: int
    entries: list[Entry]
    digest: str


def plan_shards(
    entries: Sequence[Entry],
    settings: ExtractionSettings,
    classes: Sequence[str],
    weights_sha256: str,
) -> list[PlannedShard]:
    """Cut the sorted manifest into shards. Reads every source once, for its digest.

    Raises:
        InputError: the same bytes under two subjects.
    """
    # Several clips may be parts of one video.
    locations = list(dict.fromkeys(entry.location for entry in entries))
    read = tqdm(
        _sources(locations), "reading sources", len(locations), unit="clip", disable=None, delay=2
    )
    found = dict(zip(locations, read, strict=True))
    sources = [found[entry.location] for entry in entries]
    digests = [source.digest for source in sources]
    _check_subjects(entries, digests)
    planned = []
    for index, clips in enumerate(_cut([source.bytes for source in sources], settings)):
        part = [entries[number] for number in clips]
        work = {
            "schema_version": SCHEMA_VERSION,
            "settings": asdict(settings),
            "face_rule": face_rule(),
            "weights_sha256": weights_sha256,
            "classes": list(classes),
            "sources": [digests[number] for number in clips],
            # The place of the sources is no part of the work; their names in the rows are.
            "entries": [{**asdict(entry), "location": ""} for entry in part],
        }
        text = json.dumps(work, sort_keys=True, default=str)
        planned.append(PlannedShard(index, part, hashlib.sha256(text.encode()).hexdigest()))
    return planned


def _cut(source_bytes: Sequence[int], settings: ExtractionSettings) -> list[range]:
    """Which clips, by their numbers, make up each shard."""
    step, count = settings.clips_per_shard, len(source_bytes)
    if step is not None:
        return [range(first, min(first + step, count)) for first in range(0, count, step)]
    sizes = [expected_bytes(n, settings.size, settings.codec) for n in source_bytes]
    return cut_into_shards([settings.views * size for size in sizes])


def _check_subjects(entries: Sequence[Entry], digests: Sequence[str]) -> None:
    """Raises InputError where two subjects share a clip's bytes; logs other clips that do."""
    first: dict[tuple[str, float | None, float | None], Entry] = {}
    pairs = 0
    for entry, digest in zip(entries, digests, strict=True):
        other = first.setdefault((digest, entry.start_seconds, entry.end_seconds), entry)
        if not digest or other is entry:
            continue
        if None not in (entry.subject, other.subject) and entry.subject != other.subject:
            raise InputError(
                f"{other.location} and {entry.location}: the same bytes under two subjects, "
                f"{other.subject} and {entry.subject}: one person would be on both sides of a "
                "fold; correct or remove one"
            )
        pairs += 1
        if pairs <= MOST_WARNINGS:
            log.warning("%s and %s: the same bytes", other.location, entry.location)
    if pairs > MOST_WARNINGS:
        log.warning("… and %d more clips with the bytes of another", pairs - MOST_WARNINGS)


class Source(NamedTuple):
    """A clip's source: its SHA-256, and how many bytes; empty and 0 where it is unreadable."""

    digest: str
    bytes: int


UNREADABLE = Source("", 0)


def _sources(locations: Sequence[str]) -> Iterator[Source]:
    """Each source, in order. Sources in a store are read by all nodes of the cluster: a single node
    would take longer to read terabytes than all nodes to extract them."""
    if not any(map(is_uri, locations)):
        with ThreadPoolExecutor(4) as pool:
            yield from pool.map(read_source, locations)
        return
    join_cluster(for_training=False)
    task = ray.remote(_sources_in_task).options(num_cpus=0.5)
    starts = range(0, len(locations), SOURCES_PER_TASK)
    parts = [task.remote(list(locations[at : at + SOURCES_PER_TASK])) for at in starts]
    for part in parts:
        yield from without_ray_traceback(lambda part=part: ray.get(part))  # type: ignore[misc]


def _sources_in_task(locations: Sequence[str]) -> list[Source]:
    with ThreadPoolExecutor(8) as pool:  # they wait for the store most of the time
        return list(pool.map(read_source, locations))


def read_source(location: str) -> Source:
    """A video, or all pictures of a folder.

    Raises:
        StorageError: its store is out of order.
    """
    digest, count = hashlib.sha256(), 0
    if printable(location) != location:
        return UNREADABLE
    try:
        folder, name = folder_of(location)
        if folder.exists(name):
            for chunk in folder.chunks(name):
                digest.update(chunk)
                count += len(chunk)
            return Source(digest.hexdigest(), count)
        pictures = folder.folder(name)
        names = sorted(filter(is_numbered_picture, pictures.names()), key=picture_order)
        for picture in names:
            digest.update(picture.encode() + b"\0")
            for chunk in pictures.chunks(picture):
                digest.update(chunk)
                count += len(chunk)
    except StorageError:
        raise
    except (InputError, OSError):
        return UNREADABLE
    return Source(digest.hexdigest(), count) if names else UNREADABLE


def face_rule() -> dict[str, float]:
    """What decides where a face is cut out: no set is gone on with by another rule."""
    found = ("LOOK_SECONDS", "MIN_PROBABILITY", "NEAR", "MOST_GROWN", "SAME_SIZE", "MARGIN")
    followed = ("STILL", "AGREED")
    rule = {name.lower(): getattr(faces, name) for name in found}
    return rule | {name.lower(): getattr(follow, name) for name in followed}


def check_same_plan(out: str, plan: dict[str, Any]) -> None:
    """Raises InputError where the folder holds work of other settings."""
    before = read_plan(out)
    if before is None:
        return
    given = {**plan, **plan["settings"]}
    for name, known in {**before, **before["settings"]}.items():
        if name != "settings" and given.get(name) != known:
            raise InputError(
                f"--out {out}: it was begun with {name} {known}, and now {name} is "
                f"{given.get(name)}; give the same to go on with it, or another --out"
            )


def read_plan(out: str) -> dict[str, Any] | None:
    folder = Folder(out)
    if not folder.exists(PLAN_NAME):
        return None
    try:
        plan: dict[str, Any] = json.loads(folder.read(PLAN_NAME))
        _ = plan["settings"]["identity"]
        plan["settings"] = spelled_as_now(plan["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.name_of(PLAN_NAME)}: not a plan of an extraction ({error}); "
            "delete the folder to begin again"
        ) from error
    return plan


def without_ray_traceback(what: Callable[[], T]) -> T:
    """A user's error of an actor or a task, without the traceback that Ray makes of it."""
    try:
        return what()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
