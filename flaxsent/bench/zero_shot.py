"""Texts a second with labels named at run time, beside transformers' pipeline: `flaxsent bench --zero-shot`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.bench import beside
from flaxsent.bench.beside import Figures
from flaxsent.bench.beside import table as table
from flaxsent.bench.beside import to_json as to_json
from flaxsent.bench.peers import pytorch_device
from flaxsent.bench.texts import open_model, workloads
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
NUM_TEXTS = 64

_NLI = ("contradiction", "neutral", "entailment")


def run(
    model: str | os.PathLike | None = None,
    *,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Both score `LABELS` for each text; see `beside.compare`.

    Args:
        model: folder or Hub id of an NLI checkpoint; None is a model of DistilBERT's size with random weights.
        texts: a file with a text on each line; None is made-up texts as long as those of SST-2.
        num_texts: how many texts; `NUM_TEXTS` by default.
        rounds: how often both are timed.
        report: called with a line on what goes on.

    Raises:
        FlaxsentError: a number that is not positive, or a checkpoint that is no NLI model.
        MissingPackageError: PyTorch is not installed.
        Whatever `load` raises.
    """
    require("torch", needed_by="the comparison", install="torch")
    workload, *_ = workloads(texts, NUM_TEXTS if num_texts is None else num_texts)
    names = dict(enumerate(_NLI))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    with TemporaryDirectory() as scratch:
        report("opening the model")
        opened = open_model(model, Path(scratch), backend="native", **labels)
        return beside.compare(
            opened._replace(classifier=zero_shot(opened.classifier, LABELS)),
            _pipeline(opened.folder, opened.classifier.tokenizer.max_length),
            workload.texts,
            difference=lambda ours, found: float(np.abs(ours - found).max()),
            peer="transformers",
            start=8,
            per_text=len(LABELS),
            default_batch_size=1,
            rounds=rounds,
            report=report,
            setting=f"{len(LABELS)} labels for each of {len(workload.texts)} texts",
            unit="texts",
            batch_unit="pairs",
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
