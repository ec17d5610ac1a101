"""Checkpoints beside transformers, a row each: ids, logits, scores."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from flaxsent.base import FlaxsentError, Text
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.engine import classify
from flaxsent.files import require
from flaxsent.packing import pack, unpack
from flaxsent.parity import pytorch
from flaxsent.parity.compare import TOLERANCES
from flaxsent.parity.zoo.known import ZOO
from flaxsent.parity.zoo.rebuild import rebuild
from flaxsent.parity.zoo.vocabularies import CORPUS


class Row(NamedTuple):
    """A checkpoint beside transformers: its ids, its logits, its scores."""

    name: str
    family: str
    num_texts: int
    num_same_ids: int
    """Texts and pairs with the ids and token types of `AutoTokenizer`."""
    size: float
    """Largest |logit|."""
    difference: float
    """Largest |logit difference| from PyTorch's on a padded batch, padded and packed here."""
    score_difference: float
    """Largest difference from the scores of transformers' text-classification pipeline."""
    refused: str | None = None
    """What flaxsent says of it, if it does not load it."""

    @property
    def passes(self) -> bool:
        # A probability moves by a quarter of what its logit does, or less; a value as much.
        limit = TOLERANCES["float32"]
        return self.num_same_ids == self.num_texts and self.difference <= limit and self.score_difference <= limit


def run(names: Sequence[str] = (), *, real: bool = False) -> Iterator[Row]:
    """Compares the known checkpoints, or those named, rebuilt small; `real` ones are fetched from the Hub instead.

    Raises:
        MissingPackageError: PyTorch or SentencePiece is not installed.
        ConnectionError: `real`, and the Hub does not answer.
        FlaxsentError: a name is not in the zoo.
    """
    if unknown := [name for name in names if name not in ZOO]:
        raise FlaxsentError(f"the zoo has no {', '.join(unknown)}; it has {', '.join(ZOO)}.")
    require("torch", needed_by="the zoo", install="torch")
    for name in names or ZOO:
        with TemporaryDirectory() as folder:
            if real:
                yield compare(hub.find(name), name=name)
            else:
                rebuild(Path(folder), ZOO[name])
                yield compare(Path(folder), name=name)


