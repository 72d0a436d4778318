"""The pages: their Python examples run, their commands have the options that they are given, and
what they point to is there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import as_cfer, check_options
from helpers import REPOSITORY, command_lines

import cfer
from cfer.cli import COMMANDS, run
from cfer.codec import Bitstream, CodecError
from cfer.data.inputs import Input
from cfer.data.shards import read_clips
from cfer.data.torch_dataset import NO_LABEL
from cfer.errors import InputError

CLUSTER_PAGE = REPOSITORY / "cluster" / "README.md"
PAGES = sorted([REPOSITORY / "README.md", CLUSTER_PAGE, *(REPOSITORY / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, drawn_videos: Path, drawn_shards: Path
) -> Path:
    """What the pages say is there: video.mp4, clip.mp4, shards."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(drawn_videos / "videos" / "S003" / "surprise_1.mp4", folder / "video.mp4")
    (folder / "shards").symlink_to(drawn_shards)
    files = [str(folder / "video.mp4"), str(folder / "clip.mp4")]
    assert run(["encode", *files, "--gop-size", "8", "--gop-seconds", "0"]) == 0
    return folder


# ---- pages ---------------------------------------------------------------------------------------


def examples() -> list[tuple[str, str]]:
    return [
        (page.name, code)
        for page in PAGES
        for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    ]


@pytest.mark.parametrize(("page", "code"), examples())
def test_an_example_runs(
    folder: Path,
    page: str,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip() or "print(" not in code


def test_there_are_examples_and_no_dead_links() -> None:
    assert len(examples()) >= 4
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for path in re.findall(r"(?<![\w/.-])(?:cfer|pipeline|tests)/[\w/]+\.py", page.read_text()):
            assert (REPOSITORY / path).exists(), f"{page.name}: {path}"


def written_commands() -> set[str]:
    """This project's commands in the blocks of the pages; not those that leave something out."""
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)
    ]
    ours = re.compile(
        r"(?:^|\| |&& |-- )((?:cfer |python -m cfer\.|python pipeline/|python -m benchmarks).*)"
    )
    found = [ours.search(line) for block in blocks for line in command_lines(block)]
    return {match[1] for match in found if match and "…" not in match[1]}


@pytest.mark.parametrize("command", sorted(written_commands()))
def test_a_command_of_the_pages_has_the_options_that_it_is_given(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/slow/test_docs.py runs some of them, too."""
    try:
        check_options(as_cfer(shlex.split(command)), monkeypatch)
    except (SystemExit, InputError) as error:
        pytest.fail(f"{command}: {error}")


def test_the_commands_are_found() -> None:
    names = {as_cfer(shlex.split(command))[0] for command in written_commands()}
    assert names == set(COMMANDS) - {"demo"}, (
        "each is in a block of the pages, the demo in another's"
    )


# ---- the package ---------------------------------------------------------------------------------


def test_the_names_of_the_package_are_there() -> None:
    for name in cfer.__all__:
        assert getattr(cfer, name).__name__ == name
    with pytest.raises(AttributeError, match="nosuchname"):
        _ = cfer.nosuchname


def test_gops_and_residuals_are_the_bitstreams(folder: Path) -> None:
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


def test_a_dataset_of_every_clip(drawn_shards: Path) -> None:
    """In the processes of a loader: tests/integration/test_cli.py."""
    clips = cfer.open_dataset(drawn_shards)
    wanted = list(read_clips(drawn_shards))
    assert len(clips) == len(wanted) == 10
    assert clips.clip_ids == [clip.clip_id for clip in wanted]
    assert clips.labels == [NO_LABEL if clip.label is None else clip.label for clip in wanted]
    batches = list(torch.utils.data.DataLoader(clips, batch_size=4))
    planes = torch.cat([batch["planes"] for batch in batches])
    assert planes.shape == (10, 2, 6, 32, 32)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == clips.labels
    clip = wanted[7]
    read = Input().read(Bitstream(clip.bitstream, clip.clip_id), range(2))
    assert np.array_equal(planes[7], read)
    torch.testing.assert_close(clips[7]["identity"], torch.tensor(clip.identity.mean(0)))
    assert cfer.open_dataset(drawn_shards, frames=3)[5]["planes"].shape == (3, 6, 32, 32)
