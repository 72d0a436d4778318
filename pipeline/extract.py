"""From videos to Parquet shards of I-frames and residuals: a Ray Data job.

    python pipeline/extract.py --videos DIR|GLOB|MANIFEST.csv --out DIR
    python pipeline/extract.py --dataset ck+ --root TREE --out DIR
    ray job submit --working-dir . -- python pipeline/extract.py --videos … --out …

Per clip: find the face, cut one fixed square, encode it at a fixed GOP, read the I-frames out of
the bitstream and embed them by a frozen face recogniser; the residuals stay in the bitstream. The
unit of work is a shard of `--clips-per-shard` clips of the sorted manifest. A shard appears with
its completion record, or not at all, so a job that was killed goes on where it was, and ends with
the same bytes. A clip that cannot be used ends in `failures.csv` with its reason; `dataset.json`
comes last.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

if not __package__:
    # Run as a script, Python looks for modules in pipeline/ and not in the folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
if __name__ == "__main__":
    from cfer.errors import end_quietly_while_importing

    end_quietly_while_importing()

import numpy as np
import ray
import ray.data
from tqdm import tqdm

from cfer import faces
from cfer.clips import ClipError, numbered_pictures
from cfer.cluster import join_cluster
from cfer.codec import CodecSettings, encode
from cfer.errors import InputError, exit_with_message
from cfer.faces import FaceDetector, FaceWindow, face_clip
from cfer.identity import NAMES, Recogniser, open_recogniser
from cfer.shards import (
    SCHEMA_VERSION,
    Clip,
    Description,
    Failure,
    Receipt,
    read_description,
    shard_is_done,
    shard_name,
    write_description,
    write_shard,
)
from cfer.storage import Folder, absolute_location
from pipeline.datasets import layout
from pipeline.manifest import Entry, class_names, read_manifest

PLAN_NAME = "extraction.json"
LOG_NAME = "extract.log"
PROGRESS_SECONDS = 10
# A clip at which this many workers died in one job is at fault itself.
CRASHES_OF_A_BAD_CLIP = 2

log = logging.getLogger("extract")


@dataclass(frozen=True)
class Settings:
    """What decides the content of the shards. The comment of each field is its help text."""

    size: int = 112  # side of the face crop, pixels, even
    gop_size: int = 3  # frames from one I-frame to the next, at least 2
    gop_span: int = 24  # frames of the video that a GOP stands for: gop_size of them are encoded
    quantiser: int | None = None  # fixed quantiser, 1 (finest) to 31 (4, unless --bit-rate)
    bit_rate: int | None = None  # bits per second, in place of a quantiser
    motion_search: bool = True
    identity: str = "auto"  # frozen face recogniser; auto: FaceNet if its weights can be had
    window_gops: int = 20  # a longer clip is cut into windows of this many GOPs
    clips_per_shard: int = 4  # clips of the manifest in one shard

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 2:
            raise InputError(f"--size {self.size}: give an even number of pixels, 32 or more")
        if self.gop_size < 2:
            raise InputError(
                f"--gop-size {self.gop_size}: give 2 or more; a GOP of 1 has no residual"
            )
        if self.gop_span < self.gop_size:
            raise InputError(
                f"--gop-size {self.gop_size} --gop-span {self.gop_span}: a GOP stands for at least "
                "as many frames of the video as it has; give the same twice to encode every frame"
            )
        for name in ("window_gops", "clips_per_shard"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more"
                )
        _ = self.codec

    @property
    def codec(self) -> CodecSettings:
        quantiser = self.quantiser
        if quantiser is None and self.bit_rate is None:
            quantiser = 4
        return CodecSettings(
            self.gop_size, quantiser, self.bit_rate, self.motion_search, self.gop_span
        )

    @property
    def window_frames(self) -> int:
        return self.window_gops * self.gop_span


PRESETS: dict[str, dict[str, Any]] = {
    # Section 4 of the paper: GOP 12, the encoder's own motion search, 224 × 224 crops.
    "paper": {"size": 224, "gop_size": 12, "gop_span": 12, "motion_search": True},
}


# ---- one clip ------------------------------------------------------------------------------------


def extract_clip(
    entry: Entry,
    settings: Settings,
    classes: Sequence[str],
    detector: FaceDetector,
    recogniser: Recogniser,
) -> tuple[list[Clip], list[Failure]]:
    """A clip's rows (several, where it was cut into windows), and what failed of it."""
    clips: list[Clip] = []
    failures: list[Failure] = []
    last_frame = -1
    try:
        for window in face_clip(
            entry.path,
            settings.size,
            detector,
            settings.window_frames,
            entry.fps,
            take=settings.codec.encoded_frames,
        ):
            last_frame = window.frames[-1]
            clip_id = entry.clip_id
            if window.num_windows > 1:
                clip_id += f"#{window.number:04d}"
            if window.error is None:
                clips.append(_clip(entry, clip_id, window, settings, classes, recogniser))
            else:
                failures.append(_failure(clip_id, entry, window.error))
        if entry.apex_frame is not None and entry.apex_frame > last_frame:
            raise ClipError(
                entry.path,
                "manifest",
                f"apex_frame {entry.apex_frame} is beyond its last frame, {last_frame}; correct "
                "the manifest (frames count from 0)",
            )
    except Exception as error:  # one bad clip must not end the job
        if not isinstance(error, InputError):
            log.exception("%s: unexpected error", entry.path)
        return [], [_failure(entry.clip_id, entry, error)]
    return clips, failures


