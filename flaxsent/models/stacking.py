"""Params → params as accelerators like them: layers that are alike stacked, for a scan that is compiled once.

`layers.run` takes both forms, so every native forward does. The last layer, which is computed at the classified tokens
only, stays by itself.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from flaxsent.base import AnyArray, Params
from flaxsent.models.config import FAMILIES
from flaxsent.models.family import ModelConfig
from flaxsent.models.layers import in_order

_LONGEST_PERIOD = 6
"""Of kinds of layers; ModernBERT's recur after three."""


def stack(params: Params, *, config: ModelConfig) -> dict[str, Any]:
    """The params with their layers "1" to "6" as one branch "1-6", each leaf with a leading axis of layers.

    Where the kinds of layers recur after P, the branch has P of them. Families whose layers share weights stay as they
    are.

    >>> import flaxsent
    >>> clf = flaxsent.load(backend="native")
    >>> [*stack(clf.params, config=clf.config)["bert"]["encoder"]["layer"]]
    ['0-4', '5']
    """
    family = FAMILIES[config.family]
    tree = {**params}
    for path, kinds in family.stacks(config).items():
        _replace(tree, [family.base, *path.split(".")], kinds)
    return tree


def _replace(tree: dict[str, Any], path: Sequence[str], kinds: Sequence[Hashable]) -> None:
    *branches, last = path
    for branch in branches:
        tree[branch] = {**tree[branch]}
        tree = tree[branch]
    tree[last] = _stacked(tree[last], kinds)


def _stacked(layers: Params, kinds: Sequence[Hashable]) -> Params:
    ordered = in_order(layers)
    alike = [(kind, jax.tree.structure(layer), *_shapes(layer)) for kind, layer in zip(kinds, ordered, strict=True)]
    start, period, count = max(_ranges(alike), key=lambda found: (found[1] * found[2], -found[1]), default=(0, 0, 0))
    if not count:
        return layers
    stop = start + period * count
    groups = {
        str(index): jax.tree.map(lambda *leaves: _stack(leaves), *ordered[start + index : stop : period])
        for index in range(period)
    }
    single = {str(index): layer for index, layer in enumerate(ordered) if not start <= index < stop}
    before = {name: layer for name, layer in single.items() if int(name) < start}
    return before | {f"{start}-{stop - 1}": groups} | {name: single[name] for name in single if name not in before}


def _shapes(layer: Params) -> list[tuple[tuple[int, ...], Any]]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(layer)]


def _stack(leaves: Sequence[Any]) -> Any:
    """Of arrays, or of their shapes only; in the host's memory where they are there, as one device may be too small."""
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
    if _is_on_host(first):
        return np.stack([np.asarray(leaf) for leaf in leaves])
    return jnp.stack(leaves)


def _is_on_host(leaf: AnyArray) -> bool:
    if isinstance(leaf, jax.core.Tracer):
        return False
    return isinstance(leaf, np.ndarray) or {device.platform for device in leaf.devices()} == {"cpu"}


def _ranges(alike: Sequence[Hashable]) -> list[tuple[int, int, int]]:
    """First layer, period and number of periods of every run of layers that recur, short of the last layer."""
    found = []
    for start in range(len(alike) - 1):
        for period in range(1, _LONGEST_PERIOD + 1):
            count = 1
            while (
                start + period * (count + 1) < len(alike)
                and alike[start : start + period] == alike[start + period * count :][:period]
            ):
                count += 1
            if count > 1:
                found.append((start, period, count))
    return found
