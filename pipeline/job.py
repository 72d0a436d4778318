"""The extraction as a Ray Data job over planned shards.

Two pools of actors: *clip actors* decode, find the face and encode, on CPUs; *shard actors* embed
and write, on GPUs where there are some. A shard appears with its completion record, or not at all,
so a job that was killed goes on where it was, and ends with the same bytes. `dataset.json` comes
last.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import pickle
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray
import ray.data
from tqdm import tqdm

from cfer.cluster import join_cluster
from cfer.data.lock import owned
from cfer.data.shards import (
    Description,
    Receipt,
    read_columns,
    read_description,
    read_receipt,
    shard_is_done,
    shard_name,
    write_description,
)
from cfer.data.storage import Folder, absolute_location
from cfer.errors import InputError
from cfer.model.face_embedder import FaceEmbedder, open_face_embedder
from cfer.outputs import count_reasons
from pipeline.actors import ClipActor, ShardActor
from pipeline.manifest import Entry
from pipeline.plan import (
    PLAN_NAME,
    PlannedShard,
    check_same_plan,
    face_rule,
    log,
    plan_shards,
    read_plan,
    without_ray_traceback,
)
from pipeline.settings import ExtractionSettings, FaceNetwork

PROGRESS_SECONDS = 10
# Its thread would take a stop while Ray starts (cfer/errors.py).
tqdm.monitor_interval = 0


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
    """Extract a data set, or the rest of it → its description, and how many frames were new.

    Args:
        entries: its clips, sorted by `clip_id`.
        names: its classes, in order.

    Raises:
        InputError: an option, the sources or an existing output that is not right.
    """
    settings = settings.checked()
    entries = [replace(e, location=absolute_location(e.location)) for e in entries]
    before = read_plan(out)
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
    check_same_plan(out, plan)
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

    without_ray_traceback(go)


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
    return replace(settings, identity=cast(FaceNetwork, name))


def _is_described(out: str, receipts: Sequence[Receipt]) -> bool:
    if not Folder(out).exists("dataset.json"):
        return False
    return read_description(out).shards == list(receipts)


def _remove_leftovers(folder: Folder, num_shards: int) -> None:
    """Remove the files that a killed job, or one with more clips, has left behind."""
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
            "views": settings.views,
            "native": settings.native,
            "window_gops": settings.window_gops,
            "clips_per_shard": settings.clips_per_shard,
            "face_rule": face_rule(),
        },
        shards=receipts,
        software={name: _version(name) for name in packages},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native_line(out: str) -> str:
    """How many clips are there as H.264 transmits them, too, and why others are not."""
    tables = read_columns(out, ["native_refused"])
    refused = [reason for table in tables for reason in table["native_refused"].to_pylist()]
    reasons = [f"{count} not: {reason}" for reason, count in count_reasons(refused).most_common()]
    return "; ".join([f"{refused.count(None)} of them also as H.264 transmits them", *reasons])


def summary(description: Description, out: str, num_new_frames: int, seconds: float) -> str:
    """The lines that the job prints at its end."""
    counts = description.counts
    speed = f"{num_new_frames / seconds:.0f} frames/s" if num_new_frames else "nothing new"
    native = [] if not description.settings.get("native") else [_native_line(out)]
    lines = [
        f"{out}: {counts['clips']} clips, {counts['frames']} frames, {counts['bytes']:,} bytes in "
        f"{len(description.shards)} shards; identity by {description.identity['name']}; "
        f"{seconds:.1f} s, {speed}",
        *native,
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
