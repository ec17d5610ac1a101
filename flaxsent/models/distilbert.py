"""DistilBERT (Sanh et al. 2019): BERT's layers without token types or pooler, a relu layer before the classifier.

Reference: `DistilBertForSequenceClassification` of transformers' models/distilbert/modeling_distilbert.py.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from flaxsent.base import Params
from flaxsent.models.dropout import OptionalKey
from flaxsent.models.family import Family, ModelConfig
from flaxsent.models.layers import dense_shapes, numbered, two_layers
from flaxsent.models.post_norm import Parts, embed, embedding_shapes, encode

_PARTS = Parts(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    attended_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    down_norm="output_layer_norm",
    dropped=("down",),  # PyTorch's TransformerBlock has dropout on the probabilities and on the ffn only
)


def _shapes(config: ModelConfig) -> dict[str, Any]:
    D = config.hidden_size
    return {
        "distilbert": {
            "embeddings": embedding_shapes(config, D, position=config.num_positions),
            "transformer": {"layer": numbered(config.num_layers, _PARTS.shapes(config))},
        },
        "pre_classifier": dense_shapes(D, D),
        "classifier": dense_shapes(D, config.num_labels),
    }


def _head(params: Params, x_SD: Float[Array, "S D"], *, config: ModelConfig, key: OptionalKey) -> Float[Array, "S C"]:
    first, last, rates = params["pre_classifier"], params["classifier"], (0.0, config.classifier_dropout)
    return two_layers(first, last, x_SD, activation=jax.nn.relu, rates=rates, key=key)


FAMILIES = (
    Family(
        model_type="distilbert",
        class_name="DistilBert",
        base="distilbert",
        keys={
            "hidden_size": ("dim", None),
            "num_layers": ("n_layers", None),
            "num_heads": ("n_heads", None),
            "intermediate_size": ("hidden_dim", None),
            "activation": ("activation", "gelu"),
            "layer_norm_eps": (None, 1e-12),
            "type_vocab_size": (None, 0),
            "hidden_dropout": ("dropout", 0.1),
            "attention_dropout": ("attention_dropout", 0.1),
            "classifier_dropout": ("seq_classif_dropout", 0.2),
        },
        shapes=_shapes,
        embed=embed,
        encode=functools.partial(encode, branch="transformer.layer", parts=_PARTS),
        head=_head,
        stacks=lambda config: {"transformer.layer": [None] * config.num_layers},
    ),
)
