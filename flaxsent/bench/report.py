"""The figures of a run, and how they are told: as a table, as JSON, as a chart."""

import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flaxsent.base import FlaxsentError
from flaxsent.bench.peers import OURS
from flaxsent.bench.rounds import Timing
from flaxsent.files import appearing, require

AGREEMENT = 0.75
"""With fewer labels in common, a peer computes something else: half is chance. int8 turns close calls, of which a
random model has many: it keeps 9 of 10 labels."""

CLAIM_ROUNDS, CLAIM_TOKENS = 5, 5_000
"""With fewer, a ratio is no claim. So many tokens are about 200 short texts."""


class Efficiency(NamedTuple):
    """What flaxsent makes of the machine."""

    tokens_per_second: float
    """Real ones: padding does not count."""
    real_share: float
    """Real tokens among the places of the rows."""
    operations_per_second: float | None
    """Of the matrix products that the real tokens need; None where flaxsent does not know how many these are."""


class Result(NamedTuple):
    """The figures of a workload, by the names of the libraries."""

    workload: str
    num_texts: int
    num_tokens: int
    num_truncated: int
    timings: dict[str, Timing]
    efficiencies: dict[str, Efficiency]
    """Of flaxsent alone."""

    @property
    def num_rounds(self) -> int:
        return len(next(iter(self.timings.values())).seconds)

    @property
    def is_claim(self) -> bool:
        """Whether there are rounds and tokens enough to say that one library is faster than another."""
        return self.num_rounds >= CLAIM_ROUNDS and self.num_tokens >= CLAIM_TOKENS


class Report(NamedTuple):
    """The figures of a run."""

    model: str
    machine: str
    versions: dict[str, str]
    peak: dict[str, float]
    """Operations a second of the fastest matrix product in each dtype."""
    skipped: dict[str, str]
    """The peers that were not measured, and why."""
    results: list[Result]


def texts_per_second(result: Result, name: str) -> float:
    """By the median round."""
    return result.num_texts / statistics.median(result.timings[name].seconds)


def ratio(result: Result, name: str, other: str) -> float:
    """How many times as fast as `other` a library is: the median of what each round says.

    >>> timings = {"a": Timing(None, {}, [1.0, 2.0, 1.0], 1.0), "b": Timing(8, {8: 1.0}, [3.0, 4.0, 5.0], 1.0)}
    >>> ratio(Result("", 1, 1, 0, timings, {}), "a", "b")
    3.0
    """
    seconds, others = result.timings[name].seconds, result.timings[other].seconds
    return statistics.median(theirs / ours for ours, theirs in zip(seconds, others, strict=True))


def table(report: Report) -> str:
    """The figures of each workload, line by line, the fastest last."""
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    peak = ", ".join(f"{dtype} {peak / 1e9:,.0f}" for dtype, peak in report.peak.items())
    lines = [report.model, report.machine, versions, f"fastest matrix product, in GFLOP/s: {peak}"]
    for result in report.results:
        lines += ["", *result_lines(result), *_efficiency_lines(result, report.peak)]
    if report.skipped:
        lines += ["", *(f"skipped {name}: {reason}" for name, reason in report.skipped.items())]
    return "\n".join(lines)


