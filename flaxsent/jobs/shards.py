"""Several processes at one job, one on each host: how they meet, and which part of the work is whose.

The processes meet once, through JAX's own multi-process runtime, before any of them writes; after that none needs to
hear of another. `assign` is the rule by which each of them knows its share: the same for all, and for any number.
"""

import heapq
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from flaxsent.base import FlaxsentError

WAIT = 300
"""Seconds for the other processes to come."""


class Place(NamedTuple):
    """Which of the processes this is."""

    process_id: int = 0
    num_processes: int = 1


def assign(sizes: Sequence[int], num_processes: int) -> Int[np.ndarray, " N"]:
    """The process for each piece of work: the largest first, each to the process that has least; ties to the first.

    >>> assign([1, 1, 1, 1, 1], 2).tolist(), assign([1, 5, 2, 2], 2).tolist()
    ([0, 1, 0, 1, 0], [1, 0, 1, 1])
    """
    sizes = [max(size, 1) for size in sizes]
    process_of = np.zeros(len(sizes), np.int64)
    # A whole number holds how much a process has, and below that which process it is: fast to compare.
    loads = [*range(num_processes)]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load = loads[0]
        process_of[index] = load % num_processes
        heapq.heapreplace(loads, load + sizes[index] * num_processes)
    return process_of


def spread(sizes: Sequence[int], num_processes: int) -> float:
    """The largest share of the work over the mean share: how much longer the job takes than it would, were all equal.

    >>> spread([1, 1, 1, 1, 1], 2)
    1.2
    """
    shares = np.bincount(assign(sizes, num_processes), weights=np.asarray(sizes, np.float64))
    return float(shares.max() * num_processes / shares.sum())


def check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Refuses what cannot be a place.

    Raises:
        FlaxsentError: one is missing, or out of range.
    """
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


def meet(
    job: str,
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait: int = WAIT,
) -> Place:
    """Waits until all processes are there and mean the same job, and tells the place of this one.

    Where JAX does not find all, it ends the process. So another process asks, for which `jax.distributed.initialize`
    is called, and this one stays by itself: one that dies later takes none with it.

    Args:
        job: what must be the same for all, in a few characters.
        coordinator: `HOST:PORT` on the host of process 0; by default, as the next two, what JAX finds out in a TPU pod
            or under SLURM.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        wait: seconds, for all to come, and then for all to agree.

    Raises:
        ConnectionError: they have not all come, or do not mean the same.
    """
    asked = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    arguments = json.dumps(asked | {"job": job, "wait": wait})
    # As a file, so that it is this one whatever is installed; -P, or the file's neighbour would be Python's `types`.
    command = [sys.executable, "-P", __file__, arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=2 * wait + 60)
    except subprocess.TimeoutExpired as err:
        raise ConnectionError(_complaint("Deadline Exceeded", wait=wait, **asked)) from err
    if not done.stdout:
        raise ConnectionError(_complaint(done.stderr, wait=wait, **asked))
    return Place(*json.loads(done.stdout))


def _complaint(
    told: str, *, coordinator: str | None, num_processes: int | None, process_id: int | None, wait: int
) -> str:
    """One line for what JAX told before it gave up."""
    if "should be defined" in told or "must be defined" in told:
        return (
            "--distributed: this is no TPU pod and no SLURM job that JAX knows; pass --coordinator HOST:PORT "
            "--num-processes N --process-id I instead."
        )
    where = "" if coordinator is None else f" at {coordinator}"
    who = "the processes" if num_processes is None else f"all {num_processes} processes"
    if "Barrier timed out" in told:
        return (
            f"the processes that met{where} were not all there for the same job within {wait} s; start each with the "
            "same number of processes, files, options, model and versions."
        )
    if "Unexpected task" in told:
        return f"process {process_id} is one too many{where}: process 0 was started with fewer than {num_processes}."
    if "Failed to add port" in told:
        return f"the port of the coordinator{where} is taken on the host of process 0; choose another."
    if "Deadline" in told or "DEADLINE" in told:
        return (
            f"no coordinator{where}, or {who} did not come to it, within {wait} s; start each with the same command, "
            "and its own --process-id, or wait longer (--wait SECONDS)."
        )
    status = re.findall(r"absl::Status: (.*)", told) or told.strip().splitlines()[-1:]
    return f"{who} did not meet{where}: {(status or ['no reason was told'])[0]}."


def _ask(*, job: str, coordinator: str | None, num_processes: int | None, process_id: int | None, wait: int) -> None:
    """Meets the others, and writes the place on standard output."""
    jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=wait)
    # jax.process_index() would tell the place, too, but takes hold of the devices, which are the other process's.
    from jax._src import distributed

    state = distributed.global_state
    client: Any = state.client
    # Those who mean another job, or another number of processes, wait elsewhere.
    client.wait_at_barrier(f"flaxsent {state.num_processes} {job}", wait * 1000)
    sys.stdout.write(json.dumps([state.process_id, state.num_processes]))
    sys.stdout.flush()
    jax.distributed.shutdown()


if __name__ == "__main__":
    _ask(**json.loads(sys.argv[1]))
