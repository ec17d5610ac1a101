"""Several processes at one run, through `jax.distributed`: how one joins, which one writes, and where they wait."""

import jax
from jax.experimental import multihost_utils

from flaxsent.base import FlaxsentError


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


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits for the other processes, if there are any, to come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"flaxsent: {name}")
