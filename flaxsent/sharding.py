"""How params are cut over devices: from the name of a parameter to its `PartitionSpec`; `placement.py` is next.

The devices are a mesh of two axes. Those along "rows" have rows of their own. Those along "model" compute the same rows
together (Megatron, Shoeybi et al. 2019): each has some of the heads and some of the feed-forward, and adds its part to
those of the others once after attention and once after the feed-forward. What no rule names, each device has whole.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from flaxsent.base import FlaxsentError
from flaxsent.models.config import ModelConfig

ROWS, MODEL = "rows", "model"
"""The axes of the mesh."""

Cuts = Mapping[str, tuple[tuple[str | None, ...], ...]]
"""By the last name of a parameter: how its last axes may be cut. The first that its sizes allow is taken."""

OUTPUTS: Cuts = {
    "kernel": ((None, MODEL),),
    "bias": ((MODEL,),),
    "kernel_scale": ((MODEL,),),
    "product_scale": ((MODEL,),),
    "embedding": ((None, MODEL),),
}
INPUTS: Cuts = {"kernel": ((MODEL, None),)}
WORDS: Cuts = {"embedding": ((MODEL, None), (None, MODEL)), "embedding_scale": ((MODEL,), (None,))}

RULES: tuple[tuple[str, Cuts], ...] = (
    # What makes the heads, and what the heads weigh distances by.
    (r"(query|key|value)(_proj)?|pos_(query|key)_proj|[qkv]_(lin|proj)|attn/[qkv]|Wqkv", OUTPUTS),
    (r"relative_attention_bias", OUTPUTS),
    # What reads the heads.
    (r"attention/(output/)?dense|out_lin|(self|encoder)_attn/out_proj|attn/(o|Wo)", INPUTS),
    # The feed-forward, up and down.
    (r"intermediate/dense|ffn|lin1|fc1|Wi", OUTPUTS),
    (r"output/dense|ffn_output|lin2|fc2|mlp/Wo", INPUTS),
    (r"word_embeddings|tok_embeddings|shared", WORDS),
)
"""Ends of the names of layers in all families, and how their parameters are cut; the first that fits counts."""


SHARDING = (
    "how the devices share the work: data (each has all parameters and some of the rows), fsdp (each holds some of the "
    "parameters, and fetches the others layer by layer), tensor=N (N of them compute the same rows, each with some of "
    "the heads), or fsdp,tensor=N"
)
"""What the command line says of it."""


class Sharding(NamedTuple):
    """How the devices share the work, besides the rows."""

    fsdp: bool = False
    """Whether each device along "rows" holds a part of the params, and fetches the rest layer by layer (Rajbhandari et
    al. 2020)."""
    tensor: int = 1
    """Devices along "model"."""


def parse(text: str) -> Sharding:
    """What an option says, as `SHARDING` explains it.

    Raises:
        FlaxsentError: it is none of these.

    >>> parse("fsdp,tensor=4")
    Sharding(fsdp=True, tensor=4)
    """
    found = re.fullmatch(r"data|fsdp|(?:fsdp,)?tensor=([1-9][0-9]{0,5})", text)
    if found is None:
        raise FlaxsentError(f"sharding={text!r}; expected data, fsdp, tensor=N or fsdp,tensor=N.")
    return Sharding(text.startswith("fsdp"), int(found[1] or 1))


def mesh_of(devices: Sequence[Any], sharding: Sharding) -> Mesh:
    """Devices that are neighbours in the list compute the same rows.

    Raises:
        FlaxsentError: the number of devices is no multiple of `tensor`.
    """
    if len(devices) % sharding.tensor:
        raise FlaxsentError(
            f"tensor={sharding.tensor}: expected a divisor of the number of devices, which is {len(devices)}."
        )
    return Mesh(np.asarray(devices).reshape(-1, sharding.tensor), (ROWS, MODEL))


def check_heads(config: ModelConfig, sharding: Sharding) -> None:
    """Refuses what would give a device a part of a head.

    Raises:
        FlaxsentError: the devices along "model" cannot have as many heads each.
    """
    for num_heads in (config.num_heads, config.get("decoder_attention_heads", config.num_heads)):
        if num_heads % sharding.tensor:
            raise FlaxsentError(
                f"tensor={sharding.tensor}: expected a divisor of the number of heads, which is {num_heads}."
            )


def shardings(tree: PyTree, mesh: Mesh, sharding: Sharding) -> PyTree[NamedSharding]:
    """Of each leaf, by its path; the leaves may be arrays or only have shapes.

    A path may begin with anything: the averages of params, or the moments that an optimizer keeps of them, are cut as
    they are.

    Raises:
        FlaxsentError: a parameter that a rule names has an axis that the devices along "model" cannot share evenly.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = spec_of(name, leaf.shape, num_rows=mesh.shape[ROWS] if sharding.fsdp else 1, num_model=sharding.tensor)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def spec_of(name: str, shape: tuple[int, ...], *, num_rows: int = 1, num_model: int = 1) -> PartitionSpec:
    """How a parameter is cut, by its name and shape; axes before those of its rule, as of stacked layers, are not.

    Of a kernel or a table of words, the largest axis that is left and that `num_rows` divides is cut along "rows", too.

    Raises:
        FlaxsentError: as `shardings`.

    >>> tuple(spec_of("layer/0/attention/self/query/kernel", (768, 768), num_model=4))
    (None, 'model')
    >>> tuple(spec_of("layer/0/output/dense/kernel", (3072, 768), num_model=4, num_rows=2))
    ('model', 'rows')
    """
    layer, _, last = name.rpartition("/")
    axes: list[str | None] = [None] * len(shape)
    cuts = next((cuts for end, cuts in RULES if re.search(rf"(^|/)({end})$", layer)), {})
    if num_model > 1 and last in cuts:
        cut = next((cut for cut in cuts[last] if _divides(cut, shape, num_model)), None)
        if cut is None:
            size = shape[len(shape) - len(cuts[last][0]) + cuts[last][0].index(MODEL)]
            raise FlaxsentError(f"tensor={num_model}: expected a divisor of {size}, which {name} {shape} is cut along.")
        axes[len(shape) - len(cut) :] = cut
    if num_rows > 1 and last in cuts and (last == "kernel" or cuts is WORDS):
        left = [axis for axis, size in enumerate(shape) if axes[axis] is None and size % num_rows == 0]
        if left:
            axes[max(left, key=lambda axis: shape[axis])] = ROWS
    return PartitionSpec(*axes)


def _divides(cut: tuple[str | None, ...], shape: tuple[int, ...], num_model: int) -> bool:
    sizes = shape[len(shape) - len(cut) :]
    return all(axis is None or size % num_model == 0 for axis, size in zip(cut, sizes, strict=True))
