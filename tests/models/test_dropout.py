"""Dropout keeps each number with the right probability, whatever became of any other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent.classifier import forward_packed
from flaxsent.models.dropout import dropout
from flaxsent.packing import pack, pad
from tests.conftest import texts_of_lengths
from tests.training.test_trainer import load

IMPLS = ["unsafe_rbg", "rbg", "threefry2x32"]


def kept(rate, shape, *, impl, seed=0):
    key = jax.random.key(seed, impl=impl)
    return np.asarray(dropout(jnp.ones(shape), rate, key)) > 0


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_the_rate_is_that_which_was_asked_for_and_the_mean_stays(impl, rate):
    dropped = ~kept(rate, (500, 1001), impl=impl)
    deviation = np.sqrt(rate * (1 - rate) / dropped.size)
    # The rate is rounded to 2⁻¹⁶; beyond that, five standard deviations of a binomial.
    assert abs(dropped.mean() - rate) <= 5 * deviation + 2**-17
    by_place = dropped.mean(axis=0)  # no place is favoured: 1001 of them, six deviations
    assert np.abs(by_place - rate).max() <= 6 * np.sqrt(rate * (1 - rate) / 500)
    y = dropout(jnp.full((500, 1001), 3.0), rate, jax.random.key(1, impl=impl))
    assert set(np.unique(y)) == {0, np.float32(3 * 2**16 / (2**16 - round(rate * 2**16)))}
    assert abs(float(jnp.mean(y)) - 3) <= 3 * 5 * deviation / (1 - rate)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_dropped_in_one_place_says_nothing_of_another(impl):
    """The halves of a word, neighbours, rows, keys of layers and rows under vmap: no two go together."""
    keys = jax.random.split(jax.random.key(0, impl=impl), 6)  # layers
    rows = jax.vmap(lambda key: jax.vmap(functools.partial(dropout, rate=0.5))(jnp.ones((8, 64, 96)), key=key))(
        jax.vmap(lambda key: jax.random.split(key, 8))(keys)
    )
    kept_LRTD = np.asarray(rows) > 0
    signs = 2.0 * kept_LRTD - 1
    pairs = {
        "halves of a word": (signs[..., :48], signs[..., 48:]),
        "neighbours": (signs[..., :-1], signs[..., 1:]),
        "tokens": (signs[:, :, :-1], signs[:, :, 1:]),
        "rows": (signs[:, :-1], signs[:, 1:]),
        "layers": (signs[:-1], signs[1:]),
    }
    for name, (one, other) in pairs.items():
        # The mean of products of independent signs: five standard deviations about 0.
        assert abs((one * other).mean()) <= 5 / np.sqrt(one.size), name


@pytest.mark.parametrize("impl", IMPLS)
def test_keys_side_by_side_and_places_far_apart_say_nothing_of_one_another(impl):
    """Keys of successive seeds, which nobody split, and each bit of a place's number."""
    signs = np.stack([2.0 * kept(0.5, (64, 2048), impl=impl, seed=seed) - 1 for seed in range(8)]).reshape(8, -1)
    for shift in range(8):
        for distance in (1, 2, 3, 4):  # of keys
            product = (signs[distance:] * np.roll(signs[:-distance], shift, axis=1)).mean()
            # The mean of products of independent signs: five standard deviations about 0; so below.
            assert abs(product) <= 5 / np.sqrt(signs[distance:].size), (shift, distance)
    for bit in range(17):
        own = signs.reshape(8, -1, 2, 2**bit)
        assert abs((own[:, :, 0] * own[:, :, 1]).mean()) <= 5 / np.sqrt(own.size / 2), bit
    # The 16 bits of a number are even: five deviations of a binomial for each of 2⁸ shares of the range.
    rates = np.arange(1, 2**8) / 2**8
    numbers = np.stack([kept(float(rate), (64, 2048), impl=impl) for rate in rates])
    dropped = 1 - numbers.mean(axis=(1, 2))
    assert (np.abs(dropped - rates) <= 5 * np.sqrt(rates * (1 - rates) / (64 * 2048))).all()


def test_a_rate_of_1_drops_all():
    assert not dropout(jnp.ones(99), 1.0, jax.random.key(0)).any()


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (2, 5, 9)])
def test_any_shape_keeps_its_shape_and_dtype(shape):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        y = dropout(jnp.ones(shape, dtype), 0.25, jax.random.key(0))
        assert (y.shape, y.dtype) == (shape, dtype)


def test_a_text_that_is_packed_has_the_dropout_of_a_text_alone(tiny_folder):
    """In distribution: the mean and the deviation of its logits over many draws."""
    classifier = load(tiny_folder("bert", num_hidden_layers=1))
    encodings = classifier.tokenizer.encode(texts_of_lengths([7, 12, 20]))
    packed, _ = pack(encodings, row_length=64)
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 600)

    def draws(tokens, num_segments):
        of = functools.partial(forward_packed, config=classifier.config)
        return np.asarray(
            jax.jit(lambda keys: jax.lax.map(lambda key: of(classifier.params, tokens, num_segments, key), keys))(keys)
        )

    alone = draws(pad(encodings), 1)[:, :, 0]
    together = draws(packed, 3)[:, 0]
    order = [int(np.argmin(np.abs(together.mean(0) - one).sum(-1))) for one in alone.mean(0)]
    assert sorted(order) == [0, 1, 2]
    together, deviation = together[:, order], alone.std(0)
    # Five standard deviations of the difference of two means of 600; of a deviation, whose own is 1/√(2·600) of it.
    assert (np.abs(together.mean(0) - alone.mean(0)) <= 5 * deviation * np.sqrt(2 / 600)).all()
    assert (np.abs(together.std(0) / deviation - 1) <= 5 / np.sqrt(600)).all()
    assert (deviation > 0.05).all()
