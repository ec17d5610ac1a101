"""`transforms.quantize`: what int8 params compute, how large they are, and who takes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.cli import main
from flaxsent.engine import Engine
from flaxsent.models.layers import dense, look_up, to_int8
from flaxsent.parity.compare import TOLERANCES
from flaxsent.transforms.quantize import quantize
from tests.conftest import AWKWARD_TEXTS, NATIVE, others_slow

FIRST = ("bert",)


def num_bytes(params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_integers_times_scales_are_the_nearest_of_255_steps():
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    x[2] = 0
    integers, scale = to_int8(jnp.asarray(x), axis=-1)
    assert integers.dtype == jnp.int8
    assert int(jnp.abs(integers).max()) == 127
    assert (np.abs(np.asarray(integers) * np.asarray(scale) - x) <= np.asarray(scale) / 2 * (1 + 1e-5)).all()
    assert not np.asarray(integers)[2].any()


def test_a_layer_computes_what_its_integers_say():
    rng = np.random.default_rng(1)
    x, kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 40), (40, 9), (9,)))
    integers, scale = to_int8(jnp.asarray(kernel), axis=0)
    layer = {"kernel": integers, "bias": jnp.asarray(bias)}
    weights = np.asarray(integers, np.float64) * np.asarray(scale, np.float64)
    by_weights = dense(layer | {"kernel_scale": scale[0]}, jnp.asarray(x))
    np.testing.assert_allclose(by_weights, x @ weights + bias, atol=1e-5)  # float32 sums of 40 products of size 1
    x_int8, scale_of_row = to_int8(jnp.asarray(x), axis=-1)
    exact = np.asarray(x_int8, np.int64) @ np.asarray(integers, np.int64)
    expected = exact * np.asarray(scale_of_row, np.float64) * np.asarray(scale, np.float64) + bias
    np.testing.assert_allclose(dense(layer | {"product_scale": scale[0]}, jnp.asarray(x)), expected, atol=1e-5)


def test_an_id_that_a_table_does_not_have_is_nan():
    table = {"embedding": jnp.ones((3, 4), jnp.int8), "embedding_scale": jnp.ones(3, jnp.float32)}
    assert np.isnan(look_up(table, jnp.array([0, 3]))).tolist() == [[False] * 4, [True] * 4]


def test_a_gradient_runs_through_the_product_of_integers_as_through_one_of_floats():
    rng = np.random.default_rng(0)
    x, kernel, out = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((5, 40), (40, 9), (5, 9)))
    integers, scale = to_int8(kernel, axis=0)
    by_mode = ({"kernel": integers, name: scale[0]} for name in ("product_scale", "kernel_scale"))

    def gradient(layer):
        return jax.jit(jax.vmap(jax.grad(lambda x, out: jnp.sum(dense(layer, x) * out))))(x, out)

    ours, theirs = map(gradient, by_mode)
    assert float(jnp.abs(theirs).max()) > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # float32 sums of 9 products of size 1 to 10


@pytest.mark.parametrize("family", others_slow(FIRST, NATIVE))
@pytest.mark.parametrize("mode", ["weights", "dynamic"])
def test_the_logits_of_every_family_stay_near(tiny_folder, family, mode):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    small = quantize(classifier.params, mode=mode)
    tokens = classifier.tokenize([*AWKWARD_TEXTS])
    forward = jax.jit(classifier.forward)
    theirs, ours = (np.asarray(forward(params, tokens)) for params in (classifier.params, small))
    assert 0 < np.abs(ours - theirs).max() <= TOLERANCES["int8"]
    assert models.is_int8(small)
    assert not models.is_int8(classifier.params)
    assert models.last_layer(small)["kernel"].dtype == jnp.float32
    assert classifier.hidden_states(small, tokens).dtype == jnp.float32


@pytest.mark.slow
def test_bfloat16_stays_bfloat16(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native", dtype="bfloat16")
    small, tokens = quantize(classifier.params), classifier.tokenize([*AWKWARD_TEXTS])
    assert classifier.hidden_states(small, tokens).dtype == jnp.bfloat16
    assert np.isfinite(classifier.forward(small, tokens)).all()


@pytest.mark.slow
@pytest.mark.usefixtures("symbolic_sizes")
def test_it_runs_in_the_engine_and_is_exported_in_a_quarter_of_the_bytes(tmp_path):
    classifier = flaxsent.load(backend="native")
    small = dataclasses.replace(classifier, params=quantize(classifier.params))
    texts = ["so good", "so bad", "not good at all, but not bad either"]
    with Engine(small) as engine:
        engine.warmup()
        scores = engine(texts)
    flaxsent.export(small, tmp_path / "carried", platforms=["cpu"])
    assert (tmp_path / "carried" / "params.safetensors").stat().st_size < 0.27 * num_bytes(classifier.params)
    carried = flaxsent.load(tmp_path / "carried")
    ours = carried.postprocess(carried.forward(carried.params, carried.tokenize(texts)))
    assert np.abs(ours - scores).max() <= 2e-6  # probabilities; the same sums in another order, as in test_engine.py
    whole = classifier.predict(classifier.params, classifier.tokenize(texts))
    # A probability moves by a quarter of what the difference of its two logits does, at most: each is off by int8's.
    assert 0 < np.abs(scores - whole).max() <= TOLERANCES["int8"] / 2


@pytest.mark.slow
@pytest.mark.usefixtures("symbolic_sizes")
def test_the_command_exports_it(tiny_folder, tmp_path, capsys):
    assert main(["export", str(tiny_folder("bert")), str(tmp_path / "small"), "--quantize", "dynamic"]) == 0
    capsys.readouterr()
    assert main(["classify", "so good", "--model", str(tmp_path / "small")]) == 0
    assert "so good" in capsys.readouterr().out


def test_what_it_is_refused_for(tiny_folder, tmp_path):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    small = quantize(classifier.params)
    with pytest.raises(FlaxsentError, match="int8 already"):
        quantize(small)
    with pytest.raises(FlaxsentError, match="mode='int4': expected 'weights' or 'dynamic'"):
        quantize(classifier.params, mode="int4")
    with pytest.raises(FlaxsentError, match="holds floats, and these params are int8: export them"):
        flaxsent.save(dataclasses.replace(classifier, params=small), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
