"""Attention of whole rows as one kernel for NVIDIA's GPUs (Pallas on Triton): FlashAttention (Dao et al. 2022).

A block of queries meets the blocks of keys that its texts reach, one after the other, with a running softmax. So packed
rows cost what their texts cost by themselves, and windows what they see.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

_KEYS, _MOST_QUERIES = 64, 128
"""In a block."""
_HEAD_SIZES = (16, 32, 64, 128)
"""Triton's arrays have sizes that are powers of 2, and its products at least 16 a side."""


def fits(length: int, head_size: int) -> bool:
    """Whether the kernel takes rows of this length; shorter ones have few scores."""
    return length % _KEYS == 0 and head_size in _HEAD_SIZES


def attend(
    q_RTD: Float[Array, "R T D"],
    k_RTD: Float[Array, "R T D"],
    v_RTD: Float[Array, "R T D"],
    segment_ids_RT: Int[Array, "R T"],
    bias_BNTT: Float[Array, "B N T T"] | None = None,
    *,
    num_heads: int,
    reach: int | None,
    is_causal: bool,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "R T D"]:
    """`attention.attend` of rows in 16 bits; one bias for all rows (B = 1) or one for each."""
    R, T, D = q_RTD.shape
    H = D // num_heads
    Q = _MOST_QUERIES if T % _MOST_QUERIES == 0 else _KEYS
    at_queries = pl.BlockSpec((None, Q, H), lambda block, head, row: (row, block, head))
    at_keys = pl.BlockSpec((None, T, H), lambda block, head, row: (row, 0, head))
    of_row = pl.BlockSpec((None, T), lambda block, head, row: (row, 0))
    of_blocks = pl.BlockSpec((None, T // Q), lambda block, head, row: (row, 0))
    specs = [at_queries, at_keys, at_keys, of_row, of_blocks, of_blocks]
    first_RT, end_RT = _bounds(segment_ids_RT)
    operands = [q_RTD, k_RTD, v_RTD, segment_ids_RT, first_RT[:, ::Q], end_RT[:, Q - 1 :: Q]]
    if bias_BNTT is not None:
        is_of_row = len(bias_BNTT) > 1
        specs.append(
            pl.BlockSpec((None, None, Q, T), lambda block, head, row: (row if is_of_row else 0, head, block, 0))
        )
        operands.append(bias_BNTT)
    return pl.pallas_call(
        functools.partial(_kernel, reach=reach, is_causal=is_causal, scale=scale),
        grid=(T // Q, num_heads, R),
        in_specs=specs,
        out_specs=at_queries,
        out_shape=jax.ShapeDtypeStruct(q_RTD.shape, q_RTD.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4 if H <= 64 else 8, num_stages=2),
        name="attend",
        interpret=interpret,
    )(*operands)


def _bounds(segment_ids_RT: Int[Array, "R T"]) -> tuple[Int[Array, "R T"], Int[Array, "R T"]]:
    """Where the text of each token begins and ends in its row."""
    T = segment_ids_RT.shape[1]
    places_RT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), segment_ids_RT.shape)
    is_other = segment_ids_RT[:, 1:] != segment_ids_RT[:, :-1]
    is_first_RT, is_last_RT = (jnp.pad(is_other, ((0, 0), side), constant_values=True) for side in ((1, 0), (0, 1)))
    first_RT = jax.lax.cummax(jnp.where(is_first_RT, places_RT, 0), axis=1)
    end_RT = jax.lax.cummin(jnp.where(is_last_RT, places_RT + 1, T), axis=1, reverse=True)
    return first_RT, end_RT


def _kernel(
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    segment_ids_ref: jax.Ref,
    first_ref: jax.Ref,
    end_ref: jax.Ref,
    *refs: jax.Ref,
    reach: int | None,
    is_causal: bool,
    scale: float,
) -> None:
    *bias_ref, o_ref = refs
    (Q, H), block = q_ref.shape, pl.program_id(0)
    first_query = block * Q
    first_key, end_key = first_ref[block], end_ref[block]
    if reach is not None:
        first_key = jnp.maximum(first_key, first_query - reach)
        end_key = jnp.minimum(end_key, first_query + Q + reach)
    if is_causal:
        end_key = jnp.minimum(end_key, first_query + Q)
    q_QH = q_ref[...]
    query_ids_Q = segment_ids_ref[pl.ds(first_query, Q)]
    query_Q = first_query + jnp.arange(Q)
    log2_e = math.log2(math.e)

    def attend_block(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y_QH, total_Q, highest_Q = carry
        at_keys = pl.ds(index * _KEYS, _KEYS)
        scores_QK = scale * log2_e * _product(q_QH, k_ref[at_keys, :], ((1,), (1,)))
        if bias_ref:
            scores_QK += log2_e * bias_ref[0][:, at_keys]
        mask_QK = query_ids_Q[:, None] == segment_ids_ref[at_keys][None, :]
        after_QK = (index * _KEYS + jnp.arange(_KEYS))[None, :] - query_Q[:, None]
        if reach is not None:
            mask_QK &= jnp.abs(after_QK) <= reach
        if is_causal:
            mask_QK &= after_QK <= 0
        scores_QK = jnp.where(mask_QK, scores_QK, jnp.finfo(jnp.float32).min)
        new_highest_Q = jnp.maximum(highest_Q, jnp.max(scores_QK, axis=1))
        probs_QK = jnp.exp2(scores_QK - new_highest_Q[:, None])
        kept_Q = jnp.exp2(highest_Q - new_highest_Q)
        y_QH = kept_Q[:, None] * y_QH + _product(probs_QK.astype(v_ref.dtype), v_ref[at_keys, :], ((1,), (0,)))
        return y_QH, kept_Q * total_Q + jnp.sum(probs_QK, axis=1), new_highest_Q

    # A block that holds nothing a query sees counts at first; the block of its own text takes that to 0.
    start = jnp.zeros((Q, H), jnp.float32), jnp.zeros(Q, jnp.float32), jnp.full(Q, -jnp.inf, jnp.float32)
    blocks = jax.lax.div(jnp.maximum(first_key, 0), _KEYS), jax.lax.div(end_key + _KEYS - 1, _KEYS)
    y_QH, total_Q, _ = jax.lax.fori_loop(*blocks, attend_block, start)
    o_ref[...] = (y_QH / total_Q[:, None]).astype(o_ref.dtype)


def _product(x: Array, y: Array, axes: tuple[tuple[int], tuple[int]]) -> Float[Array, "rows columns"]:
    precision = jax.lax.Precision.DEFAULT  # in 16 bits one pass is exact, whatever JAX's default is
    return jax.lax.dot_general(x, y, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)
