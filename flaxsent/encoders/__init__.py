"""The native forward: each family in plain JAX, one row of tokens in, one logit vector per text of the row out.

`layers.py` holds what the families share; then one file an architecture. A family's module has `shapes`,
`all_hidden_states` and `forward`; to add one, write these three, name it in `FAMILIES` and give its config keys in
`flaxsent/config.py`.
"""

from types import ModuleType
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from flaxsent.config import ModelConfig
from flaxsent.encoders import albert, bart, bert, deberta, distilbert, layers, modernbert, mpnet
from flaxsent.types import Params, Tokens

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


def shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter, as a nested dict of tuples.

    Raises:
        ValueError: the activation is not implemented.
    """
    if config.activation not in layers.ACTIVATIONS:
        known = ", ".join(layers.ACTIVATIONS)
        raise ValueError(f"config.json names the activation {config.activation!r}; the native backend has {known}.")
    return FAMILIES[config.family].shapes(config)
