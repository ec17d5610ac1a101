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


_WORDS = ("the", "film", "not", "bad", "good", "hate", "this", "so", "much")
