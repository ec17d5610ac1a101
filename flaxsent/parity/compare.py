"""The logits beside PyTorch's, as a table that a user can make: `flaxsent parity [MODEL ...]`.

Without names, every family is checked on a tiny random model (`random_checkpoint`): awkward sizes, and weights as large
as trained ones, since freshly initialised weights give logits near 0, which hide errors. Needs PyTorch.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxsent import models
from flaxsent.base import Backend, Encodings, Text
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.files import require
from flaxsent.models import flax_auto
from flaxsent.models.config import ModelConfig, read_config
from flaxsent.packing import pack, pad, unpack
from flaxsent.parity import pytorch
from flaxsent.parity.random_checkpoints import random_checkpoint
from flaxsent.transforms.quantize import quantize

TOLERANCES = {"float32": 2e-5, "bfloat16": 5e-2, "int8": 1e-1}
"""Largest |logit difference| for logits of size 1 to 10: float32 sums in another order, bfloat16 has 8 bits, and int8
kernels (`transforms.quantize`) have 7 and a sign; they were 6.2e-2 off at most."""


FLAX_BFLOAT16 = 8e-2
"""The same for transformers' Flax classes in bfloat16, which keep softmax and the sums of the layers in it, too. mBART
was 5.3e-2 off on a processor with AVX512_BF16, which rounds each product, and 4.5e-2 where XLA emulates them."""


def tolerance_of(backend: Backend, dtype: str) -> float:
    return FLAX_BFLOAT16 if (backend, dtype) == ("flax", "bfloat16") else TOLERANCES[dtype]


class Cell(NamedTuple):
    """One comparison with PyTorch in float32."""

    model: str
    backend: Backend
    dtype: str
    mode: str
    """eager, jit or packed."""
    texts: str
    """single or pair."""
    size: float
    """Largest |logit|."""
    difference: float
    """Largest |logit difference|."""
    same_labels: bool
    """Whether the best labels agree, of the texts whose two best logits are too far apart for rounding to swap them."""

    @property
    def passes(self) -> bool:
        return self.difference <= tolerance_of(self.backend, self.dtype) and self.same_labels


def run(names: Sequence[str] = ()) -> Iterator[Cell]:
    """Compares the checkpoints named, or a tiny random one of each family that can run here.

    Raises:
        MissingPackageError: PyTorch is not installed; the message has its command.
        Whatever `hub.find_whole` and `load` raise.
    """
    require("torch", needed_by="parity", install="torch")
    for name in names:
        yield from check(hub.find_whole(name), name=name)
    if not names:
        for family in families():
            with TemporaryDirectory() as folder:
                random_checkpoint(Path(folder), family)
                yield from check(Path(folder), name=family)


def families() -> list[str]:
    """Those that can run here: some are in transformers 4's Flax classes only."""
    tiny = {name: read_config(json.dumps(family.tiny_config)) for name, family in models.FAMILIES.items()}
    return [name for name, config in tiny.items() if backends(config)]


def left_out() -> list[str]:
    """The families that cannot run here, for want of Flax."""
    return sorted({*models.FAMILIES} - {*families()})


def backends(config: ModelConfig) -> list[Backend]:
    """Those that compute a model and are installed; flaxsent's own Flax class computes what the native one does."""
    has: dict[Backend, bool] = {
        "flax": flax_auto.uses_theirs(config, jnp.dtype("float32")),
        "native": models.is_native(config),
    }
    return [backend for backend, is_there in has.items() if is_there]


