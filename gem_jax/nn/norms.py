"""Normalisation over the last axis, computed in float32 whatever the input's dtype."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.initializers import ONES, ZEROS
from gem_jax.nn.parameters import Axis, names_of, parameter, size_of
from gem_jax.precision import tags


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) [* scale + bias], returned in x's dtype.

    Args:
      width: size of the last axis, or the names of its places.
      affine: whether scale and bias are learned.
      eps: added to the variance.
    """

    def __init__(self, width: Axis, *, affine: bool = True, eps: float = 1e-5):
        self.eps = eps
        self.scale = parameter(ONES, (size_of(width),), decay=False, axes=(names_of(width),)) if affine else None
        self.bias = parameter(ZEROS, (size_of(width),), decay=False, axes=(names_of(width),)) if affine else None

    def __call__(self, x: Float[Array, "*s D"]) -> Float[Array, "*s D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None and self.bias is not None:
            y = y * self.scale[...] + self.bias[...]
        return checkpoint_name(y.astype(x.dtype), tags.NORM)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) [* scale], returned in x's dtype.

    Args:
      width: size of the last axis, or the names of its places.
      affine: whether the scale is learned.
      eps: added to the mean square.
    """

    def __init__(self, width: Axis, *, affine: bool = True, eps: float = 1e-5):
        self.eps = eps
        self.scale = parameter(ONES, (size_of(width),), decay=False, axes=(names_of(width),)) if affine else None

    def __call__(self, x: Float[Array, "*s D"]) -> Float[Array, "*s D"]:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * self.scale[...]
        return checkpoint_name(y.astype(x.dtype), tags.NORM)
