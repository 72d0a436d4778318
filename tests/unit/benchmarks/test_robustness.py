"""What a model says of changed videos: the changes are those that their names say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, commands

from benchmarks import robustness
from benchmarks.__main__ import main
from benchmarks.robustness import CHANGES, Agreement, Change, measure
from cfer.codec import encode
from cfer.errors import InputError
from cfer.predict.recognizer import Recognizer
from cfer.video.faces import FaceWindow, crop, face_clip
from cfer.video.pictures import open_pictures, windows
from pipeline.datasets.drawing import DrawingSettings
from pipeline.datasets.synthetic import draw_dataset


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.from_pretrained()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 128 × 128, so that 3 % of a crop are more than a pixel."""
    folder, names = tmp_path_factory.mktemp("videos"), ["happiness", "surprise"]
    draw_dataset(folder, 1, DrawingSettings(picture_size=128), names)
    return [folder / "videos" / "S001" / f"{name}_1.mp4" for name in names]


UNCHANGED = Change("unchanged")
FPS = 24


def seen_in(recognizer: Recognizer, video: Path) -> list[FaceWindow]:
    """Windows of one GOP, of a second."""
    pictures = open_pictures(video)
    spans = windows(pictures.span(), FPS)
    card = recognizer.card
    return list(face_clip(pictures, card.size, recognizer._detector, card.codec, spans))


def said(recognizer: Recognizer, video: Path, change: Change) -> list[np.ndarray]:
    seen = seen_in(recognizer, video)
    return [p for _, p in robustness._says(recognizer, open_pictures(video), seen, change)]


def test_unchanged_is_what_predict_says(recognizer, videos):
    for video in videos:
        predictions = recognizer.predict(video, window_seconds=1, step_seconds=1)
        wanted = [list(p.probabilities.values()) for p in predictions]
        assert np.array_equal(said(recognizer, video, UNCHANGED), wanted)


def test_a_change_is_made_to_what_is_seen(recognizer, videos):
    """Each named change, against the same done by hand to the pictures."""
    card = recognizer.card
    (window,) = seen_in(recognizer, videos[0])
    assert window.square is not None
    square, codec = window.square, window.codec
    assert codec.quantizer is not None
    taken = codec.encoded_frames(24)
    whole = [picture for n, picture in enumerate(open_pictures(videos[0])) if n in taken]

    def by_hand(square=square, codec=codec, picture=lambda p: p) -> list[float]:
        crops = [picture(crop(p, square, card.size)) for p in whole]
        (found,) = recognizer.predict_bitstream(encode(crops, codec, codec.encoded_fps(window.fps)))
        return list(found.probabilities.values())

    step = round(0.03 * square.side)
    assert step > 1
    wanted = {
        "crop 3 % to the right": by_hand(replace(square, x=square.x + step)),
        "crop 3 % lower": by_hand(replace(square, y=square.y + step)),
        "mirrored": by_hand(picture=lambda p: np.ascontiguousarray(np.fliplr(p))),
        "darker, × 0.8": by_hand(picture=lambda p: np.rint(p * 0.8).astype(np.uint8)),
        "quantizer halved": by_hand(codec=replace(codec, quantizer=codec.quantizer // 2)),
        "quantizer doubled": by_hand(codec=replace(codec, quantizer=codec.quantizer * 2)),
    }
    plain = by_hand()
    changes = {change.name: change for change in CHANGES}
    for name, probabilities in wanted.items():
        assert probabilities != plain, name
        (found,) = said(recognizer, videos[0], changes[name])
        assert found == pytest.approx(probabilities, abs=1e-5), name


def test_a_later_window_is_other_frames_and_the_last_has_none(recognizer, videos, tmp_path):
    """Two videos as one: its first window half later holds half of each."""
    both = tmp_path / "both"
    both.mkdir()
    import cv2

    pictures = [picture for video in videos for picture in open_pictures(video)]
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(both / f"{number:03d}.png"), picture[:, :, ::-1])
    (later,) = [change for change in CHANGES if change.is_later]
    found = said(recognizer, both, later)
    assert len(said(recognizer, both, UNCHANGED)) == 2
    assert len(found) == 1
    first = seen_in(recognizer, both)[0]
    codec = first.codec
    crops = [
        crop(pictures[12 + n], first.square, recognizer.card.size) for n in codec.encoded_frames(24)
    ]
    (wanted,) = recognizer.predict_bitstream(encode(crops, codec, codec.encoded_fps(first.fps)))
    assert found[0] == pytest.approx(list(wanted.probabilities.values()), abs=1e-6)


def test_agreement_by_hand():
    before = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    after = np.array([[0.7, 0.3], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]])
    found = Agreement.of(before, after)
    assert found.windows == 4
    assert found.same_label == 0.75
    assert found.by_chance == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)
    assert found.difference == pytest.approx((0.2 + 0.4 + 0 + 0) / 4)
    assert Agreement.of(before, before).difference == 0


def test_videos_without_a_face_are_counted_or_an_error(recognizer, videos, tmp_path):
    import cv2

    empty = tmp_path / "empty"
    empty.mkdir()
    for number in range(24):
        cv2.imwrite(str(empty / f"{number:03d}.png"), np.full((128, 128, 3), 90, np.uint8))
    found = measure(recognizer, [videos[0], empty], "default")
    assert (found.videos, found.windows, found.with_a_face) == (2, 2, 1)
    assert sum(found.labels.values()) == 1
    assert set(found.agreement) == {change.name for change in CHANGES if not change.is_later}
    with pytest.raises(InputError, match="no face"):
        measure(recognizer, [empty], "default")


def test_the_documented_command_prints_the_table_that_the_page_has(videos, tmp_path, capsys):
    """Its form: the figures are of videos that are not part of the repository."""
    (command,) = commands("How robust the default model is", "docs/limits.md")
    assert command.startswith("cfer bench robustness videos/*.mp4 --json ")
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in command.split()]
    assert main(["robustness", str(videos[0]), *words[4:]]) == 0
    said = capsys.readouterr()
    page = (REPOSITORY / "docs" / "limits.md").read_text()
    page = page.partition("## How robust")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", said.out, re.M)
    assert [change.name for change in CHANGES if not change.is_later] == rows[1:]
    documented = re.findall(r"^\| (.*?) \|", page, re.M)
    assert documented == [*rows, CHANGES[-1].name]
    assert "animated photographs" in said.out
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["windows"] == 1
