"""`cfer bench`: measure the parts, each beside what people use today; each output is checked first.

Read the ratios: their works take turns in one run, so they hold on a busy machine too. `compare`
exits with 1 where a ratio fell by more than a third, or is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from cfer.errors import InputError, exit_with_message
from cfer.options import parse_command

# Each bench needs other packages, some of which take seconds to import.
if TYPE_CHECKING:
    from benchmarks.measure import Measurement
    from benchmarks.real import RealPeople
    from benchmarks.robustness import Robustness

Rounds = Annotated[int, arg(help="How often each work is timed.")]
Json = Annotated[Path | None, arg(help="Write the figures there.", metavar="FILE")]
Videos = Positional[tuple[Path, ...]]


def codec(
    videos: Videos = (),
    *,
    size: int = 224,
    gop_size: int = 12,
    max_frames: int = 120,
    rounds: Rounds = 7,
    json: Json = None,
) -> int:
    """Reading residuals / FFmpeg's decoding.

    Args:
        videos: Clips, encoded anew and, in H.264, as they are; without any, textures are drawn.
        size: Side of the pictures in pixels.
        gop_size: Frames per GOP.
        max_frames: Frames of each clip at most.
    """
    from benchmarks import codec
    from benchmarks.material import clips_of
    from cfer.codec import CodecSettings

    settings = CodecSettings(gop_size=gop_size)
    return _report(
        lambda: codec.measure(clips_of(videos, size, max_frames), settings, rounds, videos), json
    )


def extract(videos: Videos, *, rounds: Rounds = 7, json: Json = None) -> int:
    """Videos to shards / decoding and encoding alone, with the extraction's default settings.

    Args:
        videos: Videos with a face in each.
    """
    from benchmarks import extract

    return _report(lambda: extract.measure(videos, rounds), json)


def train(
    *,
    clips: int = 320,
    size: int = 112,
    batch_size: int = 32,
    device: Literal["cpu", "cuda"] = "cpu",
    data: str | None = None,
    workers: int = 2,
    epochs: int = 20,
    rounds: Rounds = 7,
    json: Json = None,
) -> int:
    """Training steps / the same on tensors in memory.

    Args:
        clips: Clips of an epoch.
        size: Side of the face crop in pixels.
        batch_size: Clips per step.
        device: Where the network is trained.
        data: Shards, to run `cfer train` on them as well, with one worker and with more.
        workers: Workers of the second of these runs.
        epochs: Epochs of each of these runs.
    """
    import torch

    from benchmarks import train

    return _report(
        lambda: train.measure(
            clips, size, torch.device(device), rounds, batch_size, data, workers, epochs
        ),
        json,
    )


def predict(
    videos: Videos = (), *, max_frames: int = 120, rounds: Rounds = 7, json: Json = None
) -> int:
    """A clip to its label / by decoded pictures.

    Args:
        videos: Clips; without any, textures are drawn.
        max_frames: Frames of each clip at most.
    """
    from benchmarks import predict
    from benchmarks.material import clips_of

    return _report(lambda: predict.measure(clips_of(videos, 224, max_frames), rounds), json)


def h264(videos: Videos, *, rounds: Rounds = 3, json: Json = None) -> int:
    """A file of H.264 to its labels: as it is / encoded anew / by decoded pictures.

    Args:
        videos: With a face in view.
    """
    if not videos:
        raise InputError("cfer bench h264: give videos of H.264 with a face in view")
    from benchmarks import h264

    return _report(lambda: h264.measure(videos, rounds), json)


def scale(
    what: Positional[Literal["hours", "run"]] = "hours",
    *,
    material: Path = Path("scale-material"),
    clips: int | None = None,
    workers: tuple[int, ...] = (),
    clips_per_shard: int = 4,
    identity: Literal["dlib", "facenet"] = "dlib",
    gpu: bool = False,
    out: Path | None = None,
    rounds: Rounds = 3,
    json: Json = None,
) -> int:
    """The extraction job: machine-hours of millions of clips, or the memory of a long run.

    Args:
        what: `hours` times the stages of a clip and short jobs; `run` is one long job.
        material: A folder with a manifest.csv; a new one is filled with drawn faces.
        clips: Clips of each job (240), or of the run (20,000).
        workers: Numbers of workers to compare (1 2); of the run, one number (one for each core).
        clips_per_shard: Clips of a shard.
        identity: The frozen face network of `hours`.
        gpu: Embed the I-frames of `hours` on a GPU, and count GPU-hours.
        out: Folder of the run, for its shards and logs; a run that was killed goes on there.
    """
    from benchmarks import scale

    if what == "hours":
        given = (workers or (1, 2), clips_per_shard, rounds, identity, gpu)
        count = clips or scale.CLIPS_OF_A_JOB
        return _report(lambda: scale.measure_hours(material, count, *given), json)
    if out is None:
        raise InputError("scale run: needs --out, a folder for the shards and its logs")
    if len(workers) > 1:
        raise InputError("scale run: --workers takes one number here")
    (number,) = workers or (len(os.sched_getaffinity(0)),)
    count = clips or scale.CLIPS_OF_A_RUN
    return _report(lambda: scale.measure_run(material, out, count, number, clips_per_shard), json)


def robustness(videos: Videos, *, model: str = "default", json: Json = None) -> int:
    """Does the model say the same of a video that was changed a little?

    A model that reads H.264 as it is is asked twice: so, and with every face encoded anew.

    Args:
        videos: Videos with a face in view.
        model: As for `cfer predict`.
    """
    if not videos:
        raise InputError("cfer bench robustness: give videos with a face in view")
    from benchmarks import robustness
    from cfer.predict.models import DEFAULT, DEFAULT_LIMITS

    status = _report(lambda: robustness.measure(robustness.both_ways([model]), videos), json)
    if model == DEFAULT:
        print(f"\n{DEFAULT_LIMITS}")
    return status


def real(
    *,
    model: tuple[str, ...] = ("default",),
    windows: Path | None = None,
    videos: Path | None = None,
    photos: Path | None = None,
    people: str = "",
    crema_d: Path | None = None,
    robustness: tuple[Path, ...] = (),
    details: bool = False,
    json: Json = None,
) -> int:
    """What do models say of real people? Several models side by side, with exact intervals.

    Args:
        model: One or more, as for `cfer predict`.
        windows: A CSV of windows that people have marked, from onset to apex: columns video,
            onset_s, apex_s, label, confidence.
        videos: The folder with the videos of --windows, each named as in its column video.
        photos: Photographs of people, neutral and smiling, in the London set's layout:
            neutral_front/, smiling_front/, london_info.csv. Smiles are made from them.
        people: Only these people of --photos, separated by commas.
        crema_d: CREMA-D's folder.
        robustness: Videos with a face in view; as `cfer bench robustness`.
        details: Also print what is said of each window and each person.
    """
    from benchmarks import real
    from cfer.predict.models import DEFAULT, DEFAULT_LIMITS

    status = _report(
        lambda: real.measure(
            model,
            windows=windows,
            videos=videos,
            photos=photos,
            people=[name for name in people.split(",") if name],
            crema_d=crema_d,
            robust=robustness,
            details=details,
        ),
        json,
    )
    if DEFAULT in model:
        print(f"\n{DEFAULT_LIMITS}")
    return status


def compare(before: Positional[Path], after: Positional[Path]) -> int:
    """Two JSON files of a bench: has a ratio fallen by more than a third?

    Args:
        before: The file of the older run.
        after: The file of the newer one.
    """
    from benchmarks import measure

    text, regressed = measure.compare(before, after)
    print(text)
    return int(regressed)


def _report(measure: Callable[[], Measurement | RealPeople | Robustness], file: Path | None) -> int:
    import json
    from dataclasses import asdict

    from cfer.outputs import check_output

    if file:
        check_output(file)
    found = measure()
    print(found.table())
    if file:
        file.write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    benches = (codec, extract, train, predict, h264, scale, robustness, real, compare)
    commands = {bench.__name__: bench for bench in benches}
    return parse_command(commands, "cfer bench", __doc__ or "", argv)


if __name__ == "__main__":
    exit_with_message(main)
