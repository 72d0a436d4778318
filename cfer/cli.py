"""The console command `cfer`.

    cfer demo                                  # draw → extract → train → evaluate → predict
    cfer predict VIDEO                         # the expressions of a video, a folder, a stream
    cfer look VIDEO PICTURE.png                # what the method sees of it, in one picture
    cfer models list                           # and show, export, import
    cfer serve                                 # predictions over HTTP, and a page to try them
    cfer encode VIDEO CLIP.mp4                 # the face of a video, as a fixed-GOP bitstream
    cfer report EXPERIMENT                     # its methods in one page, Markdown and HTML
    cfer completion bash                       # for the shell: eval "$(cfer completion bash)"

Training, evaluation and the look at shards are modules: `python -m cfer.train`, `cfer.evaluate.command`,
`cfer.data.shards`; the extraction is `python -m pipeline.extract`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfer.errors import InputError, exit_with_message, status_of
from cfer.names import printable
from cfer.outputs import check_output, check_output_folder

if TYPE_CHECKING:
    from cfer.predict.recognizer import Prediction, Recognizer

DEMO_CLASSES = 7
MODEL_HELP = (
    "`default`, a .safetensors file, the name or id of a training run, runs:/ID/model, or "
    "models:/NAME/VERSION"
)


def main() -> None:
    exit_with_message(run)


def run(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    status: int = arguments.command(arguments)
    return status


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfer",
        description="Facial expressions from the residuals of a compressed video.",
        epilog="`cfer COMMAND --help` says more. Data, training and measurements are modules: "
        "python -m pipeline.extract, cfer.train, cfer.evaluate.command, benchmarks.robustness, cfer.data.shards and "
        "benchmarks.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo_ = commands.add_parser(
        "demo",
        help="the whole path on drawn faces, in minutes",
        description="Draw people, extract, train, evaluate and predict, all in one folder; the "
        "commands are printed. Started again, it goes on where it was.",
    )
    demo_.add_argument("--out", type=Path, default=Path("demo"), help="folder to work in (demo)")
    demo_.add_argument("--subjects", type=int, default=40, help="people to draw (40)")
    demo_.set_defaults(command=demo)

    predict_ = commands.add_parser(
        "predict",
        help="the expressions of videos",
        description="The expressions of videos: a line for each window of time. A file in the "
        "fixed-GOP form that the model wants is read as it is; of any other video the face is "
        "found, cropped and encoded.",
    )
    predict_.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a video; a folder of numbered pictures, of videos, or of shards; `-` for a video "
        "that is piped in (MPEG-TS, Matroska, fragmented MP4)",
    )
    predict_.add_argument("--model", default="default", help=f"{MODEL_HELP} (`default`)")
    predict_.add_argument(
        "--faces",
        choices=("one", "all"),
        default="one",
        help="of several in view: the largest, or every one, numbered (one)",
    )
    predict_.add_argument(
        "--window-gops",
        type=int,
        metavar="N",
        help="GOPs of a window, 1 for the finest in time (as many as in training; of a stream 1)",
    )
    predict_.add_argument(
        "--follow",
        type=float,
        metavar="SECONDS",
        help="the video is still being written: wait for more, until nothing came for so long",
    )
    predict_.add_argument(
        "--json", action="store_true", help="print a JSON object a line, for each window"
    )
    predict_.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write a row for each window"
    )
    predict_.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw the probabilities over time; of one video"
    )
    predict_.add_argument(
        "--annotate", type=Path, metavar="MP4", help="write the video with labels and bars in it"
    )
    predict_.set_defaults(command=predict)

    look_ = commands.add_parser(
        "look",
        help="one picture of what the method sees of a video",
        description="Draw one GOP: I-frame, residuals, motion vectors, block types, bytes of each "
        "frame, and where the recognizer looked.",
    )
    look_.add_argument("source", help="a video, a folder of numbered pictures, or of shards")
    look_.add_argument("picture", type=Path, help="the PNG to write")
    look_.add_argument("--clip", metavar="ID", help="of a folder of shards, this clip")
    look_.add_argument("--gop", type=int, default=0, help="which GOP to show (0)")
    look_.add_argument("--model", default="default", help=f"{MODEL_HELP} (`default`)")
    look_.set_defaults(command=look)

    models_ = commands.add_parser("models", help="list, show, export and import models")
    actions = models_.add_subparsers(required=True, metavar="ACTION")
    list_ = actions.add_parser("list", help="the shipped model, and those of the MLflow store")
    list_.set_defaults(command=list_models)
    shown = actions.add_parser("show", help="classes, input, figures and origin of a model")
    shown.add_argument("model", help=MODEL_HELP)
    shown.set_defaults(command=show_model)
    exported = actions.add_parser("export", help="write a model for another program")
    exported.add_argument("model", help=MODEL_HELP)
    exported.add_argument("file", type=Path, help="ends in .safetensors, .onnx, .pt2 or .ts")
    exported.set_defaults(command=export_model)
    imported = actions.add_parser("import", help="put a model file into the MLflow registry")
    imported.add_argument("file", type=Path, help="a .safetensors file of `cfer models export`")
    imported.add_argument("--name", required=True, help="what to call it there")
    imported.set_defaults(command=import_model)

    serve_ = commands.add_parser(
        "serve",
        help="predictions over HTTP, and a page to try them",
        description="Serve until Ctrl-C: a page to drop a video on, POST /predict and POST /look, "
        "and /openapi.json, which describes them. Where other machines can reach it, requests have "
        "to show the token that is in CFER_TOKEN.",
    )
    serve_.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    serve_.add_argument("--port", type=int, default=8000, help="to listen at (8000)")
    serve_.add_argument("--model", default="default", help=f"{MODEL_HELP} (`default`)")
    serve_.add_argument(
        "--readers", type=int, default=1, metavar="N", help="videos worked on at a time (1)"
    )
    serve_.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="URI",
        help="links may point below this location, such as s3://bucket/videos; may be repeated",
    )
    for option, default, text in (
        ("--max-megabytes", 64, "refuse a larger file"),
        ("--max-seconds", 60, "refuse a longer video"),
        ("--time-limit", 120, "seconds of work on a video, waiting apart"),
        ("--memory-limit", 2000, "MB of memory for it, beside what the model takes"),
    ):
        serve_.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} ({default})"
        )
    serve_.set_defaults(command=serve)

    encode_ = commands.add_parser(
        "encode",
        help="the face of a video as a fixed-GOP bitstream",
        description="Find the face, crop it, and write it as MPEG-4 with GOPs of one length: what "
        "the shards hold, and what `cfer predict` then reads without looking for a face.",
    )
    encode_.add_argument("video", type=Path, help="a video, or a folder of numbered pictures")
    encode_.add_argument("clip", type=Path, help="the MP4 to write")
    encode_.add_argument("--size", type=int, default=112, help="side of the crop, pixels (112)")
    encode_.add_argument("--gop-size", type=int, default=3, help="frames per GOP (3)")
    encode_.add_argument(
        "--gop-span",
        type=int,
        default=24,
        help="frames of the video that a GOP stands for; as many as --gop-size: every one (24)",
    )
    encode_.add_argument("--quantizer", type=int, default=4, help="1 (finest) to 31 (4)")
    encode_.add_argument("--no-motion-search", action="store_true", help="all vectors zero")
    encode_.set_defaults(command=encode)

    report_ = commands.add_parser(
        "report",
        help="a page about an experiment: its methods side by side",
        description="Write report.md and report.html: the table of methods, what the differences "
        "are worth, and plots.",
    )
    report_.add_argument("experiment", help="of the MLflow store, as --experiment of cfer.train")
    report_.add_argument("--out", type=Path, default=Path("report"), help="folder (report)")
    report_.set_defaults(command=report)

    completion_ = commands.add_parser(
        "completion",
        help="print what completes commands by Tab",
        description='For bash: eval "$(cfer completion bash)", in ~/.bashrc for always.',
    )
    completion_.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion_.set_defaults(command=completion)
    return parser


def completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(build_parser(), arguments.shell))
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Print each window as it is known; a source that can't be predicted is named at the end."""
    from cfer.predict import timeline
    from cfer.predict.models import DEFAULT, DEFAULT_LIMITS
    from cfer.predict.recognizer import Recognizer

    sources = expand_sources(arguments.sources)
    for option in ("plot", "annotate"):
        if getattr(arguments, option) and (len(sources) > 1 or not is_one_video(sources[0])):
            raise InputError(f"--{option}: of one video at a time; give one video file")
    for path, suffixes in (
        (arguments.csv, ()),
        (arguments.plot, (".png",)),
        (arguments.annotate, ()),
    ):
        if path:
            check_output(path, *suffixes)
    recognizer = Recognizer.from_pretrained(arguments.model)
    if arguments.model == DEFAULT:
        print(f"note: {DEFAULT_LIMITS}", file=sys.stderr)
    found: list[Prediction] = []
    failures = []
    printer = print_json if arguments.json else TablePrinter(recognizer.card.classes, sources)
    for source in sources:
        try:
            for prediction in _predictions(recognizer, source, arguments):
                printer(prediction)
                found.append(prediction)
        except InputError as error:
            if len(sources) == 1:
                raise
            failures.append(error)
            print(f"error: {error}", file=sys.stderr)
    if arguments.csv:
        timeline.write_csv(arguments.csv, found, recognizer.card.classes)
    if arguments.plot:
        timeline.plot(Path(sources[0]), found, recognizer.card.classes).savefig(
            arguments.plot, dpi=110
        )
    if arguments.annotate:
        timeline.annotate(Path(sources[0]), found, arguments.annotate)
    if failures:
        print(f"{len(failures)} of {len(sources)} sources failed", file=sys.stderr)
    return 1 if failures else 0


