"""BERT (Devlin et al. 2018) and its kin, which differ in a name, a projection or a head.

RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT number positions from `padding_idx + 1`; ELECTRA (Clark et al.
2020) may embed in another size than it computes in. Their head is a layer on [CLS] instead of BERT's pooler.
Reference: `*ForSequenceClassification` of transformers' modeling_{bert,roberta,xlm_roberta,camembert,electra}.py.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxsent.base import Params, Tokens
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
    embed_tokens,
    first_tokens,
    in_float32,
    layer_norm_shapes,
    split_key,
    take,
)

_BASES = {"camembert": "roberta", "xlm-roberta": "roberta"}
"""Names of the encoder's branch, where it is not the family's."""

_HEAD_ACTIVATIONS = {"electra": ACTIVATIONS["gelu"]}
"""Of the heads with a layer of their own; tanh elsewhere."""


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter; the encoder's branch comes first."""
    D, F, E = config.hidden_size, config.intermediate_size, _embedding_size(config)
    layer = {
        "attention": {
            "self": {name: dense_shapes(D, D) for name in ("query", "key", "value")},
            "output": {"dense": dense_shapes(D, D), "LayerNorm": layer_norm_shapes(D)},
        },
        "intermediate": {"dense": dense_shapes(D, F)},
        "output": {"dense": dense_shapes(F, D), "LayerNorm": layer_norm_shapes(D)},
    }
    encoder = {
        "embeddings": {
            "word_embeddings": {"embedding": (config.vocab_size, E)},
            "position_embeddings": {"embedding": (config.num_positions, E)},
            "token_type_embeddings": {"embedding": (config.type_vocab_size, E)},
            "LayerNorm": layer_norm_shapes(E),
        },
        "encoder": {"layer": {str(index): layer for index in range(config.num_layers)}},
    }
    if E != D:
        encoder["embeddings_project"] = dense_shapes(E, D)
    if config.family == "bert":
        encoder["pooler"] = {"dense": dense_shapes(D, D)}
        return {"bert": encoder, "classifier": dense_shapes(D, config.num_labels)}
    head = {"dense": dense_shapes(D, D), "out_proj": dense_shapes(D, config.num_labels)}
    return {_base(config): encoder, "classifier": head}


def _base(config: ModelConfig) -> str:
    return _BASES.get(config.family, config.family)


def _embedding_size(config: ModelConfig) -> int:
    return config.get("embedding_size", 128) if config.family == "electra" else config.hidden_size


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
    encoder = params[_base(config)]
    rate, eps = config.hidden_dropout, config.layer_norm_eps
    x_TE = embed_tokens(encoder["embeddings"], tokens, eps=eps, dropout_rate=rate, key=embeddings_key)
    states = [dense(encoder["embeddings_project"], x_TE) if "embeddings_project" in encoder else x_TE]
    for index, layer_key in enumerate(layer_keys):
        layer = encoder["encoder"]["layer"][str(index)]
        at_Q = last_at_Q if index == config.num_layers - 1 else None
        states.append(_layer(layer, states[-1], mask_TT, at_Q, config=config, key=layer_key))
    return states


def forward(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int,
    key: OptionalKey = None,
) -> Float[Array, "S C"]:
    """The head on each text's [CLS]: BERT's pooler and a classifier, or the two layers of its kin."""
    states_key, input_key, pooled_key = split_key(key, 3)
    cls_S = first_tokens(tokens, num_segments=num_segments)
    cls_SD = all_hidden_states(params, tokens, config=config, key=states_key, last_at_Q=cls_S)[-1].astype(jnp.float32)
    if config.family == "bert":
        pooled_SD = jnp.tanh(dense(in_float32(params["bert"]["pooler"]["dense"]), cls_SD))
        classifier = params["classifier"]
    else:
        activation = _HEAD_ACTIVATIONS.get(config.family, jnp.tanh)
        cls_SD = dropout(cls_SD, config.classifier_dropout, input_key)
        pooled_SD = activation(dense(in_float32(params["classifier"]["dense"]), cls_SD))
        classifier = params["classifier"]["out_proj"]
    return dense(in_float32(classifier), dropout(pooled_SD, config.classifier_dropout, pooled_key))


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
    probs_key, attention_key, output_key = split_key(key, 3)
    attention, rate, eps = params["attention"], config.hidden_dropout, config.layer_norm_eps
    x_QD = take(x_TD, at_Q)
    q_QD = dense(attention["self"]["query"], x_QD)
    k_TD, v_TD = (dense(attention["self"][name], x_TD) for name in ("key", "value"))
    y_QD = attend(
        q_QD,
        k_TD,
        v_TD,
        take(mask_TT, at_Q),
        num_heads=config.num_heads,
        dropout_rate=config.attention_dropout,
        key=probs_key,
    )
    y_QD = dropout(dense(attention["output"]["dense"], y_QD), rate, attention_key)
    x_QD = add_and_norm(attention["output"]["LayerNorm"], x_QD, y_QD, eps=eps)
    y_QF = ACTIVATIONS[config.activation](dense(params["intermediate"]["dense"], x_QD))
    y_QD = dropout(dense(params["output"]["dense"], y_QF), rate, output_key)
    return add_and_norm(params["output"]["LayerNorm"], x_QD, y_QD, eps=eps)
