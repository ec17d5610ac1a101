"""An epoch of fine-tuning beside PyTorch's, by transformers' Trainer: `flaxsent bench --training`."""

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxsent.base import FlaxsentError
from flaxsent.bench import machine
from flaxsent.bench.beside import ROUNDS
from flaxsent.bench.machine import seconds
from flaxsent.bench.texts import workloads
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.data.labels import Examples
from flaxsent.files import require
from flaxsent.parity import pytorch
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer

NUM_TEXTS, BATCH_SIZE = 5000, 32


class Figures(NamedTuple):
    """Of a run."""

    model: str
    machine: str
    versions: dict[str, str]
    num_texts: int
    num_tokens: int
    flaxsent: list[float]
    """Seconds for an epoch, one a round, after the first one, which compiles."""
    theirs: list[float]
    num_steps: tuple[int, int]
    """Of an epoch: flaxsent's, of packed rows with `BATCH_SIZE` texts on average, and theirs."""
    compiling: float
    """Seconds that flaxsent's first step takes longer than another."""

    @property
    def ratio(self) -> float:
        """How many times as fast flaxsent is: the median of what each round says."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.flaxsent, self.theirs, strict=True))


def run(
    model: str | os.PathLike | None = None,
    *,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Both train all parameters for an epoch by AdamW in float32, in batches of `BATCH_SIZE`, with dropout.

    The labels mean nothing: what a step costs does not depend on them. The Trainer pads each batch to its longest text,
    among texts of like length (`group_by_length`); the tokens are there before the time starts, of both.

    Args:
        model: folder or Hub id of a classifier; None is the embedded one.
        texts: a file with a text on each line; None is made-up texts as long as those of SST-2.
        num_texts: how many texts; `NUM_TEXTS` by default.
        rounds: how often both are timed, in turns.
        report: called with a line on what goes on.

    Raises:
        FlaxsentError: a number that is not positive, or a model that does not give one label of several.
        MissingPackageError: PyTorch, accelerate or the extra `train` is not installed.
        Whatever `load` raises.
    """
    for package in ("torch", "accelerate"):
        require(package, needed_by="the comparison", install=package)
    rounds = ROUNDS if rounds is None else rounds
    if rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    workload, *_ = workloads(texts, NUM_TEXTS if num_texts is None else num_texts)
    folder = hub.find_whole(None if model is None else str(model))
    classifier = load(folder, backend="native" if model is None else None)
    if classifier.config.problem_type != "single_label_classification":
        raise FlaxsentError(f"this model is for {classifier.config.problem_type}; expected one label of several.")
    labels = np.random.default_rng(0).integers(0, classifier.config.num_labels, len(workload.texts)).tolist()
    data = Examples([*workload.texts], labels)
    options = TrainOptions(num_epochs=1, batch_size=BATCH_SIZE)
    trainer = Trainer(classifier, data, options=options)
    report("compiling flaxsent's step")
    compiling = seconds(lambda: _epoch(trainer, num_steps=1)) - seconds(lambda: _epoch(trainer, num_steps=1))
    with TemporaryDirectory() as scratch:
        report("warming PyTorch up")
        few = Examples(data.texts[: 4 * BATCH_SIZE], labels[: 4 * BATCH_SIZE])
        _theirs(folder, classifier, few, Path(scratch))()
        by_us, by_them = [], []
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            by_us.append(seconds(lambda: _epoch(trainer)))
            by_them.append(seconds(_theirs(folder, classifier, data, Path(scratch))))
    return Figures(
        model="the embedded model" if model is None else str(model),
        machine=machine.describe(),
        versions=machine.versions(),
        num_texts=len(data.texts),
        num_tokens=sum(classifier.tokenizer.encode(data.texts, max_length=trainer.max_length).lengths),
        flaxsent=by_us,
        theirs=by_them,
        num_steps=(trainer.num_steps, -(-len(data.texts) // BATCH_SIZE)),
        compiling=compiling,
    )


def _epoch(trainer: Trainer, num_steps: int | None = None) -> None:
    event = None
    for event in trainer.events(trainer.start()):
        if event.step == num_steps:
            break
    jax.block_until_ready(event.snapshot.state.params if event else None)


def _theirs(folder: Path, classifier: Classifier, data: Examples, scratch: Path) -> Callable[[], Any]:
    """An epoch of a new Trainer, whose tokens are the same."""
    import torch
    import transformers

    length = min(TrainOptions.max_length, classifier.tokenizer.max_length)
    encodings = classifier.tokenizer.encode(data.texts, max_length=length)
    with pytorch.silenced():
        model = pytorch.model(folder, dtype="float32")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    names = [name for name in pytorch.input_names(model) if name != "attention_mask"]
    rows = [
        {name: ids for name, ids in zip(("input_ids", "token_type_ids"), each, strict=True) if name in names}
        | {"attention_mask": [1] * len(each[0]), "labels": label}
        for *each, label in zip(encodings.input_ids, encodings.token_type_ids, data.labels, strict=True)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=TrainOptions.learning_rate,
        weight_decay=TrainOptions.weight_decay,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        **_grouped(transformers.TrainingArguments),
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    dataset: Any = rows  # a sequence, which is all that PyTorch needs
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collator)

    trainer.remove_callback(transformers.PrinterCallback)

    def epoch() -> None:
        with pytorch.silenced():
            trainer.train()

    return epoch


def _grouped(arguments: Any) -> dict[str, Any]:
    """Batches of texts of like length, as transformers 4 calls them, or 5."""
    is_old = "group_by_length" in arguments.__dataclass_fields__
    return {"group_by_length": True} if is_old else {"train_sampling_strategy": "group_by_length"}


def table(figures: Figures) -> str:
    """The figures, line by line."""
    lines = [figures.model, figures.machine, ", ".join(f"{name} {one}" for name, one in figures.versions.items())]
    lines.append(
        f"an epoch of {figures.num_texts:,} texts, {figures.num_tokens:,} tokens, {BATCH_SIZE} texts a step; "
        f"{len(figures.flaxsent)} rounds"
    )
    ours, theirs = figures.num_steps
    more = f", and {figures.compiling:.0f} s once for compiling"
    for name, each, told in (
        ("Trainer", figures.theirs, f", {theirs} steps"),
        ("flaxsent", figures.flaxsent, f", {ours} steps{more}"),
    ):
        median = statistics.median(each)
        lines.append(f"{name:12} {median:8.1f} s, {figures.num_texts / median:7.1f} texts/s{told}")
    lines.append(f"flaxsent is {figures.ratio:.2f} times as fast")
    return "\n".join(lines)


def to_json(figures: Figures) -> dict[str, Any]:
    """Every figure."""
    return figures._asdict() | {"ratio": figures.ratio}
