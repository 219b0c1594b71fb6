"""Linear maps, and products with weights in general, under a policy.

Shape letters: I in, O out, M modules, B batch, n tokens, R rows of all modules together (module i owns `row_counts[i]` of them).
"""

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
        kernel = cast_weight(self.kernel, self.policy)
        y = jax.lax.dot_general(self.policy.cast(x), kernel, (((x.ndim - 1,), (0,)), ((), ())))
        if self.bias is not None:
            y = y + cast_weight(self.bias, self.policy)
        return checkpoint_name(y, tags.PROJECTION)


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
        """Packed rows, each by its module's map."""
        weight, x = cast_weight(self.weight, self.policy), self.policy.cast(x)
        ends = np.cumsum(row_counts)
        parts = [x[end - n : end] @ weight[i] for i, (n, end) in enumerate(zip(row_counts, ends, strict=True))]
        if self.bias is not None:
            bias = cast_weight(self.bias, self.policy)
            parts = [part + bias[i] for i, part in enumerate(parts)]
        return checkpoint_name(jnp.concatenate(parts), tags.PROJECTION)

    def blocks(self, x: Float[Array, "M B n I"]) -> Float[Array, "M B n O"]:
        """One block [B, n, I] per module."""
        y = einsum("gbni,gio->gbno", x, self.weight, self.policy)
        return y if self.bias is None else y + cast_weight(self.bias, self.policy)[:, None, None]
