"""BART (Lewis et al. 2019) and mBART (Liu et al. 2020): an encoder, and a decoder that reads the same text again.

The decoder is one token behind: it starts with `decoder_start_token_id`, in mBART with the last token of the text, its
language. mBART normalises before each sublayer and at the end of either stack, BART after each sublayer.
Reference: `*ForSequenceClassification` of transformers' models/{bart,mbart}/modeling_{bart,mbart}.py.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxsent.base import AnyArray, FlaxsentError, Params, Tokens
from flaxsent.models.attention import attend
from flaxsent.models.dropout import OptionalKey, dropout, split_key
from flaxsent.models.family import MOST_LAYERS, Family, ModelConfig
from flaxsent.models.feed_forward import feed_forward
from flaxsent.models.layers import (
    add_and_norm,
    dense,
    dense_head,
    dense_head_shapes,
    dense_shapes,
    is_of_text,
    layer_norm,
    layer_norm_shapes,
    look_up,
    numbered,
    run,
    take,
)

_FIRST_POSITION = 2
"""Row of the position table that the first token takes; the two before it are not used."""


def _shapes(config: ModelConfig) -> dict[str, Any]:
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
            "layers": numbered(size.num_layers, layer),
        }
        return parts | {"layer_norm": layer_norm_shapes(D)} if _normalizes_first(config) else parts

    return {
        "model": {
            "shared": {"embedding": (config.vocab_size, D)},
            "encoder": stack(options.encoder),
            "decoder": stack(options.decoder, encoder_attn=attention, encoder_attn_layer_norm=layer_norm_shapes(D)),
        },
        "classification_head": dense_head_shapes(config),
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


class _Embedded(NamedTuple):
    encoder: Float[Array, "T D"]
    decoder: Float[Array, "T D"]


def _embed(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    key: OptionalKey,
    decoder_ids: Int[AnyArray, " T"] | None = None,
) -> _Embedded:
    """The decoder reads `decoder_ids` if they are given, instead of the text one token later."""

    def embed(stack: Params, ids_T: Int[AnyArray, " T"], stack_key: OptionalKey) -> Float[Array, "T D"]:
        x_TD = look_up(params["shared"], ids_T) * _options(config).embedding_scale
        x_TD = x_TD + look_up(stack["embed_positions"], tokens.position_ids + _FIRST_POSITION)
        if _normalizes_first(config):
            x_TD = x_TD.astype(jnp.float32)  # nothing normalises the sum of the sublayers on its way up
        x_TD = layer_norm(stack["layernorm_embedding"], x_TD, eps=config.layer_norm_eps)
        return dropout(x_TD, config.hidden_dropout, stack_key)

    encoder_key, decoder_key = split_key(key, 2)
    decoder_ids = _decoder_ids(tokens, config=config) if decoder_ids is None else decoder_ids
    return _Embedded(
        embed(params["encoder"], tokens.input_ids, encoder_key), embed(params["decoder"], decoder_ids, decoder_key)
    )


def _decoder_ids(tokens: Tokens, *, config: ModelConfig) -> Int[Array, " T"]:
    """Each text one token later: transformers' `shift_tokens_right`."""
    ids_T, segment_ids = tokens.input_ids, tokens.segment_ids
    is_last_T = jnp.append(segment_ids[1:] != segment_ids[:-1], True)
    if config.family == "mbart":
        length = ids_T.shape[0]
        places_T = jnp.arange(length)
        first_by_segment = jnp.full(length + 1, length, places_T.dtype).at[segment_ids].min(places_T)
        # PyTorch takes a text for as long as it has tokens that are not padding, which [UNK] may be.
        is_counted_T = (ids_T != config.pad_token_id).astype(first_by_segment.dtype)
        counts_by_segment = jnp.zeros_like(first_by_segment).at[segment_ids].add(is_counted_T)
        last_by_segment = first_by_segment + jnp.maximum(counts_by_segment, 1) - 1
        start_T = ids_T[last_by_segment[segment_ids]]
    else:
        start_T = jnp.full_like(ids_T, _options(config).decoder_start_token_id)
    return jnp.where(jnp.roll(is_last_T, 1), start_T, jnp.roll(ids_T, 1))


def _encode(
    params: Params,
    x: _Embedded,
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int | None,
    key: OptionalKey,
) -> list[Float[Array, "_ D"]]:
    """The states of the decoder: transformers' `decoder_hidden_states`."""
    options, (_, decoder_key) = _options(config), split_key(key, 2)
    at_S = None if num_segments is None else _last_eos(tokens, num_segments, eos_token_id=options.eos_token_id)
    encoded_TD = _encoder_states(params, x, tokens, config=config, key=key)[-1]
    return _states(
        params["decoder"],
        x.decoder,
        segment_ids=tokens.segment_ids,
        config=config,
        stack=options.decoder,
        at_Q=at_S,
        key=decoder_key,
        encoded=encoded_TD,
    )


def _encoder_states(
    params: Params, x: _Embedded, tokens: Tokens, *, config: ModelConfig, key: OptionalKey
) -> list[Float[Array, "T D"]]:
    encoder_key, _ = split_key(key, 2)
    sizes = {"config": config, "stack": _options(config).encoder}
    return _states(params["encoder"], x.encoder, segment_ids=tokens.segment_ids, at_Q=None, key=encoder_key, **sizes)


def _last_eos(tokens: Tokens, num_segments: int, *, eos_token_id: int) -> Int[Array, " S"]:
    """Where each text has its last EOS, a pair having several; its last token if it has none, which PyTorch refuses."""
    length = tokens.input_ids.shape[0]
    rank_T = jnp.arange(length) + length * (tokens.input_ids == eos_token_id).astype(jnp.int32)
    return jnp.argmax(jnp.where(is_of_text(tokens, num_segments), rank_T[None], -1), axis=-1)


