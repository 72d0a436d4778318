"""Which module may import which, and what an import loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers import REPOSITORY


def test_arrows_point_down_and_there_is_no_circle() -> None:
    """The contracts of pyproject.toml: imports inside functions count as well."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_residuals_need_neither_pytorch_nor_ray() -> None:
    code = "import sys, cfer; cfer.residuals; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded >= {"av", "numpy", "cfer"}
    assert not loaded & {"torch", "ray", "pyarrow", "cv2", "PIL", "pydantic", "tyro"}


def test_a_clip_that_is_cut_out_already_is_predicted_without_opencv() -> None:
    code = "import sys, cfer.predict.recognizer; print('cv2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_prediction_needs_nothing_that_training_needs() -> None:
    """What `pip install cfer` leaves out: `cfer.residuals` and `Recognizer` do without it."""
    left_out = ("ray", "mlflow", "pyarrow", "sklearn", "matplotlib", "dlib", "fastapi")
    code = (
        "import sys\n"
        f"for name in {left_out}: sys.modules[name] = None  # its import fails\n"
        "import cfer\n"
        "recognizer = cfer.Recognizer.from_pretrained()\n"
        "print(recognizer.predict(sys.argv[1])[0].label)"
    )
    video = REPOSITORY / "tests" / "fixtures" / "drawn" / "videos" / "S003" / "surprise_1.mp4"
    done = subprocess.run(
        [sys.executable, "-c", code, video], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("anger contempt disgust fear happiness sadness surprise".split())
