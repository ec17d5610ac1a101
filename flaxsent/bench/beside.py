"""A transform of flaxsent's beside another library's, of the same model and texts in one run."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from flaxsent.base import FlaxsentError
from flaxsent.bench import machine
from flaxsent.bench.machine import is_on_cpu, seconds
from flaxsent.bench.rounds import try_batch_sizes
from flaxsent.bench.texts import Opened
from flaxsent.engine import Engine
from flaxsent.placement import Function

ROUNDS = 5


class Figures(NamedTuple):
    """Of a run."""

    model: str
    machine: str
    versions: dict[str, str]
    setting: str
    """What was done, in words."""
    unit: str
    """What there is one of for each text."""
    num_texts: int
    flaxsent: list[float]
    """Seconds for all texts, one a round."""
    peer: str
    theirs: list[float]
    batch_size: int
    """The peer's best, in `batch_unit`."""
    batch_unit: str
    difference: float
    """The largest between two scores."""

    @property
    def ratio(self) -> float:
        """How many times as fast flaxsent is: the median of what each round says."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.flaxsent, self.theirs, strict=True))


def compare(
    opened: Opened,
    theirs: Callable[[Sequence[str], int], Any],
    texts: Sequence[str],
    *,
    function: Function | None = None,
    scores: Callable[[Any], Any] = lambda results: results,
    difference: Callable[[Any, Any], float],
    peer: str,
    start: int,
    per_text: int = 1,
    rounds: int | None,
    report: Callable[[str], None],
    **told: Any,
) -> Figures:
    """Looks for the peer's best batch size, shows both every text once, then times rounds in which both take turns.

    The batches are looked for from `start`, up to all of a quarter of the texts, each of which counts `per_text`. The
    `scores` of the function's results are compared with theirs; the rest of the figures is `told`.

    Raises:
        FlaxsentError: `rounds` is not positive.
    """
    rounds = ROUNDS if rounds is None else rounds
    if rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    devices = jax.local_devices() if is_on_cpu() else jax.local_devices()[:1]
    with Engine(opened.classifier, function=function, devices=devices) as engine:
        report("warming up flaxsent")
        expected = scores(engine(texts))
        report(f"looking for the batch size of {peer}")
        sample = texts[: max(len(texts) // 4, 1)]
        tried = try_batch_sizes(
            lambda size: seconds(lambda: theirs(sample, size)),
            start=start,
            largest=1 << (len(sample) * per_text - 1).bit_length(),
        )
        batch_size = min(tried, key=tried.__getitem__)
        found = theirs(texts, batch_size)
        by_us, by_them = [], []
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            by_us.append(seconds(lambda: engine(texts)))
            by_them.append(seconds(lambda: theirs(texts, batch_size)))
    return Figures(
        model=opened.name,
        machine=machine.describe(),
        versions=machine.versions(),
        num_texts=len(texts),
        flaxsent=by_us,
        peer=peer,
        theirs=by_them,
        batch_size=batch_size,
        difference=difference(expected, found),
        **told,
    )


def table(figures: Figures) -> str:
    """The figures, line by line."""
    lines = [figures.model, figures.machine, ", ".join(f"{name} {one}" for name, one in figures.versions.items())]
    lines.append(f"{figures.setting}; {len(figures.flaxsent)} rounds")
    batch = f", {figures.batch_size} {figures.batch_unit} at a time"
    for name, each, more in ((figures.peer, figures.theirs, batch), ("flaxsent", figures.flaxsent, "")):
        lines.append(f"{name:12} {figures.num_texts / statistics.median(each):8.2f} {figures.unit}/s{more}")
    lines.append(
        f"flaxsent is {figures.ratio:.2f} times as fast; no score differs by more than {figures.difference:.0e}"
    )
    return "\n".join(lines)


def to_json(figures: Figures) -> dict[str, Any]:
    """Every figure."""
    return figures._asdict() | {"ratio": figures.ratio}
