"""Logits → probabilities → labelled predictions: the last arrow of the flow."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from flaxsent.base import AnyArray, FlaxsentError, Prediction, ProblemType, TopK
from flaxsent.models.config import ModelConfig


def postprocess(logits: Float[AnyArray, "*batch C"], *, config: ModelConfig) -> Float[jax.Array, "*batch C"]:
    """Scores in float32 from logits of any float dtype, by `config.score_function`: transformers' pipeline's.

    That is `function_to_apply` where config.json has it: "softmax", "sigmoid" or "none". Else it is softmax for one
    label of several, sigmoid for labels that do not exclude one another, and the values themselves for regression. A
    single label that is not said to be regression has a sigmoid: rerankers.
    """
    logits_f32 = jnp.asarray(logits).astype(jnp.float32)
    match config.score_function:
        case "softmax":
            return jax.nn.softmax(logits_f32, axis=-1)
        case "sigmoid":
            return jax.nn.sigmoid(logits_f32)
        case "none":
            return logits_f32


def probabilities(logits: Float[AnyArray, "*batch C"], *, problem_type: ProblemType) -> Float[jax.Array, "*batch C"]:
    """What the losses of training take logits for, whatever scores are made of them; values for regression."""
    logits_f32 = jnp.asarray(logits).astype(jnp.float32)
    match problem_type:
        case "single_label_classification":
            return jax.nn.softmax(logits_f32, axis=-1)
        case "multi_label_classification":
            return jax.nn.sigmoid(logits_f32)
        case "regression":
            return logits_f32


def as_logits(probs: Float[np.ndarray, "*batch C"], *, problem_type: ProblemType) -> Float[np.ndarray, "*batch C"]:
    """Logits whose `probabilities` these are, on the host; finite, as none is less than the least normal number.

    >>> as_logits(np.array([0.5], np.float32), problem_type="multi_label_classification").tolist()
    [0.0]
    """
    if problem_type == "regression":
        return probs
    least = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(probs, least))
    return logits - np.log(np.maximum(1 - probs, least)) if problem_type == "multi_label_classification" else logits


def decode(
    probs: Float[AnyArray, "B C"],
    *,
    labels: Sequence[str],
    top_k: TopK = "given",
    thresholds: Sequence[float] | None = None,
) -> list[Prediction]:
    """Names the labels that each text is given, or its `top_k` best (None: all), best first.

    It is given the best label; or with `thresholds`, one for each label, all whose scores are above theirs, if any.

    Raises:
        FlaxsentError: `top_k` is no number of labels, or a score is NaN or infinite.

    >>> decode(np.array([[0.25, 0.75]]), labels=("NEGATIVE", "POSITIVE"))
    [Prediction(labels=('POSITIVE',), scores=(0.75,))]
    >>> decode(np.array([[0.25, 0.75]]), labels=("joy", "fear"), thresholds=(0.2, 0.8))
    [Prediction(labels=('joy',), scores=(0.25,))]
    """
    check_top_k(top_k)
    host_probs = np.asarray(probs)
    is_odd_B = ~np.isfinite(host_probs).all(axis=-1)
    if is_odd_B.any():
        raise FlaxsentError(
            f"text {int(is_odd_B.argmax())} has a score that is NaN or infinite; `flaxsent info` names such weights."
        )
    order = np.argsort(-host_probs, axis=-1, kind="stable")
    if top_k == "given" and thresholds is not None:
        is_given_BC = host_probs > np.asarray(thresholds)
        named = [best[is_given_C[best]] for best, is_given_C in zip(order, is_given_BC, strict=True)]
    else:
        named = order[:, : 1 if top_k == "given" else top_k]
    return [
        Prediction(tuple([labels[int(c)] for c in best]), tuple(row[best].tolist()))
        for best, row in zip(named, host_probs, strict=True)
    ]


def check_top_k(top_k: TopK) -> None:
    """Raises FlaxsentError for what is no number of labels."""
    if top_k not in ("given", None) and (type(top_k) is not int or top_k < 1):
        raise FlaxsentError(
            f"top_k={top_k!r} is no number of labels; pass 1 or more, None for all, or 'given' for those that a text "
            "is given."
        )


def tune_thresholds(
    probs: Float[AnyArray, "B C"], targets: Shaped[AnyArray, "B C"], *, average: Literal["macro", "micro"] = "macro"
) -> tuple[float, ...]:
    """For each label the threshold that gives the best F1, on texts of which `targets` (1 or 0) are known.

    It is halfway between two scores, so that rounding elsewhere does not matter; of several that are as good, the
    nearest to 0.5; 0.5 for a label that no text has. With "micro", they are those of the best F1 of all labels
    together, for which a rare label may better be given to no text. Store them by `classifier.with_thresholds`.

    >>> tune_thresholds(np.array([[0.1], [0.3], [0.4]]), np.array([[0], [1], [1]]))
    (0.2,)
    """
    probs_BC, is_own_BC = np.asarray(probs, np.float64), np.asarray(targets) > 0
    curves = [_curve(*label) for label in zip(probs_BC.T, is_own_BC.T, strict=True)]
    if average == "macro":
        return tuple(_nearest(curve, 2 * curve.right / np.maximum(curve.given + curve.own, 1)) for curve in curves)
    # Dinkelbach: the F1 that is reached is the price of each answer in the next round; it only rises, so it ends.
    reached, previous = 0.0, -1.0
    thresholds: tuple[float, ...] = ()
    while reached > previous:
        previous = reached
        thresholds = tuple(_nearest(curve, 2 * curve.right - reached * curve.given) for curve in curves)
        is_given_BC = probs_BC > np.asarray(thresholds)
        reached = 2 * float((is_given_BC & is_own_BC).sum()) / max(1, int(is_given_BC.sum() + is_own_BC.sum()))
    return thresholds


class _Curve(NamedTuple):
    """Of a label, by threshold."""

    threshold: Float[np.ndarray, " K"]
    right: Int[np.ndarray, " K"]
    """How many texts are given the label that have it."""
    given: Int[np.ndarray, " K"]
    own: int
    """How many have it."""


def _curve(scores_B: Float[np.ndarray, " B"], is_own_B: Bool[np.ndarray, " B"]) -> _Curve:
    order = np.argsort(-scores_B, kind="stable")
    scores_B, right_B = scores_B[order], np.cumsum(is_own_B[order])
    above_K, below_K = np.append(1, scores_B), np.append(scores_B, 0)
    threshold_K = (above_K + below_K) / 2
    # Equal scores are given the label together; and a threshold of 0 would leave out scores of 0.
    can_K = (above_K != below_K) & (threshold_K > 0) & (threshold_K < 1)
    right_K, given_K = np.append(0, right_B), np.arange(len(order) + 1)
    return _Curve(threshold_K[can_K], right_K[can_K], given_K[can_K], int(is_own_B.sum()))


def _nearest(curve: _Curve, value_K: Float[np.ndarray, " K"]) -> float:
    """The threshold of the most value, of several the nearest to 0.5."""
    if not curve.own or not len(value_K):
        return 0.5
    best_N = curve.threshold[value_K == value_K.max()]
    return float(best_N[np.abs(best_N - 0.5).argmin()])
