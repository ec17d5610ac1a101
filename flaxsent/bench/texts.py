"""What is measured: made-up texts of known lengths, the lines of a file, and a model with random weights."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import tokenizers
from jaxtyping import Float

from flaxsent import models
from flaxsent.base import Backend, FlaxsentError
from flaxsent.bench.machine import is_on_cpu
from flaxsent.checkpoint import hub, weights
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.engine import Engine
from flaxsent.files import EMBEDDED
from flaxsent.models.config import read_config
from flaxsent.parity.random_checkpoints import random_params


class Workload(NamedTuple):
    """Texts that are measured together."""

    name: str
    texts: list[str]


NUM_TEXTS, NUM_TEXTS_ON_ACCELERATOR = 320, 16384


def workloads(file: str | os.PathLike | None, num_texts: int | None) -> list[Workload]:
    """The texts of a file, or made-up ones: `num_texts` short ones, and one seventh as many long ones.

    Of None there are `NUM_TEXTS`.

    Raises:
        FlaxsentError: `num_texts` is less than 1, or the file has no texts.
        OSError: the file cannot be read.
    """
    if num_texts is None:
        num_texts = NUM_TEXTS if is_on_cpu() else NUM_TEXTS_ON_ACCELERATOR
    if num_texts < 1:
        raise FlaxsentError(f"num_texts={num_texts}: expected a positive number.")
    if file is not None:
        return [Workload(Path(file).name, read_texts(file, num_texts))]
    return [Workload(name, make_texts(draw, max(num_texts // divisor, 1))) for name, draw, divisor in _MADE_UP]


def of_length(num_tokens: int, *, is_mixed: bool = False) -> Workload:
    """Texts of so many tokens each, or of up to as many if `is_mixed`; together as many tokens whatever the length."""
    total = _TOKENS if is_on_cpu() else _TOKENS_ON_ACCELERATOR

    def draw(rng: np.random.Generator, num_texts: int) -> Float[np.ndarray, " B"]:
        deviation = 0.8 if is_mixed else 0.0
        median = num_tokens / 4 if is_mixed else num_tokens
        return np.clip(rng.lognormal(np.log(median), deviation, num_texts), min(16, num_tokens), num_tokens)

    mean = draw(np.random.default_rng(0), 1000).mean()
    name = f"up to {num_tokens:,} tokens" if is_mixed else f"{num_tokens:,} tokens"
    return Workload(name, make_texts(draw, max(round(total / mean), 1)))


_TOKENS, _TOKENS_ON_ACCELERATOR = 1 << 13, 1 << 20


Draw = Callable[[np.random.Generator, int], Float[np.ndarray, " B"]]
"""`draw(rng, num_texts)`: lengths in tokens."""


def like_sst2(rng: np.random.Generator, num_texts: int) -> Float[np.ndarray, " B"]:
    """SST-2's 872 dev sentences have 25.2 tokens on average (deviation 10.4), 55 at most."""
    return np.clip(rng.gamma(5.9, 4.27, num_texts), 4, 60)


def like_imdb(rng: np.random.Generator, num_texts: int) -> Float[np.ndarray, " B"]:
    """230 tokens on average, with a long tail that is cut."""
    return np.clip(rng.lognormal(np.log(200), 0.6, num_texts), 16, 512)


_MADE_UP = (("sst2-like", like_sst2, 1), ("imdb-like", like_imdb, 7))
"""Name, lengths, and what `num_texts` is divided by: one long text takes about as long as seven short ones."""


def make_texts(draw: Draw, num_texts: int) -> list[str]:
    """Different texts of English words, frequent words more often than rare ones; the same texts at each call."""
    words = _words()
    frequencies = 1 / np.arange(10, len(words) + 10)
    frequencies /= frequencies.sum()
    rng = np.random.default_rng(0)
    # Every hundredth of many draws: so even ten texts have the mean of the distribution.
    lengths = rng.permutation(np.sort(draw(rng, 100 * num_texts))[50::100]).round().astype(int)
    texts: dict[str, None] = {}
    for length in lengths:
        text = None
        while text is None or text in texts:
            drawn = rng.choice(words, length - 3, p=frequencies)  # [CLS], the full stop, [SEP]
            text = " ".join([*drawn, "."])
        texts[text] = None
    return [*texts]


