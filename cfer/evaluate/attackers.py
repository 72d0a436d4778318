"""What an attacker learns from people, to be used on others: whom codes belong to.

An attacker is given codes less the mean of their class, since the expression is known. Of a single
clip it has the code. Of several it has what *describes* them (`described`): their mean, how the
mean of each class differs from that, since who somebody is may show in one expression alone, and
how much the codes vary. Some look at the mean alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from cfer.evaluate.metrics import ScoredClips, standardized

NUM_FOLDS = 5
STRENGTHS = np.logspace(-3, 5, 9)  # of ridge regressions of whitened codes
CONTRASTIVE_SIZE, CONTRASTIVE_STEPS = 16, 50
NUM_HALVES = 4  # times that the clips of the attacker's people are cut into two
MOST_OF_A_FACE = 32  # leading directions of z_I that a likelihood is of


@dataclass(frozen=True)
class Clips:
    """Clips of known people: (N, d), (N, d_I), (N,), (N,), (N,)."""

    codes: np.ndarray
    identities: np.ndarray
    people: np.ndarray
    labels: np.ndarray
    videos: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Clips:
        return Clips(*(values[chosen] for values in vars(self).values()))

    @property
    def classes(self) -> np.ndarray:
        return np.unique(self.labels)

    @staticmethod
    def of(clips: ScoredClips, videos: Mapping[str, str]) -> Clips:
        known = np.array([subject is not None for subject in clips.subjects], bool)
        people = np.array([subject or "" for subject in clips.subjects])
        codes, identities = clips.z_R.astype(np.float64), clips.z_I.astype(np.float64)
        of_videos = np.array([videos[clip_id] for clip_id in clips.clip_ids])
        return Clips(codes, identities, people, clips.labels, of_videos)[known]


def means_of(values: np.ndarray, people: np.ndarray) -> np.ndarray:
    """The mean of each person, in the order of `np.unique`: (N, d), (N,) → (P, d)."""
    return np.array([values[people == who].mean(0) for who in np.unique(people)])


def _less_own_mean(values: np.ndarray, people: np.ndarray) -> np.ndarray:
    """How each differs from the mean of its person."""
    return values - means_of(values, people)[np.unique(people, return_inverse=True)[1]]


def _counts(people: np.ndarray) -> np.ndarray:
    """How many there are of each person, in the same order."""
    counts: np.ndarray = np.unique(people, return_counts=True)[1]
    return counts


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def whitening(codes: np.ndarray, people: np.ndarray) -> np.ndarray:
    """(d, d) matrix W: codes @ W vary equally in all directions *within* a person.

    Within-class covariance normalization (Hatch, Kajarekar & Stolcke, Interspeech 2006), with the
    covariance shrunk as by Ledoit & Wolf (2004). It is shrunk toward equal variances, which would
    bury an identity in directions that vary a hundred times less than the expression does: so all
    directions are first given the same variance.
    """
    from sklearn.covariance import ledoit_wolf

    first = _inverse_root(np.atleast_2d(np.cov(codes.T)))
    covariance, _ = ledoit_wolf(_less_own_mean(codes @ first, people), assume_centered=True)
    return first @ _inverse_root(covariance)


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    """(d, d) → a matrix that whitens, and leaves out the directions that do not vary."""
    variances, directions = np.linalg.eigh(covariance)
    varies = variances > 1e-9 * variances[-1]
    return directions * np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0)


def learned_metric(codes: np.ndarray, people: np.ndarray, white: np.ndarray) -> np.ndarray:
    """(d, d) matrix M: the cosine of codes @ M tells the same person from another.

    After their `whitening`, the directions in which people differ, each weighted by how much one
    clip tells of it: the square root of b / (b + 1), where b is the variance between people for 1
    within (probabilistic linear discriminant analysis: Ioffe, ECCV 2006).
    """
    means, clips = means_of(codes @ white, people), _counts(people)
    # The means of few clips vary by 1/n without any identity.
    between = np.atleast_2d(np.cov(means.T)) - np.eye(means.shape[1]) * np.mean(1 / clips)
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
        network.fit(codes, targets[:, 0] if targets.shape[1] == 1 else targets)
    return lambda values: network.predict(values).reshape(len(values), -1)


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


class Verifier(Protocol):
    """Scores of pairs, high where both are likely to be of one person."""

    def __call__(self, one: Clips, other: Clips, pool: bool, /) -> np.ndarray:
        """(clips, clips), or where `pool`, (people, people) in the order of `np.unique`."""


class Linker(Protocol):
    """Scores of codes and faces, high where both are likely to be of one person."""

    def __call__(self, clips: Clips, z_I: np.ndarray, pool: bool, /) -> np.ndarray:
        """z_I, (M, d_I) → (clips, M), or where `pool`, (people, M)."""


def attackers(learned: Clips, seed: int) -> tuple[dict[str, Verifier], dict[str, Linker]]:
    """Those that have learned from some people, each of whom has two videos or more. All are given
    prepared codes (`prepared`)."""
    white = whitening(learned.codes, learned.people)
    whitened = replace(learned, codes=learned.codes @ white)
    several, people = halves(whitened, seed)
    parts = _parts(learned)
    everyone, numbers = np.unique(learned.people, return_inverse=True)
    identities = means_of(learned.identities, learned.people)
    same_of_one = two_covariance(whitened.codes, learned.people, _counts(learned.people))
    same_of_several = [two_covariance(several[:, part], people, 2) for part in parts]
    face_of_one = face_likelihood(whitened.codes, learned.people, identities[numbers])
    of_them = identities[np.searchsorted(everyone, people)]
    face_of_several = [face_likelihood(several[:, part], people, of_them) for part in parts]

    def vectors(clips: Clips, pool: bool) -> list[np.ndarray]:
        clips = replace(clips, codes=clips.codes @ white)
        if not pool:
            return [clips.codes]
        whole = described(clips, learned.classes)
        return [whole[:, part] for part in parts]

    def is_one_person(one: Clips, other: Clips, pool: bool) -> np.ndarray:
        ratios = same_of_several if pool else [same_of_one]
        both = zip(ratios, vectors(one, pool), vectors(other, pool), strict=True)
        total: np.ndarray = np.sum([ratio(x, y) for ratio, x, y in both], axis=0)
        return total

    def has_face(clips: Clips, z_I: np.ndarray, pool: bool) -> np.ndarray:
        ratios = zip(face_of_several if pool else [face_of_one], vectors(clips, pool), strict=True)
        total: np.ndarray = np.sum([ratio(x, z_I) for ratio, x in ratios], axis=0)
        return total

    metric = learned_metric(learned.codes, learned.people, white)
    verifiers: dict[str, Verifier] = {"learned": cosine(metric), "likelihood": is_one_person}
    linkers = _predictors(whitened, white, identities, seed)
    linkers["likelihood"] = has_face
    return verifiers, linkers


def cosine(metric: np.ndarray) -> Verifier:
    """Of codes @ metric; pooled, of the mean of a person's.

    Of the mean of codes, and not of their directions: the codes of a class are less their mean, but
    their directions are not. Where most codes are alike, as of labels that are nearly all right,
    these say which expressions a half of a person's clips shows, and the other half shows the rest.
    """

    def scores(one: Clips, other: Clips, pool: bool) -> np.ndarray:
        vectors = []
        for clips in (one, other):
            each = clips.codes @ metric
            vectors.append(unit(means_of(each, clips.people) if pool else each))
        product: np.ndarray = vectors[0] @ vectors[1].T
        return product

    return scores


def _predictors(
    whitened: Clips, white: np.ndarray, identities: np.ndarray, seed: int
) -> dict[str, Linker]:
    """Those that bring codes, and faces, into one space, and compare their directions there."""
    center = identities.mean(0)
    codes, people = whitened.codes, whitened.people
    targets = (identities - center)[np.unique(people, return_inverse=True)[1]]
    ridge = fit_ridge(codes, targets, people)
    network = fit_mlp(codes, targets, seed)
    code_map, face_map = fit_contrastive(codes, identities - center, people, ridge.map, seed)

    def matched(
        of_codes: Callable[[np.ndarray], np.ndarray], of_faces: Callable[[np.ndarray], np.ndarray]
    ) -> Linker:
        def scores(clips: Clips, faces: np.ndarray, pool: bool) -> np.ndarray:
            each = unit(of_codes(clips.codes @ white))
            vectors = unit(means_of(each, clips.people)) if pool else each
            product: np.ndarray = vectors @ unit(of_faces(faces - center)).T
            return product

        return scores

    return {
        "ridge": matched(ridge, lambda faces: faces),
        "MLP": matched(network, lambda faces: faces),
        "contrastive": matched(lambda codes: codes @ code_map, lambda faces: faces @ face_map),
    }


def prepared(learned: Clips, victims: Clips) -> tuple[Clips, Clips]:
    """Both, their codes less the mean of their class and scaled, by the attacker's people alone.

    The victims' own means would take a part of what tells them apart.
    """
    means = {name: learned.codes[learned.labels == name].mean(0) for name in learned.classes}
    mean = learned.codes.mean(0)
    mine, theirs = (
        clips.codes - np.array([means.get(name, mean) for name in clips.labels])
        for clips in (learned, victims)
    )
    return (
        replace(learned, codes=standardized(mine, mine)),
        replace(victims, codes=standardized(theirs, mine)),
    )


# ---- several clips together ----------------------------------------------------------------------


def described(clips: Clips, classes: np.ndarray) -> np.ndarray:
    """What several clips of a person say together, for each person in the order of `np.unique`.

    Of d numbers in a code and K classes: the mean code, d; the mean of each class less that, K · d,
    and less of it where it is of few clips; and the logarithm of how much each number varies, d.
    """
    rows = []
    for who in np.unique(clips.people):
        codes, labels = clips.codes[clips.people == who], clips.labels[clips.people == who]
        mean = codes.mean(0)
        apart = [
            (codes[labels == name] - mean).sum(0) / (1 + np.count_nonzero(labels == name))
            for name in classes
        ]
        spread = np.log(np.square(codes - mean).mean(0) + 0.1) / 2
        rows.append(np.concatenate([mean, *apart, spread]))
    return np.array(rows)


def _parts(clips: Clips) -> tuple[slice, slice, slice]:
    """Where the three parts of what is `described` lie.

    A likelihood is of each part, and they add up: where all were one vector, few strong directions
    in one would drown in the noise of many in another.
    """
    d = clips.codes.shape[1]
    stop = d + len(clips.classes) * d
    return slice(0, d), slice(d, stop), slice(stop, stop + d)


def halves(clips: Clips, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`described` of each half of each person's videos, of some ways to cut them into two: such as
    the attacker will be given. (N, D), and whose each is; the two halves of one cut follow each
    other."""
    generator = np.random.default_rng(seed)
    found, people = [], []
    for _ in range(NUM_HALVES):
        half = half_of_videos(clips, generator)
        both = np.intersect1d(clips.people[half], clips.people[~half])
        both_there = np.isin(clips.people, both)
        sides = [described(clips[side & both_there], clips.classes) for side in (half, ~half)]
        found.append(np.stack(sides, axis=1).reshape(2 * len(both), -1))
        people.append(both.repeat(2))
    return np.concatenate(found), np.concatenate(people)


