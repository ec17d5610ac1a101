"""Dropout, and the keys that draw it: a `key` of None means no dropout."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

OptionalKey = Key[Array, ""] | None


def dropout(x: Float[Array, "*shape"], rate: float, key: OptionalKey) -> Float[Array, "*shape"]:
    """Inverted dropout (Srivastava et al. 2014): the expectation stays the same.

    A number takes 16 random bits, half of a word, so that the rate is rounded to 2⁻¹⁶. The halves stand side by side
    along the last axis, where no device has to move them.
    """
    if key is None or rate == 0:
        return x
    size = x.shape[-1]
    words = _random_words(key, (*x.shape[:-1], -(-size // 2)))
    num_dropped = round(rate * 2**16)
    low, high = words & jnp.uint32(2**16 - 1), words >> jnp.uint32(16)
    keep = jnp.concatenate([low >= jnp.uint32(num_dropped), high >= jnp.uint32(num_dropped)], axis=-1)[..., :size]
    return jnp.where(keep, x * jnp.asarray(2**16 / max(2**16 - num_dropped, 1), x.dtype), jnp.zeros((), x.dtype))


def _random_words(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """A hash of the number of each place, twice, each time with a word that the key's own generator draws.

    By one word, masks of some of the many keys of a step would be the same one, shifted.
    To draw all words by a generator of JAX would be most of what dropout costs, on a CPU a twentieth of a training
    step; a hash is a few operations, fused with those around them, and each device makes what it needs.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    places = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        places = places * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _hash(_hash(places + first) ^ second)


def _hash(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """lowbias32 (Wellons 2018, "Prospecting for Hash Functions"): one to one, and each bit flips half of them."""
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


def split_key(key: OptionalKey, num: int) -> Sequence[OptionalKey]:
    """`num` keys, or `num` times None."""
    return [None] * num if key is None else list(jax.random.split(key, num))
