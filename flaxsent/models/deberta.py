"""DeBERTa-v2 and v3 (He et al. 2020, 2021): a token attends to contents and, apart from them, to distances.

A score is q·k, plus q·(the distance's key) ("c2p"), plus k·(the distance's query) ("p2c"). There are P learnt
distances, `rel_embeddings`, shared by all layers; far ones may stand for several. DeBERTa-v2 adds a convolution.
Reference: `DebertaV2ForSequenceClassification` of transformers' models/deberta_v2/modeling_deberta_v2.py.
"""

import functools
import math
from typing import Any, NamedTuple

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

# How distances are projected: for c2p as the keys of tokens are, for p2c as their queries, or by layers of their own.
_SHARED_PROJECTIONS = {"c2p": "key_proj", "p2c": "query_proj"}
_OWN_PROJECTIONS = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter; the encoder's branch comes first.

    Raises:
        FlaxsentError: a key of this family asks for what is not implemented; the message names it.
    """
    D, F, options = config.hidden_size, config.intermediate_size, _options(config)
    E, P = options.embedding_size, 2 * options.reach
    projections = ["query_proj", "key_proj", "value_proj"]
    if options.is_relative and not options.shares_projections:
        projections += [_OWN_PROJECTIONS[term] for term in options.terms]
    layer = {
        "attention": {
            "self": {name: dense_shapes(D, D) for name in projections},
            "output": {"dense": dense_shapes(D, D), "LayerNorm": layer_norm_shapes(D)},
        },
        "intermediate": {"dense": dense_shapes(D, F)},
        "output": {"dense": dense_shapes(F, D), "LayerNorm": layer_norm_shapes(D)},
    }
    embeddings: dict[str, Any] = {
        "word_embeddings": {"embedding": (config.vocab_size, E)},
        "LayerNorm": layer_norm_shapes(D),
    }
    if options.has_positions:
        embeddings["position_embeddings"] = {"embedding": (config.num_positions, E)}
    if config.type_vocab_size:
        embeddings["token_type_embeddings"] = {"embedding": (config.type_vocab_size, E)}
    if E != D:
        embeddings["embed_proj"] = {"kernel": (E, D)}
    encoder: dict[str, Any] = {"layer": {str(index): layer for index in range(config.num_layers)}}
    if options.is_relative:
        encoder["rel_embeddings"] = {"embedding": (P, D)}
    if options.normalizes_distances:
        encoder["LayerNorm"] = layer_norm_shapes(D)
    if options.conv_size:
        kernel = (options.conv_size, D // options.conv_groups, D)
        encoder["conv"] = {"conv": {"kernel": kernel, "bias": (D,)}, "LayerNorm": layer_norm_shapes(D)}
    return {
        "deberta": {"embeddings": embeddings, "encoder": encoder},
        "pooler": {"dense": dense_shapes(D, D)},
        "classifier": dense_shapes(D, config.num_labels),
    }


class _Options(NamedTuple):
    """What config.json says of this family alone."""

    embedding_size: int
    has_positions: bool
    """Whether absolute positions are embedded with the words."""
    is_relative: bool
    terms: tuple[str, ...]
    """Those of c2p and p2c that are added; the scale counts them even where attention is not relative."""
    shares_projections: bool
    reach: int
    """Learnt distances on either side."""
    num_buckets: int
    """0 if every distance has its own; else half of them are the near distances, and half far ones, wider and wider."""
    max_distance: int
    """Where the last bucket ends."""
    normalizes_distances: bool
    conv_size: int
    """0 if there is no convolution."""
    conv_groups: int
    conv_activation: str
    pooler_activation: str
    pooler_dropout: float


@functools.lru_cache
def _options(config: ModelConfig) -> _Options:
    D, H = config.hidden_size, config.hidden_size // config.num_heads
    # PyTorch has these two sizes apart, but adds and multiplies what must be of the hidden size.
    config.get_size("pooler_hidden_size", D, least=D, most=D)
    config.get_size("attention_head_size", H, least=H, most=H)
    is_relative = config.get_flag("relative_attention", False)
    max_distance = config.get_size("max_relative_positions", -1, least=-1)
    max_distance = max_distance if max_distance > 0 else config.num_positions
    num_buckets = max(config.get_size("position_buckets", -1, least=-1), 0)
    middle = num_buckets // 2
    needs_far_buckets = num_buckets > 0 and middle < config.num_positions - 1
    if is_relative and (num_buckets == 1 or (needs_far_buckets and middle >= max_distance - 1)):
        raise FlaxsentError(
            f"config.json has position_buckets={num_buckets} for distances below {max_distance}; expected -1 (none), "
            "or at least 2, half of which must end before the last distance."
        )
    conv_size = config.get_size("conv_kernel_size", 0, least=0)
    if conv_size and conv_size % 2 == 0:
        raise FlaxsentError(f"config.json has conv_kernel_size={conv_size}; expected an odd number, or 0 for none.")
    conv_groups = config.get_size("conv_groups", 1, least=1)
    if conv_size and D % conv_groups:
        raise FlaxsentError(f"config.json has conv_groups={conv_groups}, which do not divide the hidden size {D}.")
    return _Options(
        embedding_size=config.get_size("embedding_size", D, least=1),
        has_positions=config.get_flag("position_biased_input", True),
        is_relative=is_relative,
        terms=_names(config, "pos_att_type", ("c2p", "p2c")),
        shares_projections=config.get_flag("share_att_key", False),
        reach=num_buckets or max_distance,
        num_buckets=num_buckets,
        max_distance=max_distance,
        normalizes_distances=bool(_names(config, "norm_rel_ebd", ("layer_norm",))),
        conv_size=conv_size,
        conv_groups=conv_groups,
        conv_activation=config.get_choice("conv_act", "tanh", ACTIVATIONS),
        pooler_activation=config.get_choice("pooler_hidden_act", "gelu", ACTIVATIONS),
        pooler_dropout=config.get_rate("pooler_dropout", 0.0),
    )


def _names(config: ModelConfig, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `known` that are given: a list, or a text with | between them."""

    def split(value: Any) -> list[Any]:
        names = [name.strip() for name in value.lower().split("|")] if isinstance(value, str) else value
        return [name for name in names if name not in ("", "none")] if isinstance(names, list) else [names]

    given = split(config.get(key, []))
    if not all(name in known for name in given):
        raise FlaxsentError(f"config.json has {key}={given!r}; expected none, or some of {', '.join(known)}.")
    return tuple(name for name in known if name in given)


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
    options = _options(config)
    embeddings_key, conv_key, *layer_keys = split_key(key, config.num_layers + 2)
    mask_TT = attention_mask(jnp.asarray(tokens.segment_ids))
    encoder = params["deberta"]["encoder"]
    distances = _distances(encoder, jnp.asarray(tokens.position_ids), config=config) if options.is_relative else None
    states = [_embeddings(params["deberta"]["embeddings"], tokens, config=config, key=embeddings_key)]
    for index, layer_key in enumerate(layer_keys):
        at_Q = last_at_Q if index == config.num_layers - 1 else None
        layer = encoder["layer"][str(index)]
        x_QD = _layer(layer, states[-1], mask_TT, distances, at_Q, config=config, key=layer_key)
        if index == 0 and options.conv_size:
            y_TD = _convolve(encoder["conv"]["conv"], states[0], mask_TT, groups=options.conv_groups)
            y_TD = ACTIVATIONS[options.conv_activation](dropout(y_TD, config.hidden_dropout, conv_key))
            x_QD = add_and_norm(encoder["conv"]["LayerNorm"], x_QD, take(y_TD, at_Q), eps=config.layer_norm_eps)
        states.append(x_QD)
    return states


