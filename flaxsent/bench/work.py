"""What is planned, as functions of a step's shape that compile for devices which are not here: the engine's step.

That of training is in `train_work.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxsent import placement
from flaxsent.base import FlaxsentError
from flaxsent.bench import products
from flaxsent.classifier import Classifier
from flaxsent.models.stacking import stack
from flaxsent.packing import StepShape, stream_shapes
from flaxsent.sharding import check_heads


class Work(NamedTuple):
    """A step that can be compiled for devices that are not here."""

    name: str
    dtype: str
    """What it computes in."""
    shapes: tuple[StepShape, ...]
    """Of its steps, the shortest rows first."""
    num_devices: int
    multiple_of: int
    """By which the number of rows of a step must be divisible."""
    lower: Callable[[StepShape], jax.stages.Lowered]
    products: Callable[[StepShape], products.Products | None]
    """The matrix products of a step, on all devices."""


def inference(
    classifier: Classifier,
    devices: Sequence[Any],
    *,
    row_lengths: Sequence[int] | None = None,
    tokens_per_step: int | None = None,
    sharding: str = "data",
) -> Work:
    """The engine's step: scores of packed rows, or of padded ones for a family that does not pack.

    Args:
        classifier: whose params are compiled for; their values do not matter.
        devices: those of a topology.
        row_lengths: in tokens; those of the engine by default.
        tokens_per_step: tokens and padding in a step, on each device; as many as the engine's by default.
        sharding: how the devices share params and rows, as for `Engine`.

    Raises:
        FlaxsentError: a number that is not positive, or a sharding that the devices or the checkpoint do not allow.
    """
    check(row_lengths, tokens_per_step)
    placed = placement.over(devices, sharding)
    check_heads(classifier.config, placed.sharding)
    params = abstract(classifier.params)
    if devices[0].platform != "cpu" and classifier.packs and classifier.backend != "exported":
        params = stack(params, config=classifier.config)  # as the engine does
    shapes = stream_shapes(
        row_lengths,
        is_packed=classifier.packs,
        longest=classifier.tokenizer.max_length if row_lengths is None else 1,
        tokens_per_step=tokens_per_step or placement.tokens_per_device(devices),
        num_devices=placed.num_groups,
        shortest=placement.shortest_row(devices),
    )

    def counted(shape: StepShape) -> products.Products | None:
        return products.count(placement.of_shape(classifier.scores, shape), params, placement.no_tokens(shape))

    return Work(
        "inference",
        dtype_of(classifier),
        shapes,
        len(devices),
        placed.num_groups,
        lambda shape: placement.lower(classifier.scores, params, shape, placed),
        counted,
    )


def abstract(params: Any) -> Any:
    """The shapes and dtypes of params."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def dtype_of(classifier: Classifier) -> str:
    found = [leaf.dtype for leaf in jax.tree.leaves(classifier.params)]
    return next((dtype.name for dtype in found if jnp.issubdtype(dtype, jnp.floating)), "float32")


def check(row_lengths: Sequence[int] | None, tokens_per_step: int | None) -> None:
    """Refuses numbers that are none.

    Raises:
        FlaxsentError: a number that is not positive.
    """
    if row_lengths is not None and (not row_lengths or min(row_lengths) < 1):
        raise FlaxsentError(f"row_lengths={row_lengths}: expected positive numbers.")
    if tokens_per_step is not None and tokens_per_step < 1:
        raise FlaxsentError(f"tokens_per_step={tokens_per_step}: expected a positive number.")
