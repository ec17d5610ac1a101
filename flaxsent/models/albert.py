"""ALBERT (Lan et al. 2019): BERT with one set of weights for many layers, and embeddings of a size of their own.

The layers fall into `num_hidden_groups` groups; those of a group run through the same `inner_group_num` inner layers.
Reference: `AlbertForSequenceClassification` of transformers' models/albert/modeling_albert.py.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxsent.base import Params, Tokens
from flaxsent.models.dropout import OptionalKey
from flaxsent.models.family import MOST_LAYERS, Family, ModelConfig
from flaxsent.models.layers import dense, dense_shapes, first_tokens, in_order, numbered, run, two_layers
from flaxsent.models.post_norm import Parts, embed, embedding_shapes, post_norm_layer

_PARTS = Parts(
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attended="attention.dense",
    attended_norm="attention.LayerNorm",
    up="ffn",
    down="ffn_output",
    down_norm="full_layer_layer_norm",
    dropped=("attended",),  # PyTorch's AlbertLayer makes a dropout for the feed-forward and does not use it
)


def _shapes(config: ModelConfig) -> dict[str, Any]:
    D, E = config.hidden_size, config.get_size("embedding_size", 128)
    num_groups = config.get_size("num_hidden_groups", 1, most=MOST_LAYERS)
    num_inner = config.get_size("inner_group_num", 1, most=MOST_LAYERS // max(num_groups, config.num_layers))
    group = {"albert_layers": numbered(num_inner, _PARTS.shapes(config))}
    return {
        "albert": {
            "embeddings": embedding_shapes(config, E, position=config.num_positions),
            "encoder": {
                "embedding_hidden_mapping_in": dense_shapes(E, D),
                "albert_layer_groups": numbered(num_groups, group),
            },
            "pooler": dense_shapes(D, D),
        },
        "classifier": dense_shapes(D, config.num_labels),
    }


def _embed(params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey) -> Float[Array, "T D"]:
    x_TE = embed(params, tokens, config=config, key=key)
    return dense(params["encoder"]["embedding_hidden_mapping_in"], x_TE)


def _encode(
    params: Params,
    x_TD: Float[Array, "T D"],
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int | None,
    key: OptionalKey,
) -> list[Float[Array, "_ D"]]:
    """States are of whole layers, as transformers 4 counts: inner ones are left out."""
    groups = params["encoder"]["albert_layer_groups"]
    # The same division as in PyTorch, whose rounding decides where groups meet that are not all of one size.
    names = [str(int(index / (config.num_layers / len(groups)))) for index in range(config.num_layers)]
    layers = [layer for name in names for layer in in_order(groups[name]["albert_layers"])]
    layer = functools.partial(post_norm_layer, segment_ids_T=tokens.segment_ids, parts=_PARTS, config=config)
    numbered_layers = {str(index): params for index, params in enumerate(layers)}
    states = run(lambda _: layer, numbered_layers, x_TD, at_Q=first_tokens(tokens, num_segments), key=key)
    return states[:: len(groups["0"]["albert_layers"])]


def _head(params: Params, x_SD: Float[Array, "S D"], *, config: ModelConfig, key: OptionalKey) -> Float[Array, "S C"]:
    """The pooler, dropout, the classifier."""
    first, last, rates = params["albert"]["pooler"], params["classifier"], (0.0, config.classifier_dropout)
    return two_layers(first, last, x_SD, activation=jnp.tanh, rates=rates, key=key)


FAMILIES = (
    Family(
        model_type="albert",
        class_name="Albert",
        base="albert",
        keys={
            "activation": ("hidden_act", "gelu_new"),
            "hidden_dropout": ("hidden_dropout_prob", 0.0),
            "attention_dropout": ("attention_probs_dropout_prob", 0.0),
            "classifier_dropout": ("classifier_dropout_prob", 0.1),
        },
        shapes=_shapes,
        embed=_embed,
        encode=_encode,
        head=_head,
        tiny={"embedding_size": 20},
    ),
)
