"""What a model says of changed videos: the changes are those that their names say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, commands

from benchmarks.__main__ import main
from benchmarks.robustness import (
    CHANGES,
    FINE_CRF,
    Agreement,
    Change,
    measure,
    says,
    says_natively,
)
from cfer.codec import CodecSettings, encode
from cfer.data.native import NativeVideo
from cfer.errors import InputError
from cfer.predict.recognizer import VARIATIONS, Recognizer, of_views
from cfer.video.faces import face_clip
from cfer.video.pictures import open_pictures
from cfer.video.windows import windows
from pipeline.datasets.drawing import DrawingSettings
from pipeline.datasets.made import write_video
from pipeline.datasets.synthetic import draw_dataset


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.from_pretrained().encoding_anew()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 128 × 128, so that 3 % of a crop are more than a pixel."""
    folder, names = tmp_path_factory.mktemp("videos"), ["happiness", "surprise"]
    draw_dataset(folder, 1, DrawingSettings(picture_size=128), names)
    return [folder / "videos" / "S001" / f"{name}_1.mp4" for name in names]


UNCHANGED = Change("unchanged")
FPS = 24


def said(recognizer: Recognizer, video: Path, change: Change) -> dict[int, np.ndarray]:
    pictures = open_pictures(video)
    spans = windows(pictures.times(), pictures.span(), pictures.fps, FPS)  # of one GOP, of a second
    _, found = says(recognizer, recognizer._detector, pictures, pictures, spans, [change])
    return found


def test_unchanged_is_what_predict_says(recognizer, videos):
    for video in videos:
        predictions = recognizer.predict(video, window_seconds=1, step_seconds=1)
        wanted = [list(p.probabilities.values()) for p in predictions]
        assert np.array_equal(list(said(recognizer, video, UNCHANGED).values()), wanted)


def test_a_change_is_made_to_what_is_seen(recognizer, videos):
    """Each named change, against the same done by hand to the pictures of each view."""
    card, pictures = recognizer.card, open_pictures(videos[0])

    def by_hand(
        right=0.0, down=0.0, larger=0.0, quantizer=card.codec.quantizer, picture=lambda p: p
    ) -> np.ndarray:
        variations = [
            replace(v, right=v.right + right, down=v.down + down, larger=v.larger + larger)
            for v in VARIATIONS
        ]
        (window,) = face_clip(
            pictures, card.size, recognizer._detector, card.codec, variations=variations
        )
        codec, fps = replace(window.codec, quantizer=quantizer), window.codec.encoded_fps(FPS)
        views = [encode([picture(p) for p in view], codec, fps) for view in window.views]
        planes = [card.what.read(view, range(1)) for view in views]
        planes += [card.what.mirrored(each) for each in planes]
        return of_views(recognizer.probabilities(np.stack(planes)))

    wanted = {
        "crop 3 % to the right": by_hand(right=0.03),
        "crop 3 % lower": by_hand(down=0.03),
        "crop 5 % larger": by_hand(larger=math.log(1.05)),
        "mirrored": by_hand(picture=lambda p: np.ascontiguousarray(np.fliplr(p))),
        "darker, × 0.8": by_hand(picture=lambda p: np.rint(p * 0.8).astype(np.uint8)),
        "quantizer halved": by_hand(quantizer=2),
        "quantizer doubled": by_hand(quantizer=8),
    }
    plain = by_hand()
    changes = {change.name: change for change in CHANGES}
    for name, probabilities in wanted.items():
        assert not np.array_equal(probabilities, plain), name
        (found,) = said(recognizer, videos[0], changes[name]).values()
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
    assert list(said(recognizer, both, UNCHANGED)) == [0, 1]
    found = said(recognizer, both, later)
    assert list(found) == [0]
    (window,) = face_clip(
        open_pictures(both),
        recognizer.card.size,
        recognizer._detector,
        recognizer.card.codec,
        [range(12, 36)],
        variations=VARIATIONS,
    )
    assert np.array_equal(found[0], recognizer.predict_views(window)[0])


def test_h264_that_is_read_as_it_is(native, videos, tmp_path):
    """A window is what `predict` reads of it, a crop is another square of the same stream, and a
    changed picture a video that holds it."""
    spans, detector = [range(FPS)], native._detector
    before, *after = says_natively(native, detector, open_pictures(videos[0]), spans, tmp_path)
    found = dict(zip([change.name for change in CHANGES], after, strict=True))
    ((name, plain),) = before.items()
    (predicted,) = native.predict(videos[0])
    assert (name, predicted.way) == (0, "native")
    assert plain == pytest.approx([*predicted.probabilities.values()], abs=1e-6)

    squares = [replace(v, right=v.right + 0.03) for v in VARIATIONS]
    window = NativeVideo(videos[0], detector).read(0, 1, 64, squares)
    moved = native.of_views(native.card.what.of_native(window.planes))
    assert found["crop 3 % to the right"][0] == pytest.approx(moved, abs=1e-6)
    assert moved != pytest.approx(plain, abs=1e-4)

    darker = [np.rint(picture * 0.8).astype(np.uint8) for picture in open_pictures(videos[0])]
    write_video(tmp_path / "darker.mp4", darker, FPS, FINE_CRF)
    (predicted,) = native.predict(tmp_path / "darker.mp4")
    assert found["darker, × 0.8"][0] == pytest.approx([*predicted.probabilities.values()], abs=1e-6)

    none = [name for name, said in found.items() if not said]
    assert none == ["quantizer halved", "quantizer doubled", "half a window later"]
    whole = measure({"native": native}, videos).models["native"]
    assert (whole.windows, whole.measured, whole.is_native) == (2, 2, True)
    assert set(whole.agreement) == {*found} - {*none}


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
    found = measure({"anew": recognizer}, [videos[0], empty]).models["anew"]
    assert (found.videos, found.windows, found.measured) == (2, 2, 1)
    assert sum(found.labels.values()) == 1
    assert set(found.agreement) == {change.name for change in CHANGES if not change.is_later}
    with pytest.raises(InputError, match="no face"):
        measure({"anew": recognizer}, [empty])


def test_videos_that_are_no_h264_are_measured_one_way(native, videos, tmp_path):
    pictures = list(open_pictures(videos[0]))
    encode(pictures, CodecSettings(), FPS).save(tmp_path / "mpeg4.mp4")
    models = {"native": native, "anew": native.encoding_anew()}
    found = measure(models, [tmp_path / "mpeg4.mp4"])
    assert [of.measured for of in found.models.values()] == [0, 1]
    table = found.table()
    assert "native: 0 of 1 windows of 1 videos read as H.264 transmits them.\n" in table
    assert re.search(r"^\| mirrored (\| – ){4}\| 1 \| ", table, re.M)


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
    assert rows == ["change", *(change.name for change in CHANGES)]
    assert re.findall(r"^\| (.*?) \|", page, re.M) == rows
    assert "default: 1 of 1 windows of 1 videos read as H.264 transmits them; of these" in said.out
    assert "default, encoded anew: 1 of 1 windows of 1 videos show a face; of these" in said.out
    last = said.out.partition(f"| {CHANGES[-1].name} |")[2].partition("\n")[0]
    assert set(last.replace(" ", "").strip("|").split("|")) == {"–"}  # one window has none later
    assert "animated photographs" in said.out
    (file,) = tmp_path.glob("*.json")
    figures = json.loads(file.read_text())["models"]
    assert [(name, of["is_native"]) for name, of in figures.items()] == [
        ("default", True),
        ("default, encoded anew", False),
    ]
