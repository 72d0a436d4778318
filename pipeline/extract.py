"""From videos to Parquet shards of their faces, encoded: a Ray Data job.

    python pipeline/extract.py --videos DIR|GLOB|MANIFEST.csv --out DIR
    python pipeline/extract.py --dataset ck+ --root TREE --out DIR
    ray job submit --working-dir . -- python pipeline/extract.py --videos … --out …

Per clip: find the face, cut one fixed square, encode it at a fixed GOP, and embed an I-frame of the
bitstream by a frozen face network; I-frames and residuals stay in the bitstream. The unit of
work is a shard: the next clips of the sorted manifest, as many as make some megabytes by what their
sources have (`cfer.data.shards.cut_into_shards`), so the plan follows from the sources and the settings
alone. It goes through two pools of actors: *clip actors* decode, find the face and encode, on CPUs;
*shard actors* embed and write, on GPUs where there are some. A shard appears with its completion
record, or not at all, so a job that was killed goes on where it was, and ends with the same bytes.
A clip that cannot be used ends in `failures.csv` with its reason, one that crashes the decoder too;
`dataset.json` comes last.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import logging
import pickle
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

if not __package__:
    # Run as a script, Python looks for modules in pipeline/ and not in the folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
if __name__ == "__main__":
    from cfer.errors import end_quietly_while_importing

    end_quietly_while_importing()

import ray
import ray.data
from tqdm import tqdm

from cfer.cluster import join_cluster
from cfer.data.lock import owned
from cfer.data.shards import (
    SCHEMA_VERSION,
    Description,
    Receipt,
    cut_into_shards,
    expected_bytes,
    read_description,
    read_receipt,
    shard_is_done,
    shard_name,
    write_description,
)
from cfer.data.storage import Folder, StorageError, absolute_location, folder_of, is_uri
from cfer.errors import InputError, exit_with_message
from cfer.model.face_embedder import NAMES, FaceEmbedder, open_face_embedder
from cfer.names import printable
from cfer.video import faces
from cfer.video.files import is_numbered_picture, picture_order
from pipeline.actors import PRESETS, ClipActor, ExtractionSettings, ShardActor
from pipeline.datasets import layout
from pipeline.manifest import Entry, class_names, read_manifest

PLAN_NAME = "extraction.json"
LOG_NAME = "extract.log"
PROGRESS_SECONDS = 10
SOURCES_PER_TASK = 64
MOST_WARNINGS = 5

log = logging.getLogger("extract")
# Its thread would take a stop while Ray starts (cfer/errors.py).
tqdm.monitor_interval = 0

T = TypeVar("T")


# ---- the plan ------------------------------------------------------------------------------------


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
    read = _sources([entry.location for entry in entries])
    sources = list(tqdm(read, "reading sources", len(entries), unit="clip", disable=None, delay=2))
    digests = [source.digest for source in sources]
    _check_subjects(entries, digests)
    planned = []
    for index, clips in enumerate(_cut([source.bytes for source in sources], settings)):
        part = [entries[number] for number in clips]
        work = {
            "schema_version": SCHEMA_VERSION,
            "settings": asdict(settings),
            "face_rule": _face_rule(),
            "weights_sha256": weights_sha256,
            "classes": list(classes),
            "sources": [digests[number] for number in clips],
            # Where the sources lie is no part of the work; what they are called in the rows is.
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
    return cut_into_shards([expected_bytes(n, settings.size, settings.codec) for n in source_bytes])


def _check_subjects(entries: Sequence[Entry], digests: Sequence[str]) -> None:
    """Raises InputError where two subjects share a clip's bytes; logs other clips that do."""
    first: dict[str, Entry] = {}
    pairs = 0
    for entry, digest in zip(entries, digests, strict=True):
        other = first.setdefault(digest, entry)
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
    """What was read of a clip: SHA-256, and how many bytes; empty and 0 where it is unreadable."""

    digest: str
    bytes: int


UNREADABLE = Source("", 0)


