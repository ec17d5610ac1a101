"""The numbers against PyTorch, as a table that a user can run: `flaxsent parity [MODEL ...]`.

Without names, every family is checked on a tiny random model (`random_checkpoint`): awkward sizes, weights as large as
trained ones, since freshly initialised weights give logits near 0, which hide errors. Needs PyTorch.
"""

import contextlib
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from jaxtyping import Array, Float

from flaxsent import checkpoint, encoders, flax_auto
from flaxsent.classifier import Classifier, load
from flaxsent.config import read_config
from flaxsent.packing import pack, unpack
from flaxsent.tokenization import TOKENIZER_FILES
from flaxsent.types import Backend, Encodings, Params, Text

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
        yield from check(checkpoint.find(model, tokenizer_files=TOKENIZER_FILES), name=model)
    if not models:
        for family in families():
            with TemporaryDirectory() as folder:
                random_checkpoint(Path(folder), family)
                yield from check(Path(folder), name=family)


def families() -> list[str]:
    """Those that can run here: some are in transformers 4's Flax classes only."""
    return [family for family in CONFIGS if family in encoders.FAMILIES or flax_auto.is_installed()]


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
        "native": family in encoders.FAMILIES,
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
    return classifier.forward(classifier.params, classifier.pad(encodings))


def _jit(classifier: Classifier, encodings: Encodings) -> Float[Array, "B C"]:
    return jax.jit(classifier.forward)(classifier.params, classifier.pad(encodings))


def _packed(classifier: Classifier, encodings: Encodings) -> Float[np.ndarray, "B C"]:
    config = classifier.config
    tokens, placement = pack(
        encodings,
        row_length=classifier.tokenizer.max_length,
        first_position=config.first_position,
        pad_token_id=config.pad_token_id,
    )
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


_BERT = {
    "vocab_size": 61,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}
_ROBERTA = _BERT | {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 42}
_BART = {
    "vocab_size": 61,
    "d_model": 36,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 44,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "eos_token_id": 3,  # [SEP] of the tokenizer below
    "decoder_start_token_id": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "albert": _BERT | {"embedding_size": 20},
    "bart": _BART,
    "bert": _BERT,
    "big_bird": _BERT | {"block_size": 4, "num_random_blocks": 3},
    "camembert": _ROBERTA,
    "deberta-v2": _BERT
    | {
        "type_vocab_size": 0,
        "position_biased_input": False,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 7,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "distilbert": {
        "vocab_size": 61,
        "dim": 36,
        "n_layers": 3,
        "n_heads": 3,
        "hidden_dim": 50,
        "max_position_embeddings": 40,
    },
    "electra": _BERT | {"embedding_size": 20},
    "mbart": _BART | {"scale_embedding": True},
    "modernbert": {
        "vocab_size": 61,
        "hidden_size": 36,
        "num_hidden_layers": 4,  # global, local, local, global
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "max_position_embeddings": 40,
        "local_attention": 8,
        "pad_token_id": 0,
    },
    "mpnet": {key: value for key, value in _ROBERTA.items() if key != "type_vocab_size"},
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "roformer": _BERT | {"embedding_size": 36},
    "xlm-roberta": _ROBERTA,
}
"""config.json of a tiny checkpoint of each family, at awkward sizes; every one takes texts of 40 tokens."""


def random_checkpoint(folder: Path, family: str, *, seed: int = 0, **changes: Any) -> None:
    """Writes a tiny checkpoint of a family with random weights; `changes` go into its config.json.

    Kernels keep the size of what they multiply and LayerNorms are off 1 and 0, as in trained models; the head is
    larger, so that logits reach 1 to 10.
    """
    raw = {"model_type": family, "id2label": {str(index): f"LABEL_{index}" for index in range(3)}}
    raw |= CONFIGS[family] | changes
    (folder / "config.json").write_text(json.dumps(raw))
    config = read_config(json.dumps(raw))
    tokenizer = letter_tokenizer(config.vocab_size, pad_token_id=config.pad_token_id)
    tokenizer.save(str(folder / "tokenizer.json"))
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces))
    # 1e30 is how transformers says that it knows of no limit.
    settings = {"model_max_length": 10**30, "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if config.family in encoders.FAMILIES:
        shapes = encoders.shapes(config)
    else:
        shapes = flax_auto.build(config, jnp.dtype(jnp.float32)).shapes
    tensors = checkpoint.to_tensors(random_params(shapes, seed=seed)) | flax_auto.computed_tensors(config)
    safetensors.numpy.save_file(tensors, folder / checkpoint.SAFETENSORS, metadata={"format": "pt"})


def random_params(shapes: Params, *, seed: int = 0) -> dict[str, Any]:
    """Parameters of the given shapes, as large as trained ones."""
    rng = np.random.default_rng(seed)
    last_size = 1 if "head" in shapes else 2  # ModernBERT normalises what its last layer reads

    def draw(path: tuple[Any, ...], shape: tuple[int, ...]) -> Float[Array, "..."]:
        match path[-1].key:
            case "kernel":
                size = last_size if (path[0].key, path[-2].key) in _LAST_LAYERS else 1
                drawn = size / np.sqrt(np.prod(shape[:-1])) * rng.standard_normal(shape)
            case "scale":
                drawn = 1 + 0.3 * rng.standard_normal(shape)
            case "bias":
                drawn = 0.2 * rng.standard_normal(shape)
            case _:
                drawn = rng.standard_normal(shape)
        return jnp.asarray(drawn, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


_LAST_LAYERS = {("classifier",) * 2, ("classifier", "out_proj"), ("classification_head", "out_proj")}


def letter_tokenizer(vocab_size: int, *, pad_token_id: int) -> tokenizers.Tokenizer:
    """BERT's kind of tokenizer for a vocabulary of letters and a few words.

    Truncation and padding are baked into it, as in many checkpoints, where `read_tokenizer` must override them.
    """
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    special.insert(pad_token_id, "[PAD]")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*special, *_WORDS, *letters, *(f"##{letter}" for letter in letters), *"!?.,'-0123456789"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces[:vocab_size]))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7, pad_id=pad_token_id)
    return tokenizer


_WORDS = ("the", "film", "not", "bad", "good", "hate", "this", "so", "much")
