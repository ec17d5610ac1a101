"""Scores and targets → figures, on the host, each as scikit-learn or SciPy defines it.

A ratio of nothing is 0, which is scikit-learn's `zero_division=0`. A figure that has no meaning is NaN: a correlation
with a constant, the average precision of a label that no text has.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

NUM_BINS = 15
"""Of the reliability diagram, as in Guo et al. 2017, On Calibration of Modern Neural Networks."""


class LabelCounts(NamedTuple):
    """Numbers of texts, for each label."""

    right: Int[np.ndarray, " C"]
    """Texts that have the label and are given it."""
    given: Int[np.ndarray, " C"]
    """Texts to which the model gives the label."""
    support: Int[np.ndarray, " C"]
    """Texts that have the label."""

    @property
    def precision(self) -> Float[np.ndarray, " C"]:
        return _ratio(self.right, self.given)

    @property
    def recall(self) -> Float[np.ndarray, " C"]:
        return _ratio(self.right, self.support)

    @property
    def f1(self) -> Float[np.ndarray, " C"]:
        return _ratio(2 * self.right, self.given + self.support)

    @property
    def micro_f1(self) -> float:
        return float(_ratio(2 * self.right.sum(), self.given.sum() + self.support.sum()))


def count_confused(confusion_CC: Int[np.ndarray, "C C"]) -> LabelCounts:
    """The counts that a confusion matrix holds."""
    return LabelCounts(np.diag(confusion_CC), confusion_CC.sum(axis=0), confusion_CC.sum(axis=1))


def count_labels(
    scores_BC: Float[np.ndarray, "B C"],
    targets_BC: Float[np.ndarray, "B C"],
    thresholds_C: Float[np.ndarray, " C"] | float = 0.5,
) -> LabelCounts:
    """The counts for several labels at once, of which those with a score above their threshold are given."""
    is_given_BC, has_BC = scores_BC > thresholds_C, targets_BC > 0
    return LabelCounts((is_given_BC & has_BC).sum(axis=0), is_given_BC.sum(axis=0), has_BC.sum(axis=0))


def confusion_matrix(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"]) -> Int[np.ndarray, "C C"]:
    """How many texts have the label of the row and the best score for that of the column; of equal scores, the first.

    >>> confusion_matrix(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])).tolist()
    [[1, 0], [1, 0]]
    """
    num_labels = scores_BC.shape[1]
    pairs = np.bincount(labels_B * num_labels + scores_BC.argmax(axis=1), minlength=num_labels**2)
    return pairs.reshape(num_labels, num_labels)


def answered(
    scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"], abstain_below: float
) -> dict[str, int | float]:
    """The share of texts whose best score is at least a threshold, and the accuracy on them; NaN where there is none.

    >>> answered(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]), 0.7)
    {'coverage': 0.5, 'accuracy_of_answered': 1.0}
    """
    is_answered_B = scores_BC.max(axis=1) >= abstain_below
    right_B = scores_BC.argmax(axis=1)[is_answered_B] == labels_B[is_answered_B]
    accuracy = float(right_B.mean()) if len(right_B) else float("nan")
    return {"coverage": float(is_answered_B.mean()), "accuracy_of_answered": accuracy}


def matthews(confusion_CC: Int[np.ndarray, "C C"]) -> float:
    """Matthews correlation (GLUE's figure for CoLA), of any number of labels (Gorodkin 2004)."""
    confusion_CC = confusion_CC.astype(np.float64)  # squares of counts leave int64 beyond 3e9 texts
    label_C, best_C, num_texts = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0), confusion_CC.sum()
    covariance = np.trace(confusion_CC) * num_texts - label_C @ best_C
    scale = (num_texts**2 - best_C @ best_C) * (num_texts**2 - label_C @ label_C)
    return float(covariance / np.sqrt(scale)) if scale else 0.0


def decisions(
    scores_BC: Float[np.ndarray, "B C"], targets_BC: Float[np.ndarray, "B C"]
) -> tuple[Float[np.ndarray, "N 2"], Int[np.ndarray, " N"]]:
    """Each label of each text as a text of its own, with the labels no and yes."""
    yes_N = scores_BC.reshape(-1)
    return np.stack([1 - yes_N, yes_N], axis=1), (targets_BC.reshape(-1) > 0).astype(np.int64)


def log_loss(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"]) -> float:
    """The mean of −log of the score of each text's label."""
    # A score of 0 would cost infinitely much; scikit-learn moves it by the precision of its dtype.
    least = np.finfo(scores_BC.dtype).eps
    own_B = np.clip(scores_BC[np.arange(len(labels_B)), labels_B], least, 1 - least).astype(np.float64)
    return float(-np.log(own_B).mean())


class Bin(NamedTuple):
    """The texts whose best score is above `low` and at most `high`; the means are NaN where there is none."""

    low: float
    high: float
    num_texts: int
    score: float
    """The mean of the best scores."""
    accuracy: float


def reliability(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"]) -> list[Bin]:
    """The bins of the reliability diagram, by the best score of each text."""
    best_B, score_B = scores_BC.argmax(axis=1), scores_BC.max(axis=1).astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    bin_B = np.digitize(score_B, edges[1:-1], right=True)
    num_texts = np.bincount(bin_B, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        score = np.bincount(bin_B, weights=score_B, minlength=NUM_BINS) / num_texts
        accuracy = np.bincount(bin_B[best_B == labels_B], minlength=NUM_BINS) / num_texts
    columns = (edges[:-1], edges[1:], num_texts, score, accuracy)
    return [Bin(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: by how much accuracy and best score differ in a bin, weighted by its texts."""
    gaps = [one.num_texts * abs(one.accuracy - one.score) for one in bins if one.num_texts]
    return sum(gaps) / sum(one.num_texts for one in bins)


def average_precision(scores: Float[np.ndarray, " N"], targets: Float[np.ndarray, " N"]) -> float:
    """The mean of the precisions at each threshold, weighted by what it adds to the recall; NaN without a positive.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0]))  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(targets[order] > 0)
    if not true[-1]:
        return float("nan")
    # Equal scores have one threshold: the last of them.
    is_threshold = np.append(np.diff(scores[order]) != 0, True)
    true, num_above = true[is_threshold], 1 + np.flatnonzero(is_threshold)
    return float((np.diff(true, prepend=0) * true / num_above).sum() / true[-1])


def correlations(values: Float[np.ndarray, " N"], targets: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Pearson's correlation and Spearman's; NaN if one of the series is constant."""
    import scipy.stats  # takes half a second, which only regression needs

    if len(values) < 2:  # which SciPy refuses
        return {"pearson": float("nan"), "spearman": float("nan")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        found = {"pearson": scipy.stats.pearsonr(values, targets), "spearman": scipy.stats.spearmanr(values, targets)}
    return {name: float(result.statistic) for name, result in found.items()}


def _ratio(numerator: np.ndarray | np.number, denominator: np.ndarray | np.number) -> Float[np.ndarray, "..."]:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