def _clip(
    entry: Entry,
    clip_id: str,
    window: FaceWindow,
    settings: Settings,
    classes: Sequence[str],
    recogniser: Recogniser,
) -> Clip:
    codec = settings.codec
    bitstream = encode(window.pictures, codec, codec.encoded_fps(window.fps))
    residuals = [
        residual
        for gop in range(len(bitstream.gops))
        for residual in bitstream.accumulated_residuals(gop)
    ]
    i_frames = bitstream.i_frames()
    apex_frame = apex = None
    if entry.apex_frame is not None and entry.apex_frame in window.frames:
        # Where not every frame is encoded, the one nearest to the apex stands for it.
        encoded = np.array(codec.encoded_frames(len(window.frames)))
        apex_frame = int(np.abs(encoded - (entry.apex_frame - window.frames[0])).argmin())
        apex = window.pictures[apex_frame]
    return Clip(
        clip_id=clip_id,
        dataset=entry.dataset,
        source=entry.source,
        subject=entry.subject,
        label=None if entry.label is None else classes.index(entry.label),
        label_name=entry.label,
        split=entry.split,
        num_frames=len(bitstream.packets),
        fps=float(bitstream.fps),
        size=settings.size,
        gop_size=settings.gop_size,
        i_frames=i_frames,
        i_frame_numbers=[gop[0] for gop in bitstream.gops],
        bitstream=bitstream.data,
        residual_frames=[residual.frame for residual in residuals],
        identity=recogniser.embed(i_frames),
        apex_frame=apex_frame,
        apex=apex,
        intra_fraction=float(np.mean([r.intra_fraction for r in residuals])),
        saturated_fraction=float(np.mean([r.saturated_fraction for r in residuals])),
    )


def _failure(clip_id: str, entry: Entry, error: Exception) -> Failure:
    if isinstance(error, ClipError):
        stage, reason = error.stage, error.reason
    else:
        stage, reason = "extract", str(error)
    return Failure(clip_id, entry.source, stage, reason, type(error).__name__)


# ---- one shard, in an actor ----------------------------------------------------------------------


