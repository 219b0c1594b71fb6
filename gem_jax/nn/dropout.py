"""Dropout as a pure function of an explicit key; no key means off."""

import math

import jax
import jax.numpy as jnp

STEPS = 2**16
"""Rates are multiples of 1 / STEPS: an entry takes 16 random bits, and a word of the generator serves two entries."""


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the rest so that the expectation is x; `key` None returns x unchanged.

    The rate is rounded to a multiple of 1 / STEPS, and the scale is that of the rounded one.
    """
    dropped = round(rate * STEPS)
    if key is None or dropped == 0:
        return x
    if dropped == STEPS:
        return jnp.zeros_like(x)
    return jnp.where(_random16(key, x.shape) >= dropped, x * (STEPS / (STEPS - dropped)), 0)


def _random16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform integers from 0 to STEPS - 1, as uint32.

    `jax.random.bits` of 16 bits spends a word of the generator on each. The low halves of all words come first, then the high ones:
    side by side in pairs they would have to be interleaved.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
    return jnp.concatenate([words & (STEPS - 1), words >> 16])[:size].reshape(shape)


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` independent keys, or as many Nones where dropout is off."""
    if key is None:
        return [None] * num
    return list(jax.random.split(key, num))