def numbered_texts(num_texts: int) -> Iterator[str]:
    """Any number of different texts of 5 to 12 words, made one by one."""
    words = _words()
    rng = np.random.default_rng(0)
    for number in range(num_texts):
        yield f"{number} {' '.join(rng.choice(words, rng.integers(4, 12)))}"


def _words() -> np.ndarray:
    """The embedded checkpoint's vocabulary (BERT's): the frequent words come first."""
    vocabulary = tokenizers.Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")).get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    return np.array([piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 1])


def read_texts(file: str | os.PathLike, num_texts: int) -> list[str]:
    """The first different lines of a file: repeated texts would favour libraries that compute them once.

    Raises:
        FlaxsentError: it has none, or is not UTF-8 text.
        OSError: it cannot be read.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as err:
        raise FlaxsentError(f"{file} is not UTF-8 text: {err}; convert it first.") from err
    texts = [*dict.fromkeys(line for line in lines if line.strip())][:num_texts]
    if not texts:
        raise FlaxsentError(f"{file} has no text; expected one on each line.")
    return texts


class Opened(NamedTuple):
    """The model that is measured."""

    name: str
    folder: Path
    classifier: Classifier


def open_model(
    model: str | os.PathLike | None,
    scratch: Path,
    *,
    dtype: str | None = None,
    backend: Backend | None = None,
    size: str = "DistilBERT",
    **changes: Any,
) -> Opened:
    """That of a folder or of the Hub; None is one that is written to `scratch`, as `write_model` does.

    Raises: as `hub.find_whole` and `load`.
    """
    if model is None:
        write_model(scratch, size=size, **changes)
        return Opened(f"{size}'s size, random weights", scratch, load(scratch, dtype=dtype, backend=backend))
    folder = hub.find_whole(model)
    return Opened(str(model), folder, load(folder, dtype=dtype, backend=backend))


_LABELS = {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
SIZES: dict[str, dict[str, Any]] = {
    "DistilBERT": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForSequenceClassification"],
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "max_position_embeddings": 512,
    },
    "BERT-base": {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
    },
    "ModernBERT-base": {
        "model_type": "modernbert",
        "architectures": ["ModernBertForSequenceClassification"],
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "cls_token_id": 101,
        "bos_token_id": 101,
        "sep_token_id": 102,
        "eos_token_id": 102,
    },
}
"""The config.json of models that are made up, but for vocabulary and labels."""


def write_model(folder: Path, *, size: str = "DistilBERT", **changes: Any) -> None:
    """Writes a model of one of `SIZES` with random weights and the embedded checkpoint's vocabulary, BERT's.

    About half the texts of `make_texts` get each label. `changes` go into its config.json.
    """
    tokenizer = (EMBEDDED / "tokenizer.json").read_bytes()
    vocab_size = tokenizers.Tokenizer.from_buffer(tokenizer).get_vocab_size()
    raw = SIZES[size] | _LABELS | {"vocab_size": vocab_size} | changes
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_bytes(tokenizer)
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": raw["max_position_embeddings"]}
    if size != "BERT-base":  # transformers' pipeline passes on what the tokenizer gives
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": True}))
    tensors = dict(weights.to_tensors(random_params(models.shapes(read_config(json.dumps(raw))))))
    # Positions as large as words would make all long texts alike.
    for name in tensors:
        if name.endswith("position_embeddings.weight"):
            tensors[name] = tensors[name] * np.float32(0.1)
    safetensors.numpy.save_file(tensors, folder / weights.SAFETENSORS, metadata={"format": "pt"})
    classifier = load(folder)
    rows = {"row_lengths": [classifier.tokenizer.max_length], "tokens_per_step": classifier.tokenizer.max_length}
    with Engine(classifier, function=classifier.logits, **rows) as engine:  # one shape: compiling takes longest
        logits_BC = engine([*make_texts(like_sst2, 32), *make_texts(like_imdb, 32)])
    tensors["classifier.bias"] = tensors["classifier.bias"] - np.median(logits_BC, axis=0)
    safetensors.numpy.save_file(tensors, folder / weights.SAFETENSORS, metadata={"format": "pt"})
