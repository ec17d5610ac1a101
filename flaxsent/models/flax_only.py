"""BigBird, RoBERTa-PreLayerNorm and RoFormer: families that only transformers' Flax classes compute.

What is said of them here is what reading a checkpoint needs: the shape of every parameter.
Reference: transformers 4's modeling_flax_{big_bird,roberta_prelayernorm,roformer}.py.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.models.family import Family, ModelConfig
from flaxsent.models.layers import dense_head_shapes, dense_shapes, layer_norm_shapes, numbered
from flaxsent.models.post_norm import embedding_shapes


def _shapes(config: ModelConfig, *, base: str) -> dict[str, Any]:
    D, F = config.hidden_size, config.intermediate_size
    norm: dict[str, Any] = {"LayerNorm": layer_norm_shapes(D)}
    normalizes_first = config.family == "roberta-prelayernorm"
    before, after = (norm, {}) if normalizes_first else ({}, norm)
    attention = {
        "self": {name: dense_shapes(D, D) for name in ("query", "key", "value")},
        "output": {"dense": dense_shapes(D, D)} | after,
    }
    layer = {
        "attention": attention | before,
        "intermediate": {"dense": dense_shapes(D, F)} | before,
        "output": {"dense": dense_shapes(F, D)} | after,
    }
    num_positions = 0 if config.family == "roformer" else config.num_positions
    encoder: dict[str, Any] = {
        "embeddings": embedding_shapes(config, D, position=num_positions),
        "encoder": {"layer": numbered(config.num_layers, layer)},
    }
    if config.family == "big_bird":
        encoder["pooler"] = dense_shapes(D, D)
    if normalizes_first:
        encoder |= norm
    return {base: encoder, "classifier": dense_head_shapes(config)}


def _sinusoids(config: ModelConfig) -> dict[str, Float[np.ndarray, "P H"]]:
    """RoFormer's (modeling_roformer.py)."""
    head_size = config.hidden_size // config.num_heads
    frequencies = 10000.0 ** (-2 * np.arange((head_size + 1) // 2) / head_size)
    angles = np.arange(config.num_positions)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)[:, : head_size // 2]], axis=-1)
    return {"roformer.encoder.embed_positions.weight": table.astype(np.float32)}


def _family(model_type: str, class_name: str, *, base: str, **more: Any) -> Family:
    return Family(
        model_type=model_type,
        class_name=class_name,
        base=base,
        shapes=functools.partial(_shapes, base=base),
        last_layer=("classifier", "out_proj"),
        **more,
    )


FAMILIES = (
    _family(
        "big_bird",
        "BigBird",
        base="bert",
        keys={"activation": ("hidden_act", "gelu_new")},
        tiny={"block_size": 4, "num_random_blocks": 3},
    ),
    _family(
        "roberta-prelayernorm",
        "RobertaPreLayerNorm",
        base="roberta_prelayernorm",
        keys={"pad_token_id": ("pad_token_id", 1)},
        positions_follow_padding=True,
        tiny={"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 42},
    ),
    _family(
        "roformer",
        "RoFormer",
        base="roformer",
        computed_tensors=_sinusoids,
        tiny={"embedding_size": 36},
    ),
)
