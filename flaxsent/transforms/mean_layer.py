"""A sentence encoder whose texts are the mean of its states, as a classifier whose head reads [CLS].

One layer more computes the mean: its scores are 0, so that every token weighs the same, its values are the states, and
its feed-forward is nothing. The checkpoint stays an ordinary one of its family, with one layer more.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp

from flaxsent import models
from flaxsent.base import FlaxsentError, Params
from flaxsent.classifier import Classifier
from flaxsent.models.config import ModelConfig

_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")
"""Those with BERT's layers and a head of tanh."""

_MEAN, _LINEAR = 100.0, 0.3
"""What the mean is multiplied by, so that [CLS], which the layer adds, is lost in it; and what the head's first layer
multiplies it by, of which tanh is near the identity."""


def has_mean_layer(config: ModelConfig) -> bool:
    """Whether `with_mean_layer` can make it of this family."""
    return config.family in _FAMILIES


def with_mean_layer(classifier: Classifier) -> Classifier:
    """The head reads the mean of the last states of a text, normalised as by a LayerNorm, and is all but linear.

    Raises:
        FlaxsentError: it is not of a family that this is for.
    """
    config, params = classifier.config, classifier.params
    if not has_mean_layer(config):
        raise FlaxsentError(f"no mean of states for {config.family}; expected one of {', '.join(_FAMILIES)}.")
    base = models.base(config)
    layers = params[base]["encoder"]["layer"]
    params = {**params, base: {**params[base], "encoder": {"layer": {**layers, str(len(layers)): _layer(layers["0"])}}}}
    if config.family == "bert":
        pooler = _identity(params[base]["pooler"]["dense"], _LINEAR)
        params = {**params, base: {**params[base], "pooler": {"dense": pooler}}}
    else:
        head = params["classifier"]
        params = {**params, "classifier": {**head, "dense": _identity(head["dense"], _LINEAR)}}
    num_layers = config.num_layers + 1
    raw = json.dumps(json.loads(config.json) | {"num_hidden_layers": num_layers})
    config = dataclasses.replace(config, num_layers=num_layers, json=raw)
    names = ("forward", "forward_packed", "hidden_states", "embeddings", "postprocess")
    functions = {name: functools.partial(getattr(classifier, name), config=config) for name in names}
    return dataclasses.replace(classifier, params=params, config=config, **functions)


def _layer(like: Params) -> dict[str, Any]:
    zeros = jax.tree.map(jnp.zeros_like, like)
    own, attended = zeros["attention"]["self"], zeros["attention"]["output"]
    attention = {
        "self": {**own, "value": _identity(own["value"], 1.0)},
        "output": {"dense": _identity(attended["dense"], _MEAN), "LayerNorm": _ones(attended["LayerNorm"])},
    }
    output = {**zeros["output"], "LayerNorm": _ones(zeros["output"]["LayerNorm"])}
    return {**zeros, "attention": attention, "output": output}


def _identity(layer: Params, by: float) -> dict[str, Any]:
    kernel = layer["kernel"]
    return {"kernel": by * jnp.eye(len(kernel), dtype=kernel.dtype), "bias": jnp.zeros_like(layer["bias"])}


def _ones(norm: Params) -> dict[str, Any]:
    return {"scale": jnp.ones_like(norm["scale"]), "bias": jnp.zeros_like(norm["bias"])}