def expand_sources(given: Sequence[str]) -> list[str]:
    """A folder of clips is its clips, and what is left out is named on stderr; what is a clip or a
    stream itself stays.

    Raises:
        InputError: nothing there, or a folder without a video.
    """
    from cfer.data.shards import DESCRIPTION_NAME
    from cfer.video.files import READ_FORMATS, clips_below, is_picture_folder, told_left_out

    sources: list[str] = []
    for name in given:
        path = Path(name)
        if (
            name == "-"
            or path.is_file()
            or (path / DESCRIPTION_NAME).is_file()
            or is_picture_folder(path)
        ):
            sources.append(name)
        elif path.is_dir():
            clips, left_out = clips_below(path)
            if left_out:
                print(f"note: {name}: {told_left_out(left_out)}", file=sys.stderr)
            if not clips:
                raise InputError(
                    f"{name}: no video and no numbered picture in this folder; what is read are "
                    f"{READ_FORMATS}"
                )
            sources += map(str, clips)
        else:
            raise InputError(f"{name}: there is no such file or folder")
    return sources


def is_one_video(source: str) -> bool:
    from cfer.data.shards import DESCRIPTION_NAME

    return source != "-" and not (Path(source) / DESCRIPTION_NAME).is_file()


def _predictions(
    recognizer: Recognizer, source: str, arguments: argparse.Namespace
) -> Iterator[Prediction]:
    from cfer.video.pictures import GrowingFile

    options = {"faces": arguments.faces, "window_gops": arguments.window_gops}
    streamed = {"faces": arguments.faces, "window_gops": arguments.window_gops or 1}
    if source == "-":
        if sys.stdin is None:
            raise InputError("-: standard input is closed; give a file, or pipe a video in")
        return recognizer.predict_stream(sys.stdin.buffer, "standard input", **streamed)
    if arguments.follow is not None:
        return recognizer.predict_stream(
            GrowingFile(Path(source), arguments.follow), source, **streamed
        )
    if not is_one_video(source):
        return recognizer.predict_shards(source, window_gops=arguments.window_gops)
    return recognizer.predict_windows(source, **options)


