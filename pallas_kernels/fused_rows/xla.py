"""The meaning of the operations in plain jnp, which runs everywhere, float64 too; other backends are tested against it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def row_norm(x: Array, real: Array, eps: float) -> Array:
    """See `api.row_norm`."""
    return _layer_norm(_clear(x, real), eps)  # of a row of zeros: zeros


def sum_norms(a: Array, b: Array, real: Array, eps: float) -> tuple[Array, Array]:
    """See `api.sum_norms`."""
    wide = _wide(_clear(a, real) + _clear(b, real))
    y = (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)).astype(a.dtype)
    return y, _layer_norm(y, eps)


def mixed_keys(x: Array, w1: Array, w2: Array) -> tuple[Array, Array]:
    """See `api.mixed_keys`."""
    shape = -1, w1.shape[-1], *x.shape[2:]
    k, v = (jnp.einsum("bmhk,gmhj->gbjhk", x, w).reshape(shape) for w in (w1, w2))
    return k, v


def _clear(x: Array, real: Array) -> Array:
    return jnp.where(real[:, None], x, 0)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _layer_norm(x: Array, eps: float) -> Array:
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)).astype(x.dtype)