def forward(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int,
    key: OptionalKey = None,
) -> Float[Array, "S C"]:
    """The head: a layer with an activation, dropout, classifier, on each text's [CLS]."""
    options = _options(config)
    states_key, cls_key, pooled_key = split_key(key, 3)
    cls_S = first_tokens(tokens, num_segments=num_segments)
    cls_SD = all_hidden_states(params, tokens, config=config, key=states_key, last_at_Q=cls_S)[-1].astype(jnp.float32)
    cls_SD = dropout(cls_SD, options.pooler_dropout, cls_key)
    pooled_SD = ACTIVATIONS[options.pooler_activation](dense(in_float32(params["pooler"]["dense"]), cls_SD))
    return dense(in_float32(params["classifier"]), dropout(pooled_SD, config.classifier_dropout, pooled_key))


def _embeddings(params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey) -> Float[Array, "T D"]:
    x_TE = embed(params["word_embeddings"], jnp.asarray(tokens.input_ids))
    if "position_embeddings" in params:
        x_TE = x_TE + embed(params["position_embeddings"], jnp.asarray(tokens.position_ids))
    if "token_type_embeddings" in params:
        x_TE = x_TE + embed(params["token_type_embeddings"], jnp.asarray(tokens.token_type_ids))
    x_TD = dense(params["embed_proj"], x_TE) if "embed_proj" in params else x_TE
    return dropout(layer_norm(params["LayerNorm"], x_TD, eps=config.layer_norm_eps), config.hidden_dropout, key)


