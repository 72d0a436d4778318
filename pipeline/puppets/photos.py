"""Photographs of faces with landmarks, seen in the frame of the face.

Two sets have the landmarks that this needs, 189 a face, in a `.tem` file beside each picture (the
template of WebMorph, DeBruine 2018): the Face Research Lab London Set and Young Adult White Faces,
both by DeBruine and Jones. Any other folder of pictures with such files will do.

The *face frame*: its origin is midway between the pupils, whose distance is 1; x points to the
right of the picture, y down. All lengths are in this unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cfer.errors import InputError

NUM_LANDMARKS = 189
PICTURES = (".jpg", ".jpeg", ".png")
# The part of the face frame that is kept of a photograph.
LEFT, TOP, EXTENT = -2.7, -2.4, 5.5
TEXTURE = 96  # pixels to the unit
MATTE = 40  # pixels to the unit of the matte, and of whatever else changes slowly
PUPILS = (0, 1)
MOUTH_CORNERS = (87, 93)
CHIN = 129
JAW = (125, 126, 127, 128, 129, 130, 131, 132, 133)
OUTLINE = (116, *JAW, 123, 144, 142, 139, 136, 134)  # of the face, up to the hair


@dataclass(frozen=True)
class Photograph:
    """A neutral face, from the front.

    Attributes:
        person: whose; the same in every photograph of that person.
        picture, landmarks: the two files.
        smile: another photograph, of the same person's smile, if there is one.
    """

    person: str
    picture: Path
    landmarks: Path
    smile: Path | None = None


def photographs_below(root: Path) -> list[Photograph]:
    """Every photograph below a folder that has landmarks, sorted by person.

    A person's name is the file's up to its first underscore: `neutral_front/001_03.jpg` is 001, and
    `smiling_front/001_08.jpg` that person's smile. Hidden files (`._001_03.tem`) are not looked at.

    Raises:
        InputError: there is none, two are of one person, or one has landmarks and no picture.
    """
    found: dict[str, Photograph] = {}
    for landmarks in sorted(root.rglob("[!.]*.tem")):
        pictures = [landmarks.with_suffix(suffix) for suffix in PICTURES]
        picture = next((path for path in pictures if path.exists()), None)
        if picture is None:
            raise InputError(
                f"{landmarks}: there is no picture of this name ({', '.join(PICTURES)}) beside it; "
                "put it there, or remove the file"
            )
        person = landmarks.stem.split("_")[0]
        if person in found:
            raise InputError(
                f"{picture} and {found[person].picture}: both are called {person}, which names one "
                "person; rename one, or remove it"
            )
        smiles = sorted((landmarks.parent.parent / "smiling_front").glob(f"{person}_*"))
        smile = next((path for path in smiles if path.suffix.lower() in PICTURES), None)
        found[person] = Photograph(person, picture, landmarks, smile)
    if not found:
        raise InputError(
            f"{root}: no photograph with landmarks in it; give the folder of photographs, with a "
            ".tem file beside each (docs/data.md says where to get some)"
        )
    return [found[person] for person in sorted(found)]


def read_landmarks(path: Path) -> np.ndarray:
    """The points of a template, float64 (189, 2): pixels, x and y.

    Raises:
        InputError: it is no template of so many points.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        count = int(lines[0])
        points = np.array(
            [[float(word) for word in line.split()[:2]] for line in lines[1 : count + 1]]
        )
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path}: is not a template of landmarks ({error}); replace it") from error
    if points.shape != (NUM_LANDMARKS, 2) or not np.isfinite(points).all():
        raise InputError(
            f"{path}: has {len(points)} landmarks, and {NUM_LANDMARKS} are needed; give a template "
            "of the London set's kind"
        )
    return points


