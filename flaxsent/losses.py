"""Logits and labels → the loss of each text: beside `postprocessing.py`, whose problem types these are.

Training takes the mean of them over a batch; `transforms/per_example.py` takes their gradients one by one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flaxsent.base import ProblemType


def losses(
    logits: Float[Array, "*texts C"],
    labels: Shaped[Array, "*texts_or_C"],
    *,
    problem_type: ProblemType,
    label_smoothing: float | Float[Array, ""] = 0.0,
    class_weights: Float[Array, " C"] | None = None,
    focal_gamma: float = 0.0,
) -> Float[Array, "*texts"]:
    """The losses of transformers' `*ForSequenceClassification.forward`, before their mean over the texts.

    Cross entropy with the index of the label; binary cross entropy with 0 or 1 for each of several labels, `*texts C`;
    squared error of the value for regression, to which the options below mean nothing.

    Smoothing moves a share of one label's weight to all of them. `class_weights` multiply what a label costs: of one
    label of several as in PyTorch's `CrossEntropyLoss(weight=…, reduction="none")`, of several labels where a text has
    the label, as `pos_weight` does. `focal_gamma` multiplies by (1 − p)ᵞ, p being the probability of what is right
    (Lin et al. 2017): what is learned already counts for less.

    >>> losses(jnp.zeros((1, 2)), jnp.array([1]), problem_type="single_label_classification")
    Array([0.6931472], dtype=float32)
    """
    match problem_type:
        case "single_label_classification":
            return _cross_entropy(logits, labels, label_smoothing, class_weights, focal_gamma)
        case "multi_label_classification":
            return _binary_cross_entropy(logits, labels, class_weights, focal_gamma)
        case "regression":
            return jnp.square(logits[..., 0] - labels)


def _cross_entropy(
    logits: Float[Array, "*texts C"],
    labels: Shaped[Array, "*texts"],
    label_smoothing: float | Float[Array, ""],
    class_weights: Float[Array, " C"] | None,
    focal_gamma: float,
) -> Float[Array, "*texts"]:
    num_labels = logits.shape[-1]
    is_own = jax.nn.one_hot(labels, num_labels)
    targets = (1 - label_smoothing) * is_own + label_smoothing / num_labels
    each = -jnp.sum(_times(targets, class_weights) * jax.nn.log_softmax(logits), axis=-1)
    if not focal_gamma:
        return each
    others = jax.nn.logsumexp(jnp.where(is_own > 0, -jnp.inf, logits), axis=-1)
    return each * _focus(others - jax.nn.logsumexp(logits, axis=-1), focal_gamma)


def _binary_cross_entropy(
    logits: Float[Array, "*texts C"],
    labels: Float[Array, "*texts C"],
    class_weights: Float[Array, " C"] | None,
    focal_gamma: float,
) -> Float[Array, "*texts"]:
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    if focal_gamma:
        yes, no = yes * _focus(no, focal_gamma), no * _focus(yes, focal_gamma)
    return -jnp.mean(_times(labels, class_weights) * yes + (1 - labels) * no, axis=-1)


def _times(targets: Float[Array, "*texts C"], weights: Float[Array, " C"] | None) -> Float[Array, "*texts C"]:
    return targets if weights is None else targets * weights.reshape((1,) * (targets.ndim - 1) + weights.shape)


def _focus(log_wrong: Float[Array, "*shape"], gamma: float) -> Float[Array, "*shape"]:
    """(1 − p)ᵞ of log(1 − p): its gradient is finite at p = 1, too, where that of a power below 1 is not."""
    return jnp.exp(gamma * log_wrong)
