"""JAX's own checks, and the tiny checkpoints that the tests share: nothing is downloaded.

Random models are of the shape of trained ones (awkward sizes, weights scaled until logits reach 1 to 10): freshly
initialised weights give logits near 0, which hide errors.
"""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

with install_import_hook("flaxsent", "beartype.beartype"):
    import flaxsent
    import flaxsent.cli
    import flaxsent.train

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_FLAX_AUTO = flaxsent.flax_auto.is_installed()

AWKWARD_TEXTS = [
    "",
    " ",
    "a",
    "\t\n \u2003",
    "I've been waiting for a HuggingFace course my whole life",
    "I hate this so much!",
    "not bad at all 😀👩‍👩‍👧‍👦🇰🇷",
    "هذا رائع \u202eשלום עולם\u202c",
    "이 영화 정말 좋아요 — 本当に、すごい。",
    "[CLS] [SEP] [MASK] [PAD] <s> </s>",
    "x" * 3000,
    "\x00\x01\x7f\ufeffZ\u0301\u0327a\u030a",
    "1234567890 3.14159 1e-30 ½ ① Ⅳ",
    "word " * 400,
]
"""Empty, spaces, scripts, emoji, special tokens spelt out, control characters, long ones."""


def pytest_collection_modifyitems(items):
    """Tests that need a package which this environment does not have say so, one by one."""
    for item in items:
        if item.get_closest_marker("torch") and not HAS_TORCH:
            item.add_marker(pytest.mark.skip(reason="needs PyTorch"))
        if item.get_closest_marker("flax_auto") and not HAS_FLAX_AUTO:
            item.add_marker(pytest.mark.skip(reason="needs the Flax classes of transformers 4"))


WORDS = [
    "the",
    "film",
    "is",
    "not",
    "bad",
    "good",
    "##ly",
    "##s",
    "a",
    "i",
    "hate",
    "this",
    "so",
    "much",
    "!",
    ".",
    ",",
]


def word_pieces(size: int = 61, pad_index: int = 0) -> dict[str, int]:
    """A WordPiece vocabulary of letters and a few words."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    special.insert(pad_index, "[PAD]")
    letters = list("bcdefghjklmnopqrstuvwxyz") + [f"##{letter}" for letter in "aeinorst"]
    tokens = dict.fromkeys(special + WORDS + letters + [f"[unused{index}]" for index in range(size)])
    return {token: index for index, token in enumerate(list(tokens)[:size])}


def make_tokenizer(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """A BERT tokenizer, with truncation and padding baked into it that must be overridden."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens([token for token in vocabulary if token.startswith("[") and "unused" not in token])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    return tokenizer


TINY = {
    "bert": {
        "model_type": "bert",
        "vocab_size": 61,
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "num_labels": 3,
    },
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 61,
        "dim": 36,
        "n_layers": 3,
        "n_heads": 3,
        "hidden_dim": 50,
        "max_position_embeddings": 40,
        "num_labels": 3,
    },
}
_ROBERTA = TINY["bert"] | {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 42}
TINY |= {
    "camembert": _ROBERTA | {"model_type": "camembert"},
    "electra": TINY["bert"] | {"model_type": "electra", "embedding_size": 20},
    "roberta": _ROBERTA | {"model_type": "roberta"},
    "xlm-roberta": _ROBERTA | {"model_type": "xlm-roberta"},
}
"""config.json of tiny checkpoints at awkward sizes; every one takes texts of 40 tokens."""


def write_config(folder: Path, config: dict) -> None:
    raw = dict(config)
    num_labels = raw.pop("num_labels", None)
    if num_labels is not None:
        raw["id2label"] = {str(index): f"LABEL_{index}" for index in range(num_labels)}
    (folder / "config.json").write_text(json.dumps(raw))


def random_params(shapes, seed: int = 0, scale: float = 1.0):
    """Parameters as large as trained ones: kernels that keep the size of what they multiply, LayerNorms off 1 and 0."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        match path[-1].key:
            case "kernel":
                return scale * rng.standard_normal(shape) / np.sqrt(shape[0])
            case "embedding":
                return scale * rng.standard_normal(shape)
            case "scale":
                return 1 + 0.3 * rng.standard_normal(shape)
            case "bias":
                return 0.2 * rng.standard_normal(shape)
            case other:
                raise AssertionError(other)

    drawn = jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(family, **changes)`: a checkpoint folder of random weights; changes go into its config.json."""
    made: dict[str, Path] = {}

    def make(family: str, **changes) -> Path:
        key = json.dumps([family, changes], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            config = TINY[family] | changes
            write_config(folder, config)
            vocabulary = word_pieces(config["vocab_size"], pad_index=config.get("pad_token_id", 0))
            make_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(
                json.dumps({"model_max_length": 10**30, "tokenizer_class": "BertTokenizer"})
            )
            (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
            model_config = flaxsent.config.read_config((folder / "config.json").read_text())
            shapes = flaxsent.encoders.shapes(model_config)
            params = random_params(shapes)
            # The last branch, the head, as large as gives logits between 1 and 10.
            *_, head = shapes
            params[head] = jax.tree.map(lambda leaf: 3 * leaf, params[head])
            tensors = flaxsent.checkpoint.to_tensors(params)
            safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def embedded():
    """The embedded checkpoint, natively."""
    return flaxsent.load(backend="native")


def texts_of_lengths(lengths, seed: int = 0) -> list[str]:
    """Texts of that many word pieces each, special tokens not counted."""
    rng = np.random.default_rng(seed)
    words = [word for word in WORDS if not word.startswith("##")]
    return [" ".join(rng.choice(words, length)) for length in lengths]
