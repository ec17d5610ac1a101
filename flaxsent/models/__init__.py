"""The native forward: each family in plain JAX, one row of tokens in, one logit vector per text of the row out.

`forward` is `head` of `encode` of `embed`, so that gradients can be taken at the embeddings. A family has one file,
which ends in its `Family`; to add one, write that file and name it in `config.py`. What families share is in
`layers.py`, `attention.py` and `post_norm.py`.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from flaxsent.base import AnyArray, FlaxsentError, Params, Tokens
from flaxsent.models.activations import ACTIVATIONS
from flaxsent.models.config import FAMILIES as FAMILIES
from flaxsent.models.config import ModelConfig
from flaxsent.models.dropout import OptionalKey, split_key
from flaxsent.models.family import is_not_native
from flaxsent.models.layers import init_params as init_params


def forward(
    params: Params, tokens: Tokens, *, config: ModelConfig, num_segments: int, key: OptionalKey = None
) -> Float[Array, "S C"]:
    """Logits in float32 of the `num_segments` texts of one row `[T]`; `key` switches dropout on.

    `jax.vmap(partial(forward, params, config=config, num_segments=1))(tokens)[:, 0]` is the padded batch.
    """
    embed_key, encode_key, head_key = split_key(key, 3)
    embedded = embed(params, tokens, config=config, key=embed_key)
    states = encode(params, embedded, tokens, config=config, num_segments=num_segments, key=encode_key)
    return head(params, states[-1], config=config, key=head_key)


@jax.named_scope("embeddings")
def embed(
    params: Params,
    tokens: Tokens,
    *,
    config: ModelConfig,
    key: OptionalKey = None,
    **decoder: Int[AnyArray, " T"],
) -> PyTree[Float[Array, "T D"]]:
    """What the first layer reads of one row `[T]`: an array, or for BART two, of encoder and decoder.

    Of BART alone, `decoder_ids` are what the decoder reads instead of the text one token later.
    """
    family = FAMILIES[config.family]
    return family.embed(params[family.base], _on_device(tokens), config=config, key=key, **decoder)


def encode(
    params: Params,
    embedded: PyTree[Float[Array, "T D"]],
    tokens: Tokens,
    *,
    config: ModelConfig,
    num_segments: int | None = None,
    key: OptionalKey = None,
) -> list[Float[Array, "_ D"]]:
    """The embeddings and the output of every layer: transformers' `output_hidden_states=True`; BART's decoder's.

    With `num_segments` the last of them is what the head reads of each text, `[S D]`: the last layer is computed for
    those tokens alone.
    """
    family, arguments = FAMILIES[config.family], {"config": config, "num_segments": num_segments, "key": key}
    return family.encode(params[family.base], embedded, _on_device(tokens), **arguments)


def encoder_states(
    params: Params,
    embedded: PyTree[Float[Array, "T D"]],
    tokens: Tokens,
    *,
    config: ModelConfig,
    key: OptionalKey = None,
) -> list[Float[Array, "T D"]] | None:
    """The embeddings and the output of every layer of BART's encoder; None for families that have no decoder."""
    family = FAMILIES[config.family]
    if family.encoder_states is None:
        return None
    return family.encoder_states(params[family.base], embedded, _on_device(tokens), config=config, key=key)


@jax.named_scope("head")
def head(
    params: Params, x_SD: Float[Array, "S D"], *, config: ModelConfig, key: OptionalKey = None
) -> Float[Array, "S C"]:
    """Logits in float32 of what `encode` gives for texts."""
    return FAMILIES[config.family].head(params, x_SD, config=config, key=key)


def embeddings(params: Params, tokens: Tokens, *, config: ModelConfig, num_segments: int) -> Float[Array, "S D"]:
    """The vector in float32 that the head reads of each of the `num_segments` texts of one row."""
    embedded = embed(params, tokens, config=config)
    return encode(params, embedded, tokens, config=config, num_segments=num_segments)[-1].astype(jnp.float32)


def hidden_states(params: Params, tokens: Tokens, *, config: ModelConfig) -> Float[Array, "T D"]:
    """AutoModel's `last_hidden_state` of one row, in the parameters' dtype; what stands on padding has no meaning."""
    embedded = embed(params, tokens, config=config)
    return encode(params, embedded, tokens, config=config)[-1].astype(last_layer(params)["kernel"].dtype)


def _on_device(tokens: Tokens) -> Tokens:
    return jax.tree.map(jnp.asarray, tokens)