class Extractor:
    """Holds the networks, and turns one planned shard at a time into a file."""

    def __init__(
        self,
        out: str,
        settings: Settings,
        classes: Sequence[str],
        weights: Path | None,
        weights_sha256: str,
        device: str,
        job: str,
    ) -> None:
        import cv2
        import torch

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.out, self.settings, self.classes, self.job = out, settings, classes, job
        self.detector = FaceDetector(device)
        self.recogniser = open_recogniser(settings.identity, weights, device)
        if self.recogniser.weights_sha256 != weights_sha256:
            raise InputError(
                f"--identity {settings.identity}: this node has other weights than the job's; "
                "remove them there, or give --identity-weights on a shared disk"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index, entries = int(row["index"]), _unpack_entries(row["entries"])
        clips: list[Clip] = []
        failures: list[Failure] = []
        marker = _Marker(self.out, index, self.job)
        for entry in entries:
            if marker.crashes[entry.clip_id] >= CRASHES_OF_A_BAD_CLIP:
                failures.append(
                    Failure(
                        entry.clip_id,
                        entry.source,
                        "native crash",
                        f"a worker died at it {CRASHES_OF_A_BAD_CLIP} times; convert it to MP4",
                        "",
                    )
                )
                continue
            marker.begin(entry.clip_id)
            rows, failed = extract_clip(
                entry, self.settings, self.classes, self.detector, self.recogniser
            )
            clips += rows
            failures += failed
        receipt = write_shard(self.out, index, clips, failures, str(row["digest"]))
        marker.remove()
        return {"index": receipt.index, "rows": receipt.rows, "failures": len(receipt.failures)}


class _Marker:
    """Which clip of a shard is being worked on, for the worker that comes after a crash.

    A marker of another job says nothing about its clip: that whole job was stopped there.
    """

    def __init__(self, out: str, index: int, job: str) -> None:
        self._folder, self._name, self._job = Folder(out), _marker_name(index), job
        self.crashes: Counter[str] = Counter()
        if self._folder.exists(self._name):
            before = json.loads(self._folder.read(self._name))
            if before["job"] == job:
                self.crashes = Counter(before["crashes"])
                self.crashes[before["clip_id"]] += 1

    def begin(self, clip_id: str) -> None:
        state = {"job": self._job, "clip_id": clip_id, "crashes": self.crashes}
        self._folder.write(self._name, json.dumps(state).encode())

    def remove(self) -> None:
        self._folder.delete(self._name)


def _marker_name(index: int) -> str:
    return f"working-{index:05d}.json"


def _pack_entries(entries: Sequence[Entry]) -> str:
    return json.dumps([asdict(entry) for entry in entries], default=str)


def _unpack_entries(text: str) -> list[Entry]:
    rows = json.loads(text)
    for row in rows:
        row["path"] = Path(row["path"])
        row["fps"] = None if row["fps"] is None else Fraction(row["fps"])
    return [Entry(**row) for row in rows]


# ---- the plan ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be: its clips, and the digest of all that decides its content."""

    index: int
    entries: list[Entry]
    digest: str


def plan_shards(
    entries: Sequence[Entry], settings: Settings, classes: Sequence[str], weights_sha256: str
) -> list[PlannedShard]:
    """Cut the sorted manifest into shards. Reads every source once, for its digest.

    Raises:
        InputError: the same bytes under two subjects.
    """
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(source_digest, [entry.path for entry in entries])
        sources = list(
            tqdm(digests, "reading sources", len(entries), unit="clip", disable=None, delay=2)
        )
    _check_subjects(entries, sources)
    step = settings.clips_per_shard
    planned = []
    for index, start in enumerate(range(0, len(entries), step)):
        part = list(entries[start : start + step])
        work = {
            "schema_version": SCHEMA_VERSION,
            "settings": asdict(settings),
            "face_rule": _face_rule(),
            "weights_sha256": weights_sha256,
            "classes": list(classes),
            "sources": sources[start : start + step],
            # Where the sources lie is no part of the work; what they are called in the rows is.
            "entries": [{**asdict(entry), "path": ""} for entry in part],
        }
        text = json.dumps(work, sort_keys=True, default=str)
        planned.append(PlannedShard(index, part, hashlib.sha256(text.encode()).hexdigest()))
    return planned


def _check_subjects(entries: Sequence[Entry], digests: Sequence[str]) -> None:
    """Raises InputError where two subjects share a clip's bytes; logs other clips that do."""
    first: dict[str, Entry] = {}
    for entry, digest in zip(entries, digests, strict=True):
        other = first.setdefault(digest, entry)
        if not digest or other is entry:
            continue
        if None not in (entry.subject, other.subject) and entry.subject != other.subject:
            raise InputError(
                f"{other.path} and {entry.path}: the same bytes under two subjects, "
                f"{other.subject} and {entry.subject}: one person would be on both sides of a "
                "fold; correct or remove one"
            )
        log.warning("%s and %s: the same bytes", other.path, entry.path)


def source_digest(path: Path) -> str:
    """SHA-256 of a video's bytes, or of all pictures of a folder; empty where it is unreadable."""
    digest = hashlib.sha256()
    try:
        for file in numbered_pictures(path) if path.is_dir() else [path]:
            if path.is_dir():
                digest.update(file.name.encode() + b"\0")
            if not file.is_file():
                return ""
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


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
    settings: Settings,
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
    entries = [_absolute(entry) for entry in entries]
    before = _read_plan(out)
    if settings.identity == "auto" and before is not None:
        # What auto took the first time stays, even if the network has come back since.
        settings = _with_identity(settings, before["settings"]["identity"])
    recogniser = open_recogniser(settings.identity, weights, "cpu")
    settings = _with_identity(settings, recogniser.name)
    plan = {
        "settings": asdict(settings),
        "classes": names,
        "weights_sha256": recogniser.weights_sha256,
    }
    _check_same_plan(out, plan)
    planned = plan_shards(entries, settings, names, recogniser.weights_sha256)
    done = {s.index: shard_is_done(out, s.index, s.digest) for s in planned}
    receipts = [receipt for receipt in done.values() if receipt is not None]
    left = [shard for shard in planned if done[shard.index] is None]
    if not left and _is_described(out, receipts):
        log.info("%s is complete: %d shards, nothing to do", out, len(receipts))
        return read_description(out), 0

    folder = Folder(out)
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
        _run(left, out, settings, names, weights, recogniser, num_actors, use_gpu)
        for shard in left:
            receipt = shard_is_done(out, shard.index, shard.digest)
            assert receipt is not None, f"shard {shard.index} was written and is not there"
            receipts.append(receipt)
            num_new_frames += receipt.frames
    receipts.sort(key=lambda receipt: receipt.index)
    write_description(out, _description(entries, settings, names, recogniser, receipts))
    return read_description(out), num_new_frames


def _run(
    left: Sequence[PlannedShard],
    out: str,
    settings: Settings,
    classes: Sequence[str],
    weights: Path | None,
    recogniser: Recogniser,
    num_actors: int | None,
    use_gpu: bool,
) -> None:
    join_cluster(for_training=False)
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    room = gpus if use_gpu else cpus
    if room < 1:
        raise InputError(f"--gpu: the cluster has {gpus} GPUs and {cpus} CPUs; leave --gpu out")
    if num_actors is not None and num_actors > room:
        raise InputError(
            f"--actors {num_actors}: the cluster has room for {room} "
            f"({gpus} GPUs, {cpus} CPUs); give fewer, or leave --actors out"
        )
    actors = min(num_actors or room, len(left))
    rows = [
        {"index": s.index, "digest": s.digest, "entries": _pack_entries(s.entries)} for s in left
    ]
    receipts = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, Extractor),
        fn_constructor_kwargs={
            "out": absolute_location(out),
            "settings": settings,
            "classes": classes,
            "weights": None if weights is None else weights.resolve(),
            "weights_sha256": recogniser.weights_sha256,
            "device": "cuda" if use_gpu else "cpu",
            "job": uuid.uuid4().hex,
        },
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    sizes = {shard.index: len(shard.entries) for shard in left}
    for receipt in _with_progress(receipts.iter_rows(), sizes):
        log.debug("shard %d: %d rows", receipt["index"], receipt["rows"])


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


