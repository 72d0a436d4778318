"""The installed command, in a process of its own: what it loads, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cfer.cli import run

CHECKS = """
import sys
import cfer
from cfer import cli

video, clip, shards, out = sys.argv[1:]


def has(*modules):
    return sorted(set(modules) & set(sys.modules))


assert not has("torch", "av", "numpy", "pyarrow", "ray", "mlflow"), "import cfer"
try:
    cli.run(["--help"])
except SystemExit:
    pass
assert not has("torch", "av", "numpy", "pyarrow", "ray", "mlflow"), "cfer --help"

heavy = ("ray", "mlflow", "sklearn", "scipy", "matplotlib")
assert cli.run(["predict", clip]) == 0
assert not has(*heavy, "facenet_pytorch"), "a clip that is a face's crop already"
assert cli.run(["predict", video, "--json", "--csv", f"{out}/windows.csv"]) == 0
assert not has(*heavy), has(*heavy)
assert cli.run(["encode", video, f"{out}/clip.mp4"]) == 0
assert not has(*heavy), has(*heavy)

import torch

clips = cfer.open_dataset(shards)
loader = torch.utils.data.DataLoader(clips, batch_size=4, num_workers=2)
assert [label for batch in loader for label in batch["label"].tolist()] == clips.labels
assert len(clips.labels) == 10
assert not has(*heavy), has(*heavy)

# The intervals of its recall by group are SciPy's.
assert cli.run(["models", "show", "default"]) == 0
assert has(*heavy) == ["scipy"]
assert cli.run(["look", clip, f"{out}/look.png"]) == 0
assert has("ray", "mlflow", "sklearn", "matplotlib") == ["matplotlib"]

from cfer.evaluate import command, report
from cfer.predict import timeline

assert has("ray", "sklearn") == [], "only training, extraction and serving run on Ray"
"""


def test_nothing_is_loaded_before_it_is_needed(
    drawn_videos: Path, drawn_shards: Path, tmp_path: Path
) -> None:
    video, clip = drawn_videos / "videos" / "S003" / "surprise_1.mp4", tmp_path / "face.mp4"
    assert run(["encode", str(video), str(clip)]) == 0
    words = [str(path) for path in (video, clip, drawn_shards, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", CHECKS, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clip.mp4").read_bytes() == clip.read_bytes()


def test_the_shell_completes_its_options_and_a_mistake_is_one_line() -> None:
    script = """
        eval "$(cfer --tyro-print-completion bash)"
        COMP_WORDS=(cfer predict --fa); COMP_CWORD=2
        $(complete -p cfer | sed 's/.*-F \\([^ ]*\\).*/\\1/') cfer --fa predict
        echo "${COMPREPLY[@]}"
        cfer look video.mp4 look.jpg
        echo $?
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["--faces", "2"], done.stderr
    assert done.stderr == "error: look.jpg: give a file that ends in .png\n"
