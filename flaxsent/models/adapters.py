"""Low-rank adapters (LoRA, Hu et al. 2021) as arrays beside the kernels that they adapt: params → params.

A layer with an adapter has `lora_a` [inputs, rank], `lora_b` [rank, outputs] and `lora_scale` [] beside its kernel, and
`layers.dense` adds `scale * (x @ a) @ b`; so every native forward does. An adapter by itself is a part of such a tree:
these arrays, and those that stand in the place of the base's, as a head does. `checkpoint.adapters` reads and writes
it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxsent.base import FlaxsentError, Params
from flaxsent.models.config import FAMILIES
from flaxsent.models.family import ModelConfig

ARRAYS = ("lora_a", "lora_b", "lora_scale", "lora_magnitude")
"""Of an adapter; the last is DoRA's (Liu et al. 2024): the length of the weights of each output, which may be read and
folded in, and is neither trained nor computed by itself."""


def has_adapters(params: Params) -> bool:
    """Whether a layer has an adapter that is not folded in."""
    return "lora_a" in params or any(has_adapters(node) for node in params.values() if isinstance(node, Mapping))


def attach(params: Params, adapter: Params) -> dict[str, Any]:
    """The params with an adapter, which stays apart from the kernels.

    Raises:
        FlaxsentError: it is of another base: a layer is not there, or has another shape; or it is DoRA's.
    """
    if any(path[-1] == "lora_magnitude" for path, _ in _leaves(adapter)):
        raise FlaxsentError("an adapter of DoRA is computed folded in only: merge it.")
    return _joined(params, adapter, ())


def merge(params: Params, adapter: Params | None = None) -> dict[str, Any]:
    """The params with their adapters folded into the kernels, or with that adapter: an ordinary tree, as fast as one.

    Raises:
        FlaxsentError: as `attach`; or a kernel is int8.

    >>> layer = {"kernel": jnp.ones((2, 3)), "lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 3))}
    >>> merge({"dense": layer | {"lora_scale": jnp.array(0.5)}})["dense"]["kernel"].tolist()
    [[1.5, 1.5, 1.5], [1.5, 1.5, 1.5]]
    """
    return _merged(params if adapter is None else _joined(params, adapter, ()))


def part_of(params: Params, *, config: ModelConfig) -> dict[str, Any]:
    """The adapter by itself: the arrays of the adapters, and those of the head."""
    heads = head_paths(params, config=config)

    def part(node: Params, path: tuple[str, ...]) -> dict[str, Any]:
        if path in heads:
            return dict(node)
        inner = {
            name: part(value, (*path, name)) if isinstance(value, Mapping) else value
            for name, value in node.items()
            if isinstance(value, Mapping) or name in ARRAYS
        }
        return {name: value for name, value in inner.items() if not isinstance(value, Mapping) or value}

    return part(params, ())


def head_paths(params: Params, *, config: ModelConfig) -> list[tuple[str, ...]]:
    """Where the modules are that stand on the encoder: branches of the params, and the pooler that is in some."""
    base = FAMILIES[config.family].base
    return [(name,) for name in params if name != base] + [(base, name) for name in params[base] if name == "pooler"]


def is_trained(params: Params) -> dict[str, Any]:
    """Which of params with adapters are trained: the adapters, but for their scales, and the head."""

    def mark(node: Params, path: tuple[str, ...], is_head: bool) -> dict[str, Any]:
        marked = {}
        for name, value in node.items():
            # Adapters are in the encoder only.
            is_of_head = is_head or (not path and not has_adapters(value)) or (len(path) == 1 and name == "pooler")
            is_matrix = name in ("lora_a", "lora_b")
            is_branch = isinstance(value, Mapping)
            marked[name] = mark(value, (*path, name), is_of_head) if is_branch else is_of_head or is_matrix
        return marked

    return mark(params, (), False)


def is_below(path: tuple[str, ...], branch: tuple[str, ...]) -> bool:
    return path[: len(branch)] == branch


def linear_layers(tree: Params) -> dict[str, tuple[str, ...]]:
    """The layers of the params, or of their shapes, that may have adapters: PyTorch's module name → path."""
    found = [
        path[:-1] for path, leaf in _leaves(tree) if path[-1] == "kernel" and len(getattr(leaf, "shape", leaf)) == 2
    ]
    return {".".join(path): path for path in found}


def _joined(node: Params, part: Params, path: tuple[str, ...]) -> dict[str, Any]:
    joined = dict(node)
    for name, value in part.items():
        there, where = node.get(name), (*path, name)
        if isinstance(value, Mapping):
            if not isinstance(there, Mapping):
                raise FlaxsentError(f"the adapter is of another base: this one has no layer {'.'.join(where)}.")
            joined[name] = _joined(there, value, where)
            continue
        joined[name] = value
        # A head may have another number of labels.
        fits = name in ARRAYS or (there is not None and there.shape[:-1] == value.shape[:-1])
        if not fits:
            shapes = f"{value.shape}; this one has {'nothing' if there is None else there.shape}"
            raise FlaxsentError(f"the adapter is of another base: its {'.'.join(where)} has the shape {shapes} there.")
    if "lora_a" in part:
        ends = (part["lora_a"].shape[-2], part["lora_b"].shape[-1])
        kernel = node["kernel"].shape if "kernel" in node else ()
        if kernel[-2:] != ends or part["lora_a"].shape[-1] != part["lora_b"].shape[-2]:
            raise FlaxsentError(
                f"the adapter is of another base: at {'.'.join(path)} it leads from {ends[0]} to {ends[1]}; the kernel "
                f"there is {kernel}."
            )
    return joined


def _merged(node: Params) -> dict[str, Any]:
    merged = {
        name: _merged(value) if isinstance(value, Mapping) else value
        for name, value in node.items()
        if name not in ARRAYS
    }
    if "lora_a" in node:
        merged["kernel"] = _folded(node)
    return merged


def _folded(layer: Params) -> Array:
    """In float32, then rounded to the dtype of the kernel; of stacked layers, each with its own adapter."""
    kernel = layer["kernel"]
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise FlaxsentError("an adapter is folded into floats, and this kernel is int8: merge, then quantize.")
    a, b, scale, whole = (
        jnp.asarray(layer[name], jnp.float32) for name in ("lora_a", "lora_b", "lora_scale", "kernel")
    )
    product = jnp.einsum("...dr,...rf->...df", a, b, precision=jax.lax.Precision.HIGHEST)
    whole = whole + scale[..., None, None] * product
    if "lora_magnitude" in layer:
        length = jnp.sqrt(jnp.sum(jnp.square(whole), axis=-2, keepdims=True))
        whole = whole * (layer["lora_magnitude"][..., None, :] / length)
    return whole.astype(kernel.dtype)


def _leaves(tree: Params) -> list[tuple[tuple[str, ...], Any]]:
    """Of arrays, or of their shapes."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, tuple))
    return [(tuple(key.key for key in path), leaf) for path, leaf in found]
