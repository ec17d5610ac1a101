"""MPNet (Song et al. 2020): BERT whose attention also weighs how far apart two tokens are, in buckets, as T5's does.

All layers share the weights of the buckets. Positions are numbered from `padding_idx + 1`, and the head is RoBERTa's.
Reference: `MPNetForSequenceClassification` of transformers' models/mpnet/modeling_mpnet.py.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.models.config import ModelConfig
from flaxsent.models.layers import (
    ACTIVATIONS,
    OptionalKey,
    add_and_norm,
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
    take,
)

# Constants in PyTorch's MPNet, whatever config.json says.
_NUM_BUCKETS, _PADDING_IDX = 32, 1

# Where a bucket begins: one for each distance, from 8 on two for each doubling, the last without end. PyTorch takes
# float32 logarithms of distances; the last bit of a logarithm, which differs among machines, cannot move these edges.
_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)
_BUCKETS = np.searchsorted(_EDGES, np.arange(_EDGES[-1] + 1), side="right")
"""The bucket of each distance; farther ones have that of the last."""


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter; the encoder's branch comes first.

    Raises:
        FlaxsentError: a key of this family has a value with which PyTorch's model does not work; the message names it.
    """
    D, F = config.hidden_size, config.intermediate_size
    if config.pad_token_id != _PADDING_IDX:
        raise FlaxsentError(f"config.json has pad_token_id={config.pad_token_id}; MPNet's is always {_PADDING_IDX}.")
    num_buckets = config.get_size("relative_attention_num_buckets", _NUM_BUCKETS, least=_NUM_BUCKETS)
    layer = {
        "attention": {
            "attn": {name: dense_shapes(D, D) for name in ("q", "k", "v", "o")},
            "LayerNorm": layer_norm_shapes(D),
        },
        "intermediate": {"dense": dense_shapes(D, F)},
        "output": {"dense": dense_shapes(F, D), "LayerNorm": layer_norm_shapes(D)},
    }
    return {
        "mpnet": {
            "embeddings": {
                "word_embeddings": {"embedding": (config.vocab_size, D)},
                "position_embeddings": {"embedding": (config.num_positions, D)},
                "LayerNorm": layer_norm_shapes(D),
            },
            "encoder": {
                "layer": {str(index): layer for index in range(config.num_layers)},
                "relative_attention_bias": {"embedding": (num_buckets, config.num_heads)},
            },
        },
        "classifier": {"dense": dense_shapes(D, D), "out_proj": dense_shapes(D, config.num_labels)},
    }


def all_hidden_states(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    key: OptionalKey = None,
    last_at_Q: Int[Array, " Q"] | None = None,
) -> list[Float[Array, "_ D"]]:
    """The embeddings and the output of every layer: transformers' `output_hidden_states=True`.

    With `last_at_Q` the last layer is computed at those tokens only.
    """
    embeddings_key, *layer_keys = split_key(key, config.num_layers + 1)
    mask_TT = attention_mask(jnp.asarray(tokens.segment_ids))
    embeddings, encoder = params["mpnet"]["embeddings"], params["mpnet"]["encoder"]
    bias_NTT = _bias(encoder["relative_attention_bias"], jnp.asarray(tokens.position_ids))
    x_TD = embed(embeddings["word_embeddings"], jnp.asarray(tokens.input_ids))
    x_TD = x_TD + embed(embeddings["position_embeddings"], jnp.asarray(tokens.position_ids))
    x_TD = layer_norm(embeddings["LayerNorm"], x_TD, eps=config.layer_norm_eps)
    states = [dropout(x_TD, config.hidden_dropout, embeddings_key)]
    for index, layer_key in enumerate(layer_keys):
        at_Q = last_at_Q if index == config.num_layers - 1 else None
        layer = encoder["layer"][str(index)]
        states.append(_layer(layer, states[-1], mask_TT, bias_NTT, at_Q, config=config, key=layer_key))
    return states


def forward(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int,
    key: OptionalKey = None,
) -> Float[Array, "S C"]:
    """The head on each text's first token: dropout, a tanh layer, dropout, the classifier."""
    states_key, input_key, pooled_key = split_key(key, 3)
    cls_S = first_tokens(tokens, num_segments=num_segments)
    cls_SD = all_hidden_states(params, tokens, config=config, key=states_key, last_at_Q=cls_S)[-1].astype(jnp.float32)
    head = in_float32(params["classifier"])
    pooled_SD = jnp.tanh(dense(head["dense"], dropout(cls_SD, config.classifier_dropout, input_key)))
    return dense(head["out_proj"], dropout(pooled_SD, config.classifier_dropout, pooled_key))


def _bias(params: Params, position_ids_T: Int[Array, " T"]) -> Float[Array, "N T T"]:
    """What is added to the score of each query and key: the first half of the buckets is for keys up to the query.

    Between texts of a row the distance means nothing, and the mask hides it.
    """
    distance_TT = position_ids_T[:, None] - position_ids_T[None, :]
    buckets_TT = jnp.take(jnp.asarray(_BUCKETS, distance_TT.dtype), jnp.abs(distance_TT), mode="clip")
    buckets_TT = jnp.where(distance_TT < 0, buckets_TT + _NUM_BUCKETS // 2, buckets_TT)
    bias_TTN = jnp.take(params["embedding"].astype(jnp.float32), buckets_TT, axis=0, mode="clip")
    return jnp.moveaxis(bias_TTN, -1, 0)


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    mask_TT: Bool[Array, "T T"],
    bias_NTT: Float[Array, "N T T"],
    at_Q: Int[Array, " Q"] | None,
    *,
    config: ModelConfig,
    key: OptionalKey,
) -> Float[Array, "Q D"]:
    """The layer's output at `at_Q`, which attend to all tokens."""
    probs_key, attention_key, output_key = split_key(key, 3)
    attention, rate, eps = params["attention"]["attn"], config.hidden_dropout, config.layer_norm_eps
    x_QD = take(x_TD, at_Q)
    y_QD = attend(
        dense(attention["q"], x_QD),
        dense(attention["k"], x_TD),
        dense(attention["v"], x_TD),
        take(mask_TT, at_Q),
        num_heads=config.num_heads,
        dropout_rate=config.attention_dropout,
        key=probs_key,
        bias_NQT=bias_NTT if at_Q is None else bias_NTT[:, at_Q],
    )
    y_QD = dropout(dense(attention["o"], y_QD), rate, attention_key)
    x_QD = add_and_norm(params["attention"]["LayerNorm"], x_QD, y_QD, eps=eps)
    y_QF = ACTIVATIONS[config.activation](dense(params["intermediate"]["dense"], x_QD))
    y_QD = dropout(dense(params["output"]["dense"], y_QF), rate, output_key)
    return add_and_norm(params["output"]["LayerNorm"], x_QD, y_QD, eps=eps)
