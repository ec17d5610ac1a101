"""Explanations a second beside Captum's, of the same model and texts in one run: `flaxsent bench --explain`."""

import inspect
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.bench import machine
from flaxsent.bench.machine import is_on_cpu, seconds
from flaxsent.bench.peers import pytorch_device
from flaxsent.bench.rounds import try_batch_sizes
from flaxsent.bench.texts import workloads, write_model
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.engine import Engine
from flaxsent.files import require
from flaxsent.packing import pad, select
from flaxsent.parity import pytorch
from flaxsent.transforms.explain import integrated_gradients

NUM_TEXTS, ROUNDS = 32, 5

Scores = list[Float[np.ndarray, " T"]]
"""Those of the tokens of each text."""


class Figures(NamedTuple):
    """Integrated gradients of a label, by flaxsent and by Captum."""

    model: str
    machine: str
    versions: dict[str, str]
    num_texts: int
    num_tokens: int
    steps: int
    flaxsent: list[float]
    """Seconds for all texts, one a round."""
    captum: list[float]
    batch_size: int
    """Captum's best: so many texts at a time, each with all its steps."""
    difference: float
    """The largest between the scores of a token."""

    @property
    def ratio(self) -> float:
        """How many times as fast flaxsent is: the median of what each round says."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.flaxsent, self.captum, strict=True))


def run(
    model: str | os.PathLike | None = None,
    *,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    steps: int = 50,
    report: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Looks for Captum's best batch size, shows both every text once, then times rounds in which each has its turn.

    Both explain the first label, from [PAD] tokens, in as many steps by the same rule.

    Raises:
        FlaxsentError: a number that is not positive, or a family whose embeddings are not one module in PyTorch.
        MissingPackageError: PyTorch or Captum is not installed.
        Whatever `load` raises.
    """
    if rounds is not None and rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    require("torch", needed_by="the comparison", install="torch")
    require("captum", needed_by="the comparison", install="captum")
    workload, *_ = workloads(texts, NUM_TEXTS if num_texts is None else num_texts)
    with TemporaryDirectory() as scratch:
        report("opening the model")
        if model is None:
            write_model(Path(scratch))
        folder = Path(scratch) if model is None else hub.find(model)
        classifier = load(folder, backend="native")
        theirs = _captum(folder, classifier, steps)
        function = integrated_gradients(classifier, label=classifier.config.labels[0], steps=steps)
        devices = jax.local_devices() if is_on_cpu() else jax.local_devices()[:1]
        with Engine(classifier, function=function, devices=devices) as engine:
            report("warming up flaxsent")
            expected = engine(workload.texts).scores
            report("looking for the batch size of Captum")
            sample = workload.texts[: max(len(workload.texts) // 4, 1)]
            tried = try_batch_sizes(
                lambda size: seconds(lambda: theirs(sample, size)), start=1, largest=1 << (len(sample) - 1).bit_length()
            )
            batch_size = min(tried, key=tried.__getitem__)
            found = theirs(workload.texts, batch_size)
            taken: dict[str, list[float]] = {"flaxsent": [], "captum": []}
            for number in range(1, (rounds or ROUNDS) + 1):
                report(f"round {number} of {rounds or ROUNDS}")
                taken["flaxsent"].append(seconds(lambda: engine(workload.texts)))
                taken["captum"].append(seconds(lambda: theirs(workload.texts, batch_size)))
    return Figures(
        model="DistilBERT's size, random weights" if model is None else str(model),
        machine=machine.describe(),
        versions=machine.versions(),
        num_texts=len(workload.texts),
        num_tokens=sum(map(len, expected)),
        steps=steps,
        batch_size=batch_size,
        difference=max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)),
        **taken,
    )


def _captum(folder: Path, classifier: Classifier, steps: int) -> Callable[[Sequence[str], int], Scores]:
    """`scores(texts, batch_size)` by Captum, in batches of texts of like length, each padded to its longest."""
    import torch
    from captum.attr import LayerIntegratedGradients

    device = pytorch_device(torch)
    with pytorch.silenced():
        model = pytorch.model(folder, dtype="float32").to(device).requires_grad_(False)
    layer = getattr(getattr(model, models.base(classifier.config), None), "embeddings", None)
    if layer is None:
        raise FlaxsentError(f"the embeddings of {classifier.config.family} are not one module; choose another model.")
    taken = inspect.signature(model.forward).parameters
    names = [name for name in ("attention_mask", "token_type_ids", "position_ids") if name in taken]

    def logits(ids: Any, *more: Any) -> Any:
        return model(input_ids=ids, **dict(zip(names, more, strict=True))).logits

    gradients, backend = LayerIntegratedGradients(logits, layer), classifier.tokenizer.backend
    kept = sorted({id for encoding in backend.encode_batch(["", ("", "")]) for id in encoding.ids})

    def scores(texts: Sequence[str], batch_size: int) -> Scores:
        encodings = classifier.tokenizer.encode(texts)
        lengths, found = encodings.lengths, {}
        order = sorted(range(len(texts)), key=lambda index: -lengths[index])
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = pad(select(encodings, chosen))
            ids, *more = (
                torch.tensor(getattr(batch, name), dtype=torch.int64, device=device) for name in ("input_ids", *names)
            )
            start = torch.where(torch.isin(ids, torch.tensor(kept, device=device)), ids, encodings.pad_token_id)
            with pytorch.silenced():
                by_token: Any = gradients.attribute(ids, start, 0, additional_forward_args=tuple(more), n_steps=steps)
            for index, values in zip(chosen, by_token.sum(-1).numpy(force=True), strict=True):
                found[index] = values[: lengths[index]]
        return [found[index] for index in range(len(texts))]

    return scores


def table(figures: Figures) -> str:
    """The figures, line by line."""
    lines = [figures.model, figures.machine, ", ".join(f"{name} {one}" for name, one in figures.versions.items())]
    lines.append(
        f"integrated gradients with {figures.steps} steps of {figures.num_texts} texts, {figures.num_tokens} tokens; "
        f"{len(figures.flaxsent)} rounds"
    )
    for name in ("captum", "flaxsent"):
        each = getattr(figures, name)
        batch = f", {figures.batch_size} texts at a time" if name == "captum" else ""
        lines.append(f"{name:9} {figures.num_texts / statistics.median(each):8.2f} explanations/s{batch}")
    lines.append(
        f"flaxsent is {figures.ratio:.2f} times as fast; no score differs by more than {figures.difference:.0e}"
    )
    return "\n".join(lines)


def to_json(figures: Figures) -> dict[str, Any]:
    """Every figure."""
    return figures._asdict() | {"ratio": figures.ratio}
