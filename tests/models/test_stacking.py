"""Stacked layers run as one scan and give what the layers give one by one."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent import models
from flaxsent.base import Tokens
from flaxsent.classifier import forward_packed
from flaxsent.models.config import read_config
from flaxsent.models.stacking import stack
from flaxsent.parity.random_checkpoints import random_params
from flaxsent.transforms import quantize
from tests.conftest import others_slow
from tests.models.reference import TOLERANCE

MORE_LAYERS = {"modernbert": {"num_hidden_layers": 11}, "deberta-v2": {"num_hidden_layers": 4}}
STACKED = {
    "albert": [],  # its layers share their weights
    "bart": ["0-1"],
    "mbart": ["0-1"],
    "deberta-v2": ["1-2"],  # the first has a convolution beside it
    "modernbert": ["1-9"],  # the first has one norm less
}
FAMILIES = ["albert", "bart", "bert", "deberta-v2", "distilbert", "modernbert", "mpnet"]
"""The others run the code of one of these."""


def of_family(name):
    family = models.FAMILIES[name]
    changes = MORE_LAYERS.get(name, {}) | ({"conv_kernel_size": 3} if name == "deberta-v2" else {})
    config = read_config(json.dumps(family.tiny_config | changes))
    return config, jax.tree.map(jnp.asarray, random_params(models.shapes(config)))


def rows_of(config, lengths=(7, 9, 3, 12), row_length=40):
    rng = np.random.default_rng(0)
    padding = (0, row_length - sum(lengths))
    segment_ids = np.pad(np.repeat(np.arange(len(lengths)) + 1, lengths), padding)
    positions = np.pad(np.concatenate([np.arange(length) for length in lengths]), padding) + config.first_position
    ids = np.where(segment_ids > 0, rng.integers(5, config.vocab_size, row_length), config.pad_token_id)
    row = Tokens(ids, np.zeros_like(ids), positions, segment_ids)
    return jax.tree.map(lambda leaf: np.stack([leaf, leaf]).astype(np.int32), row)


def stacked_names(params, config):
    found = []
    for path in models.FAMILIES[config.family].stacks(config):
        branch = functools.reduce(lambda node, name: node[name], path.split("."), params[models.base(config)])
        found += [name for name in branch if not name.isdecimal()]
    return found


@pytest.mark.parametrize("name", others_slow(["bert", "modernbert"], FAMILIES))
def test_logits_stay_and_so_does_dropout(name):
    config, params = of_family(name)
    small = stack(params, config=config)
    assert stacked_names(small, config) == STACKED.get(name, ["0-1"])
    tokens = rows_of(config)
    for key in (None, jax.random.key(0)) if name in ("bert", "modernbert") else (None,):
        ours, theirs = (
            jax.jit(functools.partial(forward_packed, config=config), static_argnums=2)(tree, tokens, 4, key)
            for tree in (small, params)
        )
        assert np.abs(ours - theirs).max() <= TOLERANCE


def test_gradients_are_the_stacked_gradients():
    config, params = of_family("bert")
    tokens = rows_of(config)
    gradient = jax.jit(jax.grad(lambda params: forward_packed(params, tokens, 4, config=config).sum()))
    ours, theirs = gradient(stack(params, config=config)), stack(gradient(params), config=config)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    for our_leaf, their_leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(our_leaf - their_leaf).max() <= TOLERANCE * largest


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["weights", "dynamic"])
def test_int8_params_are_stacked_too(mode):
    config, params = of_family("bert")
    params, tokens = quantize(params, mode=mode), rows_of(config)
    ours = forward_packed(stack(params, config=config), tokens, 4, config=config)
    # Integers that differ by one, where a float32 rounds otherwise, move a logit by a hundredth.
    assert np.abs(ours - forward_packed(params, tokens, 4, config=config)).max() <= (
        2e-5 if mode == "weights" else 5e-2
    )


def test_shapes_are_stacked_without_arrays():
    config, params = of_family("modernbert")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    ours, theirs = stack(shapes, config=config), stack(params, config=config)
    assert jax.tree.map(lambda leaf: leaf.shape, ours) == jax.tree.map(lambda leaf: leaf.shape, theirs)


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray], ids=["JAX", "NumPy"])
def test_params_of_the_host_are_stacked_there(kind):
    """One device of those that will hold parts of them may be too small for all."""
    config, params = of_family("bert")
    stacked = stack(jax.tree.map(kind, params), config=config)["bert"]["encoder"]["layer"]["0-1"]
    assert {type(leaf) for leaf in jax.tree.leaves(stacked)} == {np.ndarray}


def test_a_scan_is_lowered_once_for_all_layers():
    def size_of(num_layers, is_stacked):
        config = read_config(json.dumps(models.FAMILIES["bert"].tiny_config | {"num_hidden_layers": num_layers}))
        shapes = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            models.shapes(config),
            is_leaf=lambda node: isinstance(node, tuple),
        )
        params = stack(shapes, config=config) if is_stacked else shapes
        forward = functools.partial(forward_packed, config=config)
        return len(jax.jit(forward, static_argnums=2).lower(params, rows_of(config), 4).as_text())

    assert size_of(12, True) < 1.1 * size_of(4, True)
    assert size_of(12, False) > 1.5 * size_of(4, False)