def _with_identity(settings: Settings, name: str) -> Settings:
    return Settings(**{**asdict(settings), "identity": name})


def _absolute(entry: Entry) -> Entry:
    return Entry(**{**asdict(entry), "path": entry.path.resolve()})


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
    settings: Settings,
    classes: list[str],
    recogniser: Recogniser,
    receipts: list[Receipt],
) -> Description:
    codec = settings.codec
    packages = ("cfer", "av", "torch", "facenet-pytorch", "dlib-bin", "numpy", "pyarrow", "ray")
    return Description(
        name=", ".join(sorted({entry.dataset for entry in entries})),
        classes=classes,
        codec={"size": settings.size, **asdict(codec)},
        identity={
            "name": recogniser.name,
            "dimension": recogniser.dimension,
            "weights_sha256": recogniser.weights_sha256,
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
        description="Videos → Parquet shards of I-frames, residuals and identity embeddings.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", help="a folder, a glob pattern, or a CSV")
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
    rate.add_argument("--quantiser", type=int, help="fixed, 1 (finest) to 31 (4)")
    rate.add_argument("--bit-rate", type=int, help="bits per second, in place of a quantiser")
    parser.add_argument(
        "--no-motion-search",
        dest="motion_search",
        action="store_false",
        help="all motion vectors zero: residuals hold the whole change",
    )
    parser.add_argument("--identity", choices=NAMES, help="frozen face recogniser (auto)")
    parser.add_argument("--identity-weights", type=Path, help="file of FaceNet's weights")
    parser.add_argument(
        "--window-gops", type=int, help="cut longer clips into windows of this many GOPs (20)"
    )
    parser.add_argument(
        "--clips-per-shard", type=int, help="unit of work, and of what a kill can lose (4)"
    )
    parser.add_argument("--classes", help="class names in order, commas between (those found)")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="the paper's settings")
    parser.add_argument("--actors", type=int, help="parallel workers (one per CPU, or per GPU)")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker's networks")
    parser.add_argument(
        "--max-failures", type=int, default=0, help="exit with status 1 above so many (0)"
    )
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    given = {f.name: getattr(arguments, f.name) for f in fields(Settings)}
    if given["motion_search"]:
        given["motion_search"] = None  # the default, or the preset's
    chosen = {name: value for name, value in given.items() if value is not None}
    return Settings(**{**PRESETS.get(arguments.preset, {}), **chosen})


def clips_of(arguments: argparse.Namespace) -> tuple[list[Entry], list[str]]:
    """The clips that are given, sorted, and their classes in order."""
    given = arguments.classes.split(",") if arguments.classes else None
    if arguments.dataset is None:
        if arguments.root is not None:
            raise InputError(f"--root {arguments.root}: only with --dataset; leave it out")
        entries = read_manifest(arguments.videos)
        return entries, class_names(entries, given)
    if arguments.root is None:
        raise InputError(
            f"--dataset {arguments.dataset}: needs --root, the folder that it was unpacked in"
        )
    entries, classes = layout.read_dataset(arguments.dataset, arguments.root)
    return entries, classes if given is None else class_names(entries, given)


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
