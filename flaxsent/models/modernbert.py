"""ModernBERT (Warner et al. 2024): rotary positions, windows of attention in most layers, gated feed-forward.

Every third layer attends to the whole text, the others to the neighbours of each token. Both count positions within the
text, so that they do not see where in a row it stands. mmBERT and Ettin are of this family.
Reference: `ModernBertForSequenceClassification` of transformers' models/modernbert/modeling_modernbert.py.
"""

import functools
import json
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxsent.base import AnyArray, FlaxsentError, Params, Tokens
from flaxsent.models.activations import ACTIVATIONS
from flaxsent.models.attention import attend
from flaxsent.models.dropout import OptionalKey, dropout, split_key
from flaxsent.models.family import Family, ModelConfig
from flaxsent.models.layers import (
    Layer,
    dense,
    dense_shapes,
    dtype_of,
    first_tokens,
    in_float32,
    is_of_text,
    layer_norm,
    layer_norm_shapes,
    look_up,
    run,
    take,
    two_layers,
)


def _shapes(config: ModelConfig) -> dict[str, Any]:
    D, F, options = config.hidden_size, config.intermediate_size, _options(config)
    norm = layer_norm_shapes(D, has_bias=options.norms_have_bias)
    first = {
        "attn": {
            "Wqkv": dense_shapes(D, 3 * D, has_bias=options.attention_has_bias),
            "Wo": dense_shapes(D, D, has_bias=options.attention_has_bias),
        },
        "mlp_norm": norm,
        "mlp": {
            "Wi": dense_shapes(D, 2 * F, has_bias=options.mlp_has_bias),
            "Wo": dense_shapes(F, D, has_bias=options.mlp_has_bias),
        },
    }
    # The first layer has no norm before its attention: the embeddings end in one.
    layers = {str(index): first | ({"attn_norm": norm} if index else {}) for index in range(config.num_layers)}
    return {
        "model": {
            "embeddings": {"tok_embeddings": {"embedding": (config.vocab_size, D)}, "norm": norm},
            "layers": layers,
            "final_norm": norm,
        },
        "head": {"dense": dense_shapes(D, D, has_bias=options.head_has_bias), "norm": norm},
        "classifier": dense_shapes(D, config.num_labels),
    }


class _Options(NamedTuple):
    """What config.json says of this family alone."""

    is_global: tuple[bool, ...]
    """Of each layer: whether a token attends to its whole text, or to a window around it."""
    reach: int
    """Neighbours on either side in a window."""
    global_theta: float
    local_theta: float
    """The pairs of a head turn by 1 radian a token, the first, down to about 1/theta, the last."""
    attention_has_bias: bool
    mlp_has_bias: bool
    norms_have_bias: bool
    head_has_bias: bool
    pooling: str
    head_activation: str
    mlp_dropout: float


@functools.lru_cache
def _options(config: ModelConfig) -> _Options:
    H = config.hidden_size // config.num_heads
    if H % 2:
        raise FlaxsentError(
            f"config.json has heads of size {H}; expected an even one, whose halves are turned as pairs."
        )
    config.get_size("head_dim", H, least=H, most=H)
    if (factor := config.get("partial_rotary_factor", 1)) != 1:
        raise FlaxsentError(f"config.json has partial_rotary_factor={factor!r}, which is not implemented; expected 1.")
    reach = config.get_size("local_attention", 128) // 2
    config.get_size("sliding_window", reach, least=reach, most=reach)  # transformers 5's second name of it
    global_theta, local_theta = _thetas(config)
    return _Options(
        is_global=_is_global(config),
        reach=reach,
        global_theta=global_theta,
        local_theta=local_theta,
        attention_has_bias=config.get_flag("attention_bias", False),
        mlp_has_bias=config.get_flag("mlp_bias", False),
        norms_have_bias=config.get_flag("norm_bias", False),
        head_has_bias=config.get_flag("classifier_bias", False),
        pooling=config.get_choice("classifier_pooling", "cls", ("cls", "mean")),
        head_activation=config.get_choice("classifier_activation", "gelu", ACTIVATIONS),
        mlp_dropout=config.get_rate("mlp_dropout", 0.0),
    )


