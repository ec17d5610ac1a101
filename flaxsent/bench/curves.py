"""Texts a second by how many there are and by how long they are, beside other libraries: `flaxsent bench --curves`.

At each point each peer has its best batch size, looked for at that point; tokenizing counts.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from flaxsent.base import FlaxsentError
from flaxsent.bench.machine import is_on_cpu
from flaxsent.bench.peers import OURS
from flaxsent.bench.report import Report, check_plot, texts_per_second
from flaxsent.bench.report import table as table
from flaxsent.bench.report import to_json as to_json
from flaxsent.bench.speed import compare
from flaxsent.bench.texts import Workload, like_sst2, make_texts, of_length, read_texts
from flaxsent.classifier import Classifier
from flaxsent.files import appearing

LEAST, MOST = 10, 100_000
SHORTEST, LONGEST, LONGEST_ON_ACCELERATOR = 16, 512, 8192


def run(
    model: str | os.PathLike | None = None,
    *,
    peers: Sequence[str] | None = None,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures made-up texts of each length, then ten times as many texts again and again, while time is left.

    Arguments and exceptions are those of `speed.run`, but that `num_texts`, `MOST` by default, is how many at most, and
    that `texts` are those which grow in number.
    """
    if num_texts is not None and num_texts < LEAST:
        raise FlaxsentError(f"num_texts={num_texts}: expected at least {LEAST}, where the curve begins.")
    most = MOST if num_texts is None else num_texts
    lines = make_texts(like_sst2, most) if texts is None else read_texts(texts, most)

    def measured(classifier: Classifier) -> list[Workload]:
        longest = min(classifier.tokenizer.max_length, LONGEST if is_on_cpu() else LONGEST_ON_ACCELERATOR)
        return [
            *(of_length(length) for length in _steps(SHORTEST, 2, longest)),
            *(Workload(f"{number:,}{_TEXTS}", lines[:number]) for number in _steps(LEAST, 10, len(lines))),
        ]

    return compare(model, measured, peers=peers, rounds=rounds, report=report, leaves_out=True)


_TEXTS = " texts"
"""What the names of the points of the first chart end in."""


def _steps(first: int, factor: int, last: int) -> list[int]:
    """Times `factor` each; the last one too.

    >>> _steps(10, 10, 2000)
    [10, 100, 1000, 2000]
    """
    steps = []
    while first < last:
        steps.append(first)
        first *= factor
    return [*steps, last]


def plot(report: Report, file: str | os.PathLike) -> None:
    """Writes a chart by the number of texts and one by their length, as the image that the file's name asks for.

    Raises:
        OSError: it cannot be written.
        As `check_plot` does.
    """
    form = check_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    for panel, is_by_number in zip(figure.subplots(1, 2), (True, False), strict=True):
        results = [result for result in report.results if result.workload.endswith(_TEXTS) == is_by_number]
        at = [result.num_texts if is_by_number else result.num_tokens / result.num_texts for result in results]
        for name in dict.fromkeys(name for result in results for name in result.timings):
            points = [
                (x, texts_per_second(result, name) * (1 if is_by_number else x))
                for x, result in zip(at, results, strict=True)
                if name in result.timings
            ]
            width = 2.5 if name in OURS else 1
            panel.plot(*zip(*points, strict=True), label=name, marker="o", linewidth=width)
        unit, each = ("texts", "number of texts") if is_by_number else ("tokens", "tokens in each text")
        panel.set(xscale="log", xlabel=each, ylabel=f"{unit} a second", ylim=(0, None))
        panel.set_xticks(at, [f"{x:,.0f}" for x in at])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend()
    figure.suptitle(f"{report.model} · {report.machine} · each peer at its best batch at each point")
    with appearing(Path(file)) as stream:
        figure.savefig(stream, format=form)