def _sources(locations: Sequence[str]) -> Iterator[Source]:
    """Each source, in order. What is in a store is read by all nodes of the cluster: a single one
    would take longer to read terabytes than all of them to extract them."""
    if not any(map(is_uri, locations)):
        with ThreadPoolExecutor(4) as pool:
            yield from pool.map(read_source, locations)
        return
    join_cluster(for_training=False)
    task = ray.remote(_sources_in_task).options(num_cpus=0.5)
    starts = range(0, len(locations), SOURCES_PER_TASK)
    parts = [task.remote(list(locations[at : at + SOURCES_PER_TASK])) for at in starts]
    for part in parts:
        yield from _told(lambda part=part: ray.get(part))  # type: ignore[misc]


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


def _face_rule() -> dict[str, float]:
    names = ("LOOKS", "MIN_PROBABILITY", "SAME_SIZE", "SAME_PERSON", "MARGIN")
    return {name.lower(): getattr(faces, name) for name in names}


def _check_same_plan(out: str, plan: dict[str, Any]) -> None:
    """Raises InputError where the folder holds work of other settings."""
    before = _read_plan(out)
    if before is None:
        return
    given = {**plan, **plan["settings"]}
    for name, known in {**before, **before["settings"]}.items():
        if name != "settings" and given.get(name) != known:
            raise InputError(
                f"--out {out}: it was begun with {name} {known}, and now {name} is "
                f"{given.get(name)}; give the same to go on with it, or another --out"
            )


def _read_plan(out: str) -> dict[str, Any] | None:
    folder = Folder(out)
    if not folder.exists(PLAN_NAME):
        return None
    try:
        plan: dict[str, Any] = json.loads(folder.read(PLAN_NAME))
        _ = plan["settings"]["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.name_of(PLAN_NAME)}: not a plan of an extraction ({error}); "
            "delete the folder to begin again"
        ) from error
    return plan


# ---- the job -------------------------------------------------------------------------------------


def extract(
    entries: Sequence[Entry],
    names: list[str],
    out: str,
    settings: ExtractionSettings,
    *,
    weights: Path | None = None,
    num_actors: int | None = None,
    use_gpu: bool = False,
) -> tuple[Description, int]:
    """Extract a data set, or what is left of it → its description, and how many frames were new.

    Args:
        entries: its clips, sorted by `clip_id`.
        names: its classes, in order.

    Raises:
        InputError: an option, the sources or an existing output that is not right.
    """
    entries = [replace(e, location=absolute_location(e.location)) for e in entries]
    before = _read_plan(out)
    if settings.identity == "auto" and before is not None:
        # What auto took the first time stays, even if the network has come back since.
        settings = _with_identity(settings, before["settings"]["identity"])
    embedder = open_face_embedder(settings.identity, weights, "cpu")
    settings = _with_identity(settings, embedder.name)
    plan = {
        "settings": asdict(settings),
        "classes": names,
        "weights_sha256": embedder.weights_sha256,
    }
    _check_same_plan(out, plan)
    planned = plan_shards(entries, settings, names, embedder.weights_sha256)
    done = {s.index: shard_is_done(out, s.index, s.digest) for s in planned}
    receipts = [receipt for receipt in done.values() if receipt is not None]
    left = [shard for shard in planned if done[shard.index] is None]
    if not left and _is_described(out, receipts):
        log.info("%s is complete: %d shards, nothing to do", out, len(receipts))
        return read_description(out), 0

    folder = Folder(out)
    with owned(folder, "--out"):
        folder.delete("dataset.json")
        _remove_leftovers(folder, len(planned))
        folder.write(PLAN_NAME, (json.dumps(plan, indent=1) + "\n").encode())
        log.info(
            "%d clips in %d shards, of which %d are done already",
            len(entries),
            len(planned),
            len(receipts),
        )
        num_new_frames = 0
        if left:
            _run(left, out, settings, names, weights, embedder, num_actors, use_gpu)
            for shard in left:
                # Its hash was taken as it was written: no shard comes back through this process.
                receipt = read_receipt(out, shard.index)
                assert receipt is not None, f"shard {shard.index} was written and is not there"
                assert receipt.digest == shard.digest
                receipts.append(receipt)
                num_new_frames += receipt.frames
        receipts.sort(key=lambda receipt: receipt.index)
        write_description(out, _description(entries, settings, names, embedder, receipts))
    return read_description(out), num_new_frames


