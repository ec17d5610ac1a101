"""Attention in one row of tokens: who sees whom follows from the row's segment ids and from where in it a token stands.

The tokens of a text lie side by side, so that their distance in the row is that of their positions.

What computes it is chosen here, by platform and length. On a TPU a kernel does (`attention_tpu.py`), whose scores
never leave the chip, and in 16 bits on a GPU (`attention_gpu.py`). Elsewhere, in a gradient and with dropout the scores
are arrays of XLA; the queries of long rows are taken in blocks then, so that none is N × T × T, unless a bias is added
to all scores (MPNet, DeBERTa).
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import batching
from jaxtyping import Array, Float, Int, Shaped

from flaxsent.base import AnyArray
from flaxsent.models.dropout import OptionalKey, dropout
from flaxsent.models.layers import take
from flaxsent.models.platforms import primitive

_MOST_SCORES, _MOST_SCORES_ON_CPU = 2048**2, 2**16
"""Of a head, at a time: in rows that have more, blocks of queries that see the whole row come one after the other.
Those of a CPU's forward stay in its caches: rows of 512 take two thirds of the time, shorter ones are whole."""

_TILE = 16
"""A block of queries that see only their neighbours is a multiple of it, and at least as long as they see."""

_FEW_BLOCKS = 5
"""Rows of so few blocks are computed whole, which is faster (on a CPU, up to 320 tokens for windows of 128)."""


PROBS = "probs"
"""The name in the jaxpr of the probabilities that dropout meets, by which `linen.py` finds them."""


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


@jax.named_scope("attention")
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
    kind = {"num_heads": num_heads, "reach": reach, "is_causal": is_causal}
    kind["scale"] = 1 / math.sqrt(q_QD.shape[-1] // num_heads) if scale is None else scale
    is_whole = at_Q is None and (key is None or dropout_rate == 0)
    if is_whole and isinstance(q_QD.shape[0], int):  # an export takes rows of any length: its shapes are symbols
        bias = () if bias_NQT is None else (bias_NQT,)
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        return attend_p.bind(q_QD, k_TD, v_TD, jnp.asarray(segment_ids_T), *bias, precision=precision, **kind)
    return _by_scores(q_QD, k_TD, v_TD, segment_ids_T, bias_NQT, at_Q=at_Q, dropout_rate=dropout_rate, key=key, **kind)


def _rows_by_scores(*operands: Any, precision: str | None, **kind: Any) -> Float[Array, "*batch T D"]:
    if operands[0].ndim > 2:
        *rows, bias = operands if len(operands) == 5 else (*operands, None)
        of_row, bias_axis = functools.partial(_rows_by_scores, precision=precision, **kind), 0
        if bias is not None and len(bias) != len(rows[0]):
            bias, bias_axis = bias[0], None
        return jax.vmap(of_row, (0, 0, 0, 0, bias_axis))(*rows, bias)
    with contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision):
        return _by_scores(*operands, **kind)


def _rows_on_cpu(*operands: Any, **kind: Any) -> Float[Array, "*batch T D"]:
    return _rows_by_scores(*operands, most_scores=_MOST_SCORES_ON_CPU, **kind)


_EXACT = ("highest", "float32")
"""The names of `jax.default_matmul_precision` for products of float32 that are exact to float32."""


def _rows_on_tpu(*operands: Any, precision: str | None, **kind: Any) -> Float[Array, "*batch T D"]:
    from flaxsent.models.attention_tpu import attend, blocks_of  # Pallas takes a tenth of a second to import

    q = operands[0]
    *batch, T, D = q.shape
    num_biases = math.prod(operands[4].shape[: len(batch)]) if len(operands) == 5 else 0
    head_size = D // kind["num_heads"]
    blocks = blocks_of(math.prod(batch), T, D, head_size, q.dtype.itemsize, num_biases=num_biases)
    has_precision = q.dtype == jnp.bfloat16 or precision in (None, "default", *_EXACT)
    if blocks is None or not has_precision or q.dtype == jnp.float16:
        return _rows_by_scores(*operands, precision=precision, **kind)
    is_exact = q.dtype == jnp.float32 and precision in _EXACT
    highest = jax.lax.Precision.HIGHEST if is_exact else None
    return attend(*_flat(*operands), blocks=blocks, precision=highest, **kind).reshape(q.shape)


