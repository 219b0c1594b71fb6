"""Stochastic rounding to bfloat16 by a counter: no state, no stream, the same bits on every backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def stochastic_bfloat16(values: Array, rows: Array, seed: Array | int) -> Array:
    """float32 [Q, D] as bfloat16, up with the probability that makes it right on average; infinities stay.

    The 16 bits of chance of a number are a hash of (seed, its row's number, its column), so they depend on no order and no mesh.

    Args:
      values: finite or infinite.
      rows: int32 [Q].
      seed: int32, another one each step.
    """
    row = _mix(rows.astype(jnp.uint32) ^ jnp.asarray(seed, jnp.int32).astype(jnp.uint32))
    column = jnp.arange(values.shape[1], dtype=jnp.uint32)
    noise = _mix(row[:, None] + column) & 0xFFFF
    bits = (jax.lax.bitcast_convert_type(values, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)
