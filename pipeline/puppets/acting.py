"""What a puppet does over time: the strengths of its action units, and all else that moves.

A clip is planned in seconds and sampled at any frame rate. An expression rises from onset to apex,
is held, and may fall again; a clip may begin or end within it. Beside it goes what is no
expression: speech, blinks, looks, turns of the head, light, a hand-held camera. `Clip.spans` says
which stretches of time show what.

The prototypes follow EMFACS (Friesen and Ekman 1983) and the variants in Du, Tao and Martinez
(PNAS 2014), each with its own range; style, asymmetry and habits belong to the person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipeline.puppets.rig import OWN, PAIRED, SINGLE, generator_of

CLASSES = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
FRAME_RATES = (15, 24, 25, 30, 50, 60)
RATE_SHARES = (0.10, 0.27, 0.27, 0.32, 0.02, 0.02)
EYES = ("upper lid", "lower lid", "blink", "look right", "look down")
CAMERA = ("camera right", "camera down", "camera roll", "camera zoom")
MOST = 1.3  # of any action unit: beyond it, a face would fold over itself
LEAST_RISE = 0.6  # share of an expression's rise that a span with its label holds
Curve = np.ndarray
Strengths = dict[str, float]


@dataclass(frozen=True)
class Style:
    """How a person moves, always.

    Attributes:
        strength: of each action unit, around 1.
        lopsided: of paired ones, the share by which the right side is stronger.
        habit: four numbers in [0, 1] that choose among an expression's variants.
        side: of contempt.
        fold: how deep folds get.
        teeth: how far the upper teeth reach below the lip line, in units.
        tooth: a tooth's width, in units; and its brightness.
    """

    strength: Strengths
    lopsided: Strengths
    habit: np.ndarray
    side: str
    fold: float
    teeth: float
    tooth: tuple[float, float]

    @classmethod
    def of(cls, person: str) -> Style:
        r = generator_of(person, "style")
        names = (*PAIRED, *SINGLE, "upper lid", "lower lid", OWN)
        return cls(
            {name: float(r.lognormal(0, 0.2)) for name in names},
            {name: float(r.normal(0, 0.12)) for name in PAIRED},
            r.random(4),
            "LR"[int(r.random() < 0.5)],
            float(np.clip(r.lognormal(-0.1, 0.4), 0.4, 1.8)),
            float(r.uniform(0.03, 0.075)),
            (float(r.uniform(0.075, 0.1)), float(r.uniform(0.85, 1.0))),
        )


@dataclass(frozen=True)
class Span:
    """A stretch of a clip that shows one thing.

    Attributes:
        start, end: seconds.
        label: a class; "neutral" where nothing rises: before an expression, while it is held or as
            it falls, and where a face only moves.
        intensity: of what rises, 0 to about 1.2.
    """

    start: float
    end: float
    label: str
    intensity: float


@dataclass(frozen=True)
class Clip:
    """A planned clip.

    Attributes:
        fps: frames per second.
        curves: at each frame, float64 (frames,): action units ("1L", "26", …), `EYES`, the light's
            "gain", "light right" and "light down", `CAMERA`, and the head's: "yaw", "pitch" and
            "roll" in radians, "right" and "down" in units, and the share "nearer".
        spans: what can be learned from it.
    """

    fps: int
    curves: dict[str, Curve]
    spans: list[Span] = field(repr=False)

    @property
    def num_frames(self) -> int:
        return len(self.curves["26"])

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


def prototype(label: str, style: Style, r: np.random.Generator) -> Strengths:
    """The action units of one expression at its apex; "12L" is one side of 12, "12" both."""
    habit = np.clip(style.habit + r.normal(0, 0.3, 4), 0, 1)
    u = r.uniform
    units: Strengths = {}
    if label == "anger":
        units = {"4": u(0.8, 1.25), "upper lid": u(0, 0.5), "lower lid": u(0.4, 0.9)}
        if habit[0] < 0.65:
            units |= {"24": u(0.7, 1.2), "17": u(0.2, 0.6)}
        else:
            units |= {"10": u(0.4, 0.8), "25": u(0.8, 1.2), "16": u(0.3, 0.9), "20": u(0.1, 0.4)}
        if habit[1] > 0.75:
            units["9"] = u(0.2, 0.45)
    elif label == "contempt":
        side = style.side if r.random() < 0.8 else "LR"[int(r.random() < 0.5)]
        units = {"12" + side: u(0.4, 0.75), "14" + side: u(0.6, 1.1)}
        if habit[0] > 0.6:
            units["10" + side] = u(0.2, 0.4)
        if habit[1] > 0.7:
            units["2" + side] = u(0.2, 0.5)
        if habit[2] > 0.6:
            units["24"] = u(0.1, 0.35)
        if habit[3] > 0.6:
            units |= {"upper lid": -u(0.1, 0.4)}
    elif label == "disgust":
        units = {"4": u(0.3, 0.7), "upper lid": -u(0.15, 0.45), "lower lid": u(0.3, 0.7)}
        strong, weak = u(0.8, 1.3), u(0.35, 0.7)
        units |= {"9": strong, "10": weak} if habit[0] < 0.6 else {"9": weak, "10": strong}
        if habit[1] < 0.5:
            units |= {"17": u(0.4, 0.8), "15": u(0.2, 0.5)}
        else:
            units |= {"25": u(0.5, 1.0), "26": u(0, 0.2), "16": u(0, 0.5)}
        if habit[2] > 0.6:
            units["6"] = u(0.3, 0.6)
    elif label == "fear":
        units = {
            "1": u(0.8, 1.2), "2": u(0.4, 0.8), "4": u(0.4, 0.8), "upper lid": u(0.7, 1.2),
            "20": u(0.5, 1.0), "25": u(0.6, 1.1), "26": u(0.05, 0.35),
        }  # fmt: skip
        if habit[0] > 0.7:
            units["16"] = u(0.2, 0.5)
    elif label == "happiness":
        smile = u(0.55, 1.25)
        units = {"12": smile, "6": smile * u(0.5, 1.1), "lower lid": 0.45 * smile}
        units["upper lid"] = -0.06 * smile
        if habit[0] < 0.6:
            units |= {"25": smile * u(0.6, 1.2), "10": u(0.05, 0.35), "26": u(0, 0.12)}
        if habit[1] > 0.8:
            units |= {"26": u(0.2, 0.45), "25": smile * u(0.7, 1.2)}
    elif label == "sadness":
        if habit[2] < 0.3:  # with the mouth alone, as people do who are asked to look sad
            units = {"1": u(0, 0.4), "4": u(0, 0.4), "15": u(0.8, 1.3), "17": u(0.6, 1.2)}
        else:
            units = {"1": u(0.7, 1.1), "4": u(0.4, 0.8), "15": u(0.7, 1.2)}
            if habit[0] < 0.7:
                units["17"] = u(0.4, 1.0)
        units["upper lid"] = -u(0.1, 0.5)
        if habit[1] > 0.7:
            units["6"] = u(0.2, 0.4)
        if habit[2] > 0.75:
            units["25"] = u(0.2, 0.5)
        if habit[3] > 0.75:
            units |= {"24": u(0.2, 0.6)}
    elif label == "surprise":
        units = {"1": u(0.8, 1.2), "2": u(0.8, 1.2), "upper lid": u(0.5, 1.2)}
        if habit[0] < 0.3:  # most of it in the jaw
            units = {"1": u(0.1, 0.7), "2": u(0.1, 0.7), "upper lid": u(0.1, 0.7)}
            units |= {"26": u(0.8, 1.5), "25": u(0.4, 0.9), "18": u(0.2, 1.0)}
        elif habit[0] < 0.85:
            units |= {"26": u(0.3, 1.2), "25": u(0.4, 0.8), "18": max(u(-0.4, 0.9), 0)}
        else:  # with the mouth just open
            units |= {"25": u(0.3, 0.7), "26": u(0.05, 0.2)}
    return units


# What people blend: the second at a third to a half of its strength.
BLENDS = {
    "anger": ("disgust", "sadness"), "contempt": ("disgust", "happiness"),
    "disgust": ("anger", "contempt"), "fear": ("surprise", "sadness"),
    "happiness": ("surprise",), "sadness": ("fear", "anger"), "surprise": ("happiness", "fear"),
}  # fmt: skip


def ease(share: np.ndarray) -> np.ndarray:
    """0 to 1, without a jolt at either end: 6s⁵ − 15s⁴ + 10s³."""
    s = np.clip(share, 0, 1)
    eased: np.ndarray = s * s * s * (s * (6 * s - 15) + 10)
    return eased


def wander(r: np.random.Generator, seconds: float) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth random function of time with variance 1 that changes in about `seconds`."""
    waves = 6
    rates = np.abs(r.normal(0, 1 / seconds, waves))
    phases = r.uniform(0, 2 * np.pi, waves)

    def at(t: np.ndarray) -> np.ndarray:
        total: np.ndarray = np.sin(rates[:, None] * t[None] + phases[:, None]).sum(axis=0)
        return total * np.sqrt(2 / waves)

    return at


