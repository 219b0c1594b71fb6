"""The multi-layer perceptron that every block uses."""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.dense import Dense
from gem_jax.nn.dropout import dropout, split_key
from gem_jax.nn.initializers import he_normal, lecun_normal
from gem_jax.nn.parameters import Axis, size_of
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


class MLP(nnx.Module):
    """Linear maps to sizes `hidden`, each with relu and dropout, then a plain one to `out_features`.

    Args:
      in_features: size of the input's last axis, or the names of its places.
      hidden: sizes of the hidden layers; none makes this a single linear map.
      out_features: size of the last layer, or the names of its outputs; it has neither relu nor dropout.
      dropout_rate: of the hidden layers, active where a key is given.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        in_features: Axis,
        hidden: Sequence[int],
        out_features: Axis,
        *,
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        sizes: list[Axis] = [in_features, *hidden, out_features]
        # Variance 2 / fan_in keeps activations of order one through relus.
        inits = [he_normal] * len(hidden) + [lecun_normal]
        self.layers = nnx.List(
            [
                Dense(n, m, kernel_init=init(size_of(n)), policy=policy, rngs=rngs)
                for n, m, init in zip(sizes[:-1], sizes[1:], inits, strict=True)
            ]
        )
        self.dropout_rate = dropout_rate

    def __call__(self, x: Float[Array, "*s I"], key: jax.Array | None = None) -> Float[Array, "*s O"]:
        *hidden, last = self.layers
        for layer, layer_key in zip(hidden, split_key(key, len(hidden)), strict=True):
            x = dropout(checkpoint_name(jax.nn.relu(layer(x)), tags.ACTIVATION), self.dropout_rate, layer_key)
        return last(x)
