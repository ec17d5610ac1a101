"""Every family of FlaxAuto against PyTorch, its known faults among them; and what is said where transformers is 5."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import flax_auto
from flaxsent.config import read_config
from flaxsent.packing import pad
from flaxsent.types import Encodings
from tests.conftest import make_tokenizer, word_pieces, write_config

# As in test_parity.py. ALBERT and the prelayernorm RoBERTa add up unnormalised states, of which 2e-5 is as few ulps.
TOLERANCE = 2e-5

_BERT_LIKE = {
    "vocab_size": 61,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "num_labels": 3,
}
_ROBERTA_LIKE = _BERT_LIKE | {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_BART_LIKE = {
    "vocab_size": 61,
    "d_model": 36,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 44,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "num_labels": 3,
}
CONFIGS = {
    "albert": _BERT_LIKE | {"embedding_size": 20, "num_hidden_groups": 1},
    "bart": _BART_LIKE,
    "big_bird": _BERT_LIKE | {"block_size": 4, "num_random_blocks": 2},
    "electra": _BERT_LIKE | {"embedding_size": 20},
    "mbart": _BART_LIKE | {"scale_embedding": True},
    "roberta": _ROBERTA_LIKE,
    "roberta-prelayernorm": _ROBERTA_LIKE,
    "roformer": _BERT_LIKE | {"embedding_size": 36},  # Flax has no projection from another size
    "xlm-roberta": _ROBERTA_LIKE,
}


@pytest.fixture(scope="module")
def pytorch_folder(tmp_path_factory):
    """A folder that PyTorch saved, with weights as large as trained ones, and the model itself."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForSequenceClassification

    def make(family):
        folder = tmp_path_factory.mktemp(family)
        write_config(folder, CONFIGS[family] | {"model_type": family})
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name.lower():
                    parameter.add_(0.3 * torch.randn_like(parameter))
                elif parameter.ndim == 1:
                    parameter.copy_(0.2 * torch.randn_like(parameter))
                elif "embed" not in name:
                    parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
                elif parameter.requires_grad:  # RoFormer's sinusoids are no weights
                    parameter.copy_(torch.randn_like(parameter))
        model.save_pretrained(folder)
        vocabulary = word_pieces()
        make_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
        return folder, model

    return make


def encodings(family, *, pairs: bool) -> Encodings:
    """Random ids of awkward lengths; BART's and mBART's end in EOS, and a pair of theirs has one in the middle too."""
    rng = np.random.default_rng(1)
    ids, types = [], []
    for length in (3, 8, 17, 30):
        text = rng.integers(5, 61, length).tolist()
        second = length // 2 if pairs else length
        if family in ("bart", "mbart"):
            text[0], text[-1] = 0, 2
            if pairs:
                text[second] = 2
        ids.append(text)
        types.append([0] * second + [1 if CONFIGS[family].get("type_vocab_size") == 2 else 0] * (length - second))
    return Encodings(ids, types, 0)


def pytorch_outputs(model, family, tokens):
    """Row by row: PyTorch wants the same number of EOS in every row of a batch."""
    import torch

    logits, hidden = [], []
    for row in range(len(tokens.input_ids)):
        length = int(tokens.attention_mask[row].sum())
        inputs = {"input_ids": torch.tensor(tokens.input_ids[row : row + 1, :length])}
        if CONFIGS[family].get("type_vocab_size") == 2:
            inputs["token_type_ids"] = torch.tensor(tokens.token_type_ids[row : row + 1, :length])
        with torch.no_grad():
            logits.append(model(**inputs).logits[0].numpy())
            hidden.append(model.base_model(**inputs).last_hidden_state[0].numpy())
    return np.stack(logits), hidden


@pytest.mark.torch
@pytest.mark.flax_auto
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")  # theirs
@pytest.mark.parametrize("family", CONFIGS)
def test_flax_family_equals_pytorch_padded_and_under_jit(pytorch_folder, family):
    folder, model = pytorch_folder(family)
    classifier = flaxsent.load(folder, backend="flax")
    for pairs in (False, True):
        tokens = classifier.pad(encodings(family, pairs=pairs))
        theirs, hidden = pytorch_outputs(model, family, tokens)
        assert 0.5 < np.abs(theirs).max() < 20, "a random model of another size than trained ones"
        for forward in (classifier.forward, jax.jit(classifier.forward)):
            assert np.abs(forward(classifier.params, tokens) - theirs).max() <= TOLERANCE
        ours = np.asarray(classifier.hidden_states(classifier.params, tokens))
        for row, states in enumerate(hidden):
            assert np.abs(ours[row, : len(states)] - states).max() <= TOLERANCE


@pytest.mark.torch
@pytest.mark.flax_auto
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", CONFIGS)
def test_flax_family_saves_what_pytorch_opens(pytorch_folder, tmp_path, family):
    import torch
    from transformers import AutoModelForSequenceClassification

    folder, model = pytorch_folder(family)
    flaxsent.save(flaxsent.load(folder, backend="flax"), tmp_path)
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for (name, theirs), (_, ours) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(theirs, ours) or "embed_positions" in name and torch.allclose(theirs, ours, atol=1e-6), name


@pytest.mark.torch
@pytest.mark.flax_auto
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_big_bird_refuses_the_lengths_at_which_pytorch_attends_in_random_blocks(pytorch_folder):
    folder, _ = pytorch_folder("big_bird")
    classifier = flaxsent.load(folder, backend="flax")
    tokens = classifier.pad(Encodings([[7] * 37], [[0] * 37], 0))
    with pytest.raises(ValueError, match="random blocks beyond 36 tokens"):
        classifier.forward(classifier.params, tokens)


@pytest.mark.flax_auto
def test_flax_distilbert_refuses_float16(tiny_folder):
    with pytest.raises(ValueError, match="NaN in float16"):
        flaxsent.load(tiny_folder("distilbert"), backend="flax", dtype=jnp.float16)


@pytest.mark.flax_auto
@pytest.mark.parametrize("backend", ["flax", "native"])
def test_dropout_follows_the_key(tiny_folder, backend):
    classifier = flaxsent.load(tiny_folder("bert"), backend=backend)
    tokens = classifier.tokenize(["so good", "i hate this"])
    first, same, other = (classifier.forward(classifier.params, tokens, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first - classifier.forward(classifier.params, tokens)).max() > 0.01


@pytest.mark.skipif(flax_auto.is_installed(), reason="transformers 4 with Flax is here")
def test_without_transformers_4_native_is_chosen_and_flax_says_what_to_install(tiny_folder):
    assert flaxsent.load(tiny_folder("bert")).backend == "native"
    with pytest.raises(ImportError, match=r'pip install "flaxsent\[flax-auto\]"'):
        flaxsent.load(tiny_folder("bert"), backend="flax")


@pytest.mark.flax_auto
def test_default_backend_is_flax_where_it_is_installed(tiny_folder):
    assert flaxsent.load(tiny_folder("bert")).backend == "flax"


def test_roberta_positions_start_behind_the_padding_index():
    config = read_config(json.dumps(CONFIGS["roberta"] | {"model_type": "roberta", "num_labels": 2}))
    tokens = pad(Encodings([[5, 6, 7], [8]], [[0] * 3, [0]], 0), first_position=config.first_position, pad_token_id=1)
    assert tokens.position_ids[0].tolist() == [2, 3, 4]
    assert config.max_length == 38
