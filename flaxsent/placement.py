"""Where a function's params and rows lie on the devices, and how one of its steps is compiled for them."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from flaxsent.base import AnyArray, Params, Tokens
from flaxsent.classifier import Function
from flaxsent.models.layers import FETCH
from flaxsent.packing import PACKED_ROW, StepShape
from flaxsent.sharding import ROWS, Sharding, mesh_of, parse, shardings


class Placement(NamedTuple):
    """A mesh of devices, and what of the rows and of the params each of them has."""

    mesh: Mesh
    sharding: Sharding

    @property
    def devices(self) -> list[Any]:
        return list(self.mesh.devices.flat)

    @property
    def num_groups(self) -> int:
        """Groups of devices with rows of their own."""
        return self.mesh.shape[ROWS]

    @property
    def by_row(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def of(self, params: PyTree) -> PyTree[NamedSharding]:
        """Where each of the params lies, or of what is kept for each of them (`sharding.shardings`).

        Raises: as `shardings`.
        """
        return shardings(params, self.mesh, self.sharding)

    def call(self, function: Callable[..., Any], params: Params, *arguments: Any) -> Any:
        """`function(params, *arguments)` inside `jit`, where what devices along "rows" hold in parts is whole again.

        Left to itself, XLA may cut the states along their hidden axis instead, and exchange these in each layer. A
        gradient fetches the parts once more, rather than keep them from the way up to the way down.
        """
        if not self.sharding.fsdp:
            return function(params, *arguments)
        token = FETCH.set(self._fetched)
        try:
            return jax.checkpoint(lambda params: function(self._fetched(params), *arguments), policy=_keeps)(params)
        finally:
            FETCH.reset(token)

    def _fetched(self, params: Params) -> Params:
        """Of stacked layers, the loop over them fetches each in its turn."""

        def fetch(path: tuple[Any, ...], leaf: Array, sharding: NamedSharding) -> Array:
            if ROWS not in sharding.spec or any("-" in str(key.key) for key in path):
                return leaf
            whole = PartitionSpec(*(None if axis == ROWS else axis for axis in sharding.spec))
            return _moved(leaf, NamedSharding(self.mesh, whole), sharding)

        return jax.tree_util.tree_map_with_path(fetch, params, self.of(params))


def _keeps(primitive: Any, *_: Any, **__: Any) -> bool:
    """Of all that a function computes, what a gradient keeps for the way down: not what `_moved` gives."""
    return primitive.name not in ("sharding_constraint", "custom_vjp_call")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(leaf: Array, to: NamedSharding, back: NamedSharding) -> Array:
    """The leaf on other devices; its gradient is summed to where the leaf was, and nowhere else."""
    return jax.lax.with_sharding_constraint(leaf, to)


_moved.defvjp(
    lambda leaf, to, back: (_moved(leaf, to, back), None),
    lambda to, back, _, gradient: (jax.lax.with_sharding_constraint(gradient, back),),
)


def over(devices: Sequence[Any], sharding: str = "data") -> Placement:
    """On these devices, which may be those of a topology that is not there (`jax.experimental.topologies`).

    Raises:
        FlaxsentError: as `sharding.parse`, or the devices are no multiple of `tensor`.
    """
    parsed = parse(sharding)
    return Placement(mesh_of(devices, parsed), parsed)


def put(params: Params, placement: Placement) -> Params:
    """The params on the devices, each part once on each that has it; those of one CPU all read the same memory.

    Raises: as `Placement.of`.
    """

    def put_leaf(leaf: AnyArray, sharding: NamedSharding) -> Array:
        own = device_of(leaf)
        is_on_host = own is None or "cpu" in (own.platform, placement.devices[0].platform)
        source = np.asarray(leaf) if is_on_host else leaf
        parts = sharding.addressable_devices_indices_map(leaf.shape)
        # Of an array on the host, a CPU's device needs no copy; of one on a device, this device needs none.
        copies = [
            jax.device_put(source if sharding.is_fully_replicated else source[part], device, may_alias=True)
            for device, part in parts.items()
        ]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)

    return jax.tree.map(put_leaf, params, placement.of(params))


def device_of(leaf: AnyArray) -> Any:
    """The device, or one of them, that an array lies on; None if that is NumPy's."""
    return min(leaf.devices(), key=lambda device: device.id) if isinstance(leaf, jax.Array) else None


