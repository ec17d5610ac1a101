"""What only BART and mBART have: a decoder, its layers left out, a table under three names. The rest is in
test_families.py.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.base import Encodings
from flaxsent.packing import pad
from tests.models.reference import (
    PAIRS,
    TOLERANCE,
    all_states,
    padded_and_packed_logits,
    pytorch_stages,
    stages_of_row,
)
from tests.models.test_families import RATES

LANGUAGE = 4  # [MASK] of the letter tokenizer


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("family", ["bart", "mbart"])
def test_a_language_behind_the_last_eos_starts_mbarts_decoder_and_is_not_pooled(tiny_folder, family):
    """So real mBART texts end: EOS, language."""
    folder = tiny_folder(family)
    classifier = flaxsent.load(folder, backend="native")
    plain = classifier.tokenizer.encode(PAIRS[:1])
    rows = [[*plain.input_ids[0], language] for language in (LANGUAGE, LANGUAGE + 1)]
    encodings = Encodings(rows + rows, [[0] * len(row) for row in rows + rows])
    theirs = pytorch_stages(folder, encodings)
    row_states = functools.partial(all_states, classifier.params, config=classifier.config)
    states = jax.jit(jax.vmap(row_states))(pad(encodings))
    for index, state in enumerate(states):
        assert np.abs(state - np.stack([stages[index] for stages in theirs])).max() <= TOLERANCE, index
    logits = np.stack([stages[-1] for stages in theirs])
    for ours in padded_and_packed_logits(classifier, encodings, row_length=2 * len(rows[0])):
        assert np.abs(ours - logits).max() <= TOLERANCE
    starts_alike = bool((np.asarray(states[0])[0, 0] == np.asarray(states[0])[1, 0]).all())
    assert starts_alike == (family == "bart")


@pytest.mark.slow
def test_float16_does_not_overflow_where_mbart_adds_up(tiny_folder):
    classifier = flaxsent.load(tiny_folder("mbart"), backend="native", dtype="float16")
    params = jax.tree.map(lambda leaf: leaf, dict(classifier.params))
    for stack in ("encoder", "decoder"):
        for layer in params["model"][stack]["layers"].values():
            layer["fc2"]["bias"] = jnp.full_like(layer["fc2"]["bias"], 60000).at[::2].multiply(-1)
    tokens = classifier.tokenize(PAIRS)
    assert np.isfinite(jax.jit(classifier.hidden_states)(params, tokens)).all()
    assert np.isfinite(jax.jit(classifier.forward)(params, tokens)).all()


@pytest.mark.parametrize("kept", ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"])
def test_the_shared_table_is_found_under_any_of_its_names(tiny_folder, tmp_path, kept):
    folder = tiny_folder("bart")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors[kept] = tensors.pop("model.shared.weight")
    tensors["model.encoder.version"] = np.ones(1, np.float32)  # old fairseq checkpoints
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = (flaxsent.load(each, backend="native").params for each in (tmp_path, folder))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layerdrop_leaves_out_layers_of_its_stack_in_training(tiny_folder, stack):
    rates = dict.fromkeys(RATES["bart"], 0) | {f"{stack}_layerdrop": 0.25}
    stages = stages_of_row(flaxsent.load(tiny_folder("bart", **rates), backend="native"), "not so good")
    exact = np.asarray(jax.jit(stages)(None)[-1])
    *states, logits = jax.jit(jax.vmap(stages))(jax.random.split(jax.random.key(0), 200))
    difference = np.abs(np.asarray(logits) - exact).max(axis=(1, 2))
    is_left_out = [
        (np.asarray(before) == np.asarray(after)).all(axis=(1, 2)) for before, after in itertools.pairwise(states)
    ]
    if stack == "decoder":
        assert all(0.15 < np.mean(left_out) < 0.35 for left_out in is_left_out)
    else:
        assert not np.any(is_left_out)
    kept = difference <= TOLERANCE
    num_layers = {"encoder": 2, "decoder": 3}[stack]
    assert abs(np.mean(kept) - 0.75**num_layers) < 0.14, "four standard deviations of 200 draws"
    assert difference[~kept].min() > 0.001
