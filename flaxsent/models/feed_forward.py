"""The two layers of a feed-forward, lowered for the platform it is compiled for."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import batching
from jaxtyping import Array, Float

from flaxsent.base import Params
from flaxsent.models.activations import ACTIVATIONS, gelu_by_tanh
from flaxsent.models.dropout import OptionalKey, dropout
from flaxsent.models.layers import dense
from flaxsent.models.platforms import primitive

IN_KERNEL = {
    **dict.fromkeys(("gelu", "gelu_python"), gelu_by_tanh),
    **{name: ACTIVATIONS[name] for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish")},
}
"""Activations that a TPU's kernel computes."""


def feed_forward(
    up: Params,
    down: Params,
    x: Float[Array, "*rows D"],
    *,
    activation: str,
    dropout_rate: float = 0.0,
    key: OptionalKey = None,
) -> Float[Array, "*rows D"]:
    """`dense(down, activation(dense(up, x)))`, with dropout of what `down` reads; in bfloat16 on a TPU one kernel."""
    is_plain = all(set(one) == {"kernel", "bias"} and one["kernel"].dtype == jnp.bfloat16 for one in (up, down))
    if not is_plain or activation not in IN_KERNEL or (key is not None and dropout_rate):
        return dense(down, dropout(ACTIVATIONS[activation](dense(up, x)), dropout_rate, key))
    operands = [jnp.asarray(one[name]) for one in (up, down) for name in ("kernel", "bias")]
    return feed_forward_p.bind(x.astype(jnp.bfloat16), *operands, activation=activation)


def _by_xla(x: Float[Array, "*rows D"], *operands: Float[Array, "..."], activation: str) -> Float[Array, "*rows D"]:
    up_kernel, up_bias, down_kernel, down_bias = operands
    y = ACTIVATIONS[activation](dense({"kernel": up_kernel, "bias": up_bias}, x))
    return dense({"kernel": down_kernel, "bias": down_bias}, y)


def _on_tpu(x: Float[Array, "*rows D"], *operands: Float[Array, "..."], activation: str) -> Float[Array, "*rows D"]:
    from flaxsent.models.feed_forward_tpu import block_of, feed_forward  # Pallas takes a tenth of a second to import

    if block_of(x.shape, operands[0].shape[1], x.dtype.itemsize) is None:
        return _by_xla(x, *operands, activation=activation)
    return feed_forward(x, *operands, activation=IN_KERNEL[activation])


def _batch(operands: Sequence[Any], axes: Sequence[int | None], *, activation: str) -> tuple[Array, int]:
    if any(axis is not None for axis in axes[1:]):  # of several sets of params
        return jax.vmap(functools.partial(_by_xla, activation=activation), axes)(*operands), 0
    return feed_forward_p.bind(jnp.moveaxis(operands[0], axes[0] or 0, 0), *operands[1:], activation=activation), 0


feed_forward_p = primitive("feed_forward", _by_xla, on_tpu=_on_tpu)
"""Inputs `[*rows, D]`, kernels `[D, F]` and `[F, D]`, each followed by its bias."""
batching.primitive_batchers[feed_forward_p] = _batch