@dataclass(frozen=True)
class _Event:
    """An expression's rise, hold and fall, in seconds of the clip; `onset` may lie before it.

    `before` is the share of it that is there already.
    """

    onset: float
    apex: float
    fall: float
    rest: float
    before: float = 0.0

    def envelope(self, t: np.ndarray) -> np.ndarray:
        up = self.before + (1 - self.before) * ease((t - self.onset) / (self.apex - self.onset))
        return up * (1 - ease((t - self.fall) / max(self.rest - self.fall, 1e-3)))


def plan(style: Style, label: str, r: np.random.Generator, has_own_smile: bool = False) -> Clip:
    """A clip of one class.

    Args:
        style: the person's.
        label: one of `CLASSES`.
        r: the clip's randomness.
        has_own_smile: whether there is a photograph of the person's smile: half of that person's
            happy clips show it.
    """
    # When what happens does not depend on how it looks.
    timing = np.random.default_rng(r.integers(1 << 62))
    seconds = float(np.clip(timing.gamma(2.4, 0.5) + 0.8, 1.0, 5.0))
    fps = int(timing.choice(FRAME_RATES, p=RATE_SHARES))
    t = np.arange(max(round(seconds * fps), 8)) / fps
    curves = {name + side: np.zeros_like(t) for name in PAIRED for side in "LR"}
    curves |= {name: np.zeros_like(t) for name in (*SINGLE, *EYES, OWN)}
    event = None if label == "neutral" else _event(seconds, timing)
    intensity = 0.0
    if event is not None:
        intensity = float(timing.uniform(0.6, 1.2))
        units = prototype(label, style, r)
        if label == "happiness" and r.random() < 0.5 and has_own_smile:
            units = {OWN: r.uniform(0.8, 1.1), "6": r.uniform(0, 0.3)}
        _express(curves, t, event, units, label, intensity, style, r)
        if r.random() < 0.3:  # another expression gives way to this one
            other = str(r.choice([name for name in CLASSES if name not in (label, "neutral")]))
            fall = event.onset - r.uniform(-0.2, 0.3)
            before = _Event(-2, -1, fall, fall + r.uniform(0.25, 0.9))
            units = prototype(other, style, r)
            _express(curves, t, before, units, other, r.uniform(0.2, 0.9), style, r)
    calm = r.random() < 0.3
    if not calm and r.random() < (0.6 if label == "neutral" else 0.45):
        # Who speaks through a smile opens the mouth less.
        quieter = 1 if event is None else 1 - r.uniform(0.2, 0.7) * event.envelope(t)
        _speak(curves, t, r.uniform(0.35, 1.1) * quieter, r)
    _twitch(curves, t, r.choice([0.0, 0.15]) if calm else r.choice([0.5, 1, 1.8]), r)
    _eyes(curves, t, event, r)
    for name in curves:
        # Several causes add up; eyes and a photographed smile have ranges of their own.
        curves[name] = curves[name] if name in (*EYES, OWN) else MOST * np.tanh(curves[name] / MOST)
    _head(curves, t, label, event, calm, r)
    _light(curves, t, r)
    _camera(curves, t, 0.0 if calm else r.choice([0.0, 0.4, 1.0], p=[0.3, 0.4, 0.3]), r)
    length = float(t[-1])
    if event is None:
        spans = _resting_spans(length, timing)
    else:
        spans = _spans(event, label, intensity, length, timing)
    return Clip(fps, curves, spans)


