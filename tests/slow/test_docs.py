"""Every command of the pages that looks, predicts or leads from videos to a model, as it stands."""

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
import pytest
from helpers import commands, free_ports, is_open, kill_with_children, wait_for

from cfer.cli import run
from cfer.predict.models import default_path


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, drawn_videos: Path, drawn_shards: Path
) -> Path:
    """What the pages say is there: videos, video.mp4, clip.mp4, live.ts, shards, a model."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "videos").mkdir()
    (folder / "shards").symlink_to(drawn_shards)
    for name in ("video.mp4", "videos/one.mp4"):
        shutil.copy(drawn_videos / "videos" / "S003" / "surprise_1.mp4", folder / name)
    shutil.copy(default_path(), folder / "model.safetensors")
    files = [str(folder / "video.mp4"), str(folder / "clip.mp4")]
    assert run(["encode", *files, "--gop-size", "8", "--gop-seconds", "0"]) == 0
    with av.open(str(folder / "video.mp4")) as video, av.open(str(folder / "live.ts"), "w") as live:
        stream = live.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video.streams.video[0]):
            if packet.size:
                packet.stream = stream
                live.mux(packet)
    return folder


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
    # tests/integration/test_serve.py runs the server.
    [command for command in commands("Looking and predicting") if command != "cfer serve"],
)
def test_a_command_that_looks_or_predicts_runs(folder: Path, command: str) -> None:
    """As it stands; only what this machine can't have stands for something: camera, model name."""
    if not shutil.which("ffmpeg"):
        command = re.sub(r"ffmpeg [^|]*", "cat live.ts ", command)
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
        wait_for(lambda: is_open(port), server)
    finally:
        if server.poll() is None:
            kill_with_children(server)


def test_the_way_from_videos_to_a_model(tmp_path: Path, drawn_videos: Path) -> None:
    """The page's commands, one after the other; two epochs and folds of each run."""
    rows = list(csv.DictReader((drawn_videos / "manifest.csv").open()))
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"path": drawn_videos / row["path"]} for row in rows)
    shutil.copy(drawn_videos / rows[0]["path"], tmp_path / "video.mp4")
    printed = {}
    given_here = commands("From videos to a model", "docs/data.md")
    for command in given_here:
        if command.startswith("mlflow ui"):
            check_that_it_serves(command, tmp_path)
            continue
        given = f"{command} --epochs 2" if command.startswith("cfer train") else command
        # Without network the weights of `--identity auto` may take long to be missing.
        given = given.replace("cfer extract", "cfer extract --identity dlib")
        done = in_bash(given.replace("--folds 5", "--folds 2"), tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed[command] = done.stdout
    assert (tmp_path / "report" / "report.html").exists()
    assert (tmp_path / "first.safetensors").exists()
    head, window, event = printed["cfer predict video.mp4 --model first"].splitlines()
    assert head.split()[-2:] == ["happiness", "surprise"]
    assert window.split()[3] in ("happiness", "surprise")
    assert event.startswith(f"{window.split()[3]}: onset ")
    assert set(commands("Your own videos", "README.md")) <= set(given_here)