def _run(
    left: Sequence[PlannedShard],
    out: str,
    settings: ExtractionSettings,
    classes: Sequence[str],
    weights: Path | None,
    embedder: FaceEmbedder,
    num_actors: int | None,
    use_gpu: bool,
) -> None:
    join_cluster(for_training=False)
    pools = _pools(num_actors, use_gpu, len(left))
    where, job = absolute_location(out), uuid.uuid4().hex
    rows = [
        {"index": s.index, "digest": s.digest, "entries": pickle.dumps(s.entries)} for s in left
    ]
    receipts = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(
            cast(Any, ClipActor),
            fn_constructor_kwargs={
                "out": where,
                "settings": settings,
                "classes": classes,
                "job": job,
            },
            compute=ray.data.ActorPoolStrategy(size=pools.num_clip_actors),
            num_cpus=pools.clip_actor_cpus,
        )
        .map(
            cast(Any, ShardActor),
            fn_constructor_kwargs={
                "out": where,
                "settings": settings,
                "weights": None if weights is None else weights.resolve(),
                "weights_sha256": embedder.weights_sha256,
                "device": "cuda" if use_gpu else "cpu",
                "job": job,
            },
            compute=ray.data.ActorPoolStrategy(size=pools.num_shard_actors),
            num_cpus=pools.shard_actor_cpus,
            num_gpus=1 if use_gpu else 0,
        )
    )
    sizes = {shard.index: len(shard.entries) for shard in left}

    def go() -> None:
        for receipt in _with_progress(receipts.iter_rows(), sizes):
            log.debug("shard %d: %d rows", receipt["index"], receipt["rows"])

    _told(go)


@dataclass(frozen=True)
class _Pools:
    """How many actors there are, and the CPUs that each reserves."""

    num_clip_actors: int
    clip_actor_cpus: float
    num_shard_actors: int
    shard_actor_cpus: float


def _pools(num_actors: int | None, use_gpu: bool, num_shards: int) -> _Pools:
    """On GPUs, a shard actor for each of them, and a clip actor for each CPU that is left. On CPUs
    alone a clip actor and a shard actor share each of them: whatever the embedding costs beside the
    decoding, no CPU waits.

    Raises:
        InputError: more actors than the cluster has room for.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if use_gpu and not 1 <= gpus < cpus:
        raise InputError(
            f"--gpu: the cluster has {gpus} GPUs and {cpus} CPUs, and each GPU needs a CPU, and "
            "the decoding at least one more; leave --gpu out"
        )
    room = cpus - gpus if use_gpu else cpus
    if num_actors is not None and num_actors > room:
        raise InputError(
            f"--actors {num_actors}: the cluster has room for {room} "
            f"({gpus} GPUs, {cpus} CPUs); give fewer, or leave --actors out"
        )
    clip_actors = min(num_actors or room, num_shards)
    if use_gpu:
        return _Pools(clip_actors, 1, min(gpus, num_shards), 1)
    return _Pools(clip_actors, 0.5, clip_actors, 0.5)


def _told(what: Callable[[], T]) -> T:
    """A user's error of an actor or a task, without the traceback that Ray makes of it."""
    try:
        return what()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise


