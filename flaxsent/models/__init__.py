"""The native forward: each family in plain JAX, one row of tokens in, one logit vector per text of the row out.

`layers.py` holds what the families share; then one file an architecture. A family's module has `shapes`,
`all_hidden_states` and `forward`; to add one, write these three, name it in `FAMILIES` and give its config keys in
`flaxsent/config.py`.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.models import albert, bart, bert, deberta, distilbert, flax_only, layers, modernbert, mpnet
from flaxsent.models.config import ModelConfig
from flaxsent.models.flax_only import computed_tensors as computed_tensors
from flaxsent.models.layers import init_params as init_params

FAMILIES: dict[str, ModuleType] = {
    "albert": albert,
    "bart": bart,
    "bert": bert,
    "camembert": bert,
    "deberta-v2": deberta,
    "distilbert": distilbert,
    "electra": bert,
    "mbart": bart,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "roberta": bert,
    "xlm-roberta": bert,
}
"""`model_type` of config.json -> the module that has its `shapes`, `all_hidden_states` and `forward`."""


def forward(
    params: Params, tokens: Tokens, *, config: ModelConfig, num_segments: int, key: Key[Array, ""] | None = None
) -> Float[Array, "S C"]:
    """Logits in float32 of the `num_segments` texts of one row `[T]`; `key` switches dropout on.

    `jax.vmap(partial(forward, params, config=config, num_segments=1))(tokens)[:, 0]` is the padded batch.
    """
    return FAMILIES[config.family].forward(params, tokens, config=config, num_segments=num_segments, key=key)


def hidden_states(params: Params, tokens: Tokens, *, config: ModelConfig) -> Float[Array, "T D"]:
    """AutoModel's `last_hidden_state` of one row, in the parameters' dtype; what stands on padding has no meaning."""
    last_TD = FAMILIES[config.family].all_hidden_states(params, tokens, config=config)[-1]
    return last_TD.astype(jax.tree.leaves(params)[0].dtype)


def is_native(config: ModelConfig) -> bool:
    """Whether flaxsent computes the family itself; if not, transformers 4's Flax classes do."""
    return config.family in FAMILIES


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter, as a nested dict of tuples.

    Raises:
        FlaxsentError: the activation is not implemented.
    """
    if not is_native(config):
        return flax_only.shapes(config)
    if config.activation not in layers.ACTIVATIONS:
        known = ", ".join(layers.ACTIVATIONS)
        raise FlaxsentError(f"config.json names the activation {config.activation!r}; the native backend has {known}.")
    return FAMILIES[config.family].shapes(config)


def base(config: ModelConfig) -> str:
    """The branch of the params that holds the encoder: "bert"; the other branches are the head."""
    return next(iter(shapes(config)))


def last_layer(params: Params) -> Params:
    """The kernel and the bias of the layer that gives the logits."""
    head = params["classification_head" if "classification_head" in params else "classifier"]
    return head.get("out_proj", head)


def with_last_layer(params: Params, last: Params) -> dict[str, Any]:
    """The params with another layer that gives the logits."""
    branch = "classification_head" if "classification_head" in params else "classifier"
    has_more = "out_proj" in params[branch]
    return {**params, branch: {**params[branch], "out_proj": last} if has_more else last}


def divide_logits(params: Params, by: float) -> dict[str, Any]:
    """Params whose logits are divided by a number: their last layer is, rounded to the dtype of the params."""
    last = last_layer(params)
    return with_last_layer(
        params, {name: (leaf.astype(jnp.float32) / by).astype(leaf.dtype) for name, leaf in last.items()}
    )


def check(config: ModelConfig, tokens: Tokens) -> None:
    """Refuses rows that no native forward computes, where they can be seen: on the host.

    Raises:
        FlaxsentError: no native encoder for the family, or a position beyond the table.
    """
    if not is_native(config):
        raise FlaxsentError(f"flaxsent has no native encoder for {config.family}; load it with backend='flax'.")
    position_ids = tokens.position_ids
    if isinstance(position_ids, np.ndarray) and position_ids.max(initial=0) >= config.num_positions:
        raise FlaxsentError(
            f"a text has {position_ids.max() + 1 - config.first_position} tokens; this checkpoint takes "
            f"{config.max_length}: tokenize with a length of at most that."
        )
