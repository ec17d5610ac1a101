"""What JAX itself must get right. jaxlib 0.10.2, which pyproject.toml excludes, did not on some processors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = [pytest.mark.compiled_as_for_users, pytest.mark.each_of_all]


@pytest.mark.parametrize("num_rows", [32_768, 32_769, 39_999, 65_537])
@pytest.mark.parametrize("size", [1, 2, 16, 200])
def test_squares_of_a_vmapped_product_add_up(num_rows, size):
    """0.10.2 gave 1597361152 for 1599920001, beyond 32,768 rows."""
    rows, vector = jnp.ones((num_rows, size)), jnp.ones(size)
    squares = jax.jit(lambda rows, vector: jnp.sum(jnp.square(jax.vmap(lambda row: row @ vector)(rows))))
    # Sums of integers: float32 rounds each partial sum to 1 part in 1.7e7, and 64 of the rows were lost before.
    np.testing.assert_allclose(squares(rows, vector), num_rows * size**2, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 2, 3, 2), (1, 2, 3, 4, 5, 6, 7)])
def test_reductions_of_seven_axes_are_numpys(shape):
    """0.10.2 crashed on some."""
    values = np.random.default_rng(0).integers(0, 9, shape).astype(np.float32)
    for axes in itertools.chain(itertools.combinations(range(7), 3), itertools.combinations(range(7), 6)):
        np.testing.assert_array_equal(jnp.sum(values, axis=axes), values.sum(axis=axes))
