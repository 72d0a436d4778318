"""Measure the parts, each beside what people use today; every bench checks its output first.

    python -m cfer.bench codec [VIDEO ...]       reading residuals / FFmpeg's decoding
    python -m cfer.bench extract VIDEO ...       videos to shards / decoding and encoding alone
    python -m cfer.bench train [--data SHARDS]   training steps / the same on tensors in memory
    python -m cfer.bench predict [VIDEO ...]     a clip to its label / by decoded pictures
    python -m cfer.bench compare OLD.json NEW.json

Read the ratios: their works take turns in one run, so they hold on a busy machine too. `compare`
exits with 1 where a ratio fell by more than a third.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cfer.bench import measure
from cfer.bench.material import clips_of
from cfer.bench.measure import Measurement
from cfer.codec import CodecSettings
from cfer.errors import exit_with_message

QUICK_FRAMES = 26


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cfer.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, size: int = 0, gop_size: int = 0) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text)
        one.add_argument("--rounds", type=int, default=7, help="how often each is timed (7)")
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
    extract.add_argument("--quantiser", type=int, default=4, help="1 is the finest (4)")
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
    measurement = _measured(options)
    print(measurement.table())
    if options.json:
        measure.write_json(measurement, options.json)
    if options.plot:
        measure.write_plot(measurement, options.plot)
    return 0


def _measured(options: argparse.Namespace) -> Measurement:
    # Each bench needs other packages, some of which take seconds to import.
    if options.command == "codec":
        from cfer.bench import codec

        frames = QUICK_FRAMES if options.quick else options.max_frames
        clips = clips_of(options.videos, options.size, frames)
        return codec.measure(clips, CodecSettings(gop_size=options.gop_size), options.rounds)
    if options.command == "train":
        import torch

        from cfer.bench import train

        num_clips = 2 * options.batch_size if options.quick else options.clips
        device = torch.device(options.device)
        done = train.measure(num_clips, options.size, device, options.rounds, options.batch_size)
        if options.data:
            train.measure_workers(done, options.data, (1, options.workers), options.rounds)
        return done
    if options.command == "predict":
        from cfer.bench import predict

        frames = QUICK_FRAMES if options.quick else options.max_frames
        return predict.measure(clips_of(options.videos, 224, frames), options.rounds)
    from cfer.bench import extract

    videos = options.videos[:1] if options.quick else options.videos
    settings = CodecSettings(options.gop_size, options.quantiser, gop_span=options.gop_span)
    return extract.measure(videos, options.size, settings, options.rounds)


if __name__ == "__main__":
    exit_with_message(main)
