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

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from cfer.evaluate.attackers import (
    NUM_FOLDS,
    Clips,
    Linker,
    Verifier,
    attackers,
    cosine,
    fit_ridge,
    half_of_videos,
    means_of,
    prepared,
    whitening,
)
from cfer.evaluate.metrics import ScoredClips
from cfer.evaluate.trials import (
    NUM_RESAMPLES,
    Estimate,
    Trials,
    by_person,
    estimate,
    resampled,
)

NUM_REPEATS = 3  # each person is a victim once in each
LEAST_PEOPLE = 10  # of fewer, an attacker learns nothing
LEAST_VICTIMS = 5  # of fewer, an interval says nothing
LEAST_OF_A_VALUE = 4  # people, of an attribute
MOST_PEOPLE, MOST_CLIPS = 120, 6000  # attacked: of each pair of these there is a score
EXPLAINED = "explained"
OF_PHOTOGRAPHS = "photographs, "
OTHERS, TRAINING = "held-out", "training"  # whom the attacker learns from
VERIFICATION, LINKAGE = "verification", "linkage"
ATTACKS = (
    "verification, cosine",
    "verification, learned",
    "verification, likelihood",
    "linkage, ridge",
    "linkage, MLP",
    "linkage, contrastive",
    "linkage, likelihood",
)
SUITE_FIGURE, SUITE_VERSION = "attack/suite", 3.0  # of all attacks, as they are here


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
        chances: by `chance_of`'s name, the AUC that the strongest attack of a kind reaches where
            nobody is who he is said to be: of several attacks one is above 0.5.
    """

    people: int = 0
    clips: int = 0
    clips_pooled: float = 0.0
    attacks: list[Attack] = field(default_factory=list)
    rebuilt: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    chances: dict[str, float] = field(default_factory=dict)


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
    known = Clips.of(held_out, videos)
    victims = _attackable(known, seed)
    people = np.unique(victims.people)
    others = Clips.of(training, videos)
    others = others[~np.isin(others.people, known.people)]
    sources = {
        source: clips
        for source, clips in ((OTHERS, victims), (TRAINING, _of_several_videos(others)))
        if len(np.unique(clips.people)) >= LEAST_PEOPLE
    }
    if len(people) < LEAST_VICTIMS or not sources:
        return Suite()
    matches, chances = _matches(victims, sources, photographs or {}, seed)
    attacks = [*matches, *_identification(others, seed)]
    for name in sorted({name for known in (groups or {}).values() for name in known}):
        values = {who: known[name] for who, known in (groups or {}).items() if name in known}
        attacks += _attribute(name, values, victims, sources, seed)
    inversions, rebuilt = _inversion(faces or {}, victims, sources, seed)
    _, sizes = np.unique(victims.people, return_counts=True)
    return Suite(
        len(people),
        len(victims.people),
        float(sizes.mean() / 2),
        attacks + inversions,
        rebuilt,
        chances,
    )


def attack_figures(suite: Suite) -> dict[str, float]:
    """The suite for a table of runs: `attack/linkage_ridge_training_auc`, `…_pooled_auc`, …"""
    found = {}
    for attack in suite.attacks:
        name = f"{attack.name} {attack.learned_from}".replace(",", "").replace(" ", "_")
        for when, estimates in (("", attack.one), ("pooled_", attack.pooled)):
            for figure, measured in estimates.items():
                found[f"attack/{name}_{when}{figure}".replace(" ", "_")] = measured.value
    return found | suite.chances | ({SUITE_FIGURE: SUITE_VERSION} if suite.people else {})


def is_of_this_suite(figures: Mapping[str, float]) -> bool:
    """Whether these figures are of the attacks as they are now, or of none."""
    return not any(map(is_attack, figures)) or figures.get(SUITE_FIGURE) == SUITE_VERSION


def is_attack(figure: str) -> bool:
    """Whether a figure of this name is one of `attack_figures`."""
    return figure.startswith("attack/")


def chance_of(figures: Mapping[str, float], kind: str, pooled: bool = True) -> float:
    """The AUC that the `strongest` attack reaches by chance; 0.5 where it is not known."""
    return figures.get(_chance_name(kind, pooled), 0.5)


def _chance_name(kind: str, pooled: bool) -> str:
    return f"attack/chance_of_{kind}{'_pooled' * pooled}"


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


def _attackable(clips: Clips, seed: int) -> Clips:
    """At most `MOST_CLIPS` of at most `MOST_PEOPLE`, each with two videos or more."""
    generator = np.random.default_rng(seed)
    people = generator.permutation(np.unique(clips.people))[:MOST_PEOPLE]
    clips = clips[np.isin(clips.people, people)]
    return _of_several_videos(clips[np.sort(generator.permutation(len(clips.people))[:MOST_CLIPS])])


def _of_several_videos(clips: Clips) -> Clips:
    """Those of people of whom there are two videos or more."""
    counts = Counter(who for who, _ in {*zip(clips.people, clips.videos, strict=True)})
    several = [who for who, count in counts.items() if count > 1]
    return clips[np.isin(clips.people, several)]


def _splits(
    victims: Clips, sources: Mapping[str, Clips], seed: int
) -> Iterator[tuple[str, tuple[int, int], Clips, Clips, np.ndarray]]:
    """(whom the attacker learns from, which repeat and which fold of it, their clips, the victims',
    which half each of these is in).

    Each victim's videos fall into two halves at random: codes of one are compared with what is
    *enrolled* of the other. The halves are of the same expected size for all people: to leave only
    a probe's own video out would make the enrolled mean of the right person noisier than those of
    the others, and the attack worse than chance.
    """
    people = np.unique(victims.people)
    for name, known in sources.items():
        for repeat in range(NUM_REPEATS if name == OTHERS else 1):
            generator = np.random.default_rng([seed, repeat])
            half = half_of_videos(victims, generator)
            shuffled = generator.permutation(people)
            folds = np.array_split(shuffled, NUM_FOLDS) if name == OTHERS else [shuffled]
            for fold, attacked in enumerate(folds):
                mine = np.isin(victims.people, attacked)
                learned = known[~mine] if name == OTHERS else known
                yield name, (repeat, fold), learned, victims[mine], half[mine]


def widening(learned_from: str) -> float:
    """How much wider an interval is than the bootstrap over the victims says.

    Where victims are attackers in turn, the parts are not independent: their attackers are mostly
    the same people. The variance is that of Nadeau & Bengio ("Inference for the Generalization
    Error", Machine Learning 2003): 1/n becomes 1/n + (people attacked) / (people learned from).
    """
    return float(np.sqrt(1 + NUM_FOLDS / (NUM_FOLDS - 1))) if learned_from == OTHERS else 1.0


# ---- verification and linkage --------------------------------------------------------------------


def _matches(
    victims: Clips,
    sources: Mapping[str, Clips],
    photographs: Mapping[str, np.ndarray],
    seed: int,
) -> tuple[list[Attack], dict[str, float]]:
    """The attacks; and the AUC that the strongest of each kind reaches by chance."""
    people = np.unique(victims.people)
    trials: dict[tuple[str, str, bool], Trials] = defaultdict(lambda: Trials(people))
    for source, split, learned, attacked, half in _splits(victims, sources, seed):
        mine, theirs = prepared(learned, attacked)
        repeat, fold = split
        verifiers, linkers = attackers(mine, seed + repeat * NUM_FOLDS + fold)
        if source == OTHERS:  # it learns nothing of them but how dimensions are scaled
            verifiers["cosine"] = cosine(np.eye(mine.codes.shape[1]))
        for pool in (False, True):
            for each in _comparisons(verifiers, linkers, theirs, half, photographs, pool):
                who = np.unique(each.probes) if pool else each.probes
                trial = trials[each.name, source, pool]
                trial.add(each.scores, who, each.enrolled, each.compared, split)
    found = []
    for name in (*ATTACKS, *(OF_PHOTOGRAPHS + name for name in ATTACKS)):
        for source in sources:
            if (name, source, True) in trials:
                # The cosine learns nothing of them but how its dimensions are scaled.
                widened = 1.0 if name == ATTACKS[0] else widening(source)
                figures = [
                    trials[name, source, pool].estimates(seed, widened) for pool in (False, True)
                ]
                found.append(Attack(name, source, "auc", *figures))
    chances = {}
    for kind, pool in itertools.product((VERIFICATION, LINKAGE), (False, True)):
        by_chance = [
            tried.auc_by_chance()
            for (name, _, pooled), tried in trials.items()
            if pooled == pool and name.startswith(kind)
        ]
        chances[_chance_name(kind, pool)] = float(np.max(by_chance, axis=0).mean())
    return found, chances


class _Comparison(NamedTuple):
    """Scores of an attack, (N, M); the person of each probe clip; the people who are enrolled,
    (M,); and which scores count, None: all."""

    name: str
    scores: np.ndarray
    probes: np.ndarray
    enrolled: np.ndarray
    compared: np.ndarray | None = None


def _comparisons(
    verifiers: Mapping[str, Verifier],
    linkers: Mapping[str, Linker],
    theirs: Clips,
    half: np.ndarray,
    photographs: Mapping[str, np.ndarray],
    pool: bool,
) -> Iterator[_Comparison]:
    """Of one half of the victims' clips with the other, and of all with photographs."""
    one, other = theirs[~half], theirs[half]
    for name, verify in verifiers.items():
        name, scores = f"{VERIFICATION}, {name}", verify(one, other, pool)
        # The other way round, the same pairs would be compared.
        if pool:
            yield _Comparison(name, scores, one.people, np.unique(other.people))
        else:
            other_label = one.labels[:, None] != other.labels
            yield _Comparison(name, scores, one.people, other.people, other_label)
    shown = [who for who in np.unique(theirs.people) if who in photographs]
    for name, link in linkers.items():
        name = f"{LINKAGE}, {name}"
        for probes, enrolled in ((one, other), (other, one)):
            scores = link(probes, means_of(enrolled.identities, enrolled.people), pool)
            yield _Comparison(name, scores, probes.people, np.unique(enrolled.people))
        if len(shown) > 1:
            asked = theirs[np.isin(theirs.people, shown)]
            scores = link(asked, np.array([photographs[who] for who in shown]), pool)
            yield _Comparison(OF_PHOTOGRAPHS + name, scores, asked.people, np.array(shown))


# ---- identification, attributes, inversion -------------------------------------------------------


def _identification(training: Clips, seed: int) -> list[Attack]:
    """Name the training person from clips of other videos than the attacker has of them.

    The expressions may be the same: the mean of each class is taken away first.
    """
    from sklearn.linear_model import LogisticRegression

    people = np.unique(training.people)
    if len(people) < 2:
        return []
    known = half_of_videos(training, np.random.default_rng(seed))
    known &= np.isin(training.people, training.people[~known])
    asked = ~known & np.isin(training.people, training.people[known])
    if not asked.any() or len(np.unique(training.people[known])) < 2:
        return []
    mine, theirs = prepared(training[known], training[asked])
    model = LogisticRegression(C=0.1, max_iter=300).fit(mine.codes, mine.people)
    likely = model.predict_log_proba(theirs.codes)
    who = np.searchsorted(people, training.people[asked])
    right = (model.classes_[likely.argmax(1)] == training.people[asked]).astype(float)
    weights = resampled(len(people), seed)
    chance = float(np.bincount(who).max() / len(who))
    one = estimate(by_person(right, who, weights), chance)
    asked_people = np.unique(who)
    pooled = model.classes_[means_of(likely, who).argmax(1)] == people[asked_people]
    all_clips = estimate(
        by_person(pooled.astype(float), asked_people, weights), 1 / len(asked_people)
    )
    name = f"identification, {len(asked_people)} people"
    return [Attack(name, TRAINING, "accuracy", {"accuracy": one}, {"accuracy": all_clips})]


def _read(
    learned: Clips, attacked: Clips, wanted: Mapping[str, np.ndarray], pool: bool, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Predict what is `wanted` of each person, (k,), from one code or from the mean of all.

    Pooled, it is fitted to such means as well: as they have less noise, more of them is believed.

    Args:
        balanced: what is wanted says which of k values a person has, and all values weigh the same.

    Returns:
        The people attacked, once for each prediction, and the predictions (N, k).
    """
    mine, theirs = prepared(learned, attacked)
    white = whitening(mine.codes, mine.people)
    one, other = mine.codes @ white, theirs.codes @ white
    people, asked = learned.people, attacked.people
    if pool:
        one, other = means_of(one, people), means_of(other, asked)
        people, asked = np.unique(people), np.unique(asked)
    targets = np.array([wanted[who] for who in people])
    weights = targets @ (1 / targets.sum(0)) if balanced else None
    return asked, fit_ridge(one, targets, people, weights)(other)


def _attribute(
    name: str, values: Mapping[str, str], victims: Clips, sources: Mapping[str, Clips], seed: int
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
        who_is_known = np.unique(known.people)
        if len(who_is_known) < LEAST_PEOPLE or {values[who] for who in who_is_known} != {*kinds}:
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
        weights[:, of_it] = resampled(len(of_it), seed)
        recalls.append(by_person(hits.astype(float), who, weights))
    return estimate(np.mean(recalls, axis=0), 1 / len(recalls), widened)


def _inversion(
    faces: Mapping[str, np.ndarray], victims: Clips, sources: Mapping[str, Clips], seed: int
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
        weights = resampled(len(people), seed)
        one, pooled = (
            estimate(
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
