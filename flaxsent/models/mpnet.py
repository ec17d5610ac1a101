"""MPNet (Song et al. 2020): BERT whose attention also weighs how far apart two tokens are, in buckets, as T5's does.

All layers share the weights of the buckets. Positions are numbered from `padding_idx + 1`, and the head is RoBERTa's.
Reference: `MPNetForSequenceClassification` of transformers' models/mpnet/modeling_mpnet.py.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.models.family import Family, ModelConfig
from flaxsent.models.layers import dense_head, dense_head_shapes, numbered
from flaxsent.models.post_norm import Parts, embed, embedding_shapes, encode

_PARTS = Parts(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attended="attention.attn.o",
    attended_norm="attention.LayerNorm",
)

# Constants in PyTorch's MPNet, whatever config.json says.
_NUM_BUCKETS, _PADDING_IDX = 32, 1

# Where a bucket begins: one for each distance, from 8 on two for each doubling, the last without end. PyTorch takes
# float32 logarithms of distances; the last bit of a logarithm, which differs among machines, cannot move these edges.
_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)
_BUCKETS = np.searchsorted(_EDGES, np.arange(_EDGES[-1] + 1), side="right")
"""The bucket of each distance; farther ones have that of the last."""


def _shapes(config: ModelConfig) -> dict[str, Any]:
    if config.pad_token_id != _PADDING_IDX:
        raise FlaxsentError(f"config.json has pad_token_id={config.pad_token_id}; MPNet's is always {_PADDING_IDX}.")
    num_buckets = config.get_size("relative_attention_num_buckets", _NUM_BUCKETS, least=_NUM_BUCKETS)
    return {
        "mpnet": {
            "embeddings": embedding_shapes(config, config.hidden_size, position=config.num_positions),
            "encoder": {
                "layer": numbered(config.num_layers, _PARTS.shapes(config)),
                "relative_attention_bias": {"embedding": (num_buckets, config.num_heads)},
            },
        },
        "classifier": dense_head_shapes(config),
    }


def _encode(params: Params, x_TD: Float[Array, "T D"], tokens: Tokens, **arguments: Any) -> list[Float[Array, "_ D"]]:
    bias_NTT = _bias(params["encoder"]["relative_attention_bias"], tokens.input_ids.shape[0])

    def bias(*_: Any, at_Q: Int[Array, " Q"] | None, **__: Any) -> Float[Array, "N Q T"]:
        return bias_NTT if at_Q is None else bias_NTT[:, at_Q]

    return encode(params, x_TD, tokens, parts=_PARTS, bias=bias, **arguments)


def _bias(params: Params, length: int) -> Float[Array, "N T T"]:
    """What is added to the score of each query and key: the first half of the buckets is for keys up to the query.

    Distances are those of places in the row, which positions need not follow. Between texts they mean nothing, and the
    mask hides it.
    """
    places_T = jnp.arange(length)
    distance_TT = places_T[:, None] - places_T[None, :]
    buckets_TT = jnp.take(jnp.asarray(_BUCKETS, distance_TT.dtype), jnp.abs(distance_TT), mode="clip")
    buckets_TT = jnp.where(distance_TT < 0, buckets_TT + _NUM_BUCKETS // 2, buckets_TT)
    bias_TTN = jnp.take(params["embedding"].astype(jnp.float32), buckets_TT, axis=0, mode="clip")
    return jnp.moveaxis(bias_TTN, -1, 0)


FAMILIES = (
    Family(
        model_type="mpnet",
        class_name="MPNet",
        base="mpnet",
        keys={
            "type_vocab_size": (None, 0),
            "pad_token_id": ("pad_token_id", _PADDING_IDX),
            "classifier_dropout": ("hidden_dropout_prob", 0.1),
        },
        positions_follow_padding=True,
        shapes=_shapes,
        embed=embed,
        encode=_encode,
        head=dense_head,
        stacks=lambda config: {"encoder.layer": [None] * config.num_layers},
        last_layer=("classifier", "out_proj"),
        tiny={"pad_token_id": 1, "max_position_embeddings": 42},
    ),
)
