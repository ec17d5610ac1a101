"""Texts a second beside other libraries, on the same texts in one run: `flaxsent bench`.

`texts.py` makes the model and the texts, `peers.py` the libraries, `rounds.py` times them, `report.py` tells.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flaxsent.base import FlaxsentError
from flaxsent.bench import machine, peers
from flaxsent.bench.peers import OURS, PEERS, Source
from flaxsent.bench.report import CLAIM_ROUNDS, Efficiency, Report, Result
from flaxsent.bench.rounds import Timing, measure, or_skipped
from flaxsent.bench.texts import workloads, write_model
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load
from flaxsent.engine import Stats
from flaxsent.models.config import ModelConfig

NUM_TEXTS, NUM_TEXTS_ON_ACCELERATOR = 320, 16384

BUDGET = 1800
"""Seconds; without a number of rounds, those that would end later are left out."""


def run(
    model: str | os.PathLike | None = None,
    *,
    names: Sequence[str] | None = None,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures flaxsent and its peers.

    Args:
        model: folder or Hub id; None is a model of DistilBERT's size with random weights.
        names: of peers, out of `PEERS`; all of them by default. One that is not installed, or fails, is skipped.
        texts: a file with a text on each line; None is made-up texts as long as those of SST-2 and of IMDb.
        num_texts: how many texts, and one seventh as many of those as long as IMDb's; `NUM_TEXTS` by default.
        rounds: how often each is timed; by default five times, or less often where that would take more than `BUDGET`.
        report: called with a line on what goes on.

    Raises:
        FlaxsentError: no such peer, a number that is not positive, or a model or texts that cannot be measured.
        Whatever `load` raises.
    """
    names = [*PEERS] if names is None else [*names]
    if unknown := [name for name in names if name not in PEERS]:
        raise FlaxsentError(f"there is no peer {', '.join(unknown)}; expected some of {', '.join(PEERS)}.")
    if rounds is not None and rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    if num_texts is None:
        num_texts = NUM_TEXTS if machine.is_on_cpu() else NUM_TEXTS_ON_ACCELERATOR
    begin, skipped = time.perf_counter(), {}
    measured = workloads(texts, num_texts)

    def tell(line: str) -> None:
        report(f"{time.perf_counter() - begin:4.0f} s  {line}")

    if rounds is None:
        tell(f"up to {CLAIM_ROUNDS} rounds, or as many as fit into {BUDGET // 60} minutes")
    with TemporaryDirectory() as scratch:
        tell("opening the model")
        source = _open(model, Path(scratch))
        stats: dict[str, list[Stats]] = {name: [] for name in OURS}
        predictors = {name: peers.flaxsent(source.folder, dtype, stats[name]) for name, dtype in OURS.items()}
        for name in names:
            tell(f"preparing {name}")
            with or_skipped(name, skipped, tell):
                predictors[name] = peers.make(PEERS[name], source)
        peak, results = dict.fromkeys(OURS.values(), 0.0), []
        for number, workload in enumerate(measured, start=1):
            until = begin + BUDGET * number / len(measured) if rounds is None else math.inf
            for windows in stats.values():
                windows.clear()
            encodings = source.classifier.tokenizer.encode(workload.texts)
            lengths = encodings.lengths
            timings = measure(
                workload, predictors, rounds=rounds or CLAIM_ROUNDS, until=until, skipped=skipped, report=tell
            )
            efficiencies = {
                name: _efficiency(timings[name], stats[name], lengths, source.classifier.config) for name in OURS
            }
            tell("measuring the fastest matrix product")
            peak = {dtype: max(best, machine.matrix_peak(dtype)) for dtype, best in peak.items()}
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
    return Report(
        model="DistilBERT's size, random weights" if model is None else str(model),
        machine=machine.describe(),
        versions=machine.versions(),
        peak=peak,
        skipped=skipped,
        results=results,
    )


def _open(model: str | os.PathLike | None, scratch: Path) -> Source:
    if model is None:
        write_model(scratch)
    folder = scratch if model is None else hub.find(model)
    classifier = load(folder)
    if classifier.config.num_labels < 2:
        raise FlaxsentError(f"{model} gives one number for a text; expected labels, by which peers are compared.")
    return Source(folder, classifier, scratch)


def _efficiency(timing: Timing, windows: Sequence[Stats], lengths: Sequence[int], config: ModelConfig) -> Efficiency:
    seconds = statistics.median(timing.seconds)
    operations = machine.operations(lengths, config)
    return Efficiency(
        tokens_per_second=sum(lengths) / seconds,
        real_share=sum(window.num_tokens for window in windows) / sum(window.num_places for window in windows),
        operations_per_second=None if operations is None else operations / seconds,
    )
