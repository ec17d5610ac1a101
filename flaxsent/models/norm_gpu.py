"""LayerNorm of a sum as one kernel for NVIDIA's GPUs (Pallas on Triton): each number is read once."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

_NUMBERS = 4096
"""In a block: Triton's arrays have sizes that are powers of 2, so rows of 768 are held as 1,024."""


def block_of(shape: tuple[int, ...]) -> int | None:
    """Tokens in a block of arrays `[*batch, D]`; None where the kernel does not take them."""
    *batch, D = shape
    if not all(isinstance(size, int) for size in shape) or D > _NUMBERS:  # an export's sizes are symbols
        return None
    block = _NUMBERS // pl.next_power_of_2(D)
    return block if math.prod(batch) % block == 0 else None


def norm(
    terms: list[Float[Array, "*batch D"]],
    scale_D: Float[Array, " D"],
    bias_D: Float[Array, " D"] | None,
    *,
    eps: float,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> Float[Array, "*batch D"]:
    """`layers.layer_norm` of the sum of one or two terms, in float32, as `dtype`."""
    shape, D = terms[0].shape, terms[0].shape[-1]
    tokens, width = block_of(shape), pl.next_power_of_2(D)
    assert tokens is not None, f"no block divides {shape}"
    by_token = pl.BlockSpec((tokens, width), lambda block: (block, 0))
    of_all = pl.BlockSpec((width,), lambda block: (0,))
    params = [scale_D, *([] if bias_D is None else [bias_D])]
    y_TD = pl.pallas_call(
        functools.partial(_kernel, num_terms=len(terms), eps=eps, size=D),
        grid=(math.prod(shape[:-1]) // tokens,),
        in_specs=[by_token] * len(terms) + [of_all] * len(params),
        out_specs=by_token,
        out_shape=jax.ShapeDtypeStruct((math.prod(shape[:-1]), D), dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        name="layer_norm",
        interpret=interpret,
    )(*[term.reshape(-1, D) for term in terms], *params)
    return y_TD.reshape(shape)


def _kernel(*refs: jax.Ref, num_terms: int, eps: float, size: int) -> None:
    *inputs, o_ref = refs
    is_there_D = jnp.arange(o_ref.shape[-1]) < size
    is_there_TD = jnp.broadcast_to(is_there_D[None, :], o_ref.shape)

    def load(ref: jax.Ref) -> Array:
        mask = is_there_TD if len(ref.shape) == 2 else is_there_D
        return plgpu.load(ref.at[...], mask=mask, other=0).astype(jnp.float32)

    x_TD = functools.reduce(jnp.add, map(load, inputs[:num_terms]))
    centred_TD = jnp.where(is_there_TD, x_TD - jnp.sum(x_TD, axis=1, keepdims=True) / size, 0.0)
    variance_T1 = jnp.sum(jnp.square(centred_TD), axis=1, keepdims=True) / size
    scale_D, *bias_D = map(load, inputs[num_terms:])
    y_TD = centred_TD * jax.lax.rsqrt(variance_T1 + eps) * scale_D[None, :]
    if bias_D:
        y_TD += bias_D[0][None, :]
    plgpu.store(o_ref.at[...], y_TD.astype(o_ref.dtype), mask=is_there_TD)
