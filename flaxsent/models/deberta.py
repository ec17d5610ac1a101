"""DeBERTa-v2 and v3 (He et al. 2020, 2021): a token attends to contents and, apart from them, to distances.

A score is q·k, plus q·(the distance's key) ("c2p"), plus k·(the distance's query) ("p2c"). There are P learnt
distances, `rel_embeddings`, shared by all layers; far ones may stand for several. DeBERTa-v2 adds a convolution.
Reference: `DebertaV2ForSequenceClassification` of transformers' models/deberta_v2/modeling_deberta_v2.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxsent.base import AnyArray, FlaxsentError, Params, Tokens
from flaxsent.models.activations import ACTIVATIONS
from flaxsent.models.dropout import OptionalKey, dropout, split_key
from flaxsent.models.family import Family, ModelConfig
from flaxsent.models.layers import (
    Layer,
    add_and_norm,
    dense,
    dense_shapes,
    first_tokens,
    layer_norm,
    layer_norm_shapes,
    numbered,
    run,
    take,
    two_layers,
)
from flaxsent.models.post_norm import Parts, embed, embedding_shapes, part, post_norm_layer

_PARTS = Parts(query="attention.self.query_proj", key="attention.self.key_proj", value="attention.self.value_proj")
# How distances are projected: for c2p as the keys of tokens are, for p2c as their queries, or by layers of their own.
_SHARED_PROJECTIONS = {"c2p": _PARTS.key, "p2c": _PARTS.query}
_OWN_PROJECTIONS = {"c2p": "attention.self.pos_key_proj", "p2c": "attention.self.pos_query_proj"}


def _shapes(config: ModelConfig) -> dict[str, Any]:
    D, options = config.hidden_size, _options(config)
    E = options.embedding_size
    has_own = options.is_relative and not options.shares_projections
    layer = _PARTS.shapes(config, *(_OWN_PROJECTIONS[term] for term in options.terms if has_own))
    num_positions = config.num_positions if options.has_positions else 0
    embeddings = embedding_shapes(config, E, norm_size=D, position=num_positions)
    if E != D:
        embeddings["embed_proj"] = {"kernel": (E, D)}
    encoder: dict[str, Any] = {"layer": numbered(config.num_layers, layer)}
    if options.is_relative:
        encoder["rel_embeddings"] = {"embedding": (2 * options.reach, D)}
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


def _encode(
    params: Params,
    x_TD: Float[Array, "T D"],
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int | None,
    key: OptionalKey,
) -> list[Float[Array, "_ D"]]:
    options, encoder = _options(config), params["encoder"]
    layer = functools.partial(
        post_norm_layer,
        segment_ids_T=tokens.segment_ids,
        parts=_PARTS,
        config=config,
        bias=_bias(encoder, tokens, config=config) if options.is_relative else None,
        scale=_scale(config),
    )
    first = layer
    if options.conv_size:
        first = functools.partial(_with_convolution, encoder["conv"], layer, tokens=tokens, config=config)
    at_S = first_tokens(tokens, num_segments)
    return run(lambda index: layer if index else first, encoder["layer"], x_TD, at_Q=at_S, key=key)


def _head(params: Params, x_SD: Float[Array, "S D"], *, config: ModelConfig, key: OptionalKey) -> Float[Array, "S C"]:
    """Dropout, a layer with an activation, dropout, the classifier."""
    options = _options(config)
    return two_layers(
        params["pooler"]["dense"],
        params["classifier"],
        x_SD,
        activation=ACTIVATIONS[options.pooler_activation],
        rates=(options.pooler_dropout, config.classifier_dropout),
        key=key,
    )


def _bias(encoder: Params, tokens: Tokens, *, config: ModelConfig) -> Callable[..., Float[Array, "N Q T"]]:
    """What the distances add to the scores of a layer: `disentangled_attention_bias`, for `post_norm_layer`."""
    options = _options(config)
    names = _SHARED_PROJECTIONS if options.shares_projections else _OWN_PROJECTIONS
    embeddings_PD = encoder["rel_embeddings"]["embedding"]
    if options.normalizes_distances:
        embeddings_PD = layer_norm(encoder["LayerNorm"], embeddings_PD, eps=config.layer_norm_eps)
    T = tokens.input_ids.shape[0]
    rows_D = _rows(jnp.arange(1 - T, T), config=config)

    def bias(
        layer: Params,
        q_QD: Float[Array, "Q D"],
        k_TD: Float[Array, "T D"],
        *,
        at_Q: Int[Array, " Q"] | None,
        key: OptionalKey,
    ) -> Float[Array, "N Q T"]:
        dropped_PD = dropout(embeddings_PD, config.hidden_dropout, key)

        def products(x_TD: Float[Array, "T D"], term: str, rows: Int[Array, " distances"]) -> Float[Array, "N T _"]:
            """Of each token with what lies at each distance."""
            distance_PD = dense(part(layer, names[term]), dropped_PD)[rows]
            x_TNH, distance_PNH = (y.reshape(y.shape[0], config.num_heads, -1) for y in (x_TD, distance_PD))
            return jnp.einsum("TNH,PNH->NTP", x_TNH, distance_PNH, preferred_element_type=jnp.float32)

        bias_NQT = jnp.zeros((config.num_heads, q_QD.shape[0], T), jnp.float32)
        if "c2p" in options.terms:
            bias_NQT += _by_places(products(q_QD, "c2p", rows_D[::-1]), at_Q)
        if "p2c" in options.terms:
            by_key_NTT = _by_places(products(k_TD, "p2c", rows_D), None)
            bias_NQT += by_key_NTT.mT if at_Q is None else by_key_NTT[:, :, at_Q].mT
        return _scale(config) * bias_NQT

    return bias


def _by_places(x_NQD: Float[Array, "N Q distances"], at_Q: Int[Array, " Q"] | None) -> Float[Array, "N Q T"]:
    """From columns for the distances 1 - T to T - 1 from each token, those that the places of the row are from it.

    Without a gather, which costs more than the products: row i begins T - 1 - i columns in, which is what rows of one
    column less than the array has are shifted by, as in Transformer-XL (Dai et al. 2019).
    """
    num_heads, num_queries, distances = x_NQD.shape
    T = (distances + 1) // 2
    if at_Q is not None:
        return jax.vmap(lambda x_ND, at: jax.lax.dynamic_slice_in_dim(x_ND, T - 1 - at, T, axis=-1), (1, 0), 1)(
            x_NQD, at_Q
        )
    flat = jnp.pad(x_NQD, ((0, 0), (0, 0), (0, 1))).reshape(num_heads, num_queries * 2 * T)
    shifted = flat[:, T - 1 : T - 1 + num_queries * distances]
    return shifted.reshape(num_heads, num_queries, distances)[:, :, :T]


def _scale(config: ModelConfig) -> float:
    return 1 / math.sqrt(config.hidden_size // config.num_heads * (1 + len(_options(config).terms)))


def _rows(distance: Int[Array, " distances"], *, config: ModelConfig) -> Int[Array, " distances"]:
    """Which row of the learnt ones each is: from 0 (the key comes long after the query) to P - 1 (long before it)."""
    options = _options(config)
    buckets = _buckets(_last_distance(options) + 1, options.num_buckets, options.max_distance)
    far = jnp.take(jnp.asarray(buckets, distance.dtype), jnp.abs(distance), mode="clip")
    return jnp.clip(jnp.sign(distance) * far + options.reach, 0, 2 * options.reach - 1)


def _last_distance(options: _Options) -> int:
    """From there on all distances share a row of the learnt ones, however long the text is."""
    middle = options.num_buckets // 2
    if middle < 2:
        return max(options.reach, middle + 1)
    # Where the bucket's number, middle + (middle - 1) · log(distance / middle) / log(widest), passes 2 · middle + 1.
    widest = max((options.max_distance - 1) / middle, 1.0)
    return math.ceil(middle * min(widest ** ((middle + 1) / (middle - 1)), _MOST_DISTANCES)) + 1


_MOST_DISTANCES = 1 << 16


def _limits_positions(config: ModelConfig) -> bool:
    """Whether texts end where max_position_embeddings do: distances without logarithms are clipped where they end."""
    options = _options(config)
    grows = options.num_buckets == 0 or options.max_distance - 1 > options.num_buckets // 2
    return options.has_positions or not grows


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


def _with_convolution(
    convolution: Params,
    layer: Layer,
    params: Params,
    x_TD: Float[Array, "T D"],
    *,
    tokens: Tokens,
    config: ModelConfig,
    at_Q: Int[Array, " Q"] | None,
    key: OptionalKey,
) -> Float[Array, "Q D"]:
    """A layer, and beside it a convolution of what it reads."""
    options, (layer_key, conv_key) = _options(config), split_key(key, 2)
    y_TD = _convolve(convolution["conv"], x_TD, tokens.segment_ids, groups=options.conv_groups)
    y_TD = ACTIVATIONS[options.conv_activation](dropout(y_TD, config.hidden_dropout, conv_key))
    x_QD = layer(params, x_TD, at_Q=at_Q, key=layer_key)
    return add_and_norm(convolution["LayerNorm"], x_QD, take(y_TD, at_Q), eps=config.layer_norm_eps)


def _convolve(
    params: Params, x_TD: Float[Array, "T D"], segment_ids_T: Int[AnyArray, " T"], *, groups: int
) -> Float[Array, "T D"]:
    """Convolves each text by itself: beyond its ends there are zeros, whatever stands there in the row."""
    kernel = params["kernel"]
    length, size = x_TD.shape[0], len(kernel)
    neighbours_TK = jnp.arange(length)[:, None] + jnp.arange(size)[None, :] - size // 2
    inside_TK = (neighbours_TK >= 0) & (neighbours_TK < length)
    neighbours_TK = jnp.clip(neighbours_TK, 0, length - 1)
    inside_TK &= segment_ids_T[neighbours_TK] == segment_ids_T[:, None]
    x_TKD = jnp.where(inside_TK[..., None], x_TD[neighbours_TK], jnp.zeros((), x_TD.dtype))
    y_TGO = jnp.einsum(
        "TKGI,KIGO->TGO",
        x_TKD.reshape(length, size, groups, -1),
        kernel.reshape(size, kernel.shape[1], groups, -1),
        preferred_element_type=jnp.float32,
    )
    return (y_TGO.reshape(x_TD.shape) + params["bias"].astype(jnp.float32)[None]).astype(x_TD.dtype)


FAMILIES = (
    Family(
        model_type="deberta-v2",
        class_name="DebertaV2",
        base="deberta",
        keys={
            "layer_norm_eps": ("layer_norm_eps", 1e-7),
            "type_vocab_size": ("type_vocab_size", 0),
            "classifier_dropout": ("cls_dropout", "hidden_dropout"),
        },
        limits_positions=_limits_positions,
        shapes=_shapes,
        embed=embed,
        encode=_encode,
        head=_head,
        stacks=lambda config: {"encoder.layer": [index == 0 for index in range(config.num_layers)]},
        tiny={
            "type_vocab_size": 0,
            "position_biased_input": False,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 7,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
)
