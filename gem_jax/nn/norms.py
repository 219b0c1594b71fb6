"""Normalisation over the last axis, computed in float32 whatever the input's dtype."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) [* scale + bias], returned in x's dtype.

    Args:
      width: size of the last axis.
      affine: whether scale and bias are learned.
      eps: added to the variance.
    """

    def __init__(self, width: int, *, affine: bool = True, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width, jnp.float32)) if affine else None
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32)) if affine else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None and self.bias is not None:
            y = y * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) [* scale], returned in x's dtype.

    Args:
      width: size of the last axis.
      affine: whether the scale is learned.
      eps: added to the mean square.
    """

    def __init__(self, width: int, *, affine: bool = True, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width, jnp.float32)) if affine else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * self.scale[...]
        return y.astype(x.dtype)
