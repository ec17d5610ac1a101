"""Attention of whole rows as one kernel for TPUs (Pallas): the scores of a block of queries never leave the chip.

Keys and values of a row are held whole, so that the softmax is one pass, not a running one as in FlashAttention (Dao et
al. 2022); rows are short enough for that. Several heads share the 128 lanes of a vector register.
"""

import functools
import math
from typing import Any, NamedTuple

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
_SCORES_AT_ONCE = 2**19
"""Of several heads and rows: what one head takes waits for itself, in short rows most of the time."""
LOG2_E = math.log2(math.e)
"""By which scores are multiplied, for powers of 2 are what the chip computes."""
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
        name=_name(T, is_whole=keys == T),
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


def _name(length: int, *, is_whole: bool) -> str:
    """By which `flaxsent plan` knows what it takes, beside what it says of itself."""
    if not is_whole:
        return "attend_window"
    return "attend" if length < _TOKENS else "attend_512" if length == _TOKENS else "attend_long"


def _up(number: int) -> int:
    """To the next multiple of `LANES`."""
    return -(-number // LANES) * LANES


def _is_seen(after_QT: Int[Array, "Q T"], *, reach: int | None, is_causal: bool) -> Bool[Array, "Q T"]:
    """By how far the key comes after the query."""
    if reach is None:
        return after_QT <= 0
    is_near_QT = jnp.abs(after_QT) <= reach
    return is_near_QT & (after_QT <= 0) if is_causal else is_near_QT


def _unnormalized(
    scores_QT: Float[Array, "Q T"],
    bias_QT: Float[Array, "Q T"] | None,
    mask_QT: Bool[Array, "Q T"],
    scale: float | None,
) -> Float[Array, "Q T"]:
    """What the softmax divides by its sum."""
    if scale is not None:
        scores_QT = scale * LOG2_E * scores_QT
    if bias_QT is not None:
        scores_QT += LOG2_E * bias_QT
    scores_QT = jnp.where(mask_QT, scores_QT, jnp.finfo(jnp.float32).min)
    return jnp.exp2(scores_QT - jnp.max(scores_QT, axis=-1, keepdims=True))


def _kernel(q_ref: jax.Ref, *refs: jax.Ref, **kind: Any) -> None:
    attend_block(q_ref, *refs, first_query=pl.program_id(2) * q_ref.shape[1], **kind)


def attend_block(
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    query_ids_ref: jax.Ref,
    key_ids_ref: jax.Ref,
    *refs: jax.Ref,
    first_query: int | Int[Array, ""],
    num_heads: int,
    reach: int | None,
    is_causal: bool,
    scale: float | None,
    precision: jax.lax.Precision | None,
) -> None:
    """Within a kernel: of queries `[B, Q, W]` that begin at `first_query`, and keys and values `[B, T, W]`.

    `scale` is None where the queries are multiplied by it and by `LOG2_E`, which are fewer numbers than the scores.

    Segment ids are `[B, Q, 1]` and `[B, 1, T]`; a bias follows them or none, then where the result goes.
    """
    *bias_ref, o_ref = refs
    (B, Q, W), T = q_ref.shape, k_ref.shape[1]
    H = W // num_heads
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
    head_1G = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (1, G), 1), jnp.int32(H))
    heads = range(G // H)

    def by_head(x_TG: Float[Array, "T G"]) -> Float[Array, "HT G"]:
        """Once for each head of a group, below one another, with zeros in the lanes of the others."""
        return jnp.concatenate([jnp.where(head_1G == head, x_TG, 0) for head in heads])

    ones_HTG, masks = by_head(jnp.ones((keys, G), v_ref.dtype)), []
    for row in range(B):
        masks.append(query_ids_ref[row] == key_ids_ref[row, :, at_keys])
        if after_QT is not None:
            masks[row] &= _is_seen(after_QT, reach=reach, is_causal=is_causal)
    units = [(row, first // G, slice(first, first + G)) for row in range(B) for first in range(0, W, G)]
    at_once = max(_SCORES_AT_ONCE // (len(heads) * Q * keys), 1)
    for chosen in (units[first : first + at_once] for first in range(0, len(units), at_once)):
        scores = [
            product(q_ref[row, :, lanes], by_head(k_ref[row, at_keys, lanes]), (((1,), (1,)), ((), ())))
            for row, _, lanes in chosen
        ]
        probs = []
        for scores_QHT, (row, group, _) in zip(scores, chosen, strict=True):
            biases: list[Array | None] = [None] * len(heads)
            if bias_ref:
                bias_row = row if bias_ref[0].shape[0] > 1 else 0
                biases = [bias_ref[0][bias_row, group * len(heads) + head, :, at_keys] for head in heads]
            of_heads = zip(jnp.split(scores_QHT, len(heads), axis=-1), biases, strict=True)
            probs.append(jnp.concatenate([_unnormalized(*one, masks[row], scale) for one in of_heads], axis=-1))
        for probs_QHT, (row, _, lanes) in zip(probs, chosen, strict=True):
            # One product has the values of all heads, each in its lanes, and the sums beside them.
            v_HT2G = jnp.concatenate([by_head(v_ref[row, at_keys, lanes]), ones_HTG], axis=-1)
            y_Q2G = product(probs_QHT.astype(v_ref.dtype), v_HT2G, (((1,), (0,)), ((), ())))
            o_ref[row, :, lanes] = (y_Q2G[:, :G] / y_Q2G[:, G:]).astype(o_ref.dtype)