def compare(folder: Path, *, name: str) -> Row:
    """Compares a checkpoint folder with transformers: ids, logits, scores."""
    try:
        classifier = load(folder)  # refuses what could run code, before transformers reads the config
    except FlaxsentError as err:
        return Row(name, ZOO[name].family, len(TEXTS), 0, np.nan, np.inf, np.inf, refused=str(err))
    limit = classifier.tokenizer.max_length
    with pytorch.silenced():
        from transformers import AutoTokenizer, pipeline

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = pytorch.model(folder, dtype="float32", attention="eager")
        num_same = sum(_is_same_text(classifier, tokenizer, text, limit) for text in TEXTS)
        theirs = []
        for texts in (SINGLE, PAIRS):
            theirs.append(_their_logits(tokenizer, model, texts, limit))
        pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu")
        scored: Any = pipe(
            [{"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in TEXTS],
            **_arguments(model, limit),
        )
    logits_BC = np.concatenate(theirs)
    ours = classify(TEXTS, classifier, top_k=None)
    score_difference = max(
        abs(dict(zip(mine.labels, mine.scores, strict=True))[entry["label"]] - entry["score"])
        for mine, entries in zip(ours, scored, strict=True)
        for entry in entries
    )
    return Row(
        name,
        classifier.config.family,
        num_texts=len(TEXTS),
        num_same_ids=num_same,
        size=float(np.abs(logits_BC).max()),
        difference=max(float(np.abs(found - logits_BC).max()) for found in _logits(classifier)),
        score_difference=float(score_difference),
    )


def _is_same_text(classifier: Classifier, tokenizer: Any, text: Text, limit: int) -> bool:
    parts = (text,) if isinstance(text, str) else text
    theirs = tokenizer(*parts, truncation=True, max_length=limit)
    mine = classifier.tokenizer.encode([text])
    types = theirs.get("token_type_ids") if classifier.tokenizer.has_token_types else None
    return [*mine.input_ids[0]] == theirs["input_ids"] and types in (None, [*mine.token_type_ids[0]])


def _their_logits(tokenizer: Any, model: Any, texts: Sequence[Any], limit: int) -> np.ndarray:
    """Of padded batches; BART's PyTorch model takes none of texts with different numbers of end tokens."""
    import torch

    is_spelt_B = np.array(["</s>" in "".join(text) for text in texts])
    logits_BC = np.empty((len(texts), model.config.num_labels), np.float32)
    for chosen_B in (is_spelt_B, ~is_spelt_B):
        batch = [text for text, is_chosen in zip(texts, chosen_B, strict=True) if is_chosen]
        inputs = tokenizer(batch, padding=True, return_tensors="pt", **_arguments(model, limit))
        with torch.no_grad():
            logits_BC[chosen_B] = model(**inputs).logits.numpy()
    return logits_BC


def _arguments(model: Any, limit: int) -> dict[str, Any]:
    """Of a call of the tokenizer: KLUE's gives token types that its RoBERTa has not, and PyTorch fails on a pair."""
    has_types = getattr(model.config, "type_vocab_size", 0) != 1
    return {"truncation": True, "max_length": limit} | ({} if has_types else {"return_token_type_ids": False})


def _logits(classifier: Classifier) -> Iterator[np.ndarray]:
    """Padded, then packed where the family can be."""
    tokens = classifier.tokenize(TEXTS)
    yield np.asarray(classifier.forward(classifier.params, tokens))
    if classifier.packs:
        rows, placement = pack(classifier.tokenizer.encode(TEXTS), row_length=classifier.tokenizer.max_length)
        packed = classifier.logits(classifier.params, rows, int(placement.segment.max()) + 1)
        yield unpack(np.asarray(packed), placement)


def table(rows: Sequence[Row]) -> str:
    """One line for each checkpoint."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'checkpoint':{width}} {'family':12}{'same ids':>10}{'|logit|':>9}{'logits':>9}{'scores':>9}"]
    for row in rows:
        told = f"  {row.refused}" if row.refused else ""
        same = f"{row.num_same_ids}/{row.num_texts}"
        lines.append(
            f"{row.name:{width}} {row.family:12}{same:>10}{row.size:>9.1f}{row.difference:>9.1e}"
            f"{row.score_difference:>9.1e}  {'ok' if row.passes else 'FAIL'}{told}"
        )
    lines.append(
        f"{sum(row.passes for row in rows)} of {len(rows)} checkpoints have the ids of AutoTokenizer, and PyTorch's "
        f"logits and the pipeline's scores within {TOLERANCES['float32']:.0e}"
    )
    return "\n".join(lines)


SINGLE = [
    "a",
    *CORPUS,
    *(line.upper() for line in CORPUS),
    "tabs\tand\nnew lines   and spaces ",
    "e\u0301 \u00e9 \ufb01 \u2460 \uff21 \u3000 \u200b \x00 \ufeff zero width",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f1f0\U0001f1f7 emoji",
    "[SEP] </s> <s> [CLS] [MASK] <mask> [unused1] <unk> spelt",
    "'\"`\u201c\u201d\u2018\u2019 don't can't we'll 1,000.50 50% a-b a_b @x #y https://t.co/x",
    "x" * 120,
    "long words " * 60,
]
PAIRS = list(zip(SINGLE, SINGLE[3:] + SINGLE[:3], strict=True))
TEXTS: list[Text] = list(itertools.chain(SINGLE, PAIRS))
"""Several scripts, capitals, spaces, marks and controls, spelt special tokens, long words and long texts; and pairs."""
