"""Encoders as BERT's: tables of embeddings that are added up, then layers that normalise after each of their two sums.

BERT and its kin, DistilBERT, ALBERT, MPNet and DeBERTa are of this kind. They differ in what the parts are called, in
where dropout is, and in what is added to the scores of attention.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxsent.base import Params, Tokens
from flaxsent.models.attention import attend
from flaxsent.models.dropout import OptionalKey, dropout, split_key
from flaxsent.models.family import ModelConfig
from flaxsent.models.feed_forward import feed_forward
from flaxsent.models.layers import (
    add_and_norm,
    dense,
    dense_shapes,
    first_tokens,
    layer_norm,
    layer_norm_shapes,
    look_up,
    run,
    take,
)


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
    layer = functools.partial(post_norm_layer, tokens=tokens, config=config, **arguments)
    return run(lambda _: layer, part(params, branch), x_TD, at_Q=first_tokens(tokens, num_segments), key=key)


def post_norm_layer(
    params: Params,
    x_TD: Float[Array, "T D"],
    *,
    tokens: Tokens,
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
        tokens.segment_ids,
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
