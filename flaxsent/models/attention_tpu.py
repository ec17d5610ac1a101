"""Attention of whole rows as one kernel for TPUs (Pallas): the scores of a block of queries never leave the chip.

Keys and values of a row are held whole, so that the softmax is one pass, not a running one as in FlashAttention (Dao et
al. 2022); rows are short enough for that. Several heads share the 128 lanes of a vector register.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

LANES = 128
"""The last axis of a block is a multiple of it, or whole."""
_TOKENS = 512
"""In a block, of one row or of several short ones: each block costs a third of a microsecond beside its work."""
_QUERIES = 128
"""In a block of a row that is longer than `_TOKENS`."""
_SCORES_AT_ONCE = 2**18
"""Of several heads: what one head takes waits for itself, in short rows most of the time."""
_MOST_BYTES, _MOST_BYTES_OF_LONG = 8 * 2**20, 20 * 2**20
"""Of the blocks in memory on the chip, and of those of rows longer than `_TOKENS`; there are scores beside them."""
_LIMIT_OF_LONG = 64 * 2**20
"""What a kernel of long rows asks for, of the 128 MiB of a v5e or a v6e; 16 MiB are given to any kernel."""


class _Blocks(NamedTuple):
    rows: int
    queries: int
    width: int
    """Of the hidden size: whole heads."""


def blocks_of(
    num_rows: int, length: int, hidden_size: int, head_size: int, itemsize: int, *, num_biases: int = 0
) -> _Blocks | None:
    """What a step of the kernel computes; None where no step fits the chip's memory or its registers.

    `num_biases` is 0 without a bias, 1 if all rows have the same, else that of the rows.
    """
    if length % LANES:
        return None
    queries = length if length <= _TOKENS else _QUERIES
    rows = max(rows for rows in range(1, max(_TOKENS // length, 1) + 1) if num_rows % rows == 0)
    least = math.lcm(head_size, LANES) if hidden_size % math.lcm(head_size, LANES) == 0 else hidden_size
    # Queries and outputs, keys and values; two buffers each, one is filled while the other is read.
    bytes_of_width = 2 * 2 * rows * (queries + length) * itemsize
    bytes_of_head = 2 * min(num_biases, rows) * queries * length * 4
    most = _MOST_BYTES if length <= _TOKENS else _MOST_BYTES_OF_LONG
    widths = [width for width in range(least, hidden_size + 1, least) if hidden_size % width == 0]
    fitting = [width for width in widths if width * bytes_of_width + width // head_size * bytes_of_head <= most]
    return _Blocks(rows, queries, fitting[-1]) if fitting else None


def attend(
    q_RTD: Float[Array, "R T D"],
    k_RTD: Float[Array, "R T D"],
    v_RTD: Float[Array, "R T D"],
    segment_ids_RT: Int[Array, "R T"],
    bias_BNTT: Float[Array, "B N T T"] | None = None,
    *,
    blocks: _Blocks,
    num_heads: int,
    reach: int | None,
    is_causal: bool,
    scale: float,
    precision: jax.lax.Precision | None,
    interpret: bool = False,
) -> Float[Array, "R T D"]:
    """`attention.attend` of rows; one bias for all rows (B = 1) or one for each."""
    R, T, D = q_RTD.shape
    B, Q, W = blocks
    heads = W // (D // num_heads)
    at_queries = pl.BlockSpec((B, Q, W), lambda row, group, block: (row, block, group))
    at_keys = pl.BlockSpec((B, T, W), lambda row, group, block: (row, 0, group))
    specs = [
        at_queries,
        at_keys,
        at_keys,
        pl.BlockSpec((B, Q, 1), lambda row, group, block: (row, block, 0)),
        pl.BlockSpec((B, 1, T), lambda row, group, block: (row, 0, 0)),
    ]
    operands = [q_RTD, k_RTD, v_RTD, segment_ids_RT[:, :, None], segment_ids_RT[:, None, :]]
    if bias_BNTT is not None:
        rows = 1 if len(bias_BNTT) == 1 else B
        specs.append(
            pl.BlockSpec(
                (rows, heads, Q, T), lambda row, group, block: (row if len(bias_BNTT) > 1 else 0, group, block, 0)
            )
        )
        operands.append(bias_BNTT)
    kernel = functools.partial(
        _kernel, num_heads=heads, reach=reach, is_causal=is_causal, scale=scale, precision=precision
    )
    keys = T if reach is None else min(T, Q + 2 * _up(reach))
    return pl.pallas_call(
        kernel,
        grid=(R // B, D // W, T // Q),
        in_specs=specs,
        name="attend",
        out_specs=at_queries,
        out_shape=jax.ShapeDtypeStruct(q_RTD.shape, q_RTD.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=None if T <= _TOKENS else _LIMIT_OF_LONG,
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * R * T * keys * D,
            transcendentals=R * T * keys * num_heads,
            bytes_accessed=4 * q_RTD.nbytes,
        ),
        interpret=interpret,
    )(*operands)


def _up(number: int) -> int:
    """To the next multiple of `LANES`."""
    return -(-number // LANES) * LANES


def _is_seen(after_QT: Int[Array, "Q T"], *, reach: int | None, is_causal: bool) -> Bool[Array, "Q T"]:
    """By how far the key comes after the query."""
    if reach is None:
        return after_QT <= 0
    is_near_QT = jnp.abs(after_QT) <= reach
    return is_near_QT & (after_QT <= 0) if is_causal else is_near_QT


def _kernel(
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    query_ids_ref: jax.Ref,
    key_ids_ref: jax.Ref,
    *refs: jax.Ref,
    num_heads: int,
    reach: int | None,
    is_causal: bool,
    scale: float,
    precision: jax.lax.Precision | None,
) -> None:
    *bias_ref, o_ref = refs
    (B, Q, W), T = q_ref.shape, k_ref.shape[1]
    H, first_query = W // num_heads, pl.program_id(2) * Q
    G = math.lcm(H, LANES) if W % math.lcm(H, LANES) == 0 else W
    keys, first_key = T, 0
    if reach is not None and Q + 2 * _up(reach) < T:
        keys = Q + 2 * _up(reach)
        first_key = pl.multiple_of(jnp.clip(first_query - _up(reach), 0, T - keys), LANES)
    at_keys = pl.ds(first_key, keys)
    after_QT = None
    if reach is not None or is_causal:
        query_QT, key_QT = (jax.lax.broadcasted_iota(jnp.int32, (Q, keys), axis) for axis in (0, 1))
        after_QT = key_QT + first_key - query_QT - first_query
    # In 16 bits one pass is exact, and the compiler refuses more, which None would ask for where JAX's default is more.
    asked = precision if q_ref.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    product = functools.partial(jax.lax.dot_general, precision=asked, preferred_element_type=jnp.float32)
    at_once = max(
        n for n in range(1, W // G + 1) if (W // G) % n == 0 and (n == 1 or n * G // H * Q * keys <= _SCORES_AT_ONCE)
    )
    head_1G = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (1, G), 1), jnp.int32(H))
    ones_TG = jnp.ones((keys, G), v_ref.dtype)
    for row in range(B):
        mask_QT = query_ids_ref[row] == key_ids_ref[row, :, at_keys]
        if after_QT is not None:
            mask_QT &= _is_seen(after_QT, reach=reach, is_causal=is_causal)
        for first in range(0, W // G, at_once):
            groups = [slice(group * G, (group + 1) * G) for group in range(first, first + at_once)]
            scores = []
            for group in groups:
                q_QG = q_ref[row, :, group]
                of_heads = [jnp.where(head_1G == head, q_QG, 0) for head in range(G // H)]
                scores.append(product(jnp.concatenate(of_heads), k_ref[row, at_keys, group], (((1,), (1,)), ((), ()))))
            scores_NQT = scale * jnp.stack(scores).reshape(-1, Q, keys)
            if bias_ref:
                bias_row = row if bias_ref[0].shape[0] > 1 else 0
                scores_NQT += bias_ref[0][bias_row, first * G // H : (first + at_once) * G // H, :, at_keys]
            scores_NQT = jnp.where(mask_QT[None], scores_NQT, jnp.finfo(jnp.float32).min)
            probs_NQT = jnp.exp(scores_NQT - jnp.max(scores_NQT, axis=-1, keepdims=True)).astype(v_ref.dtype)
            probs = probs_NQT.reshape(len(groups), -1, keys)
            for index, group in enumerate(groups):
                # With columns of ones beside the values, the product has the sums, too: an MXU of 256 columns has room.
                v_T2G = jnp.concatenate([v_ref[row, at_keys, group], ones_TG], axis=-1)
                y_N2G = product(probs[index], v_T2G, (((1,), (0,)), ((), ())))
                y_NQG = y_N2G[:, :G] / y_N2G[:, G:]
                y_NQG = y_NQG.reshape(-1, Q, G)
                y_QG = y_NQG[0]
                for head in range(1, G // H):
                    y_QG = jnp.where(head_1G == head, y_NQG[head], y_QG)
                o_ref[row, :, group] = y_QG.astype(o_ref.dtype)