def _with_progress(
    receipts: Iterable[dict[str, Any]], sizes: dict[int, int]
) -> Iterator[dict[str, Any]]:
    """A bar on a terminal, a line every few seconds elsewhere; the log file has every shard."""
    total = sum(sizes.values())
    started = said = time.monotonic()
    finished = failed = 0
    with tqdm(total=total, desc="extracting", unit="clip", disable=None) as bar:
        for receipt in receipts:
            finished += sizes[receipt["index"]]
            failed += receipt["failures"]
            bar.update(sizes[receipt["index"]])
            bar.set_postfix(failures=failed)
            now = time.monotonic()
            seconds = now - started
            is_due = bar.disable and (now - said > PROGRESS_SECONDS or finished == total)
            said = now if is_due else said
            log.log(
                logging.INFO if is_due else logging.DEBUG,
                "%d of %d clips, %d failures, %.0f s, about %.0f s left",
                finished,
                total,
                failed,
                seconds,
                seconds * (total - finished) / finished,
            )
            yield receipt


def _with_identity(settings: ExtractionSettings, name: str) -> ExtractionSettings:
    return ExtractionSettings(**{**asdict(settings), "identity": name})


def _is_described(out: str, receipts: Sequence[Receipt]) -> bool:
    if not Folder(out).exists("dataset.json"):
        return False
    return read_description(out).shards == list(receipts)


def _remove_leftovers(folder: Folder, num_shards: int) -> None:
    """What a killed job, or one with more clips, has left behind."""
    wanted = {shard_name(index) for index in range(num_shards)}
    for name in folder.names():
        stem = name.rsplit(".", 1)[0]
        is_stale_shard = stem.startswith("shard-") and f"{stem}.parquet" not in wanted
        if name.startswith("working-") or name.endswith(".tmp") or is_stale_shard:
            folder.delete(name)


def _description(
    entries: Sequence[Entry],
    settings: ExtractionSettings,
    classes: list[str],
    embedder: FaceEmbedder,
    receipts: list[Receipt],
) -> Description:
    codec = settings.codec
    packages = ("cfer", "av", "torch", "facenet-pytorch", "dlib-bin", "numpy", "pyarrow", "ray")
    return Description(
        name=", ".join(sorted({entry.dataset for entry in entries})),
        classes=classes,
        codec={"size": settings.size, **asdict(codec)},
        identity={
            "name": embedder.name,
            "dimension": embedder.dimension,
            "weights_sha256": embedder.weights_sha256,
        },
        settings={
            "window_gops": settings.window_gops,
            "clips_per_shard": settings.clips_per_shard,
            "face_rule": _face_rule(),
        },
        shards=receipts,
        software={name: _version(name) for name in packages},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# ---- the command ---------------------------------------------------------------------------------


def summary(description: Description, out: str, num_new_frames: int, seconds: float) -> str:
    """What the job says at its end."""
    counts = description.counts
    speed = f"{num_new_frames / seconds:.0f} frames/s" if num_new_frames else "nothing new"
    lines = [
        f"{out}: {counts['clips']} clips, {counts['frames']} frames, {counts['bytes']:,} bytes in "
        f"{len(description.shards)} shards; identity by {description.identity['name']}; "
        f"{seconds:.1f} s, {speed}",
        f"{counts['failures']} failures"
        + (f", listed in {Folder(out).name_of('failures.csv')}:" if counts["failures"] else ""),
    ]
    lines += [
        f"  {failure.source}: {failure.stage}: {failure.reason}"
        for failure in description.failures[:20]
    ]
    if len(description.failures) > 20:
        lines.append(f"  … and {len(description.failures) - 20} more")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python pipeline/extract.py",
        description="Videos → Parquet shards of encoded faces and identity embeddings.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", help="a folder or a CSV (path or s3://…), or a glob pattern")
    source.add_argument(
        "--dataset", choices=layout.NAMES, help="in its owners' layout, below --root"
    )
    parser.add_argument("--root", type=Path, help="where --dataset was unpacked; of csv, the file")
    parser.add_argument("--out", required=True, help="folder or URI (s3://…) to write")
    parser.add_argument("--size", type=int, help="side of the face crop, pixels (112)")
    parser.add_argument("--gop-size", type=int, help="frames per GOP (3)")
    parser.add_argument(
        "--gop-span",
        type=int,
        help="frames of the video that a GOP stands for; as many as --gop-size: every one (24)",
    )
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--quantizer", type=int, help="fixed, 1 (finest) to 31 (4)")
    rate.add_argument("--bit-rate", type=int, help="bits per second, in place of a quantizer")
    parser.add_argument(
        "--no-motion-search",
        dest="motion_search",
        action="store_false",
        help="all motion vectors zero: residuals hold the whole change",
    )
    parser.add_argument("--identity", choices=NAMES, help="frozen face network (auto)")
    parser.add_argument("--identity-weights", type=Path, help="file of FaceNet's weights")
    parser.add_argument(
        "--window-gops", type=int, help="cut longer clips into windows of this many GOPs (20)"
    )
    parser.add_argument(
        "--clips-per-shard",
        type=int,
        help="unit of work, and of what a kill can lose (some megabytes of clips)",
    )
    parser.add_argument("--classes", help="class names in order, commas between (those found)")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="the paper's settings")
    parser.add_argument("--actors", type=int, help="clips at a time (as many as there are CPUs)")
    parser.add_argument("--gpu", action="store_true", help="embed the I-frames on GPUs")
    parser.add_argument(
        "--max-failures", type=int, default=0, help="exit with status 1 above so many (0)"
    )
    return parser


