"""What JAX itself must get right: jaxlib 0.10.2, which pyproject.toml excludes, computes wrong sums on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np


def test_a_vmapped_product_and_a_sum_of_squares_beyond_32768_rows_are_right():
    # 0.10.2 gives 1597361152 here.
    num_rows = 40_000
    x = jnp.ones((num_rows, 200), jnp.float32)
    vector = jnp.ones((200,), jnp.float32)

    @jax.jit
    def total(x, vector):
        return jnp.sum(jnp.square(jax.vmap(lambda row: row @ vector)(x)))

    # 40,000 squares of 200: float32 sums of integers of one size lose less than 1e-5.
    np.testing.assert_allclose(total(x, vector), 200**2 * num_rows, rtol=1e-5)
