"""Every Python example of the README and of docs/ runs as it stands; so does every command, here or
in a test that is named here."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import (
    REPOSITORY,
    command_lines,
    commands,
    free_ports,
    is_open,
    kill_with_children,
    run_module,
    wait_for,
)

import cfer
from cfer.codec import Bitstream, CodecError
from cfer.dataset import NO_LABEL
from cfer.inputs import Input
from cfer.shards import read_clips

CLUSTER_PAGE = REPOSITORY / "cluster" / "README.md"
PAGES = sorted([REPOSITORY / "README.md", CLUSTER_PAGE, *(REPOSITORY / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, drawn_videos, drawn_shards) -> Path:
    """What the pages say is there: video.mp4, clip.mp4, shards."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(drawn_videos / "videos" / "S003" / "surprise_1.mp4", folder / "video.mp4")
    shutil.copytree(drawn_shards, folder / "shards")
    done = run_module(
        *("cfer.cli", "encode", str(folder / "video.mp4"), str(folder / "clip.mp4")),
        *("--gop-size", "8", "--gop-span", "8"),
    )
    assert done.returncode == 0, done.stderr
    with av.open(str(folder / "video.mp4")) as video, av.open(str(folder / "live.ts"), "w") as live:
        stream = live.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video.streams.video[0]):
            if packet.size:
                packet.stream = stream
                live.mux(packet)
    return folder


def examples() -> list[tuple[str, str]]:
    return [
        (page.name, code)
        for page in PAGES
        for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    ]


