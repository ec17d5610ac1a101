"""Stacked layers of BERT's kind as one kernel for TPUs (Pallas): between them nothing leaves the chip.

The kernel runs through all rows for one layer after the other. The states stay in the chip's memory, where the params
of the next layer arrive in the meantime. What XLA does between kernels, such as taking a layer's params from a stack,
is not done at all, and the matrix units work on one part of a block while others compute the softmax of another.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from flaxsent.base import Params
from flaxsent.models.attention_tpu import LANES, LOG2_E, attend_block

_TOKENS, _TOKENS_OF_NARROW = 512, 1024
"""In a block, at most. Twice as many take twice as long to compile, for 6% fewer cycles of narrow layers and 3% of wide
ones, which take longer to compile."""
_LONGEST = 512
"""Longer rows have more scores than a block should hold."""
_MOST_BYTES = 100 * 2**20
"""Of what the kernel holds: a v5e and a v6e have 128 MiB on the chip."""
_WIDE = 768
"""Narrower layers wait for the softmax and the activation more than for their products."""


def rows_of(shape: tuple[int, ...], middle: int, num_heads: int, itemsize: int) -> int | None:
    """Rows in a block of states `[*batch, T, D]`; None where the kernel does not take them or has no room for them."""
    *batch, T, D = shape
    if not all(isinstance(size, int) for size in shape):  # an export's sizes are symbols
        return None
    if T % LANES or T > _LONGEST or D % math.lcm(D // num_heads, LANES) or middle % LANES:
        return None
    num_rows, most = math.prod(batch), _TOKENS if D >= _WIDE else _TOKENS_OF_NARROW
    rows = max(rows for rows in range(1, most // T + 1) if num_rows % rows == 0)
    return rows if _bytes(rows, num_rows, T, D, middle, itemsize) <= _MOST_BYTES else None


def _bytes(rows: int, num_rows: int, T: int, D: int, F: int, itemsize: int) -> int:
    """Of all states, the params of two layers, and what a block has.

    That is inputs and outputs twice, queries, keys, values and what is attended to, the middle in float32 and as it is
    read, and some room for scores.
    """
    params, tokens = 4 * D * D + 2 * D * F, rows * T
    return itemsize * (num_rows * T * D + 2 * params) + tokens * (8 * D * itemsize + (D + F) * (4 + itemsize)) + 2**23


def run_layers(
    x_RTD: Float[Array, "R T D"],
    segment_ids_RT: Int[Array, "R T"],
    denses: Sequence[Params],
    norms: Sequence[Params],
    *,
    rows: int,
    num_heads: int,
    activation: Callable[[Float[Array, "T F"]], Float[Array, "T F"]],
    eps: float,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "R T D"]:
    """The output of the last of L layers.

    Args:
        x_RTD: the states before the first.
        segment_ids_RT: which text of its row a token belongs to.
        denses: query, key, value, the layer that reads what is attended to, and the feed-forward's two; kernels
            `[L, inp, out]`, biases `[L, out]`.
        norms: the LayerNorm after attention and that after the feed-forward; scales and biases `[L, D]`.
        rows: in a block (`rows_of`).
        num_heads: of attention.
        activation: of the feed-forward; it is given float32.
        eps: of the LayerNorms.
        scale: of attention's scores.
        interpret: runs it without a TPU.
    """
    (R, T, D), dtype = x_RTD.shape, x_RTD.dtype
    kernels = [dense["kernel"] for dense in denses]
    vectors = [*(dense["bias"] for dense in denses), *(norm[name] for norm in norms for name in ("scale", "bias"))]
    L, F, last = len(kernels[0]), kernels[4].shape[-1], R // rows - 1
    at_first, at_last = (
        pl.BlockSpec(
            (rows, T, D), lambda layer, block, own=own, idle=idle: (jnp.where(layer == own, block, idle), 0, 0)
        )
        for own, idle in ((0, last), (L - 1, 0))
    )
    of_block = [pl.BlockSpec(size, lambda layer, block: (block, 0, 0)) for size in ((rows, T, 1), (rows, 1, T))]
    of_layer = [pl.BlockSpec((1, *kernel.shape[1:]), lambda layer, block: (layer, 0, 0)) for kernel in kernels]
    whole = [pl.BlockSpec(vector.shape, lambda layer, block: (0, 0)) for vector in vectors]
    products = sum(kernel.size for kernel in kernels)
    return pl.pallas_call(
        functools.partial(_kernel, num_heads=num_heads, activation=activation, eps=eps, scale=scale),
        grid=(L, R // rows),
        in_specs=[at_first, *of_block, *of_layer, *whole],
        name=_name(T, D),
        out_specs=at_last,
        out_shape=jax.ShapeDtypeStruct(x_RTD.shape, dtype),
        scratch_shapes=[pltpu.VMEM((R * T, D), dtype), *[pltpu.VMEM((rows, T, D), dtype)] * 4],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=_bytes(rows, R, T, D, F, dtype.itemsize) + 2**24,
        ),
        # "transcendentals" are the numbers that it works through.
        cost_estimate=pl.CostEstimate(
            flops=2 * R * T * products + 4 * L * R * T * T * D,
            transcendentals=L * R * T * (T * num_heads + F + 2 * D),
            bytes_accessed=2 * x_RTD.nbytes + sum(kernel.nbytes for kernel in kernels),
        ),
        interpret=interpret,
    )(x_RTD, segment_ids_RT[:, :, None], segment_ids_RT[:, None, :], *kernels, *vectors)


def _name(length: int, hidden_size: int) -> str:
    """By which `flaxsent plan` knows what it takes, beside what it says of itself."""
    narrow, long = "" if hidden_size >= _WIDE else "_narrow", "" if length < _LONGEST else f"_{_LONGEST}"
    return f"post_norm_layers{narrow}{long}"


def _kernel(
    x_ref: jax.Ref,
    query_ids_ref: jax.Ref,
    key_ids_ref: jax.Ref,
    *refs: jax.Ref,
    num_heads: int,
    activation: Callable[[Array], Array],
    eps: float,
    scale: float,
) -> None:
    kernels, vectors, (o_ref, states_ref, *qkv_refs, attended_ref) = refs[:6], refs[6:16], refs[16:]
    (B, T, D), (layer, block) = x_ref.shape, map(pl.program_id, range(2))
    at_block = pl.ds(pl.multiple_of(block * (B * T), LANES), B * T)
    # In 16 bits one pass is exact.
    product = functools.partial(jnp.dot, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)

    def of_layer(vector_ref: jax.Ref) -> Float[Array, "1 D"]:
        """By a sum over layers: a row of packed numbers cannot be read by an index that is data."""
        rows_LD = vector_ref[...].astype(jnp.float32)
        is_own = jax.lax.broadcasted_iota(jnp.int32, rows_LD.shape, 0) == layer
        return jnp.sum(jnp.where(is_own, rows_LD, 0), axis=0, keepdims=True)

    def dense(index: int, x_TD: Float[Array, "T D"]) -> Float[Array, "T F"]:
        return product(x_TD, kernels[index][0]) + of_layer(vectors[index])

    def add_and_norm(first: int, x_TD: Float[Array, "T D"], y_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
        sum_TD = x_TD.astype(jnp.float32) + y_TD
        centred_TD = sum_TD - jnp.mean(sum_TD, axis=-1, keepdims=True)
        variance_T1 = jnp.mean(jnp.square(centred_TD), axis=-1, keepdims=True)
        y_TD = centred_TD * jax.lax.rsqrt(variance_T1 + eps) * of_layer(vectors[first]) + of_layer(vectors[first + 1])
        return y_TD.astype(x_ref.dtype)

    @pl.when(layer == 0)
    def _begin() -> None:
        states_ref[at_block] = x_ref[...].reshape(B * T, D)

    x_TD = states_ref[at_block]
    for index, ref in enumerate(qkv_refs):
        y_TD = dense(index, x_TD) if index else scale * LOG2_E * dense(index, x_TD)  # rounded once, as the others
        ref[...] = y_TD.astype(ref.dtype).reshape(B, T, D)
    attend_block(
        *(*qkv_refs, query_ids_ref, key_ids_ref, attended_ref),
        first_query=0,
        num_heads=num_heads,
        reach=None,
        is_causal=False,
        scale=None,
        precision=None,
    )
    x_TD = add_and_norm(6, x_TD, dense(3, attended_ref[...].reshape(B * T, D)))
    middle_TF = activation(dense(4, x_TD)).astype(x_ref.dtype)
    x_TD = add_and_norm(8, x_TD, dense(5, middle_TF))
    states_ref[at_block] = x_TD

    @pl.when(layer == pl.num_programs(0) - 1)
    def _end() -> None:
        o_ref[...] = x_TD.reshape(B, T, D)
