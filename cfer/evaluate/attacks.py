"""What an attacker finds out about people from their expression codes, with the encoder frozen.

The attacker is *semi-informed*, as in the VoicePrivacy challenges (Tomashenko et al., "The
VoicePrivacy 2020 Challenge", Computer Speech & Language 2022): has the encoder, and so the codes of
other people, learns from these, and is then given codes of victims. Every attack is fitted to
other people than those attacked, and the victims are people on whom the encoder was not trained:

  * verification: are two codes of one person? By the cosine, and by a metric learned from others;
  * linkage: whose face belongs to this code? z_I is predicted from z_R, and compared with faces of
    other videos, or with a photograph of each person;
  * identification: which of the training people is it? (the one attack on training people);
  * attributes: gender, age, …, of people whose table is given;
  * inversion: a picture of the face is rebuilt from the code.

What is compared is always of different videos, so that a background or a light links nothing, and,
code against code, of different expressions. All figures have an interval by bootstrap over people:
clips of one person are not independent.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cfer.evaluate.metrics import ScoredClips, standardized

NUM_REPEATS = 3  # each person is a victim once in each
NUM_FOLDS = 5
LEAST_PEOPLE = 10  # of fewer, an attacker learns nothing
LEAST_VICTIMS = 5  # of fewer, an interval says nothing
LEAST_OF_A_VALUE = 4  # people, of an attribute
MOST_PEOPLE, MOST_CLIPS = 120, 6000  # attacked: of each pair of these there is a score
NUM_BINS = 200  # of scores
NUM_RESAMPLES = 1000
STRENGTHS = np.logspace(1, 5, 5)  # of ridge regressions of whitened codes
CONTRASTIVE_SIZE, CONTRASTIVE_STEPS = 16, 50
EXPLAINED = "explained"
OF_PHOTOGRAPHS = "photographs, "
OTHERS, TRAINING = "held-out", "training"  # whom the attacker learns from
VERIFICATION, LINKAGE = "verification", "linkage"
ATTACKS = (
    "verification, cosine",
    "verification, learned",
    "linkage, ridge",
    "linkage, MLP",
    "linkage, contrastive",
)


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval by bootstrap over people, and what it would be by chance."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Attack:
    """What came of one attack.

    Attributes:
        name: such as "linkage, ridge"; with "photographs, " in front, linkage to photographs.
        learned_from: `OTHERS`: the held-out people who are not attacked at the time. `TRAINING`:
            the people on whom the encoder was trained, of whom there are more, but whose codes it
            may have learned by heart, or a defense may have been fitted to.
        one, pooled: figures from one clip, and from many of a person together. Of verification and
            linkage `auc`, `eer`, `d_sys` and (not where codes are compared one by one) `rank1`,
            pooled over half of a person's videos (all, where photographs are compared). Otherwise
            the one figure that `measure` names, pooled over all of the clips.
        measure: "auc", "accuracy", "recall" (mean over the values) or "explained" (share of the
            variance about the mean face).
    """

    name: str
    learned_from: str
    measure: str
    one: dict[str, Estimate]
    pooled: dict[str, Estimate]


@dataclass(frozen=True)
class Suite:
    """All attacks on the codes of some people.

    Attributes:
        people, clips: how many were attacked; 0 where they are too few.
        clips_pooled: in the mean, how many are in `Attack.pooled`.
        attacks: in the order of the module's docstring.
        rebuilt: of each victim with a known face, the real and the rebuilt one, (h, w) each.
    """

    people: int = 0
    clips: int = 0
    clips_pooled: float = 0.0
    attacks: list[Attack] = field(default_factory=list)
    rebuilt: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Clips:
    """Clips of known people: (N, d), (N, d_I), (N,), (N,), (N,)."""

    codes: np.ndarray
    identities: np.ndarray
    people: np.ndarray
    labels: np.ndarray
    videos: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> _Clips:
        return _Clips(*(values[chosen] for values in vars(self).values()))

    @staticmethod
    def of(clips: ScoredClips, videos: Mapping[str, str]) -> _Clips:
        known = np.array([subject is not None for subject in clips.subjects], bool)
        people = np.array([subject or "" for subject in clips.subjects])
        codes, identities = clips.z_R.astype(np.float64), clips.z_I.astype(np.float64)
        of_videos = np.array([videos[clip_id] for clip_id in clips.clip_ids])
        return _Clips(codes, identities, people, clips.labels, of_videos)[known]


# Its matrices are small: on a busy machine, threads of one product wait long for each other.
@threadpool_limits.wrap(limits=1)
def attack(
    held_out: ScoredClips,
    training: ScoredClips,
    videos: Mapping[str, str],
    groups: Mapping[str, Mapping[str, str]] | None = None,
    faces: Mapping[str, np.ndarray] | None = None,
    photographs: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Suite:
    """Attack the codes z_R of held-out people in every way that is known here.

    z_R may be any code of a clip. With that of an encoder trained to identify people, the same
    suite says what the input holds, which bounds what any code of it can give away.

    Args:
        held_out: the clips attacked, of people on whom neither the encoder nor a defense of its
            codes was trained or chosen.
        training: clips of other people, from whom an attacker may learn as well.
        videos: {clip id: the video that it is from}, of all of these clips.
        groups: {person: {attribute: value}}, as far as it is known.
        faces: {person: gray float (h, w)}, all of one size, as far as they are known.
        photographs: {person: z_I of a photograph}, as far as there is one; the people who have
            none are not looked for among them.
        seed: of the splits, the networks and the bootstrap.

    Returns:
        An empty suite for fewer than `LEAST_VICTIMS` held-out people with two videos or more, or
        where nobody has `LEAST_PEOPLE` to learn from. Of more than `MOST_PEOPLE` people or
        `MOST_CLIPS` clips, as many at random are attacked.
    """
    known = _Clips.of(held_out, videos)
    victims = _attackable(known, seed)
    people = np.unique(victims.people)
    others = _Clips.of(training, videos)
    others = others[~np.isin(others.people, known.people)]
    sources = {
        source: clips
        for source, clips in ((OTHERS, victims), (TRAINING, others))
        if len(np.unique(clips.people)) >= LEAST_PEOPLE
    }
    if len(people) < LEAST_VICTIMS or not sources:
        return Suite()
    attacks = [
        *_matches(victims, sources, photographs or {}, seed),
        *_identification(others, seed),
    ]
    for name in sorted({name for known in (groups or {}).values() for name in known}):
        values = {who: known[name] for who, known in (groups or {}).items() if name in known}
        attacks += _attribute(name, values, victims, sources, seed)
    inversions, rebuilt = _inversion(faces or {}, victims, sources, seed)
    _, sizes = np.unique(victims.people, return_counts=True)
    return Suite(
        len(people), len(victims.people), float(sizes.mean() / 2), attacks + inversions, rebuilt
    )


def attack_figures(suite: Suite) -> dict[str, float]:
    """The suite for a table of runs: `attack/linkage_ridge_training_auc`, `…_pooled_auc`, …"""
    found = {}
    for attack in suite.attacks:
        name = f"{attack.name} {attack.learned_from}".replace(",", "").replace(" ", "_")
        for when, estimates in (("", attack.one), ("pooled_", attack.pooled)):
            for figure, estimate in estimates.items():
                found[f"attack/{name}_{when}{figure}".replace(" ", "_")] = estimate.value
    return found


def strongest(figures: Mapping[str, float], kind: str, pooled: bool = True) -> str:
    """The attack with the highest AUC: the name of its figure among those of `attack_figures`.

    Args:
        figures: of a run, or means over several.
        kind: `VERIFICATION` or `LINKAGE`.
        pooled: from many clips of a person, or from one.

    Returns:
        An empty text where there was no attack.
    """
    names = [
        name
        for name in figures
        if name.startswith(f"attack/{kind}_")
        and name.endswith("_auc")
        and name.endswith("_pooled_auc") == pooled
    ]
    return max(names, key=figures.__getitem__, default="")


# ---- who attacks whom ----------------------------------------------------------------------------


def _attackable(clips: _Clips, seed: int) -> _Clips:
    """At most `MOST_CLIPS` of at most `MOST_PEOPLE`, each with two videos or more."""
    generator = np.random.default_rng(seed)
    people = generator.permutation(np.unique(clips.people))[:MOST_PEOPLE]
    clips = clips[np.isin(clips.people, people)]
    clips = clips[np.sort(generator.permutation(len(clips.people))[:MOST_CLIPS])]
    several = [who for who in people if len(np.unique(clips.videos[clips.people == who])) > 1]
    return clips[np.isin(clips.people, several)]


def _splits(
    victims: _Clips, sources: Mapping[str, _Clips], seed: int
) -> Iterator[tuple[str, int, _Clips, _Clips, np.ndarray]]:
    """(whom the attacker learns from, number, their clips, the victims', which half each is in).

    Each victim's videos fall into two halves at random: codes of one are compared with what is
    *enrolled* of the other. The halves are of the same expected size for all people: to leave only
    a probe's own video out would make the enrolled mean of the right person noisier than those of
    the others, and the attack worse than chance.
    """
    people = np.unique(victims.people)
    for name, known in sources.items():
        for repeat in range(NUM_REPEATS if name == OTHERS else 1):
            generator = np.random.default_rng([seed, repeat])
            half = _half_of_videos(victims, generator)
            shuffled = generator.permutation(people)
            folds = np.array_split(shuffled, NUM_FOLDS) if name == OTHERS else [shuffled]
            for number, attacked in enumerate(folds):
                mine = np.isin(victims.people, attacked)
                learned = known[~mine] if name == OTHERS else known
                yield name, repeat * NUM_FOLDS + number, learned, victims[mine], half[mine]


def _half_of_videos(clips: _Clips, generator: np.random.Generator) -> np.ndarray:
    """bool (N,): clips of a random half of each person's videos."""
    chosen = np.zeros(len(clips.people), bool)
    for who in np.unique(clips.people):
        mine = clips.people == who
        videos = generator.permutation(np.unique(clips.videos[mine]))
        chosen |= mine & np.isin(clips.videos, videos[: len(videos) // 2])
    return chosen


def _prepared(learned: _Clips, victims: _Clips) -> tuple[np.ndarray, np.ndarray]:
    """The codes of both, less the mean of their class and scaled, by the attacker's people alone.

    The victims' own means would take a part of what tells them apart.
    """
    means = {name: learned.codes[learned.labels == name].mean(0) for name in set(learned.labels)}
    mean = learned.codes.mean(0)
    mine, theirs = (
        clips.codes - np.array([means.get(name, mean) for name in clips.labels])
        for clips in (learned, victims)
    )
    return standardized(mine, mine), standardized(theirs, mine)


def _means(values: np.ndarray, people: np.ndarray) -> np.ndarray:
    """The mean of each person, in the order of `np.unique`: (N, d), (N,) → (P, d)."""
    return np.array([values[people == who].mean(0) for who in np.unique(people)])


# ---- what the attacker learns --------------------------------------------------------------------


def whitening(codes: np.ndarray, people: np.ndarray) -> np.ndarray:
    """(d, d) matrix W: codes @ W vary equally in all directions *within* a person.

    Within-class covariance normalization (Hatch, Kajarekar & Stolcke, Interspeech 2006), with the
    covariance shrunk as by Ledoit & Wolf (2004). It is shrunk toward equal variances, which would
    bury an identity in directions that vary a hundred times less than the expression does: so all
    directions are first given the same variance.
    """
    from sklearn.covariance import ledoit_wolf

    first = _inverse_root(np.cov(codes.T))
    numbers = np.unique(people, return_inverse=True)[1]
    equal = codes @ first
    covariance, _ = ledoit_wolf(equal - _means(equal, people)[numbers], assume_centered=True)
    return first @ _inverse_root(covariance)


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    """(d, d) → a matrix that whitens, and leaves out the directions that do not vary."""
    variances, directions = np.linalg.eigh(covariance)
    varies = variances > 1e-9 * variances[-1]
    return directions * np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0)


def learned_metric(codes: np.ndarray, people: np.ndarray) -> np.ndarray:
    """(d, d) matrix M: the cosine of codes @ M tells the same person from another.

    After `whitening`, the directions in which people differ, each weighted by how much one clip
    tells of it: the square root of b / (b + 1), where b is the variance between people for 1 within
    (probabilistic linear discriminant analysis: Ioffe, ECCV 2006).
    """
    white = whitening(codes, people)
    means, clips = _means(codes @ white, people), np.unique(people, return_counts=True)[1]
    # The means of few clips vary by 1/n without any identity.
    between = np.cov(means.T) - np.eye(means.shape[1]) * np.mean(1 / clips)
    variances, directions = np.linalg.eigh(between)
    variances = np.maximum(variances, 1e-3)
    return white @ directions * np.sqrt(variances / (variances + 1))


@dataclass(frozen=True)
class Linear:
    """codes @ map + offset: (d, k), (k,)."""

    map: np.ndarray
    offset: np.ndarray

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        return codes @ self.map + self.offset


def fit_ridge(
    codes: np.ndarray, targets: np.ndarray, people: np.ndarray, weights: np.ndarray | None = None
) -> Linear:
    """Ridge regression, (N, d) → (N, k), its strength by cross-validation that leaves people out.

    `sklearn.linear_model.RidgeCV` leaves out clips in its closed form, and would learn people by
    heart; with folds of its own choice it takes thirty times as long.
    """
    from sklearn.model_selection import GroupKFold

    weights = np.ones(len(codes)) if weights is None else weights
    errors = np.zeros(len(STRENGTHS))
    for fitted, tested in GroupKFold(NUM_FOLDS).split(codes, groups=people):
        models = ridges(codes[fitted], targets[fitted], weights[fitted])
        for number, model in enumerate(models):
            squared = np.square(model(codes[tested]) - targets[tested]).sum(1)
            errors[number] += (weights[tested] * squared).sum()
    return ridges(codes, targets, weights)[int(errors.argmin())]


def ridges(codes: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> list[Linear]:
    """The weighted ridge regressions of all `STRENGTHS`, by one decomposition."""
    code, target = (np.average(values, axis=0, weights=weights) for values in (codes, targets))
    root = np.sqrt(weights)[:, None]
    centered = root * (codes - code)
    variances, directions = np.linalg.eigh(centered.T @ centered)
    rotated = directions.T @ (centered.T @ (root * (targets - target)))
    maps = [directions @ (rotated / (variances + s)[:, None]) for s in STRENGTHS]
    return [Linear(fitted, target - code @ fitted) for fitted in maps]


def fit_mlp(codes: np.ndarray, targets: np.ndarray, seed: int) -> Callable[[Any], np.ndarray]:
    """A network with one hidden layer."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    network = MLPRegressor(
        hidden_layer_sizes=(128,), solver="lbfgs", alpha=100.0, max_iter=40, random_state=seed
    )
    with warnings.catch_warnings():
        # It may be stopped before it has learned the attacker's people by heart.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(codes, targets)
    return network.predict


def fit_contrastive(
    codes: np.ndarray, faces: np.ndarray, people: np.ndarray, ridge: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Linear maps of codes and of faces into one space, where a person's are close.

    InfoNCE (van den Oord, Li & Vinyals 2018) over a random clip of each of the attacker's people.
    It begins at the leading directions of the ridge regression: from a random beginning it learns
    the attacker's few people by heart.

    Args:
        codes, faces, people: (N, d), (P, d_I) in the order of `np.unique(people)`, (N,).
        ridge: (d, d_I), the regression's coefficients.

    Returns:
        (d, k) and (d_I, k).
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    left, sizes, right = np.linalg.svd(ridge, full_matrices=False)
    kept = min(CONTRASTIVE_SIZE, len(sizes))
    begin = 0.3 * left[:, :kept] * sizes[:kept] / max(sizes[0], 1e-12)
    maps = [
        torch.tensor(values, dtype=torch.float32, requires_grad=True)
        for values in (begin, right[:kept].T)
    ]
    scale = max(np.sqrt(np.square(faces).sum(1).mean()), 1e-12)
    all_codes, all_faces = (
        torch.tensor(values, dtype=torch.float32) for values in (codes, faces / scale)
    )
    optimizer = torch.optim.AdamW(maps, lr=1e-3)
    generator = np.random.default_rng(seed)
    clips_of = [np.flatnonzero(people == who) for who in np.unique(people)]
    right_one = torch.arange(len(clips_of))
    for _ in range(CONTRASTIVE_STEPS):
        batch = all_codes[[int(generator.choice(clips)) for clips in clips_of]]
        similar = normalize(batch @ maps[0], dim=1) @ normalize(all_faces @ maps[1], dim=1).T / 0.2
        loss = cross_entropy(similar, right_one) + cross_entropy(similar.T, right_one)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    code_map, face_map = (values.detach().numpy().astype(np.float64) for values in maps)
    return code_map, face_map


# ---- verification and linkage --------------------------------------------------------------------


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _matches(
    victims: _Clips,
    sources: Mapping[str, _Clips],
    photographs: Mapping[str, np.ndarray],
    seed: int,
) -> Iterator[Attack]:
    people = np.unique(victims.people)
    trials: dict[tuple[str, str, bool], Trials] = defaultdict(lambda: Trials(people))
    for source, number, learned, attacked, half in _splits(victims, sources, seed):
        mine, theirs = _prepared(learned, attacked)
        maps = {"verification, learned": learned_metric(mine, learned.people)}
        if source == OTHERS:
            maps["verification, cosine"] = np.eye(mine.shape[1])
        codes = {name: _unit(theirs @ metric) for name, metric in maps.items()}
        predicted = _linked(mine, learned, theirs, seed + number)
        for enrolled in (half, ~half):
            who, whose = attacked.people[~enrolled], attacked.people[enrolled]
            other_label = attacked.labels[~enrolled, None] != attacked.labels[enrolled]
            for name, vectors in codes.items():
                one, other = vectors[~enrolled], vectors[enrolled]
                trials[name, source, False].add(one @ other.T, who, whose, other_label)
                one, other = _unit(_means(one, who)), _unit(_means(other, whose))
                trials[name, source, True].add(one @ other.T, np.unique(who), np.unique(whose))
            for name, (vectors, face_of) in predicted.items():
                one = vectors[~enrolled]
                other = _unit(_means(face_of(attacked.identities[enrolled]), whose))
                trials[name, source, False].add(one @ other.T, who, np.unique(whose))
                one = _unit(_means(one, who))
                trials[name, source, True].add(one @ other.T, np.unique(who), np.unique(whose))
        shown = [who for who in np.unique(attacked.people) if who in photographs]
        if len(shown) < 2:
            continue
        asked = np.isin(attacked.people, shown)
        who, whose = attacked.people[asked], np.array(shown)
        z_I = np.array([photographs[name] for name in shown])
        for name, (vectors, face_of) in predicted.items():
            one, other = vectors[asked], _unit(face_of(z_I))
            name = OF_PHOTOGRAPHS + name
            trials[name, source, False].add(one @ other.T, who, whose)
            trials[name, source, True].add(_unit(_means(one, who)) @ other.T, whose, whose)
    for name in (*ATTACKS, *(OF_PHOTOGRAPHS + name for name in ATTACKS)):
        for source in sources:
            if (name, source, True) in trials:
                # The cosine learns nothing of them but how its dimensions are scaled.
                widened = 1.0 if name == ATTACKS[0] else widening(source)
                one, pooled = (
                    trials[name, source, pool].estimates(seed, widened) for pool in (False, True)
                )
                yield Attack(name, source, "auc", one, pooled)


def _linked(
    mine: np.ndarray, learned: _Clips, theirs: np.ndarray, seed: int
) -> dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
    """By each of the attackers, the victims' codes in the space that they have in common with
    faces, (N, k), and what brings z_I there, (M, d_I) → (M, k)."""
    identities = _means(learned.identities, learned.people)
    center = identities.mean(0)
    numbers = np.unique(learned.people, return_inverse=True)[1]
    targets = (identities - center)[numbers]
    white = whitening(mine, learned.people)
    mine, theirs = mine @ white, theirs @ white
    ridge = fit_ridge(mine, targets, learned.people)
    code_map, face_map = fit_contrastive(mine, identities - center, learned.people, ridge.map, seed)
    return {
        "linkage, ridge": (_unit(ridge(theirs)), lambda z_I: z_I - center),
        "linkage, MLP": (_unit(fit_mlp(mine, targets, seed)(theirs)), lambda z_I: z_I - center),
        "linkage, contrastive": (_unit(theirs @ code_map), lambda z_I: (z_I - center) @ face_map),
    }


class Trials:
    """Comparisons of probes with enrolled people, counted by who is compared with whom.

    A score counts by its rank among those of different people of the same split: scores of two
    splits, whose attackers are not the same, are not comparable as they are. So the bins of
    different people are equally full, and AUC, EER and linkability follow from those of the same.
    """

    def __init__(self, people: np.ndarray) -> None:
        self.people = people
        self.counts = np.zeros((len(people), len(people), NUM_BINS), np.float32)
        self.hits: list[tuple[np.ndarray, np.ndarray, int]] = []

    def add(
        self,
        scores: np.ndarray,
        probes: np.ndarray,
        enrolled: np.ndarray,
        compared: np.ndarray | None = None,
    ) -> None:
        """Add the comparisons of a split.

        Args:
            scores: float (N, M), high where both are likely to be the same person.
            probes, enrolled: the people, (N,) and (M,).
            compared: bool (N, M), which comparisons count; None: all.
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
        rows, columns = np.nonzero(compared)
        np.add.at(self.counts, (who[rows], whose[columns], bins[rows, columns]), 1)
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
        weights = _resampled(len(self.people), seed)
        found = {}
        mated, others = self._histograms(weights)
        shuffled = self._as_if_mated(seed)
        num_bins = int(np.clip(np.trace(self.counts.sum(2)) // 10, 2, 100))
        for name, measure, chance in (
            ("auc", auc_of_histograms, 0.5),
            ("eer", eer_of_histograms, 0.5),
            (
                "d_sys",
                lambda one, two: linkability(_merged(one, num_bins), _merged(two, num_bins)),
                None,
            ),
        ):
            values = measure(mated, others)
            by_chance = float(measure(*shuffled).mean()) if chance is None else chance
            found[name] = _estimate(values, by_chance, widened)
        if self.hits:
            who = np.concatenate([people for people, _, _ in self.hits])
            hits = np.concatenate([hits for _, hits, _ in self.hits])
            chance = float(np.mean(np.concatenate([[1 / n] * len(p) for p, _, n in self.hits])))
            found["rank1"] = _estimate(_by_person(hits, who, weights), chance, widened)
        return found

    def _histograms(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the scores of one and of two people, of each resample: (B, P) → 2 × (B, NUM_BINS)."""
        own = np.arange(len(self.people))
        mated = weights @ self.counts[own, own]
        # A pair counts by how often both of its people were drawn; two draws of one are no pair.
        others = self.counts.copy()
        others[own, own] = 0
        by_probe = np.einsum("bq,pqs->bps", weights, others, optimize=True)
        return mated, np.einsum("bp,bps->bs", weights, by_probe, optimize=True)

    def _as_if_mated(self, seed: int, draws: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """As `_histograms`, with another person's comparisons in place of each person's own."""
        generator = np.random.default_rng(seed)
        compared = self.counts.any(2) & ~np.eye(len(self.people), dtype=bool)
        mated = np.zeros((draws, NUM_BINS))
        for draw in range(draws):
            others = (generator.random(compared.shape) * compared).argmax(1)
            mated[draw] = self.counts[np.arange(len(others)), others].sum(0)
        _, others = self._histograms(np.ones((1, len(self.people))))
        return mated, np.repeat(others, draws, axis=0)


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


def widening(learned_from: str) -> float:
    """How much wider an interval is than the bootstrap over the victims says.

    Where victims are attackers in turn, the parts are not independent: their attackers are mostly
    the same people. The variance is that of Nadeau & Bengio ("Inference for the Generalization
    Error", Machine Learning 2003): 1/n becomes 1/n + (people attacked) / (people learned from).
    """
    return float(np.sqrt(1 + NUM_FOLDS / (NUM_FOLDS - 1))) if learned_from == OTHERS else 1.0


def _resampled(num_people: int, seed: int) -> np.ndarray:
    """How often each person is in a resample: (1 + NUM_RESAMPLES, P); first, all once."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(num_people, [1 / num_people] * num_people, NUM_RESAMPLES)
    return np.concatenate([np.ones((1, num_people)), drawn])


def _by_person(values: np.ndarray, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of values, those of each person weighted: (N,), numbers (N,), (B, P) → (B,)."""
    size = weights.shape[1]
    sums = weights @ np.bincount(people, values, size)
    return sums / np.maximum(weights @ np.bincount(people, minlength=size), 1e-12)


def _estimate(
    values: np.ndarray, chance: float, widened: float = 1.0, least: float = 0.0
) -> Estimate:
    """The first value, with the interval of the others, `widened` by a factor.

    A resample has the same people twice, which makes some figures (D_sys) larger in all of them:
    the interval is moved back by that. It ends at `least` and at 1, beyond which no value is.
    """
    value, resampled = float(values[0]), values[1:]
    low, high = np.quantile(resampled, [0.025, 0.975]) - resampled.mean()
    low, high = value + widened * min(low, 0.0), value + widened * max(high, 0.0)
    return Estimate(value, float(max(low, least)), float(min(high, 1.0)), chance)


# ---- identification, attributes, inversion -------------------------------------------------------


def _identification(training: _Clips, seed: int) -> list[Attack]:
    """Name the training person from clips of other videos than the attacker has of them.

    The expressions may be the same: the mean of each class is taken away first.
    """
    from sklearn.linear_model import LogisticRegression

    people = np.unique(training.people)
    if len(people) < 2:
        return []
    known = _half_of_videos(training, np.random.default_rng(seed))
    known &= np.isin(training.people, training.people[~known])
    asked = ~known & np.isin(training.people, training.people[known])
    if not asked.any() or len(np.unique(training.people[known])) < 2:
        return []
    mine, theirs = _prepared(training[known], training[asked])
    model = LogisticRegression(C=0.1, max_iter=300).fit(mine, training.people[known])
    likely = model.predict_log_proba(theirs)
    who = np.searchsorted(people, training.people[asked])
    right = (model.classes_[likely.argmax(1)] == training.people[asked]).astype(float)
    weights = _resampled(len(people), seed)
    chance = float(np.bincount(who).max() / len(who))
    one = _estimate(_by_person(right, who, weights), chance)
    asked_people = np.unique(who)
    pooled = model.classes_[_means(likely, who).argmax(1)] == people[asked_people]
    all_clips = _estimate(
        _by_person(pooled.astype(float), asked_people, weights), 1 / len(asked_people)
    )
    name = f"identification, {len(asked_people)} people"
    return [Attack(name, TRAINING, "accuracy", {"accuracy": one}, {"accuracy": all_clips})]


def _read(
    learned: _Clips, attacked: _Clips, wanted: Mapping[str, np.ndarray], pool: bool, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Predict what is `wanted` of each person, (k,), from one code or from the mean of all.

    Pooled, it is fitted to such means as well: as they have less noise, more of them is believed.

    Args:
        balanced: what is wanted says which of k values a person has, and all values weigh the same.

    Returns:
        The people attacked, once for each prediction, and the predictions (N, k).
    """
    mine, theirs = _prepared(learned, attacked)
    white = whitening(mine, learned.people)
    mine, theirs = mine @ white, theirs @ white
    people, asked = learned.people, attacked.people
    if pool:
        mine, theirs = _means(mine, people), _means(theirs, asked)
        people, asked = np.unique(people), np.unique(asked)
    targets = np.array([wanted[who] for who in people])
    weights = targets @ (1 / targets.sum(0)) if balanced else None
    return asked, fit_ridge(mine, targets, people, weights)(theirs)


def _attribute(
    name: str, values: Mapping[str, str], victims: _Clips, sources: Mapping[str, _Clips], seed: int
) -> Iterator[Attack]:
    """Read an attribute of people from others' codes: mean recall over its values, by person."""
    from sklearn.model_selection import StratifiedKFold

    counts = Counter(values[who] for who in np.unique(victims.people) if who in values)
    kinds = sorted(value for value, count in counts.items() if count >= LEAST_OF_A_VALUE)
    if len(kinds) < 2:
        return
    wanted = {who: np.eye(len(kinds))[kinds.index(v)] for who, v in values.items() if v in kinds}
    victims = victims[np.isin(victims.people, [*wanted])]
    people = np.unique(victims.people)
    truth = np.array([wanted[who].argmax() for who in people])
    folds = min(NUM_FOLDS, *(counts[value] for value in kinds))
    for source, known in sources.items():
        known = known[np.isin(known.people, [*wanted])]
        if {values[who] for who in known.people} != {*kinds}:
            continue
        right: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {False: [], True: []}
        for repeat in range(NUM_REPEATS if source == OTHERS else 1):
            # The values are as frequent in every fold: where one is rarer among the attacker's
            # people whenever it is right, the attack is worse than chance.
            splitter = StratifiedKFold(folds, shuffle=True, random_state=seed + repeat)
            parts = [part for _, part in splitter.split(people, truth)]
            for part in parts if source == OTHERS else [np.arange(len(people))]:
                mine = np.isin(victims.people, people[part])
                learned = known[~mine] if source == OTHERS else known
                for pool, found in right.items():
                    asked, scores = _read(learned, victims[mine], wanted, pool, balanced=True)
                    who = np.searchsorted(people, asked)
                    found.append((who, scores.argmax(1) == truth[who]))
        one, pooled = (
            _mean_recall(found, truth, seed, widening(source)) for found in right.values()
        )
        title = f"{name}, {len(kinds)} values"
        yield Attack(title, source, "recall", {"recall": one}, {"recall": pooled})


def _mean_recall(
    found: Sequence[tuple[np.ndarray, np.ndarray]], truth: np.ndarray, seed: int, widened: float
) -> Estimate:
    """The mean over the values (P,) of `found`: numbers of people, and who is recognized."""
    who, hits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    recalls = []
    for kind in np.unique(truth):
        # Drawn within each value, so that none is missing in a resample.
        of_it = np.flatnonzero(truth == kind)
        weights = np.zeros((1 + NUM_RESAMPLES, len(truth)))
        weights[:, of_it] = _resampled(len(of_it), seed)
        recalls.append(_by_person(hits.astype(float), who, weights))
    return _estimate(np.mean(recalls, axis=0), 1 / len(recalls), widened)


def _inversion(
    faces: Mapping[str, np.ndarray], victims: _Clips, sources: Mapping[str, _Clips], seed: int
) -> tuple[list[Attack], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Rebuild pictures: the share of their variance about the attacker's mean face explained."""
    victims = victims[np.isin(victims.people, [*faces])]
    people = np.unique(victims.people)
    attacks: list[Attack] = []
    rebuilt: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if len(people) < LEAST_VICTIMS:
        return attacks, rebuilt
    wanted = {who: face.ravel() for who, face in faces.items()}
    for source, known in sources.items():
        known = known[np.isin(known.people, [*faces])]
        if len(np.unique(known.people)) < LEAST_PEOPLE:
            continue
        sums = {pool: np.zeros((2, len(people))) for pool in (False, True)}
        for _, _, learned, attacked, _ in _splits(victims, {source: known}, seed):
            mean = np.mean([wanted[who] for who in np.unique(learned.people)], axis=0)
            for pool, (left, total) in sums.items():
                asked, guesses = _read(learned, attacked, wanted, pool, balanced=False)
                real = np.array([wanted[who] for who in asked])
                who = np.searchsorted(people, asked)
                left += np.bincount(who, np.square(real - guesses).sum(1), len(people))
                total += np.bincount(who, np.square(real - mean).sum(1), len(people))
            # The last is of all clips together.
            for name, guess in zip(asked, guesses, strict=True):
                rebuilt[str(name)] = (faces[name], guess.reshape(faces[name].shape))
        weights = _resampled(len(people), seed)
        one, pooled = (
            _estimate(
                1 - (weights @ left) / np.maximum(weights @ total, 1e-12),
                chance=0.0,
                widened=widening(source),
                least=-np.inf,
            )
            for left, total in sums.values()
        )
        attacks.append(
            Attack("inversion, ridge", source, EXPLAINED, {EXPLAINED: one}, {EXPLAINED: pooled})
        )
    return attacks, rebuilt
