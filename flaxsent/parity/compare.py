"""The numbers against PyTorch, as a table that a user can run: `flaxsent parity [MODEL ...]`.

Without names, every family is checked on a tiny random model (`random_checkpoint`): awkward sizes, weights as large as
trained ones, since freshly initialised weights give logits near 0, which hide errors. Needs PyTorch.
"""

import contextlib
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from flaxsent import models
from flaxsent.base import Backend, Encodings, Text
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.models import flax_auto
from flaxsent.models.config import read_config
from flaxsent.packing import pack, pad, unpack
from flaxsent.parity.random_checkpoints import CONFIGS, random_checkpoint

INSTALL = "pip install torch"

TOLERANCES = {"float32": 2e-5, "bfloat16": 5e-2}
"""Largest |logit difference| for logits of size 1 to 10: float32 sums in another order, bfloat16 has 8 bits."""


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
    """Of the texts whose two best logits PyTorch has further apart than both may move."""

    @property
    def passes(self) -> bool:
        return self.difference <= TOLERANCES[self.dtype] and self.same_labels


def check_installed() -> None:
    """Raises ImportError with the command that installs PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError as err:
        raise ImportError(f"parity compares with PyTorch, which is not installed: {INSTALL}") from err


def run(models: Sequence[str] = ()) -> Iterator[Cell]:
    """Compares the checkpoints named, or a tiny random one of each family.

    Raises:
        ImportError: PyTorch is not installed; the message has its command.
        Whatever `load` raises.
    """
    check_installed()
    for model in models:
        yield from check(hub.find(model), name=model)
    if not models:
        for family in families():
            with TemporaryDirectory() as folder:
                random_checkpoint(Path(folder), family)
                yield from check(Path(folder), name=family)


def families() -> list[str]:
    """Those that can run here: some are in transformers 4's Flax classes only."""
    return [family for family in CONFIGS if family in models.FAMILIES or flax_auto.is_installed()]


def check(folder: Path, *, name: str, backends: Sequence[Backend] | None = None) -> Iterator[Cell]:
    """Compares a checkpoint folder with PyTorch: backends × float32, bfloat16 × eager, jit, packed × single, pair."""
    with quietly():
        theirs = {kind: _pytorch_logits(folder, texts) for kind, texts in _TEXTS.items()}
    for backend in backends or backends_of(folder):
        for dtype in TOLERANCES:
            classifier = load(folder, backend=backend, dtype=dtype)
            for mode, logits in _MODES.items():
                if mode == "packed" and backend == "flax":
                    continue  # a Flax module reads one text a row
                for kind, texts in _TEXTS.items():
                    with quietly():
                        ours = np.asarray(logits(classifier, classifier.tokenizer.encode(texts)))
                    yield Cell(
                        model=name,
                        backend=backend,
                        dtype=dtype,
                        mode=mode,
                        texts=kind,
                        size=float(np.abs(theirs[kind]).max()),
                        difference=float(np.abs(ours - theirs[kind]).max()),
                        same_labels=_has_labels_of(ours, theirs[kind], tolerance=TOLERANCES[dtype]),
                    )


def _has_labels_of(ours: Float[np.ndarray, "B C"], theirs: Float[np.ndarray, "B C"], *, tolerance: float) -> bool:
    """Whether the labels agree that rounding cannot turn."""
    second_B, best_B = np.partition(theirs, -2, axis=-1)[:, -2:].T if theirs.shape[-1] > 1 else (-np.inf, theirs[:, 0])
    is_clear_B = best_B - second_B > 2 * tolerance
    return bool((ours.argmax(-1) == theirs.argmax(-1))[is_clear_B].all())


def backends_of(folder: Path) -> list[Backend]:
    """The backends that have the family of a checkpoint and are installed."""
    family = read_config((folder / "config.json").read_text(encoding="utf-8")).family
    has: dict[Backend, bool] = {
        "flax": family in flax_auto.FAMILIES and flax_auto.is_installed(),
        "native": family in models.FAMILIES,
    }
    return [backend for backend, there in has.items() if there]


def table(cells: Sequence[Cell]) -> str:
    """One line for each model, backend and dtype, one column for each mode and kind of texts."""
    columns = [(mode, kind) for mode in _MODES for kind in _TEXTS]
    head = f"{'largest |logit difference|':36}{'|logit|':>8}"
    lines = [head + "".join(f"{f'{mode} {kind}':>16}" for mode, kind in columns)]
    rows: dict[tuple[str, str, str], dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.model, cell.backend, cell.dtype), {})[cell.mode, cell.texts] = cell
    for (model, backend, dtype), row in rows.items():
        marks = [row.get(column) for column in columns]
        texts = ["–" if cell is None else f"{cell.difference:.1e} {'ok' if cell.passes else 'FAIL'}" for cell in marks]
        size = max(cell.size for cell in row.values())
        lines.append(f"{model:20} {backend:6} {dtype:8}{size:8.1f}" + "".join(f"{text:>16}" for text in texts))
    failed = sum(not cell.passes for cell in cells)
    limits = ", ".join(f"{dtype} within {tolerance:.0e}" for dtype, tolerance in TOLERANCES.items())
    lines.append(
        f"{len(cells) - failed} of {len(cells)} comparisons pass: {limits}, and the labels where they are no close call"
    )
    return "\n".join(lines)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Other libraries warn, log and print; the tokenizer logs at each call that texts were cut."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(disabled)


def _eager(classifier: Classifier, encodings: Encodings) -> Float[Array, "B C"]:
    return classifier.forward(classifier.params, pad(encodings))


def _jit(classifier: Classifier, encodings: Encodings) -> Float[Array, "B C"]:
    return jax.jit(classifier.forward)(classifier.params, pad(encodings))


def _packed(classifier: Classifier, encodings: Encodings) -> Float[np.ndarray, "B C"]:
    tokens, placement = pack(encodings, row_length=classifier.tokenizer.max_length)
    forward = jax.jit(classifier.forward_packed, static_argnums=2)
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


def _pytorch_logits(folder: Path, texts: Sequence[Text]) -> Float[np.ndarray, "B C"]:
    """Row by row, unpadded: the plainest use of PyTorch that there is."""
    import torch

    classifier = load(folder)  # refuses what could run code, before transformers reads the config
    model = pytorch_model(folder, dtype="float32", attention="eager")
    rows = []
    for ids, type_ids in zip(*classifier.tokenizer.encode(texts)[:2], strict=True):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in inspect.signature(model.forward).parameters:
            inputs["token_type_ids"] = torch.tensor([type_ids])
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].numpy())
    return np.stack(rows)


def pytorch_model(folder: Path, *, dtype: str, attention: str | None = None) -> Any:
    """PyTorch's model of a folder whose config `load` did not refuse; `attention` is transformers' choice if None."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    shows_progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
        ).eval()
    finally:
        if shows_progress:
            transformers_logging.enable_progress_bar()
