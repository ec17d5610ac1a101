"""The processes of one run: how one joins (`jax.distributed`), whose devices share a step, who writes, who waits."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from flaxsent import placement
from flaxsent.base import FlaxsentError
from flaxsent.packing import StepShape
from flaxsent.placement import Placement
from flaxsent.sharding import Sharding
from flaxsent.training.options import TrainOptions


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are to be any.

    Raises:
        FlaxsentError: an argument is missing or out of range.
        ConnectionError: the others did not come.
    """
    if coordinator is None and num_processes is None and process_id is None:
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise FlaxsentError(
            "--coordinator HOST:PORT, --num-processes N and --process-id I go together; pass all three."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise FlaxsentError(f"--coordinator {coordinator}: expected HOST:PORT, where process 0 runs.")
    if num_processes < 1:
        raise FlaxsentError(f"--num-processes {num_processes}: expected at least 1.")
    if not 0 <= process_id < num_processes:
        raise FlaxsentError(
            f"--process-id {process_id}: expected 0 to {num_processes - 1}, for {num_processes} processes."
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except RuntimeError as err:
        reason = str(err).partition("\n")[0]
        raise ConnectionError(f"the {num_processes} processes did not meet at {coordinator}: {reason}") from err


def devices() -> list[Any]:
    """Of all processes, those of one side by side."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def sharing(everywhere: Placement, shapes: Sequence[StepShape], options: TrainOptions) -> Placement:
    """Over as many groups of devices as share the rows of each step evenly.

    Raises:
        FlaxsentError: that would leave out devices of several processes, each of which must have its own rows; or
            these would not share the rows alone.
    """
    known, sharding = everywhere.devices, everywhere.sharding
    if jax.process_count() > 1 and sharding != Sharding():
        raise FlaxsentError(
            f"sharding={options.sharding!r}: {jax.process_count()} processes share the rows only; expected data."
        )
    numbers = range(everywhere.num_groups, 0, -1)
    num = next(n for n in numbers if all(shape.num_rows % (n * options.accumulation) == 0 for shape in shapes))
    if num * sharding.tensor < len(known) and jax.process_count() > 1:
        raise FlaxsentError(
            f"{len(known)} devices in {jax.process_count()} processes cannot share the {shapes[0].num_rows} rows of "
            f"a step evenly; go on with a number of devices that divides {shapes[0].num_rows // options.accumulation}."
        )
    return placement.over(known[: num * sharding.tensor], options.sharding)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits for the other processes, if there are any, to come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"flaxsent: {name}")