def is_native(config: ModelConfig) -> bool:
    """Whether flaxsent computes the family itself; if not, transformers 4's Flax classes do."""
    return FAMILIES[config.family].is_native


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter, as a nested dict of tuples.

    Raises:
        FlaxsentError: the activation is not implemented, or a key that only this family has asks for what is not; the
            message names it.
    """
    if is_native(config) and config.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise FlaxsentError(f"config.json names the activation {config.activation!r}; the native backend has {known}.")
    return FAMILIES[config.family].shapes(config)


def base(config: ModelConfig) -> str:
    """The branch of the params that holds the encoder: "bert"; the other branches are the head."""
    return FAMILIES[config.family].base


def words_path(config: ModelConfig) -> tuple[str, ...]:
    """Where in the params the table of words is."""
    return (base(config), *FAMILIES[config.family].words)


def ids_besides(config: ModelConfig) -> Collection[int]:
    """What is looked up in the table of words besides the ids of texts, such as those of padding."""
    return FAMILIES[config.family].ids_besides(config)


def computed_tensors(config: ModelConfig) -> dict[str, Float[np.ndarray, "..."]]:
    """Tensors that PyTorch's checkpoints hold and Flax computes, by their PyTorch names."""
    return FAMILIES[config.family].computed_tensors(config)


def is_int8(params: Params) -> bool:
    """Whether `transforms.quantize` made them."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def check_floats(params: Params) -> None:
    """Refuses what `transforms.quantize` made, where gradients are taken.

    Raises:
        FlaxsentError: it did.
    """
    if is_int8(params):
        raise FlaxsentError("params in int8 have no gradient; pass those of the checkpoint.")


def last_layer(params: Params) -> Params:
    """The kernel and the bias of the layer that gives the logits."""
    branch, *inner = _last_layer_path(params)
    return params[branch][inner[0]] if inner else params[branch]


def with_last_layer(params: Params, last: Params) -> dict[str, Any]:
    """The params with another layer that gives the logits."""
    branch, *inner = _last_layer_path(params)
    return {**params, branch: {**params[branch], inner[0]: last} if inner else last}


def _last_layer_path(params: Params) -> tuple[str, ...]:
    """The longest path of a family that is there."""
    paths = sorted({family.last_layer for family in FAMILIES.values()}, key=len, reverse=True)
    return next(path for path in paths if path[0] in params and path[-1] in (path[0], *params[path[0]]))


def divide_logits(params: Params, by: float) -> dict[str, Any]:
    """Params whose logits are divided by a number: their last layer is, rounded to the dtype of the params."""
    last = last_layer(params)
    return with_last_layer(
        params, {name: (leaf.astype(jnp.float32) / by).astype(leaf.dtype) for name, leaf in last.items()}
    )


def limits_positions(config: ModelConfig) -> bool:
    """Whether a text ends where the table of positions does; else it may be as long as the tokenizer lets it be."""
    return FAMILIES[config.family].limits_positions(config)


def check(config: ModelConfig, tokens: Tokens) -> None:
    """Refuses rows that no native forward computes, where they can be seen: on the host.

    Raises:
        FlaxsentError: no native encoder for the family, or as `check_ids`.
    """
    if not is_native(config):
        is_not_native(config=config)
    check_ids(config, tokens)


def check_ids(config: ModelConfig, tokens: Tokens) -> None:
    """Refuses NumPy's tokens with a position, a token or a token type for which the checkpoint has no embedding.

    Raises:
        FlaxsentError: there is one.
    """
    any_number = np.iinfo(np.int32).max
    positions = _range(tokens.position_ids)
    if limits_positions(config) and positions[1] >= config.num_positions:
        raise FlaxsentError(
            f"a text has {positions[1] + 1 - config.first_position} tokens; this checkpoint takes "
            f"{config.max_length}: tokenize with a length of at most that."
        )
    for name, ids, size in (
        ("input_ids", tokens.input_ids, config.vocab_size),
        ("token_type_ids", tokens.token_type_ids, config.type_vocab_size or any_number),
        ("position_ids", tokens.position_ids, any_number),
    ):
        least, most = _range(ids)
        if least < 0 or most >= size:
            raise FlaxsentError(
                f"{name} are {least} to {most}; expected 0 to {size - 1}: tokenize with this checkpoint's tokenizer."
            )


def _range(ids: Int[AnyArray, "..."]) -> tuple[int, int]:
    """The least and the greatest, of an array on the host that is not empty."""
    return (int(ids.min()), int(ids.max())) if isinstance(ids, np.ndarray) and ids.size else (0, 0)
