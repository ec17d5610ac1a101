"""Logits → probabilities → labelled predictions: the last arrow of the flow."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxsent.base import AnyArray, FlaxsentError, Prediction, ProblemType
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


def decode(probs: Float[AnyArray, "B C"], *, labels: Sequence[str], top_k: int | None = 1) -> list[Prediction]:
    """Names the `top_k` best scores of each text, best first; `None` names all.

    Raises:
        FlaxsentError: `top_k` is no number of labels, or a score is NaN or infinite.

    >>> decode(np.array([[0.25, 0.75]]), labels=("NEGATIVE", "POSITIVE"))
    [Prediction(labels=('POSITIVE',), scores=(0.75,))]
    """
    check_top_k(top_k)
    host_probs = np.asarray(probs)
    is_odd_B = ~np.isfinite(host_probs).all(axis=-1)
    if is_odd_B.any():
        raise FlaxsentError(
            f"text {int(is_odd_B.argmax())} has a score that is NaN or infinite; `flaxsent info` names such weights."
        )
    order = np.argsort(-host_probs, axis=-1, kind="stable")[:, :top_k]
    return [
        Prediction(tuple([labels[int(c)] for c in best]), tuple(row[best].tolist()))
        for best, row in zip(order, host_probs, strict=True)
    ]


def check_top_k(top_k: int | None) -> None:
    """Raises FlaxsentError for what is no number of labels."""
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise FlaxsentError(f"top_k={top_k!r} is no number of labels; pass 1 or more, or None for all.")
