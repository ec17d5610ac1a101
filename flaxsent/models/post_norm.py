"""Encoders as BERT's: tables of embeddings that are added up, then layers that normalise after each of their two sums.

BERT and its kin, DistilBERT, ALBERT, MPNet and DeBERTa are of this kind. They differ in what the parts are called, in
where dropout is, and in what is added to the scores of attention.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import batching
from jaxtyping import Array, Float, Int

from flaxsent.base import AnyArray, Params, Tokens
from flaxsent.models.attention import attend
from flaxsent.models.dropout import OptionalKey, dropout, split_key
from flaxsent.models.family import ModelConfig
from flaxsent.models.feed_forward import IN_KERNEL, feed_forward
from flaxsent.models.layers import (
    FETCH,
    Layer,
    add_and_norm,
    dense,
    dense_shapes,
    first_tokens,
    layer_norm,
    layer_norm_shapes,
    look_up,
    run,
    scan,
    take,
)
from flaxsent.models.platforms import primitive

_BF16 = jnp.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts of a layer are in its params, names with dots between; BERT's by default."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    """The layer that reads what the heads give."""
    attended_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    """The two layers of the feed-forward."""
    down_norm: str = "output.LayerNorm"
    dropped: tuple[str, ...] = ("attended", "down")
    """On whose output dropout is."""

    def shapes(self, config: ModelConfig, *more: str) -> dict[str, Any]:
        """Those of a layer, with `more` parts that are as large as the query's."""
        D, F = config.hidden_size, config.intermediate_size
        square = dict.fromkeys((self.query, self.key, self.value, self.attended, *more), dense_shapes(D, D))
        norms = dict.fromkeys((self.attended_norm, self.down_norm), layer_norm_shapes(D))
        tree: dict[str, Any] = {}
        for path, shapes in {**square, **norms, self.up: dense_shapes(D, F), self.down: dense_shapes(F, D)}.items():
            *branches, name = path.split(".")
            functools.reduce(lambda node, branch: node.setdefault(branch, {}), branches, tree)[name] = shapes
        return tree


def part(params: Params, path: str) -> Params:
    return functools.reduce(lambda node, name: node[name], path.split("."), params)


def embedding_shapes(config: ModelConfig, size: int, *, norm_size: int | None = None, **tables: int) -> dict[str, Any]:
    """Those of the tables `{name}_embeddings`, so many rows each, besides the words'; none of a table of 0 rows."""
    tables = {"word": config.vocab_size, "token_type": config.type_vocab_size} | tables
    shapes = {f"{name}_embeddings": {"embedding": (rows, size)} for name, rows in tables.items() if rows}
    return shapes | {"LayerNorm": layer_norm_shapes(norm_size or size)}


def embed(params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey) -> Float[Array, "T D"]:
    """What the tables have for the words, the token types and the positions, added up and normalised."""
    tables, rate, eps = params["embeddings"], config.hidden_dropout, config.layer_norm_eps
    ids = {"word": tokens.input_ids, "token_type": tokens.token_type_ids, "position": tokens.position_ids}
    there = {f"{name}_embeddings": ids_T for name, ids_T in ids.items() if f"{name}_embeddings" in tables}
    x_TD = functools.reduce(jnp.add, [look_up(tables[name], ids_T) for name, ids_T in there.items()])
    if "embed_proj" in tables:
        x_TD = dense(tables["embed_proj"], x_TD)
    return dropout(layer_norm(tables["LayerNorm"], x_TD, eps=eps), rate, key)


def encode(
    params: Params,
    x_TD: Float[Array, "T D"],
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int | None,
    key: OptionalKey,
    branch: str = "encoder.layer",
    **arguments: Any,
) -> list[Float[Array, "_ D"]]:
    """`Family.encode` of layers that run one after the other; `arguments` are those of `post_norm_layer`."""
    arguments |= {"segment_ids_T": jnp.asarray(tokens.segment_ids), "config": config}
    layer = functools.partial(post_norm_layer, **arguments)
    at_Q, run_stacked = first_tokens(tokens, num_segments), functools.partial(_run_stacked, **arguments)
    return run(lambda _: layer, part(params, branch), x_TD, at_Q=at_Q, key=key, run_stacked=run_stacked)


def _run_stacked(
    layer_of: Callable[[int], Layer],
    stacked: Params,
    x_TD: Float[Array, "T D"],
    *,
    numbers: range,
    keys: Sequence[OptionalKey],
    segment_ids_T: Int[Array, " T"],
    parts: Parts,
    config: ModelConfig,
    bias: Callable[..., Any] | None = None,
    scale: float | None = None,
) -> Float[Array, "T D"]:
    """Stacked layers; in bfloat16 on a TPU all of them are one kernel, if they have nothing but BERT's parts."""
    leaves, structure = jax.tree.flatten(stacked)
    is_plain = bias is None and keys[numbers.start] is None and FETCH.get() is None
    if is_plain and structure == _structure(parts, config) and {leaf.dtype for leaf in (x_TD, *leaves)} == {_BF16}:
        return layers_p.bind(x_TD, segment_ids_T, *leaves, parts=parts, config=config, scale=scale)
    return scan(layer_of, stacked, x_TD, numbers=numbers, keys=keys)


