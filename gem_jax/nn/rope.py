"""Rotary position embedding (arXiv 2104.09864) on packed rows."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def rotate(x: Float[Array, "T H K"], positions: Num[Array, " T"], base: float = 10_000.0) -> Float[Array, "T H K"]:
    """Turns the pair (x[i], x[i + K/2]) by the angle positions * base^(-2i/K).

    A score q . k of rotated vectors depends on the difference of their positions only.

    Args:
      x: queries or keys; K is even.
      positions: integer places in the history, or real times (Kunlun's ROTE uses log(1 + age / scale)).
      base: the longest wavelength is about 2 pi base.

    Returns:
      In x's dtype; angles are computed in float32.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
