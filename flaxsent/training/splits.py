"""Labelled texts → parts with like shares of each label: a dev part, or the folds of a cross-validation."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.data.labels import Examples


def select(examples: Examples, chosen: Int[np.ndarray, " M"]) -> Examples:
    """Some of them, by their indices."""
    indices = chosen.tolist()
    return Examples([examples.texts[index] for index in indices], [examples.labels[index] for index in indices])


def split(
    examples: Examples, share: float, *, problem_type: ProblemType, seed: int
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " K"]]:
    """The indices of the texts to learn from and of those of dev, of which there are a `share`.

    Raises:
        FlaxsentError: one of the two would have no text.
    """
    parts = stratify(examples, [1 - share, share], problem_type=problem_type, seed=seed)
    train, dev = np.flatnonzero(parts == 0), np.flatnonzero(parts == 1)
    if not len(train) or not len(dev):
        raise FlaxsentError(
            f"dev_fraction={share:g} of {len(parts):,} texts leaves {len(train):,} to learn from and {len(dev):,} for "
            "dev; expected some of both."
        )
    return train, dev


def folds(examples: Examples, num: int, *, problem_type: ProblemType, seed: int) -> Int[np.ndarray, " N"]:
    """The fold of each text, from 0.

    Raises:
        FlaxsentError: there are more folds than different texts.
    """
    num_texts = len({*examples.texts})
    if num > num_texts:
        raise FlaxsentError(f"folds={num} are more than the {num_texts:,} different texts; expected as many at most.")
    parts = stratify(examples, [1 / num] * num, problem_type=problem_type, seed=seed)
    if empty := {*range(num)} - {*parts.tolist()}:
        raise FlaxsentError(f"{len(empty)} of {num} folds would have no text; expected fewer folds.")
    return parts


def stratify(
    examples: Examples, shares: Sequence[float], *, problem_type: ProblemType, seed: int
) -> Int[np.ndarray, " N"]:
    """The part of each text, by iterative stratification (Sechidis et al. 2011), the rarest label first.

    Each part has its share of the texts of each label; of regression, of each tenth of the values. Texts that are the
    same are in the same part, whatever their labels: what is tested has not been seen.

    >>> data = Examples([*"abcdef"], [0, 0, 0, 0, 1, 1])
    >>> stratify(data, [0.5, 0.5], problem_type="single_label_classification", seed=0).tolist().count(0)
    3
    """
    same = defaultdict(list)
    for index, text in enumerate(examples.texts):
        same[text].append(index)
    groups, strata = [*same.values()], _strata(examples.labels, problem_type)
    counts = [Counter(stratum for index in indices for stratum in strata[index]) for indices in groups]
    members = defaultdict(list)
    for group, found in enumerate(counts):
        for stratum in found:
            members[stratum].append(group)
    rng, share_P = np.random.default_rng(seed), np.array(shares)
    wanted = {stratum: share_P * sum(counts[group][stratum] for group in of) for stratum, of in members.items()}
    room_P = share_P * len(examples.texts)
    part_N = np.full(len(examples.texts), -1)
    for stratum in sorted(members, key=lambda stratum: (len(members[stratum]), stratum)):
        for group in rng.permutation(members[stratum]).tolist():
            if part_N[groups[group][0]] < 0:
                # Rounded, what is equal but for the order of its sums is equal.
                ranking = np.lexsort((rng.random(len(shares)), room_P.round(6), wanted[stratum].round(6)))
                part = part_N[groups[group]] = ranking[-1]
                room_P[part] -= len(groups[group])
                for other, count in counts[group].items():
                    wanted[other][part] -= count
    return part_N


_TENTHS = 10


def _strata(labels: Sequence[int | float | tuple[int, ...]], problem_type: ProblemType) -> list[tuple[int, ...]]:
    """What a text is counted by; −1 if it has no label."""
    match problem_type:
        case "single_label_classification":
            return [(int(label),) for label in labels]  # pyright: ignore[reportArgumentType]
        case "multi_label_classification":
            return [tuple(label) or (-1,) for label in labels]  # pyright: ignore[reportArgumentType]
        case "regression":
            ranks = np.argsort(np.argsort(np.asarray(labels, np.float64), kind="stable"), kind="stable")
            return [(int(rank) * _TENTHS // len(labels),) for rank in ranks]
