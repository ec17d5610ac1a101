"""Texts a second beside other libraries, on the same texts in one run: `flaxsent bench`.

`texts.py` makes the model and the texts, `peers.py` the libraries, `rounds.py` times them, `report.py` tells.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flaxsent.base import FlaxsentError
from flaxsent.bench import machine
from flaxsent.bench.peers import OURS, PEERS, Source, engine_predictor, make
from flaxsent.bench.report import CLAIM_ROUNDS, Efficiency, Report, Result, result_lines, texts_per_second
from flaxsent.bench.report import check_plot as check_plot
from flaxsent.bench.report import plot as plot
from flaxsent.bench.report import table as table
from flaxsent.bench.report import to_json as to_json
from flaxsent.bench.rounds import Timing, measure, or_skipped
from flaxsent.bench.texts import Workload, open_model, workloads
from flaxsent.classifier import Classifier
from flaxsent.engine import Stats
from flaxsent.models.config import ModelConfig

BUDGET = 1800
"""Seconds; without a number of rounds, those that would end later are left out."""


def run(
    model: str | os.PathLike | None = None,
    *,
    peers: Sequence[str] | None = None,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures flaxsent and its peers.

    Args:
        model: folder or Hub id; None is a model of DistilBERT's size with random weights.
        peers: out of `PEERS`; all of them by default. One that is not installed, or fails, is skipped.
        texts: a file with a text on each line; None is made-up texts as long as those of SST-2 and of IMDb.
        num_texts: how many texts, and one seventh as many of those as long as IMDb's; `NUM_TEXTS` by default.
        rounds: how often each is timed; by default five times, or less often where that would take more than `BUDGET`.
        report: called with a line on what goes on.

    Raises:
        FlaxsentError: no such peer, a number that is not positive, or a model or texts that cannot be measured.
        Whatever `load` raises.
    """
    measured = workloads(texts, num_texts)
    return compare(model, lambda classifier: measured, peers=peers, rounds=rounds, report=report)


def compare(
    model: str | os.PathLike | None,
    measured: Callable[[Classifier], Sequence[Workload]],
    *,
    peers: Sequence[str] | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    budget: float | None = None,
    leaves_out: bool = False,
    ours: Mapping[str, str] = OURS,
    **made: Any,
) -> Report:
    """As `run`, of any workloads for the model; what is `made` if that is None, `open_model` says.

    `ours` are those of `peers.OURS` that are measured; all labels are compared with the first one's.

    Without a number of rounds, each workload has its part of the time that is left of the `budget`, of seconds. If
    `leaves_out`, one that would not end in time even once, by the speed of the one before, is left out.
    """
    names = [*PEERS] if peers is None else [*peers]
    if unknown := [name for name in names if name not in PEERS]:
        raise FlaxsentError(f"there is no peer {', '.join(unknown)}; expected some of {', '.join(PEERS)}.")
    if rounds is not None and rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    begin, skipped = time.perf_counter(), {}
    budget = BUDGET if budget is None else budget
    end = begin + budget

    def tell(line: str) -> None:
        report(f"{time.perf_counter() - begin:4.0f} s  {line}")

    if rounds is None:
        tell(f"up to {CLAIM_ROUNDS} rounds, or as many as fit into {budget // 60:.0f} minutes")
    with TemporaryDirectory() as scratch:
        tell("opening the model")
        opened = open_model(model, Path(scratch), **made)
        source = Source(opened.folder, opened.classifier, Path(scratch))
        if source.classifier.config.num_labels < 2:
            raise FlaxsentError(f"{model} gives one number for a text; expected labels, by which peers are compared.")
        planned = measured(source.classifier)
        stats: dict[str, list[Stats]] = {name: [] for name in ours}
        tell(f"compiling {', '.join(ours)}")
        predictors = {name: engine_predictor(source.folder, dtype, stats[name]) for name, dtype in ours.items()}
        for name in names:
            tell(f"preparing {name}")
            with or_skipped(name, skipped, tell):
                predictors[name] = make(PEERS[name], source)
        peak, results = dict.fromkeys(ours.values(), 0.0), []
        for number, workload in enumerate(planned):
            now = time.perf_counter()
            for windows in stats.values():
                windows.clear()
            encodings = source.classifier.tokenizer.encode(workload.texts)
            lengths = encodings.lengths
            if leaves_out and rounds is None and results and now + _least_seconds(sum(lengths), results[-1]) > end:
                skipped[workload.name] = f"it would end after {budget // 60:.0f} minutes"
                tell(f"left out {workload.name}: {skipped[workload.name]}")
                continue
            until = now + (end - now) / (len(planned) - number) if rounds is None else math.inf
            timings = measure(
                workload,
                predictors,
                ours=ours,
                rounds=rounds or CLAIM_ROUNDS,
                until=until,
                skipped=skipped,
                report=tell,
            )
            efficiencies = {
                name: _efficiency(timings[name], stats[name], lengths, source.classifier.config) for name in ours
            }
            results.append(
                Result(
                    workload=workload.name,
                    num_texts=len(lengths),
                    num_tokens=sum(lengths),
                    num_truncated=encodings.num_truncated,
                    timings=timings,
                    efficiencies=efficiencies,
                )
            )
            report("\n".join(result_lines(results[-1])))  # whoever stops the run has these
            tell("measuring the fastest matrix product")
            peak = {dtype: max(best, machine.matrix_peak(dtype)) for dtype, best in peak.items()}
    return Report(
        model=opened.name,
        machine=machine.describe(),
        versions=machine.versions(),
        peak=peak,
        skipped=skipped,
        results=results,
    )


def _least_seconds(num_tokens: int, last: Result) -> float:
    """For all libraries to see so many tokens once and be timed once, as fast as at the last workload."""
    texts = num_tokens / last.num_tokens * last.num_texts
    return 2 * sum(texts / texts_per_second(last, name) for name in last.timings)


def _efficiency(timing: Timing, windows: Sequence[Stats], lengths: Sequence[int], config: ModelConfig) -> Efficiency:
    seconds = statistics.median(timing.seconds)
    operations = machine.operations(lengths, config)
    return Efficiency(
        tokens_per_second=sum(lengths) / seconds,
        real_share=sum(window.num_tokens for window in windows) / sum(window.num_places for window in windows),
        operations_per_second=None if operations is None else operations / seconds,
    )
