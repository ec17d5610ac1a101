"""The activations, by their names in config.json."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.interpreters import batching
from jaxtyping import Array, Float

from flaxsent.models.platforms import primitive


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact one (Hendrycks and Gimpel 2016), x·Φ(x).

    In float32 by erf, as in PyTorch. `jax.nn.gelu(approximate=False)` takes erfc, which keeps relative accuracy far
    below 0 and costs a TPU half the speed of a feed-forward layer and a CPU twice the time. Between -14 and 14 the
    largest error is 1e-6, and erfc's 4e-7.

    In 16 bits by a tanh whose argument is a polynomial fitted to Φ: its error of 3e-5 is below the rounding of the
    result (bfloat16: 4e-3 at 1), and a TPU has an instruction for tanh. In bfloat16 on a GPU by tanh as Hendrycks and
    Gimpel have it, which cuBLAS computes at the end of a product: with its error of 5e-4 logits are no further from
    float32's (SST-2 dev, on average: 4.1e-3, and 4.7e-3 with the fitted one).
    """
    if x.dtype in (jnp.bfloat16, jnp.float16):
        return gelu_p.bind(x)
    half = 0.5 * x
    y = half + half * jax.lax.erf(x * 2**-0.5)
    return jnp.where(x > -6, y, jnp.zeros((), x.dtype))  # less than 6e-9 there; jax 0.8's erf ends at -0.9999998


def gelu_by_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact one within 3e-5, computed in float32."""
    z = x.astype(jnp.float32)
    square = jnp.minimum(z * z, 30.0)  # beyond it tanh is 1, and the polynomial would fall again
    argument = z * (0.7974971 + square * (0.03701541 - 0.0003531009 * square))
    return (0.5 * z * (1.0 + jnp.tanh(argument))).astype(x.dtype)


def _gelu_on_gpu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.gelu(x, approximate=True) if x.dtype == jnp.bfloat16 else gelu_by_tanh(x)


gelu_p = primitive("gelu", gelu_by_tanh, on_gpu=_gelu_on_gpu)
batching.defvectorized(gelu_p)


# Names of config.json (transformers' ACT2FN) that published encoders use. "gelu" is the exact one.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_10": lambda x: jnp.clip(gelu(x), -10, 10),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_python_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_accurate": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "laplace": lambda x: (1 + jax.lax.erf((x - 0.707107) / (0.282095 * 2**0.5))) / 2,
    "linear": lambda x: x,
}
ACTIVATIONS = {name: jax.named_scope("activation")(activation) for name, activation in ACTIVATIONS.items()}
