"""LayerNorm of a sum as one kernel for TPUs (Pallas): XLA reads it three times, for two statistics and the result."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

_LANES, _TOKENS = 128, 512


def block_of(shape: tuple[int, ...]) -> int | None:
    """Tokens in a block of arrays `[*batch, D]`; None where there is none that divides them."""
    *batch, D = shape
    is_known = all(isinstance(size, int) for size in shape)  # an export's sizes are symbols
    block = math.gcd(math.prod(batch), _TOKENS) if is_known else 0
    return block if block >= 16 and D % _LANES == 0 else None


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
    block = block_of(shape) or math.prod(shape[:-1])
    at_tokens, at_params = pl.BlockSpec((block, D), lambda at: (at, 0)), pl.BlockSpec((1, D), lambda at: (0, 0))
    params = [param.astype(jnp.float32)[None] for param in (scale_D, bias_D) if param is not None]
    y = pl.pallas_call(
        functools.partial(_kernel, num_terms=len(terms), eps=eps),
        grid=(math.prod(shape[:-1]) // block,),
        in_specs=[at_tokens] * len(terms) + [at_params] * len(params),
        name="layer_norm",
        out_specs=at_tokens,
        out_shape=jax.ShapeDtypeStruct((math.prod(shape[:-1]), D), dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        # "transcendentals" are the numbers that it works through.
        cost_estimate=pl.CostEstimate(
            flops=8 * math.prod(shape),
            transcendentals=math.prod(shape),
            bytes_accessed=(len(terms) + 1) * terms[0].nbytes,
        ),
        interpret=interpret,
    )(*[term.reshape(-1, D) for term in terms], *params)
    return y.reshape(shape)


def _kernel(*refs: jax.Ref, num_terms: int, eps: float) -> None:
    *inputs, o_ref = refs
    x_TD = sum(ref[...].astype(jnp.float32) for ref in inputs[:num_terms])
    centred_TD = x_TD - jnp.mean(x_TD, axis=-1, keepdims=True)
    variance_T1 = jnp.mean(jnp.square(centred_TD), axis=-1, keepdims=True)
    scale_1D, *bias = (ref[...] for ref in inputs[num_terms:])
    y_TD = centred_TD * jax.lax.rsqrt(variance_T1 + eps) * scale_1D
    o_ref[...] = (y_TD + bias[0] if bias else y_TD).astype(o_ref.dtype)