def result_lines(result: Result) -> Iterator[str]:
    """What the libraries took for a workload."""
    mean = result.num_tokens / result.num_texts
    cut = f" ({result.num_truncated:,} cut)" if result.num_truncated else ""
    rounds = "1 round" if result.num_rounds == 1 else f"median of {result.num_rounds} rounds"
    yield f"{result.workload}: {result.num_texts:,} texts of {mean:.1f} tokens on average{cut}, {rounds}"
    if not result.is_claim:
        yield f"not enough for a claim, which takes {CLAIM_ROUNDS} rounds and {CLAIM_TOKENS:,} tokens"
    beside = "".join(f"{f'{name} is':>18}" for name in result.efficiencies)
    yield f"{'':20}{'texts/s':>10}{'spread':>8}{'batch':>7}{'same labels':>13}{beside}"
    ascending = sorted(result.timings, key=lambda name: texts_per_second(result, name))
    for name in ascending:
        timing = result.timings[name]
        spread = (max(timing.seconds) - min(timing.seconds)) / statistics.median(timing.seconds)
        batch = "–" if timing.batch_size is None else f"{timing.batch_size}{'*' if timing.is_at_edge else ''}"
        ratios = "".join(f"{f'{ratio(result, ours, name):.2f} ×':>18}" for ours in result.efficiencies)
        if timing.agreement < AGREEMENT:
            ratios = f"{'no peer: computes something else':>36}"
        yield (
            f"{name:20}{texts_per_second(result, name):10,.1f}{spread:8.0%}{batch:>7}{timing.agreement:13.1%}{ratios}"
        )
    if any(timing.is_at_edge for timing in result.timings.values()):
        yield "* the smallest or the largest batch that was tried"
    peers = [
        name for name in ascending if name not in result.efficiencies and result.timings[name].agreement >= AGREEMENT
    ]
    if peers:
        ours = next(name for name in reversed(ascending) if name in result.efficiencies)
        yield f"{ours} is {ratio(result, ours, peers[-1]):.2f} × as fast as {peers[-1]}, the fastest peer"


def _efficiency_lines(result: Result, peak: dict[str, float]) -> Iterator[str]:
    yield f"{'':20}{'tokens/s':>10}{'real tokens':>15}{'of the matrix peak':>22}"
    for name, efficiency in result.efficiencies.items():
        operations = efficiency.operations_per_second
        share = "–" if operations is None else f"{operations / peak[OURS[name]]:.1%}"
        yield f"{name:20}{efficiency.tokens_per_second:10,.0f}{efficiency.real_share:15.1%}{share:>22}"


def to_json(report: Report) -> dict[str, Any]:
    """All the figures as plain dicts and lists."""
    return report._asdict() | {"results": [_result_json(result) for result in report.results]}


def _result_json(result: Result) -> dict[str, Any]:
    timings = {
        name: timing._asdict()
        | {"is_at_edge": timing.is_at_edge, "texts_per_second": texts_per_second(result, name)}
        | {"ratio": {ours: ratio(result, ours, name) for ours in result.efficiencies}}
        for name, timing in result.timings.items()
    }
    efficiencies = {name: efficiency._asdict() for name, efficiency in result.efficiencies.items()}
    return result._asdict() | {"is_claim": result.is_claim, "timings": timings, "efficiencies": efficiencies}


def check_plot(file: str | os.PathLike) -> str:
    """The format of a chart, by the suffix of its file's name.

    Raises:
        MissingPackageError: matplotlib is not installed; the message has the command.
        FileNotFoundError: there is no such folder.
        FlaxsentError: matplotlib writes no such format.
    """
    require("matplotlib", needed_by="the chart", extra="plot")
    from matplotlib.backend_bases import FigureCanvasBase

    if not Path(file).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(file).absolute().parent} for the chart; make it first.")
    form = Path(file).suffix[1:]
    if form not in (known := FigureCanvasBase.get_supported_filetypes()):
        raise FlaxsentError(f"{file}: expected a name that ends in one of .{', .'.join(known)}.")
    return form


def plot(report: Report, file: str | os.PathLike) -> None:
    """Writes bars of texts a second, a panel for each workload, as the image that the name of the file asks for.

    Raises:
        OSError: it cannot be written.
        As `check_plot` does.
    """
    form = check_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(report.results), 5), layout="constrained")
    panels = figure.subplots(1, len(report.results), squeeze=False)[0]
    for panel, result in zip(panels, report.results, strict=True):
        names = sorted(result.timings, key=lambda name: texts_per_second(result, name))
        colors = ["tab:orange" if name in OURS else "tab:gray" for name in names]
        bars = panel.barh(names, [texts_per_second(result, name) for name in names], color=colors)
        panel.bar_label(bars, fmt="{:,.1f}", padding=3)
        panel.margins(x=0.12)
        mean = result.num_tokens / result.num_texts
        panel.set(title=f"{result.workload}: {mean:.0f} tokens on average", xlabel="texts a second")
    figure.suptitle(f"{report.model} · {report.machine}")
    with appearing(Path(file)) as stream:
        figure.savefig(stream, format=form)
