"""Logits and labels → the loss of each text: beside `postprocessing.py`, whose problem types these are.

Training takes the mean of them over a batch; `transforms/per_example.py` takes their gradients one by one. Of pairs of
texts, there is a loss of their embeddings.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flaxsent.base import FlaxsentError, ProblemType


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


def pair_loss(
    embeddings: Float[Array, "N D"],
    labels: Shaped[Array, "*N_or_C"],
    weights: Float[Array, " N"],
    *,
    problem_type: ProblemType = "single_label_classification",
) -> Float[Array, ""]:
    """How far the cosines of all pairs of texts are from what they should be: 1 with a label in common, 0 without.

    It is the mean squared error of sentence-transformers' `CosineSimilarityLoss`. Pairs with a label in common have
    half of the weight, the others the other half, as SetFit (Tunstall et al. 2022) draws as many of one kind as of the
    other. SetFit computes two texts for each pair; here N texts, computed once, are N (N - 1) / 2 pairs. A text is no
    pair with itself, and one of weight 0 is in no pair. A kind without pairs adds nothing.

    >>> embeddings = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 4.0]])
    >>> round(float(pair_loss(embeddings, jnp.array([0, 0, 1]), jnp.ones(3))), 3)
    0.18
    """
    is_same_NN = share_a_label(labels, problem_type=problem_type)
    squares_NN = jnp.square(_cosines(embeddings) - is_same_NN)
    pairs_NN = weights[:, None] * weights[None, :] * (1 - jnp.eye(len(weights)))
    return (_mean(squares_NN, pairs_NN * is_same_NN) + _mean(squares_NN, pairs_NN * (1 - is_same_NN))) / 2


def share_a_label(labels: Shaped[Array, "*N_or_C"], *, problem_type: ProblemType) -> Float[Array, "N N"]:
    """1 for the pairs of texts with a label in common; a text without labels has none in common, not even with itself.

    Raises:
        FlaxsentError: it is regression, which has no labels.
    """
    match problem_type:
        case "single_label_classification":
            return (labels[:, None] == labels[None, :]).astype(jnp.float32)
        case "multi_label_classification":
            return (jnp.matmul(labels, labels.T) > 0).astype(jnp.float32)
        case "regression":
            raise FlaxsentError("pairs of texts have a label in common or none; regression has values, not labels.")


def _cosines(embeddings: Float[Array, "N D"]) -> Float[Array, "N N"]:
    # Of a vector of zeros, too, the gradient is finite.
    squares_N1 = jnp.sum(jnp.square(embeddings), axis=-1, keepdims=True)
    directions = embeddings * jax.lax.rsqrt(jnp.maximum(squares_N1, _LEAST_NORM**2))
    return jnp.matmul(directions, directions.T, precision="highest")


_LEAST_NORM = 1e-8
"""That of `torch.cosine_similarity`."""


def _mean(values: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)
