"""Scores and targets → figures, each as scikit-learn defines it: NumPy only, on the host.

What can be is a sum over texts, `LabelSums` and `MultiLabelSums`, and those of two batches add; `average_precision`,
`pearson` and `spearman` need all the scores at once. What divides by nothing is 0, and a correlation with a constant
is NaN.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

NUM_BINS = 15
"""Of the reliability diagram, as in Guo et al. 2017, On Calibration of Modern Neural Networks."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSums:
    """Sums over texts of which each has one label.

    >>> one = label_sums(np.array([[0.9, 0.1]], np.float32), np.array([0]))
    >>> (one + label_sums(np.array([[0.6, 0.4]], np.float32), np.array([1]))).accuracy
    0.5
    """

    confusion: Int[np.ndarray, "C C"]
    """How many texts have the label of the row, and the best score for the label of the column."""
    loss: float
    """The sum of −log of the score of each text's label."""
    num_in_bin: Int[np.ndarray, " bins"]
    """Texts whose best score lies in the bin; bin m of M is (m / M, (m + 1) / M]."""
    num_right_in_bin: Int[np.ndarray, " bins"]
    score_in_bin: Float[np.ndarray, " bins"]
    """The sum of their best scores."""

    def __add__(self, other: "LabelSums") -> "LabelSums":
        return LabelSums(
            *(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self))
        )

    @property
    def num_texts(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.num_texts)

    @property
    def support(self) -> Int[np.ndarray, " C"]:
        """How many texts have each label."""
        return self.confusion.sum(axis=1)

    @property
    def precision(self) -> Float[np.ndarray, " C"]:
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self) -> Float[np.ndarray, " C"]:
        return _ratio(np.diag(self.confusion), self.support)

    @property
    def f1(self) -> Float[np.ndarray, " C"]:
        return _ratio(2 * np.diag(self.confusion), self.confusion.sum(axis=0) + self.support)

    @property
    def macro_f1(self) -> float:
        """The mean over the labels that a text has, or that has the best score for one: `f1_score`'s default."""
        is_there_C = self.confusion.sum(axis=0) + self.support > 0
        return float(self.f1[is_there_C].mean())

    @property
    def matthews(self) -> float:
        """Matthews correlation (GLUE's for CoLA), of any number of labels (Gorodkin 2004)."""
        confusion_CC = self.confusion.astype(np.float64)  # squares of counts leave int64 beyond 3e9 texts
        label_C, best_C, num_texts = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0), confusion_CC.sum()
        covariance = np.trace(confusion_CC) * num_texts - label_C @ best_C
        scale = (num_texts**2 - best_C @ best_C) * (num_texts**2 - label_C @ label_C)
        return float(covariance / np.sqrt(scale)) if scale else 0.0

    @property
    def log_loss(self) -> float:
        return self.loss / self.num_texts

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: by how much accuracy and best score differ in a bin, weighted by its texts."""
        return float(np.abs(self.num_right_in_bin - self.score_in_bin).sum() / self.num_texts)


@dataclasses.dataclass(frozen=True, eq=False)
class MultiLabelSums:
    """Sums over texts of which each has any number of labels; a label is predicted above a score of one half."""

    num_exact: int
    """Texts that get all their labels and no other."""
    true_positives: Int[np.ndarray, " C"]
    false_positives: Int[np.ndarray, " C"]
    false_negatives: Int[np.ndarray, " C"]
    decisions: LabelSums
    """Each label of each text as a decision of its own, between no and yes: their log loss and calibration."""

    def __add__(self, other: "MultiLabelSums") -> "MultiLabelSums":
        return MultiLabelSums(
            *(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self))
        )

    @property
    def num_texts(self) -> int:
        return self.decisions.num_texts // len(self.true_positives)

    @property
    def accuracy(self) -> float:
        """The share of texts that get all their labels and no other."""
        return self.num_exact / self.num_texts

    @property
    def support(self) -> Int[np.ndarray, " C"]:
        return self.true_positives + self.false_negatives

    @property
    def precision(self) -> Float[np.ndarray, " C"]:
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> Float[np.ndarray, " C"]:
        return _ratio(self.true_positives, self.support)

    @property
    def f1(self) -> Float[np.ndarray, " C"]:
        wrong_C = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong_C)

    @property
    def macro_f1(self) -> float:
        return float(self.f1.mean())

    @property
    def micro_f1(self) -> float:
        true, wrong = self.true_positives.sum(), (self.false_positives + self.false_negatives).sum()
        return float(_ratio(2 * true, 2 * true + wrong))


def label_sums(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"]) -> LabelSums:
    """The sums of a batch, from probabilities; of equal scores, the first is the best."""
    num_labels = scores_BC.shape[1]
    best_B, score_B = scores_BC.argmax(axis=1), scores_BC.max(axis=1).astype(np.float64)
    pairs = np.bincount(labels_B * num_labels + best_B, minlength=num_labels**2)
    # A score of 0 would cost infinitely much; scikit-learn moves it by the precision of its dtype.
    least = np.finfo(scores_BC.dtype).eps
    own_B = np.clip(scores_BC[np.arange(len(labels_B)), labels_B], least, 1 - least).astype(np.float64)
    bin_B = np.digitize(score_B, np.linspace(0, 1, NUM_BINS + 1)[1:-1], right=True)
    return LabelSums(
        confusion=pairs.reshape(num_labels, num_labels),
        loss=float(-np.log(own_B).sum()),
        num_in_bin=np.bincount(bin_B, minlength=NUM_BINS),
        num_right_in_bin=np.bincount(bin_B[best_B == labels_B], minlength=NUM_BINS),
        score_in_bin=np.bincount(bin_B, weights=score_B, minlength=NUM_BINS),
    )


def multi_label_sums(scores_BC: Float[np.ndarray, "B C"], targets_BC: Float[np.ndarray, "B C"]) -> MultiLabelSums:
    """The sums of a batch, from probabilities of each label by itself and targets that are 0 or 1."""
    is_label_BC, is_predicted_BC = targets_BC > 0, scores_BC > 0.5
    decided = scores_BC.reshape(-1)
    return MultiLabelSums(
        num_exact=int((is_label_BC == is_predicted_BC).all(axis=1).sum()),
        true_positives=(is_label_BC & is_predicted_BC).sum(axis=0),
        false_positives=(~is_label_BC & is_predicted_BC).sum(axis=0),
        false_negatives=(is_label_BC & ~is_predicted_BC).sum(axis=0),
        decisions=label_sums(np.stack([1 - decided, decided], axis=1), is_label_BC.reshape(-1).astype(np.int64)),
    )


def average_precision(scores: Float[np.ndarray, " N"], targets: Float[np.ndarray, " N"]) -> float:
    """The mean of the precisions at each threshold, weighted by what it adds to the recall; 0 without a positive.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0]))  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(targets[order] > 0)
    # Equal scores have one threshold: the last of them.
    is_threshold = np.append(np.diff(scores[order]) != 0, True)
    true, num_above = true[is_threshold], 1 + np.flatnonzero(is_threshold)
    return float(_ratio((np.diff(true, prepend=0) * true / num_above).sum(), true[-1]))


def pearson(values: Float[np.ndarray, " N"], targets: Float[np.ndarray, " N"]) -> float:
    """The correlation of two series; NaN if one of them is constant."""
    x, y = (series.astype(np.float64) for series in (values, targets))
    if (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def spearman(values: Float[np.ndarray, " N"], targets: Float[np.ndarray, " N"]) -> float:
    """The correlation of the ranks, of which equal values share the mean."""
    return pearson(_ranks(values), _ranks(targets))


def _ranks(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """From 1 up, in float64.

    >>> _ranks(np.array([0.5, 0.1, 0.5])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _ratio(numerator: np.ndarray | np.number, denominator: np.ndarray | np.number) -> Float[np.ndarray, "..."]:
    """Their quotient, and 0 where that has no meaning: `zero_division` of scikit-learn."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
