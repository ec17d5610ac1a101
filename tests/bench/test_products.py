"""Matrix products are counted wherever they stand in a function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import placement
from flaxsent.bench import machine
from flaxsent.bench.products import Products, count
from flaxsent.packing import StepShape

W_LDD = jax.ShapeDtypeStruct((5, 8, 8), jnp.float32)
X_RD = jax.ShapeDtypeStruct((3, 8), jnp.float32)
LAYER = 2 * 3 * 8 * 8


def scanned(w_LDD, x_RD):
    return jax.lax.scan(lambda x_RD, w_DD: (jnp.tanh(x_RD @ w_DD), None), x_RD, w_LDD)[0]


def unrolled(w_LDD, x_RD):
    for w_DD in w_LDD:
        x_RD = jnp.tanh(x_RD @ w_DD)
    return x_RD


@pytest.mark.parametrize("function", [scanned, unrolled, jax.jit(scanned), jax.checkpoint(unrolled)])
def test_a_loop_counts_as_often_as_it_runs(function):
    with jax.default_matmul_precision("default"):
        assert count(function, W_LDD, X_RD) == Products(5 * LAYER, 5 * LAYER)


@pytest.mark.parametrize("function", [scanned, unrolled])
def test_backwards_takes_twice_as_much(function):
    with jax.default_matmul_precision("default"):
        found = count(jax.grad(lambda w, x: function(w, x).sum(), argnums=(0, 1)), W_LDD, X_RD)
    assert found == Products(15 * LAYER, 15 * LAYER)


@pytest.mark.parametrize(
    ("precision", "dtype", "passes"),
    [("highest", jnp.float32, 6), ("high", jnp.float32, 3), ("default", jnp.float32, 1), ("highest", jnp.bfloat16, 1)],
)
def test_precision_is_passes_of_float32_alone(precision, dtype, passes):
    x_RD, w_DD = jax.ShapeDtypeStruct((3, 8), dtype), jax.ShapeDtypeStruct((8, 4), dtype)
    with jax.default_matmul_precision(precision):
        assert count(jnp.matmul, x_RD, w_DD) == Products(192, 192 * passes)


def test_of_the_branches_the_largest_counts():
    def function(x_DD):
        return jax.lax.cond(x_DD[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x_DD)

    assert count(function, jnp.ones((4, 4))) == Products(2 * 2 * 4**3, 6 * 2 * 2 * 4**3)  # at "highest", as tests are


def test_an_encoder_takes_what_its_sizes_say(embedded):
    shape = StepShape(8, 128, 1)
    found = count(placement.of_shape(embedded.scores, shape), embedded.params, placement.no_tokens(shape))
    # Pooler and head are not counted there.
    assert found.operations == pytest.approx(machine.operations([128] * 8, embedded.config), rel=1e-3)
    assert found.passes == 6 * found.operations


@pytest.mark.usefixtures("symbolic_sizes")
def test_what_an_export_hides_is_not_counted(tiny_folder, tmp_path):
    flaxsent.export(flaxsent.load(tiny_folder("bert"), backend="native"), tmp_path / "exported", platforms=["cpu"])
    carried = flaxsent.load(tmp_path / "exported")
    tokens = placement.no_tokens(StepShape(2, 16, 2))
    assert count(lambda params: carried.scores(params, tokens, 2), carried.params) is None
    assert np.isfinite(carried.scores(carried.params, tokens, 2)).all()