# Kind of layer in transformers 5 -> transformers 4's key for its theta, and the default of both.
_THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def _is_global(config: ModelConfig) -> tuple[bool, ...]:
    """By `layer_types` (transformers 5) or `global_attn_every_n_layers` (4): where both are there, they must agree."""
    every = config.get_size("global_attn_every_n_layers", 3)
    regular = ["sliding_attention" if index % every else "full_attention" for index in range(config.num_layers)]
    kinds = config.get("layer_types", regular)
    is_good = isinstance(kinds, list) and len(kinds) == config.num_layers and all(kind in [*_THETAS] for kind in kinds)
    if not is_good or (kinds != regular and config.get("global_attn_every_n_layers") is not None):
        raise FlaxsentError(
            f"config.json has layer_types={kinds!r}; expected {' or '.join(_THETAS)} for each of {config.num_layers} "
            "layers, as global_attn_every_n_layers has them if that is there too."
        )
    return tuple(kind == "full_attention" for kind in kinds)


def windows(config: ModelConfig) -> list[int | None]:
    """Of each layer: how many tokens one sees, itself among them; None is its whole text."""
    options = _options(config)
    return [None if is_global else 2 * options.reach + 1 for is_global in options.is_global]


def _thetas(config: ModelConfig) -> tuple[float, float]:
    """By `rope_parameters` (transformers 5) or two keys (4), where a null of local layers means that of global ones."""
    new = config.get("rope_parameters", {})
    is_good = isinstance(new, dict) and new.keys() <= _THETAS.keys()
    if not is_good or not all(_is_default_rope(rope, "rope_theta") for rope in new.values()):
        raise FlaxsentError(
            f"config.json has rope_parameters={new!r}; expected a rope_theta, unscaled, for {' and '.join(_THETAS)}."
        )
    if not _is_default_rope(scaling := config.get("rope_scaling", {})):
        raise FlaxsentError(f"config.json has rope_scaling={scaling!r}, which is not implemented; expected null.")
    old, thetas = json.loads(config.json), []
    for kind, (key, default) in _THETAS.items():
        theta = old.get(key, default)
        if theta is None and thetas:
            theta = old[key] = thetas[0]
        theta = new.get(kind, {}).get("rope_theta", theta)
        if type(theta) not in (int, float) or not 1e-30 < theta < 1e30 or theta != old.get(key, theta):
            raise FlaxsentError(
                f"config.json has {key}={old.get(key)!r} with rope_parameters={new!r}; expected a positive number, the "
                "same where it is there twice."
            )
        thetas.append(float(theta))
    return thetas[0], thetas[1]


def _is_default_rope(rope: Any, *other_keys: str) -> bool:
    """Whether these parameters scale nothing."""
    is_default = {"rope_type": "default", "type": "default"}
    return isinstance(rope, dict) and all(
        key in other_keys or (key in is_default and value == is_default[key]) for key, value in rope.items()
    )


def _embed(params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey) -> Float[Array, "T D"]:
    # Nothing normalises the sum of the layers on its way up: it is float32, whatever the dtype of the parameters.
    x_TD = look_up(params["embeddings"]["tok_embeddings"], tokens.input_ids).astype(jnp.float32)
    x_TD = layer_norm(params["embeddings"]["norm"], x_TD, eps=config.layer_norm_eps)
    return dropout(x_TD, config.hidden_dropout, key)


def _encode(
    params: Params,
    x_TD: Float[Array, "T D"],
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int | None,
    key: OptionalKey,
) -> list[Float[Array, "_ D"]]:
    """The last state is normalised, as in transformers 5's `output_hidden_states`."""
    options = _options(config)
    turns = {is_global: _turns(tokens, config=config, is_global=is_global) for is_global in set(options.is_global)}

    def layer_of(index: int) -> Layer:
        is_global = options.is_global[index]
        reach = None if is_global else options.reach
        same = {"segment_ids": tokens.segment_ids, "config": config}
        return functools.partial(_layer, turns=turns[is_global], reach=reach, **same)

    at_S = first_tokens(tokens, num_segments) if options.pooling == "cls" else None
    *states, last_QD = run(layer_of, params["layers"], x_TD, at_Q=at_S, key=key)
    last_QD = layer_norm(params["final_norm"], last_QD, eps=config.layer_norm_eps)
    if num_segments is not None and options.pooling == "mean":
        is_of_ST = is_of_text(tokens, num_segments).astype(jnp.float32)
        counts_S1 = jnp.maximum(jnp.sum(is_of_ST, axis=-1, keepdims=True), 1)  # of texts that the row does not have
        last_QD = is_of_ST @ last_QD / counts_S1
    return [*states, last_QD]


def _head(params: Params, x_SD: Float[Array, "S D"], *, config: ModelConfig, key: OptionalKey) -> Float[Array, "S C"]:
    """A layer with an activation, a norm, dropout, the classifier."""
    activation, norm = ACTIVATIONS[_options(config).head_activation], in_float32(params["head"]["norm"])
    return two_layers(
        params["head"]["dense"],
        params["classifier"],
        x_SD,
        activation=lambda y_SD: layer_norm(norm, activation(y_SD), eps=config.layer_norm_eps),
        rates=(0.0, config.classifier_dropout),
        key=key,
    )


