"""Pictures of a puppet: a rig, moved as an actor's curves say, before a background, in some light.

Each output pixel is traced back to the neutral photograph: through the camera, the head and the
action units (a displacement is inverted by fixed-point steps, on a coarse grid), past the lids,
which cover the eye and do not squash it. Between the parted lips are teeth and dark.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.puppets.acting import Clip, Style
from pipeline.puppets.photos import CHIN, EXTENT, LEFT, TEXTURE, TOP
from pipeline.puppets.rig import GRID, JAW_DROP, OWN, SHADE, Rig

COARSE = 64  # points to a side of the grid on which displacements are inverted
STEPS = 10
TOOTH = np.array([222, 212, 196], np.float32)
DARK, TONGUE = np.array([46, 20, 20], np.float32), np.array([135, 66, 64], np.float32)


class Stage:
    """One clip's camera, light and background.

    Args:
        rig: whose.
        style: how that person's folds and teeth look.
        clip: what is done.
        r: the clip's randomness.
        size: side of the pictures, pixels.
    """

    def __init__(
        self, rig: Rig, style: Style, clip: Clip, r: np.random.Generator, size: int = 256
    ) -> None:
        self.rig, self.style, self.curves, self.size, self.r = rig, style, clip.curves, size, r
        # A photograph that is narrow is looked at from nearer, so that its edges stay out of view.
        side, up, down = rig.face.reach
        nearest = size / 2 / max(min(side, 2.6) - 0.12, 1)
        self.unit = float(max(r.uniform(0.19, 0.275) * size, nearest))
        half = size / 2 / self.unit
        self.center = np.array([r.normal(0, 0.10), 0.5 + r.normal(0, 0.12)])
        room = max(min(side, 2.6) - 0.1 - half, 0)
        self.center[0] = np.clip(self.center[0], -room, room)
        lowest = min(down, TOP + EXTENT) - 0.05 - half
        self.center[1] = min(max(self.center[1], half - up + 0.05), max(lowest, 0.2))
        self.roll = r.normal(0, 0.04)
        steps = ((np.arange(COARSE) + 0.5) * size / COARSE - size / 2) / self.unit
        self.coarse = np.stack(np.meshgrid(steps, steps), axis=-1).astype(np.float32)
        self.texture = self._lit_texture()
        self.pixels = len(self.texture) / EXTENT
        self.matte = cv2.resize(rig.face.matte, (len(self.texture), len(self.texture)))
        self.background = self._background()
        self.noise = self._noise()
        self.fold = style.fold * r.uniform(0.7, 1.2)
        self.where = {name: number for number, name in enumerate(rig.names)}
        self.shade_where = {name: number for number, name in enumerate(rig.shade_names)}

    def _lit_texture(self) -> np.ndarray:
        """The photograph as this clip's camera would see it: its sharpness, exposure, cloth."""
        r, face, own = self.r, self.rig.face, self.rig.own_smile
        side = int(EXTENT * min(self.unit * 1.25, TEXTURE))
        blur, gamma = r.uniform(0, 1.1), np.exp(r.normal(0, 0.15))
        self.gain = float(np.exp(np.clip(r.normal(-0.12, 0.15), -0.55, 0.08)))
        self.tint = np.exp(r.normal(0, 0.03, 3))
        levels = np.arange(256) / 255
        curve = (255 * self.gain * self.tint[:, None] * levels[None] ** gamma).astype(np.float32)

        def lit(full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            small = cv2.resize(full, (side, side), interpolation=cv2.INTER_AREA)
            if blur > 0.45:
                small = cv2.GaussianBlur(small, (0, 0), blur)
            return small, np.stack([curve[c][small[..., c]] for c in range(3)], axis=-1)

        small, neutral = lit(face.texture)
        # What a full smile adds to the neutral face's color.
        self.smile = None
        if own is not None:
            share = cv2.resize(own.share, (side, side), interpolation=cv2.INTER_AREA)
            self.smile = (lit(own.texture)[1] - neutral) * share[..., None]
        return self._dressed(neutral, small)

    def _dressed(self, lit: np.ndarray, texture: np.ndarray) -> np.ndarray:
        """White shirts in other colors: a hundred people in white would be a class of their own."""
        chin = self.rig.face.points[CHIN, 1]
        y = TOP + (np.arange(len(lit)) + 0.5) / len(lit) * EXTENT
        darkest = texture.min(axis=-1).astype(np.float32)
        colorful = texture.max(axis=-1) - darkest
        white = np.clip((darkest - 180) / 20, 0, 1) * np.clip((24 - colorful) / 8, 0, 1)
        cloth = white * np.clip((y - chin - 0.3) / 0.15, 0, 1)[:, None]
        cloth = cv2.medianBlur((cloth * 255).astype(np.uint8), 9)
        # A shirt hangs over a shoulder; what is white elsewhere is light on a neck.
        _, pieces = cv2.connectedComponents((cloth > 60).astype(np.uint8))
        over = np.unique(pieces[-1, [len(lit) // 8, -len(lit) // 8]])
        cloth[~np.isin(pieces, over[over > 0])] = 0
        cloth = cv2.GaussianBlur(cloth, (0, 0), 1)
        dye = np.clip(self.r.uniform(0.12, 1.0) * (1 + self.r.normal(0, 0.10, 3)), 0.08, 1)
        share = (cloth.astype(np.float32) / 255)[..., None]
        return (lit * (1 - share * (1 - dye))).astype(np.float32)

    def _background(self) -> np.ndarray:
        """A wall with a fall of light; or a room out of focus. A margin for the camera's shake."""
        r, side = self.r, self.size + 32
        base = r.uniform(60, 215)
        color = base * (1 + np.clip(r.normal(0, 0.045, 3), -0.12, 0.12))
        x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
        angle = r.uniform(0, 2 * np.pi)
        light = 1 + r.uniform(0, 0.25) * (x * np.cos(angle) + y * np.sin(angle))
        wall = color[None, None] * light[..., None]
        if r.random() < 0.5:
            for _ in range(r.integers(2, 7)):  # furniture, windows, doors
                x0, y0 = r.uniform(-0.2, 1, 2) * side
                w, h = r.uniform(0.1, 0.6, 2) * side
                shade = color * r.uniform(0.35, 1.35) * (1 + r.normal(0, 0.06, 3))
                wall[
                    int(max(y0, 0)) : int(max(y0 + h, 0)), int(max(x0, 0)) : int(max(x0 + w, 0))
                ] = shade
            wall = cv2.GaussianBlur(wall, (0, 0), r.uniform(1.5, 9))
        rough = cv2.GaussianBlur(r.normal(0, 1, (side, side)), (0, 0), r.uniform(1, 12))
        wall = wall + (r.uniform(0, 3.5) * rough / rough.std())[..., None]
        return np.clip(wall, 4, 250).astype(np.float32)

    def _noise(self) -> np.ndarray:
        side = self.size + 64
        noise = self.r.normal(0, self.r.uniform(0.5, 3.2), (side, side, 3)).astype(np.float32)
        if self.r.random() < 0.5:
            noise = cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.6
        return noise

    def frame(self, number: int) -> np.ndarray:
        """One picture: RGB, uint8 (size, size, 3)."""
        rig, size = self.rig, self.size
        now = {name: float(curve[number]) for name, curve in self.curves.items()}
        seen = self._camera(now)
        upper, lower = (self._neutral(seen, fields, now) for fields in (rig.upper, rig.lower))
        # Only near the lips do the two differ.
        lip_row = (rig.lip_line[1, 1:-1].mean() - TOP) * GRID / EXTENT - 0.5
        near = np.flatnonzero((np.abs(upper[..., 1] - lip_row) < 0.9 * GRID / EXTENT).any(axis=1))
        rows = slice(near[0], near[-1] + 1) if len(near) else slice(0, 0)
        upper_lip, lower_lip = _units(upper[rows]), _units(lower[rows])
        lip = rig.lip_line
        above = upper_lip[..., 1] - np.interp(upper_lip[..., 0], *lip).astype(np.float32)
        below = lower_lip[..., 1] - np.interp(lower_lip[..., 0], *lip).astype(np.float32)
        gap = np.clip(np.minimum(above, -below) * self.unit, 0, 1)
        for part in (upper_lip, lower_lip):
            inside = np.minimum(part[..., 0] - lip[0, 1], lip[0, -2] - part[..., 0])
            gap *= np.clip(inside * self.unit - 0.5, 0, 1)
        upper[rows][above > 0] = lower[rows][above > 0]
        upper[rows.stop :] = lower[rows.stop :]
        places = _units(upper)
        self._lids(places, now)
        places -= (LEFT, TOP)
        texture = self.texture
        if self.smile is not None and now[OWN] > 1e-3:
            texture = texture + now[OWN] * self.smile
        at = places * np.float32(self.pixels) - np.float32(0.5)
        picture = _at(texture, at)
        alpha = _at(self.matte, at)
        at = places * np.float32(SHADE) - np.float32(0.5)
        shade = self._shade(now)
        brightness = _at(shade, at)
        picture *= brightness[..., None]
        if gap.size and gap.max() > 0.1:
            light = brightness[rows]
            self._mouth(picture[rows], gap, above, self._places(seen)[rows], now, light)
        dx, dy = (
            round(16 - float(np.clip(now[name] * self.unit, -15, 15)))
            for name in ("camera right", "camera down")
        )
        behind = self.background[dy : dy + size, dx : dx + size]
        picture -= behind
        picture *= alpha[..., None]
        picture += behind
        picture *= np.float32(np.exp(now["gain"]))
        dy, dx = self.r.integers(0, 64, 2)
        picture += self.noise[dy : dy + size, dx : dx + size]
        return np.clip(picture, 0, 255, out=picture).astype(np.uint8)

    def _camera(self, now: dict[str, float]) -> np.ndarray:
        """Where in the face frame each point of the coarse grid lies, if nothing had moved: in
        steps of the rig's grid, float32 (COARSE, COARSE, 2)."""
        roll, zoom = self.roll + now["camera roll"], 1 + now["camera zoom"]
        turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]]) / zoom
        moved = self.center - (now["camera right"], now["camera down"])
        units = self.coarse @ turn.T + moved - (LEFT, TOP)
        return (units * (GRID / EXTENT) - 0.5).astype(np.float32)

    def _neutral(self, seen: np.ndarray, fields: np.ndarray, now: dict[str, float]) -> np.ndarray:
        """Where in the neutral face each output pixel comes from, in steps of the rig's grid:
        float32 (size, size, 2)."""
        weights = np.zeros(len(self.rig.names), np.float32)
        for name, position in self.where.items():
            weights[position] = now.get(name, 0)
        for name in ("yaw", "pitch"):
            weights[self.where[name]] = np.sin(now[name])
            weights[self.where[name + "2"]] = 1 - np.cos(now[name])
        field = (weights @ fields).reshape(GRID, GRID, 2) * np.float32(GRID / EXTENT)
        places = seen
        for _ in range(STEPS):
            places = seen - _at(field, places)
        return self._places(places)

    def _places(self, coarse: np.ndarray) -> np.ndarray:
        """From the coarse grid to every pixel."""
        return cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_LINEAR)

    def _lids(self, places: np.ndarray, now: dict[str, float]) -> None:
        """Move what lies at the eyes: lids over the eyeballs, irises under the lids."""
        for (upper, lower), side in zip(self.rig.lids, "LR", strict=True):
            lid, tight = now["upper lid"], now["lower lid"] + 0.25 * now["6" + side]
            closed = max(now["blink"], float(np.clip(-0.6 * lid + 0.1 * tight, 0, 1)))
            wide = max(lid, 0) * (1 - now["blink"]) * 0.055
            look = np.array([now["look right"], now["look down"]])
            x0, x1 = upper[0, 0], upper[-1, 0]
            near = (places[..., 0] > x0) & (places[..., 0] < x1)
            near &= (places[..., 1] > upper[:, 1].min() - 0.24) & (
                places[..., 1] < lower[:, 1].max() + 0.22
            )
            rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
            if not len(rows):
                continue
            part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            x, y, near = places[part][..., 0], places[part][..., 1], near[part]
            top, bottom = np.interp(x, *upper.T), np.interp(x, *lower.T)
            height = np.maximum(bottom - top, 0)
            ends = np.clip(height / 0.06, 0, 1)
            low = bottom - np.clip(tight, 0, 1.2) * 0.3 * height
            high = np.minimum(top + closed * height - wide * ends, low - 0.01 * height)
            brow, cheek = top - 0.17, bottom + 0.2
            moved = y.copy()
            skin = (y > brow) & (y <= high)
            moved[skin] = (brow + (y - brow) * (top - brow) / (high - brow))[skin]
            skin = (y >= low) & (y < cheek)
            moved[skin] = (cheek - (cheek - y) * (cheek - bottom) / (cheek - low))[skin]
            ball = (y > high) & (y < low)
            # Opened wider, an eye shows more of the ball: what was there is stretched.
            stretched = ball & (high < top)
            moved[stretched] = (
                bottom - (bottom - y) * (bottom - top) / np.maximum(bottom - high, 1e-3)
            )[stretched]
            middle = (upper.mean(axis=0) + lower.mean(axis=0)) / 2
            pull = np.exp(-0.5 * ((x - middle[0] - look[0]) / 0.11) ** 2) * ball * near
            places[part][..., 1] = np.where(near, moved, y) - (pull * look[1]).astype(np.float32)
            places[part][..., 0] = x - (pull * look[0]).astype(np.float32)

    def _shade(self, now: dict[str, float]) -> np.ndarray:
        """Brightness by place in the neutral face, float32 (side, side), around 1."""
        weights = np.zeros(len(self.shade_where), np.float32)

        def put(name: str, weight: float) -> None:
            weights[self.shade_where[name]] = weight

        for s in "LR":
            smile = max(now["12" + s], 0)
            put("smile" + s, 1.25 * smile)
            fold = 0.06 * smile + 0.16 * now["10" + s] + 0.13 * now["9" + s]
            put("cheek fold" + s, max(fold, 0))
            put("frown" + s, max(0.15 * now["4" + s] + 0.05 * now["9" + s], 0))
            put("crow's feet" + s, max(0.06 * now["6" + s], 0))
            put("bag" + s, max(0.06 * now["6" + s] + 0.06 * now["lower lid"], 0))
            put("dimple" + s, max(0.15 * now["14" + s], 0))
        raised = sum(now[name + s] for name in ("1", "2") for s in "LR")
        put("forehead", max(0.022 * raised, 0))
        put("nose", max(0.07 * (now["9L"] + now["9R"]), 0))
        put("chin", max(0.10 * now["17"], 0))
        weights *= self.fold
        put("light right", now["light right"])
        put("light down", now["light down"])
        side = round(EXTENT * SHADE)
        return np.exp(np.clip(weights @ self.rig.shades, -0.8, 0.35)).reshape(side, side)

    def _mouth(
        self, picture: np.ndarray, gap: np.ndarray, above: np.ndarray, seen: np.ndarray,
        now: dict[str, float], brightness: np.ndarray,
    ) -> None:  # fmt: skip
        """Paint what is between the lips. Upper teeth stay with the head, lower ones go with the
        jaw; they are as light in dark faces as in pale ones, and in the shade of the lip."""
        columns, rows = np.flatnonzero((gap > 0).any(axis=0)), np.flatnonzero((gap > 0).any(axis=1))
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        full = _units(seen[part])
        lip = self.rig.lip_line
        left, right = lip[0, 1], lip[0, -2]
        middle, half = (left + right) / 2, (right - left) / 2
        lip_y = float(np.interp(middle, *lip))
        depth = 0.85  # of the teeth before the neck
        x = full[..., 0] - np.float32(middle + now["right"] + depth * np.sin(now["yaw"]))
        y = full[..., 1] - np.float32(lip_y + now["down"] + depth * np.sin(now["pitch"]))
        roll = np.float32(now["roll"])
        x, y = x + roll * y, y - roll * x
        style = self.style
        width, white = style.tooth
        arch = np.abs(x) / half
        edge = style.teeth - 0.03 * np.clip(arch, 0, 1.3) ** 2
        sharp = 0.9 * self.unit
        upper = np.clip((edge - y) * sharp + 0.5, 0, 1)
        jaw = JAW_DROP * now["26"] + 0.065 * now["25"] * 0.3
        lower = np.clip(
            (y - (style.teeth + 0.02 + 0.95 * jaw + 0.02 * arch**2)) * sharp + 0.5, 0, 1
        )
        apart = np.abs((x / width) % 1 - 0.5)
        seams = 1 - 0.10 * np.exp(-0.5 * ((apart - 0.5) / 0.07) ** 2)
        seams *= np.clip(1.06 - 0.55 * arch**2, 0.3, 1)
        light = self.gain * self.tint.astype(np.float32)
        tooth = TOOTH * white * light
        inner = np.clip(y / 0.4, 0, 1) * np.clip(now["26"], 0, 1) * 0.8
        hollow = (DARK + (TONGUE - DARK) * inner[..., None]) * light
        teeth = np.maximum(upper, 0.85 * lower)[..., None]
        shadow = np.clip(0.62 + 5 * above[part], 0.5, 1)
        mouth = hollow * (1 - teeth) + tooth * seams[..., None] * teeth
        mouth = mouth * (shadow * np.clip(brightness[part], 0.6, 1.1))[..., None]
        picture[part] += (mouth - picture[part]) * gap[part][..., None]


def _at(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What a picture shows at each of some places, float32 (H, W, 2): column and row."""
    column, row = places[..., 0], places[..., 1]
    return cv2.remap(picture, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _units(places: np.ndarray) -> np.ndarray:
    """From steps of the rig's grid to units of the face frame."""
    units: np.ndarray = (places + np.float32(0.5)) * np.float32(EXTENT / GRID)
    units += np.array([LEFT, TOP], np.float32)
    return units
