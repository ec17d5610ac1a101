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
from flaxsent.classifier import Function
from flaxsent.engine import Engine

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
    default_batch_size: int | None = None
    """The peer's own, if that is timed, too."""
    by_default: Sequence[float] = ()
    """Seconds of the peer with it."""

    @property
    def ratio(self) -> float:
        """How many times as fast flaxsent is: the median of what each round says."""
        return _ratio(self.theirs, self.flaxsent)

    @property
    def ratio_by_default(self) -> float | None:
        """The same, beside the peer with its own batch size."""
        return _ratio(self.by_default, self.flaxsent) if self.by_default else None


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=True))


def compare(
    opened: Opened,
    theirs: Callable[[Sequence[str], int], Any],
    texts: Sequence[str],
    *,
    function: Function | None = None,
    tokens_per_step: int | None = None,
    scores: Callable[[Any], Any] = lambda results: results,
    difference: Callable[[Any, Any], float],
    peer: str,
    start: int,
    per_text: int = 1,
    default_batch_size: int | None = None,
    rounds: int | None,
    report: Callable[[str], None],
    **told: Any,
) -> Figures:
    """Looks for the peer's best batch size, shows both every text once, then times rounds in which both take turns.

    The batches are looked for from `start`, up to all of a quarter of the texts, each of which counts `per_text`; the
    peer's own, which few change, is timed as well. The `scores` of the function's results are compared with theirs; the
    rest of the figures is `told`.

    Raises:
        FlaxsentError: `rounds` is not positive.
    """
    rounds = ROUNDS if rounds is None else rounds
    if rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    devices = jax.local_devices() if is_on_cpu() else jax.local_devices()[:1]
    with Engine(opened.classifier, function=function, devices=devices, tokens_per_step=tokens_per_step) as engine:
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
        by_us, by_them, by_default = [], [], []
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            by_us.append(seconds(lambda: engine(texts)))
            by_them.append(seconds(lambda: theirs(texts, batch_size)))
            if default_batch_size is not None:
                by_default.append(seconds(lambda: theirs(texts, default_batch_size)))
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
        default_batch_size=default_batch_size,
        by_default=by_default,
        **told,
    )


def table(figures: Figures) -> str:
    """The figures, line by line."""
    lines = [figures.model, figures.machine, ", ".join(f"{name} {one}" for name, one in figures.versions.items())]
    lines.append(f"{figures.setting}; {len(figures.flaxsent)} rounds")
    timed = [
        (figures.peer, figures.theirs, f", {figures.batch_size} {figures.batch_unit} at a time"),
        (figures.peer, figures.by_default, f", {figures.default_batch_size} at a time, as by default"),
        ("flaxsent", figures.flaxsent, ""),
    ]
    for name, each, more in timed:
        if each:
            lines.append(f"{name:12} {figures.num_texts / statistics.median(each):8.2f} {figures.unit}/s{more}")
    ratio = f"flaxsent is {figures.ratio:.2f} times as fast"
    if figures.ratio_by_default is not None:
        ratio += f" ({figures.ratio_by_default:.2f} times as by default)"
    lines.append(f"{ratio}; no score differs by more than {figures.difference:.0e}")
    return "\n".join(lines)


def to_json(figures: Figures) -> dict[str, Any]:
    """Every figure."""
    return figures._asdict() | {"ratio": figures.ratio, "ratio_by_default": figures.ratio_by_default}
