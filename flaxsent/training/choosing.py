"""Logits of dev → an `Evaluation`, by the figures of `flaxsent evaluate`, and which evaluation of a run is the best."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.classifier import Classifier, with_thresholds
from flaxsent.evaluation.report import measure
from flaxsent.losses import losses
from flaxsent.models.config import ModelConfig, as_trained
from flaxsent.postprocessing import probabilities, tune_thresholds
from flaxsent.training.options import Metric, TrainOptions


class Evaluation(NamedTuple):
    """How the averaged parameters do on dev."""

    step: int
    loss: float
    """The mean loss of a text, without class weights."""
    score: float
    """The figure by which the best evaluation is chosen: that of the classifier with the thresholds."""
    warning: str = ""
    """What is wrong with the answers as a whole: that all of them are one."""
    thresholds: tuple[float, ...] | None = None
    """Of several labels at once, where they were to be tuned: those with the best F1 on these texts."""


class Figure(NamedTuple):
    """What a metric is called, where `measure` has it, and what it is of."""

    told: str
    name: str
    problem_types: tuple[ProblemType, ...]
    is_less_better: bool = False


_ONE, _SEVERAL, _VALUE = "single_label_classification", "multi_label_classification", "regression"
METRICS: dict[Metric, Figure] = {
    "accuracy": Figure("accuracy", "accuracy", (_ONE, _SEVERAL)),
    "macro-f1": Figure("macro F1", "macro_f1", (_ONE, _SEVERAL)),
    "micro-f1": Figure("micro F1", "micro_f1", (_ONE, _SEVERAL)),
    "mcc": Figure("Matthews correlation", "matthews", (_ONE,)),
    "log-loss": Figure("log loss", "log_loss", (_ONE, _SEVERAL), is_less_better=True),
    "spearman": Figure("Spearman correlation", "spearman", (_VALUE,)),
    "r2": Figure("R2", "r2", (_VALUE,)),
}
_DEFAULTS: dict[ProblemType, Metric] = {_ONE: "accuracy", _SEVERAL: "micro-f1", _VALUE: "r2"}


def check(options: TrainOptions, problem_type: ProblemType, *, has_dev: bool) -> None:
    """Raises FlaxsentError for options of `Trainer` that need dev, or that do not fit the problem type."""
    for name in ("early_stopping", "evaluate_every", "metric"):
        if getattr(options, name) and not has_dev:
            raise FlaxsentError(f"{name} needs dev.")
    if options.label_smoothing and problem_type != "single_label_classification":
        raise FlaxsentError(f"label_smoothing is for one label of several; this is {problem_type}.")
    if options.focal_gamma and problem_type == "regression":
        raise FlaxsentError("focal_gamma is for labels; this is regression.")


def metric_of(problem_type: ProblemType, told: Metric | None) -> Metric:
    """The metric that was asked for, or the default one.

    Raises:
        FlaxsentError: it does not fit the problem type.
    """
    if told is None:
        return _DEFAULTS[problem_type]
    if problem_type not in METRICS[told].problem_types:
        fitting = ", ".join(name for name, figure in METRICS.items() if problem_type in figure.problem_types)
        raise FlaxsentError(f"metric={told}: this is {problem_type}; expected one of {fitting}.")
    return told


def evaluate(
    logits_BC: Float[np.ndarray, "B C"],
    labels: Shaped[np.ndarray, "*B_or_C"],
    config: ModelConfig,
    *,
    metric: Metric,
    step: int = 0,
    tunes_thresholds: bool = True,
) -> Evaluation:
    """Of dev's logits and of its labels as `labels_as_arrays` makes them.

    Of several labels at once, it has the thresholds that `as_evaluated` gives the classifier, unless `tunes_thresholds`
    is False: those of the best F1 of all labels together where this is the metric, else of each label's.
    """
    config, is_value, thresholds = as_trained(config), config.problem_type == _VALUE, None
    if config.problem_type == _SEVERAL and tunes_thresholds:
        probs_BC = probabilities(logits_BC, problem_type=_SEVERAL)
        thresholds = tune_thresholds(probs_BC, labels, average="micro" if metric == "micro-f1" else "macro")
        config = dataclasses.replace(config, label_thresholds=thresholds)
    each = losses(jnp.asarray(logits_BC), jnp.asarray(labels), problem_type=config.problem_type)
    figures = measure(logits_BC, labels[:, None] if is_value else labels, config).figures
    if is_value:
        spread = float(np.square(labels - labels.mean(dtype=np.float64)).mean())
        error = figures["mean_squared_error"]
        # Where all values are the same, scikit-learn's r2_score has 0, or 1 for no error.
        figures = {**figures, "r2": 1 - error / spread if spread else float(not error)}
    elif config.problem_type == _ONE:
        figures = {**figures, "micro_f1": figures["accuracy"]}  # of one label a text they are the same
    score = float(figures[METRICS[metric].name])
    # Of values that are all the same there is no correlation: the worst of them, which may get better.
    score = 0.0 if math.isnan(score) else score
    loss = float(np.mean(np.asarray(each), dtype=np.float64))
    return Evaluation(step, loss, score, _warning(logits_BC, labels, config), thresholds)


def as_evaluated(classifier: Classifier, evaluation: Evaluation | None) -> Classifier:
    """The classifier that has the evaluation's score: with its thresholds, if there are any."""
    if evaluation is None or evaluation.thresholds is None:
        return classifier
    return with_thresholds(classifier, evaluation.thresholds)


def _warning(logits_BC: Float[np.ndarray, "B C"], labels: Shaped[np.ndarray, "*B_or_C"], config: ModelConfig) -> str:
    texts = f"the {len(labels):,} texts of dev"
    remedy = "train longer (--min-steps, --epochs) or weigh the labels (--class-weights balanced)"
    match config.problem_type:
        case "single_label_classification":
            given = np.unique(logits_BC.argmax(axis=1))
            if len(given) == 1 < len(np.unique(labels)):
                return f"of {texts} all are given the label {config.labels[given[0]]}: {remedy}"
        case "multi_label_classification":
            scores_BC = np.asarray(probabilities(logits_BC, problem_type=config.problem_type))
            if not (scores_BC > 0.5).any() and labels.any():
                return f"on {texts} the highest score of any label is {scores_BC.max():.2f}: {remedy}"
    return ""


def best(evaluations: Sequence[Evaluation], metric: Metric) -> int:
    """The index of the first of the best; −1 if there is none.

    >>> best([Evaluation(1, 0.5, 0.8), Evaluation(2, 0.3, 0.9), Evaluation(3, 0.2, 0.9)], "accuracy")
    1
    """
    sign = -1 if METRICS[metric].is_less_better else 1
    scores = [sign * evaluation.score for evaluation in evaluations]
    return scores.index(max(scores)) if scores else -1


def told_ends(steps_by_epoch: Sequence[int], *, most: int | None) -> frozenset[int]:
    """The steps that end an epoch; of very many epochs no more than `most`, evenly apart, and the last.

    >>> sorted(told_ends([4, 4, 4, 4, 4], most=2))
    [12, 20]
    """
    ends = [*itertools.accumulate(steps_by_epoch)]
    apart = 1 if most is None else math.ceil(len(ends) / most)
    return frozenset({*ends[apart - 1 :: apart], ends[-1]})
