"""Make the model file that ships with cfer, from nothing: `cfer/predict/default.safetensors`.

    python pipeline/default_model.py --out default     # about 10 minutes on 2 cores, once drawn

Draws people, extracts their clips, trains the min-min game and exports the model, with the figures
of the people that were held out in its card. Killed and started again, each step goes on where it
was.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import tyro

from cfer.errors import exit_with_message
from cfer.predict.models import default_path

STEPS = (
    "-m pipeline.datasets.synthetic --out videos --subjects 60",
    "-m pipeline.extract --videos videos/manifest.csv --out shards --identity dlib",
    "-m cfer.train --data shards --experiment default --run default-model --method min-min "
    "--epochs 90",
    f"-m cfer.cli models export default-model {shlex.quote(str(default_path()))}",
)


def make(*, out: Path = Path("default")) -> int:
    """Make the model file that ships with cfer, from nothing, working in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        print(f"$ python {step}", flush=True)
        done = subprocess.run([sys.executable, *shlex.split(step)], cwd=out, check=False)
        if done.returncode:
            print(f"stopped, since the command above ended with {done.returncode}")
            return done.returncode
    return 0


if __name__ == "__main__":
    exit_with_message(lambda: tyro.cli(make))