def _event(seconds: float, r: np.random.Generator) -> _Event:
    rise = float(np.clip(r.lognormal(np.log(0.5), 0.5), 0.16, min(1.6, 0.85 * seconds)))
    slack = seconds - rise
    if r.random() < 0.15:  # the clip begins within the rise
        onset = -float(r.uniform(0.1, 0.35)) * rise
    else:
        onset = float(r.uniform(0.02, min(0.9 * slack, 1.5) if slack > 0.1 else 0.03))
    apex = onset + rise
    before = float(r.uniform(0.1, 0.35)) if r.random() < 0.2 else 0.0
    if seconds - apex > 0.7 and r.random() < 0.6:
        fall = apex + float(r.uniform(0.15, 0.6)) * (seconds - apex)
        return _Event(onset, apex, fall, fall + float(r.uniform(0.3, 1.2)), before)
    return _Event(onset, apex, seconds + 9, seconds + 10, before)


def _express(
    curves: dict[str, Curve], t: np.ndarray, event: _Event, units: Strengths, label: str,
    intensity: float, style: Style, r: np.random.Generator,
) -> None:  # fmt: skip
    if r.random() < 0.15:
        other = prototype(str(r.choice(BLENDS[label])), style, r)
        share = r.uniform(0.25, 0.45)
        for name, strength in other.items():
            units[name] = units.get(name, 0) + share * strength
    rise = event.apex - event.onset
    for name, strength in units.items():
        base = name.rstrip("LR") if name[0].isdigit() else name
        # Parts of a face don't move as one.
        late = _Event(
            event.onset + r.normal(0, 0.06) * rise,
            event.apex + max(r.normal(0, 0.08), -0.3) * rise,
            event.fall + r.normal(0, 0.05),
            event.rest + abs(r.normal(0, 0.08)) + 0.06,
            event.before,
        )
        tremble = 1 + 0.04 * wander(r, 0.2)(t)
        peak = MOST * np.tanh(strength * intensity * style.strength[base] / MOST)
        if name == OWN:  # a photograph shows no more than there was
            peak = min(strength * intensity, 1)
        curve = peak * late.envelope(t) * tremble
        if base in PAIRED:
            for side in "LR" if name == base else name[-1]:
                sign = 1 if side == "R" else -1
                # One-sided ones are what they are.
                skew = style.lopsided[base] + r.normal(0, 0.05) if name == base else 0
                curves[base + side] += curve * (1 + sign * skew)
        else:
            curves[base] += curve


