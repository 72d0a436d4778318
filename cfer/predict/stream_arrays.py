"""What `cfer look` shows of a video's own H.264 stream, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cfer.codec import CodecError, Residual
from cfer.predict.gop_arrays import NUM_RESIDUALS, ShownGop

MOST_FRAMES = 300  # of a GOP; the usual most is 250
# Residuals are added up over about so many frames. In most videos, after some tens of them all is
# predicted from an intra block, and shows the picture itself.
RUN = 8

BEFORE, AFTER, AROUND, NOTHING = range(4)


@dataclass(frozen=True)
class ShownStream(ShownGop):
    """A GOP of H.264 as it is in the file, or its first `MOST_FRAMES` frames.

    Attributes:
        number: the GOP's in the file, from 0.
    """

    number: int

    @property
    def numbers(self) -> range:
        return super().numbers[:MOST_FRAMES]

    @property
    def is_cut(self) -> bool:
        return len(super().numbers) > MOST_FRAMES

    @cached_property
    def kinds(self) -> str:
        """One letter a frame: I, P, B."""
        return "".join(self.bitstream.frame_types[n] for n in self.numbers)

    def name_of(self, position: int) -> str:
        return f"{self.kinds[position]}{position}" if position else "I"

    @cached_property
    def _places(self) -> dict[int, int]:
        """Of each frame's number, its place in the order of display."""
        return {number: place for place, number in enumerate(self.bitstream.display_order)}

    @cached_property
    def changes(self) -> list[int]:
        """The P- and B-frames that are shown after the I-frame: what is shown before it refers to
        the GOP before."""
        start = self._places[self.numbers[0]]
        return [p for p, n in enumerate(self.numbers) if self._places[n] > start]

    @cached_property
    def positions(self) -> list[int]:
        """Of the frames whose residuals are drawn: evenly spaced, P and B by turns where there are
        both, a P-frame last."""
        free = set(self.changes)
        count = min(NUM_RESIDUALS, len(free))
        found = []
        for slot in reversed(range(count)):
            at = self.changes[0] + (slot + 1) / count * (self.changes[-1] - self.changes[0])
            kind = "PB"[(count - 1 - slot) % 2]
            nearest = min(free, key=lambda p: (self.kinds[p] != kind, abs(p - at)))
            free.remove(nearest)
            found.append(nearest)
        return sorted(found)

    def largest(self, kind: str) -> int | None:
        """The frame of a kind that takes the most bytes: it has the most to show."""
        of_kind = [p for p in self.changes if self.kinds[p] == kind]
        return max(of_kind, key=lambda p: self.sizes[p], default=None)

    @cached_property
    def accumulated(self) -> dict[int, tuple[int, Residual]]:
        """Of the frames that are drawn, since which position, and the residual; what holds
        appearance is masked."""
        return {position: self._accumulated(position) for position in self.positions}

    def _accumulated(self, position: int) -> tuple[int, Residual]:
        shown = self._places[self.numbers[position]]
        starts = [
            p
            for p in range(max(position - RUN, 0), -1, -1)
            if self.kinds[p] != "B" and self._places[self.numbers[p]] < shown
        ]
        for start in starts:
            try:
                since = self.bitstream.residuals_since(self.numbers[start], mask_intra=True)
                return start, next(r for r in since if r.frame == self.numbers[position])
            except CodecError:
                if start == 0:  # only there nothing can be needed of before
                    raise
        raise AssertionError("the I-frame comes first")

    @cached_property
    def intra(self) -> np.ndarray:
        """Which macroblocks of `changes` are intra: bool (frames, ceil(H/16), ceil(W/16))."""
        return np.stack([self.direct(position).intra for position in self.changes])

    def intra_fractions(self, kind: str) -> np.ndarray:
        """Shares of intra macroblocks of the frames of a kind: float64 (frames,)."""
        of_kind = [self.kinds[position] == kind for position in self.changes]
        return self.intra[of_kind].mean((1, 2))

    @cached_property
    def lumas(self) -> dict[int, np.ndarray]:
        """Y of the largest frame of each kind, as decoded: uint8 (H, W)."""
        wanted = [p for p in map(self.largest, "PB") if p is not None]
        decoded = self.bitstream.gop_pictures(self.gop)
        shown = zip(range(max(wanted) + 1), decoded, strict=False)
        return {position: y.copy() for position, (y, _, _) in shown if position in wanted}

    def references(self, position: int) -> tuple[list[tuple[str, float]], np.ndarray]:
        """From which frames a P-frame is predicted.

        Returns:
            their names, with the shares of the frame's inter blocks, the largest first; and which
            of them each 8 × 8 block refers to, int64 (rows, columns), −1: an intra block.
        """
        used = self.bitstream.reference_frames(self.numbers[position])[0]
        found = self._by_use(used)
        ranks = np.full(used.shape, -1)
        for rank, number in enumerate(found):
            ranks[used == number] = rank
        total = max(int((used >= 0).sum()), 1)
        return [(self._name(n), count / total) for n, count in found.items()], ranks

    def directions(self, position: int) -> tuple[list[str], list[str], np.ndarray]:
        """Where the references of a B-frame are shown.

        Returns:
            the names of those shown before it, and after it, the most used first; and what each
            8 × 8 block refers to, uint8 (rows, columns): what is shown BEFORE the frame, AFTER it,
            AROUND it (one before, one after), or NOTHING: an intra block.
        """
        number = self.numbers[position]
        used = self.bitstream.reference_frames(number)
        places = np.array([self._places[n] for n in range(len(self._places))])
        earlier = (used >= 0) & (places[used] < places[number])
        later = (used >= 0) & (places[used] > places[number])
        names = [[self._name(n) for n in self._by_use(used[of])] for of in (earlier, later)]
        before, after = earlier.any(0), later.any(0)
        kinds = np.select([before & after, before, after], [AROUND, BEFORE, AFTER], NOTHING)
        return names[0], names[1], kinds.astype(np.uint8)

    def _name(self, number: int) -> str:
        if number in self.numbers:
            return self.name_of(self.numbers.index(number))
        return "a frame of an earlier GOP"

    @staticmethod
    def _by_use(used: np.ndarray) -> dict[int, int]:
        """Numbers of frames, of which −1 is none: how many blocks refer to each, most first."""
        numbers, counts = np.unique(used[used >= 0], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return dict(zip(numbers[order].tolist(), counts[order].tolist(), strict=True))
