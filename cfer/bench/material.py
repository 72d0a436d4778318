"""What the benches run on: videos of one's own, or a drawn texture that moves."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np

from cfer.clips import open_pictures


def moving_texture(num_frames: int, size: int, seed: int = 0) -> list[np.ndarray]:
    """A blurred noise picture that drifts, turns and flickers: RGB, uint8 (size, size, 3) each."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (2 * size, 2 * size, 3)).astype(np.float32)
    base = cv2.GaussianBlur(noise, (0, 0), 3)
    base = (base - base.mean()) * 4 + 128
    pictures = []
    for t in range(num_frames):
        turn = cv2.getRotationMatrix2D((size, size), 1.5 * np.sin(t / 5), 1)
        turn[:, 2] += [5 * np.sin(t / 7) - size / 2, 4 * np.cos(t / 6) - size / 2]
        moved = cv2.warpAffine(base, turn, (size, size)) + 4 * np.sin(t / 3)
        pictures.append(np.clip(moved, 0, 255).astype(np.uint8))
    return pictures


def square_pictures(path: Path, size: int, max_frames: int) -> list[np.ndarray]:
    """The middle square of a video's first frames, scaled: RGB, uint8 (size, size, 3) each."""
    pictures = []
    for picture in itertools.islice(open_pictures(path), max_frames):
        side = min(picture.shape[:2])
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        pictures.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
    return pictures


def clips_of(videos: list[Path], size: int, max_frames: int) -> list[list[np.ndarray]]:
    """The pictures of each video; without a video, of two textures."""
    if videos:
        return [square_pictures(path, size, max_frames) for path in videos]
    return [moving_texture(max_frames, size, seed) for seed in range(2)]