def settings_of(arguments: argparse.Namespace) -> ExtractionSettings:
    given = {f.name: getattr(arguments, f.name) for f in fields(ExtractionSettings)}
    if given["motion_search"]:
        given["motion_search"] = None  # the default, or the preset's
    chosen = {name: value for name, value in given.items() if value is not None}
    return ExtractionSettings(**{**PRESETS.get(arguments.preset, {}), **chosen})


def clips_of(arguments: argparse.Namespace) -> tuple[list[Entry], list[str]]:
    """The clips that are given, sorted, and their classes in order."""
    given = None
    if arguments.classes is not None:
        given = [name.strip() for name in arguments.classes.split(",")]
    if arguments.dataset is None:
        if arguments.root is not None:
            raise InputError(f"--root {arguments.root}: only with --dataset; leave it out")
        entries = read_manifest(arguments.videos)
        classes = class_names(entries, given)
    elif arguments.root is None:
        raise InputError(
            f"--dataset {arguments.dataset}: needs --root, the folder that it was unpacked in"
        )
    else:
        entries, classes = layout.read_dataset(arguments.dataset, arguments.root, given)
    if len(classes) == 1:
        log.warning("every label is %s: nothing can be learnt from one class alone", classes[0])
    return entries, classes


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    settings = settings_of(arguments)
    if arguments.actors is not None and arguments.actors < 1:
        raise InputError(f"--actors {arguments.actors}: give 1 or more")
    _log_to(arguments.out)
    started = time.monotonic()
    entries, classes = clips_of(arguments)
    description, num_new_frames = extract(
        entries,
        classes,
        arguments.out,
        settings,
        weights=arguments.identity_weights,
        num_actors=arguments.actors,
        use_gpu=arguments.gpu,
    )
    seconds = time.monotonic() - started
    log.info("%s", summary(description, arguments.out, num_new_frames, seconds))
    num_failures = len(description.failures)
    if num_failures > arguments.max_failures:
        log.info("more failures than --max-failures %d", arguments.max_failures)
        return 1
    return 0


def _log_to(out: str) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if "://" not in out:
        Path(out).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(out) / LOG_NAME))
        handlers[-1].setLevel(logging.DEBUG)
    handlers[0].setLevel(logging.INFO)
    form = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    # A process may extract several times, each into its own log.
    for old in list(log.handlers):
        log.removeHandler(old)
        logging.getLogger("cfer").removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(form)
        log.addHandler(handler)
        logging.getLogger("cfer").addHandler(handler)


if __name__ == "__main__":
    exit_with_message(main)
