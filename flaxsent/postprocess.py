"""Logits → probabilities → labelled predictions: the last arrow of the flow."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxsent.types import AnyArray, Prediction, ProblemType


def postprocess(
    logits: Float[AnyArray, "*batch C"], *, problem_type: ProblemType, temperature: float = 1.0
) -> Float[jax.Array, "*batch C"]:
    """Scores in float32 from logits of any float dtype.

    Softmax for one label of several, sigmoid for labels that do not exclude one another, and the values themselves for
    regression, as the losses of `transformers`' `*ForSequenceClassification.forward` take them. A `temperature` divides
    the logits first, but those of regression: above 1, scores are less sure, and the order of a text's labels stays.
    """
    logits_f32 = jnp.asarray(logits).astype(jnp.float32)
    match problem_type:
        case "single_label_classification":
            return jax.nn.softmax(logits_f32 / temperature, axis=-1)
        case "multi_label_classification":
            return jax.nn.sigmoid(logits_f32 / temperature)
        case "regression":
            return logits_f32


def decode(probs: Float[AnyArray, "B C"], *, labels: Sequence[str], top_k: int | None = 1) -> list[Prediction]:
    """Names the `top_k` best scores of each text, best first; `None` names all.

    >>> decode(np.array([[0.25, 0.75]]), labels=("NEGATIVE", "POSITIVE"))
    [Prediction(labels=('POSITIVE',), scores=(0.75,))]
    """
    check_top_k(top_k)
    host_probs = np.asarray(probs)
    order = np.argsort(-host_probs, axis=-1, kind="stable")[:, :top_k]
    return [
        Prediction(tuple([labels[int(c)] for c in best]), tuple(row[best].tolist()))
        for best, row in zip(order, host_probs, strict=True)
    ]


def check_top_k(top_k: int | None) -> None:
    """Raises ValueError for what is no number of labels."""
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"top_k={top_k!r} is no number of labels; pass 1 or more, or None for all.")
