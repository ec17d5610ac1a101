"""BERT (Devlin et al. 2018), post-LayerNorm, pooled by a tanh layer on [CLS].

Reference: `BertForSequenceClassification` of transformers' models/bert/modeling_bert.py.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxsent.config import ModelConfig
from flaxsent.encoders.layers import (
    ACTIVATIONS,
    OptionalKey,
    attend,
    attention_mask,
    dense,
    dense_shapes,
    dropout,
    embed,
    first_tokens,
    in_float32,
    layer_norm,
    layer_norm_shapes,
    split_key,
)
from flaxsent.types import Params, Tokens

BASE = "bert"
HEAD = ("bert/pooler", "classifier")


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter."""
    D, F = config.hidden_size, config.intermediate_size
    layer = {
        "attention": {
            "self": {name: dense_shapes(D, D) for name in ("query", "key", "value")},
            "output": {"dense": dense_shapes(D, D), "LayerNorm": layer_norm_shapes(D)},
        },
        "intermediate": {"dense": dense_shapes(D, F)},
        "output": {"dense": dense_shapes(F, D), "LayerNorm": layer_norm_shapes(D)},
    }
    embeddings = {
        "word_embeddings": {"embedding": (config.vocab_size, D)},
        "position_embeddings": {"embedding": (config.num_positions, D)},
        "token_type_embeddings": {"embedding": (config.type_vocab_size, D)},
        "LayerNorm": layer_norm_shapes(D),
    }
    return {
        "bert": {
            "embeddings": embeddings,
            "encoder": {"layer": {str(index): layer for index in range(config.num_layers)}},
            "pooler": {"dense": dense_shapes(D, D)},
        },
        "classifier": dense_shapes(D, config.num_labels),
    }


def all_hidden_states(
    params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey = None
) -> list[Float[Array, "T D"]]:
    """The embeddings and the output of every layer: transformers' `output_hidden_states=True`."""
    embeddings_key, *layer_keys = split_key(key, config.num_layers + 1)
    mask_TT = attention_mask(jnp.asarray(tokens.segment_ids))
    states = [_embeddings(params["bert"]["embeddings"], tokens, config=config, key=embeddings_key)]
    for index, layer_key in enumerate(layer_keys):
        layer = params["bert"]["encoder"]["layer"][str(index)]
        states.append(_layer(layer, states[-1], mask_TT, config=config, key=layer_key))
    return states


def logits(
    params: Params,
    hidden_TD: Float[Array, "T D"],
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int,
    key: OptionalKey = None,
) -> Float[Array, "S C"]:
    """The head: pooler, dropout, classifier, on each text's [CLS]."""
    cls_SD = first_tokens(hidden_TD, jnp.asarray(tokens.segment_ids), num_segments=num_segments)
    pooled_SD = jnp.tanh(dense(in_float32(params["bert"]["pooler"]["dense"]), cls_SD))
    return dense(in_float32(params["classifier"]), dropout(pooled_SD, config.classifier_dropout, key))


def _embeddings(params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey) -> Float[Array, "T D"]:
    x_TD = (
        embed(params["word_embeddings"], jnp.asarray(tokens.input_ids))
        + embed(params["token_type_embeddings"], jnp.asarray(tokens.token_type_ids))
        + embed(params["position_embeddings"], jnp.asarray(tokens.position_ids))
    )
    return dropout(layer_norm(params["LayerNorm"], x_TD, eps=config.layer_norm_eps), config.hidden_dropout, key)


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    mask_TT: Bool[Array, "T T"],
    *,
    config: ModelConfig,
    key: OptionalKey,
) -> Float[Array, "T D"]:
    probs_key, attention_key, output_key = split_key(key, 3)
    attention, rate, eps = params["attention"], config.hidden_dropout, config.layer_norm_eps
    q_TD, k_TD, v_TD = (dense(attention["self"][name], x_TD) for name in ("query", "key", "value"))
    y_TD = attend(
        q_TD, k_TD, v_TD, mask_TT, num_heads=config.num_heads, dropout_rate=config.attention_dropout, key=probs_key
    )
    y_TD = dropout(dense(attention["output"]["dense"], y_TD), rate, attention_key)
    x_TD = layer_norm(attention["output"]["LayerNorm"], x_TD + y_TD, eps=eps)
    y_TF = ACTIVATIONS[config.activation](dense(params["intermediate"]["dense"], x_TD))
    y_TD = dropout(dense(params["output"]["dense"], y_TF), rate, output_key)
    return layer_norm(params["output"]["LayerNorm"], x_TD + y_TD, eps=eps)
