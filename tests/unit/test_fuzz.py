"""Bytes and text that anybody may have written: the readers answer with an error of ours, or read.

The examples are drawn anew from the same seed in each run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfer.codec import Bitstream, CodecSettings, encode
from cfer.codec.mpeg4 import CodecError, VideoObjectLayer
from cfer.data.folds import read_index
from cfer.errors import InputError
from cfer.model.card import CARD_NAME, read_model
from cfer.predict.models import default_path
from pipeline.manifest import read_csv

T = TypeVar("T")
examples = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@cache
def clip() -> bytes:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    return encode(pictures, CodecSettings(gop_size=3), 25).data


def read_or_refuse(read: Callable[[Any], T], path: Any) -> T | None:
    """What it reads; None where it refuses in words that name the file."""
    try:
        return read(path)
    except InputError as error:
        said = str(error)
    assert str(path) in said
    return None


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some bytes of it changed, repeated or left out, or its end."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        kind = draw(st.sampled_from(["change", "change", "change", "repeat", "remove", "cut"]))
        if kind == "change":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "remove":
            del data[at : at + length]
        else:
            del data[at:]
        if not data:
            break
    return bytes(data)


@examples
@given(st.binary(max_size=120))
def test_a_layer_header(header: bytes) -> None:
    for start in (b"", b"\x00\x00\x01\x20"):
        try:
            layer = VideoObjectLayer.parse(start + header, "fuzz")
        except CodecError:
            continue
        assert 0 <= layer.width < 1 << 13
        assert 0 <= layer.height < 1 << 13
        assert 1 <= layer.time_bits <= 16


@examples
@given(data=st.data())
def test_a_clip(data: st.DataObject) -> None:
    """The MP4's index, the headers and the frames."""
    try:
        bitstream = Bitstream(data.draw(damaged(clip())), "fuzz")
    except CodecError:
        return
    for gop, numbers in enumerate(bitstream.gops):
        for read in (
            lambda gop=gop: bitstream.accumulated_residuals(gop),
            lambda gop=gop: list(bitstream.gop_pictures(gop)),
            lambda numbers=numbers: [bitstream.direct_residual(n) for n in numbers[1:]],
        ):
            with suppress(CodecError):
                assert len(read()) in (len(numbers), len(numbers) - 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@cache
def model_parts() -> tuple[dict[str, Any], bytes]:
    data = default_path().read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@examples
@given(data=st.data())
def test_a_model_card(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    header, weights = model_parts()
    card = json.loads(header["__metadata__"][CARD_NAME])
    card |= {"temperature": 1.5, "recall_by_group": {"age": {"20": [1, 2]}}}
    place = card
    path = data.draw(
        st.sampled_from(
            [(key,) for key in card]
            + [(key, inner) for key in ("codec", "what", "network") for inner in card[key]]
        )
    )
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()):
        place[path[-1]] = data.draw(JSON)
    else:
        del place[path[-1]]
    header = {**header, "__metadata__": {CARD_NAME: json.dumps(card)}}
    text = json.dumps(header).encode()
    file = tmp_path_factory.mktemp("model") / "fuzz.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + weights)
    found = read_or_refuse(read_model, file)
    if found is not None:
        read = found[1]
        assert len(read.classes) == len(set(read.classes)) == read.network.num_classes


@examples
@given(data=st.data())
def test_a_model_file(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = default_path().read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    file = tmp_path_factory.mktemp("model") / "fuzz.safetensors"
    file.write_bytes(data.draw(damaged(whole[: 8 + length])) + whole[8 + length :])
    read_or_refuse(read_model, file)


CELLS = st.text(
    st.sampled_from(list("ab.,;\"'\n\r\t\0/ \\é")) | st.characters(codec="utf-8"), max_size=12
)


@examples
@given(
    header=st.lists(st.sampled_from(["path", "label", "subject", "fps", "apex_frame", "x"])),
    rows=st.lists(st.lists(CELLS, max_size=6), max_size=4),
    separator=st.sampled_from([",", ",", ";", "\t"]),
)
def test_a_manifest(
    header: list[str],
    rows: list[list[str]],
    separator: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("manifest") / "fuzz.csv"
    lines = [separator.join(cells) for cells in [header, *rows]]
    file.write_bytes("\n".join(lines).encode())
    entries = read_or_refuse(read_csv, file)
    if entries is not None:
        assert len({entry.clip_id for entry in entries}) == len(entries)


@examples
@given(data=st.data())
def test_the_description_of_a_data_set(
    data: st.DataObject, drawn_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    for file in drawn_shards.iterdir():
        whole = file.read_bytes()
        is_text = file.suffix == ".json"
        (folder / file.name).write_bytes(data.draw(damaged(whole)) if is_text else whole)
    read_or_refuse(read_index, str(folder))