def on_host(sharding: str) -> contextlib.AbstractContextManager[Any]:
    """Where params that one device may be too small for are read: in it, the memory of the host holds new arrays."""
    if parse(sharding) == Sharding():
        return contextlib.nullcontext()
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def lower(function: Function, params: Params, shape: StepShape, placement: Placement) -> jax.stages.Lowered:
    """A step of the function, ready to be compiled; the params are arrays, or only their shapes and dtypes.

    Raises: as `Placement.of`.
    """
    shardings = {"in_shardings": (placement.of(params), placement.by_row), "out_shardings": placement.by_row}
    of_rows = of_shape(function, shape)
    step = functools.wraps(of_rows)(functools.partial(placement.call, of_rows))
    if placement.sharding == Sharding() and placement.devices[0].platform != "cpu":
        # Each chip has a program of its rows alone, in which kernels may stand: XLA does not divide these among chips.
        specs = {"in_specs": (PartitionSpec(), PartitionSpec(ROWS)), "out_specs": PartitionSpec(ROWS)}
        step = jax.shard_map(step, mesh=placement.mesh, check_vma=False, **specs)
    return jax.jit(step, compiler_options=compiler_options(placement.devices), **shardings).lower(
        params, no_tokens(shape)
    )


def compiler_options(devices: Sequence[Any]) -> dict[str, Any] | None:
    """For `jax.jit` of what these devices compute.

    On a GPU cuBLAS adds biases and computes gelu at the end of a product, unless XLA has tried its own products first
    and taken these apart: 374 and 454 TFLOP/s of BERT-base's size on an H100.
    """
    return {"xla_gpu_enable_triton_gemm": False} if devices[0].platform == "gpu" else None


def of_shape(function: Function, shape: StepShape) -> Callable[[Params, Tokens], PyTree[Array]]:
    def step(params: Params, tokens: Tokens) -> PyTree[Array]:
        return function(params, tokens, shape.num_segments)

    step.__name__ = f"step_{shape.num_rows}x{shape.row_length}"  # the name of what is compiled, in a trace too
    return step


def no_tokens(shape: StepShape) -> Tokens:
    return Tokens(*[np.zeros((shape.num_rows, shape.row_length), np.int32)] * 4)


def tokens_per_device(devices: Sequence[Any]) -> int:
    """Of a step: tokens and padding. `flaxsent plan` finds the best for a model and a chip."""
    if devices[0].platform != "cpu":
        return _TOKENS_PER_STEP.get(devices[0].platform, _TOKENS_ON_ACCELERATOR)
    return max(_TOKENS_PER_STEP["cpu"] // len(devices), _LEAST_TOKENS_PER_DEVICE)


def shortest_row(devices: Sequence[Any]) -> int:
    """Of packed rows: tokens. On a CPU attention takes half as long in rows of half the length."""
    return _SHORTEST_ROW_ON_CPU if devices[0].platform == "cpu" else PACKED_ROW


_SHORTEST_ROW_ON_CPU = 64
"""Texts of 25 tokens fill 98% of these; MiniLM is 5% faster than in rows of 128, DistilBERT 1.5%."""


def tokens_at_once(devices: Sequence[Any]) -> int:
    """Of a function that computes each row several times (`transforms/explain.py`), on all devices of a CPU."""
    return max(_TOKENS_PER_STEP["cpu"], tokens_per_device(devices))


_TOKENS_PER_STEP = {"cpu": 1024, "tpu": 8192}
"""More than these leave the caches of a CPU, and the memory on a chip: BERT-base's 16,384 tokens take a v6e 2.14 times
as many cycles as 8,192, and 4,096 take 0.53. Devices of one CPU share them, down to a row of 512 each."""
_LEAST_TOKENS_PER_DEVICE = 512
_TOKENS_ON_ACCELERATOR = 32768


def num_cores() -> int:
    """Cores of the CPU that this process may use: as many devices of JAX are best (`jax_num_cpu_devices`)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