class TablePrinter:
    """A line per window under a head of class names, with the source's name where there are some"""

    def __init__(self, classes: Sequence[str], sources: Sequence[str]) -> None:
        self._classes = classes
        self._names_sources = len(sources) > 1 or not is_one_video(sources[0])
        self._source = ""
        self._head_is_printed = False

    def __call__(self, prediction: Prediction) -> None:
        widths = [max(len(name), 5) for name in self._classes]
        if not self._head_is_printed:
            columns = "  ".join(
                f"{name:>{width}s}" for name, width in zip(self._classes, widths, strict=True)
            )
            label_width = max(map(len, self._classes))
            print(f"{'from':>8s} {'to':>8s}  face  {'label':{label_width}s}  {columns}")
            self._head_is_printed = True
        if self._names_sources and prediction.source != self._source:
            print(f"{printable(prediction.source)}:")
            self._source = prediction.source
        columns = "  ".join(
            f"{prediction.probabilities.get(name, float('nan')):{width}.3f}"
            for name, width in zip(self._classes, widths, strict=True)
        )
        label_width = max(map(len, self._classes))
        print(
            f"{prediction.start_seconds:7.2f}s {prediction.end_seconds:7.2f}s  "
            f"{prediction.face or '-':>4}  {prediction.label or 'no face':{label_width}s}  "
            f"{columns if prediction.label else ''}".rstrip(),
            flush=True,
        )


def print_json(prediction: Prediction) -> None:
    from cfer.predict.timeline import as_json

    print(json.dumps(as_json(prediction)), flush=True)


def look(arguments: argparse.Namespace) -> int:
    check_output(arguments.picture, ".png")
    from cfer.predict.look import look

    look(arguments.source, arguments.clip, arguments.gop, arguments.model).savefig(
        arguments.picture, dpi=110
    )
    print(arguments.picture)
    return 0


