"""What a run has in its folder: its record, its checkpoints and its results."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cfer.data.shards import read_description
from cfer.errors import InputError, NotFinite
from cfer.train.checkpoint import (
    RECORD_NAME,
    SEAL_NAME,
    STATE_NAME,
    Results,
    newest_checkpoint,
    read_record,
    read_results,
    restore,
    save,
    write_record,
)
from cfer.train.config import OPERATIONAL, TrainConfig, config_of

CPU = torch.device("cpu")


def test_a_run_goes_on_with_its_own_settings_alone(drawn_shards: Path, tmp_path: Path) -> None:
    description = read_description(drawn_shards)
    config = TrainConfig(str(drawn_shards), run="mine", epochs=3)
    run = tmp_path / "mine"
    write_record(str(run), RECORD_NAME, config, description, "0f")
    record = json.loads((run / RECORD_NAME).read_text())

    def read(config: TrainConfig, people: list[str] | None = None, /, **noted: Any) -> str | None:
        (run / RECORD_NAME).write_text(json.dumps({**record, **noted}))
        return read_record(str(run), RECORD_NAME, config, description, people)

    assert read(config) == "0f"
    for field in fields(TrainConfig):
        other = {**record["config"], field.name: "other"}
        if field.name in (*OPERATIONAL, "method"):  # whose settings are fields themselves
            assert read(config, config=other) == "0f"
        else:
            with pytest.raises(InputError, match=r"--run mine: it was started with --\S+ other"):
                read(config, config=other)
    # An option that there was not yet is as if it had not been given.
    earlier = {name: value for name, value in record["config"].items() if name != "blur"}
    assert read(config, config=earlier) == "0f"
    with pytest.raises(InputError, match=r"started with --blur 0\.0, and now --blur is 2\.0"):
        read(replace(config, blur=2.0), config=earlier)
    with pytest.raises(InputError, match=r"started with data set \(SHA-256\) 0f, and now data set"):
        read(config, data_digest="0f")
    # The weights of an earlier cfer's network would fit, and mean something else.
    del record["stem_stride"]
    with pytest.raises(InputError, match="started with stem stride 2, and now stem stride is 4"):
        read(config)
    record["stem_stride"] = 4
    with pytest.raises(InputError, match=r"happiness.* was trained on joy"):
        read(config, classes=["joy", "surprise"])

    # A method is short for settings; who gives them one by one goes on with the same run.
    by_name = config_of({"data": "x", "run": "mine", "method": "cross-entropy", "epochs": 3})
    one_by_one = config_of({"data": "x", "run": "mine", "identity_weight": 0.0, "epochs": 3})
    assert read(one_by_one, config=asdict(by_name)) == "0f"

    # Cut otherwise, it would go on with people whom it has been trained on.
    assert read(config, ["S001"], held_out=["S001"]) == "0f"
    with pytest.raises(InputError, match="--run mine: it was started with other people held out"):
        read(config, ["S002"], held_out=["S001"])
    # An earlier cfer did not note who they were, and cut folds alone in another way.
    assert read(config, ["S002"]) == "0f"
    config = replace(config, folds="2", fold=0)
    record["config"] |= {"folds": "2", "fold": 0}
    with pytest.raises(InputError, match="by a cfer that cuts the data set in another way"):
        read(config, ["S002"])
    assert read_record(str(run), "other.json", config, description) is None
    assert os.listdir(run) == [RECORD_NAME]


def test_only_a_complete_checkpoint_counts(tmp_path: Path) -> None:
    for epoch, data, damage in ((1, b"one", b""), (2, b"two", b""), (3, b"three", b"x")):
        folder = tmp_path / f"epoch-{epoch:05d}"
        folder.mkdir()
        (folder / STATE_NAME).write_bytes(data + damage)
        seal = {"epoch": epoch, "sha256": hashlib.sha256(data).hexdigest()}
        (folder / SEAL_NAME).write_text(json.dumps(seal))
    (tmp_path / "epoch-00004").mkdir()
    (tmp_path / "epoch-00004" / SEAL_NAME).write_text('{"epoch": 4, "sha')
    (tmp_path / "epoch-00004" / STATE_NAME).write_bytes(b"four")
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "epoch-00002")
    assert newest_checkpoint(str(tmp_path / "nothing")) is None


def test_a_checkpoint_restores_what_was_saved_and_is_the_only_one(tmp_path: Path) -> None:
    saved, restored = nn.Linear(3, 2), nn.Linear(3, 2)
    assert restore(str(tmp_path), {"player": restored}, CPU) == ([], 0.0)
    save(str(tmp_path), {"player": nn.Linear(3, 2)}, [{"a": 1.0}], 2.0)
    save(str(tmp_path), {"player": saved}, [{"a": 1.0}, {"a": 0.5}], 3.5)
    assert restore(str(tmp_path), {"player": restored}, CPU) == ([{"a": 1.0}, {"a": 0.5}], 3.5)
    assert torch.equal(saved.weight, restored.weight)
    assert os.listdir(tmp_path) == ["epoch-00002"]
    assert json.loads((tmp_path / "epoch-00002" / SEAL_NAME).read_text())["epoch"] == 2
    with pytest.raises(InputError, match="epoch-00002: an earlier cfer wrote it"):
        restore(str(tmp_path), {"player": restored, "network": restored}, CPU)


def test_a_checkpoint_of_a_run_that_diverged_is_not_gone_on_with(tmp_path: Path) -> None:
    for diverged in ("player", "player_optimizer"):
        player = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(player.parameters(), fused=True)
        player(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        stateful: dict[str, Any] = {"player": player, "player_optimizer": optimizer}
        save(str(tmp_path), stateful, [{"a": 1.0}], 2.0)
        assert restore(str(tmp_path), stateful, CPU) == ([{"a": 1.0}], 2.0)
        with torch.no_grad():
            (player.weight if diverged == "player" else optimizer.state[player.weight]["exp_avg"])[
                1, 1
            ] = math.nan
        save(str(tmp_path), stateful, [{"a": 1.0}], 2.0)
        restored = nn.Linear(3, 2)
        before = restored.weight.detach().clone()
        with pytest.raises(
            NotFinite, match=rf"epoch-00001: {diverged} \S.*not finite: the run had"
        ):
            restore(
                str(tmp_path),
                {"player": restored, "player_optimizer": torch.optim.AdamW(restored.parameters())},
                CPU,
            )
        assert torch.equal(before, restored.weight)


def test_the_newest_checkpoint_while_the_run_goes_on(tmp_path: Path) -> None:
    """Of one that is removed while it is looked at, the next has been there before."""
    is_enough = threading.Event()

    def write() -> None:
        epoch = 0
        while not is_enough.is_set():
            epoch += 1
            save(str(tmp_path), {}, [{}] * epoch, 0.0)

    seen = {0}
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        try:
            while len(seen) < 100 and not writing.done():
                found = newest_checkpoint(str(tmp_path))
                epoch = 0 if found is None else int(found.rsplit("-", 1)[1])
                assert epoch >= max(seen)
                seen.add(epoch)
        finally:
            is_enough.set()
        writing.result()


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_results(str(tmp_path)) is None
    results = Results({"a": 0.5}, [[1, 0], [0, 1]], "0f", 6, ["S001", "S002"])
    (tmp_path / "results.json").write_text(json.dumps(asdict(results)))
    assert read_results(str(tmp_path)) == results
    earlier = {"figures": {"a": 0.5}, "confusion": [[1]], "mlflow_run_id": "0f"}
    (tmp_path / "results.json").write_text(json.dumps(earlier))
    assert read_results(str(tmp_path)) == Results({"a": 0.5}, [[1]], "0f", 0, [])
