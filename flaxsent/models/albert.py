"""ALBERT (Lan et al. 2019): BERT with one set of weights for many layers, and embeddings of a size of their own.

The layers fall into `num_hidden_groups` groups; those of a group run through the same `inner_group_num` inner layers.
Reference: `AlbertForSequenceClassification` of transformers' models/albert/modeling_albert.py.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxsent.base import Params, Tokens
from flaxsent.models.config import MOST_LAYERS, ModelConfig
from flaxsent.models.layers import (
    ACTIVATIONS,
    OptionalKey,
    add_and_norm,
    attend,
    attention_mask,
    dense,
    dense_shapes,
    dropout,
    embed_tokens,
    first_tokens,
    in_float32,
    layer_norm_shapes,
    split_key,
    take,
)


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter; the encoder's branch comes first.

    Raises:
        ValueError: a key of this family alone has an impossible value; the message names it.
    """
    D, F, E = config.hidden_size, config.intermediate_size, config.get_size("embedding_size", 128)
    num_groups = config.get_size("num_hidden_groups", 1, most=MOST_LAYERS)
    num_inner = config.get_size("inner_group_num", 1, most=MOST_LAYERS // max(num_groups, config.num_layers))
    layer = {
        "attention": {name: dense_shapes(D, D) for name in ("query", "key", "value", "dense")}
        | {"LayerNorm": layer_norm_shapes(D)},
        "ffn": dense_shapes(D, F),
        "ffn_output": dense_shapes(F, D),
        "full_layer_layer_norm": layer_norm_shapes(D),
    }
    group = {"albert_layers": {str(index): layer for index in range(num_inner)}}
    return {
        "albert": {
            "embeddings": {
                "word_embeddings": {"embedding": (config.vocab_size, E)},
                "position_embeddings": {"embedding": (config.num_positions, E)},
                "token_type_embeddings": {"embedding": (config.type_vocab_size, E)},
                "LayerNorm": layer_norm_shapes(E),
            },
            "encoder": {
                "embedding_hidden_mapping_in": dense_shapes(E, D),
                "albert_layer_groups": {str(index): group for index in range(num_groups)},
            },
            "pooler": dense_shapes(D, D),
        },
        "classifier": dense_shapes(D, config.num_labels),
    }


def all_hidden_states(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    key: OptionalKey = None,
    last_at_Q: Int[Array, " Q"] | None = None,
) -> list[Float[Array, "_ D"]]:
    """The embeddings and the output of every layer, inner ones not counted: transformers 4's `output_hidden_states`.

    With `last_at_Q` the last layer is computed at those tokens only.
    """
    embeddings_key, *layer_keys = split_key(key, config.num_layers + 1)
    mask_TT = attention_mask(jnp.asarray(tokens.segment_ids))
    embeddings, encoder = params["albert"]["embeddings"], params["albert"]["encoder"]
    rate, eps = config.hidden_dropout, config.layer_norm_eps
    x_TE = embed_tokens(embeddings, tokens, eps=eps, dropout_rate=rate, key=embeddings_key)
    states = [dense(encoder["embedding_hidden_mapping_in"], x_TE)]
    groups = encoder["albert_layer_groups"]
    for index, layer_key in enumerate(layer_keys):
        # The same division as in PyTorch, whose rounding decides where groups meet that are not all of one size.
        group = groups[str(int(index / (config.num_layers / len(groups))))]["albert_layers"]
        x_TD = states[-1]
        for inner, inner_key in enumerate(split_key(layer_key, len(group))):
            at_Q = last_at_Q if (index, inner) == (config.num_layers - 1, len(group) - 1) else None
            x_TD = _layer(group[str(inner)], x_TD, mask_TT, at_Q, config=config, key=inner_key)
        states.append(x_TD)
    return states


def forward(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int,
    key: OptionalKey = None,
) -> Float[Array, "S C"]:
    """The head on each text's [CLS]: the pooler, dropout, the classifier."""
    states_key, pooled_key = split_key(key, 2)
    cls_S = first_tokens(tokens, num_segments=num_segments)
    cls_SD = all_hidden_states(params, tokens, config=config, key=states_key, last_at_Q=cls_S)[-1].astype(jnp.float32)
    pooled_SD = jnp.tanh(dense(in_float32(params["albert"]["pooler"]), cls_SD))
    return dense(in_float32(params["classifier"]), dropout(pooled_SD, config.classifier_dropout, pooled_key))


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    mask_TT: Bool[Array, "T T"],
    at_Q: Int[Array, " Q"] | None,
    *,
    config: ModelConfig,
    key: OptionalKey,
) -> Float[Array, "Q D"]:
    """The layer's output at `at_Q`, which attend to all tokens."""
    # No dropout on the feed-forward output: PyTorch's AlbertLayer makes one and does not use it.
    probs_key, output_key = split_key(key, 2)
    attention, eps = params["attention"], config.layer_norm_eps
    x_QD = take(x_TD, at_Q)
    q_QD = dense(attention["query"], x_QD)
    k_TD, v_TD = (dense(attention[name], x_TD) for name in ("key", "value"))
    y_QD = attend(
        q_QD,
        k_TD,
        v_TD,
        take(mask_TT, at_Q),
        num_heads=config.num_heads,
        dropout_rate=config.attention_dropout,
        key=probs_key,
    )
    y_QD = dropout(dense(attention["dense"], y_QD), config.hidden_dropout, output_key)
    x_QD = add_and_norm(attention["LayerNorm"], x_QD, y_QD, eps=eps)
    y_QF = ACTIVATIONS[config.activation](dense(params["ffn"], x_QD))
    return add_and_norm(params["full_layer_layer_norm"], x_QD, dense(params["ffn_output"], y_QF), eps=eps)
