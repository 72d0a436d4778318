"""The console command `cfer`.

    cfer demo                                  # draw → extract → train → evaluate → predict
    cfer predict VIDEO --model NAME            # the expressions of a video
    cfer encode VIDEO CLIP.mp4                 # the face of a video, as a fixed-GOP bitstream
    cfer show CLIP.mp4 PICTURE.png             # an I-frame and its residuals
    cfer report EXPERIMENT                     # its methods in one page, Markdown and HTML

Training, evaluation and the look at shards are modules: `python -m cfer.train`, `cfer.evaluate`,
`cfer.shards`; the extraction is `python -m pipeline.extract`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from cfer.errors import InputError, exit_with_message

DEMO_CLASSES = 7


def main() -> None:
    exit_with_message(run)


def run() -> int:
    arguments = build_parser().parse_args()
    status: int = arguments.command(arguments)
    return status


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfer", description="Facial expressions from the residuals of a compressed video."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo_ = commands.add_parser("demo", help="the whole path on drawn faces, in minutes")
    demo_.add_argument("--out", type=Path, default=Path("demo"), help="folder to work in (demo)")
    demo_.add_argument("--subjects", type=int, default=40, help="people to draw (40)")
    demo_.set_defaults(command=demo)

    predict_ = commands.add_parser("predict", help="the expressions of a video")
    predict_.add_argument("video", type=Path, help="a video, or a folder of numbered pictures")
    predict_.add_argument(
        "--model",
        required=True,
        help="name or id of a training run, runs:/ID/model, or a model's folder",
    )
    predict_.add_argument("--json", action="store_true", help="print JSON, one object per window")
    predict_.set_defaults(command=predict)

    encode_ = commands.add_parser("encode", help="the face of a video as a fixed-GOP bitstream")
    encode_.add_argument("video", type=Path, help="a video, or a folder of numbered pictures")
    encode_.add_argument("clip", type=Path, help="the MP4 to write")
    encode_.add_argument("--size", type=int, default=112, help="side of the crop, pixels (112)")
    encode_.add_argument("--gop-size", type=int, default=24, help="frames per GOP (24)")
    encode_.add_argument("--quantiser", type=int, default=2, help="1 (finest) to 31 (2)")
    encode_.add_argument("--no-motion-search", action="store_true", help="all vectors zero")
    encode_.set_defaults(command=encode)

    show_ = commands.add_parser("show", help="a picture of an I-frame and its residuals")
    show_.add_argument("clip", type=Path, help="an MPEG-4 Part 2 video, as `cfer encode` writes it")
    show_.add_argument("picture", type=Path, help="the PNG to write")
    show_.set_defaults(command=show)

    report_ = commands.add_parser("report", help="a page about an experiment's protocols")
    report_.add_argument("experiment", help="MLflow experiment")
    report_.add_argument("--out", type=Path, default=Path("report"), help="folder (report)")
    report_.set_defaults(command=report)
    return parser


def predict(arguments: argparse.Namespace) -> int:
    from cfer.predict import predict_video
    from cfer.tracking import load_model

    if not arguments.video.exists():
        raise InputError(f"{arguments.video}: there is no such file or folder")
    model, description = load_model(arguments.model)
    predictions = predict_video(arguments.video, model, description)
    for prediction in predictions:
        if arguments.json:
            print(
                json.dumps(
                    {
                        "start_seconds": round(prediction.start_seconds, 3),
                        "end_seconds": round(prediction.end_seconds, 3),
                        "num_frames": prediction.num_frames,
                        "label": prediction.label,
                        "probabilities": prediction.probabilities,
                    }
                )
            )
            continue
        print(
            f"{prediction.start_seconds:.2f} to {prediction.end_seconds:.2f} s, from "
            f"{prediction.num_frames} P-frames: {prediction.label}"
        )
        for name, probability in prediction.probabilities.items():
            print(f"  {name:16s} {probability:.4f} {'#' * round(40 * probability)}")
    return 0


def encode(arguments: argparse.Namespace) -> int:
    from cfer.codec import CodecSettings
    from cfer.predict import face_bitstreams

    if arguments.size < 16 or arguments.size % 2:
        raise InputError(f"--size {arguments.size}: must be an even number of at least 16 pixels")
    settings = CodecSettings(
        gop_size=arguments.gop_size,
        quantiser=arguments.quantiser,
        motion_search=not arguments.no_motion_search,
    )
    ((_, bitstream),) = face_bitstreams(arguments.video, arguments.size, settings, None)
    bitstream.save(arguments.clip)
    print(
        f"{arguments.clip}: {len(bitstream.packets)} frames in {len(bitstream.gops)} GOPs, "
        f"{len(bitstream.data):,} bytes"
    )
    return 0


def show(arguments: argparse.Namespace) -> int:
    from cfer.codec import Bitstream
    from cfer.show import save

    save(Bitstream.open(arguments.clip), arguments.picture)
    print(arguments.picture)
    return 0


def report(arguments: argparse.Namespace) -> int:
    from cfer.report import write

    print(write(arguments.experiment, arguments.out))
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Run the commands that a user would; each goes on where it was, if the demo was stopped."""
    started = time.monotonic()
    out, subjects = arguments.out, arguments.subjects
    if subjects < 4:
        raise InputError(f"--subjects {subjects}: give 4 or more; a quarter of them is held out")
    out.mkdir(parents=True, exist_ok=True)
    held_out = [f"S{n:03d}" for n in range(subjects - subjects // 4 + 1, subjects + 1)]
    clip = f"videos/videos/{held_out[-1]}/happiness_1.mp4"
    steps = [
        (
            f"Draw {subjects} people, each with {DEMO_CLASSES} expressions",
            f"-m pipeline.datasets.synthetic --out videos --subjects {subjects}",
        ),
        (
            "Find the faces, encode, read I-frames and residuals out of the bitstreams",
            "-m pipeline.extract --videos videos/manifest.csv --out shards --identity dlib",
        ),
        (
            f"Train on {subjects - len(held_out)} of them: the min-min game",
            "-m cfer.train --data shards --workers 2 --experiment demo --run demo --lambda 1 "
            f"--mu 0.1 --epochs 30 --val-subjects {','.join(held_out)}",
        ),
        (
            f"The {len(held_out)} people that it has never seen",
            "-m cfer.evaluate demo",
        ),
        (
            "The face of one of them, as a fixed-GOP clip; and its residuals as a picture",
            f"-m cfer.cli encode {clip} clip.mp4",
        ),
        ("", "-m cfer.cli show clip.mp4 residuals.png"),
        (
            "Its expression, from the P-frames alone",
            "-m cfer.cli predict clip.mp4 --model demo",
        ),
    ]
    for title, command in steps:
        if title:
            print(f"\n== {title} ({time.monotonic() - started:.0f} s)", flush=True)
        print(f"$ python {command}", flush=True)
        done = subprocess.run([sys.executable, *shlex.split(command)], cwd=out, check=False)
        if done.returncode:
            print(f"cfer demo: stopped, since the command above ended with {done.returncode}")
            return done.returncode
    minutes = (time.monotonic() - started) / 60
    print(
        f"\n== Done in {minutes:.1f} minutes. Chance is {1 / DEMO_CLASSES:.2f}. Look next at:\n"
        f"  {out}/residuals.png                          what the recogniser sees\n"
        f"  cd {out} && mlflow ui --backend-store-uri sqlite:///mlflow.db\n"
        "                                              curves, confusion matrix, the model\n"
        f"  cd {out} && cfer predict YOUR_VIDEO --model demo\n"
        "  README.md                                   your own videos, options, how it works"
    )
    return 0


if __name__ == "__main__":
    main()