@pytest.mark.parametrize(("page", "code"), examples())
def test_an_example_runs(folder, page, code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if "print(" in code:
        assert done.stdout.strip()


def in_bash(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    # tests/test_serve.py runs the server.
    [command for command in commands("Looking and predicting") if command != "cfer serve"],
)
def test_a_command_that_looks_or_predicts_runs(folder, command):
    """As it stands; only what this machine can't have stands for something: camera, model name."""
    if not shutil.which("ffmpeg"):
        command = re.sub(r"ffmpeg [^|]*", "cat live.ts ", command)
    (folder / "videos").mkdir(exist_ok=True)
    shutil.copy(folder / "video.mp4", folder / "videos")
    shutil.copy(REPOSITORY / "cfer" / "default.safetensors", folder / "model.safetensors")
    given = command.replace("/dev/video0", "video.mp4").replace(" NAME ", " default ")
    before = set(folder.iterdir())
    done = in_bash(given, folder)
    assert done.returncode == 0, done.stderr
    files = [word for word in given.split() if re.fullmatch(r"\w+\.(png|csv|mp4|onnx)", word)]
    named = {folder / name for name in files}
    assert named <= set(folder.iterdir()), "every file that it names is there"
    assert done.stdout.strip() or named - before


def check_that_it_serves(command: str, folder: Path) -> None:
    (port,) = free_ports(1)
    program, *options = shlex.split(command)
    server = subprocess.Popen(
        [Path(sys.executable).with_name(program), *options, f"--port={port}"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: is_open(port) or server.poll() is not None)
        assert server.poll() is None, "it ended"
    finally:
        if server.poll() is None:
            kill_with_children(server)


@pytest.mark.timeout(900)
def test_the_way_from_videos_to_a_model(tmp_path, drawn_videos):
    """The page's commands, one after the other; two epochs and folds of each run."""
    rows = list(csv.DictReader((drawn_videos / "manifest.csv").open()))
    rows = [row for row in rows if row["subject"] <= "S005" and row["label"] in ("fear", "anger")]
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"path": drawn_videos / row["path"]} for row in rows)
    shutil.copy(drawn_videos / rows[0]["path"], tmp_path / "video.mp4")
    (tmp_path / "pipeline").symlink_to(REPOSITORY / "pipeline")
    printed = {}
    given_here = commands("From videos to a model", "docs/data.md")
    for command in given_here:
        if command.startswith("mlflow ui"):
            check_that_it_serves(command, tmp_path)
            continue
        given = f"{command} --epochs 2" if "cfer.train" in command else command
        # Without network the weights of `--identity auto` may take long to be missing.
        given = given.replace("extract.py", "extract.py --identity dlib")
        done = in_bash(given.replace("--folds 5", "--folds 2"), tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed[command] = done.stdout
    assert (tmp_path / "report" / "report.html").exists()
    assert (tmp_path / "first.safetensors").exists()
    head, window = printed["cfer predict video.mp4 --model first"].splitlines()
    assert head.split()[-2:] == ["anger", "fear"]
    assert window.split()[3] in ("anger", "fear")
    assert set(commands("Your own videos", "README.md")) <= set(given_here)


# ---- is every command run? -----------------------------------------------------------------------

# A section whose commands a test takes from the page (`commands("TITLE", "PAGE")`) is run whole.
# What else is written on a page stands here: the test that runs it, or why none does.
DEMO = "tests/test_cli.py::test_the_demo_ends_with_a_table_and_where_to_look"
BENCHMARK = "tests/test_benchmark.py::test_one_command_from_nothing_to_the_table_and_again"
ARCHIVES = "tests/test_benchmark.py::test_from_archives_to_the_table_and_one_person_left_out"
READERS = "tests/test_datasets.py::test_extraction"
RUN_ELSEWHERE = {
    "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/cfer demo": DEMO,
    "python pipeline/benchmark.py --dataset synthetic --out bench": BENCHMARK,  # by --quick
    "python pipeline/benchmark.py --dataset synthetic --out quick --quick": BENCHMARK,
    "python pipeline/benchmark.py --dataset synthetic --out bench --identity dlib": (
        BENCHMARK  # by --quick
    ),
    "python pipeline/extract.py --dataset NAME --root TREE --out shards": READERS,
    "python -m pipeline.datasets.synthetic --out drawn --subjects 60": (
        "tests/conftest.py::drawn_videos"
    ),
    "python -m pipeline.datasets.synthetic --out drawn --subjects 24": (
        "tests/conftest.py::drawn_videos"
    ),
    "python pipeline/extract.py --videos drawn/manifest.csv --out shards --identity dlib": (
        "tests/conftest.py::drawn_shards"
    ),
    "python pipeline/extract.py --videos s3://BUCKET/videos/all.csv --out s3://BUCKET/shards": (
        "tests/test_faults.py::test_videos_manifest_and_shards_in_a_store"
    ),
    "python -m cfer.train --data s3://BUCKET/shards --storage s3://BUCKET/runs --run first": (
        "tests/test_training_faults.py::test_a_run_on_s3_goes_on"
    ),
    "python -m cfer.train --folds": "tests/test_docs.py::test_the_way_from_videos_to_a_model",
    "python -m cfer.train --protocol NAME": ARCHIVES,
    "python -m cfer.train --data shards --folds 5 --sweep lambda=0,0.3,1,3": (
        "tests/test_protocol.py::test_the_sweep_has_a_curve"
    ),
    "python -m cfer.bench codec VIDEO…": (
        "tests/test_bench.py::test_a_documented_bench_runs_in_its_quick_form"
    ),
    "cfer encode video.mp4 clip.mp4": "tests/test_docs.py::folder",
    "cfer look VIDEO PICTURE.png": (
        "tests/test_look.py::test_the_command_writes_a_picture_of_about_1600_pixels"
    ),
    "cfer predict VIDEO": "tests/test_timeline.py::test_one_command_writes_all_three",
    "cfer models show default": "tests/test_docs.py::test_small_commands_of_the_pages_run",
    "cfer serve": "tests/test_serve.py::test_the_answer_is_the_recognisers",
    "curl --data-binary @video.mp4 http://127.0.0.1:8000/predict": (
        "tests/test_serve.py::test_the_answer_is_the_recognisers"
    ),
    'eval "$(cfer completion bash)"': (
        "tests/test_cli.py::test_the_shell_completes_commands_and_options"
    ),
}
NOT_RUN = {
    "python pipeline/benchmark.py --dataset synthetic --out search --search --identity dlib "
    "--seeds 0": "three quarters of an hour of training",
    "python pipeline/benchmark.py --dataset synthetic --out search --search --identity dlib "
    '--rows "recommended,gop-size 2,lambda 5"': "ten minutes of training",
    "python pipeline/benchmark.py --dataset synthetic --out longer --identity dlib --seeds 0 "
    '--epochs 90 --experiment longer --rows "cross-entropy,min-min,frame-difference,'
    'every-frame+difference,stills-apex,stills-sampled,stills-apex+min-min"': (
        "half an hour of training"
    ),
    "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest": (
        "it is what runs the tests; .ci/run takes it from the page"
    ),
    "pytest tests/test_codec.py": "it is what runs the tests",
    "pip install '.[export]'": "it is part of the `dev` packages that the tests need",
    "python pipeline/benchmark.py --dataset ravdess --root DOWNLOADS --out bench-ravdess": (
        f"13 GB of downloads; {ARCHIVES} does it with archives of the same layout"
    ),
    "python pipeline/benchmark.py --dataset crema-d --root CREMA-D --out bench-cremad": (
        f"downloads by Git LFS; {READERS} reads its layout, {BENCHMARK} runs the rest"
    ),
    "git clone https://github.com/CheyneyComputerScience/CREMA-D": "a download",
    "ray job submit --working-dir . -- python pipeline/extract.py …": "needs a cluster",
    "python pipeline/default_model.py": "half an hour; its four steps are those of the demo",
    "ffmpeg -c:v mpeg4": "names an encoder, and is no command",
}
PROGRAMS = "python3?|cfer|pip|ray|curl|pytest|mlflow|ffmpeg|eval|git"


def documented_commands() -> dict[str, set[tuple[str, str]]]:
    """Every command of a page, of its blocks and of its text → pages and titles where it stands.

    cluster/README.md is not among them: its commands want machines, containers or a cloud.
    tests/test_cluster.py has each parsed by its own program, and runs the jobs.
    """
    found: dict[str, set[tuple[str, str]]] = {}
    for page in set(PAGES) - {CLUSTER_PAGE}:
        name, title = page.relative_to(REPOSITORY).as_posix(), ""
        # Text and fenced blocks take turns; a block begins with its language.
        for number, part in enumerate(re.split(r"^```", page.read_text(), flags=re.M)):
            language, _, block = part.partition("\n")
            if number % 2 == 0:
                for section in re.split(r"^(?=#)", part, flags=re.M):
                    if section.startswith("#"):
                        title = section.splitlines()[0].lstrip("#").strip()
                    codes = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", section)]
                    for code in codes:
                        # `cfer predict` alone is a name.
                        if re.match(rf"({PROGRAMS})\s(?!\w+$)", code):
                            found.setdefault(code, set()).add((name, title))
            elif language != "python":
                for line in command_lines(block):
                    if language == "sh" or re.match(rf"(\$ )?({PROGRAMS})\s", line):
                        found.setdefault(line, set()).add((name, title))
    return found


def sections_that_tests_run() -> set[tuple[str, str]]:
    sources = [path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py")]
    return {
        (page or "README.md", title)
        for source in sources
        for title, page in re.findall(
            r'(?<!def )commands\(\s*"([^"]+)"(?:,\s*"([^"]+)")?\s*\)', source
        )
    }


def test_every_command_of_the_pages_is_run_or_says_why_not():
    found, whole = documented_commands(), sections_that_tests_run()
    assert len(found) > 30
    for command, places in found.items():
        known = command in RUN_ELSEWHERE or command in NOT_RUN or bool(places & whole)
        assert known, f"{command} ({places}): run it in a test, and name the test here"
    for command in [*RUN_ELSEWHERE, *NOT_RUN]:
        assert command in found, f"{command}: is on no page any more"
    for test in RUN_ELSEWHERE.values():
        path, _, name = test.partition("::")
        assert f"\ndef {name}" in (REPOSITORY / path).read_text(), test


def test_small_commands_of_the_pages_run(tmp_path):
    done = in_bash("cfer models show default", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "held_out/accuracy" in done.stdout
    assert "drawn faces" in done.stdout


def test_there_are_examples_and_no_dead_links():
    assert len(examples()) >= 4
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_names_of_the_package_are_there():
    for name in cfer.__all__:
        assert getattr(cfer, name).__name__ == name
    with pytest.raises(AttributeError, match="nosuchname"):
        _ = cfer.nosuchname


def test_importing_the_package_is_cheap():
    code = "import sys, cfer; assert not {'torch', 'ray', 'av', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gops_and_residuals_are_the_bitstreams(folder):
    bitstream = Bitstream.open(folder / "clip.mp4")
    gops = cfer.read_gops(folder / "clip.mp4")
    assert [gop.frames for gop in gops] == [range(8), range(8, 16), range(16, 24)]
    assert np.array_equal(gops[1].i_frame, bitstream.i_frames()[1])
    accumulated = list(cfer.residuals(folder / "clip.mp4"))
    assert [r.frame for r in accumulated] == [n for gop in gops for n in gop.frames[1:]]
    assert np.array_equal(accumulated[13].y, bitstream.accumulated_residuals(1)[6].y)
    direct = list(cfer.residuals(folder / "clip.mp4", "direct"))
    assert np.array_equal(direct[13].y, bitstream.direct_residual(15).y)
    assert not np.array_equal(direct[13].y, accumulated[13].y)
    with pytest.raises(CodecError, match="give accumulated or direct"):
        next(cfer.residuals(folder / "clip.mp4", "motion"))


def test_a_dataset_of_every_clip_without_ray(drawn_shards):
    clips = cfer.open_dataset(drawn_shards)
    wanted = list(read_clips(drawn_shards))
    assert len(clips) == len(wanted) == 56
    assert clips.clip_ids == [clip.clip_id for clip in wanted]
    assert clips.labels == [NO_LABEL if clip.label is None else clip.label for clip in wanted]
    # Also in the loader's own processes, and in order.
    loader = torch.utils.data.DataLoader(clips, batch_size=16, num_workers=2)
    batches = list(loader)
    planes = torch.cat([batch["planes"] for batch in batches])
    assert planes.shape == (56, 2, 6, 32, 32)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == clips.labels
    clip = wanted[17]
    read = Input().read(Bitstream(clip.bitstream, clip.clip_id), range(2))
    assert np.array_equal(planes[17], read)
    torch.testing.assert_close(clips[17]["identity"], torch.tensor(clip.identity.mean(0)))
    code = f"""
import sys, cfer
cfer.open_dataset({str(drawn_shards)!r}, frames=3)[5]
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
