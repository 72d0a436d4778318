"""RAVDESS: 24 actors speak two sentences in eight emotions.

Where: https://zenodo.org/records/1188976, open (CC BY-NC-SA 4.0): `Video_Speech_Actor_01.zip` to
`Video_Speech_Actor_24.zip`, about 550 MB each. Unpack them into one folder, each in a folder of its
own or all together (`TREE`).

A name is modality (01 picture and sound, 02 picture alone, 03 sound alone), channel (01 speech,
02 song), emotion (01 neutral, calm, happy, sad, angry, fearful, disgust, 08 surprised), intensity,
statement, repetition and actor. A take has the same pictures in modalities 01 and 02, so the one
with sound is read where there is one, and the other otherwise. Songs and sound alone are left out.

2880 video files of speech: 60 takes × 2 modalities × 24 actors, hence 1440 clips (the record's own
description). Checked against that description, and public code that reads these folders.
"""

from __future__ import annotations

import re
from pathlib import Path

from cfer.errors import InputError
from cfer.video.files import is_video_name
from pipeline.datasets.layout import clip, files_below, layout_error, left_out, log, relative
from pipeline.manifest import Entry

NAME = "RAVDESS"
NOUN = "clips"
# The names count them from 01.
CLASSES = ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")
PUBLISHED = "1440 clips of 24 subjects"
TAKE = re.compile(
    r"(?P<modality>0[123])-"
    r"(?P<take>(?P<channel>0[12])-(?P<emotion>0[1-8])-0[12]-0[12]-0[12]-(?P<actor>[01]\d|2[0-4]))"
)
AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a")
TREE = """
ROOT/
├── Actor_01/
│   ├── 01-01-01-01-01-01-01.mp4
│   └── …
└── Video_Speech_Actor_02/           (or so)
    └── Actor_02/02-01-01-01-01-01-02.mp4 …
"""


def read(root: Path) -> list[Entry]:
    """One clip for each spoken take.

    Raises:
        InputError: not this layout, a take twice, or a file in another actor's folder.
    """
    if not root.is_dir():
        raise layout_error(root, NAME, TREE, "there is no such folder")
    takes: dict[str, dict[str, Path]] = {}
    songs, sounds, others = [], [], []
    for file in files_below(root):
        is_video = is_video_name(file.name)
        if not is_video and not file.name.lower().endswith(AUDIO_SUFFIXES):
            continue
        match = TAKE.fullmatch(file.stem)
        if match is None:
            if (copied := TAKE.search(file.stem)) is not None:
                raise InputError(
                    f"{file}: looks like a copy of {copied.group()}{file.suffix}; remove it"
                )
            others.append(relative(file, root))
        elif match["modality"] == "03" or not is_video:
            sounds.append(file.name)
        elif match["channel"] == "02":
            songs.append(file.name)
        else:
            _check_actor(file, root, match["actor"])
            take = takes.setdefault(match["take"], {})
            other = take.setdefault(match["modality"], file)
            if other != file:
                raise InputError(f"{other} and {file}: the same take twice; remove one of them")
    left_out(others, "files not named as RAVDESS's are")
    left_out(songs, "songs")
    left_out(sounds, "sound without pictures")
    num_twice = sum(len(files) > 1 for files in takes.values())
    if num_twice:
        log.info("%s: %d silent videos set aside: their takes have sound too", NAME, num_twice)
    if not takes:
        raise layout_error(root, NAME, TREE, "there is no video of speech in it")
    entries = []
    for name, files in takes.items():
        _, emotion, *_, number = name.split("-")
        actor, label = f"Actor_{number}", CLASSES[int(emotion) - 1]
        video = files[min(files)]
        entries.append(clip(video, root, NAME, f"{actor}/{name}", label, subject=actor))
    return entries


def _check_actor(file: Path, root: Path, actor: str) -> None:
    for folder in relative(file, root).split("/")[:-1]:
        named = re.search(r"actor_(\d+)", folder, re.IGNORECASE)
        if named is None:
            continue
        if int(named[1]) != int(actor):
            raise InputError(f"{file}: of actor {actor}, in the folder {folder}; move it")
        # An archive's own folder may be called what it likes beyond that.
        if named.start() == 0 and named.end() != len(folder):
            raise InputError(
                f"{file.parent}: looks like a copy of {file.parent.with_name(named.group())}; "
                "remove it, or merge them"
            )
