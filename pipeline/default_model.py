"""Make the model file that ships with cfer, from nothing: `cfer/predict/default.safetensors`.

    python pipeline/default_model.py --out default     # about 10 minutes on 2 cores, once drawn

Draws people, extracts their clips, trains the min-min game and exports the model to
`OUT/default.safetensors`, with the figures of the people that were held out in its card. Killed and
started again, each step goes on where it was.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from cfer.errors import exit_with_message
from cfer.options import parse

STEPS = (
    "draw --out videos --subjects 60",
    "extract --videos videos/manifest.csv --out shards --identity dlib",
    "train --data shards --experiment default --run default-model --method min-min --epochs 90",
    "models export default-model default.safetensors",
)


def make(out: Path = Path("default")) -> int:
    """Make the model file that ships with cfer, from nothing: OUT/default.safetensors.

    Args:
        out: folder to work in.
    """
    out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        print(f"$ cfer {step}", flush=True)
        command = [sys.executable, "-m", "cfer.cli", *shlex.split(step)]
        done = subprocess.run(command, cwd=out, check=False)
        if done.returncode:
            print(f"stopped, since the command above ended with {done.returncode}")
            return done.returncode
    return 0


if __name__ == "__main__":
    exit_with_message(lambda: parse(make, "python pipeline/default_model.py", None))
