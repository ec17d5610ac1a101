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
) -> Float[Array, "*texts"]:
    """The losses of transformers' `*ForSequenceClassification.forward`, before their mean over the texts.

    Cross entropy with the index of the label; binary cross entropy with 0 or 1 for each of several labels, `*texts C`;
    squared error of the value for regression. Smoothing moves a share of one label's weight to all of them.

    >>> losses(jnp.zeros((1, 2)), jnp.array([1]), problem_type="single_label_classification")
    Array([0.6931472], dtype=float32)
    """
    match problem_type:
        case "single_label_classification":
            num_labels = logits.shape[-1]
            targets = (1 - label_smoothing) * jax.nn.one_hot(labels, num_labels) + label_smoothing / num_labels
            return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
        case "multi_label_classification":
            each = labels * jax.nn.log_sigmoid(logits) + (1 - labels) * jax.nn.log_sigmoid(-logits)
            return -jnp.mean(each, axis=-1)
        case "regression":
            return jnp.square(logits[..., 0] - labels)