def _rows_on_gpu(*operands: Any, precision: str | None, **kind: Any) -> Float[Array, "*batch T D"]:
    from flaxsent.models.attention_gpu import attend, fits

    q = operands[0]
    T, D = q.shape[-2:]
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not fits(T, D // kind["num_heads"]):
        return _rows_by_scores(*operands, precision=precision, **kind)
    return attend(*_flat(*operands), **kind).reshape(q.shape)


def _flat(*operands: Any) -> list[Array]:
    """One axis of rows; a bias has one for each, or one for all."""
    batch = operands[0].shape[:-2]
    rows = [x.reshape(-1, *x.shape[len(batch) :]) for x in operands]
    if len(rows) == 5 and len(rows[4]) not in (1, len(rows[0])):
        bias = jnp.broadcast_to(operands[4], (*batch, *operands[4].shape[len(batch) :]))
        rows[4] = bias.reshape(-1, *bias.shape[len(batch) :])
    return rows


def _batch(operands: Sequence[Any], axes: Sequence[int | None], **kind: Any) -> tuple[Array, int]:
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)

    def with_axis(x: Any, axis: int | None, *, is_bias: bool) -> Array:
        if axis is not None:
            return jnp.moveaxis(x, axis, 0)
        return x[None] if is_bias else jnp.broadcast_to(x[None], (size, *x.shape))

    moved = [with_axis(x, axis, is_bias=at == 4) for at, (x, axis) in enumerate(zip(operands, axes, strict=True))]
    return attend_p.bind(*moved, **kind), 0


attend_p = primitive("attend", _rows_by_scores, on_tpu=_rows_on_tpu, on_gpu=_rows_on_gpu, on_cpu=_rows_on_cpu)
"""`attend` of whole rows without dropout: queries, keys, values `[*batch, T, D]`, segment ids `[*batch, T]`, and a bias
`[*batch, N, T, T]` or none; an axis of the batch on which the bias does not depend has size 1 there. Its gradient is by
the scores."""
batching.primitive_batchers[attend_p] = _batch


def _by_scores(
    q_QD: Float[Array, "Q D"],
    k_TD: Float[Array, "T D"],
    v_TD: Float[Array, "T D"],
    segment_ids_T: Int[AnyArray, " T"],
    bias_NQT: Float[Array, "N Q T"] | None = None,
    *,
    at_Q: Int[Array, " Q"] | None = None,
    reach: int | None,
    key: OptionalKey = None,
    dropout_rate: float = 0.0,
    most_scores: int | None = None,
    **kind: Any,
) -> Float[Array, "Q D"]:
    length = segment_ids_T.shape[0]
    places_T = jnp.arange(length)
    queries = _Queries(q_QD, places_T if at_Q is None else at_Q, take(jnp.asarray(segment_ids_T), at_Q))
    keys = _Keys(k_TD, v_TD, places_T, segment_ids_T)
    attend_block = functools.partial(_attend, dropout_rate=dropout_rate, reach=reach, **kind)
    if not isinstance(length, int):
        return attend_block(queries, keys, key, bias_NQT)
    size = _TILE * max(math.ceil((reach or 0) / _TILE), 1)
    is_local = reach is not None and at_Q is None and bias_NQT is None and length > _FEW_BLOCKS * size
    if not is_local:
        size = max((most_scores or _MOST_SCORES) // length, 1)
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
    dropout_rate: float,
    **kind: Any,
) -> Float[Array, "Q D"]:
    scores_NQT = _scores(queries, keys, bias_NQT, **kind)
    # Divided after the product, which has fewer numbers: a fifth of the time on a CPU.
    weights_NQT = jnp.exp(scores_NQT - jax.lax.stop_gradient(jnp.max(scores_NQT, axis=-1, keepdims=True)))
    totals_NQ1 = jnp.sum(weights_NQT, axis=-1, keepdims=True)
    if key is not None:
        checkpoint_name(weights_NQT / totals_NQ1, PROBS)
    v_TNH = _heads(keys.v, kind["num_heads"])
    dropped_NQT = dropout(weights_NQT, dropout_rate, key).astype(v_TNH.dtype)
    y_QNH = jnp.einsum("NQT,TNH->QNH", dropped_NQT, v_TNH, preferred_element_type=jnp.float32)
    y_QNH = y_QNH / jnp.moveaxis(totals_NQ1, 0, 1)
    return y_QNH.reshape(queries.q.shape).astype(queries.q.dtype)


def _scores(
    queries: _Queries,
    keys: _Keys,
    bias_NQT: Float[Array, "N Q T"] | None,
    *,
    num_heads: int,
    reach: int | None,
    is_causal: bool,
    scale: float,
) -> Float[Array, "N Q T"]:
    q_QNH, k_TNH = _heads(queries.q, num_heads), _heads(keys.k, num_heads)
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
    return jnp.where(mask_QT[None], scores_NQT, jnp.finfo(jnp.float32).min)


def _heads(x_TD: Float[Array, "T D"], num_heads: int) -> Float[Array, "T N H"]:
    return x_TD.reshape(x_TD.shape[0], num_heads, -1)


def probs(
    q_TD: Float[Array, "T D"],
    k_TD: Float[Array, "T D"],
    segment_ids_T: Int[AnyArray, " T"],
    bias_NTT: Float[Array, "N T T"] | None = None,
    **kind: Any,
) -> Float[Array, "N T T"]:
    """The probabilities of one row by which `attend_p` weighs the values, from its operands and parameters."""
    places_T = jnp.arange(segment_ids_T.shape[0])
    del kind["precision"]
    queries, keys = _Queries(q_TD, places_T, segment_ids_T), _Keys(k_TD, k_TD, places_T, segment_ids_T)
    return jax.nn.softmax(_scores(queries, keys, bias_NTT, **kind), axis=-1)


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
