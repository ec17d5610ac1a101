"""Attention in one row of tokens: who sees whom follows from the row's segment ids and from where in it a token stands.

The tokens of a text lie side by side, so that their distance in the row is that of their positions. The queries of long
rows are taken in blocks, so that no array is N × T × T, unless a bias is added to all scores (MPNet, DeBERTa).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Shaped

from flaxsent.base import AnyArray
from flaxsent.models.layers import OptionalKey, dropout, take

_MOST_SCORES = 2048**2
"""Of a head, at a time: in rows that have more, blocks of queries that see the whole row come one after the other."""

_TILE = 16
"""A block of queries that see only their neighbours is a multiple of it, and at least as long as they see."""

_FEW_BLOCKS = 5
"""Rows of so few blocks are computed whole, which is faster (on a CPU, up to 320 tokens for windows of 128)."""


PROBS = "probs"
"""The name of the probabilities in the jaxpr, by which `linen.py` finds them."""


class _Queries(NamedTuple):
    q: Float[Array, "*blocks Q D"]
    places: Int[Array, "*blocks Q"]
    """Where in the row they stand."""
    segment_ids: Int[AnyArray, "*blocks Q"]


class _Keys(NamedTuple):
    k: Float[Array, "*blocks T D"]
    v: Float[Array, "*blocks T D"]
    places: Int[Array, "*blocks T"]
    segment_ids: Int[AnyArray, "*blocks T"]


def attend(
    q_QD: Float[Array, "Q D"],
    k_TD: Float[Array, "T D"],
    v_TD: Float[Array, "T D"],
    segment_ids_T: Int[AnyArray, " T"],
    *,
    at_Q: Int[Array, " Q"] | None = None,
    num_heads: int,
    dropout_rate: float,
    key: OptionalKey,
    reach: int | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    bias_NQT: Float[Array, "N Q T"] | None = None,
) -> Float[Array, "Q D"]:
    """Scaled dot-product attention in `num_heads` heads (Vaswani et al. 2017); dropout on the probabilities.

    A token sees its own text; of it, only `reach` tokens on either side if that is given, and none after itself if
    `is_causal`. The queries are those of the tokens at `at_Q`, or of all. `scale` is 1/√H if not given; `bias_NQT` is
    added to the scores after scaling.
    """
    length = segment_ids_T.shape[0]
    places_T = jnp.arange(length)
    queries = _Queries(q_QD, places_T if at_Q is None else at_Q, take(jnp.asarray(segment_ids_T), at_Q))
    keys = _Keys(k_TD, v_TD, places_T, segment_ids_T)
    attend_block = functools.partial(
        _attend,
        num_heads=num_heads,
        dropout_rate=dropout_rate,
        reach=reach,
        is_causal=is_causal,
        scale=1 / math.sqrt(q_QD.shape[-1] // num_heads) if scale is None else scale,
    )
    if not isinstance(length, int):  # an export takes rows of any length: its shapes are symbols
        return attend_block(queries, keys, key, bias_NQT)
    size = _TILE * max(math.ceil((reach or 0) / _TILE), 1)
    is_local = reach is not None and at_Q is None and length > _FEW_BLOCKS * size
    if not is_local:
        size = max(_MOST_SCORES // length, 1)
        if len(queries.places) <= size or bias_NQT is not None:
            return attend_block(queries, keys, key, bias_NQT)
    blocks = jax.tree.map(lambda x: _blocks(x, size), queries)
    block_keys = None if key is None else jax.random.split(key, blocks.q.shape[0])
    if is_local:
        y_BQD = jax.vmap(attend_block)(blocks, jax.tree.map(lambda x: _with_neighbours(x, size), keys), block_keys)
    else:  # one block after the other; no scores are kept for the gradient
        y_BQD = jax.lax.map(jax.checkpoint(lambda one: attend_block(one[0], keys, one[1])), (blocks, block_keys))
    return y_BQD.reshape(-1, y_BQD.shape[-1])[: len(queries.places)]


def _attend(
    queries: _Queries,
    keys: _Keys,
    key: OptionalKey,
    bias_NQT: Float[Array, "N Q T"] | None = None,
    *,
    num_heads: int,
    dropout_rate: float,
    reach: int | None,
    is_causal: bool,
    scale: float,
) -> Float[Array, "Q D"]:
    q_QNH, k_TNH, v_TNH = (x.reshape(x.shape[0], num_heads, -1) for x in (queries.q, keys.k, keys.v))
    scores_NQT = scale * jnp.einsum("QNH,TNH->NQT", q_QNH, k_TNH, preferred_element_type=jnp.float32)
    if bias_NQT is not None:
        scores_NQT = scores_NQT + bias_NQT
    # Padding sees padding: a softmax over nothing would be NaN.
    mask_QT = queries.segment_ids[:, None] == keys.segment_ids[None, :]
    after_QT = keys.places[None, :] - queries.places[:, None]
    if reach is not None:
        mask_QT &= jnp.abs(after_QT) <= reach
    if is_causal:
        mask_QT &= after_QT <= 0
    scores_NQT = jnp.where(mask_QT[None], scores_NQT, jnp.finfo(jnp.float32).min)
    probs_NQT = checkpoint_name(jax.nn.softmax(scores_NQT, axis=-1), PROBS)
    probs_NQT = dropout(probs_NQT, dropout_rate, key).astype(v_TNH.dtype)
    y_QNH = jnp.einsum("NQT,TNH->QNH", probs_NQT, v_TNH, preferred_element_type=jnp.float32)
    return y_QNH.reshape(queries.q.shape).astype(queries.q.dtype)


def _blocks(x: Shaped[Array, "T *D"], size: int, *, before: int = 0, after: int = 0) -> Shaped[Array, "blocks Q *D"]:
    """Blocks of a row, with empty ones `before` and `after` it; what fills them is no token and no padding (-1)."""
    length = x.shape[0]
    beyond = -length % size
    width = [(before * size, beyond + after * size), *[(0, 0)] * (x.ndim - 1)]
    return jnp.pad(x, width, constant_values=-1 if x.ndim == 1 else 0).reshape(-1, size, *x.shape[1:])


def _with_neighbours(x: Shaped[Array, "T *D"], size: int) -> Shaped[Array, "blocks keys *D"]:
    """Each block between the one before it and the one after it."""
    blocks = _blocks(x, size, before=1, after=1)
    return jnp.concatenate([blocks[:-2], blocks[1:-1], blocks[2:]], axis=1)
