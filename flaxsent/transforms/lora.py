"""Low-rank adapters (LoRA, Hu et al. 2021): params → params with adapters to train, and several of them in one row.

An adapter adds a product of two narrow matrices to a kernel, which stays as it is. `models.adapters` has what is done
with trained ones: `attach`, `merge`; `checkpoint.adapters` reads and writes PEFT's format.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flaxsent import models
from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.classifier import Classifier, OptionalKey, hidden_states
from flaxsent.models.adapters import has_adapters, head_paths, is_below, linear_layers
from flaxsent.models.family import ModelConfig
from flaxsent.models.layers import AdapterDropout
from flaxsent.packing import check_padded

ALL_LINEAR = "all-linear"
"""PEFT's name for every layer that may have an adapter, heads left out."""

QUERY_AND_VALUE = ("query", "value", "q_lin", "v_lin", "query_proj", "value_proj", "q_proj", "v_proj", "q", "v", "Wqkv")
"""What the paper adapts, by the names of the families."""


def add(
    params: Params,
    *,
    config: ModelConfig,
    key: Key[Array, ""],
    rank: int = 8,
    alpha: int | float = 16,
    targets: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The params with new adapters, which change nothing yet: `lora_b` is 0.

    Args:
        params: of a family that has a native encoder, in floats.
        config: theirs.
        key: from which `lora_a` is drawn, as by PEFT.
        rank: columns of the narrow matrices, 1 or more.
        alpha: the product is multiplied by `alpha / rank`.
        targets: ends of PyTorch's names of modules, as in PEFT: "query", "layer.3.output.dense"; "all-linear" is all of
            the encoder. By default the queries and values of attention. The head has none: it is trained whole.

    Raises:
        FlaxsentError: the rank is less than 1; a target matches no layer, or layers that have no kernel; the params are
            in int8, or have adapters already.

    >>> import flaxsent
    >>> clf = flaxsent.load(backend="native")
    >>> adapted = add(clf.params, config=clf.config, key=jax.random.key(0), rank=4)
    >>> adapted["bert"]["encoder"]["layer"]["0"]["attention"]["self"]["query"]["lora_a"].shape[1]
    4
    """
    if rank < 1:
        raise FlaxsentError(f"rank={rank}; expected 1 or more.")
    models.check_floats(params)
    if has_adapters(params):
        raise FlaxsentError("these params have adapters already: merge them, or train those.")
    if not models.is_native(config):
        raise FlaxsentError(f"flaxsent has no native encoder for {config.family}, and computes no adapters of it.")
    paths = sorted(targeted(params, config=config, targets=targets).values())
    scale = jnp.asarray(alpha / rank, jnp.float32)
    keys = dict(zip(paths, jax.random.split(key, len(paths)), strict=True))

    def added(node: Params, path: tuple[str, ...]) -> dict[str, Any]:
        layer = {name: added(one, (*path, name)) if isinstance(one, Mapping) else one for name, one in node.items()}
        if path in keys:
            inputs, outputs = node["kernel"].shape
            bound = inputs**-0.5  # Kaiming's uniform distribution with a = √5, as of PyTorch's own layers
            layer["lora_a"] = jax.random.uniform(keys[path], (inputs, rank), jnp.float32, -bound, bound)
            layer |= {"lora_b": jnp.zeros((rank, outputs), jnp.float32), "lora_scale": scale}
        return layer

    return added(params, ())


def adapt(
    classifier: Classifier,
    *,
    rank: int = 8,
    alpha: int | float = 16,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Classifier:
    """The classifier with new adapters, computed by flaxsent's own encoder, whatever its backend is.

    `dropout` is that of what the adapters read, in training; the rest is as in `add`.

    Raises: as `add`.
    """
    key = jax.random.fold_in(jax.random.key(seed), _ADAPTERS)
    config = classifier.config
    params = add(classifier.params, config=config, key=key, rank=rank, alpha=alpha, targets=targets)
    assert classifier.forward_packed is not None  # a native encoder packs
    own: dict[str, Any] = getattr(classifier.forward_packed, "keywords", {"config": config})
    packed = with_dropout(classifier.forward_packed, dropout) if dropout else classifier.forward_packed

    def forward(params: Params, tokens: Tokens, key: OptionalKey = None) -> Float[Array, "B C"]:
        check_padded(tokens)
        return packed(params, tokens, 1, key)[:, 0]

    return dataclasses.replace(
        classifier,
        params=params,
        forward=forward,
        forward_packed=packed,
        hidden_states=functools.partial(hidden_states, **own),
        backend="native",
    )


_ADAPTERS = 0x10A
"""What a seed is folded with for them: the head is drawn from it as it is."""


def targeted(
    params: Params, *, config: ModelConfig, targets: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The layers that `add` adapts: PyTorch's name → path.

    Raises:
        FlaxsentError: a target matches none.
    """
    heads = head_paths(params, config=config)
    layers = {
        name: path for name, path in linear_layers(params).items() if not any(is_below(path, head) for head in heads)
    }
    if targets is None:
        targets = [end for end in QUERY_AND_VALUE if any(f".{name}".endswith(f".{end}") for name in layers)]
    found = {}
    for target in targets:
        matching = (
            layers if target == ALL_LINEAR else {n: p for n, p in layers.items() if f".{n}".endswith(f".{target}")}
        )
        if not matching:
            last = sorted({name.rpartition(".")[2] for name in layers})
            raise FlaxsentError(
                f"the LoRA target {target!r} matches no layer of the encoder that can have an adapter; expected "
                f"{ALL_LINEAR}, or ends of names: {', '.join(last)}."
            )
        found |= matching
    return found


def with_dropout(
    forward_packed: Callable[..., Float[Array, "R S C"]], rate: float
) -> Callable[..., Float[Array, "R S C"]]:
    """A `Classifier.forward_packed` that, where it is given a key, also drops out what the adapters read."""

    def dropped(params: Params, tokens: Tokens, num_segments: int, key: OptionalKey = None) -> Float[Array, "R S C"]:
        if key is None:
            return forward_packed(params, tokens, num_segments)

        def row(tokens_T: Tokens, row_key: Key[Array, ""]) -> Float[Array, "S C"]:
            own_key, adapters_key = jax.random.split(row_key)
            own = _with_keys(params, adapters_key, rate)
            return forward_packed(own, jax.tree.map(lambda leaf: leaf[None], tokens_T), num_segments, own_key)[0]

        return jax.vmap(row)(tokens, jax.random.split(key, tokens.input_ids.shape[0]))

    return dropped


def _with_keys(params: Params, key: Key[Array, ""], rate: float) -> dict[str, Any]:
    """Each adapter with a key of its own."""
    inner = [name for name, node in params.items() if isinstance(node, Mapping)]
    keys = dict(zip(inner, jax.random.split(key, len(inner)), strict=True)) if inner else {}
    keyed = {name: _with_keys(node, keys[name], rate) if name in keys else node for name, node in params.items()}
    return keyed | {"lora_dropout": AdapterDropout(key, rate)} if "lora_a" in params else keyed