def _speak(
    curves: dict[str, Curve], t: np.ndarray, loud: np.ndarray | float, r: np.random.Generator
) -> None:
    """Syllables: the mouth opens for each, round or wide, and closes between some."""
    at = -0.2
    opened, wide, closed = np.zeros_like(t), np.zeros_like(t), np.zeros_like(t)
    paused_until = 0.0
    while at < t[-1] + 0.2:
        long = r.uniform(0.13, 0.32)
        if at >= paused_until:
            pulse = np.cos(np.clip((t - at) / long, -1, 1) * np.pi / 2) ** 2
            opened += pulse * r.uniform(0.2, 1)
            wide += pulse * r.normal(0, 1)
            closed += pulse * (r.random() < 0.2)
            if r.random() < 0.08:
                paused_until = at + r.uniform(0.3, 0.9)
        at += long * r.uniform(0.75, 1.1)
    curves["25"] += loud * 0.6 * opened
    curves["26"] += loud * 0.18 * opened
    curves["24"] += loud * 0.3 * closed
    for side in "LR":
        curves["18" + side] += loud * 0.35 * np.maximum(-wide, 0)
        curves["20" + side] += loud * 0.22 * np.maximum(wide, 0)
        curves["12" + side] += loud * 0.08 * np.maximum(wide, 0)
    accent = loud * r.uniform(0, 0.35) * np.maximum(wander(r, 0.3)(t), 0) * (r.random() < 0.5)
    for name in ("1", "2"):
        for side in "LR":
            curves[name + side] += accent


