"""How a workload is timed: the best batch size of each library first, then rounds in which each has its turn.

A machine that slows down slows all of them alike; tokenizing counts.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from flaxsent.bench.machine import is_on_cpu, seconds
from flaxsent.bench.peers import PEERS, Predict
from flaxsent.bench.texts import NUM_TEXTS, Workload


class Timing(NamedTuple):
    """What a library took for the texts of a workload."""

    batch_size: int | None
    """The best of those tried; None where the library chooses."""
    tried: dict[int, float]
    """Seconds for a sample of the texts, by batch size; empty where the library chooses."""
    seconds: list[float]
    """One a round."""
    agreement: float
    """Share of the texts with the label that flaxsent gives in float32."""

    @property
    def is_at_edge(self) -> bool:
        """Whether the best batch size is the smallest or the largest that was tried."""
        return self.batch_size is not None and self.batch_size in (min(self.tried), max(self.tried))


def measure(
    workload: Workload,
    predictors: Mapping[str, Predict],
    *,
    ours: Collection[str],
    rounds: int,
    until: float,
    skipped: dict[str, str],
    report: Callable[[str], None],
) -> dict[str, Timing]:
    """Looks for the best batch size of each library, shows it every text once, then times the rounds.

    After the first, a round that would not end before `until`, by `time.perf_counter`, is left out. Libraries that fail
    go to `skipped`; those that are `ours` must not, and the labels of the first of them are the reference.
    """
    ready: dict[str, Callable[[], Any]] = {}
    found: dict[str, dict[int, float]] = {}
    sizes: dict[str, int | None] = {}
    labels: dict[str, Int[np.ndarray, " B"]] = {}
    for name, predict in predictors.items():
        report(f"{workload.name}: warming up {name}")
        with contextlib.nullcontext() if name in ours else or_skipped(name, skipped, report):
            tried = {} if name in ours else _try_batch_sizes(predict, workload.texts, compiles=PEERS[name].compiles)
            size = min(tried, key=tried.__getitem__) if tried else None
            call = functools.partial(predict, workload.texts, size or 0)
            labels[name] = call()
            ready[name], sizes[name], found[name] = call, size, tried
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(1, rounds + 1):
        if number > 1 and time.perf_counter() + sum(each[-1] for each in taken.values()) > until:
            report(f"{workload.name}: no time for round {number} of {rounds}")
            break
        report(f"{workload.name}: round {number} of {rounds}")
        for name, call in ready.items():
            taken[name].append(seconds(call))
    reference = labels[next(iter(ours))]
    return {
        name: Timing(sizes[name], found[name], taken[name], float((labels[name] == reference).mean())) for name in ready
    }


@contextlib.contextmanager
def or_skipped(name: str, skipped: dict[str, str], report: Callable[[str], None]) -> Iterator[None]:
    """Whatever goes wrong in another library, the run goes on without it."""
    try:
        yield
    except Exception as err:
        skipped[name] = " ".join(f"{err}".split())[:200] or type(err).__name__
        report(f"skipped {name}: {skipped[name]}")


_START, _START_ON_ACCELERATOR = 16, 256
_SAMPLE_ON_ACCELERATOR = 4096


def _try_batch_sizes(predict: Predict, texts: list[str], *, compiles: bool) -> dict[int, float]:
    """Seconds for half of the texts, or for fewer of very many, from all over them, by batch size."""
    most = NUM_TEXTS if is_on_cpu() else _SAMPLE_ON_ACCELERATOR
    sample = texts[:: max(2, -(-len(texts) // most))]
    largest = 1 << (len(sample) - 1).bit_length()
    start = min(_START if is_on_cpu() else _START_ON_ACCELERATOR, largest)
    with contextlib.suppress(Exception):  # too large a batch: the search finds smaller ones
        predict(sample, start)  # threads and memory of the first call are nobody's fault
    seen = set()

    def time_one(size: int) -> float:
        if compiles and size not in seen:
            predict(sample, size)
        seen.add(size)
        return seconds(lambda: predict(sample, size))

    return try_batch_sizes(time_one, start=start, largest=largest)


_WORSE, _CLOSE = 1.5, (1.25, 1.1)
"""Times the best: so much is worse, whatever the noise of one timing; so much may be the best after one, after two."""


def try_batch_sizes(time_one: Callable[[int], float], *, start: int, largest: int) -> dict[int, float]:
    """What `time_one` gives for batch sizes from `start` down, halved each time, and up, doubled.

    A direction ends at 1, at `largest`, which is all the texts at once, or after two worse sizes one after the other:
    neither a dip nor a slow timing ends it. The sizes that may be the best are timed again, and the least counts.
    A size that fails, as for want of memory, is left out.

    Raises: what `time_one` does, if it does so for all sizes.

    >>> try_batch_sizes(lambda size: {1: 9, 2: 5, 4: 3, 8: 5, 16: 6}[size], start=16, largest=16)
    {16: 6, 8: 5, 4: 3, 2: 5, 1: 9}
    >>> [*try_batch_sizes(lambda size: size, start=16, largest=64)]
    [16, 8, 4, 2, 1, 32, 64]
    """
    found: dict[int, float] = {}
    errors: list[Exception] = []

    def try_one(size: int) -> None:
        try:
            found[size] = min(found.get(size, math.inf), time_one(size))
        except Exception as err:
            errors.append(err)

    try_one(start)
    for smaller in (True, False):
        size, num_worse = start, 0
        while num_worse < 2:
            size = size // 2 if smaller else size * 2
            if not 1 <= size <= largest:
                break
            try_one(size)
            is_worse = found and found.get(size, math.inf) > _WORSE * min(found.values())
            num_worse = num_worse + 1 if is_worse else 0
    if not found:
        raise errors[0]
    for close in _CLOSE:
        for size in [size for size in found if found[size] <= close * min(found.values())]:
            try_one(size)
    return found
