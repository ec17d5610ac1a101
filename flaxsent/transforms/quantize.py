"""Params → params in int8: a quarter of the bytes of float32 (Jacob et al. 2018, symmetric, without zero points).

Each output of a kernel has a scale, and each row of the table of words. The layer that gives the logits, the biases,
LayerNorm, and the tables of positions and of distances stay as they are: they are small. `models.layers.dense` and
`look_up` compute with such params, so every native forward does, under `jit`, in the engine and in an export. PyTorch's
checkpoints have no such form: `save` refuses them.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from flaxsent import models
from flaxsent.base import FlaxsentError, Params
from flaxsent.models.layers import to_int8

_WORD_TABLES = {family.words[-2] for family in models.FAMILIES.values()}


def quantize(params: Params, *, mode: str = "weights") -> dict[str, Any]:
    """The params with kernels and word tables in int8.

    Args:
        params: of a family that has a native encoder, in float32, bfloat16 or float16.
        mode: "weights" multiplies a kernel by its scales before the product, which stays one of floats; "dynamic"
            makes each row that meets a kernel int8 too, for products of integers.

    Raises:
        FlaxsentError: an unknown mode, or params that are int8 already.

    >>> import flaxsent, jax
    >>> clf = flaxsent.load(backend="native")
    >>> small = quantize(clf.params)
    >>> bytes_of = lambda params: sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    >>> round(bytes_of(clf.params) / bytes_of(small), 1)
    3.8
    >>> clf.predict(small, clf.tokenize(["so good", "so bad"])).argmax(-1).tolist()
    [1, 0]
    """
    if mode not in ("weights", "dynamic"):
        raise FlaxsentError(f"mode={mode!r}: expected 'weights' or 'dynamic'.")
    if models.is_int8(params):
        raise FlaxsentError("these params are int8 already; quantize those of the checkpoint.")
    kernel_scale = "kernel_scale" if mode == "weights" else "product_scale"
    return models.with_last_layer(_quantized(params, "", kernel_scale), models.last_layer(params))


def _quantized(node: Any, name: str, kernel_scale: str) -> Any:
    if not isinstance(node, Mapping):
        return node
    branch = {inner: _quantized(value, inner, kernel_scale) for inner, value in node.items()}
    if "kernel" in node and node["kernel"].ndim == 2:
        integers, scale = to_int8(node["kernel"], axis=0)
        return branch | {"kernel": integers, kernel_scale: scale[0]}
    if name in _WORD_TABLES:
        integers, scale = _of_rows(node["embedding"])
        return branch | {"embedding": integers, "embedding_scale": scale}
    return branch


def _of_rows(table: Array) -> tuple[Array, Array]:
    """The scales are rounded to the table's dtype, in which its rows are looked up."""
    integers, scale = to_int8(table, axis=-1)
    return integers, scale[:, 0].astype(table.dtype)