def _twitch(curves: dict[str, Curve], t: np.ndarray, size: float, r: np.random.Generator) -> None:
    """What any face does a little."""
    for name in ("1", "2", "4", "12", "15", "17", "24"):
        slow = 0.035 * size * wander(r, 0.5)(t)
        for side in "LR" if name in PAIRED else ("",):
            curves[name + side] += slow + 0.015 * size * wander(r, 0.35)(t)


def _eyes(
    curves: dict[str, Curve], t: np.ndarray, event: _Event | None, r: np.random.Generator
) -> None:
    blink = curves["blink"]
    at = r.exponential(2.0)
    while at < t[-1]:
        # Nobody would choose a picture with closed eyes as the apex.
        if event is None or abs(at - event.apex) > 0.3:
            half = r.uniform(0.08, 0.15)
            blink[:] = np.maximum(blink, np.clip(1.3 - np.abs(t - at) / half, 0, 1))
        at += r.exponential(2.5) + 0.3
    if r.random() < 0.6:
        jumps = np.sort(r.uniform(0, t[-1], r.poisson(0.8 * t[-1] + 0.5)))
        for name, size in (("look right", 0.024), ("look down", 0.010)):
            goal = np.clip(r.normal(0, size, len(jumps) + 1), -2 * size, 2 * size)
            where = np.searchsorted(jumps, t)
            curves[name] += goal[where] - goal[0] * (r.random() < 0.5)
        # Lids go along with the eyes.
        curves["upper lid"] -= 6 * np.maximum(curves["look down"], 0)


def _head(
    curves: dict[str, Curve], t: np.ndarray, label: str, event: _Event | None, calm: bool,
    r: np.random.Generator,
) -> None:  # fmt: skip
    """Turns, nods and leaning of the head. A calm one does next to nothing, as that of someone who
    acts for a camera."""
    restless = r.choice([0.0, 0.1]) if calm else r.choice([0.3, 1.0, 2.5])
    for name, size in (
        ("yaw", 0.05), ("pitch", 0.035), ("roll", 0.02), ("right", 0.04), ("down", 0.03),
        ("nearer", 0.01),
    ):  # fmt: skip
        curves[name] = size * restless * wander(r, r.uniform(0.4, 1.2))(t)
    curves["yaw"] += r.normal(0, 0.10)
    curves["pitch"] += r.normal(0, 0.06)
    if not calm and r.random() < 0.4:  # a turn
        start, long = r.uniform(-0.3, t[-1]), r.uniform(0.35, 1.4)
        turned = ease((t - start) / long)
        curves["yaw"] += turned * r.normal(0, 0.2)
        curves["pitch"] += turned * r.normal(0, 0.09)
        curves["roll"] += turned * r.normal(0, 0.06)
        curves["right"] += turned * r.normal(0, 0.2)
        curves["down"] += turned * r.normal(0, 0.1)
        curves["nearer"] += turned * r.normal(0, 0.06)
    if not calm and r.random() < 0.15:  # a nod, or a shake
        rate = r.uniform(6, 12)
        swing = np.sin(rate * t + r.uniform(0, 6)) * r.uniform(0.03, 0.09)
        curves["pitch" if r.random() < 0.5 else "yaw"] += swing
    if not calm and event is not None and r.random() < 0.6:
        # Heads go along with expressions, each its own way, and now and then the usual one.
        along = event.envelope(t)
        usual = {"surprise": -0.05, "sadness": 0.06, "fear": -0.04, "anger": 0.03}.get(label, 0)
        curves["pitch"] += along * (r.normal(0, 0.06) + usual * (r.random() < 0.5))
        curves["yaw"] += along * r.normal(0, 0.06)
        curves["roll"] += along * r.normal(0, 0.04)
        curves["nearer"] += along * r.normal(0, 0.02)
    most = np.radians(27)
    for name in ("yaw", "pitch"):
        curves[name] = most * np.tanh(curves[name] / most)


