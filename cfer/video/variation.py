"""How the square around a face may differ from the one that was found.

Apart from `cfer.video.follow`: clips that are cut out already are predicted without OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Place = np.ndarray  # affine map, float64 (2, 3): from pixels of one picture to those of another


@dataclass(frozen=True)
class Variation:
    """A square that differs from the one that was found, as that might have come out a little
    differently.

    Attributes:
        right, down: shares of its side.
        larger: the logarithm of a factor.
        turned: radians, clockwise.
    """

    right: float = 0.0
    down: float = 0.0
    larger: float = 0.0
    turned: float = 0.0

    @classmethod
    def drawn(cls, generator: np.random.Generator) -> Variation:
        """At random, as far as clips are varied for training."""
        return cls(*generator.uniform(-1, 1, 4) * (0.07, 0.07, 0.12, 0.14))

    def and_also(self, other: Variation) -> Variation:
        """Varied by both."""
        return Variation(
            self.right + other.right,
            self.down + other.down,
            self.larger + other.larger,
            self.turned + other.turned,
        )

    def square(self, corner: np.ndarray, side: int) -> tuple[Place, int]:
        """From pixels of the varied square to those of the picture; and how many pixels it has.

        Args:
            corner: upper left, of the square that was found; x and y in pixels.
            side: its side, pixels.
        """
        varied = max(round(side * math.exp(self.larger)), 2)
        cosine, sine = math.cos(self.turned), math.sin(self.turned)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        center = corner + side * (0.5 + np.array([self.right, self.down]))
        return np.column_stack([turn, center - turn @ [varied / 2, varied / 2]]), varied


AS_FOUND = Variation()
