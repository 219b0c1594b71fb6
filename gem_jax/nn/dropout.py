"""Dropout as a pure function of an explicit key; no key means off."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate); `key` None returns x unchanged."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0)


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` independent keys, or as many Nones where dropout is off."""
    if key is None:
        return [None] * num
    return list(jax.random.split(key, num))