def read_picture(path: Path) -> np.ndarray:
    """RGB, uint8 (H, W, 3).

    Raises:
        InputError: it can't be read.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"{path}: is not a picture that can be read; replace it")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class FaceFrame:
    """Where the face frame lies in a photograph: pixels = `scale` @ units + `origin`."""

    scale: np.ndarray
    origin: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray) -> FaceFrame:
        """From landmarks in pixels."""
        left, right = points[PUPILS[0]], points[PUPILS[1]]
        along = right - left
        return cls(np.array([[along[0], -along[1]], [along[1], along[0]]]), (left + right) / 2)

    @property
    def unit(self) -> float:
        """Pixels to the unit."""
        return float(np.hypot(*self.scale[:, 0]))

    def units(self, points: np.ndarray) -> np.ndarray:
        """Pixels → units, (N, 2)."""
        inverse: np.ndarray = np.linalg.inv(self.scale)
        return (points - self.origin) @ inverse.T

    def view(self, photo: np.ndarray, unit: float, border: int) -> np.ndarray:
        """The kept part of the face frame, `unit` pixels to the unit, square."""
        shrink = min(1.0, 1.5 * unit / self.unit)
        if shrink < 1:  # sampled as it is, a much larger photograph would flicker
            photo = cv2.resize(photo, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        corner = self.scale @ (np.array([LEFT, TOP]) + 0.5 / unit) + self.origin
        matrix = np.column_stack([shrink * self.scale / unit, shrink * corner - 0.5])
        side = round(EXTENT * unit)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(photo, matrix, (side, side), flags=flags, borderMode=border)


@dataclass(frozen=True)
class Face:
    """A person's neutral face in the face frame.

    Attributes:
        name: the person's.
        points: landmarks, float64 (189, 2), in units.
        texture: RGB, uint8, `TEXTURE` pixels to the unit; what was behind the person is replaced by
            the color of the nearest hair, skin or cloth.
        matte: float32 in [0, 1], `MATTE` pixels to the unit: 1 is the person.
        reach: how far the photograph reaches from the origin, in units: to either side, up, down.
    """

    name: str
    points: np.ndarray
    texture: np.ndarray
    matte: np.ndarray
    reach: tuple[float, float, float]

    @classmethod
    def read(cls, photograph: Photograph) -> Face:
        """From its two files.

        Raises:
            InputError: one of them isn't right, or they don't belong together.
        """
        photo, points = read_picture(photograph.picture), read_landmarks(photograph.landmarks)
        height, width = photo.shape[:2]
        face = points[list(JAW)]
        if (face < 0).any() or (face >= (width, height)).any() or np.ptp(face[:, 0]) < 32:
            raise InputError(
                f"{photograph.landmarks}: its face does not lie in {photograph.picture.name}, "
                f"which has {width} × {height} pixels; give the picture in the size of its template"
            )
        frame = FaceFrame.of(points)
        texture = frame.view(photo, TEXTURE, cv2.BORDER_REPLICATE)
        inside = frame.view(np.full((height, width), 255, np.uint8), MATTE, cv2.BORDER_CONSTANT)
        corners = frame.units(np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
        (left, up), (right, down) = corners.min(axis=0), corners.max(axis=0)
        reach = float(min(-left, right)), float(-up), float(down)
        units = frame.units(points)
        matte, texture = cut_out(texture, units, inside)
        return cls(photograph.person, units, texture, matte, reach)


def cut_out(
    texture: np.ndarray, points: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The matte of a person before a plain wall, and the texture without the wall's color.

    The wall is a smooth surface of color; what differs from it is the person. GrabCut (Rother et
    al., SIGGRAPH 2004) settles what differs a little, and a guided filter (He et al., PAMI 2013)
    the hair's edge. Face and shoulders are where the landmarks say: a white shirt hardly differs.
    """
    side = len(inside)
    small = cv2.resize(texture, (side, side), interpolation=cv2.INTER_AREA)
    xs = LEFT + (np.arange(side) + 0.5) / MATTE
    ys = TOP + (np.arange(side) + 0.5) / MATTE
    x, y = np.meshgrid(xs, ys)
    chin = points[CHIN, 1]
    shoulders = y > chin + 0.55 + 0.34 * np.clip(np.abs(x) - 0.7, 0, None)
    outside = (inside < 128) & (y < chin)
    wall = _wall(small, x, y, (np.abs(x) > 1.4) & (y < chin - 0.3) & ~outside)
    distance: np.ndarray = np.linalg.norm(small - wall, axis=-1)
    labels = np.full((side, side), cv2.GC_PR_BGD, np.uint8)
    labels[distance > 20] = cv2.GC_PR_FGD
    labels[distance > 60] = cv2.GC_FGD
    labels[distance < 7] = cv2.GC_BGD
    outline = points[list(OUTLINE)]
    pixels = np.round((outline - (LEFT, TOP)) * MATTE).astype(np.int32)
    cv2.fillPoly(labels, [pixels], cv2.GC_FGD)
    labels[(y > chin - 0.1) & (np.abs(x) < 0.5)] = cv2.GC_FGD
    labels[shoulders] = cv2.GC_FGD
    labels[outside] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, (0, 0, 0, 0), *models, 2, cv2.GC_INIT_WITH_MASK)
    sure = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    # One piece without holes.
    _, pieces = cv2.connectedComponents(sure)
    center = pieces[np.abs(ys).argmin() + 20, np.abs(xs).argmin()]
    sure = (pieces == center).astype(np.uint8)
    contours, _ = cv2.findContours(sure, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    sure = cv2.drawContours(np.zeros_like(sure), contours, -1, 1, cv2.FILLED)
    sure[labels == cv2.GC_BGD] = 0  # between curls
    matte = _guided(small.astype(np.float32) / 255, sure.astype(np.float32), 5, 1e-4)
    matte = np.clip((matte - 0.25) / 0.65, 0, 1).astype(np.float32)
    matte[outside] = 0
    matte[:4] = 0  # hair that is taller: cut, not drawn out
    # What is half wall: without the wall's part, or as the person nearby, so that no pale line is
    # left around the hair.
    solid = (matte > 0.95).astype(np.float32)
    filled, weight = small.astype(np.float32) * solid[..., None], solid
    for sigma in (1.5, 4, 12):
        color = cv2.GaussianBlur(filled, (0, 0), sigma)
        share = cv2.GaussianBlur(weight, (0, 0), sigma)
        new = (weight < 0.5) & (share > 0.02)
        filled[new] = color[new] / share[new][:, None]
        weight = np.where(new, 1, weight).astype(np.float32)
    size = (texture.shape[1], texture.shape[0])
    alpha = cv2.resize(matte, size)[..., None]
    behind = cv2.resize(wall.astype(np.float32), size)
    unmixed = (texture - (1 - alpha) * behind) / np.maximum(alpha, 0.5)
    sureness = np.clip((alpha - 0.4) / 0.4, 0, 1)
    clean = unmixed * sureness + cv2.resize(filled, size) * (1 - sureness)
    return matte, np.clip(np.where(alpha > 0.99, texture, clean), 0, 255).astype(np.uint8)


def _wall(picture: np.ndarray, x: np.ndarray, y: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """The wall's color, also behind the person: a quadratic surface, float (H, W, 3).

    Args:
        beside: where there is wall for the most part, and some hair.
    """
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    values = picture.astype(np.float64)
    kept = beside.copy()
    for _ in range(4):  # each time without what did not fit the time before
        weights = np.linalg.lstsq(terms[kept], values[kept], rcond=None)[0]
        wall: np.ndarray = terms @ weights
        distance = np.linalg.norm(values - wall, axis=-1)
        kept = beside & (distance < max(2.5 * float(np.median(distance[kept])), 6))
    return wall


def _guided(guide: np.ndarray, mask: np.ndarray, radius: int, least: float) -> np.ndarray:
    """The guided filter with a gray guide."""
    gray = cv2.cvtColor(guide, cv2.COLOR_RGB2GRAY)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1))

    gray_mean, mask_mean = mean(gray), mean(mask)
    slope = (mean(gray * mask) - gray_mean * mask_mean) / (mean(gray * gray) - gray_mean**2 + least)
    offset = mask_mean - slope * gray_mean
    return mean(slope) * gray + mean(offset)
