"""The numbers of both backends against PyTorch, stage by stage, on tiny random models of trained size."""

import inspect

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent import models as encoders
from tests.conftest import NATIVE, texts_of_lengths

pytestmark = pytest.mark.torch

# Both sides compute in float32 in another order of summation; hidden states and logits are of size 1 to 10.
TOLERANCE = 2e-5

SINGLES = texts_of_lengths([0, 1, 7, 30, 38])
PAIRS = list(zip(texts_of_lengths([3, 1, 0, 20]), texts_of_lengths([5, 0, 9, 16], seed=1), strict=True))


def pytorch(folder):
    import torch
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


def pytorch_stages(folder, tokens):
    """Every hidden state and the logits, under the names of the stages."""
    import torch

    model = pytorch(folder)
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["token_type_ids"] = tokens.token_type_ids
    # With a decoder: row by row, since BART wants the same number of EOS in every row of a batch.
    batches = [slice(None)]
    if model.config.is_encoder_decoder:
        batches = [slice(row, row + 1) for row in range(len(tokens.input_ids))]
    last = []
    model.base_model.register_forward_hook(lambda module, inputs, out: last.append(out[0]))
    with torch.no_grad():
        outs = [
            model(**{name: torch.tensor(value[batch]) for name, value in inputs.items()}, output_hidden_states=True)
            for batch in batches
        ]
    states = [getattr(out, "decoder_hidden_states", None) or out.hidden_states for out in outs]
    # AutoModel's last_hidden_state: ModernBERT's list ends before the final norm in transformers 4, after it in 5.
    states = [(*state[:-1], hidden) for state, hidden in zip(states, last, strict=True)]
    stages = {f"layer {index}": np.concatenate(state) for index, state in enumerate(zip(*states, strict=True))}
    return stages | {"logits": np.concatenate([out.logits for out in outs])}


def largest_difference(ours, theirs, tokens, stage):
    difference = np.abs(np.asarray(ours) - theirs)
    if stage != "logits":
        difference = difference[tokens.segment_ids > 0]  # what stands on padding has no meaning
    return difference.max()


@pytest.mark.parametrize("texts", [SINGLES, PAIRS], ids=["single", "pair"])
@pytest.mark.parametrize("family", NATIVE)
def test_native_equals_pytorch_at_every_stage(tiny_folder, family, texts):
    folder = tiny_folder(family)
    classifier = flaxsent.load(folder, backend="native")
    tokens = classifier.tokenize(texts)
    theirs = pytorch_stages(folder, tokens)
    states = jax.vmap(
        lambda row: encoders.encode(
            classifier.params, encoders.embed(classifier.params, row, config=classifier.config), row, config=classifier.config
        )
    )(tokens)
    ours = {f"layer {index}": state for index, state in enumerate(states)}
    ours["logits"] = classifier.forward(classifier.params, tokens)
    assert ours.keys() == theirs.keys()
    for stage, state in ours.items():
        assert largest_difference(state, theirs[stage], tokens, stage) <= TOLERANCE, stage
    assert 0.5 < np.abs(theirs["logits"]).max() < 20, "a random model of another size than trained ones"


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "quick_gelu", "mish", "tanh", "relu6"])
def test_activations_equal_pytorch(tiny_folder, activation):
    folder = tiny_folder("bert", hidden_act=activation)
    classifier = flaxsent.load(folder, backend="native")
    tokens = classifier.tokenize(SINGLES)
    logits = classifier.forward(classifier.params, tokens)
    assert np.abs(logits - pytorch_stages(folder, tokens)["logits"]).max() <= TOLERANCE


@pytest.mark.parametrize("family", NATIVE)
def test_saved_folder_opens_in_pytorch_with_the_same_logits(tiny_folder, tmp_path, family):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    flaxsent.save(classifier, tmp_path)
    tokens = classifier.tokenize(SINGLES)
    theirs = pytorch_stages(tmp_path, tokens)["logits"]
    assert np.abs(classifier.forward(classifier.params, tokens) - theirs).max() <= TOLERANCE
    again = flaxsent.load(tmp_path, backend="native")
    jax.tree.map(np.testing.assert_array_equal, again.params, classifier.params)
