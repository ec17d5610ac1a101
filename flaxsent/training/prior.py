"""A new head that starts at the prior: what it says of any text is how the labels are spread, and the rest is learned.

Else the first steps, which are the larger part of a run on few texts, go to learning that most labels are rare.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from flaxsent import models
from flaxsent.base import Params
from flaxsent.models.config import ModelConfig
from flaxsent.placement import device_of
from flaxsent.training.class_weights import count_by_label


def at_prior(
    params: Params,
    targets: Shaped[np.ndarray, "*N_or_C"],
    config: ModelConfig,
    *,
    weights_C: Float[np.ndarray, " C"] | None = None,
) -> Params:
    """The params with the prior as the bias of the last layer, if that is new: then it is 0, as it was drawn."""
    last = models.last_layer(params)
    if "bias" not in last or np.any(np.asarray(last["bias"])):
        return params
    bias = last["bias"]
    with jax.default_device(device_of(bias)):
        prior = jnp.asarray(prior_bias(targets, config, weights_C=weights_C), bias.dtype)
    return models.with_last_layer(params, {**last, "bias": prior})


def prior_bias(
    targets: Shaped[np.ndarray, "*N_or_C"], config: ModelConfig, *, weights_C: Float[np.ndarray, " C"] | None = None
) -> Float[np.ndarray, " C"]:
    """The logits, the same for all texts, that have the least loss: with class weights, those of weighted texts.

    They are the logarithms of the labels' shares, for several labels a text their log-odds, for regression the mean.
    A label that no text has, or all have, counts as if half a text were the exception.
    """
    if config.problem_type == "regression":
        return targets.mean(keepdims=True, dtype=np.float64)
    counts_C = count_by_label(targets, config)
    weights_C = np.ones(len(counts_C)) if weights_C is None else weights_C.astype(np.float64)
    if config.problem_type == "multi_label_classification":
        with_C = np.clip(counts_C, 0.5, len(targets) - 0.5)
        return np.log(weights_C * with_C / (len(targets) - with_C))
    weighted_C = weights_C * np.maximum(counts_C, 0.5)
    return np.log(weighted_C / weighted_C.sum())
