"""The multi-layer perceptron that every block uses."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.nn.dropout import dropout, split_key

Activation = Literal["relu", "silu", "gelu"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}


class MLP(nnx.Module):
    """Linear layers of sizes `hidden`, each with activation and dropout, then a plain Linear to `out_features`.

    Args:
      in_features: size of the input's last axis.
      hidden: sizes of the hidden layers; none makes this a single Linear.
      out_features: size of the last layer, which has neither activation nor dropout.
      activation: of the hidden layers.
      dropout_rate: of the hidden layers, active where a key is given.
      dtype: of the computation; parameters are float32.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Activation = "relu",
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = [in_features, *hidden, out_features]
        # Variance 2 / fan_in keeps activations of order one through relu-like layers.
        inits = [nnx.initializers.he_normal()] * len(hidden) + [nnx.initializers.lecun_normal()]
        self.layers = nnx.List(
            [
                nnx.Linear(n, m, kernel_init=init, dtype=dtype, rngs=rngs)
                for n, m, init in zip(sizes[:-1], sizes[1:], inits, strict=True)
            ]
        )
        self.activation: Activation = activation
        self.dropout_rate = dropout_rate

    def __call__(self, x: Float[Array, "... I"], key: jax.Array | None = None) -> Float[Array, "... O"]:
        *hidden, last = self.layers
        for layer, layer_key in zip(hidden, split_key(key, len(hidden)), strict=True):
            x = dropout(ACTIVATIONS[self.activation](layer(x)), self.dropout_rate, layer_key)
        return last(x)
