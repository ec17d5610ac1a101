"""Attention in blocks equals attention computed at once from positions, and holds no array of N × T × T."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent import models
from flaxsent.base import Tokens
from flaxsent.models import attention
from flaxsent.models.config import read_config
from tests.conftest import others_slow
from tests.models.reference import TOLERANCE

HEADS, SIZE = 3, 12


def row_of(lengths, row_length):
    """Segment ids and positions of texts end to end, padded."""
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return (np.pad(ids, (0, row_length - len(ids))).astype(np.int32) for ids in (segments, positions))


def at_once(q, k, v, segment_ids, position_ids, *, at=None, reach=None, is_causal=False):
    """By the definition, with the distances of positions: T × T."""
    distance = position_ids[None, :] - position_ids[:, None]
    mask = segment_ids[:, None] == segment_ids[None, :]
    if reach is not None:
        mask &= jnp.abs(distance) <= reach
    if is_causal:
        mask &= distance <= 0
    q, mask = (q, mask) if at is None else (q[at], mask[at])
    q, k, v = (x.reshape(len(x), HEADS, SIZE) for x in (q, k, v))
    scores = jnp.where(mask, jnp.einsum("qnh,tnh->nqt", q, k) / math.sqrt(SIZE), -jnp.inf)
    return jnp.einsum("nqt,tnh->qnh", jax.nn.softmax(scores), v).reshape(len(q), -1)


def in_blocks(q, k, v, segment_ids, position_ids, *, at=None, **kind):
    q = q if at is None else q[at]
    at_Q = None if at is None else jnp.asarray(at)
    return attention.attend(q, k, v, segment_ids, at_Q=at_Q, num_heads=HEADS, dropout_rate=0.0, key=None, **kind)


ROWS = {
    81: [[81], [40, 41]],  # one token more than is computed at once
    96: [[96], [95]],  # a whole number of blocks
    150: [[40, 1, 37, 5, 60], [33, 90, 2], [3] * 40, [150], []],
}
"""Lengths of texts by the length of the row: packed, within a window of each other, nothing but padding."""
KINDS = {
    "window": {"reach": 4},
    "window of a block": {"reach": 16},
    "window of more than a tile": {"reach": 17},
    "each token itself": {"reach": 0},
    "window, some queries": {"reach": 4, "at": np.array([0, 3, 80])},
    "whole texts in turn": {},
    "whole texts in turn, causal": {"is_causal": True},
    "whole texts in turn, some queries": {"at": np.array([0, 3, 80, 7, 7])},
}


OFTEN = [
    (81, "window"),
    (81, "whole texts in turn"),
    (150, "window, some queries"),
    (150, "whole texts in turn, causal"),
]
CASES = [(150, kind) for kind in KINDS] + [(81, "window"), (96, "window"), (81, "whole texts in turn")]


@pytest.mark.parametrize(("row_length", "kind"), others_slow(OFTEN, CASES))
def test_blocks_equal_attention_at_once_and_so_do_their_gradients(monkeypatch, row_length, kind):
    monkeypatch.setattr(attention, "_MOST_SCORES", 300)  # rows that are long enough to be computed in turn
    kind = KINDS[kind]
    rows = [row_of([*lengths, 0], row_length) for lengths in ROWS[row_length]]
    segment_ids, position_ids = (np.stack(ids) for ids in zip(*rows, strict=True))
    is_real = (segment_ids > 0)[:, kind.get("at", slice(None))]
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((len(rows), row_length, HEADS * SIZE)).astype(np.float32) for _ in range(3))
    weights = rng.standard_normal((*is_real.shape, HEADS * SIZE)).astype(np.float32) * is_real[..., None]

    def run(attend):
        def weighted(q, k, v):
            y = jax.vmap(functools.partial(attend, **kind))(q, k, v, segment_ids, position_ids)
            return (y * weights).sum(), y

        (_, y), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return np.asarray(y), gradients

    (ours, our_gradients), (theirs, their_gradients) = run(in_blocks), run(at_once)
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs)[is_real].max() <= TOLERANCE
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"reach": 4}, {}], ids=["window", "whole texts in turn"])
def test_dropout_of_blocks_keeps_the_mean_and_differs_from_block_to_block(monkeypatch, kind):
    monkeypatch.setattr(attention, "_MOST_SCORES", 1000)
    length = 100
    segment_ids = jnp.ones(length, jnp.int32)
    x, ones = jnp.zeros((length, HEADS * SIZE)), jnp.ones((length, HEADS * SIZE))
    keys = jax.random.split(jax.random.key(0), 300)
    attend = functools.partial(attention.attend, num_heads=HEADS, dropout_rate=0.5, **kind)
    kept = np.asarray(jax.jit(jax.vmap(lambda key: attend(x, x, ones, segment_ids, key=key)))(keys))[..., ::SIZE]
    # A window of 9 keeps 1 ± 1/3: of the mean of 300 draws, 6 standard deviations.
    assert np.abs(kept.mean(axis=0) - 1).max() < 6 / 3 / math.sqrt(300)
    assert len({row.tobytes() for row in kept[0][20:80]}) > 40, "tokens draw for themselves"


def temporary_bytes(function, *shapes):
    return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


LENGTH = 4096


@pytest.mark.compiled_as_for_users
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_a_window_makes_no_array_of_all_pairs_of_tokens(differentiate):
    row = jax.ShapeDtypeStruct((LENGTH, HEADS * SIZE), jnp.float32)
    segment_ids = jax.ShapeDtypeStruct((LENGTH,), jnp.int32)

    def attend(reach, q, k, v, segment_ids):
        return attention.attend(q, k, v, segment_ids, num_heads=HEADS, dropout_rate=0.0, key=None, reach=reach).sum()

    def bytes_of(reach):
        function = functools.partial(attend, reach)
        return temporary_bytes(jax.grad(function) if differentiate else function, row, row, row, segment_ids)

    assert bytes_of(64) < HEADS * LENGTH * LENGTH, "a byte a pair would not fit, let alone a float"
    of_block = 2048 * 2048 if differentiate else 2**16
    assert bytes_of(LENGTH) >= HEADS * of_block * 4, "an array of scores would be seen"


@pytest.mark.compiled_as_for_users
def test_no_layer_of_a_long_row_makes_an_array_of_all_pairs_of_tokens():
    changes = {"max_position_embeddings": 2 * LENGTH, "local_attention": 128}
    config = read_config(json.dumps(models.FAMILIES["modernbert"].tiny_config | changes))
    params = jax.eval_shape(lambda: models.init_params(jax.random.key(0), models.shapes(config), stddev=1.0))
    tokens = Tokens(*[jax.ShapeDtypeStruct((2 * LENGTH,), jnp.int32)] * 4)
    forward = functools.partial(models.forward, config=config, num_segments=1)
    assert temporary_bytes(forward, params, tokens) < config.num_heads * (2 * LENGTH) ** 2
