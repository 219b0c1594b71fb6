"""Several modules side by side: one array, one attention call and one norm for all, weights for each.

Shape letters: M modules, I in, O out, R rows of all modules together (module i owns `row_counts[i]` consecutive ones).
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class GroupedLinear(nnx.Module):
    """A linear map of its own for each of M modules, on packed rows or on one block per module.

    Args:
      num_modules: M.
      in_features: I.
      out_features: O.
      use_bias: whether each map has a bias, 0 at first.
      std: of the weights; 1 / sqrt(I) unless given.
      dtype: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        num_modules: int,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        std: float | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.normal(in_features**-0.5 if std is None else std)
        self.weight = nnx.Param(init(rngs.params(), (num_modules, in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_modules, out_features), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def rows(self, x: Float[Array, "R I"], row_counts: tuple[int, ...]) -> Float[Array, "R O"]:
        """Packed rows, each by its module's map."""
        weight = self.weight[...].astype(self.dtype)
        ends = np.cumsum(row_counts)
        parts = [x[end - n : end].astype(self.dtype) @ weight[i] for i, (n, end) in enumerate(zip(row_counts, ends))]  # noqa: B905
        if self.bias is not None:
            parts = [part + self.bias[...][i].astype(self.dtype) for i, part in enumerate(parts)]
        return jnp.concatenate(parts)

    def blocks(self, x: Float[Array, "M B n I"]) -> Float[Array, "M B n O"]:
        """One block [B, n, I] per module."""
        y = jnp.einsum("gbni,gio->gbno", x.astype(self.dtype), self.weight[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...][:, None, None].astype(self.dtype)
