"""Comparisons of codes or faces, counted, and what they say: AUC, EER, linkability, rank-1.

All figures have an interval by bootstrap over people: clips of one person are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

NUM_BINS = 200  # of scores
NUM_RESAMPLES = 1000
NUM_SHUFFLES = 50  # of people, which say what a figure is by chance


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval by bootstrap over people, and what it would be by chance."""

    value: float
    low: float
    high: float
    chance: float


class Trials:
    """Comparisons of probes with enrolled people, counted by who is compared with whom.

    A score counts by its rank among those of different people of the same split: scores of two
    splits, whose attackers are not the same, are not comparable as they are. So the bins of
    different people are equally full, and AUC, EER and linkability follow from those of the same.
    """

    def __init__(self, people: np.ndarray) -> None:
        self.people = people
        self.counts = np.zeros((len(people), len(people), NUM_BINS), np.float32)
        # Of each repeat: histograms of the scores with another person in each one's place.
        self.as_if_mated: dict[int, np.ndarray] = {}
        self.hits: list[tuple[np.ndarray, np.ndarray, int]] = []

    def add(
        self,
        scores: np.ndarray,
        probes: np.ndarray,
        enrolled: np.ndarray,
        compared: np.ndarray | None = None,
        split: tuple[int, int] = (0, 0),
    ) -> None:
        """Add the comparisons of a split.

        Args:
            scores: float (N, M), high where both are likely to be the same person.
            probes, enrolled: the people, (N,) and (M,).
            compared: bool (N, M), which comparisons count; None: all.
            split: its repeat, and its number there: people are shuffled to see what is found by
                chance, alike in all attacks on a split.
        """
        same = probes[:, None] == enrolled
        if compared is None:
            compared = np.ones_like(same)
        others = np.sort(scores[~same & compared])
        if not len(others) or not (same & compared).any():
            return
        below = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
        bins = np.minimum(below * NUM_BINS // (2 * len(others)), NUM_BINS - 1)
        who, whose = np.searchsorted(self.people, probes), np.searchsorted(self.people, enrolled)
        both = np.intersect1d(who, whose)
        shape = len(self.people), len(self.people), NUM_BINS
        places = np.ravel_multi_index((who[:, None], whose[None], bins), shape)[compared]
        counts = np.bincount(places, minlength=int(np.prod(shape))).reshape(shape)
        self.counts += counts
        if len(both) > 1:
            generator = np.random.default_rng(split)
            shuffled = self.as_if_mated.setdefault(split[0], np.zeros((NUM_SHUFFLES, NUM_BINS)))
            for number in range(NUM_SHUFFLES):
                order = generator.permutation(both)  # each takes the place of the next
                shuffled[number] += counts[order, np.roll(order, 1)].sum(0)
        if len(enrolled) == len(np.unique(enrolled)):
            own = np.where(same, scores, -np.inf).max(1)
            best = np.where(same, -np.inf, scores).max(1)
            ties = (scores == own[:, None]).sum(1)
            self.hits.append((who, np.where(own >= best, 1 / ties, 0.0), len(enrolled)))

    def estimates(self, seed: int, widened: float = 1.0) -> dict[str, Estimate]:
        """`auc`, `eer`, `d_sys` and, where a probe was compared with each person once, `rank1`.

        *AUC*: how often a comparison of one person has the higher score than one of two; *EER*: the
        error rate at the threshold where as many of the one kind are wrong as of the other;
        *D_sys*: the linkability of Gomez-Barrero et al. ("General Framework to Evaluate
        Unlinkability in Biometric Template Protection Systems", IEEE TIFS 2018), 0 to 1;
        *rank-1*: how often the best of all people compared is the right one.
        """
        weights = resampled(len(self.people), seed)
        found = {}
        mated, others = self._histograms(weights)
        num_bins = int(np.clip(np.trace(self.counts.sum(2)) // 10, 4, 100))
        for name, measure in (("auc", auc_of_histograms), ("eer", eer_of_histograms)):
            found[name] = estimate(measure(mated, others), 0.5, widened)

        def linkable(one: np.ndarray, two: np.ndarray) -> np.ndarray:
            return linkability(_merged(one, num_bins), _merged(two, num_bins))

        # Of few comparisons it is too large, and repeats have the same people: of each by itself.
        chances = [
            linkable(shuffled, others[:1].repeat(NUM_SHUFFLES, axis=0)).mean()
            for shuffled in self.as_if_mated.values()
        ]
        found["d_sys"] = estimate(linkable(mated, others), float(np.mean(chances)), widened)
        if self.hits:
            who = np.concatenate([people for people, _, _ in self.hits])
            hits = np.concatenate([hits for _, hits, _ in self.hits])
            chance = float(np.mean(np.concatenate([[1 / n] * len(p) for p, _, n in self.hits])))
            found["rank1"] = estimate(
                by_person(hits, who, weights), chance, widened, people=len(np.unique(who))
            )
        return found

    def auc_by_chance(self) -> np.ndarray:
        """The AUC with another person in each one's place, of each shuffle: (NUM_SHUFFLES,)."""
        _, others = self._histograms(np.ones((1, len(self.people))))
        shuffled = np.sum([*self.as_if_mated.values()], axis=0)
        return auc_of_histograms(shuffled, others.repeat(NUM_SHUFFLES, axis=0))

    def _histograms(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the scores of one and of two people, of each resample: (B, P) → 2 × (B, NUM_BINS)."""
        own = np.arange(len(self.people))
        mated = weights @ self.counts[own, own]
        # A pair counts by how often both of its people were drawn; two draws of one are no pair.
        others = self.counts.copy()
        others[own, own] = 0
        by_probe = np.einsum("bq,pqs->bps", weights, others, optimize=True)
        return mated, np.einsum("bp,bps->bs", weights, by_probe, optimize=True)


def _merged(histograms: np.ndarray, num_bins: int) -> np.ndarray:
    """Neighboring bins added up: (B, NUM_BINS) → (B, num_bins)."""
    edges = np.arange(num_bins) * NUM_BINS // num_bins
    return np.add.reduceat(histograms, edges, axis=1)


def _shares(histograms: np.ndarray) -> np.ndarray:
    return histograms / np.maximum(histograms.sum(1, keepdims=True), 1e-12)


def auc_of_histograms(mated: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of scores counted in ascending bins, (B, bins) each: in a bin, half are in order → (B,)."""
    one, two = _shares(mated), _shares(others)
    return (one * (two.cumsum(1) - two / 2)).sum(1)


def eer_of_histograms(mated: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The error rate at the edge of bins where both kinds of errors differ least → (B,)."""
    zeros = np.zeros((len(mated), 1))
    missed = np.concatenate([zeros, _shares(mated).cumsum(1)], axis=1)
    false = 1 - np.concatenate([zeros, _shares(others).cumsum(1)], axis=1)
    best = np.abs(missed - false).argmin(1)[:, None]
    return ((np.take_along_axis(missed, best, 1) + np.take_along_axis(false, best, 1)) / 2)[:, 0]


def linkability(mated: np.ndarray, others: np.ndarray) -> np.ndarray:
    """D_sys of histograms, (B, bins) each → (B,), in [0, 1] (Gomez-Barrero et al. 2018).

    At a score, with both kinds of pairs equally likely beforehand, LR = p(s | one) / p(s | two),
    and D(s) = 2 · LR / (1 + LR) − 1 where LR > 1, else 0: how much surer than chance one can be
    that the pair is one person. D_sys is its mean over the pairs of one person. Of few comparisons
    it is too large: compare it with its chance.
    """
    one, two = _shares(mated), _shares(others)
    gain = (one - two) / np.maximum(one + two, 1e-12)
    return (one * np.maximum(gain, 0)).sum(1)


# ---- intervals -----------------------------------------------------------------------------------


def resampled(num_people: int, seed: int) -> np.ndarray:
    """How often each person is in a resample: (1 + NUM_RESAMPLES, P); first, all once."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(num_people, [1 / num_people] * num_people, NUM_RESAMPLES)
    return np.concatenate([np.ones((1, num_people)), drawn])


def by_person(values: np.ndarray, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of values, those of each person weighted: (N,), numbers (N,), (B, P) → (B,)."""
    size = weights.shape[1]
    sums = weights @ np.bincount(people, values, size)
    return sums / np.maximum(weights @ np.bincount(people, minlength=size), 1e-12)


def estimate(
    values: np.ndarray,
    chance: float,
    widened: float = 1.0,
    least: float = 0.0,
    people: int | None = None,
) -> Estimate:
    """The first value, with the interval of the others, `widened` by a factor.

    A resample has the same people twice, which makes some figures (D_sys) larger in all of them:
    the interval is moved back by that. It ends at `least` and at 1, beyond which no value is. Where
    a share is 0 or 1 in all resamples, its interval is the exact one (Clopper & Pearson, 1934) of
    so many `people`.
    """
    value, others = float(values[0]), values[1:]
    low, high = np.quantile(others, [0.025, 0.975]) - others.mean()
    low, high = value + widened * min(low, 0.0), value + widened * max(high, 0.0)
    if people and value in (0.0, 1.0) and (others == value).all():
        exact = binomtest(round(value * people), people).proportion_ci()
        low, high = exact.low, exact.high
    return Estimate(value, float(max(low, least)), float(min(high, 1.0)), chance)
