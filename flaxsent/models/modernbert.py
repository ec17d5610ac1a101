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
from jaxtyping import Array, Bool, Float, Int

from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.models.config import ModelConfig
from flaxsent.models.layers import (
    ACTIVATIONS,
    OptionalKey,
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
    """The shape of every parameter; the encoder's branch comes first.

    Raises:
        FlaxsentError: a key of this family asks for what is not implemented; the message names it.
    """
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


def all_hidden_states(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    key: OptionalKey = None,
    last_at_Q: Int[Array, " Q"] | None = None,
) -> list[Float[Array, "_ D"]]:
    """The embeddings and the output of every layer, the last one normalised: transformers 5's `output_hidden_states`.

    With `last_at_Q` the last layer is computed at those tokens only.
    """
    options, model, eps = _options(config), params["model"], config.layer_norm_eps
    embeddings_key, *layer_keys = split_key(key, config.num_layers + 1)
    # Nothing normalises the sum of the layers on its way up: it is float32, whatever the dtype of the parameters.
    x_TD = embed(model["embeddings"]["tok_embeddings"], jnp.asarray(tokens.input_ids)).astype(jnp.float32)
    x_TD = layer_norm(model["embeddings"]["norm"], x_TD, eps=eps)
    states = [dropout(x_TD, config.hidden_dropout, embeddings_key)]
    views = {is_global: _view(tokens, config=config, is_global=is_global) for is_global in set(options.is_global)}
    for index, layer_key in enumerate(layer_keys):
        at_Q = last_at_Q if index == config.num_layers - 1 else None
        layer, view = model["layers"][str(index)], views[options.is_global[index]]
        states.append(_layer(layer, states[-1], view, at_Q, config=config, key=layer_key))
    return [*states[:-1], layer_norm(model["final_norm"], states[-1], eps=eps)]


def forward(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int,
    key: OptionalKey = None,
) -> Float[Array, "S C"]:
    """The head: a layer with an activation, a norm, dropout, classifier, on each text's [CLS] or on the mean of it."""
    options, (states_key, pooled_key) = _options(config), split_key(key, 2)
    cls_S = first_tokens(tokens, num_segments=num_segments) if options.pooling == "cls" else None
    hidden_QD = all_hidden_states(params, tokens, config=config, key=states_key, last_at_Q=cls_S)[-1]
    pooled_SD = hidden_QD.astype(jnp.float32)
    if options.pooling == "mean":
        pooled_SD = _means(pooled_SD, jnp.asarray(tokens.segment_ids), num_segments=num_segments)
    head = in_float32(params["head"])
    pooled_SD = ACTIVATIONS[options.head_activation](dense(head["dense"], pooled_SD))
    pooled_SD = layer_norm(head["norm"], pooled_SD, eps=config.layer_norm_eps)
    return dense(in_float32(params["classifier"]), dropout(pooled_SD, config.classifier_dropout, pooled_key))


def _means(
    hidden_TD: Float[Array, "T D"], segment_ids_T: Int[Array, " T"], *, num_segments: int
) -> Float[Array, "S D"]:
    """The mean over the tokens of each text; 0 for texts that the row does not have."""
    is_of_ST = segment_ids_T[None, :] == jnp.arange(1, num_segments + 1)[:, None]
    sums_SD = jnp.einsum("ST,TD->SD", is_of_ST.astype(jnp.float32), hidden_TD)
    return sums_SD / jnp.maximum(jnp.sum(is_of_ST, axis=-1, keepdims=True), 1).astype(jnp.float32)


class _View(NamedTuple):
    """What attention in one kind of layer knows of the places of tokens."""

    mask: Bool[Array, "T T"]
    """Which tokens each one sees."""
    cos: Float[Array, "T K"]
    sin: Float[Array, "T K"]
    """Of the angles by which the K = H/2 pairs of a head are turned, at each token."""


def _view(tokens: Tokens, *, config: ModelConfig, is_global: bool) -> _View:
    options, H = _options(config), config.hidden_size // config.num_heads
    position_ids_T, mask_TT = jnp.asarray(tokens.position_ids), attention_mask(jnp.asarray(tokens.segment_ids))
    if not is_global:
        # Between texts of a row the distance means nothing, and the mask hides it.
        mask_TT &= jnp.abs(position_ids_T[:, None] - position_ids_T[None, :]) <= options.reach
    theta = np.float32(options.global_theta if is_global else options.local_theta)
    # On the host, in float32 as in PyTorch: a speed that is one bit off is 5e-4 radians off after 8192 tokens.
    speeds_K = 1 / theta ** (np.arange(0, H, 2, dtype=np.float32) / np.float32(H))
    angles_TK = position_ids_T[:, None].astype(jnp.float32) * speeds_K[None, :]
    return _View(mask_TT, jnp.cos(angles_TK), jnp.sin(angles_TK))


def _layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    view: _View,
    at_Q: Int[Array, " Q"] | None,
    *,
    config: ModelConfig,
    key: OptionalKey,
) -> Float[Array, "Q D"]:
    """The layer's output at `at_Q`, which attend to all tokens that they see."""
    probs_key, attention_key, mlp_key = split_key(key, 3)
    attention, mlp, rate, eps = params["attn"], params["mlp"], config.attention_dropout, config.layer_norm_eps
    y_TD = layer_norm(params["attn_norm"], x_TD, eps=eps) if "attn_norm" in params else x_TD
    q_TD, k_TD, v_TD = jnp.split(dense(attention["Wqkv"], y_TD), 3, axis=-1)
    y_QD = attend(
        take(_turn(q_TD, view), at_Q),
        _turn(k_TD, view),
        v_TD,
        take(view.mask, at_Q),
        num_heads=config.num_heads,
        dropout_rate=rate,
        key=probs_key,
    )
    x_QD = take(x_TD, at_Q) + dropout(dense(attention["Wo"], y_QD).astype(jnp.float32), rate, attention_key)
    y_QF, gate_QF = jnp.split(dense(mlp["Wi"], layer_norm(params["mlp_norm"], x_QD, eps=eps)), 2, axis=-1)
    y_QF = dropout(ACTIVATIONS[config.activation](y_QF) * gate_QF, _options(config).mlp_dropout, mlp_key)
    return x_QD + dense(mlp["Wo"], y_QF).astype(jnp.float32)


def _turn(x_TD: Float[Array, "T D"], view: _View) -> Float[Array, "T D"]:
    """Rotary positions (Su et al. 2021): q·k then depends on how far apart the tokens are, not on where they stand."""
    pairs_TN2K = x_TD.astype(jnp.float32).reshape(x_TD.shape[0], -1, 2, view.cos.shape[-1])
    first_TNK, second_TNK = pairs_TN2K[:, :, 0], pairs_TN2K[:, :, 1]
    cos_T1K, sin_T1K = view.cos[:, None], view.sin[:, None]
    turned = (first_TNK * cos_T1K - second_TNK * sin_T1K, second_TNK * cos_T1K + first_TNK * sin_T1K)
    return jnp.stack(turned, axis=2).reshape(x_TD.shape).astype(x_TD.dtype)
