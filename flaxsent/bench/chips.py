"""TPUs that are not here: what their data sheets say, and their devices, for which libtpu compiles."""

import fnmatch
import importlib.metadata
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from flaxsent.base import FlaxsentError
from flaxsent.files import require

ENVIRONMENT: Mapping[str, str] = {
    # libtpu asks the cloud's metadata server which chips it is on, and warns where there is none.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # One process at a time may have the chips of a machine; this one wants none of them.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu reads when it is loaded; the command line sets it."""


class KernelCycles(NamedTuple):
    """What flaxsent's kernels take, at most, for 1,024 numbers, which are a vector register, beside their products."""

    attend: float
    attend_512: float
    attend_long: float
    attend_window: float
    feed_forward: float
    feed_forward_narrow: float
    layer_norm: float
    post_norm_layers: float
    post_norm_layers_512: float
    post_norm_layers_narrow: float
    post_norm_layers_narrow_512: float

    def of(self, name: str) -> float:
        """Of a kernel by its name; of one that is not known the most."""
        return self._asdict().get(name, max(self))


class Chip(NamedTuple):
    """A TPU, as its data sheet has it."""

    name: str
    memory: int
    """Bytes; the compiler keeps some of them for itself."""
    operations_per_second: float
    """Of its matrix units in bfloat16, at most."""
    operations_per_cycle: int
    """The same."""
    bytes_per_second: float
    """Read from or written to its memory."""
    kernel_cycles: KernelCycles
    axes: int
    """Of a mesh of them."""
    most: int
    """In a pod."""
    config: str | None = None
    """By which libtpu makes one device of its two cores."""

    @property
    def clock(self) -> float:
        """Cycles a second, by which the matrix units reach their peak."""
        return self.operations_per_second / self.operations_per_cycle


# cloud.google.com/tpu/docs/v4, v5e, v5p and v6e: memory, peak and bandwidth of a chip, chips of a pod. Operations a
# cycle are those that give the peak at clocks of 1.05, 1.5, 1.75 and 1.75 GHz: 2 for each cell of matrix units of 128
# rows and columns (v6e: 256). The compiler's estimate of large products comes to 88-97% of them. Cycles of kernels
# are those of libtpu's last schedule (--xla_jf_dump_llo_text, file "…hlo-static-bundle-profile"), the most of hidden
# sizes of 384, 768 and 1,024; of attention in rows of 128 to 384, of 512, of 1,024 and 8,192, and in windows of 129
# tokens; of stacked layers in rows of 128 and 256, and of 512. Those of a v4 and a v5p were not read, and are a v5e's.
_V5E_KERNELS = KernelCycles(5.6, 4.2, 4.7, 6.7, 0.2, 0.3, 3.5, 2.3, 2.8, 3.5, 4.0)
_V6E_KERNELS = KernelCycles(3.5, 2.3, 3.0, 5.6, 1.4, 2.7, 3.2, 2.2, 1.9, 2.9, 2.4)
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 << 30, 275e12, 8 * 2 * 128**2, 1228e9, _V5E_KERNELS, 3, 4096, "megacore"),
        Chip("v5e", 16 << 30, 197e12, 4 * 2 * 128**2, 819e9, _V5E_KERNELS, 2, 256),
        Chip("v5p", 95 << 30, 459e12, 8 * 2 * 128**2, 2765e9, _V5E_KERNELS, 3, 8960),
        Chip("v6e", 32 << 30, 918e12, 4 * 2 * 256**2, 1640e9, _V6E_KERNELS, 2, 256),
    )
}


class Topology(NamedTuple):
    """Chips that are linked as a mesh."""

    name: str
    chip: Chip
    devices: list[Any]
    """To be compiled for, and nothing else: one a chip."""

    @property
    def chips_per_host(self) -> int:
        return sum(device.process_index == self.devices[0].process_index for device in self.devices)


def topology(name: str) -> Topology:
    """Reads "v6e:2x2": a chip, and the sizes of a mesh of them. Loads libtpu, which may be told by `ENVIRONMENT`.

    Raises:
        MissingPackageError: libtpu is not installed.
        FlaxsentError: there is no such mesh, or libtpu is of another version than jax wants.
    """
    found = re.fullmatch(r"(\w+):([1-9]\d{0,4}(?:x[1-9]\d{0,4})*)", name)
    chip = CHIPS.get(found[1]) if found is not None else None
    if chip is None or found is None:
        raise FlaxsentError(
            f"topology={name!r}: expected one of {', '.join(CHIPS)} with the sizes of a mesh, such as v5e:1x1, "
            "v6e:2x2, v6e:4x4, v4:2x2x1, v5p:2x2x2."
        )
    sizes = [int(size) for size in found[2].split("x")]
    if len(sizes) != chip.axes or math.prod(sizes) > chip.most:
        raise FlaxsentError(
            f"topology={name!r}: expected {chip.axes} sizes for a {chip.name}, of at most {chip.most} chips, such as "
            f"{chip.name}:{'x'.join(['2', '2', '1'][: chip.axes])}."
        )
    require("libtpu", needed_by="a plan", extra="tpu")
    _check_version()
    settings = {} if chip.config is None else {"chip_config_name": chip.config}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except jax.errors.JaxRuntimeError as err:
        raise FlaxsentError(f"topology={name!r}: libtpu refuses it: {str(err).splitlines()[0]}") from err
    return Topology(name, chip, [*devices])


def _check_version() -> None:
    """Of libtpu, as the installed jax has it for its extra `tpu`; another one would end the process, or worse."""
    installed = importlib.metadata.version("libtpu")
    wanted = re.findall(r"^libtpu==([\w.*]+)", "\n".join(importlib.metadata.requires("jax") or ()), re.MULTILINE)
    if not all(fnmatch.fnmatch(installed, version) for version in wanted):
        raise FlaxsentError(
            f'libtpu {installed} is installed, and jax {jax.__version__} wants {wanted[0]}: pip install "flaxsent[tpu]"'
        )