def _states(
    params: Params,
    x_TD: Float[Array, "T D"],
    *,
    segment_ids: Int[AnyArray, " T"],
    config: ModelConfig,
    stack: _Stack,
    at_Q: Int[Array, " Q"] | None,
    key: OptionalKey,
    encoded: Float[Array, "T D"] | None = None,
) -> list[Float[Array, "_ D"]]:
    """Of the encoder, or of the decoder if it has something `encoded`."""
    same = {"segment_ids": segment_ids, "encoded": encoded, "config": config, "stack": stack}
    layer = functools.partial(_layer, **same)
    states = run(lambda _: layer, params["layers"], x_TD, at_Q=at_Q, key=key)
    if _normalizes_first(config):
        states[-1] = layer_norm(params["layer_norm"], states[-1], eps=config.layer_norm_eps)
    return states


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    *,
    at_Q: Int[Array, " Q"] | None,
    key: OptionalKey,
    segment_ids: Int[AnyArray, " T"],
    encoded: Float[Array, "T D"] | None,
    config: ModelConfig,
    stack: _Stack,
) -> Float[Array, "Q D"]:
    """The layer's output at `at_Q`, which attend to all tokens, in the decoder to none after them."""
    drop_key, self_key, cross_key, activation_key, *output_keys = split_key(key, 7)
    normalizes_first, eps = _normalizes_first(config), config.layer_norm_eps

    def before(name: str, x: Float[Array, "_ D"]) -> Float[Array, "_ D"]:
        return layer_norm(params[f"{name}_layer_norm"], x, eps=eps) if normalizes_first else x

    def add(name: str, x_QD: Float[Array, "Q D"], y_QD: Float[Array, "Q D"]) -> Float[Array, "Q D"]:
        y_QD = dropout(y_QD.astype(x_QD.dtype), config.hidden_dropout, output_keys.pop())
        return x_QD + y_QD if normalizes_first else add_and_norm(params[f"{name}_layer_norm"], x_QD, y_QD, eps=eps)

    attention = functools.partial(
        _attention, segment_ids=segment_ids, at_Q=at_Q, num_heads=stack.num_heads, dropout_rate=config.attention_dropout
    )
    y_TD, is_causal = before("self_attn", x_TD), encoded is not None
    y_QD = attention(params["self_attn"], take(y_TD, at_Q), y_TD, is_causal=is_causal, key=self_key)
    x_QD = add("self_attn", take(x_TD, at_Q), y_QD)
    if encoded is not None:
        y_QD = attention(params["encoder_attn"], before("encoder_attn", x_QD), encoded, is_causal=False, key=cross_key)
        x_QD = add("encoder_attn", x_QD, y_QD)
    y_QD = feed_forward(
        params["fc1"],
        params["fc2"],
        before("final", x_QD),
        activation=config.activation,
        dropout_rate=_options(config).activation_dropout,
        key=activation_key,
    )
    x_QD = add("final", x_QD, y_QD)
    if drop_key is None or stack.layerdrop == 0:
        return x_QD
    # LayerDrop (Fan et al. 2019), for each row by itself
    return jnp.where(jax.random.bernoulli(drop_key, 1 - stack.layerdrop), x_QD, take(x_TD, at_Q))


def _attention(
    params: Params,
    x_QD: Float[Array, "Q D"],
    source_TD: Float[Array, "T D"],
    *,
    segment_ids: Int[AnyArray, " T"],
    **arguments: Any,
) -> Float[Array, "Q D"]:
    q_QD, k_TD, v_TD = (
        dense(params[name], y) for name, y in (("q_proj", x_QD), ("k_proj", source_TD), ("v_proj", source_TD))
    )
    return dense(params["out_proj"], attend(q_QD, k_TD, v_TD, segment_ids, **arguments))


_KEYS = {
    "hidden_size": ("d_model", None),
    "num_layers": ("encoder_layers", None),
    "num_heads": ("encoder_attention_heads", None),
    "intermediate_size": ("encoder_ffn_dim", None),
    "activation": ("activation_function", "gelu"),
    "layer_norm_eps": (None, 1e-5),
    "type_vocab_size": (None, 0),
    "pad_token_id": ("pad_token_id", 1),
    "hidden_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "classifier_dropout": ("classifier_dropout", 0.0),
    "initializer_range": ("init_std", 0.02),
}
_TINY = {
    "encoder_layers": 2,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 44,
    "pad_token_id": 1,
    "eos_token_id": 3,  # [SEP] of the tests' tokenizer
    "decoder_start_token_id": 3,
}
_BART = Family(
    model_type="bart",
    class_name="Bart",
    base="model",
    keys=_KEYS,
    default_num_labels=3,
    shapes=_shapes,
    embed=_embed,
    encode=_encode,
    encoder_states=_encoder_states,
    stacks=lambda config: {
        "encoder.layers": [None] * _options(config).encoder.num_layers,
        "decoder.layers": [None] * _options(config).decoder.num_layers,
    },
    head=functools.partial(dense_head, branch="classification_head"),
    words=("shared", "embedding"),
    ids_besides=lambda config: (config.pad_token_id, _options(config).decoder_start_token_id),
    last_layer=("classification_head", "out_proj"),
    tiny=_TINY,
)
FAMILIES = (
    _BART,
    dataclasses.replace(
        _BART,
        model_type="mbart",
        class_name="MBart",
        default_num_labels=2,
        tiny=_TINY | {"scale_embedding": True},
    ),
)
