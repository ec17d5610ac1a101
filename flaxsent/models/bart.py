"""BART (Lewis et al. 2019) and mBART (Liu et al. 2020): an encoder, and a decoder that reads the same text again.

The decoder is one token behind: it starts with `decoder_start_token_id`, in mBART with the last token of the text, its
language. mBART normalises before each sublayer and at the end of either stack, BART after each sublayer.
Reference: `*ForSequenceClassification` of transformers' models/{bart,mbart}/modeling_{bart,mbart}.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxsent.base import FlaxsentError, Params, Tokens
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
    embed,
    in_float32,
    layer_norm,
    layer_norm_shapes,
    split_key,
)

_FIRST_POSITION = 2
"""Row of the position table that the first token takes; the two before it are not used."""


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter; the branch of encoder and decoder comes first.

    Raises:
        FlaxsentError: a key of these families has a value that is not implemented; the message names it.
    """
    D, options = config.hidden_size, _options(config)
    attention = {name: dense_shapes(D, D) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}

    def stack(size: _Stack, **cross_attention: Any) -> dict[str, Any]:
        layer = cross_attention | {
            "self_attn": attention,
            "self_attn_layer_norm": layer_norm_shapes(D),
            "fc1": dense_shapes(D, size.intermediate_size),
            "fc2": dense_shapes(size.intermediate_size, D),
            "final_layer_norm": layer_norm_shapes(D),
        }
        parts: dict[str, Any] = {
            "embed_positions": {"embedding": (config.num_positions + _FIRST_POSITION, D)},
            "layernorm_embedding": layer_norm_shapes(D),
            "layers": {str(index): layer for index in range(size.num_layers)},
        }
        return parts | {"layer_norm": layer_norm_shapes(D)} if _normalizes_first(config) else parts

    return {
        "model": {
            "shared": {"embedding": (config.vocab_size, D)},
            "encoder": stack(options.encoder),
            "decoder": stack(options.decoder, encoder_attn=attention, encoder_attn_layer_norm=layer_norm_shapes(D)),
        },
        "classification_head": {"dense": dense_shapes(D, D), "out_proj": dense_shapes(D, config.num_labels)},
    }


def _normalizes_first(config: ModelConfig) -> bool:
    return config.family == "mbart"


class _Stack(NamedTuple):
    """In what encoder and decoder may differ."""

    num_layers: int
    num_heads: int
    intermediate_size: int
    layerdrop: float
    """How often, in training, a layer is left out."""


class _Options(NamedTuple):
    """What config.json says of these families alone."""

    encoder: _Stack
    decoder: _Stack
    activation_dropout: float
    embedding_scale: float
    eos_token_id: int
    decoder_start_token_id: int


@functools.lru_cache
def _options(config: ModelConfig) -> _Options:
    D, most_id = config.hidden_size, config.vocab_size - 1
    if not config.get_flag("tie_word_embeddings", True):
        raise FlaxsentError(
            "config.json has tie_word_embeddings=False, an embedding each for encoder and decoder, which is not "
            "implemented; expected true."
        )
    decoder = _Stack(
        num_layers=config.get_size("decoder_layers", 12, most=MOST_LAYERS),
        num_heads=config.get_size("decoder_attention_heads", 16),
        intermediate_size=config.get_size("decoder_ffn_dim", 4096),
        layerdrop=config.get_rate("decoder_layerdrop", 0.0),
    )
    if D % decoder.num_heads:
        raise FlaxsentError(
            f"config.json has decoder_attention_heads={decoder.num_heads}, which do not divide the hidden size {D}."
        )
    return _Options(
        encoder=_Stack(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            layerdrop=config.get_rate("encoder_layerdrop", 0.0),
        ),
        decoder=decoder,
        activation_dropout=config.get_rate("activation_dropout", 0.0),
        embedding_scale=math.sqrt(D) if config.get_flag("scale_embedding", False) else 1.0,
        eos_token_id=config.get_size("eos_token_id", 2, least=0, most=most_id),
        decoder_start_token_id=config.get_size("decoder_start_token_id", 2, least=0, most=most_id),
    )


