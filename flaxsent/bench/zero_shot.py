"""Texts a second with labels named at run time, beside transformers' pipeline: `flaxsent bench --zero-shot`."""

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from flaxsent.base import FlaxsentError
from flaxsent.bench import machine
from flaxsent.bench.machine import is_on_cpu, seconds
from flaxsent.bench.peers import pytorch_device
from flaxsent.bench.rounds import try_batch_sizes
from flaxsent.bench.texts import workloads, write_model
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load
from flaxsent.engine import Engine
from flaxsent.files import require
from flaxsent.parity import pytorch
from flaxsent.transforms.zero_shot import zero_shot

LABELS = (
    "sports",
    "politics",
    "science",
    "business",
    "health",
    "technology",
    "travel",
    "food",
    "entertainment",
    "the environment",
)
NUM_TEXTS, ROUNDS = 64, 5

_NLI = ("contradiction", "neutral", "entailment")


class Figures(NamedTuple):
    """The scores of `LABELS`, by flaxsent and by transformers."""

    model: str
    machine: str
    versions: dict[str, str]
    num_texts: int
    flaxsent: list[float]
    """Seconds for all texts, one a round."""
    transformers: list[float]
    batch_size: int
    """The pipeline's best: so many pairs of a text and a label at a time."""
    difference: float
    """The largest between two scores."""

    @property
    def ratio(self) -> float:
        """How many times as fast flaxsent is: the median of what each round says."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.flaxsent, self.transformers, strict=True))


def run(
    model: str | os.PathLike | None = None,
    *,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Looks for the pipeline's best batch size, shows both every text once, then times rounds in which both take turns.

    Args:
        model: folder or Hub id of an NLI checkpoint; None is a model of DistilBERT's size with random weights.
        texts: a file with a text on each line; None is made-up texts as long as those of SST-2.
        num_texts: how many texts; `NUM_TEXTS` by default.
        rounds: how often both are timed; `ROUNDS` by default.
        report: called with a line on what goes on.

    Raises:
        FlaxsentError: a number that is not positive, or a checkpoint that is no NLI model.
        MissingPackageError: PyTorch is not installed.
        Whatever `load` raises.
    """
    if rounds is not None and rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    require("torch", needed_by="the comparison", install="torch")
    workload, *_ = workloads(texts, NUM_TEXTS if num_texts is None else num_texts)
    with TemporaryDirectory() as scratch:
        report("opening the model")
        if model is None:
            names = dict(enumerate(_NLI))
            write_model(Path(scratch), id2label=names, label2id={name: index for index, name in names.items()})
        folder = Path(scratch) if model is None else hub.find(model)
        classifier = zero_shot(load(folder, backend="native"), LABELS)
        theirs = _pipeline(folder, classifier.tokenizer.max_length)
        devices = jax.local_devices() if is_on_cpu() else jax.local_devices()[:1]
        with Engine(classifier, devices=devices) as engine:
            report("warming up flaxsent")
            expected = engine(workload.texts)
            report("looking for the batch size of transformers")
            sample = workload.texts[: max(len(workload.texts) // 4, 1)]
            tried = try_batch_sizes(
                lambda size: seconds(lambda: theirs(sample, size)),
                start=8,
                largest=1 << (len(sample) * len(LABELS) - 1).bit_length(),
            )
            batch_size = min(tried, key=tried.__getitem__)
            found = theirs(workload.texts, batch_size)
            taken: dict[str, list[float]] = {"flaxsent": [], "transformers": []}
            for number in range(1, (rounds or ROUNDS) + 1):
                report(f"round {number} of {rounds or ROUNDS}")
                taken["flaxsent"].append(seconds(lambda: engine(workload.texts)))
                taken["transformers"].append(seconds(lambda: theirs(workload.texts, batch_size)))
    return Figures(
        model="DistilBERT's size, random weights" if model is None else str(model),
        machine=machine.describe(),
        versions=machine.versions(),
        num_texts=len(workload.texts),
        batch_size=batch_size,
        difference=float(np.abs(expected - found).max()),
        **taken,
    )


def _pipeline(folder: Path, limit: int) -> Callable[[Sequence[str], int], Float[np.ndarray, "B L"]]:
    """`scores(texts, batch_size)` by transformers, the texts sorted by length: it pads a batch to its longest pair."""
    import torch
    from transformers import AutoTokenizer, pipeline

    with pytorch.silenced():
        theirs = pytorch.model(folder, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, model_max_length=limit
        )
        classify: Any = pipeline(
            "zero-shot-classification", model=theirs, tokenizer=tokenizer, device=torch.device(pytorch_device(torch))
        )

    def scores(texts: Sequence[str], batch_size: int) -> Float[np.ndarray, "B L"]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        with pytorch.silenced():
            told = classify([texts[index] for index in order], candidate_labels=[*LABELS], batch_size=batch_size)
        found = np.zeros((len(texts), len(LABELS)))
        for index, one in zip(order, told, strict=True):
            by_label = dict(zip(one["labels"], one["scores"], strict=True))
            found[index] = [by_label[label] for label in LABELS]
        return found

    return scores


def table(figures: Figures) -> str:
    """The figures, line by line."""
    lines = [figures.model, figures.machine, ", ".join(f"{name} {one}" for name, one in figures.versions.items())]
    lines.append(f"{len(LABELS)} labels for each of {figures.num_texts} texts; {len(figures.flaxsent)} rounds")
    for name in ("transformers", "flaxsent"):
        each = getattr(figures, name)
        batch = f", {figures.batch_size} pairs at a time" if name == "transformers" else ""
        lines.append(f"{name:12} {figures.num_texts / statistics.median(each):8.2f} texts/s{batch}")
    lines.append(
        f"flaxsent is {figures.ratio:.2f} times as fast; no score differs by more than {figures.difference:.0e}"
    )
    return "\n".join(lines)


def to_json(figures: Figures) -> dict[str, Any]:
    """Every figure."""
    return figures._asdict() | {"ratio": figures.ratio}
