"""Every family of FlaxAuto against PyTorch, its known faults among them; and what is said where transformers is 5."""

import inspect
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.checkpoint.weights import SAFETENSORS
from flaxsent.models import flax_auto
from flaxsent.models.config import read_config
from tests.conftest import texts_of_lengths

# As in test_parity.py.
TOLERANCE = 2e-5

FAMILIES = sorted(flax_auto.FAMILIES)


def pytorch(folder):
    """The model that PyTorch opens from a folder, strictly: its names and ours are the same."""
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


SINGLES = texts_of_lengths([0, 1, 7, 30])
PAIRS = list(zip(SINGLES, texts_of_lengths([5, 0, 20, 4], seed=1), strict=True))  # [SEP] is BART's EOS: two a pair


def pytorch_outputs(model, tokens):
    """Row by row: PyTorch wants the same number of EOS in every row of a batch."""
    import torch

    logits, hidden = [], []
    for row in range(len(tokens.input_ids)):
        length = int(tokens.attention_mask[row].sum())
        inputs = {"input_ids": torch.tensor(tokens.input_ids[row : row + 1, :length])}
        if "token_type_ids" in inspect.signature(model.forward).parameters:
            inputs["token_type_ids"] = torch.tensor(tokens.token_type_ids[row : row + 1, :length])
        with torch.no_grad():
            logits.append(model(**inputs).logits[0].numpy())
            hidden.append(model.base_model(**inputs).last_hidden_state[0].numpy())
    return np.stack(logits), hidden


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.flax_auto
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")  # theirs
@pytest.mark.parametrize("family", FAMILIES)
def test_flax_family_equals_pytorch_padded_and_under_jit(tiny_folder, family):
    folder = tiny_folder(family)
    model = pytorch(folder)
    classifier = flaxsent.load(folder, backend="flax")
    for texts in (SINGLES, PAIRS):
        tokens = classifier.tokenize(texts)
        theirs, hidden = pytorch_outputs(model, tokens)
        assert 0.5 < np.abs(theirs).max() < 20, "a random model of another size than trained ones"
        for forward in (classifier.forward, jax.jit(classifier.forward)):
            assert np.abs(forward(classifier.params, tokens) - theirs).max() <= TOLERANCE
        ours = np.asarray(classifier.hidden_states(classifier.params, tokens))
        for row, states in enumerate(hidden):
            assert np.abs(ours[row, : len(states)] - states).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.flax_auto
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_flax_family_saves_what_pytorch_opens(tiny_folder, tmp_path, family):
    import torch

    folder = tiny_folder(family)
    flaxsent.save(flaxsent.load(folder, backend="flax"), tmp_path)
    saved = dict(pytorch(tmp_path).named_parameters())
    for name, theirs in pytorch(folder).named_parameters():
        assert torch.equal(theirs, saved[name]), name


@pytest.mark.torch
def test_roformers_sinusoids_are_those_of_pytorch(tiny_folder):
    from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding

    config = read_config((tiny_folder("roformer") / "config.json").read_text())
    (ours,) = flax_auto.computed_tensors(config).values()
    theirs = RoFormerSinusoidalPositionalEmbedding(config.num_positions, config.hidden_size // config.num_heads)
    getattr(theirs, "_init_weight", lambda: None)()
    np.testing.assert_allclose(ours, theirs.weight.detach().numpy(), atol=1e-6)


@pytest.mark.flax_auto
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_big_bird_refuses_the_lengths_at_which_pytorch_attends_in_random_blocks(tiny_folder):
    classifier = flaxsent.load(tiny_folder("big_bird", num_random_blocks=2), backend="flax")
    tokens = classifier.tokenize(["good " * 40], length=37)
    with pytest.raises(ValueError, match="random blocks beyond 36 tokens"):
        classifier.forward(classifier.params, tokens)


@pytest.mark.flax_auto
def test_flax_distilbert_refuses_float16(tiny_folder):
    with pytest.raises(ValueError, match="NaN in float16"):
        flaxsent.load(tiny_folder("distilbert"), backend="flax", dtype=jnp.float16)


@pytest.mark.torch
@pytest.mark.flax_auto
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_rows_far_from_zero_are_normalized_as_in_pytorch(tiny_folder, tmp_path):
    """The embeddings of a checkpoint, moved by 64: LayerNorm takes the mean away, if it does not lose it first."""
    shutil.copytree(tiny_folder("bert"), tmp_path, dirs_exist_ok=True)
    tensors = safetensors.numpy.load_file(tmp_path / SAFETENSORS)
    tensors["bert.embeddings.word_embeddings.weight"] += np.float32(64)
    safetensors.numpy.save_file(tensors, tmp_path / SAFETENSORS, metadata={"format": "pt"})
    model = pytorch(tmp_path)
    classifier = flaxsent.load(tmp_path, backend="flax")
    tokens = classifier.tokenize(SINGLES)
    theirs, _ = pytorch_outputs(model, tokens)
    assert np.abs(classifier.forward(classifier.params, tokens) - theirs).max() <= TOLERANCE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax_auto, "_centre_layer_norms", lambda call, args, kwargs, context: call(*args, **kwargs))
        uncentred = classifier.forward(classifier.params, tokens)
    assert np.abs(uncentred - theirs).max() > 2 * TOLERANCE, "the fault is there to be worked around"


def test_roberta_positions_start_behind_the_padding_index(tiny_folder):
    classifier = flaxsent.load(tiny_folder("roberta"), backend="native")
    assert classifier.tokenize(["good"]).position_ids.tolist() == [[2, 3, 4]]
    assert classifier.config.max_length == 40