def _structure(parts: Parts, config: ModelConfig) -> Any:
    """Of layers of one kind that are stacked."""
    return jax.tree.structure({"0": parts.shapes(config)}, is_leaf=lambda node: isinstance(node, tuple))


def _by_scan(
    x: Float[Array, "*rows T D"],
    segment_ids: Int[Array, "*rows T"],
    *leaves: Float[Array, "..."],
    parts: Parts,
    config: ModelConfig,
    scale: float | None,
) -> Float[Array, "*rows T D"]:
    static = {"parts": parts, "config": config, "scale": scale}
    if x.ndim > 2:
        return jax.vmap(functools.partial(_by_scan, **static), (0, 0, *[None] * len(leaves)))(x, segment_ids, *leaves)
    layer = functools.partial(post_norm_layer, segment_ids_T=segment_ids, **static)
    stacked, numbers = jax.tree.unflatten(_structure(parts, config), leaves), range(len(leaves[0]))
    return scan(lambda _: layer, stacked, x, numbers=numbers, keys=[None] * len(numbers))


def _on_tpu(
    x: Float[Array, "*rows T D"], segment_ids: Int[Array, "*rows T"], *leaves: Float[Array, "..."], **static: Any
) -> Float[Array, "*rows T D"]:
    from flaxsent.models.post_norm_tpu import rows_of, run_layers  # Pallas takes a tenth of a second to import

    parts, config, scale = static["parts"], static["config"], static["scale"]
    activation, num_heads = IN_KERNEL.get(config.activation), config.num_heads
    rows = rows_of(x.shape, config.intermediate_size, num_heads, x.dtype.itemsize)
    if rows is None or activation is None:
        return _by_scan(x, segment_ids, *leaves, **static)
    layers = jax.tree.unflatten(_structure(parts, config), leaves)["0"]
    (T, D), names = x.shape[-2:], (parts.query, parts.key, parts.value, parts.attended, parts.up, parts.down)
    y_RTD = run_layers(
        x.reshape(-1, T, D),
        segment_ids.reshape(-1, T),
        [part(layers, name) for name in names],
        [part(layers, name) for name in (parts.attended_norm, parts.down_norm)],
        rows=rows,
        num_heads=num_heads,
        activation=activation,
        eps=config.layer_norm_eps,
        scale=1 / math.sqrt(D // num_heads) if scale is None else scale,
    )
    return y_RTD.reshape(x.shape)


def _batch(operands: Sequence[Any], axes: Sequence[int | None], **static: Any) -> tuple[Array, int]:
    if any(axis is not None for axis in axes[2:]):  # of several sets of params
        return jax.vmap(functools.partial(_by_scan, **static), axes)(*operands), 0
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    rows = (
        jnp.broadcast_to(x[None], (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands[:2], axes, strict=False)
    )
    return layers_p.bind(*rows, *operands[2:], **static), 0


layers_p = primitive("post_norm_layers", _by_scan, on_tpu=_on_tpu, is_large=True)
"""Stacked layers that are all alike: inputs `[*rows, T, D]`, segment ids `[*rows, T]`, and the leaves of a layer's
params, each with a leading axis of layers. Its gradient is by the scan."""
batching.primitive_batchers[layers_p] = _batch


def post_norm_layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    *,
    segment_ids_T: Int[AnyArray, " T"],
    at_Q: Int[Array, " Q"] | None,
    key: OptionalKey,
    parts: Parts,
    config: ModelConfig,
    bias: Callable[..., Float[Array, "N Q T"]] | None = None,
    scale: float | None = None,
) -> Float[Array, "Q D"]:
    """The layer's output at `at_Q`; `bias(params, q_QD, k_TD, *, at_Q, key)` is added to the scores of attention."""
    probs_key, bias_key, attended_key, down_key = split_key(key, 4)
    rates = dict.fromkeys(("attended", "down"), 0.0) | dict.fromkeys(parts.dropped, config.hidden_dropout)
    x_QD = take(x_TD, at_Q)
    q_QD, k_TD, v_TD = (
        dense(part(params, path), x) for path, x in ((parts.query, x_QD), (parts.key, x_TD), (parts.value, x_TD))
    )
    y_QD = attend(
        q_QD,
        k_TD,
        v_TD,
        segment_ids_T,
        at_Q=at_Q,
        num_heads=config.num_heads,
        dropout_rate=config.attention_dropout,
        key=probs_key,
        scale=scale,
        bias_NQT=None if bias is None else bias(params, q_QD, k_TD, at_Q=at_Q, key=bias_key),
    )
    y_QD = dropout(dense(part(params, parts.attended), y_QD), rates["attended"], attended_key)
    x_QD = add_and_norm(part(params, parts.attended_norm), x_QD, y_QD, eps=config.layer_norm_eps)
    y_QD = feed_forward(part(params, parts.up), part(params, parts.down), x_QD, activation=config.activation)
    y_QD = dropout(y_QD, rates["down"], down_key)
    return add_and_norm(part(params, parts.down_norm), x_QD, y_QD, eps=config.layer_norm_eps)
