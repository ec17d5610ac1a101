"""Models of two sizes beside PyTorch on a GPU, on short, long and very long texts: `flaxsent bench --gpu`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from flaxsent.base import FlaxsentError
from flaxsent.bench import report as told
from flaxsent.bench.machine import is_on_gpu
from flaxsent.bench.report import Report
from flaxsent.bench.speed import compare
from flaxsent.bench.texts import Workload, of_length
from flaxsent.classifier import Classifier

LENGTHS = {"BERT-base": (128, 512), "ModernBERT-base": (128, 512, 8192)}
"""In tokens, of the sizes of `texts.SIZES`; each is measured with texts up to as long."""
OURS_ON_GPU = {"flaxsent-bf16": "bfloat16"}
PEERS_ON_GPU = ("torch-bf16", "torch-compiled-bf16", "torch-flash-bf16")
BUDGET = 240
"""Seconds for each size, but for what is prepared and the first round; machines with a GPU are lent by the minute, so
float32 is not measured either."""


def run(
    *,
    peers: Sequence[str] | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Report]:
    """A report for each size of model.

    Raises:
        FlaxsentError: JAX is not on a GPU, there is no such peer, or `rounds` is not positive.
    """
    if not is_on_gpu():
        raise FlaxsentError(
            f"bench --gpu needs a GPU, and JAX is on {jax.default_backend()}: run it where there is one, with "
            '"jax[cuda12]" installed.'
        )
    return [
        compare(
            None,
            functools.partial(_measured, lengths=lengths),
            peers=PEERS_ON_GPU if peers is None else peers,
            rounds=rounds,
            report=report,
            budget=BUDGET,
            ours=OURS_ON_GPU,
            size=size,
        )
        for size, lengths in LENGTHS.items()
    ]


def _measured(classifier: Classifier, *, lengths: Sequence[int]) -> list[Workload]:
    del classifier
    return [of_length(length, is_mixed=True) for length in lengths]


def table(reports: Sequence[Report]) -> str:
    """One report after the other."""
    return "\n\n".join(map(told.table, reports))


def to_json(reports: Sequence[Report]) -> dict[str, Any]:
    """Every figure."""
    return {"reports": [told.to_json(report) for report in reports]}
