"""DistilBERT (Sanh et al. 2019): BERT's layers without token types or pooler, a relu layer before the classifier.

Reference: `DistilBertForSequenceClassification` of transformers' models/distilbert/modeling_distilbert.py.
"""

from typing import Any

import jax
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
    embed,
    first_tokens,
    in_float32,
    layer_norm,
    layer_norm_shapes,
    split_key,
    take,
)


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter; the encoder's branch comes first."""
    D, F = config.hidden_size, config.intermediate_size
    layer = {
        "attention": {name: dense_shapes(D, D) for name in ("q_lin", "k_lin", "v_lin", "out_lin")},
        "sa_layer_norm": layer_norm_shapes(D),
        "ffn": {"lin1": dense_shapes(D, F), "lin2": dense_shapes(F, D)},
        "output_layer_norm": layer_norm_shapes(D),
    }
    embeddings = {
        "word_embeddings": {"embedding": (config.vocab_size, D)},
        "position_embeddings": {"embedding": (config.num_positions, D)},
        "LayerNorm": layer_norm_shapes(D),
    }
    return {
        "distilbert": {
            "embeddings": embeddings,
            "transformer": {"layer": {str(index): layer for index in range(config.num_layers)}},
        },
        "pre_classifier": dense_shapes(D, D),
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
    """The embeddings and the output of every layer: transformers' `output_hidden_states=True`.

    With `last_at_Q` the last layer is computed at those tokens only.
    """
    embeddings_key, *layer_keys = split_key(key, config.num_layers + 1)
    mask_TT = attention_mask(jnp.asarray(tokens.segment_ids))
    states = [_embeddings(params["distilbert"]["embeddings"], tokens, config=config, key=embeddings_key)]
    for index, layer_key in enumerate(layer_keys):
        layer = params["distilbert"]["transformer"]["layer"][str(index)]
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
    """The head: a relu layer, dropout, classifier, on each text's [CLS]."""
    states_key, pooled_key = split_key(key, 2)
    cls_S = first_tokens(tokens, num_segments=num_segments)
    cls_SD = all_hidden_states(params, tokens, config=config, key=states_key, last_at_Q=cls_S)[-1].astype(jnp.float32)
    pooled_SD = jax.nn.relu(dense(in_float32(params["pre_classifier"]), cls_SD))
    return dense(in_float32(params["classifier"]), dropout(pooled_SD, config.classifier_dropout, pooled_key))


def _embeddings(params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey) -> Float[Array, "T D"]:
    words_TD = embed(params["word_embeddings"], jnp.asarray(tokens.input_ids))
    x_TD = words_TD + embed(params["position_embeddings"], jnp.asarray(tokens.position_ids))
    return dropout(layer_norm(params["LayerNorm"], x_TD, eps=config.layer_norm_eps), config.hidden_dropout, key)


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
    # No dropout on the attention's output: PyTorch's TransformerBlock has it on the probabilities and on the ffn only.
    probs_key, output_key = split_key(key, 2)
    attention, eps = params["attention"], config.layer_norm_eps
    x_QD = take(x_TD, at_Q)
    q_QD = dense(attention["q_lin"], x_QD)
    k_TD, v_TD = (dense(attention[name], x_TD) for name in ("k_lin", "v_lin"))
    y_QD = attend(
        q_QD,
        k_TD,
        v_TD,
        take(mask_TT, at_Q),
        num_heads=config.num_heads,
        dropout_rate=config.attention_dropout,
        key=probs_key,
    )
    x_QD = add_and_norm(params["sa_layer_norm"], x_QD, dense(attention["out_lin"], y_QD), eps=eps)
    y_QF = ACTIVATIONS[config.activation](dense(params["ffn"]["lin1"], x_QD))
    y_QD = dropout(dense(params["ffn"]["lin2"], y_QF), config.hidden_dropout, output_key)
    return add_and_norm(params["output_layer_norm"], x_QD, y_QD, eps=eps)
