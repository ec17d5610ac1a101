"""What only ModernBERT has: two spellings of its config, windows and angles. The rest is in test_families.py."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.models import modernbert
from flaxsent.models.config import read_config
from tests.conftest import texts_of_lengths
from tests.models.reference import SINGLES, TOLERANCE, all_states, pytorch_logits, pytorch_stages
from tests.models.test_families import FULL, SLIDING, VARIANTS


def read(**changes):
    return read_config(json.dumps(models.FAMILIES["modernbert"].tiny_config | changes))


def rope(full_attention, sliding_attention):
    thetas = {"full_attention": full_attention, "sliding_attention": sliding_attention}
    return {"rope_parameters": {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in thetas.items()}}


OF_4 = {"global_rope_theta": 50, "local_rope_theta": 3.0, "global_attn_every_n_layers": 2}
OF_5 = rope(50.0, 3) | {"layer_types": [FULL, SLIDING, FULL, SLIDING]}
SPELLINGS = {
    "of transformers 5": (OF_4, OF_5),
    "of both": (OF_4, OF_4 | OF_5),
    "defaults": ({}, rope(160_000.0, 10_000.0) | {"layer_types": [FULL, SLIDING, SLIDING, FULL], "sliding_window": 4}),
    "one theta by its default": ({"local_rope_theta": 3}, {"rope_parameters": {SLIDING: {"rope_theta": 3}}}),
    "null for the same": ({"local_rope_theta": 160_000.0}, {"local_rope_theta": None}),
    "null for the same, given": (
        {"global_rope_theta": 50, "local_rope_theta": 50},
        {"global_rope_theta": 50, "local_rope_theta": None},
    ),
    "no scaling": ({}, {"rope_scaling": {"rope_type": "default"}, "partial_rotary_factor": 1.0, "head_dim": 12}),
}


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(("plain", "other"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_both_spellings_give_pytorchs_logits(tiny_folder, plain, other):
    classifier = flaxsent.load(tiny_folder("modernbert", **other))
    theirs = pytorch_logits(tiny_folder("modernbert", **plain), classifier.tokenizer.encode(SINGLES))
    logits = jax.jit(classifier.forward)(classifier.params, classifier.tokenize(SINGLES))
    assert np.abs(logits - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("changes", [*VARIANTS["modernbert"].values(), OF_4, {"local_rope_theta": 50.0}], ids=str)
def test_config_that_transformers_saves_means_the_same(changes):
    """In the spelling of whichever transformers is installed."""
    from transformers import ModernBertConfig

    saved = read_config(ModernBertConfig(**models.FAMILIES["modernbert"].tiny_config | changes).to_json_string())
    assert modernbert._options(saved) == modernbert._options(read(**changes))
    assert dataclasses.replace(saved, json="") == dataclasses.replace(read(**changes), json="")


@pytest.mark.slow
@pytest.mark.torch
def test_a_thousand_tokens_equal_pytorch_at_every_stage(tiny_folder):
    """Windows of a real size, and angles of a thousand radians, where float32 has few digits after the point left."""
    folder = tiny_folder("modernbert", max_position_embeddings=1000, local_attention=128)
    classifier = flaxsent.load(folder)
    texts = texts_of_lengths([998, 700])
    tokens = classifier.tokenize(texts)
    assert tokens.input_ids.shape == (2, 1000)
    states = jax.jit(jax.vmap(functools.partial(all_states, classifier.params, config=classifier.config)))(tokens)
    for text, theirs in enumerate(pytorch_stages(folder, classifier.tokenizer.encode(texts))):
        for index, (ours, state) in enumerate(zip(states, theirs[:-1], strict=True)):
            assert np.abs(ours[text, : len(state)] - state).max() <= TOLERANCE, f"layer {index}"


def test_a_masked_language_model_keeps_its_head_and_gets_a_classifier(tiny_folder, tmp_path):
    """As in PyTorch: `head.dense` and `head.norm` are pretrained, the classifier is drawn."""
    folder = tiny_folder("modernbert")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    tensors["decoder.bias"] = np.zeros(61, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    given, drawn = flaxsent.load(folder).params, flaxsent.load(tmp_path, labels=["a", "b"]).params
    jax.tree.map(np.testing.assert_array_equal, [drawn["model"], drawn["head"]], [given["model"], given["head"]])
    assert drawn["classifier"]["kernel"].shape == (36, 2)


def test_heads_of_odd_size_are_refused():
    with pytest.raises(FlaxsentError, match=r"config\.json has heads of size 9; expected an even one"):
        models.shapes(read(num_attention_heads=4))
