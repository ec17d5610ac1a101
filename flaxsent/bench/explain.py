"""Explanations a second beside Captum's, of the same model and texts in one run: `flaxsent bench --explain`."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.bench import beside
from flaxsent.bench.beside import Figures
from flaxsent.bench.beside import table as table
from flaxsent.bench.beside import to_json as to_json
from flaxsent.bench.peers import pytorch_device
from flaxsent.bench.texts import open_model, workloads
from flaxsent.classifier import Classifier
from flaxsent.files import require
from flaxsent.packing import PACKED_ROW, pad, select
from flaxsent.parity import pytorch
from flaxsent.placement import tokens_at_once
from flaxsent.transforms.explain import integrated_gradients

NUM_TEXTS = 32

Scores = list[Float[np.ndarray, " T"]]
"""Those of the tokens of each text."""


def run(
    model: str | os.PathLike | None = None,
    *,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    steps: int = 50,
    report: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Both explain the first label, from [PAD] tokens, in as many steps by the same rule; see `beside.compare`.

    Raises:
        FlaxsentError: a number that is not positive, or a family whose embeddings are not one module in PyTorch.
        MissingPackageError: PyTorch or Captum is not installed.
        Whatever `load` raises.
    """
    require("torch", needed_by="the comparison", install="torch")
    require("captum", needed_by="the comparison", install="captum")
    workload, *_ = workloads(texts, NUM_TEXTS if num_texts is None else num_texts)
    with TemporaryDirectory() as scratch:
        report("opening the model")
        opened = open_model(model, Path(scratch), backend="native")
        classifier = opened.classifier
        num_tokens = sum(classifier.tokenizer.encode(workload.texts).lengths)
        return beside.compare(
            opened,
            _captum(opened.folder, classifier, steps),
            workload.texts,
            function=integrated_gradients(
                classifier,
                label=classifier.config.labels[0],
                steps=steps,
                tokens_at_once=tokens_at_once(jax.local_devices()),
            ),
            tokens_per_step=PACKED_ROW,
            scores=lambda results: results.scores,
            difference=lambda ours, found: max(float(np.abs(a - b).max()) for a, b in zip(ours, found, strict=True)),
            peer="captum",
            start=1,
            rounds=rounds,
            report=report,
            setting=f"integrated gradients with {steps} steps of {len(workload.texts)} texts, {num_tokens} tokens",
            unit="explanations",
            batch_unit="texts",
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
