"""Scores and labels → the records whose labels are most likely wrong, by confident learning.

Northcutt, Jiang & Chuang 2021, Confident Learning: Estimating Uncertainty in Dataset Labels (arXiv:1911.00068). The
scores should be those of a model that has not learned from these labels: of others, or out of fold. A model that was
trained on a wrong label has learned to agree with it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.evaluation.report import Data


class Suspect(NamedTuple):
    """A record and what its label should perhaps be."""

    record: int
    """Its number in the file."""
    label: str
    suggested: str
    """The label that the scores are confident of."""
    margin: float
    """The score of its label less the best of the others: −1 is the most suspect."""
    text: str | tuple[str, str]


def check(problem_type: ProblemType, num_suspects: int) -> None:
    """Raises FlaxsentError for what confident learning is not about, or no number of records."""
    if problem_type != "single_label_classification":
        raise FlaxsentError("--suspects compares one label a text with the scores; this model gives other answers.")
    if num_suspects < 1:
        raise FlaxsentError(f"--suspects {num_suspects} is less than 1; expected a positive number.")


def find(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"]) -> Int[np.ndarray, " M"]:
    """The indices of the suspects, the worst first.

    They are the texts off the diagonal of the confident joint (section 3.1; "CL method 2" of section 3.2): the scores
    are confident of another label, that is, not below the mean score that the texts of this label have for it
    (equations 1 and 2); of several such labels, the best counts. They are ranked by the normalised margin (section
    3.2). A text whose own label has the best score is none: cleanlab leaves it out, too.

    >>> scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
    >>> find(scores, np.array([0, 0, 1, 1, 1])).tolist()
    [2]
    """
    confident_B = _confident(scores_BC, labels_B)
    margins_B = _margins(scores_BC, labels_B)
    found = np.flatnonzero((confident_B >= 0) & (confident_B != labels_B) & (margins_B < 0))
    return found[np.argsort(margins_B[found], kind="stable")]


def name(
    data: Data, scores_BC: Float[np.ndarray, "B C"], labels: tuple[str, ...], found: Int[np.ndarray, " M"]
) -> list[Suspect]:
    """Suspects that `find` found, as people read them."""
    margins_B, confident_B = _margins(scores_BC, data.targets), _confident(scores_BC, data.targets)
    return [
        Suspect(
            record=data.records[index],
            label=labels[data.targets[index]],
            suggested=labels[confident_B[index]],
            margin=float(margins_B[index]),
            text=data.texts[index],
        )
        for index in found.tolist()
    ]


_TOLERANCE = 1e-6
"""Of thresholds, which are means, as in cleanlab: the mean of equal scores may be a rounding error above them."""


def _confident(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """The label that the scores of each text are confident of; −1 if there is none."""
    scores_BC = np.asarray(scores_BC, np.float64)
    thresholds_C = np.full(scores_BC.shape[1], np.inf)  # of a label that no text has: nothing is confident of it
    for label in np.unique(labels_B):
        thresholds_C[label] = scores_BC[labels_B == label, label].mean()
    over_BC = np.where(scores_BC >= thresholds_C - _TOLERANCE, scores_BC, -1)
    return np.where((over_BC >= 0).any(axis=1), over_BC.argmax(axis=1), -1)


def _margins(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    is_own_BC = np.arange(scores_BC.shape[1]) == labels_B[:, None]
    own_B = np.take_along_axis(scores_BC, labels_B[:, None], axis=1)[:, 0]
    return own_B.astype(np.float64) - np.where(is_own_BC, -np.inf, scores_BC).max(axis=1)
