"""Measure the parts, each beside what people use today; every bench checks its output first.

    python -m benchmarks codec [VIDEO ...]       reading residuals / FFmpeg's decoding
    python -m benchmarks extract VIDEO ...       videos to shards / decoding and encoding alone
    python -m benchmarks train [--data SHARDS]   training steps / the same on tensors in memory
    python -m benchmarks predict [VIDEO ...]     a clip to its label / by decoded pictures
    python -m benchmarks scale                   the cost of 1 and 100 million clips, predicted
    python -m benchmarks scale run --out DIR     20,000 clips: does the memory stay flat?
    python -m benchmarks scale workers           clips a second with 1 worker and with more
    python -m benchmarks scale material          only make the clips that these three take
    python -m benchmarks compare OLD.json NEW.json

Read the ratios: their works take turns in one run, so they hold on a busy machine too. `compare`
exits with 1 where a ratio fell by more than a third, or is gone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from benchmarks import measure
from benchmarks.cost import Assumptions
from benchmarks.material import clips_of
from benchmarks.measure import Measurement
from cfer.codec import CodecSettings
from cfer.errors import InputError, exit_with_message

QUICK_FRAMES, QUICK_CLIPS = 26, 16


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(
        name: str, text: str, size: int = 0, gop_size: int = 0, rounds: int = 7
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text)
        one.add_argument(
            "--rounds", type=int, default=rounds, help=f"how often each is timed ({rounds})"
        )
        one.add_argument("--quick", action="store_true", help="one round of little: does it run?")
        one.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
        one.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios there")
        if size:
            one.add_argument("--size", type=int, default=size, help=f"side in pixels ({size})")
            one.add_argument(
                "--gop-size", type=int, default=gop_size, help=f"frames per GOP ({gop_size})"
            )
        return one

    codec = command("codec", "reading residuals / FFmpeg's decoding", 224, 12)
    codec.add_argument("videos", nargs="*", type=Path, help="clips; none: drawn textures")
    codec.add_argument("--max-frames", type=int, default=120, help="of each clip (120)")
    extract = command("extract", "videos to shards / decoding and encoding alone", 112, 3)
    extract.add_argument("--gop-span", type=int, default=24, help="frames it stands for (24)")
    extract.add_argument("--quantizer", type=int, default=4, help="1 is the finest (4)")
    extract.add_argument("videos", nargs="+", type=Path, help="videos with a face in each")
    train = command("train", "training steps / the same on tensors in memory")
    train.add_argument("--clips", type=int, default=320, help="of an epoch (320)")
    train.add_argument("--size", type=int, default=112, help="side in pixels (112)")
    train.add_argument("--batch-size", type=int, default=16, help="clips per step (16)")
    train.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    train.add_argument("--data", help="shards: real runs of cfer.train on them, too")
    train.add_argument("--workers", type=int, default=2, help="of the second of these runs (2)")
    predict = command("predict", "a clip to its label / by decoded pictures")
    predict.add_argument("videos", nargs="*", type=Path, help="clips; none: drawn textures")
    predict.add_argument("--max-frames", type=int, default=120, help="of each clip (120)")
    scale = command("scale", "the whole job: its memory, its throughput, its cost", rounds=3)
    scale.add_argument(
        "what", nargs="?", choices=("cost", "run", "workers", "material"), default="cost"
    )
    scale.add_argument(
        "--material", type=Path, default=Path("scale-material"), metavar="DIR",
        help="a folder with a manifest.csv; faces are drawn into it where it is new",
    )  # fmt: skip
    scale.add_argument("--out", type=Path, metavar="DIR", help="of `run`; it goes on from there")
    scale.add_argument(
        "--clips", type=int, help="of `run` and `material` (20000), of a run of `workers` (240)"
    )
    scale.add_argument(
        "--actors", help="workers of the job (one per core); of `workers`, each number (1,2)"
    )
    scale.add_argument(
        "--clips-per-shard", type=int, default=4, help="in the runs that are measured (4)"
    )
    scale.add_argument("--frames", type=int, help="of a predicted clip (as the material's)")
    assumed = Assumptions()
    for option, text in (
        ("hours", "within which it is to be done"),
        ("cores", "of a machine"),
        ("core-hour", "price of a core for an hour"),
        ("puts", "price of 1,000 requests that write or list"),
        ("gets", "price of 1,000 requests that read"),
        ("gb-month", "price of storing a GB for a month"),
        ("driver-gb", "memory that one job's driver may take"),
    ):
        value = getattr(assumed, option.replace("-", "_"))
        scale.add_argument(
            f"--{option}", type=type(value), default=value, help=f"assumed: {text} ({value:g})"
        )
    compare = commands.add_parser("compare", help="two --json files: has a ratio fallen?")
    compare.add_argument("before", type=Path, help="the file of the older run")
    compare.add_argument("after", type=Path, help="the file of the newer one")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    if options.command == "compare":
        text, regressed = measure.compare(options.before, options.after)
        print(text)
        return int(regressed)
    if options.quick:
        options.rounds = 1
    if options.command == "scale":
        return _scale(options)
    measurement = _measured(options)
    _report(measurement, options, partial(measure.write_plot, measurement))
    return 0


def _report(
    measurement: Measurement, options: argparse.Namespace, draw: Callable[[Path], None]
) -> None:
    print(measurement.table())
    if options.json:
        measure.write_json(measurement, options.json)
    if options.plot:
        draw(options.plot)


def _scale(options: argparse.Namespace) -> int:
    from benchmarks import scale
    from benchmarks.material import many_clips
    from benchmarks.memory import available_cores

    numbers = _numbers(options)
    workers = numbers[0] if numbers else available_cores()
    per_shard = 2 if options.quick else options.clips_per_shard
    if options.what == "material":
        count = options.clips or scale.CLIPS_OF_A_RUN
        print(f"{options.material}: {len(many_clips(options.material, count)):,} clips")
        return 0
    if options.what == "run":
        if options.out is None:
            raise InputError("scale run: needs --out, a folder for the shards and its logs")
        count = QUICK_CLIPS if options.quick else options.clips or scale.CLIPS_OF_A_RUN
        done = scale.measure_run(
            options.material, options.out, count, workers, per_shard, options.quick
        )
    elif options.what == "workers":
        count = QUICK_CLIPS if options.quick else options.clips or scale.CLIPS_OF_WORKERS
        done = scale.measure_workers(
            options.material, count, numbers or [1, 2], per_shard, options.rounds
        )
    else:
        assumptions = Assumptions(**{f.name: getattr(options, f.name) for f in fields(Assumptions)})
        done = scale.measure_cost(
            options.material,
            workers,
            per_shard,
            options.rounds,
            options.frames,
            assumptions,
            options.quick,
        )
    _report(done[0], options, done[1])
    return 0


def _numbers(options: argparse.Namespace) -> list[int]:
    """--actors; only `scale workers` takes several."""
    given = options.actors or ""
    numbers = [int(word) for word in given.split(",") if word.isdecimal()]
    if given and (",".join(map(str, numbers)) != given or min(numbers) < 1):
        raise InputError(f"--actors {given}: give numbers from 1, commas between")
    if len(numbers) > 1 and options.what != "workers":
        raise InputError(f"--actors {given}: only `scale workers` takes several numbers; give one")
    return sorted(set(numbers))


def _measured(options: argparse.Namespace) -> Measurement:
    # Each bench needs other packages, some of which take seconds to import.
    if options.command == "codec":
        from benchmarks import codec

        frames = QUICK_FRAMES if options.quick else options.max_frames
        clips = clips_of(options.videos, options.size, frames)
        return codec.measure(clips, CodecSettings(gop_size=options.gop_size), options.rounds)
    if options.command == "train":
        import torch

        from benchmarks import train
        from cfer.train.config import check_shares

        check_shares(options.batch_size, options.workers if options.data else 1)
        num_clips = 2 * options.batch_size if options.quick else options.clips
        device = torch.device(options.device)
        done = train.measure(num_clips, options.size, device, options.rounds, options.batch_size)
        if options.data:
            epochs = 1 if options.quick else train.EPOCHS_OF_A_RUN
            train.measure_workers(done, options.data, (1, options.workers), epochs, options.rounds)
            train.measure_exchange(
                done, options.workers, options.batch_size, options.size, options.rounds
            )
        return done
    if options.command == "predict":
        from benchmarks import predict

        frames = QUICK_FRAMES if options.quick else options.max_frames
        return predict.measure(clips_of(options.videos, 224, frames), options.rounds)
    from benchmarks import extract

    videos = options.videos[:1] if options.quick else options.videos
    settings = CodecSettings(options.gop_size, options.quantizer, gop_span=options.gop_span)
    return extract.measure(videos, options.size, settings, options.rounds)


if __name__ == "__main__":
    exit_with_message(main)
