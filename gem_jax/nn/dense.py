"""Linear maps, and products with weights in general, under a policy.

Shape letters: I in, O out, M modules, B batch, n tokens, R rows of all modules together (module i owns `row_counts[i]` of them).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.initializers import ZEROS, Initializer, lecun_normal, normal
from gem_jax.nn.parameters import Axis, Names, names_of, parameter, size_of
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy

ALIGNMENT = 8
"""Numbers of two bytes in 16 bytes."""


def cast_weight(weight: nnx.Param, policy: Policy) -> Float[Array, "..."]:
    """A parameter's value in the compute dtype."""
    return checkpoint_name(policy.cast(weight[...]), tags.PARAMETER)


def einsum(equation: str, x: Float[Array, "..."], weight: nnx.Param, policy: Policy) -> Float[Array, "..."]:
    """`jnp.einsum` of activations and a parameter, both in the compute dtype."""
    return checkpoint_name(jnp.einsum(equation, policy.cast(x), cast_weight(weight, policy)), tags.PROJECTION)


class Dense(nnx.Module):
    """x W [+ b] over the last axis.

    Args:
      in_features: I, or the names of the inputs.
      out_features: O, or the names of the outputs.
      use_bias: whether there is a bias, 0 at first.
      kernel_init: of W [I, O]; LeCun's normal unless given.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        in_features: Axis,
        out_features: Axis,
        *,
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        shape = (size_of(in_features), size_of(out_features))
        names = (names_of(in_features), names_of(out_features))
        self.kernel = parameter(kernel_init or lecun_normal(shape[0]), shape, rngs, decay=True, axes=names)
        self.bias = parameter(ZEROS, shape[1:], rngs, decay=False, axes=names[1:]) if use_bias else None
        self.policy = policy

    def __call__(self, x: Float[Array, "*s I"]) -> Float[Array, "*s O"]:
        x, kernel = _aligned(self.policy.cast(x), cast_weight(self.kernel, self.policy))
        y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        if self.bias is not None:
            y = y + cast_weight(self.bias, self.policy)
        return checkpoint_name(y, tags.PROJECTION)


def _aligned(x: Float[Array, "*s I"], kernel: Float[Array, "I O"]) -> tuple[Float[Array, "*s J"], Float[Array, "J O"]]:
    """Both with zeros up to a multiple of `ALIGNMENT` inputs of narrow numbers: GPUs' fast products want rows of 16 bytes."""
    missing = -len(kernel) % ALIGNMENT
    if missing == 0 or kernel.dtype == jnp.float32:
        return x, kernel
    return jnp.pad(x, (*((0, 0) for _ in x.shape[:-1]), (0, missing))), jnp.pad(kernel, ((0, missing), (0, 0)))