def check(folder: Path, *, name: str) -> Iterator[Cell]:
    """Compares a checkpoint folder with PyTorch: backends × dtypes × eager, jit, packed × single, pair."""
    theirs = {kind: pytorch.logits(folder, texts) for kind, texts in _TEXTS.items()}
    for backend in backends(load(folder).config):
        for dtype in TOLERANCES:
            if dtype == "int8" and backend != "native":
                continue
            classifier = load(folder, backend=backend, dtype="float32" if dtype == "int8" else dtype)
            if dtype == "int8":
                classifier = dataclasses.replace(classifier, params=quantize(classifier.params))
            for mode, logits in _MODES.items():
                if mode == "packed" and backend != "native":
                    continue  # packed rows are computed natively, whatever the backend
                for kind, texts in _TEXTS.items():
                    ours = np.asarray(logits(classifier, classifier.tokenizer.encode(texts)))
                    yield Cell(
                        model=name,
                        backend=backend,
                        dtype=dtype,
                        mode=mode,
                        texts=kind,
                        size=float(np.abs(theirs[kind]).max()),
                        difference=float(np.abs(ours - theirs[kind]).max()),
                        same_labels=has_labels_of(ours, theirs[kind], tolerance=tolerance_of(backend, dtype)),
                    )


def has_labels_of(ours: Float[np.ndarray, "B C"], theirs: Float[np.ndarray, "B C"], *, tolerance: float) -> bool:
    """Whether the best labels agree wherever a difference of `tolerance` in each logit could not swap the best two."""
    second_B, best_B = np.partition(theirs, -2, axis=-1)[:, -2:].T if theirs.shape[-1] > 1 else (-np.inf, theirs[:, 0])
    is_clear_B = best_B - second_B > 2 * tolerance
    return bool((ours.argmax(-1) == theirs.argmax(-1))[is_clear_B].all())


def table(cells: Sequence[Cell]) -> str:
    """One line for each model, backend and dtype, one column for each mode and kind of texts."""
    columns = [(mode, kind) for mode in _MODES for kind in _TEXTS]
    head = f"{'largest |logit difference|':36}{'|logit|':>8}"
    lines = [head + "".join(f"{f'{mode} {kind}':>16}" for mode, kind in columns)]
    records: dict[tuple[str, str, str], dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        records.setdefault((cell.model, cell.backend, cell.dtype), {})[cell.mode, cell.texts] = cell
    for (model, backend, dtype), found in records.items():
        marks = [found.get(column) for column in columns]
        texts = ["–" if cell is None else f"{cell.difference:.1e} {'ok' if cell.passes else 'FAIL'}" for cell in marks]
        size = max(cell.size for cell in found.values())
        lines.append(f"{model:20} {backend:6} {dtype:8}{size:8.1f}" + "".join(f"{text:>16}" for text in texts))
    num_passed = sum(cell.passes for cell in cells)
    limits = ", ".join(f"{dtype} within {tolerance:.0e}" for dtype, tolerance in TOLERANCES.items())
    limits += f" (bfloat16 within {FLAX_BFLOAT16:.0e} for transformers' Flax classes)"
    lines.append(
        f"{num_passed} of {len(cells)} comparisons pass: {limits}, with the same best label unless two are nearly equal"
    )
    return "\n".join(lines)


def _eager(classifier: Classifier, encodings: Encodings) -> Float[Array, "B C"]:
    return classifier.forward(classifier.params, pad(encodings))


def _jit(classifier: Classifier, encodings: Encodings) -> Float[Array, "B C"]:
    return jax.jit(classifier.forward)(classifier.params, pad(encodings))


def _packed(classifier: Classifier, encodings: Encodings) -> Float[np.ndarray, "B C"]:
    tokens, placement = pack(encodings, row_length=classifier.tokenizer.max_length)
    forward = jax.jit(classifier.logits, static_argnums=2)
    return unpack(np.asarray(forward(classifier.params, tokens, int(placement.segment.max()) + 1)), placement)


_MODES: dict[str, Callable[[Classifier, Encodings], Any]] = {"eager": _eager, "jit": _jit, "packed": _packed}

_SENTENCES = (
    "",
    "a",
    "I've been waiting for a HuggingFace course my whole life.",
    "I hate this so much!",
    "not bad at all, though the second half drags",
    "Who knew that 2 hours could feel like 10?",
    "The cast is fine; the script is not.",
    "long " * 600,
)
_TEXTS: dict[str, list[Text]] = {
    "single": list(_SENTENCES),
    "pair": list(zip(_SENTENCES, _SENTENCES[3:] + _SENTENCES[:3], strict=True)),
}
"""Nothing, a word, sentences, and more than any checkpoint takes."""
