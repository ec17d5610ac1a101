"""BigBird, RoBERTa-PreLayerNorm and RoFormer: families that only transformers' Flax classes compute.

What is said of them here is what reading a checkpoint needs: the shape of every parameter.
Reference: `Flax*ForSequenceClassification` of transformers 4's modeling_flax_{big_bird,roberta_prelayernorm,roformer}.py.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.models.config import ModelConfig
from flaxsent.models.layers import dense_shapes, layer_norm_shapes

_BASES = {"big_bird": "bert", "roberta-prelayernorm": "roberta_prelayernorm", "roformer": "roformer"}


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter; the encoder's branch comes first."""
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
    embeddings = {
        "word_embeddings": {"embedding": (config.vocab_size, D)},
        "token_type_embeddings": {"embedding": (config.type_vocab_size, D)},
    } | norm
    if config.family != "roformer":
        embeddings["position_embeddings"] = {"embedding": (config.num_positions, D)}
    encoder: dict[str, Any] = {
        "embeddings": embeddings,
        "encoder": {"layer": {str(index): layer for index in range(config.num_layers)}},
    }
    if config.family == "big_bird":
        encoder["pooler"] = dense_shapes(D, D)
    if normalizes_first:
        encoder |= norm
    head = {"dense": dense_shapes(D, D), "out_proj": dense_shapes(D, config.num_labels)}
    return {_BASES[config.family]: encoder, "classifier": head}


def computed_tensors(config: ModelConfig) -> dict[str, Float[np.ndarray, "P H"]]:
    """Tensors that PyTorch's checkpoints hold and Flax computes: RoFormer's sinusoids (modeling_roformer.py)."""
    if config.family != "roformer":
        return {}
    head_size = config.hidden_size // config.num_heads
    frequencies = 10000.0 ** (-2 * np.arange((head_size + 1) // 2) / head_size)
    angles = np.arange(config.num_positions)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)[:, : head_size // 2]], axis=-1)
    return {"roformer.encoder.embed_positions.weight": table.astype(np.float32)}