def all_hidden_states(
    params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey = None
) -> list[Float[Array, "T D"]]:
    """The decoder's embeddings and the output of each of its layers: transformers' `decoder_hidden_states`."""
    encoder_key, decoder_key = split_key(key, 2)
    input_ids, model, options = jnp.asarray(tokens.input_ids), params["model"], _options(config)
    mask_TT = attention_mask(jnp.asarray(tokens.segment_ids))
    is_before_TT = jnp.tri(input_ids.shape[0], dtype=bool)
    run = functools.partial(
        _states, shared=model["shared"], position_ids=jnp.asarray(tokens.position_ids), config=config
    )
    encoded_TD = run(model["encoder"], input_ids, mask_TT, stack=options.encoder, key=encoder_key)[-1]
    return run(
        model["decoder"],
        _decoder_ids(input_ids, mask_TT, config=config),
        mask_TT & is_before_TT,
        stack=options.decoder,
        key=decoder_key,
        encoded=_Encoded(encoded_TD, mask_TT),
    )


def forward(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int,
    key: OptionalKey = None,
) -> Float[Array, "S C"]:
    """The head: dropout, a tanh layer, dropout, the classifier, on each text's last end-of-sequence token."""
    states_key, input_key, pooled_key = split_key(key, 3)
    hidden_TD = all_hidden_states(params, tokens, config=config, key=states_key)[-1]
    eos_S = _last_eos(tokens, num_segments=num_segments, eos_token_id=_options(config).eos_token_id)
    eos_SD = dropout(hidden_TD[eos_S].astype(jnp.float32), config.classifier_dropout, input_key)
    head = in_float32(params["classification_head"])
    pooled_SD = jnp.tanh(dense(head["dense"], eos_SD))
    return dense(head["out_proj"], dropout(pooled_SD, config.classifier_dropout, pooled_key))


def _last_eos(tokens: Tokens, *, num_segments: int, eos_token_id: int) -> Int[Array, " S"]:
    """Where each text has its last EOS, a pair having several; its last token if it has none, which PyTorch refuses."""
    segment_ids, is_eos_T = jnp.asarray(tokens.segment_ids), jnp.asarray(tokens.input_ids) == eos_token_id
    is_own_ST = segment_ids[None, :] == jnp.arange(1, num_segments + 1)[:, None]
    length = segment_ids.shape[0]
    rank_T = jnp.arange(length) + length * is_eos_T.astype(jnp.int32)
    return jnp.argmax(jnp.where(is_own_ST, rank_T[None], -1), axis=-1)


def _decoder_ids(
    input_ids_T: Int[Array, " T"], mask_TT: Bool[Array, "T T"], *, config: ModelConfig
) -> Int[Array, " T"]:
    """Each text one token later: transformers' `shift_tokens_right`."""
    last = input_ids_T.shape[0] - 1
    is_first_T = jnp.argmax(mask_TT, axis=-1) == jnp.arange(last + 1)
    if config.family == "mbart":
        start_T = input_ids_T[last - jnp.argmax(mask_TT[:, ::-1], axis=-1)]
    else:
        start_T = jnp.full_like(input_ids_T, _options(config).decoder_start_token_id)
    return jnp.where(is_first_T, start_T, jnp.roll(input_ids_T, 1))


class _Encoded(NamedTuple):
    """What the decoder attends to besides itself."""

    hidden: Float[Array, "T D"]
    mask: Bool[Array, "T T"]


