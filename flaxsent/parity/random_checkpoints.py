"""Tiny checkpoints of every family, with random weights as large as trained ones: what `parity` compares by default."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from jaxtyping import Array, Float

from flaxsent import models
from flaxsent.base import Params
from flaxsent.checkpoint import weights
from flaxsent.models.config import read_config

CONFIGS: dict[str, dict[str, Any]] = {name: family.tiny_config for name, family in models.FAMILIES.items()}
"""config.json of a tiny checkpoint of each family, at awkward sizes; every one takes texts of 40 tokens."""


def random_checkpoint(folder: Path, family: str, *, seed: int = 0, **changes: Any) -> None:
    """Writes a tiny checkpoint of a family with random weights; `changes` go into its config.json.

    Kernels keep the size of what they multiply and LayerNorms are off 1 and 0, as in trained models; the head is
    larger, so that logits reach 1 to 10.
    """
    raw = {"id2label": {str(index): f"LABEL_{index}" for index in range(3)}} | CONFIGS[family] | changes
    (folder / "config.json").write_text(json.dumps(raw))
    config = read_config(json.dumps(raw))
    tokenizer = letter_tokenizer(config.vocab_size, pad_token_id=config.pad_token_id)
    tokenizer.save(str(folder / "tokenizer.json"))
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces))
    # 1e30 is how transformers says that it knows of no limit.
    settings: dict[str, Any] = {"model_max_length": 10**30, "pad_token": "[PAD]"}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": _INPUT_NAMES}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tensors = weights.to_tensors(random_params(models.shapes(config), seed=seed)) | models.computed_tensors(config)
    safetensors.numpy.save_file(tensors, folder / weights.SAFETENSORS, metadata={"format": "pt"})


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


_INPUT_NAMES = ["input_ids", "token_type_ids", "attention_mask"]
"""transformers 5 gives no token types where the generic class names none."""

_WORDS = ("the", "film", "not", "bad", "good", "hate", "this", "so", "much")