class _Distances(NamedTuple):
    """The learnt distances, and which of them lies between each query and key."""

    embeddings: Float[Array, "P D"]
    rows: Int[Array, "Q T"]
    """From 0 (the key comes long after the query) to P - 1 (long before it)."""


def _distances(encoder: Params, position_ids_T: Int[Array, " T"], *, config: ModelConfig) -> _Distances:
    options = _options(config)
    embeddings_PD = encoder["rel_embeddings"]["embedding"]
    if options.normalizes_distances:
        embeddings_PD = layer_norm(encoder["LayerNorm"], embeddings_PD, eps=config.layer_norm_eps)
    # Between texts of a row the difference means nothing, and the mask hides it.
    difference_TT = position_ids_T[:, None] - position_ids_T[None, :]
    buckets = _buckets(config.num_positions, options.num_buckets, options.max_distance)
    far_TT = jnp.take(jnp.asarray(buckets, difference_TT.dtype), jnp.abs(difference_TT), mode="clip")
    rows_TT = jnp.clip(jnp.sign(difference_TT) * far_TT + options.reach, 0, 2 * options.reach - 1)
    return _Distances(embeddings_PD, rows_TT)


def _buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, " L"]:
    """The bucket of each distance below `length`.

    On the host, in float32 as in `make_log_bucket_position`: a logarithm that is one bit off moves a bucket's edge.

    >>> _buckets(12, 6, 12).tolist()
    [0, 1, 2, 3, 4, 4, 5, 5, 5, 5, 5, 5]
    """
    middle = num_buckets // 2
    if length <= middle + 1 or not num_buckets:
        return np.arange(length)
    far = np.arange(middle + 1, length, dtype=np.float32) / np.float32(middle)
    widest = np.log(np.float32((max_distance - 1) / middle))
    far = np.ceil(np.log(far) / widest * np.float32(middle - 1)) + middle
    return np.concatenate([np.arange(middle + 1), far.astype(np.int64)])


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    mask_TT: Bool[Array, "T T"],
    distances: _Distances | None,
    at_Q: Int[Array, " Q"] | None,
    *,
    config: ModelConfig,
    key: OptionalKey,
) -> Float[Array, "Q D"]:
    """The layer's output at `at_Q`, which attend to all tokens."""
    probs_key, distances_key, attention_key, output_key = split_key(key, 4)
    attention, rate, eps = params["attention"], config.hidden_dropout, config.layer_norm_eps
    x_QD = take(x_TD, at_Q)
    q_QD = dense(attention["self"]["query_proj"], x_QD)
    k_TD, v_TD = (dense(attention["self"][name], x_TD) for name in ("key_proj", "value_proj"))
    scale = 1 / math.sqrt(config.hidden_size // config.num_heads * (1 + len(_options(config).terms)))
    bias_NQT = None
    if distances is not None:
        distances = _Distances(dropout(distances.embeddings, rate, distances_key), take(distances.rows, at_Q))
        bias_NQT = scale * _bias(attention["self"], q_QD, k_TD, distances, config=config)
    y_QD = attend(
        q_QD,
        k_TD,
        v_TD,
        take(mask_TT, at_Q),
        num_heads=config.num_heads,
        scale=scale,
        bias_NQT=bias_NQT,
        dropout_rate=config.attention_dropout,
        key=probs_key,
    )
    y_QD = dropout(dense(attention["output"]["dense"], y_QD), rate, attention_key)
    x_QD = add_and_norm(attention["output"]["LayerNorm"], x_QD, y_QD, eps=eps)
    y_QF = ACTIVATIONS[config.activation](dense(params["intermediate"]["dense"], x_QD))
    y_QD = dropout(dense(params["output"]["dense"], y_QF), rate, output_key)
    return add_and_norm(params["output"]["LayerNorm"], x_QD, y_QD, eps=eps)


def _bias(
    params: Params,
    q_QD: Float[Array, "Q D"],
    k_TD: Float[Array, "T D"],
    distances: _Distances,
    *,
    config: ModelConfig,
) -> Float[Array, "N Q T"]:
    """What the distances add to q·k: `disentangled_attention_bias`, before it is scaled."""
    options = _options(config)
    names = _SHARED_PROJECTIONS if options.shares_projections else _OWN_PROJECTIONS

    def products(x_TD: Float[Array, "T D"], term: str) -> Float[Array, "N T P"]:
        distance_PD = dense(params[names[term]], distances.embeddings)
        x_TNH, distance_PNH = (y.reshape(y.shape[0], config.num_heads, -1) for y in (x_TD, distance_PD))
        return jnp.einsum("TNH,PNH->NTP", x_TNH, distance_PNH, preferred_element_type=jnp.float32)

    bias_NQT = jnp.zeros((config.num_heads, *distances.rows.shape), jnp.float32)
    if "c2p" in options.terms:
        bias_NQT += jnp.take_along_axis(products(q_QD, "c2p"), distances.rows[None], axis=-1)
    if "p2c" in options.terms:
        bias_NQT += jnp.take_along_axis(products(k_TD, "p2c"), distances.rows.T[None], axis=-1).mT
    return bias_NQT


def _convolve(
    params: Params, x_TD: Float[Array, "T D"], mask_TT: Bool[Array, "T T"], *, groups: int
) -> Float[Array, "T D"]:
    """Convolves each text by itself: beyond its ends there are zeros, whatever stands there in the row."""
    kernel = params["kernel"]
    length, size = x_TD.shape[0], len(kernel)
    neighbours_TK = jnp.arange(length)[:, None] + jnp.arange(size)[None, :] - size // 2
    inside_TK = (neighbours_TK >= 0) & (neighbours_TK < length)
    neighbours_TK = jnp.clip(neighbours_TK, 0, length - 1)
    inside_TK &= jnp.take_along_axis(mask_TT, neighbours_TK, axis=-1)
    x_TKD = jnp.where(inside_TK[..., None], x_TD[neighbours_TK], jnp.zeros((), x_TD.dtype))
    y_TGO = jnp.einsum(
        "TKGI,KIGO->TGO",
        x_TKD.reshape(length, size, groups, -1),
        kernel.reshape(size, kernel.shape[1], groups, -1),
        preferred_element_type=jnp.float32,
    )
    return (y_TGO.reshape(x_TD.shape) + params["bias"].astype(jnp.float32)[None]).astype(x_TD.dtype)
