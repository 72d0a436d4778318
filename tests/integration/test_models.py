"""Models by the names that the MLflow store has for them, from hand to hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfer.cli import run
from cfer.errors import InputError


def test_models_from_hand_to_hand(
    in_trained_store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run's model → a file → the registry of another store: the same weights, by each name."""

    def cfer(*words: str) -> list[str]:
        assert run(words) == 0
        return capsys.readouterr().out.splitlines()

    given, back = str(tmp_path / "given.safetensors"), str(tmp_path / "back.safetensors")
    cfer("models", "export", in_trained_store.name, given)
    head, *models = cfer("models", "list")
    assert head.split() == ["name", "accuracy", "what"]
    assert models[0].endswith("  ships with cfer")
    of_the_run = f"{in_trained_store.name} "
    (line,) = (line for line in models if line.startswith(of_the_run))
    assert line.endswith("  run of experiment cfer")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert cfer("models", "import", given, "--name", "faces")[-1] == "models:/faces/1"
    for name in ("", "a/b"):
        with pytest.raises(InputError, match=f"--name '{name}': the registry does not take it"):
            run(["models", "import", given, "--name", name])
    listed = [line.split() for line in cfer("models", "list")]
    assert [words[0] for words in listed] == ["name", "default", "models:/faces/1", "faces"]
    # What was measured in training came along.
    assert line.split()[1] == listed[2][1] == listed[3][1]
    assert listed[2][2:] == ["registered,", "of", "run", "faces"]
    shown = "\n".join(cfer("models", "show", "models:/faces/1"))
    assert "happiness, surprise" in shown
    assert "GOPs of 12 frames in 12" in shown
    cfer("models", "export", "models:/faces/1", back)
    assert Path(given).read_bytes() == Path(back).read_bytes()


@pytest.mark.parametrize("name", ["nosuch", "models:/nosuch/1", "runs:/nosuch/model"])
def test_no_such_model(in_trained_store, name: str) -> None:
    with pytest.raises(InputError, match=name) as error:
        run(["models", "show", name])
    assert "MLFLOW_TRACKING_URI" in str(error.value)