def _states(
    params: Params,
    ids_T: Int[Array, " T"],
    mask_TT: Bool[Array, "T T"],
    *,
    shared: Params,
    position_ids: Int[Array, " T"],
    config: ModelConfig,
    stack: _Stack,
    key: OptionalKey,
    encoded: _Encoded | None = None,
) -> list[Float[Array, "T D"]]:
    """The embeddings and the output of every layer of the encoder, or of the decoder if it has something `encoded`."""
    embeddings_key, *layer_keys = split_key(key, stack.num_layers + 1)
    x_TD = embed(shared, ids_T) * _options(config).embedding_scale
    x_TD = x_TD + embed(params["embed_positions"], position_ids + _FIRST_POSITION)
    if _normalizes_first(config):
        x_TD = x_TD.astype(jnp.float32)  # nothing normalises the sum of the sublayers on its way up
    x_TD = layer_norm(params["layernorm_embedding"], x_TD, eps=config.layer_norm_eps)
    states = [dropout(x_TD, config.hidden_dropout, embeddings_key)]
    for index, layer_key in enumerate(layer_keys):
        drop_key, inner_key = split_key(layer_key, 2)
        layer = params["layers"][str(index)]
        x_TD = _layer(layer, states[-1], mask_TT, encoded, config=config, num_heads=stack.num_heads, key=inner_key)
        if drop_key is not None and stack.layerdrop > 0:  # LayerDrop (Fan et al. 2019), for each row by itself
            x_TD = jnp.where(jax.random.bernoulli(drop_key, 1 - stack.layerdrop), x_TD, states[-1])
        states.append(x_TD)
    if _normalizes_first(config):
        states[-1] = layer_norm(params["layer_norm"], states[-1], eps=config.layer_norm_eps)
    return states


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    mask_TT: Bool[Array, "T T"],
    encoded: _Encoded | None,
    *,
    config: ModelConfig,
    num_heads: int,
    key: OptionalKey,
) -> Float[Array, "T D"]:
    self_key, cross_key, activation_key, *output_keys = split_key(key, 6)
    attention = functools.partial(_attention, num_heads=num_heads, dropout_rate=config.attention_dropout)

    def attend_to_self(y_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
        return attention(params["self_attn"], y_TD, y_TD, mask_TT, key=self_key)

    def feed_forward(y_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
        y_TF = ACTIVATIONS[config.activation](dense(params["fc1"], y_TD))
        return dense(params["fc2"], dropout(y_TF, _options(config).activation_dropout, activation_key))

    x_TD = _residual(params["self_attn_layer_norm"], x_TD, attend_to_self, config=config, key=output_keys[0])
    if encoded is not None:

        def attend_to_encoded(y_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
            return attention(params["encoder_attn"], y_TD, encoded.hidden, encoded.mask, key=cross_key)

        x_TD = _residual(params["encoder_attn_layer_norm"], x_TD, attend_to_encoded, config=config, key=output_keys[1])
    return _residual(params["final_layer_norm"], x_TD, feed_forward, config=config, key=output_keys[2])


def _residual(
    norm: Params,
    x_TD: Float[Array, "T D"],
    sublayer: Callable[[Float[Array, "T D"]], Float[Array, "T D"]],
    *,
    config: ModelConfig,
    key: OptionalKey,
) -> Float[Array, "T D"]:
    """Adds a sublayer, normalised before or after."""
    if not _normalizes_first(config):
        return add_and_norm(norm, x_TD, dropout(sublayer(x_TD), config.hidden_dropout, key), eps=config.layer_norm_eps)
    y_TD = sublayer(layer_norm(norm, x_TD, eps=config.layer_norm_eps)).astype(jnp.float32)
    return x_TD + dropout(y_TD, config.hidden_dropout, key)


def _attention(
    params: Params,
    x_TD: Float[Array, "T D"],
    source_TD: Float[Array, "T D"],
    mask_TT: Bool[Array, "T T"],
    *,
    num_heads: int,
    dropout_rate: float,
    key: OptionalKey,
) -> Float[Array, "T D"]:
    q_TD, k_TD, v_TD = (
        dense(params[name], y_TD) for name, y_TD in (("q_proj", x_TD), ("k_proj", source_TD), ("v_proj", source_TD))
    )
    y_TD = attend(q_TD, k_TD, v_TD, mask_TT, num_heads=num_heads, dropout_rate=dropout_rate, key=key)
    return dense(params["out_proj"], y_TD)
