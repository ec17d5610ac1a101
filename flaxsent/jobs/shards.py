"""Several processes at one job, one on each host: which shard a process is, and which part of the work is whose.

The processes never talk to each other. `assign` is the rule by which each knows its share: the same for all of them,
and for any number of them.
"""

import dataclasses
import heapq
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from flaxsent.base import FlaxsentError


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which of how many shares of the work."""

    index: int = 0
    """From 0."""
    count: int = 1


def parse(value: str, environment: Mapping[str, str] | None = None) -> Shard:
    """The shard that `I/N` says, or that the launcher of the process says in its environment, for `auto`.

    Raises:
        FlaxsentError: it is neither, or there is no known launcher.

    >>> parse("0/4"), parse("auto", {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"})
    (Shard(index=0, count=4), Shard(index=2, count=3))
    """
    if value == "auto":
        return _detect(os.environ if environment is None else environment)
    numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", value)
    if numbers is None or int(numbers[1]) >= int(numbers[2]):
        raise FlaxsentError(f"--shard {value}: expected I/N with I from 0 to N-1, such as 0/4 and 3/4, or auto.")
    return Shard(int(numbers[1]), int(numbers[2]))


_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    ("SLURM_PROCID", "SLURM_NTASKS"),  # last of the three: processes that mpirun starts inherit them
)
"""The variables with the index and the count of a process."""


def _detect(environment: Mapping[str, str]) -> Shard:
    for names in _LAUNCHERS:
        if all(name in environment for name in names):
            return _checked([environment[name] for name in names], names)
    if hosts := environment.get("TPU_WORKER_HOSTNAMES"):
        names = ("TPU_WORKER_ID" if "TPU_WORKER_ID" in environment else "CLOUD_TPU_TASK_ID", "TPU_WORKER_HOSTNAMES")
        worker = _checked([environment.get(names[0], ""), str(len(hosts.split(",")))], names)
        # Several slices, each with as many hosts.
        names = ("MEGASCALE_SLICE_ID", "MEGASCALE_NUM_SLICES")
        part = _checked([environment.get(name, default) for name, default in zip(names, "01", strict=True)], names)
        return Shard(part.index * worker.count + worker.index, part.count * worker.count)
    raise FlaxsentError(
        "--shard auto: no variables of Open MPI, MPICH, SLURM or a TPU pod are set; pass --shard I/N instead."
    )


def _checked(values: Sequence[str], names: Sequence[str]) -> Shard:
    if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
        raise FlaxsentError(
            f"--shard auto: {names[0]} and {names[1]} say process {values[0]!r} of {values[1]!r}; pass --shard I/N."
        )
    return Shard(int(values[0]), int(values[1]))


def assign(sizes: Sequence[int], count: int) -> Int[np.ndarray, " N"]:
    """The shard of each piece of work: the largest piece first, each to the shard that has least; ties to the first.

    >>> assign([1, 1, 1, 1, 1], 2).tolist(), assign([1, 5, 2, 2], 2).tolist()
    ([0, 1, 0, 1, 0], [1, 0, 1, 1])
    """
    sizes = [max(size, 1) for size in sizes]
    shard_of = np.zeros(len(sizes), np.int64)
    # One whole number holds how much a shard has, and its index in the lowest digit: fast to compare.
    loads = [*range(count)]
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        load = loads[0]
        shard_of[piece] = load % count
        heapq.heapreplace(loads, load + sizes[piece] * count)
    return shard_of


def spread(sizes: Sequence[int], count: int) -> float:
    """The largest share of the work over the mean share: how much longer the job takes than with equal shares.

    >>> spread([1, 1, 1, 1, 1], 2)
    1.2
    """
    shares = np.bincount(assign(sizes, count), weights=np.asarray(sizes, np.float64))
    return float(shares.max() * count / shares.sum())
