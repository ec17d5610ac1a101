"""The same checkpoint in PyTorch: its model, and its logits one text at a time."""

import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.base import Text
from flaxsent.checkpoint.folder import load
from flaxsent.files import quietly, require

LOGGERS = ("torch", "torch.onnx", "transformers")
"""Those with handlers of their own."""


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps what PyTorch and transformers warn, log and print away from the user: standard output is flaxsent's.

    Warnings and standard output are those of the whole process: wrap no more than calls of these libraries.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        for logger in LOGGERS:
            stack.enter_context(quietly(logger))
        yield


def model(folder: Path, *, dtype: str, attention: str | None = None) -> Any:
    """The model of a folder whose config `load` did not refuse; `attention` is transformers' choice if None.

    Raises:
        MissingPackageError: PyTorch is not installed.
    """
    torch = require("torch", needed_by="a comparison with PyTorch", install="torch")
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
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
            logging.enable_progress_bar()


def input_names(model: Any) -> list[str]:
    """Those of `Tokens` that a PyTorch model takes; it makes the positions itself."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in taken]


def logits(folder: Path, texts: Sequence[Text]) -> Float[np.ndarray, "B C"]:
    """Text by text, unpadded, in float32: the plainest use of PyTorch that there is.

    Raises: as `model`.
    """
    torch = require("torch", needed_by="a comparison with PyTorch", install="torch")
    classifier = load(folder)  # refuses what could run code, before transformers reads the config
    rows = []
    with silenced(), torch.no_grad():
        theirs = model(folder, dtype="float32", attention="eager")
        names = input_names(theirs)
        for text in texts:
            tokens = classifier.tokenize([text])
            inputs = {name: torch.tensor(getattr(tokens, name)) for name in names}
            rows.append(theirs(**inputs).logits[0].numpy())
    return np.stack(rows)
