"""What only ALBERT has: groups of layers. The rest is in test_families.py."""

import functools

import jax
import numpy as np

import flaxsent
from flaxsent import models


def test_more_groups_than_layers_leave_some_unused(tiny_folder):
    """As PyTorch counts: the first layer takes group 0, the second group 1 (of 3)."""
    classifier = flaxsent.load(tiny_folder("albert", num_hidden_layers=2, num_hidden_groups=3), backend="native")
    row = functools.partial(models.forward, config=classifier.config, num_segments=1)
    tokens = jax.tree.map(lambda rows: rows[0], classifier.tokenize(["so good"]))
    grads = jax.jit(jax.grad(lambda params: row(params, tokens).sum()))(classifier.params)
    groups = grads["albert"]["encoder"]["albert_layer_groups"]
    used = [bool(max(np.abs(leaf).max() for leaf in jax.tree.leaves(groups[index])) > 0) for index in "012"]
    assert used == [True, True, False]