class GroupedDense(nnx.Module):
    """A linear map of its own for each of M modules, on packed rows or on one block per module.

    Args:
      modules: names of the M modules.
      in_features: I.
      out_features: O.
      use_bias: whether each map has a bias, 0 at first.
      policy: of the computation.
      rngs: initialises the weights: normal with standard deviation 1 / sqrt(I).
    """

    def __init__(
        self,
        modules: Names,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        shape = (len(modules), in_features, out_features)
        self.weight = parameter(normal(in_features**-0.5), shape, rngs, decay=True, axes=(modules, None, None))
        bias_shape = (len(modules), out_features)
        self.bias = parameter(ZEROS, bias_shape, rngs, decay=False, axes=(modules, None)) if use_bias else None
        self.policy = policy

    def rows(self, x: Float[Array, "R I"], row_counts: tuple[int, ...]) -> Float[Array, "R O"]:
        """Packed rows, each by its module's map; `row_counts` should share a large divisor (see `grouped_product`)."""
        y = grouped_product(self.policy.cast(x), cast_weight(self.weight, self.policy), row_counts)
        if self.bias is not None:
            bias = _per_block(cast_weight(self.bias, self.policy)[:, None], row_counts)
            y = (y.reshape(len(bias), -1, y.shape[-1]) + bias).reshape(y.shape)
        return checkpoint_name(y, tags.PROJECTION)

    def blocks(self, x: Float[Array, "M B n I"]) -> Float[Array, "M B n O"]:
        """One block [B, n, I] per module."""
        y = einsum("gbni,gio->gbno", x, self.weight, self.policy)
        return y if self.bias is None else y + cast_weight(self.bias, self.policy)[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def grouped_product(
    x: Float[Array, "R I"], weight: Float[Array, "M I O"], row_counts: tuple[int, ...]
) -> Float[Array, "R O"]:
    """Each module's rows by its own weight, as one batched product.

    One product a module would leave its results in arrays of their own; to join and part those moves more bytes than the products.
    Here rows are blocks of as many as the greatest common divisor of `row_counts`, and each block has a copy of its weight. The
    weight's gradient is summed over a module's blocks in float32.

    Args:
      x: packed rows, module by module.
      weight: of each module.
      row_counts: rows of each module.
    """
    return _batched("bgi,bio->bgo", _blocks(x, row_counts), _per_block(weight, row_counts)).reshape(len(x), -1)


def _grouped_forward(x, weight, row_counts):
    return grouped_product(x, weight, row_counts), (x, weight)


def _grouped_backward(row_counts, saved, grad):
    x, weight = saved
    grad = _blocks(grad, row_counts)
    dx = _batched("bgo,bio->bgi", grad, _per_block(weight, row_counts)).reshape(x.shape)
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    parts = jnp.einsum("bgi,bgo->bio", _blocks(x, row_counts), grad, preferred_element_type=wide)
    ends = np.cumsum(_block_counts(row_counts))
    sums = [parts[end - n : end].sum(axis=0) for n, end in zip(_block_counts(row_counts), ends, strict=True)]
    return dx, jnp.stack(sums).astype(weight.dtype)


grouped_product.defvjp(_grouped_forward, _grouped_backward)


def _batched(equation: str, x: Float[Array, "b g _"], weight: Float[Array, "b _ _"]) -> Float[Array, "b g _"]:
    return jnp.einsum(equation, x, weight)


def _block_counts(row_counts: tuple[int, ...]) -> list[int]:
    block = max(math.gcd(*row_counts), 1)  # all may be empty
    return [n // block for n in row_counts]


def _blocks(x: Float[Array, "R D"], row_counts: tuple[int, ...]) -> Float[Array, "b g D"]:
    return x.reshape(-1, max(math.gcd(*row_counts), 1), x.shape[-1])


def _per_block(weight: Float[Array, "M *s"], row_counts: tuple[int, ...]) -> Float[Array, "b *s"]:
    """Each module's weight, once for each of its blocks."""
    counts = _block_counts(row_counts)
    return jnp.concatenate([jnp.broadcast_to(w, (n, *w.shape)) for w, n in zip(weight, counts, strict=True)])


@jax.custom_vjp
def mixed_tokens(x: Float[Array, "B n D"], weight: Float[Array, "n m"]) -> Float[Array, "B m D"]:
    """Tokens mixed by a weight that all examples share, as one small product an example.

    In one large product the tokens' axis must come first, and each side is transposed for it; a copy of the weight for each example
    is fewer bytes. The weight's gradient is summed over examples in float32.
    """
    return jnp.einsum("bnm,bnd->bmd", _each(weight, len(x)), x)


def _mixed_backward(saved, grad):
    x, weight = saved
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    dx = jnp.einsum("bnm,bmd->bnd", _each(weight, len(x)), grad)
    parts = jnp.einsum("bnd,bmd->bnm", x, grad, preferred_element_type=wide)
    return dx, parts.sum(axis=0).astype(weight.dtype)


mixed_tokens.defvjp(lambda x, weight: (mixed_tokens(x, weight), (x, weight)), _mixed_backward)


def _each(weight: Float[Array, "n m"], examples: int) -> Float[Array, "B n m"]:
    """A copy for each example, which XLA must not take back into one product."""
    return jax.lax.optimization_barrier(jnp.broadcast_to(weight, (examples, *weight.shape)))
