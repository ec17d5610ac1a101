"""How far the figures of a file may be from those of all texts like its own: bootstrap intervals."""

import numpy as np
from jaxtyping import Float

from flaxsent.evaluation.report import Targets, measure_scores
from flaxsent.models.config import ModelConfig

_MOST, _LEAST, _WORK = 1000, 200, 4_000_000
"""Draws: as many as take so many scores together, between two bounds."""


def num_draws(num_scores: int) -> int:
    """How often `intervals` draws the texts of so many scores.

    >>> num_draws(2000), num_draws(10**6)
    (1000, 200)
    """
    return min(_MOST, max(_LEAST, _WORK // max(num_scores, 1)))


def intervals(
    scores_BC: Float[np.ndarray, "B C"],
    targets: Targets,
    config: ModelConfig,
    *,
    abstain_below: float | None = None,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """For each figure between which two values 95% of it lie where the texts are drawn again, with replacement.

    The percentile bootstrap (Efron & Tibshirani 1993, chapter 13), in `num_draws` draws. Both ends are NaN where no
    draw has the figure.
    """
    rng, num_texts = np.random.default_rng(seed), len(scores_BC)
    drawn: dict[str, list[float]] = {}
    for _ in range(num_draws(scores_BC.size)):
        chosen_B = rng.integers(num_texts, size=num_texts)
        report = measure_scores(scores_BC[chosen_B], targets[chosen_B], config, abstain_below)
        for name, value in report.figures.items():
            drawn.setdefault(name, []).append(value)
    return {name: _ends(np.array(values, np.float64)) for name, values in drawn.items()}


def _ends(values: Float[np.ndarray, " N"]) -> tuple[float, float]:
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)