def half_of_videos(clips: Clips, generator: np.random.Generator) -> np.ndarray:
    """bool (N,): clips of a random half of each person's videos."""
    chosen = np.zeros(len(clips.people), bool)
    for who in np.unique(clips.people):
        mine = clips.people == who
        videos = generator.permutation(np.unique(clips.videos[mine]))
        chosen |= mine & np.isin(clips.videos, videos[: len(videos) // 2])
    return chosen


# ---- likelihoods ---------------------------------------------------------------------------------


def two_covariance(
    vectors: np.ndarray, people: np.ndarray, independent: np.ndarray | int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The logarithm of the likelihood ratio that two vectors are of one person: (N, D), (M, D) →
    (N, M).

    Persons vary around a mean with one covariance, and vectors around their person with another,
    both Gaussian (the two-covariance model: Brümmer & de Villiers, "The speaker partitioning
    problem", Odyssey 2010; probabilistic linear discriminant analysis in full rank).

    Args:
        vectors: of whitened codes, so that to shrink their covariance buries nothing.
        independent: how many of a person's vectors are independent: of all cuts into halves, two.
    """
    from sklearn.covariance import ledoit_wolf

    # The mean of n vectors varies by 1/n without any identity, and they around it by 1 − 1/n.
    of_mean = float(np.mean(1 / np.asarray(independent)))
    mean, within = vectors.mean(0), _less_own_mean(vectors, people)
    white = _inverse_root(ledoit_wolf(within, assume_centered=True)[0]) * np.sqrt(1 - of_mean)
    own = means_of((vectors - mean) @ white, people)
    shrunk, directions = np.linalg.eigh(ledoit_wolf(own, assume_centered=True)[0])
    as_measured = np.square(own @ directions).mean(0)
    b = np.maximum(shrunk - of_mean, _spikes(as_measured, of_mean, own.shape[1] / len(own)))
    into = white @ directions
    # Of two values x and y: N((x, y); 0, [[1 + b, b], [b, 1 + b]]) / N(x; 0, 1 + b) N(y; 0, 1 + b).
    determinant = 1 + 2 * b
    crossed = b / determinant
    squared = ((1 + b) / determinant - 1 / (1 + b)) / 2
    constant = np.log((1 + b) ** 2 / determinant).sum() / 2

    def scores(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        x, y = (one - mean) @ into, (other - mean) @ into
        product: np.ndarray = (x * crossed) @ y.T
        own = [np.square(values) @ squared for values in (x, y)]
        return constant + product - own[0][:, None] - own[1]

    return scores


def _spikes(variances: np.ndarray, noise: float, dimensions: float) -> np.ndarray:
    """Variances along eigenvectors → what of it is no noise.

    Few large ones among many are measured too large by a known amount, and those below an edge tell
    nothing (Donoho, Gavish & Johnstone, "Optimal shrinkage of eigenvalues in the spiked covariance
    model", Annals of Statistics 2018). To shrink all alike would lose them.

    Args:
        noise: the variance of noise.
        dimensions: of the vectors, divided by how many there are.
    """
    measured = variances / noise
    above = measured > (1 + np.sqrt(dimensions)) ** 2
    middle = np.where(above, measured + 1 - dimensions, 2 * np.sqrt(measured))
    true = (middle + np.sqrt(np.maximum(middle**2 - 4 * measured, 0))) / 2
    return np.where(above, noise * (true - 1), 0.0)


def face_likelihood(
    vectors: np.ndarray, people: np.ndarray, identities: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The logarithm of the likelihood ratio that a vector is of a face's person: (N, D), (M, d_I) →
    (N, M).

    Here codes are explained by faces, and not faces by codes: vector = face @ A + noise, by ridge
    regression and with Gaussian noise, against a face that is not known. Where who somebody is
    shows in few directions of the code, noise in the others counts for nothing.

    Args:
        vectors: as of `two_covariance`.
        identities: z_I of the person of each, (N, d_I).
    """
    from sklearn.covariance import ledoit_wolf

    own = means_of(identities, people)
    center = own.mean(0)
    _, sizes, directions = np.linalg.svd(own - center, full_matrices=False)
    kept = int(np.count_nonzero(sizes > 1e-9 * max(sizes[0], 1e-12)))
    kept = max(min(kept, MOST_OF_A_FACE, len(own) // 3), 1)
    into = directions[:kept].T * (np.sqrt(len(own)) / np.maximum(sizes[:kept], 1e-12))
    faces = (identities - center) @ into
    model = fit_ridge(faces, vectors, people)
    covariance, _ = ledoit_wolf(vectors - model(faces), assume_centered=True)
    weighted = np.linalg.solve(covariance + 1e-9 * np.eye(len(covariance)), model.map.T)  # (D, k)
    information = model.map @ weighted
    marginal = np.linalg.inv(np.eye(kept) + information)

    def scores(codes: np.ndarray, z_I: np.ndarray) -> np.ndarray:
        u, f = (codes - model.offset) @ weighted, (z_I - center) @ into
        known = np.einsum("mk,kl,ml->m", f, information, f) / 2
        unknown = np.einsum("nk,kl,nl->n", u, marginal, u) / 2
        product: np.ndarray = u @ f.T
        return product - known - unknown[:, None]

    return scores
