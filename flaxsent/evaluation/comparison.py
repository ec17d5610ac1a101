"""Two models on the same texts: where they differ, and whether that can be chance (McNemar 1947)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxsent.base import FlaxsentError
from flaxsent.evaluation.report import Data, Targets
from flaxsent.models.config import ModelConfig


class Comparison(NamedTuple):
    """How many texts each of two models has right, and the chance of such a difference between equals."""

    both: int
    only_first: int
    only_second: int
    neither: int
    exact_p: float
    """Of the binomial test, two-sided: McNemar's exact test."""
    statistic: float
    """Chi-squared with Edwards' correction for continuity; NaN where the models are right about the same texts."""
    p: float
    """Of the statistic."""


class Difference(NamedTuple):
    """A text that one of the models alone has right."""

    record: int
    """Its number in the file."""
    label: str
    first: str
    """What the first model says; several labels with commas between."""
    second: str
    text: str | tuple[str, str]


def compare(right_B: Bool[np.ndarray, " B"], other_B: Bool[np.ndarray, " B"]) -> Comparison:
    """McNemar's test of which texts two models have right, exact and by the statistic.

    >>> compare(np.array([True] * 9 + [False]), np.array([True] * 3 + [False] * 6 + [True]))[:5]
    (3, 6, 1, 0, 0.125)
    """
    from scipy import stats  # takes half a second, which only --compare needs

    only_first, only_second = int((right_B & ~other_B).sum()), int((other_B & ~right_B).sum())
    differing = only_first + only_second
    exact_p, statistic, p = 1.0, float("nan"), 1.0
    if differing:
        exact_p = float(stats.binomtest(only_first, differing).pvalue)
        statistic = (abs(only_first - only_second) - 1) ** 2 / differing
        p = float(stats.chi2.sf(statistic, 1))
    both, neither = int((right_B & other_B).sum()), int((~right_B & ~other_B).sum())
    return Comparison(both, only_first, only_second, neither, exact_p, statistic, p)


def check(config: ModelConfig, other: ModelConfig) -> list[int]:
    """The place of each label of a model among those of another one.

    Raises:
        FlaxsentError: they have not the same labels and problem type, or it is regression.
    """
    if config.problem_type == "regression":
        raise FlaxsentError("--compare counts the texts that models have right; a model of regression has values.")
    if {*config.labels} != {*other.labels} or config.problem_type != other.problem_type:
        raise FlaxsentError(
            f"--compare: the other model has the labels {', '.join(other.labels):.99} ({other.problem_type}); expected "
            f"{', '.join(config.labels):.99} ({config.problem_type})."
        )
    return [other.labels.index(label) for label in config.labels]


def given(scores_BC: Float[np.ndarray, "B C"], config: ModelConfig) -> Bool[np.ndarray, "B C"]:
    """Which labels each text is given."""
    if config.thresholds is not None:
        return scores_BC > np.array(config.thresholds)
    return np.arange(config.num_labels) == scores_BC.argmax(axis=1)[:, None]


def right(is_given_BC: Bool[np.ndarray, "B C"], targets: Targets) -> Bool[np.ndarray, " B"]:
    """Of which texts all labels are as they should be."""
    return (is_given_BC == _as_given(targets, is_given_BC.shape[1])).all(axis=1)


def differences(
    data: Data,
    config: ModelConfig,
    first_BC: Bool[np.ndarray, "B C"],
    second_BC: Bool[np.ndarray, "B C"],
) -> list[Difference]:
    """The texts that one of two models alone has right, by what is `given`."""
    own_BC = _as_given(data.targets, config.num_labels)
    indices: Int[np.ndarray, " N"] = np.flatnonzero(right(first_BC, data.targets) != right(second_BC, data.targets))
    return [
        Difference(
            data.records[index],
            *(named(one[index], config) for one in (own_BC, first_BC, second_BC)),
            text=data.texts[index],
        )
        for index in indices.tolist()
    ]


def named(is_given_C: Bool[np.ndarray, " C"], config: ModelConfig) -> str:
    """Labels with commas between, or a dash for none."""
    return ", ".join(config.labels[index] for index in np.flatnonzero(is_given_C)) or "–"


def _as_given(targets: Targets, num_labels: int) -> Bool[np.ndarray, "B C"]:
    return targets > 0 if targets.ndim == 2 else np.arange(num_labels) == targets[:, None]