class _Turns(NamedTuple):
    """Of the angles by which the K = H/2 pairs of a head are turned, at each token."""

    cos: Float[Array, "T K"]
    sin: Float[Array, "T K"]


def _turns(tokens: Tokens, *, config: ModelConfig, is_global: bool) -> _Turns:
    options, H = _options(config), config.hidden_size // config.num_heads
    theta = np.float32(options.global_theta if is_global else options.local_theta)
    # On the host, in float32 as in PyTorch: a speed that is one bit off is 5e-4 radians off after 8192 tokens.
    speeds_K = 1 / theta ** (np.arange(0, H, 2, dtype=np.float32) / np.float32(H))
    angles_TK = tokens.position_ids[:, None].astype(jnp.float32) * speeds_K[None, :]
    return _Turns(jnp.cos(angles_TK), jnp.sin(angles_TK))


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    *,
    at_Q: Int[Array, " Q"] | None,
    key: OptionalKey,
    segment_ids: Int[AnyArray, " T"],
    turns: _Turns,
    reach: int | None,
    config: ModelConfig,
) -> Float[Array, "Q D"]:
    """The layer's output at `at_Q`, which attend to all tokens that they see."""
    probs_key, attention_key, mlp_key = split_key(key, 3)
    attention, mlp, rate, eps = params["attn"], params["mlp"], config.attention_dropout, config.layer_norm_eps
    norm = functools.partial(layer_norm, eps=eps, dtype=dtype_of(attention["Wqkv"], x_TD))
    y_TD = norm(params["attn_norm"], x_TD) if "attn_norm" in params else x_TD
    q_TD, k_TD, v_TD = jnp.split(dense(attention["Wqkv"], y_TD), 3, axis=-1)
    y_QD = attend(
        take(_turn(q_TD, turns), at_Q),
        _turn(k_TD, turns),
        v_TD,
        segment_ids,
        at_Q=at_Q,
        reach=reach,
        num_heads=config.num_heads,
        dropout_rate=rate,
        key=probs_key,
    )
    x_QD = take(x_TD, at_Q) + dropout(dense(attention["Wo"], y_QD).astype(jnp.float32), rate, attention_key)
    y_QF, gate_QF = jnp.split(dense(mlp["Wi"], norm(params["mlp_norm"], x_QD)), 2, axis=-1)
    y_QF = dropout(ACTIVATIONS[config.activation](y_QF) * gate_QF, _options(config).mlp_dropout, mlp_key)
    return x_QD + dense(mlp["Wo"], y_QF).astype(jnp.float32)


def _turn(x_TD: Float[Array, "T D"], turns: _Turns) -> Float[Array, "T D"]:
    """Rotary positions (Su et al. 2021): q·k then depends on how far apart the tokens are, not on where they stand."""
    pairs_TN2K = x_TD.astype(jnp.float32).reshape(x_TD.shape[0], -1, 2, turns.cos.shape[-1])
    first_TNK, second_TNK = pairs_TN2K[:, :, 0], pairs_TN2K[:, :, 1]
    cos_T1K, sin_T1K = turns.cos[:, None], turns.sin[:, None]
    turned = (first_TNK * cos_T1K - second_TNK * sin_T1K, second_TNK * cos_T1K + first_TNK * sin_T1K)
    return jnp.stack(turned, axis=2).reshape(x_TD.shape).astype(x_TD.dtype)


FAMILIES = (
    Family(
        model_type="modernbert",
        class_name="ModernBert",
        base="model",
        words=("embeddings", "tok_embeddings", "embedding"),
        keys={
            "activation": ("hidden_activation", "gelu"),
            "layer_norm_eps": ("norm_eps", 1e-5),
            "type_vocab_size": (None, 0),
            "pad_token_id": ("pad_token_id", 50283),
            "hidden_dropout": ("embedding_dropout", 0.0),
            "attention_dropout": ("attention_dropout", 0.0),
            "classifier_dropout": ("classifier_dropout", 0.0),
        },
        ignored_keys=("position_embedding_type",),  # mmBERT's and Ettin's configs say "sans_pos" there
        limits_positions=lambda config: False,
        shapes=_shapes,
        embed=_embed,
        encode=_encode,
        head=_head,
        stacks=lambda config: {"layers": _options(config).is_global},
        tiny={
            "num_hidden_layers": 4,  # global, local, local, global
            "local_attention": 8,
            "pad_token_id": 0,
        },
    ),
)
