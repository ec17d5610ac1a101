"""Where a function's params and rows lie on the devices, and how one of its steps is compiled for them."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from flaxsent.base import Params, Tokens
from flaxsent.packing import StepShape

Function = Callable[[Params, Tokens, int], PyTree[Array]]
"""`function(params, tokens, num_segments)` of rows `[R, T]` gives a pytree of arrays with one entry for each text,
`[R, S, ...]`, or for each token, `[R, T, ...]`; S is `num_segments`. It is pure: it is compiled, and equal texts are
computed once."""


class Placement(NamedTuple):
    """The rows of a step are spread over the devices; each device has all of the params."""

    by_row: NamedSharding
    replicated: NamedSharding

    @property
    def devices(self) -> list[Any]:
        return list(self.by_row.mesh.devices.flat)


def over(devices: Sequence[Any]) -> Placement:
    """On these devices, which may be those of a topology that is not there (`jax.experimental.topologies`)."""
    mesh = Mesh(np.asarray(devices), ("rows",))
    return Placement(NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec()))


def put(params: Params, placement: Placement) -> Params:
    """The params on all devices, once on each; the devices of one CPU all read the same memory."""
    devices, sharding = placement.devices, placement.replicated

    def put_leaf(leaf: Array) -> Array:
        source = np.asarray(leaf) if devices[0].platform == "cpu" else leaf
        # Of an array on the host, a CPU's device needs no copy; of one on a device, this device needs none.
        copies = [jax.device_put(source, device, may_alias=True) for device in devices]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)

    return jax.tree.map(put_leaf, params)


def lower(function: Function, params: Params, shape: StepShape, placement: Placement) -> jax.stages.Lowered:
    """A step of the function, ready to be compiled; the params are arrays, or only their shapes and dtypes."""
    shardings = {"in_shardings": (placement.replicated, placement.by_row), "out_shardings": placement.by_row}
    return jax.jit(of_shape(function, shape), **shardings).lower(params, no_tokens(shape))


def of_shape(function: Function, shape: StepShape) -> Callable[[Params, Tokens], PyTree[Array]]:
    def step(params: Params, tokens: Tokens) -> PyTree[Array]:
        return function(params, tokens, shape.num_segments)

    step.__name__ = f"step_{shape.num_rows}x{shape.row_length}"  # the name of what is compiled, in a trace too
    return step


def no_tokens(shape: StepShape) -> Tokens:
    return Tokens(*[np.zeros((shape.num_rows, shape.row_length), np.int32)] * 4)


def tokens_per_device(devices: Sequence[Any]) -> int:
    """Of a step: tokens and padding."""
    if devices[0].platform not in _TOKENS_PER_STEP:
        return _TOKENS_ON_ACCELERATOR
    return max(_TOKENS_PER_STEP[devices[0].platform] // len(devices), _LEAST_TOKENS_PER_DEVICE)


_TOKENS_PER_STEP = {"cpu": 1024}
"""More than this leaves the caches of a CPU; devices of one CPU share it, down to a row of 512 each."""
_LEAST_TOKENS_PER_DEVICE = 512
_TOKENS_ON_ACCELERATOR = 32768


def num_cores() -> int:
    """Cores of the CPU that this process may use: as many devices of JAX are best (`jax_num_cpu_devices`)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