def _light(curves: dict[str, Curve], t: np.ndarray, r: np.random.Generator) -> None:
    moving = r.random() < 0.35
    angle, side = r.uniform(0, 2 * np.pi), abs(r.normal(0, 0.28))
    drift = (0.12 if moving else 0.02) * wander(r, 0.8)(t)
    curves["light right"] = (side + drift) * np.cos(angle + 0.6 * moving * wander(r, 1.5)(t))
    curves["light down"] = 0.6 * (side + drift) * np.sin(angle) - 0.05
    curves["gain"] = (0.06 if moving else 0.012) * wander(r, 1.0)(t)


def _camera(curves: dict[str, Curve], t: np.ndarray, held: float, r: np.random.Generator) -> None:
    for name, size in zip(CAMERA, (0.03, 0.03, 0.010, 0.008), strict=True):
        curves[name] = held * size * (wander(r, 0.25)(t) * 0.4 + wander(r, 0.9)(t))


def _spans(
    event: _Event, label: str, intensity: float, length: float, r: np.random.Generator
) -> list[Span]:
    """Two of the rise, one cut close and one as it comes; and where they are long enough, before
    it, within the hold, or the fall: there nothing rises."""
    rise = event.apex - event.onset
    spans = []
    for loose in (False, True):
        if loose:
            start = event.onset + r.uniform(-0.5, 0.3 * rise)
            end = event.apex + r.uniform(-0.15 * rise, 0.5)
        else:
            start = event.onset + r.normal(0, 0.05)
            end = event.apex + r.uniform(-0.05, 0.12)
        start, end = max(start, 0), min(end, length, event.fall + 0.1)
        seen = event.envelope(np.array([start, end]))
        if end - start >= 0.2 and seen[1] - seen[0] >= LEAST_RISE:
            spans.append(Span(start, end, label, intensity * float(seen[1] - seen[0])))
    quiet = []
    if event.onset > 0.5:
        quiet.append((max(0, event.onset - r.uniform(0.5, 1.5)), event.onset - 0.02))
    held = min(event.fall, length) - event.apex
    if held > 0.6:
        start = event.apex + 0.08 + r.uniform(0, held - 0.55)
        quiet.append((start, min(start + r.uniform(0.45, 1.4), event.apex + held)))
    if event.rest < length + 0.1:
        quiet.append((event.fall - r.uniform(0, 0.2), min(event.rest + r.uniform(0, 0.3), length)))
    for start, end in quiet:
        if end - start >= 0.4 and r.random() < 0.4:
            spans.append(Span(start, end, "neutral", 0.0))
    return spans


def _resting_spans(length: float, r: np.random.Generator) -> list[Span]:
    spans = []
    for _ in range(2):
        long = min(r.uniform(0.45, 2.0), length)
        start = r.uniform(0, length - long) if length > long else 0
        span = Span(start, start + long, "neutral", 0.0)
        if span not in spans:  # both are all of a short clip
            spans.append(span)
    return spans
