"""MPNet against PyTorch: distances within a text, however far, padded and packed; the rest is in test_parity.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent import models as encoders
from flaxsent.parity import compare as parity
from flaxsent.models.config import read_config
from flaxsent.models import mpnet
from flaxsent.base import Encodings
from tests.conftest import texts_of_lengths
from tests.test_parity import TOLERANCE, pytorch, pytorch_stages

VARIANTS = {
    "plain": {},
    "more buckets than are used": {"relative_attention_num_buckets": 40},
    "another epsilon and activation": {"layer_norm_eps": 0.01, "hidden_act": "relu"},
    "one layer, 18 heads": {"num_hidden_layers": 1, "num_attention_heads": 18},
    "keys that mean nothing here": {"type_vocab_size": 2, "classifier_dropout": 0.5},
}


@pytest.mark.torch
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_pytorch_padded_and_packed(tiny_folder, changes):
    """Texts of up to 300 tokens: the last bucket begins at a distance of 91, in the second text of a row too."""
    folder = tiny_folder("mpnet", **{"num_hidden_layers": 2, "max_position_embeddings": 302} | changes)
    classifier = flaxsent.load(folder)
    encodings = classifier.tokenizer.encode(
        [*texts_of_lengths([0, 298, 146, 146, 7]), ("good", "so bad"), *texts_of_lengths([1, 40], seed=1)]
    )
    theirs = pytorch_stages(folder, classifier.pad(encodings))["logits"]
    for logits in (parity._jit, parity._packed):
        assert np.abs(logits(classifier, encodings) - theirs).max() <= TOLERANCE
    assert 0.5 < np.abs(theirs).max() < 20, "a random model of another size than trained ones"


@pytest.mark.torch
def test_every_distance_has_pytorchs_bucket():
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    table = {"embedding": np.arange(32, dtype=np.float32)[:, None]}
    bias = jax.jit(mpnet._bias)(table, np.arange(2, 602))[0]
    theirs = MPNetEncoder.relative_position_bucket(torch.arange(600)[None, :] - torch.arange(600)[:, None])
    np.testing.assert_array_equal(bias, theirs.numpy())


@pytest.mark.torch
def test_one_token_equals_pytorch(tiny_folder):
    import torch

    folder = tiny_folder("mpnet")
    classifier = flaxsent.load(folder)
    logits = jax.jit(classifier.forward)(classifier.params, classifier.pad(Encodings([[5]], [[0]], 0)))
    with torch.no_grad():
        assert np.abs(logits - pytorch(folder)(torch.tensor([[5]])).logits.numpy()).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 0.03), ("bfloat16", 0.3)])
def test_padding_and_halves_give_numbers(tiny_folder, dtype, tolerance):
    """Rows: nothing but padding, one token alone, a text at the limit."""
    exact, classifier = (flaxsent.load(tiny_folder("mpnet"), dtype=name) for name in ("float32", dtype))
    tokens = exact.pad(Encodings([[], [5], list(range(2, 42))], [[], [0], [0] * 40], 0))
    hidden = jax.jit(classifier.hidden_states)(classifier.params, tokens)
    logits = jax.jit(classifier.forward)(classifier.params, tokens)
    assert np.isfinite(np.asarray(hidden, np.float32)).all()
    assert np.isfinite(logits).all()
    assert hidden.dtype == dtype
    assert logits.dtype == np.float32
    assert np.abs(logits - jax.jit(exact.forward)(exact.params, tokens))[1:].max() <= tolerance


def test_defaults_are_those_of_transformers():
    from transformers import MPNetConfig

    theirs = MPNetConfig().to_dict()
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    least = {key: theirs[key] for key in (*needed, "max_position_embeddings", "model_type")}
    ours, whole = read_config(json.dumps(least)), read_config(json.dumps(theirs))
    assert dataclasses.replace(ours, json="") == dataclasses.replace(whole, json="")
    assert ours.max_length == 510
    assert encoders.shapes(ours) == encoders.shapes(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": 0},
        {"relative_attention_num_buckets": 16},
        {"relative_attention_num_buckets": 32.0},
        {"relative_attention_num_buckets": "32"},
    ],
    ids=str,
)
def test_what_pytorch_does_not_do_is_refused_by_name(changes):
    config = read_config(json.dumps({"model_type": "mpnet"} | parity.CONFIGS["mpnet"] | changes))
    with pytest.raises(ValueError, match=f"config.json has {next(iter(changes))}="):
        encoders.shapes(config)