def list_models(arguments: argparse.Namespace) -> int:
    from cfer.predict.models import table

    print(table())
    return 0


def show_model(arguments: argparse.Namespace) -> int:
    from cfer.predict.models import describe

    print(describe(arguments.model))
    return 0


def export_model(arguments: argparse.Namespace) -> int:
    arguments.file.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_output(arguments.file)
    from cfer.predict.models import export

    print(export(arguments.model, arguments.file))
    return 0


def import_model(arguments: argparse.Namespace) -> int:
    from cfer.predict.models import import_file

    print(import_file(arguments.file, arguments.name))
    return 0


def serve(arguments: argparse.Namespace) -> int:
    from cfer.predict.serve import run
    from cfer.predict.uploads import Limits

    limits = Limits.of(
        arguments.max_megabytes,
        arguments.max_seconds,
        arguments.time_limit,
        arguments.memory_limit,
    )
    return run(
        arguments.host,
        arguments.port,
        arguments.model,
        arguments.readers,
        arguments.allow,
        limits,
    )


def encode(arguments: argparse.Namespace) -> int:
    from cfer.codec import CodecSettings
    from cfer.predict.recognizer import face_bitstream

    if arguments.size < 16 or arguments.size % 2:
        raise InputError(f"--size {arguments.size}: must be an even number of at least 16 pixels")
    check_output(arguments.clip)
    settings = CodecSettings(
        gop_size=arguments.gop_size,
        gop_span=arguments.gop_span,
        quantizer=arguments.quantizer,
        motion_search=not arguments.no_motion_search,
    )
    bitstream = face_bitstream(arguments.video, arguments.size, settings)
    bitstream.save(arguments.clip)
    print(
        f"{arguments.clip}: {len(bitstream.packets)} frames in {len(bitstream.gops)} GOPs, "
        f"{len(bitstream.data):,} bytes"
    )
    return 0


def report(arguments: argparse.Namespace) -> int:
    check_output_folder(arguments.out)
    from cfer.evaluate.report import write

    print(write(arguments.experiment, arguments.out))
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Run the commands that a user would; each goes on where it was, if the demo was stopped."""
    started = time.monotonic()
    out, subjects = arguments.out, arguments.subjects
    if subjects < 4:
        raise InputError(f"--subjects {subjects}: give 4 or more; a quarter of them is held out")
    check_output_folder(out)
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
            "-m cfer.evaluate.command demo",
        ),
        (
            "The face of one of them, as a fixed-GOP clip; and its residuals as a picture",
            f"-m cfer.cli encode {clip} clip.mp4",
        ),
        ("", "-m cfer.cli look clip.mp4 residuals.png --model demo"),
        (
            "Its expression, from the P-frames alone",
            "-m cfer.cli predict clip.mp4 --model demo",
        ),
    ]
    with contextlib.chdir(out):
        for title, command in steps:
            if title:
                print(f"\n== {title} ({time.monotonic() - started:.0f} s)", flush=True)
            print(f"$ python {command}", flush=True)
            status = _run_module(*shlex.split(command)[1:])
            if status:
                print(f"cfer demo: stopped, since the command above ended with {status}")
                return status
    minutes = (time.monotonic() - started) / 60
    print(
        f"\n== Done in {minutes:.1f} minutes. Chance is {1 / DEMO_CLASSES:.2f}. Look next at:\n"
        f"  {out}/residuals.png                          what the recognizer sees\n"
        f"  cd {out} && mlflow ui --backend-store-uri sqlite:///mlflow.db\n"
        "                                              curves, confusion matrix, the model\n"
        f"  cd {out} && cfer predict YOUR_VIDEO --model demo\n"
        "  README.md                                   your own videos, options, how it works"
    )
    return 0


def _run_module(name: str, *argv: str) -> int:
    """What `python -m NAME ARGV` does, in this process: each of its own would import PyTorch, and
    start Ray, again."""
    if name == "pipeline.extract" and not Path("runs", "demo", "results.json").exists():
        from cfer.cluster import join_cluster

        # Training says how far it is through a Ray that was started for it.
        join_cluster(for_training=True)
    main = run if name == "cfer.cli" else importlib.import_module(name).main
    with _logging_restored():
        status = status_of(lambda: main(argv))
    sys.stdout.flush()
    return status


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """How a command wants its messages is not how the next one does."""
    loggers = [logging.getLogger(name) for name in (None, "cfer", "extract")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            for handler in set(logger.handlers) - set(handlers):
                logger.removeHandler(handler)
                handler.close()
            logger.setLevel(level)
            logger.propagate = propagate


if __name__ == "__main__":
    main()
